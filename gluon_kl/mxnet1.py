"""What differs in the engine of MXNet 1: managers that name Symbols, and `MXLoadLib` with two arguments."""

import itertools

from mxnet.base import _LIB, c_str, check_call, mx_uint
from mxnet.name import NameManager  # gives the same names in a second trace of a graph

_USES = itertools.count()


def load_library(path: str) -> None:
    """Registers an extension. `mx.library.load` would make all of MXNet's functions again, without AMP's wrappers."""
    check_call(_LIB.MXLoadLib(c_str(path), mx_uint(0)))


def tracing() -> bool:
    """Whether operators on arrays are recorded instead of run: never on MXNet 1."""
    return False


def unique_use() -> str:
    """A text that no other use in this graph has, and that is the same in a second trace of the graph."""
    # In each trace, the outermost block enters a new manager, which names the nodes.
    manager = getattr(NameManager._current, "value", None)
    while manager is not None and manager._old_manager is not None and manager._old_manager._old_manager is not None:
        manager = manager._old_manager
    if manager is None or manager._old_manager is None:
        return f"free{next(_USES)}"
    return manager.get(None, "use")
