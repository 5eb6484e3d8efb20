"""ReverseKLDivLoss and JSDivLoss: masks, digits and limits of their own; errors and reprs of every member."""

import itertools
import math

from gluon_kl import BernoulliKLLoss, DistillationLoss, GaussianKLLoss, JSDivLoss, KLDivLoss, ReverseKLDivLoss

import mxnet as mx
import numpy as np
import pytest

import oracle
from cases import MEMBERS, SPACES, Pair, close, in_one_test

FLOATS = ("float16", "float32", "float64")


# Masks, and distributions that share nothing

INF = math.inf
JS_BOUND = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
SUPPORTS = {  # pred, label, KL(pred || label), JS at 0.3
    "disjoint": ([0, 0, 1.0], [0.5, 0.5, 0], INF, JS_BOUND),
    "equal, with a gap": ([0.5, 0, 0.5], [0.5, 0, 0.5], 0, 0),
    "label has more": ([1.0, 0, 0], [0.5, 0.5, 0], math.log(2),
                       0.15 * math.log(0.5 / 0.85) + 0.15 * math.log(1 / 0.3) + 0.7 * math.log(1 / 0.85)),
    "pred has more": ([0.5, 0.5, 0], [1.0, 0, 0], INF,
                      0.3 * math.log(1 / 0.65) + 0.35 * math.log(0.5 / 0.65) + 0.35 * math.log(1 / 0.7)),
}


@pytest.mark.parametrize("pred, label, reverse, js", SUPPORTS.values(), ids=SUPPORTS)
@in_one_test("label_space", SPACES)
@in_one_test("from_logits", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_supports(eager, pred, label, reverse, js, label_space, from_logits, dtype):
    with np.errstate(divide="ignore"):
        pred = np.log(np.array([pred])).astype(dtype)
        target = np.array([label]) if label_space == "probs" else np.log(np.array([label]))
    target = target.astype(dtype)
    near = dict(rtol=1e-3, atol=1e-3) if dtype == "float16" else dict(rtol=1e-5, atol=1e-5)
    options = dict(from_logits=from_logits, label_space=label_space, reduction="sum")
    np.testing.assert_allclose(eager(ReverseKLDivLoss(**options), pred, target), [reverse], **near)
    for value in (eager(JSDivLoss(beta=0.3, **options), pred, target),
                  eager(JSDivLoss(beta=0.3, **{**options, "reduction": "none"}), pred, target).sum(-1)):
        np.testing.assert_allclose(value, [js], **near)
    gradients = list(eager.gradients(JSDivLoss(beta=0.3, **options), pred, target))
    if np.isfinite(reverse):
        gradients += eager.gradients(ReverseKLDivLoss(**options), pred, target)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_gradients_to_labels_of_zero(eager):
    """Finite where the divergence is, and 0 where pred has no mass either."""
    pred = np.log(np.array([[0.5, 0.5 - 1e-9, 1e-9, 1.0]]))
    pred[0, 3], label = -INF, np.array([[1.0, 0.0, 0.0, 0.0]])
    _, to_label = eager.gradients(JSDivLoss(beta=0.3, reduction="sum"), pred, label)
    least = -0.3 * (80 + math.log(0.7))  # as of a label e^80 times smaller than pred
    np.testing.assert_allclose(to_label, [[0.3 * math.log(1 / 0.65), least, least, 0]], rtol=1e-9)
    scores = np.array([[0.0, 1.0, -INF]])
    _, to_label, _ = eager.gradients(DistillationLoss(hard_weight=1, sparse_label=False), scores,
                                   np.array([[0.0, 1.0, 0.0]]), None)
    np.testing.assert_allclose(to_label, [[math.log1p(math.e), math.log1p(math.e) - 1, 0]], rtol=1e-9)


def test_masked_teacher_and_student(eager):
    pred, teacher = np.array([[0.3, -INF, 1.0], [0.3, 0.1, 1.0], [0.3, -INF, 1.0]]), np.array(
        [[0.5, -INF, 2.0], [0.5, -INF, 2.0], [0.5, 0.1, 2.0]])
    loss = DistillationLoss(temperature=2, hard_weight=0.5)
    value = eager(loss, pred, np.array([0, 1, 1]), teacher)
    close(value, oracle.distillation(pred, [0, 1, 1], teacher, temperature=2, hard_weight=0.5))
    assert np.isfinite(value[:2]).all() and np.isposinf(value[2])
    to_pred = eager.gradients(loss, pred[:2], np.array([0.0, 1]), teacher[:2])[0]
    assert np.isfinite(to_pred).all() and to_pred[0, 1] == 0


@pytest.mark.parametrize("member", [MEMBERS[name] for name in ("reverse logits probs", "js logits logits", "soft")])
def test_row_without_a_distribution_is_nan(eager, rng, member):
    inputs = member.inputs(rng, (4, 3))
    inputs[0][:3] = [[-INF] * 3, [np.nan, 0, 1], [INF, 0, 1]]
    value = eager(member.make(), *inputs)
    assert np.isnan(value[:3]).all() and np.isfinite(value[3])


# Digits

@pytest.mark.parametrize("make", [
    lambda: ReverseKLDivLoss(False, label_space="logits", reduction="sum"),
    lambda: ReverseKLDivLoss(label_space="log_probs", reduction="sum"),
    lambda: JSDivLoss(False, label_space="logits", reduction="sum"),
    lambda: JSDivLoss(label_space="log_probs", reduction="none", beta=0.1),
    lambda: GaussianKLLoss(),
], ids=["reverse", "reverse of logs", "js", "js of logs", "gaussian"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_exactly_zero_at_equality(eager, rng, make, dtype):
    x = oracle.log_softmax(4 * rng.normal(size=(50, 20))).astype(dtype)
    loss = make()
    inputs = [x, x, x, x] if isinstance(loss, GaussianKLLoss) else [x, x]
    if len(inputs) == 2:
        x[0, 0] = -INF
    assert (eager(loss, *inputs) == 0).all()
    if not repr(loss).startswith("ReverseKLDivLoss(from_logits=True"):  # free log-probabilities have no minimum there
        assert all(abs(gradient).max() < 1e-6 for gradient in eager.gradients(loss, *inputs))
    assert len(inputs) == 4 or (eager(DistillationLoss(3.0, 0), x, None, x) == 0).all()


@pytest.mark.parametrize("noise", [1e-7, 1e-5, 1e-3, 1e-1, 1.0, 10.0])
def test_small_divergences_keep_their_digits(eager, rng, noise):
    label = rng.normal(size=(200, 50)).astype("float32")
    pred = (label + noise * rng.normal(size=label.shape)).astype("float32")
    precise = [x.astype("float64") for x in (pred, label)]
    log_p, log_q = oracle.log_softmax(precise[1]), oracle.log_softmax(precise[0])
    p, q, u = np.exp(log_p), np.exp(log_q), log_p - log_q
    ahead, behind = 0.3 * np.expm1(u), 0.7 * np.expm1(-u)
    js = 0.3 * p * (behind - np.log1p(behind)) + 0.7 * q * (ahead - np.log1p(ahead))
    reverse = p * (u * np.exp(-u) * -1 - np.expm1(-u) * -1)  # q (-u) - q + p, over p
    for value, expected in (
            (eager(JSDivLoss(False, label_space="logits", beta=0.3, reduction="sum"), pred, label), js.sum(-1)),
            (eager(ReverseKLDivLoss(False, label_space="logits", reduction="sum"), pred, label), reverse.sum(-1))):
        assert (value >= 0).all()
        if noise >= 1e-3:
            assert np.median(np.abs(value / expected - 1)) < 1e-4


@pytest.mark.parametrize("label_space", ["probs", "logits"])
def test_js_terms_are_never_negative(eager, rng, label_space):
    label = (5 * rng.normal(size=(200, 50))).astype("float32")
    for noise in (1e-7, 1e-6, 1e-4, 30):  # rounding makes some of the first three fall below 0 by 1e-15
        pred = (label + noise * rng.normal(size=label.shape)).astype("float32")
        target = label if label_space == "logits" else np.exp(oracle.log_softmax(label)).astype("float32")
        loss = JSDivLoss(False, label_space=label_space, beta=0.3, reduction="none")
        assert (eager(loss, pred, target) >= 0).all()


# The ends of JSDivLoss

@pytest.mark.parametrize("from_logits, label_space", [*itertools.product((True, False), SPACES)])
def test_js_ends_are_the_two_divergences(eager, rng, from_logits, label_space):
    member = Pair(JSDivLoss, oracle.js_terms, from_logits, label_space)
    pred, label = member.inputs(rng, (4, 6))
    for reduction in ("sum", "mean", "none"):
        options = dict(from_logits=from_logits, label_space=label_space, reduction=reduction)
        for beta, end in ((0, KLDivLoss), (1, ReverseKLDivLoss)):
            np.testing.assert_array_equal(eager(JSDivLoss(beta=beta, **options), pred, label),
                                          eager(end(**options), pred, label))
            for got, want in zip(eager.gradients(JSDivLoss(beta=beta, **options), pred, label),
                                 eager.gradients(end(**options), pred, label)):
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype, tiny", [("float32", 1e-5), ("float64", 1e-9)])
def test_js_near_its_ends(eager, rng, dtype, tiny):
    """Up to the factors beta and 1 - beta, the ends are the limits."""
    pred, label = rng.normal(size=(2, 5, 8)).astype(dtype)
    options = dict(from_logits=False, label_space="logits", reduction="sum")
    for beta, factor, end in ((tiny, tiny, KLDivLoss), (1 - tiny, tiny, ReverseKLDivLoss)):
        value = eager(JSDivLoss(beta=beta, **options), pred, label) / factor
        np.testing.assert_allclose(value, eager(end(**options), pred, label), rtol=1e-3 if dtype == "float32" else 1e-6)
    # A share that float32 loses beside 1 still bounds what disjoint rows cost.
    with np.errstate(divide="ignore"):
        apart = np.log(np.eye(2)[:1]).astype(dtype), np.eye(2)[1:].astype(dtype)
    for beta in (1e-12, 1e-3, 0.5):
        bound = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
        np.testing.assert_allclose(eager(JSDivLoss(beta=beta, reduction="sum"), *apart), [bound], rtol=1e-6)


def test_js_is_symmetric_at_one_half(eager, rng):
    pred, label = (oracle.log_softmax(rng.normal(size=(4, 6))) for _ in range(2))
    loss = JSDivLoss(label_space="log_probs")
    np.testing.assert_allclose(eager(loss, pred, label), eager(loss, label, pred), rtol=1e-12)


# Errors

@pytest.mark.parametrize("loss, arguments, error, words", [
    (ReverseKLDivLoss, dict(reduction="avg"), ValueError, ["reduction", "'avg'"]),
    (ReverseKLDivLoss, dict(label_space="p"), ValueError, ["label_space", "'p'"]),
    (JSDivLoss, dict(beta=1.5), ValueError, ["beta", "between 0 and 1", "1.5"]),
    (JSDivLoss, dict(beta=-0.1), ValueError, ["beta", "-0.1"]),
    (JSDivLoss, dict(beta=math.nan), ValueError, ["beta", "nan"]),
    (JSDivLoss, dict(beta="0.5"), TypeError, ["beta", "number", "'0.5'"]),
    (JSDivLoss, dict(from_logits=0), TypeError, ["from_logits", "0"]),
    (DistillationLoss, dict(temperature=0), ValueError, ["temperature", "between 1e-06 and 1000000.0", "0"]),
    (DistillationLoss, dict(temperature=math.inf), ValueError, ["temperature", "inf"]),
    (DistillationLoss, dict(temperature="2"), TypeError, ["temperature", "'2'"]),
    (DistillationLoss, dict(hard_weight=1.1), ValueError, ["hard_weight", "between 0 and 1", "1.1"]),
    (DistillationLoss, dict(sparse_label=1), TypeError, ["sparse_label", "True or False", "1"]),
    (DistillationLoss, dict(axis="c"), TypeError, ["axis", "'c'"]),
    (DistillationLoss, dict(divergence="KL"), ValueError,
     ["divergence", "'kl', 'reverse_kl', 'js', 'skew_kl', 'skew_reverse_kl' or 'tv'", "'KL'"]),
    (DistillationLoss, dict(beta=2), ValueError, ["beta", "between 0 and 1", "2"]),
    (DistillationLoss, dict(teacher_space="p"), ValueError,
     ["teacher_space", "'logits', 'probs' or 'log_probs'", "'p'"]),
    (DistillationLoss, dict(axis=True), TypeError, ["axis", "True"]),
    (ReverseKLDivLoss, dict(pred_space="p"), ValueError, ["pred_space", "'probs', 'log_probs' or 'logits'", "'p'"]),
    (JSDivLoss, dict(from_logits=False, pred_space="probs"), ValueError, ["from_logits=False", "pred_space='probs'"]),
    (JSDivLoss, dict(from_logits=False, pred_space="log_probs"), ValueError, ["pred_space='log_probs'"]),
    (GaussianKLLoss, dict(reduction="row_mean"), ValueError, ["reduction", "'mean', 'sum' or 'none'", "'row_mean'"]),
    (GaussianKLLoss, dict(spread="sd"), ValueError, ["spread", "'log_variance' or 'std'", "'sd'"]),
    (BernoulliKLLoss, dict(reduction="row_mean"), ValueError, ["reduction", "'row_mean'"]),
    (BernoulliKLLoss, dict(label_space="log_probs"), ValueError, ["label_space", "'probs' or 'logits'", "'log_probs'"]),
    (BernoulliKLLoss, dict(from_sigmoid="no"), TypeError, ["from_sigmoid", "True or False", "'no'"]),
    (BernoulliKLLoss, dict(batch_axis=True), TypeError, ["batch_axis", "True"]),
    (GaussianKLLoss, dict(free_nats=-1), ValueError, ["free_nats", "negative", "-1"]),
    (GaussianKLLoss, dict(free_nats=math.inf), ValueError, ["free_nats", "inf"]),
    (GaussianKLLoss, dict(reduction="all"), ValueError, ["reduction", "'all'"]),
    (GaussianKLLoss, dict(weight="1"), TypeError, ["weight", "'1'"]),
    (GaussianKLLoss, dict(batch_axis=0.0), TypeError, ["batch_axis", "0.0"]),
])
def test_argument_errors(loss, arguments, error, words):
    with pytest.raises(error) as caught:
        loss(**arguments)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("loss, shapes, words", [
    (ReverseKLDivLoss(), ((2, 3), (1, 3)), ["pred", "label", "(2, 3)", "(1, 3)"]),
    (JSDivLoss(axis=2), ((2, 3), (2, 3)), ["axis = 2", "(2, 3)"]),
    (JSDivLoss(), ((2, 3), (2, 3), (3,)), ["sample_weight", "(3,)", "pred"]),
    (DistillationLoss(hard_weight=0), ((2, 3), None, (2, 1)), ["pred", "teacher_pred", "(2, 1)"]),
    (DistillationLoss(hard_weight=1), ((2, 3), (2, 3), None), ["label", "(2,)", "(2, 3)", "sparse_label=False"]),
    (DistillationLoss(hard_weight=1), ((2, 3), (3,), None), ["label", "(2,)", "(3,)"]),
    (DistillationLoss(hard_weight=1, axis=1), ((2, 3, 4), (2, 3), None), ["(2, 4)", "(2, 3)"]),
    (DistillationLoss(hard_weight=1, sparse_label=False), ((2, 3), (2,), None), ["pred", "label", "(2,)"]),
    (DistillationLoss(hard_weight=0, axis=0), ((2, 3), None, (2, 3)), ["axis = 0", "batch_axis = 0", "(2, 3)"]),
    (DistillationLoss(hard_weight=0), ((3,), None, (3,)), ["axis = -1", "batch_axis = 0"]),
    (DistillationLoss(hard_weight=0, batch_axis=5), ((2, 3), None, (2, 3)), ["batch_axis = 5"]),
    (GaussianKLLoss(), ((2, 3), (2, 1)), ["mean", "log_variance", "(2, 1)"]),
    (GaussianKLLoss(), ((2, 3), (2, 3), (2,)), ["mean", "prior_mean", "(2,)", "broadcast"]),
    (GaussianKLLoss(), ((2, 3), (2, 3), None, (4, 3)), ["mean", "prior_log_variance", "(4, 3)"]),
    (GaussianKLLoss(), ((2, 3), (2, 3), None, (1, 2, 3)), ["mean", "prior_log_variance", "(1, 2, 3)"]),
    (BernoulliKLLoss(), ((2, 3), (2,)), ["pred", "label", "(2, 3)", "(2,)"]),
    (BernoulliKLLoss(), ((2, 3), (2, 3), (3,)), ["sample_weight", "(3,)", "pred of shape (2, 3)"]),
    (BernoulliKLLoss(batch_axis=2), ((2, 3), (2, 3)), ["batch_axis = 2", "pred"]),
    (ReverseKLDivLoss(), ((2, 3, 4), (2, 3, 4), (3, 2)), ["sample_weight", "(3, 2)", "(2,)", "(2, 3)"]),
    (GaussianKLLoss(), ((2, 3), (2, 3), None, None, (3,)), ["sample_weight", "mean of shape (2, 3)", "(3,)"]),
    (GaussianKLLoss(batch_axis=2), ((2, 3), (2, 3)), ["batch_axis = 2", "mean"]),
])
def test_shape_errors(run, loss, shapes, words):
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            run.prepare(loss)(*[None if shape is None else mx.nd.ones(shape) for shape in shapes])
        assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("loss, count, required", [
    (ReverseKLDivLoss(), 2, ("pred", "label")), (JSDivLoss(), 2, ("pred", "label")),
    (DistillationLoss(hard_weight=0.5), 3, ("pred", "label", "teacher_pred")),
    (DistillationLoss(hard_weight=0), 3, ("pred", "teacher_pred")),
    (DistillationLoss(hard_weight=1), 3, ("pred", "label")),
    (GaussianKLLoss(), 2, ("mean", "log_variance")), (BernoulliKLLoss(), 2, ("pred", "label")),
])
def test_foreign_and_missing_inputs(run, loss, count, required):
    good = [mx.nd.ones((2, 3)) for _ in range(count)]
    if isinstance(loss, DistillationLoss):
        good[1] = mx.nd.ones(2)
    for i, name in enumerate(loss._names[:count]):
        for bad in (np.ones((2, 3)), [[1.0] * 3] * 2, mx.sym.var("x"), None):
            if bad is None and name not in required:
                continue
            with pytest.raises(TypeError) as caught:
                run.prepare(loss)(*good[:i], bad, *good[i + 1:])
            assert name in str(caught.value)


@pytest.mark.parametrize("loss, parts", [
    (ReverseKLDivLoss(False, 1, 0.5, 2, reduction="none", label_space="logits"),
     ["ReverseKLDivLoss(from_logits=False", "axis=1", "weight=0.5", "batch_axis=2", "reduction='none'",
      "label_space='logits'", "KL(pred ‖ label)"]),
    (JSDivLoss(beta=0.2), ["JSDivLoss(from_logits=True", "axis=-1", "weight=None", "batch_axis=0", "reduction='mean'",
                           "label_space='probs'", "beta=0.2", "KL(label ‖ m)", "KL(pred ‖ m)"]),
    (JSDivLoss(beta=0), ["beta=0", ": KL(label ‖ pred) in nats"]),
    (JSDivLoss(beta=1.0), ["beta=1.0", ": KL(pred ‖ label) in nats"]),
    (ReverseKLDivLoss(pred_space="probs"), ["pred_space='probs'"]),
    (DistillationLoss(2.5, 0.1, False, 3, 2, axis=1),
     ["DistillationLoss(temperature=2.5", "hard_weight=0.1", "axis=1", "sparse_label=False", "weight=3", "batch_axis=2",
      "divergence='kl'", "beta=0.5", "teacher_space='logits'", "KL(teacher_pred ‖ pred)"]),
    (DistillationLoss(divergence="reverse_kl", teacher_space="probs"),
     ["hard_weight=0.5", "divergence='reverse_kl'", "teacher_space='probs'", "KL(pred ‖ teacher_pred)"]),
    (DistillationLoss(divergence="js", beta=0.2), ["divergence='js'", "beta=0.2", "JS(teacher_pred, pred)"]),
    (BernoulliKLLoss(True, 2, 1, reduction="none", label_space="logits"),
     ["BernoulliKLLoss(from_sigmoid=True", "weight=2", "batch_axis=1", "reduction='none'", "label_space='logits'",
      "KL(Bernoulli(label) ‖ Bernoulli(pred)) in nats"]),
    (GaussianKLLoss(spread="std"), ["spread='std'", "KL(N(mean, std²)"]),
    (GaussianKLLoss(2, 1, reduction="mean", free_nats=0.5),
     ["GaussianKLLoss(weight=2", "batch_axis=1", "reduction='mean'", "free_nats=0.5", "KL(N(mean"]),
])
def test_repr_shows_every_argument(loss, parts):
    assert all(part in repr(loss) for part in parts), repr(loss)


# Skewed divergences

@pytest.mark.parametrize("skew", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-10)])
def test_skewed_divergences_of_disjoint_sides(run, dtype, tolerance, skew):
    """Finite, -log(skew) of the side's mass, with the gradients that the formulas have at a label of 0."""
    pred, label, rest = np.array([[0.25, 0.75, 0, 0]], dtype), np.array([[0, 0, 0.4, 0.6]], dtype), 1 - skew
    options = dict(pred_space="probs", reduction="sum", skew=skew)
    for loss in (KLDivLoss(**options), ReverseKLDivLoss(**options)):
        np.testing.assert_allclose(run(loss, pred, label), [-math.log(skew)], rtol=tolerance)
    to_pred, to_label = run.gradients(KLDivLoss(**options), pred, label)
    np.testing.assert_allclose(to_pred, [[0, 0, -rest / skew, -rest / skew]], rtol=tolerance, atol=tolerance)
    at_zero = math.log(1e-12) - np.log(rest * pred[0, :2])
    np.testing.assert_allclose(to_label, [[*at_zero, -math.log(skew), -math.log(skew)]], rtol=tolerance)
    to_pred, to_label = run.gradients(ReverseKLDivLoss(**options), pred, label)
    np.testing.assert_allclose(to_label, [[-rest / skew, -rest / skew, 0, 0]], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(to_pred[0, :2], -math.log(skew), rtol=tolerance)


def test_a_label_of_0_under_a_pred_of_0_has_no_gradient(run):
    pred, label = np.array([[0.0, 1]]), np.array([[0.0, 1]])
    for loss in (KLDivLoss, ReverseKLDivLoss):
        loss = loss(pred_space="probs", reduction="sum", skew=0.2)
        assert run(loss, pred, label) == 0
        assert [x[0, 0] for x in run.gradients(loss, pred, label)] == [0, 0]


@pytest.mark.parametrize("loss", [KLDivLoss, ReverseKLDivLoss])
def test_a_skew_of_0_is_none(run, rng, loss):
    inputs, options = MEMBERS["kl logits probs"].inputs(rng, (5, 7)), dict(from_logits=False, reduction="sum")
    for got, want in zip(run.gradients(loss(skew=0, **options), *inputs), run.gradients(loss(**options), *inputs)):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("make", [KLDivLoss, ReverseKLDivLoss])
@pytest.mark.parametrize("skew", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-4])
def test_skewed_divergences_of_near_logits(eager, path, rng, make, skew, size):
    """Never below 0, exactly 0 at equality, and the leading digits in between; the gradient has them too."""
    pred = rng.normal(size=(40, 20)).astype("float32")
    label = (pred + size * rng.normal(size=pred.shape)).astype("float32")
    loss = make(False, label_space="logits", reduction="sum", skew=skew)
    assert not eager(loss, pred, pred).any()
    value, terms = eager(loss, pred, label), oracle.skew_terms if make is KLDivLoss else oracle.skew_reverse_terms
    sides = (np.asarray(x, np.longdouble) for x in (pred, label))
    q, p = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in sides)
    side, other = (p, q) if make is KLDivLoss else (q, p)
    y = (1 - np.longdouble(skew)) * (other / side - 1)
    want = (side * (y - np.log1p(y))).sum(-1).astype("float64")
    assert (value >= 0).all()
    np.testing.assert_allclose(value, want, rtol=1e-2 if size < 1e-3 else 1e-3)
    mixture, rest = skew * side + (1 - skew) * other, 1 - np.longdouble(skew)
    by_side, by_other = np.log(side / mixture) + rest * other / mixture, -rest * side / mixture
    slopes = [x * (by - (x * by).sum(-1, keepdims=True)) for x, by in ((other, by_other), (side, by_side))]
    # MXNet's operators subtract softmaxes, whose roundings do not depend on how near the sides are.
    rtol = 2e-5 if path == "native" else 5e-6 / (size * (1 - skew))
    for got, exact in zip(eager.gradients(loss, pred, label), slopes if make is KLDivLoss else slopes[::-1]):
        np.testing.assert_allclose(got, exact.astype("float64"), rtol=0, atol=rtol * float(np.abs(exact).max()))
    assert terms(pred, label, "logits", "logits", skew=skew).sum(-1) == pytest.approx(want, rel=1e-2, abs=1e-14)


def test_a_skewed_mask(run):
    """A masked score has probability 0, and no gradient; a row masked everywhere is NaN."""
    pred, label = np.array([[0.3, -INF, 1.0]]), np.array([[0.1, 0.5, -INF]])
    for make, terms in ((KLDivLoss, oracle.skew_terms), (ReverseKLDivLoss, oracle.skew_reverse_terms)):
        loss = make(False, label_space="logits", reduction="sum", skew=0.1)
        close(run(loss, pred, label), terms(pred, label, "logits", "logits", skew=0.1).sum(-1))
        to_pred, to_label = run.gradients(loss, pred, label)
        assert np.isfinite(to_pred).all() and np.isfinite(to_label).all() and to_pred[0, 1] == to_label[0, 2] == 0
        assert np.isnan(run(loss, np.full((1, 3), -INF), label)).all()


@pytest.mark.parametrize("loss", [KLDivLoss, ReverseKLDivLoss])
def test_errors_of_the_skew(loss):
    for skew in (1, -0.1, math.nan):
        with pytest.raises(ValueError, match="skew must be"):
            loss(skew=skew)
    with pytest.raises(TypeError, match=r"skew must be a number, not '0\.1'"):
        loss(skew="0.1")
    assert "skew=0.25" in repr(loss(skew=0.25)) and "(1 - skew) * " in repr(loss(skew=0.25))
