"""What holds for every distribution (hypothesis), with the oracle nowhere in sight."""

import math
from unittest import mock

from gluon_kl import DistillationLoss, GaussianKLLoss, JSDivLoss, KLDivLoss, ReverseKLDivLoss, native

import mxnet as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

LOSSES = {
    "log_probs, probs": (KLDivLoss(True, reduction="sum"), True, "probs"),
    "logits, probs": (KLDivLoss(False, reduction="sum"), False, "probs"),
    "log_probs, log_probs": (KLDivLoss(True, reduction="sum", label_space="log_probs"), True, "log_probs"),
    "logits, logits": (KLDivLoss(False, reduction="sum", label_space="logits"), False, "logits"),
}
FREE = ("log_probs, probs", "logits, probs", "log_probs, log_probs")  # terms as they are, which add up to round-off
TWO_LOGITS = {
    "reverse": ReverseKLDivLoss(False, label_space="logits", reduction="sum"),
    "js": JSDivLoss(False, label_space="logits", reduction="sum", beta=0.3),
    "soft": DistillationLoss(temperature=2, hard_weight=0),
    "gaussian": GaussianKLLoss(),
}
SPACES_OF_KL = list(LOSSES)
LOSSES.update({name: (loss, False, "logits") for name, loss in TWO_LOGITS.items()})
many = settings(max_examples=30, deadline=None, derandomize=True)


def logits(shape=None):
    shape = shape or st.tuples(st.integers(1, 5), st.integers(1, 9))
    return arrays.arrays(np.float64, shape, elements=st.floats(-30, 30, width=32))


def pairs():
    shapes = st.tuples(st.integers(1, 5), st.integers(1, 9))
    return shapes.flatmap(lambda shape: st.tuples(logits(shape), logits(shape)))


def log_softmax(x):
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def value(name, pred, label):
    """The divergence of two arrays of logits, given to the loss in the spaces that it takes."""
    loss, from_logits, label_space = LOSSES[name]
    if name == "soft":
        return loss(mx.nd.array(pred, dtype="float64"), None, mx.nd.array(label, dtype="float64")).asnumpy()
    pred = log_softmax(pred) if from_logits else pred
    label = {"probs": np.exp, "log_probs": lambda x: x, "logits": lambda x: x}[label_space](
        label if label_space == "logits" else log_softmax(label))
    return loss(mx.nd.array(pred, dtype="float64"), mx.nd.array(label, dtype="float64")).asnumpy()


SAME = ["logits, probs", "logits, logits", "reverse", "js", "soft"]  # where logits may be shifted


@pytest.mark.parametrize("name", LOSSES)
@many
@given(pair=pairs())
def test_never_negative(name, pair):
    assert (value(name, *pair) >= (0 if name not in FREE else -1e-13)).all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "gaussian"])
@many
@given(x=logits())
def test_zero_at_equality(name, x):
    np.testing.assert_allclose(value(name, x, x), 0, atol=1e-13 if name in ("log_probs, probs", "logits, probs") else 0)


@pytest.mark.parametrize("name", SAME)
@many
@given(pair=pairs(), shift=st.floats(-100, 100))
def test_logits_may_be_shifted(name, pair, shift):
    pred, label = pair
    np.testing.assert_allclose(value(name, pred + shift, label), value(name, pred, label), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@many
@given(pair=pairs())
def test_a_batch_is_its_rows(name, pair):
    rows = [value(name, *[x[i:i + 1] for x in pair])[0] for i in range(len(pair[0]))]
    np.testing.assert_allclose(value(name, *pair), rows, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
@many
@given(pair=pairs(), data=st.data())
def test_categories_may_be_permuted(name, pair, data):
    order = data.draw(st.permutations(range(pair[0].shape[1])))
    np.testing.assert_allclose(value(name, *[x[:, order] for x in pair]), value(name, *pair), rtol=1e-9, atol=1e-12)


@many
@given(pair=pairs(), beta=st.floats(1e-6, 1 - 1e-6))
def test_js_is_bounded(pair, beta):
    loss = JSDivLoss(False, label_space="logits", reduction="sum", beta=beta)
    bound = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    assert (loss(*(mx.nd.array(x, dtype="float64") for x in pair)).asnumpy() <= bound * (1 + 1e-12)).all()


@many
@given(pair=pairs())
def test_all_spaces_agree(pair):
    expected = value("logits, logits", *pair)
    for name in SPACES_OF_KL:
        np.testing.assert_allclose(value(name, *pair), expected, rtol=1e-8, atol=1e-11)


@st.composite
def calls(draw):
    """A random call of a loss between pred and label: arguments and inputs, masks and zeros among them."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple))
    rng = np.random.RandomState(draw(st.integers(0, 2**31 - 1)))
    axis, batch_axis = (draw(st.integers(-len(shape), len(shape) - 1)) for _ in range(2))
    pred_space, space = (draw(st.sampled_from(["probs", "log_probs", "logits"])) for _ in range(2))
    dtype = draw(st.sampled_from(["float16", "float32", "float64"]))
    pred, label = (np.moveaxis(3 * rng.normal(size=shape), axis, -1) for _ in range(2))
    if draw(st.booleans()):
        label[..., 0], pred[..., 0] = -np.inf if shape[axis] > 1 else 0, -np.inf if shape[axis] > 1 else 0
    convert = {"probs": lambda x: np.exp(log_softmax(x)), "log_probs": log_softmax, "logits": np.array}
    pred, label = convert[pred_space](pred), convert[space](label)
    inputs = [np.moveaxis(x, -1, axis).astype(dtype) for x in (pred, label)]
    if draw(st.booleans()):
        rows = shape[:axis % len(shape)] + shape[axis % len(shape) + 1:]
        weight = rng.uniform(size=draw(st.sampled_from([shape[batch_axis:][:1], rows or (1,), shape])))
        weight.flat[0] = 0
        inputs.append(weight.astype(dtype))
    options = dict(pred_space=pred_space, axis=axis, batch_axis=batch_axis, label_space=space,
                   reduction=draw(st.sampled_from(["mean", "sum", "none", "row_mean"])),
                   weight=draw(st.sampled_from([None, 0.5])))
    loss = draw(st.sampled_from([KLDivLoss, ReverseKLDivLoss, JSDivLoss]))
    if loss is JSDivLoss:
        options["beta"] = draw(st.sampled_from([0.01, 0.3, 0.5, 0.99]))
    return loss, options, inputs


@pytest.mark.skipif(not native.is_available(), reason=f"without the native operator: {native.why_not()}")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(call=calls())
def test_both_paths_agree(call):
    make, options, inputs = call
    results = []
    for available in (True, False):
        with mock.patch.object(native, "is_available", lambda available=available: available):
            arrays = [mx.nd.array(x, dtype=x.dtype) for x in inputs]
            for x in arrays:
                x.attach_grad()
            with mx.autograd.record():
                out = make(**options)(*arrays)
            out.backward()
            results.append([out.asnumpy(), *(x.grad.asnumpy() for x in arrays)])
    for fused, plain in zip(*results):
        tolerance = {"float16": 4e-3, "float32": 1e-4, "float64": 1e-9}[fused.dtype.name]
        np.testing.assert_allclose(fused, plain, rtol=tolerance, atol=tolerance)
