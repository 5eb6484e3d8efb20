"""One floating dtype for all inputs: by casts if dtypes are known, by NumPy's promotion in graphs if they are not."""

import functools
import operator
from typing import Any, Callable, List, Optional, Sequence, Tuple

from gluon_kl import _mxnet, mxnet_private
from gluon_kl.checks import DTYPE_NAMES
from gluon_kl.operators import as_rows, numpy_of, unit

import mxnet as mx
from mxnet.ndarray import NDArray
from mxnet.symbol import Symbol


def lift_known(F: Any, inputs: Sequence[Any], dtypes: Sequence[Optional[str]], targets: Sequence[str]) -> List[Any]:
    """The inputs of these dtypes cast to `targets`; None stays None, and a number becomes an array like the first.

    In our own graphs, a number is already an array of one element.
    """
    lifted = [F.cast(x, dtype=target) if isinstance(x, (NDArray, Symbol)) and dtype != target else x
              for x, dtype, target in zip(inputs, dtypes, targets)]
    lifted = [F.broadcast_like(x, lifted[0]) if dtype == "number" and type(x) is not float else x
              for x, dtype in zip(lifted, dtypes)]
    return fill_numbers(F, lifted)


def fill_numbers(F: Any, lifted: Sequence[Any]) -> List[Any]:
    """The inputs, with numbers as arrays of the shape and dtype of the first input."""
    return [F.ones_like(lifted[0]) * x if type(x) is float else x for x in lifted]


def lift_unknown(
    F: Any, inputs: Sequence[Any], same_shape: Sequence[bool], part: Callable[..., Any] = lambda F, x: x,
) -> List[Any]:
    """The inputs in one floating dtype, float64 if an input is, else float32, by NumPy's promotion with ones.

    `same_shape` says which inputs have the shape of the first, which the graph may not know yet. None stays None, and a
    number becomes an array of the shape of the first input. ``part(F, x)`` is a part of the first input `x`, and an
    error where the graph must not be run.
    """
    carried: List[Any] = [_carried(x) if isinstance(x, (NDArray, Symbol)) else x for x in inputs]
    own = unit(F, part(F, carried[0]))
    # `broadcast_like` raises an error for different numbers of axes; NumPy's multiplication would add leading axes.
    units = [own]
    for own_of_x in [unit(F, x) for x in carried[1:] if isinstance(x, (NDArray, Symbol))]:
        if _mxnet.LIKE_WANTS_EQUAL_DTYPES:
            units.append(own_of_x)
            units.append(F.broadcast_like(F.cast(own_of_x, dtype="float32"), F.cast(own, dtype="float32")))
        else:
            units.append(F.broadcast_like(own_of_x, own))
    # MXNet infers no shape through NumPy's multiplication. So inputs with the shape of the first are tied to it by an
    # operator that requires equal shapes. It also requires equal dtypes, hence the comparisons.
    for x in [x for x, same in zip(carried, same_shape) if same]:
        signs = [(side.as_np_ndarray() != 0).as_nd_ndarray() for side in (x, carried[0])]
        tied = F.slice(mxnet_private.same_shape(F, *signs), begin=(0,), end=(1,))
        units.append(unit(F, F.cast(tied, dtype="float32")))
    if not any(same_shape):  # so that float16 alone is lifted too
        units.append(unit(F, F.cast(F.slice(carried[0], begin=(0,), end=(1,)), dtype="float32")))
    one = functools.reduce(operator.mul, [x.as_np_ndarray() for x in units])
    zeros = _zeros(F, carried[0], one)
    return fill_numbers(F, [
        _promoted(x, zeros if same or x is carried[0] else _zeros(F, x, one)) if isinstance(x, (NDArray, Symbol)) else x
        for x, same in zip(carried, same_shape)])


def _carried(x: Any) -> Any:
    """`x` in a dtype that can be added to others, which most are. Of Symbols the dtype is not known.

    The addition turns booleans into float32, and is one of the functions in which AMP casts bfloat16 to float32.
    """
    return x if isinstance(x, NDArray) and DTYPE_NAMES[x.dtype] not in ("bool", "bfloat16") else x + 0


def _zeros(F: Any, x: Any, one: Any) -> Any:
    """Zeros of the shape of `x` and the dtype of `one`, which has as many axes as `x`."""
    if _mxnet.LIKE_WANTS_EQUAL_DTYPES:
        zeros = (F.zeros_like(x).as_np_ndarray() * one).as_nd_ndarray()
    else:
        zeros = F.broadcast_like(F.zeros_like(one.as_nd_ndarray()), x)
    return F.BlockGrad(zeros)


def _promoted(x: Any, zeros: Any) -> Any:
    """`x` in the dtype that NumPy gives to its sum with `zeros`.

    They have the shape of `x`, because a broadcast sum takes MXNet twenty times as long and its gradient seven times.
    """
    return (x.as_np_ndarray() + zeros.as_np_ndarray()).as_nd_ndarray()


def widened(F: Any, inputs: Sequence[Any], batch_axis: int) -> Tuple[List[Any], Any]:
    """In a traced graph, inputs of one shape as rows in float64, and a 0 of the dtype to which `narrowed` casts.

    At 256×64 a step of GaussianKLLoss in a user's graph takes 358 us with `widened` and `narrowed`, and 654 without.
    """
    corners = [F.slice(F.Flatten(x), begin=(0, 0), end=(1, 1)).as_np_ndarray() for x in inputs]
    zero = F.zeros_like(functools.reduce(operator.mul, corners).as_nd_ndarray())
    first, *others = [F.cast(x, dtype="float64") for x in inputs]
    tied = [first, *[mxnet_private.same_shape(F, x, first) for x in others]]
    return [as_rows(F, x, batch_axis) for x in tied], zero


def narrowed(F: Any, column: Any, zero: Any) -> Any:
    """`column` in the dtype of `zero`, or in float32 if that has fewer digits.

    NumPy's `insert` casts the inserted values to the dtype of the array. It has no gradient, so the gradient goes
    through a sign minus itself, which is 0 and always finite.
    """
    x = F.transpose(column)
    bridge = F.cast(F.contrib.sign_ste(x), dtype="float32")
    zeros = F.zeros_like(bridge).as_np_ndarray() + zero.as_np_ndarray()
    both = numpy_of(zeros).insert(zeros, 0, x.as_np_ndarray(), axis=0).as_nd_ndarray()
    value = F.BlockGrad(F.slice(both, begin=(0,), end=(1,))).as_np_ndarray()
    return (value + (bridge - F.BlockGrad(bridge)).as_np_ndarray()).as_nd_ndarray()


def fill_like(x: Any, like: Any) -> Any:
    """`x` broadcast to `like`, if neither shapes nor dtypes are known.

    With Symbols, NumPy's addition of zeros also adds leading axes. In a trace `x` already has all axes. There
    `broadcast_like` is used, because without rows NumPy's addition would leave the gradient unwritten.
    """
    if isinstance(x, NDArray):
        return mx.nd.broadcast_like(x, like)
    zeros = mx.sym.zeros_like(like)
    return (x.as_np_ndarray() + zeros.as_np_ndarray()).as_nd_ndarray()
