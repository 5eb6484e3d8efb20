"""The base classes for Gluon 2, and what only Gluon 2 has: `forward`, which is traced with real arrays."""

import inspect
from typing import Any, Callable, List, Optional, Sequence, Tuple

from gluon_kl import mxnet2
from gluon_kl.base import Road
from gluon_kl.block import LossBlock
from gluon_kl.checks import DTYPE_NAMES, FLOATS

import mxnet as mx
from mxnet.gluon.metric import EvalMetric, alias, check_label_shapes, register

__all__ = ["CheckedLoss", "Metric", "alias", "check_label_shapes", "register"]


class TracedRoad(Road):
    """The path of a call that may be part of a trace."""

    def __call__(self, block: Any, given: Sequence[Any]) -> Any:
        """The loss of arrays; an input that is left out is None."""
        return self.compute_trace(given) if mxnet2.tracing() else super().__call__(block, given)

    def nothing(self, shape: Tuple[int, ...], dtype: str, inputs: Sequence[Any]) -> Any:
        """An empty array of this shape, by operators: MXNet 2 cannot write empty gradients of a Python function."""
        out = mx.np.zeros(shape, dtype=dtype, ctx=inputs[0].context)
        for x in inputs:
            if DTYPE_NAMES[x.dtype] in FLOATS:
                out = out + (x.as_np_ndarray() * mx.np.zeros_like(x.as_np_ndarray())).astype(dtype).sum()
        return out.as_nd_ndarray()


def _forward(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A member's `forward`, made from its `_loss`, whose first argument is Gluon 1's F."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of arrays, for subclasses that override this method."""
        return loss(self, mx.nd, *args, **kwargs)

    signature = inspect.signature(loss)
    parameters = [x for x in signature.parameters.values() if x.name != "F"]
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return forward


class CheckedLoss(LossBlock):
    """A loss whose `forward` a subclass may override."""

    _road_type = TracedRoad

    def __init__(self, weight: Optional[float], batch_axis: int, **kwargs: Any) -> None:
        for name in ("prefix", "params"):
            if kwargs.pop(name, None) is not None:
                raise TypeError(f"{name} must be None: blocks of Gluon 2 do not take it")
        super().__init__(weight, batch_axis, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_loss" in cls.__dict__:
            cls.forward = _forward(cls.__dict__["_loss"])

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The loss of the inputs, by position or by name.

        This replaces HybridBlock's method, which refuses mx.nd arrays and makes one graph for all shapes and dtypes.
        """
        for hook in self._forward_pre_hooks.values():
            hook(self, inputs)
        out = self.forward(*inputs, **named)
        for hook in self._forward_hooks.values():
            hook(self, inputs, out)
        return out

    def of_symbols(self, inputs: Sequence[Any]) -> Any:
        """The loss in a graph that is made by hand from Symbols."""
        return self._road.compute_symbols(inputs, traced=False)

    def names_of_nodes(self) -> Any:
        """The scope in which our own graph is traced."""
        return mx.name.NameManager()

    def export(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Write the graph to ``path-symbol.json`` after a first call; the arguments are those of every Gluon block."""
        if self._called_with is not None:
            self._clear_cached_op()
            # Unlike dtypes, because a graph that was traced with one dtype may not serve others.
            dtypes = ["float16"] + ["float32"] * len(self._called_with)
            self._get_graph(*[mx.np.ones(x, dtype=dtype) if isinstance(x, tuple) else x
                              for x, dtype in zip(self._called_with, dtypes)])
            self._cached_op_args: List[Any] = []
        return super().export(path, *args, **kwargs)


class Metric(EvalMetric):
    """A metric with Gluon 1's local and global values, which Gluon 2's metrics lack."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.global_num_inst, self.global_sum_metric = 0, 0.0

    def reset_local(self) -> None:
        """Forget what was added since the last such call; the global value stays."""
        self.num_inst, self.sum_metric = 0, 0.0
