"""check_inputs: what it catches, and that it leaves valid inputs alone."""

import sys

from gluon_kl import (
    BernoulliKLLoss,
    DistillationLoss,
    GaussianKLLoss,
    JSDivLoss,
    KLDivLoss,
    ReverseKLDivLoss,
    diagnostics,
)

import mxnet as mx
import numpy as np
import pytest

import oracle

SPACES = ("probs", "log_probs", "logits")
DTYPES = ("float16", "float32", "float64")


def array(x, dtype=None):
    x = np.asarray(x) if dtype is None else np.asarray(x).astype(dtype)
    return mx.nd.array(x, dtype=x.dtype)


def message(loss, *inputs, **weight):
    with pytest.raises(ValueError) as caught:
        loss.check_inputs(*inputs, **weight)
    return str(caught.value)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture
def views():
    """One batch of predictions and one of labels, each in every space, and the classes of the labels."""
    rng = np.random.RandomState(2)
    scores = rng.normal(size=(2, 8, 10)) + 0.3
    log_probs = oracle.log_softmax(scores)
    spaces = dict(probs=np.exp(log_probs), log_probs=log_probs, logits=scores)
    return {space: x[0] for space, x in spaces.items()}, {space: x[1] for space, x in spaces.items()}, \
        rng.randint(2, 10, size=8)


MISTAKES = [  # from_logits, label_space, what pred holds, what label holds, words of the message
    (True, "probs", "probs", "probs", ["pred holds probabilities", "log-probabilities belong", "log_softmax"]),
    (True, "probs", "logits", "probs", ["pred holds logits", "log-probabilities belong", "from_logits=False"]),
    (False, "probs", "probs", "probs", ["pred holds probabilities", "logits", "softmax", "twice"]),
    (False, "logits", "probs", "logits", ["pred holds probabilities", "twice"]),
    (True, "probs", "log_probs", "log_probs", ["label holds log-probabilities", "label_space='log_probs'"]),
    (True, "probs", "log_probs", "logits", ["label holds logits", "label_space='logits'"]),
    (True, "log_probs", "log_probs", "probs", ["label holds probabilities", "label_space='probs'"]),
    (True, "log_probs", "log_probs", "logits", ["label holds logits", "label_space='logits'"]),
    (False, "logits", "logits", "probs", ["label holds probabilities", "label_space='probs'"]),
    (True, "probs", "probs", "log_probs", ["swapped", "pred", "label", "model first"]),
    (False, "probs", "probs", "logits", ["swapped"]),
    (True, "logits", "logits", "log_probs", ["swapped"]),
    (False, "log_probs", "log_probs", "logits", ["swapped"]),
]
PROBS_MISTAKES = [  # under pred_space="probs": label_space, what pred holds, what label holds, words of the message
    ("probs", "logits", "probs", ["pred holds logits", "probabilities belong", "pred_space='logits'"]),
    ("probs", "log_probs", "probs", ["pred holds log-probabilities", "pred_space='log_probs'"]),
    ("probs", "probs", "logits", ["label holds logits", "label_space='logits'"]),
    ("log_probs", "probs", "probs", ["label holds probabilities", "label_space='probs'"]),
    ("log_probs", "log_probs", "probs", ["swapped", "model first"]),
]


@pytest.mark.parametrize("from_logits, label_space, pred, label, words", MISTAKES)
@pytest.mark.parametrize("loss", [KLDivLoss, ReverseKLDivLoss, JSDivLoss])
def test_wrong_space(views, loss, from_logits, label_space, pred, label, words):
    preds, labels, _ = views
    for dtype in DTYPES:
        for axis, turn in ((-1, np.asarray), (0, np.transpose)):
            said = message(loss(from_logits, axis, label_space=label_space),
                           array(turn(preds[pred]), dtype), array(turn(labels[label]), dtype))
            assert all(word in said for word in words), said


@pytest.mark.parametrize("label_space, pred, label, words", PROBS_MISTAKES)
@pytest.mark.parametrize("loss", [KLDivLoss, ReverseKLDivLoss, JSDivLoss])
def test_wrong_space_beside_a_softmax_head(views, loss, label_space, pred, label, words):
    preds, labels, _ = views
    for dtype in DTYPES:
        said = message(loss(pred_space="probs", label_space=label_space), array(preds[pred], dtype),
                       array(labels[label], dtype))
        assert all(word in said for word in words), said
    loss(pred_space="probs", label_space=label_space).check_inputs(array(preds["probs"]), array(labels[label_space]))


@pytest.mark.parametrize("loss", [KLDivLoss, ReverseKLDivLoss, JSDivLoss])
def test_probabilities_that_would_go_through_softmax_name_the_other_way(views, loss):
    preds, labels, _ = views
    assert "pred_space='probs'" in message(loss(False), array(preds["probs"]), array(labels["probs"]))
    assert "pred_space='probs'" in message(loss(), array(preds["probs"]), array(labels["probs"]))


def maps(space):
    """Maps of shape (batch, categories, height, width)."""
    log_probs = oracle.log_softmax(2 * np.random.RandomState(3).normal(size=(2, 5, 3, 4)), 1)
    return np.exp(log_probs) if space == "probs" else log_probs


def test_distributions_along_another_axis():
    """The default axis, and categories along axis 1."""
    label, scores = maps("probs"), np.random.RandomState(4).normal(size=(2, 5, 3, 4))
    said = message(KLDivLoss(False), array(scores), array(label))
    assert "do not sum to 1" in said and "label sums to 1 along axis 1: set axis=1" in said
    said = message(KLDivLoss(), array(maps("log_probs")), array(label))
    assert "exponential of pred sums to 1 along axis 1: set axis=1" in said
    said = message(KLDivLoss(pred_space="probs"), array(label), array(label))
    assert "pred sums to 1 along axis 1: set axis=1" in said
    said = message(KLDivLoss(False, label_space="log_probs"), array(scores), array(maps("log_probs")))
    assert "exponential of label sums to 1 along axis 1" in said
    said = message(DistillationLoss(sparse_label=False), array(scores), array(label), array(scores))
    assert "label sums to 1 along axis 1: set axis=1" in said
    hot = np.eye(5)[np.random.RandomState(5).randint(5, size=(2, 3, 4))].transpose(0, 3, 1, 2)
    assert "set axis=1" in message(KLDivLoss(False), array(scores), array(hot))
    KLDivLoss(False, 1).check_inputs(array(scores), array(label))


def test_nothing_to_look_at():
    with mx.util.np_shape(True):
        nothing = mx.np.zeros((0, 3))
        for loss, count in ((KLDivLoss(), 2), (JSDivLoss(False), 2), (DistillationLoss(sparse_label=False), 3),
                            (BernoulliKLLoss(), 2), (GaussianKLLoss(), 2), (GaussianKLLoss(), 4)):
            for weight in (None, mx.np.zeros((0,)), mx.np.ones((0, 1))):
                said = message(loss, *[nothing] * count, sample_weight=weight)
                assert f"{loss._names[0]} of shape (0, 3)" in said and "nothing to look at" in said
    nobody = mx.nd.zeros((2,))
    for loss, count in ((KLDivLoss(), 2), (DistillationLoss(sparse_label=False), 3), (BernoulliKLLoss(), 2),
                        (GaussianKLLoss(), 2)):
        said = message(loss, *[mx.nd.ones((2, 3))] * count, sample_weight=nobody)
        assert "every sample_weight is 0" in said and "nothing to look at" in said


def test_one_row_is_enough():
    row = [[.2, .5, .2, .1]]
    assert "twice" in message(KLDivLoss(False), array(row, "float32"), array(row))
    assert "log-probabilities belong" in message(KLDivLoss(), array(row, "float32"), array(row))


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float32"])
def test_class_indices(views, dtype):
    preds, _, classes = views
    for label in (classes, classes[:, None]):
        said = message(KLDivLoss(False), array(preds["logits"]), array(label, dtype))
        assert "class indices" in said and "one_hot" in said and str(label.shape) in said
    square = array(preds["logits"][:, :8])  # as many samples as categories
    assert "class indices" in message(KLDivLoss(False), square, array(classes, dtype))
    repeated = np.repeat(np.minimum(classes, 9)[:, None], 10, axis=1)
    assert "class indices" in message(KLDivLoss(False), array(preds["logits"]), array(repeated, dtype))


def test_rows_that_do_not_sum_to_one(views):
    preds, labels, _ = views
    for label, sums in ((2 * labels["probs"], "to 2;"), (0.9 * labels["probs"], "to 0.9;"),
                        (labels["probs"] * np.linspace(1, 3, 8)[:, None], "between 1 and 3")):
        said = message(KLDivLoss(), array(preds["log_probs"]), array(label))
        assert "do not sum to 1" in said and sums in said and "divide each row" in said
    # Probabilities along another axis than the loss is told.
    said = message(KLDivLoss(axis=0), array(oracle.log_softmax(preds["logits"], 0)), array(labels["probs"]))
    assert "do not sum to 1" in said and "set axis=1" in said


def test_no_distribution_at_all(views):
    preds, labels, _ = views
    for side in (0, 1):
        pair = [preds["logits"].copy(), labels["logits"].copy()]
        loss = KLDivLoss(False, label_space="logits")
        pair[side][3, 2] = np.nan
        assert f"{('pred', 'label')[side]} holds NaN" in message(loss, *map(array, pair))
        for bad in (np.inf, -np.inf):
            pair[side][3] = bad
            assert ("pred", "label")[side] in message(loss, *map(array, pair))


def test_contract_errors_come_first(views):
    preds, labels, _ = views
    with pytest.raises(ValueError, match="same shape"):
        KLDivLoss(False).check_inputs(array(preds["logits"]), array(labels["probs"][:, :9]))
    with pytest.raises(ValueError, match="axis = 2"):
        KLDivLoss(False, 2).check_inputs(array(preds["logits"]), array(labels["probs"]))
    with pytest.raises(TypeError, match=r"mx\.nd\.array"):
        KLDivLoss(False).check_inputs(array(preds["logits"]), labels["probs"])
    with pytest.raises(TypeError, match="Symbol"):
        KLDivLoss(False).check_inputs(mx.sym.var("pred"), mx.sym.var("label"))


def test_it_never_runs_by_itself(views, monkeypatch):
    preds, labels, classes = views
    loss = KLDivLoss()
    loss(array(preds["probs"]), array(2 * labels["logits"])).asnumpy()
    assert loss.check_inputs(array(preds["log_probs"]), array(labels["probs"])) is None
    loss.hybridize()
    loss(array(preds["probs"]), array(2 * labels["logits"])).asnumpy()
    assert loss.check_inputs(mx.np.array(preds["log_probs"]), mx.np.array(labels["probs"])) is None
    monkeypatch.setattr(diagnostics, "_weight", None)
    pred, label = array(preds["logits"]), array(labels["probs"])
    for loss, inputs in ((KLDivLoss(False), (pred, label)), (BernoulliKLLoss(), (pred, label)),
                         (DistillationLoss(), (pred, array(classes), pred)), (GaussianKLLoss(), (pred, label))):
        for _ in range(2):
            loss(*inputs).asnumpy()
            loss.hybridize()
        with pytest.raises(TypeError):
            loss.check_inputs(*inputs)


# What seems to be one mistake and is another

def softmax(x):
    return np.exp(oracle.log_softmax(x))


def test_sigmoid_outputs(views):
    preds, labels, _ = views
    yes = array(sigmoid(preds["logits"]))
    for loss in (KLDivLoss(pred_space="probs"), KLDivLoss(), ReverseKLDivLoss(), JSDivLoss(pred_space="probs")):
        said = message(loss, yes, array(labels["probs"]))
        assert all(word in said for word in ("as a sigmoid gives them", "from_logits=False", "BernoulliKLLoss")), said
        assert f"values from {yes.min().asscalar():g} to" in said and "pred_space='logits'" not in said
    said = message(KLDivLoss(False), array(preds["logits"]), yes)
    assert "sum to 1, but to between" in said and "BernoulliKLLoss" in said and "logits'" not in said
    several = array(preds["logits"] > -1)
    assert "BernoulliKLLoss" in message(KLDivLoss(False), array(preds["logits"]), several)
    said = message(DistillationLoss(teacher_space="probs"), array(preds["logits"]), array(np.arange(8)), yes)
    assert "teacher_pred" in said and "sigmoid" in said and "teacher_space='logits'" in said


@pytest.mark.parametrize("label_space", ["probs", "log_probs"])
@pytest.mark.parametrize("below", [-0.001, -1e-7, -0.02])
def test_a_negative_probability(views, label_space, below):
    preds, labels, _ = views
    scores, probs = array(preds["logits"]), labels["probs"].copy()
    probs[2, 3] = below
    loss = KLDivLoss(False, label_space=label_space)
    said = message(loss, scores, array(probs))
    assert f"negative probability, {np.float32(below):g};" in said and "label.clip(0, 1)" in said, said
    assert "logits" not in said and ("label_space='probs'" in said) == (label_space == "log_probs")
    assert "pred.clip(0, 1)" in message(KLDivLoss(pred_space="probs"), array(probs), array(labels["probs"]))
    dense = DistillationLoss(sparse_label=False)
    assert "label.clip(0, 1)" in message(dense, scores, array(probs), scores)


def test_counts(views):
    preds, labels, _ = views
    counts = np.random.RandomState(0).poisson(3, size=(8, 10))
    assert (counts == 0).any()
    for dtype in ("int32", "uint8", "float32"):
        label = array(counts, dtype)
        said = message(KLDivLoss(False), array(preds["logits"]), label)
        assert f"label holds counts, whole numbers up to {counts.max()}" in said and "class indices" not in said
        assert "label / label.sum(axis=1, keepdims=True)" in said and "one_hot" not in said
    float_counts = array(counts, "float32")
    KLDivLoss(False).check_inputs(
        array(preds["logits"]), float_counts / float_counts.sum(axis=1, keepdims=True))
    said = message(KLDivLoss(False, 0), array(preds["logits"].T), array(counts.T))
    assert "keepdims=True" in said and "axis=0" in said
    said = message(DistillationLoss(sparse_label=False), array(preds["logits"]), float_counts, array(preds["logits"]))
    assert "counts" in said
    # Amounts, of which one stands beside zeros, are no logarithms.
    assert "counts" in message(KLDivLoss(False, label_space="log_probs"), array([[0., 2]]), array([[0., 255]]))
    assert "divide each row" in message(KLDivLoss(False), array([[0., 2]]), array([[0, 9.5]]))


@pytest.mark.parametrize("side", ["label", "pred"])
@pytest.mark.parametrize("space", ["probs", "log_probs"])
@pytest.mark.parametrize("shape, axis", [((8, 10), -1), ((4, 6, 5), -1), ((4, 5, 6), 1)])
def test_padding_without_weights(side, space, shape, axis):
    rng = np.random.RandomState(1)
    good, padded = oracle.log_softmax(rng.normal(size=(2, *shape)), axis if axis < 0 else axis + 1)
    if space == "probs":
        good, padded = np.exp(good), np.exp(padded)
    where = (slice(None), slice(None), -1) if axis == 1 else -1
    padded[where] = 0
    good, padded = array(good), array(padded)
    loss = KLDivLoss(axis=axis, pred_space=space, label_space=space)
    pair = (padded, good) if side == "pred" else (good, padded)
    said = message(loss, *pair)
    assert f"rows of {side}" in said and "0 throughout" in said and "padding" in said and "divide" not in said
    remedy = said[said.index("sample_weight=") + len("sample_weight="):]
    for kind in (lambda x: x, lambda x: x.as_np_ndarray()):
        arrays = [kind(x) for x in pair]
        loss.check_inputs(*arrays, eval(remedy, dict(zip(("pred", "label"), arrays))))


def test_padding_beside_another_mistake(views):
    preds, labels, _ = views
    hot = np.eye(10)[np.arange(8)]
    hot[5:] = 0
    scores = array(preds["logits"])
    assert "label_space='probs'" in message(KLDivLoss(False, label_space="log_probs"), scores, array(hot))
    assert "counts" in message(KLDivLoss(False), scores, array(7 * hot))
    assert "twice" in message(KLDivLoss(False), array(labels["probs"] * hot.sum(axis=1, keepdims=True)), array(hot))
    assert "label is 0 throughout" in message(KLDivLoss(False), scores, array(0 * hot))
    masked = np.where(np.arange(8)[:, None] == 3, -np.inf, preds["log_probs"])
    for loss in (KLDivLoss(), KLDivLoss(False)):
        said = message(loss, array(masked), array(labels["probs"]))
        assert "1 of 8 rows of pred hold nothing but -inf" in said and "sample_weight 0" in said
        loss.check_inputs(array(masked), array(labels["probs"]), array(np.arange(8) != 3, "float32"))


@pytest.mark.parametrize("factor, words", [
    (1 / np.log(2), ["base 2", "multiply pred by math.log(2)"]), (1 / np.log(10), ["base 10", "math.log(10)"]),
    (-1, ["negative log-probabilities", "pass -pred"]),
])
def test_other_logarithms(views, factor, words):
    preds, labels, _ = views
    said = message(KLDivLoss(), array(factor * preds["log_probs"]), array(labels["probs"]))
    assert all(word in said for word in words) and "set" not in said, said
    said = message(KLDivLoss(pred_space="probs"), array(factor * preds["log_probs"]), array(labels["probs"]))
    assert "pred_space='log_probs'" in said and words[0] in said
    said = message(KLDivLoss(False), array(preds["logits"]), array(factor * labels["log_probs"]))
    assert "label_space='log_probs'" in said and words[0] in said


def test_no_swap_is_seen_beside_a_label_that_is_no_logits(views):
    preds, labels, _ = views
    negative, padded = labels["probs"].copy(), labels["probs"].copy()
    negative[1, 1], padded[2] = -0.001, 0
    for label in (negative, padded, 7 * labels["probs"], np.arange(80).reshape(8, 10)):
        said = message(KLDivLoss(False), array(preds["probs"]), array(label))
        assert "twice" in said and "swapped" not in said


def test_what_to_set_beside_what_was_set(views):
    """A remedy must not contradict the other arguments."""
    preds, labels, _ = views
    label = array(labels["probs"])
    assert "set pred_space='probs' and leave from_logits out" in message(KLDivLoss(False), array(preds["probs"]), label)
    assert "(pred_space='log_probs')" in message(KLDivLoss(pred_space="log_probs"), array(preds["logits"]), label)
    assert "set pred_space='logits'" in message(KLDivLoss(pred_space="log_probs"), array(preds["logits"]), label)
    assert "set pred_space='probs'" in message(KLDivLoss(pred_space="logits"), array(preds["probs"]), label)


# Weights

MEMBERS = [  # a loss over arrays of one shape, and valid inputs of it made from scores
    (KLDivLoss(False), lambda x: (x, softmax(x[..., ::-1]))),
    (ReverseKLDivLoss(label_space="log_probs"), lambda x: (oracle.log_softmax(x), oracle.log_softmax(x[..., ::-1]))),
    (JSDivLoss(pred_space="probs"), lambda x: (softmax(x), softmax(x[..., ::-1]))),
    (DistillationLoss(), lambda x: (x, np.argmax(x, axis=-1), x[..., ::-1])),
    (DistillationLoss(sparse_label=False, teacher_space="probs"), lambda x: (x, softmax(x), softmax(2 * x))),
    (BernoulliKLLoss(), lambda x: (x, sigmoid(x[..., ::-1]))),
    (BernoulliKLLoss(True, label_space="logits"), lambda x: (sigmoid(x), x[..., ::-1])),
    (GaussianKLLoss(), lambda x: (x, x[..., ::-1])),
    (GaussianKLLoss(spread="std"), lambda x: (x, np.exp(x), x, np.exp(x))),
]
members = pytest.mark.parametrize("loss, inputs", MEMBERS, ids=[repr(loss).split(":")[0] for loss, _ in MEMBERS])


@members
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -9.0, 7.0])
def test_silenced_rows_are_left_out(loss, inputs, garbage):
    arrays = inputs(np.random.RandomState(0).normal(size=(6, 4, 5)))
    spoilt = [x.astype("float64") for x in arrays]
    for x in spoilt:
        x[2, 1:] = garbage
        x[4] = garbage
    valid = np.ones((6, 4, 1))
    valid[2, 1:] = valid[4] = 0
    for kind in (mx.nd.array, mx.np.array):
        weight = kind(valid)
        with mx.util.np_shape(True):
            loss.check_inputs(*[kind(x) for x in spoilt], sample_weight=weight)
    if not (isinstance(loss, GaussianKLLoss) and np.isfinite(garbage)):  # there any finite number may be meant
        with pytest.raises(ValueError):
            loss.check_inputs(*map(array, spoilt))
    spoilt[0][0, 0] = np.nan
    assert "holds NaN" in message(loss, *map(array, spoilt), sample_weight=array(valid))


@members
def test_lengths_are_no_weights(loss, inputs):
    arrays = [array(x) for x in inputs(np.random.RandomState(0).normal(size=(6, 7, 5)))]
    lengths = array([3., 7, 1, 5, 5, 2])
    said = message(loss, *arrays, sample_weight=lengths)
    assert "whole numbers from 1 to 7, as the lengths of sequences do" in said
    remedy = said[said.index("mx.nd.Seq"):said.index(". If they are")]
    weight = eval(remedy, dict(mx=mx, lengths=lengths))
    np.testing.assert_array_equal(weight.asnumpy().reshape(6, 7), np.arange(7) < lengths.asnumpy()[:, None])
    loss.check_inputs(*arrays, sample_weight=weight)
    for other in ([1., 0, 1, 1, 0, 1], [3.5, 7, 1, 5, 5, 2], [3, 8, 1, 5, 5, 2]):
        loss.check_inputs(*arrays, sample_weight=array(other))
    for wrong in (np.nan, np.inf):
        assert "sample_weight" in message(loss, *arrays, sample_weight=array([3, wrong, 1, 5, 5, 2]))
    flat = [x[:, 0] for x in arrays]
    loss.check_inputs(*flat, sample_weight=lengths)  # there is no time axis
    loss.check_inputs(*flat)


def test_lengths_where_time_comes_first():
    x = np.random.RandomState(0).normal(size=(7, 6, 5))
    lengths = array([3., 7, 1, 5, 5, 2])
    for loss, label in ((KLDivLoss(False, batch_axis=1), softmax(x)), (BernoulliKLLoss(batch_axis=1), sigmoid(x))):
        said = message(loss, array(x), array(label), lengths)
        weight = eval(said[said.index("mx.nd.Seq"):said.index(". If they are")], dict(mx=mx, lengths=lengths))
        np.testing.assert_array_equal(weight.asnumpy().reshape(7, 6), np.arange(7)[:, None] < lengths.asnumpy())
        loss.check_inputs(array(x), array(label), weight)


def test_silenced_elements_are_left_out(views):
    preds, labels, _ = views
    weight = np.ones((8, 10))
    weight[:, 3] = 0
    for label_space in SPACES:
        loss = KLDivLoss(False, label_space=label_space)
        label = labels[label_space].copy()
        loss.check_inputs(array(preds["logits"]), array(label), array(weight))
        label[:, 3] = np.nan
        if label_space == "logits":
            assert "softmax reads the whole row" in message(loss, array(preds["logits"]), array(label), array(weight))
        else:
            loss.check_inputs(array(preds["logits"]), array(label), array(weight))
            label[2, 3:5] = 3
            assert "label" in message(loss, array(preds["logits"]), array(label), array(weight))
    scores, label = preds["logits"].copy(), sigmoid(labels["logits"])
    scores[:, 3], label[:, 3] = np.nan, 255
    BernoulliKLLoss().check_inputs(array(scores), array(label), array(weight))
    GaussianKLLoss().check_inputs(array(scores), array(scores), array(label), sample_weight=array(weight))


# Yes or no, and Gaussians

@pytest.mark.parametrize("label, words", [
    (lambda x: np.floor(255 * sigmoid(x)), ["divide label by its largest possible value, 255"]),
    (lambda x: 255 * sigmoid(x), ["divide label", "255 for pixels"]),
    (lambda x: 100 * sigmoid(x), ["100 for percentages"]),
    (lambda x: np.floor(10 * sigmoid(x)), ["divide label by its largest possible value"]),
    (np.sign, ["from -1 to 1", "(label + 1) / 2"]),
    (np.round, ["label_space='logits'", "scale"]),
    (lambda x: np.clip(np.round(x), -1, 1), ["-1 marks an unknown label", "sample_weight=(label >= 0)"]),
    (lambda x: sigmoid(x) / sigmoid(x).max() * 1.001, ["label.clip(0, 1)"]),
    (lambda x: sigmoid(x) - sigmoid(x).min() - 1e-6, ["label.clip(0, 1)"]),
    (lambda x: x, ["from -2.", "label_space='logits'", "scale"]),
    (lambda x: np.log(sigmoid(x)), ["label.exp()"]),
])
def test_labels_that_are_no_yes_or_no(label, words):
    x = np.random.RandomState(3).normal(size=(8, 10))
    for dtype in ("float32", "float64"):
        said = message(BernoulliKLLoss(), array(x, dtype), array(label(x), dtype))
        assert all(word in said for word in ["label holds", "(label_space='probs')", *words]), said


def test_pixels_as_bytes():
    pixels = np.random.RandomState(0).randint(256, size=(4, 28, 28))
    scores = array(np.random.RandomState(1).normal(size=(4, 28, 28)))
    assert "from 0 to 255" in message(BernoulliKLLoss(), scores, array(pixels, "uint8"))
    BernoulliKLLoss().check_inputs(scores, array(pixels, "float32") / 255)


def test_yes_or_no_in_another_space():
    x = np.random.RandomState(3).normal(size=(8, 10))
    scores, probs, hard = array(x), array(sigmoid(x)), array(x > 0)
    assert "sigmoid would be applied twice" in message(BernoulliKLLoss(), probs, probs)
    assert "from_sigmoid=True" in message(BernoulliKLLoss(), probs, 0.05)
    said = message(BernoulliKLLoss(True), scores, probs)
    assert "pred holds values from" in said and "set from_sigmoid=False" in said
    assert "set from_sigmoid=False" in message(BernoulliKLLoss(True), array(0.01 * x), probs)
    for label in (probs, hard):
        assert "set label_space='probs'" in message(BernoulliKLLoss(label_space="logits"), scores, label)
    for loss, pair in ((BernoulliKLLoss(), (probs, scores)), (BernoulliKLLoss(True, label_space="logits"),
                                                              (scores, probs))):
        assert "swapped" in message(loss, *pair)


def test_numbers_as_labels():
    scores = array(np.random.RandomState(3).normal(size=(8, 10)))
    for label in (0, 0.05, 1, np.float32(0.5)):
        BernoulliKLLoss().check_inputs(scores, label)
        BernoulliKLLoss().check_inputs(scores, label, array(np.arange(8) % 2))
    assert "between 0 and 1" in message(BernoulliKLLoss(), scores, 5)
    logits = BernoulliKLLoss(label_space="logits")
    said = message(logits, scores, 0.05)
    assert "0.512" in said and "label_space='probs'" in said
    for label in (-2.9, 0, 1.5):
        logits.check_inputs(scores, label)


def test_spreads():
    x = np.random.RandomState(3).normal(size=(8, 10))
    mean, std = array(x), array(np.exp(x / 2))
    said = message(GaussianKLLoss(), mean, std)
    assert f"log_variance holds values from {std.min().asscalar():g} to" in said
    assert "log_variance.log()" in said and "spread='std'" in said
    said = message(GaussianKLLoss(), mean, mean, 0, std)
    assert "prior_log_variance holds values" in said and "prior_log_variance.log()" in said
    assert "1.2e+39" in message(GaussianKLLoss(), mean, array(x + 90 * (x == x.max()) - x * (x == x.max())))
    said = message(GaussianKLLoss(spread="std"), mean, mean)
    assert "spread='log_variance'" in said and ".exp()" in said
    assert "1e-6" in message(GaussianKLLoss(spread="std"), mean, array(np.maximum(x, 0)))
    assert "swapped" in message(GaussianKLLoss(spread="std"), std, mean)
    assert "must be finite" in message(GaussianKLLoss(), mean, array(np.where(x < 0, -np.inf, x)))
    assert "must be finite" in message(GaussianKLLoss(), array(np.where(x == x[3, 3], np.inf, x)), mean)
    assert "prior_mean" in message(GaussianKLLoss(), mean, mean, array(np.full(10, np.nan)))


def test_a_prior_of_variance_one():
    x = array(np.random.RandomState(3).normal(size=(8, 10)))
    loss = GaussianKLLoss()
    for prior in ((0, 1), (None, 1.0), (mx.nd.zeros((10,)), mx.nd.ones((10,)))):
        said = message(loss, x, x, *prior)
        assert "2.718" in said and "pass 0 or leave both priors out" in said
    for prior in ((0, 0), (None, None), (2, 1), (0, 0.5), (mx.nd.ones((10,)), mx.nd.zeros((8, 1)))):
        loss.check_inputs(x, x, *prior)
    GaussianKLLoss(spread="std").check_inputs(x, x.exp(), 0, 1)
    assert "positive" in message(GaussianKLLoss(spread="std"), x, x.exp(), 0, -1)


# Valid inputs

def scores(rng, shape):
    """Raw scores as networks give them, along the last axis, of any scale, some masked, never a whole row."""
    x = rng.choice([0.01, 0.1, 1, 4, 20]) * rng.normal(size=shape) + rng.randint(2) * rng.normal()
    x = [x, np.abs(x), np.zeros(shape), rng.uniform(size=shape)][rng.randint(4)]
    if rng.randint(3) == 0:
        masked = rng.uniform(size=shape) < 0.3
        masked[..., 0] = False
        x = np.where(masked, -np.inf, x)
    return x


def distributions(rng, shape):
    """Probabilities along the last axis, as labels come, and whether they are whole numbers."""
    count = shape[-1]
    hot = np.eye(count)[rng.randint(count, size=shape[:-1])] if count < 10000 else \
        (np.arange(count) == rng.randint(count, size=(*shape[:-1], 1))).astype(float)
    smoothing, kind = rng.choice([0.01, 0.1, 0.3]), rng.randint(4)
    return [softmax(scores(rng, shape)), hot, hot * (1 - smoothing) + smoothing / count,
            rng.multinomial(5, np.full(count, 1 / count), size=shape[:-1]) / 5][kind], kind == 1


def layout(rng):
    """A shape with the categories last, the place where they belong, and the axis of the samples then."""
    categories = int(rng.choice([2, 3, 4, 10, 100, 1000, 50000], p=[.2, .15, .15, .2, .15, .14, .01]))
    rows = [(int(rng.choice([1, 2, 8, 64])),), (int(rng.randint(1, 5)), int(rng.randint(1, 8))),
            (int(rng.randint(1, 4)), 2, int(rng.randint(1, 4)))][rng.randint(3)]
    shape = (*(rows if categories < 10000 else (2,)), categories)
    axis = int(rng.randint(len(shape)))
    return shape, axis, int(rng.choice([i for i in range(len(shape)) if i != axis]))


def in_place(x, axis):
    return np.moveaxis(x, -1, axis)


def weights(rng, shape, axis, batch_axis):
    """Weights of any shape that fits, None most of the time, and where they are not 0."""
    per = rng.randint(6)
    if per > 2:
        return None, np.ones(shape, bool)
    size = [tuple(n if i == batch_axis else 1 for i, n in enumerate(shape)),
            tuple(1 if i == axis else n for i, n in enumerate(shape)), shape][per]
    weight = [rng.randint(2, size=size).astype(float), rng.uniform(0.1, 9, size=size),
              rng.randint(2, size=size) * rng.uniform(size=size)][rng.randint(3)]
    weight.ravel()[rng.randint(weight.size)] = 1
    heard = np.broadcast_to(weight != 0, shape)
    return (weight.ravel() if per == 0 and rng.randint(2) else weight), heard


def spoil(rng, x, silent):
    """Anything at all where nothing counts."""
    return np.where(silent, rng.choice([np.nan, np.inf, -1, 0, 255]), x)


def valid_pair(rng):
    """A random valid batch of a pair of distributions, and the loss that it is for."""
    loss = [KLDivLoss, ReverseKLDivLoss, JSDivLoss][rng.randint(3)]
    pred_space, label_space, dtype = SPACES[rng.randint(3)], SPACES[rng.randint(3)], DTYPES[rng.randint(3)]
    shape, axis, batch_axis = layout(rng)
    pred = scores(rng, shape)
    if pred_space != "logits":
        pred = oracle.log_softmax(pred)
        pred = np.exp(pred) if pred_space == "probs" else pred
    label, label_type = scores(rng, shape), (dtype, "float32")[rng.randint(2)]
    if label_space == "log_probs":
        label = oracle.log_softmax(label)
    elif label_space == "probs":
        label, whole = distributions(rng, shape)
        if whole:
            label_type = ("int8", "uint8", "int32", dtype)[rng.randint(4)]
    pred, label = in_place(pred, axis), in_place(label, axis)
    weight, heard = weights(rng, pred.shape, axis, batch_axis)
    silent = ~heard.any(axis=axis, keepdims=True)
    pred = spoil(rng, pred, silent)
    if label_type in DTYPES:
        label = spoil(rng, label, silent)
    arguments = dict(axis=axis, batch_axis=batch_axis, label_space=label_space, pred_space=pred_space)
    return loss(**arguments), [pred.astype(dtype), label.astype(label_type)], weight


def valid_distillation(rng):
    shape, axis, batch_axis = layout(rng)
    space, dtype, sparse = SPACES[rng.randint(3)], DTYPES[rng.randint(3)], bool(rng.randint(2))
    teacher = scores(rng, shape)
    if space != "logits":
        teacher = oracle.log_softmax(teacher) if space == "log_probs" else softmax(teacher)
    pred, teacher = in_place(scores(rng, shape), axis), in_place(teacher, axis)
    weight, heard = weights(rng, pred.shape, axis, batch_axis)
    silent = ~heard.any(axis=axis, keepdims=True)
    if sparse:
        label = spoil(rng, rng.randint(shape[-1], size=silent.shape).astype(float), silent)
        label = label if rng.randint(2) else np.squeeze(label, axis)
    else:
        label = spoil(rng, in_place(distributions(rng, shape)[0], axis), silent)
    loss = DistillationLoss(4, sparse_label=sparse, axis=axis, batch_axis=batch_axis, teacher_space=space)
    dense = dtype if not sparse else "float64"
    return loss, [spoil(rng, pred, silent).astype(dtype), label.astype(dense),
                  spoil(rng, teacher, silent).astype(dtype)], weight


def signed(rng, shape):
    """Raw scores of either sign, as networks give them where each stands for itself."""
    return rng.choice([0.01, 0.1, 1, 4, 20]) * (rng.normal(size=shape) + rng.normal() / 2)


def small_shape(rng):
    shape = tuple(int(n) for n in rng.choice([1, 2, 3, 7, 30], size=rng.randint(1, 5)))
    return shape, int(rng.randint(len(shape)))


def valid_bernoulli(rng):
    from_sigmoid, label_space, dtype = bool(rng.randint(2)), ("probs", "logits")[rng.randint(2)], DTYPES[rng.randint(3)]
    shape, batch_axis = small_shape(rng)
    pred, label = signed(rng, shape), signed(rng, shape)
    pred = np.where(rng.uniform(size=shape) < 0.1, rng.choice([-np.inf, 0, np.inf]), pred)
    pred = sigmoid(pred) if from_sigmoid else pred
    if label_space == "probs":
        label = [sigmoid(label), label > 0, np.floor(256 * sigmoid(label)).clip(0, 255) / 255][rng.randint(3)]
    weight, heard = weights(rng, shape, None, batch_axis)
    number = rng.choice([0, 0.05, 0.5, 1]) if label_space == "probs" else -rng.uniform(0, 5)
    return BernoulliKLLoss(from_sigmoid, batch_axis=batch_axis, label_space=label_space), \
        [spoil(rng, pred, ~heard).astype(dtype),
         float(number) if rng.randint(4) == 0 else spoil(rng, label, ~heard).astype(dtype)], weight


def valid_gaussian(rng):
    spread, dtype = ("log_variance", "std")[rng.randint(2)], DTYPES[rng.randint(3)]
    shape, batch_axis = small_shape(rng)
    # In training, variances shrink; those of a new network are about 1.
    spreads = [rng.choice([0.01, 0.3]) * rng.normal(size=shape) - rng.choice([0, 0, 0.5, 2, 8]) for _ in range(2)]
    spreads = [np.exp(x / 2) if spread == "std" else x for x in spreads]
    means = [rng.choice([0.01, 1, 10]) * rng.normal(size=shape) for _ in range(2)]
    weight, heard = weights(rng, shape, None, batch_axis)
    inputs = [spoil(rng, x, ~heard).astype(dtype) for x in (means[0], spreads[0], means[1], spreads[1])]
    number = float(rng.uniform(0.1, 2))
    inputs[2:] = [[None, None], inputs[2:], [number, None], [None, inputs[3]], [number, number]][rng.randint(5)]
    return GaussianKLLoss(batch_axis=batch_axis, spread=spread), inputs, weight


VALID = {"pair": valid_pair, "distillation": valid_distillation, "bernoulli": valid_bernoulli,
         "gaussian": valid_gaussian}


def false_alarms(kind, batches, seed):
    """The messages of the valid batches that are refused, of so many."""
    rng, alarms = np.random.RandomState(seed), []
    for _ in range(batches):
        loss, inputs, weight = VALID[kind](rng)
        weight = None if weight is None else array(weight, DTYPES[rng.randint(3)])
        arrays = [array(x) if isinstance(x, np.ndarray) else x for x in inputs]
        try:
            loss.check_inputs(*arrays, sample_weight=weight)
        except ValueError as error:
            layouts = [f"{x.dtype}{x.shape}" if isinstance(x, np.ndarray) else repr(x) for x in inputs]
            alarms.append(f"{loss}, {', '.join(layouts)}, weight {weight is not None}: {error}")
    return alarms


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NaN becomes an integer where nothing counts
@pytest.mark.parametrize("kind", VALID)
def test_no_false_alarm(kind):
    """`python tests/test_diagnostics.py` does the same on ten thousand batches of each kind."""
    assert not false_alarms(kind, 400, seed=5)


@pytest.mark.parametrize("pred_space", SPACES)
def test_bfloat16_is_read_as_numbers(views, pred_space):
    """NumPy has no bfloat16: MXNet hands its bits over."""
    preds, labels, _ = views
    brain = np.dtype([("bfloat16", np.uint16)])
    loss = KLDivLoss(pred_space=pred_space)
    loss.check_inputs(array(preds[pred_space]).astype(brain), array(labels["probs"]).astype(brain))
    said = message(loss, array(3 * labels["probs"] + 9).astype(brain), array(labels["logits"]).astype(brain))
    assert "16" not in said.split("label")[0], "the bits of a number"


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_vocabulary(dtype):
    rng = np.random.RandomState(0)
    scores = 3 * rng.normal(size=(4, 50000))
    hot = np.zeros((4, 50000))
    hot[:, 7] = 1
    for label in (hot, 0.9 * hot + 0.1 / 50000, np.exp(oracle.log_softmax(scores)), np.full((4, 50000), 1 / 50000)):
        KLDivLoss(False).check_inputs(array(scores, dtype), array(label, dtype))
        KLDivLoss().check_inputs(array(oracle.log_softmax(scores), dtype), array(label, dtype))


def test_rounded_labels_pass():
    """Shares written with three decimals add up to 0.999."""
    KLDivLoss(False).check_inputs(array(np.zeros((2, 3))), array([[0.333, 0.333, 0.333], [0.167, 0.5, 0.333]]))


def test_what_mxnets_softmax_returns_passes():
    x = mx.nd.random.normal(shape=(16, 100))
    for dtype in DTYPES:
        scores = x.astype(dtype)
        KLDivLoss().check_inputs(scores.log_softmax(), scores.softmax())


# The distillation loss

def test_distillation(views):
    preds, teachers, classes = views
    loss = DistillationLoss(2, 0.5)
    good = array(preds["logits"]), array(classes), array(teachers["logits"])
    assert loss.check_inputs(*good) is None
    assert "pred holds probabilities" in message(loss, array(preds["probs"]), *good[1:])
    assert "teacher_pred holds probabilities" in message(loss, *good[:2], array(teachers["probs"]))
    for wrong in (10, -1, 2.5):
        label = classes.astype("float32")
        label[3] = wrong
        said = message(loss, good[0], array(label), good[2])
        assert "from 0 to 9" in said and f"{wrong:g}" in said
    said = message(loss, *good[:2], array(teachers["probs"]))
    assert "teacher_space='probs'" in said and "temperature" in said and "logarithms" in said
    loss.check_inputs(good[0], array(classes[:, None]), good[2])
    dense = DistillationLoss(2, 0.5, sparse_label=False)
    dense.check_inputs(good[0], array(np.eye(10)[classes]), good[2])
    assert "sum to 1" in message(dense, good[0], array(2 * np.eye(10)[classes]), good[2])
    with pytest.raises(ValueError, match="sparse_label=False"):
        loss.check_inputs(good[0], array(np.eye(10)[classes]), good[2])
    assert DistillationLoss(hard_weight=0).check_inputs(good[0], None, good[2]) is None
    assert DistillationLoss(hard_weight=1).check_inputs(good[0], good[1], None) is None


@pytest.mark.parametrize("space, holds, words", [
    ("probs", "logits", ["logits", "probabilities belong", "teacher_space='logits'"]),
    ("probs", "log_probs", ["log-probabilities", "teacher_space='log_probs'"]),
    ("log_probs", "probs", ["holds probabilities", "teacher_space='probs'"]),
    ("log_probs", "logits", ["logits", "teacher_space='logits'"]),
    ("logits", "probs", ["holds probabilities", "teacher_space='probs'"]),
])
def test_a_teacher_in_another_space(views, space, holds, words):
    preds, teachers, classes = views
    loss = DistillationLoss(4, teacher_space=space)
    for dtype in DTYPES:
        student, label = array(preds["logits"], dtype), array(classes)
        said = message(loss, student, label, array(teachers[holds], dtype))
        assert all(word in said for word in ("teacher_pred", *words)), said
        loss.check_inputs(student, label, array(teachers[space], dtype))


if __name__ == "__main__":
    found = {kind: false_alarms(kind, 10000, seed=11) for kind in VALID}
    for kind, alarms in found.items():
        print(f"{kind}: {len(alarms)} false alarms in 10000 valid batches", *alarms[:5], sep="\n")
    sys.exit(any(found.values()))
