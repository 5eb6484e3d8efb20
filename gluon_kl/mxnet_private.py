"""Every name of MXNet's that is not public and that the package leans on, with the reason for it."""

import ctypes
import functools
from typing import Any, Callable

from gluon_kl import _mxnet

import mxnet as mx
from mxnet.base import (
    _LIB,  # what has no Python name: gradient states, shallow copies, casts of AMP's to remove, extensions to load
    NDArrayHandle,
    OpHandle,
    SymbolHandle,
    c_str,
    check_call,
)
from mxnet.ndarray import NDArray
from mxnet.ndarray.register import _make_ndarray_function  # operators on arrays without what AMP wraps around them
from mxnet.symbol.register import _make_symbol_function  # the same on Symbols

if _mxnet.GLUON_2:
    from gluon_kl import mxnet2 as engine
else:
    from gluon_kl import mxnet1 as engine  # type: ignore[no-redef]

load_library, tracing, unique_use = engine.load_library, engine.tracing, engine.unique_use

# What a block of Gluon's has beside its public members, for block.py, gluon1.py, gluon2.py, base.py and graphs.py.
BLOCK_MEMBERS = {
    "_weight": "the factor, and",
    "_batch_axis": "the axis of the samples, as Gluon's Loss keeps them",
    "_active": "whether it is hybridized",
    "_scope": "the scope that it opens, which must not be entered twice",
    "_callback": "what a user wants called with each result of an operator",
    "_monitor_all": "whether with the inputs too",
    "_cached_graph": "the graph that export writes, which cannot be copied or pickled",
    "_cached_op": "the same, made to run",
    "_cached_op_args": "the parameters of that, where export of MXNet before 1.9 looks for them",
    "_clear_cached_op": "forgets both, so that export traces the loss anew",
    "_get_graph": "traces the loss, as Gluon's infer_shape and optimize_for do",
    "_forward_pre_hooks": "what a user wants called before a call, and",
    "_forward_hooks": "after it, which a `__call__` of our own has to call",
}

NumpySymbol = mx.sym.np._Symbol  # the type of a Symbol of mx.np's kind, which has no public name


def operator_handle(name: str) -> OpHandle:
    """The operator that MXNet has registered under this name."""
    handle = OpHandle()
    check_call(_LIB.NNGetOpHandle(c_str(name), ctypes.byref(handle)))
    return handle


def array_function(name: str) -> Callable[..., Any]:
    """The function of an operator on arrays, without what AMP has put around MXNet's own."""
    return _make_ndarray_function(operator_handle(name), name, name)


def symbol_function(name: str) -> Callable[..., Any]:
    """The function of an operator on Symbols, without what AMP has put around MXNet's own."""
    return _make_symbol_function(operator_handle(name), name, name)


def shallow_copy(x: NDArray) -> NDArray:
    """Another array of the same memory, which autograd follows if it follows `x`: `detach` would cut it off."""
    handle = NDArrayHandle()
    check_call(_LIB.MXShallowCopyNDArray(x.handle, ctypes.byref(handle)))
    return NDArray(handle)


def is_followed(x: NDArray) -> bool:
    """Whether autograd follows this array: MXNet has no other way to ask without a gradient buffer."""
    # Only arrays that autograd follows have a gradient state to write; what is written is what was there.
    state = ctypes.c_int()
    _LIB.MXNDArrayGetGradState(x.handle, ctypes.byref(state))
    return _LIB.MXNDArraySetGradState(x.handle, state) == 0


def without_amp_casts(graph: Any) -> Any:
    """The graph without what AMP, where it is on, has put in: all is lifted already, and its casts fail in float64."""
    handle = SymbolHandle()
    check_call(_LIB.MXSymbolRemoveAmpCast(graph.handle, ctypes.byref(handle)))
    return type(graph)(handle)


def same_shape(F: Any, x: Any, like: Any) -> Any:
    """`x`, tied to the shape and dtype of `like`: no public operator lets a graph infer a shape for nothing."""
    return F._internal._identity_with_attr_like_rhs(x, like)


@functools.lru_cache(maxsize=None)
def copy_function() -> Callable[..., Any]:
    """MXNet's identity on arrays, which adds up gradients; `nd.identity` may be wrapped by AMP."""
    return array_function("_copy")
