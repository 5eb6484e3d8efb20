"""check_inputs: what it catches, and that it leaves valid inputs alone."""

import sys

import mxnet as mx
import numpy as np
import pytest

import oracle
from gluon_kl import DistillationLoss, JSDivLoss, KLDivLoss, ReverseKLDivLoss

SPACES = ("probs", "log_probs", "logits")
DTYPES = ("float16", "float32", "float64")


def array(x, dtype=None):
    x = np.asarray(x) if dtype is None else np.asarray(x).astype(dtype)
    return mx.nd.array(x, dtype=x.dtype)


def message(loss, *inputs):
    with pytest.raises(ValueError) as caught:
        loss.check_inputs(*inputs)
    return str(caught.value)


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
    (True, "probs", "logits", "probs", ["pred holds raw scores", "log-probabilities belong", "from_logits=False"]),
    (False, "probs", "probs", "probs", ["pred holds probabilities", "raw scores", "softmax", "twice"]),
    (False, "logits", "probs", "logits", ["pred holds probabilities", "twice"]),
    (True, "probs", "log_probs", "log_probs", ["label holds log-probabilities", "label_space='log_probs'"]),
    (True, "probs", "log_probs", "logits", ["label holds raw scores", "label_space='logits'"]),
    (True, "log_probs", "log_probs", "probs", ["label holds probabilities", "label_space='probs'"]),
    (True, "log_probs", "log_probs", "logits", ["label holds raw scores", "label_space='logits'"]),
    (False, "logits", "logits", "probs", ["label holds probabilities", "label_space='probs'"]),
    (True, "probs", "probs", "log_probs", ["swapped", "pred", "label", "model first"]),
    (False, "probs", "probs", "logits", ["swapped"]),
    (True, "logits", "logits", "log_probs", ["swapped"]),
    (False, "log_probs", "log_probs", "logits", ["swapped"]),
]
PROBS_MISTAKES = [  # under pred_space="probs": label_space, what pred holds, what label holds, words of the message
    ("probs", "logits", "probs", ["pred holds raw scores", "probabilities belong", "pred_space='logits'"]),
    ("probs", "log_probs", "probs", ["pred holds log-probabilities", "pred_space='log_probs'"]),
    ("probs", "probs", "logits", ["label holds raw scores", "label_space='logits'"]),
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
        for loss, inputs in ((KLDivLoss(), (nothing, nothing)), (JSDivLoss(False), (nothing, nothing)),
                             (DistillationLoss(sparse_label=False), (nothing,) * 3)):
            said = message(loss, *inputs)
            assert "pred of shape (0, 3)" in said and "nothing to look at" in said


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
    repeated = np.repeat(classes[:, None], 10, axis=1)
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


def test_it_never_runs_by_itself(views):
    preds, labels, _ = views
    loss = KLDivLoss()
    loss(array(preds["probs"]), array(2 * labels["logits"])).asnumpy()
    assert loss.check_inputs(array(preds["log_probs"]), array(labels["probs"])) is None
    loss.hybridize()
    loss(array(preds["probs"]), array(2 * labels["logits"])).asnumpy()
    assert loss.check_inputs(mx.np.array(preds["log_probs"]), mx.np.array(labels["probs"])) is None


# Valid inputs

def valid_batch(rng):
    """A random valid batch, and the loss that it is for."""
    loss = [KLDivLoss, ReverseKLDivLoss, JSDivLoss][rng.randint(3)]
    pred_space, label_space, dtype = SPACES[rng.randint(3)], SPACES[rng.randint(3)], DTYPES[rng.randint(3)]
    categories = int(rng.choice([2, 3, 4, 10, 100, 1000, 50000], p=[.2, .15, .15, .2, .15, .14, .01]))
    rows = int(rng.choice([1, 2, 8, 64])) if categories < 10000 else 2
    shape = rows, categories

    def logits():
        x = rng.choice([0.01, 0.1, 1, 4, 20]) * rng.normal(size=shape) + rng.randint(2) * rng.normal()
        x = [x, np.abs(x), np.zeros(shape), rng.uniform(size=shape)][rng.randint(4)]
        if rng.randint(3) == 0:  # masks, but never a whole row
            masked = rng.uniform(size=shape) < 0.3
            masked[np.arange(rows), rng.randint(categories, size=rows)] = False
            x = np.where(masked, -np.inf, x)
        return x

    pred = logits()
    if pred_space != "logits":
        pred = oracle.log_softmax(pred)
        pred = np.exp(pred) if pred_space == "probs" else pred
    label, label_type = logits(), (dtype, "float32")[rng.randint(2)]
    if label_space == "log_probs":
        label = oracle.log_softmax(label)
    elif label_space == "probs":
        hot = (np.arange(categories) == rng.randint(categories, size=(rows, 1))).astype(float)
        smoothing = rng.choice([0.01, 0.1, 0.3])
        kind = rng.randint(4)
        label = [np.exp(oracle.log_softmax(label)), hot, hot * (1 - smoothing) + smoothing / categories,
                 rng.multinomial(5, np.full(categories, 1 / categories), size=rows) / 5][kind]
        if kind == 1:
            label_type = ("int8", "uint8", "int32", dtype)[rng.randint(4)]
    pred, label, axis = pred.astype(dtype), label.astype(label_type), -1
    if rng.randint(2):
        pred, label, axis = pred.T, label.T, 0
    return loss(axis=axis, label_space=label_space, pred_space=pred_space), pred, label


def false_alarms(batches, seed):
    """How many of so many valid batches are refused, and the first message."""
    rng, alarms = np.random.RandomState(seed), []
    for _ in range(batches):
        loss, pred, label = valid_batch(rng)
        try:
            loss.check_inputs(array(pred), array(label))
        except ValueError as error:
            alarms.append(f"{loss}, {pred.dtype}{pred.shape}, {label.dtype}: {error}")
    return alarms


def test_no_false_alarm():
    """`python tests/test_diagnostics.py` does the same on ten thousand batches."""
    assert not false_alarms(600, seed=5)


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
    ("probs", "logits", ["raw scores", "probabilities belong", "teacher_space='logits'"]),
    ("probs", "log_probs", ["log-probabilities", "teacher_space='log_probs'"]),
    ("log_probs", "probs", ["holds probabilities", "teacher_space='probs'"]),
    ("log_probs", "logits", ["raw scores", "teacher_space='logits'"]),
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
    found = false_alarms(10000, seed=11)
    print(f"{len(found)} false alarms in 10000 valid batches", *found[:5], sep="\n")
    sys.exit(bool(found))
