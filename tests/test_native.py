"""The fused operator by itself: every form, space, axis, dtype, weight and reduction against the oracle."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import zlib

import gluon_kl
from gluon_kl import native
from gluon_kl.autograd import fused_in_users_graph, prepare_for_autograd

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

import oracle
from cases import doubles, in_one_test, legacy

needs_native = pytest.mark.skipif(not native.is_available(), reason=f"no fused operator: {native.why_not()}")
pytestmark = needs_native

SPACES = ("probs", "log_probs", "logits")
FORMS = ["kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "tv"]  # between two distributions
forms = pytest.mark.parametrize("form", FORMS)
EPSILON = 1e-12


# ---- reference ---------------------------------------------------------------------------------------------------


def pair_terms(inputs, axis, *, form="kl", pred="log_probs", target="probs", temperature=1.0, beta=0.5, skew=0.5,
               hard="index", hard_weight=0.0, label_smoothing=0, **_):
    """The terms of a divergence between two distributions, and those of hard labels."""
    soft, hard_terms = 0.0, 0.0
    if "target" in inputs:
        sides = [x / temperature if space == "logits" else x
                 for x, space in ((inputs["pred"], pred), (inputs["target"], target))]
        soft = oracle.divergence_terms(*sides, pred, target, axis, form, beta, skew)
    if "hard" not in inputs:
        return soft
    hard_terms = oracle.distillation_terms(inputs["pred"], inputs["hard"], None, axis, hard_weight=1,
                                           sparse_label=hard == "index", label_smoothing=label_smoothing)
    if "target" not in inputs:
        return hard_terms
    return (1 - hard_weight) * temperature ** (1 if form == "tv" else 2) * soft + hard_weight * hard_terms


def gaussian_terms(inputs, *, spread="log_variance", free_nats=0.0, prior_mean=None, prior_log_variance=None, **_):
    return oracle.gaussian_terms(inputs["mean"], inputs["log_variance"], inputs.get("prior_mean", prior_mean),
                                 inputs.get("prior_log_variance", prior_log_variance), free_nats, spread)


def bernoulli_terms(inputs, *, pred="logits", target="probs", target_value=None, **_):
    return oracle.bernoulli_terms(inputs["pred"], inputs.get("target", target_value), pred == "probs", target)


def terms_of(inputs, axis=-1, form="kl", **options):
    with np.errstate(all="ignore"):
        if form == "gaussian":
            return gaussian_terms(inputs, **options)
        if form == "bernoulli":
            return bernoulli_terms(inputs, **options)
        return pair_terms(inputs, axis, form=form, **options)


def reference(inputs, *, axis=-1, batch_axis=0, reduction="sum", scale=1.0, counted=None, ignore_label=None, **options):
    """The result, also of complex inputs; `inputs` by name. `counted` replaces the weight for counting rows."""
    inputs = {name: oracle.wide(x) for name, x in inputs.items()}
    terms = doubles(terms_of(inputs, axis, **options)) * scale
    weight, counted = inputs.get("weight"), inputs.get("weight") if counted is None else counted
    if ignore_label is not None:
        heard = oracle.heard(inputs["hard"], terms.shape, axis, ignore_label)
        weight, counted = (heard if x is None else x * heard for x in (weight, counted))
    if weight is not None:
        with np.errstate(invalid="ignore"):
            terms = np.where(weight == 0, 0, terms * weight)
    return oracle.reduce(terms, batch_axis, reduction, axis, counted)


def slopes(f, x, directions):
    """The derivative of the scalar f at x along each direction, by a complex step: exact to rounding."""
    return np.array([f(x + 1e-30j * d).imag / 1e-30 for d in directions])


def sample(rng, shape, space, axis):
    x = rng.randn(*shape)
    if space == "logits":
        return x * 2
    log = oracle.log_softmax(x / 2, axis) if x.size else x  # no tiny probability: differences of its log are inexact
    return np.exp(log) if space == "probs" else log


def operate(inputs, head=None, grad=None, **options):
    """The operator's result and its gradients, by name, for NumPy arrays."""
    arrays = {name: legacy(x, x.dtype) for name, x in inputs.items()}
    grad = [name for name in inputs if name != "hard"] if grad is None else grad
    for name in grad:
        arrays[name].attach_grad()
    with autograd.record():
        value = native.fused(mx.nd, arrays, grad, **options)
    if grad:
        value.backward(None if head is None else mx.nd.array(head, dtype=value.dtype))
    return value.asnumpy(), {name: arrays[name].grad.asnumpy() for name in grad}


def run(pred, label, weight=None, head=None, /, **options):
    """The operator's value and its gradients (pred, target, weight) as NumPy arrays."""
    inputs = {"pred": pred, "target": label}
    if weight is not None:
        inputs["weight"] = weight
    value, gradients = operate(inputs, head, **options)
    return [value, *gradients.values()]


ALL = ("pred", "target", "weight")


def divergence(F, pred, label, weight=None, /, grad=("pred",), **options):
    """The operator on arrays or Symbols."""
    return native.fused(F, {"pred": pred, "target": label, "weight": weight}, grad, **options)


def check(inputs, rng, grad=None, rtol=1e-11, **options):
    """Compare the result and every gradient, in float64, with the reference and its slopes."""
    expected = reference(inputs, **options)
    head = rng.randn(*expected.shape)
    value, gradients = operate(inputs, head, grad, **options)
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-13)
    for name, got in gradients.items():
        counted = inputs.get("weight")  # that a row does not count is no slope of its weight

        def total(moved, name=name):
            return (reference({**inputs, name: moved}, counted=counted, **options) * head).sum()

        x = np.asarray(inputs[name], "float64")
        directions = rng.randn(2, *x.shape)  # each sees every element
        if name == "weight":  # the reference cuts a weight of exactly 0 off
            directions[:, x == 0] = 0
        expected = slopes(total, x, directions)
        np.testing.assert_allclose([(got * d).sum() for d in directions], expected, rtol=1e-10,
                                   atol=1e-12 * max(1, abs(expected).max()), err_msg=name)


LAYOUTS = [
    # shape, axis, batch axis
    ((5, 7), -1, 0),
    ((3, 70), 1, 0),
    ((4, 3, 5), 1, 0),
    ((4, 3, 5), 2, 1),
    ((4, 3, 5), -3, -1),
    ((2, 3, 4, 6), 1, 0),
    ((2, 3, 4, 60), -1, 2),
    ((2, 3, 66), 1, 0),
    ((3, 1), 1, 0),
    ((1, 1), 1, 0),
    ((4, 5), 0, 0),
    ((4, 5), 1, 1),
    ((3, 4, 2), 1, 1),
    ((6,), 0, 0),
    ((6,), -1, -1),
]
REDUCTIONS = ("sum", "mean", "none", "row_mean", "row")


def seeded(*what):
    return np.random.RandomState(zlib.crc32(repr(what).encode()))


def weights(rng, shape, kind, axis):
    """No weight, one weight per row, or weights of any shape that broadcasts. Some are 0, and so is a whole row."""
    if kind == "none":
        return {}
    fixed = [d == axis % len(shape) for d in range(len(shape))] if kind == "rows" else [rng.rand() < 0.3 for _ in shape]
    weight = rng.rand(*[1 if one else n for one, n in zip(fixed, shape)]) + 0.5
    weight[rng.rand(*weight.shape) < 0.2] = 0
    weight.flat[0] = 0
    return {"weight": weight}


@in_one_test("shape, axis, batch_axis", LAYOUTS)
@pytest.mark.parametrize("pred, target", list(itertools.product(SPACES, SPACES)))
@forms
def test_pairs(form, shape, axis, batch_axis, pred, target):
    rng = seeded(form, shape, axis, batch_axis, pred, target)
    if form == "tv" and shape[axis] == 1:
        return  # both sides are 1, where it has a kink
    for reduction, kind in (("mean", "none"), ("sum", "rows"), ("none", "none"), ("row_mean", "rows"),
                            ("row_mean", "any"), ("none", "any"), ("sum", "any"), ("row", "rows"), ("row", "any")):
        inputs = {"pred": sample(rng, shape, pred, axis), "target": sample(rng, shape, target, axis),
                  **weights(rng, shape, kind, axis)}
        check(inputs, rng, form=form, axis=axis, batch_axis=batch_axis, pred=pred, target=target, reduction=reduction,
              scale=rng.rand() + 0.5, temperature=rng.choice([1.0, 2.0]), beta=rng.choice([0.5, 0.1, 0.97]),
              skew=rng.choice([0.5, 0.1, 0.97]), keep=int(rng.rand() < 0.7))


@in_one_test("shape, axis, batch_axis", [c for c in LAYOUTS if c[1] % len(c[0]) != c[2] % len(c[0])])
@pytest.mark.parametrize("target", [None, *SPACES])
@forms
def test_hard_labels(form, target, shape, axis, batch_axis):
    """Hard labels with a teacher, and alone."""
    if target is None and form != "kl":
        return  # there is no divergence, and so no other call
    rng = seeded(form, target, shape, axis, batch_axis)
    n = shape[axis]
    without = tuple(m for d, m in enumerate(shape) if d != axis % len(shape))
    others = seeded("of indices", form, target, shape, axis, batch_axis)
    labels = ("index", "kept", "dense"), ("none", "rows", "any")
    calls = [*itertools.product(*labels, ("row_mean", "sum")), *itertools.product(*labels, ("row",))]
    for hard, kind, reduction in calls:
        y = rng.rand(*shape) if hard == "dense" else rng.randint(0, n, size=without).astype("float64")
        of_indices = {}
        if hard == "kept":
            y = np.expand_dims(y, axis)
            of_indices = dict(ignore_label=-100.0, label_smoothing=others.choice([0.0, 0.2]))
            y[others.rand(*y.shape) < 0.3] = -100
        inputs = {"pred": sample(rng, shape, "logits", axis)}
        if target:
            inputs["target"] = sample(rng, shape, target, axis)
        inputs = {**inputs, "hard": y, **weights(rng, shape, kind, axis)}
        options = dict(temperature=rng.choice([1.0, 3.0]), hard_weight=rng.choice([0.0, 0.3, 1.0])) if target else {}
        options.update(of_indices)
        learned = ("pred", "hard", "weight") if hard == "dense" else ("pred", "weight")
        check(inputs, rng, [name for name in learned if name in inputs], form=form, pred="logits",
              target=target or "probs", axis=axis, batch_axis=batch_axis, reduction=reduction,
              hard="dense" if hard == "dense" else "index", keep=int(rng.rand() < 0.7), **options)


ELEMENTWISE = [((5, 7), 0), ((3, 70), 0), ((4, 3, 5), 1), ((4, 3, 5), -1), ((6,), 0), ((5, 1), 0), ((3, 70), 1),
               ((2, 3, 66), 0)]


@in_one_test("shape, batch_axis", ELEMENTWISE)
@pytest.mark.parametrize("priors", ["none", "numbers", "mean", "both"])
@pytest.mark.parametrize("spread", ["log_variance", "std"])
def test_gaussian(shape, batch_axis, priors, spread):
    rng = seeded(shape, batch_axis, priors, spread)

    def spreads():
        return np.exp(rng.randn(*shape) / 2) if spread == "std" else rng.randn(*shape)

    for reduction, kind in itertools.product(("sum", "mean", "none"), ("none", "rows", "any")):
        inputs = {"mean": rng.randn(*shape), "log_variance": spreads()}
        prior = 0.7 if spread == "std" else -0.7
        options = dict(prior_mean=0.3, prior_log_variance=prior) if priors == "numbers" else {}
        if priors in ("mean", "both"):
            inputs["prior_mean"] = rng.randn(*shape)
        if priors == "both":
            inputs["prior_log_variance"] = spreads()
        inputs.update(weights(rng, shape, kind, batch_axis))
        for free_nats in (0.0, 0.2):
            check(inputs, rng, form="gaussian", batch_axis=batch_axis, reduction=reduction, spread=spread,
                  free_nats=free_nats, **options)


@in_one_test("shape, batch_axis", ELEMENTWISE)
@pytest.mark.parametrize("pred, target", list(itertools.product(("probs", "logits"), repeat=2)))
def test_bernoulli(shape, batch_axis, pred, target):
    rng = seeded(shape, batch_axis, pred, target)

    def side(space):
        return rng.rand(*shape) * 0.9 + 0.05 if space == "probs" else rng.randn(*shape) * 3

    for reduction, kind in itertools.product(("sum", "mean", "none"), ("none", "rows", "any")):
        inputs = {"pred": side(pred), "target": side(target), **weights(rng, shape, kind, batch_axis)}
        options = dict(form="bernoulli", batch_axis=batch_axis, reduction=reduction, pred=pred, target=target)
        check(inputs, rng, rtol=1e-10, **options)
        if target == "probs":
            del inputs["target"]
            check(inputs, rng, rtol=1e-10, target_value=0.05, **options)


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
    ("probs", "probs", [0.0, 1.0], [0.5, 0.5], INF, [0, -0.5], None),
    ("probs", "logits", [0.0, 1.0], [-INF, 3.0], 0.0, [0, -1], [0, 0]),
]


PATHS = [(dtype, layout) for dtype in ("float32", "float64") for layout in ("short", "long", "middle")]


@pytest.mark.parametrize("dtype, layout", PATHS)
def test_edges(dtype, layout):
    check_edges(dtype, layout)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_edges_on_lesser_processors(in_child, isa):
    in_child(f"""
        import test_native as t
        assert t.native.info()["isa"] in ({isa!r}, "baseline")
        for path in t.PATHS:
            t.check_edges(*path)
    """, GLUON_KL_ISA=isa)


def check_edges(dtype, layout):
    """Every code path: tiles of short rows, long rows (padded with categories without effect), strided rows."""
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
        options = dict(axis=axis, pred=pred_space, target=label_space)
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


# ---- gradients under "add" and with many uses: what the extension interface gets wrong unguarded -------------------


class Many(mx.gluon.HybridBlock):
    """The sum of n divergences of one pred and one label, as inputs of the graph or as results of an operator."""

    def __init__(self, n, intermediate, spaces):
        super().__init__()
        self.n, self.intermediate, self.spaces = n, intermediate, spaces

    def hybrid_forward(self, F, pred, label, weight):
        if self.intermediate:
            pred, label, weight = pred * 1.5, label * 1.5, weight * 1.5
        pred_space, label_space = self.spaces
        options = dict(pred=pred_space, target=label_space)
        if F is mx.sym:
            given = {"pred": pred, "target": label, "weight": weight}
            return sum(fused_in_users_graph(mx.sym, given, scale=1.0 + i // 2, **options) for i in range(self.n))
        arrays = [prepare_for_autograd((pred, label, weight), (None,) * 3)[1] for _ in range(self.n)]
        return sum(divergence(F, *arrays[i], grad=ALL, scale=1.0 + i // 2, **options) for i in range(self.n))


def check_many(static, uses=(1, 2, 7, 8, 9, 10, 20)):
    rng = np.random.RandomState(0)
    spaces = ("logits", "log_probs")
    arrays = [rng.randn(4, 5), oracle.log_softmax(rng.randn(4, 5), 1) / 1.5, rng.rand(4, 1) + 0.5]
    for intermediate in (False, True):
        once = run(*[x * (1.5 if intermediate else 1.0) for x in arrays], pred=spaces[0], target=spaces[1])
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
def test_gradients_add_up(in_child, static):
    in_child(f"import test_native as t; t.check_many({static})")


def test_two_live_losses_share_a_label():
    """Backward of one does not damage the other's graph (MXNet's own operators fail here)."""
    for shape in ((4, 5), (400, 100)):
        pred, label = mx.nd.random.normal(shape=shape), mx.nd.ones(shape) / shape[1]
        pred.attach_grad()
        for _ in range(3):
            with autograd.record():
                first = divergence(mx.nd, *prepare_for_autograd((pred, label), (None, None))[1], pred="logits")
                second = divergence(mx.nd, *prepare_for_autograd((pred, label), (None, None))[1], pred="logits")
            first.backward()
            once = pred.grad.asnumpy()
            second.backward()
            np.testing.assert_array_equal(pred.grad.asnumpy(), once)


@pytest.mark.parametrize("shape", [(4, 5), (400, 100)], ids=["small", "large"])
def test_label_in_the_graph(shape):
    """A label that recorded operators computed gets its gradient, also if autograd does not follow pred."""
    teacher = mx.nd.random.normal(shape=shape)
    student = mx.nd.random.normal(shape=shape)
    gradients = {}
    for followed in ((teacher,), (student,), (teacher, student)):
        for x in (teacher, student):
            x.attach_grad("write" if any(x is y for y in followed) else "null")
        for _ in range(3):
            with autograd.record():
                loss = divergence(mx.nd, student * 2, teacher * 2, grad=("pred", "target"), pred="logits",
                                  target="logits")
            loss.backward()
        for name, x in (("teacher", teacher), ("student", student)):
            if any(x is y for y in followed):
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
    options = dict(axis=axis, batch_axis=1 - axis, pred="logits", target="probs")
    got = run(pred, label, **options)
    expected = reference({"pred": pred, "target": label}, **options)
    np.testing.assert_allclose(got[0], expected, rtol=4e-6, atol=1e-7)
    mass = label.astype("float64").sum(axis=axis, keepdims=True)
    closed = np.exp(oracle.log_softmax(pred.astype("float64"), axis)) * mass - label
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
    """Rows that are read in place, rows that are not, and the remainders that fill no vector."""
    rng = np.random.RandomState(shape[1])
    pred = rng.randn(*shape).astype("float32")
    label = np.exp(oracle.log_softmax(rng.randn(*shape), 1)).astype(label_type)
    options = dict(axis=1, pred="logits", target="probs")
    value, to_pred, to_label = run(pred, label, **options)
    np.testing.assert_allclose(value, reference({"pred": pred, "target": label}, **options), rtol=4e-6)
    log_q, p = oracle.log_softmax(pred.astype("float64"), 1), label.astype("float64")
    np.testing.assert_allclose(to_pred, np.exp(log_q) * p.sum(axis=1, keepdims=True) - p, rtol=1e-5, atol=1e-6)
    tolerance = 1e-5 if label_type == "float32" else 1e-2
    np.testing.assert_allclose(to_label, np.log(p) - log_q + 1, rtol=tolerance, atol=tolerance)


def test_empty(in_child):
    """In a separate process, because arrays of size 0 need MXNet's NumPy shape semantics, which are global."""
    in_child("""
        import mxnet as mx
        from gluon_kl import native
        from test_native import divergence
        mx.npx.set_np()
        for shape in ((0, 3), (3, 0), (2, 3, 0), (0, 2, 3), (2, 0, 3), (0,)):
            for axis in range(min(len(shape), 2)):
                pred, label = mx.np.zeros(shape), mx.np.zeros(shape)
                pred.attach_grad()
                with mx.autograd.record():
                    value = divergence(mx.nd, pred.as_nd_ndarray(), label.as_nd_ndarray(), axis=axis,
                                                 pred="logits")
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
    options = dict(axis=axis, pred="logits", target="probs")
    value, for_pred, for_label = run(pred, label, **options)
    in_double = "float64" in (pred_dtype, label_dtype)
    assert value.dtype == ("float64" if in_double else "float32")
    expected = reference({"pred": pred, "target": label}, **options)
    np.testing.assert_allclose(value, expected, rtol=1e-12 if in_double else 2e-6)
    assert for_pred.dtype == pred_dtype and for_label.dtype == label_dtype
    wide = run(pred.astype("float64"), label.astype("float64"), **options)
    tolerance = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-11}
    scale = abs(wide[1]).max()
    np.testing.assert_allclose(for_pred, wide[1], rtol=tolerance[pred_dtype], atol=scale * tolerance[pred_dtype])
    if label_dtype in tolerance:
        np.testing.assert_allclose(for_label, wide[2], rtol=tolerance[label_dtype], atol=1e-2 * tolerance[label_dtype])


def test_dtypes_in_a_graph():
    """The operator works although dtypes are unknown while a Symbol is made."""
    pred, label = mx.sym.var("pred"), mx.sym.var("label")
    graph = divergence(mx.sym, pred, label, pred="logits")
    block = mx.gluon.SymbolBlock(graph, [pred, label])
    block.hybridize()
    rng = np.random.RandomState(0)
    for pair in (("float32", "float32"), ("float16", "int32"), ("float64", "float16"), ("float32", "float64")):
        arrays = [rng.rand(4, 5).astype(dtype) for dtype in pair]
        value = block(*[mx.nd.array(x, dtype=x.dtype) for x in arrays])
        expected = reference(dict(zip(("pred", "target"), arrays)), pred="logits")
        np.testing.assert_allclose(value.asnumpy(), expected, rtol=1e-5)
        assert value.dtype == (np.float64 if "float64" in pair else np.float32)


@pytest.mark.parametrize("n", [10, 100, 1000, 32000, 128256])
@pytest.mark.parametrize(
    "pred_space, label_space",
    [(b, a) for b in ("logits", "log_probs") for a in SPACES if (b, a) != ("log_probs", "logits")],
)
def test_accuracy(n, pred_space, label_space):
    """The error is at most 2e-6 of the sum of |term|."""
    rng = np.random.RandomState(n)
    rows = 20 if n < 10**4 else 3
    pred, label = [np.array(sample(rng, (rows, n), space, 1), "float32") for space in (pred_space, label_space)]
    options = dict(pred=pred_space, target=label_space)
    got = divergence(mx.nd, mx.nd.array(pred), mx.nd.array(label), **options).asnumpy()
    log_q, log_p = oracle.log_of(pred, pred_space, 1), oracle.log_of(label, label_space, 1)
    p = oracle.probability_of(label, label_space, 1)
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
    options = dict(pred="logits", target="logits", temperature=1 / temperature)

    def value(b, a):
        if layout == "rows":
            return divergence(mx.nd, mx.nd.array(b), mx.nd.array(a), **options).asnumpy()
        strided = [mx.nd.array(np.ascontiguousarray(x.T[None])) for x in (b, a)]
        return divergence(mx.nd, *strided, axis=1, batch_axis=2, **options).asnumpy()

    log_q, log_p = (oracle.log_softmax(x.astype("float64") * temperature, 1) for x in (pred, label))
    p = np.exp(log_p)
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
    spaces = dict(pred=pred_space, target=label_space)
    pred, label = [np.array(sample(rng, (20 if n < 10**4 else 3, n), space, 1), "float32") for space in spaces.values()]
    arrays = [mx.nd.array(pred), mx.nd.array(label)]
    got = divergence(mx.nd, *arrays, form="js", beta=beta, **spaces).asnumpy()
    terms = oracle.js_terms(pred, label, pred_space, label_space, beta=beta)
    np.testing.assert_allclose(got, terms.sum(axis=1), atol=0, rtol=2e-6 * abs(terms).sum() / abs(terms.sum()))


@pytest.mark.parametrize("n", [10, 1000, 32000])
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_near_equal_logits_keep_their_digits_in_the_mixed_divergence(n, beta):
    rng = np.random.RandomState(n)
    pred = (rng.randn(20, n) * 2).astype("float32")
    label = (pred + rng.randn(*pred.shape).astype("float32") * 1e-3).astype("float32")
    options = dict(form="js", pred="logits", target="logits", beta=beta)
    value = divergence(mx.nd, mx.nd.array(pred), mx.nd.array(label), **options).asnumpy()
    expected = oracle.js_terms(pred, label, "logits", "logits", beta=beta).sum(axis=1)
    assert np.median(abs(value - expected) / expected) < 1e-5
    assert not divergence(mx.nd, mx.nd.array(pred), mx.nd.array(pred), **options).asnumpy().any()


@forms
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_probabilities_of_zero(form, dtype):
    """A probability of 0 on both sides gives no NaN and no infinite gradient; in the reverse form the target gets 0."""
    pred, target = np.array([[0.0, 0.5, 0.5]], dtype), np.array([[0.0, 0.25, 0.75]], dtype)
    value, to_pred, to_target = run(pred, target, form=form, pred="probs", epsilon=1e-12)
    assert np.isfinite(value).all() and np.isfinite(to_pred).all() and np.isfinite(to_target).all()
    assert to_pred[0, 0] == 0
    value, to_pred, to_target = run(pred + np.array([[0.5, 0, 0]], dtype), target, form=form, pred="probs")
    assert np.isfinite(value).all() == (form != "reverse_kl") and not np.isnan(to_pred).any()
    if form == "reverse_kl":
        assert to_target[0, 0] == 0


@pytest.mark.parametrize("index", [-1, 3, 1.5, 1e30, np.nan])
@pytest.mark.parametrize("n", [3, 1000])
def test_no_such_class(index, n):
    """The row's loss and gradient are NaN, unless its weight is 0."""
    rng = np.random.RandomState(0)
    pred, index = rng.randn(3, n).astype("float32"), np.array([1, n if index == 3 else index, 2], "float32")
    for teacher in ({}, {"target": rng.randn(3, n).astype("float32")}):
        options = dict(pred="logits", target="logits", hard_weight=0.5, temperature=2.0)
        value, gradients = operate({"pred": pred, **teacher, "hard": index}, grad=["pred"], **options)
        for x in (value, gradients["pred"]):
            assert np.isnan(x[1]).all() and np.isfinite(x[[0, 2]]).all()
        weight = np.array([[1], [0], [1]], "float32")
        value, gradients = operate({"pred": pred, **teacher, "hard": index, "weight": weight}, grad=["pred"], **options)
        assert value[1] == 0 and not gradients["pred"][1].any() and np.isfinite(value).all()


@pytest.mark.parametrize("n", [3, 1100])
@pytest.mark.parametrize("target", [False, True])
def test_gradient_to_dense_labels(n, target):
    """The share times -log q, finite at a label of 0; at a masked logit it is 0 if the label is 0, else infinite."""
    pred, y = np.zeros((4, n)), np.zeros((4, n))
    pred[0, 0] = pred[1, 1] = pred[2, 0] = -np.inf
    y[0, 1] = y[1, 1] = y[3, 2] = 1
    inputs = {"pred": pred, **({"target": pred[:, ::-1].copy()} if target else {}), "hard": y,
              "weight": np.array([[1.0], [1.0], [0.0], [2.0]])}
    options = {"target": "logits", "hard_weight": 0.25} if target else {}
    to_hard = operate(inputs, grad=["hard"], pred="logits", hard="dense", **options)[1]["hard"]
    expected = np.tile((0.25 if target else 1) * np.log([[n - 1.0], [n - 1.0], [1.0], [n * 1.0]]), (1, n))
    expected[0, 0], expected[1, 1], expected[3] = 0, np.inf, 2 * expected[3]
    np.testing.assert_allclose(to_hard, expected, rtol=1e-14)


@pytest.mark.parametrize("n", [0, 1100])
def test_masked_class(n):
    pred = np.concatenate([[[-INF, 0.0, 1.0]], np.full((1, n), -INF)], axis=1).astype("float32")
    value, gradients = operate({"pred": pred, "hard": np.zeros(1, "float32")}, grad=["pred"], pred="logits")
    assert value[0] == INF
    np.testing.assert_allclose(gradients["pred"][0, :3], [-1, 1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-6)
    assert not gradients["pred"][0, 3:].any()


def test_no_weight_whatever_is_there():
    """A row of weight 0 has no effect; a single element of weight 0 adds no term."""
    for n in (4, 300):
        pred, target = np.zeros((3, n)), np.full((3, n), 1 / n)
        pred[1, 2] = np.nan
        weight = np.ones((3, n))
        weight[1] = 0
        value, to_pred, to_target, to_weight = run(pred, target, weight, pred="logits")
        assert value[1] == 0 and not to_pred[1].any() and not to_target[1].any() and np.isfinite(to_weight).all()
        log_q = oracle.log_softmax(np.zeros((3, n)), 1)
        log_q[1, 2] = -INF
        weight = np.ones((3, n))
        weight[1, 2] = 0
        value, *gradients = run(log_q, target, weight)
        assert np.isfinite(value).all() and all(np.isfinite(x).all() for x in gradients)


def test_gaussian_of_extremes():
    edges = [  # mean, log-variance, prior's log-variance, value
        (0, -3e38, 0, 1.5e38), (0, 88, 0, np.exp(88.0) / 2), (0, 89.25, 0, np.exp(89.25) / 2),
        (1e-30, 0, -170, 0.5e-60 * np.exp(170.0) + np.exp(170) / 2),
        (0, -3e38, 3e38, 3e38), (0, 0, 0, 0), (1e18, 0, 0, 0.5e36), (0, 1e-4, 0, 2.5000833e-9), (0, -400, -400, 0)]
    for n in (1, 100):
        for mean, spread, prior, value in edges:
            x = [np.full((1, n), v, "float32") for v in (mean, spread, prior)]
            inputs = dict(zip(("mean", "log_variance", "prior_log_variance"), x))
            got, gradients = operate(inputs, form="gaussian", reduction="none")
            expected = np.float32(value) if value < 3.4e38 else INF
            np.testing.assert_allclose(got, np.full((1, n), expected), rtol=4e-7, err_msg=str((mean, spread, prior)))
            assert not any(np.isnan(g).any() for g in gradients.values())


def test_gaussians_of_nearly_the_same_spread():
    """If standard deviations differ by a thousandth or less, the value and its gradient keep their leading digits."""
    rng = np.random.RandomState(0)
    for off in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        prior = np.exp(rng.randn(4, 100)).astype("float32")
        own = (prior * (1 + off * rng.randn(4, 100))).astype("float32")
        zero = np.zeros_like(own)
        inputs = {"mean": zero, "log_variance": own, "prior_mean": zero, "prior_log_variance": prior}
        value, gradients = operate(inputs, form="gaussian", spread="std", reduction="none")
        s, p = own.astype(np.longdouble), prior.astype(np.longdouble)
        x = (s - p) / p
        np.testing.assert_allclose(value, (x + x * x / 2 - np.log1p(x)).astype("float64"), rtol=1e-5)
        slope = (x * (2 + x) / s).astype("float64")
        np.testing.assert_allclose(gradients["log_variance"], slope, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 10), (6, 300)])
@pytest.mark.parametrize("form", ["kl", "reverse_kl", "js"])
def test_scores_far_from_zero(form, shape):
    """A common shift of one side's logits costs no digits, although the difference of the maxima is no float."""
    rng = np.random.RandomState(0)
    pred = rng.randn(*shape).astype("float32")
    for shift in (1000.1, -12345.6, 1e5):
        label = (pred + 1e-2 * rng.randn(*shape) + shift).astype("float32")
        label[:3] += rng.randn(3, shape[1]).astype("float32")
        options = dict(form=form, pred="logits", target="logits")
        inputs = {"pred": pred.astype(np.longdouble), "target": label.astype(np.longdouble) - np.longdouble(shift)}
        q, p = (x - x.max(axis=1, keepdims=True) for x in inputs.values())
        q, p = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (q, p))
        m = np.log((np.exp(p) + np.exp(q)) / 2)
        expected = {"kl": np.exp(p) * (p - q), "reverse_kl": np.exp(q) * (q - p),
                    "js": (np.exp(p) * (p - m) + np.exp(q) * (q - m)) / 2}[form].sum(axis=1).astype("float64")
        np.testing.assert_allclose(run(pred, label, **options)[0], expected, rtol=2e-5)


def test_bernoulli_of_extremes():
    edges = [  # pred, target (scores), value
        (INF, INF, 0), (-INF, -INF, 0), (100, INF, np.exp(-100.0)), (-100, INF, 100), (INF, 0, INF), (-INF, 0, INF),
        (100, 100, 0), (-3, -3, 0), (3, 3.0001, None), (-80, -80.001, None), (80, 2, None)]
    for pred, target, value in edges:
        x = [np.full((1, 40), v, "float32") for v in (pred, target)]
        got, to_pred, to_target = run(*x, form="bernoulli", target="logits", reduction="none")
        assert (got >= 0).all() and not np.isnan(to_pred).any() and not np.isnan(to_target).any()
        if value is not None:
            np.testing.assert_allclose(got, np.full((1, 40), value), rtol=1e-6, atol=1e-44)
    for label in (0.0, 1.0):
        x = [np.full((1, 40), v, "float32") for v in (0.25, label)]
        got, to_pred, _ = run(*x, form="bernoulli", pred="probs", reduction="none")
        np.testing.assert_allclose(got, -np.log(0.25 if label else 0.75), rtol=1e-6)
        np.testing.assert_allclose(to_pred, -4.0 if label else 1 / 0.75, rtol=1e-6)


@pytest.mark.parametrize("name", ["epsilon", "scale", "beta"])
def test_numbers_are_read_alike_everywhere(in_child, name):
    """Also the smallest numbers, and also in a locale with a decimal comma if the system has one."""
    in_child(f"""
        import locale, mxnet as mx, numpy as np
        from gluon_kl import native
        x = [mx.nd.array([[0.5, 0.25]], dtype="float64"), mx.nd.array([[0.25, 0.75]], dtype="float64")]
        def value(text):
            inputs = dict(zip(("pred", "target"), x))
            return native.fused(mx.nd, inputs, [], form="js", pred="probs", **{{{name!r}: text}})
        assert np.isfinite(value(1e-310).asnumpy()).all()
        before = value(0.3).asscalar()
        for name in ("de_DE.UTF-8", "de_DE", "fr_FR.UTF-8"):
            try:
                locale.setlocale(locale.LC_ALL, name)
            except locale.Error:
                continue
            assert value("0.3").asscalar() == value(0.3).asscalar() == before
            native.fused(mx.nd, dict(zip(("pred", "target"), x)), [], scale=0.3000000001)
    """)


def test_shapes_are_inferred_both_ways():
    """One at a time: with two unknown inputs, MXNet 1.9 writes beyond a buffer before it asks the operator."""
    pred, target, hard = mx.sym.var("pred"), mx.sym.var("target"), mx.sym.var("hard")
    graph = native.fused(mx.sym, {"pred": pred, "target": target}, ["pred"], pred="logits")
    for known in ({"pred": (4, 5)}, {"target": (4, 5)}, {"pred": (4, 0), "target": (0, 5)}):
        shapes, results, _ = graph.infer_shape(**known)
        assert dict(zip(graph.list_arguments(), shapes)) == {"pred": (4, 5), "target": (4, 5)}
        assert results[0] == (4,)
    graph.simple_bind(mx.cpu(), pred=(4, 5)).forward()
    graph = native.fused(mx.sym, {"pred": pred, "target": target, "hard": hard}, ["pred"], pred="logits")
    shapes, _, _ = graph.infer_shape(pred=(4, 5), target=(4, 5))
    assert shapes == [(4, 5), (4, 5), (1, 4)]  # as a graph of the user's gives class indices


def test_types_that_nobody_says():
    """An unknown dtype is that of pred if pred is a float; the result is in float64 if an input is."""
    graph = native.fused(mx.sym, {"pred": mx.sym.var("pred"), "target": mx.sym.var("target")}, ["pred"])
    for dtype, result in (("float16", "float32"), ("float32", "float32"), ("float64", "float64")):
        types, results, _ = graph.infer_type(pred=dtype)
        assert types == [np.dtype(dtype)] * 2 and results[0] == np.dtype(result)
    assert graph.infer_type(pred="float32", target="float64")[1][0] == np.float64


# ---- resources ---------------------------------------------------------------------------------------------------


def test_threads_change_nothing(in_child):
    code = """
        import hashlib, mxnet as mx, numpy as np, test_native as t
        from gluon_kl import native
        from test_native import divergence
        rng, digest = np.random.RandomState(0), hashlib.sha256()
        for shape, axis in (((90, 1000), 1), ((9000, 7), 1), ((4, 21, 48, 48), 1), ((3, 40000), 1), ((50, 5, 300), 2)):
            a = [rng.randn(*shape).astype("float32") for _ in range(2)]
            w = rng.rand(*[1 if d == axis else n for d, n in enumerate(shape)]).astype("float32")
            for x in t.run(*a, w, axis=axis, pred="logits", target="logits"):
                digest.update(x.tobytes())
        print(native.info()["threads"], digest.hexdigest())
    """
    outputs = [in_child(code, GLUON_KL_NUM_THREADS=n).split() for n in ("1", "2", "5")]
    assert [o[0] for o in outputs] == ["1", "2", "5"]
    assert len({o[1] for o in outputs}) == 1
    affinity = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    ask = "from gluon_kl import native; print(native.info()['threads'])"
    assert in_child(affinity + ask, GLUON_KL_NUM_THREADS="").strip() == "1"
    assert in_child(ask, GLUON_KL_NUM_THREADS="", OMP_NUM_THREADS="1").strip() == "1"


def test_after_fork(in_child):
    """A child gets its own threads; the parent keeps its threads."""
    in_child("""
        import os, mxnet as mx, numpy as np
        from gluon_kl import native
        from test_native import divergence
        pred, label = mx.nd.random.normal(shape=(500, 200)), mx.nd.ones((500, 200)) / 200
        value = lambda: divergence(mx.nd, pred, label, pred="logits").asnumpy()
        threads = lambda: len(os.listdir("/proc/self/task"))
        before = value()
        child = os.fork()
        if not child:
            divergence(mx.nd, pred[:2], label[:2], pred="logits").asnumpy()  # MXNet's own threads, and one of ours
            others = threads()
            same = np.array_equal(value(), before)
            os._exit(0 if same and threads() == others + 2 else 1)
        assert os.waitpid(child, 0)[1] == 0
        divergence(mx.nd, pred[:2], label[:2], pred="logits").asnumpy()
        others = threads()
        assert np.array_equal(value(), before) and threads() == others
    """, GLUON_KL_NUM_THREADS="3")


@pytest.mark.parametrize("shape, axis", [((2000, 10000), 1), ((4, 21, 512, 512), 1)])
def test_no_temporary_of_the_size_of_pred(in_child, shape, axis):
    """Resident memory grows only by the gradient, here that of an intermediate result."""
    output = in_child(f"""
        import resource, mxnet as mx
        from gluon_kl import native
        from test_native import divergence
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        pred = mx.nd.ones({shape})
        label = mx.nd.ones({shape}) / {shape[axis]}
        source = mx.nd.ones((1,))
        mx.nd.waitall()
        small = [mx.nd.ones((200, 200)) for _ in range(2)]
        divergence(mx.nd, *small, pred="logits").wait_to_read()
        size = pred.size * 4 / 2**20
        start = peak()
        divergence(mx.nd, pred, label, axis={axis}, pred="logits").wait_to_read()
        forward = peak() - start
        pred.attach_grad()
        mx.nd.waitall()
        pred.grad.wait_to_read()
        start = peak()
        with mx.autograd.record():
            loss = divergence(mx.nd, pred, label, axis={axis}, pred="logits")
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
        (dict(axis=2), "axis must lie in"),
        (dict(batch_axis=-3), "batch_axis must lie in"),
        (dict(pred="odds"), "pred must be one of"),
        (dict(form="hellinger"), "form must be one of bernoulli, gaussian, js"),
        (dict(beta=1.0), "beta must lie between"),
        (dict(beta="inf", form="js"), "beta must be a finite number"),
        (dict(axis="1e99"), "axis must be a whole number"),
        (dict(gamma=1), "there is no `gamma`"),
    ):
        with pytest.raises(mx.MXNetError, match=message):
            divergence(mx.nd, pred, mx.nd.ones((2, 3)), **arguments).wait_to_read()
    for name, shape, message in (("target", (3, 3), "same shape"), ("weight", (2, 4), "weight must have"),
                                 ("weight", (2,), "weight must have"), ("hard", (3,), "hard must have")):
        inputs = {"pred": pred, "target": pred, name: mx.nd.ones(shape)}
        with pytest.raises(mx.MXNetError, match=message):
            native.fused(mx.nd, inputs, (), pred="logits").wait_to_read()
    for space in ("probs", "log_probs"):
        for teacher in ({}, {"target": pred}):
            inputs = {"pred": pred, **teacher, "hard": mx.nd.ones((2,))}
            with pytest.raises(mx.MXNetError, match="pred must be logits where hard is among the inputs"):
                native.fused(mx.nd, inputs, (), pred=space).wait_to_read()


def test_an_error_is_forgotten():
    """MXNet quotes all messages that a library holds: of a thousand errors, the last would quote a thousand."""
    said = []
    for axis in (2, 3, 2):
        with pytest.raises(mx.MXNetError) as error:
            divergence(mx.nd, mx.nd.ones((2, 3)), mx.nd.ones((2, 3)), axis=axis).wait_to_read()
        said.append(re.sub(r"\[\d\d:\d\d:\d\d\]", "", str(error.value)))
    assert said[0] == said[2] and said[0].count("gluon_kl: ") == 1


# ---- absence -----------------------------------------------------------------------------------------------------


def test_turned_off(in_subprocess):
    output = in_subprocess("""
        import mxnet as mx
        from gluon_kl import native
        from test_native import divergence
        assert not native.is_available() and native.info() is None
        print(native.why_not())
        try:
            divergence(mx.nd, mx.nd.ones((1, 2)), mx.nd.ones((1, 2)))
        except RuntimeError as error:
            print(error)
    """, GLUON_KL_NATIVE="0")
    assert output.splitlines() == ["it is turned off by GLUON_KL_NATIVE=0",
                                   "the fused operator is not available: it is turned off by GLUON_KL_NATIVE=0"]


def test_without_a_compiler(tmp_path):
    """The build continues without the operator, and `why_not` says why."""
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


@needs_native
def test_library_of_another_release(in_child):
    """An operator of an older build is refused, because it would compute other things without a warning."""
    assert in_child("""
        import gluon_kl.native as native
        native.__version__ = "0.0"
        for registered in (True, False):  # by the import above, and as in a new process
            native._load.cache_clear()
            if not registered:
                native._handle = lambda name=None: None
            print(native.why_not())
    """).splitlines() == [f"it was built for gluon_kl {gluon_kl.__version__}, and this is 0.0: {remedy}"
                          for remedy in ("start Python again", "install gluon_kl again")]
