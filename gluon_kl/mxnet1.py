"""What only the engine of MXNet 1 has: names of Symbols that are given by a manager, extensions of two arguments."""

import itertools

from mxnet.base import _LIB, c_str, check_call, mx_uint
from mxnet.name import NameManager  # names that a second trace of a graph has again

_USES = itertools.count()


def load_library(path: str) -> None:
    """Registers an extension. `mx.library.load` makes every function of MXNet's anew, and AMP's wrappers are gone."""
    check_call(_LIB.MXLoadLib(c_str(path), mx_uint(0)))


def tracing() -> bool:
    """Whether operators on arrays are recorded instead of run: never."""
    return False


def unique_use() -> str:
    """A text that no other use in the graph at hand has, and that a second trace of the same graph has again."""
    # Gluon names what it traces by a manager that the outermost block enters, anew for each trace.
    manager = getattr(NameManager._current, "value", None)
    while manager is not None and manager._old_manager is not None and manager._old_manager._old_manager is not None:
        manager = manager._old_manager
    if manager is None or manager._old_manager is None:
        return f"free{next(_USES)}"
    return manager.get(None, "use")
