"""Gradients at the ends: labels at 0, near-equal sides, the limits of number formats, and what fills no cache."""

from gluon_kl import JSDivLoss, KLDivLoss, ReverseKLDivLoss, native

import mxnet as mx
import numpy as np
import pytest

import oracle
from cases import FEW, MEMBERS, called

needs_native = pytest.mark.skipif(not native.is_available(), reason=f"no fused operator: {native.why_not()}")


# Labels at and near 0

@pytest.mark.parametrize("n", [3, 70])
@pytest.mark.parametrize("dtype, tiny", [("float32", 1e-40), ("float32", 1e-45), ("float64", 1e-310)])
def test_gradient_to_a_subnormal_label(eager, dtype, tiny, n):
    """log(label) + 1 - log_pred, which the derivative of label * log(label), taken apart, makes infinite."""
    log_pred = oracle.log_softmax(np.arange(n, dtype="float64")).astype(dtype)
    label = np.resize(np.array([0.5, tiny, 0.5], dtype), n)
    loss = KLDivLoss(reduction="sum")
    to_pred, to_label = eager.gradients(loss, log_pred[None], label[None])
    wide, wide_pred = label.astype("float64"), log_pred.astype("float64")
    np.testing.assert_allclose(eager(loss, log_pred[None], label[None]), (wide * (np.log(wide) - wide_pred)).sum(),
                               rtol=1e-6)
    np.testing.assert_allclose(to_label[0], np.log(wide) + 1 - wide_pred, rtol=1e-6)
    np.testing.assert_allclose(to_pred[0], -label, rtol=1e-6)


@pytest.mark.parametrize("n", [3, 70])
@pytest.mark.parametrize("pred_space", ["log_probs", "logits", "probs"])
def test_reverse_gradient_to_a_label_of_zero(eager, pred_space, n):
    """Nothing could move such a label in the direction that a slope of -inf asks for."""
    pred = {"log_probs": oracle.log_softmax, "logits": np.array,
            "probs": lambda x: np.exp(oracle.log_softmax(x))}[
                pred_space](np.arange(n) / n)
    label = np.full(n, 2 / n)
    label[::2] = 0
    _, to_label = eager.gradients(ReverseKLDivLoss(pred_space=pred_space, reduction="sum"), pred[None], label[None])
    assert not to_label[0, ::2].any()
    if pred_space == "probs":
        np.testing.assert_allclose(to_label[0, 1::2], -pred[1::2] / label[1::2], rtol=1e-12)


# Digits near equality

@pytest.mark.parametrize("dtype, noise, rtol", [("float32", 1e-2, 2e-3), ("float64", 1e-3, 1e-9), ("float64", 1e-6,
    1e-6)])
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("space", ["log_probs", "logits"])
def test_js_terms_near_equality(eager, rng, dtype, noise, rtol, beta, space):
    """Element by element too: no term is lost in a difference of numbers that are nearly equal."""
    label = oracle.log_softmax(rng.normal(size=(5, 37)))
    pred = label + noise * rng.uniform(0.5, 1, size=label.shape) * rng.choice([-1, 1], size=label.shape)
    pred, label = pred.astype(dtype), label.astype(dtype)
    if space == "logits":
        label, pred = label - label.mean(), pred - pred.mean()
    loss = JSDivLoss(pred_space=space, from_logits=space != "logits", label_space=space, beta=beta, reduction="none")
    wide = [x.astype(np.longdouble) for x in (pred, label)]
    if space == "logits":
        wide = [x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in wide]
    log_q, log_p = wide
    p, q, u = np.exp(log_p), np.exp(log_q), log_p - log_q
    terms = -(beta * p * np.log1p((1 - beta) * np.expm1(-u)) + (1 - beta) * q * np.log1p(beta * np.expm1(u)))
    value = eager(loss, pred, label)
    clear = abs(u) > noise / 4
    assert (value[~clear] >= 0).all()
    # A term is p's share of u^2 up to one of u's order, which the two sides' softmaxes shift alike.
    assert abs(value - terms)[clear].max() <= rtol * abs(terms[clear]).max()


# The ends of number formats, in the operator: on vectors, and on what fills none

@needs_native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_ends_of_number_formats(in_subprocess, isa):
    in_subprocess("import test_gradients as t; t.check_half_ties(); t.check_clamps()", GLUON_KL_ISA=isa)


def operator_gradient(scores, label, head, **options):
    """To log-probabilities, of the sum of the terms under `head`: -label * head, rounded to pred's type."""
    arrays = [mx.nd.array(x, dtype=x.dtype) for x in (scores, label)]
    for x in arrays:
        x.attach_grad()
    with mx.autograd.record():
        out = native.fused(mx.nd, dict(zip(("pred", "target"), arrays)), ["pred", "target"], **options)
    out.backward(mx.nd.array(head, dtype=out.dtype))
    return [x.grad.asnumpy() for x in arrays]


def check_half_ties():
    halves = np.arange(0x7c00, dtype="uint16").view("float16").astype("float64")  # every finite one
    ties = (halves[1:] + halves[:-1]) / 2  # each between two neighbours: to the even one
    near = np.concatenate([ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf), [65504.0, 65519.9, 65520.0, 1e6]])
    for dtype, labels in (("float32", np.concatenate([ties, np.nextafter(ties.astype("float32"), np.float32(0)),
                                                      np.nextafter(ties.astype("float32"), np.float32(np.inf))])),
                          ("float64", near)):
        every = labels.astype(dtype)
        for n in (1, 7, 8, 15, 33, 1009):
            for axis in (1, 0):
                labels = every if n in (33, 1009) else every[::11]
                rows = len(labels) // n
                label = labels[:rows * n].reshape(rows, n)
                pred = np.zeros(label.shape, "float16")
                if axis == 0:
                    label, pred = np.ascontiguousarray(label.T), np.ascontiguousarray(pred.T)
                if n < 7 and axis == 1:
                    label, pred = label[::9], pred[::9]
                to_pred, _ = operator_gradient(pred, label, np.ones(label.shape[1 - axis]), axis=axis,
                                               batch_axis=1 - axis, pred="log_probs", target="probs")
                with np.errstate(over="ignore"):
                    want = (-label).astype("float16")
                np.testing.assert_array_equal(to_pred, want, err_msg=f"{dtype}, rows of {n} along {axis}")


def check_clamps():
    """A gradient of an integer's type is cut off, and kept within the type's range; NaN gives 0."""
    for name, info in ((name, np.iinfo(name)) for name in ("int8", "uint8", "int32", "int64")):
        for n in (1, 7, 16, 33):
            label = np.ones((4, n), name)
            pred = np.zeros((4, n))
            pred[0] = -np.linspace(0.2, 3.9, n)
            head = np.array([1.0, 1e30, -1e30, np.nan])
            _, to_label = operator_gradient(pred, label, head, pred="log_probs", target="probs")
            assert to_label.dtype == name
            want = np.trunc(1 - pred[0])  # log 1 - pred + 1
            np.testing.assert_array_equal(to_label[0], want.astype(name), err_msg=f"{name} {n}")
            assert (to_label[1] == info.max).all() and (to_label[2] == info.min).all(), (name, n, to_label)
            assert (to_label[3] == 0).all(), (name, n, to_label)


# Gradients that go past the cache

@needs_native
@pytest.mark.parametrize("name", FEW)
def test_large_gradients_whose_rows_fill_no_vector(name):
    """20 MB and more are written past the cache; the same as of a few rows at a time."""
    check_large_gradients(MEMBERS[name], (1001, 5001))


@needs_native
@pytest.mark.parametrize("shape", [(1001, 2101), (2101, 1001), (3, 1009, 701)])
def test_large_gradients_of_other_shapes(shape):
    for name in ("kl logits probs", "js logits probs", "both"):
        check_large_gradients(MEMBERS[name], shape)


def check_large_gradients(member, shape):
    """Of rows that repeat: each gets the gradient that it gets among few."""
    period = 7 if shape[0] > 7 else 1
    few = [x if x is None else x.astype("float32") for x in member.inputs(
        np.random.RandomState(0), (period, *shape[1:]))]
    many = [x if x is None else np.resize(x, (shape[0], *x.shape[1:])) for x in few]
    attached = [i for i, yes in enumerate(member.learns(few)) if yes]
    for got, want in zip(*(called(member.make(), inputs, "float32", attached=attached)[1:] for inputs in (many, few))):
        if want is not None:
            np.testing.assert_allclose(got, np.resize(want, got.shape), rtol=1e-5, atol=1e-9 * abs(want).max())
