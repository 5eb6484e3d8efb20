"""The fused CPU operator: loaded with the package, through MXNet's extension interface.

`is_available` says whether it is there and `why_not` why it is not. ``GLUON_KL_NATIVE=0`` turns it off.
"""

import ctypes
import functools
import os
import threading
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from gluon_kl import __version__, mxnet_private

import mxnet as mx

__all__ = ["fused", "info", "is_available", "supports_device", "why_not"]

_HERE = os.path.dirname(os.path.abspath(__file__))
_NAME, _LIKE, _TOP_K = "_gluon_kl_divergence", "_gluon_kl_like", "_gluon_kl_top_k"
_LOCK = threading.Lock()
_INTERFACES = ("1.9.", "2.0.")  # MXNet's releases that have the interface for which the operator is built
_DEFAULTS = {"form": "kl", "pred": "log_probs", "target": "probs", "axis": -1, "batch_axis": 0, "reduction": "sum",
             "scale": 1.0, "epsilon": 1e-12, "temperature": 1.0, "beta": 0.5, "skew": 0.5, "label_smoothing": 0.0,
             "keep": 1, "value": 1}
_TEXTS = 256  # texts of calls that are remembered, as in call.h; bounded, because a changing number makes new texts
SMALL = 1 << 15  # elements: with fewer, MXNet's bookkeeping takes longer than the arithmetic


class _Unavailable(Exception):
    pass


def _library_path():
    path = os.path.join(_HERE, "_kernels.so")
    if os.path.exists(path):
        return path
    reason = os.path.join(_HERE, "build_failed.txt")
    if os.path.exists(reason):
        with open(reason, encoding="utf-8") as file:
            raise _Unavailable("it could not be built when gluon_kl was installed: " + file.read().strip())
    raise _Unavailable("it was not built: install a C++ compiler if there is none (`apt-get install g++`), then "
                       "install gluon_kl again")


def _handle(name=_NAME):
    """An operator in MXNet's registry, or None."""
    try:
        return mxnet_private.operator_handle(name)
    except (mx.MXNetError, IndexError):  # 2.0.0b1 raises the second
        return None


def _open(path):
    """The library. A copy of this module that was imported before may already have registered its operator."""
    if _handle() is not None:
        try:
            ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
        except OSError:
            raise _Unavailable("another copy of gluon_kl registered its operator in this process: start Python again"
                               ) from None
    library = ctypes.CDLL(path)
    library.gluon_kl_version.restype = ctypes.c_char_p
    release = library.gluon_kl_version().decode()
    if release != __version__:
        remedy = "install gluon_kl again" if _handle() is None else "start Python again"
        raise _Unavailable(f"it was built for gluon_kl {release}, and this is {__version__}: {remedy}")
    return library


@functools.lru_cache(maxsize=None)
def _load():
    """(library, None) or (None, reason), found once."""
    if os.environ.get("GLUON_KL_NATIVE") == "0":
        return None, "it is turned off by GLUON_KL_NATIVE=0"
    if not mx.__version__.startswith(_INTERFACES):
        return None, f"MXNet {mx.__version__} has another interface for operators than MXNet 1.9 and 2.0"
    try:
        path = _library_path()
        library = _open(path)
        if _handle() is None:  # a second load fails, and breaks the operator that the first registered
            mxnet_private.load_library(path)
        return library, None
    except (_Unavailable, AttributeError, OSError, mx.MXNetError) as error:
        return None, str(error)


def _loaded():
    with _LOCK:  # MXNet's registry of operators does not allow two loads at once
        return _load()


@functools.lru_cache(maxsize=None)
def _operators():
    """The fused operator on arrays and on Symbols."""
    library, reason = _loaded()
    if library is None:
        raise RuntimeError("the fused operator is not available: " + reason)
    return mxnet_private.array_function(_NAME), mxnet_private.symbol_function(_NAME)


@functools.lru_cache(maxsize=None)
def _function(F, name):
    """An operator without AMP's wrapper, whose cast would separate two arrays that must have equal dtypes."""
    _operators()
    return (mxnet_private.symbol_function if F is mx.sym else mxnet_private.array_function)(name)


def _rank_of(F, x, **named):
    """An array whose shape MXNet infers if it knows the rank of `x`; else it raises an error."""
    return _function(F, "BlockGrad")(_function(F, _LIKE)(x, known=1, **named))


def is_available() -> bool:
    """Tell whether the fused operator was built, loads, and is not turned off.

    Examples
    --------
    >>> from gluon_kl import native
    >>> if not native.is_available():
    ...     reason = native.why_not()
    """
    return _loaded()[0] is not None


def why_not() -> Optional[str]:
    """Tell why the fused operator is not available, as a sentence; None if it is available.

    Examples
    --------
    With ``GLUON_KL_NATIVE=0`` in the environment, ``print(native.why_not())`` prints "it is turned off by
    GLUON_KL_NATIVE=0".
    """
    return _loaded()[1]


def info() -> Optional[Dict[str, Any]]:
    """Tell which instructions and how many threads the fused operator uses.

    Returns
    -------
    dict or None
        ``"isa"`` is "avx512", "avx2" or "baseline". ``"threads"`` is ``GLUON_KL_NUM_THREADS`` if that is set, else
        the number of cores that this process may use, at most ``OMP_NUM_THREADS``; both variables are read when the
        operator first runs. None if the operator is not available.

    Examples
    --------
    >>> from gluon_kl import native
    >>> if native.is_available():
    ...     assert native.info()["threads"] > 0
    """
    library = _loaded()[0]
    if library is None:
        return None
    library.gluon_kl_isa.restype = ctypes.c_char_p
    return {"isa": library.gluon_kl_isa().decode(), "threads": library.gluon_kl_threads()}


def supports_device(device: Any) -> bool:
    """Whether the fused operator can be used for a call on this device.

    Real arrays must be on a CPU. The device of Symbols is None, because it is not known: then MXNet must be built for
    CPUs only.
    """
    if device is None:
        return is_available() and not mx.runtime.Features().is_enabled("CUDA")
    return device.device_type == "cpu" and is_available()


@functools.lru_cache(maxsize=_TEXTS)
def _call_text(inputs: Tuple[str, ...], grad: Tuple[str, ...], options: Tuple[Tuple[str, Any], ...]) -> str:
    """The options of a call as the text that the operator reads; defaults are left out."""
    words = {} if inputs == ("pred", "target") else {"inputs": ",".join(inputs)}
    if grad != ("pred",):
        words["grad"] = ",".join(grad) or "-"
    for name, value in options:
        if value is not None and value != _DEFAULTS.get(name):
            words[name] = repr(float(value)) if isinstance(value, float) else str(value)
    return " ".join(f"{name}={value}" for name, value in words.items())


def fused(F: Any, inputs: Mapping[str, Any], grad: Sequence[str], **options: Any) -> Any:
    """A divergence per sample, in nats, as one operator.

    MXNet's interface hides two things from an operator: whether a gradient is accumulated (the operator would overwrite
    it), and whether it is needed. So arrays must have passed `autograd.prepare_for_autograd`, and Symbols of a user's
    graph go through `autograd.fused_in_users_graph`.

    Parameters
    ----------
    F : mxnet.nd or mxnet.sym
        The module of the inputs.
    inputs : mapping of str to NDArray or Symbol
        The arrays by the operator's names for them, in its order; None is left out. Any dtype but bool and bfloat16.
    grad : sequence of str
        The inputs whose gradients autograd may ask for; no others are computed.
    **options
        What the operator computes; native/op.cc lists names and values.

    Returns
    -------
    NDArray or Symbol
        Shape (batch,), or pred's for ``reduction="none"``; float32, or float64 if an input is.

    Raises
    ------
    RuntimeError
        If the operator is not available.

    Examples
    --------
    >>> from gluon_kl import native
    >>> import mxnet as mx
    >>> logits, label = mx.nd.array([[2.0, 0.5, -1.0, 0.1]]), mx.nd.array([[0.3, 0.4, 0.1, 0.2]])
    >>> if native.is_available():
    ...     loss = native.fused(mx.nd, {"pred": logits, "target": label}, grad=[], pred="logits")
    ...     assert loss.asnumpy().round(4) == 0.3526
    """
    array_operator, symbol_operator = _operators()
    if F is mx.nd and not mx.autograd.is_recording() and not mxnet_private.tracing():  # what is traced may be trained
        options["keep"] = 0
    present = {name: x for name, x in inputs.items() if x is not None}
    text = _call_text(tuple(present), tuple(grad), tuple(options.items()))
    attributes = {"call": text} if text else {}
    if F is mx.sym:
        return symbol_operator(*present.values(), **attributes)[0]
    result = array_operator(*present.values(), **attributes)
    return result[0] if isinstance(result, list) else result


def top_k(F: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
    """The loss of each row of logits against a teacher that kept k categories.

    The last axis of `pred` is that of the categories; the losses have length 1 there. Inputs and options have the same
    names as those of `fused`; `tail` is new. Only `pred` gets a gradient, and none may be asked of the others.
    """
    text = _call_text(tuple(inputs), ("pred",), tuple(options.items()))
    return _function(F, _TOP_K)(*inputs.values(), call=text)[0]


def with_known_ranks(given: Dict[str, Any], options: Mapping[str, Any]) -> Dict[str, Any]:
    """The inputs, arranged so that MXNet asks the operator for shapes only if it knows the rank of each input.

    Else it raises an error. If it asked with an unknown rank, it would write beyond its memory (native/op.cc). An input
    with the shape of the first is tied to it by an operator of MXNet, in place. This operator also requires equal
    dtypes, so a stand-in for the first input takes the dtype of the other. Class indices may have any dtype, and are
    tied by `pick`. Nothing determines the shape of a weight.
    """
    like, pick, tie = (_function(mx.sym, name) for name in (_LIKE, "pick", "_identity_with_attr_like_rhs"))
    block = _function(mx.sym, "BlockGrad")
    pred, *_ = given.values()
    indices = [name for name in given if is_index(name, options)]
    tied = [name for name in [*given][1:] if name not in ("weight", *indices)]
    # MXNet goes through a graph in the order of its inputs: these come first, and the operator ignores them.
    ranks = {"pred": like(pred, known=1)} if not tied else {}
    if "weight" in given:
        ranks["weight"] = like(given["weight"], known=1, name="sample_weight_needs_a_shape")
    for name in indices:  # they have a leading axis of length 1, which pred gets here too
        axis = options.get("axis", -1)
        ranks[name] = pick(mx.sym.expand_dims(pred, axis=0), given[name], axis=axis + (axis >= 0))
    ties = {}
    for name in tied:  # each to a stand-in with its dtype
        stand_in = like(pred)
        given = {**given, name: tie(given[name], stand_in)}
        # If AMP puts a cast between the two, the dtype of the stand-in is unknown: an input at the end determines it.
        ties[f"tie:{name}"] = block(like(stand_in, known=1))
    return {**{f"rank_of_{name}": block(x) for name, x in ranks.items()}, **given, **ties}


def with_ranks(F: Any, given: Dict[str, Any]) -> Dict[str, Any]:
    """The inputs, arranged so that MXNet raises an error if a rank is unknown; nothing is tied.

    This is for the arrays of a trace: a tie would fix their dtypes to those of the first call.
    """
    return {**{f"tie:{name}": _rank_of(F, x) for name, x in given.items()}, **given}


def is_index(name: str, options: Mapping[str, Any]) -> bool:
    return name == "hard" and options.get("hard") == "index"
