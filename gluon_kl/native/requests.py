"""What autograd wants of an array, which MXNet tells neither an extension's operator nor Python.

An extension's operator cannot see that a gradient is to be added (``grad_req="add"``) or is not
wanted at all. To guard every array against the first would copy every gradient, so the request is
looked up where MXNet 1.9 keeps it. Where it cannot be found there, it counts as "add": right, and slower.
"""

import ctypes
import functools
import os
import struct
from typing import Any, NamedTuple, Optional, Tuple

import mxnet as mx
from mxnet.base import _LIB

_ADD = 3  # OpReqType::kAddTo


class _Layout(NamedTuple):
    """Offsets in bytes: of the graph node in an array, of the request's holder in a node; and the holder's type."""

    node: int
    holder: int
    kind: int


def follow(x: Any) -> Tuple[bool, Any]:
    """Whether autograd, while it records, may ask for a gradient of this array, and the array to give an operator.

    It may if the array is marked, or computed from such. One whose gradients add up comes behind a
    view: MXNet's own reshape adds, an operator of an extension would not. One that autograd does not
    follow is detached: recording would mark it, until the next backward, like one that it follows.
    """
    if x is None:
        return False, None
    request = _request(x)
    if request is None:
        return False, x.detach()
    return True, x.reshape(x.shape) if request == _ADD else x


def _request(x: Any) -> Optional[int]:
    """The OpReqType of this array's gradient; None if autograd does not follow it."""
    layout = _layout()
    if layout is None:
        return _ADD if _has_gradient_state(x) else None
    node = _word(x.handle.value + layout.node)
    kind = node and _word(node + layout.holder)
    if not kind:
        return None
    if kind != layout.kind:
        return _ADD
    return ctypes.c_int.from_address(_word(node + layout.holder + 8) + 8).value


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def _has_gradient_state(x: Any) -> bool:
    """Ask MXNet whether autograd follows an array, which takes it some microseconds to deny.

    Only such arrays have a gradient state to write; what is written is what was there.
    """
    state = ctypes.c_int()
    _LIB.MXNDArrayGetGradState(x.handle, ctypes.byref(state))
    return _LIB.MXNDArraySetGradState(x.handle, state) == 0


def _node(x: Any) -> int:
    """The address of the graph node of a recorded array: its Symbol's first output's first member."""
    symbol = ctypes.c_void_p()
    mx.base.check_call(_LIB.MXAutogradGetSymbol(x.handle, ctypes.byref(symbol)))
    node = _word(_word(symbol.value or 0))
    mx.base.check_call(_LIB.MXSymbolFree(symbol))
    return node


@functools.lru_cache(maxsize=None)
def _layout() -> Optional[_Layout]:
    """Where an array keeps its node, and the node its request, found by arrays whose request is known.

    The request lies behind a dmlc::any: a word that tells the type, a pointer to {device, request, ...}.
    Candidates are read as a file, which fails where a guess would crash. None if nothing fits.
    """
    requests = {"write": 1, "add": _ADD, "null": 0}
    arrays = [mx.nd.zeros((1,)) for _ in requests]
    for x, request in zip(arrays, requests):
        x.attach_grad(request)
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            nodes = [_node(x) for x in arrays]
            inside = [os.pread(memory.fileno(), 512, x.handle.value) for x in arrays]
            (place,) = [i for i in range(0, 504, 8)
                        if all(struct.unpack_from("Q", words, i)[0] == node for words, node in zip(inside, nodes))]
            inside = [os.pread(memory.fileno(), 256, node) for node in nodes]
            for holder in range(64, 240, 8):
                kinds, pointers = zip(*(struct.unpack_from("QQ", words, holder) for words in inside))
                if kinds[0] and len(set(kinds)) == 1 and len(set(pointers)) == len(arrays) and all(pointers):
                    found = [struct.unpack("iii", os.pread(memory.fileno(), 12, pointer))[2] for pointer in pointers]
                    if found == list(requests.values()):
                        return _Layout(place, holder, kinds[0])
    except (OSError, struct.error, OverflowError, ValueError):
        pass
    return None
