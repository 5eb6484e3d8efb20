"""What autograd wants of an array, which MXNet tells neither an extension's operator nor Python.

An extension's operator cannot see that a gradient is to be added (``grad_req="add"``) or is not
wanted at all. To guard every array against the first would copy every gradient, so the request is
looked up where MXNet 1.9 keeps it. Where it cannot be found there, it counts as "add": right, and slower.
"""

import ctypes
import functools
import os
import struct
import threading
from typing import Any, Optional, Tuple

import mxnet as mx
from mxnet.base import _LIB

_ADD = 3  # OpReqType::kAddTo
_LOCK = threading.Lock()


def is_recorded(x: Any) -> bool:
    """Whether autograd, while it records, may ask for a gradient of this array: it is marked, or computed from such."""
    if x is None:
        return False
    # Only arrays that autograd knows have a gradient state to write; what is written is what was there.
    state = ctypes.c_int()
    _LIB.MXNDArrayGetGradState(x.handle, ctypes.byref(state))
    return _LIB.MXNDArraySetGradState(x.handle, state) == 0


def guard(x: Any, recorded: bool) -> Any:
    """An array as an operator of an extension may be given it under autograd.

    One whose gradients add up comes behind a view: MXNet's own reshape adds, the operator would not.
    One that autograd does not follow is detached: recording would mark it, until the next backward,
    like one that it follows.
    """
    if not recorded:
        return x.detach()
    return x.reshape(x.shape) if _adds_up(x) else x


def _adds_up(x: Any) -> bool:
    with _LOCK:
        layout = _layout()
    if layout is None:
        return True
    offset, kind = layout
    node = _node(x)
    if _word(node + offset) != kind:
        return True
    return ctypes.c_int.from_address(_word(node + offset + 8) + 8).value == _ADD


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def _node(x: Any) -> int:
    """The address of the graph node behind a recorded array: its Symbol's first output's first member."""
    symbol = ctypes.c_void_p()
    mx.base.check_call(_LIB.MXAutogradGetSymbol(x.handle, ctypes.byref(symbol)))
    node = _word(_word(symbol.value or 0))
    mx.base.check_call(_LIB.MXSymbolFree(symbol))
    return node


@functools.lru_cache(maxsize=None)
def _layout() -> Optional[Tuple[int, int]]:
    """Where a node keeps its AGInfo, found by its request in arrays whose request is known; None if nowhere.

    An AGInfo lies behind a dmlc::any: a word that tells the type, a pointer to {device, request, ...}.
    Candidates are read as a file, which fails where a guess would crash.
    """
    arrays = [mx.nd.zeros((1,)) for _ in range(4)]
    requests = ("write", "add", "null", "add")
    for x, request in zip(arrays, requests):
        x.attach_grad(request)
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            nodes = [os.pread(memory.fileno(), 256, _node(x)) for x in arrays]
            for offset in range(64, 248, 8):
                kinds, pointers = zip(*(struct.unpack_from("QQ", node, offset) for node in nodes))
                if kinds[0] and len(set(kinds)) == 1 and len(set(pointers)) == 4 and all(pointers):
                    found = [struct.unpack("iii", os.pread(memory.fileno(), 12, pointer))[2] for pointer in pointers]
                    if found == [1, _ADD, 0, _ADD]:
                        return offset, kinds[0]
    except (OSError, struct.error, OverflowError):
        pass
    return None
