"""The front door of Gluon 1, and all that it alone has: Symbols, `hybrid_forward`, scopes, `prefix` and `params`."""

import contextlib
import inspect
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from gluon_kl import mxnet_private
from gluon_kl.base import Road
from gluon_kl.checks import Frame, check_axis, check_number
from gluon_kl.description import Description
from gluon_kl.graphs import OPTIONS, GraphStore

import mxnet as mx
from mxnet.gluon.loss import Loss
from mxnet.ndarray import NDArray


def own(hybrid_forward: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a `hybrid_forward` of this package, which needs nothing of Gluon's way to call one."""
    hybrid_forward.is_own = True  # type: ignore[attr-defined]
    return hybrid_forward


class CheckedLoss(Loss):
    """A Gluon loss that checks real arrays, lifts dtypes, and may be called in changing ways.

    A member's ``hybrid_forward(self, F, ...)`` names the inputs and hands them to `_road`. Gluon calls it with Symbols
    where it looks at the graph (infer_shape, optimize_for, export). A user's subclass may override it. What it computes
    says ``_description()``.
    """

    _direction = ""
    _road: Road
    _own_graphs: Optional[GraphStore] = None
    _called_with: Optional[List[Any]] = None

    def __init__(self, weight: Optional[float], batch_axis: int, **kwargs: Any) -> None:
        if weight is not None:
            weight = check_number("weight", weight)
        # Not super(): of a loss that stands in for one of Gluon's, that would be the other's, with other arguments.
        Loss.__init__(self, weight, check_axis("batch_axis", batch_axis), **kwargs)

    def _description(self) -> Description:
        """What the loss computes."""
        raise NotImplementedError

    def _describe(self) -> str:
        """The arguments, as text."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()}): {self._direction}"

    def _set_out(self) -> None:
        """Ready for calls: the last line of a member's `__init__`."""
        self._road = Road(self._description())

    @property
    def _names(self) -> Tuple[str, ...]:
        return self._road.description.names

    def _real(self, *inputs: Any) -> List[Any]:
        """Inputs as legacy arrays, for a look at their values."""
        return self._road.real(*inputs)

    def _check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Frame]:
        """The checked inputs, and how the first is laid out."""
        return self._road.description.check(*arrays)

    # A call

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

    def of_symbols(self, inputs: Sequence[Any]) -> Any:
        """The loss in a graph that Gluon traces, or of Symbols put together by hand."""
        scope = mxnet_private.current_scope()
        # A scope of Gluon's that is entered twice is never left.
        with contextlib.nullcontext() if scope is self._scope else self.name_scope():
            return self._road.compute_symbols(inputs, traced=scope is not None)

    # Graphs

    def graph_store(self) -> GraphStore:
        """Where the graphs of the hybridized loss are kept."""
        if self._own_graphs is None:
            self._own_graphs = GraphStore({})
        return self._own_graphs

    def note_call(self, inputs: Sequence[Any]) -> None:
        """Remember how the loss is called, for export."""
        self._called_with = [x.shape if isinstance(x, NDArray) else x for x in inputs]

    def hybridize(self, active: bool = True, *args: Any, **kwargs: Any) -> None:
        """Run as graphs, one for each kind of call, or no longer; arguments as for every Gluon block."""
        super().hybridize(active, *args, **kwargs)
        self._own_graphs = GraphStore({name: kwargs[name] for name in OPTIONS if kwargs.get(name) is not None})

    def export(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Write the graph to ``path-symbol.json``; arguments as for every Gluon block, called once before."""
        if self._called_with is not None:
            self._clear_cached_op()
            self._get_graph(*[mx.sym.var("data") if isinstance(x, tuple) else x for x in self._called_with])
            self._cached_op_args: List[Any] = []  # MXNet before 1.9 looks for parameters there; a loss has none
        return super().export(path, *args, **kwargs)

    def __getstate__(self) -> dict:
        """Everything but the graphs, which hold handles that can be neither copied nor pickled."""
        return {**self.__dict__, "_road": None, "_own_graphs": None, "_cached_graph": (), "_cached_op": None,
                "_cached_op_args": []}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._set_out()
