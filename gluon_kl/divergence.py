"""The formulas, elementwise over ``F`` (``mx.nd`` or ``mx.sym``), in nats.

Nothing here knows of Blocks, and inputs are already of one floating dtype.
Where a formula meets infinities it selects the argument, never the result:
``where(c, a, f(b))`` would send NaN back through ``f`` at the points not taken.

In graphs of a user's, rank, shapes and dtypes are unknown. So that these can be inferred, printed and run without
rows there too, no operator is used that fails on an unknown or empty shape (``slice_axis``, ``linalg_gemm2``,
``reshape`` with -1 behind a 0), and none takes the result of another that has one axis (``arange_like``,
``shape_array``): ``mx.viz.print_summary`` would fail.
"""

import math
from typing import Any, Optional

import mxnet as mx

SPACES = ("probs", "log_probs", "logits")

# Finite in float32, yet beyond any difference of two logarithms.
_HUGE = 1e38
# Stands for the logarithm of 0 where two such must have a difference.
_FLOOR = 1e30


def log_softmax(F: Any, logits: Any, axis: int) -> Any:
    """Logarithm of the softmax over `axis`; a row that holds NaN or +inf is NaN throughout.

    MXNet's own (oneDNN) gives such a row finite values beside a single NaN.
    """
    # Tiny weights keep the sum of large finite logits from overflowing; -inf, a mask, stays below inf.
    total = F.sum(logits * 1e-30, axis=axis, keepdims=True)
    sound = is_finite(total) + (total < -_HUGE)
    return F.log_softmax(logits + F.broadcast_like(0.0 / sound, logits), axis=axis)


def is_finite(x: Any) -> Any:
    """1 where `x` is finite, else 0.

    No comparison with infinity: MXNet reads an infinite scalar as text, and fails wherever some earlier
    overflow of the process, such as that of ``math.exp(1000)``, has left its mark in errno.
    """
    return x - x == 0


def log_of_probs(F: Any, probs: Any) -> Any:
    """Logarithm of probabilities: -inf, with a gradient of 0, where one is 0."""
    absent = probs == 0
    here = 1 - absent
    return F.log(probs * here + absent) - absent / here


def to_log(F: Any, x: Any, space: str, axis: int) -> Any:
    """The log-probabilities that `x` stands for."""
    if space == "logits":
        return log_softmax(F, x, axis)
    return log_of_probs(F, x) if space == "probs" else x


def sum_per_sample(F: Any, terms: Any, batch_axis: int, mean: bool, long: bool = False, scale: float = 1.0) -> Any:
    """Reduce every axis but `batch_axis`, by sum or mean, times `scale`: shape (batch,).

    `long` asks for sums in float64: the fast one adds up in the dtype of the terms.
    """
    if batch_axis != 0:
        terms = F.swapaxes(terms, dim1=0, dim2=batch_axis)
    rows = F.Flatten(terms)
    ones = F.ones_like(F.slice(rows, begin=(0,), end=(1,)))
    wide = [F.cast(x, dtype="float64") if long else x for x in (rows, ones)]
    sums = _dot(wide[0], F.transpose(wide[1]))
    if mean:
        sums = F.broadcast_div(sums, F.sum(wide[1], axis=1, keepdims=True))
    return F.reshape(sums if scale == 1 else sums * scale, shape=(-1,))


def relative_entropy(F: Any, log_pred: Any, label: Any, epsilon: float, label_grad: bool = True) -> Any:
    """``label * (log label - log_pred)``; 0 where label is 0, whatever `log_pred` is there.

    The gradient to a label of 0 is ``log(epsilon) - log_pred``, and 0 where that is not finite;
    `label_grad=False` leaves out the passes that only this gradient needs.
    """
    absent = label == 0
    # Not log(1) at zeros: with zeros scattered among them, its short cut is a branch that processors mispredict.
    log_label = F.log(label + 0.5 * absent)
    surprise = log_label - _unless_absent(F, log_pred, label)
    if not label_grad:
        return label * surprise
    # The logarithm's own derivative, label * (1 / label), overflows at the smallest labels: it is taken out of the
    # graph, and the 1 that it comes to is that of a difference which is 0.
    at_zero = absent * (math.log(2) - 1 + math.log(epsilon) * is_finite(log_pred))
    surprise = F.BlockGrad(log_label + at_zero) - _unless_absent(F, log_pred, label)
    return label * surprise + (label - F.BlockGrad(label))


def _unless_absent(F: Any, log_pred: Any, label: Any) -> Any:
    """`log_pred`, but the label where that is 0 and `log_pred` not finite. A label of -1 may be taken for 0."""
    # A condition that rarely fails: `where` takes ten times as long where it can't be predicted.
    return F.where(label + is_finite(log_pred), log_pred, label)


def relative_entropy_of_logs(F: Any, log_pred: Any, log_label: Any) -> Any:
    """``exp(log_label) * (log_label - log_pred)``; 0 where the label's probability is 0."""
    label = F.exp(log_label)
    absent = label == 0
    zero = F.zeros_like(label)
    return label * (F.where(absent, zero, log_label) - F.where(absent, zero, log_pred))


def relative_entropy_of_logits(F: Any, pred: Any, label: Any, axis: int, whole_rows: Any = True) -> Any:
    """Non-negative terms whose sum over `axis` is KL(softmax(label) || softmax(pred)).

    With p, q the two softmaxes and u = log p - log q, a term is ``p*u + q - p``: the added
    ``q - p`` sums to 0, and every term is 0 at u = 0. For |u| < 1 it is ``p * (u + expm1(-u))``,
    which keeps the leading digits of nearly equal rows. Where `whole_rows` is an array that
    holds 0, a term is plain ``p*u``.
    """
    log_ratio = log_softmax(F, label, axis) - log_softmax(F, pred, axis)
    p, q = F.softmax(label, axis=axis), F.softmax(pred, axis=axis)
    zero = F.zeros_like(p)
    u = F.where(p == 0, zero, log_ratio)
    near, excess = (F.abs(u) < 1) * (p != 0), q - p
    if whole_rows is not True:
        near, excess = F.broadcast_mul(near, whole_rows), F.broadcast_mul(excess, whole_rows)
    small = F.where(near, u, zero)
    return F.where(near, p * F.relu(small + F.expm1(-small)), p * u + excess)


def kl_terms(
    F: Any, pred: Any, label: Any, *, pred_space: str, label_space: str, axis: int,
    epsilon: float = 1e-12, whole_rows: Any = False, label_grad: bool = True,
) -> Any:
    """Terms of KL(label || pred) in pred's shape; one side of the two may hold probs.

    `whole_rows` says that the terms will be summed over the whole of `axis` under one weight:
    only then may rows of two softmaxes take the form that keeps the digits of small divergences.
    Where only the running graph can tell, it is an array of shape (1,) that holds 0 or 1.
    """
    if whole_rows is not False and pred_space == label_space == "logits":
        return relative_entropy_of_logits(F, pred, label, axis, whole_rows)
    if label_space == "probs":
        if pred_space == "logits":
            # A whole row needs no care: its sum is NaN through the one NaN that MXNet leaves.
            pred = F.log_softmax(pred, axis=axis) if whole_rows is True else log_softmax(F, pred, axis)
        return relative_entropy(F, pred, label, epsilon, label_grad)
    return relative_entropy_of_logs(F, to_log(F, pred, pred_space, axis), to_log(F, label, label_space, axis))


def js_terms(
    F: Any, pred: Any, label: Any, *, pred_space: str, label_space: str, axis: int, beta: float,
) -> Any:
    """Terms ``beta * p * log(p/m) + (1-beta) * q * log(q/m)`` of label p, pred q and their mixture m.

    With u = log p - log q, ``log(m/p) = log1p((1-beta) * expm1(-u))``, which is exactly 0 at u = 0 and
    keeps its digits nearby. In exact arithmetic no term is below 0, for any two positive numbers.
    """
    log_p, log_q = (F.clip(to_log(F, x, space, axis), -_FLOOR, _FLOOR)
                    for x, space in ((label, label_space), (pred, pred_space)))
    p = label if label_space == "probs" else F.exp(log_p)
    q = F.exp(log_q)
    # Beyond a ratio of e^80 the smaller side adds nothing, and its m/p would overflow.
    ratio = F.clip(log_p - log_q, -80, 80)
    m = beta * p + (1 - beta) * q
    log_m = F.log(m + (m == 0))

    def log_share(log_side: Any, odds: Any) -> Any:
        """``log(side / m)``, with odds = m/side - 1."""
        # log1p loses odds close to -1, where the difference of the logarithms loses nothing.
        most = odds < -0.5
        return most * (log_side - log_m) - F.log1p(odds * (1 - most))

    return F.relu(beta * (p * log_share(log_p, (1 - beta) * F.expm1(-ratio)))
                  + (1 - beta) * (q * log_share(log_q, beta * F.expm1(ratio))))


def unit(F: Any, x: Any) -> Any:
    """A 1 of x's dtype, with as many axes as `x`."""
    first = F.zeros_like(F.slice(x, begin=(0,), end=(1,)))
    return (_numpy(first).sum(first.as_np_ndarray(), keepdims=True) + 1).as_nd_ndarray()


def more_than_one(F: Any, x: Any, axis: int, batch_axis: int) -> Any:
    """1 where `axis` has several categories and is not the `batch_axis`, else 0; also where the rank is unknown."""
    sample = F.slice(x, begin=(None,) * batch_axis + (0,), end=(None,) * batch_axis + (1,)) if batch_axis >= 0 else \
        F.slice_axis(x, axis=batch_axis, begin=0, end=1)
    return F.sum(F.ones_like(sample), axis=axis, keepdims=True) > 1


def _numpy(x: Any) -> Any:
    return mx.np if isinstance(x, mx.nd.NDArray) else mx.sym.np


def _dot(x: Any, y: Any) -> Any:
    """NumPy's dot of legacy arrays or Symbols."""
    return _numpy(x).dot(x.as_np_ndarray(), y.as_np_ndarray()).as_nd_ndarray()


def categories(F: Any, x: Any, axis: int) -> Any:
    """The number of categories along `axis`, shape (1,), also where shapes are unknown."""
    return F.slice_axis(F.contrib.arange_like(x, axis=axis), axis=0, begin=-1, end=None) + 1


def one_hot(F: Any, index: Any, pred: Any, axis: int) -> Any:
    """Class indices, of pred's shape without `axis`, as rows of pred's shape; a row of NaN for no class of pred's."""
    index = F.expand_dims(index, axis=axis)
    known = (index >= 0) * (index == F.floor(index)) * F.broadcast_lesser(index, categories(F, pred, axis))
    # Broadcasting aligns the last axis, so the categories go there and back.
    hot = F.broadcast_equal(F.swapaxes(index, dim1=axis, dim2=-1), F.contrib.arange_like(pred, axis=axis))
    return F.broadcast_mul(F.swapaxes(hot, dim1=axis, dim2=-1), known / known)


def cross_entropy(F: Any, log_pred: Any, label: Any) -> Any:
    """``-label * log_pred``; 0 where label is 0, whatever `log_pred` is there."""
    return -label * _unless_absent(F, log_pred, F.abs(label))


def gaussian_terms(
    F: Any, mean: Any, log_variance: Any, prior_mean: Optional[Any], prior_log_variance: Optional[Any],
) -> Any:
    """KL(N(mean, exp(log_variance)) || N(prior_mean, exp(prior_log_variance))) of every dimension.

    With d the difference of the log-variances and g that of the means,
    ``(g^2 exp(-prior_log_variance) + expm1(d) - d) / 2``: both summands are at least 0.
    """
    gap = mean if prior_mean is None else mean - prior_mean
    if prior_log_variance is None:
        return gap * (0.5 * gap) + _half_expm1_excess(F, log_variance)
    # Scaled in two steps, since exp may overflow where the product fits; and 0 * inf at no gap is 0.
    scale = F.exp(-0.25 * F.where(gap == 0, F.zeros_like(gap), prior_log_variance))
    gap = gap * scale * scale
    return gap * (0.5 * gap) + _half_expm1_excess(F, log_variance - prior_log_variance)


def _half_expm1_excess(F: Any, d: Any) -> Any:
    """``(expm1(d) - d) / 2``, at least 0, right in its leading digits, infinite only where its value is."""
    near = F.abs(d) < 0.0625
    zero = F.zeros_like(d)
    small, large = F.where(near, d, zero), F.where(near, zero, d)
    series = zero
    for k in range(8, 1, -1):  # Taylor's, which the difference would lose to rounding
        series = series * small + 0.5 / math.factorial(k)
    # expm1(d) / 2 from exponentials of d/2. They are two nodes, lest the graph merge them and
    # their gradients add up to twice the result before they are halved.
    half = F.expm1(large * 0.5) * (0.5 * F.exp(large / 2) + 0.5)
    return series * small * small + (half - 0.5 * F.broadcast_minimum(large, zero + _HUGE))
