"""BernoulliKLLoss: its closed form, the ends of the scores and labels, and what it is used for."""

import itertools
import math

from gluon_kl import BernoulliKLLoss, KLDivLoss

import mxnet as mx
import numpy as np
import pytest

import oracle

INF = math.inf
SCORES = [-INF, -1e30, -200, -50, -20, -3, -1, -0.1, 0, 0.2, 1, 2, 30, 60, 1e30, INF]
PROBS = [0, 1e-30, 1e-10, 0.001, 0.05, 0.3, 0.5, 0.6, 0.9, 0.999, 1]
SPACES = list(itertools.product((False, True), ("probs", "logits")))
spaces = pytest.mark.parametrize("from_sigmoid, label_space", SPACES)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def close(actual, expected, dtype):
    rtol = 1e-12 if dtype == "float64" else 5e-6
    np.testing.assert_allclose(actual, np.asarray(expected).astype(dtype), rtol=rtol,
                               atol=0 if dtype == "float64" else 1e-9)


# Values and gradients

@spaces
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_against_the_closed_form(eager, from_sigmoid, label_space, dtype):
    """Every pair of ordinary, saturated and infinite scores, and of probabilities down to exactly 0 and 1."""
    pairs = itertools.product(PROBS if from_sigmoid else SCORES, SCORES if label_space == "logits" else PROBS)
    pred, label = np.array(list(pairs), dtype=dtype).T[:, :, None]
    expected = oracle.bernoulli_terms(pred, label, from_sigmoid, label_space)
    loss = BernoulliKLLoss(from_sigmoid, label_space=label_space, reduction="sum")
    value = eager(loss, pred, label)
    assert (value >= 0).all()
    # A label's probability that is below the dtype is 0: it costs nothing where the prediction has none either.
    lost = (value == 0) & np.isinf(expected[:, 0])
    assert ((np.abs(label[lost]) > 100).all() and label_space == "logits") or not lost.any()
    close(value[~lost], expected[~lost, 0], dtype)
    assert all(np.isfinite(gradient).all() for gradient in eager.gradients(loss, pred, label))


@spaces
def test_gradients(eager, rng, from_sigmoid, label_space):
    pred, label = 4 * rng.normal(size=(2, 6, 5))
    q, p = sigmoid(pred), sigmoid(label)
    ratio = label - pred
    to_pred = (q - p) / (q * (1 - q)) if from_sigmoid else q - p
    to_label = ratio if label_space == "probs" else p * (1 - p) * ratio
    loss = BernoulliKLLoss(from_sigmoid, label_space=label_space, reduction="sum")
    gradients = eager.gradients(loss, q if from_sigmoid else pred, p if label_space == "probs" else label)
    for got, want in zip(gradients, (to_pred, to_label)):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_gradients_at_the_ends(eager):
    """To scores sigmoid(pred) - label, also where both are out of reach; to labels of 0 and 1 a finite stand-in."""
    pred = np.array([[-INF, -INF, INF, INF, -1e4, 1e4, 2.0, 2.0]])
    label = np.array([[0, 0.3, 1, 0.3, 0, 1, 0, 1]])
    loss = BernoulliKLLoss(reduction="sum")
    to_pred, to_label = eager.gradients(loss, pred, label)
    np.testing.assert_allclose(to_pred, [[0, -0.3, 0, 0.7, 0, 0, sigmoid(2.0), sigmoid(2.0) - 1]], rtol=1e-12)
    log_epsilon = math.log(1e-12)
    np.testing.assert_allclose(to_label[0, [0, 2]], 0)
    np.testing.assert_allclose(to_label[0, 4:], [log_epsilon + 1e4, 1e4 * -1 - log_epsilon, log_epsilon - 2,
                                                 -log_epsilon - 2], rtol=1e-12)
    sigmoids = np.array([[0, 0.0, 1, 1, 0.25]])
    to_pred, _ = eager.gradients(BernoulliKLLoss(True, reduction="sum"), sigmoids, np.array([[0, 0.3, 1, 0.3, 0]]))
    np.testing.assert_allclose(to_pred, [[1, 0.7, -1, -0.3, 4 / 3]], rtol=1e-12)


@spaces
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_exactly_zero_at_equality(eager, rng, from_sigmoid, label_space, dtype):
    x = np.concatenate([8 * rng.normal(size=200), SCORES]).astype(dtype)[:, None]
    if from_sigmoid:
        with np.errstate(over="ignore"):
            x = np.concatenate([sigmoid(x), np.array([[0], [1]], dtype=dtype)]).astype(dtype)
    if from_sigmoid == (label_space == "probs"):
        loss = BernoulliKLLoss(from_sigmoid, label_space=label_space)
        assert (eager(loss, x, x) == 0).all()
        inside = x if not from_sigmoid else x[(x > 0) & (x < 1)][:, None]
        assert all((gradient == 0).all() for gradient in eager.gradients(loss, inside, inside))
    else:
        half, zero = np.array([[0.5]], dtype), np.zeros((1, 1), dtype)
        assert eager(BernoulliKLLoss(True, label_space="logits"), half, zero) == 0
        assert eager(BernoulliKLLoss(), zero, half) == 0


@spaces
def test_never_negative_and_leading_digits_stay(eager, rng, from_sigmoid, label_space):
    label = (4 * rng.normal(size=(400, 1))).astype("float32")
    for noise in (1e-7, 1e-5, 1e-3, 1e-1):
        pred = label * np.float32(1 + noise)
        given = (sigmoid(pred) if from_sigmoid else pred, sigmoid(label) if label_space == "probs" else label)
        value = eager(BernoulliKLLoss(from_sigmoid, label_space=label_space), *given)
        assert (value >= 0).all()
        if noise >= 1e-3:
            expected = oracle.bernoulli_terms(*given, from_sigmoid, label_space)[:, 0]
            close_enough = np.abs(value / expected - 1) < 1e-2
            assert np.median(np.abs(value / expected - 1)) < 1e-3 and close_enough.mean() > 0.9


def test_labels_that_are_no_probabilities(eager):
    value = eager(BernoulliKLLoss(reduction="none"), np.zeros((1, 4)), np.array([[-0.1, 1.1, np.nan, 0.5]]))
    np.testing.assert_array_equal(value, [[np.nan, np.nan, np.nan, 0]])


# What it stands for

def test_it_is_sigmoid_bce_less_the_entropy(eager, rng):
    """The same gradient, and the same value for labels of 0 and 1."""
    theirs = mx.gluon.loss.SigmoidBCELoss()
    pred = rng.normal(size=(5, 4)).astype("float32")
    hard, soft = (rng.uniform(size=(5, 4)) < 0.5).astype("float32"), rng.uniform(size=(5, 4)).astype("float32")
    np.testing.assert_allclose(eager(BernoulliKLLoss(), pred, hard), eager(theirs, pred, hard), rtol=1e-5, atol=1e-6)
    entropy = -(soft * np.log(soft) + (1 - soft) * np.log1p(-soft)).mean(1)
    np.testing.assert_allclose(eager(BernoulliKLLoss(), pred, soft), eager(theirs, pred, soft) - entropy, atol=1e-6)
    for label in (hard, soft):
        np.testing.assert_allclose(eager.gradients(BernoulliKLLoss(), pred, label)[0],
                                   eager.gradients(theirs, pred, label)[0], atol=1e-6)


def test_it_is_the_divergence_of_two_categories(eager, rng):
    pred, label = rng.normal(size=(2, 6, 1))
    pair = [np.concatenate([x, 0 * x], axis=1) for x in (pred, label)]
    np.testing.assert_allclose(
        eager(BernoulliKLLoss(label_space="logits", reduction="sum"), pred, label),
        eager(KLDivLoss(False, label_space="logits", reduction="sum"), *pair), rtol=1e-9)


@pytest.mark.parametrize("label", [0.05, 0.0, 1.0, 0, 1, np.float32(0.25)])
@pytest.mark.parametrize("from_sigmoid", [True, False])
def test_a_number_as_label(eager, rng, label, from_sigmoid):
    """The sparsity penalty: the same as an array full of it, in the digits of pred's dtype."""
    for dtype in ("float32", "float64"):
        scores = rng.normal(size=(3, 4)).astype(dtype)
        pred = sigmoid(scores).astype(dtype) if from_sigmoid else scores
        loss = BernoulliKLLoss(from_sigmoid, reduction="sum")
        value = eager(loss, pred, float(label))
        assert value.dtype == dtype
        close(value, oracle.bernoulli_terms(pred, np.float64(label), from_sigmoid).sum(1), dtype)
        to_pred, to_label, to_weight = eager.gradients(loss, pred, float(label), np.array([1, 0, 2], dtype))
        full = eager.gradients(loss, pred, np.full((3, 4), label, dtype), np.array([1, 0, 2], dtype))
        assert to_label is None
        np.testing.assert_allclose(to_pred, full[0], rtol=1e-6)
        np.testing.assert_allclose(to_weight, full[2], rtol=1e-5)


def test_numbers_take_turns(run, rng):
    """One block, with labels that are numbers and arrays by turns, as mx.np arrays too."""
    loss, pred = run.prepare(BernoulliKLLoss(reduction="sum")), rng.normal(size=(3, 4))
    for _ in range(2):
        for label in (0.05, np.full((3, 4), 0.7), 0.5, 0.05):
            for kind in (mx.nd.array, mx.np.array):
                given = label if isinstance(label, float) else kind(label, dtype="float64")
                out = loss(kind(pred, dtype="float64"), given)
                assert isinstance(out, mx.np.ndarray) == (kind is mx.np.array)
                close(out.asnumpy(), oracle.bernoulli_terms(pred, label).sum(1), "float64")


def test_a_number_in_a_users_graph(run, rng):
    class Penalty(mx.gluon.HybridBlock):
        def __init__(self):
            super().__init__()
            self.loss = BernoulliKLLoss(reduction="sum")

        def hybrid_forward(self, F, pred):
            return self.loss(pred, 0.05)

    pred = rng.normal(size=(3, 4))
    close(run(Penalty(), pred), oracle.bernoulli_terms(pred, 0.05).sum(1), "float64")
    np.testing.assert_allclose(run.gradients(Penalty(), pred)[0], sigmoid(pred) - 0.05, rtol=1e-9)
    out = BernoulliKLLoss(reduction="sum")(mx.sym.var("pred"), 0.05)
    close(out.eval(pred=mx.nd.array(pred, dtype="float64"))[0].asnumpy(),
          oracle.bernoulli_terms(pred, 0.05).sum(1), "float64")


@pytest.mark.parametrize("label, error, words", [
    (1.5, ValueError, ["label", "between 0 and 1", "1.5"]), (-0.1, ValueError, ["label", "-0.1"]),
    (math.nan, ValueError, ["label", "nan"]), (True, TypeError, ["label", "mx.nd.array"]),
    ("0.05", TypeError, ["label"]), (None, TypeError, ["label"]), (np.full((2, 3), 0.5), TypeError, ["label"]),
])
def test_labels_that_are_refused(run, label, error, words):
    with pytest.raises(error) as caught:
        run.prepare(BernoulliKLLoss())(mx.nd.ones((2, 3)), label)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_number_of_scores(run):
    loss = run.prepare(BernoulliKLLoss(label_space="logits", reduction="sum"))
    value = loss(mx.nd.array([[0.5, -2]]), -3).asnumpy()
    close(value, oracle.bernoulli_terms([[0.5, -2]], -3, False, "logits").sum(1), "float32")
    with pytest.raises(ValueError, match="label must be finite, not inf"):
        loss(mx.nd.ones((2, 3)), math.inf)


@pytest.mark.parametrize("label_type", ["int8", "uint8", "int32", "int64", "bool"])
def test_hard_labels_of_every_dtype(eager, rng, label_type):
    pred, label = rng.normal(size=(4, 3)).astype("float32"), rng.uniform(size=(4, 3)) < 0.5
    given = mx.np.array(label, dtype=label_type).as_nd_ndarray()
    value = eager(BernoulliKLLoss(reduction="sum"), pred, given)
    close(value, oracle.bernoulli_terms(pred, label.astype("float64")).sum(1), "float32")


@spaces
@pytest.mark.parametrize("bad", [np.nan, INF, -INF])
def test_every_element_is_silenced_by_itself(eager, rng, from_sigmoid, label_space, bad):
    inputs = [rng.uniform(0.1, 0.9, size=(2, 3)) for _ in range(2)]
    weight = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    loss = BernoulliKLLoss(from_sigmoid, label_space=label_space)
    clean, gradients = eager(loss, *inputs, weight), eager.gradients(loss, *inputs, weight)
    for x in inputs:
        x[weight == 0] = bad
    np.testing.assert_array_equal(eager(loss, *inputs, weight), clean)
    for got, want in zip(eager.gradients(loss, *inputs, weight)[:2], gradients):
        np.testing.assert_array_equal(got, want)
        assert (got[weight == 0] == 0).all()


def test_sparse_codes(eager, rng):
    """The penalty alone brings the mean activity of hidden units to what is asked for."""
    mx.random.seed(5)
    x = mx.nd.array(rng.normal(size=(64, 6)))
    layer = mx.gluon.nn.Dense(8, activation="sigmoid", in_units=6)
    layer.initialize()
    trainer = mx.gluon.Trainer(layer.collect_params(), "adam", {"learning_rate": 0.1})
    penalty = eager.prepare(BernoulliKLLoss(from_sigmoid=True, reduction="sum"))
    for _ in range(150):
        with mx.autograd.record():
            out = penalty(layer(x).mean(axis=0, keepdims=True), 0.05)
        out.backward()
        trainer.step(1)
    np.testing.assert_allclose(layer(x).mean(axis=0).asnumpy(), 0.05, atol=0.01)
    assert out.asscalar() < 0.01
