"""The input contract that every loss shares.

What may come in (array kinds, shapes, dtypes, sample weights), how it is lifted to one
floating dtype, and how one block keeps one graph for each way of being called.
"""

import math
import numbers
import operator
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon.loss import Loss
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import BaseSparseNDArray
from mxnet.symbol import Symbol

from gluon_kl.divergence import sum_per_sample
from gluon_kl.native import SMALL, to_float
from gluon_kl.native.requests import follow

REDUCTIONS = ("mean", "sum", "none")

# np.dtype(x).name takes microseconds.
_DTYPE_NAMES: Dict[Any, str] = {bool: "bool", **{np.dtype(name).type: name for name in (
    "float16", "float32", "float64", "uint8", "int8", "int32", "int64", "bool")}}
_GRAPH_FIELDS = ("_cached_graph", "_cached_op", "_cached_op_args", "_in_format", "_out_format")


class Facts(NamedTuple):
    """What real arrays tell and Symbols cannot; one hybridized graph per value."""

    ndim: int
    dtypes: Tuple[Optional[str], ...]  # of each input, None for one that is left out
    recorded: Tuple[bool, ...]  # whether autograd may ask for a gradient of each input, None included
    row_weight: bool  # sample_weight, if any, is one number per row along the axis
    device: Any
    small: bool  # fewer elements than native.SMALL


def check_number(name: str, value: Any) -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {value!r}")


def check_between(name: str, value: Any, low: float, high: float) -> None:
    check_number(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low} and {high}, not {value!r}")


def check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices[:-1]) + f" or {choices[-1]!r}"
        raise ValueError(f"{name} must be {allowed}, not {value!r}")


def check_positive(name: str, value: Any) -> None:
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, not {value!r}")


def check_not_negative(name: str, value: Any) -> None:
    check_number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, not {value!r}")


def check_axis(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None


def normal_axis(name: str, axis: int, shape: Tuple[int, ...], of: str) -> int:
    """`axis` counted from the front, or an error that names it."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{name} = {axis} is out of range for {of} of shape {shape}")
    return axis % len(shape)


def check_kinds(names: Sequence[str], inputs: Sequence[Any], optional: Sequence[str]) -> bool:
    """Whether the inputs are Symbols (else arrays); an error for anything else, or a mixture.

    Only an `optional` one may be None.
    """
    symbolic = isinstance(inputs[0], Symbol)
    for name, x in zip(names, inputs):
        if (type(x) is NDArray and not symbolic) or (x is None and name in optional):
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


def check_same_shape(first: str, second: str, shape: Tuple[int, ...], other: Tuple[int, ...]) -> None:
    if shape != other:
        raise ValueError(f"{first} and {second} must have the same shape, not {shape} and {other}; nothing broadcasts")


def check_same_device(names: Sequence[str], inputs: Sequence[Any]) -> Any:
    device = inputs[0].context
    for name, x in zip(names[1:], inputs[1:]):
        if x is not None and x.context != device:
            raise ValueError(f"{names[0]} is on {device} but {name} on {x.context}; move one with as_in_context")
    return device


def fit_sample_weight(weight: Any, shape: Tuple[int, ...], batch_axis: int, of: str = "pred") -> Any:
    """`weight` with as many axes as `shape`; (batch,) means per sample."""
    size = weight.shape
    if len(size) == len(shape) and all(have in (1, want) for have, want in zip(size, shape)):
        return weight
    batch = shape[batch_axis]
    if size == (batch,):
        return weight.reshape(tuple(batch if i == batch_axis else 1 for i in range(len(shape))))
    raise ValueError(
        f"sample_weight of shape {size} does not fit {of} of shape {shape}: pass {(batch,)}, "
        f"or {len(shape)} axes each of which is 1 or that of {of}"
    )


def lift(F: Any, facts: Optional[Facts], inputs: Sequence[Any]) -> List[Any]:
    """The inputs in one floating dtype: float64 if any of them is, else float32; None stays None."""
    if facts is None:
        return _lift_unknown(F, inputs)
    target = "float64" if "float64" in facts.dtypes else "float32"
    return [x if dtype in (None, target) else F.cast(x, dtype=target) for x, dtype in zip(inputs, facts.dtypes)]


def _lift_unknown(F: Any, inputs: Sequence[Any]) -> List[Any]:
    """`lift` inside a graph that does not know its dtypes: NumPy's type promotion, by factors of one."""
    floats = [x if x is None else to_float(F, x) for x in inputs]
    one = F.ones(shape=(1,), dtype="float32").as_np_ndarray()
    for x in floats:
        if x is not None:
            first = F.reshape(F.slice_axis(x, axis=0, begin=0, end=1), shape=(-1,))
            one = one * F.ones_like(F.slice_axis(first, axis=0, begin=0, end=1)).as_np_ndarray()
    return [x if x is None else (x.as_np_ndarray() * one).as_nd_ndarray() for x in floats]


def weigh(
    F: Any, terms: Callable[..., Any], inputs: Sequence[Any], weight: Any, axis: Optional[int], weight_grad: bool,
) -> Any:
    """``terms(*inputs) * weight``, where weight 0 silences even NaN: a whole row along `axis`, or a term.

    `inputs` have one shape; `weight` None is 1; `axis` None says that every term is a row of its own.
    """
    if weight is None:
        return terms(*inputs)
    weight = F.broadcast_like(weight, inputs[0])
    off = weight == 0
    row_off = off if axis is None else F.broadcast_like(F.min(off, axis=axis, keepdims=True), off)
    zero = F.zeros_like(weight)
    heard = terms(*(F.where(row_off, zero, x) for x in inputs))
    weighted = F.where(off, zero, heard) * weight
    if not weight_grad:
        return weighted
    # The derivative with respect to a weight of 0 is the term itself, if its row is finite.
    silent = F.BlockGrad(terms(*(F.BlockGrad(x) for x in inputs)))
    finite = F.abs(silent if axis is None else F.sum(silent, axis=axis, keepdims=True)) < math.inf
    return weighted + weight * F.where(off * F.broadcast_like(finite, off), silent, zero)


def _legacy(x: Any) -> Any:
    """An mx.np array or Symbol as the mx.nd or mx.sym one that shares its memory and gradient."""
    return x.as_nd_ndarray() if isinstance(x, (mx.np.ndarray, mx.sym.np._Symbol)) else x


class CheckedLoss(Loss):
    """A Gluon loss that checks real arrays, lifts dtypes, and may be called in changing ways.

    A subclass names its array inputs in `_names`, checks them in ``_check(*arrays)`` (which
    returns what `_observe` does), and computes in
    ``_compute(F, facts, *inputs)``, where facts is None on Symbols of unknown origin.
    """

    _names: Tuple[str, ...] = ("pred", "label", "sample_weight")
    _optional: Tuple[str, ...] = ("sample_weight",)
    _direction = ""

    def __init__(self, weight: Optional[float], batch_axis: int, **kwargs: Any) -> None:
        if weight is not None:
            check_number("weight", weight)
        super().__init__(weight, check_axis("batch_axis", batch_axis), **kwargs)
        self._facts: Optional[Facts] = None

    def _check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Facts]:
        raise NotImplementedError

    def _observe(
        self, inputs: Sequence[Any], weight: Any, shape: Tuple[int, ...], batch_axis: int, axis: Optional[int],
    ) -> Tuple[Tuple[Any, ...], Facts]:
        """The checked inputs and the fitted sample_weight, as an operator may be given them, and their facts.

        `shape` is that of the first, `axis` that of the categories, if there is one.
        """
        if weight is not None:
            weight = fit_sample_weight(weight, shape, batch_axis, self._names[0])
        row_weight = weight is None or axis is None or weight.shape[axis] == 1
        inputs = (*inputs, weight)
        device = check_same_device(self._names, inputs)
        dtypes = tuple([x if x is None else _DTYPE_NAMES[x.dtype] for x in inputs])
        recorded: Tuple[bool, ...] = (False,) * len(inputs)
        if autograd.is_recording():
            recorded, inputs = zip(*[follow(x) for x in inputs])
        return inputs, Facts(len(shape), dtypes, recorded, row_weight, device, math.prod(shape) < SMALL)

    def _compute(self, F: Any, facts: Optional[Facts], *inputs: Any) -> Any:
        raise NotImplementedError

    def _describe(self) -> str:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()}): {self._direction}"

    def _real(self, *inputs: Any) -> List[Any]:
        """Inputs as legacy arrays, for a look at their values."""
        if check_kinds(self._names, inputs, self._optional):
            raise TypeError(f"{self._names[0]} must be an MXNet array, not a Symbol: a Symbol has no values")
        return [_legacy(x) for x in inputs]

    def _lifted(self, F: Any, facts: Optional[Facts], inputs: Sequence[Any]) -> List[Any]:
        """The inputs in one floating dtype; if the weight of the loss is 0, ones, whose terms are finite."""
        if self._weight == 0:
            inputs = [x if x is None else F.ones_like(x) for x in inputs]
        return lift(F, facts, inputs)

    def _reduced(self, F: Any, facts: Optional[Facts], terms: Any, reduction: str) -> Any:
        """The terms of each sample reduced, times the weight of the loss."""
        if reduction != "none":
            batch_axis = self._batch_axis if facts is None else self._batch_axis % facts.ndim
            terms = sum_per_sample(F, terms, batch_axis, reduction == "mean")
        return terms if self._weight is None else terms * self._weight

    def forward(self, *inputs: Any) -> Any:
        symbolic = check_kinds(self._names, inputs, self._optional)
        numpy_kind = isinstance(inputs[0], (mx.np.ndarray, mx.sym.np._Symbol))
        legacy = [_legacy(x) for x in inputs]
        if symbolic:
            with self.name_scope():
                out = self._compute(mx.sym, None, *legacy)
        else:
            checked, facts = self._check(*legacy)
            if self._active:
                out = self._run_graph(facts, checked)
            else:
                out = self._compute(mx.nd, facts, *checked)
        return out.as_np_ndarray() if numpy_kind else out

    def hybrid_forward(self, F: Any, x: Any, *inputs: Any) -> Any:
        """Trace the graph of the facts at hand; only a hybridized block of our own comes here."""
        return self._compute(F, self._facts, x, *inputs)

    def _run_graph(self, facts: Facts, inputs: Sequence[Any]) -> Any:
        """Run the graph that was traced for these facts, having made it Gluon's one cached graph."""
        if facts != self._facts:
            if self._cached_op is not None:
                self._graphs[self._facts] = [getattr(self, field) for field in _GRAPH_FIELDS]
            for field, value in zip(_GRAPH_FIELDS, self._graphs.get(facts, ((), None, [], None, None))):
                setattr(self, field, value)
            self._facts = facts
        if self._cached_op is None or self._callback:
            with facts.device:
                return self._call_cached_op(*inputs)
        present = [x for x in inputs if x is not None]
        return self._cached_op(*[present[i] for _, i in self._cached_op_args])

    def _clear_cached_op(self) -> None:
        super()._clear_cached_op()
        self._graphs: dict = {}
        self._facts = None

    def __getstate__(self) -> dict:
        """Everything but the cached graphs, which hold handles that can be neither copied nor pickled."""
        return {**self.__dict__, "_cached_graph": (), "_cached_op": None, "_cached_op_args": [],
                "_graphs": {}, "_facts": None}
