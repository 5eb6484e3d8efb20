"""The fused operator by itself: every space, axis, dtype and weight against a float64 reference written here."""

import itertools
import os
import subprocess
import sys
import textwrap
import zlib

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
    log = log_softmax(x / 2, axis) if x.size else x  # no tiny probability: differences of its log are inexact
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
@pytest.mark.parametrize("pred_space, label_space", list(itertools.product(SPACES, SPACES)))
def test_value_and_gradients(shape, axis, batch_axis, pred_space, label_space):
    rng = np.random.RandomState(zlib.crc32(repr((shape, axis, batch_axis, pred_space, label_space)).encode()))
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


# ---- edges -------------------------------------------------------------------------------------------------------

INF, NAN = np.inf, np.nan
EDGES = [
    # pred space, label space, pred row, label row, value, gradient to pred, gradient to label (None: not checked)
    ("log_probs", "probs", [-INF, 0.0], [0.0, 1.0], 0.0, [0, -1], [0, 1]),
    ("log_probs", "probs", [NAN, 0.0], [0.0, 1.0], 0.0, [0, -1], [0, 1]),
    ("log_probs", "probs", [-INF, 0.0], [0.5, 0.5], INF, [-0.5, -0.5], None),
    ("log_probs", "probs", [-1.0, -1.0], [-0.5, 0.5], NAN, None, None),
    ("log_probs", "probs", [NAN, -1.0], [0.5, 0.5], NAN, None, None),
    ("log_probs", "probs", [-1.0, -1.0], [NAN, 0.5], NAN, None, None),
    ("log_probs", "probs", [-1.0, -2.0], [0.0, 0.0], 0.0, [0, 0], [np.log(EPSILON) + 1, np.log(EPSILON) + 2]),
    ("logits", "probs", [-INF, 0.0, 0.0], [0.0, 0.5, 0.5], 0.0, [0, 0, 0], [0, 1, 1]),
    ("logits", "probs", [-INF, 0.0], [0.5, 0.5], INF, [-0.5, 0.5], None),
    ("logits", "probs", [-INF, -INF], [0.5, 0.5], NAN, None, None),
    ("logits", "probs", [INF, 0.0], [0.5, 0.5], NAN, None, None),
    ("logits", "probs", [NAN, 0.0], [0.5, 0.5], NAN, None, None),
    ("logits", "probs", [NAN, 0.0], [0.0, 0.0], 0.0, [0, 0], [0, 0]),
    ("logits", "probs", [0.0, 0.0], [3.0, 1.0], 3 * np.log(6) + np.log(2), [-1, 1], None),
    ("logits", "logits", [0.0, -INF], [0.0, -INF], 0.0, [0, 0], [0, 0]),
    ("logits", "logits", [0.0, 0.0], [0.0, -INF], np.log(2), [-0.5, 0.5], [0, 0]),
    ("logits", "logits", [0.0, -INF], [0.0, 0.0], INF, [0.5, -0.5], None),
    ("logits", "logits", [0.0, 0.0], [-INF, -INF], NAN, None, None),
    ("logits", "logits", [-INF, -INF], [0.0, 0.0], NAN, None, None),
    ("logits", "logits", [1e4, -1e4], [1e4, -1e4], 0.0, [0, 0], [0, 0]),
    ("logits", "logits", [90.0, 0.0], [0.0, 90.0], 90.0, [1, -1], None),
    ("log_probs", "log_probs", [-INF, 0.0], [-INF, 0.0], 0.0, [0, -1], [0, 1]),
    ("log_probs", "log_probs", [-INF, 0.0], [-1000.0, 0.0], 0.0, [0, -1], [0, 1]),
    ("probs", "probs", [0.0, 1.0], [0.0, 1.0], 0.0, [0, -1], [0, 1]),
    ("probs", "probs", [0.0, 1.0], [0.5, 0.5], INF, [-INF, -0.5], None),
    ("probs", "logits", [0.0, 1.0], [-INF, 3.0], 0.0, [0, -1], [0, 0]),
]


@pytest.mark.parametrize("isa", [None, "baseline", "avx2"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["short", "long", "middle"])
def test_edges(isa, dtype, layout):
    """In every code path: tiles of short rows, long rows (padded with categories that count for nothing), strided."""
    if isa is not None:
        in_process("import test_native as t; t.check_edges(%r, %r)" % (dtype, layout), GLUON_KL_ISA=isa)
    else:
        check_edges(dtype, layout)


def check_edges(dtype, layout):
    for case in EDGES:
        pred_space, label_space, b, a, value, for_pred, for_label = case
        n = len(b)
        pred, label = np.array([b, b, b], dtype), np.array([a, a, a], dtype)
        if layout == "long":
            nothing = {"probs": 0.0}
            pred = np.concatenate([pred, np.full((3, 1100), nothing.get(pred_space, -INF), dtype)], axis=1)
            label = np.concatenate([label, np.full((3, 1100), nothing.get(label_space, -INF), dtype)], axis=1)
        axis = 1
        if layout == "middle":
            pred, label = np.stack([pred] * 3, axis=2), np.stack([label] * 3, axis=2)
        options = dict(axis=axis, pred_space=pred_space, label_space=label_space, mean=False)
        got = run(pred, label, **options)
        tolerance = dict(rtol=2e-6, atol=1e-6) if dtype == "float32" else dict(rtol=1e-12, atol=1e-12)
        times = 3 if layout == "middle" else 1
        np.testing.assert_allclose(got[0], np.full(3, value * times), err_msg=str(case), **tolerance)
        for gradient, expected in ((got[1], for_pred), (got[2], for_label)):
            if expected is not None:
                rows = gradient if layout != "middle" else gradient[:, :, 1]
                np.testing.assert_allclose(rows[:, :n], [expected] * 3, err_msg=str(case), **tolerance)
                assert np.all(rows[:, n:] == 0) or (label_space == "probs" and gradient is got[2]), case
        # A weight of 0 silences the row, gradients included; its own gradient leaves non-finite rows out.
        weight = np.ones([3] + [1] * (pred.ndim - 1), dtype)
        weight[1] = 0
        silenced = run(pred, label, weight, **options)
        assert silenced[0][1] == 0 and not silenced[1][1].any() and not silenced[2][1].any(), case
        np.testing.assert_array_equal(silenced[1][0], got[1][0])
        own = silenced[3].reshape(3)
        np.testing.assert_allclose(own, [value * times, value * times if np.isfinite(value) else 0, value * times],
                                   err_msg=str(case), **tolerance)


def in_process(code, **environment):
    """Runs code in a fresh interpreter beside this file; its output, or the failure with it."""
    here = os.path.dirname(os.path.abspath(__file__))
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([here, os.path.dirname(here)]), **environment)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], env=env, timeout=300,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


# ---- gradients under "add" and with many uses: what the extension interface gets wrong unguarded -------------------


class Many(mx.gluon.HybridBlock):
    """The sum of n divergences of one pred and one label, both as they come or as results of an operator."""

    def __init__(self, n, intermediate, spaces):
        super().__init__()
        self.n, self.intermediate, self.spaces = n, intermediate, spaces

    def hybrid_forward(self, F, pred, label, weight):
        if self.intermediate:
            pred, label, weight = pred * 1.5, label * 1.5, weight * 1.5
        pred_space, label_space = self.spaces
        return sum(native.kl_divergence(F, pred, label, weight, pred_space=pred_space, label_space=label_space,
                                        scale=1.0 + i // 2) for i in range(self.n))


def check_many(static, uses=(1, 2, 7, 8, 9, 10, 20)):
    rng = np.random.RandomState(0)
    spaces = ("logits", "log_probs")
    arrays = [rng.randn(4, 5), log_softmax(rng.randn(4, 5), 1) / 1.5, rng.rand(4, 1) + 0.5]
    for intermediate in (False, True):
        once = run(*[x * (1.5 if intermediate else 1.0) for x in arrays], pred_space=spaces[0], label_space=spaces[1])
        for n in uses:
            factor = sum(1 + i // 2 for i in range(n)) * (1.5 if intermediate else 1.0)
            for grad_req, passes in (("write", 1), ("add", 1), ("add", 3)):
                block = Many(n, intermediate, spaces)
                if static is not None:
                    block.hybridize(static_alloc=static, static_shape=static)
                inputs = [mx.nd.array(x, dtype=x.dtype) for x in arrays]
                for x in inputs:
                    x.attach_grad(grad_req)
                for _ in range(passes):
                    with autograd.record():
                        out = block(*inputs)
                    out.backward()
                for name, x, expected in zip(("pred", "label", "weight"), inputs, once[1:]):
                    np.testing.assert_allclose(x.grad.asnumpy(), expected * factor * passes, rtol=1e-9, atol=1e-12,
                                               err_msg=f"{name} {intermediate} {n} {grad_req} {passes}")


@pytest.mark.parametrize("static", [None, False, True], ids=["eager", "hybrid", "static"])
def test_gradients_add_up(static):
    in_process(f"import test_native as t; t.check_many({static})")
