"""The losses on MXNet 2, whose blocks are traced with real arrays; on MXNet 1 there is nothing to run."""

import contextlib
import itertools
import pickle
import re
import textwrap
from pathlib import Path

from gluon_kl import KLDivLoss, _mxnet

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from cases import FEW, MEMBERS, close, every

if not _mxnet.GLUON_2:
    pytest.skip("for MXNet 2", allow_module_level=True)
OPTIONS = {"eager": None, "hybrid": {}, "static": {"static_alloc": True, "static_shape": True}}


class Parent(gluon.HybridBlock):
    """A user's block around a loss, with something to differentiate through in front."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, pred, *others):
        return self.loss(pred * 1.0, *others)


def arrays_of(inputs, kind=mx.np.array):
    return [x if x is None or isinstance(x, (int, float)) else kind(np.asarray(x), dtype=np.asarray(x).dtype)
            for x in inputs]


def run(block, inputs, learned, kind=mx.np.array, grad_req="write"):
    """The value, and the gradients to those that are learned."""
    arrays = arrays_of(inputs, kind)
    for x, learn in zip(arrays, learned):
        if learn:
            x.attach_grad(grad_req)
    with autograd.record():
        out = block(*arrays)
    out.backward()
    return out.asnumpy(), [x.grad.asnumpy() if learn else None for x, learn in zip(arrays, learned)]


def check(member, block, inputs, weight, dtype, kind=mx.np.array):
    given = [*inputs] if weight is None else [*inputs, weight]
    learned = [*member.learns(inputs), weight is not None][:len(given)]
    value, gradients = run(block, given, learned, kind)
    close(value, member.expect(inputs, weight), dtype)
    for got, want in zip(gradients, member.gradients(inputs, weight)):
        if got is not None:
            close(got, want, dtype)


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_way(path, name, dtype):
    """Alone and in a user's block that is traced, with and without a weight, in mx.np and mx.nd arrays."""
    member, rng = MEMBERS[name], np.random.RandomState(3)
    inputs = [x if np.ndim(x) == 0 else np.asarray(x, dtype=dtype) for x in member.inputs(rng, (4, 3))]

    def one(way, weighted):
        weight = np.array([1, 0.5, 0, 2], dtype=dtype) if weighted else None
        block = member.make()
        if way == "nested":
            if any(x is None or isinstance(x, (int, float)) for x in inputs):
                return  # Gluon hands neither numbers nor None to a traced block
            block = Parent(block)
            block.hybridize()
        elif OPTIONS.get(way) is not None:
            block.hybridize(**OPTIONS[way])
        check(member, block, inputs, weight, dtype, mx.nd.array if way == "nd" else mx.np.array)

    every([(way, weighted) for way in (*OPTIONS, "nd", "nested") for weighted in (False, True)], one)


@pytest.mark.parametrize("name", ["kl logits probs", "reverse logits probs", "js logits probs", "both",
                                  "gaussian, prior", "bernoulli logits probs"])
def test_a_traced_block_serves_other_shapes_and_dtypes(path, name):
    """One graph serves every later call: nothing of the first call's shape may be kept in it.

    Over MXNet's operators, another dtype than that of the first call's inputs is an error.
    """
    member = MEMBERS[name]
    block = Parent(member.make())
    block.hybridize()
    rng = np.random.RandomState(5)
    for shape, dtype in (((2, 3), "float32"), ((5, 7), "float32"), ((2, 3), "float64"), ((9, 4), "float32")):
        inputs = [np.asarray(x, dtype=dtype) for x in member.inputs(rng, shape)]
        if path == "operators" and dtype == "float64":
            with pytest.raises(mx.MXNetError, match=r"expected float\d\d, got float\d\d"):
                check(member, block, inputs, None, dtype)
            continue
        check(member, block, inputs, None, dtype)


@pytest.mark.parametrize("uses", [2, 8, 20])
@pytest.mark.parametrize("static", [False, True])
def test_one_array_in_many_losses(path, uses, static):
    class Sum(gluon.HybridBlock):
        def __init__(self):
            super().__init__()
            self.loss = MEMBERS["reverse logits probs"].make()

        def forward(self, pred, label):
            return sum(self.loss(pred, label) * (i + 1) for i in range(uses))

    member, rng = MEMBERS["reverse logits probs"], np.random.RandomState(1)
    inputs = member.inputs(rng, (3, 4))
    block = Sum()
    block.hybridize(static_alloc=static, static_shape=static)
    factor = uses * (uses + 1) / 2
    arrays = arrays_of(inputs)
    arrays[0].attach_grad("add")
    for _ in range(3):
        with autograd.record():
            out = block(*arrays)
        out.backward()
    close(out.asnumpy(), factor * member.expect(inputs))
    close(arrays[0].grad.asnumpy(), 3 * factor * member.gradients(inputs)[0])


def test_export_and_import(path, tmp_path):
    member, rng = MEMBERS["reverse logits probs"], np.random.RandomState(1)
    inputs = member.inputs(rng, (3, 4))
    loss = member.make()
    loss.hybridize()
    loss(*arrays_of(inputs))
    loss.export(str(tmp_path / "loss"))
    block = gluon.SymbolBlock.imports(str(tmp_path / "loss-symbol.json"), ["data0", "data1"])
    for dtype in ("float64", "float32", "float64"):
        close(block(*arrays_of([x.astype(dtype) for x in inputs])).asnumpy(), member.expect(inputs), dtype)


def check_open_shapes(folder):
    """Of exported graphs at every rank, whatever is given and whatever is not: of an overrun the process dies."""
    for member in [MEMBERS[name] for name in FEW]:
        inputs = member.inputs(np.random.RandomState(0), (4, 5))
        for alone, weighted in itertools.product((False, True), repeat=2):
            given = [*inputs, *[None] * (len(member.make()._names) - 1 - len(inputs)), np.ones((4, 1))]
            given = given if weighted else inputs
            if any(x is None or np.ndim(x) == 0 for x in given):
                continue  # what Gluon's traces do not take
            block = member.make() if alone else Parent(member.make())
            block.hybridize()
            block(*arrays_of(given))
            block.export(f"{folder}/block")
            graph = mx.sym.load(f"{folder}/block-symbol.json")
            names = [f"data{i}" for i in range(len(given))] if len(given) > 1 else ["data"]
            shapes = {key: np.shape(x) for key, x in zip(names, given)}
            weight = np.ones((4, 1)) if weighted else None
            assert graph.infer_shape(**shapes)[1] == [member.expect(inputs, weight).shape]
            for lead in ((), (2,), (2,) * 7):
                for known in itertools.chain.from_iterable(
                        itertools.combinations(names, count) for count in range(len(names))):
                    for _ in range(20):
                        with contextlib.suppress(mx.MXNetError):  # an operator asks for a rank that nobody knows
                            graph.infer_shape_partial(**{key: lead + shapes[key] for key in known})


def test_open_shapes(path, in_subprocess, tmp_path):
    in_subprocess(f"import test_gluon2; test_gluon2.check_open_shapes({str(tmp_path)!r})")


def test_pickles_and_arguments():
    member, rng = MEMBERS["reverse logits probs"], np.random.RandomState(1)
    inputs = member.inputs(rng, (3, 4))
    loss = member.make()
    loss.hybridize()
    loss(*arrays_of(inputs))
    close(pickle.loads(pickle.dumps(loss))(*arrays_of(inputs)).asnumpy(), member.expect(inputs))
    with pytest.raises(TypeError, match="prefix must be None"):
        member.make(prefix="loss_")


def test_a_subclass_overrides_forward():
    base = MEMBERS["reverse logits probs"]

    class Twice(base.loss):
        def forward(self, pred, label, sample_weight=None):
            return 2 * super().forward(pred, label, sample_weight)

    inputs = base.inputs(np.random.RandomState(1), (3, 4))
    for hybridized in (False, True):
        loss = Twice(**{"reduction": "sum", **base.options})
        if hybridized:
            loss.hybridize()
        close(loss(*arrays_of(inputs)).asnumpy(), 2 * base.expect(inputs))


def test_metrics_are_registered():
    metric = mx.gluon.metric.create("kl-divergence", pred_space="probs")
    label, pred = mx.np.array([[0.3, 0.4, 0.3]]), mx.np.array([[0.2, 0.5, 0.3]])
    for _ in range(2):
        metric.update([label], [pred])
    assert round(metric.get()[1], 4) == 0.0324
    metric.reset()
    assert np.isnan(metric.get()[1])


def test_it_trains(path):
    """A network in a traced block with its loss: gradients of 0 would leave the loss where it was."""
    rng = np.random.RandomState(0)
    data, teacher = (mx.np.array(rng.normal(size=size).astype("float32")) for size in ((64, 5), (5, 3)))
    label = mx.npx.softmax(mx.np.dot(data, teacher))
    net = gluon.nn.Dense(3)
    net.initialize(mx.init.Normal(0.1))
    loss = KLDivLoss(from_logits=False, reduction="sum")
    net.hybridize()
    loss.hybridize()
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.5})
    values = []
    for _ in range(20):
        with autograd.record():
            out = loss(net(data), label)
        out.backward()
        trainer.step(64)
        values.append(float(out.mean()))
    assert values[-1] < 0.8 * values[0]


def test_the_program_of_the_page_versions(capsys):
    page = (Path(__file__).resolve().parent.parent / "docs" / "versions.rst").read_text(encoding="utf-8")
    source = re.search(r"\nMXNet 2:\n\n\.\. code-block:: python\n\n((?:   .*\n|\n)+)", page).group(1)
    exec(textwrap.dedent(source), {})
    first, last = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert last < 0.8 * first


def test_the_program_that_moved():
    """Of the page Moving here; its other half, on MXNet 1, is test_moving.py's."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "moving.rst").read_text(encoding="utf-8")
    source = re.search(r"On MXNet 2:\n\n\.\. code-block:: python\n\n((?:   .*\n)+)", page).group(1)
    features = np.random.RandomState(0).randn(8, 5).astype("float32")
    namespace = {"features": features, "labels": np.full((8, 3), 1 / 3, "float32"), "KLDivLoss": KLDivLoss}
    exec(textwrap.dedent(source), namespace)
    assert namespace["mean"].get()[1] == pytest.approx(3 * float(namespace["value"].mean()), rel=1e-5)
