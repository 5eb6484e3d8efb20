"""Every case of the table against the oracle: values and gradients, eager, on both paths; and weights of 0."""

import numpy as np
import pytest

from cases import (
    FEW,
    MEMBERS,
    Case,
    Model,
    agrees,
    all_inputs,
    called,
    cases_of,
    every,
)

# Values and gradients

@pytest.mark.parametrize("name", MEMBERS)
def test_values_and_gradients(path, name):
    def check(case):
        inputs, loss = all_inputs(case), case.make()
        value, (*gradients, to_weight) = case.value, case.gradients
        gradients += [None] * (len(inputs) - 1 - len(gradients)) + [to_weight]
        for dtype in ("float64", "float32"):
            got = called(loss, inputs, dtype, case.head)
            assert all(x is None or x.dtype == dtype for x in got)
            agrees(got[0], value, dtype, f"value in {dtype}")
            for of, to, want in zip(loss._names, got[1:], gradients):
                if want is not None:
                    agrees(to, want, dtype, f"gradient to {of} in {dtype}")

    every(cases_of(name), check)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_oracles_gradients_by_central_differences(name):
    """What the table trusts is right itself: the same from values alone."""
    def check(case):
        given, step = [*case.inputs, case.sample_weight], 1e-6
        for i, want in enumerate(case.gradients):
            for index in np.ndindex(*np.shape(want)) if want is not None and want.any() else ():
                if i == len(given) - 1 and given[i][index] == 0 and case.reduction == "row_mean":
                    continue  # the number of rows that count jumps there
                ends = []
                for sign in (1, -1):
                    moved = list(given)
                    moved[i] = given[i].copy()
                    moved[i][index] += sign * step
                    value = case.member.expect(moved[:-1], moved[-1], **case.options)
                    ends.append((case.head * value).sum())
                assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(want[index], rel=1e-5, abs=1e-6), (i, index)

    every([case for case in cases_of(name) if case.shape == (3, 4)][-2:], check)


# Weights of 0

def block_of(way, loss):
    if way == "eager":
        return loss
    model = Model(loss)
    model.hybridize(static_alloc=True, static_shape=True)
    return model


def ways(name):
    return ["eager", "nested"] if name in FEW else ["eager"]


@pytest.mark.parametrize("name", MEMBERS)
def test_weight_zero_silences_a_row(path, name):
    """Whatever it holds, on one side or on all: not a bit changes; neither it nor its weight gets a gradient."""
    def check(bad, way, what, changed):
        case = Case(name, ((5, 3), -1, 0), size=(5, 1))
        case.sample_weight[:] = [[1.5], [0], [2], [0], [0]]
        inputs = all_inputs(case)
        clean = clean_of[way] = clean_of.get(way) or called(block_of(way, case.make()), inputs, "float32")
        for x in case.inputs[changed]:
            if x is not None and len(x) == 5:
                x[1] = bad
                x.reshape(5, -1)[3, -1] = bad
        got = called(block_of(way, case.make()), inputs, "float32")
        for x, before in zip(got[:-1], clean):
            if before is not None:
                np.testing.assert_array_equal(x, before)
        assert got[1][[0, 2]].any() and not got[0][[1, 3, 4]].any()
        assert not any(x[[1, 3, 4]].any() for x in got[1:-1] if x is not None and len(x) == 5)
        with np.errstate(invalid="ignore"):
            terms = case.member.terms(case.inputs, -1)
        assert np.isfinite(got[-1]).all()
        if case.member.has_axis:
            assert not got[-1][~np.isfinite(terms).all(axis=1) & (case.sample_weight[:, 0] == 0)].any()
        else:  # without categories, each term is a row of its own
            sums = np.where(np.isfinite(terms), terms, 0).sum(axis=1, keepdims=True)
            np.testing.assert_allclose(got[-1], sums, rtol=1e-5, atol=1e-6)
        if np.isnan(bad) and what == "all" and way == "eager":
            assert np.isnan(called(case.make(), inputs[:-1])[0][[1, 3]]).all(), "NaN counts without a weight"

    clean_of, first, others = {}, slice(1), slice(1, None)
    every([(bad, way, what, changed) for way in ways(name) for bad, what, changed in (
        (np.nan, "the first", first), (np.inf, "the first", first), (np.nan, "the others", others),
        (-np.inf, "the others", others), (np.nan, "all", slice(None)), (-np.inf, "all", slice(None)))], check)


@pytest.mark.parametrize("name", MEMBERS)
def test_loss_weight_zero_silences_all(path, name):
    def check(bad, way):
        case = Case(name, ((4, 3), -1, 0), weight=0)
        for x in case.inputs:
            if x is not None:
                x[:] = bad
        got = called(block_of(way, case.make()), case.inputs, "float32")
        assert all(x is None or not x.any() for x in got)

    every([(bad, way) for bad in (0.5, np.nan, np.inf) for way in ways(name)], check)


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if member.weights == "elements"])
def test_a_term_of_weight_zero(path, name):
    """A single element of weight 0 adds nothing and takes nothing from the others of its row."""
    def check(dtype, way):
        case = Case(name, ((2, 3), -1, 0), size=(2, 3))
        case.sample_weight = np.array([[0.0, 1, 2], [1, 1, 0]])
        loss, inputs = case.make(), all_inputs(case)
        value, *gradients = called(block_of(way, loss), inputs, dtype, case.head)
        agrees(value, case.value, dtype, "value")
        for i, (got, want) in enumerate(zip(gradients, [*case.gradients[:-1], *[None] * len(inputs)])):
            if want is not None:
                agrees(got, want, dtype, f"gradient {i}")
        agrees(gradients[-1], case.gradients[-1], dtype, "gradient to the weight")
        if case.member.elementwise:
            assert not any(x[case.sample_weight == 0].any() for x in gradients[:-1] if np.shape(x) == (2, 3))
            for x in case.inputs:
                if np.shape(x) == (2, 3):
                    x[case.sample_weight == 0] = np.nan
            for x, before in zip(called(block_of(way, loss), inputs, dtype, case.head)[:-1], (value, *gradients)):
                np.testing.assert_array_equal(x, before)

    every([("float32", "eager"), *[("float64", way) for way in ways(name)]], check)


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if member.has_axis])
def test_one_category(path, name):
    """Whoever has no choice is always right: exactly 0, and scores get gradients of exactly 0."""
    def check(dtype, weight):
        case = Case(name, ((20, 1), -1, 0), weight=weight)
        for x in case.inputs:
            if np.shape(x) == (20, 1) and x[:-1].any() and (x != 1).any():  # scores; the last label may be ignored
                x *= 9
        value, *gradients = called(case.make(), case.inputs, dtype)
        assert not value.any()
        spaces = getattr(case.member, "spaces", ("logits",))
        assert not any(to.any() for to, space in zip(gradients, spaces) if space == "logits")

    every([(dtype, weight) for dtype in ("float64", "float32") for weight in (None, 2.5, 0)], check)
