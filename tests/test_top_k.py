"""TopKDistillationLoss: what a teacher that kept its best categories teaches."""

from gluon_kl import DistillationLoss, TopKDistillationLoss, native

import mxnet as mx
import numpy as np
import pytest

import oracle
from cases import in_one_test

PAIRS = {"bucket": ("kl", "reverse_kl", "js"), "renormalize": ("kl", "js"), "drop": ("kl",)}


def teacher_of(rng, shape, k):
    """A teacher's best k: where, and their log-probabilities; and those of all."""
    log_probs = oracle.log_softmax(2 * rng.normal(size=shape))
    index = np.argsort(-log_probs, -1)[..., :k]
    return index.astype("float64"), np.take_along_axis(log_probs, index, -1), log_probs


@pytest.fixture
def given(rng):
    """A student of 9 categories, labels, and 4 kept of a teacher."""
    pred = 2 * rng.normal(size=(5, 9))
    return (pred, rng.randint(9, size=5).astype("float64"), *teacher_of(rng, (5, 9), 4)[:2])


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "js"])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-12)])
def test_all_categories_are_the_dense_loss(run, rng, divergence, dtype, tolerance):
    pred, label = (2 * rng.normal(size=(4, 7))).astype(dtype), rng.randint(7, size=4).astype(dtype)
    index, value, log_probs = teacher_of(rng, (4, 7), 7)
    options = dict(divergence=divergence, beta=0.3)
    dense = DistillationLoss(3, 0.3, teacher_space="log_probs", **options)
    top_k = TopKDistillationLoss(3, 0.3, **options)
    inputs = pred, label, index.astype("int32"), value.astype(dtype)
    np.testing.assert_allclose(run(top_k, *inputs), run(dense, pred, label, log_probs.astype(dtype)), rtol=tolerance)
    np.testing.assert_allclose(run.gradients(top_k, *inputs)[0],
                               run.gradients(dense, pred, label, log_probs.astype(dtype))[0], atol=tolerance)


def test_the_gradient_of_the_bucket(eager, given):
    """By pred / T: q P - p at a kept category, q (P - p_tail / q_tail) at each other."""
    pred, _, index, value = given
    q, where = np.exp(oracle.log_softmax(pred / 3)), index.astype(int)
    p_kept, q_kept = np.exp(value), np.take_along_axis(q, where, -1)
    p_tail, q_tail = 1 - p_kept.sum(-1, keepdims=True), 1 - q_kept.sum(-1, keepdims=True)
    expected = q * (1 - p_tail / q_tail)
    np.put_along_axis(expected, where, q_kept - p_kept, -1)
    gradient = eager.gradients(TopKDistillationLoss(3, 0), pred, None, index, value)[0]
    np.testing.assert_allclose(gradient, 3 * expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-13)])
def test_a_gradient_past_the_cache(eager, rng, dtype, tolerance):
    """Of rows that begin anywhere in a line of the cache, and hold kept categories in all of their blocks."""
    size, k = (70 if dtype == "float32" else 35, 30011), 50
    pred, label = rng.normal(size=size), rng.randint(size[1], size=size[0])
    index = np.argsort(rng.uniform(size=size), -1)[:, :k]
    p, rows = rng.dirichlet(np.ones(k + 1), size[0]), np.arange(size[0])
    q = np.exp(oracle.log_softmax(pred))
    q_tail = 1 - np.take_along_axis(q, index, -1).sum(-1, keepdims=True)
    soft = q * (1 - p[:, -1:] / q_tail)
    np.put_along_axis(soft, index, np.take_along_axis(q, index, -1) - p[:, :-1], -1)
    q[rows, label] -= 1
    inputs = pred.astype(dtype), label.astype("int32"), index.astype("int32"), p[:, :-1].astype(dtype)
    gradient = eager.gradients(TopKDistillationLoss(teacher_space="probs"), *inputs)[0]
    np.testing.assert_allclose(gradient, (soft + q) / 2, atol=tolerance)


def test_a_label_that_is_no_class(run, given):
    """NaN in value and gradient."""
    given[1][[1, 3]] = -1, 9
    nan = np.array([False, True, False, True, False])
    assert (np.isnan(run(TopKDistillationLoss(), *given)) == nan).all()
    gradient = run.gradients(TopKDistillationLoss(), *given)[0]
    assert np.isnan(gradient[nan]).all() and np.isfinite(gradient[~nan]).all()


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("float64", 1e-12)])
def test_a_tiny_tail_keeps_its_digits(eager, dtype, tolerance):
    """Of 1 - the kept ones nothing would be left."""
    pred = np.array([[2.0, 1, -67, -68, -69], [0, 0, -30, -31, -np.inf]]).astype(dtype)
    index, value = np.array([[0, 1], [1, 0]]), np.log([[0.7, 0.2], [0.5, 0.4]]).astype(dtype)
    loss = TopKDistillationLoss(hard_weight=0)
    expected = oracle.top_k(pred, None, index, value, hard_weight=0)
    np.testing.assert_allclose(eager(loss, pred, None, index, value), expected, rtol=tolerance)
    gradient = eager.gradients(loss, pred, None, index, value)[0]
    p_tail = 1 - np.exp(value.astype("float64")).sum(-1)
    share = np.exp(oracle.log_softmax(pred[:, 2:]))
    np.testing.assert_allclose(gradient[:, 2:], -p_tail[:, None] * share, rtol=10 * tolerance, atol=1e-12)


@in_one_test("row, index", [("a class twice", [3, 1, 3, 0]), ("-2", [0, -2, 1, 3]), ("too large", [9, 0, 1, 3]),
                            ("a fraction", [0.5, 1, 2, 3]), ("NaN", [np.nan, 1, 2, 3]),
                            ("infinity", [1, np.inf, 2, 3]), ("far off", [1, 2, 1e18, 3])])
@pytest.mark.parametrize("hard_weight", [0, 0.5])
def test_no_silent_category(run, given, row, index, hard_weight):
    given[2][1] = index
    loss = TopKDistillationLoss(2, hard_weight)
    value, gradient = run(loss, *given), run.gradients(loss, *given)[0]
    assert (np.isnan(value) == [False, True, False, False, False]).all()
    assert np.isnan(gradient[1]).all() and np.isfinite(np.delete(gradient, 1, 0)).all()
    weight = np.array([1, 0, 1, 1, 2.0])
    assert run(loss, *given, weight)[1] == 0
    gradient = run.gradients(loss, *given, weight)[0]
    assert (gradient[1] == 0).all() and np.isfinite(gradient).all()


@in_one_test("index", [[3, 1, 3, 0], [9, 0, 1, 3], [3, 1, -2, 0]])
@in_one_test("hard_weight", [0, 0.5])
@in_one_test("space", ["log_probs", "probs"])
@pytest.mark.parametrize("tail, divergence", [(tail, each) for tail in PAIRS for each in PAIRS[tail]])
def test_no_silent_category_where_nothing_is_on_it(run, given, tail, divergence, space, hard_weight, index):
    """Of every tail and divergence, where the kept probabilities are 0 too."""
    pred, label, where, value = given
    where[1], value[1] = index, [-np.inf, np.log(0.6), -np.inf, np.log(0.3)]
    value = np.exp(value) if space == "probs" else value
    loss = TopKDistillationLoss(2, hard_weight, tail=tail, divergence=divergence, teacher_space=space)
    out, gradient = run(loss, pred, label, where, value), run.gradients(loss, pred, label, where, value)[0]
    assert (np.isnan(out) == [False, True, False, False, False]).all()
    assert np.isnan(gradient[1]).all() and np.isfinite(np.delete(gradient, 1, 0)).all()


@pytest.mark.parametrize("options", [
    dict(reduction="row"), dict(reduction="sum"), dict(label_smoothing=0.2), dict(hard_weight=1, label_smoothing=0.2),
    dict(reduction="row", label_smoothing=0.2)], ids=str)
def test_reduced_and_smoothed(run, rng, options):
    pred, label = 2 * rng.normal(size=(3, 4, 6)), rng.randint(6, size=(3, 4)).astype("float64")
    kept = teacher_of(rng, (3, 4, 6), 3)[:2]
    weight = rng.uniform(0, 2, size=(3, 4))
    for each in ([], [weight]):
        expected = oracle.top_k(pred, label, *kept, temperature=2, sample_weight=each[0] if each else None, **options)
        got = run(TopKDistillationLoss(2, **options), pred, label, *kept, *each)
        np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("hard_weight", [0, 0.4, 1])
@pytest.mark.parametrize("smoothing", [0, 0.2])
def test_an_ignored_row_has_weight_0(run, rng, hard_weight, smoothing):
    """Its soft part too, whatever it holds, and its weight gets no gradient."""
    pred, label = 2 * rng.normal(size=(3, 4, 6)), rng.randint(6, size=(3, 4)).astype("float64")
    kept = teacher_of(rng, (3, 4, 6), 3)[:2] if hard_weight < 1 else (None, None)
    label[0, 1:3] = label[2] = -100
    heard = (label != -100).astype("float64")
    plain, ignoring = (TopKDistillationLoss(2, hard_weight, label_smoothing=smoothing, ignore_label=each)
                       for each in (None, -100))
    for weight in (None, rng.uniform(0.5, 2, size=(3, 4))):
        silent = [pred, label * heard, *kept, heard if weight is None else heard * weight]
        inputs = [pred.copy(), label, *kept, *([] if weight is None else [weight])]
        inputs[0][heard == 0] = np.nan
        np.testing.assert_allclose(run(ignoring, *inputs), run(plain, *silent), rtol=1e-12)
        got, want = run.gradients(ignoring, *inputs), run.gradients(plain, *silent)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-9, atol=1e-14)
        if weight is not None:
            np.testing.assert_allclose(got[-1], want[-1] * heard, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("options", [{}, dict(hard_weight=0, ignore_label=1), dict(hard_weight=1),
                                     dict(reduction="row", label_smoothing=0.1, ignore_label=1)], ids=str)
def test_the_parts_make_the_loss(run, given, options):
    options = {"temperature": 3, "hard_weight": 0.3, "weight": 2, **options}
    loss = TopKDistillationLoss(**options)
    arrays = [mx.nd.array(x, dtype=x.dtype) for x in given]
    hard, soft = (0 if x is None else x.asnumpy() for x in loss.parts(*arrays))
    share = options["hard_weight"]
    np.testing.assert_allclose(2 * (share * hard + (1 - share) * soft), run(loss, *given), rtol=1e-12)


@pytest.mark.parametrize("tail, divergence", [(tail, each) for tail in PAIRS for each in PAIRS[tail]])
def test_empty_places(run, given, tail, divergence):
    """They are as if they were not there, whatever their value; a row of such has no soft part."""
    pred, label, index, value = given
    loss = TopKDistillationLoss(2, 0.5, tail=tail, divergence=divergence)
    index[1, [0, 2]] = -1
    value[1, [0, 2]] = np.nan
    fewer = [pred[1:2], label[1:2], index[1:2, [1, 3]], value[1:2, [1, 3]]]
    index[3] = -1
    got, gradient = run(loss, pred, label, index, value), run.gradients(loss, pred, label, index, value)[0]
    np.testing.assert_allclose(got[1:2], run(loss, *fewer), rtol=1e-12)
    np.testing.assert_allclose(gradient[1:2], run.gradients(loss, *fewer)[0], rtol=1e-9, atol=1e-14)
    hard = TopKDistillationLoss(2, 1)
    np.testing.assert_allclose(got[3], 0.5 * run(hard, pred, label, None, None)[3], rtol=1e-12)
    np.testing.assert_allclose(gradient[3], 0.5 * run.gradients(hard, pred, label, None, None)[0][3], rtol=1e-9)
    soft = TopKDistillationLoss(2, 0, tail=tail, divergence=divergence)
    assert run(soft, pred, None, index, value)[3] == 0
    assert (run.gradients(soft, pred, None, index, value)[0][3] == 0).all()


def test_mass_where_the_student_has_none(run, given):
    """All others masked, and the teacher has a tail there: +inf; where it has none, none."""
    pred, _, index, value = given
    pred[:] = -np.inf
    np.put_along_axis(pred, index.astype(int), np.arange(4.0) - 1, -1)
    loss = TopKDistillationLoss(hard_weight=0)
    assert (run(loss, pred, None, index, value) == np.inf).all()
    gradient = run.gradients(loss, pred, None, index, value)[0]
    kept = np.take_along_axis(gradient, index.astype(int), -1)
    np.testing.assert_allclose(kept, np.exp(oracle.log_softmax(np.arange(4.0) - 1)) - np.exp(value), rtol=1e-6)
    assert np.isfinite(gradient).all()
    dropped = TopKDistillationLoss(hard_weight=0, tail="drop")
    assert np.isfinite(run(dropped, pred, None, index, value)).all()
    assert np.isfinite(run.gradients(dropped, pred, None, index, value)[0]).all()


@pytest.mark.parametrize("shape, axis", [((3, 4, 6), -1), ((3, 6, 4), 1), ((3, 6, 2, 2), -3)])
def test_sequences_and_maps(eager, rng, shape, axis):
    """Any axis; a weight for each row, of which those of 0 count nowhere, whatever they hold."""
    moved = [rng.normal(size=(3, 4, 6)), rng.randint(6, size=(3, 4)).astype("float64"),
             *teacher_of(rng, (3, 4, 6), 3)[:2]]
    valid = (np.arange(4) < np.array([4, 2, 0])[:, None]).astype("float64")
    for x in (moved[0], moved[3]):
        x[valid == 0] = np.nan
    loss = TopKDistillationLoss(2, axis=axis)
    expected = [eager(TopKDistillationLoss(2), *(x[i, :n] for x in moved)).mean() if n else 0
                for i, n in enumerate((4, 2, 0))]
    rows = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    inputs = [np.moveaxis(x.reshape(*rows, -1), -1, axis) for x in (moved[0], *moved[2:])]
    inputs.insert(1, moved[1].reshape(rows))
    value = eager(loss, *inputs, valid.reshape(rows))
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    gradient = np.moveaxis(eager.gradients(loss, *inputs, valid.reshape(rows))[0], axis, -1).reshape(3, 4, 6)
    assert (gradient[valid == 0] == 0).all() and (gradient[valid == 1] != 0).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "float32", "float64"])
def test_indices_of_every_dtype(run, given, dtype):
    pred, label, index, value = given
    expected = oracle.top_k(pred, label, index, value)
    got = run(TopKDistillationLoss(), pred, label, index.astype(dtype), value)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_no_gradient_to_the_teacher(run, given):
    loss = TopKDistillationLoss(2)
    _, _, to_index, to_value = run.gradients(loss, *given)[:4]
    assert to_value is None or not to_value.any()
    assert to_index is None or not to_index.any()


@pytest.mark.parametrize("options, message", [
    (dict(tail="rest"), "tail must be 'bucket', 'renormalize' or 'drop', not 'rest'"),
    (dict(tail="renormalize", divergence="reverse_kl"),
     "divergence must be 'kl' or 'js' with tail='renormalize', not 'reverse_kl'"),
    (dict(tail="drop", divergence="js"), "divergence must be 'kl' with tail='drop', not 'js'"),
    (dict(teacher_space="logits"), "teacher_space must be 'log_probs' or 'probs' with tail='bucket', not 'logits'"),
    (dict(tail="drop", teacher_space="logits"), "with tail='drop', not 'logits'"),
    (dict(divergence="tv"), "divergence must be 'kl', 'reverse_kl' or 'js', not 'tv'"),
    (dict(temperature=0), "temperature must lie between"), (dict(hard_weight=2), "hard_weight must lie between"),
])
def test_arguments_that_do_not_fit(options, message):
    with pytest.raises(ValueError) as error:
        TopKDistillationLoss(**options)
    assert message in str(error.value)


@pytest.mark.parametrize("change, message", [
    (lambda x: x.update(index=x["index"][:4], value=x["value"][:4]), "teacher_index must have pred's shape (5, 9)"),
    (lambda x: x.update(value=x["value"][:, :3]), "teacher_index and teacher_value must have the same shape"),
    (lambda x: x.update(index=x["index"].astype("float16")), "teacher_index must hold whole numbers, not float16"),
    (lambda x: x.update(weight=np.ones((5, 9))), "sample_weight must hold one number for each row"),
    (lambda x: x.update(label=x["label"][:3]), "label of class indices must have the shape of pred without axis -1"),
])
def test_inputs_that_do_not_fit(given, change, message):
    inputs = dict(zip(("pred", "label", "index", "value"), given), weight=np.ones(5))
    change(inputs)
    with pytest.raises(ValueError) as error:
        TopKDistillationLoss()(*(mx.nd.array(x, dtype=x.dtype) for x in inputs.values()))
    assert message in str(error.value)


@pytest.mark.parametrize("change, message", [
    (dict(index=(5, 3)), "target and index must have the same shape, not (5, 4) and (5, 3)"),
    (dict(index=(4, 4), target=(4, 4)), "index and pred must have the same shape but in the last axis"),
    (dict(hard=(4,)), "hard must have a class for each row of pred, not (4,) and (5, 9)"),
    (dict(target=None), "inputs must name index and target"), (dict(index=None), "index and tail go together"),
    (dict(tail=None), "index and tail go together"), (dict(form="tv"), "form must be one of kl, reverse_kl, js"),
    (dict(tail="rest"), "tail must be one of bucket, drop, renormalize, not rest"),
])
def test_calls_that_the_operator_refuses(change, message):
    """As a graph of a user's may make them, whose shapes no check has seen."""
    if not native.is_available():
        pytest.skip(f"without the native operator: {native.why_not()}")
    shapes = {"pred": (5, 9), "index": (5, 4), "target": (5, 4), "hard": (5,)}
    options = {"pred": "logits", "tail": "bucket", "form": "kl", "hard_weight": 0.5}
    for name, value in change.items():
        (shapes if name in shapes else options)[name] = value
    arrays = {name: mx.nd.zeros(shape) for name, shape in shapes.items() if shape is not None}
    with pytest.raises(mx.MXNetError) as error:
        native.top_k(mx.nd, arrays, **options).wait_to_read()
    assert message in str(error.value)


def test_nothing_kept_is_an_error(given):
    with mx.util.np_shape(True):
        empty = mx.np.zeros((5, 0))
        with pytest.raises(ValueError, match="k must be at least 1"):
            TopKDistillationLoss()(mx.np.array(given[0]), mx.np.array(given[1]), empty, empty)


@pytest.mark.parametrize("options, change, message", [
    ({}, lambda x: x.update(index=x["value"], value=x["index"]), "teacher_index and teacher_value seem to be swapped"),
    ({}, lambda x: x["index"].__setitem__((1, 0), x["index"][1, 2]), "twice in one row"),
    ({}, lambda x: x["index"].__setitem__((1, 0), 9), "categories from 0 to 8, or -1, not 9; an empty place is -1"),
    ({}, lambda x: x.update(index=x["index"] + np.array([[1], [2], [1], [2], [1]])), "they seem to count from 1"),
    ({}, lambda x: x.update(value=np.exp(x["value"])), "set teacher_space='probs'"),
    ({}, lambda x: x.update(value=x["value"] + 5), "teacher_space='logits'"),
    (dict(teacher_space="probs"), lambda x: None, "set teacher_space='log_probs'"),
    (dict(tail="renormalize", teacher_space="logits"), lambda x: x.update(value=np.exp(x["value"])),
     "set teacher_space='probs'"),
    ({}, lambda x: x.update(label=x["label"] + 20), "label must hold class indices"),
    ({}, lambda x: x.update(pred=np.exp(oracle.log_softmax(x["pred"]))), "pred"),
])
def test_check_inputs_names_the_mistake(given, options, change, message):
    inputs = dict(zip(("pred", "label", "index", "value"), given))
    inputs["index"][:] = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 2, 4, 6], [1, 3, 5, 7], [7, 6, 5, 4]]
    TopKDistillationLoss().check_inputs(*map(mx.nd.array, inputs.values()))
    change(inputs)
    with pytest.raises(ValueError) as error:
        TopKDistillationLoss(**options).check_inputs(*map(mx.nd.array, inputs.values()))
    assert message in str(error.value)


def test_check_inputs_leaves_out_what_is_silent(given):
    pred, label, index, value = given
    index[0, 1], value[0, 1] = -1, 99
    for x in (pred, index, value):
        x[2] = 1e6
    arrays = list(map(mx.nd.array, (pred, label, index, value)))
    TopKDistillationLoss().check_inputs(*arrays, mx.nd.array([1, 1, 0, 1, 1]))
    with pytest.raises(ValueError):
        TopKDistillationLoss().check_inputs(*arrays)
