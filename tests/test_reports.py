"""Faults that users' programs met, a section each, on both paths; these tests always run whole."""

import gluon_kl
from gluon_kl import native

import mxnet as mx
import numpy as np
import pytest

# 1: a float16 array gets the gradient of a tiny negative double

# Of both signs: below the smallest half, and the smallest float; subnormal halves; ties, and numbers beside them that a
# step over float would round to one; the largest half and what rounds beyond; whole numbers.
MAGNITUDES = [0.0, 5e-324, 1e-310, 7e-46, 1e-45, 7.1e-46, 1e-40, 1e-30, 2.0**-25, 2.0**-25 * (1 + 1e-12), 3 * 2.0**-25,
              2.0**-24, 2.0**-14 - 2.0**-25, 1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-40, 1 + 3 * 2.0**-11 - 2.0**-40, 1.9, 100.5,
              65504.0, 65519.99, 65520.0, 1e30, 3e38, 1e39, 1e300]


def gradients_of(inputs, options):
    """To every input, which may have any dtype, of KLDivLoss."""
    arrays = [mx.nd.array(x, dtype=x.dtype) for x in inputs]
    for x in arrays:
        x.attach_grad()
    with mx.autograd.record():
        loss = gluon_kl.KLDivLoss(reduction="sum", **options)(*arrays)
    loss.backward()
    return [x.grad.asnumpy() for x in arrays]


def narrowed(x, dtype):
    """As NumPy rounds it; to a whole number towards 0, kept in range."""
    if dtype.startswith("float"):
        with np.errstate(over="ignore"):
            return x.astype(dtype)
    info = np.iinfo(dtype)
    return np.array([min(max(int(each), info.min), info.max) if np.isfinite(each) else info.max if each > 0 else info.min
                     for each in x.ravel()], dtype).reshape(x.shape)


def check_narrow_gradients():
    """A gradient in any dtype is the one in float64, rounded once, to the sign of a zero; in whole and part vectors."""
    for length in (1, 3, 8, 20, 5 * len(MAGNITUDES)):
        for shift in range(0, 2 * len(MAGNITUDES), max(1, length)):
            values = np.resize(np.roll(np.array([sign * x for x in MAGNITUDES for sign in (1, -1)]), -shift), (2, length))
            ones, some = np.ones((2, length)), np.resize([0.25, 1.0, 2.0, 1e-30], (2, length))
            cases = [  # whose gradient is looked at, the inputs: by them it is -values, about -values, and values
                (0, [ones, values]), (1, [values, some]), (2, [-values[:, :1], ones[:, :1], ones[:, :1]])]
            for which, inputs in cases:
                wide = gradients_of(inputs, {})[which]
                for dtype in ("float16", "float32", "int8", "uint8", "int32", "int64"):
                    if which == 0 and not dtype.startswith("float"):
                        continue  # scores are floats
                    own = [x.astype(dtype) if i == which else x for i, x in enumerate(inputs)]
                    same = [x.astype("float64") for x in own]
                    expected = narrowed(gradients_of(same, {})[which] if which == 1 else wide, dtype)
                    got = gradients_of(own, {})[which]
                    np.testing.assert_array_equal(got, expected, err_msg=f"{which} {dtype} {length}")
                    if dtype.startswith("float"):
                        np.testing.assert_array_equal(np.signbit(got), np.signbit(expected), err_msg=f"{which} {dtype}")


@pytest.mark.skipif(not native.is_available(), reason="of the fused operator")
@pytest.mark.parametrize("isa", ["", "avx2", "baseline"])
def test_narrow_gradients(in_subprocess, isa):
    in_subprocess("import test_reports; test_reports.check_narrow_gradients()", GLUON_KL_ISA=isa)


def test_tiny_negative_gradients(run):
    """To a float16 array beside float64 ones: -0, not NaN."""
    pred, label = np.array([[-1, -2]], "float16"), np.array([[1, 1e-46]])
    got, _ = run.gradients(gluon_kl.KLDivLoss(reduction="sum"), pred, label)
    np.testing.assert_array_equal(got, [[-1, 0]])
    assert np.signbit(got).all()
    student, teacher = np.zeros((2, 3), "float16"), np.zeros((2, 3))
    teacher[:, 0] = 1e-9
    for form in ("kl", "reverse_kl", "js"):
        got, _, _ = run.gradients(gluon_kl.DistillationLoss(hard_weight=0, divergence=form), student, None, teacher)
        np.testing.assert_array_equal(got, np.zeros((2, 3)))
    weight = np.ones((1, 1), "float16")
    for log_q in (-1e-300, 1e-300):  # its negative is the gradient to the weight
        got = run.gradients(gluon_kl.KLDivLoss(reduction="sum"), np.array([[log_q]]), np.ones((1, 1)), weight)[2]
        assert got == 0 and not np.isnan(got)


# 2: Jensen-Shannon where a probability is subnormal


# 3: an element of weight 0 in a row that counts


# 4: the gradient to a weight of 0 beside an infinite term


# 5: a subclass overrides hybrid_forward


# 6: a subclass overrides forward


# 7: memory stays flat whatever number changes


# 8: class indices of any dtype


# 9: one category gives exactly 0


# 10: tiny divergences and extreme temperatures


# 11: numbers that no loss can use are refused where it is made


# 12: shapes left open


# 13: the package imported again


# 14: an array as dtype


# 15: the extra beside other pins of MXNet


# 16: programs that import MXNet first


# 17: check_inputs names the right remedy


# 18: second-order gradients
