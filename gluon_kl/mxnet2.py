"""What differs in the engine of MXNet 2: traces record operators on arrays, and `MXLoadLib` has three arguments."""

import ctypes
import itertools

from mxnet._deferred_compute import is_deferred_compute  # whether a block is traced
from mxnet.base import _LIB, c_str, check_call, mx_uint

_USES = itertools.count()


def load_library(path: str) -> None:
    """Registers an extension. `mx.library.load` would make all of MXNet's functions again, without AMP's wrappers."""
    library = ctypes.c_void_p()  # MXNet 2 writes a handle here; without it the process dies
    check_call(_LIB.MXLoadLib(c_str(path), mx_uint(0), ctypes.byref(library)))


def tracing() -> bool:
    """Whether operators on arrays are recorded instead of run."""
    return is_deferred_compute()


def unique_use() -> str:
    """A text that no other use in this graph has."""
    return f"free{next(_USES)}"
