"""The formulas, elementwise over ``F`` (``mx.nd`` or ``mx.sym``), in nats.

Nothing here knows of Blocks, and inputs are already of one floating dtype.
Where a formula meets infinities it selects the argument, never the result:
``where(c, a, f(b))`` would send NaN back through ``f`` at the points not taken.
"""

import math
from typing import Any, Optional

SPACES = ("probs", "log_probs", "logits")

# Finite in float32, yet beyond any difference of two logarithms.
_HUGE = 1e38


def log_softmax(F: Any, logits: Any, axis: int) -> Any:
    """Logarithm of the softmax over `axis`; a row that holds NaN or +inf is NaN throughout.

    MXNet's own (oneDNN) gives such a row finite values beside a single NaN.
    """
    # Tiny weights keep the sum of large finite logits from overflowing; -inf, a mask, stays below inf.
    total = F.sum(logits * 1e-30, axis=axis, keepdims=True)
    return F.log_softmax(logits + F.broadcast_like(0.0 / (total < math.inf), logits), axis=axis)


def sum_per_sample(F: Any, terms: Any, batch_axis: int, mean: bool) -> Any:
    """Reduce every axis but `batch_axis`, by sum or mean: shape (batch,)."""
    if batch_axis != 0:
        terms = F.swapaxes(terms, dim1=0, dim2=batch_axis)
    rows = F.reshape(terms, shape=(0, -1))
    ones = F.ones_like(F.slice_axis(rows, axis=0, begin=0, end=1))
    sums = F.linalg_gemm2(rows, ones, transpose_b=True)
    if mean:
        sums = F.broadcast_div(sums, F.sum(ones, axis=1, keepdims=True))
    return F.reshape(sums, shape=(-1,))


def relative_entropy(F: Any, log_pred: Any, label: Any, epsilon: float, label_grad: bool = True) -> Any:
    """``label * (log label - log_pred)``; 0 where label is 0, also under ``log_pred = -inf``.

    The gradient to a label of 0 is ``log(epsilon) - log_pred``, and 0 under ``log_pred = -inf``;
    `label_grad=False` leaves out the two passes that only this gradient needs.
    Arithmetic on 0/1 masks: one ``F.where`` would cost as much as all of it.
    """
    absent = label == 0
    surprise = F.log(label + absent) - log_pred
    # The ceiling is HUGE over absent labels and inf over present ones: it stops only 0 * inf.
    surprise = F.broadcast_minimum(surprise, _HUGE / absent)
    if label_grad:
        surprise = (surprise + absent * math.log(epsilon)) * (surprise != _HUGE)
    return label * surprise


def relative_entropy_of_logs(F: Any, log_pred: Any, log_label: Any) -> Any:
    """``exp(log_label) * (log_label - log_pred)``; 0 where the label's probability is 0."""
    label = F.exp(log_label)
    absent = label == 0
    zero = F.zeros_like(label)
    return label * (F.where(absent, zero, log_label) - F.where(absent, zero, log_pred))


def relative_entropy_of_logits(F: Any, pred: Any, label: Any, axis: int) -> Any:
    """Non-negative terms whose sum over `axis` is KL(softmax(label) || softmax(pred)).

    With p, q the two softmaxes and u = log p - log q, a term is ``p*u + q - p``: the added
    ``q - p`` sums to 0, and every term is 0 at u = 0. For |u| < 1 it is ``p * (u + expm1(-u))``,
    which keeps the leading digits of nearly equal rows.
    """
    log_ratio = log_softmax(F, label, axis) - log_softmax(F, pred, axis)
    p, q = F.softmax(label, axis=axis), F.softmax(pred, axis=axis)
    zero = F.zeros_like(p)
    u = F.where(p == 0, zero, log_ratio)
    near = (F.abs(u) < 1) * (p != 0)
    small = F.where(near, u, zero)
    return F.where(near, p * F.relu(small + F.expm1(-small)), p * u + (q - p))


def kl_terms(
    F: Any, pred: Any, label: Any, *, pred_space: str, label_space: str, axis: int,
    epsilon: float = 1e-12, whole_rows: bool = False, label_grad: bool = True,
) -> Any:
    """Terms of KL(label || pred) in pred's shape; pred is log_probs or logits, label in any space.

    `whole_rows` says that the terms will be summed over the whole of `axis` under one weight:
    only then may rows of two softmaxes take the form that keeps the digits of small divergences.
    """
    if whole_rows and pred_space == label_space == "logits":
        return relative_entropy_of_logits(F, pred, label, axis)
    if label_space == "probs":
        if pred_space == "logits":
            # A whole row needs no care: its sum is NaN through the one NaN that MXNet leaves.
            pred = F.log_softmax(pred, axis=axis) if whole_rows else log_softmax(F, pred, axis)
        return relative_entropy(F, pred, label, epsilon, label_grad)
    log_pred = log_softmax(F, pred, axis) if pred_space == "logits" else pred
    log_label = log_softmax(F, label, axis) if label_space == "logits" else label
    return relative_entropy_of_logs(F, log_pred, log_label)
