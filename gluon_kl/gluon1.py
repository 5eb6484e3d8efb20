"""The base classes for Gluon 1, and what only Gluon 1 has: Symbols, `hybrid_forward`, scopes, `prefix`, `params`."""

import contextlib
import inspect
from typing import Any, Dict, List, Sequence

from gluon_kl.block import LossBlock

import mxnet as mx
from mxnet.gluon.block import _BlockScope  # whether Gluon traces, and whether the scope of a block is open
from mxnet.gluon.loss import Loss
from mxnet.metric import EvalMetric, alias, check_label_shapes, register

__all__ = ["CheckedLoss", "Metric", "alias", "check_label_shapes", "register"]


class CheckedLoss(LossBlock):
    """A loss with a `hybrid_forward`, which Gluon calls with Symbols to trace it, and which a subclass may override."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_loss" in cls.__dict__:
            cls.hybrid_forward = cls._loss

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
        """The loss; if a subclass overrides `hybrid_forward`, Gluon's own `forward` calls that."""
        if type(self).hybrid_forward is not type(self)._loss:
            return Loss.forward(self, *inputs)
        return self.hybrid_forward(mx.nd, *inputs)

    def of_symbols(self, inputs: Sequence[Any]) -> Any:
        """The loss in a graph that Gluon traces, or that is made by hand from Symbols."""
        scope = getattr(_BlockScope._current, "value", None)
        # If a scope of Gluon's is entered twice, it is never left.
        with contextlib.nullcontext() if scope is self._scope else self.name_scope():
            return self._road.compute_symbols(inputs, traced=scope is not None)

    def names_of_nodes(self) -> Any:
        """The scope in which our own graph is traced."""
        return mx.name.Prefix(self.prefix)

    def export(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Write the graph to ``path-symbol.json`` after a first call; the arguments are those of every Gluon block."""
        if self._called_with is not None:
            self._clear_cached_op()
            self._get_graph(*[mx.sym.var("data") if isinstance(x, tuple) else x for x in self._called_with])
            self._cached_op_args: List[Any] = []  # MXNet before 1.9 looks for parameters there; a loss has none
        return super().export(path, *args, **kwargs)


class Metric(EvalMetric):
    """A metric with a local value, since the last reset, and a global one, since the start."""

    def __init__(self, name: str, output_names: Any, label_names: Any, **arguments: Any) -> None:
        super().__init__(name, output_names, label_names, has_global_stats=True, **arguments)
