"""Ways of running a loss, each compared with the eager one of its path; dtypes; and which gradients are needed."""

import copy
import itertools
import math
import pickle

from gluon_kl import DistillationLoss, GaussianKLLoss, KLDivLoss, _mxnet, mxnet_private

import mxnet as mx
import numpy as np
import pytest

import oracle
from cases import (
    ADDS_WRONG,
    CUDA,
    FEW,
    KIND,
    MEMBERS,
    NESTED,
    Case,
    Model,
    agrees,
    all_inputs,
    array,
    called,
    close,
    dtype_of,
    every,
    on_both,
)

pytestmark = pytest.mark.usefixtures("path")
FLOATS = ("float16", "float32", "float64")
STATIC = dict(static_alloc=True, static_shape=True)


def hybridized(block, **options):
    block.hybridize(**options)
    return block


def nestable(name, inputs):
    """The inputs for a nested block, or None: Gluon passes no None to it, but trailing inputs may be left out."""
    given = [x for x in inputs if x is not None]
    return given if name in NESTED and all(x is y for x, y in zip(inputs, given)) else None


def example(rng, shape=(4, 6), dtype="float32"):
    pred = rng.normal(size=shape).astype(dtype)
    label = np.exp(oracle.log_softmax(rng.normal(size=shape))).astype(dtype)
    return pred, label


# Every way of running

def exported(block, inputs, dtype, folder):
    """A loss that was called once, exported and imported."""
    hybridized(block)(*[array(x, dtype) for x in inputs])
    block.export(str(folder / "loss"))
    return mx.gluon.SymbolBlock.imports(str(folder / "loss-symbol.json"), [f"data{i}" for i in range(len(inputs))])


def compare_ways(case, dtype, folder):
    """Every way equals the eager one: to the last bit, except in a user's graph, in which dtypes are unknown."""
    make, inputs = case.make, all_inputs(case)
    given, eager = nestable(case.name, inputs), called(make(), inputs, dtype, case.head)

    def compare(what, block, kind=KIND, nested=False):
        got = called(block, given if nested else inputs, dtype, case.head, kind=kind)
        for x, want in zip(got, [x for x in eager if x is not None] if nested else eager):
            if want is None:
                continue
            assert x.dtype == want.dtype, what
            if nested or case.member.weights == "rows":  # a graph adds several gradients to pred in another order
                agrees(x, want, want.dtype.name, what)
            else:
                np.testing.assert_array_equal(x, want, err_msg=what)

    compare("hybridized", hybridized(make()))
    compare("static, mx.np", hybridized(make(), **STATIC), mx.np.array)
    if given is not None:
        compare("nested", hybridized(Model(make())), nested=True)
        compare("nested, static", hybridized(Model(make()), **STATIC), nested=True)
        compare("exported", exported(make(), given, dtype, folder), nested=True)
        compare("nested, exported", exported(Model(make()), given, dtype, folder), nested=True)


def ways_cases(name):
    """Each reduction of KLDivLoss and two of every other loss, in turns without and with a weight.

    And where axis and batch_axis are one, which only a graph that runs knows: there each term is its own sample.
    """
    member, turn = MEMBERS[name], list(MEMBERS).index(name)
    sizes = ((2, 1, 2), (2, 1, 1), (2, 3, 2) if member.weights == "elements" else (2, 1, 2))
    for i in range(4 if name.startswith("kl") else 2):
        reduction = member.reductions[(turn + i) % len(member.reductions)]
        layout, size, weight = (((3, 4), -1, 0), None, 0.5) if i % 2 else (((2, 3, 2), 1, 0), sizes[turn % 3], None)
        yield Case(name, layout, reduction, size, weight), FLOATS[(turn + i) % 3]
    if name in ("kl logits logits", "reverse logits logits"):
        for i, layout in enumerate((((5,), -1, 0), ((5,), 0, -1), ((3, 5), -1, 1), ((2, 3, 5), 1, -2))):
            yield Case(name, layout, "sum"), FLOATS[1 + i % 2]


@pytest.mark.parametrize("name", MEMBERS)
def test_every_way(tmp_path, name):
    every(ways_cases(name), lambda case, dtype: compare_ways(case, dtype, tmp_path))


@pytest.mark.parametrize("name", FEW)
def test_every_way_at_the_ends(tmp_path, name):
    """Zeros on one side or on both are as in the oracle; NaN and infinity have no effect in rows of weight 0."""
    def check(what, changed, row, value):
        case = Case(name, ((3, 4), -1, 0))
        for x in case.inputs[changed]:
            if np.shape(x) == (3, 4):
                x[row, :2] = value if value else 0 if (x >= 0).all() else -np.inf
        if value:
            case.sample_weight = np.array([[0], [2], [0.0]])
        else:
            close(called(case.make(), case.inputs)[0], case.value)
        if what not in ("absent in pred", "absent in the others"):
            compare_ways(case, "float32" if value else "float64", tmp_path)

    first, others, both = slice(1), slice(1, None), slice(None)
    every([("absent in pred", first, 1, None), ("absent in the others", others, 1, None),
           ("absent in all", both, 1, None), ("NaN", both, 2, np.nan), ("infinity", both, 0, np.inf)], check)


# dtypes

MIXED = [("float16", "float16"), ("float16", "float32"), ("float32", "float16"), ("float32", "float64"),
         ("float64", "float16")]
ONE_HOT = ("int8", "uint8", "int32", "int64", "bool")


def compare_dtypes(case, first, other):
    """Result and gradients have the right dtypes, eager, in our own graph and in a user's, also with grad_req="add"."""
    value, gradients = case.value, case.gradients
    inputs = [x if other in FLOATS or i == 0 or x is None else x.astype(other) for i, x in enumerate(case.inputs)]
    dtypes = [first, *[other] * (len(inputs) - 1)]
    for what, block, kind, grad_req in (
            ("eager", case.make(), mx.nd.array, "write"), ("eager, mx.np", case.make(), mx.np.array, "write"),
            ("static, added up", hybridized(case.make(), **STATIC), mx.nd.array, "add"),
            ("nested, added up", hybridized(Model(case.make())), KIND, "add")):
        times = 3 if grad_req == "add" else 1
        got = called(block, inputs, dtypes, case.head, kind=kind, grad_req=grad_req, times=times)
        assert got[0].dtype == (np.float64 if "float64" in (first, other) else np.float32), what
        agrees(got[0], value, "float32", f"value, {what}")
        for i, (x, want, dtype) in enumerate(zip(got[1:], gradients, dtypes)):
            if x is not None and want is not None:
                assert x.dtype == dtype_of(case.inputs[i], dtype), (what, i)
                agrees(x, times * want, "float16" if dtype == "float16" else "float32", f"gradient {i}, {what}")


@pytest.mark.parametrize("name", FEW)
def test_mixed_dtypes(name):
    every([(Case(name, ((3, 5), -1, 0)), *pair) for pair in (
        MIXED if not name.startswith("kl") else itertools.product(FLOATS, FLOATS))], compare_dtypes)


@pytest.mark.parametrize("name", ["kl log_probs probs", "kl logits probs"])
def test_one_hot_labels_of_every_dtype(name):
    def check(first, other):
        case = Case(name, ((4, 6), -1, 0))
        case.inputs[1] = np.eye(6)[[1, 0, 5, 2]]
        compare_dtypes(case, first, other)

    every(list(itertools.product(FLOATS, ONE_HOT)), check)


@pytest.mark.parametrize("name", ["both", "hard"])
def test_class_indices_of_every_dtype(name):
    def check(dtype):
        case = Case(name, ((4, 6), -1, 0))
        dtypes = ["float64", dtype, "float64"]
        for block in (case.make(), hybridized(case.make())):
            close(called(block, case.inputs, dtypes, case.head)[0], case.value)

    every(["int8", "uint8", "int32", "int64", "float16", "float32"], check)


# Which gradients are asked for

@pytest.mark.parametrize("name", MEMBERS)
def test_gradients_to_each_input_alone(name):
    """A gradient that is needed alone equals the one that is computed with all others, also over two added steps."""
    def check(what, block, size):
        case = Case(name, ((3, 4), -1, 0), size=size)
        inputs, nested = all_inputs(case), "nested" in what
        wanted = [*case.gradients[:-1], *[None] * (len(inputs) - len(case.gradients)), case.gradients[-1]]
        learned = [*case.member.learns(case.inputs), *[True] * (len(inputs) - len(case.inputs))]
        if nested:
            if nestable(name, inputs) is None:
                return
            kept = [i for i, x in enumerate(inputs) if x is not None]
            inputs, wanted, learned = ([x[i] for i in kept] for x in (inputs, wanted, learned))
        every_one = [i for i, yes in enumerate(learned) if yes and inputs[i] is not None]
        for attached, grad_req in [(every_one, "add"), *[([i], "write") for i in every_one]]:
            got = called(block(case.make()), inputs, "float64", case.head, attached=attached, grad_req=grad_req,
                         times=2 if grad_req == "add" else 1)
            close(got[0], case.value)
            for i, gradient in enumerate(got[1:]):
                assert (gradient is not None) == (i in attached)
                if gradient is not None:
                    agrees(gradient, wanted[i] * (2 if grad_req == "add" else 1), "float64",
                           f"input {i} of those attached, {attached}, {grad_req}")
                    assert gradient.any()

    every([("eager", lambda loss: loss, None), ("static", lambda loss: hybridized(loss, **STATIC), (3, 1)),
           ("nested", lambda loss: hybridized(Model(loss)), (3, 1) if name in FEW else None)], check)


@pytest.mark.parametrize("name", ["both", "both, js", "both, dense", "soft", "both, column"])
def test_an_input_that_cannot_learn(name):
    """Class indices and teachers may be attached: their gradient is 0, and the others do not change by a bit."""
    for block in (lambda loss: loss, hybridized):
        case = Case(name, ((3, 4), -1, 0))
        together = called(block(case.make()), case.inputs)
        for i, (gradient, learns) in enumerate(zip(together[1:], case.member.learns(case.inputs))):
            if learns:
                alone = called(block(case.make()), case.inputs, attached=[i])
                np.testing.assert_array_equal(alone[i + 1], gradient)
            else:
                assert gradient is None or not gradient.any()


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("mode", [None, STATIC], ids=["eager", "static"])
def test_one_array_in_many_losses(name, mode):
    @on_both
    class Many(mx.gluon.HybridBlock):
        def __init__(self, uses):
            super().__init__()
            self.losses = [case.make() for _ in range(uses)]
            for loss in self.losses:
                self.register_child(loss)

        def hybrid_forward(self, F, *inputs):
            return sum(loss(*inputs) for loss in self.losses)

    case = Case(name, ((3, 4), -1, 0))
    for uses, grad_req in ((2, "add"), (9, "write")):
        model = Many(uses) if mode is None else hybridized(Many(uses), **mode)
        got = called(model, case.inputs, "float64", case.head, grad_req=grad_req, times=2)
        for x, want in zip(got[1:], case.gradients):
            agrees(x, want * uses * (2 if grad_req == "add" else 1), "float64", f"{uses} uses, {grad_req}")


def test_one_array_in_many_losses_of_every_number(path, rng):
    """MXNet adds up to eight gradients by itself: tests fewer and more, of an input and of an intermediate result."""
    @on_both
    class Many(mx.gluon.HybridBlock):
        def __init__(self, uses, leaf):
            super().__init__()
            self.leaf, self.losses = leaf, [KLDivLoss(False, reduction="sum") for _ in range(uses)]
            for loss in self.losses:
                self.register_child(loss)

        def hybrid_forward(self, F, pred, label):
            hidden = pred if self.leaf else F.tanh(pred)
            return sum(loss(hidden, label) for loss in self.losses)

    pred, label = example(rng)

    def check(uses, mode, leaf, grad_req):
        if ADDS_WRONG and grad_req == "add" and uses == 7:
            return
        model = Many(uses, leaf) if mode is None else hybridized(Many(uses, leaf), **mode)
        _, *got = called(model, (pred, label), "float32", grad_req=grad_req, times=2)
        hidden = pred if leaf else np.tanh(pred.astype("float64"))
        to_pred, to_label, _ = oracle.kl_gradients(hidden, label, from_logits=False, reduction="sum")
        for x, want in zip(got, (to_pred if leaf else to_pred * (1 - hidden ** 2), to_label)):
            np.testing.assert_allclose(x, uses * (2 if grad_req == "add" else 1) * want, rtol=1e-4, atol=1e-4)

    uses = [2, 7, 8, 9, 20] if path == "native" else [2, 9]
    every(list(itertools.product(uses, [None, {}, STATIC], [True, False], ["write", "add"])), check)


@pytest.mark.parametrize("uses", [2, 8, 9, 20])
def test_one_array_in_many_calls(run, rng, uses):
    """One block is called several times on one array, in one recording."""
    loss = run.prepare(KLDivLoss(False, reduction="sum"))
    pred, label = example(rng)
    array = mx.nd.array(pred)
    array.attach_grad()
    with mx.autograd.record():
        hidden = array * 1
        total = mx.nd.add_n(*[loss(hidden, mx.nd.array(label)) for _ in range(uses)])
    total.backward()
    want, _, _ = oracle.kl_gradients(pred, label, from_logits=False, reduction="sum")
    np.testing.assert_allclose(array.grad.asnumpy(), uses * want, rtol=1e-4, atol=1e-4)


def test_label_gradient_through_a_recorded_label(run, rng):
    """A label that was computed under autograd, without an attached gradient, passes its gradient on."""
    loss = run.prepare(KLDivLoss(False, reduction="sum"))
    pred, label = example(rng)
    source = mx.nd.array(np.log(label))
    source.attach_grad()
    for _ in range(2):
        with mx.autograd.record():
            out = loss(mx.nd.array(pred), source.exp())
        out.backward()
        _, want, _ = oracle.kl_gradients(pred, label, from_logits=False, reduction="sum")
        np.testing.assert_allclose(source.grad.asnumpy(), want * label, rtol=1e-4, atol=1e-5)
        loss(mx.nd.array(pred), source.exp())  # a call without record in between


@pytest.mark.parametrize("categories", [6, 10000], ids=["small", "large"])
def test_recording_marks_nothing(run, rng, categories):
    """An input without a gradient may be overwritten between a recorded call and its backward, as a loader does."""
    loss = run.prepare(KLDivLoss(False, reduction="sum"))
    pred, label = example(rng, (4, categories))
    for learned in (0, 1):
        arrays = [mx.nd.array(x) for x in (pred, label)]
        arrays[learned].attach_grad()
        with mx.autograd.record():
            out = loss(*arrays)
            arrays[1 - learned] += 0
            loss(mx.nd.array(pred), mx.nd.array(label))  # nothing to follow at all
        assert [mxnet_private.is_followed(x) for x in arrays] == [learned == 0, learned == 1]
        out.backward()
        want = oracle.kl_gradients(pred, label, from_logits=False, reduction="sum")[learned]
        np.testing.assert_allclose(arrays[learned].grad.asnumpy(), want, rtol=1e-4, atol=1e-5)


# One block


def test_one_block_many_calls(run, rng):
    """With and without weights; changing shape, rank, dtype, gradient request and array kind."""
    loss = run.prepare(KLDivLoss(False, reduction="sum"))
    for _ in range(2):
        for shape in ((4, 6), (2, 6), (2, 3, 6), (6,)):
            for dtype in FLOATS:
                for kind in (mx.nd.array, mx.np.array):
                    pred, label = example(rng, shape, dtype)
                    for weight in (None, rng.uniform(size=shape[0]).astype(dtype), np.ones(shape, dtype)):
                        out = loss(*[None if x is None else kind(x, dtype=dtype) for x in (pred, label, weight)])
                        assert isinstance(out, mx.np.ndarray) == (kind is mx.np.array)
                        assert out.dtype == (np.float64 if dtype == "float64" else np.float32)
                        expected = oracle.kl_divergence(pred, label, from_logits=False, reduction="sum",
                                                        sample_weight=weight)
                        np.testing.assert_allclose(out.asnumpy(), expected, rtol=1e-4, atol=1e-5)
                    pred = kind(pred, dtype=dtype)
                    pred.attach_grad()
                    with mx.autograd.record():
                        out = loss(pred, kind(label, dtype=dtype))
                    out.backward()
                    want, _, _ = oracle.kl_gradients(pred.asnumpy(), label, from_logits=False, reduction="sum")
                    np.testing.assert_allclose(pred.grad.asnumpy(), want, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", FEW)
def test_one_hybridized_block_many_calls(rng, name):
    """With and without weights; changing shape, rank, dtype and array kind; and each again."""
    member = MEMBERS[name]
    loss = hybridized(member.make(), **STATIC)
    for _ in range(2):
        for shape, dtype, kind in itertools.product(((4, 6), (2, 3, 6)), ("float32", "float64"),
                                                    (mx.nd.array, mx.np.array)):
            inputs = member.inputs(rng, shape)
            widest = shape if member.weights == "elements" else shape[:-1]
            for weight in (None, rng.uniform(size=shape[0]), np.ones(widest)):
                given = [x if x is None else kind(np.asarray(x), dtype=dtype) for x in (*inputs, *[None] * (
                    len(loss._names) - 1 - len(inputs)), weight)]
                out = loss(*given)
                assert isinstance(out, mx.np.ndarray) == (kind is mx.np.array) and out.dtype == np.dtype(dtype)
                close(out.asnumpy(), member.expect(inputs, weight), "float32")


def test_optional_inputs_take_turns(run, rng):
    """One block is called with each combination of priors, and with and without a label that it does not need."""
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


def test_kinds_of_call(run, rng, monkeypatch):
    """A call like an earlier one skips the checks; any other call is checked, however many there were before."""
    monkeypatch.setattr("gluon_kl.base.MAX_KEYS", 5)
    loss = run.prepare(KLDivLoss(False, reduction="sum"))
    for samples in (*range(1, 15), *range(1, 15)):
        pred, label = example(rng, (samples, 6))
        expected = oracle.kl_divergence(pred, label, from_logits=False, reduction="sum")
        np.testing.assert_allclose(loss(mx.nd.array(pred), mx.nd.array(label)).asnumpy(), expected, rtol=1e-4)
        assert 0 < len(loss._road.keys) <= 5
        with pytest.raises(ValueError, match="must have the same shape"):
            loss(mx.nd.array(pred), mx.nd.array(label[:, :5]))
        with pytest.raises(TypeError, match="label must be an MXNet array"):
            loss(mx.nd.array(pred), label)
    assert not pickle.loads(pickle.dumps(loss))._road.keys


@pytest.mark.parametrize("other", [mx.nd.array, mx.np.array])
def test_kinds_of_call_with_numpy_arrays(run, rng, monkeypatch, other):
    """Calls with mx.np arrays skip the checks like those with mx.nd, and share their keys; results have pred's kind."""
    loss = run.prepare(KLDivLoss(False, reduction="sum"))
    pred, label = example(rng, (3, 6))
    loss(mx.nd.array(pred), mx.nd.array(label))
    checks = []
    description = loss._road.description
    check = description.check
    monkeypatch.setattr(description, "check", lambda *arrays: checks.append(arrays) or check(*arrays))
    for _ in range(2):
        got = loss(mx.np.array(pred), other(label))
        assert type(got) is mx.np.ndarray and not checks
        expected = oracle.kl_divergence(pred, label, from_logits=False, reduction="sum")
        np.testing.assert_allclose(got.asnumpy(), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="must have the same shape"):
        loss(mx.np.array(pred), other(label[:, :5]))
    assert checks


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("options", [None, STATIC], ids=["eager", "static"])
def test_copies(rng, name, options):
    """A block can be copied before and after its first call, which leaves a graph behind."""
    def check(clone):
        inputs = [mx.nd.array(x) for x in MEMBERS[name].inputs(rng, (3, 4))]
        loss = MEMBERS[name].make()
        if options is not None:
            loss.hybridize(**options)
        before = clone(loss)
        expected = loss(*inputs).asnumpy()
        after = clone(loss)
        assert repr(before) == repr(after) == repr(loss)
        for block in (before, after, after, loss):
            np.testing.assert_array_equal(block(*inputs).asnumpy(), expected)

    every([copy.deepcopy, copy.copy, lambda loss: pickle.loads(pickle.dumps(loss))], check)


@pytest.mark.parametrize("options", [{}, dict(static_alloc=True, static_shape=True)])
def test_a_child_called_by_itself(rng, path, options):
    """Gluon passes every option of a block to its children, also None for those that were left out."""
    pred, label = example(rng)
    loss = KLDivLoss(False)
    model = Model(loss)
    model.hybridize(**options)
    inputs = KIND(pred), KIND(label)
    rtol = 2e-5 if CUDA and path == "native" else 1e-6
    np.testing.assert_allclose(loss(*inputs).asnumpy(), model(*inputs).asnumpy(), rtol=rtol)


def test_hooks_and_children(run, rng):
    seen = []
    loss = KLDivLoss(False)
    loss.register_forward_hook(lambda block, inputs, output: seen.append(output.shape))
    run(loss, *example(rng))
    assert seen == [(4,)] and not list(loss.collect_params())


# Symbols


@pytest.mark.parametrize("name", FEW)
def test_symbols(rng, name):
    member = MEMBERS[name]
    inputs = member.inputs(rng, (3, 4))
    names = member.make()._names[:len(inputs)]
    loss = member.make()
    out = loss(*[mx.sym.var(name) for name in names])
    values = {name: mx.nd.array(x, dtype="float64") for name, x in zip(names, inputs)}
    close(out.eval(**values)[0].asnumpy(), member.expect(inputs))
    out = loss(*[mx.sym.var(name).as_np_ndarray() for name in names])
    assert isinstance(out, mx.sym.np._Symbol)
    close(out.as_nd_ndarray().eval(**values)[0].asnumpy(), member.expect(inputs))


@pytest.mark.skipif(_mxnet.GLUON_2, reason="MXNet 2 has no Module")
@pytest.mark.parametrize("label_space", ["probs", "logits"])
def test_symbols_and_module(rng, label_space):
    pred, label = example(rng)
    data, target = mx.sym.var("data"), mx.sym.var("softmax_label")
    loss = KLDivLoss(False, reduction="sum", label_space=label_space)
    out = mx.sym.make_loss(loss(data, target))
    module = mx.mod.Module(out, data_names=["data"], label_names=["softmax_label"])
    batches = mx.io.NDArrayIter(pred, label, batch_size=4, label_name="softmax_label")
    module.bind(batches.provide_data, batches.provide_label, inputs_need_grad=True)
    module.init_params()
    module.forward_backward(batches.next())
    np.testing.assert_allclose(module.get_outputs()[0].asnumpy(), oracle.kl_divergence(
        pred, label, from_logits=False, reduction="sum", label_space=label_space), rtol=1e-4)
    want, _, _ = oracle.kl_gradients(pred, label, from_logits=False, reduction="sum", label_space=label_space)
    np.testing.assert_allclose(module.get_input_grads()[0].asnumpy(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_export_and_import(tmp_path, rng, path, nested, weighted):
    pred, label = example(rng, dtype="float16")
    inputs = [KIND(x, dtype="float16") for x in (pred, label)]
    if weighted:
        inputs.append(KIND([[1], [0], [2], [1]], dtype="float16"))
    loss = KLDivLoss(False, reduction="sum")
    block = Model(loss) if nested else loss
    block.hybridize()
    expected = block(*inputs).asnumpy()
    block.export(str(tmp_path / "loss"))
    # Without the fused operator, MXNet alone can read what was exported.
    fused = path == "native" and not CUDA
    assert ("_gluon_kl" in (tmp_path / "loss-symbol.json").read_text()) == fused
    names = ["data0", "data1", "data2"][:len(inputs)]
    back = mx.gluon.SymbolBlock.imports(str(tmp_path / "loss-symbol.json"), names)
    np.testing.assert_allclose(back(*inputs).asnumpy(), expected, rtol=2e-5 if CUDA and path == "native" else 1e-6)
    assert back(*inputs).dtype == np.float32


# Shapes and dtypes that a user's graph learns late


def test_nested_boolean_labels(run, rng):
    pred, label = rng.normal(size=(3, 4)), mx.np.array(np.eye(4)[[1, 0, 3]], dtype=bool)
    expected = oracle.kl_divergence(pred, np.eye(4)[[1, 0, 3]], from_logits=False)
    np.testing.assert_allclose(run(Model(KLDivLoss(False)), mx.np.array(pred), label), expected, rtol=1e-5)


@pytest.mark.parametrize("name, shapes", [
    ("kl log_probs probs", ((2, 3), (2, 1))), ("kl log_probs probs", ((2, 3), (3,))),
    # A trace knows that a weight of (3,) is one per sample; of Symbols nobody does.
    *([] if _mxnet.GLUON_2 else [("kl log_probs probs", ((3, 3), (3, 3), (3,)))]),
    *[("gaussian", ((3, 4), shape)) for shape in ((4, 3), (3, 1), (1, 4), (4,), (3, 2, 2), (3, 4, 1))]])
def test_other_shapes_are_refused_in_a_users_graph(name, shapes):
    model = hybridized(Model(MEMBERS[name].make()))
    with pytest.raises(ValueError if _mxnet.GLUON_2 else mx.MXNetError):  # a trace knows the first call's shapes
        model(*[KIND(np.ones(shape)) for shape in shapes]).asnumpy()


def test_nested_1d():
    model = hybridized(Model(KLDivLoss()))
    close(model(KIND([-1., -2.]), KIND([1., 0.])).asnumpy(), [1, 0])
    both = hybridized(Model(KLDivLoss(False, label_space="logits")))
    pred, label = np.log([0.5, 0.5]), np.log([0.2, 0.8])
    close(both(KIND(pred), KIND(label)).asnumpy(), [0.2 * math.log(0.4), 0.8 * math.log(1.6)], "float32")



# Training: devices, NumPy mode, automatic mixed precision


def test_two_devices(run, rng):
    for member in (MEMBERS["both"], MEMBERS["js logits probs"], MEMBERS["gaussian"]):
        loss, inputs = run.prepare(member.make()), member.inputs(rng, (3, 4))
        for device in (mx.cpu(0), mx.cpu(1)):
            out = loss(*[x if x is None else mx.nd.array(x, ctx=device, dtype="float64") for x in inputs])
            assert out.context == device
            close(out.asnumpy(), member.expect(inputs))


@pytest.fixture
def numpy_mode():
    mx.npx.set_np()
    yield
    if not _mxnet.GLUON_2:  # where it is on from the start
        mx.npx.reset_np()


@pytest.mark.usefixtures("numpy_mode")
def test_numpy_mode():
    label = np.array([[.3, .4, .1, .2], [0, .9, 0, .1]])
    for options, (reduction, weight) in itertools.product(({}, STATIC, None), (
            ("sum", None), ("mean", mx.np.array([1.0, 2.0])), ("none", mx.np.array([[1.0], [2.0]])))):
        loss = KLDivLoss(reduction=reduction)
        if options is not None:
            loss.hybridize(**options)
        pred = mx.np.log(mx.np.array([[.2, .5, .2, .1]] * 2))
        pred.attach_grad()
        with mx.autograd.record():
            out = loss(pred, mx.np.array(label), weight)
        out.backward()
        assert type(out) is mx.np.ndarray
        scale = 1 if reduction == "sum" else np.array([1, 2]) / (4 if reduction == "mean" else 1)
        value = out.asnumpy().sum(-1) if reduction == "none" else out.asnumpy()
        np.testing.assert_allclose(value, np.array([0.101696830, 0.529007]) * scale, rtol=1e-5)
        np.testing.assert_allclose(pred.grad.asnumpy(), -label * np.reshape(scale, (-1, 1)), rtol=1e-5)
        if not _mxnet.GLUON_2:  # whose loss refuses no kind of arrays
            with pytest.raises(TypeError):
                loss(mx.nd.ones((2, 4)), mx.nd.ones((2, 4)))


@pytest.mark.usefixtures("numpy_mode")
def test_training_in_numpy_mode():
    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Dense(3))
    net.initialize()
    net.hybridize()
    loss = hybridized(KLDivLoss(from_logits=False))
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1.0})
    x = mx.np.eye(8, 5)
    y = mx.npx.softmax(3 * x[:, :3])
    history = []
    for _ in range(60):
        with mx.autograd.record():
            out = loss(net(x), y)
        out.backward()
        trainer.step(8)
        history.append(float(out.mean()))
    assert history[-1] < history[0] / 3, history


@pytest.mark.parametrize("kvstore", ["device", "local", None])
def test_two_devices_and_trainer(rng, kvstore):
    devices = [mx.cpu(0), mx.cpu(1)]
    mx.random.seed(1)
    net = mx.gluon.nn.Dense(3, in_units=5)
    net.initialize(ctx=devices if kvstore else devices[0])
    loss = hybridized(KLDivLoss(from_logits=False, reduction="sum"))
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.5}, kvstore=kvstore)
    x, y = rng.normal(size=(8, 5)).astype("float32"), example(rng, (8, 3))[1]
    history = []
    for _ in range(40):
        parts = [(KIND(x[i::2], ctx=d), KIND(y[i::2], ctx=d)) for i, d in enumerate(devices)]
        if not kvstore:
            parts = [(KIND(x), KIND(y))]
        with mx.autograd.record():
            outs = [loss(net(a), b) for a, b in parts]
        mx.autograd.backward(outs)
        assert [out.context for out in outs] == [a.context for a, _ in parts]
        trainer.step(8)
        history.append(sum(out.asnumpy().sum() for out in outs))
    assert history[-1] < 0.7 * history[0]


def test_automatic_mixed_precision(in_subprocess):
    in_subprocess("""
import mxnet as mx, numpy as np
if mx.__version__ < '2':
    from mxnet.contrib import amp
else:
    from mxnet import amp
amp.init()
from gluon_kl import KLDivLoss
pred = mx.nd.array([[.5, 1, -2, 0], [3, 0, 0, 1]], dtype="float16")
label = mx.nd.array([[0, .9, 0, .1], [.25, .25, .25, .25]], dtype="float16")
x = pred.asnumpy().astype("float64")
log_q = x - np.log(np.exp(x).sum(-1, keepdims=True))
p = label.asnumpy().astype("float64")
expected = np.where(p > 0, p * (np.log(np.where(p > 0, p, 1)) - log_q), 0).sum(-1)
for hybridize in (False, True):
    loss = KLDivLoss(from_logits=False, reduction="sum")
    if hybridize:
        loss.hybridize()
    pred.attach_grad()
    with mx.autograd.record():
        out = loss(pred, label)
    out.backward()
    np.testing.assert_allclose(out.asnumpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(pred.grad.asnumpy(), np.exp(log_q) * p.sum(-1, keepdims=True) - p, atol=1e-3)
""")
