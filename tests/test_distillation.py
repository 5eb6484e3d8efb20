"""DistillationLoss: what the temperature, the teacher and the hard labels do."""

import json
import math

from gluon_kl import DistillationLoss, JSDivLoss, KLDivLoss, ReverseKLDivLoss, native

import mxnet as mx
import numpy as np
import pytest

import oracle
from cases import Model, in_one_test


@pytest.fixture
def logits(rng):
    return rng.normal(size=(2, 6, 5))


def test_published_formula(eager, logits):
    """The mean of the two objectives, with soft targets scaled by T squared, written out once."""
    pred, teacher = logits
    label, temperature = np.array([0, 4, 2, 1, 1, 3]), 4.0
    soft, softened = (np.exp(x / temperature) / np.exp(x / temperature).sum(-1, keepdims=True) for x in (teacher, pred))
    probs = np.exp(pred) / np.exp(pred).sum(-1, keepdims=True)
    expected = 0.25 * -np.log(probs[np.arange(6), label]) + 0.75 * 16 * (soft * np.log(soft / softened)).sum(-1)
    np.testing.assert_allclose(eager(DistillationLoss(temperature, 0.25), pred, label, teacher), expected, rtol=1e-12)


@pytest.mark.parametrize("categories", [5, 20000], ids=["small", "large"])
def test_no_backward_pass_through_the_teacher(run, rng, categories):
    """A teacher that runs under the same record is left alone: not even zeros are written to its gradients."""
    loss = run.prepare(DistillationLoss(2))
    student, teacher = (mx.nd.array(rng.normal(size=(6, categories))) for _ in range(2))
    for x in (student, teacher):
        x.attach_grad()
        x.grad[:] = 7
    with mx.autograd.record():
        out = loss(student * 1, mx.nd.zeros(6), teacher * 1)
    out.backward()
    assert (teacher.grad.asnumpy() == 7).all() and abs(student.grad.asnumpy()).max() < 5


def test_scale_of_the_gradient_does_not_depend_on_the_temperature(eager, logits):
    """T^2 (softmax(z/T) - softmax(v/T)) / T approaches the difference of the centred logits over C."""
    pred, teacher = logits
    centred = [x - x.mean(-1, keepdims=True) for x in (pred, teacher)]
    limit = (centred[0] - centred[1]) / 5
    norms = []
    for temperature in (1.0, 3.0, 10.0, 100.0, 1000.0):
        gradient, _, _ = eager.gradients(DistillationLoss(temperature, 0), pred, None, teacher)
        norms.append(np.linalg.norm(gradient))
        exact = temperature * np.subtract(*(np.exp(oracle.log_softmax(x / temperature)) for x in (pred, teacher)))
        np.testing.assert_allclose(gradient, exact, rtol=1e-9, atol=1e-12)
    assert max(norms) < 1.5 * min(norms)
    np.testing.assert_allclose(gradient, limit, rtol=2e-2, atol=1e-3)


def test_teacher_is_detached(run, logits):
    for hard_weight in (0, 0.5):
        to_pred, _, to_teacher = run.gradients(DistillationLoss(2, hard_weight), logits[0], np.zeros(6), logits[1])
        assert (to_pred != 0).any() and (to_teacher == 0).all()
    # Also a teacher that is computed under the same record.
    net = mx.gluon.nn.Dense(5, in_units=5)
    net.initialize()
    x = mx.nd.array(logits[0])
    for parameter in net.collect_params().values():
        parameter.grad()[:] = 7
    with mx.autograd.record():
        hidden = net(x)
        out = run.prepare(DistillationLoss(hard_weight=0))(hidden * 2, None, hidden)
    x.attach_grad()
    out.backward()
    assert all(np.isfinite(parameter.grad().asnumpy()).all() for parameter in net.collect_params().values())
    student = hidden.asnumpy().astype("float64") * 2
    gradient = 2 * (np.exp(oracle.log_softmax(student)) - np.exp(oracle.log_softmax(student / 2)))
    np.testing.assert_allclose(net.bias.grad().asnumpy(), gradient.sum(0), rtol=1e-4, atol=1e-5)


def test_hard_part_is_mxnets_cross_entropy(eager, logits):
    pred, label = logits[0].astype("float32"), np.array([0, 4, 2, 1, 1, 3], dtype="float32")
    theirs = eager(mx.gluon.loss.SoftmaxCrossEntropyLoss(), pred, label)
    np.testing.assert_allclose(eager(DistillationLoss(hard_weight=1), pred, label, None), theirs, rtol=1e-5)
    one_hot = np.eye(5, dtype="float32")[label.astype(int)]
    dense = DistillationLoss(hard_weight=1, sparse_label=False)
    np.testing.assert_allclose(eager(dense, pred, one_hot, None), theirs, rtol=1e-5)
    for got, want in zip(eager.gradients(dense, pred, one_hot, None)[:1],
                         eager.gradients(DistillationLoss(hard_weight=1), pred, label, None)[:1]):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_soft_part_is_kl_div_loss(eager, logits):
    pred, teacher = logits
    same = KLDivLoss(False, label_space="logits", reduction="sum")
    value = eager(DistillationLoss(hard_weight=0), pred, None, teacher)
    np.testing.assert_allclose(value, eager(same, pred, teacher), rtol=1e-12)


@pytest.mark.parametrize("hard_weight", [0.3, 1])
def test_dense_labels_in_a_users_graph(rng, hard_weight):
    """One fused node for pred and one for the label, which MXNet leaves out where nobody asks for that gradient."""
    if not native.supports_device(None):
        pytest.skip(f"without the native operator in graphs of Symbols: {native.why_not() or 'a CUDA build'}")
    loss = DistillationLoss(2, hard_weight, sparse_label=False)
    with mx.gluon.nn.HybridSequential().name_scope():  # as where Gluon traces
        graph = loss(*[mx.sym.var(name) for name in ("pred", "label", "teacher")])
    names = [node["op"] for node in json.loads(graph.tojson())["nodes"]]
    assert names.count("_gluon_kl_divergence") == 2 and "log_softmax" not in names
    pred, label, teacher = rng.normal(size=(3, 4, 5))
    label = abs(label) * (label > 0)
    arrays = {"pred": pred, "label": label, **({"teacher": teacher} if hard_weight < 1 else {})}
    arrays = {name: mx.nd.array(x, dtype="float64") for name, x in arrays.items()}
    for asked in ({"pred"}, {"label"}, {"pred", "label"}):
        grads = {name: mx.nd.ones_like(x) for name, x in arrays.items() if name in asked}
        bound = graph.bind(mx.cpu(), arrays, grads, {name: "write" if name in asked else "null" for name in arrays})
        value = bound.forward(is_train=True)[0].asnumpy()
        np.testing.assert_allclose(value, oracle.distillation(pred, label, teacher, temperature=2,
                                                              hard_weight=hard_weight, sparse_label=False), rtol=1e-12)
        bound.backward(mx.nd.ones(4, dtype="float64"))
        if "label" in asked:
            np.testing.assert_allclose(grads["label"].asnumpy(), -hard_weight * oracle.log_softmax(pred), rtol=1e-12)


# In the place of gluon-cv's loss

class PublishedLoss(mx.gluon.HybridBlock):
    """Hinton's objective as scripts of gluon-cv's kind compute it: soft cross-entropy times T^2, and hard labels."""

    def __init__(self, temperature=1, hard_weight=0.5, sparse_label=True, weight=None, batch_axis=0):
        super().__init__()
        self.temperature, self.hard_weight = temperature, hard_weight
        self.hard = mx.gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=sparse_label, weight=weight,
                                                          batch_axis=batch_axis)
        self.soft = mx.gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False, weight=weight, batch_axis=batch_axis)

    def hybrid_forward(self, F, pred, label, soft_target):
        soft = self.soft(pred / self.temperature, soft_target) * self.temperature ** 2
        return (1 - self.hard_weight) * soft if self.hard_weight == 0 else (
            (1 - self.hard_weight) * soft + self.hard_weight * self.hard(pred, label))


@pytest.mark.parametrize("arguments", [(), (4,), (4, 0.3), (20, 0.9, False), (2, 0.5, True, 1.5), (3, 0)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-10)])
def test_one_import_changes(eager, rng, arguments, dtype, tolerance):
    """Same positional arguments and defaults, same gradients; the value differs by the teacher's entropy."""
    pred, scores = (3 * rng.normal(size=(2, 8, 6))).astype(dtype)
    temperature, sparse = (arguments or (1,))[0], len(arguments) < 3 or arguments[2]
    label = np.arange(8) % 6 if sparse else np.exp(oracle.log_softmax(rng.normal(size=(8, 6))))
    label, softened = label.astype(dtype), np.exp(oracle.log_softmax(scores / temperature)).astype(dtype)
    theirs, ours = PublishedLoss(*arguments), DistillationLoss(*arguments, teacher_space="probs")
    expected = eager.gradients(theirs, pred, label, softened)[0]
    for loss, teacher in ((ours, softened), (DistillationLoss(*arguments), scores)):
        gradient = eager.gradients(loss, pred, label, teacher)[0]
        np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=tolerance)
    hard_weight, weight = ours._hard_weight, ours._weight or 1
    entropy = -(softened * np.log(softened)).sum(-1) * temperature ** 2 * (1 - hard_weight) * weight
    np.testing.assert_allclose(eager(ours, pred, label, softened), eager(theirs, pred, label, softened) - entropy,
                               rtol=100 * tolerance, atol=100 * tolerance)


def test_a_teacher_in_any_space(eager, rng):
    pred, scores = 2 * rng.normal(size=(2, 5, 4))
    label, log_probs = np.array([0, 3, 1, 1, 2]), oracle.log_softmax(scores / 3)
    for options in ({}, dict(divergence="reverse_kl"), dict(divergence="js", beta=0.3)):
        expected = eager(DistillationLoss(3, **options), pred, label, scores)
        for space, teacher in (("probs", np.exp(log_probs)), ("log_probs", log_probs)):
            value = eager(DistillationLoss(3, teacher_space=space, **options), pred, label, teacher)
            np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_mixed_labels(eager, rng):
    """Mixup: a convex combination of two one-hot rows costs that of the two losses."""
    pred, teacher = rng.normal(size=(2, 5, 4))
    first, second, share = np.array([0, 3, 1, 1, 2]), np.array([1, 1, 0, 3, 2]), 0.3
    mixed = share * np.eye(4)[first] + (1 - share) * np.eye(4)[second]
    value = eager(DistillationLoss(2, sparse_label=False), pred, mixed, teacher)
    ends = [eager(DistillationLoss(2), pred, index, teacher) for index in (first, second)]
    np.testing.assert_allclose(value, share * ends[0] + (1 - share) * ends[1], rtol=1e-10)


@pytest.mark.parametrize("divergence, beta, other", [("reverse_kl", 0.5, ReverseKLDivLoss), ("js", 0.3, JSDivLoss),
                                                     ("js", 0, KLDivLoss), ("js", 1, ReverseKLDivLoss)])
def test_other_divergences(eager, rng, divergence, beta, other):
    pred, teacher = 2 * rng.normal(size=(2, 5, 4))
    options = dict(from_logits=False, label_space="logits", reduction="sum")
    if other is JSDivLoss:
        options["beta"] = beta
    loss = DistillationLoss(2, 0, divergence=divergence, beta=beta)
    np.testing.assert_allclose(eager(loss, pred, None, teacher), 4 * eager(other(**options), pred / 2, teacher / 2),
                               rtol=1e-9)
    to_pred, _, to_teacher = eager.gradients(loss, pred, None, teacher)
    np.testing.assert_allclose(to_pred, 2 * eager.gradients(other(**options), pred / 2, teacher / 2)[0], rtol=1e-8,
                               atol=1e-12)
    assert (to_teacher == 0).all()


@pytest.mark.parametrize("label_type", ["int32", "float32"])
def test_labels_in_a_column(eager, rng, label_type):
    for shape, axis in (((5, 4), -1), ((2, 4, 3), 1)):
        pred, teacher = rng.normal(size=(2, *shape))
        label = rng.randint(4, size=np.delete(shape, axis)).astype(label_type)
        loss = DistillationLoss(2, axis=axis)
        np.testing.assert_array_equal(eager(loss, pred, np.expand_dims(label, axis), teacher),
                                      eager(loss, pred, label, teacher))


def test_padded_sequences(eager, rng):
    """Valid positions alone count, by a weight of shape (batch, time)."""
    pred, teacher = rng.normal(size=(2, 3, 4, 5))
    label, lengths = rng.randint(5, size=(3, 4)).astype("float64"), np.array([4, 2, 0])
    valid = (np.arange(4) < lengths[:, None]).astype("float64")
    loss = DistillationLoss(2, divergence="js")
    expected = [eager(loss, pred[i, :n], label[i, :n], teacher[i, :n]).mean() if n else 0
                for i, n in enumerate(lengths)]
    for x in (pred, label, teacher):
        x[valid == 0] = np.nan
    np.testing.assert_allclose(eager(loss, pred, label, teacher, valid), expected, rtol=1e-10)
    assert (eager.gradients(loss, pred, label, teacher, valid)[0][valid == 0] == 0).all()


@pytest.mark.parametrize("axis, shape", [(1, (2, 3, 4)), (-2, (2, 3, 4)), (-1, (2, 4, 3)), (2, (2, 4, 3))])
def test_other_axes_are_averaged(eager, rng, axis, shape):
    """A map of 4 places is the mean of its places."""
    pred, teacher = rng.normal(size=(2, *shape))
    label = rng.randint(3, size=(2, 4))
    value = eager(DistillationLoss(2, 0.4, axis=axis), pred, label, teacher)
    columns = [np.moveaxis(x, axis, -1) for x in (pred, teacher)]
    places = [eager(DistillationLoss(2, 0.4), columns[0][:, i], label[:, i], columns[1][:, i]) for i in range(4)]
    np.testing.assert_allclose(value, np.mean(places, axis=0), rtol=1e-12)


@pytest.mark.parametrize("index", [-1, 5, 1.5, 1e9, math.nan, math.inf])
@pytest.mark.parametrize("hard_weight", [0.5, 1])
def test_no_class_is_no_silent_class(eager, logits, index, hard_weight):
    pred, teacher = logits[:, :3].astype("float32")
    label = np.array([1, index, 4], dtype="float32")
    loss = DistillationLoss(2, hard_weight)
    value = eager(loss, pred, label, teacher)
    assert np.isnan(value[1]) and np.isfinite(value[[0, 2]]).all()
    to_pred = eager.gradients(loss, pred, label, teacher)[0]
    assert np.isnan(to_pred[1]).any() and np.isfinite(to_pred[[0, 2]]).all()
    # Weight 0 leaves such a row out.
    weight = np.array([1, 0, 1], dtype="float32")
    np.testing.assert_array_equal(eager(loss, pred, label, teacher, weight)[1], 0)
    assert (eager.gradients(loss, pred, label, teacher, weight)[0][1] == 0).all()


def test_large_logits_and_odd_temperatures(eager, rng):
    pred, teacher = 100 * rng.normal(size=(2, 4, 6))
    for temperature in (1e-3, 0.5, 20, 1e4):
        value = eager(DistillationLoss(temperature, 0), pred, None, teacher)
        expected = oracle.distillation(pred, None, teacher, temperature=temperature, hard_weight=0)
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-25)


def test_student_learns_from_the_teacher_alone(eager, rng):
    mx.random.seed(3)
    x = rng.normal(size=(64, 8)).astype("float32")
    teacher = (x @ rng.normal(size=(8, 4))).astype("float32")
    net = mx.gluon.nn.Dense(4, in_units=8)
    net.initialize()
    trainer = mx.gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 0.1})
    loss = eager.prepare(DistillationLoss(temperature=3, hard_weight=0))
    history = []
    for _ in range(60):
        with mx.autograd.record():
            out = loss(net(mx.nd.array(x)), None, mx.nd.array(teacher))
        out.backward()
        trainer.step(64)
        history.append(out.mean().asscalar())
    assert history[-1] < 0.02 * history[0]


@pytest.mark.parametrize("hard_weight", [0.5, 1.0])
def test_label_gradient_under_a_masked_score(eager, logits, hard_weight):
    """A dense label of 0 under a score of -inf: 0 serves, as of KL; the others have the negative logarithm."""
    pred, teacher = logits
    pred[:, 2] = teacher[:, 2] = -np.inf
    label = np.full(pred.shape, 0.25)
    label[:, 2] = 0
    _, gradient, _ = eager.gradients(DistillationLoss(2.0, hard_weight, sparse_label=False), pred, label, teacher)
    log_probs = pred - np.log(np.exp(pred).sum(-1, keepdims=True))
    expected = np.where(np.isinf(log_probs), 0, -hard_weight * log_probs)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("options", [None, {}, dict(static_alloc=True, static_shape=True)])
def test_float16_and_class_indices_alone(rng, options):
    """Nothing beside float16 says that it is to be lifted, where the teacher has no part."""
    net = Model(DistillationLoss(2.0, 1.0))
    if options is not None:
        net.hybridize(**options)
    pred, label = mx.nd.array(rng.normal(size=(3, 4)), dtype="float16"), mx.nd.array([0, 2, 3], dtype="float16")
    out = net(pred, label, pred)
    exact = -mx.nd.log_softmax(pred.astype("float64")).pick(label.astype("float64")).asnumpy()
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.asnumpy(), exact, rtol=5e-5)


# Rows, ignored labels, smoothed ones, and the two parts

def test_a_value_for_each_row(run, rng):
    """Whose mean over the rows that count is the default, and whose sum is "sum"."""
    pred, teacher = rng.normal(size=(2, 3, 4, 5))
    label, weight = rng.randint(5, size=(3, 4)), (rng.uniform(size=(3, 4)) < 0.7) * rng.uniform(1, 2, size=(3, 4))
    rows, means, sums = (run(DistillationLoss(2, 0.3, reduction=reduction), pred, label, teacher, weight)
                         for reduction in ("row", "row_mean", "sum"))
    assert rows.shape == (3, 4)
    np.testing.assert_allclose(rows.sum(1), sums, rtol=1e-12)
    np.testing.assert_allclose(rows.sum(1) / (weight != 0).sum(1), means, rtol=1e-12)
    across = run(DistillationLoss(2, 0.3, axis=1, reduction="row"), pred.swapaxes(1, 2), label, teacher.swapaxes(1, 2))
    np.testing.assert_allclose(across, run(DistillationLoss(2, 0.3, reduction="row"), pred, label, teacher), rtol=1e-12)


@in_one_test("dtype", ["float16", "float32", "float64", "int8", "int32", "int64", "uint8"])
@pytest.mark.parametrize("hard_weight", [0, 0.4, 1])
def test_ignored_rows_are_rows_of_weight_0(run, rng, hard_weight, dtype):
    ignored = 255 if dtype == "uint8" else -100
    pred, teacher = rng.normal(size=(2, 3, 4, 5))
    label = rng.randint(5, size=(3, 4)).astype(dtype)
    label[0, 1:3] = label[2] = ignored
    heard = (label != ignored).astype("float64")
    for weight in (None, rng.uniform(0.5, 2, size=3), rng.uniform(0.5, 2, size=(3, 4, 5))):
        plain, ignoring = (DistillationLoss(2, hard_weight, **options) for options in ({}, dict(ignore_label=ignored)))
        full = 1.0 if weight is None else weight if weight.ndim == 3 else weight[:, None, None]
        silent = [pred, np.where(heard, label, 0), teacher, heard[..., None] * full]
        given = [pred, label, teacher, *([] if weight is None else [weight])]
        np.testing.assert_allclose(run(ignoring, *given), run(plain, *silent), rtol=1e-12)
        got, want = (run.gradients(loss, *inputs)[0] for loss, inputs in ((ignoring, given), (plain, silent)))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-13)
        assert not got[heard == 0].any()


def test_what_an_ignored_row_holds_does_not_matter(run, rng):
    """NaN included, and its weight gets no gradient."""
    pred, teacher = rng.normal(size=(2, 4, 5))
    label, weight = np.array([0.0, -1, 2, -1]), np.array([1.0, 2, 0.5, 0])
    loss = DistillationLoss(2, ignore_label=-1)
    value, gradients = run(loss, pred, label, teacher, weight), run.gradients(loss, pred, label, teacher, weight)
    pred[[1, 3]], teacher[[1, 3]] = np.nan, np.inf
    np.testing.assert_array_equal(run(loss, pred, label, teacher, weight), value)
    again = run.gradients(loss, pred, label, teacher, weight)
    for index in (0, 3):
        np.testing.assert_array_equal(again[index], gradients[index])
        assert not again[index][[1, 3]].any() and again[index][[0, 2]].any()


def test_an_ignored_label_in_a_users_block(path, rng):
    pred, teacher = rng.normal(size=(2, 4, 5))
    label = np.array([0.0, -1, 2, -1])
    for hard_weight in (0, 0.5, 1):
        loss = DistillationLoss(2, hard_weight, ignore_label=-1, label_smoothing=0.1, reduction="row")
        block = Model(loss)
        block.hybridize(static_alloc=True, static_shape=True)
        arrays = [mx.nd.array(x, dtype="float64") for x in (pred, label, teacher)]
        np.testing.assert_allclose(block(*arrays).asnumpy(), loss(*arrays).asnumpy(), rtol=1e-12)


def test_a_smoothed_label_is_a_dense_one(run, rng):
    pred, teacher = rng.normal(size=(2, 6, 5))
    label, s = np.array([0, 4, 2, 1, 1, 3]), 0.2
    dense = (1 - s) * np.eye(5)[label] + s / 5
    sparse = DistillationLoss(2, 0.7, label_smoothing=s)
    same = DistillationLoss(2, 0.7, sparse_label=False)
    np.testing.assert_allclose(run(sparse, pred, label, teacher), run(same, pred, dense, teacher), rtol=1e-12)
    got, want = run.gradients(sparse, pred, label, teacher)[0], run.gradients(same, pred, dense, teacher)[0]
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-14)
    pred[0, 1] = -math.inf
    assert np.isposinf(run(DistillationLoss(hard_weight=1, label_smoothing=s), pred, label, None)[0])
    assert np.isfinite(run(DistillationLoss(hard_weight=1), pred, label, None)[0])


@pytest.mark.parametrize("options", [
    {}, dict(divergence="tv", ignore_label=1), dict(reduction="row", label_smoothing=0.1), dict(hard_weight=0),
    dict(hard_weight=1), dict(hard_weight=0, ignore_label=1), dict(reduction="sum", weight=-3)], ids=str)
def test_the_parts_make_the_loss(run, rng, options):
    options = {"temperature": 3, "hard_weight": 0.3, "weight": 2, **options}
    pred, teacher = rng.normal(size=(2, 3, 4, 5))
    label, weight = rng.randint(5, size=(3, 4)), rng.uniform(0.5, 2, size=(3, 4))
    loss = run.prepare(DistillationLoss(**options))
    arrays = [mx.nd.array(x, dtype="float64") for x in (pred, label, teacher, weight)]
    arrays[0].attach_grad()
    with mx.autograd.record():
        value = loss(*arrays)
        hard, soft = loss.parts(*arrays)
    share = options["hard_weight"]
    assert (hard is None, soft is None) == (share == 0, share == 1)
    total = sum(part * factor for part, factor in ((hard, share), (soft, 1 - share)) if part is not None)
    np.testing.assert_allclose(options["weight"] * total.asnumpy(), value.asnumpy(), rtol=1e-12)
    for part in (hard, soft):
        if part is not None:
            assert part.shape == value.shape
            with pytest.raises(mx.MXNetError):
                part.backward()
    with pytest.raises(TypeError, match="pred must be an MXNet array"):
        loss.parts(*map(mx.sym.var, ("pred", "label", "teacher")))
    value.backward()
    assert arrays[0].grad.asnumpy().any()


def test_the_parts_of_mxnets_new_arrays(path, rng):
    inputs = [mx.np.array(x) for x in (*rng.normal(size=(1, 3, 5)), [0, 1, 2], *rng.normal(size=(1, 3, 5)))]
    assert all(type(part) is mx.np.ndarray for part in DistillationLoss(2).parts(*inputs))


def test_total_variation_has_the_temperature_once(eager, rng):
    """T times TV has a gradient that does not grow with T, and 0 where the two agree."""
    pred, teacher = rng.normal(size=(2, 6, 5))
    sizes = []
    for temperature in (10.0, 100.0, 1000.0):
        loss = DistillationLoss(temperature, 0, divergence="tv")
        q, p = (np.exp(oracle.log_softmax(x / temperature)) for x in (pred, teacher))
        np.testing.assert_allclose(eager(loss, pred, None, teacher), temperature * abs(p - q).sum(-1) / 2, rtol=1e-9)
        sizes.append(np.linalg.norm(eager.gradients(loss, pred, None, teacher)[0]))
        to_pred = eager.gradients(loss, pred, None, pred)[0]
        assert not to_pred.any() and not eager(loss, pred, None, pred).any()
    assert max(sizes) < 1.2 * min(sizes)


@pytest.mark.parametrize("arguments, words", [
    (dict(reduction="mean"), ["reduction", "'row_mean', 'row' or 'sum'", "'mean'"]),
    (dict(ignore_label=0.5), ["ignore_label", "whole number", "0.5"]),
    (dict(ignore_label=math.inf), ["ignore_label", "inf"]),
    (dict(ignore_label=-1, sparse_label=False), ["ignore_label = -1", "sparse_label=False"]),
    (dict(label_smoothing=0.1, sparse_label=False), ["label_smoothing = 0.1", "sparse_label=False"]),
    (dict(label_smoothing=1), ["label_smoothing", "at least 0 and below 1", "1"]),
    (dict(label_smoothing=-0.1), ["label_smoothing", "-0.1"]),
    (dict(skew=1.0), ["skew", "below 1", "1.0"])])
def test_errors_of_arguments(arguments, words):
    with pytest.raises(ValueError) as caught:
        DistillationLoss(**arguments)
    assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(TypeError, match="ignore_label must be a number, not '-1'"):
        DistillationLoss(ignore_label="-1")


def test_a_label_to_ignore_by_is_needed(run, logits):
    with pytest.raises(TypeError, match="label must be an MXNet array"):
        run(DistillationLoss(hard_weight=0, ignore_label=-1), logits[0], None, logits[1])


def test_check_inputs_leaves_out_ignored_rows(logits):
    pred, teacher = (mx.nd.array(x) for x in logits)
    label = mx.nd.array([0, -100, 2, 1, -100, 3])
    DistillationLoss(ignore_label=-100).check_inputs(pred, label, teacher)
    with pytest.raises(ValueError, match="ignore_label=-100"):
        DistillationLoss().check_inputs(pred, label, teacher)
    with pytest.raises(ValueError, match="every label is -100"):
        DistillationLoss(ignore_label=-100).check_inputs(pred, mx.nd.full(6, -100), teacher)
    with pytest.raises(ValueError, match="class indices from 0 to 4, not 7"):
        DistillationLoss(ignore_label=-100).check_inputs(pred, mx.nd.full(6, 7), teacher)


@pytest.mark.parametrize("loss", [DistillationLoss(3, 0.2), KLDivLoss(False), ReverseKLDivLoss(False)])
def test_losses_pickled_by_older_releases_load(loss):
    """Those of 0.2 know nothing of what came later."""
    state = loss.__getstate__()
    for name in ("_reduction", "_ignore_label", "_label_smoothing", "_skew"):
        if not (name == "_reduction" and not isinstance(loss, DistillationLoss)):
            state.pop(name, None)
    old = type(loss).__new__(type(loss))
    old.__setstate__(state)
    pred, teacher = mx.nd.array([[1, 2, 3]]), mx.nd.array([[0.2, 0.3, 0.5]])
    inputs = (pred, mx.nd.array([1]), teacher) if isinstance(loss, DistillationLoss) else (pred, teacher)
    assert old(*inputs) == loss(*inputs) and "skew" in repr(old)
