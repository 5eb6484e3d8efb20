"""What the losses share as blocks on Gluon 1 and 2: arguments as text, their own graphs, copies and pickles."""

from typing import Any, List, Optional, Sequence, Tuple

from gluon_kl.base import Road
from gluon_kl.checks import Frame, check_axis, check_number
from gluon_kl.description import Description
from gluon_kl.graphs import OPTIONS, GraphStore

from mxnet.gluon.loss import Loss
from mxnet.ndarray import NDArray


class LossBlock(Loss):
    """A Gluon loss that checks real arrays, lifts dtypes, and may be called in changing ways.

    A member's ``_loss(self, F, ...)`` names the inputs and passes them to `_road`. The base class of each Gluon
    (gluon1.py, gluon2.py) turns it into the method that Gluon calls, which a user's subclass may override.
    ``_description()`` says what the loss computes.
    """

    _direction = ""
    _road: Road
    _road_type = Road
    _own_graphs: Optional[GraphStore] = None
    _called_with: Optional[List[Any]] = None

    def __init__(self, weight: Optional[float], batch_axis: int, **kwargs: Any) -> None:
        if weight is not None:
            weight = check_number("weight", weight)
        # Not super(): for KLDivLoss that is Gluon's own KLDivLoss, which has other arguments.
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
        """Make the loss ready for calls: the last line of a member's `__init__`."""
        self._road = self._road_type(self._description())

    @property
    def _names(self) -> Tuple[str, ...]:
        return self._road.description.names

    def _real(self, *inputs: Any) -> List[Any]:
        """The inputs as legacy arrays, whose values can be read."""
        return self._road.real(*inputs)

    def _check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Frame]:
        """The checked inputs, and the frame of the first."""
        return self._road.description.check(*arrays)

    def graph_store(self) -> GraphStore:
        """Where the graphs of the hybridized loss are kept."""
        if self._own_graphs is None:
            self._own_graphs = GraphStore({})
        return self._own_graphs

    def note_call(self, inputs: Sequence[Any]) -> None:
        """Remember the inputs of a call, for export."""
        self._called_with = [x.shape if isinstance(x, NDArray) else x for x in inputs]

    def hybridize(self, active: bool = True, *args: Any, **kwargs: Any) -> None:
        """Start or stop to run as graphs, one for each kind of call; the arguments are those of every Gluon block."""
        super().hybridize(active, *args, **kwargs)
        self._own_graphs = GraphStore({name: kwargs[name] for name in OPTIONS if kwargs.get(name) is not None})

    def __getstate__(self) -> dict:
        """Everything except the graphs, which hold handles that can be neither copied nor pickled."""
        return {**self.__dict__, "_road": None, "_own_graphs": None, "_cached_graph": (), "_cached_op": None,
                "_cached_op_args": []}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._set_out()
