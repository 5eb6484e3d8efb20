"""The fused operator by itself: every form, space, axis, dtype, weight and reduction against float64 written here."""

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


def plogp(p, log_p, log_q):
    return np.where(p == 0, 0, p * (log_p - log_q))


def pair_terms(inputs, axis, *, form="kl", pred="log_probs", target="probs", temperature=1.0, beta=0.5, hard="index",
               hard_weight=0.0, **_):
    """Terms of a divergence between two distributions, and of hard labels."""
    b = inputs["pred"]
    soft, hard_terms = 0.0, 0.0
    if "target" in inputs:
        log_q, q = log_and_prob(b, pred, axis, 1 / temperature)
        log_p, p = log_and_prob(inputs["target"], target, axis, 1 / temperature)
        if form == "kl":
            soft = plogp(p, log_p, log_q)
        elif form == "reverse_kl":
            soft = plogp(q, log_q, log_p)
        else:
            log_m = np.log(beta * p + (1 - beta) * q)
            soft = beta * plogp(p, log_p, log_m) + (1 - beta) * plogp(q, log_q, log_m)
    if "hard" not in inputs:
        return soft
    y = inputs["hard"]
    if hard == "index":
        index = (y if y.ndim == b.ndim else np.expand_dims(y, axis)).astype(int)
        shape = [-1 if d == axis % b.ndim else 1 for d in range(b.ndim)]
        y = (np.arange(b.shape[axis]).reshape(shape) == index).astype("float64")
    log_q = log_softmax(b, axis)
    hard_terms = np.where(y == 0, 0, -y * log_q)
    if "target" not in inputs:
        return hard_terms
    return (1 - hard_weight) * temperature ** 2 * soft + hard_weight * hard_terms


def gaussian_terms(inputs, *, spread="log_variance", free_nats=0.0, prior_mean=0.0, prior_log_variance=0.0, **_):
    mean, var = inputs["mean"], inputs["log_variance"]
    prior_mean = inputs.get("prior_mean", prior_mean)
    if spread == "std":
        var = 2 * np.log(var)
        if "prior_log_variance" in inputs:
            prior_log_variance = 2 * np.log(inputs["prior_log_variance"])
    else:
        prior_log_variance = inputs.get("prior_log_variance", prior_log_variance)
    d = var - prior_log_variance
    return np.maximum(((mean - prior_mean) ** 2 * np.exp(-prior_log_variance) + np.expm1(d) - d) / 2, free_nats)


def bernoulli_terms(inputs, *, pred="logits", target="probs", target_value=None, **_):
    def side(x, space):
        if space == "probs":
            return x, 1 - x, np.log(x), np.log1p(-x)
        no, yes = -np.logaddexp(0, x), -np.logaddexp(0, -x)
        return np.exp(yes), np.exp(no), yes, no

    p, p_no, log_p, log_p_no = side(inputs["target"] if "target" in inputs else np.float64(target_value), target)
    _, _, log_q, log_q_no = side(inputs["pred"], pred)
    return plogp(p, log_p, log_q) + plogp(p_no, log_p_no, log_q_no)


def terms_of(inputs, axis=-1, form="kl", **options):
    with np.errstate(all="ignore"):
        if form == "gaussian":
            return gaussian_terms(inputs, **options)
        if form == "bernoulli":
            return bernoulli_terms(inputs, **options)
        return pair_terms(inputs, axis, form=form, **options)


def reference(inputs, *, axis=-1, batch_axis=0, reduction="sum", scale=1.0, counted=None, **options):
    """The operator's result in float64; `inputs` by name. `counted` replaces the weight where rows are counted."""
    inputs = {name: np.asarray(x, "float64") for name, x in inputs.items()}
    terms = terms_of(inputs, axis, **options)
    weight = inputs.get("weight")
    if weight is not None:
        terms = np.where(weight == 0, 0, terms * weight)
    terms = np.asarray(terms) * scale
    if reduction == "none":
        return terms
    shape = terms.shape
    others = tuple(d for d in range(terms.ndim) if d != batch_axis % terms.ndim)
    total = terms.sum(axis=others)
    if reduction == "mean":
        return total / np.prod([shape[d] for d in others])
    if reduction == "row_mean":
        counted = weight if counted is None else counted
        rows = np.ones(shape) if counted is None else np.broadcast_to(counted, shape)
        rows = (rows != 0).any(axis=axis, keepdims=True)
        if axis % terms.ndim == batch_axis % terms.ndim:
            return total / max(rows.sum(), 1)
        count = rows.sum(axis=others)
        return np.where(count == 0, 0, total / np.maximum(count, 1))
    return total


def numerical(f, x, places, step=1e-6):
    """Central differences of the scalar f at some places of float64 x."""
    gradient = np.full_like(x, np.nan)
    for i in (np.unravel_index(place, x.shape) for place in places):
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


def operate(inputs, head=None, grad=None, **options):
    """Result and gradients, by name, of the operator on NumPy arrays."""
    arrays = {name: mx.nd.array(x, dtype=x.dtype) for name, x in inputs.items()}
    grad = [name for name in inputs if name != "hard"] if grad is None else grad
    for name in grad:
        arrays[name].attach_grad()
    with autograd.record():
        value = native.fused(mx.nd, arrays, grad, **options)
    if grad:
        value.backward(None if head is None else mx.nd.array(head, dtype=value.dtype))
    return value.asnumpy(), {name: arrays[name].grad.asnumpy() for name in grad}


def run(pred, label, weight=None, head=None, **options):
    """Value and gradients (pred, target, weight) of the operator as NumPy arrays."""
    inputs = {"pred": pred, "target": label}
    if weight is not None:
        inputs["weight"] = weight
    value, gradients = operate(inputs, head, **options)
    return [value, *gradients.values()]


def check(inputs, rng, grad=None, rtol=1e-11, **options):
    """The result and every gradient, in float64, against the reference and its differences."""
    expected = reference(inputs, **options)
    head = rng.randn(*expected.shape)
    value, gradients = operate(inputs, head, grad, **options)
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-13)
    for name, got in gradients.items():
        counted = inputs.get("weight")  # that a row does not count is no slope of its weight

        def total(moved, name=name):
            return (reference({**inputs, name: moved}, counted=counted, **options) * head).sum()

        x = np.asarray(inputs[name], "float64")
        if name == "weight":  # the reference cuts a weight of exactly 0 off
            places = np.flatnonzero(x)
        else:
            places = np.arange(x.size)
        slope = numerical(total, x, rng.permutation(places)[:12])
        np.testing.assert_allclose(np.where(np.isnan(slope), 0, got), np.nan_to_num(slope), rtol=2e-6, atol=2e-7,
                                   err_msg=name)


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
REDUCTIONS = ("sum", "mean", "none", "row_mean")


def seeded(*what):
    return np.random.RandomState(zlib.crc32(repr(what).encode()))


def weights(rng, shape, kind, axis):
    """None; one weight a row; or of any shape that broadcasts. Some are 0, as is a whole row."""
    if kind == "none":
        return {}
    fixed = [d == axis % len(shape) for d in range(len(shape))] if kind == "rows" else [rng.rand() < 0.3 for _ in shape]
    weight = rng.rand(*[1 if one else n for one, n in zip(fixed, shape)]) + 0.5
    weight[rng.rand(*weight.shape) < 0.2] = 0
    weight.flat[0] = 0
    return {"weight": weight}


@pytest.mark.parametrize("shape, axis, batch_axis", LAYOUTS)
@pytest.mark.parametrize("pred, target", list(itertools.product(SPACES, SPACES)))
@pytest.mark.parametrize("form", ["kl", "reverse_kl", "js"])
def test_pairs(form, shape, axis, batch_axis, pred, target):
    rng = seeded(form, shape, axis, batch_axis, pred, target)
    for reduction, kind in (("mean", "none"), ("sum", "rows"), ("none", "none"), ("row_mean", "rows"), ("row_mean", "any"),
                            ("none", "any"), ("sum", "any")):
        inputs = {"pred": sample(rng, shape, pred, axis), "target": sample(rng, shape, target, axis),
                  **weights(rng, shape, kind, axis)}
        check(inputs, rng, form=form, axis=axis, batch_axis=batch_axis, pred=pred, target=target, reduction=reduction,
              scale=rng.rand() + 0.5, temperature=rng.choice([1.0, 2.0]), beta=rng.choice([0.5, 0.1, 0.97]),
              keep=int(rng.rand() < 0.7))


@pytest.mark.parametrize("shape, axis, batch_axis", [c for c in LAYOUTS if c[1] % len(c[0]) != c[2] % len(c[0])])
@pytest.mark.parametrize("target", [None, *SPACES])
@pytest.mark.parametrize("form", ["kl", "reverse_kl", "js"])
def test_hard_labels(form, target, shape, axis, batch_axis):
    """Beside a teacher, and alone."""
    rng = seeded(form, target, shape, axis, batch_axis)
    n = shape[axis]
    without = tuple(m for d, m in enumerate(shape) if d != axis % len(shape))
    for hard, kind, reduction in itertools.product(("index", "kept", "dense"), ("none", "rows", "any"), ("row_mean", "sum")):
        y = rng.rand(*shape) if hard == "dense" else rng.randint(0, n, size=without).astype("float64")
        if hard == "kept":
            y = np.expand_dims(y, axis)
        inputs = {"pred": sample(rng, shape, "logits", axis)}
        if target:
            inputs["target"] = sample(rng, shape, target, axis)
        inputs = {**inputs, "hard": y, **weights(rng, shape, kind, axis)}
        options = dict(temperature=rng.choice([1.0, 3.0]), hard_weight=rng.choice([0.0, 0.3, 1.0])) if target else {}
        check(inputs, rng, [name for name in ("pred", "weight") if name in inputs], form=form, pred="logits",
              target=target or "probs", axis=axis, batch_axis=batch_axis, reduction=reduction,
              hard="dense" if hard == "dense" else "index", keep=int(rng.rand() < 0.7), **options)


ELEMENTWISE = [((5, 7), 0), ((3, 70), 0), ((4, 3, 5), 1), ((4, 3, 5), -1), ((6,), 0), ((5, 1), 0), ((3, 70), 1), ((2, 3, 66), 0)]


@pytest.mark.parametrize("shape, batch_axis", ELEMENTWISE)
@pytest.mark.parametrize("priors", ["none", "numbers", "mean", "both"])
@pytest.mark.parametrize("spread", ["log_variance", "std"])
def test_gaussian(shape, batch_axis, priors, spread):
    rng = seeded(shape, batch_axis, priors, spread)

    def spreads():
        return np.exp(rng.randn(*shape) / 2) if spread == "std" else rng.randn(*shape)

    for reduction, kind in itertools.product(("sum", "mean", "none"), ("none", "rows", "any")):
        inputs = {"mean": rng.randn(*shape), "log_variance": spreads()}
        options = dict(prior_mean=0.3, prior_log_variance=-0.7) if priors == "numbers" else {}
        if priors in ("mean", "both"):
            inputs["prior_mean"] = rng.randn(*shape)
        if priors == "both":
            inputs["prior_log_variance"] = spreads()
        inputs.update(weights(rng, shape, kind, batch_axis))
        for free_nats in (0.0, 0.2):
            check(inputs, rng, form="gaussian", batch_axis=batch_axis, reduction=reduction, spread=spread,
                  free_nats=free_nats, **options)


@pytest.mark.parametrize("shape, batch_axis", ELEMENTWISE)
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
