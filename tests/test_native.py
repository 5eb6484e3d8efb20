"""The fused operator by itself: every space, axis, dtype and weight against a float64 reference written here."""

import itertools
import os
import subprocess
import sys
import textwrap

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from gluon_kl import native

needs_native = pytest.mark.skipif(not native.is_available(), reason=f"no fused operator: {native.why_not()}")
pytestmark = needs_native

SPACES = ("probs", "log_probs", "logits")
EPSILON = 1e-12


# ---- reference ---------------------------------------------------------------------------------------------------


def log_softmax(x, axis):
    with np.errstate(all="ignore"):
        shifted = x - x.max(axis=axis, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def log_and_prob(x, space, axis, t):
    with np.errstate(all="ignore"):
        if space == "probs":
            return np.log(x), x
        log = log_softmax(x * t, axis) if space == "logits" else x
        return log, np.exp(log)


def reference(pred, label, weight=None, *, axis=-1, batch_axis=0, pred_space, label_space, mean=True, scale=1.0,
              inv_temperature=1.0):
    """Per-sample values in float64 from the plain terms."""
    log_q, _ = log_and_prob(pred.astype("float64"), pred_space, axis, inv_temperature)
    log_p, p = log_and_prob(label.astype("float64"), label_space, axis, inv_temperature)
    with np.errstate(all="ignore"):
        terms = np.where(p == 0, 0, p * (log_p - log_q))
        if weight is not None:
            terms = np.where(weight == 0, 0, terms * weight.astype("float64"))
    others = tuple(d for d in range(pred.ndim) if d != batch_axis % pred.ndim)
    count = np.prod([pred.shape[d] for d in others]) if mean else 1
    return terms.sum(axis=others) * scale / count


def numerical(f, x, step=1e-6):
    """Central differences of the scalar f at float64 x."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        high, low = x.copy(), x.copy()
        high[i] += step
        low[i] -= step
        gradient[i] = (f(high) - f(low)) / (2 * step)
    return gradient


def sample(rng, shape, space, axis):
    x = rng.randn(*shape)
    if space == "logits":
        return x * 2
    log = log_softmax(x, axis) if x.size else x
    return np.exp(log) if space == "probs" else log


def run(pred, label, weight=None, head=None, **options):
    """Value and gradients (pred, label, weight) of the operator as NumPy arrays."""
    arrays = [mx.nd.array(x, dtype=x.dtype) for x in (pred, label, weight) if x is not None]
    for x in arrays:
        x.attach_grad()
    with autograd.record():
        value = native.kl_divergence(mx.nd, *arrays, **options)
    value.backward(None if head is None else mx.nd.array(head, dtype=value.dtype))
    return [value.asnumpy()] + [x.grad.asnumpy() for x in arrays]


LAYOUTS = [
    # shape, axis, batch axis
    ((5, 7), -1, 0),
    ((3, 70), 1, 0),
    ((4, 3, 5), 1, 0),
    ((4, 3, 5), 2, 1),
    ((4, 3, 5), -3, -1),
    ((2, 3, 4, 6), 1, 0),
    ((2, 3, 4, 60), -1, 2),
    ((3, 1), 1, 0),
    ((1, 1), 1, 0),
    ((4, 5), 0, 0),
    ((4, 5), 1, 1),
    ((3, 4, 2), 1, 1),
    ((6,), 0, 0),
    ((6,), -1, -1),
]


@pytest.mark.parametrize("shape, axis, batch_axis", LAYOUTS)
@pytest.mark.parametrize("pred_space, label_space", itertools.product(SPACES, SPACES))
def test_value_and_gradients(shape, axis, batch_axis, pred_space, label_space):
    rng = np.random.RandomState(abs(hash((shape, axis, batch_axis, pred_space, label_space))) % 2**31)
    pred, label = sample(rng, shape, pred_space, axis), sample(rng, shape, label_space, axis)
    weight_shape = [1 if d == axis % len(shape) or rng.rand() < 0.3 else n for d, n in enumerate(shape)]
    weight = rng.rand(*weight_shape) + 0.5
    weight.flat[0] = 0
    head = rng.randn(shape[batch_axis])
    for mean, w, scale, t in ((True, None, 1.0, 1.0), (False, weight, 0.3, 0.5)):
        options = dict(axis=axis, batch_axis=batch_axis, pred_space=pred_space, label_space=label_space, mean=mean,
                       scale=scale, inv_temperature=t)
        got = run(pred, label, w, head, **options)
        np.testing.assert_allclose(got[0], reference(pred, label, w, **options), rtol=1e-11, atol=1e-13)
        given = [pred, label] + ([] if w is None else [w])
        for i, x in enumerate(given):
            def total(moved, i=i):
                arguments = given[:i] + [moved] + given[i + 1:]
                return (reference(*arguments, **options) * head).sum()
            expected = numerical(total, x)
            if i == 2:  # the reference cuts a weight of exactly 0 off
                expected = np.where(x == 0, got[3], expected)
            np.testing.assert_allclose(got[1 + i], expected, rtol=2e-6, atol=2e-8, err_msg=str(i))
