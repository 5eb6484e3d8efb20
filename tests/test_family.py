"""What every member of the family shares with KLDivLoss, in one table over all of them."""

import copy
import itertools
import math
import pickle

from gluon_kl import BernoulliKLLoss, DistillationLoss, GaussianKLLoss, JSDivLoss, KLDivLoss, ReverseKLDivLoss

import mxnet as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import oracle

FLOATS = ("float16", "float32", "float64")
SPACES = ("probs", "log_probs", "logits")
TOLERANCE = {"float16": 2e-3, "float32": 2e-5, "float64": 1e-11}


def close(actual, expected, dtype="float64"):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def in_space(rng, space, shape, axis=-1):
    log_probs = oracle.log_softmax(rng.normal(size=shape), axis)
    return {"probs": np.exp(log_probs), "log_probs": log_probs, "logits": log_probs + rng.normal()}[space]


class Pair:
    """A loss between pred and label."""

    axis, reductions = True, ("sum", "mean", "row_mean", "none")

    def __init__(self, loss, terms, from_logits=True, label_space="probs", **options):
        self.loss, self.terms = loss, terms
        self.options = dict(from_logits=from_logits, label_space=label_space, **options)
        self.spaces = oracle.space_of(from_logits, options.get("pred_space")), label_space

    def make(self, **options):
        return self.loss(**{**self.options, "reduction": "sum", **options})

    def inputs(self, rng, shape, axis=-1):
        return [in_space(rng, space, shape, axis) for space in self.spaces]

    def expect(self, inputs, sample_weight=None, *, axis=-1, **options):
        beta = {name: value for name, value in self.options.items() if name == "beta"}
        terms = self.terms(*inputs, *self.spaces, axis, **beta)
        return oracle.weighted(terms, axis=axis, sample_weight=sample_weight, **{"reduction": "sum", **options})


class Distillation:
    """The loss of a student, between pred, label and teacher_pred."""

    axis, reductions = True, ()

    def __init__(self, column=False, **options):
        self.column, self.options = column, options

    def make(self, **options):
        return DistillationLoss(**self.options, **options)

    def inputs(self, rng, shape, axis=-1):
        hard_weight, space = self.options.get("hard_weight", 0.5), self.options.get("teacher_space", "logits")
        pred, label = 2 * rng.normal(size=shape), None
        teacher_pred = 2 * rng.normal(size=shape) if space == "logits" else in_space(rng, space, shape, axis)
        if hard_weight > 0:
            label = in_space(rng, "probs", shape, axis)
            if self.options.get("sparse_label", True):
                label = label.argmax(axis).astype("float64")
                label = np.expand_dims(label, axis) if self.column else label
        return [pred, label, None if hard_weight == 1 else teacher_pred]

    def expect(self, inputs, sample_weight=None, **options):
        return oracle.distillation(*inputs, sample_weight=sample_weight, **self.options, **options)


class Gaussian:
    """The divergence between diagonal Gaussians."""

    axis, reductions = False, ("sum", "mean", "none")

    def __init__(self, prior=(), shared=False, **options):
        self.prior, self.shared, self.options = prior, shared, options

    def make(self, **options):
        return GaussianKLLoss(**self.options, **options)

    def inputs(self, rng, shape, axis=-1):
        def spread(size):
            return np.exp(rng.normal(size=size)) if self.options.get("spread") == "std" else rng.normal(size=size)

        of_prior = (1,) * (len(shape) - 1) + shape[-1:] if self.shared else shape
        return [rng.normal(size=shape), spread(shape), rng.normal(size=of_prior) if "mean" in self.prior else None,
                spread(of_prior) if "log_variance" in self.prior else None]

    def expect(self, inputs, sample_weight=None, **options):
        own = {"spread_is" if name == "spread" else name: value for name, value in self.options.items()}
        terms = oracle.gaussian_terms(*inputs, **own).astype("float64")
        return oracle.weighted(terms, sample_weight=sample_weight, axis=None, **{"reduction": "sum", **options})


class Bernoulli:
    """The divergence between yes-or-no distributions."""

    axis, reductions = False, ("sum", "mean", "none")

    def __init__(self, **options):
        self.options = options

    def make(self, **options):
        return BernoulliKLLoss(**{**self.options, "reduction": "sum", **options})

    def inputs(self, rng, shape, axis=-1):
        pred, label = 2 * rng.normal(size=(2, *shape))
        return [1 / (1 + np.exp(-pred)) if self.options.get("from_sigmoid") else pred,
                label if self.options.get("label_space") == "logits" else 1 / (1 + np.exp(-label))]

    def expect(self, inputs, sample_weight=None, **options):
        terms = oracle.bernoulli_terms(*inputs, **self.options).astype("float64")
        return oracle.weighted(terms, sample_weight=sample_weight, axis=None, **{"reduction": "sum", **options})


PAIRS = (("kl", KLDivLoss, oracle.kl_terms, {}), ("reverse", ReverseKLDivLoss, oracle.reverse_kl_terms, {}),
         ("js", JSDivLoss, oracle.js_terms, dict(beta=0.3)))
MEMBERS = {
    **{f"{name} {'log_probs' if from_logits else 'logits'} {space}": Pair(loss, terms, from_logits, space, **options)
       for name, loss, terms, options in PAIRS[1:] for from_logits in (True, False) for space in SPACES},
    **{f"{name} probs {space}": Pair(loss, terms, True, space, pred_space="probs", **options)
       for name, loss, terms, options in PAIRS for space in SPACES},
    "js 0": Pair(JSDivLoss, oracle.js_terms, False, beta=0),
    "js 1": Pair(JSDivLoss, oracle.js_terms, False, beta=1),
    "js 1, probs": Pair(JSDivLoss, oracle.js_terms, True, "probs", beta=1, pred_space="probs"),
    "soft": Distillation(temperature=2.0, hard_weight=0),
    "soft at 1": Distillation(hard_weight=0),
    "hard": Distillation(hard_weight=1),
    "hard, column": Distillation(hard_weight=1, column=True),
    "both": Distillation(temperature=3.0, hard_weight=0.3),
    "both, column": Distillation(temperature=3.0, column=True),
    "both, dense": Distillation(temperature=0.7, hard_weight=0.6, sparse_label=False),
    "both, probs": Distillation(temperature=2.0, teacher_space="probs"),
    "both, log_probs": Distillation(temperature=2.0, teacher_space="log_probs", sparse_label=False),
    "both, reverse": Distillation(temperature=2.0, divergence="reverse_kl"),
    "soft, reverse, probs": Distillation(hard_weight=0, divergence="reverse_kl", teacher_space="probs"),
    "both, js": Distillation(temperature=2.0, divergence="js", beta=0.3),
    "soft, js, log_probs": Distillation(hard_weight=0, divergence="js", teacher_space="log_probs"),
    "soft, js 1": Distillation(temperature=2.0, hard_weight=0, divergence="js", beta=1),
    "gaussian": Gaussian(),
    "gaussian, prior": Gaussian(prior=("mean", "log_variance")),
    "gaussian, prior mean": Gaussian(prior=("mean",)),
    "gaussian, prior variance": Gaussian(prior=("log_variance",)),
    "gaussian, shared prior": Gaussian(prior=("mean", "log_variance"), shared=True),
    "gaussian, free nats": Gaussian(free_nats=0.4),
    "gaussian, std": Gaussian(spread="std"),
    "gaussian, std, prior": Gaussian(prior=("mean", "log_variance"), spread="std"),
    "gaussian, std, shared prior": Gaussian(prior=("log_variance",), shared=True, spread="std"),
    **{f"bernoulli {'probs' if from_sigmoid else 'logits'} {space}":
       Bernoulli(from_sigmoid=from_sigmoid, label_space=space)
       for from_sigmoid in (True, False) for space in ("probs", "logits")},
}
FEW = ["reverse logits probs", "reverse log_probs logits", "js logits probs", "js log_probs logits", "both",
       "both, dense", "gaussian, prior", "reverse probs log_probs", "js probs probs", "both, js",
       "gaussian, std, prior", "bernoulli logits probs", "bernoulli probs logits"]
members = pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
few = pytest.mark.parametrize("member", [MEMBERS[name] for name in FEW], ids=FEW)


def differentiable(member, inputs):
    """Which inputs have a gradient: no class index, no teacher."""
    if not isinstance(member, Distillation):
        return [x is not None for x in inputs]
    return [True, inputs[1] is not None and not member.options.get("sparse_label", True), False]


def gradients_match(run, member, inputs, sample_weight=None, seed=0, **options):
    """Every gradient against central differences of the oracle; 0 to what has none."""
    given = [*inputs, sample_weight]
    wanted = [*differentiable(member, inputs), sample_weight is not None]

    def expect(*values):  # the number of rows that count jumps at a weight of 0: it has no derivative
        return member.expect(values[:-1], values[-1], counted=sample_weight, **options)

    head = np.random.RandomState(seed).normal(size=np.shape(expect(*given)))
    numeric = oracle.numeric_gradients(expect, given, wanted, head)
    for analytic, difference in zip(run.gradients(member.make(**options), *given, head=head), numeric):
        if difference is not None:
            np.testing.assert_allclose(analytic, difference, rtol=1e-6, atol=2e-8)
        elif analytic is not None:
            assert (analytic == 0).all()


# Values and gradients

@members
@pytest.mark.parametrize("shape, axis, batch_axis", [((2, 3, 2), 1, 0), ((3, 2, 2), -3, 2)])
def test_values_and_gradients(run, rng, member, shape, axis, batch_axis):
    inputs = member.inputs(rng, shape, axis)
    options = dict(batch_axis=batch_axis, weight=1.5)
    if member.axis:
        options["axis"] = axis
    for reduction in member.reductions:
        expected = member.expect(inputs, reduction=reduction, **options)
        close(run(member.make(reduction=reduction, **options), *inputs), expected)
    if member.reductions:
        options["reduction"] = "none"
    expected = member.expect(inputs, **options)
    value = run(member.make(**options), *inputs)
    assert value.shape == expected.shape
    close(value, expected)
    if member.reductions:
        options["reduction"] = "row_mean" if member.axis else "mean"
    gradients_match(run, member, inputs, **options)


@few
@pytest.mark.parametrize("size", [(3,), (3, 2), (3, 1, 1), (1, 1, 2), (3, 4, 2)])
def test_sample_weight(run, rng, member, size):
    if size == (3, 2) and not member.axis:
        pytest.skip("one weight per row is for losses with categories")
    inputs = member.inputs(rng, (3, 4, 2), 1)
    options = dict(axis=1) if member.axis else {}
    weight = rng.uniform(0.5, 2, size=size)
    weight.flat[0] = 0
    close(run(member.make(**options), *inputs, weight), member.expect(inputs, weight, **options))
    for reduction in member.reductions[-2:]:  # "row_mean" among them, where there is one
        options["reduction"] = reduction
        close(run(member.make(**options), *inputs, weight), member.expect(inputs, weight, **options))
    if member.axis and member.reductions:
        options["reduction"] = "row_mean"
    gradients_match(run, member, inputs, weight, **options)


@few
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weight_zero_silences_a_row(run, rng, member, bad):
    inputs = member.inputs(rng, (4, 3))
    weight = np.array([1.0, 0, 2, 0])
    loss = member.make()
    clean, clean_gradients = run(loss, *inputs, weight), run.gradients(loss, *inputs, weight)
    for x in inputs:
        if x is not None:
            x[[1, 3]] = bad
    np.testing.assert_array_equal(run(loss, *inputs, weight), clean)
    for got, before in zip(run.gradients(loss, *inputs, weight)[:-1], clean_gradients):
        if got is not None:
            np.testing.assert_array_equal(got, before)
            assert (got[[1, 3]] == 0).all()
    if np.isnan(bad):
        assert np.isnan(run(loss, *inputs)[[1, 3]]).all()
    assert (run(member.make(weight=0), *inputs) == 0).all()
    for gradient in run.gradients(member.make(weight=0), *inputs):
        assert gradient is None or (gradient == 0).all()


@few
def test_a_term_of_weight_zero(run, rng, member):
    """A single element of weight 0 adds nothing, and takes nothing from the others."""
    inputs = member.inputs(rng, (2, 3))
    weight = np.array([[0.0, 1, 2], [1, 1, 0]])
    close(run(member.make(), *inputs, weight), member.expect(inputs, weight))


# dtypes, array kinds and ways of running

@few
@pytest.mark.parametrize("first, other", [
    ("float16", "float16"), ("float16", "float32"), ("float32", "float16"), ("float32", "float64"),
    ("float64", "float16")])
def test_dtypes(run, rng, member, first, other):
    inputs = [x if x is None else x.astype(other if i else first)
              for i, x in enumerate(member.inputs(rng, (3, 5)))]
    loss = run.prepare(member.make())
    given = [run.array(x, mx.nd.array) for x in inputs]
    for x in given:
        if x is not None:
            x.attach_grad()
    with mx.autograd.record():
        out = loss(*given)
    out.backward()
    assert out.dtype == (np.float64 if "float64" in (first, other) else np.float32)
    close(out.asnumpy(), member.expect(inputs), "float32")
    doubles = [x if x is None else x.astype("float64") for x in inputs]
    numeric = oracle.numeric_gradients(lambda *x: member.expect(x), doubles, differentiable(member, inputs))
    for x, want in zip(given, numeric):
        if want is not None:
            assert x.grad.dtype == x.dtype
            close(x.grad.asnumpy(), want, "float16" if x.dtype == np.float16 else "float32")


@pytest.mark.parametrize("label_type", ["int8", "uint8", "int32", "int64", "float16", "float32"])
def test_class_indices_of_every_dtype(run, rng, label_type):
    for member in (MEMBERS["both"], MEMBERS["hard"]):
        pred, label, teacher_pred = member.inputs(rng, (4, 6))
        value = run(member.make(), pred, label.astype(label_type), teacher_pred)
        close(value, member.expect([pred, label, teacher_pred]))


@few
def test_one_block_many_calls(run, rng, member):
    """With and without weights; changing shape, rank, dtype and array kind."""
    loss = run.prepare(member.make())
    for _ in range(2):
        for shape, dtype, kind in itertools.product(((4, 6), (2, 3, 6)), ("float32", "float64"),
                                                    (mx.nd.array, mx.np.array)):
            inputs = member.inputs(rng, shape)
            for weight in (None, rng.uniform(size=shape[0]), np.ones(shape)):
                given = [x if x is None else kind(x, dtype=dtype) for x in (*inputs, *[None] * (
                    len(loss._names) - 1 - len(inputs)), weight)]
                out = loss(*given)
                assert isinstance(out, mx.np.ndarray) == (kind is mx.np.array)
                close(out.asnumpy(), member.expect(inputs, weight), "float32")


def test_optional_inputs_take_turns(run, rng):
    """One block, called with each choice of priors, and of a label that it does not need."""
    loss = run.prepare(GaussianKLLoss())
    mean, log_variance, *prior = rng.normal(size=(4, 3, 2))
    for _ in range(2):
        for here in itertools.product((True, False), repeat=2):
            inputs = [mean, log_variance, *(x if given else None for x, given in zip(prior, here))]
            close(loss(*[run.array(x, mx.nd.array) for x in inputs]).asnumpy(),
                  oracle.weighted(oracle.gaussian_terms(*inputs).astype("float64"), reduction="sum"))
    soft, (pred, _, teacher_pred) = run.prepare(DistillationLoss(hard_weight=0)), MEMBERS["soft"].inputs(rng, (3, 4))
    for label in (None, np.array([0.0, 9, -1]), np.zeros((7, 7))):  # not looked at
        close(run(soft, pred, label, teacher_pred), oracle.distillation(pred, None, teacher_pred, hard_weight=0))
    hard = run.prepare(DistillationLoss(hard_weight=1))
    for teacher in (None, teacher_pred, np.full((3, 4), np.nan)):
        close(run(hard, pred, np.array([0, 1, 2]), teacher), oracle.distillation(pred, [0, 1, 2], None, hard_weight=1))


class Model(mx.gluon.HybridBlock):
    """A user's block that holds a loss."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def hybrid_forward(self, F, *inputs):
        return self.loss(*inputs)


# Gluon hands no None to a nested block, but what comes last may be left out.
def fits_a_nested_call(member):
    given = [x is not None for x in member.inputs(np.random.RandomState(0), (2, 2))]
    return all(given) if isinstance(member, Distillation) else given == sorted(given, reverse=True)


NESTED = [name for name, member in MEMBERS.items() if fits_a_nested_call(member)]


@pytest.mark.parametrize("name", NESTED)
def test_nested(run, rng, name):
    member = MEMBERS[name]
    inputs = member.inputs(rng, (3, 4))
    given = [x for x in inputs if x is not None]
    close(run(Model(member.make()), *given), member.expect(inputs))
    for got, want in zip(run.gradients(Model(member.make()), *given), run.gradients(member.make(), *given)):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    if len(given) == len(inputs):
        weight = rng.uniform(size=(3, 1))
        close(run(Model(member.make()), *given, weight), member.expect(inputs, weight))


@few
def test_nested_float16(run, rng, member):
    inputs = [x.astype("float16") for x in member.inputs(rng, (3, 4))]
    value = run(Model(member.make()), *inputs)
    assert value.dtype == np.float32
    close(value, member.expect(inputs), "float32")


@few
def test_symbols(rng, member):
    inputs = member.inputs(rng, (3, 4))
    names = member.make()._names[:len(inputs)]
    loss = member.make()
    out = loss(*[mx.sym.var(name) for name in names])
    values = {name: mx.nd.array(x, dtype="float64") for name, x in zip(names, inputs)}
    close(out.eval(**values)[0].asnumpy(), member.expect(inputs))
    out = loss(*[mx.sym.var(name).as_np_ndarray() for name in names])
    assert isinstance(out, mx.sym.np._Symbol)
    close(out.as_nd_ndarray().eval(**values)[0].asnumpy(), member.expect(inputs))


@few
def test_export_and_import(tmp_path, rng, member):
    inputs = [mx.nd.array(x, dtype="float16") for x in member.inputs(rng, (3, 4))]
    block = Model(member.make())
    block.hybridize()
    expected = block(*inputs).asnumpy()
    block.export(str(tmp_path / "loss"))
    back = mx.gluon.SymbolBlock.imports(str(tmp_path / "loss-symbol.json"), [f"data{i}" for i in range(len(inputs))])
    np.testing.assert_allclose(back(*inputs).asnumpy(), expected, rtol=1e-6)


@few
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copies(run, rng, member, clone):
    inputs = member.inputs(rng, (3, 4))
    loss = member.make()
    before = clone(loss)
    expected = run(loss, *inputs)
    after = clone(loss)
    assert repr(before) == repr(after) == repr(loss)
    np.testing.assert_array_equal(run(before, *inputs), expected)
    np.testing.assert_array_equal(run(after, *inputs), expected)


@few
@pytest.mark.parametrize("uses, grad_req", [(2, "add"), (9, "write")])
def test_one_array_in_many_losses(run, rng, member, uses, grad_req):
    class Many(mx.gluon.HybridBlock):
        def __init__(self):
            super().__init__()
            self.losses = [member.make() for _ in range(uses)]
            for loss in self.losses:
                self.register_child(loss)

        def hybrid_forward(self, F, *inputs):
            return F.add_n(*[loss(*inputs) for loss in self.losses])

    inputs = member.inputs(rng, (3, 4))
    once = run.gradients(member.make(), *inputs)
    model, arrays_ = run.prepare(Many()), [mx.nd.array(x, dtype="float64") for x in inputs]
    for x in arrays_:
        x.attach_grad(grad_req)
    for _ in range(2):
        with mx.autograd.record():
            out = model(*arrays_)
        out.backward()
    for x, gradient in zip(arrays_, once):
        close(x.grad.asnumpy(), gradient * uses * (2 if grad_req == "add" else 1))


def test_two_devices(run, rng):
    for member in (MEMBERS["both"], MEMBERS["js logits probs"], MEMBERS["gaussian"]):
        loss, inputs = run.prepare(member.make()), member.inputs(rng, (3, 4))
        for device in (mx.cpu(0), mx.cpu(1)):
            out = loss(*[x if x is None else mx.nd.array(x, ctx=device, dtype="float64") for x in inputs])
            assert out.context == device
            close(out.asnumpy(), member.expect(inputs))


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
@pytest.mark.parametrize("label_space", SPACES)
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_supports(run, pred, label, reverse, js, label_space, from_logits, dtype):
    with np.errstate(divide="ignore"):
        pred = np.log(np.array([pred])).astype(dtype)
        target = np.array([label]) if label_space == "probs" else np.log(np.array([label]))
    target = target.astype(dtype)
    near = dict(rtol=1e-3, atol=1e-3) if dtype == "float16" else dict(rtol=1e-5, atol=1e-5)
    options = dict(from_logits=from_logits, label_space=label_space, reduction="sum")
    np.testing.assert_allclose(run(ReverseKLDivLoss(**options), pred, target), [reverse], **near)
    for value in (run(JSDivLoss(beta=0.3, **options), pred, target),
                  run(JSDivLoss(beta=0.3, **{**options, "reduction": "none"}), pred, target).sum(-1)):
        np.testing.assert_allclose(value, [js], **near)
    gradients = list(run.gradients(JSDivLoss(beta=0.3, **options), pred, target))
    if np.isfinite(reverse):
        gradients += run.gradients(ReverseKLDivLoss(**options), pred, target)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_gradients_to_labels_of_zero(run):
    """Finite where the divergence is, and 0 where pred has no mass either."""
    pred = np.log(np.array([[0.5, 0.5 - 1e-9, 1e-9, 1.0]]))
    pred[0, 3], label = -INF, np.array([[1.0, 0.0, 0.0, 0.0]])
    _, to_label = run.gradients(JSDivLoss(beta=0.3, reduction="sum"), pred, label)
    least = -0.3 * (80 + math.log(0.7))  # as of a label e^80 times smaller than pred
    np.testing.assert_allclose(to_label, [[0.3 * math.log(1 / 0.65), least, least, 0]], rtol=1e-9)
    scores = np.array([[0.0, 1.0, -INF]])
    _, to_label, _ = run.gradients(DistillationLoss(hard_weight=1, sparse_label=False), scores,
                                   np.array([[0.0, 1.0, 0.0]]), None)
    np.testing.assert_allclose(to_label, [[math.log1p(math.e), math.log1p(math.e) - 1, 0]], rtol=1e-9)


def test_masked_teacher_and_student(run):
    pred, teacher = np.array([[0.3, -INF, 1.0], [0.3, 0.1, 1.0], [0.3, -INF, 1.0]]), np.array(
        [[0.5, -INF, 2.0], [0.5, -INF, 2.0], [0.5, 0.1, 2.0]])
    loss = DistillationLoss(temperature=2, hard_weight=0.5)
    value = run(loss, pred, np.array([0, 1, 1]), teacher)
    close(value, oracle.distillation(pred, [0, 1, 1], teacher, temperature=2, hard_weight=0.5))
    assert np.isfinite(value[:2]).all() and np.isposinf(value[2])
    to_pred = run.gradients(loss, pred[:2], np.array([0.0, 1]), teacher[:2])[0]
    assert np.isfinite(to_pred).all() and to_pred[0, 1] == 0


@pytest.mark.parametrize("member", [MEMBERS[name] for name in ("reverse logits probs", "js logits logits", "soft")])
def test_row_without_a_distribution_is_nan(run, rng, member):
    inputs = member.inputs(rng, (4, 3))
    inputs[0][:3] = [[-INF] * 3, [np.nan, 0, 1], [INF, 0, 1]]
    value = run(member.make(), *inputs)
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
def test_exactly_zero_at_equality(run, rng, make, dtype):
    x = oracle.log_softmax(4 * rng.normal(size=(50, 20))).astype(dtype)
    loss = make()
    inputs = [x, x, x, x] if isinstance(loss, GaussianKLLoss) else [x, x]
    if len(inputs) == 2:
        x[0, 0] = -INF
    assert (run(loss, *inputs) == 0).all()
    if not repr(loss).startswith("ReverseKLDivLoss(from_logits=True"):  # free log-probabilities have no minimum there
        assert all(abs(gradient).max() < 1e-6 for gradient in run.gradients(loss, *inputs))
    assert len(inputs) == 4 or (run(DistillationLoss(3.0, 0), x, None, x) == 0).all()


@pytest.mark.parametrize("noise", [1e-7, 1e-5, 1e-3, 1e-1, 1.0, 10.0])
def test_small_divergences_keep_their_digits(run, rng, noise):
    label = rng.normal(size=(200, 50)).astype("float32")
    pred = (label + noise * rng.normal(size=label.shape)).astype("float32")
    precise = [x.astype("float64") for x in (pred, label)]
    log_p, log_q = oracle.log_softmax(precise[1]), oracle.log_softmax(precise[0])
    p, q, u = np.exp(log_p), np.exp(log_q), log_p - log_q
    ahead, behind = 0.3 * np.expm1(u), 0.7 * np.expm1(-u)
    js = 0.3 * p * (behind - np.log1p(behind)) + 0.7 * q * (ahead - np.log1p(ahead))
    reverse = p * (u * np.exp(-u) * -1 - np.expm1(-u) * -1)  # q (-u) - q + p, over p
    for value, expected in (
            (run(JSDivLoss(False, label_space="logits", beta=0.3, reduction="sum"), pred, label), js.sum(-1)),
            (run(ReverseKLDivLoss(False, label_space="logits", reduction="sum"), pred, label), reverse.sum(-1))):
        assert (value >= 0).all()
        if noise >= 1e-3:
            assert np.median(np.abs(value / expected - 1)) < 1e-4


@pytest.mark.parametrize("label_space", ["probs", "logits"])
def test_js_terms_are_never_negative(run, rng, label_space):
    label = (5 * rng.normal(size=(200, 50))).astype("float32")
    for noise in (1e-7, 1e-6, 1e-4, 30):  # rounding makes some of the first three fall below 0 by 1e-15
        pred = (label + noise * rng.normal(size=label.shape)).astype("float32")
        target = label if label_space == "logits" else np.exp(oracle.log_softmax(label)).astype("float32")
        loss = JSDivLoss(False, label_space=label_space, beta=0.3, reduction="none")
        assert (run(loss, pred, target) >= 0).all()


# The ends of JSDivLoss

@pytest.mark.parametrize("from_logits, label_space", [*itertools.product((True, False), SPACES)])
def test_js_ends_are_the_two_divergences(run, rng, from_logits, label_space):
    member = Pair(JSDivLoss, oracle.js_terms, from_logits, label_space)
    pred, label = member.inputs(rng, (4, 6))
    for reduction in ("sum", "mean", "none"):
        options = dict(from_logits=from_logits, label_space=label_space, reduction=reduction)
        for beta, end in ((0, KLDivLoss), (1, ReverseKLDivLoss)):
            np.testing.assert_array_equal(run(JSDivLoss(beta=beta, **options), pred, label),
                                          run(end(**options), pred, label))
            for got, want in zip(run.gradients(JSDivLoss(beta=beta, **options), pred, label),
                                 run.gradients(end(**options), pred, label)):
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype, tiny", [("float32", 1e-5), ("float64", 1e-9)])
def test_js_near_its_ends(run, rng, dtype, tiny):
    """Up to the factors beta and 1 - beta, the ends are the limits."""
    pred, label = rng.normal(size=(2, 5, 8)).astype(dtype)
    options = dict(from_logits=False, label_space="logits", reduction="sum")
    for beta, factor, end in ((tiny, tiny, KLDivLoss), (1 - tiny, tiny, ReverseKLDivLoss)):
        value = run(JSDivLoss(beta=beta, **options), pred, label) / factor
        np.testing.assert_allclose(value, run(end(**options), pred, label), rtol=1e-3 if dtype == "float32" else 1e-6)
    # A share that float32 loses beside 1 still bounds what disjoint rows cost.
    with np.errstate(divide="ignore"):
        apart = np.log(np.eye(2)[:1]).astype(dtype), np.eye(2)[1:].astype(dtype)
    for beta in (1e-12, 1e-3, 0.5):
        bound = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
        np.testing.assert_allclose(run(JSDivLoss(beta=beta, reduction="sum"), *apart), [bound], rtol=1e-6)


def test_js_is_symmetric_at_one_half(run, rng):
    pred, label = (oracle.log_softmax(rng.normal(size=(4, 6))) for _ in range(2))
    loss = JSDivLoss(label_space="log_probs")
    np.testing.assert_allclose(run(loss, pred, label), run(loss, label, pred), rtol=1e-12)


# What holds for every distribution

VALUES = {
    "reverse": ReverseKLDivLoss(False, label_space="logits", reduction="sum"),
    "js": JSDivLoss(False, label_space="logits", reduction="sum", beta=0.3),
    "soft": DistillationLoss(temperature=2, hard_weight=0),
    "gaussian": GaussianKLLoss(),
}


def value(name, x, y):
    loss = VALUES[name]
    x, y = mx.nd.array(x, dtype="float64"), mx.nd.array(y, dtype="float64")
    return (loss(x, None, y) if name == "soft" else loss(x, y)).asnumpy()


pairs = st.tuples(st.integers(1, 5), st.integers(1, 9)).flatmap(
    lambda shape: arrays.arrays(np.float64, (2, *shape), elements=st.floats(-30, 30, width=32)))
often = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.mark.parametrize("name", VALUES)
@often
@given(pair=pairs)
def test_never_negative_and_row_by_row(name, pair):
    together = value(name, *pair)
    assert (together >= 0).all()
    alone = [value(name, pair[0, i:i + 1], pair[1, i:i + 1])[0] for i in range(pair.shape[1])]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize("name", VALUES)
@often
@given(pair=pairs, seed=st.integers(0, 99))
def test_order_of_categories_does_not_matter(name, pair, seed):
    order = np.random.RandomState(seed).permutation(pair.shape[-1])
    np.testing.assert_allclose(value(name, *pair[..., order]), value(name, *pair), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["reverse", "js", "soft"])
@often
@given(pair=pairs, shift=st.floats(-100, 100))
def test_shift_of_logits_does_not_matter(name, pair, shift):
    np.testing.assert_allclose(value(name, pair[0] + shift, pair[1]), value(name, *pair), rtol=1e-9, atol=1e-9)


@often
@given(pair=pairs, beta=st.floats(1e-6, 1 - 1e-6))
def test_js_is_bounded(pair, beta):
    loss = JSDivLoss(False, label_space="logits", reduction="sum", beta=beta)
    bound = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    assert (loss(*mx.nd.array(pair, dtype="float64")).asnumpy() <= bound * (1 + 1e-12)).all()


# Errors

@pytest.mark.parametrize("loss, arguments, error, words", [
    (ReverseKLDivLoss, dict(reduction="avg"), ValueError, ["reduction", "'avg'"]),
    (ReverseKLDivLoss, dict(label_space="p"), ValueError, ["label_space", "'p'"]),
    (JSDivLoss, dict(beta=1.5), ValueError, ["beta", "between 0 and 1", "1.5"]),
    (JSDivLoss, dict(beta=-0.1), ValueError, ["beta", "-0.1"]),
    (JSDivLoss, dict(beta=math.nan), ValueError, ["beta", "nan"]),
    (JSDivLoss, dict(beta="0.5"), TypeError, ["beta", "number", "'0.5'"]),
    (JSDivLoss, dict(from_logits=0), TypeError, ["from_logits", "0"]),
    (DistillationLoss, dict(temperature=0), ValueError, ["temperature", "positive", "0"]),
    (DistillationLoss, dict(temperature=math.inf), ValueError, ["temperature", "inf"]),
    (DistillationLoss, dict(temperature="2"), TypeError, ["temperature", "'2'"]),
    (DistillationLoss, dict(hard_weight=1.1), ValueError, ["hard_weight", "between 0 and 1", "1.1"]),
    (DistillationLoss, dict(sparse_label=1), TypeError, ["sparse_label", "True or False", "1"]),
    (DistillationLoss, dict(axis="c"), TypeError, ["axis", "'c'"]),
    (DistillationLoss, dict(divergence="KL"), ValueError, ["divergence", "'kl', 'reverse_kl' or 'js'", "'KL'"]),
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
    (GaussianKLLoss, dict(free_nats=-1), ValueError, ["free_nats", "not negative", "-1"]),
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
