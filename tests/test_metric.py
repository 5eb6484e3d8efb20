"""The metrics, in MXNet's own training loops."""

import copy
import pickle

import gluon_kl

import mxnet as mx
import numpy as np
import pytest

import oracle
from cases import in_one_test


def batches(rng, sizes, categories=6):
    for size in sizes:
        pred, label = rng.normal(size=(2, size, categories))
        yield oracle.log_softmax(pred), np.exp(oracle.log_softmax(label))


def double(x):
    return mx.nd.array(x, dtype="float64")


BOTH = [(gluon_kl.metric.KLDivergence, oracle.kl_terms, {}),
        *((gluon_kl.metric.JSDivergence, oracle.js_terms, dict(beta=beta)) for beta in (0.5, 0.2, 0, 1))]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("metric, terms, options", BOTH)
@in_one_test("from_logits, pred_space", [(True, None), (False, None), (True, "probs"), (True, "logits")])
@in_one_test("label_space", ["probs", "log_probs", "logits"])
def test_mean_over_all_samples(rng, metric, terms, options, from_logits, pred_space, label_space):
    """Batches of different sizes count by their samples."""
    metric = metric(from_logits, label_space=label_space, pred_space=pred_space, **options)
    space, expected = oracle.space_of(from_logits, pred_space), []
    for pred, label in batches(rng, (4, 1, 7)):
        pred, label = np.exp(pred) if space == "probs" else pred, label if label_space == "probs" else np.log(label)
        metric.update([double(label)], [double(pred)])
        expected.extend(terms(pred, label, space, label_space, **options).sum(-1))
    name, value = metric.get()
    assert name == ("js-divergence" if options else "kl-divergence") and metric.num_inst == 12
    assert value == pytest.approx(np.mean(expected), rel=1e-11)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("metric, terms, options", BOTH[:2])
def test_every_input_that_the_losses_take(rng, metric, terms, options):
    """dtypes and their mixtures, one-hot integers, mx.np arrays, memory of DataLoader workers, several devices."""
    pred, label = rng.normal(size=(2, 4, 3))
    hot = np.eye(3)[[0, 2, 1, 1]]
    expected = terms(pred, hot, "logits", "probs", **options).sum(-1).mean()
    for pred_type, label_type in (("float16", "float32"), ("float32", "float64"), ("float32", "int32"),
                                  ("float64", "uint8")):
        for kind in (mx.nd.array, mx.np.array):
            figure = metric(from_logits=False, **options)
            figure.update([kind(hot, dtype=label_type)], [kind(pred, dtype=pred_type)])
            assert figure.get()[1] == pytest.approx(expected, rel=2e-3 if pred_type == "float16" else 1e-5)
    figure = metric(from_logits=False, **options)
    figure.update([double(hot).as_in_context(mx.Context("cpu_shared", 0))], [double(pred).as_in_context(mx.cpu(1))])
    figure.update([mx.nd.cast(mx.np.array(hot, dtype=bool).as_nd_ndarray(), "float32")], [double(pred)])
    assert figure.get()[1] == pytest.approx(expected, rel=1e-12) and figure.num_inst == 8


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("metric", [gluon_kl.metric.KLDivergence, gluon_kl.metric.JSDivergence])
def test_without_samples_nothing_is_known(metric):
    figure = metric(from_logits=False)
    with mx.util.np_shape(True):
        figure.update([mx.np.zeros((0, 3))], [mx.np.zeros((0, 3))])
    assert np.isnan(figure.get()[1]) and figure.num_inst == 0


def test_disjoint_samples_cost_log_2():
    metric = mx.metric.create("js-divergence", pred_space="probs")
    metric.update(double([[1.0, 0], [0, 1]]), double([[0.0, 1], [0, 1]]))
    assert metric.get() == ("js-divergence", pytest.approx(np.log(2) / 2, rel=1e-12))


def test_reference_figure():
    metric = mx.metric.create("kl-divergence")
    metric.update(double([[.3, .4, .1, .2], [.1, .1, .1, .7]]), double(np.log([[.2, .5, .2, .1]] * 2)))
    assert metric.get()[1] == pytest.approx((0.101696830 + 1.062564) / 2, abs=1e-6)


def test_registered_under_its_names():
    for name in ("kl-divergence", "KLDivergence", "kldivergence"):
        assert type(mx.metric.create(name, from_logits=False)) is gluon_kl.metric.KLDivergence
    metric = gluon_kl.metric.KLDivergence(False, 1, "logits", "logits", name="kl", output_names=["out"],
                                          label_names=["target"])
    again = mx.metric.create(**metric.get_config())
    assert again.get_config() == metric.get_config() and again.name == "kl" and again.label_names == ["target"]
    assert repr(again._loss) == repr(metric._loss)
    for name in ("js-divergence", "JSDivergence", "jsdivergence"):
        assert type(mx.metric.create(name, beta=0.2)) is gluon_kl.metric.JSDivergence
    js = gluon_kl.metric.JSDivergence(axis=1, label_space="logits", pred_space="probs", beta=0.3, name="js")
    again = mx.metric.create(**js.get_config())
    assert again.get_config() == js.get_config() and repr(again._loss) == repr(js._loss)
    assert "beta=0.3" in repr(js._loss)
    assert str(metric) == "EvalMetric: {'kl': nan}"


def test_lists_hold_devices_and_outputs(rng):
    parts = list(batches(rng, (3, 5)))
    metric = gluon_kl.metric.KLDivergence()
    metric.update([double(label) for _, label in parts],
                  [mx.nd.array(pred, ctx=mx.cpu(i), dtype="float64") for i, (pred, _) in enumerate(parts)])
    expected = np.concatenate([oracle.kl_divergence(pred, label, reduction="sum") for pred, label in parts])
    assert metric.get()[1] == pytest.approx(expected.mean(), rel=1e-12)
    with pytest.raises(ValueError):
        metric.update([double(parts[0][1])], [double(pred) for pred, _ in parts])
    with pytest.raises(ValueError, match="same shape"):
        metric.update([double([[1.0]])], [double([[0.0, 0.0]])])
    with pytest.raises(TypeError, match=r"mx\.nd\.array"):
        metric.update([np.ones((1, 2))], [double([[0.0, 0.0]])])
    assert metric.num_inst == 8


def test_other_axes_add_up(rng):
    pred, label = rng.normal(size=(2, 3, 4, 5))
    label = np.exp(oracle.log_softmax(label, 1))
    metric = gluon_kl.metric.KLDivergence(False, axis=1)
    metric.update([double(label)], [double(pred)])
    want = oracle.kl_divergence(pred, label, from_logits=False, axis=1, reduction="sum")
    assert metric.get()[1] == pytest.approx(want.mean(), rel=1e-12) and metric.num_inst == 3


def test_numpy_arrays_and_recording(rng):
    (pred, label), = batches(rng, (4,))
    metric = gluon_kl.metric.KLDivergence()
    pred = mx.np.array(pred)
    pred.attach_grad()
    with mx.autograd.record():
        hidden = pred * 1
        metric.update([mx.np.array(label)], [hidden])
        out = (hidden ** 2).sum()
    out.backward()
    np.testing.assert_allclose(pred.grad.asnumpy(), 2 * pred.asnumpy(), rtol=1e-5)
    assert metric.get()[1] > 0


def test_reset_and_global_figures():
    metric, label = gluon_kl.metric.KLDivergence(), [double([[1.0]])]
    assert np.isnan(metric.get()[1]) and np.isnan(metric.get_global()[1])
    metric.update(label, [double([[-1.0]])])
    metric.reset_local()
    assert np.isnan(metric.get()[1]) and metric.get_global() == ("kl-divergence", 1.0)
    metric.update(label, [double([[-3.0]])])
    assert metric.get() == ("kl-divergence", 3.0) and metric.get_global() == ("kl-divergence", 2.0)
    assert metric.get_name_value() == [("kl-divergence", 3.0)]
    assert metric.get_global_name_value() == [("kl-divergence", 2.0)]
    metric.reset()
    assert np.isnan(metric.get()[1]) and np.isnan(metric.get_global()[1])


def test_small_updates_are_not_lost():
    """2^53 and then 1000 ones: in float64 alone the ones would vanish."""
    metric = gluon_kl.metric.KLDivergence()
    label = double([[1.0]])
    metric.update([label], [double([[-2.0 ** 53]])])
    for _ in range(1000):
        metric.update([label], [double([[-1.0]])])
    assert metric.sum_metric == 2.0 ** 53 + 1000 and metric.global_sum_metric == metric.sum_metric
    metric.reset()
    total = 0.1 * 4000
    small = double(np.full((1, 1), -0.1))
    for _ in range(4000 // 100):
        metric.update([label] * 100, [small] * 100)
    assert metric.sum_metric == pytest.approx(total, rel=1e-15)


@pytest.mark.parametrize("worst", [np.inf, np.nan])
def test_infinite_and_undefined(worst):
    metric = gluon_kl.metric.KLDivergence()
    for value in (1.0, worst, 2.0):
        metric.update([double([[1.0]])], [double([[-value]])])
    np.testing.assert_equal(metric.get()[1], worst)
    metric.reset()
    metric.update([double([[1.0]])], [double([[-3.0]])])
    assert metric.get()[1] == 3


def test_copies():
    metric = gluon_kl.metric.KLDivergence()
    metric.update([double([[1.0]])], [double([[-3.0]])])
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        twin.update([double([[1.0]])], [double([[-5.0]])])
        assert twin.get() == ("kl-divergence", 4.0) and metric.get() == ("kl-divergence", 3.0)


@pytest.mark.parametrize("arguments, error", [(dict(from_logits="no"), TypeError), (dict(label_space="p"), ValueError),
                                              (dict(axis=0.5), TypeError), (dict(pred_space="p"), ValueError)])
def test_argument_errors(arguments, error):
    for metric in (gluon_kl.metric.KLDivergence, gluon_kl.metric.JSDivergence):
        with pytest.raises(error, match=next(iter(arguments))):
            metric(**arguments)
    with pytest.raises(ValueError, match="beta must lie between 0 and 1, not 2"):
        gluon_kl.metric.JSDivergence(beta=2)


@pytest.fixture
def data(rng):
    x = rng.normal(size=(40, 5)).astype("float32")
    y = np.exp(oracle.log_softmax(x @ rng.normal(size=(5, 3)))).astype("float32")
    return x, y


@pytest.mark.usefixtures("path")
def test_module_score(data):
    x, y = data
    scores = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=3, name="fc")
    label = mx.sym.var("target_label")
    log_probs = mx.sym.log_softmax(scores)
    out = mx.sym.Group([mx.sym.BlockGrad(log_probs, name="out"),
                        mx.sym.make_loss(gluon_kl.KLDivLoss(False, reduction="sum")(scores, label), name="loss")])
    module = mx.mod.Module(out, label_names=["target_label"])
    batches = mx.io.NDArrayIter(x, y, batch_size=8, label_name="target_label")
    metric = gluon_kl.metric.KLDivergence(output_names=["out_output"], label_names=["target_label"])
    module.fit(batches, eval_metric=metric, num_epoch=1, optimizer_params={"learning_rate": 0.01})
    scored = dict(module.score(batches, metric))["kl-divergence"]
    weight, bias = (module.get_params()[0][name].asnumpy().astype("float64") for name in ("fc_weight", "fc_bias"))
    expected = oracle.kl_divergence(x @ weight.T + bias, y, from_logits=False, reduction="sum").mean()
    assert scored == pytest.approx(expected, rel=1e-4)


def test_gluon_loop_and_composite(data):
    x, y = data
    net = mx.gluon.nn.Dense(3, in_units=5)
    net.initialize()
    composite = mx.metric.CompositeEvalMetric()
    composite.add(gluon_kl.metric.KLDivergence(from_logits=False))
    composite.add("mse")
    alone = mx.metric.create(["kl-divergence", "mse"])
    for i in range(0, 40, 8):
        pred, label = net(mx.nd.array(x[i:i + 8])), mx.nd.array(y[i:i + 8])
        composite.update([label], [pred])
        alone.update_dict({"label": label}, {"pred": pred.log_softmax()})
    names, values = composite.get()
    assert names == ["kl-divergence", "mse"]
    expected = oracle.kl_divergence(net(mx.nd.array(x)).asnumpy(), y, from_logits=False, reduction="sum").mean()
    assert values[0] == pytest.approx(expected, rel=1e-4) and alone.get()[1][0] == pytest.approx(expected, rel=1e-4)
    composite.reset()
    assert np.isnan(composite.get()[1][0])


# Weights, agreement and entropy

@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("metric, terms", [(gluon_kl.metric.KLDivergence, oracle.kl_terms),
                                           (gluon_kl.metric.JSDivergence, oracle.js_terms)])
def test_divergences_under_a_weight(rng, metric, terms):
    """As of the loss: samples count whatever their weight, and weight 0 silences what a row holds."""
    pred, label = rng.normal(size=(2, 4, 3, 5))
    label, weight = np.exp(oracle.log_softmax(label)), rng.uniform(0.5, 2, size=(4, 3))
    weight[1], weight[2, 0] = 0, 0
    expected = (terms(pred, label, "logits") * weight[..., None]).sum((1, 2)).mean()
    pred[weight == 0] = np.nan
    figure = metric(from_logits=False)
    figure.update(double(label), double(pred), double(weight))
    assert figure.get()[1] == pytest.approx(expected, rel=1e-11) and figure.num_inst == 4
    figure.update([double(label)] * 2, [double(pred)] * 2, [double(weight)] * 2)
    assert figure.get()[1] == pytest.approx(expected, rel=1e-11) and figure.num_inst == 12


@pytest.mark.parametrize("kind", [mx.nd.array, mx.np.array])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_agreement(rng, dtype, kind):
    pred, label = rng.normal(size=(2, 6, 4, 5)).astype(dtype)
    same = pred.argmax(-1) == label.argmax(-1)
    metric = gluon_kl.metric.Agreement()
    for part in (slice(2), slice(2, 6)):
        metric.update([kind(label[part], dtype=dtype)], [kind(pred[part], dtype=dtype)])
    assert metric.get() == ("agreement", pytest.approx(same.mean())) and metric.num_inst == 24
    across = gluon_kl.metric.Agreement(axis=1)
    across.update(kind(label.swapaxes(1, 2), dtype=dtype), kind(pred.swapaxes(1, 2), dtype=dtype))
    assert across.get()[1] == pytest.approx(same.mean())


def test_agreement_of_many_categories():
    """Beyond 2048 float16 cannot count them."""
    pred, label = np.zeros((2, 1, 4000), "float16")
    pred[0, 3001], label[0, 3000] = 1, 1
    metric = gluon_kl.metric.Agreement()
    metric.update(mx.nd.array(label, dtype="float16"), mx.nd.array(pred, dtype="float16"))
    assert metric.get()[1] == 0


@pytest.mark.parametrize("weight", [(1, 0, 2), [(1, 0, 1, 0), (0, 0, 0, 0), (3, 1, 1, 1)]], ids=["samples", "rows"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_rows_without_a_weight_are_left_out(rng, weight, axis):
    pred, label = rng.normal(size=(2, 3, 4, 5))
    weight = np.array(weight, dtype="float64")
    heard = np.broadcast_to(weight.reshape(3, -1) != 0, (3, 4))
    same, entropy = (pred.argmax(-1) == label.argmax(-1))[heard], oracle.log_softmax(pred)
    entropy = -(np.exp(entropy) * entropy).sum(-1)[heard]
    pred[~heard] = np.nan
    pred, label = (double(x.swapaxes(axis, -1)) for x in (pred, label))
    for metric, want in ((gluon_kl.metric.Agreement(axis), same), (gluon_kl.metric.Entropy(False, axis), entropy)):
        metric.update(label, pred, double(weight))
        assert metric.get()[1] == pytest.approx(want.mean(), rel=1e-12) and metric.num_inst == want.size
        with pytest.raises(ValueError, match=r"sample_weight of shape \(5,\) does not fit"):
            metric.update(label, pred, double(np.ones(5)))
        with pytest.raises(ValueError, match="sample_weight must hold an array for each of 2 preds, not 1"):
            metric.update([label] * 2, [pred] * 2, double(weight))


@pytest.mark.parametrize("space", ["probs", "log_probs", "logits"])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-12)])
def test_entropy(rng, space, dtype, tolerance):
    log = oracle.log_softmax(3 * rng.normal(size=(7, 5))).astype(dtype).astype("float64")
    log = oracle.log_softmax(log)
    pred = {"probs": np.exp(log), "log_probs": log, "logits": log + 2}[space]
    metric = gluon_kl.metric.Entropy(pred_space=space)
    for part in (pred[:2], pred[2:]):
        metric.update(None, [mx.nd.array(part, dtype=dtype)])
    assert metric.get() == ("entropy", pytest.approx(-(np.exp(log) * log).sum(-1).mean(), rel=tolerance))
    assert metric.num_inst == 7


def test_entropy_of_certain_and_masked_rows():
    for space, pred in (("logits", [[0.0, -np.inf, 0.0], [5.0, -np.inf, -np.inf]]),
                        ("probs", [[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])):
        metric = gluon_kl.metric.Entropy(pred_space=space)
        metric.update([double(pred)], [double(pred)])
        assert metric.get()[1] == pytest.approx(np.log(2) / 2, rel=1e-12)
    metric.update(None, double([[np.nan, 0.5, 0.5]]))
    assert np.isnan(metric.get()[1])


def test_agreement_and_entropy_are_registered():
    for name, metric in (("agreement", gluon_kl.metric.Agreement(1, "same", ["out"], ["target"])),
                         ("entropy", gluon_kl.metric.Entropy(axis=1, pred_space="probs", name="spread"))):
        assert type(mx.metric.create(name)) is type(metric)
        again = mx.metric.create(**metric.get_config())
        assert again.get_config() == metric.get_config() and again._axis == 1
    assert again._space == "probs"


@pytest.mark.parametrize("make", [gluon_kl.metric.Agreement, gluon_kl.metric.Entropy])
def test_errors_of_agreement_and_entropy(make):
    good = double([[0.0, 1.0]])
    with pytest.raises(ValueError, match="axis = 2 is out of range"):
        make(axis=2).update(good, good)
    with pytest.raises(TypeError, match="axis must be an integer"):
        make(axis=0.5)
    with pytest.raises(TypeError, match="pred must be an MXNet array"):
        make().update([good], [np.ones((1, 2))])
    with pytest.raises(TypeError, match="a Symbol has no values"):
        make().update([mx.sym.var("label")], [mx.sym.var("pred")])
    with pytest.raises(ValueError, match="same shape"):
        gluon_kl.metric.Agreement().update([double([[1.0]])], [good])
    with pytest.raises(ValueError, match="from_logits=False"):
        gluon_kl.metric.Entropy(from_logits=False, pred_space="probs")
    metric = make()
    with mx.util.np_shape(True):
        metric.update([mx.np.zeros((0, 3))], [mx.np.zeros((0, 3))])
    assert np.isnan(metric.get()[1]) and metric.num_inst == 0
