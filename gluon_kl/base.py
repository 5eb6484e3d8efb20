"""The path of a call, from top to bottom: arrays, checks, key, run."""

import math
import operator
from typing import Any, Dict, List, Sequence, Tuple

from gluon_kl import mxnet_private
from gluon_kl.autograd import NoRows, prepare_for_autograd
from gluon_kl.checks import DTYPE_NAMES, FLOATS, Frame, as_float, check_kinds, is_number
from gluon_kl.description import Description
from gluon_kl.native import SMALL, supports_device
from gluon_kl.worlds import BY_HAND, TRACED, Known, Trace

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.ndarray import NDArray

MAX_KEYS = 256  # keys that a loss remembers, about 1 KB each; bounded, because a program may call it in ever new ways
_LENT = ("cpu_shared", "cpu_pinned")  # memory of a DataLoader, which works like any other memory of the CPU
_LONG = 1 << 14  # terms of a sample: with more, MXNet's fast sum in float32 is off by more than 1e-6


class Road:
    """Takes the calls of one loss. It remembers which calls passed the checks, so that similar calls skip them."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self.keys: Dict[Tuple[Any, ...], Known] = {}

    def __call__(self, block: Any, given: Sequence[Any]) -> Any:
        """The loss of arrays or Symbols; an input that is left out is None."""
        numpy_kind = isinstance(given[0], (mx.np.ndarray, mxnet_private.NumpySymbol))
        inputs: List[Any] = []
        kind: List[Any] = []  # all that the checks depend on, if each input is an array, a float or None
        for x in given:
            if x is not None and type(x) is not NDArray:
                x = as_legacy(x)
            if type(x) is NDArray:
                place = x.context
                kind.append((x.shape, x.dtype, place.device_typeid, place.device_id))
            else:
                kind.append(type(x))
            inputs.append(x)
        key = self.keys.get(tuple(kind))
        if key is not None:
            out = self.run(block, inputs, key)
        elif check_kinds(self.description.names, inputs, self.description.optional, self.description.numeric):
            out = block.of_symbols(inputs)
        else:
            out = self._first_of_kind(block, tuple(kind), inputs, numpy_kind)
        return out.as_np_ndarray() if numpy_kind else out

    def _first_of_kind(self, block: Any, kind: Tuple[Any, ...], inputs: Sequence[Any], numpy_kind: bool) -> Any:
        """Check the inputs and run. The key is kept if the checks return the inputs unchanged."""
        checked, frame = self.description.check(*inputs)
        if 0 in frame.shape:
            return self._without_rows(checked, frame, numpy_kind)
        here, device = in_one_place(self.description.names, checked)
        key = self.key_of(here, frame, device)
        if all(map(operator.is_, here, inputs)):
            if len(self.keys) >= MAX_KEYS:
                self.keys = {}
            self.keys[kind] = key
        return self.run(block, here, key)

    def key_of(self, inputs: Sequence[Any], frame: Frame, device: Any) -> Known:
        """What is known of the checked inputs, except which of them autograd follows."""
        dtypes = tuple([None if x is None else "number" if type(x) is float else DTYPE_NAMES[x.dtype] for x in inputs])
        shape, batch_axis, axis = frame
        weight, size = inputs[-1], math.prod(shape)
        fits = supports_device(device)
        return Known(
            ndim=len(shape), dtypes=dtypes, gradients=(False,) * len(inputs),
            row_weight=weight is None or axis is None or weight.shape[axis] == 1, device=device,
            fused=fits and self.description.weight != 0, small=size < SMALL and fits,
            long=size > _LONG * shape[batch_axis], single_category=axis is not None and shape[axis] == 1)

    def run(self, block: Any, inputs: Sequence[Any], key: Known) -> Any:
        """The loss of checked arrays, prepared for autograd, eagerly or by a graph."""
        if autograd.is_recording():
            # The sample weight comes last. Its gradient may take longer than asking whether it is needed.
            follow = True if key.small else None
            known = [False if name in self.description.no_grad_inputs else follow if dtype in FLOATS else None
                     for name, dtype in zip(self.description.names[:-1], key.dtypes)]
            gradients, inputs = prepare_for_autograd(inputs, [*known, None])
            key = key._replace(gradients=gradients)
        # The fused operator takes numbers as text, which would be fixed in a graph. Without a graph it is as fast.
        number = key.fused and "number" in key.dtypes
        if block._active and number:
            block.note_call(inputs)
        if block._active and not number:
            return block.graph_store().run(block, self.compute, key, inputs)
        return (self.description.over_fused if key.fused else self.description.over_operators)(mx.nd, key, *inputs)

    def compute(self, F: Any, world: Any, inputs: Sequence[Any]) -> Any:
        """The loss of arrays or Symbols, by the fused operator if the world allows it."""
        # weight=0 must hide NaN, which only the formulas with MXNet's operators guarantee.
        fused = self.description.weight != 0 and world.fused
        return (self.description.over_fused if fused else self.description.over_operators)(F, world, *inputs)

    def compute_symbols(self, inputs: Sequence[Any], traced: bool) -> Any:
        """The loss in a user's graph."""
        return self.compute(mx.sym, TRACED if traced else BY_HAND, inputs)

    def compute_trace(self, given: Sequence[Any]) -> Any:
        """The loss of traced arrays: the graph will be used for arrays of other shapes and dtypes."""
        inputs = self.real(*given)
        checked, frame = self.description.check(*inputs)
        self._check_categories(frame)
        _, device = in_one_place(self.description.names, checked)
        world = Trace(device, frame.shape, self.description.scores_axis, self.description.batch_axis,
                      self.description.reduction != "none")
        out = world.guarded(self.compute(mx.nd, world, self.description.with_all_axes(inputs, checked)))
        return out.as_np_ndarray() if isinstance(given[0], mx.np.ndarray) else out

    def real(self, *inputs: Any) -> List[Any]:
        """The inputs as legacy arrays, whose values can be read."""
        names = self.description.names
        if check_kinds(names, inputs, self.description.optional, self.description.numeric):
            raise TypeError(f"{names[0]} must be an MXNet array, not a Symbol: a Symbol has no values")
        return [as_legacy(x) for x in inputs]

    def _without_rows(self, inputs: Sequence[Any], frame: Frame, numpy_kind: bool) -> Any:
        """The result for inputs without rows; MXNet's operators would divide by the number of rows."""
        name = self.description.names[0]
        if not numpy_kind:
            raise ValueError(f"{name} has shape {frame.shape}, and MXNet reads a 0 there as an unknown length: for "
                             f"batches that may be empty, pass mx.np arrays, under mx.npx.set_np()")
        self._check_categories(frame)
        present = [x for x in inputs if isinstance(x, NDArray)]
        dtype = "float64" if any(x.dtype == np.float64 for x in present) else "float32"
        with mx.util.np_shape(True):
            return self.nothing(self.description.result_shape(frame), dtype, present)

    def _check_categories(self, frame: Frame) -> None:
        shape, _, axis = frame
        if axis is not None and shape[axis] == 0:
            raise ValueError(f"{self.description.names[0]} of shape {shape} has no categories along axis {axis}")

    def nothing(self, shape: Tuple[int, ...], dtype: str, inputs: Sequence[Any]) -> Any:
        """An empty array of this shape, with gradients of 0 to all inputs."""
        return NoRows(shape, dtype)(*inputs)


def as_legacy(x: Any) -> Any:
    """An mx.np array or Symbol as one of mx.nd or mx.sym that shares its memory and gradient; a number as a float."""
    if isinstance(x, (mx.np.ndarray, mxnet_private.NumpySymbol)):
        return x.as_nd_ndarray()
    return as_float(x) if is_number(x) else x


def in_one_place(names: Sequence[str], inputs: Sequence[Any]) -> Tuple[Tuple[Any, ...], Any]:
    """The inputs on one device, and that device; an error if they are on several.

    All kinds of CPU memory count as one device: arrays of a DataLoader's workers are copied.
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
