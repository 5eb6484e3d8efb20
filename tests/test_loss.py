"""KLDivLoss: published figures, the ends of its support, sequences, digits, MXNet's own loss beside it, and errors."""

import itertools
import math

from gluon_kl import KLDivLoss

import mxnet as mx
import numpy as np
import pytest

import oracle

DIST_1 = [0.2, 0.5, 0.2, 0.1]
DIST_2 = [0.3, 0.4, 0.1, 0.2]
DIST_3 = [0.1, 0.1, 0.1, 0.7]
DIST_4 = [0.0, 0.9, 0.0, 0.1]
LOGITS_1 = [0.39056206, 1.3068528, 0.39056206, -0.30258512]
SPACES = ("probs", "log_probs", "logits")
TOLERANCE = {"float16": 2e-3, "float32": 2e-5, "float64": 1e-11}


def in_space(rng, space, shape, axis, dtype="float32"):
    """A random distribution along axis, written in a space."""
    logits = rng.normal(size=shape)
    log_probs = oracle.log_softmax(logits, axis)
    return {"probs": np.exp(log_probs), "log_probs": log_probs, "logits": logits}[space].astype(dtype)


def close(actual, expected, dtype="float32"):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


# Published figures

@pytest.mark.parametrize("pred, label, total", [
    (DIST_1, DIST_2, 0.101696830), (DIST_1, DIST_3, 1.062564), (DIST_1, DIST_1, 0.0),
    (DIST_4, DIST_1, math.inf), (DIST_1, DIST_4, 0.529007),
])
@pytest.mark.parametrize("reduction, count", [("sum", 1), ("mean", 4)])
def test_reference_figures(eager, pred, label, total, reduction, count):
    with np.errstate(divide="ignore"):
        log_pred = np.log(np.array([pred], dtype="float64"))
    loss = KLDivLoss(reduction=reduction)
    assert eager(loss, log_pred, np.array([label])) == pytest.approx([total / count], abs=1e-6)


def test_reference_logits(eager):
    pred, label = np.array([LOGITS_1]), np.array([DIST_2])
    assert eager(KLDivLoss(from_logits=False, reduction="sum"), pred, label) == pytest.approx([0.1016968], abs=1e-7)
    assert eager(KLDivLoss(from_logits=False), pred, label) == pytest.approx([0.0254242], abs=1e-7)


def test_reference_logits_on_both_sides(eager):
    label, pred = np.array([[.05, .16, .9], [.8, 4.15, .05]]), np.array([[.7, .2, .1], [.15, .9, .05]])
    value = eager(KLDivLoss(from_logits=False, label_space="logits", reduction="sum"), pred, label)
    assert value == pytest.approx([0.1879, 0.4534], abs=5e-5)
    p, log_q = np.exp(oracle.log_softmax(label)), oracle.log_softmax(pred)
    cross_entropy, entropy = -(p * log_q).sum(-1), -(p * np.log(p)).sum(-1)
    close(value, cross_entropy - entropy, "float64")


# The support table

@pytest.mark.parametrize("label, log_pred, term, to_pred", [
    (0.0, -1.0, 0.0, 0.0),
    (0.0, -np.inf, 0.0, 0.0),        # absent in both
    (-0.0, -np.inf, 0.0, 0.0),
    (0.0, np.nan, 0.0, 0.0),
    (0.5, -np.inf, np.inf, -0.5),    # pred misses what label has
    (1e-38, -np.inf, np.inf, -1e-38),
    (1.0, 0.0, 0.0, -1.0),           # sure, and right
    (1e-12, -1.0, 1e-12 * (math.log(1e-12) + 1), -1e-12),  # at epsilon, and no bias
    (-0.5, -1.0, np.nan, np.nan),
    (0.5, np.nan, np.nan, np.nan),
    (np.nan, -1.0, np.nan, np.nan),
])
def test_support_edges(eager, label, log_pred, term, to_pred):
    pred, target = np.array([[log_pred, -2.0]], dtype="float32"), np.array([[label, 0.0]], dtype="float32")
    loss = KLDivLoss(reduction="none")
    np.testing.assert_allclose(eager(loss, pred, target)[0], [term, 0.0], rtol=1e-5)
    for reduction in ("sum", "mean"):
        expected = term / (2 if reduction == "mean" else 1)
        np.testing.assert_allclose(eager(KLDivLoss(reduction=reduction), pred, target), [expected], rtol=1e-5)
    gradient, _ = eager.gradients(KLDivLoss(reduction="sum"), pred, target)
    if not np.isnan(to_pred):
        np.testing.assert_allclose(gradient, [[to_pred, 0.0]], rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_masked_logits(eager, reduction):
    pred = np.array([[0.3, -np.inf, 1.0], [0.3, -np.inf, 1.0]])
    label = np.array([[0.4, 0.0, 0.6], [0.4, 0.1, 0.5]])
    loss = KLDivLoss(from_logits=False, reduction=reduction)
    expected = oracle.kl_divergence(pred, label, from_logits=False, reduction=reduction)
    assert np.isinf(expected[1]).any() and np.isfinite(expected[0]).all()
    close(eager(loss, pred, label), expected, "float64")
    to_pred, to_label = eager.gradients(loss, pred, label)
    want_pred, want_label, _ = oracle.kl_gradients(pred, label, from_logits=False, reduction=reduction)
    close(to_pred, want_pred, "float64")
    assert to_pred[0, 1] == 0 and to_pred[1, 1] == -0.1 and to_label[0, 1] == 0
    close(to_label[0], want_label[0], "float64")


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("label_space", ["log_probs", "logits"])
def test_masked_on_both_sides(eager, from_logits, label_space):
    pred = np.array([[0.3, -np.inf, 1.0, -np.inf], [0.3, 0.1, 1.0, -np.inf]])
    label = np.array([[0.5, -np.inf, -1.0, -np.inf], [0.5, -np.inf, -1.0, 0.2]])
    if from_logits:
        pred = oracle.log_softmax(pred)
    if label_space == "log_probs":
        label = oracle.log_softmax(label)
    options = dict(from_logits=from_logits, label_space=label_space, reduction="sum")
    value = eager(KLDivLoss(**options), pred, label)
    close(value, oracle.kl_divergence(pred, label, **options), "float64")
    assert np.isfinite(value[0]) and np.isposinf(value[1])
    to_pred, to_label = eager.gradients(KLDivLoss(**options), pred[:1], label[:1])
    want_pred, want_label, _ = oracle.kl_gradients(pred[:1], label[:1], **options)
    close(to_pred, want_pred, "float64")
    close(to_label, want_label, "float64")
    close(eager.gradients(KLDivLoss(**options), pred, label)[0], oracle.kl_gradients(pred, label, **options)[0])


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_nan_counts_for_nothing_where_the_label_has_nothing(eager, reduction):
    pred, label = np.array([[np.nan, -0.5, -1.0]]), np.array([[0.0, 0.75, 0.25]])
    loss = KLDivLoss(reduction=reduction)
    clean = np.where(np.isnan(pred), -2.0, pred)
    close(eager(loss, pred, label), oracle.kl_divergence(clean, label, reduction=reduction), "float64")
    to_pred, to_label = eager.gradients(loss, pred, label)
    want_pred, want_label, _ = oracle.kl_gradients(clean, label, reduction=reduction)
    close(to_pred, want_pred, "float64")
    close(to_label[0, 1:], want_label[0, 1:], "float64")
    assert to_label[0, 0] == 0
    with np.errstate(divide="ignore"):
        logs = KLDivLoss(reduction=reduction, label_space="log_probs")
        close(eager(logs, pred, np.log(label)), oracle.kl_divergence(clean, label, reduction=reduction), "float64")


def test_row_without_a_distribution_is_nan(eager):
    label = np.full((4, 3), 1 / 3, dtype="float32")
    pred = np.array([[-np.inf] * 3, [np.nan, 0, 1], [np.inf, 0, 1], [0, 0, 0]], dtype="float32")
    for reduction in ("sum", "none"):
        for label_space, target in (("probs", label), ("log_probs", np.log(label)), ("logits", label)):
            value = eager(KLDivLoss(False, reduction=reduction, label_space=label_space), pred, target)
            assert np.isnan(value[:3]).all(), (reduction, label_space)
            assert np.isfinite(value[3]).all()


def test_labels_need_not_sum_to_one(eager, rng):
    pred, label = rng.normal(size=(5, 7)), 3 * rng.uniform(size=(5, 7))
    loss = KLDivLoss(False, reduction="sum")
    close(eager(loss, pred, label), oracle.kl_divergence(pred, label, from_logits=False, reduction="sum"), "float64")
    softmax = np.exp(oracle.log_softmax(pred))
    close(eager.gradients(loss, pred, label)[0], softmax * label.sum(-1, keepdims=True) - label, "float64")


def test_zero_label_gradient_is_mxnets(eager):
    pred, label = np.array([[-0.5, -3.0, -60.0]]), np.array([[1.0, 0.0, 0.0]])
    for epsilon, dtype in itertools.product((1e-12, 1e-50, 1e-3), ("float32", "float64")):
        loss = KLDivLoss(epsilon=epsilon, reduction="sum")
        _, to_label = eager.gradients(loss, pred.astype(dtype), label.astype(dtype))
        np.testing.assert_allclose(to_label, [[1.5, math.log(epsilon) + 3, math.log(epsilon) + 60]], rtol=1e-6)


# dtypes

FLOATS = ("float16", "float32", "float64")


@pytest.mark.parametrize("from_logits", [True, False])
def test_labels_of_zero_in_every_dtype(eager, rng, from_logits):
    for pred_type, label_type in itertools.product(FLOATS, FLOATS):
        pred = in_space(rng, "log_probs" if from_logits else "logits", (4, 6), -1, pred_type)
        label = in_space(rng, "probs", (4, 6), -1, label_type)
        label[0, :2] = 0
        options = dict(from_logits=from_logits, reduction="sum")
        close(eager(KLDivLoss(**options), pred, label), oracle.kl_divergence(pred, label, **options))
        for got, want, dtype in zip(eager.gradients(KLDivLoss(**options), pred, label),
                                    oracle.kl_gradients(pred, label, **options), (pred_type, label_type)):
            assert got.dtype == dtype
            close(got, want, "float16" if dtype == "float16" else "float32")


def test_float16_zeros_and_many_categories(eager, rng):
    pred = rng.normal(size=(2, 50000)).astype("float16")
    label = np.zeros((2, 50000), dtype="float16")
    label[:, 7] = 1
    value = eager(KLDivLoss(False, reduction="sum"), pred, label)
    np.testing.assert_allclose(value, oracle.kl_divergence(pred, label, from_logits=False, reduction="sum"), rtol=1e-5)
    assert np.isfinite(eager.gradients(KLDivLoss(False, reduction="sum"), pred, label)[0]).all()


# Weights

def test_weight_zero_drops_a_term(eager):
    pred, label = np.array([[np.nan, -1.0], [-np.inf, -2.0]]), np.array([[0.5, 0.5], [0.5, 0.5]])
    weight = np.array([[0.0, 1.0], [0.0, 2.0]])
    value = eager(KLDivLoss(reduction="sum"), pred, label, weight)
    np.testing.assert_allclose(value, [0.5 * (math.log(0.5) + 1), math.log(0.5) + 2])
    to_pred, _, _ = eager.gradients(KLDivLoss(reduction="sum"), pred, label, weight)
    np.testing.assert_allclose(to_pred, [[0, -0.5], [0, -1.0]])


def test_sample_weight_by_keyword(run):
    pred, label = mx.nd.log(mx.nd.array([DIST_1, DIST_1])), mx.nd.array([DIST_2, DIST_3])
    loss = run.prepare(KLDivLoss(reduction="sum"))
    by_keyword = loss(pred, label, sample_weight=mx.nd.array([2, 0])).asnumpy()
    np.testing.assert_array_equal(by_keyword, loss(pred, label, mx.nd.array([2, 0])).asnumpy())
    np.testing.assert_allclose(by_keyword, [2 * 0.10169683, 0], rtol=1e-6)


# Sequences

def sequences(rng, lengths, time, categories, from_logits=True):
    """pred, label and 0-1 weights (batch, time) of sequences of such lengths."""
    shape = len(lengths), time, categories
    pred, label = (in_space(rng, space, shape, -1, "float64")
                   for space in ("log_probs" if from_logits else "logits", "probs"))
    return pred, label, (np.arange(time) < np.array(lengths)[:, None]).astype("float64")


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("padding", [0.0, np.nan, np.inf, -np.inf])
def test_padded_sequences(eager, rng, from_logits, padding):
    """The mean divergence per valid position, whatever stands behind the end; without one, 0."""
    lengths = [4, 1, 0, 3]
    pred, label, valid = sequences(rng, lengths, 4, 5, from_logits)
    per_position = oracle.kl_divergence(pred.reshape(-1, 5), label.reshape(-1, 5), from_logits=from_logits,
                                        reduction="sum").reshape(4, 4)
    expected = [per_position[i, :n].mean() if n else 0 for i, n in enumerate(lengths)]
    pred[valid == 0], label[valid == 0] = padding, padding
    loss = KLDivLoss(from_logits, reduction="row_mean")
    close(eager(loss, pred, label, valid), expected, "float64")
    to_pred, to_label, to_weight = eager.gradients(loss, pred, label, valid)
    for gradient in (to_pred, to_label):
        assert (gradient[valid == 0] == 0).all() and (gradient[valid != 0] != 0).any()
    q = np.exp(pred if not from_logits else 0)
    for i, n in enumerate(lengths[:2]):
        q = np.exp(oracle.log_softmax(pred[i, :n]))
        close(to_pred[i, :n], ((q if not from_logits else 0) - label[i, :n]) / n, "float64")
    assert np.isfinite(to_weight).all()


def test_weights_made_by_sequence_mask(eager, rng):
    pred, label, valid = sequences(rng, [3, 1, 4], 4, 5)
    ones = mx.nd.ones((4, 3))  # SequenceMask wants time first
    mask = mx.nd.SequenceMask(ones, mx.nd.array([3, 1, 4]), use_sequence_length=True).T
    loss = KLDivLoss(reduction="row_mean")
    np.testing.assert_array_equal(mask.asnumpy(), valid)
    np.testing.assert_array_equal(eager(loss, pred, label, mask), eager(loss, pred, label, valid))
    trailing = mx.nd.SequenceMask(mx.nd.ones((3, 4, 1)), mx.nd.array([3, 1, 4]), use_sequence_length=True, axis=1)
    np.testing.assert_array_equal(eager(loss, pred, label, trailing), eager(loss, pred, label, valid))


def test_row_mean_is_the_scale_of_softmax_cross_entropy(eager, rng):
    """One-hot labels have no entropy: the divergence is Gluon's SoftmaxCELoss, also with several positions."""
    pred = rng.normal(size=(3, 4, 5)).astype("float32")
    index = rng.randint(5, size=(3, 4))
    theirs = eager(mx.gluon.loss.SoftmaxCELoss(), pred, index.astype("float32"))
    close(eager(KLDivLoss(False, reduction="row_mean"), pred, np.eye(5, dtype="float32")[index]), theirs)


def test_a_row_counts_if_any_of_its_weights_does(eager, rng):
    pred, label, _ = sequences(rng, [2, 2], 2, 3)
    weight = np.array([[[0, 0, 2], [0, 0, 0]], [[1, 0, 1], [1, 1, 1.0]]])
    terms = np.where(weight == 0, 0, weight * oracle.kl_terms(pred, label))
    value = eager(KLDivLoss(reduction="row_mean"), pred, label, weight)
    close(value, [terms[0].sum() / 1, terms[1].sum() / 2], "float64")


@pytest.mark.parametrize("batch_axis, axis", [(0, 0), (1, 1)])
def test_row_mean_where_the_samples_are_the_categories(eager, rng, batch_axis, axis):
    """Each category's terms, averaged over the rows that count."""
    pred, label = in_space(rng, "log_probs", (3, 4), axis, "float64"), in_space(rng, "probs", (3, 4), axis, "float64")
    rows = 4 if axis == 0 else 3
    weight = np.ones((1, 4) if axis == 0 else (3, 1))
    weight.flat[1] = 0
    terms = oracle.kl_terms(pred, label, axis=axis)
    loss = KLDivLoss(axis=axis, batch_axis=batch_axis, reduction="row_mean")
    close(eager(loss, pred, label), terms.sum(1 - axis) / rows, "float64")
    close(eager(loss, pred, label, weight), (terms * weight).sum(1 - axis) / (rows - 1), "float64")


# Probabilities on both sides

@pytest.mark.parametrize("label_space", SPACES)
def test_heads_that_end_in_softmax(eager, rng, label_space):
    """The same as of their logarithms; zeros on either side leave every gradient finite."""
    label = np.array([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25], [0, 1, 0, 0]])
    pred = np.array([[0.3, 0.7, 0, 0], [0.4, 0.3, 0.2, 0.1], [0, 1, 0, 0]])
    with np.errstate(divide="ignore"):
        target = label if label_space == "probs" else np.log(label)
    loss = KLDivLoss(pred_space="probs", label_space=label_space, reduction="sum")
    close(eager(loss, pred, target), oracle.kl_divergence(pred, target, pred_space="probs", label_space=label_space,
                                                        reduction="sum"), "float64")
    assert eager(loss, pred, target)[2] == 0
    to_pred, to_label = eager.gradients(loss, pred, target)
    close(to_pred, np.where(pred == 0, 0, -label / np.where(pred == 0, 1, pred)), "float64")
    assert np.isfinite(to_label).all()


def test_mass_that_a_softmax_head_misses(eager):
    pred, label = np.array([[0.0, 1.0]]), np.array([[0.25, 0.75]])
    loss = KLDivLoss(pred_space="probs", reduction="sum")
    assert np.isposinf(eager(loss, pred, label)).all()
    to_pred, to_label = eager.gradients(loss, pred, label)
    np.testing.assert_array_equal(to_pred, [[0, -0.75]])
    np.testing.assert_allclose(to_label, [[np.inf, np.log(0.75) + 1]])


def test_a_contradiction_of_spaces():
    assert KLDivLoss(False, pred_space="logits")._pred_space == "logits"
    assert KLDivLoss(pred_space="logits")._pred_space == "logits"
    for space in ("probs", "log_probs"):
        with pytest.raises(ValueError, match=f"from_logits=False.*pred_space='{space}'"):
            KLDivLoss(False, pred_space=space)


# Digits of small divergences

@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("categories", [2, 10, 1000])
def test_identical_logits_give_exactly_zero(eager, rng, reduction, categories):
    x = (4 * rng.normal(size=(50, categories))).astype("float32")
    x[0, 0] = -np.inf
    loss = KLDivLoss(False, label_space="logits", reduction=reduction)
    assert (eager(loss, x, x) == 0).all()
    assert (eager(loss, x, x, rng.uniform(size=50).astype("float32")) == 0).all()
    log_probs = oracle.log_softmax(x).astype("float32")
    assert (eager(KLDivLoss(label_space="log_probs", reduction=reduction), log_probs, log_probs) == 0).all()


@pytest.mark.parametrize("noise", [1e-7, 1e-5, 1e-3, 1e-1, 1.0, 10.0])
def test_two_softmaxes_keep_their_digits(eager, rng, noise):
    label = rng.normal(size=(200, 100)).astype("float32")
    pred = (label + noise * rng.normal(size=label.shape)).astype("float32")
    value = eager(KLDivLoss(False, label_space="logits", reduction="sum"), pred, label)
    expected = oracle.kl_divergence(pred, label, from_logits=False, label_space="logits", reduction="sum")
    assert (value >= 0).all()
    if noise >= 1e-3:
        assert np.median(np.abs(value / expected - 1)) < 1e-4


def test_far_apart_softmaxes(eager):
    label, pred = np.array([[0, 90.0], [200, 0]], dtype="float32"), np.array([[90.0, 0], [0, 200]], dtype="float32")
    options = dict(from_logits=False, label_space="logits", reduction="sum")
    np.testing.assert_allclose(eager(KLDivLoss(**options), pred, label),
                               oracle.kl_divergence(pred, label, **options), rtol=1e-6)


# Gradients under every request

@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float16", "float32"), ("float16", "float16")])
def test_gradients_add_up(run, rng, from_logits, dtypes):
    pred = in_space(rng, "log_probs" if from_logits else "logits", (3, 4), -1, dtypes[0])
    label = in_space(rng, "probs", (3, 4), -1, dtypes[1])
    loss = run.prepare(KLDivLoss(from_logits))
    once = run.gradients(loss, pred, label)
    pred, label = mx.nd.array(pred, dtype=dtypes[0]), mx.nd.array(label, dtype=dtypes[1])
    pred.attach_grad("add")
    label.attach_grad("add")
    for _ in range(3):
        with mx.autograd.record():
            out = loss(pred, label)
        out.backward()
    close(pred.grad.asnumpy(), 3 * once[0], "float16" if "float16" in dtypes else "float32")
    close(label.grad.asnumpy(), 3 * once[1], "float16" if "float16" in dtypes else "float32")


# Against MXNet's own

MXNET_SUMS = mx.__version__.startswith("1.9.")


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("axis", [-1, 1])
def test_agrees_with_mxnet_where_mxnet_is_right(eager, rng, from_logits, axis):
    pred = in_space(rng, "log_probs" if from_logits else "logits", (4, 5, 6), axis)
    label = in_space(rng, "probs", (4, 5, 6), axis)
    label[0, 0, :2] = 0
    theirs = mx.gluon.loss.KLDivLoss(from_logits, axis)
    ours = KLDivLoss(from_logits, axis, reduction="sum" if MXNET_SUMS else "mean")
    close(eager(ours, pred, label), eager(theirs, pred, label))
    for got, want in zip(eager.gradients(ours, pred, label), eager.gradients(theirs, pred, label)):
        close(got, want)


def test_deviates_from_mxnet_where_mxnet_is_wrong():
    theirs = mx.gluon.loss.KLDivLoss()
    pred, label = mx.nd.array([[-0.5, -np.inf]]), mx.nd.array([[1.0, 0.0]])
    assert np.isnan(theirs(pred, label).asscalar()) and KLDivLoss()(pred, label).asscalar() == 0.25
    half = [x.astype("float16") for x in (mx.nd.array([[-0.5, -1.0]]), label)]
    assert np.isnan(theirs(*half).asscalar()) and KLDivLoss()(*half).asscalar() == 0.25
    assert theirs(mx.nd.zeros((2, 3)), mx.nd.ones((2, 1))).shape == (2,)  # broadcast without a word
    with pytest.raises(ValueError):
        KLDivLoss()(mx.nd.zeros((2, 3)), mx.nd.ones((2, 1)))
    ones = mx.nd.ones((2, 2)) / 2
    scale = 2 if MXNET_SUMS else 1  # said to be a mean
    assert theirs(ones.log(), ones * 2).asnumpy()[0] == pytest.approx(scale * math.log(2))
    assert KLDivLoss()(ones.log(), ones * 2).asnumpy()[0] == pytest.approx(math.log(2))


# A value for each row

def test_rows_are_the_sums_of_terms(run, rng):
    pred, label = rng.normal(size=(2, 3, 4, 5))
    label = np.exp(oracle.log_softmax(label, 1))
    weight = rng.uniform(size=(3, 5)) * (rng.uniform(size=(3, 5)) < 0.7)
    options = dict(from_logits=False, axis=1)
    rows = run(KLDivLoss(reduction="row", **options), pred, label, weight)
    assert rows.shape == (3, 5)
    terms = run(KLDivLoss(reduction="none", **options), pred, label, weight)
    np.testing.assert_allclose(rows, terms.sum(1), rtol=1e-10, atol=1e-14)


def test_rows_across_samples_keep_their_digits(eager, rng):
    """Where a sample holds one category of each row, a row is whole all the same."""
    pred = rng.normal(size=(20, 3)).astype("float32")
    label = (pred + 1e-3 * rng.normal(size=pred.shape)).astype("float32")
    options = dict(from_logits=False, label_space="logits")
    rows = eager(KLDivLoss(axis=0, reduction="row", **options), pred, label)
    samples = eager(KLDivLoss(reduction="sum", **options), pred.T.copy(), label.T.copy())
    np.testing.assert_allclose(rows, samples, rtol=1e-3)
    assert not eager(KLDivLoss(axis=0, reduction="row", **options), pred, pred).any()


@pytest.mark.parametrize("kind", [mx.nd.array, mx.np.array])
def test_a_row_alone_has_shape_1(run, rng, kind):
    pred, label = rng.normal(size=6), rng.dirichlet(np.ones(6))
    value = run(KLDivLoss(False, reduction="row"), pred, label, kind=kind)
    assert value.shape == (1,) and value[0] == pytest.approx(oracle.kl_terms(pred, label, "logits").sum(), rel=1e-5)
    gradient, _ = run.gradients(KLDivLoss(False, reduction="row"), pred, label, head=np.array([2.0]), kind=kind)
    close(gradient, 2 * (np.exp(oracle.log_softmax(pred)) - label), "float32")


@pytest.mark.usefixtures("path")
def test_a_row_alone_where_shapes_are_numpys(rng):
    with mx.util.np_shape(True):
        loss = KLDivLoss(False, reduction="row")
        assert loss(mx.np.array(rng.normal(size=6)), mx.np.array(rng.dirichlet(np.ones(6)))).shape == (1,)
        empty = loss(mx.np.zeros((0, 3, 4)), mx.np.zeros((0, 3, 4)))
        assert empty.shape == (0, 3)


# Errors

PAIR = ((2, 3), (2, 3))


@pytest.mark.parametrize("arguments, error, words", [
    (dict(reduction="avg"), ValueError, ["reduction", "'mean', 'sum', 'none', 'row' or 'row_mean'", "'avg'"]),
    (dict(label_space="prob"), ValueError, ["label_space", "'probs', 'log_probs' or 'logits'", "'prob'"]),
    (dict(epsilon=0), ValueError, ["epsilon", "positive", "0"]),
    (dict(epsilon=-1e-3), ValueError, ["epsilon", "-0.001"]),
    (dict(epsilon=math.nan), ValueError, ["epsilon", "nan"]),
    (dict(epsilon="1e-12"), TypeError, ["epsilon", "'1e-12'"]),
    (dict(weight="2"), TypeError, ["weight", "number", "'2'"]),
    (dict(from_logits="False"), TypeError, ["from_logits", "True or False", "'False'"]),
    (dict(from_logits=1), TypeError, ["from_logits", "1"]),
    (dict(axis=1.5), TypeError, ["axis", "integer", "1.5"]),
    (dict(axis=True), TypeError, ["axis", "integer", "True"]),
    (dict(pred_space="p"), ValueError, ["pred_space", "'probs', 'log_probs' or 'logits'", "'p'"]),
    (dict(from_logits=False, pred_space="probs"), ValueError, ["from_logits=False", "pred_space='probs'"]),
    (dict(batch_axis="0"), TypeError, ["batch_axis", "'0'"]),
])
def test_argument_errors(arguments, error, words):
    with pytest.raises(error) as caught:
        KLDivLoss(**arguments)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("arguments, shapes, words", [
    ({}, ((2, 3), (3,)), ["pred", "label", "(2, 3)", "(3,)"]),
    ({}, ((1, 3), (3,)), ["(1, 3)", "(3,)"]),
    ({}, ((2, 3), (1, 3)), ["(2, 3)", "(1, 3)"]),
    ({}, ((2, 3), (2, 1)), ["(2, 3)", "(2, 1)"]),
    ({}, ((3, 3), (3,)), ["(3, 3)", "(3,)"]),
    ({}, ((2, 3), (2,)), ["(2, 3)", "(2,)", "class indices", "mx.nd.one_hot(label, depth=3)"]),
    ({}, ((2, 3), (2, 1)), ["(2, 1)", "mx.nd.one_hot(label.reshape((2,)), depth=3)"]),
    (dict(axis=1), ((2, 3, 4), (2, 4)), ["(2, 4)", "mx.nd.one_hot(label, depth=3)", "moved to axis 1"]),
    ({}, ((2, 4, 3), (2, 4, 3), (4, 3)), ["sample_weight", "(4, 3)", "(2,)", "(2, 4)"]),
    (dict(axis=2), PAIR, ["axis = 2", "(2, 3)"]),
    (dict(axis=-3), PAIR, ["axis = -3", "(2, 3)"]),
    (dict(batch_axis=2), PAIR, ["batch_axis = 2", "(2, 3)"]),
    ({}, (*PAIR, (3,)), ["sample_weight", "(3,)", "(2, 3)", "(2,)"]),
    ({}, (*PAIR, (2, 2)), ["sample_weight", "(2, 2)"]),
    ({}, (*PAIR, (1, 2, 3)), ["sample_weight", "(1, 2, 3)"]),
])
def test_shape_errors(run, arguments, shapes, words):
    loss = run.prepare(KLDivLoss(**arguments))
    good = mx.nd.zeros((2, 3)), mx.nd.ones((2, 3))
    for _ in range(2):  # also when the block has a graph already
        with pytest.raises(ValueError) as caught:
            loss(*[mx.nd.ones(shape) for shape in shapes])
        assert all(word in str(caught.value) for word in words), caught.value
        if not arguments:
            loss(*good)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("value", [np.ones((2, 3), dtype="float32"), [[1.0] * 3] * 2, 1.0])
def test_foreign_inputs(run, position, value):
    inputs = [mx.nd.ones((2, 3)) for _ in range(3)]
    inputs[position] = value
    with pytest.raises(TypeError) as caught:
        run.prepare(KLDivLoss())(*inputs)
    name = ("pred", "label", "sample_weight")[position]
    assert name in str(caught.value) and "mx.nd.array" in str(caught.value)


def test_sparse_inputs(run):
    with pytest.raises(TypeError, match="label must be dense, not csr"):
        run.prepare(KLDivLoss())(mx.nd.ones((2, 3)), mx.nd.ones((2, 3)).tostype("csr"))


def test_devices_must_agree(run):
    with pytest.raises(ValueError, match=r"cpu\(0\).*cpu\(1\)"):
        run.prepare(KLDivLoss())(mx.nd.ones((2, 3), ctx=mx.cpu(0)), mx.nd.ones((2, 3), ctx=mx.cpu(1)))


def test_repr_shows_every_argument():
    assert repr(KLDivLoss()) == (
        "KLDivLoss(from_logits=True, axis=-1, weight=None, batch_axis=0, reduction='mean', label_space='probs', "
        "pred_space=None, epsilon=1e-12, skew=0.0): KL(label ‖ pred) in nats")
    changed = repr(KLDivLoss(False, 1, 0.5, 2, reduction="none", label_space="logits", epsilon=1e-5))
    for part in ("from_logits=False", "axis=1", "weight=0.5", "batch_axis=2", "'none'", "'logits'", "epsilon=1e-05"):
        assert part in changed
