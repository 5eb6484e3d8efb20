"""Faults that users reported, one section each, on both paths; these tests always run whole."""

import configparser
import copy
import inspect
import itertools
import json
import math
import os
import pickle
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import time
import venv
import warnings
import zipfile
from fractions import Fraction
from pathlib import Path

import gluon_kl
from gluon_kl import (
    BernoulliKLLoss,
    DistillationLoss,
    GaussianKLLoss,
    JSDivLoss,
    KLDivLoss,
    ReverseKLDivLoss,
    __main__,
    _hook,
    _lend,
    _mxnet,
    native,
)

import mxnet as mx
import numpy as np
import packaging.requirements
import pytest
from conftest import MODES, Run
from mxnet import nd

import oracle
from cases import FEW as FEW_OF_FAMILY
from cases import MEMBERS as FAMILY
from cases import NESTED, Model, in_one_test

SPACES = ("probs", "log_probs", "logits")

CLASSES = [KLDivLoss, ReverseKLDivLoss, JSDivLoss, DistillationLoss, BernoulliKLLoss, GaussianKLLoss]
ROOT = Path(gluon_kl.__file__).resolve().parent.parent
needs_operator = pytest.mark.skipif(not native.is_available(), reason="without the native operator")

# 1: a float16 array gets the gradient of a tiny negative double

# Of both signs: below the smallest half, and the smallest float; subnormal halves; ties, and numbers beside them that a
# step over float would round to one; the largest half and what rounds beyond; whole numbers.
MAGNITUDES = [0.0, 5e-324, 1e-310, 7e-46, 1e-45, 7.1e-46, 1e-40, 1e-30, 2.0**-25, 2.0**-25 * (1 + 1e-12), 3 * 2.0**-25,
              2.0**-24, 2.0**-14 - 2.0**-25, 1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-40, 1 + 3 * 2.0**-11 - 2.0**-40,
              1.9, 100.5, 65504.0, 65519.99, 65520.0, 1e30, 3e38, 1e39, 1e300]


def gradients_of(inputs, options):
    """To every input, which may have any dtype, of KLDivLoss."""
    arrays = [mx.nd.array(x, dtype=x.dtype) for x in inputs]
    for x in arrays:
        x.attach_grad()
    with mx.autograd.record():
        loss = gluon_kl.KLDivLoss(reduction="sum", **options)(*arrays)
    loss.backward()
    return [x.grad.asnumpy() for x in arrays]


def narrowed(x, dtype):
    """A gradient as NumPy rounds it; for integers towards 0, and kept in range."""
    if dtype.startswith("float"):
        with np.errstate(over="ignore"):
            return x.astype(dtype)
    info = np.iinfo(dtype)
    return np.array([int(min(max(int(each), info.min), info.max)) for each in np.clip(x.ravel(), -1e30, 1e30)],
                    dtype).reshape(x.shape)


def check_narrow_gradients():
    """A gradient in any dtype is that in float64, rounded once, also the sign of a zero; in whole and part vectors."""
    for length in (1, 3, 8, 20, 5 * len(MAGNITUDES)):
        for shift in range(0, 2 * len(MAGNITUDES), max(1, length)):
            signed = np.array([sign * x for x in MAGNITUDES for sign in (1, -1)])
            values = np.resize(np.roll(signed, -shift), (2, length))
            ones, some = np.ones((2, length)), np.resize([0.25, 1.0, 2.0, 1e-30], (2, length))
            cases = [  # whose gradient is looked at, the inputs: by them it is -values, about -values, and values
                (0, [ones, values]), (1, [values, some]), (2, [-values[:, :1], ones[:, :1], ones[:, :1]])]
            for which, inputs in cases:
                wide = gradients_of(inputs, {})[which]
                for dtype in ("float16", "float32", "int8", "uint8", "int32", "int64"):
                    if which == 0 and not dtype.startswith("float"):
                        continue  # scores are floats
                    own = [x.astype(dtype) if i == which else x for i, x in enumerate(inputs)]
                    same = [x.astype("float64") for x in own]
                    expected = narrowed(gradients_of(same, {})[which] if which == 1 else wide, dtype)
                    got = gradients_of(own, {})[which]
                    np.testing.assert_array_equal(got, expected, err_msg=f"{which} {dtype} {length}")
                    if dtype.startswith("float"):
                        np.testing.assert_array_equal(np.signbit(got), np.signbit(expected), err_msg=f"{which} {dtype}")


@pytest.mark.skipif(not native.is_available(), reason="of the fused operator")
@pytest.mark.parametrize("isa", ["", "avx2", "baseline"])
def test_narrow_gradients(in_child, isa):
    in_child("import test_reports; test_reports.check_narrow_gradients()", GLUON_KL_ISA=isa)


@pytest.mark.skipif(not native.is_available(), reason="of the fused operator")
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_a_gradient_of_nan_in_whole_numbers_is_0(dtype):
    """Where a plain cast would be undefined."""
    pred, label = np.resize([-1.0, np.nan], (2, 21)), np.ones((2, 21), dtype)
    got = gradients_of([pred, label], {})[1]
    np.testing.assert_array_equal(got, np.where(np.isnan(pred), 0, 2))


def test_tiny_negative_gradients(run):
    """The gradient to a float16 array beside float64 ones is -0, not NaN."""
    pred, label = np.array([[-1, -2]], "float16"), np.array([[1, 1e-46]])
    got, _ = run.gradients(gluon_kl.KLDivLoss(reduction="sum"), pred, label)
    np.testing.assert_array_equal(got, [[-1, 0]])
    assert np.signbit(got).all()
    student, teacher = np.zeros((2, 3), "float16"), np.zeros((2, 3))
    teacher[:, 0] = 1e-9
    for form in ("kl", "reverse_kl", "js"):
        got, _, _ = run.gradients(gluon_kl.DistillationLoss(hard_weight=0, divergence=form), student, None, teacher)
        np.testing.assert_array_equal(got, np.zeros((2, 3)))
    weight = np.ones((1, 1), "float16")
    for log_q in (-1e-300, 1e-300):  # its negative is the gradient to the weight
        got = run.gradients(gluon_kl.KLDivLoss(reduction="sum"), np.array([[log_q]]), np.ones((1, 1)), weight)[2]
        assert got == 0 and not np.isnan(got)


# 2: Jensen-Shannon where a probability is subnormal

GAPS = (0, 1e-6, 1e-3, 0.1, 0.34, 1, 2, 5, 20, 50, 79, 80, 81, 87, 87.5, 88, 90, 95, 100, 103, 104, 110, 150, 300, 700,
        745, 746, 1000, 1e4, 1e6, math.inf)
LOSSES = {"kl": KLDivLoss, "reverse": ReverseKLDivLoss, "js": JSDivLoss}


def gap_rows(dtype):
    """Two arrays of log-probabilities: in each row they differ by one of the gaps in some category."""
    with np.errstate(divide="ignore"):
        apart = np.array([[0, -gap, -1] for gap in GAPS])
        fixed = np.log([[1, 0, 0], [0, 1, 0], [1 / 3] * 3, [0.5, 0.4, 0.1]])
    others = [apart, apart[:, ::-1], apart[:, [1, 0, 2]], *(np.tile(row, (len(GAPS), 1)) for row in fixed)]
    first, other = np.concatenate([apart] * len(others)), np.concatenate(others)
    return [np.concatenate(pair).astype(dtype).astype("float64") for pair in ((first, other), (other, first))]


def in_space(log_probs, space, dtype):
    """Of log-probabilities; scores have another sum."""
    x = oracle.log_softmax(log_probs)
    return {"probs": np.exp(x), "log_probs": x, "logits": log_probs}[space].astype(dtype)


def held(x, space, dtype):
    """The weights of the terms, with the digits that their probability has in the dtype: few, or none."""
    if space == "probs":
        return x
    log = oracle.log_of(x, space, -1)
    with np.errstate(divide="ignore"):
        return np.where(log < np.log(np.finfo(dtype).tiny), np.log(np.exp(log).astype(dtype).astype("float64")), log)


def near(got, want, dtype, case):
    """Right to 1e-5, in float64 to 1e-10, absolute or relative, whichever is larger; an overflow is infinite."""
    with np.errstate(over="ignore"):
        want = np.asarray(want, "float64").astype(dtype).astype("float64")
    bound = {"float32": 1e-5, "float64": 1e-10}[dtype]
    np.testing.assert_allclose(got, want, rtol=bound, atol=bound, err_msg=str(case))


def pair_loss(name, spaces, **options):
    return LOSSES[name](spaces[0] != "logits", pred_space=spaces[0], label_space=spaces[1], **options)


@pytest.mark.parametrize("beta", [1e-3, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_js_at_every_gap(run, dtype, beta):
    for spaces in itertools.product(SPACES, SPACES):
        pred, label = (in_space(x, space, dtype) for x, space in zip(gap_rows(dtype), spaces))
        terms = oracle.js_terms(pred, label, *spaces, beta=beta)
        wanted = oracle.js_gradients(pred, label, *spaces, beta=beta)
        for reduction in ("sum", "none"):
            loss, case = pair_loss("js", spaces, beta=beta, reduction=reduction), (dtype, beta, spaces, reduction)
            near(run(loss, pred, label), oracle.reduce(terms, reduction=reduction), dtype, case)
            for got, want in zip(run.gradients(loss, pred, label), wanted):
                near(got, want, dtype, case)


@pytest.mark.parametrize("name", ["kl", "reverse"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kl_at_every_gap(run, dtype, name):
    for spaces in itertools.product(SPACES, SPACES):
        case = dtype, name, spaces
        pred, label = (in_space(x, space, dtype) for x, space in zip(gap_rows(dtype), spaces))
        if name == "kl":
            given = pred, held(label, spaces[1], dtype)
            terms = oracle.kl_terms(*given, *spaces).sum(-1)
            wanted = oracle.kl_gradients(*given, pred_space=spaces[0], label_space=spaces[1], reduction="sum")
        else:
            given = held(pred, spaces[0], dtype), label
            terms = oracle.reverse_kl_terms(*given, *spaces).sum(-1)
            wanted = oracle.reverse_kl_gradients(*given, *spaces)
        # The weight of a term that is subnormal has few digits, or is 0.
        log = oracle.log_of(*((label, spaces[1]) if name == "kl" else (pred, spaces[0])), -1)
        clear = ~((log > -math.inf) & (log < np.log(np.finfo(dtype).tiny) + 0.1)).any(-1)
        loss, finite = pair_loss(name, spaces, reduction="sum"), np.isfinite(terms)
        value = run(loss, pred, label)
        near(value[clear], terms[clear], dtype, case)
        near(value[finite & np.isfinite(value)], terms[finite & np.isfinite(value)], dtype, case)
        assert not np.isnan(value).any()
        # The gradient of an infinite loss is of no use.
        sure = finite & np.isfinite(value) & (clear | (spaces[name == "reverse"] != "probs"))
        for got, want in zip(run.gradients(loss, pred, label), wanted):
            near(got[sure], want[sure], dtype, case)
            assert not np.isnan(got[finite & np.isfinite(value)]).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("label_space", ["probs", "logits"])
def test_bernoulli_at_every_gap(run, dtype, label_space):
    gaps = np.array(GAPS[:-1])  # between two scores of infinity there is none
    score = np.concatenate([gaps, -gaps])[None].astype(dtype)
    for other in (0.0, 3.0, -40.0):
        label = np.full(score.shape, other if label_space == "logits" else 1 / (1 + np.exp(-other)), dtype)
        loss = BernoulliKLLoss(label_space=label_space, reduction="none")
        near(run(loss, score, label), oracle.bernoulli_terms(score, label, False, label_space), dtype, other)
        p = label if label_space == "probs" else 1 / (1 + np.exp(-label.astype("float64")))
        near(run.gradients(loss, score, label)[0], 1 / (1 + np.exp(-score.astype("float64"))) - p, dtype, other)


@pytest.mark.parametrize("options", [{}, {"temperature": 3.0}, {"teacher_space": "probs"}, {"beta": 0.9}], ids=str)
def test_distillation_by_js_at_every_gap(run, options):
    options = {"temperature": 1.0, "beta": 0.5, "teacher_space": "logits", **options}
    temperature, beta, space = (options[name] for name in ("temperature", "beta", "teacher_space"))
    pred, teacher = gap_rows("float32")
    pred, teacher = pred.astype("float32"), in_space(teacher, space, "float32")
    loss = DistillationLoss(hard_weight=0, divergence="js", **options)
    near(run(loss, pred, None, teacher),
         oracle.distillation(pred, None, teacher, hard_weight=0, divergence="js", **options), "float32", options)
    softened = teacher if space == "probs" else teacher.astype("float64") / temperature
    want = oracle.js_gradients(pred.astype("float64") / temperature, softened, "logits", space, beta=beta)
    near(run.gradients(loss, pred, None, teacher)[0], temperature * want[0], "float32", options)


def test_js_of_a_whole_vocabulary(run):
    """248,320 categories, whose probabilities are small but no smaller than a gap of 13."""
    n = 248320
    equal, first = np.full((1, n), 1 / n, "float32"), np.eye(1, n, dtype="float32")
    for label in (equal, first):
        loss = JSDivLoss(False, reduction="sum")
        pred = np.zeros((1, n), "float32")
        near(run(loss, pred, label), oracle.js_terms(pred, label, "logits").sum(-1), "float32", "value")
        for got, want in zip(run.gradients(loss, pred, label), oracle.js_gradients(pred, label, "logits")):
            near(got, want, "float32", "gradients")


# 3: an element of weight 0 in a row that counts

def members():
    """Every member with made inputs of shape (3, 4), and which of them learn: name, loss, inputs, learned."""
    rng = np.random.RandomState(3)
    score = rng.normal(size=(4, 3, 4)).astype("float32")
    probs = np.exp(oracle.log_softmax(score))
    for name, spaces in itertools.product(LOSSES, itertools.product(SPACES, SPACES)):
        given = [in_space(x, space, "float32") for x, space in zip(oracle.log_softmax(score), spaces)]
        yield f"{name} {spaces}", pair_loss(name, spaces, reduction="sum"), given, (0, 1)
    for divergence in ("kl", "reverse_kl", "js"):
        loss = DistillationLoss(2.0, 0.5, divergence=divergence)
        yield divergence, loss, [score[0], np.array([0, 1, 2]), score[1]], (0,)
    yield "dense", DistillationLoss(2.0, 0.5, False), [score[0], probs[1], score[2]], (0, 1)
    for spaces in itertools.product(("probs", "logits"), repeat=2):
        given = [x if space == "logits" else probs[i] for i, (x, space) in enumerate(zip(score, spaces))]
        loss = BernoulliKLLoss(spaces[0] == "probs", reduction="sum", label_space=spaces[1])
        yield f"bernoulli {spaces}", loss, given, (0, 1)
    for spread in ("log_variance", "std"):
        given = [*score[:2], *score[2:]] if spread == "log_variance" else [score[0], probs[0], score[1], probs[1]]
        for free_nats in (0.0, 0.5):
            loss = GaussianKLLoss(spread=spread, free_nats=free_nats)
            yield f"gaussian {spread} {free_nats}", loss, given, (0, 1, 2, 3)


def with_weight(loss, inputs, weight):
    return [*inputs, *[None] * (len(loss._names) - 1 - len(inputs)), weight]


def test_a_silent_element_of_a_living_row(run):
    weight = np.array([[0, 1, 1]], "float32")
    loss = ReverseKLDivLoss(False, reduction="sum")
    scores, label = np.array([[0.1, 1, 2]], "float32"), np.array([[0, 0.3, 0.7]], "float32")
    to_pred, to_label, _ = run.gradients(loss, scores, label, weight)
    np.testing.assert_allclose(to_pred, [[-0.07983915, -0.00559177, 0.08543092]], atol=2e-6)
    np.testing.assert_allclose(to_label, [[0, -0.8081099, -0.94143015]], rtol=5e-6)
    masked, label = np.array([[-math.inf, -1, -0.5]], "float32"), np.array([[0.2, 0.3, 0.5]], "float32")
    to_pred, to_label, _ = run.gradients(KLDivLoss(reduction="sum"), masked, label, weight)
    np.testing.assert_allclose(to_pred, [[0, -0.3, -0.5]], rtol=1e-6)
    np.testing.assert_allclose(to_label, [[0, 0.7960272, 0.8068528]], rtol=1e-6)


def softmax_of(loss):
    """The inputs whose softmax is taken: each of their elements counts in its whole row."""
    spaces = {"pred": getattr(loss, "_pred_space", "logits"), "label": getattr(loss, "_label_space", "probs"),
              "teacher_pred": "logits"}
    return [] if loss._names[0] == "mean" or isinstance(loss, BernoulliKLLoss) else [
        i for i, name in enumerate(loss._names) if spaces.get(name) == "logits"]


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf, -1.0])
def test_what_a_silent_element_holds(eager, bad):
    """An element of weight 0 has no effect on the value or a gradient, in any input; a masked logit stays masked."""
    weight = np.ones((3, 4), "float32")
    weight[0, 1] = weight[2, 0] = 0
    for name, loss, inputs, learned in members():
        for i in learned:
            if i in softmax_of(loss) and bad != -math.inf:
                continue
            other = 0.5 if i not in softmax_of(loss) else bad
            results = []
            for value in (bad, other):
                given = [x.copy() for x in inputs]
                given[i][weight == 0] = value
                given = with_weight(loss, given, weight)
                results.append([eager(loss, *given), *[eager.gradients(loss, *given)[k] for k in learned]])
            for got, want in zip(*results):
                np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7, err_msg=f"{name}, {bad} in input {i}")
                assert np.isfinite(got).all(), (name, bad, i)
            for k, got in zip(learned, results[0][1:]):
                if k not in softmax_of(loss):
                    assert not got[weight == 0].any(), (name, bad, i, k)


@pytest.mark.parametrize("nested", [False, True], ids=["own", "nested"])
def test_silent_elements_in_every_member(run, nested):
    """The gradients are those by finite differences in float64, for any value of the element of weight 0."""
    weight = np.array([[1.0, 0, 2, 1], [0, 0, 0, 0], [0.5, 1, 0, 1]])
    for name, loss, inputs, learned in members():
        given = with_weight(loss, [x.astype("float64") for x in inputs], weight)
        if nested and any(x is None for x in given):
            continue

        def total(*arrays):
            return loss(*[Run.array(x, mx.nd.array) for x in arrays]).asnumpy()

        gradients = run.gradients(Model(loss) if nested else loss, *given)
        for i in learned:
            key = name, i, native.is_available()  # found once, for every way of running
            if key not in DIFFERENCES:
                DIFFERENCES[key] = central_differences(total, given, i)
            np.testing.assert_allclose(gradients[i], DIFFERENCES[key], rtol=1e-5, atol=1e-8, err_msg=str(key))


DIFFERENCES = {}


def central_differences(function, inputs, i, step=1e-6):
    """Of the sum of function(*inputs), to input i."""
    gradient = np.zeros(inputs[i].shape)
    for place in np.ndindex(*gradient.shape):
        ends = []
        for move in (step, -step):
            moved = [*inputs[:i], inputs[i].copy(), *inputs[i + 1:]]
            moved[i][place] += move
            ends.append(function(*moved).sum())
        gradient[place] = (ends[0] - ends[1]) / (2 * step)
    return gradient


# 4: the gradient to a weight of 0 beside an infinite term

@pytest.mark.parametrize("size", [(3, 4), (1, 4), (3, 1)], ids=str)
def test_a_weight_of_zero_in_a_row_that_is_not_finite(run, size):
    """The gradient to a weight is its term; to a weight of 0 it is 0 if its row holds a term that is not finite."""
    for name, loss, inputs, learned in members():
        if isinstance(loss, DistillationLoss):
            continue  # a mean over rows: below
        weight = np.array([[1.0, 0, 2, 0], [1, 1, 0, 1], [0, 0.5, 0, 1]])[:size[0], :size[1]]
        given = [x.astype("float64") for x in inputs]
        plain = type(loss).__name__ not in ("BernoulliKLLoss", "GaussianKLLoss")
        bad = learned[0]
        if bad not in softmax_of(loss):
            given[bad][0, 2] = math.nan
        else:
            given[bad][0] = math.nan
        each = copy.copy(loss)
        each._reduction = "none"
        each._set_out()
        terms = run(each, *given)
        silent = np.broadcast_to(weight == 0, terms.shape)
        lost = ~np.isfinite(terms)
        lost = np.broadcast_to(lost.any(-1, keepdims=True), lost.shape) if plain else lost
        want = np.where(silent & lost, 0, terms)
        for axis in (0, 1):
            want = want.sum(axis, keepdims=True) if size[axis] == 1 else want
        got = run.gradients(loss, *with_weight(loss, given, weight))[-1]
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_an_infinite_term_beside_a_weight_of_zero(run, reduction):
    log_pred, label = np.array([[-math.inf, -1, -0.5]]), np.array([[0.2, 0.3, 0.5]])
    terms = [label[0, i] * (math.log(label[0, i]) - log_pred[0, i]) for i in range(3)]
    share = 1 / 3 if reduction == "mean" else 1
    loss = KLDivLoss(reduction=reduction)
    for weight, want in (([[1, 0, 1]], [math.inf, 0, share * terms[2]]), ([[0, 0, 2]], [0, 0, share * terms[2]]),
                         ([[0]], [0]), ([[1]], [math.inf])):
        got = run.gradients(loss, log_pred, label, np.array(weight, "float64"))[-1]
        np.testing.assert_allclose(got[0], want, rtol=1e-12, err_msg=str(weight))


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "js"])
def test_an_infinite_cross_entropy_beside_a_weight_of_zero(run, divergence):
    scores, teacher = np.array([[-math.inf, -1, -0.5], [0.3, 0.2, 0.1]]), np.array([[0.2, 0.3, 0.5]] * 2)
    weight = np.array([[1.0, 0, 1], [0, 1, 1]])
    to_weight = run.gradients(DistillationLoss(1, 0.5, divergence=divergence, beta=0.3), scores, np.array([0.0, 0]),
                              teacher, weight)[-1]
    soft = {"kl": 0, "reverse_kl": 1, "js": 0.3}[divergence]
    terms = 0.5 * oracle.js_terms(scores, teacher, "logits", "logits", beta=soft)
    terms[:, 0] -= 0.5 * oracle.log_softmax(scores)[:, 0]
    want = np.where((weight == 0) & ~np.isfinite(terms).all(-1, keepdims=True), 0, terms)
    np.testing.assert_allclose(to_weight, want, rtol=1e-9)


# 5: a subclass overrides hybrid_forward

def doubled(cls, method):
    """A subclass whose own `hybrid_forward` or `forward` doubles what the loss gives, as gluon-nlp's losses do."""
    def hybrid_forward(self, F, *inputs):
        return 2 * super(made, self).hybrid_forward(F, *inputs)

    def forward(self, *inputs):
        return 2 * super(made, self).forward(*inputs)

    made = type("Doubled", (cls,), {method: locals()[method]})
    return made


class MaskedLoss(KLDivLoss):
    """Like gluon-nlp's masked losses: the third input is the length of each sequence, not a weight."""

    def hybrid_forward(self, F, pred, label, valid_length):
        ones = F.expand_dims(F.ones_like(F.slice_axis(pred, axis=2, begin=0, end=1)).squeeze(axis=2), axis=2)
        mask = F.SequenceMask(ones, sequence_length=valid_length, use_sequence_length=True, axis=1)
        return super().hybrid_forward(F, pred, label, mask)


class WithOwnInput(DistillationLoss):
    """A loss with one more input, and one with an input of another name."""

    def hybrid_forward(self, F, pred, label, teacher_pred, sample_weight=None, scale=None):
        out = super().hybrid_forward(F, pred, label, teacher_pred, sample_weight)
        return out if scale is None else out * scale


class WithParameter(KLDivLoss):
    """A parameter that is learned, which Gluon passes to `hybrid_forward` by name."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.factor = self.params.get("factor", shape=(1,), init="ones")

    def hybrid_forward(self, F, pred, label, sample_weight=None, factor=None):
        return F.broadcast_mul(super().hybrid_forward(F, pred, label, sample_weight), factor)


def subclass_of(member, method):
    """Makes losses of a member of the family whose class is doubled."""
    def make(**options):
        loss = member.make(**options)
        loss.__class__ = doubled(type(loss), method)
        return loss

    return make


@pytest.mark.parametrize("method", ["hybrid_forward", "forward"])
@in_one_test("name", FEW_OF_FAMILY)
def test_an_override_counts(run, rng, name, method):
    """Eager, hybridized, static and nested, values and gradients, with a weight and without."""
    member = FAMILY[name]
    inputs, weight = member.inputs(rng, (3, 4)), rng.uniform(0.5, 2, size=(3, 1))
    for given in (inputs, [*inputs, weight]):
        once, make = member.make(), subclass_of(member, method)
        np.testing.assert_allclose(run(make(), *given), 2 * run(once, *given), rtol=1e-9)
        for got, want in zip(run.gradients(make(), *given), run.gradients(once, *given)):
            np.testing.assert_allclose(got, 2 * want, rtol=1e-9, atol=1e-12)
        for got, want in zip(run.gradients(Model(make()), *given), run.gradients(once, *given)):
            np.testing.assert_allclose(got, 2 * want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FEW_OF_FAMILY)
def test_an_override_takes_symbols(rng, name):
    member = FAMILY[name]
    inputs, loss = member.inputs(rng, (3, 4)), subclass_of(member, "hybrid_forward")()
    out = loss(*[mx.sym.var(f"data{i}") for i in range(len(inputs))])
    values = {f"data{i}": mx.nd.array(x, dtype="float64") for i, x in enumerate(inputs)}
    np.testing.assert_allclose(out.eval(**values)[0].asnumpy(), 2 * member.expect(inputs), rtol=1e-9)
    assert mx.gluon.block._BlockScope._current.value is None, "a scope of Gluon's was left open"


@pytest.mark.parametrize("nested", [False, True])
def test_an_override_is_exported(path, rng, tmp_path, nested):
    pred, label = (mx.nd.array(x) for x in FAMILY["js logits probs"].inputs(rng, (3, 4)))
    loss = doubled(JSDivLoss, "hybrid_forward")(False)
    block = Model(loss) if nested else loss
    block.hybridize()
    value = block(pred, label).asnumpy()
    np.testing.assert_allclose(value, 2 * JSDivLoss(False)(pred, label).asnumpy(), rtol=1e-6)
    block.export(str(tmp_path / "loss"))
    back = mx.gluon.SymbolBlock.imports(str(tmp_path / "loss-symbol.json"), ["data0", "data1"])
    np.testing.assert_allclose(back(pred, label).asnumpy(), value, rtol=1e-6)


def test_an_override_with_an_input_of_its_own(run, rng):
    """A length is not a weight: padding does not count, and the average is over all positions."""
    pred, label = rng.normal(size=(2, 3, 4)), rng.dirichlet(np.ones(4), size=(2, 3))
    mask = np.array([[1, 0, 0], [1, 1, 0]])[:, :, None]
    want = oracle.kl_divergence(pred, label, from_logits=False, sample_weight=mask)
    for loss in (MaskedLoss(False), Model(MaskedLoss(False))):
        np.testing.assert_allclose(run(loss, pred, label, np.array([1.0, 2.0])), want, rtol=1e-6)
    loss = run.prepare(MaskedLoss(False))
    named = loss(*map(mx.nd.array, (pred, label)), valid_length=mx.nd.array([1, 2]))
    np.testing.assert_allclose(named.asnumpy(), want, rtol=1e-5)


def test_an_override_with_one_input_more(run, rng):
    pred, label, teacher = FAMILY["both"].inputs(rng, (3, 4))
    arrays = [mx.nd.array(x, dtype="float64") for x in (pred, label, teacher)]
    weight, scale = mx.nd.array([[1.0], [2], [0]], dtype="float64"), mx.nd.array([3.0, 1, 2], dtype="float64")
    plain = DistillationLoss()
    make = lambda: run.prepare(WithOwnInput())  # noqa: E731 (a graph of Gluon's has one structure of arguments)
    np.testing.assert_array_equal(make()(*arrays).asnumpy(), plain(*arrays).asnumpy())
    for got in (make()(*arrays, weight, scale), make()(*arrays, sample_weight=weight, scale=scale)):
        np.testing.assert_allclose(got.asnumpy(), (plain(*arrays, weight) * scale).asnumpy(), rtol=1e-9)
    np.testing.assert_allclose(make()(*arrays, scale=scale).asnumpy(), (plain(*arrays) * scale).asnumpy(), rtol=1e-9)
    with pytest.raises(TypeError, match="sample_weight by name: an input before it is missing"):
        make()(*arrays[:2], sample_weight=weight)
    with pytest.raises(TypeError, match="'wieght'"):
        make()(*arrays, wieght=weight)


def test_an_override_with_a_parameter(run, rng):
    pred, label = (mx.nd.array(x) for x in FAMILY["js logits probs"].inputs(rng, (3, 4)))
    loss = run.prepare(WithParameter(from_logits=False))
    loss.initialize()
    with mx.autograd.record():
        out = loss(pred, label)
    out.backward()
    want = KLDivLoss(False)(pred, label).asnumpy()
    np.testing.assert_allclose(out.asnumpy(), want, rtol=1e-6)
    np.testing.assert_allclose(loss.factor.grad().asnumpy(), [want.sum()], rtol=1e-5)


def test_an_override_is_pickled_and_hybridized_again(path, rng):
    inputs = [mx.nd.array(x) for x in FAMILY["kl probs probs"].inputs(rng, (2, 3, 4))]
    lengths = mx.nd.array([1, 2])
    loss = MaskedLoss(pred_space="probs")
    loss.hybridize()
    value = loss(*inputs, lengths).asnumpy()
    clone = pickle.loads(pickle.dumps(loss))
    np.testing.assert_array_equal(clone(*inputs, lengths).asnumpy(), value)
    loss.hybridize(static_alloc=True)
    np.testing.assert_array_equal(loss(*inputs, lengths).asnumpy(), value)
    loss.hybridize(False)
    np.testing.assert_allclose(loss(*inputs, lengths).asnumpy(), value, rtol=1e-6)


def test_an_override_takes_numpy_arrays(run, rng):
    with mx.util.np_shape(True), mx.util.np_array(True):
        pred, label = (mx.np.array(x, dtype="float64") for x in FAMILY["kl probs probs"].inputs(rng, (3, 4)))
        loss = run.prepare(doubled(KLDivLoss, "hybrid_forward")(pred_space="probs"))
        out = loss(pred, label)
        assert isinstance(out, mx.np.ndarray)
        np.testing.assert_allclose(out.asnumpy(), 2 * KLDivLoss(pred_space="probs")(pred, label).asnumpy(), rtol=1e-9)


@pytest.mark.parametrize("cls", CLASSES)
def test_inputs_are_named(cls):
    """gluonts reads the names of a loss's inputs from `hybrid_forward`, and passes arrays by them."""
    names = list(inspect.signature(cls.hybrid_forward).parameters)
    assert names == ["self", "F", *cls()._names]
    kinds = {x.kind for x in inspect.signature(cls.hybrid_forward).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}




# 6: a subclass overrides forward

class TwoInputs(KLDivLoss):
    """A subclass as users write it for MXNet's own loss."""

    def forward(self, pred, label):
        return 2 * super().forward(pred, label)


class OfAName(KLDivLoss):
    def forward(self, pred, label, mask=None):
        return super().forward(pred, label, mask)


def test_forward_of_two_inputs(run, rng):
    pred, label = FAMILY["kl probs probs"].inputs(rng, (3, 4))
    want = 2 * oracle.kl_divergence(pred, label, pred_space="probs")
    np.testing.assert_allclose(run(TwoInputs(pred_space="probs"), pred, label), want, rtol=1e-9)
    np.testing.assert_allclose(run(Model(TwoInputs(pred_space="probs")), pred, label), want, rtol=1e-9)
    with pytest.raises(TypeError, match="positional argument"):
        run(TwoInputs(pred_space="probs"), pred, label, np.ones((3, 1)))


def test_forward_of_named_inputs(run, rng):
    inputs = [mx.nd.array(x) for x in FAMILY["kl probs probs"].inputs(rng, (3, 4))]
    weight = mx.nd.array([1, 0, 2])
    want = KLDivLoss(pred_space="probs")(*inputs, weight).asnumpy()
    loss = run.prepare(OfAName(pred_space="probs"))
    np.testing.assert_allclose(loss(*inputs, mask=weight).asnumpy(), want, rtol=1e-6)
    assert loss(*inputs).asnumpy()[1] > 0
    with pytest.raises(TypeError, match="'sample_weight'"):
        loss(*inputs, sample_weight=weight)


@pytest.mark.parametrize("cls", CLASSES)
def test_missing_inputs_are_named(cls):
    with pytest.raises(TypeError, match=f"missing . required positional arguments?: '{cls()._names[1]}'"):
        cls()(mx.nd.ones((2, 2)))




# 7: memory does not grow if a number changes

STEPS = """
import ctypes, gc, itertools, mxnet as mx, numpy as np
from gluon_kl import BernoulliKLLoss, DistillationLoss, GaussianKLLoss, JSDivLoss, KLDivLoss, native
pred, label = mx.nd.array([[0.5, -1, 2]]), mx.nd.array([[0.2, 0.3, 0.5]])
pred.attach_grad()

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

def in_use():
    # MB of this process, and what malloc handed out: 2 MB of small things may fit where others were freed
    mx.nd.waitall()
    gc.collect()  # a block of Gluon's is held by itself
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * 4096
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):  # before glibc 2.33
        return resident / 1e6, 0
    libc.mallinfo2.restype = Mallinfo
    info = libc.mallinfo2()
    return resident / 1e6, (info.uordblks + info.hblkhd) / 1e6

def ready(loss):
    loss.hybridize()
    return loss

def step(loss, *inputs):
    with mx.autograd.record():
        out = loss(*inputs)
    out.backward()
    out.wait_to_read()  # on a busy machine MXNet's queue grows else

def annealed_label():
    loss = ready(BernoulliKLLoss())
    return lambda i: step(loss, pred, 1 / (i + 2))

def annealed_label_of_a_penalty():
    loss = ready(BernoulliKLLoss(weight=0))
    return lambda i: step(loss, pred, 1 / (i + 2))

def moving_prior():
    loss = ready(GaussianKLLoss())
    return lambda i: step(loss, pred, label, i * 1e-3, 1 / (i + 2))

def temperature():
    return lambda i: step(DistillationLoss(2 + 1 / (i + 1), hard_weight=0), pred, None, label)

def temperature_of_a_graph():
    return lambda i: step(ready(DistillationLoss(2 + 1 / (i + 1), hard_weight=0)), pred, None, label)

def weights():
    return lambda i: step(JSDivLoss(False, weight=1 / (i + 1), beta=1 / (i + 2)), pred, label)

def shapes():
    loss, sizes = ready(KLDivLoss(False)), itertools.cycle(range(2, 1001))
    def call(i):
        x = mx.nd.ones((1, next(sizes)))
        x.attach_grad()
        step(loss, x, mx.nd.ones(x.shape) / x.shape[1])
    return call

def ranks_and_dtypes():
    loss, kinds = ready(KLDivLoss(False)), itertools.cycle(itertools.product(
        range(2, 9), ("float16", "float32", "float64"), ("float16", "float32", "float64", "int32"), (False, True)))
    def call(i):
        rank, dtype, other, weighted = next(kinds)
        x = mx.nd.ones((2,) * rank, dtype=dtype)
        x.attach_grad()
        step(loss, x, mx.nd.ones(x.shape, dtype=other), *[mx.nd.ones((2,))] * weighted)
    return call

def growth(case, warm, steps):
    call = globals()[case]()
    for i in range(warm):
        call(i)
    before = in_use()
    for i in range(warm, warm + steps):
        call(i)
    return max(after - start for start, after in zip(before, in_use()))
"""
STEADY = ["annealed_label", "annealed_label_of_a_penalty", "moving_prior", "temperature", "temperature_of_a_graph",
          "weights", "shapes", "ranks_and_dtypes"]


@pytest.mark.parametrize("case", STEADY)
def test_memory_stays_flat(in_child, path, case):
    """A graph or a text kept for each number would take from 0.4 to 200 KB a step."""
    # A text is 0.4 KB, a graph at least 20.
    many = 4000 if path == "native" and case in ("temperature", "weights") else 300
    # Each of its shapes once; else as many steps as are measured, since as much garbage waits for the collector then.
    warm = 1000 if case == "shapes" else 300
    grown = float(in_child(f"{STEPS}\nprint(growth({case!r}, {warm}, {many}))").split()[-1])
    assert grown < 1, f"{grown:.1f} MB more after {many} steps"


def test_a_new_number_costs_as_much_as_an_eager_call(path):
    """The memory of a hybridized loss does not grow, and its results stay the same."""
    pred = mx.nd.ones((128, 10))
    for cls, numbers in ((BernoulliKLLoss, 1), (GaussianKLLoss, 2)):
        eager, hybridized, times = cls(), cls(), {}
        hybridized.hybridize()
        more = (pred,) * (numbers - 1)
        hybridized(pred, *more, 0.5)
        for turn, loss in itertools.product(range(7), (eager, hybridized)):
            start = time.perf_counter()
            for i in range(50):
                out = loss(pred, *more, 1 / (2 + i + 50 * turn))
            out.wait_to_read()
            times.setdefault(loss, []).append(time.perf_counter() - start)
            np.testing.assert_array_equal(out.asnumpy(), eager(pred, *more, 1 / (51 + 50 * turn)).asnumpy())
        assert min(times[hybridized]) < 1.5 * min(times[eager])


def test_few_graphs_are_kept(path, rng):
    """A graph that was replaced by others still gives its gradients."""
    pred, label = FAMILY["js logits probs"].inputs(rng, (2, 2))
    loss, pending = JSDivLoss(False, reduction="sum"), []
    loss.hybridize()
    for rank in range(2, 30):
        shape = (2, 2) + (1,) * (rank - 2)
        arrays = [mx.nd.array(x).reshape(shape) for x in (pred, label)]
        arrays[0].attach_grad()
        with mx.autograd.record():
            out = JSDivLoss.__call__(loss, *[x.swapaxes(1, rank - 1) for x in arrays])
        pending.append((arrays[0], out))
        assert 0 < len(loss._own_graphs) <= 8
    want = JSDivLoss(False, reduction="sum")(*map(mx.nd.array, (pred, label))).asnumpy()
    for x, out in pending:
        out.backward()
        np.testing.assert_allclose(out.asnumpy(), want, rtol=1e-5)
        np.testing.assert_allclose(x.grad.asnumpy().ravel(), pending[0][0].grad.asnumpy().ravel(), rtol=1e-5)



# 8: class indices of any dtype

DTYPES = ("bool", "uint8", "int8", "int32", "int64", "float16", "float32", "float64")


def of_dtype(x, dtype):
    """The array in a dtype that may not hold all its values."""
    x = np.abs(x) >= 0.3 if dtype == "bool" else np.abs(np.round(x)) if dtype.startswith("u") else x
    return mx.nd.array(np.round(x) if "int" in dtype else x, dtype=dtype)


NO_INDEX = ("float16", "bool")


@in_one_test("name", NESTED)
def test_inputs_of_any_dtype_in_a_hybridized_block(path, rng, name):
    """Each input in each dtype, beside others in float32 or float64, gives the same. (A bool pred is refused.)"""
    member = FAMILY[name]
    inputs = member.inputs(rng, (3, 4))
    given = [x for x in inputs if x is not None]
    weight = [np.array([[1.0], [2], [0]])] * (len(given) == len(inputs))
    model = Model(member.make())
    model.hybridize()
    for (i, dtype), others in zip(itertools.product(range(len(given + weight)), DTYPES),
                                  itertools.cycle(("float32", "float64", "float64", "float32", "float32"))):
        if (i, dtype) == (0, "bool"):
            continue
        if name.startswith("top-k") and i == member.make()._names.index("teacher_index") and dtype in NO_INDEX:
            continue  # refused: it cannot tell two classes apart
        arrays = [of_dtype(x, dtype if i == j else others) for j, x in enumerate(given + weight)]
        alone = [*arrays[:len(given)], *[None] * (len(member.make()._names) - 1 - len(given)), *arrays[len(given):]]
        got, want = model(*arrays), member.make()(*alone)
        assert got.dtype == want.dtype, (i, dtype, others)
        np.testing.assert_allclose(got.asnumpy(), want.asnumpy(), rtol=1e-4, atol=1e-5, err_msg=str((i, dtype, others)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_indices_that_are_no_class(run, rng, dtype):
    """Wrong indices give NaN in any dtype, alone and in a hybridized block."""
    pred, _, teacher = FAMILY["both"].inputs(rng, (6, 4))
    pred, teacher = (mx.nd.array(x, dtype=dtype) for x in (pred, teacher))
    for index, known in (([0, 1, 2, 3, -1, 4], 4), ([0, 3, 1 + 1e-12, 0.5, np.nan, 1e300], 2)):
        label = mx.nd.array(index, dtype="float64")
        for block in (DistillationLoss(), Model(DistillationLoss())):
            got = run.prepare(block)(pred, label, teacher).asnumpy()
            np.testing.assert_array_equal(np.isnan(got), np.arange(6) >= known)



# 9: one category gives exactly 0

@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction, nested", [("sum", False), ("mean", False), ("row_mean", False), ("none", False),
                                               ("sum", True), ("none", True)])
def test_one_category(path, reduction, dtype, nested):
    """The divergence and the gradient to logits are exactly 0: eager, and in a hybridized block."""
    run = Run("static" if nested else "eager")
    scores = (20 * np.random.RandomState(0).normal(size=(2, 50, 1))).astype(dtype)
    for name, spaces in itertools.product(LOSSES, itertools.product(SPACES, SPACES)):
        inputs = [{"probs": 0 * x + 1, "log_probs": 0 * x, "logits": x}[space] for x, space in zip(scores, spaces)]
        loss = pair_loss(name, spaces, reduction=reduction)
        block = Model(loss) if nested else loss
        assert not run(block, *inputs).any(), (name, spaces)
        for space, gradient in zip(spaces, run.gradients(block, *inputs)):
            assert space != "logits" or not gradient.any(), (name, spaces, gradient)


@pytest.mark.parametrize("options", [{}, {"divergence": "reverse_kl"}, {"divergence": "js"}, {"sparse_label": False}],
                         ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["own", "nested"])
def test_distillation_of_one_category(run, nested, options):
    rng = np.random.RandomState(0)
    pred, teacher = (20 * rng.normal(size=(2, 50, 1))).astype("float32")
    label = np.ones((50, 1)) if options.get("sparse_label") is False else np.zeros(50)
    for temperature in (1.0, 7.0):
        loss = DistillationLoss(temperature, 0.5, **options)
        block = Model(loss) if nested else loss
        given = pred, label.astype("float32"), teacher
        assert not run(block, *given).any()
        assert not run.gradients(block, *given)[0].any()


# 10: tiny divergences and extreme temperatures

@pytest.mark.parametrize("name, form", [("kl", 0), ("reverse", 1), ("js", 0.3)])
@in_one_test("categories", [3, 10, 1000])
@in_one_test("scale", [1e-4, 1e-3, 1e-2])
def test_two_nearly_equal_rows_of_scores(run, path, name, form, categories, scale):
    """In float32 the divergence of logits of this scale, which is about its square, is right to 1e-3."""
    rng = np.random.RandomState(5)
    for shift in (0.0, 3.0):
        pred, label = (scale * rng.normal(size=(2, 20, categories)) + shift).astype("float32")
        options = {"beta": form} if name == "js" else {}
        loss = pair_loss(name, ("logits", "logits"), reduction="sum", **options)
        value = run(loss, pred, label)
        log_q, log_p = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in np.longdouble([pred, label]))
        want = exact_divergence(log_p, log_q, form)
        np.testing.assert_allclose(value, want.astype("float64"), rtol=1e-3, err_msg=f"{name}, {shift}")
        assert (value > 0).all()


def exact_divergence(log_p, log_q, beta):
    """The divergence of nearly equal rows in long double, each term with its leading digits."""
    p, q, u = np.exp(log_p), np.exp(log_q), log_p - log_q
    if beta in (0, 1):
        u, p = (u, p) if beta == 0 else (-u, q)
        return (p * (u + np.expm1(-u))).sum(-1)
    behind, ahead = (1 - beta) * np.expm1(-u), beta * np.expm1(u)
    return (beta * p * (behind - np.log1p(behind)) + (1 - beta) * q * (ahead - np.log1p(ahead))).sum(-1)


@pytest.mark.parametrize("divergence, form", [("kl", 0), ("reverse_kl", 1), ("js", 0.5)])
def test_extreme_temperatures(run, divergence, form):
    pred, teacher = np.random.RandomState(1).normal(size=(2, 6, 10))
    for temperature in (1e-6, 1e-3, 1e6):
        for dtype in ("float32", "float64") if temperature < 1 else ("float64",):
            given = pred.astype(dtype), np.zeros(6, dtype), teacher.astype(dtype)
            loss = DistillationLoss(temperature, 0.5, divergence=divergence)
            wide = [np.longdouble(x) / np.longdouble(temperature) for x in (given[0], given[2])]
            log_q, log_p = (x - x.max(-1, keepdims=True) for x in wide)
            log_q, log_p = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (log_q, log_p))
            hard = -oracle.log_softmax(given[0])[:, 0]
            if temperature < 1:
                soft = oracle.js_terms(wide[0].astype("float64"), wide[1].astype("float64"), "logits", "logits",
                                       beta=form).sum(-1)
            else:
                soft = exact_divergence(log_p, log_q, form).astype("float64")
            want = 0.5 * hard + 0.5 * temperature ** 2 * soft
            np.testing.assert_allclose(run(loss, *given), want, rtol=1e-5)
            assert np.isfinite(run.gradients(loss, *given)[0]).all()


@pytest.mark.parametrize("temperature", [1e-7, 9.9e-7, 1.1e6, 2e19, 1e150, 0, -1])
def test_temperatures_that_are_refused(temperature):
    with pytest.raises(ValueError) as caught:
        DistillationLoss(temperature)
    assert str(caught.value) == f"temperature must lie between 1e-06 and 1000000.0, not {temperature!r}"


def long_softmax(x, axis):
    """Softmax and its logarithm in long double, in which a divergence of 1e-14 has its leading digits."""
    x = np.asarray(x, np.longdouble)
    with np.errstate(invalid="ignore"):
        shifted = x - x.max(axis=axis, keepdims=True)
        log = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return np.exp(log), log


def tiny(form, pred, label, beta=0.5, temperature=1.0, axis=-1):
    """Divergence of each row of logits, and its gradients to both sides, in long double."""
    (q, log_q), (p, log_p) = (long_softmax(np.asarray(x, np.longdouble) / temperature, axis) for x in (pred, label))
    dead = (p == 0) & (q == 0)
    with np.errstate(invalid="ignore"):
        u = np.where(dead, 0, log_p - log_q)

    def along(x):
        return x.sum(axis=axis, keepdims=True)

    if form == "kl":
        value, to_q, to_p = p * (u + np.expm1(-u)), q - p, p * u
        to_p = to_p - p * along(p * u)
    elif form == "reverse_kl":
        value, to_q, to_p = q * (-u + np.expm1(u)), -q * u, p - q
        to_q = to_q + q * along(q * u)
    else:
        mixed = np.where(dead, 0, np.log1p((1 - beta) * np.expm1(-u)))  # log(m / p)
        by_p, by_q = -beta * mixed, -(1 - beta) * (mixed + u)
        with np.errstate(invalid="ignore"):
            value = p * by_p + q * by_q
        to_q, to_p = q * by_q - q * along(q * by_q), p * by_p - p * along(p * by_p)
    return along(value).squeeze(axis), to_q / temperature, to_p / temperature


def check_tiny(got, expected, tolerance, what):
    for name, a, e in zip(("value", "to pred", "to label"), got, expected):
        if a is not None:
            scale = abs(e) if name == "value" else abs(e).max(axis=-1, keepdims=True)
            assert (abs(a - e) <= tolerance * scale).all(), (what, name, float((abs(a - e) / scale).max()))


TINY_LOSSES = {
    "kl": lambda **options: gluon_kl.KLDivLoss(False, label_space="logits", reduction="sum", **options),
    "reverse_kl": lambda **options: gluon_kl.ReverseKLDivLoss(False, label_space="logits", reduction="sum", **options),
    "js": lambda **options: gluon_kl.JSDivLoss(False, label_space="logits", reduction="sum", **options),
}


def tiny_logits(rng, shape, scale, dtype, kind):
    """Pairs of nearly equal logits: small ones, ordinary ones, some with masks or with very unlikely categories."""
    pred, label = rng.randn(*shape) * scale, rng.randn(*shape) * scale
    if kind in ("ordinary", "masked", "unlikely"):
        common = np.float16(rng.randn(*shape) * 3)  # the sums with it lose few digits of the small ones
        pred, label = pred + common, label + common
    pred, label = pred.astype(dtype), label.astype(dtype)
    if kind == "masked":
        pred[..., ::3] = label[..., ::3] = -np.inf
    if kind == "unlikely":
        pred[..., ::3], label[..., ::3] = -1e4, -1.1e4
    if kind == "shifted":
        pred, label = pred + np.asarray(8, dtype), label - np.asarray(3, dtype)
    return pred, label


@needs_operator
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", list(TINY_LOSSES))
def test_tiny_divergences(form, dtype):
    """Value and gradients keep their leading digits, whatever the layout in memory, beside rows that differ a lot."""
    rng, run = np.random.RandomState(3), Run("eager")
    for shape in ((5, 2), (100, 10), (5, 100), (4, 1000), (2, 50257), (3, 400, 70)):
        for kind in ("bare", "ordinary", "masked", "unlikely", "shifted"):
            for scale in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
                if kind in ("ordinary", "shifted") and scale < 1e-4 and dtype == "float32":
                    continue  # their own rounding is all that would be left
                if kind in ("ordinary", "masked", "unlikely") and scale > (1e-3 if dtype == "float32" else 1e-4):
                    continue  # neither near nor, where a category has nearly all of a row, far enough
                if shape[-1] == 2 and kind in ("masked", "unlikely"):
                    continue  # one category
                pred, label = tiny_logits(rng, shape, scale, dtype, kind)
                label[1] += rng.randn(*shape[1:])  # a row that is not looked at
                near = np.arange(len(pred)) != 1
                if len(shape) == 3:  # the categories in the middle
                    loss = TINY_LOSSES[form](axis=1)
                    moved = [np.ascontiguousarray(np.moveaxis(x, -1, 1)) for x in (pred, label)]
                    got = [np.moveaxis(x, 1, -1) for x in run.gradients(loss, *moved)]
                    value, *expected = tiny(form, pred, label)
                    got, expected = [run(loss, *moved), *got], [value.sum(axis=-1), *expected]
                    check_tiny([x[near] for x in got], [x[near] for x in expected], 1e-4, (shape, kind, scale))
                    continue
                loss = TINY_LOSSES[form]()
                got = [run(loss, pred, label), *run.gradients(loss, pred, label)]
                check_tiny([x[near] for x in got], [x[near] for x in tiny(form, pred, label)],
                           1e-4 if dtype == "float32" else 1e-8, (shape, kind, scale))


@needs_operator
def test_rows_do_not_depend_on_their_neighbours():
    """The same bits beside rows that hardly differ, in one vector with them or not."""
    rng, run = np.random.RandomState(6), Run("eager")
    for shape in ((40, 10), (40, 300)):
        pred, label = (rng.randn(*shape).astype("float32") for _ in range(2))
        loss = TINY_LOSSES["kl"]()
        alone = run.gradients(loss, pred, label)
        near = label.copy()
        near[::3] = pred[::3] + 1e-3
        beside = run.gradients(loss, pred, near)
        for a, b in zip(alone, beside):
            np.testing.assert_array_equal(np.delete(a, np.s_[::3], 0), np.delete(b, np.s_[::3], 0))


class Nested(mx.gluon.HybridBlock):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def hybrid_forward(self, F, *inputs):
        return self.loss(*[x * 1 for x in inputs])


@needs_operator
@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("form", list(TINY_LOSSES))
def test_tiny_divergences_in_every_way(form, mode):
    """The digits stay if hybridized, nested, with a weight for each row, and as means."""
    rng, run = np.random.RandomState(4), Run(mode)
    for shape in ((7, 10), (7, 300)):
        pred, label = tiny_logits(rng, shape, 1e-6, "float32", "bare")
        value, *gradients = tiny(form, pred, label)
        for loss in (TINY_LOSSES[form](), Nested(TINY_LOSSES[form]())):
            got = [run(loss, pred, label), *run.gradients(loss, pred, label)]
            check_tiny(got, [value, *gradients], 1e-4, (shape, mode))
        weight = rng.rand(7, 1).astype("float32")
        got = [run(loss, pred, label, weight), *run.gradients(loss, pred, label, weight)]
        weighted = [weight[:, 0] * value, *[weight * x for x in gradients]]
        check_tiny(got, weighted, 1e-4, (shape, mode, "weighted"))
        np.testing.assert_allclose(got[3][:, 0], value.astype("float64"), rtol=1e-4)


@needs_operator
@pytest.mark.parametrize("temperature", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("form", list(TINY_LOSSES))
def test_tiny_distillation(form, temperature):
    """Alone, and with class indices, whose part is known exactly; the factor T squared makes the divergence large."""
    rng, run = np.random.RandomState(5), Run("eager")
    for shape in ((6, 10), (6, 1000)):
        for scale in (1.0, 1e-3) if temperature > 1 else (1e-3, 1e-6):
            student, teacher = (rng.randn(*shape).astype("float32") * np.float32(scale) for _ in range(2))
            label = rng.randint(0, shape[1], shape[0]).astype("float32")
            value, to_student, _ = tiny(form, student, teacher, temperature=temperature)
            value, to_student = value * temperature ** 2, to_student * temperature ** 2
            loss = gluon_kl.DistillationLoss(temperature, hard_weight=0, divergence=form)
            got = [run(loss, student, None, teacher), run.gradients(loss, student, None, teacher)[0]]
            check_tiny(got, [value, to_student], 1e-4, (shape, scale))
            loss = gluon_kl.DistillationLoss(temperature, hard_weight=0.25, divergence=form)
            q, log_q = long_softmax(student, -1)
            y = np.eye(shape[1])[label.astype(int)]
            got = [run(loss, student, label, teacher), run.gradients(loss, student, label, teacher)[0]]
            both = [0.75 * value - 0.25 * (y * log_q).sum(-1), 0.75 * to_student + 0.25 * (q - y)]
            check_tiny(got, both, 1e-5, (shape, scale, "with labels"))


# 11: numbers that no loss can use are refused when it is created

NUMBERS = {  # each numeric argument of each class, and what of the extremes below it takes
    **{(cls, "weight"): lambda x: True for cls in CLASSES},
    (KLDivLoss, "epsilon"): lambda x: 0 < x <= 1,
    (JSDivLoss, "beta"): lambda x: 0 <= x <= 1,
    (gluon_kl.metric.JSDivergence, "beta"): lambda x: 0 <= x <= 1,
    (DistillationLoss, "beta"): lambda x: 0 <= x <= 1,
    (DistillationLoss, "hard_weight"): lambda x: 0 <= x <= 1,
    (DistillationLoss, "temperature"): lambda x: 1e-6 <= x <= 1e6,
    (GaussianKLLoss, "free_nats"): lambda x: x >= 0,
    **{(cls, "skew"): lambda x: 0 <= x < 1 for cls in (KLDivLoss, ReverseKLDivLoss, DistillationLoss)},
    (DistillationLoss, "label_smoothing"): lambda x: 0 <= x < 1,
}
EXTREMES = [(x, "finite,") for x in (math.inf, -math.inf, math.nan, 10**400, np.float32("inf"))]
EXTREMES += [(x, "0 or between 1e-290 and 1e[+]?290 in magnitude,") for x in (5e-324, 1e-300, 1.7e308, -1.7e308)]
USABLE = [-3, -0.5, 0, 1e-280, 0.5, 1, 2.5, 1e280, np.float32(0.25), np.int64(1), np.float64(0.75), Fraction(1, 3)]


def argument_names():
    """The arguments of every class whose default is a number, and `weight`, from the signatures."""
    for cls in (*CLASSES, gluon_kl.metric.KLDivergence, gluon_kl.metric.JSDivergence):
        for name, parameter in inspect.signature(cls).parameters.items():
            if type(parameter.default) in (int, float) or name == "weight":
                yield cls, name


def test_every_numeric_argument_is_in_the_table():
    rest = set(argument_names()) - set(NUMBERS)
    assert {name for _, name in rest} == {"axis", "batch_axis"}


def some_inputs(cls, dtype):
    pred, label = mx.nd.array([[0.5, -1, 2]], dtype=dtype), mx.nd.array([[0.2, 0.3, 0.5]], dtype=dtype)
    return (pred, mx.nd.array([1]), label) if cls is DistillationLoss else (pred, label)


@pytest.mark.parametrize("cls, name", NUMBERS, ids=lambda x: getattr(x, "__name__", x))
def test_extreme_numbers_are_refused_where_a_loss_is_made(cls, name):
    for value, allowed in EXTREMES:
        with pytest.raises(ValueError, match=f"^{name} must be {allowed} not {re.escape(repr(value))}$"):
            cls(**{name: value})
    for value in ("1", None, True, [1], mx.nd.ones((1,))):
        if value is not None or name != "weight":
            with pytest.raises(TypeError, match=f"^{name} must be a number, not "):
                cls(**{name: value})


@pytest.mark.parametrize("cls, name", NUMBERS, ids=lambda x: getattr(x, "__name__", x))
def test_other_numbers_work_or_are_refused_where_a_loss_is_made(path, cls, name):
    """Accepted numbers work in every way, and MXNet can read them; any type of number gives the same."""
    for value in USABLE:
        if not NUMBERS[cls, name](value):
            with pytest.raises(ValueError, match=f"^{name} must "):
                cls(**{name: value})
            continue
        made = cls(**{name: value})
        if isinstance(made, mx.metric.EvalMetric):
            made.update(*reversed(some_inputs(cls, "float64")))
            assert np.isfinite(made.get()[1])
            continue
        for dtype, hybridized in itertools.product(("float32", "float64"), (False, True)):
            inputs, blocks = some_inputs(cls, dtype), [cls(**{name: value}), Model(cls(**{name: value}))]
            for block in blocks:
                block.hybridize(hybridized)
                inputs[0].attach_grad()
                with mx.autograd.record():
                    out = block(*inputs)
                out.backward()
                want = cls(**{name: float(value)})(*inputs).asnumpy()
                np.testing.assert_allclose(out.asnumpy(), want, rtol=1e-5)
                assert dtype == "float32" or np.isfinite(inputs[0].grad.asnumpy()).all()


@pytest.mark.parametrize("name", ["axis", "batch_axis"])
def test_axes_beyond_those_of_any_array(name):
    for cls in CLASSES:
        if name in inspect.signature(cls).parameters:
            for value in (32, -33, 2**70):
                with pytest.raises(ValueError, match=f"^{name} must lie between -32 and 31.* not {value}$"):
                    cls(**{name: value})


def test_numbers_as_inputs_keep_the_rule(run):
    pred = mx.nd.array([[0.5, -1]])
    for loss, inputs, name in ((BernoulliKLLoss(label_space="logits"), (), "label"),
                               (GaussianKLLoss(), (pred,), "prior_mean"),
                               (GaussianKLLoss(), (pred, None), "prior_log_variance")):
        run.prepare(loss)
        for value, _ in EXTREMES:
            with pytest.raises(ValueError, match=f"^{name} must "):
                loss(pred, *inputs, value)
        for value in (np.float32(0.25), Fraction(1, 3), 2):
            np.testing.assert_allclose(loss(pred, *inputs, value).asnumpy(),
                                       loss(pred, *inputs, float(value)).asnumpy(), rtol=1e-6)



# 12: unknown shapes


def check_open_shapes():
    """At every rank, with any inputs' shapes unknown: the shapes are found, or there is an error, but no crash."""
    for name, member in FAMILY.items():
        inputs = member.inputs(np.random.RandomState(0), (4, 5))
        for wrapped, weighted in itertools.product((False, True), repeat=2):
            loss = Model(member.make()) if wrapped else member.make()
            names = [*member.make()._names[:len(inputs)], *member.make()._names[-1:] * weighted]
            given = [key for key, x in zip(names, [*inputs, 0.0]) if x is not None]
            if wrapped and weighted and len(given) < len(member.make()._names):
                continue  # Gluon hands neither None nor keywords to a nested block
            symbols = [mx.sym.var(key) if key in given else None for key in names]
            graph = loss(*symbols) if wrapped or not weighted else loss(*symbols[:-1], sample_weight=symbols[-1])
            sizes = {key: x.shape for key, x in zip(names, [*inputs, np.ones((4, 1))]) if x is not None}
            alike = member.make()._road.description.same_shape_inputs
            for rank in (2, 3, 5) if name.startswith("top-k") else (2, 3, 6, 8, 11):  # more than MXNet's slice takes
                shapes = {key: (2,) * (rank - 2) + tuple(1 if n == 1 else 2 for n in sizes[key]) for key in given}
                for known in itertools.chain.from_iterable(
                        itertools.combinations(given, count) for count in range(len(given) + 1)):
                    for _ in range(8):
                        try:
                            found = graph.infer_shape_partial(**{key: shapes[key] for key in known})[0]
                        except mx.MXNetError as error:
                            of_ranks = "bad_alloc" in str(error) or "std::vector" in str(error)
                            assert of_ranks or name.startswith("top-k"), error
                            # Of a stored teacher, nothing tells how many categories it kept.
                            needed = given if name.startswith("top-k") else [names[0], *names[len(inputs):]]
                            assert not {*needed} <= {*known}, (name, known, error)
                            continue
                        if names[0] in known:
                            found = dict(zip(graph.list_arguments(), found))
                            # Nothing tells whether class indices keep the axis, nor what shape a prior has.
                            assert all(found[key] in (shapes[key], None, (), shapes[key][:-1]) for key in given), found
                            assert all(found[key] == shapes[key] for key in alike if key in given), (name, found)


DTYPES = ("float16", "float32", "float64", "bool", "uint8", "int8", "int32", "int64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_open_labels_of_every_dtype(path, dtype):
    """A graph made by hand, bound by the shape of pred alone, gives the values and gradients of the eager call."""
    rng = np.random.RandomState(0)
    hot = np.eye(5)[rng.randint(0, 5, 4)].astype(dtype)
    index = rng.randint(0, 2, 4).astype(dtype)
    teacher = rng.randn(4, 5).astype("float32")
    members = [(KLDivLoss(False), [hot]), (ReverseKLDivLoss(False, label_space="logits"), [hot]), (JSDivLoss(), [hot]),
               (BernoulliKLLoss(), [hot]), (DistillationLoss(2.0), [index, teacher]),
               (DistillationLoss(2.0, sparse_label=False), [hot, teacher]), (DistillationLoss(hard_weight=1), [index])]
    for loss, others in members:
        for pred_dtype in DTYPES[:3]:
            inputs = [-abs(rng.randn(4, 5)).astype(pred_dtype), *others]
            names = loss._names[:len(inputs)]
            graph = loss(*map(mx.sym.var, names), *[None] * (isinstance(loss, DistillationLoss) and len(inputs) < 3))
            types = {name: x.dtype for name, x in zip(names, inputs)}
            if path == "operators" and others[0] is index:
                continue  # whose shape MXNet's own operators do not find
            bound = graph.simple_bind(mx.cpu(), grad_req=dict.fromkeys(names[:1], "write"), type_dict=types,
                                      **{names[0]: (4, 5)})
            for name, x in zip(names, inputs):
                bound.arg_dict[name][:] = x
            value = bound.forward(is_train=True)[0]
            bound.backward(mx.nd.ones_like(value))
            arrays = [nd.array(x, dtype=x.dtype) for x in inputs]
            arrays[0].attach_grad()
            with mx.autograd.record():
                expected = loss(*arrays, *[None] * (isinstance(loss, DistillationLoss) and len(inputs) < 3))
            expected.backward()
            tolerance = {"rtol": 1e-5, "atol": 1e-6}
            np.testing.assert_allclose(value.asnumpy(), expected.asnumpy(), **tolerance)
            np.testing.assert_allclose(bound.grad_dict[names[0]].asnumpy(), arrays[0].grad.asnumpy(), **tolerance)


@needs_operator
def test_open_shapes(in_subprocess):
    in_subprocess("import test_reports; test_reports.check_open_shapes()")


# 13: the package imported again

AGAIN = {  # in this order in one process, each twice
    "reload": "importlib.reload(gluon_kl)",
    "reload the operator's loader": "importlib.reload(gluon_kl.native)",
    "reload every module": "for name in of('gluon_kl'): importlib.reload(sys.modules[name])",
    "purge": "for name in of('gluon_kl'): del sys.modules[name]",
    "purge MXNet too": "for name in of('gluon_kl', 'mxnet'): del sys.modules[name]",
}


def test_the_package_imported_again(path, in_subprocess):
    """Every loss, made before or after, computes as before, and the operator is there if it was."""
    in_subprocess(f"""
        import importlib, sys, warnings
        import gluon_kl, mxnet as mx, numpy as np
        warnings.simplefilter("ignore")

        def of(*packages):
            return [name for name in list(sys.modules) if name.partition(".")[0] in packages]

        def made():
            losses = [gluon_kl.KLDivLoss(from_logits=False, reduction="sum") for _ in range(2)]
            losses[1].hybridize()
            return mx, losses

        def check(mx, losses):
            for loss in losses:
                pred, label = mx.nd.array([[1, 2, 3]]), mx.nd.array([[0.2, 0.3, 0.5]])
                pred.attach_grad()
                with mx.autograd.record():
                    out = loss(pred, label)
                out.backward()
                np.testing.assert_allclose(out.asnumpy(), [0.077953], rtol=1e-4)
                softmax = np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum()
                np.testing.assert_allclose(pred.grad.asnumpy(), [softmax - [0.2, 0.3, 0.5]], rtol=1e-4)

        had, lent = gluon_kl.native.is_available(), len(sys.meta_path)
        eras = [made()]
        for way, code in 2 * list({AGAIN}.items()):
            exec(code)
            import gluon_kl, mxnet as mx
            assert gluon_kl.native.is_available() == had, (way, gluon_kl.native.why_not())
            if eras[0][0] is not mx:
                eras.clear()  # an MXNet taken out of sys.modules imports from the next one as it goes
            eras.append(made())
            for era in eras:
                check(*era)
        assert len(sys.meta_path) == lent
        """)


@needs_operator
def test_the_operator_of_another_copy_is_not_taken(in_subprocess, tmp_path):
    """A second copy may come from another source: it says so, and computes with MXNet's operators."""
    shutil.copytree(str(Path(gluon_kl.__file__).parent), str(tmp_path / "gluon_kl"))
    said = in_subprocess(f"""
        import sys
        import gluon_kl, mxnet as mx
        first = gluon_kl.KLDivLoss(reduction="sum")
        for name in [name for name in sys.modules if name.partition(".")[0] == "gluon_kl"]:
            del sys.modules[name]
        sys.path.insert(0, {str(tmp_path)!r})
        import gluon_kl
        assert gluon_kl.__file__.startswith({str(tmp_path)!r})
        print(gluon_kl.native.why_not())
        p, q = mx.nd.array([[0.2, 0.8]]), mx.nd.array([[0.5, 0.5]])
        assert abs(gluon_kl.KLDivLoss(reduction="sum")(p.log(), q) - first(p.log(), q)).asscalar() < 1e-6
        """)
    assert "another copy of gluon_kl registered its operator in this process: start Python again" in said


@needs_operator
def test_an_upgrade_in_a_running_process(in_subprocess):
    """The library in memory remains that of the old release."""
    said = in_subprocess("""
        import importlib, gluon_kl
        gluon_kl.__version__ = "99.0"
        print(importlib.reload(gluon_kl.native).why_not())
        """)
    assert f"it was built for gluon_kl {gluon_kl.__version__}, and this is 99.0: start Python again" in said


@pytest.mark.skipif(not _mxnet.NEEDED, reason="MXNet runs here by itself")
def test_an_import_of_mxnet_that_failed_is_mended(script):
    """This happens in a notebook whose first cell is `import mxnet`."""
    said = script("""
try:
    import mxnet
except Exception:
    pass
else:
    raise SystemExit("it runs")
import gluon_kl
import mxnet as mx
p = mx.nd.array([[0.2, 0.5, 0.2, 0.1]])
print(gluon_kl.KLDivLoss(reduction="sum")(p.log(), mx.nd.array([[0.3, 0.4, 0.1, 0.2]])).asnumpy().round(4))
""")
    assert said.strip() == "[0.1017]"


# 14: an array as dtype

WITH_DTYPE = {
    "astype": lambda x, y: x.astype(y), "astype, no copy": lambda x, y: x.astype(y, copy=False),
    "cast": lambda x, y: nd.cast(x, dtype=y), "zeros": lambda x, y: nd.zeros((2,), dtype=y),
    "ones": lambda x, y: nd.ones((2,), dtype=y), "full": lambda x, y: nd.full((2,), 3, dtype=y),
    "empty": lambda x, y: nd.empty((2,), dtype=y), "arange": lambda x, y: nd.arange(3, dtype=y),
    "eye": lambda x, y: nd.eye(3, dtype=y), "one_hot": lambda x, y: nd.one_hot(x, 4, dtype=y),
    "array of a list": lambda x, y: nd.array([1, 2], dtype=y),
    "array of NumPy's": lambda x, y: nd.array(np.ones(2), dtype=y),
    "array of MXNet's": lambda x, y: nd.array(x, dtype=y),
    "softmax": lambda x, y: nd.log_softmax(x, dtype=y), "topk": lambda x, y: nd.topk(x, dtype=y),
    "random": lambda x, y: nd.random.normal(shape=(2,), dtype=y),
    "sample": lambda x, y: nd.random.multinomial(nd.array([0.5, 0.5]), dtype=y),
    "sparse": lambda x, y: nd.sparse.csr_matrix(np.eye(2), dtype=y),
    "sparse zeros": lambda x, y: nd.sparse.zeros("row_sparse", (2, 2), dtype=y),
    "sparse astype": lambda x, y: nd.sparse.csr_matrix(np.eye(2)).astype(y),
    "a Symbol's cast": lambda x, y: mx.sym.cast(mx.sym.var("x"), dtype=y).eval(x=x)[0],
    "a Symbol's astype": lambda x, y: mx.sym.var("x").astype(y).eval(x=x)[0],
    "sym.zeros": lambda x, y: mx.sym.zeros((3,), dtype=y).eval()[0],
    "a variable": lambda x, y: mx.sym.var("x", dtype=y).simple_bind(mx.cpu(), x=(2,)).arg_arrays[0],
    "bound": lambda x, y: mx.sym.var("x").simple_bind(mx.cpu(), x=(2,), type_dict={"x": y}).arg_arrays[0],
    "a parameter": lambda x, y: initialized(mx.gluon.Parameter("p", shape=(2,), dtype=y)).data(),
    "a layer": lambda x, y: initialized(mx.gluon.nn.Dense(2, in_units=2, dtype=y)).weight.data(),
    "a layer, cast": lambda x, y: cast(initialized(mx.gluon.nn.Dense(2, in_units=2)), y).weight.data(),
    "a transform": lambda x, y: mx.gluon.data.vision.transforms.Cast(y)(x),
    "np.zeros": lambda x, y: mx.np.zeros((2,), dtype=y), "np.array": lambda x, y: mx.np.array([1, 2], dtype=y),
    "np.full": lambda x, y: mx.np.full((2,), 1, dtype=y), "np.arange": lambda x, y: mx.np.arange(3, dtype=y),
    "np.linspace": lambda x, y: mx.np.linspace(0, 1, 3, dtype=y), "np.astype": lambda x, y: mx.np.ones(2).astype(y),
    "np.sum": lambda x, y: mx.np.ones(2).sum(dtype=y), "np.random": lambda x, y: mx.np.random.normal(size=2, dtype=y),
    "npx.one_hot": lambda x, y: mx.npx.one_hot(mx.np.ones(2), 3, dtype=y),
}


def initialized(block):
    block.initialize()
    return block


def cast(block, dtype):
    block.cast(dtype)
    return block


@pytest.mark.parametrize("name", WITH_DTYPE)
def test_an_array_as_dtype(name):
    """From NumPy 2.4 on, its own `dtype` refuses an array; MXNet's view does not. Types and texts work too."""
    x = nd.array([1, 2])
    for y in (nd.zeros((2,), dtype="float64"), mx.np.zeros((2,), dtype="float64"), np.float64, "float64",
              np.dtype("float64")):
        assert np.dtype(WITH_DTYPE[name](x, y).dtype) == np.float64


def test_what_is_lent_for_it_by_itself():
    """NumPy 1.20 to 2.3 warn of what NumPy 2.4 refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _lend._dtype(nd.ones(2, dtype="int8")) == np.int8
        assert _lend._wrapping_array([300.5], dtype=nd.ones(2, dtype="float64")).dtype == np.float64
    assert _lend._dtype([("bfloat16", np.uint16)]).names == ("bfloat16",)


def test_no_dtype_stays_no_dtype():
    with pytest.raises(TypeError):
        nd.zeros((2,), dtype=np.zeros(2))  # as with every NumPy before
    assert nd.array([1, 2], dtype=None).dtype == mx.np.array([1, 2], dtype=None).dtype == np.float32
    assert nd.array(np.ones(2), dtype=None).dtype == np.float32


# 15: the extra beside other pins of MXNet


def extra(name):
    metadata = configparser.ConfigParser()
    metadata.read(str(ROOT / "setup.cfg"), encoding="utf-8")
    return metadata["options.extras_require"][name].strip().split("\n")


@pytest.mark.parametrize("python, brings", [*[(f"3.{minor}", {"mxnet"}) for minor in range(8, 13)],
                                            ("3.13", {"graphviz", "requests"})])
def test_what_the_extra_allows(python, brings):
    asked = list(map(packaging.requirements.Requirement, extra("cpu")))
    asked = {each.name: each for each in asked if each.marker.evaluate({"python_version": python})}
    assert set(asked) == brings
    if "mxnet" in asked:
        for version in ("1.7.0", "1.7.0.post2", "1.8.0", "1.8.0.post0", "1.9.0", "1.9.1", "2.0.0b1", "2.0.0"):
            assert asked["mxnet"].specifier.contains(version, prereleases=True)
        assert not {"1.6.0", "3.0.0"} & set(asked["mxnet"].specifier.filter(["1.6.0", "3.0.0"]))


def resolved(*requirements):
    """What pip would install, by name; or None, and its last message, if it finds no solution."""
    done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report",
                           "-", "--only-binary", ":all:", *requirements], text=True, capture_output=True, timeout=120)
    if done.returncode:
        return None, done.stderr.strip().split("\n")[-1]
    packages = [each["metadata"] for each in json.loads(done.stdout)["install"]]
    return {each["name"].lower(): each["version"] for each in packages}, ""


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="no NumPy that MXNet's metadata allow has a wheel here")
def test_the_extra_beside_another_pin():
    alone, words = resolved("mxnet==1.8.0.post0")
    if alone is None:
        pytest.skip(f"pip reaches no registry: {words}")
    assert resolved("mxnet==1.8.0.post0", *extra("cpu")) == (alone, "")
    newest, words = resolved(*extra("cpu"))
    assert newest["mxnet"] == "1.9.1", words


# 16: programs that import MXNet first

SHOW = """
import sys, os, __main__
print(sys.argv[1:], os.path.basename(sys.argv[0]), os.path.realpath(sys.path[0] or "here"), __name__, __package__,
      os.path.basename(globals().get("__file__", "")), __spec__ and __spec__.name, vars(__main__) is globals(),
      type(__loader__).__name__ if "__file__" in globals() else None)
"""
POOL = """
import concurrent.futures, multiprocessing
def square(x):
    return x * x
if __name__ == "__main__":  # what is left to do is pickled after the last line, by the name __main__.square
    workers = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
    for i in range(20):
        workers.submit(square, i).add_done_callback(lambda done: print(done.result()))
"""
FILES = {
    "show.py": SHOW, "without_suffix": SHOW, "folder/__main__.py": "import beside\n" + SHOW, "folder/beside.py": "",
    "package/__init__.py": "import sys; print(sys.argv[0])", "package/__main__.py": "from . import part\n" + SHOW,
    "package/part.py": SHOW, "text.py": "raise SystemExit('a text')", "broken.py": "x = = 1", "pool.py": POOL,
    "raises.py": "def f():\n    return 1 / 0\nf()", "interrupted.py": "raise KeyboardInterrupt",
    "elsewhere/own.py": SHOW,
    "late.py": "import atexit, sys\nhere = 3\natexit.register(lambda: print(sys.modules['__main__'].here, __name__))",
}
PROGRAMS = [
    ("show.py", "-m", "--help", "a b"), ("./show.py",), ("elsewhere/link.py", "--x=1"), ("elsewhere/own.py",),
    ("without_suffix", "-c"),
    ("folder",), ("zipped.zip", "1"), ("-m", "show", "-x", "--install-hook"), ("-m", "package", "1"),
    ("-m", "package.part", "--", "-m"), ("-c", "import sys; print(sys.argv, repr(sys.path[0]), __name__)", "-m", "x"),
    ("text.py",), ("broken.py",), ("raises.py",), ("-m", "raises"), ("interrupted.py",), ("-m", "nowhere"),
    ("-m", "package.nowhere"), ("/nowhere/missing.py",), ("-c", "1 +"), ("pool.py",), ("-m", "pool"), ("late.py",),
    ("-m", "late"), ("-c", "import sys; sys.exit(7)"),
]
AS_PYTHON = """
import json, os, sys
from gluon_kl.__main__ import main
programs, sys.path[0] = json.loads(sys.argv[1]), os.getcwd()  # where `python -m` looks first
for number, program in enumerate(programs):
    child = os.fork()
    if not child:
        for descriptor, stream in (1, sys.stdout), (2, sys.stderr):
            os.dup2(os.open(f"said.{number}.{descriptor}", os.O_CREAT | os.O_WRONLY), descriptor)
        sys.exit(main(program))
    status = os.waitpid(child, 0)[1]
    print(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
"""


def test_programs_run_as_python_runs_them(tmp_path, monkeypatch):
    """Programs see, print and return the same as with plain Python, and fail in the same way."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    with zipfile.ZipFile(str(tmp_path / "zipped.zip"), "w") as archive:
        archive.writestr("__main__.py", SHOW)
    (tmp_path / "elsewhere" / "link.py").symlink_to(tmp_path / "show.py")
    (tmp_path / "driver.py").write_text(AS_PYTHON, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    driver = subprocess.run([sys.executable, "-W", "ignore", "driver.py", json.dumps(PROGRAMS)], text=True, timeout=600,
                            stdout=subprocess.PIPE, check=True)
    for number, (program, code) in enumerate(zip(PROGRAMS, map(int, driver.stdout.split()))):
        python = subprocess.run([sys.executable, "-W", "ignore", *program], text=True, capture_output=True, timeout=60)
        out, error = (Path(f"said.{number}.{descriptor}").read_text() for descriptor in (1, 2))
        assert (code, out) == (python.returncode, python.stdout), (program, error)
        for said, ours in zip(python.stderr.split("\n")[::-1], error.split("\n")[::-1]):
            if said.startswith("Traceback") or "<frozen runpy>" in said or "runpy.py" in said:
                break  # above are the frames that lead there
            for name in (f"{sys.executable}: ", "python -m gluon_kl: ", f"{tmp_path}/"):  # Python 3.8 has not the last
                said, ours = said.replace(name, ""), ours.replace(name, "")
            assert said == ours, (program, error)
        assert bool(error) == bool(python.stderr), (program, error)


@pytest.mark.parametrize("arguments, says", [
    ([], "say what to do: -m MODULE"), (["-m"], "say what to do: -m MODULE"), (["--nonsense"], "--nonsense"),
    (["--install-hook", "train.py"], "a hook takes no argument, such as 'train.py'"),
    (["--install-hook", "--remove-hook"], "not allowed with argument --install-hook")])
def test_what_cannot_be_done_is_said(arguments, says, capsys):
    with pytest.raises(SystemExit) as caught:
        __main__.main(arguments)
    assert caught.value.code == 2 and says in capsys.readouterr().err


# If MXNet needs no patches it gets some nevertheless, so that the tests are the same there.
NEWER = "" if _mxnet.NEEDED else "import numpy; numpy.__version__ = '1.24.0'\n"
PLAIN = """
import mxnet as mx
import gluon_kl
import sys
assert mx.nd.ndarray.np is not __import__("numpy")
assert sum(hasattr(finder, "gluon_kl_lends") for finder in sys.meta_path) == 1
p = mx.nd.array([[0.2, 0.5, 0.2, 0.1]])
print(gluon_kl.KLDivLoss(reduction="sum")(p.log(), mx.nd.array([[0.3, 0.4, 0.1, 0.2]])).asnumpy().round(4))
"""
FIND = "import importlib.util as util; print(util.find_spec('mxnet').name)"
EMPTY = "import sys; print(sorted({'numpy', 'mxnet', 'gluon_kl', 'importlib.util', 'inspect'} & set(sys.modules)))"


class Environment:
    """A virtual environment without pip, which sees this one's packages, and gluon_kl until it is uninstalled."""

    def __init__(self, folder):
        self.folder = folder
        venv.create(str(folder), symlinks=True)
        self.packages, = folder.glob("lib/python*/site-packages")
        self.hook = self.packages / "gluon_kl_hook.pth"
        (self.packages / "others.pth").write_text(str(Path(np.__file__).parent.parent))
        self.installed = self.packages / "aaa.pth"
        self.installed.write_text(str(ROOT))

    def python(self, *arguments, code=0, cwd=None):
        """What Python prints there, first the standard output and then the standard error."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([str(self.folder / "bin" / "python"), "-W", "ignore", *arguments], text=True, timeout=60,
                              capture_output=True, env=environment, cwd=cwd or str(self.folder))
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def files(self):
        files = (file for file in self.folder.rglob("*") if "__pycache__" not in str(file))
        return {str(file): file.lstat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("environment") / "env")


def test_the_hook_is_written_serves_and_is_removed(environment):
    before = environment.files()
    assert f"Wrote {environment.hook}: from now on" in environment.python("-m", "gluon_kl", "--install-hook")
    after = environment.files()
    assert set(after) - set(before) == {str(environment.hook)}
    assert all(after[file] == time for file, time in before.items() if Path(file).is_file())
    assert environment.python("-c", EMPTY) == "[]\n"  # a start without MXNet
    assert environment.python("-c", NEWER + PLAIN) == "[0.1017]\n"
    assert environment.python("-c", NEWER + "import gluon_kl" + PLAIN) == "[0.1017]\n"
    assert f"Removed {environment.hook}." in environment.python("-m", "gluon_kl", "--remove-hook")
    assert set(environment.files()) == set(before)


def test_a_hook_that_outlives_the_package(environment):
    environment.hook.write_text(_hook.line())
    packages = environment.installed.read_text()
    environment.installed.unlink()
    try:
        assert environment.python("-c", EMPTY) == "[]\n"
        assert environment.python("-c", FIND) == "mxnet\n"
        assert environment.python("-c", "import sys; sys.path.pop()\ntry: import mxnet\n"
                                  "except ImportError as error: print(error)") == "No module named 'mxnet'\n"
        older = environment.packages / "gluon_kl"
        older.mkdir()
        (older / "__init__.py").write_text("raise SystemExit('imported')")
        try:
            assert environment.python("-c", FIND) == "mxnet\n"
        finally:
            shutil.rmtree(str(older))
        said = environment.python("-m", "gluon_kl", "--install-hook", cwd=str(ROOT), code=1)
        assert said.startswith("gluon_kl was found in the current folder only") and "`pip install .`" in said
    finally:
        environment.installed.write_text(packages)
        environment.hook.unlink()


def test_the_hook_costs_a_start_less_than_5_ms():
    timed = f"import time\nstart = time.perf_counter()\nexec({_hook.line()!r})\nprint(time.perf_counter() - start)"
    costs = [subprocess.check_output([sys.executable, "-c", timed]) for _ in range(5)]
    assert min(map(float, costs)) < 0.005


def test_where_the_hook_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    folders = [str(tmp_path / "file" / "packages"), str(tmp_path / "own" / "packages")]
    monkeypatch.setattr(_hook, "folders", lambda: folders)
    assert _hook.remove() == f"There is no hook to remove: no gluon_kl_hook.pth in {' or '.join(folders)}."
    hook = Path(folders[1], _hook.NAME)
    assert f"Wrote {hook}: from now on" in _hook.install()  # the user's folder may not be there yet
    assert f"{hook} is there already" in _hook.install()
    hook.write_text("# of another release")
    assert f"Wrote {hook}: from now on" in _hook.install() and hook.read_text() == _hook.line()
    assert _hook.remove() == f"Removed {hook}." and not hook.exists()
    folders.pop()
    with pytest.raises(_hook.Failure, match=r"gluon_kl_hook.pth cannot be written .Not a directory.: run this as"):
        _hook.install()
    folders[:] = [str(tmp_path)]
    (tmp_path / _hook.NAME).mkdir()
    with pytest.raises(_hook.Failure, match=r"cannot be written \(Is a directory\)"):
        _hook.install()
    with pytest.raises(_hook.Failure, match="cannot be removed"):
        _hook.remove()


def test_the_hook_goes_where_the_package_is(monkeypatch):
    shared, package = sysconfig.get_path("purelib"), str(Path(_hook.__file__).parent.parent)
    for enabled, own, expected in [(False, "/home/me", [shared]), (None, "/home/me", [shared]),
                                   (True, "/home/me", [shared, "/home/me"]), (True, package, [package, shared])]:
        monkeypatch.setattr(site, "ENABLE_USER_SITE", enabled)
        monkeypatch.setattr(site, "getusersitepackages", lambda own=own: own)
        assert _hook.folders() == expected


# 17: check_inputs names the right remedy

SCORES = np.array([[1.0, -2, 0.5, 3], [0.2, 1, -1, 0], [2, 2, -3, 0.1]])
SHARES = np.array([[0.7, 0.1, 0.1, 0.1], [0, 0.5, 0.5, 0], [0.25, 0.25, 0.25, 0.25]])
YES = 1 / (1 + np.exp(-SCORES))
NEGATIVE = SHARES + np.array([[0, 0, 0, 0], [-0.001, 0, 0.001, 0], [0, 0, 0, 0]])
COUNTS = np.array([[7, 1, 1, 1], [0, 4, 4, 0], [3, 3, 3, 3]])
PADDED = SHARES * [[1], [0], [1]]
PIXELS = np.array([[0, 255, 51, 102], [255, 0, 0, 51], [51, 51, 255, 0]])
KL = {"reduction": "sum"}
FROM_SCORES = {"from_logits": False, "reduction": "sum"}
VALID = [1, 0, 1]
NOT_KL = {"reduction": "sum", "from_sigmoid": True}

REMEDIES = [  # the mistake: loss and inputs; what must be said and what not; the mended inputs, the reference's terms
    ("sigmoid outputs", gluon_kl.KLDivLoss(pred_space="probs", **KL), (YES, SHARES),
     ["sigmoid", "gluon_kl.BernoulliKLLoss(from_sigmoid=True)"], ["pred_space='logits'"],
     gluon_kl.BernoulliKLLoss(**NOT_KL), (YES, SHARES), oracle.bernoulli_terms(YES, SHARES, True)),
    ("a label of -0.001", gluon_kl.KLDivLoss(**FROM_SCORES), (SCORES, NEGATIVE),
     ["negative probability, -0.001;", "label.clip(0, 1)"], ["logits"], None, (SCORES, NEGATIVE.clip(0, 1)),
     oracle.kl_terms(SCORES, NEGATIVE.clip(0, 1), "logits")),
    ("counts", gluon_kl.KLDivLoss(**FROM_SCORES), (SCORES, COUNTS), ["counts", "label / label.sum("],
     ["class indices", "one_hot"], None, (SCORES, COUNTS / COUNTS.sum(axis=1, keepdims=True)),
     oracle.kl_terms(SCORES, COUNTS / COUNTS.sum(axis=1, keepdims=True), "logits")),
    ("rows of zeros", gluon_kl.KLDivLoss(**FROM_SCORES), (SCORES, PADDED), ["1 of 3 rows of label is 0", "padding"],
     ["divide"], None, (SCORES, PADDED, VALID), oracle.kl_terms(SCORES, SHARES, "logits") * [[1], [0], [1]]),
    ("labels of 0 to 255", gluon_kl.BernoulliKLLoss(**KL), (SCORES, PIXELS), ["from 0 to 255", "255 for pixels"], [],
     None, (SCORES, PIXELS / 255), oracle.bernoulli_terms(SCORES, PIXELS / 255)),
    ("a variance for its logarithm", gluon_kl.GaussianKLLoss(), (SCORES, YES), ["log_variance.log()", "spread='std'"],
     [], None, (SCORES, np.log(YES)), oracle.gaussian_terms(SCORES, np.log(YES))),
    ("class indices from 1", gluon_kl.DistillationLoss(hard_weight=1), (SCORES, np.array([1, 4, 2]), None),
     ["not 4", "label - 1"], [], None, (SCORES, np.array([0, 3, 1]), None),
     -oracle.log_softmax(SCORES) * np.eye(4)[[0, 3, 1]]),
]


@pytest.mark.parametrize("loss, inputs, said, unsaid, mended_loss, mended, terms", [row[1:] for row in REMEDIES],
                         ids=[row[0] for row in REMEDIES])
def test_the_remedy_gives_the_right_value(run, loss, inputs, said, unsaid, mended_loss, mended, terms):
    inputs, mended = ([None if x is None else run.array(np.array(x, "float64"), mx.nd.array) for x in given]
                      for given in (inputs, mended))
    with pytest.raises(ValueError) as caught:
        loss.check_inputs(*inputs)
    message = str(caught.value)
    assert all(word in message for word in said) and not any(word in message for word in unsaid), message
    loss = loss if mended_loss is None else mended_loss
    loss.check_inputs(*mended)
    np.testing.assert_allclose(run(loss, *mended), terms.sum(axis=1), rtol=1e-6)


def test_weights_are_looked_at_and_left_out():
    scores, label = np.zeros((2, 5, 4)), np.full((2, 5, 4), 0.25)
    label[1, 3:] = 9
    loss, arrays = gluon_kl.KLDivLoss(**FROM_SCORES), [mx.nd.array(x) for x in (scores, label)]
    with pytest.raises(ValueError, match="whole numbers from 3 to 5, as the lengths of sequences do"):
        loss.check_inputs(*arrays, mx.nd.array([5, 3]))
    with pytest.raises(ValueError, match="sum to 1"):
        loss.check_inputs(*arrays)
    valid = mx.nd.SequenceMask(mx.nd.ones((2, 5)), mx.nd.array([5, 3]), True, axis=1)
    loss.check_inputs(*arrays, valid)
    loss.check_inputs(*arrays, sample_weight=valid)


@pytest.mark.parametrize("name", [name for name in gluon_kl.__all__ if name.endswith("Loss")])
def test_every_loss_has_check_inputs(name):
    loss = getattr(gluon_kl, name)
    named, look = (list(inspect.signature(method).parameters) for method in (loss.hybrid_forward, loss.check_inputs))
    assert look == [name for name in named if name != "F"] and "Examples" in loss.check_inputs.__doc__


# 18: second-order gradients


@pytest.mark.parametrize("hybrid", [False, True])
@in_one_test("name", FAMILY)
def test_second_order_gradients(path, name, hybrid):
    """They are not supported: the error names the fused operator, or MXNet's own, not a node in front of it."""
    member = FAMILY[name]
    inputs = member.inputs(np.random.RandomState(0), (3, 4))
    arrays = [None if x is None else nd.array(x, dtype=x.dtype) for x in inputs]
    arrays[0].attach_grad()
    loss = member.make()
    if hybrid:
        loss.hybridize()
    with pytest.raises(mx.MXNetError) as raised, mx.autograd.record():
        gradient = mx.autograd.grad(loss(*arrays), [arrays[0]], create_graph=True, retain_graph=True)[0]
        gradient.sum().backward()
    stored = loss._names[2:3] == ("teacher_index",) and member is not FAMILY["top-k, hard"]
    several = stored and (member.ignored is not None or not member.sparse)  # operators behind the fused one
    fused = path == "native" and not (hybrid and several)
    named = "_gluon_kl_" if fused else "CachedOp does not" if hybrid else "non-differentiable"
    assert (path == "operators" and stored) or "_backward_reshape" not in str(raised.value)
    assert named in str(raised.value) and "_backward_copy" not in str(raised.value), raised.value
