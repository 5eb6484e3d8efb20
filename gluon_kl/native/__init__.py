"""The fused CPU operator: loaded once, on first use, through MXNet's extension interface.

`is_available` says whether it is there and `why_not` why it is not. ``GLUON_KL_NATIVE=0`` turns it off.
"""

import ctypes
import functools
import importlib.machinery
import math
import os
import threading
import uuid

import mxnet as mx
from mxnet.base import _LIB

__all__ = ["info", "is_available", "kl_divergence", "why_not"]

_HERE = os.path.dirname(os.path.abspath(__file__))
_NAME = "_gluon_kl_divergence"
_LOCK = threading.Lock()
_SMALL = 1 << 15  # elements: below, finding the softmax again costs less than MXNet's book-keeping for a kept output


class _Unavailable(Exception):
    pass


def _library_path():
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = os.path.join(_HERE, "_kernels" + suffix)
        if os.path.exists(path):
            return path
    reason = os.path.join(_HERE, "build_failed.txt")
    if os.path.exists(reason):
        with open(reason, encoding="utf-8") as file:
            raise _Unavailable("it could not be built when gluon_kl was installed: " + file.read().strip())
    raise _Unavailable("it was not built; `pip install` gluon_kl where a C++17 compiler is")


@functools.lru_cache(maxsize=None)
def _load():
    """(library, None) or (None, reason), found once."""
    if os.environ.get("GLUON_KL_NATIVE") == "0":
        return None, "it is turned off by GLUON_KL_NATIVE=0"
    try:
        path = _library_path()
        mx.library.load(path, verbose=False)
        return ctypes.CDLL(path), None
    except (_Unavailable, OSError, mx.MXNetError) as error:
        return None, str(error)


def _loaded():
    with _LOCK:  # MXNet's registry of operators is not made for two loads at once
        return _load()


@functools.lru_cache(maxsize=None)
def _operators():
    """The operator on arrays and on Symbols."""
    library, reason = _loaded()
    if library is None:
        raise RuntimeError("the fused operator is not available: " + reason)
    return getattr(mx.nd._internal, _NAME), getattr(mx.sym._internal, _NAME)


def is_available():
    """Whether the fused operator was built, loads, and is not turned off."""
    return _loaded()[0] is not None


def why_not():
    """Why the fused operator is not available, as a sentence; None where it is."""
    return _loaded()[1]


def info():
    """What runs: ``{"isa": "avx512" | "avx2" | "baseline", "threads": int}``, or None where it is not available.

    Threads: ``GLUON_KL_NUM_THREADS`` if set, else the cores this process may use, at most ``OMP_NUM_THREADS``;
    read when the operator first runs.
    """
    library = _loaded()[0]
    if library is None:
        return None
    library.gluon_kl_isa.restype = ctypes.c_char_p
    return {"isa": library.gluon_kl_isa().decode(), "threads": library.gluon_kl_threads()}


def _in_graph(array):
    """Whether autograd follows `array`: as a variable with a gradient, or as the result of recorded operators.

    MXNet keeps a flag per followed array and refuses to set it on any other: setting what is already there asks
    without changing anything.
    """
    state = ctypes.c_int()
    _LIB.MXNDArrayGetGradState(array.handle, ctypes.byref(state))
    return _LIB.MXNDArraySetGradState(array.handle, state) == 0


def _guarded(array):
    """`array` behind an operator of MXNet's own that keeps grad_req="add", which an extension's operator loses.

    Only variables need it: gradients of intermediate results are written, then added up by MXNet. A reshape shares
    memory going forward.
    """
    return array if array.grad is None else array.reshape(array.shape)


def _guarded_symbol(symbol):
    """The same for a Symbol: an identity, which works in place on intermediate results.

    Unless its attributes tell it from every other one, MXNet merges it with theirs, and the sum over many uses lands
    on the operator again, as an "add" that it cannot see.
    """
    return mx.sym.identity(symbol, attr={"__gluon_kl_use__": uuid.uuid4().hex})


@functools.lru_cache(maxsize=256)
def _attributes(axis, batch_axis, pred_space, label_space, mean, scale, epsilon, inv_temperature, weighted):
    """The operator's attributes; what has its default value is left out."""
    attributes = {"axis": axis, "pred_space": pred_space, "label_space": label_space}
    if batch_axis != 0:
        attributes["batch_axis"] = batch_axis
    if not mean:
        attributes["mean"] = 0
    if scale != 1.0:
        attributes["scale"] = repr(float(scale))
    if epsilon != 1e-12:
        attributes["epsilon"] = repr(float(epsilon))
    if inv_temperature != 1.0:
        attributes["inv_temperature"] = repr(float(inv_temperature))
    if weighted:
        attributes["weighted"] = 1
    return attributes


class _SmallCall:
    """Recorded calls of one kind on small arrays, where MXNet's book-keeping costs more than the arithmetic.

    The first runs as it comes; from the second on a graph with its memory planned does half the book-keeping.
    """

    def __init__(self, options, grad, guarded):
        self.attributes = dict(_attributes(*options), grad=grad, keep=int(options[-1]))
        self.guarded = guarded
        self.graph = None
        self.calls = 0

    def __call__(self, inputs):
        self.calls += 1
        if self.calls == 1:
            result = _operators()[0](*[_guarded(x) for x in inputs], **self.attributes)
            return result[0] if isinstance(result, list) else result
        if self.graph is None:
            ends = [mx.sym.var("input%d" % i) for i in range(len(inputs))]
            ends = [_guarded_symbol(x) if guard else x for x, guard in zip(ends, self.guarded)]
            output = _operators()[1](*ends, **self.attributes)
            self.graph = mx.nd.CachedOp(output[0], [("static_alloc", True), ("static_shape", True)])
        return self.graph(*inputs)


@functools.lru_cache(maxsize=64)
def _small_call(shape, options, grad, guarded):
    return _SmallCall(options, grad, guarded)


def kl_divergence(F, pred, label, row_weight=None, *, axis=-1, batch_axis=0, pred_space="log_probs",
                  label_space="probs", mean=True, scale=1.0, epsilon=1e-12, inv_temperature=1.0):
    """KL(label || pred) per sample, in nats, as one operator.

    Parameters
    ----------
    F : mxnet.nd or mxnet.sym
        What `pred`, `label` and `row_weight` are made of. With arrays only the gradients that autograd will ask for
        are computed. A Symbol cannot tell: both are.
    pred, label : NDArray or Symbol
        Of equal shape; any dtype but bool. Computed in float64 if any input is, else in float32.
    row_weight : NDArray or Symbol, optional
        As many axes as `pred`, 1 along `axis`, 1 or `pred`'s length elsewhere. A weight of 0 silences its rows,
        NaN and inf included.
    axis, batch_axis : int
        The categories, and the axis that is kept. If they are the same, each category is its own sample.
    pred_space, label_space : {"probs", "log_probs", "logits"}
        What the numbers are; a softmax over `axis` is applied to logits.
    mean : bool
        Divide by the number of elements per sample.
    scale : float
        Multiplies the result.
    epsilon : float
        Stands in for a label of exactly 0 inside the logarithm of the label's gradient (`label_space="probs"`).
    inv_temperature : float
        Multiplies logits, on both sides, inside the softmax.

    Returns
    -------
    NDArray or Symbol
        Shape (batch,), float32, or float64 if any input is.
    """
    options = (axis, batch_axis, pred_space, label_space, mean, scale, epsilon, inv_temperature, row_weight is not None)
    inputs = (pred, label) if row_weight is None else (pred, label, row_weight)
    if F is mx.sym:
        return _operators()[1](*[_guarded_symbol(x) for x in inputs], **_attributes(*options))[0]

    operator = _operators()[0]
    if not mx.autograd.is_recording():
        return operator(*inputs, keep=0, **_attributes(*options))
    wanted = [_in_graph(x) for x in inputs]
    grad = "pred" if not wanted[1] else "both" if wanted[0] else "label"
    # Recording gives an array that autograd does not follow a mark that lasts until backward, and would be taken for
    # one it follows; the mark on a detached view does no harm.
    inputs = [x if follow else x.detach() for x, follow in zip(inputs, wanted)]
    shape = pred.shape
    if math.prod(shape) < _SMALL:
        guarded = tuple([follow and x.grad is not None for x, follow in zip(inputs, wanted)])
        return _small_call(shape, options, grad, guarded)(inputs)
    result = operator(*[_guarded(x) for x in inputs], grad=grad, **_attributes(*options))
    return result[0] if isinstance(result, list) else result
