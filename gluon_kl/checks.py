"""The rules for arguments, shapes, dtypes and weights: functions that return the checked value, or raise an error."""

import math
import numbers
import operator
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import BaseSparseNDArray
from mxnet.symbol import Symbol

REDUCTIONS = ("mean", "sum", "none")
ROW_REDUCTIONS = (*REDUCTIONS, "row", "row_mean")  # of losses with categories
FLOATS = ("float16", "float32", "float64")
# np.dtype(x).name takes microseconds. NumPy has no bfloat16, so MXNet writes it as a record of 16 bits.
DTYPE_NAMES: Dict[Any, str] = {bool: "bool", np.dtype([("bfloat16", np.uint16)]): "bfloat16",
                               **{key: name for name in (
    *FLOATS, "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "bool")
    for key in (np.dtype(name).type, np.dtype(name))}}  # in MXNet 2.0, an array's dtype is the second
# MXNet may fail to read a number outside these, or its product with another, such as the square of a temperature.
SMALLEST, LARGEST = 1e-290, 1e290
MAX_AXES = 32  # of an MXNet array


class Frame(NamedTuple):
    """The layout of the first input, with axes counted from the front; `axis` is None if there are no categories."""

    shape: Tuple[int, ...]
    batch_axis: int
    axis: Optional[int]


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def as_float(number: Any) -> float:
    """A number of any type as a float; infinite if it is too large."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def check_number(name: str, value: Any) -> Any:
    """The number as Python's int or float, so that MXNet and the operator can read its text."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number, not {value!r}")
    number = as_float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {value!r}")
    if number and not SMALLEST <= abs(number) <= LARGEST:
        raise ValueError(f"{name} must be 0 or between {SMALLEST} and {LARGEST} in magnitude, not {value!r}")
    return value if type(value) is int else number


def check_between(name: str, value: Any, low: float, high: float) -> Any:
    number = check_number(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name} must lie between {low} and {high}, not {value!r}")
    return number


def check_share(name: str, value: Any) -> Any:
    number = check_number(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, not {value!r}")
    return number


def check_whole(name: str, value: Any) -> Any:
    number = check_number(name, value)
    if number != int(number):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return number


def check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices[:-1]) + f" or {choices[-1]!r}"
        raise ValueError(f"{name} must be {allowed}, not {value!r}")


def check_positive(name: str, value: Any, maximum: float = math.inf) -> Any:
    number = check_number(name, value)
    if not 0 < number <= maximum:
        bound = "" if maximum == math.inf else f" and at most {maximum}"
        raise ValueError(f"{name} must be positive{bound}, not {value!r}")
    return number


def check_not_negative(name: str, value: Any) -> Any:
    number = check_number(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative, not {value!r}")
    return number


def check_axis(name: str, value: Any) -> int:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        axis = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    if not -MAX_AXES <= axis < MAX_AXES:
        raise ValueError(f"{name} must lie between {-MAX_AXES} and {MAX_AXES - 1}, since no array has more than "
                         f"{MAX_AXES} axes, not {value!r}")
    return axis


def normal_axis(name: str, axis: int, shape: Tuple[int, ...], of: str) -> int:
    """`axis` counted from the front, or an error that names it."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{name} = {axis} is out of range for {of} of shape {shape}")
    return axis % len(shape)


def check_kinds(
    names: Sequence[str], inputs: Sequence[Any], optional: Sequence[str], numeric: Sequence[str] = (),
) -> bool:
    """Whether the inputs are Symbols, not arrays; an error for anything else, or a mixture.

    Only an `optional` input may be None, and only a `numeric` input may be a number.
    """
    symbolic = isinstance(inputs[0], Symbol)
    for name, x in zip(names, inputs):
        if (type(x) is NDArray and not symbolic) or (x is None and name in optional):
            continue
        if name in numeric and is_number(x):
            continue
        if not isinstance(x, (NDArray, Symbol)):
            raise TypeError(
                f"{name} must be an MXNet array or Symbol, not {type(x).__module__}.{type(x).__name__}; "
                f"convert it with mx.nd.array({name}) or mx.np.array({name})"
            )
        if isinstance(x, BaseSparseNDArray):
            raise TypeError(f"{name} must be dense, not {x.stype}; convert it with {name}.tostype('default')")
        if isinstance(x, Symbol) != symbolic:
            raise TypeError(f"{names[0]} and {name} must both be arrays or both be Symbols")
    return symbolic


def check_same_shape(
    first: str, second: str, shape: Tuple[int, ...], other: Tuple[int, ...], hint: str = "",
) -> None:
    if shape != other:
        raise ValueError(f"{first} and {second} must have the same shape, not {shape} and {other}; "
                         f"nothing broadcasts{hint}")


def fit_sample_weight(weight: Any, frame: Frame, given_axis: Optional[int] = None, of: str = "pred") -> Any:
    """`weight` with as many axes as the first input; shape (batch,) is per sample, a shape without `axis` per row.

    `given_axis` is the axis as the user counts it, so that a trace also takes weights per row with another rank.
    """
    shape, batch_axis, axis = frame
    size, batch = weight.shape, shape[batch_axis]
    if len(size) == len(shape) and all(have in (1, want) for have, want in zip(size, shape)):
        return weight
    rows = None if axis is None else shape[:axis] + shape[axis + 1:]
    if size == rows and (axis != batch_axis or size != (batch,)):
        return weight.expand_dims(axis if given_axis is None else given_axis)
    if size == (batch,):
        for i in range(len(shape)):  # not `reshape`: a trace of Gluon 2 would fix this length for every later batch
            weight = weight if i == batch_axis else weight.expand_dims(i)
        return weight
    raise ValueError(
        f"sample_weight of shape {size} does not fit {of} of shape {shape}: pass {(batch,)}, "
        + (f"{rows}, " if rows not in (None, (batch,)) else "")
        + f"or {len(shape)} axes each of which is 1 or that of {of}"
    )


def fit_prior(name: str, prior: Any, shape: Tuple[int, ...]) -> Any:
    """A prior broadcast to `shape`; a number or None is returned as it is."""
    if prior is None or is_number(prior):
        return prior
    size = (1,) * (len(shape) - len(prior.shape)) + prior.shape
    if len(size) != len(shape) or any(have not in (1, want) for have, want in zip(size, shape)):
        raise ValueError(f"{name} of shape {prior.shape} does not broadcast to mean of shape {shape}: pass a number, "
                         f"or an array whose axes, counted from the last, are each 1 or that of mean")
    if size != prior.shape:
        prior = prior.reshape(size)
    return prior if size == shape or 0 in shape else prior.broadcast_to(shape)
