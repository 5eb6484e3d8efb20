"""The two worlds in which a loss is computed, with one interface: what is known there, and what follows from it.

For real arrays, and in our own graphs, everything but the values is known: `Known`. In a user's graph nothing is known:
`UsersGraph`. Descriptions call a world without asking which one it is.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from gluon_kl import lifting
from gluon_kl.autograd import fused_in_users_graph, top_k_in_users_graph
from gluon_kl.checks import DTYPE_NAMES
from gluon_kl.compact import axis_last
from gluon_kl.native import fused, supports_device, top_k
from gluon_kl.operators import Rows, more_than_one, total

from mxnet.ndarray import NDArray

_STAND_INS = {"bool": "uint8", "bfloat16": "float32", "int16": "int32", "uint16": "int32", "uint32": "int64",
              "uint64": "int64"}  # dtypes that an extension's operator cannot take, and their replacements


class Known(NamedTuple):
    """What is known of real arrays. It is also the key of a graph, which is used for all calls with the same key."""

    ndim: int
    dtypes: Tuple[Optional[str], ...]  # of each input; "number" for a number, None for an input that is left out
    gradients: Tuple[bool, ...]  # whether autograd may ask for a gradient of each input, also of those left out
    row_weight: bool  # sample_weight, if there is one, has one number per row along the axis
    device: Any
    fused: bool  # the fused operator computes the result
    small: bool  # it does so, and there are fewer elements than native.SMALL
    long: bool  # a sample has so many terms that MXNet's fast sum in float32 is wrong
    single_category: bool

    @property
    def in_float32(self) -> bool:
        """Whether the result is in float32, so that arithmetic in float64 gives all its digits."""
        return "float64" not in self.dtypes

    @property
    def two_axes(self) -> bool:
        """Whether the first input is known to have two axes."""
        return self.ndim == 2

    @property
    def lifts_to_float32(self) -> bool:
        """Whether `lifted` is known to give float32, except for what is `wide`."""
        return self.in_float32

    @property
    def infers_shapes(self) -> bool:
        """Whether the shapes are left to MXNet's inference, which will find all of them."""
        return False

    def lifted(self, F: Any, inputs: Sequence[Any], same_shape: Sequence[bool], wide: Sequence[bool]) -> List[Any]:
        """The inputs in one floating dtype, those that are `wide` in float64; numbers as arrays."""
        targets = ["float64" if own or not self.in_float32 else "float32" for own in wide]
        return lifting.lift_known(F, inputs, self.dtypes, targets)

    def rows(self, F: Any, pred: Any, weight: Any, axis: int, batch_axis: int, exact: bool) -> Rows:
        """What is known of the rows along `axis`: whether they are summed whole, each under one weight."""
        return Rows(self.row_weight and (axis - batch_axis) % self.ndim != 0, self.single_category)

    def rows_of_samples(self, weight: Any) -> Rows:
        """The same if no sum goes over more than a row, or if `axis` is known not to be that of the samples."""
        return Rows(self.row_weight, self.single_category)

    def batch_axis(self, batch_axis: int) -> Optional[int]:
        """`batch_axis` as `sum_per_sample` takes it."""
        axis = batch_axis % self.ndim
        return None if axis == 0 and self.ndim == 2 else axis

    def from_end(self, axis: int) -> int:
        """`axis`, counted from the last one if that is possible."""
        return axis if axis < 0 else axis - self.ndim

    def in_result_dtype(self, F: Any, out: Any) -> Any:
        """The sum of a sample in the dtype of the result."""
        return F.cast(out, dtype="float32") if self.long and self.in_float32 else out

    def broadcast(self, F: Any, x: Any, like: Any) -> Any:
        """`x`, which the checks have already broadcast to `like`."""
        return x

    def fill_fused(self, x: Any, like: Any) -> Any:
        """The same for the fused operator."""
        return x

    def narrowed(self, F: Any, column: Any, like: Any) -> Any:
        """A column in float64 without a gradient, cast to the dtype that `lifted` gave to `like`."""
        return F.cast(column, dtype="float32") if self.in_float32 else column

    def with_inputs(self, *positions: Optional[int]) -> "Known":
        """What is known of the inputs at these positions; None stands for an input that is left out."""
        return self._replace(dtypes=tuple([None if i is None else self.dtypes[i] for i in positions]),
                             gradients=tuple([i is not None and self.gradients[i] for i in positions]))

    def call_fused(self, F: Any, inputs: Dict[str, Any], no_grad: Sequence[str], options: Dict[str, Any]) -> Any:
        """The fused operator of these inputs, by its own names for them, each in a dtype that it takes."""
        asked = [name for name, wanted in zip(inputs, self.gradients) if wanted]
        inputs = {name: F.cast(x, dtype=_STAND_INS[dtype]) if dtype in _STAND_INS else x
                  for (name, x), dtype in zip(inputs.items(), self.dtypes)}
        for name in no_grad:
            if name in asked:  # autograd must not ask for a gradient that the operator does not write
                inputs[name] = F.BlockGrad(inputs[name])
        return fused(F, inputs, [name for name in asked if name not in no_grad], **options)

    def call_top_k(self, F: Any, inputs: Dict[str, Any], axis: int, **options: Any) -> Any:
        """The operator for a stored teacher: a loss for each row, with length 1 along the axis."""
        last = self.from_end(axis)
        given = {name: axis_last(F, F.cast(x, dtype=_STAND_INS[dtype]) if dtype in _STAND_INS else x, last)
                 for (name, x), dtype in zip(inputs.items(), self.dtypes)}
        given.update({name: F.BlockGrad(given[name])
                      for name, wanted in zip(inputs, self.gradients) if wanted and name != "pred"})
        return axis_last(F, top_k(F, given, **options), last)


class UsersGraph:
    """A graph that a user's program makes, of Symbols, or of traced arrays, which stand for arrays of any shape."""

    in_float32 = small = long = row_weight = two_axes = lifts_to_float32 = False
    gradients: Sequence[bool] = (True,) * 9

    def __init__(self, traced: bool, device: Any = None) -> None:
        self._device = device
        self.infers_shapes = traced  # MXNet finds all shapes of Gluon's traces; graphs made by hand may lack some

    @property
    def fused(self) -> bool:
        """Whether the fused operator may be used; the device of Symbols is not known."""
        return supports_device(self._device)

    def lifted(self, F: Any, inputs: Sequence[Any], same_shape: Sequence[bool], wide: Sequence[bool]) -> List[Any]:
        """The inputs in one floating dtype; numbers as arrays."""
        return lifting.lift_unknown(F, inputs, same_shape)

    def rows(self, F: Any, pred: Any, weight: Any, axis: int, batch_axis: int, exact: bool) -> Rows:
        """What is known of the rows; if it depends on the rank and must be `exact`, the graph finds out."""
        if weight is not None:
            return Rows()
        if (axis < 0) == (batch_axis < 0):
            return Rows(axis != batch_axis)
        # One of the two counts from the back: at one rank they are the same axis. (One category has nothing to lose.)
        return Rows(more_than_one(F, pred, axis, batch_axis)) if exact else Rows()

    def rows_of_samples(self, weight: Any) -> Rows:
        """The same if no sum goes over more than a row, or if `axis` is known not to be that of the samples."""
        return Rows(weight is None)

    def batch_axis(self, batch_axis: int) -> Optional[int]:
        """`batch_axis` as `sum_per_sample` takes it."""
        return batch_axis

    def from_end(self, axis: int) -> int:
        """`axis`, counted from the last one if that is possible."""
        return axis

    def in_result_dtype(self, F: Any, out: Any) -> Any:
        """The sum of a sample, which has the dtype of the terms."""
        return out

    def broadcast(self, F: Any, x: Any, like: Any) -> Any:
        """`x` in the shape of `like`; None stays None."""
        return x if x is None else F.broadcast_like(x, like)

    def fill_fused(self, x: Any, like: Any) -> Any:
        """The same for the fused operator; dtypes stay as they are."""
        return x if x is None else lifting.fill_like(x, like)

    def narrowed(self, F: Any, column: Any, like: Any) -> Any:
        """A column in float64, without a gradient, in the dtype of `like`."""
        zero = F.zeros_like(F.slice(like, begin=(0, 0), end=(1, 1)))
        return F.reshape_like(lifting.narrowed(F, column, zero), column)

    def with_inputs(self, *positions: Optional[int]) -> "UsersGraph":
        """The same world: as little is known of some inputs as of all."""
        return self

    def call_fused(self, F: Any, inputs: Dict[str, Any], no_grad: Sequence[str], options: Dict[str, Any]) -> Any:
        """The fused operator of these inputs, by its own names for them."""
        return fused_in_users_graph(F, inputs, no_grad, **options)

    def call_top_k(self, F: Any, inputs: Dict[str, Any], axis: int, **options: Any) -> Any:
        """The operator for a stored teacher: a loss for each row, with length 1 along the axis."""
        given = {name: axis_last(F, x, axis) for name, x in inputs.items()}
        return axis_last(F, top_k_in_users_graph(F, given, options), axis)


class Trace(UsersGraph):
    """A trace of arrays, some of them logits along `axis` unless that is None. The graph also runs with other shapes.

    The graph is shorter if the first call has several categories and several axes, and one dtype. MXNet then raises an
    error in a later call that has one, or another dtype.
    """

    def __init__(self, device: Any, shape: Sequence[int], axis: Optional[int], batch_axis: int, summed: bool) -> None:
        super().__init__(True, device)
        self._axis = axis
        self._summed = summed  # whether the result is much smaller than the inputs
        self._zero: Any = None  # of one element, from operators that fail where the graph must not be run
        self._single = False if axis is not None and shape[axis] > 1 else None
        # One counts from the front, the other from the back: they are the same if there is one axis.
        self._apart = len(shape) > 1 and {axis, batch_axis} == {0, -1}

    def lifted(self, F: Any, inputs: Sequence[Any], same_shape: Sequence[bool], wide: Sequence[bool]) -> List[Any]:
        """The inputs in one floating dtype, and numbers as arrays."""
        dtypes = {DTYPE_NAMES[x.dtype] for x in inputs if isinstance(x, NDArray)}
        # A loss of two parts lifts twice: what is known holds for the part, and both parts are guarded.
        self.lifts_to_float32 = False
        if self.fused or not self._summed or dtypes not in ({"float32"}, {"float64"}):
            return lifting.lift_unknown(F, inputs, same_shape, self._guard)
        self.lifts_to_float32 = dtypes == {"float32"}
        zero = lifting.zero_of_dtype(F, [self._part(F, inputs[0]), *inputs[1:]], *dtypes)
        self._zero = zero if self._zero is None else lifting.added(self._zero, zero)
        return lifting.tied(F, inputs, same_shape)

    def guarded(self, out: Any) -> Any:
        """The result of the graph, which must not be run for other dtypes, or fewer categories and axes."""
        return out if self._zero is None else lifting.added(out, self._zero)

    def _guard(self, F: Any, zeros: Any) -> Any:
        """The zeros, which must have several categories and axes where the first call had them."""
        if self._single is None and not self._apart:
            return zeros
        part = self._part(F, zeros)
        # Not the sum itself, because it takes oneDNN sixty times as long to add one number as to add a row.
        row = F.broadcast_like(total(part), F.slice(zeros, begin=(0,), end=(1,)))
        return F.broadcast_add(zeros, row)

    def _part(self, F: Any, x: Any) -> Any:
        """A part of `x` that only arrays with several categories and axes have, where the first call had them."""
        part = F.slice_axis(x, axis=self._axis, begin=1, end=2) if self._single is False else x
        return F.slice(part, begin=(0, 0), end=(1, 1)) if self._apart else part

    def rows(self, F: Any, pred: Any, weight: Any, axis: int, batch_axis: int, exact: bool) -> Rows:
        """What is known of the rows."""
        if self._apart and weight is None:
            return Rows(True, self._single)
        return super().rows(F, pred, weight, axis, batch_axis, exact)._replace(single=self._single)

    def rows_of_samples(self, weight: Any) -> Rows:
        """The same if no sum goes over more than a row, or if `axis` is known not to be that of the samples."""
        return super().rows_of_samples(weight)._replace(single=self._single)


TRACED, BY_HAND = UsersGraph(True), UsersGraph(False)
