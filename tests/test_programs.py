"""What whole programs do to the losses: mixed precision, data loaders, exports, locales, threads, limits, no rows.

Each program runs in a child process of its own, on both paths, and mostly with every member of the family.
"""

import contextlib
import ctypes
import inspect
import itertools
import locale
import math
import os
import re
import resource
import shutil
import subprocess
import tempfile
import threading

from gluon_kl import (
    BernoulliKLLoss,
    DistillationLoss,
    GaussianKLLoss,
    JSDivLoss,
    KLDivLoss,
    ReverseKLDivLoss,
    metric,
    native,
)

import mxnet as mx
import numpy as np
import pytest
from conftest import Run, program
from mxnet import autograd, gluon, nd
from mxnet.contrib import amp

import oracle
from cases import ADDS_WRONG, FEW, MEMBERS, NESTED, Distillation, Model, Pair, close, in_one_test

pytestmark = pytest.mark.usefixtures("path")
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])  # as MXNet spells it
STATIC = dict(static_alloc=True, static_shape=True)
# A stored teacher beside labels, which share a row of indices.
KEPT_AND_HARD = [name for name in MEMBERS
                 if name.startswith("top-k") and name not in ("top-k, soft, reverse", "top-k, hard")]


def every_way(names=MEMBERS, ways=("eager", "static", "nested", "nested static"), shape=(3, 4), **options):
    """(what it is, member, its loss or a model around it, float64 inputs), for each member and way of running."""
    for name, way in itertools.product(names, ways):
        if "nested" in way and name not in NESTED:
            continue
        member, rng = MEMBERS[name], np.random.RandomState(7)
        block = member.make(**options)
        if "nested" in way:
            block = Model(block)
        if way != "eager":
            block.hybridize(**(STATIC if "static" in way else {}))
        yield f"{name}, {way}", member, block, member.inputs(rng, shape)


def arrays_of(inputs, nested=False, kind=mx.nd.array, dtype="float32", **where):
    return [x if x is None else kind(x, dtype=dtype, **where) for x in inputs if x is not None or not nested]


def call(block, inputs, *more):
    """The values for float64 inputs."""
    return block(*arrays_of([*inputs, *more], isinstance(block, Model), dtype="float64")).asnumpy()


# What runs them

@pytest.mark.parametrize("source, said", [
    ("raise ValueError('no flour')", "(?s)exit code 1.*no flour"), ("import sys; sys.exit(3)", "exit code 3"),
    ("import os; os.kill(os.getpid(), 9)", "exit code -9"), ("import time; time.sleep(60)", "exit code -14")])
def test_a_program_that_fails_fails_its_test(in_child, source, said):
    with pytest.raises(AssertionError, match=said):
        in_child(source, timeout=1 if "sleep" in source else 600)
    assert in_child("import os; print(os.environ['GIVEN'])", GIVEN="this") == "this\n"
    assert in_child("import os; print('GIVEN' in os.environ)") == "False\n"


# Automatic mixed precision

@pytest.mark.parametrize("first", ["import gluon_kl", "amp.init(target_dtype='bfloat16')"])
def test_mixed_precision_stays_on(in_subprocess, first):
    """Neither the import nor a call replaces a function of MXNet."""
    in_subprocess(f"""
        import sys, mxnet as mx
        from mxnet import nd
        from mxnet.contrib import amp
        {first}
        {"amp.init(target_dtype='bfloat16')" if "import" in first else ""}
        ours = "gluon_kl"
        def functions():
            return {{(module, name): value for module, held in list(sys.modules.items()) if module.startswith("mxnet")
                    for name, value in list(vars(held).items()) if callable(value) and ours not in name.lower()}}
        before = functions()
        import gluon_kl
        class Model(mx.gluon.HybridBlock):
            def hybrid_forward(self, F, x, y):
                return loss(x, y)
        for block in (None, dict(), dict(static_alloc=True)):
            for nested in (False, True):
                loss = gluon_kl.KLDivLoss(False)
                model = Model() if nested else loss
                if block is not None:
                    model.hybridize(**block)
                model(nd.ones((2, 3)), nd.ones((2, 3)) / 3).wait_to_read()
        after = functions()
        changed = [name for name, value in before.items() if after.get(name) is not value]
        assert not changed, changed[:20]
        made = nd.FullyConnected(nd.ones((2, 3)), nd.ones((4, 3)), no_bias=True, num_hidden=4)
        assert "bfloat16" in str(made.dtype), made.dtype
    """)


@program
def test_bfloat16():
    """Inputs from AMP are computed in float32, and their gradients are bfloat16.

    Over MXNet's operators not beside hard labels of a stored teacher: oneDNN is then asked for float64, and has none.
    """
    names = [x for x in MEMBERS if native.is_available() or x not in KEPT_AND_HARD]
    amp.init(target_dtype=BFLOAT16)
    for what, member, block, inputs in every_way(names):
        given = arrays_of(inputs, isinstance(block, Model))
        source = given[0]
        source.attach_grad()
        with autograd.record():
            given[0] = nd.amp_cast(source, dtype=BFLOAT16)
            out = block(*given)
        out.backward()
        inputs[0] = nd.amp_cast(given[0], dtype="float32").asnumpy().astype("float64")
        assert out.dtype == np.float32 and given[0].dtype == BFLOAT16, what
        np.testing.assert_allclose(out.asnumpy(), member.expect(inputs), rtol=1e-5, atol=1e-5, err_msg=what)
        exact = [x if x is None else mx.nd.array(x, dtype="float64") for x in inputs]
        exact[0].attach_grad()
        with autograd.record():
            member.make()(*exact).backward()
        got, want = source.grad.asnumpy(), exact[0].grad.asnumpy()
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2 * abs(want).max(), err_msg=what)
        rounded = nd.amp_cast(nd.amp_cast(source.grad, dtype=BFLOAT16), dtype="float32").asnumpy()
        np.testing.assert_array_equal(got, rounded, err_msg=what)  # it came through bfloat16


@program
def test_amp_beside_float64():
    """In float64, which the user asks for or long sums need, AMP's casts have no effect."""
    amp.init(target_dtype=BFLOAT16)
    for name, shape, dtype, options in itertools.product(
            ("kl logits probs", "js logits probs", "both", "gaussian", "bernoulli logits probs"),
            ((3, 4), (2, 20000)), ("float32", "float64"), (None, {}, STATIC)):
        member, rng = MEMBERS[name], np.random.RandomState(3)
        loss, inputs = member.make(), member.inputs(rng, shape)
        if options is not None:
            loss.hybridize(**options)
        source = nd.array(inputs[0])
        source.attach_grad()
        with autograd.record():
            pred = nd.amp_cast(source, dtype=BFLOAT16)
            out = loss(pred, *[x if x is None else nd.array(x, dtype=dtype) for x in inputs[1:]])
        out.backward()
        inputs[0] = nd.amp_cast(pred, dtype="float32").asnumpy().astype("float64")
        assert out.dtype == np.dtype(dtype)
        # MXNet 1.7 lets AMP keep float32 where the long sums of the path over its operators ask for float64.
        tolerance = 1e-10 if dtype == "float64" else 2e-5 if mx.__version__.startswith("1.7.") else 1e-5
        np.testing.assert_allclose(out.asnumpy(), member.expect(inputs), rtol=tolerance,
                                   err_msg=f"{name} {shape} {options}")
        assert abs(source.grad.asnumpy()).sum() > 0, name


@program
def test_a_converted_net():
    """AMP puts its casts into an existing graph."""
    names = [x for x in MEMBERS if native.is_available() or x not in KEPT_AND_HARD]  # of whose class MXNet has no dtype
    for what, _, block, inputs in every_way(names, ways=("nested",)):
        given = arrays_of(inputs, True)
        block.hybridize()
        want = block(*given).asnumpy()
        for dtype in ("float16", "bfloat16"):
            converted = amp.convert_hybrid_block(block, target_dtype=dtype, ctx=mx.cpu())
            np.testing.assert_allclose(converted(*given).asnumpy(), want, rtol=1e-6, err_msg=f"{what} {dtype}")


class Net(gluon.HybridBlock):
    """A layer, and a loss of what it gives."""

    def __init__(self, loss, units, in_units):
        super().__init__()
        with self.name_scope():
            self.layer = gluon.nn.Dense(units, in_units=in_units)
            self.loss = loss

    def hybrid_forward(self, F, x, *rest):
        return self.loss(self.layer(x), *rest)


@pytest.mark.usefixtures("bfloat16_layers")
@program
def test_bfloat16_in_a_net():
    """With parameters of known and of deferred shapes."""
    amp.init(target_dtype=BFLOAT16)
    for name, in_units, options in itertools.product(("kl logits probs", "reverse logits probs", "js logits probs",
                                                      "both", "bernoulli logits probs"), (0, 5), (None, {}, STATIC)):
        member, rng = MEMBERS[name], np.random.RandomState(1)
        net = Net(member.make(), 4, in_units)
        net.initialize(mx.init.One())
        if options is not None:
            net.hybridize(**options)
        x, inputs = rng.normal(size=(3, 5)), member.inputs(rng, (3, 4))
        with autograd.record():
            out = net(mx.nd.array(x), *arrays_of(inputs[1:]))
        out.backward()
        inputs[0] = np.repeat(x.sum(axis=1, keepdims=True), 4, axis=1)
        assert out.dtype == np.float32
        np.testing.assert_allclose(out.asnumpy(), member.expect(inputs), rtol=5e-2, atol=5e-2, err_msg=name)
        assert np.isfinite(net.layer.weight.grad().asnumpy()).all()


@program
def test_bfloat16_in_metrics():
    amp.init(target_dtype=BFLOAT16)
    for made in (metric.KLDivergence(False), metric.JSDivergence(False)):
        scores = nd.array([[0.5, 1.0, -2.0]])
        made.update(nd.array([[0.25, 0.5, 0.25]]), nd.amp_cast(scores, dtype=BFLOAT16))
        value = made.get()[1]
        made.reset()
        made.update(nd.array([[0.25, 0.5, 0.25]]), scores)
        np.testing.assert_allclose(value, made.get()[1], rtol=1e-6)


# Memory of DataLoaders

@program
def test_data_loaders():
    """Labels in shared and in pinned memory."""
    rng = np.random.RandomState(0)
    kinds = set()
    for name in ("kl logits probs", "js logits probs", "both", "gaussian", "bernoulli logits probs"):
        member = MEMBERS[name]
        data = [x.astype("float32") for x in member.inputs(rng, (8, 4)) if x is not None]
        for options in (dict(num_workers=2), dict(num_workers=2, thread_pool=True),
                        dict(num_workers=1, pin_memory=True)):
            for mode in (None, {}, STATIC):
                loss, at = member.make(), 0
                if mode is not None:
                    loss.hybridize(**mode)
                for batch in gluon.data.DataLoader(gluon.data.ArrayDataset(*data), 4, **options):
                    kinds.add(batch[1].context.device_type)
                    pred = nd.array(data[0][at:at + 4])
                    pred.attach_grad()
                    with autograd.record():
                        out = loss(pred, *batch[1:])
                        last = loss(*batch)  # all of them
                    out.backward()
                    want = member.expect([x[at:at + 4] for x in data])
                    for value in (out, last):
                        np.testing.assert_allclose(value.asnumpy(), want, rtol=1e-4, atol=1e-5)
                    assert pred.grad.asnumpy().any()
                    at += 4
    assert {"cpu_shared", "cpu_pinned"} <= kinds, kinds


# Errors of arithmetic that went before

def overflow():
    """An earlier overflow in the program, after which errno says ERANGE."""
    float("1e400")
    math.exp(-800)
    np.logaddexp(1e308, 1e308)
    with contextlib.suppress(OverflowError):
        math.exp(1000)
    ctypes.set_errno(34)


@program
def test_an_earlier_overflow():
    for what, member, block, inputs in every_way():
        for weight in (None, np.array([[1.0], [0], [2]])):
            if weight is not None and isinstance(block, Model) and any(x is None for x in inputs):
                continue
            block.hybridize(*[False] if "eager" in what else [], **STATIC)  # a graph's first call is another's
            more = [] if weight is None else [*[None] * (len(member.make()._names) - 1 - len(inputs)), weight]
            overflow()
            np.testing.assert_allclose(call(block, inputs, *more), member.expect(inputs, weight), rtol=1e-9,
                                       atol=1e-12, err_msg=what)


@program
def test_import_of_a_graph_after_an_overflow():
    for name in ("kl logits probs", "kl logits logits", "js logits probs", "both", "gaussian"):
        member, rng = MEMBERS[name], np.random.RandomState(0)
        symbols = [mx.sym.var(f"data{i}") for i, x in enumerate(member.inputs(rng, (3, 4))) if x is not None]
        text = Model(member.make())(*symbols).tojson()
        overflow()
        block = gluon.SymbolBlock(mx.sym.load_json(text), [mx.sym.var(x.name) for x in symbols])
        inputs = member.inputs(rng, (3, 4))
        overflow()
        close(block(*arrays_of(inputs, True, dtype="float64")).asnumpy(), member.expect(inputs))


NO_NUMBER = re.compile(r"(?<![a-z_])[-+]?(inf|infinity|nan)(?![a-z_])", re.IGNORECASE)


def scalars(graph):
    """The attributes of all nodes, as text."""
    for node in mx.sym.load_json(graph.tojson()).attr_dict().values():
        yield from node.values()


@in_one_test("name", MEMBERS)
def test_no_infinite_scalar(name):
    """MXNet reads scalars as text, and cannot read "inf" if errno says ERANGE."""
    member, rng = MEMBERS[name], np.random.RandomState(0)
    reductions, seen = member.reductions or (None,), []
    calls = ((None, None, True), (None, None, False), (None, (3, 1), True), (None, (3, 4), True), (0, None, True),
             (0.5, (3, 4), False))
    # Each of these once, each reduction too.
    for reduction, (weight, weight_shape, recording) in zip(itertools.cycle(reductions), calls):
        if weight_shape == (3, 4) and member.weights == "rows":
            continue
        options = dict(weight=weight) if reduction is None else dict(weight=weight, reduction=reduction)
        loss = member.make(**options)
        inputs = member.inputs(rng, (3, 4))
        sample_weight = None if weight_shape is None else np.ones(weight_shape)
        given = [*inputs, *[None] * (len(loss._names) - 1 - len(inputs)), sample_weight]
        arrays = arrays_of(given)
        for x in arrays:
            if x is not None:
                x.attach_grad()
        with autograd.record() if recording else autograd.pause():
            checked, frame = loss._check(*arrays)
            key = loss._road.key_of(checked, frame, mx.cpu())
        symbols = [x if x is None or isinstance(x, float) else mx.sym.var(f"data{i}") for i, x in enumerate(checked)]
        graphs = [loss._road.compute(mx.sym, key, symbols),
                  loss._road.compute(mx.sym, key._replace(long=True, small=False), symbols),
                  loss(*symbols)]
        for graph in graphs:
            texts = list(scalars(graph))
            found = [text for text in texts if NO_NUMBER.search(text)]
            assert not found, found
            seen += texts
            numbers = [float(x) for text in texts for x in re.findall(r"-?\d+\.?\d*(?:e[-+]?\d+)?", text)]
            assert np.isfinite(numbers).all()
    assert seen


# Exports

def test_import_registers_the_operator(in_subprocess, tmp_path):
    """A process that has only imported the package can read a graph."""
    in_subprocess(f"""
        from test_programs import *
        for name in {FEW!r}:
            inputs = arrays_of(MEMBERS[name].inputs(np.random.RandomState(3), (3, 4)), True)
            block = Model(MEMBERS[name].make())
            block.hybridize()
            out = block(*inputs)
            block.export({str(tmp_path)!r} + "/" + name)
            np.save({str(tmp_path)!r} + "/" + name, [out.asnumpy()])
    """)
    in_subprocess(f"""
        import gluon_kl, mxnet as mx, os
        for name in {FEW!r}:
            file = {str(tmp_path)!r} + "/" + name + "-symbol.json"
            held = mx.sym.load(file).list_arguments()
            assert mx.gluon.SymbolBlock.imports(file, held)
        from test_programs import *
        for name in {FEW!r}:
            inputs = arrays_of(MEMBERS[name].inputs(np.random.RandomState(3), (3, 4)), True)
            block = gluon.SymbolBlock.imports(f"{tmp_path}/{{name}}-symbol.json",
                                              [f"data{{i}}" for i in range(len(inputs))])
            np.testing.assert_allclose(block(*inputs).asnumpy(), np.load(f"{tmp_path}/{{name}}.npy")[0], rtol=1e-6)
    """)


class Several(gluon.HybridBlock):
    """A net whose output is several times an input of its losses."""

    def __init__(self):
        super().__init__(prefix="net_")
        with self.name_scope():
            self.layer = gluon.nn.Dense(4)
            self.kl, self.js = KLDivLoss(False), JSDivLoss(False, label_space="logits")

    def hybrid_forward(self, F, x, label):
        scores = self.layer(x)
        return F.add_n(*[loss(scores, label) for loss in (self.kl, self.js, self.kl, self.kl, self.js)])


def test_two_exports_are_one_text(tmp_path):
    texts = []
    net = Several()
    net.initialize()
    for i in range(3):
        if i == 2:  # another of its kind
            net = Several()
            net.initialize()
        net.hybridize()
        net(nd.ones((2, 3)), nd.ones((2, 4)))
        net.export(str(tmp_path / f"net{i}"))
        texts.append((tmp_path / f"net{i}-symbol.json").read_text())
    assert texts[0] == texts[1]
    names = [re.sub(r"(kl|reversekl|js)divloss\d+", r"\1divloss", text) for text in texts]
    assert names[0] == names[2]


# No rows

def weights_without_rows(member, shape):
    yield from (None, np.zeros((0,)), np.zeros((0, 1)), np.ones((1, 1)))
    if member.weights == "elements":
        yield np.zeros(shape)


@program
def test_no_rows():
    mx.npx.set_np()
    for what, member, block, inputs in every_way(ways=("eager", "hybrid", "static"), shape=(0, 4)):
        for weight in weights_without_rows(member, (0, 4)):
            loss = block
            given = [*inputs, *[None] * (len(loss._names) - 1 - len(inputs)), weight]
            for attached in ((0,), range(len(given)), ()):
                arrays = arrays_of(given, kind=mx.np.array)
                for i in attached:
                    if arrays[i] is not None:
                        arrays[i].attach_grad()
                with autograd.record(bool(attached)):
                    out = loss(*arrays)
                assert out.shape == (0,) and type(out) is mx.np.ndarray and out.dtype == np.float32, what
                if not attached:
                    continue
                out.backward()
                mx.nd.waitall()
                for i in attached:
                    if arrays[i] is not None:
                        assert arrays[i].grad.shape == arrays[i].shape and not arrays[i].grad.asnumpy().any(), what
    pred = mx.np.ones((3, 4))
    nothing = pred[mx.np.array([0, 0, 0], dtype=bool)]
    assert KLDivLoss()(nothing, nothing).shape == (0,)
    assert KLDivLoss(reduction="none")(nothing, nothing).shape == (0, 4)
    assert KLDivLoss(batch_axis=1, axis=0)(mx.np.ones((4, 0)), mx.np.ones((4, 0))).shape == (0,)
    assert KLDivLoss()(nothing.astype("float64"), nothing).dtype == np.float64
    for shape in ((3, 0), (0, 0)):
        with pytest.raises(ValueError, match="no categories along axis 1"):
            KLDivLoss()(mx.np.ones(shape), mx.np.ones(shape))
    for made in (metric.KLDivergence(), metric.JSDivergence()):
        made.update(nothing, nothing)
        assert math.isnan(made.get()[1])
        made.update(mx.np.full((1, 4), 0.25), mx.np.log(mx.np.full((1, 4), 0.25)))
        assert abs(made.get()[1]) < 1e-6
    with pytest.raises(ValueError, match="nothing to look at"):
        KLDivLoss().check_inputs(nothing, nothing)


@program
def test_no_rows_in_a_users_graph():
    """Forward and backward with the fused operator; with MXNet's operators only the shape.

    In a hybridized graph, Flatten, reshape and sums of MXNet's fail without rows, whoever calls them; the failure
    shows when somebody waits for the values. Of a stored teacher, sums of MXNet's stand beside the operator.
    """
    mx.npx.set_np()
    names = [x for x in MEMBERS if x not in KEPT_AND_HARD]
    for what, member, _, inputs in every_way(names, ways=("nested", "nested static"), shape=(0, 4)):
        for weight in (None, np.zeros((0, 1)), np.zeros((0, 4))):
            if weight is not None and (any(x is None for x in inputs) or len(inputs) != len(member.make()._names) - 1):
                continue
            model = Model(member.make())
            model.hybridize(**(STATIC if "static" in what else {}))
            arrays = arrays_of([*inputs, weight], True, mx.np.array)
            for x in arrays:
                x.attach_grad()
            if not native.is_available():
                continue
            with autograd.record():
                out = model(*arrays)
            assert out.shape == (0,) and out.dtype == np.float32, what
            out.backward()
            mx.nd.waitall()
            assert all(x.grad.shape == x.shape for x in arrays)
            out.asnumpy()


@program
def test_no_rows_in_a_legacy_array():
    """They are refused, because MXNet would read the 0 as unknown and allocate four thousand million elements."""
    with mx.util.np_shape(True):
        nothing = nd.zeros((0, 4))
    for _, _, block, inputs in every_way(ways=("eager", "static")):
        arrays = arrays_of(inputs)
        arrays[0] = nothing
        for i, x in enumerate(arrays):
            if x is not None and x.shape == (3, 4):
                arrays[i] = nothing
            elif x is not None and x.shape[0] == 3:
                with mx.util.np_shape(True):
                    arrays[i] = nd.zeros((0, *x.shape[1:]))
        with pytest.raises(ValueError, match="reads a 0 there as an unknown length"):
            block(*arrays)
    assert nd.ones((1000, 1000)).sum().asscalar() == 1e6


@in_one_test("name", [name for name, member in MEMBERS.items() if isinstance(member, (Pair, Distillation))])
def test_one_category(run, name):
    member = MEMBERS[name]
    inputs = member.inputs(np.random.RandomState(0), (3, 1))
    assert (run(member.make(), *inputs) == 0).all()
    to_pred = run.gradients(member.make(), *inputs)[0]
    assert np.isfinite(to_pred).all()
    if getattr(member.make(), "_pred_space", "logits") == "logits":  # a softmax of one category is 1
        assert (to_pred == 0).all()


# Sums of gradients in one graph

class Uses(gluon.HybridBlock):
    """The sum of `uses` losses of the same inputs, as inputs of the graph or as results of an operator."""

    def __init__(self, member, uses, leaf):
        super().__init__()
        self.leaf = leaf
        self.losses = [member.make() for _ in range(uses)]
        for loss in self.losses:
            self.register_child(loss)

    def hybrid_forward(self, F, pred, *rest):
        pred = pred if self.leaf else pred * 1
        return F.add_n(*[loss(pred, *rest) for loss in self.losses])


def check_uses(name, uses, leaf, grad_req, options=STATIC):
    member, rng = MEMBERS[name], np.random.RandomState(0)
    inputs = member.inputs(rng, (3, 4))

    def gradients(block):
        arrays = arrays_of(inputs, True, dtype="float64")
        for x in arrays:
            x.attach_grad(grad_req)
        for _ in range(2):
            with autograd.record():
                out = block(*arrays)
            out.backward()
        return [x.grad.asnumpy() for x in arrays]

    block = Uses(member, uses, leaf)
    block.hybridize(**options)
    nothing = [None] * (len(inputs) - len(arrays_of(inputs, True)))
    once = gradients(member.make() if not nothing else Model(member.make()))
    for got, want in zip(gradients(block), once):
        np.testing.assert_allclose(got, want * uses, rtol=1e-9, atol=1e-12,
                                   err_msg=f"{name}: {uses} uses, leaf {leaf}, {grad_req}, {options}")


@program
def test_gradients_add_up_at_every_limit():
    """MXNet adds gradients in place from a number of uses on that MXNET_EXEC_INPLACE_GRAD_SUM_CAP sets: tests 1 to 16.

    It reads that once, so that each value has a process of its own; the cases change from one to the next.
    """
    children, requests = [], ("write", "write") if ADDS_WRONG else ("write", "add")
    for cap in range(1, 17):
        child = os.fork()
        if not child:
            os.environ["MXNET_EXEC_INPLACE_GRAD_SUM_CAP"] = str(cap)
            try:
                for i, name in enumerate(NESTED):
                    if i % 4 == cap % 4:
                        turn = cap * 5 + i
                        check_uses(name, 2 + turn % 19 if native.is_available() else 2 + turn % 7, turn % 2 == 0,
                                   requests[turn // 2 % 2])
            except BaseException as error:
                print(f"limit {cap}: {error}", flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
        if len(children) == 2:
            assert not os.waitpid(children.pop(0), 0)[1]
    assert all(not os.waitpid(child, 0)[1] for child in children)


@pytest.mark.parametrize("uses", range(2, 21))
@pytest.mark.parametrize("grad_req", ["write", "add"])
def test_one_pred_in_two_to_twenty_losses(uses, grad_req):
    if ADDS_WRONG and grad_req == "add" and uses in (3, 5, 6, 7):  # "both" uses pred twice
        pytest.skip(ADDS_WRONG)
    for name, leaf in itertools.product(("kl logits probs", "both"), (True, False)):
        check_uses(name, uses, leaf, grad_req, STATIC if uses % 2 else {})


# Module, shapes, summaries

def graph_of(name):
    """A graph of one loss, as a user makes it by hand; its inputs by name."""
    loss = MEMBERS[name].make()
    inputs = MEMBERS[name].inputs(np.random.RandomState(0), (4, 5))
    present = {key: x for key, x in zip(loss._names, inputs) if x is not None}
    return loss, loss(*[mx.sym.var(key) if key in present else None for key in loss._names[:len(inputs)]]), present


@in_one_test("name", MEMBERS)
def test_shapes_are_inferred_from_the_first_input(path, name):
    loss, graph, present = graph_of(name)
    first = loss._names[0]
    # One at a time: MXNet counts an unknown rank as -1 in the buffer of shapes that it fills for an extension.
    alike = [key for key in present if key in loss._road.description.same_shape_inputs][-1:]
    left_open = {key: x.shape for key, x in present.items() if key not in alike}
    shapes, outs, _ = graph.infer_shape(**{**left_open, first: (4, 5)})
    assert dict(zip(graph.list_arguments(), shapes)) == {key: x.shape for key, x in present.items()}
    assert outs == [(4,)]
    bound = graph.simple_bind(mx.cpu(), **{**left_open, first: (4, 5)})
    for key, x in present.items():
        bound.arg_dict[key][:] = x
    np.testing.assert_allclose(bound.forward()[0].asnumpy(), MEMBERS[name].expect(
        [present.get(key) for key in loss._names[:len(MEMBERS[name].inputs(np.random.RandomState(0), (4, 5)))]]),
        rtol=1e-4, atol=1e-4)
    kinds, outs, _ = graph.infer_type(**dict.fromkeys(present, "float16"))
    assert outs == [np.float32]
    kinds, outs, _ = graph.infer_type(**dict.fromkeys(present, "float64"))
    assert outs == [np.float64]


@program
def test_an_exported_graph_infers_its_label():
    """Shapes of two axes: other numbers of open ones MXNet 1.9.1 does not bear on the way to an extension."""
    loss = KLDivLoss(False)
    loss.hybridize()
    loss(nd.ones((2, 3)), nd.ones((2, 3)))
    with tempfile.TemporaryDirectory() as folder:
        loss.export(folder + "/loss")
        graph = mx.sym.load(folder + "/loss-symbol.json")
    pred, label = graph.list_arguments()
    shapes, out, _ = graph.infer_shape(**{pred: (4, 5)})
    assert shapes == [(4, 5), (4, 5)] and out == [(4,)], (label, shapes, out)


@program
def test_labels_left_open_at_every_rank():
    """When MXNet asks an extension's operator, it writes beyond a buffer, and at some ranks the process ends."""
    for name, member in MEMBERS.items():
        loss = member.make()
        unused = getattr(loss, "_unused", "")
        if getattr(loss, "_sparse_label", False) and unused != "label":
            continue  # nothing tells whether class indices keep the axis
        if name.startswith("top-k"):
            continue  # nor how many categories were kept
        names = loss._names[:3 if hasattr(loss, "_sparse_label") else 2]
        graph = loss(*[None if each == unused else mx.sym.var(each) for each in names])
        for rank in range(1 if isinstance(member, Pair) else 2, 6):  # more than MXNet's slice takes
            shape = (2,) * (rank - 1) + (3,)
            for _ in range(20):
                shapes, _, _ = graph.infer_shape(**{loss._names[0]: shape})
            assert set(shapes) == {shape}, name
            graph.simple_bind(mx.cpu(), **{loss._names[0]: shape}).forward()[0].wait_to_read()


def test_module_without_labels():
    data, label = mx.sym.var("data"), mx.sym.var("label")
    scores = mx.sym.FullyConnected(data, num_hidden=5, name="layer")
    for loss in (KLDivLoss(False), ReverseKLDivLoss(False), JSDivLoss(False, label_space="logits"), BernoulliKLLoss()):
        module = mx.mod.Module(mx.sym.Group([mx.sym.softmax(scores), loss(scores, label)]), label_names=["label"])
        module.bind([("data", (4, 3))], for_training=False)
        module.init_params()
        module.forward(mx.io.DataBatch([nd.ones((4, 3))], None), is_train=False)
        assert [x.shape for x in module.get_outputs()] == [(4, 5), (4,)]


@pytest.mark.parametrize("name", MEMBERS)
def test_summaries(capsys, path, name):
    if name == "top-k, dense" or (name.startswith("top-k") and name != "top-k, hard" and not native.is_available()):
        pytest.skip("a step takes an array of one axis, for which print_summary has no column")
    if "ignoring" in name and (name.startswith("top-k") or not native.is_available()):
        pytest.skip("class indices come first, and print_summary takes what comes first for a layer of two axes")
    graphs = [graph_of(name)]
    with gluon.nn.HybridSequential().name_scope():  # as where Gluon traces
        graphs.append(graph_of(name))
    for _, graph, present in graphs:
        mx.viz.print_summary(graph, shape={key: x.shape for key, x in present.items()})
        mx.viz.print_summary(graph)
    assert "Total params" in capsys.readouterr().out


@in_one_test("name", MEMBERS)
def test_what_gluon_asks_a_block(name):
    """infer_shape, infer_type and optimize_for, which read the graph without a call, work."""
    if name not in NESTED:
        pytest.skip("Gluon hands no None to these")
    member, rng = MEMBERS[name], np.random.RandomState(0)
    inputs = member.inputs(rng, (3, 4))
    arrays = arrays_of(inputs, True, dtype="float64")
    loss = Model(member.make()) if len(arrays) < len(inputs) else member.make()
    loss.infer_shape(*arrays)
    loss.infer_type(*arrays)
    loss.optimize_for(*arrays, backend="MKLDNN")
    close(loss(*arrays).asnumpy(), member.expect(inputs))


# Instead of MXNet's own loss

def test_in_the_place_of_mxnets_own():
    """SDMLLoss, which reads the shapes of its inputs and so runs only eagerly, accepts our loss instead of MXNet's."""
    run = Run("eager")
    x, y = np.random.RandomState(0).uniform(size=(2, 4, 5)).astype("float32")
    own, ours = gluon.loss.SDMLLoss(), gluon.loss.SDMLLoss()
    reduction = "sum" if mx.__version__.startswith("1.9.") else "mean"  # as MXNet's own of that release
    ours.kl_loss = KLDivLoss(from_logits=True, reduction=reduction)
    np.testing.assert_allclose(run(ours, x, y), run(own, x, y), rtol=1e-4, atol=1e-5)
    for got, want in zip(run.gradients(ours, x, y), run.gradients(own, x, y)):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
    assert isinstance(ours.kl_loss, gluon.loss.KLDivLoss)


@pytest.mark.parametrize("make, argument", [
    (make, argument) for make in (KLDivLoss, ReverseKLDivLoss, JSDivLoss, DistillationLoss, GaussianKLLoss,
                                  BernoulliKLLoss, metric.KLDivergence, metric.JSDivergence)
    for argument in ("axis", "batch_axis") if argument in inspect.signature(make).parameters])
def test_an_axis_is_no_bool(make, argument):
    for value in (True, np.bool_(False)):
        with pytest.raises(TypeError, match=f"{argument} must be an integer, not {re.escape(repr(value))}"):
            make(**{argument: value})


# Locales, and numbers at the ends of their range

@pytest.fixture
def comma_locale(tmp_path):
    """An environment with a locale that is made here and writes decimals with a comma."""
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")], stderr=subprocess.PIPE, text=True)
    if not made or not (tmp_path / "de_DE.UTF-8").exists():
        pytest.skip("localedef makes no de_DE.UTF-8 here: " + (made.stderr if made else "it is missing"))
    return dict(LOCPATH=str(tmp_path))


def test_a_locale_with_a_decimal_comma(in_child, comma_locale):
    in_child("import test_programs; test_programs.check_with_a_decimal_comma()", **comma_locale)


def check_with_a_decimal_comma():
    locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
    libc = ctypes.CDLL(None)
    libc.strtod.restype = ctypes.c_double
    assert libc.strtod(b"0,5", None) == 0.5  # C code sees it
    for what, member, block, inputs in every_way(weight=0.3):
        np.testing.assert_allclose(call(block, inputs), member.expect(inputs, weight=0.3), rtol=1e-6, atol=1e-9,
                                   err_msg=what)
    for loss, to_label in ((KLDivLoss(reduction="sum", epsilon=1.5e-7), math.log(1.5e-7) + 1.25),):
        label, pred = nd.array([[1.0, 0.0]]), nd.array([[0.0, -1.25]])
        label.attach_grad()
        with autograd.record():
            loss(pred, label).backward()
        np.testing.assert_allclose(label.grad.asnumpy()[0, 1], to_label, rtol=1e-6)


def kl_of(pred, label):
    return oracle.kl_terms(pred, label, "logits", "probs", -1)


@pytest.mark.parametrize("make, value, factor", [
    (lambda: KLDivLoss(False, reduction="sum", epsilon=1e-310), kl_of, 1),
    (lambda: KLDivLoss(False, reduction="sum", weight=1e-310), kl_of, 1e-310),
    (lambda: JSDivLoss(False, reduction="sum", beta=1e-310), lambda x, y: 0 * x, 1),
    (lambda: JSDivLoss(False, reduction="sum", beta=1 - 2**-53), lambda x, y: 0 * x, 1),
    (lambda: DistillationLoss(temperature=1e308, hard_weight=0), None, 1),
    (lambda: DistillationLoss(temperature=1e-310, hard_weight=0), None, 1),
    (lambda: DistillationLoss(temperature=2, hard_weight=1e-310), None, 1),
    (lambda: GaussianKLLoss(free_nats=1e-310), None, 1),
], ids=["epsilon", "weight", "beta", "beta near 1", "temperature", "small temperature", "hard_weight", "free_nats"])
def test_numbers_at_the_ends_of_their_range(run, make, value, factor):
    """They work, or are refused when the loss is made."""
    try:
        loss = make()
    except ValueError:
        return
    rng = np.random.RandomState(0)
    pred, label = rng.normal(size=(2, 3, 4))
    label = np.exp(oracle.log_softmax(label))
    inputs = (pred, np.array([0.0, 1, 2]), label) if isinstance(loss, DistillationLoss) else (pred, label)
    for block in (loss, Model(make())):
        result = run(block, *inputs)
        assert np.isfinite(result).all()
        if value is not None:
            np.testing.assert_allclose(result, value(pred, label).sum(-1) * factor, rtol=1e-6, atol=1e-12 * factor)
        assert all(np.isfinite(gradient).all() for gradient in run.gradients(block, *inputs))


# Threads

@program
def test_no_further_thread_may_start():
    """A large loss continues with the threads that it has."""
    os.environ["GLUON_KL_NUM_THREADS"] = "4"  # read when the operator first runs
    nd.ones((10,)).wait_to_read()  # MXNet's engine has its threads by now
    if os.getuid() == 0:  # whom no limit holds
        os.setgid(65534)
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    with pytest.raises(RuntimeError):
        threading.Thread(target=print).start()
    for name in ("kl logits probs", "js logits probs", "both", "gaussian", "bernoulli logits probs"):
        member, rng = MEMBERS[name], np.random.RandomState(0)
        inputs = member.inputs(rng, (400, 500))
        pred, *rest = arrays_of(inputs)
        pred.attach_grad()
        with autograd.record():
            out = member.make()(pred, *rest)
        out.backward()
        np.testing.assert_allclose(out.asnumpy(), member.expect(inputs), rtol=1e-4)
        assert pred.grad.asnumpy().any()


@program
def test_first_calls_from_several_threads():
    """Every other loss with static memory; on the other path those that have none here."""
    for i, name in enumerate(FEW):
        member, errors = MEMBERS[name], []
        loss = member.make()
        loss.hybridize(**({} if i % 2 == native.is_available() else STATIC))
        start = threading.Barrier(8)

        def calls(seed, member=member, loss=loss, errors=errors, start=start):
            try:
                rng = np.random.RandomState(seed)
                start.wait()
                for shape, kind in itertools.product(((3, 4), (2, 3), (2, 2, 3)), (mx.nd.array, mx.np.array)):
                    inputs = member.inputs(rng, shape)
                    close(loss(*arrays_of(inputs, kind=kind, dtype="float64")).asnumpy(), member.expect(inputs))
            except BaseException as error:
                errors.append(f"{name}: {error!r}")

        threads = [threading.Thread(target=calls, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors[0]


# Long sums

@pytest.mark.parametrize("loss, rtol", [(KLDivLoss(reduction="sum"), 1e-6), (KLDivLoss(reduction="mean"), 1e-6),
                                        (ReverseKLDivLoss(reduction="sum"), 1e-6), (JSDivLoss(reduction="sum"), 1e-6),
                                        (GaussianKLLoss(), 1e-6), (BernoulliKLLoss(reduction="sum"), 1e-6)],
                         ids=lambda value: getattr(value, "name", None))
def test_sums_over_long_samples(loss, rtol, path):
    """The sum of 2^23 equal terms, which is off by 5e-4 in float32, is right."""
    n = 1 << 23
    one = {KLDivLoss: (-1.5, 0.3), ReverseKLDivLoss: (-1.5, 0.3), JSDivLoss: (-1.5, 0.3), GaussianKLLoss: (0.4, -0.7),
           BernoulliKLLoss: (0.4, 0.3)}[type(loss)]
    x, y = (np.float64(np.float32(number)) for number in one)
    term = {KLDivLoss: lambda: y * (np.log(y) - x), ReverseKLDivLoss: lambda: np.exp(x) * (x - np.log(y)),
            JSDivLoss: lambda: 0.5 * (
                y * np.log(y / (0.5 * (y + np.exp(x)))) + np.exp(x) * np.log(np.exp(x) / (0.5 * (y + np.exp(x))))),
            GaussianKLLoss: lambda: 0.5 * (x * x + np.exp(y) - 1 - y),
            BernoulliKLLoss: lambda: y * np.log(y / (1 / (1 + np.exp(-x)))) + (1 - y) * np.log(
                (1 - y) / (1 - 1 / (1 + np.exp(-x))))}[type(loss)]()
    expected = term * (1 if getattr(loss, "_reduction", "sum") == "mean" else n)
    value = loss(nd.full((1, n), one[0]), nd.full((1, n), one[1])).asscalar()
    np.testing.assert_allclose(value, expected, rtol=rtol)


