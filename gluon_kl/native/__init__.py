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
_INTERFACES = ("1.9.", "2.0.")  # of MXNet's releases, those whose interface has the version that we are built for
_DEFAULTS = {"form": "kl", "pred": "log_probs", "target": "probs", "axis": -1, "batch_axis": 0, "reduction": "sum",
             "scale": 1.0, "epsilon": 1e-12, "temperature": 1.0, "beta": 0.5, "skew": 0.5, "label_smoothing": 0.0,
             "keep": 1, "value": 1}
_TEXTS = 256  # how many calls' texts are remembered, as in call.h: a number that changes makes a new one each time
SMALL = 1 << 15  # elements: below, MXNet's bookkeeping costs more than arithmetic


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
    raise _Unavailable("it was not built: `apt-get install g++` where no C++ compiler is, then install gluon_kl again")


def _handle(name=_NAME):
    """An operator in MXNet's registry, or None."""
    try:
        return mxnet_private.operator_handle(name)
    except (mx.MXNetError, IndexError):  # the second is 2.0.0b1's way to say it
        return None


def _open(path):
    """The library, whose operator may be registered already: by a copy of this module that was imported before."""
    if _handle() is not None:
        try:
            ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
        except OSError:
            raise _Unavailable("another copy of gluon_kl registered its operator in this process: start Python anew"
                               ) from None
    library = ctypes.CDLL(path)
    library.gluon_kl_version.restype = ctypes.c_char_p
    release = library.gluon_kl_version().decode()
    if release != __version__:
        remedy = "install gluon_kl again" if _handle() is None else "start Python anew"
        raise _Unavailable(f"it is that of gluon_kl {release}, and this is {__version__}: {remedy}")
    return library


@functools.lru_cache(maxsize=None)
def _load():
    """(library, None) or (None, reason), found once."""
    if os.environ.get("GLUON_KL_NATIVE") == "0":
        return None, "it is turned off by GLUON_KL_NATIVE=0"
    if not mx.__version__.startswith(_INTERFACES):
        return None, f"MXNet {mx.__version__} has another interface for operators than 1.9 and 2.0"
    try:
        path = _library_path()
        library = _open(path)
        if _handle() is None:  # a second load fails, and breaks what the first registered
            mxnet_private.load_library(path)
        return library, None
    except (_Unavailable, AttributeError, OSError, mx.MXNetError) as error:
        return None, str(error)


def _loaded():
    with _LOCK:  # MXNet's registry of operators is not made for two loads at once
        return _load()


@functools.lru_cache(maxsize=None)
def _operators():
    """The divergence on arrays and on Symbols."""
    library, reason = _loaded()
    if library is None:
        raise RuntimeError("the fused operator is not available: " + reason)
    return mxnet_private.array_function(_NAME), mxnet_private.symbol_function(_NAME)


@functools.lru_cache(maxsize=None)
def _function(F, name):
    """An operator, without what AMP has put around its function: a cast would stand between what is tied."""
    _operators()
    return (mxnet_private.symbol_function if F is mx.sym else mxnet_private.array_function)(name)


def _rank_of(F, x, **named):
    """An array that MXNet infers the shape of where it knows the rank of `x`, or else raises an error."""
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
    """Tell why the fused operator is not available, as a sentence; None where it is.

    Examples
    --------
    Run with ``GLUON_KL_NATIVE=0``, ``print(native.why_not())`` says "it is turned off by GLUON_KL_NATIVE=0".
    """
    return _loaded()[1]


def info() -> Optional[Dict[str, Any]]:
    """Tell which instructions and how many threads the fused operator uses.

    Returns
    -------
    dict or None
        ``"isa"``: "avx512", "avx2" or "baseline". ``"threads"``: ``GLUON_KL_NUM_THREADS`` if set, else the cores
        that this process may use, at most ``OMP_NUM_THREADS``; read when the operator first runs. None where the
        operator is not available.

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
    """Whether the operator can take a call, or MXNet's operators must.

    Real arrays must be on a CPU. Where Symbols come without a device that is not known: MXNet must be built for CPUs
    alone.
    """
    if device is None:
        return is_available() and not mx.runtime.Features().is_enabled("CUDA")
    return device.device_type == "cpu" and is_available()


def operator_dtype(x: Any, use: Mapping[str, str] = {}) -> Any:
    """An array or Symbol of any dtype as one that an operator of an extension takes: boolean as float32.

    Under AMP the addition is one of the functions that lift bfloat16.
    """
    return mx.nd._internal._plus_scalar(x, scalar=0, **use) if use else x + 0


@functools.lru_cache(maxsize=_TEXTS)
def _call_text(inputs: Tuple[str, ...], grad: Tuple[str, ...], options: Tuple[Tuple[str, Any], ...]) -> str:
    """What a call asks for, as the operator reads it: what is at its default is left out."""
    words = {} if inputs == ("pred", "target") else {"inputs": ",".join(inputs)}
    if grad != ("pred",):
        words["grad"] = ",".join(grad) or "-"
    for name, value in options:
        if value is not None and value != _DEFAULTS.get(name):
            words[name] = repr(float(value)) if isinstance(value, float) else str(value)
    return " ".join(f"{name}={value}" for name, value in words.items())


def fused(F: Any, inputs: Mapping[str, Any], grad: Sequence[str], **options: Any) -> Any:
    """A divergence per sample, in nats, as one operator.

    The interface hides two things from an operator: that a gradient adds up (it would be lost) and that one is not
    wanted. Arrays must have passed `autograd.prepare_for_autograd`; Symbols go through `autograd.fused_in_users_graph`
    where the graph is not ours.

    Parameters
    ----------
    F : mxnet.nd or mxnet.sym
        What the inputs are made of.
    inputs : mapping of str to NDArray or Symbol
        The arrays by the operator's names for them, in its order; None is left out. Any dtype but bool and bfloat16.
    grad : sequence of str
        The inputs whose gradients autograd may ask for: no other is computed.
    **options
        What the operator computes: native/op.cc lists names and values.

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
    if F is mx.nd and not mx.autograd.is_recording() and not mxnet_private.tracing():  # a trace may serve to learn
        options["keep"] = 0
    present = {name: x for name, x in inputs.items() if x is not None}
    text = _call_text(tuple(present), tuple(grad), tuple(options.items()))
    attributes = {"call": text} if text else {}
    if F is mx.sym:
        return symbol_operator(*present.values(), **attributes)[0]
    result = array_operator(*present.values(), **attributes)
    return result[0] if isinstance(result, list) else result


def top_k(F: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
    """The loss of each row of scores against a teacher that kept k categories.

    The last axis of `pred` is that of the categories; the losses have 1 there. Inputs and options are named as those of
    `fused`, beside `tail`. Gradients go to `pred` alone, and none may be asked of the others.
    """
    text = _call_text(tuple(inputs), ("pred",), tuple(options.items()))
    return _function(F, _TOP_K)(*inputs.values(), call=text)[0]


def with_known_ranks(given: Dict[str, Any], options: Mapping[str, Any]) -> Dict[str, Any]:
    """The inputs, so that MXNet asks the operator for shapes where it knows the rank of each, or else raises an error.

    Asked with a rank open, it would overrun its memory (native/op.cc). An input of the first one's shape is tied to it
    by an operator of MXNet's, in place: it wants equal dtypes too, and what stands in for the first takes the dtype of
    the other. Class indices, of any dtype, are tied by `pick`. Of a weight nothing tells the shape.
    """
    like, pick, tie = (_function(mx.sym, name) for name in (_LIKE, "pick", "_identity_with_attr_like_rhs"))
    block = _function(mx.sym, "BlockGrad")
    pred, *_ = given.values()
    indices = [name for name in given if is_index(name, options)]
    tied = [name for name in [*given][1:] if name not in ("weight", *indices)]
    # MXNet goes through a graph by the order of inputs: these come first, and the operator ignores them.
    ranks = {"pred": like(pred, known=1)} if not tied else {}
    if "weight" in given:
        ranks["weight"] = like(given["weight"], known=1, name="sample_weight_needs_a_shape")
    for name in indices:  # behind an axis of 1, which pred gets in front
        axis = options.get("axis", -1)
        ranks[name] = pick(mx.sym.expand_dims(pred, axis=0), given[name], axis=axis + (axis >= 0))
    ties = {}
    for name in tied:  # each by an array of its own dtype
        stand_in = like(pred)
        given = {**given, name: tie(given[name], stand_in)}
        # A cast of AMP's between the two leaves the dtype of the stand-in open: what comes last settles it.
        ties[f"tie:{name}"] = block(like(stand_in, known=1))
    return {**{f"rank_of_{name}": block(x) for name, x in ranks.items()}, **given, **ties}


def with_ranks(F: Any, given: Dict[str, Any]) -> Dict[str, Any]:
    """The inputs, so that where a rank is open MXNet raises an error; nothing is tied.

    That suits the arrays of a trace: `_gluon_kl_like` is run on them, and dtypes would be those of the first call.
    """
    return {**{f"tie:{name}": _rank_of(F, x) for name, x in given.items()}, **given}


def is_index(name: str, options: Mapping[str, Any]) -> bool:
    return name == "hard" and options.get("hard") == "index"
