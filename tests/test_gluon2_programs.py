"""Whole programs on MXNet 2: training, data, empty batches, devices, threads, copies; and what one trace serves."""

import copy
import json
import pickle
import threading

from gluon_kl import BernoulliKLLoss, GaussianKLLoss, KLDivLoss, _mxnet, metric, native

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

import oracle
from cases import FEW, MEMBERS, Case, Model, agrees, all_inputs, called, close, every

if not _mxnet.GLUON_2:
    pytest.skip("for MXNet 2", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("path")
STATIC = dict(static_alloc=True, static_shape=True)


@pytest.fixture
def data(rng):
    """Features, and the distribution of the label that they lead to."""
    features = rng.normal(size=(64, 5)).astype("float32")
    return features, np.exp(oracle.log_softmax(features @ rng.normal(size=(5, 3)))).astype("float32")


def hybridized(block, **options):
    block.hybridize(**options)
    return block


def network():
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Dense(8, activation="tanh"), gluon.nn.Dense(3))
    net.initialize(mx.init.Xavier())
    return hybridized(net)


# Training

@pytest.mark.parametrize("optimizer", ["sgd", "nag", "adam", "adamw", "rmsprop", "adagrad", "lamb"])
def test_optimizers(data, optimizer):
    features, label = map(mx.np.array, data)
    net, loss = network(), hybridized(KLDivLoss(False, reduction="sum"), **STATIC)
    trainer = gluon.Trainer(net.collect_params(), optimizer, {"learning_rate": 0.05})
    values = []
    for _ in range(30):
        with autograd.record():
            out = loss(net(features), label)
        out.backward()
        trainer.step(len(features))
        values.append(float(out.mean()))
    assert values[-1] < 0.8 * values[0], values


def test_estimator(data):
    from mxnet.gluon.contrib.estimator import Estimator
    net = network()
    loader = gluon.data.DataLoader(gluon.data.ArrayDataset(*data), batch_size=24)  # the last batch is smaller
    train, held_out = (metric.KLDivergence(from_logits=False) for _ in range(2))
    trainer = gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 0.05})
    estimator = Estimator(net, KLDivLoss(False, reduction="sum"), train_metrics=train, val_metrics=held_out,
                          trainer=trainer)
    estimator.fit(train_data=loader, val_data=loader, epochs=3)
    values = [each.get()[1] for each in (*estimator.train_metrics, *estimator.val_metrics)]
    want = KLDivLoss(False, reduction="sum")(net(mx.np.array(data[0])), mx.np.array(data[1])).mean()
    assert values[-1] == pytest.approx(float(want), rel=1e-4) and values[-1] < values[0]


@pytest.mark.parametrize("options", [dict(num_workers=0), dict(num_workers=2), dict(num_workers=0, pin_memory=True),
                                     dict(num_workers=2, thread_pool=True)], ids=str)
def test_data_loader(data, options):
    """Batches of a loader's, the last one smaller, in all ways; `label` from elsewhere too."""
    loader = gluon.data.DataLoader(gluon.data.ArrayDataset(*data), batch_size=24, **options)
    blocks = KLDivLoss(False), hybridized(KLDivLoss(False)), hybridized(Model(KLDivLoss(False)))
    for i, (features, label) in enumerate(loader):
        want = oracle.kl_divergence(data[0][24 * i:24 * i + 24, :3], data[1][24 * i:24 * i + 24], from_logits=False)
        for block in blocks[:2] if "pin_memory" in options else blocks:  # Gluon hands a traced block one kind of memory
            np.testing.assert_allclose(block(features[:, :3], label).asnumpy(), want, rtol=1e-4, atol=2e-5)
        here = mx.np.array(features[:, :3].asnumpy())
        np.testing.assert_allclose(blocks[0](here, label).asnumpy(), want, rtol=1e-4, atol=2e-5)
    assert i == 2


@pytest.mark.parametrize("nested", [False, True])
def test_devices(data, nested):
    loss = hybridized(Model(KLDivLoss(False)) if nested else KLDivLoss(False))
    values, gradients = [], []
    for device in (mx.cpu(0), mx.cpu(1)):
        pred, label = (mx.np.array(x[:, :3], ctx=device) for x in data)
        pred.attach_grad()
        with autograd.record():
            out = loss(pred, label)
        out.backward()
        assert out.ctx == pred.grad.ctx == device
        values.append(out.asnumpy())
        gradients.append(pred.grad.asnumpy())
    np.testing.assert_array_equal(*values)
    np.testing.assert_array_equal(*gradients)


def test_threads(data):
    """Calls of one loss at once, with shapes of their own."""
    loss, failed = hybridized(KLDivLoss(False, reduction="sum")), []
    want, _, _ = oracle.kl_gradients(data[0][:, :3], data[1], from_logits=False, reduction="sum")

    def work(samples):
        try:
            for _ in range(20):
                pred, label = (mx.np.array(x[:samples, :3]) for x in data)
                pred.attach_grad()
                with autograd.record():
                    out = loss(pred, label)
                out.backward()
                np.testing.assert_allclose(pred.grad.asnumpy(), want[:samples], rtol=1e-4, atol=2e-5)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(16 * (i + 1),)) for i in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failed


@pytest.mark.parametrize("name", FEW)
def test_copies(name):
    """Before the first call of a loss and after it."""
    case = Case(name, ((3, 4), -1, 0))
    loss = hybridized(case.make())
    before = copy.deepcopy(loss)
    want = called(loss, case.inputs)
    for each in (before, copy.deepcopy(loss), copy.copy(loss), pickle.loads(pickle.dumps(loss))):
        for got, x in zip(called(each, case.inputs), want):
            np.testing.assert_array_equal(got, x)


# Empty batches

@pytest.mark.parametrize("name", MEMBERS)
def test_no_rows(name):
    """A result of no samples, and gradients that are empty, or 0 to a prior that all samples share."""
    def check(way, size, grad_req):
        case = Case(name, ((3, 4), -1, 0), size=None)
        case.inputs = [x[:0] if np.shape(x)[:1] == (3,) else x for x in case.inputs]
        case.sample_weight = None if size is None else np.zeros(size)
        block = case.make()
        if way == "hybridized":
            block.hybridize()
        arrays = [None if x is None else mx.np.array(x, dtype="float32") for x in all_inputs(case)]
        for x in arrays:
            if x is not None:
                x.attach_grad(grad_req)
                x.grad[:] = 7
        with autograd.record():
            out = block(*arrays)
        out.backward()
        assert out.asnumpy().shape == (0,)
        for x in arrays:
            if x is not None:
                np.testing.assert_array_equal(x.grad.asnumpy(), np.full(x.shape, 0 if grad_req == "write" else 7))

    sizes = [None, (0,), (0, 1)] + ([] if MEMBERS[name].weights == "rows" else [(0, 4)])
    every([(way, size, grad_req) for way in ("eager", "hybridized") for size in sizes
           for grad_req in ("write", "add")], check)


# Over MXNet's operators these look for the largest of a row, which MXNet refuses where there is none.
OF_THE_LARGEST = ["kl logits logits", "skew logits logits", "both", "both, dense", "both, js", "both, tv",
                  "both, smoothed, ignoring", "top-k"]


@pytest.mark.parametrize("name", [name for name in FEW if "prior" not in name])  # MXNet's gradient of one fails
@pytest.mark.parametrize("options", [{}, STATIC], ids=["hybrid", "static"])
def test_no_rows_in_a_users_block(path, rng, name, options):
    """Of a block that has seen others."""
    member = MEMBERS[name]
    block = hybridized(Model(member.make()), **options)
    for rows in (3, 0, 2):
        if rows == 0 and path == "operators" and name in OF_THE_LARGEST:
            with pytest.raises(mx.MXNetError, match="size should > 0"):
                called(block, [x[:0] for x in member.inputs(rng, (3, 4))])
            continue
        inputs = [x[:rows] for x in member.inputs(rng, (3, 4))]
        value, *gradients = called(block, inputs)
        assert value.shape == (rows,)
        if rows:
            agrees(value, member.expect(inputs, None), "float64", "value")
        for got, x in zip(gradients, inputs):
            assert got is None or got.shape == x.shape


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("grad_req", ["write", "add"])
def test_no_rows_under_a_shared_prior(rng, nested, grad_req):
    """The prior has rows, and a gradient of 0, not that of the batch before."""
    block = hybridized(Model(GaussianKLLoss()) if nested else GaussianKLLoss())
    prior = [mx.np.array(rng.normal(size=size)) for size in ((1, 4), (4,))]
    for x in prior:
        x.attach_grad(grad_req)
    for rows in (3, 0):
        before = [x.grad.asnumpy() for x in prior]
        with autograd.record():
            out = block(mx.np.zeros((rows, 4), dtype="float64"), mx.np.zeros((rows, 4), dtype="float64"), *prior)
        out.backward()
    for x, old in zip(prior, before):
        assert (old != 0).all()
        np.testing.assert_array_equal(x.grad.asnumpy(), 0 * old if grad_req == "write" else old)


def test_no_categories():
    for block in (KLDivLoss(), hybridized(KLDivLoss()), hybridized(Model(KLDivLoss()))):
        with pytest.raises(ValueError, match="no categories along axis"):
            block(mx.np.ones((3, 0)), mx.np.ones((3, 0)))


# What one trace serves

def weights_of(rng, shape, kind, has_axis):
    """A weight for each sample, for each row or for each element."""
    size = {"none": None, "batch": shape[:1], "row": shape[:-1] if has_axis else None, "element": shape}[kind]
    return None if size is None else rng.uniform(0.5, 2, size=size)


def test_mxnets_own_loss_is_wrong_after_a_trace_of_another_rank():
    """The fault that ours must not have: four values for two samples."""
    loss = hybridized(gluon.loss.KLDivLoss(from_logits=False))
    loss(mx.np.ones((2, 3)), mx.np.ones((2, 3)))
    assert loss(mx.np.ones((2, 3, 4)), mx.np.ones((2, 3, 4))).shape == (2, 4)


@pytest.mark.parametrize("name", MEMBERS)
def test_ranks_that_change(rng, name):
    """Alone and in a user's block, traced with few axes or with many: right, or an error; without weights right."""
    member = MEMBERS[name]

    def check(nested, kind, first):
        block, turn = hybridized(Model(member.make()) if nested else member.make()), 0
        for shape in (first, (2, 3, 4), (2, 3), (5, 4), (2, 2, 1, 3), (2, 3, 4)):
            inputs, weight = member.inputs(rng, shape), weights_of(rng, shape, kind, member.has_axis)
            given = inputs if weight is None else [*inputs, *[None] * (
                len(member.make()._names) - 1 - len(inputs)), weight]
            if nested and any(x is None for x in given):
                return  # what Gluon's traces take no None for
            try:
                value, *gradients = called(block, given)
            except mx.MXNetError:
                # The place of a sample's weight among the axes is that of the first call.
                assert nested and kind == "batch" and len(shape) != len(first)
                continue
            turn += 1
            agrees(value, member.expect(inputs, weight), "float64", f"value at {shape}")
            for i, (got, want) in enumerate(zip(gradients, member.gradients(inputs, weight))):
                if got is not None and want is not None:
                    agrees(got, want, "float64", f"gradient {i} at {shape}")
        assert turn == 6 or (nested and kind == "batch" and turn >= 2)

    kinds = ["none", "batch", "row"] + ([] if member.weights == "rows" else ["element"])
    every([(nested, kind, first) for nested in (False, True) for kind in kinds for first in ((2, 3), (2, 3, 4))], check)


@pytest.mark.parametrize("name", ["kl logits probs", "kl logits logits", "js logits probs"])
@pytest.mark.parametrize("first, later", [((2, 3), (2, 1)), ((2, 3), (3,)), ((2, 1), (2, 3)), ((3,), (2, 3)),
                                          ((2, 3, 4), (5, 1, 1))])
def test_one_category_or_one_axis_that_changes(rng, path, name, first, later):
    """Over MXNet's operators a trace takes it for granted that there are several: without them, an error."""
    member = MEMBERS[name]
    block = hybridized(Model(member.make()))
    fewer = path == "operators" and (len(first) > len(later) or (first[-1] > 1 and later[-1] == 1))
    for shape in (first, later, first):
        inputs = member.inputs(rng, shape)
        if fewer and shape == later:
            with pytest.raises(mx.MXNetError, match=r"Invalid end|exceeds data dimensions"):
                called(block, inputs)
            continue
        value, *gradients = called(block, inputs)
        agrees(value, member.expect(inputs, None), "float64", f"value at {shape}")
        for got, want in zip(gradients, member.gradients(inputs, None)):
            agrees(got, want, "float64", f"gradient at {shape}")


@pytest.mark.parametrize("name", ["kl logits probs", "kl logits logits", "kl probs probs", "reverse logits probs",
                                  "js logits probs"])
def test_shapes_that_differ_in_a_later_call(name):
    """Nothing broadcasts in a graph that was traced with equal shapes."""
    def check(first, which, later, other):
        block = hybridized(Model(MEMBERS[name].make()))
        inputs = [mx.np.full(first, 1 / 3, dtype=dtype) for dtype in ("float32", other)]
        block(*inputs)
        inputs[which] = mx.np.full(later, 1 / 3, dtype=inputs[which].dtype)
        with pytest.raises(mx.MXNetError, match=r"expected \[[\d,]+\], got \[[\d,]+\]|shape"):
            block(*inputs).asnumpy()

    every([((2, 3), which, later, other) for which in (0, 1) for other in ("float32", "float64")
           for later in ((2, 1), (1, 3), (3,), (6,), (1, 2, 3), (2, 2, 3), (2, 3, 1))], check)


@pytest.mark.parametrize("name", ["kl logits probs", "js logits logits", "gaussian, prior", "both", "top-k",
                                  "top-k, dense"])
def test_axes_in_every_way(name):
    """Swapped axes have right gradients in graphs, also where the two are one; MXNet 2.0.0's `swapaxes` has not."""
    def check(layout, way):
        case = Case(name, layout, None)
        block = way(case.make())
        inputs = [x for x in case.inputs if x is not None]
        value, *gradients = called(block, inputs, "float64", case.head)
        agrees(value, case.value, "float64", "value")
        for i, (got, want) in enumerate(zip(gradients, [x for x in case.gradients if x is not None])):
            if got is not None:
                agrees(got, want, "float64", f"gradient {i}")

    layouts = [((3, 4, 5), 1, 2), ((3, 2, 2), -3, 2), ((2, 3, 4), -1, 1), ((4, 6), 0, -1), ((4, 6), 1, -2),
               ((2, 3, 4), -1, -3), ((2, 3, 4), 2, 0), ((2, 3, 2), -2, -1)]
    every([(layout, way) for layout in layouts
           for way in (lambda loss: loss, hybridized, lambda loss: hybridized(Model(loss)))], check)


def test_operators_of_a_trace(path):
    """In a user's graph KLDivLoss is as few of MXNet's operators as it was, none of which reduces rows for nothing."""
    if path != "operators":
        pytest.skip("for MXNet's operators")
    block = hybridized(Model(KLDivLoss(False)))
    block(mx.np.ones((2, 3)), mx.np.full((2, 3), 1 / 3))
    names = [node["op"] for node in json.loads(block._cached_graph[1].tojson())["nodes"] if node["op"] != "null"]
    assert len(names) <= 36 and not {"max", "softmax"} & set(names), names


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("first", ["float16", "float32", "float64"])
def test_dtypes_that_change(path, name, first):
    """The dtype of a result is that of its own call.

    Over MXNet's operators a user's block that was traced with inputs of one dtype serves no other: an error says so.
    """
    case = Case(name, ((3, 4), -1, 0), "sum")
    for nested in (False, True):
        block = hybridized(Model(case.make()) if nested else case.make())
        fixed = nested and path == "operators" and first != "float16"
        for dtypes in ([first] * 4, ["float32"] * 4, ["float64"] * 4, ["float16"] * 4, ["float32", "float64"] * 2,
                       ["float16", "float32"] * 2, ["float64", "float16"] * 2, [first] * 4):
            used = dtypes[:len(case.inputs)]
            if fixed and used != [first] * len(used):
                with pytest.raises(mx.MXNetError, match=r"expected (data type )?float\d\d"):
                    called(block, case.inputs, used, case.head)
                continue
            value, *gradients = called(block, case.inputs, used, case.head)
            assert value.dtype == ("float64" if "float64" in used else "float32"), used
            agrees(value, case.value, "float32", f"value of {used}")
            learned = case.member.learns(case.inputs)
            for got, dtype, want, learns in zip(gradients, used, case.gradients, learned):
                if learns:
                    assert got.dtype == dtype
                    agrees(got, want, "float16" if dtype == "float16" else "float32", f"gradient of {used}")


def test_numbers_and_none_that_change(rng):
    """In a block of a user's they are part of the trace; for the loss alone each call has its own."""
    loss, pred = hybridized(BernoulliKLLoss(reduction="sum")), rng.normal(size=(3, 4))
    for label in (0.05, 0.5, 0.05, np.full((3, 4), 0.25), 1):
        want = oracle.weighted(oracle.bernoulli_terms(pred, np.broadcast_to(label, (3, 4))), axis=None,
                               reduction="sum")
        close(called(loss, [pred, label])[0], want.astype(float))
    loss, (mean, log_variance, *prior) = hybridized(GaussianKLLoss()), MEMBERS["gaussian, prior"].inputs(rng, (3, 4))
    for given in ((None, None), (0.5, None), (prior[0], 0.5), (None, prior[1]), (1.5, -1), tuple(prior), (0.5, None)):
        want = oracle.weighted(oracle.gaussian_terms(mean, log_variance, *given), axis=None, reduction="sum")
        close(called(loss, [mean, log_variance, *given])[0], want.astype(float))

    class Traced(gluon.HybridBlock):
        def forward(self, mean, log_variance):
            return loss(mean, log_variance, 0.5, prior_log_variance=-1) + loss(mean, log_variance)

    both = hybridized(Traced())
    for rows in (3, 2, 3):
        want = sum(oracle.weighted(oracle.gaussian_terms(mean[:rows], log_variance[:rows], *given), axis=None,
                                   reduction="sum") for given in ((0.5, -1), ()))
        close(called(both, [mean[:rows], log_variance[:rows]])[0], want.astype(float))


def test_the_device_of_a_trace(path, monkeypatch):
    """A CUDA build's arrays on a CPU get the operator in a trace, where Symbols, of no known device, do not."""
    class Cuda:
        def is_enabled(self, name):
            return name == "CUDA"

    monkeypatch.setattr(mx.runtime, "Features", Cuda)
    block = hybridized(Model(KLDivLoss(False)))
    called(block, [np.ones((2, 3)), np.full((2, 3), 1 / 3)])
    assert ("_gluon_kl_divergence" in block._cached_graph[1].tojson()) == (path == "native")
    assert not native.supports_device(None) and not native.supports_device(mx.gpu(0))


# AMP

def test_amp(data, path, in_child):
    """A network in float16 and its loss, in turn and in one block. MXNet 2.0.0b1 has no Dense in float16 on CPUs."""
    in_child("""
        import mxnet as mx, numpy as np
        from mxnet import amp, autograd, gluon
        amp.init()
        from gluon_kl import KLDivLoss, native

        class Scores(gluon.HybridBlock):
            def __init__(self):
                super().__init__()
                self.weight = gluon.Parameter("weight", shape=(1, 5, 3), init=mx.init.Zero())

            def forward(self, features):
                return (mx.np.expand_dims(features, 2).astype("float16") * self.weight.data().astype("float16")).sum(1)

        class Both(gluon.HybridBlock):
            def __init__(self, net, loss):
                super().__init__()
                self.net, self.loss = net, loss

            def forward(self, features, label):
                scores = self.net(features)
                return scores, self.loss(scores, label)

        rng = np.random.RandomState(0)
        features = rng.normal(size=(64, 5)).astype("float32")
        label = np.exp(features @ rng.normal(size=(5, 3)))
        label = (label / label.sum(1, keepdims=True)).astype("float32")
        for hybridized in (False, True):
            block = Both(Scores(), KLDivLoss(False, reduction="sum"))
            block.initialize()
            if hybridized:
                block.hybridize()
            trainer = gluon.Trainer(block.collect_params(), "sgd", {"learning_rate": 0.5}, update_on_kvstore=False)
            amp.init_trainer(trainer)
            values = []
            for _ in range(20):
                with autograd.record():
                    scores, out = block(mx.np.array(features), mx.np.array(label))
                    with amp.scale_loss(out, trainer) as scaled:
                        autograd.backward(scaled)
                trainer.step(64)
                values.append(float(out.mean()))
                z = scores.asnumpy().astype("float64")
                log_pred = z - np.log(np.exp(z).sum(1, keepdims=True))
                np.testing.assert_allclose(out.asnumpy(), (label * (np.log(label) - log_pred)).sum(1), atol=2e-5)
            assert scores.dtype == "float16" and out.dtype == "float32"
            assert values[-1] < 0.2 * values[0], values
    """)


# Imported again

def test_imported_again(in_child):
    """By `reload`, and after every module of ours was taken out: the operator is registered once."""
    in_child("""
        import importlib, sys
        import mxnet as mx, numpy as np
        import gluon_kl
        available = gluon_kl.native.is_available()

        def value():
            class Parent(mx.gluon.HybridBlock):
                def __init__(self):
                    super().__init__()
                    self.loss = gluon_kl.KLDivLoss(False)
                def forward(self, *inputs):
                    return self.loss(*inputs)

            block = Parent()
            block.hybridize()
            return block(mx.np.array([[1.0, 2, 3]]), mx.np.array([[0.2, 0.3, 0.5]])).asnumpy()

        before = value()
        importlib.reload(gluon_kl)
        np.testing.assert_array_equal(value(), before)
        for name in [name for name in sys.modules if name.split(".")[0] == "gluon_kl"]:
            del sys.modules[name]
        import gluon_kl
        assert gluon_kl.native.is_available() == available, gluon_kl.native.why_not()
        np.testing.assert_array_equal(value(), before)
    """)
