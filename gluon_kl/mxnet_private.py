"""Every private name of MXNet that the package uses, with the reason."""

import ctypes
import functools
from typing import Any, Callable

from gluon_kl import _mxnet

import mxnet as mx
from mxnet.base import (
    _LIB,  # for what has no Python function: gradient states, shallow copies, removal of AMP's casts, extensions
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

# Private members of Gluon's blocks, for block.py, gluon1.py, gluon2.py, base.py and graphs.py.
BLOCK_MEMBERS = {
    "_weight": "the factor of Gluon's Loss",
    "_batch_axis": "the axis of the samples of Gluon's Loss",
    "_active": "whether the block is hybridized",
    "_scope": "the scope that the block opens, which must not be entered twice",
    "_callback": "a user's function that is called with each result of an operator",
    "_monitor_all": "whether it is also called with the inputs",
    "_cached_graph": "the graph that export writes, which cannot be copied or pickled",
    "_cached_op": "the same graph, ready to run",
    "_cached_op_args": "its parameters, which export of MXNet before 1.9 reads",
    "_clear_cached_op": "removes the graph, so that export traces the loss again",
    "_get_graph": "traces the loss, as Gluon's infer_shape and optimize_for do",
    "_forward_pre_hooks": "a user's functions that our own `__call__` must call before the loss",
    "_forward_hooks": "a user's functions that it must call after the loss",
}

NumpySymbol = mx.sym.np._Symbol  # the type of a Symbol of mx.np's kind, which has no public name


def operator_handle(name: str) -> OpHandle:
    """The operator that MXNet has registered under this name."""
    handle = OpHandle()
    check_call(_LIB.NNGetOpHandle(c_str(name), ctypes.byref(handle)))
    return handle


def array_function(name: str) -> Callable[..., Any]:
    """The function of an operator on arrays, without the wrapper that AMP puts around MXNet's own function."""
    return _make_ndarray_function(operator_handle(name), name, name)


def symbol_function(name: str) -> Callable[..., Any]:
    """The function of an operator on Symbols, without the wrapper that AMP puts around MXNet's own function."""
    return _make_symbol_function(operator_handle(name), name, name)


def shallow_copy(x: NDArray) -> NDArray:
    """Another array on the same memory, which autograd follows if it follows `x`; `detach` would cut it off."""
    handle = NDArrayHandle()
    check_call(_LIB.MXShallowCopyNDArray(x.handle, ctypes.byref(handle)))
    return NDArray(handle)


def is_followed(x: NDArray) -> bool:
    """Whether autograd follows this array; if it has no gradient buffer, MXNet offers no other way to ask."""
    # The state can be written only if autograd follows the array. The value that is written is the one that was read.
    state = ctypes.c_int()
    _LIB.MXNDArrayGetGradState(x.handle, ctypes.byref(state))
    return _LIB.MXNDArraySetGradState(x.handle, state) == 0


def without_amp_casts(graph: Any) -> Any:
    """The graph without the casts of AMP, if it is on: our inputs are lifted already, and its casts fail in float64."""
    handle = SymbolHandle()
    check_call(_LIB.MXSymbolRemoveAmpCast(graph.handle, ctypes.byref(handle)))
    return type(graph)(handle)


def same_shape(F: Any, x: Any, like: Any) -> Any:
    """`x`, tied to the shape and dtype of `like`; no public operator lets a graph infer a shape at no cost."""
    return F._internal._identity_with_attr_like_rhs(x, like)


@functools.lru_cache(maxsize=None)
def copy_function() -> Callable[..., Any]:
    """MXNet's identity on arrays, which adds up gradients; `nd.identity` may be wrapped by AMP."""
    return array_function("_copy")
