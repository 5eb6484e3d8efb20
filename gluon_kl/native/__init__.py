"""The fused CPU operator: loaded once, on first use, through MXNet's extension interface.

`is_available` says whether it is there and `why_not` why it is not. ``GLUON_KL_NATIVE=0`` turns it off.
"""

import ctypes
import functools
import importlib.machinery
import os
import threading
import uuid
from typing import Any, Dict, Optional, Sequence

import mxnet as mx

from gluon_kl.native.requests import follow

__all__ = ["info", "is_available", "kl_divergence", "reaches", "why_not"]

_HERE = os.path.dirname(os.path.abspath(__file__))
_NAME = "_gluon_kl_divergence"
_LOCK = threading.Lock()
_DEFAULTS = {"axis": -1, "batch_axis": 0, "pred_space": "log_probs", "label_space": "probs", "mean": 1,
             "scale": 1.0, "epsilon": 1e-12, "inv_temperature": 1.0, "beta": 0.0}
SMALL = 1 << 15  # elements: below, MXNet's bookkeeping costs more than arithmetic


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


def reaches(facts: Any, weight: Any) -> bool:
    """Whether the operator can take a call: the one rule that chooses between it and MXNet's operators.

    Real arrays must be on a CPU, with one weight per row. Of Symbols without facts (inside a block of the user's)
    neither is known: they must be free of weights, and MXNet built for CPUs alone.
    """
    if facts is None:
        return weight is None and is_available() and not mx.runtime.Features().is_enabled("CUDA")
    return facts.row_weight and facts.device.device_type.startswith("cpu") and is_available()


def to_float(F: Any, x: Any) -> Any:
    """A Symbol of any dtype, boolean too, as float64 if it is that, else as float32: NumPy's type promotion."""
    return (F.identity(x).as_np_ndarray() * F.ones(shape=(1,), dtype="float32").as_np_ndarray()).as_nd_ndarray()


def kl_divergence(
    F: Any, pred: Any, label: Any, row_weight: Any = None, *, wanted: Optional[Sequence[bool]] = None,
    small: bool = False, axis: int = -1, batch_axis: int = 0, pred_space: str = "log_probs",
    label_space: str = "probs", mean: bool = True, scale: float = 1.0, epsilon: float = 1e-12,
    inv_temperature: float = 1.0, beta: float = 0.0,
) -> Any:
    """KL(label || pred) per sample, in nats, as one operator; the Jensen-Shannon divergence for beta > 0.

    Parameters
    ----------
    F : mxnet.nd or mxnet.sym
        What `pred`, `label` and `row_weight` are made of.
    pred, label : NDArray or Symbol
        Of equal shape; any dtype but bool. Computed in float64 if any input is, else in float32.
    row_weight : NDArray or Symbol, optional
        As many axes as `pred`, 1 along `axis`, 1 or `pred`'s length elsewhere. A weight of 0 silences its rows,
        NaN and inf included.
    wanted : pair of bool, optional
        Whether autograd may ask for the gradient to `pred`, and to `label`: no other is computed. Who knows has
        passed the arrays through `requests.follow`. If None, arrays are looked at here; Symbols cannot be looked at,
        so that both are computed.
    small : bool
        The arrays are so small that finding the softmax again in the backward pass costs less than MXNet's
        bookkeeping for a second output that keeps it.
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
    beta : float
        0 for the divergence itself; between 0 and 1 the share of `label` in the mixture of `JSDivLoss`.

    Returns
    -------
    NDArray or Symbol
        Shape (batch,), float32, or float64 if any input is.

    Raises
    ------
    RuntimeError
        If the operator is not available.

    Examples
    --------
    >>> import mxnet as mx
    >>> from gluon_kl import native
    >>> logits, label = mx.nd.array([[2.0, 0.5, -1.0, 0.1]]), mx.nd.array([[0.3, 0.4, 0.1, 0.2]])
    >>> if native.is_available():
    ...     loss = native.kl_divergence(mx.nd, logits, label, pred_space="logits", mean=False)
    ...     assert loss.asnumpy().round(4) == 0.3526
    """
    given = {"axis": axis, "batch_axis": batch_axis, "pred_space": pred_space, "label_space": label_space,
             "mean": int(mean), "scale": float(scale), "epsilon": float(epsilon),
             "inv_temperature": float(inv_temperature), "beta": float(beta)}
    # MXNet hands every attribute over as text with every call: those at the operator's default are left out.
    attributes = {name: value for name, value in given.items() if value != _DEFAULTS[name]}
    inputs = [pred, label]
    if row_weight is not None:
        attributes["weighted"] = 1
        inputs.append(row_weight)
    recording = F is mx.nd and mx.autograd.is_recording()
    guarded = wanted is not None
    if recording and not guarded:
        wanted, inputs = map(list, zip(*map(follow, inputs)))
    if wanted is None or wanted[1]:
        attributes["grad"] = "both" if wanted is None or wanted[0] else "label"
    if (small and row_weight is None and label_space != "logits") or (F is mx.nd and not recording):
        attributes["keep"] = 0
    array_operator, symbol_operator = _operators()
    if F is mx.sym:
        if not guarded:
            # An operator of MXNet's own keeps grad_req="add" and sums over many uses right; unless its attributes
            # tell it from every other, MXNet merges it with theirs and the sum lands on the operator again.
            with mx.AttrScope(__gluon_kl_use__=uuid.uuid4().hex):
                inputs[0] = mx.sym.identity(inputs[0])
                inputs[1:] = [to_float(mx.sym, x) for x in inputs[1:]]  # booleans cannot reach an extension
        return symbol_operator(*inputs, **attributes)[0]
    result = array_operator(*inputs, **attributes)
    return result[0] if isinstance(result, list) else result
