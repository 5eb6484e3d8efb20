"""The table of cases: every member of the family, in every space, layout, reduction and kind of weight.

A row of MEMBERS is a loss with the spaces of its inputs; a divergence between two distributions is a row of PAIRS, from
which its rows of MEMBERS follow. `cases_of(name)` gives the calls of a member that are compared with the oracle. Tests
walk many cases each: `every` names those that fail.
"""

import copy
import functools
import inspect
import zlib

from gluon_kl import (
    BernoulliKLLoss,
    DistillationLoss,
    GaussianKLLoss,
    JSDivLoss,
    KLDivLoss,
    ReverseKLDivLoss,
    TopKDistillationLoss,
    _mxnet,
)

import mxnet as mx
import numpy as np
import pytest

import oracle

ADDS_WRONG = ("MXNet 1.7 adds 6 or 7 gradients of one array wrong, those of its own losses too"
              if mx.__version__.startswith("1.7.") else "")

# Of Symbols the device is not known: there a CUDA build uses MXNet's operators.
CUDA = mx.runtime.Features().is_enabled("CUDA")
KIND = mx.np.array if _mxnet.GLUON_2 else mx.nd.array  # the arrays that a user's hybridized block takes
SPACES = ("probs", "log_probs", "logits")
TOLERANCE = {"float16": 2e-3, "float32": 2e-5, "float64": 1e-11}


def close(actual, expected, dtype="float64"):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def every(cases, check):
    """Call check(case) for each case, or check(*case) for a tuple, and report all failures together."""
    failed, first = [], None
    for case in cases:
        try:
            check(*case) if type(case) is tuple else check(case)
        except Exception as error:
            first = first or error
            failed.append(f"{case}: {type(error).__name__}: {str(error).strip()[:600]}")
    if failed:
        raise AssertionError(f"{len(failed)} cases failed:\n\n" + "\n\n".join(failed)) from first


def in_one_test(names, values):
    """pytest.mark.parametrize, but as one test of all values: a test each takes 3 ms, whatever it does.

    If the test skips some values, the others count; if it skips all, it is skipped.
    """
    names = [name.strip() for name in names.split(",")]

    def decorate(test):
        @functools.wraps(test)
        def walk(**fixtures):
            skipped = []

            def check(value):
                try:
                    test(**copy.deepcopy(fixtures), **dict(zip(names, value if len(names) > 1 else [value])))
                except pytest.skip.Exception as reason:
                    skipped.append(reason)

            every([(value,) for value in values], check)
            if len(skipped) == len(values):
                raise skipped[0]

        signature = inspect.signature(test)
        left = [parameter for name, parameter in signature.parameters.items() if name not in names]
        walk.__signature__ = signature.replace(parameters=left)
        return walk

    return decorate


class Member:
    """A loss with its arguments: how it is made, inputs for it, and the oracle's results for them."""

    weights = "elements"  # or at most one for each row
    has_axis, reductions, reduction = True, ("sum", "mean", "row_mean", "none", "row"), "sum"

    def __init__(self, loss, **options):
        self.loss, self.options = loss, options

    def make(self, **options):
        return self.loss(**{**self.options, **options})

    def learns(self, inputs):
        """The inputs that have a gradient."""
        return [np.ndim(x) > 0 for x in inputs]

    def heard(self, inputs, axis):
        """0 for rows that are ignored, like a weight of 0, and 1 for the others."""
        return 1

    @property
    def elementwise(self):
        """Whether a term depends only on its own elements."""
        return not self.has_axis

    def expect(self, inputs, sample_weight=None, *, axis=-1, reduction=None, **options):
        """The value."""
        return oracle.weighted(self.terms(inputs, axis), axis=axis if self.has_axis else None,
                               reduction=reduction or self.reduction, sample_weight=sample_weight,
                               heard=self.heard(inputs, axis), **options)

    def gradients(self, inputs, sample_weight=None, head=1.0, *, axis=-1, reduction=None, batch_axis=0, weight=None):
        """The gradients of sum(head * value) to each input, the weight last; None for inputs without a gradient."""
        terms, categories = self.terms(inputs, axis), axis if self.has_axis else None
        heard = self.heard(inputs, axis)
        weights = oracle.row_weights(sample_weight, terms.shape, batch_axis, categories)[0] * heard
        reduction = reduction or self.reduction
        head = np.broadcast_to(head, oracle.result_shape(terms.shape, batch_axis, reduction, axis))
        scale = (1.0 if weight is None else weight) * oracle.head_of_terms(
            head, terms.shape, batch_axis, reduction, categories, weights)
        learned = [x if yes else None for x, yes in zip(inputs, self.learns(inputs))]
        results = oracle.gradients(lambda *moved: self.terms([x if new is None else new for x, new in zip(
            inputs, moved)], axis), learned, scale * weights, categories)
        results = [np.zeros(np.shape(x)) if result is None and np.ndim(x) else result
                   for x, result in zip(inputs, results)]
        return [*results, None if sample_weight is None else oracle.to_given_weight(
            terms * scale * heard, sample_weight, batch_axis, categories)]


class Pair(Member):
    """A loss between pred and label."""

    def __init__(self, loss, terms, from_logits=True, label_space="probs", **options):
        super().__init__(loss, from_logits=from_logits, label_space=label_space, **options)
        self.of_oracle = terms
        self.spaces = oracle.space_of(from_logits, options.get("pred_space")), label_space

    @property
    def elementwise(self):
        return "logits" not in self.spaces

    def make(self, **options):
        return super().make(**{"reduction": "sum", **options})

    def inputs(self, rng, shape, axis=-1):
        return [in_space(rng, space, shape, axis) for space in self.spaces]

    def terms(self, inputs, axis):
        own = {name: value for name, value in self.options.items() if name in ("beta", "skew")}
        return self.of_oracle(*inputs, *self.spaces, axis, **own)


class Distillation(Member):
    """The loss of a student, between pred, label and teacher_pred."""

    reductions, reduction = ("row_mean", "sum", "row"), "row_mean"

    def __init__(self, column=False, **options):
        super().__init__(DistillationLoss, **options)
        self.column, self.sparse, self.ignored = column, options.get("sparse_label", True), options.get("ignore_label")

    def learns(self, inputs):
        return [True, inputs[1] is not None and not self.sparse, False]

    def inputs(self, rng, shape, axis=-1):
        hard_weight, space = self.options.get("hard_weight", 0.5), self.options.get("teacher_space", "logits")
        pred, label = 2 * rng.normal(size=shape), None
        teacher_pred = 2 * rng.normal(size=shape) if space == "logits" else in_space(rng, space, shape, axis)
        if hard_weight > 0 or self.ignored is not None:
            label = in_space(rng, "probs", shape, axis)
            if self.sparse:
                label = label.argmax(axis).astype("float64")
                label = np.expand_dims(label, axis) if self.column else label
            if self.ignored is not None:
                label.flat[-1:] = self.ignored
        return [pred, label, None if hard_weight == 1 else teacher_pred]

    def heard(self, inputs, axis):
        return 1 if self.ignored is None else oracle.heard(inputs[1], inputs[0].shape, axis, self.ignored)

    def terms(self, inputs, axis):
        pred, label, teacher_pred = inputs
        if self.ignored is not None:
            label = np.where(label == self.ignored, 0, label)  # of weight 0, whatever it is
        own = {name: value for name, value in self.options.items() if name != "ignore_label"}
        return oracle.distillation_terms(pred, label, teacher_pred, axis, **own)


class Whole(np.ndarray):
    """Class indices; no loss takes them in float16."""


def dtype_of(x, dtype):
    """The dtype in which a test passes `x` if it passes the other inputs in this dtype."""
    return "float32" if dtype == "float16" and isinstance(x, Whole) else dtype


class TopK(Distillation):
    """The loss of a student and a teacher that kept its k best categories, or all if there are fewer."""

    weights = "rows"

    def __init__(self, k=2, **options):
        super().__init__(**options)
        self.loss, self.k = TopKDistillationLoss, k

    def learns(self, inputs):
        return [*super().learns(inputs), False][:4]

    def inputs(self, rng, shape, axis=-1):
        pred, label, _ = super().inputs(rng, shape, axis)
        space = self.options.get("teacher_space", "log_probs")
        log_probs = oracle.log_softmax(2 * rng.normal(size=shape), axis)
        index = np.argsort(-log_probs, axis)
        index = np.take(index, range(min(self.k, shape[axis])), axis)
        kept = np.take_along_axis(log_probs, index, axis)
        if self.options.get("hard_weight") == 1:
            return [pred, label, None, None]
        value = {"probs": np.exp(kept), "log_probs": kept, "logits": 3 * kept}[space]
        return [pred, label, index.astype("float64").view(Whole), value]

    def terms(self, inputs, axis):
        pred, label, *kept = inputs
        if self.ignored is not None:
            label = np.where(label == self.ignored, 0, label)  # of weight 0, whatever it is
        own = {name: value for name, value in self.options.items() if name != "ignore_label"}
        return oracle.top_k_terms(pred, label, *kept, axis, **own)


class Gaussian(Member):
    """The divergence between diagonal Gaussians."""

    has_axis, reductions = False, ("sum", "mean", "none")

    def __init__(self, prior=(), shared=False, **options):
        super().__init__(GaussianKLLoss, **options)
        self.prior, self.shared = prior, shared

    def inputs(self, rng, shape, axis=-1):
        def spread(size):
            return np.exp(rng.normal(size=size)) if self.options.get("spread") == "std" else rng.normal(size=size)

        of_prior = (1,) * (len(shape) - 1) + shape[-1:] if self.shared else shape
        return [rng.normal(size=shape), spread(shape), rng.normal(size=of_prior) if "mean" in self.prior else None,
                spread(of_prior) if "log_variance" in self.prior else None]

    def terms(self, inputs, axis):
        own = {"spread_is" if name == "spread" else name: value for name, value in self.options.items()}
        return doubles(oracle.gaussian_terms(*inputs, **own))


class Bernoulli(Member):
    """The divergence between yes-or-no distributions."""

    has_axis, reductions = False, ("sum", "mean", "none")

    def __init__(self, **options):
        super().__init__(BernoulliKLLoss, **options)

    def make(self, **options):
        return super().make(**{"reduction": "sum", **options})

    def inputs(self, rng, shape, axis=-1):
        pred, label = 2 * rng.normal(size=(2, *shape))
        return [1 / (1 + np.exp(-pred)) if self.options.get("from_sigmoid") else pred,
                label if self.options.get("label_space") == "logits" else 1 / (1 + np.exp(-label))]

    def terms(self, inputs, axis):
        return doubles(oracle.bernoulli_terms(*inputs, **self.options))


def doubles(x):
    """Long doubles, complex or not, as doubles."""
    return x.astype(complex if np.iscomplexobj(x) else float)


def in_space(rng, space, shape, axis=-1):
    """A random distribution along axis, written in a space."""
    log_probs = oracle.log_softmax(rng.normal(size=shape), axis)
    return {"probs": np.exp(log_probs), "log_probs": log_probs, "logits": log_probs + rng.normal()}[space]


# Members: loss, terms by the oracle, options.

PAIRS = (("kl", KLDivLoss, oracle.kl_terms, {}), ("reverse", ReverseKLDivLoss, oracle.reverse_kl_terms, {}),
         ("js", JSDivLoss, oracle.js_terms, dict(beta=0.3)),
         ("skew", KLDivLoss, oracle.skew_terms, dict(skew=0.3)),
         ("skew reverse", ReverseKLDivLoss, oracle.skew_reverse_terms, dict(skew=0.1)))
MEMBERS = {
    **{f"{name} {'log_probs' if from_logits else 'logits'} {space}": Pair(loss, terms, from_logits, space, **options)
       for name, loss, terms, options in PAIRS for from_logits in (True, False) for space in SPACES},
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
    "top-k": TopK(temperature=2.0),
    "top-k, soft, reverse": TopK(k=3, hard_weight=0, divergence="reverse_kl"),
    "top-k, js, probs": TopK(temperature=0.7, divergence="js", beta=0.3, teacher_space="probs"),
    "top-k, dense": TopK(temperature=2.0, hard_weight=0.3, sparse_label=False),
    "top-k, renormalized": TopK(temperature=2.0, tail="renormalize"),
    "top-k, js, logits": TopK(temperature=3.0, tail="renormalize", divergence="js", teacher_space="logits"),
    "top-k, dropped": TopK(hard_weight=0.2, tail="drop", teacher_space="probs", column=True),
    "top-k, hard": TopK(hard_weight=1),
    "top-k, ignoring": TopK(temperature=2.0, ignore_label=-100, column=True),
    "top-k, soft, ignoring": TopK(hard_weight=0, divergence="js", ignore_label=1),
    "top-k, smoothed, ignoring": TopK(temperature=3.0, hard_weight=0.3, label_smoothing=0.1, ignore_label=-1),
    "both, skew": Distillation(temperature=2.0, divergence="skew_kl", skew=0.2),
    "both, skew reverse, probs": Distillation(temperature=2.0, divergence="skew_reverse_kl", teacher_space="probs"),
    "soft, skew 0": Distillation(temperature=2.0, hard_weight=0, divergence="skew_reverse_kl", skew=0),
    "both, tv": Distillation(temperature=2.0, divergence="tv"),
    "soft, tv, probs": Distillation(temperature=3.0, hard_weight=0, divergence="tv", teacher_space="probs"),
    "both, tv, log_probs": Distillation(temperature=3.0, divergence="tv", teacher_space="log_probs",
                                        sparse_label=False),
    "both, ignoring": Distillation(temperature=3.0, hard_weight=0.3, ignore_label=-100),
    "hard, ignoring, column": Distillation(hard_weight=1, ignore_label=-1, column=True),
    "soft, ignoring": Distillation(temperature=2.0, hard_weight=0, ignore_label=255),
    "soft, tv, ignoring": Distillation(temperature=2.0, hard_weight=0, divergence="tv", ignore_label=7),
    "hard, smoothed": Distillation(hard_weight=1, label_smoothing=0.1),
    "both, smoothed, ignoring": Distillation(temperature=2.0, label_smoothing=0.3, ignore_label=-100),
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
# One member of each kind, for tests that do not depend on the spaces; all their inputs are arrays.
FEW = ["kl log_probs probs", "kl logits probs", "kl logits logits", "kl log_probs log_probs",
       "reverse logits probs", "reverse log_probs logits", "js logits probs", "js log_probs logits", "both",
       "both, dense", "gaussian, prior", "reverse probs log_probs", "js probs probs", "both, js",
       "gaussian, std, prior", "bernoulli logits probs", "bernoulli probs logits", "skew logits logits",
       "skew reverse logits probs", "both, tv", "both, smoothed, ignoring", "top-k"]


def on_both(block):
    """A user's block with a `hybrid_forward`; on Gluon 2, which refuses that, with a `forward`."""
    if _mxnet.GLUON_2:
        written = block.hybrid_forward
        del block.hybrid_forward
        block.forward = lambda self, *inputs: written(self, mx.np, *inputs)
    return block


@on_both
class Model(mx.gluon.HybridBlock):
    """A user's block that holds a loss."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def hybrid_forward(self, F, *inputs):
        return self.loss(*inputs)


def fits_a_nested_call(member):
    """The inputs for a nested block: Gluon passes no None to it, but trailing inputs may be left out."""
    given = [x is not None for x in member.inputs(np.random.RandomState(0), (2, 2))]
    return all(given) if isinstance(member, Distillation) else given == sorted(given, reverse=True)


NESTED = [name for name, member in MEMBERS.items() if fits_a_nested_call(member)]

# Cases: shape, axis and batch_axis of a call. KLDivLoss is called in all of these layouts, the others in the first.

LAYOUTS = [
    ((3, 4), -1, 0), ((2, 3, 2), 1, 0), ((3, 2, 2), -3, 2), ((4, 6), 0, 0), ((4, 4), -1, 0), ((6, 4), 0, 1),
    ((6,), -1, 0), ((3, 4, 5), -1, 0), ((3, 4, 5), 1, 0), ((3, 4, 5), 1, 2), ((3, 4, 5), 0, 1), ((4, 3, 4), 1, 0),
    ((2, 3, 4, 5), 1, 0), ((2, 3, 4, 5), -2, -3), ((3, 4, 5), 1, 1), ((6,), 0, 0), ((1, 1), -1, 0), ((5, 1), -1, 0),
    ((1, 9), -1, 0),
]


class Case:
    """One call of a member, with its inputs, weights and head gradient, and the oracle's results for it.

    float16 holds every input exactly, so that one answer serves for each dtype.
    """

    def __init__(self, name, layout, reduction=None, size=None, weight=None):
        self.name, self.member, (self.shape, axis, batch_axis) = name, MEMBERS[name], layout
        self.reduction = reduction or self.member.reduction
        self.options = dict(batch_axis=batch_axis, reduction=self.reduction, weight=weight)
        if self.member.has_axis:
            self.options["axis"] = axis
        self.text = f"{name}, {self.shape}, {self.options}, sample_weight {size}"
        rng = np.random.RandomState(zlib.crc32(self.text.encode()))
        self.inputs = [x if x is None else held_by_float16(x) for x in self.member.inputs(rng, self.shape, axis)]
        self.sample_weight = None
        if size is not None:
            self.sample_weight = held_by_float16(rng.uniform(0.5, 2, size=size))
            self.sample_weight.flat[0] = 0
        self.head = held_by_float16(rng.normal(
            size=oracle.result_shape(self.shape, batch_axis, self.reduction, axis)))

    def __repr__(self):
        return self.text

    def make(self):
        return self.member.make(**self.options)

    @property
    def value(self):
        return self.member.expect(self.inputs, self.sample_weight, **self.options)

    @property
    def gradients(self):
        return self.member.gradients(self.inputs, self.sample_weight, self.head, **self.options)


def held_by_float16(x):
    return np.asanyarray(x).astype("float16").astype("float64")


def fits(member, layout):
    """Whether a member can be called so: except between pred and label, categories and samples need different axes."""
    shape, axis, batch_axis = layout
    return not isinstance(member, Distillation) or (axis - batch_axis) % len(shape) != 0


def sizes(member, layout):
    """The shapes that a sample weight may have."""
    shape, axis, batch_axis = layout
    found = [(shape[batch_axis],), shape, (1,) * len(shape),
             tuple(n if i == batch_axis % len(shape) else 1 for i, n in enumerate(shape))]
    if member.has_axis:
        axis %= len(shape)
        if member.weights == "rows":
            found = [size for size in found if len(size) < len(shape) or size[axis] == 1]
            return sorted({*found, shape[:axis] + shape[axis + 1:], (*shape[:axis], 1, *shape[axis + 1:])} - {()})
        found += [shape[:axis] + shape[axis + 1:], (*shape[:axis], 1, *shape[axis + 1:]), (1, *shape[1:])]
    return sorted(set(found) - {()})


def cases_of(name):
    """The cases of a member: each reduction in each layout, and twice with a sample weight.

    Which weight and which factor of the loss goes round, so that every reduction meets each of them.
    """
    member, turn = MEMBERS[name], list(MEMBERS).index(name)
    for layout in LAYOUTS if name.startswith("kl") else LAYOUTS[:3]:
        if not fits(member, layout):
            continue
        weights = sizes(member, layout)
        for i, reduction in enumerate(member.reductions):
            yield Case(name, layout, reduction, None, (None, 2.5)[(turn + i) % 2])
        for _ in range(2):
            turn += 1
            yield Case(name, layout, member.reductions[turn % len(member.reductions)], weights[turn % len(weights)],
                       (None, 0.5)[turn // 2 % 2])


# Calling a case

def all_inputs(case):
    """Every input of the loss, the sample weight last; None for inputs that are left out."""
    missing = [None] * (len(case.make()._names) - 1 - len(case.inputs))
    return [*case.inputs, *missing, case.sample_weight]


def called(block, inputs, dtypes="float64", head=None, *, kind=KIND, grad_req="write", times=1, attached=None):
    """The value and the gradient to each input, after `times` steps; None for inputs that are None or not attached.

    `dtypes` is that of all, or of each. `attached` are the positions of the inputs that get a gradient, by default all.
    """
    dtypes = [dtypes] * len(inputs) if isinstance(dtypes, str) else dtypes
    arrays = [x if np.ndim(x) == 0 else array(x, dtype, kind) for x, dtype in zip(inputs, dtypes)]
    learned = [i for i, x in enumerate(arrays) if np.ndim(x) and (attached is None or i in attached)]
    learned = [i for i in learned if np.dtype(arrays[i].dtype).kind == "f"]
    for i in learned:
        arrays[i].attach_grad(grad_req)
    for _ in range(times):
        with mx.autograd.record():
            out = block(*arrays)
        out.backward(None if head is None else kind(head, dtype=out.dtype))
    return [out.asnumpy(), *(x.grad.asnumpy() if i in learned else None for i, x in enumerate(arrays))]


def array(x, dtype, kind=KIND):
    if kind is mx.nd.array:
        return legacy(x, dtype_of(x, dtype))
    return kind(np.asarray(x), dtype=dtype_of(x, dtype))


def legacy(x, dtype):
    """A copy of `x` as an mx.nd array, in a tenth of the time that mx.nd.array takes."""
    x = np.array(x, dtype=dtype, order="C")
    if dtype == "bool":  # mx.nd itself makes none
        return mx.np.array(x, dtype=bool).as_nd_ndarray()
    return mx.nd.from_numpy(x) if x.size and x.dtype.kind == "f" else mx.nd.array(x, dtype=dtype)


def agrees(got, want, dtype, what):
    """Compare shape and values, to the precision of the dtype."""
    assert got.shape == np.shape(want), f"{what} has shape {got.shape}, not {np.shape(want)}"
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(1, abs(want).max(initial=0)),
                               err_msg=what)
