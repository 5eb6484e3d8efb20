"""The fused operator by itself: every space, axis, dtype and weight against a float64 reference written here."""

import itertools
import os
import shutil
import subprocess
import sys
import textwrap
import zlib

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

import oracle
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
            def total(moved, i=i, given=given, options=options):
                arguments = given[:i] + [moved] + given[i + 1 :]
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


PATHS = [(dtype, layout) for dtype in ("float32", "float64") for layout in ("short", "long", "middle")]


@pytest.mark.parametrize("dtype, layout", PATHS)
def test_edges(dtype, layout):
    check_edges(dtype, layout)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_edges_on_lesser_processors(isa):
    in_process(f"""
        import test_native as t
        assert t.native.info()["isa"] in ({isa!r}, "baseline")
        for path in t.PATHS:
            t.check_edges(*path)
    """, GLUON_KL_ISA=isa)


def check_edges(dtype, layout):
    """In every code path: tiles of short rows, long rows (padded with categories that count for nothing), strided."""
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


def test_two_live_losses_share_a_label():
    """Backward of one leaves the other's graph whole (MXNet's own operators fail here)."""
    for shape in ((4, 5), (400, 100)):
        pred, label = mx.nd.random.normal(shape=shape), mx.nd.ones(shape) / shape[1]
        pred.attach_grad()
        for _ in range(3):
            with autograd.record():
                first = native.kl_divergence(mx.nd, pred, label, pred_space="logits")
                second = native.kl_divergence(mx.nd, pred, label, pred_space="logits")
            first.backward()
            once = pred.grad.asnumpy()
            second.backward()
            np.testing.assert_array_equal(pred.grad.asnumpy(), once)
            assert not requests.follow(label)[0]


@pytest.mark.parametrize("shape", [(4, 5), (400, 100)], ids=["small", "large"])
def test_label_in_the_graph(shape):
    """A label that is a result of recorded operators gets its gradient; an unfollowed pred costs nothing."""
    teacher = mx.nd.random.normal(shape=shape)
    student = mx.nd.random.normal(shape=shape)
    gradients = {}
    for follow in ((teacher,), (student,), (teacher, student)):
        for x in (teacher, student):
            x.attach_grad("write" if any(x is y for y in follow) else "null")
        for _ in range(3):
            with autograd.record():
                loss = native.kl_divergence(mx.nd, student * 2, teacher * 2, pred_space="logits", label_space="logits")
            loss.backward()
        for name, x in (("teacher", teacher), ("student", student)):
            if any(x is y for y in follow):
                np.testing.assert_array_equal(x.grad.asnumpy(), gradients.setdefault(name, x.grad.asnumpy()))
    assert abs(gradients["teacher"]).max() > 0


# ---- shapes, dtypes, accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 47, 48, 49, 63, 64, 65, 127, 128, 255, 256, 1000, 1023, 1024, 1025,
                               5000, 10**6])
@pytest.mark.parametrize("axis", [0, 1])
def test_every_length(n, axis):
    rng = np.random.RandomState(n)
    rows = 3 if n < 10**6 else 1
    pred, label = rng.randn(rows, n).astype("float32") * 3, rng.rand(rows, n).astype("float32")
    label /= label.sum(axis=1, keepdims=True)
    if axis == 0:
        pred, label = np.ascontiguousarray(pred.T), np.ascontiguousarray(label.T)
    options = dict(axis=axis, batch_axis=1 - axis, pred_space="logits", label_space="probs", mean=False)
    got = run(pred, label, **options)
    expected = reference(pred, label, **options)
    np.testing.assert_allclose(got[0], expected, rtol=4e-6, atol=1e-7)
    mass = label.astype("float64").sum(axis=axis, keepdims=True)
    closed = np.exp(log_softmax(pred.astype("float64"), axis)) * mass - label
    np.testing.assert_allclose(got[1], closed, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("inner", [63, 64, 65, 100, 1000])
@pytest.mark.parametrize("n", [1, 8, 9, 21, 100])
@pytest.mark.parametrize("label_type", ["float32", "float16"])
def test_neighbouring_rows(n, inner, label_type):
    check_neighbouring_rows((2, n, inner), label_type)


@pytest.mark.parametrize("inner", [80000, 80001])
def test_neighbouring_rows_whose_gradients_go_past_the_cache(inner):
    check_neighbouring_rows((3, 9, inner), "float32")


def check_neighbouring_rows(shape, label_type):
    """Rows that are read where they lie, or are not, and what of them fills no vector."""
    rng = np.random.RandomState(shape[1])
    pred = rng.randn(*shape).astype("float32")
    label = np.exp(log_softmax(rng.randn(*shape), 1)).astype(label_type)
    options = dict(axis=1, pred_space="logits", label_space="probs", mean=False)
    value, to_pred, to_label = run(pred, label, **options)
    np.testing.assert_allclose(value, reference(pred, label, **options), rtol=4e-6)
    log_q, p = log_softmax(pred.astype("float64"), 1), label.astype("float64")
    np.testing.assert_allclose(to_pred, np.exp(log_q) * p.sum(axis=1, keepdims=True) - p, rtol=1e-5, atol=1e-6)
    tolerance = 1e-5 if label_type == "float32" else 1e-2
    np.testing.assert_allclose(to_label, np.log(p) - log_q + 1, rtol=tolerance, atol=tolerance)


def test_empty():
    """In a process of its own: MXNet's arrays of size 0 want its NumPy shape semantics, which are global."""
    in_process("""
        import mxnet as mx
        from gluon_kl import native
        mx.npx.set_np()
        for shape in ((0, 3), (3, 0), (2, 3, 0), (0, 2, 3), (2, 0, 3), (0,)):
            for axis in range(min(len(shape), 2)):
                pred, label = mx.np.zeros(shape), mx.np.zeros(shape)
                pred.attach_grad()
                with mx.autograd.record():
                    value = native.kl_divergence(mx.nd, pred.as_nd_ndarray(), label.as_nd_ndarray(), axis=axis,
                                                 pred_space="logits")
                value.backward()
                assert value.shape == shape[:1] and not value.asnumpy().any(), (shape, axis, value)
                assert pred.grad.shape == shape
    """)


@pytest.mark.parametrize("label_dtype", ["float16", "float32", "float64", "uint8", "int8", "int32", "int64"])
@pytest.mark.parametrize("pred_dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape, axis", [((6, 9), 1), ((6, 100), 1), ((6, 9, 20), 1)])
def test_dtypes(pred_dtype, label_dtype, shape, axis):
    rng = np.random.RandomState(3)
    pred = (rng.randn(*shape) * 2).astype(pred_dtype)
    if label_dtype.startswith("float"):
        label = rng.rand(*shape).astype(label_dtype)
    else:
        label = (rng.rand(*shape) < 0.2).astype(label_dtype)
    options = dict(axis=axis, pred_space="logits", label_space="probs")
    value, for_pred, for_label = run(pred, label, **options)
    in_double = "float64" in (pred_dtype, label_dtype)
    assert value.dtype == ("float64" if in_double else "float32")
    np.testing.assert_allclose(value, reference(pred, label, **options), rtol=1e-12 if in_double else 2e-6)
    assert for_pred.dtype == pred_dtype and for_label.dtype == label_dtype
    wide = run(pred.astype("float64"), label.astype("float64"), **options)
    tolerance = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-11}
    scale = abs(wide[1]).max()
    np.testing.assert_allclose(for_pred, wide[1], rtol=tolerance[pred_dtype], atol=scale * tolerance[pred_dtype])
    if label_dtype in tolerance:
        np.testing.assert_allclose(for_label, wide[2], rtol=tolerance[label_dtype], atol=1e-2 * tolerance[label_dtype])


def test_dtypes_in_a_graph():
    """dtypes are unknown while a Symbol is made."""
    pred, label = mx.sym.var("pred"), mx.sym.var("label")
    graph = native.kl_divergence(mx.sym, pred, label, pred_space="logits")
    block = mx.gluon.SymbolBlock(graph, [pred, label])
    block.hybridize()
    rng = np.random.RandomState(0)
    for pair in (("float32", "float32"), ("float16", "int32"), ("float64", "float16"), ("float32", "float64")):
        arrays = [rng.rand(4, 5).astype(dtype) for dtype in pair]
        value = block(*[mx.nd.array(x, dtype=x.dtype) for x in arrays])
        expected = reference(*arrays, pred_space="logits", label_space="probs")
        np.testing.assert_allclose(value.asnumpy(), expected, rtol=1e-5)
        assert value.dtype == (np.float64 if "float64" in pair else np.float32)


@pytest.mark.parametrize("n", [10, 100, 1000, 32000, 128256])
@pytest.mark.parametrize(
    "pred_space, label_space",
    [(b, a) for b in ("logits", "log_probs") for a in SPACES if (b, a) != ("log_probs", "logits")],
)
def test_accuracy(n, pred_space, label_space):
    """At most 2e-6 of the sum of |term|."""
    rng = np.random.RandomState(n)
    rows = 20 if n < 10**4 else 3
    pred, label = [np.array(sample(rng, (rows, n), space, 1), "float32") for space in (pred_space, label_space)]
    options = dict(pred_space=pred_space, label_space=label_space, mean=False)
    got = native.kl_divergence(mx.nd, mx.nd.array(pred), mx.nd.array(label), **options).asnumpy()
    log_q, _ = log_and_prob(pred.astype("float64"), pred_space, 1, 1.0)
    log_p, p = log_and_prob(label.astype("float64"), label_space, 1, 1.0)
    terms = p * (log_p - log_q)
    error = abs(got - terms.sum(axis=1)) / abs(terms).sum(axis=1)
    print(f"{pred_space}, {label_space}, {n} categories: largest error {error.max():.1e} of the sum of |term|")
    assert error.max() < 2e-6


@pytest.mark.parametrize("n, layout", [(10, "rows"), (1000, "rows"), (128256, "rows"), (21, "strided")])
@pytest.mark.parametrize("shift, temperature", [(0.0, 1.0), (30.0, 1.0), (0.0, 0.5)])
def test_near_equal_logits_keep_their_digits(n, layout, shift, temperature):
    rng = np.random.RandomState(n)
    pred = (rng.randn(60 if n < 10**4 else 5, n) * 2).astype("float32")
    label = (pred + rng.randn(*pred.shape).astype("float32") * 1e-3 + np.float32(shift)).astype("float32")
    options = dict(pred_space="logits", label_space="logits", mean=False, inv_temperature=temperature)

    def value(b, a):
        if layout == "rows":
            return native.kl_divergence(mx.nd, mx.nd.array(b), mx.nd.array(a), **options).asnumpy()
        strided = [mx.nd.array(np.ascontiguousarray(x.T[None])) for x in (b, a)]
        return native.kl_divergence(mx.nd, *strided, axis=1, batch_axis=2, **options).asnumpy()

    log_q, _ = log_and_prob(pred.astype("float64"), "logits", 1, temperature)
    log_p, p = log_and_prob(label.astype("float64"), "logits", 1, temperature)
    u = log_p - log_q
    expected = (p * (u + np.expm1(-u))).sum(axis=1)
    error = abs(value(pred, label) - expected) / expected
    print(f"{n} categories, shift {shift}: relative error median {np.median(error):.1e}, worst {error.max():.1e}")
    assert np.median(error) < 1e-4
    assert not value(pred, pred).any()
    assert (value(pred, label) >= 0).all()


@pytest.mark.parametrize("n", [10, 1000, 128256])
@pytest.mark.parametrize("beta", [1e-3, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("pred_space, label_space",
                         [("logits", "logits"), ("logits", "probs"), ("log_probs", "log_probs")])
def test_accuracy_of_the_mixed_divergence(n, beta, pred_space, label_space):
    rng = np.random.RandomState(n)
    spaces = dict(pred_space=pred_space, label_space=label_space)
    pred, label = [np.array(sample(rng, (20 if n < 10**4 else 3, n), space, 1), "float32") for space in spaces.values()]
    arrays = [mx.nd.array(pred), mx.nd.array(label)]
    got = native.kl_divergence(mx.nd, *arrays, mean=False, beta=beta, **spaces).asnumpy()
    terms = oracle.js_terms(pred, label, beta=beta, **spaces)
    np.testing.assert_allclose(got, terms.sum(axis=1), atol=0, rtol=2e-6 * abs(terms).sum() / abs(terms.sum()))


@pytest.mark.parametrize("n", [10, 1000, 32000])
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_near_equal_logits_keep_their_digits_in_the_mixed_divergence(n, beta):
    rng = np.random.RandomState(n)
    pred = (rng.randn(20, n) * 2).astype("float32")
    label = (pred + rng.randn(*pred.shape).astype("float32") * 1e-3).astype("float32")
    options = dict(pred_space="logits", label_space="logits", mean=False, beta=beta)
    value = native.kl_divergence(mx.nd, mx.nd.array(pred), mx.nd.array(label), **options).asnumpy()
    expected = oracle.js_terms(pred, label, "logits", "logits", beta=beta).sum(axis=1)
    assert np.median(abs(value - expected) / expected) < 1e-5
    assert not native.kl_divergence(mx.nd, mx.nd.array(pred), mx.nd.array(pred), **options).asnumpy().any()


# ---- resources ---------------------------------------------------------------------------------------------------


def test_threads_change_nothing():
    code = """
        import hashlib, mxnet as mx, numpy as np, test_native as t
        from gluon_kl import native
        rng, digest = np.random.RandomState(0), hashlib.sha256()
        for shape, axis in (((90, 1000), 1), ((9000, 7), 1), ((4, 21, 48, 48), 1), ((3, 40000), 1), ((50, 5, 300), 2)):
            a = [rng.randn(*shape).astype("float32") for _ in range(2)]
            w = rng.rand(*[1 if d == axis else n for d, n in enumerate(shape)]).astype("float32")
            for x in t.run(*a, w, axis=axis, pred_space="logits", label_space="logits"):
                digest.update(x.tobytes())
        print(native.info()["threads"], digest.hexdigest())
    """
    outputs = [in_process(code, GLUON_KL_NUM_THREADS=n).split() for n in ("1", "2", "5")]
    assert [o[0] for o in outputs] == ["1", "2", "5"]
    assert len({o[1] for o in outputs}) == 1
    affinity = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    ask = "from gluon_kl import native; print(native.info()['threads'])"
    assert in_process(affinity + ask, GLUON_KL_NUM_THREADS="").strip() == "1"
    assert in_process(ask, GLUON_KL_NUM_THREADS="", OMP_NUM_THREADS="1").strip() == "1"


def test_after_fork():
    """A child gets threads of its own; the parent keeps its."""
    in_process("""
        import os, mxnet as mx, numpy as np
        from gluon_kl import native
        pred, label = mx.nd.random.normal(shape=(500, 200)), mx.nd.ones((500, 200)) / 200
        value = lambda: native.kl_divergence(mx.nd, pred, label, pred_space="logits").asnumpy()
        before = value()
        child = os.fork()
        if not child:
            os._exit(0 if np.array_equal(value(), before) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert np.array_equal(value(), before)
    """, GLUON_KL_NUM_THREADS="3")


@pytest.mark.parametrize("shape, axis", [((2000, 10000), 1), ((4, 21, 512, 512), 1)])
def test_no_temporary_of_the_size_of_pred(shape, axis):
    """Resident memory grows by the gradient alone, here that of an intermediate result."""
    output = in_process(f"""
        import resource, mxnet as mx
        from gluon_kl import native
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        pred = mx.nd.ones({shape})
        label = mx.nd.ones({shape}) / {shape[axis]}
        source = mx.nd.ones((1,))
        mx.nd.waitall()
        small = [mx.nd.ones((200, 200)) for _ in range(2)]
        native.kl_divergence(mx.nd, *small, pred_space="logits").wait_to_read()
        size = pred.size * 4 / 2**20
        start = peak()
        native.kl_divergence(mx.nd, pred, label, axis={axis}, pred_space="logits").wait_to_read()
        forward = peak() - start
        pred.attach_grad()
        mx.nd.waitall()
        pred.grad.wait_to_read()
        start = peak()
        with mx.autograd.record():
            loss = native.kl_divergence(mx.nd, pred, label, axis={axis}, pred_space="logits")
        loss.backward()
        pred.grad.wait_to_read()
        print(size, forward, peak() - start)
    """)
    size, forward, backward = map(float, output.split())
    print(f"pred {size:.0f} MiB: forward +{forward:.1f} MiB, forward and backward +{backward:.1f} MiB")
    kept = 3 / shape[axis] * size  # three numbers per row; MXNet makes a gradient of zeros for them
    assert forward < 4 and backward < 4 + 2 * kept


def test_errors():
    pred = mx.nd.ones((2, 3))
    for arguments, message in (
        (dict(label=mx.nd.ones((3, 3))), "same shape"),
        (dict(axis=2), "axis must lie in"),
        (dict(batch_axis=-3), "batch_axis must lie in"),
        (dict(row_weight=mx.nd.ones((2, 3))), "weight must have"),
        (dict(row_weight=mx.nd.ones((2,))), "weight must have"),
        (dict(pred_space="odds"), "pred_space must be"),
    ):
        options = {"label": mx.nd.ones((2, 3)), **arguments}
        with pytest.raises(mx.MXNetError, match=message):
            native.kl_divergence(mx.nd, pred, **options).wait_to_read()


# ---- absence -----------------------------------------------------------------------------------------------------


def test_turned_off():
    output = in_process("""
        import mxnet as mx
        from gluon_kl import native
        assert not native.is_available() and native.info() is None
        print(native.why_not())
        try:
            native.kl_divergence(mx.nd, mx.nd.ones((1, 2)), mx.nd.ones((1, 2)))
        except RuntimeError as error:
            print(error)
    """, GLUON_KL_NATIVE="0")
    assert output.splitlines() == ["it is turned off by GLUON_KL_NATIVE=0",
                                   "the fused operator is not available: it is turned off by GLUON_KL_NATIVE=0"]


def test_without_a_compiler(tmp_path):
    """Building goes on without the operator, and `why_not` knows why."""
    pytest.importorskip("setuptools", minversion="64")  # what pyproject.toml asks for; pip brings it along
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in ("setup.py", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(os.path.join(root, name), tmp_path)
    shutil.copytree(os.path.join(root, "gluon_kl"), tmp_path / "gluon_kl", ignore=shutil.ignore_patterns("*.so"))
    env = dict(os.environ, CC=str(tmp_path / "cc"), CXX=str(tmp_path / "cc"), PYTHONPATH=str(tmp_path))
    for command in (["setup.py", "-q", "build_ext", "--inplace"],
                    ["-W", "ignore", "-c", "from gluon_kl import native; print(native.why_not())"]):
        done = subprocess.run([sys.executable, *command], cwd=str(tmp_path), env=env, timeout=120,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("it could not be built when gluon_kl was installed: CompileError: ")


def test_unfit_python():
    code = "import sys; sys.version_info = (3, 13, 0, 'final', 0); exec(open('setup.py').read())"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    assert done.returncode != 0 and len(done.stdout.splitlines()) == 1
    assert "needs Python 3.8 to 3.11" in done.stdout and "this is Python 3.13" in done.stdout
