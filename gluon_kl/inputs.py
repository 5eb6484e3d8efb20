"""The input contract that every loss shares.

What may come in (array kinds, shapes, dtypes, sample weights), how it is lifted to one
floating dtype, and how one block keeps one graph for each way of being called.
"""

import contextlib
import ctypes
import functools
import inspect
import math
import numbers
import operator
import threading
from typing import Any, Callable, Container, Dict, List, NamedTuple, Optional, Sequence, Tuple

from gluon_kl import _mxnet
from gluon_kl.divergence import Mask, as_rows, heard_rows, is_finite, sum_per_sample, unit
from gluon_kl.native import SMALL, carry, fused, fused_in_graph, reaches

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.base import _LIB, NDArrayHandle, OpHandle, SymbolHandle, c_str, check_call
from mxnet.gluon.block import _BlockScope
from mxnet.gluon.loss import Loss
from mxnet.ndarray import NDArray
from mxnet.ndarray.register import _make_ndarray_function
from mxnet.ndarray.sparse import BaseSparseNDArray
from mxnet.symbol import Symbol

REDUCTIONS = ("mean", "sum", "none")

# np.dtype(x).name takes microseconds. MXNet spells bfloat16, which NumPy has not, as a record of 16 bits.
_DTYPE_NAMES: Dict[Any, str] = {bool: "bool", np.dtype([("bfloat16", np.uint16)]): "bfloat16",
                                **{np.dtype(name).type: name for name in (
    "float16", "float32", "float64", "uint8", "int8", "int32", "int64", "bool")}}
_CARRIED = {"bool": "uint8", "bfloat16": "float32"}  # what an operator of an extension cannot take, and what stands in
_LENT = ("cpu_shared", "cpu_pinned")  # memory of a DataLoader's, as good as any other of the CPU
_GRAPH_OPTIONS = ("static_alloc", "static_shape", "inline_limit", "forward_bulk_size", "backward_bulk_size")
_FLOATS = ("float16", "float32", "float64")
_NUMBER = "number"
# How many kinds of call a loss remembers, of about 1 KB each, and how many graphs, of up to 200 KB: a program may never
# stop making new ones.
_KINDS, _GRAPHS = 256, 8
_LONG = 1 << 14  # terms of a sample: beyond, MXNet's fast sum in float32 is off by more than 1e-6
# A number beyond these, or what becomes of it times another (a temperature's square, say), MXNet may fail to read.
_LEAST, _MOST = 1e-290, 1e290
_MAX_AXES = 32  # of an MXNet array
_TRACING = threading.Lock()


class Frame(NamedTuple):
    """How the first input is laid out: axes counted from the front; `axis` None where there are no categories."""

    shape: Tuple[int, ...]
    batch_axis: int
    axis: Optional[int]


class Facts(NamedTuple):
    """What real arrays tell and Symbols cannot; one hybridized graph per value."""

    ndim: int
    dtypes: Tuple[Optional[str], ...]  # of each input, _NUMBER for a number, None for one that is left out
    recorded: Tuple[bool, ...]  # whether autograd may ask for a gradient of each input, None included
    row_weight: bool  # sample_weight, if any, is one number per row along the axis
    device: Any
    small: bool  # for the operator, and fewer elements than native.SMALL
    long: bool  # more terms a sample than _LONG
    single: bool  # one category


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def as_float(number: Any) -> float:
    """A number of any type; infinite where a float would be."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def check_number(name: str, value: Any) -> Any:
    """The number as Python's own, so that MXNet and the operator can read its text and products with other numbers."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number, not {value!r}")
    number = as_float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {value!r}")
    if number and not _LEAST <= abs(number) <= _MOST:
        raise ValueError(f"{name} must be 0 or between {_LEAST} and {_MOST} in magnitude, not {value!r}")
    return value if type(value) is int else number


def check_between(name: str, value: Any, low: float, high: float) -> Any:
    number = check_number(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name} must lie between {low} and {high}, not {value!r}")
    return number


def check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices[:-1]) + f" or {choices[-1]!r}"
        raise ValueError(f"{name} must be {allowed}, not {value!r}")


def check_positive(name: str, value: Any, most: float = math.inf) -> Any:
    number = check_number(name, value)
    if not 0 < number <= most:
        bound = "" if most == math.inf else f" and at most {most}"
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
    if not -_MAX_AXES <= axis < _MAX_AXES:
        raise ValueError(f"{name} must lie between {-_MAX_AXES} and {_MAX_AXES - 1}, since no array has more than "
                         f"{_MAX_AXES} axes, not {value!r}")
    return axis


def normal_axis(name: str, axis: int, shape: Tuple[int, ...], of: str) -> int:
    """`axis` counted from the front, or an error that names it."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{name} = {axis} is out of range for {of} of shape {shape}")
    return axis % len(shape)


def check_kinds(
    names: Sequence[str], inputs: Sequence[Any], optional: Sequence[str], numeric: Sequence[str] = (),
) -> bool:
    """Whether the inputs are Symbols (else arrays); an error for anything else, or a mixture.

    Only an `optional` one may be None, and only a `numeric` one a number.
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


def check_same_place(names: Sequence[str], inputs: Sequence[Any]) -> Tuple[Tuple[Any, ...], Any]:
    """The inputs on one device, and that device; an error if they come from several.

    All kinds of CPU memory are one place: what a DataLoader's workers hand out is copied.
    """
    contexts: List[Any] = [None if x is None or type(x) is float else x.context for x in inputs]
    device = contexts[0]
    if device.device_type in _LENT:
        device = next((each for each in contexts if each is not None and each.device_type not in _LENT), mx.cpu(0))
    if all(each is None or each == device for each in contexts):
        return tuple(inputs), device
    moved = []
    for name, x, context in zip(names, inputs, contexts):
        if context is not None and context != device:
            if context.device_type not in _LENT or device.device_type != "cpu":
                raise ValueError(f"{names[0]} is on {inputs[0].context} but {name} on {context}; "
                                 f"move one with as_in_context")
            x = x.as_in_context(device)
        moved.append(x)
    return tuple(moved), device


def fit_sample_weight(weight: Any, frame: Frame, of: str = "pred") -> Any:
    """`weight` with as many axes as the first input; (batch,) means per sample, a missing `axis` per row."""
    shape, batch_axis, axis = frame
    size, batch = weight.shape, shape[batch_axis]
    if len(size) == len(shape) and all(have in (1, want) for have, want in zip(size, shape)):
        return weight
    if size == (batch,):
        return weight.reshape(tuple(batch if i == batch_axis else 1 for i in range(len(shape))))
    rows = None if axis is None else shape[:axis] + shape[axis + 1:]
    if size == rows:
        return weight.expand_dims(axis)
    raise ValueError(
        f"sample_weight of shape {size} does not fit {of} of shape {shape}: pass {(batch,)}, "
        + (f"{rows}, " if rows not in (None, (batch,)) else "")
        + f"or {len(shape)} axes each of which is 1 or that of {of}"
    )


def follow(x: Any, else_taken: Optional[bool] = None) -> Tuple[bool, Any]:
    """Whether autograd, while it records, may ask for a gradient of this array, and the array to give an operator.

    It may if the array is marked, or computed from such. A marked one comes behind a view: where its gradients
    add up (``grad_req="add"``), MXNet's own identity adds; the operator of an extension would not, and MXNet's own add
    several uses wrong. One that autograd does not follow is detached: recording would mark it, until the next backward,
    like one that it follows.

    To ask about an array that is not marked takes longer than the gradient of a small one, since MXNet answers by
    raising an exception. `else_taken` says what to take it for instead: True is right of any, as what recording marks
    then is a copy; False cuts it off.
    """
    if x is None or type(x) is float:
        return False, x
    if else_taken is not None and x.grad is None:
        if not else_taken:
            return False, x.detach()
        handle = NDArrayHandle()
        check_call(_LIB.MXShallowCopyNDArray(x.handle, ctypes.byref(handle)))  # followed if x is
        return True, NDArray(handle)
    # Only arrays that autograd follows have a gradient state to write; what is written is what was there.
    state = ctypes.c_int()
    _LIB.MXNDArrayGetGradState(x.handle, ctypes.byref(state))
    if _LIB.MXNDArraySetGradState(x.handle, state) == 0:
        return True, x if x.grad is None else _view(x)
    return False, x.detach()


@functools.lru_cache(maxsize=None)
def _copy_operator() -> Callable[..., Any]:
    handle = OpHandle()
    check_call(_LIB.NNGetOpHandle(c_str("_copy"), ctypes.byref(handle)))
    return _make_ndarray_function(handle, "_copy", "_copy")  # without what AMP has put around MXNet's own


def _view(x: Any) -> Any:
    """`x` as the result of an operator that autograd goes through, also twice: a copy onto the same memory is none."""
    return _copy_operator()(x, out=x.detach())


def lift(
    F: Any, facts: Optional[Facts], inputs: Sequence[Any], alike: Sequence[bool], wide: Sequence[bool],
) -> List[Any]:
    """The inputs in one floating dtype, float64 if any of them is, else float32; None stays.

    `alike` tells which have the shape of the first: a graph may not know it yet; `wide` which become float64 anyway.
    Numbers become arrays of the shape of the first.
    """
    if facts is None:
        lifted = _lift_unknown(F, inputs, alike)
    else:
        targets = ["float64" if own or "float64" in facts.dtypes else "float32" for own in wide]
        lifted = [F.cast(x, dtype=target) if isinstance(x, (NDArray, Symbol)) and dtype != target else x
                  for x, dtype, target in zip(inputs, facts.dtypes, targets)]
        # In a graph of ours a number is an array of one element.
        lifted = [F.broadcast_like(x, lifted[0]) if dtype is _NUMBER and type(x) is not float else x
                  for x, dtype in zip(lifted, facts.dtypes)]
    return [F.ones_like(lifted[0]) * x if type(x) is float else x for x in lifted]


def _lift_unknown(F: Any, inputs: Sequence[Any], alike: Sequence[bool]) -> List[Any]:
    """`lift` inside a graph that does not know its dtypes: NumPy's type promotion, by factors of one."""
    carried: List[Any] = [carry(x) if isinstance(x, Symbol) else x for x in inputs]
    own = unit(F, carried[0])
    # `broadcast_like` refuses other numbers of axes, where NumPy's multiplication would add some in front.
    units = [own]
    for own_of_x in [unit(F, x) for x in carried[1:] if isinstance(x, Symbol)]:
        if _mxnet.LIKE_WANTS_EQUAL_DTYPES:
            units.append(own_of_x)
            units.append(F.broadcast_like(F.cast(own_of_x, dtype="float32"), F.cast(own, dtype="float32")))
        else:
            units.append(F.broadcast_like(own_of_x, own))
    # No shape is inferred through NumPy's multiplication. What has the shape of the first is tied to it by an operator
    # that wants equal shapes; it wants equal dtypes too, hence the comparisons.
    for x in [x for x, same in zip(carried, alike) if same]:
        signs = [(side.as_np_ndarray() != 0).as_nd_ndarray() for side in (x, carried[0])]
        tied = F.slice(F._internal._identity_with_attr_like_rhs(*signs), begin=(0,), end=(1,))
        units.append(unit(F, F.cast(tied, dtype="float32")))
    if not any(alike):  # float16 alone is lifted all the same
        units.append(unit(F, F.cast(F.slice(carried[0], begin=(0,), end=(1,)), dtype="float32")))
    one = functools.reduce(operator.mul, [x.as_np_ndarray() for x in units])
    return [_promoted(F, x, one) if isinstance(x, Symbol) else x for x in carried]


def _promoted(F: Any, x: Any, one: Any) -> Any:
    """`x` in the dtype that NumPy gives its product with `one`.

    By a sum with zeros of that dtype: the gradient of what broadcasts takes MXNet seven times as long.
    """
    zeros = F.BlockGrad((F.zeros_like(x).as_np_ndarray() * one).as_nd_ndarray())
    return (x.as_np_ndarray() + zeros.as_np_ndarray()).as_nd_ndarray()


def widened(F: Any, inputs: Sequence[Any], batch_axis: int) -> Tuple[List[Any], Any]:
    """In a graph of Gluon's, inputs of one shape as rows in float64, and a 0 of the dtype that `narrowed` gives."""
    corners = [F.slice(F.Flatten(x), begin=(0, 0), end=(1, 1)).as_np_ndarray() for x in inputs]
    zero = F.zeros_like(functools.reduce(operator.mul, corners).as_nd_ndarray())
    first, *others = [F.cast(x, dtype="float64") for x in inputs]
    alike = [first, *[F._internal._identity_with_attr_like_rhs(x, first) for x in others]]
    return [as_rows(F, x, batch_axis) for x in alike], zero


def narrowed(F: Any, column: Any, zero: Any) -> Any:
    """`column` in the dtype of `zero`, or in float32 where that has less.

    NumPy's insertion gives what it puts in the dtype of the array it puts it into. It has no gradient: that goes by a
    sign less itself, since a sign is finite.
    """
    x = F.transpose(column)
    bridge = F.cast(F.contrib.sign_ste(x), dtype="float32")
    zeros = F.zeros_like(bridge).as_np_ndarray() + zero.as_np_ndarray()
    both = mx.sym.np.insert(zeros, 0, x.as_np_ndarray(), axis=0).as_nd_ndarray()
    value = F.BlockGrad(F.slice(both, begin=(0,), end=(1,))).as_np_ndarray()
    return (value + (bridge - F.BlockGrad(bridge)).as_np_ndarray()).as_nd_ndarray()


def weigh(
    F: Any, terms: Callable[..., Any], inputs: Sequence[Any], weight: Any, axis: Optional[int], facts: Optional[Facts],
) -> Any:
    """``terms(*inputs, mask) * weight``, where weight 0 silences even NaN: a whole row along `axis`, or a term.

    What the mask of a weight silences must be finite, with gradients of 0. `inputs` have one shape; `weight` None is 1,
    without a mask; `axis` None says that every term is a row of its own.
    """
    if weight is None:
        return terms(*inputs, None)
    by_row = axis is None or (facts is not None and facts.row_weight)
    none = weight == 0
    weight, off = F.broadcast_like(weight, inputs[0]), F.broadcast_like(none, inputs[0])
    rows_off = off if by_row else F.broadcast_like(F.min(none, axis=axis, keepdims=True), inputs[0])
    heard = terms(*inputs, Mask(rows_off, off))
    if facts is not None and not facts.recorded[-1]:
        return heard * weight
    # The derivative with respect to a weight of 0 is the term itself, if its row is finite.
    silent = F.BlockGrad(terms(*(F.BlockGrad(x) for x in inputs), None))
    finite = is_finite(silent if axis is None else F.sum(silent, axis=axis, keepdims=True))
    zero = F.zeros_like(weight)
    silent = F.where(off * F.broadcast_like(finite, off), silent, zero)
    return (F.where(off, zero, heard) + silent) * weight


def _legacy(x: Any) -> Any:
    """An mx.np array or Symbol as the mx.nd or mx.sym one that shares its memory and gradient; a number as a float."""
    if x is None or type(x) is NDArray:
        return x
    if isinstance(x, (mx.np.ndarray, mx.sym.np._Symbol)):
        return x.as_nd_ndarray()
    return as_float(x) if is_number(x) else x


def _kind(inputs: Sequence[Any]) -> Tuple[Any, ...]:
    """What the checks go by, if all inputs are legacy arrays or floats or left out; else it is kept nowhere."""
    kind: List[Any] = []
    for x in inputs:
        if type(x) is NDArray:
            place = x.context
            kind.append((x.shape, x.dtype, place.device_typeid, place.device_id))
        else:
            kind.append(type(x))
    return tuple(kind)


class _NoRows(autograd.Function):
    """The result for inputs that hold nothing: nothing, and gradients of 0 to all of them."""

    def __init__(self, shape: Tuple[int, ...], dtype: str) -> None:
        super().__init__()
        self._result = shape, dtype

    def forward(self, *inputs: Any) -> Any:
        self._inputs = inputs
        shape, dtype = self._result
        return mx.np.zeros(shape, dtype=dtype, ctx=inputs[0].context).as_nd_ndarray()

    def backward(self, *_: Any) -> Any:
        with mx.util.np_shape(True):  # it is another thread's that runs this
            return tuple(mx.np.zeros(x.shape, dtype=x.dtype, ctx=x.context).as_nd_ndarray() for x in self._inputs)


def _without_amp(graph: Symbol) -> Symbol:
    """The graph without what AMP, where it is on, has put in: all is lifted already, and its casts fail in float64."""
    handle = SymbolHandle()
    check_call(_LIB.MXSymbolRemoveAmpCast(graph.handle, ctypes.byref(handle)))
    return type(graph)(handle)


class _Graph:
    """One kind of call, traced at its first time; made and used by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._op: Any = None
        self._hook: Any = None

    def __call__(self, loss: "CheckedLoss", facts: Facts, inputs: Sequence[Any]) -> Any:
        with self._lock:
            if self._op is None:
                self._trace(loss, facts, inputs)
            if loss._callback is not self._hook:
                self._hook = loss._callback
                self._op._register_op_hook(self._hook, loss._monitor_all)
            return self._op(*[self._array(facts, inputs[i]) for i in self._used])

    @staticmethod
    def _array(facts: Facts, x: Any) -> NDArray:
        """The input as an array, so that a graph serves every number."""
        return mx.nd.full((1,) * facts.ndim, x, facts.device, "float64") if type(x) is float else x

    def _trace(self, loss: "CheckedLoss", facts: Facts, inputs: Sequence[Any]) -> None:
        names = [None if x is None else f"data{i}" for i, x in enumerate(inputs)]
        with _TRACING, facts.device, mx.name.Prefix(loss.prefix):
            symbols = [None if name is None else mx.sym.var(name) for name in names]
            out = _without_amp(loss._compute(mx.sym, facts, *symbols))
        self._used = [names.index(name) for name in out.list_inputs()]
        indices = [("data_indices", list(range(len(self._used)))), ("param_indices", [])]
        op = mx.nd.CachedOp(out, indices + sorted(loss._graph_options.items()))
        self._op = op


def own(hybrid_forward: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a `hybrid_forward` of this package, which needs nothing of Gluon's way to call one."""
    hybrid_forward.is_own = True  # type: ignore[attr-defined]
    return hybrid_forward


class CheckedLoss(Loss):
    """A Gluon loss that checks real arrays, lifts dtypes, and may be called in changing ways.

    A member's ``hybrid_forward(self, F, ...)`` names the inputs and hands them to `_loss`. Gluon calls it with Symbols
    where it looks at the graph (infer_shape, optimize_for, export). A user's subclass may override it.

    A call takes two steps. `_loss` sees what the user passes: it checks real arrays, fits the sample weight and
    notes the facts, or knows them from a call of the same kind. ``_compute(F, facts, *inputs)`` lifts dtypes and
    computes, on arrays, in a graph of our own for each value of the facts (hybridized), or with facts None in a graph
    of the user's, where nothing is known.

    A subclass names its array inputs in `_names` and checks them in ``_check(*arrays)``, which returns the inputs
    that count and the frame of the first.
    """

    _names: Tuple[str, ...] = ("pred", "label", "sample_weight")
    _optional: Tuple[str, ...] = ("sample_weight",)
    _alike: Tuple[str, ...] = ("label",)  # the inputs that have the shape of the first
    _numeric: Tuple[str, ...] = ()  # the inputs that may be numbers
    _fixed: Tuple[str, ...] = ()  # the inputs that get no gradient
    _direction = ""
    _reduction = "sum"

    def __init__(self, weight: Optional[float], batch_axis: int, **kwargs: Any) -> None:
        if weight is not None:
            weight = check_number("weight", weight)
        # Not super(): of a loss that stands in for one of Gluon's, that would be the other's, with other arguments.
        Loss.__init__(self, weight, check_axis("batch_axis", batch_axis), **kwargs)
        self._kinds: Dict[Tuple[Any, ...], Facts] = {}
        self._graphs: Dict[Facts, _Graph] = {}
        self._graph_options: Dict[str, Any] = {}
        self._called_with: Optional[List[Any]] = None

    def _check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Frame]:
        raise NotImplementedError

    def _takes_fused(self, device: Any) -> bool:
        """Whether the fused operator is to compute the result."""
        # Under a weight of 0 not even NaN counts, which the operators of MXNet's are made not to see.
        return self._weight != 0 and reaches(device)

    def _compute(self, F: Any, facts: Optional[Facts], *inputs: Any) -> Any:
        if self._takes_fused(None if facts is None else facts.device):
            return self._fused(F, facts, *inputs)
        return self._over_operators(F, facts, *inputs)

    def _fused(self, F: Any, facts: Optional[Facts], *inputs: Any) -> Any:
        """The result from the fused operator."""
        raise NotImplementedError

    def _over_operators(self, F: Any, facts: Optional[Facts], *inputs: Any) -> Any:
        """The same from MXNet's operators."""
        raise NotImplementedError

    def _describe(self) -> str:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()}): {self._direction}"

    def _real(self, *inputs: Any) -> List[Any]:
        """Inputs as legacy arrays, for a look at their values."""
        if check_kinds(self._names, inputs, self._optional, self._numeric):
            raise TypeError(f"{self._names[0]} must be an MXNet array, not a Symbol: a Symbol has no values")
        return [_legacy(x) for x in inputs]

    def _lifted(
        self, F: Any, facts: Optional[Facts], inputs: Sequence[Any], wide: Container[str] = (),
    ) -> List[Any]:
        """The inputs as `lift` does, those named in `wide` in float64; under a weight of 0, ones: finite terms."""
        if self._weight == 0:
            inputs = [F.ones_like(x) if isinstance(x, (NDArray, Symbol)) else x for x in inputs]
        alike = [name in self._alike and isinstance(x, (NDArray, Symbol)) for name, x in zip(self._names, inputs)]
        return lift(F, facts, inputs, alike, [name in wide for name in self._names])

    def _call_fused(
        self, F: Any, facts: Optional[Facts], inputs: Dict[str, Any], scale: float = 1.0, **options: Any,
    ) -> Any:
        """The operator on `inputs` by its names, in our order."""
        options.update(batch_axis=self._batch_axis, reduction=self._reduction,
                       scale=scale if self._weight is None else scale * self._weight)
        fixed = [name for name, own in zip(inputs, self._names) if own in self._fixed]
        if facts is None:
            return fused_in_graph(inputs, fixed, **options)
        grad = [name for name, asked in zip(inputs, facts.recorded) if asked and name not in fixed]
        taken = {name: F.cast(x, dtype=_CARRIED[dtype]) if dtype in _CARRIED else x
                 for (name, x), dtype in zip(inputs.items(), facts.dtypes)}
        for name, asked in zip(inputs, facts.recorded):
            if asked and name in fixed:  # a gradient that the operator leaves unwritten must not be asked of it
                taken[name] = F.BlockGrad(taken[name])
        return fused(F, taken, grad, **options)

    def _axis_of_samples(self, facts: Optional[Facts]) -> Optional[int]:
        """`batch_axis` as `sum_per_sample` takes it."""
        if facts is None:
            return self._batch_axis
        batch_axis = self._batch_axis % facts.ndim
        return None if batch_axis == 0 and facts.ndim == 2 else batch_axis

    def _reduced(
        self, F: Any, facts: Optional[Facts], terms: Any, reduction: str, x: Any = None, weight: Any = None,
        axis: Optional[int] = None, scale: float = 1.0,
    ) -> Any:
        """The terms of each sample reduced, times `scale` and the loss's weight; "row_mean" asks for `x` to `axis`."""
        if self._weight is not None:
            scale *= self._weight
        if reduction == "none":
            return terms if scale == 1 else terms * scale
        long = facts is not None and facts.long
        rows = None if axis is None or reduction != "row_mean" else heard_rows(F, x, weight, axis)
        out = sum_per_sample(F, terms, self._axis_of_samples(facts), reduction == "mean", long, scale, rows)
        return F.cast(out, dtype="float32") if long and facts is not None and "float64" not in facts.dtypes else out

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The loss of the inputs, by position or by name."""
        return Loss.__call__(self, *(self._by_position(inputs, named) if named else inputs))

    def _by_position(self, inputs: Sequence[Any], named: Dict[str, Any]) -> Sequence[Any]:
        """All inputs in the order of the subclass's `forward` or else of `hybrid_forward`, as Gluon passes them on."""
        if type(self).forward is CheckedLoss.forward:
            function, inputs, extra = self.hybrid_forward, (mx.nd, *inputs), 1
        else:
            function, extra = self.forward, 0
        bound = inspect.signature(function).bind_partial(*inputs, **named)
        bound.apply_defaults()
        if bound.kwargs:
            raise TypeError(f"{type(self).__name__} cannot take {next(iter(bound.kwargs))} by name: an input before it "
                            f"is missing, or it is keyword-only, and Gluon passes inputs by position")
        return bound.args[extra:]

    def forward(self, *inputs: Any) -> Any:
        """The loss, by Gluon's own way if a subclass overrides `hybrid_forward`."""
        if not getattr(self.hybrid_forward, "is_own", False):
            return Loss.forward(self, *inputs)
        return self.hybrid_forward(mx.nd, *inputs)

    def _loss(self, *inputs: Any) -> Any:
        """The loss of arrays or Symbols, of which all are given or None."""
        numpy_kind = isinstance(inputs[0], (mx.np.ndarray, mx.sym.np._Symbol))
        legacy = [_legacy(x) for x in inputs]
        kind = _kind(legacy)
        facts = self._kinds.get(kind)
        out = self._first_of_kind(kind, legacy, numpy_kind) if facts is None else self._recorded(legacy, facts)
        return out.as_np_ndarray() if numpy_kind else out

    def _first_of_kind(self, kind: Tuple[Any, ...], inputs: Sequence[Any], numpy_kind: bool) -> Any:
        """The long way, which arrays need not go again: their kind is kept if they pass the checks as they are."""
        if check_kinds(self._names, inputs, self._optional, self._numeric):
            scope = getattr(_BlockScope._current, "value", None)
            # Of Symbols put together by hand shapes may be open, which not every form over MXNet's operators bears.
            compute = self._over_operators if scope is None and not reaches(None) else self._compute
            # A scope of Gluon's that is entered twice is never left.
            with contextlib.nullcontext() if scope is self._scope else self.name_scope():
                return compute(mx.sym, None, *inputs)
        checked, frame = self._check(*inputs)
        if 0 in frame.shape:
            return self._without_rows(checked, frame, numpy_kind)
        here, facts = self._observe(checked, frame)
        if all(map(operator.is_, here, inputs)):
            if len(self._kinds) >= _KINDS:
                self._kinds = {}
            self._kinds[kind] = facts
        return self._recorded(here, facts)

    def _recorded(self, inputs: Sequence[Any], facts: Facts) -> Any:
        """The loss of checked arrays, and what autograd has to know of them."""
        if autograd.is_recording():
            # Of a sample weight, which comes last, the gradient may take longer than the answer.
            learned = True if facts.small else None
            taken = [False if name in self._fixed else learned if dtype in _FLOATS else None
                     for name, dtype in zip(self._names[:-1], facts.dtypes)]
            recorded, inputs = zip(*map(follow, inputs, [*taken, None]))
            facts = facts._replace(recorded=recorded)
        return self._run(inputs, facts)

    def _observe(self, inputs: Sequence[Any], frame: Frame) -> Tuple[Sequence[Any], Facts]:
        """The checked inputs on one device, and what is known of them but for what autograd follows."""
        inputs, device = check_same_place(self._names, inputs)
        dtypes = tuple([None if x is None else _NUMBER if type(x) is float else _DTYPE_NAMES[x.dtype] for x in inputs])
        shape, batch_axis, axis = frame
        weight, size = inputs[-1], math.prod(shape)
        row_weight = weight is None or axis is None or weight.shape[axis] == 1
        return inputs, Facts(len(shape), dtypes, (False,) * len(inputs), row_weight, device,
                             size < SMALL and reaches(device), size > _LONG * shape[batch_axis],
                             axis is not None and shape[axis] == 1)

    def _run(self, inputs: Sequence[Any], facts: Facts) -> Any:
        if not self._active:
            return self._compute(mx.nd, facts, *inputs)
        # The fused operator takes numbers as text, which a graph would hold for ever: without one it is as fast.
        alone = _NUMBER in facts.dtypes and self._takes_fused(facts.device)
        graph = None if alone else self._graphs.get(facts)
        if graph is None:
            self._called_with = [x.shape if isinstance(x, NDArray) else x for x in inputs]
            if alone:
                return self._compute(mx.nd, facts, *inputs)
            for oldest in list(self._graphs)[:len(self._graphs) - _GRAPHS + 1]:
                self._graphs.pop(oldest, None)
            graph = self._graphs.setdefault(facts, _Graph())
        return graph(self, facts, inputs)

    def _without_rows(self, inputs: Sequence[Any], frame: Frame, numpy_kind: bool) -> Any:
        """What no rows give: MXNet's operators would divide by their number."""
        shape, batch_axis, axis = frame
        name = self._names[0]
        if not numpy_kind:
            raise ValueError(f"{name} has shape {shape}, and MXNet takes a 0 there for a length that it does not know "
                             f"yet: pass mx.np arrays, under mx.npx.set_np(), for batches that may be empty")
        if axis is not None and shape[axis] == 0:
            raise ValueError(f"{name} of shape {shape} has no categories along axis {axis}")
        present = [x for x in inputs if isinstance(x, NDArray)]
        dtype = "float64" if any(x.dtype == np.float64 for x in present) else "float32"
        with mx.util.np_shape(True):
            return _NoRows(shape if self._reduction == "none" else (shape[batch_axis],), dtype)(*present)

    def hybridize(self, active: bool = True, *args: Any, **kwargs: Any) -> None:
        """Run as graphs, one for each kind of call, or no longer; arguments as for every Gluon block."""
        super().hybridize(active, *args, **kwargs)
        self._graphs = {}
        self._graph_options = {name: kwargs[name] for name in _GRAPH_OPTIONS if kwargs.get(name) is not None}

    def export(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Write the graph to ``path-symbol.json``; arguments as for every Gluon block, called once before."""
        if self._called_with is not None:
            self._clear_cached_op()
            self._get_graph(*[mx.sym.var("data") if isinstance(x, tuple) else x for x in self._called_with])
            self._cached_op_args: List[Any] = []  # MXNet before 1.9 looks for parameters there; a loss has none
        return super().export(path, *args, **kwargs)

    def __getstate__(self) -> dict:
        """Everything but the graphs, which hold handles that can be neither copied nor pickled."""
        return {**self.__dict__, "_kinds": {}, "_graphs": {}, "_cached_graph": (), "_cached_op": None,
                "_cached_op_args": []}
