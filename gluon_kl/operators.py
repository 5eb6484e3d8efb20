"""The formulas with MXNet's operators, elementwise over ``F`` (``mx.nd`` or ``mx.sym``), in nats.

Nothing here depends on Blocks, and the inputs already have one floating dtype.
If an infinity can occur in a formula, the argument is selected, never the result:
``where(c, a, f(b))`` would send NaN back through ``f`` at the points that were not selected.

In users' graphs, rank, shapes and dtypes are unknown. Shapes must be inferred there too, ``mx.viz.print_summary`` must
work, and arrays may have no rows. So no operator is used that fails on an unknown or empty shape (``slice_axis``,
``linalg_gemm2``, ``reshape`` with -1 after a 0). No operator takes the result of another that has one axis
(``arange_like``, ``shape_array``), because ``mx.viz.print_summary`` would fail.
"""

import math
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple

from gluon_kl import _mxnet

import mxnet as mx
from mxnet.ndarray import NDArray

SPACES = ("probs", "log_probs", "logits")

# Finite in float32, but larger than any difference of two logarithms.
_HUGE = 1e38
# Minus this replaces the logarithm of 0 if two of them are subtracted.
_FLOOR = 1e30


# The reciprocal of a number below _TINY may overflow in float32; numbers below it are multiplied by _SCALE.
_TINY, _SCALE = 2.0**-126, 2.0**64


class Rows(NamedTuple):
    """What is known of the rows along the axis of the categories."""

    whole: Any = False  # whether they are summed under one weight; an array of shape (1,) if only the graph can tell
    single: Optional[bool] = None  # whether there is one category; None if only the graph can tell


UNKNOWN = Rows()


class Mask(NamedTuple):
    """1 where a weight is 0, in pred's shape: `rows` if all weights of the row are, `terms` if the term's weight is."""

    rows: Any
    terms: Any


def log_softmax(F: Any, logits: Any, axis: int, rows: Rows = UNKNOWN) -> Any:
    """Logarithm of the softmax over `axis`; a row that holds NaN or +inf is NaN throughout.

    MXNet's own (oneDNN) gives finite values beside a single NaN, which makes no difference to the sum of a whole row.
    For one category it gives 1.4e-6 instead of 0.
    """
    if rows.single:
        return logits - logits
    out = F.log_softmax(logits, axis=axis)
    if rows.whole is not True:
        out = F.broadcast_add(out, F.max(F.BlockGrad(logits), axis=axis, keepdims=True) * 0)
    return out if rows.single is False else out * (F.softmax(F.zeros_like(logits), axis=axis) < 1)


def is_finite(x: Any) -> Any:
    """1 where `x` is finite, else 0.

    It does not compare with infinity: MXNet reads an infinite scalar as text, and fails if errno still says that
    something overflowed earlier in the process, such as ``math.exp(1000)``.
    """
    return x - x == 0


def log_of_probs(F: Any, probs: Any) -> Any:
    """Logarithm of probabilities: -inf, with a gradient of 0, where one is 0."""
    # MXNet computes the derivative as 1 / x, which overflows for the smallest numbers: they are scaled first.
    tiny = probs < _TINY
    scaled = F.where(probs, probs, F.zeros_like(probs)) * (tiny * (_SCALE - 1) + 1)
    return F.log(scaled) - tiny * math.log(_SCALE)


def to_log(F: Any, x: Any, space: str, axis: int, rows: Rows = UNKNOWN, mask: Optional[Mask] = None) -> Any:
    """The log-probabilities that `x` stands for; with a weight of 0, those of a probability of 0."""
    if space == "probs":
        return log_of_probs(F, silenced(F, x, mask, 0))
    log = log_softmax(F, open_rows(F, x, mask), axis, rows) if space == "logits" else x
    return silenced(F, log, mask, -_HUGE)


def to_weight(
    F: Any, x: Any, space: str, axis: int, rows: Rows = UNKNOWN, mask: Optional[Mask] = None,
) -> Tuple[Any, Any]:
    """The probabilities that `x` stands for, 0 with a weight of 0, and their logarithms without a gradient."""
    if space == "probs":
        x = silenced(F, x, mask, 0)
        return x, F.log(F.BlockGrad(x))
    log = to_log(F, x, space, axis, rows, mask)
    if space == "log_probs":
        return F.exp(log), F.BlockGrad(log)
    # Not exp(log): the gradient would contain the error of MXNet's log_softmax, times a logarithm.
    return silenced(F, F.softmax(open_rows(F, x, mask), axis=axis), mask, 0), F.BlockGrad(log)


def silenced(F: Any, x: Any, mask: Optional[Mask], value: float) -> Any:
    """`x`, but `value` with a gradient of 0 where the weight is 0."""
    return x if mask is None else F.where(mask.terms, mask.terms * value, x)


def open_rows(F: Any, logits: Any, mask: Optional[Mask]) -> Any:
    """The logits, but 0 in the rows of weight 0, whose softmax may not exist."""
    return logits if mask is None else F.where(mask.rows, F.zeros_like(logits), logits)


def sum_per_sample(
    F: Any, terms: Any, batch_axis: Optional[int], mean: bool, long: bool = False, scale: float = 1.0,
    rows: Any = None, in_float32: bool = False,
) -> Any:
    """Reduce every axis but `batch_axis`, by sum or mean, times `scale`: shape (batch,).

    With `batch_axis` None, the terms are already rows, (batch, terms). With `long`, the sums are computed in float64;
    else in the dtype of the terms. With `rows`, from `nonzero_weight_rows`, the result is the mean over the rows that
    count; a sample without such a row gives 0. `in_float32` says that the terms are known to be in float32.
    """
    terms = as_rows(F, terms, batch_axis)
    # In float64 MXNet 2.0.0b1 sums an infinity to NaN, in fifteen times the time of a product.
    fast = in_float32 and _mxnet.FAST_SUMS and not long
    ones = None if fast and not mean else _ones(F, terms)
    if long:
        terms, ones = (F.cast(x, dtype="float64") for x in (terms, ones))
    sums = total(terms, axis=-1) if fast else _dot(terms, ones)
    if mean:
        sums = F.broadcast_div(sums, total(ones))
    if rows is not None:
        rows = as_rows(F, F.cast(rows, dtype="float64") if long else rows, batch_axis)
        number = _dot(rows, _ones(F, rows))
        sums = F.broadcast_mul(sums, (number > 0) / F.maximum(number, 1))
    return F.reshape(sums if scale == 1 else sums * scale, shape=(-1,))


def sum_per_row(F: Any, terms: Any, axis: int, scale: float = 1.0) -> Any:
    """Reduce only `axis`, times `scale`: the shape of the terms without it, or (1,) if they have one axis."""
    sums = F.sum(terms, axis=axis, keepdims=True)
    return F.sum(sums if scale == 1 else sums * scale, axis=axis)


def swapaxes(F: Any, x: Any, one: int, other: int) -> Any:
    """`x` with two axes swapped, and a right gradient.

    MXNet 2.0.0's own operator gives a wrong one in graphs, where its result may take the memory of its input. There
    `moveaxis` is used, which ends the process on 2.0.0b1. It takes no axis twice: in a trace, a later call whose number
    of axes makes the two one raises an error.
    """
    if not _mxnet.SWAPS_IN_PLACE:
        return F.swapaxes(x, dim1=one, dim2=other)
    if isinstance(x, NDArray) and (one - other) % x.ndim == 0:
        return F.transpose(x, axes=tuple(range(x.ndim)))  # not `x`: a trace must not serve another number of axes
    return numpy_of(x).moveaxis(x.as_np_ndarray(), (one, other), (other, one)).as_nd_ndarray()


def as_rows(F: Any, terms: Any, batch_axis: Optional[int]) -> Any:
    """The terms of each sample as a row; with `batch_axis` None they already are."""
    if batch_axis is None:
        return terms
    return F.Flatten(terms if batch_axis == 0 else swapaxes(F, terms, 0, batch_axis))


def _ones(F: Any, rows: Any) -> Any:
    """A column of ones, as long as a row: a product with it is the fastest sum, except for that of oneDNN."""
    return F.transpose(F.ones_like(F.slice(rows, begin=(0,), end=(1,))))


def first_along(F: Any, x: Any, axis: int) -> Any:
    """The first slice of `x` along `axis`, which keeps length 1."""
    turned = x if axis == 0 else F.swapaxes(x, dim1=0, dim2=axis)
    first = F.slice(turned, begin=(0,), end=(1,))
    return first if axis == 0 else F.swapaxes(first, dim1=0, dim2=axis)


def nonzero_weight_rows(F: Any, x: Any, weight: Any, axis: int) -> Any:
    """1 for each row of `x` along `axis` whose weight is not 0, else 0; x's shape with 1 along `axis`."""
    rows = F.ones_like(first_along(F, x, axis))
    return rows if weight is None else F.broadcast_like(F.max(weight != 0, axis=axis, keepdims=True), rows)


def relative_entropy(F: Any, log_pred: Any, label: Any, epsilon: float, label_grad: bool = True) -> Any:
    """``label * (log label - log_pred)``; 0 where label is 0, even if `log_pred` is not finite there.

    The gradient to a label of 0 is ``log(epsilon) - log_pred``, or 0 if that is not finite;
    `label_grad=False` leaves out the passes that only this gradient needs.
    """
    if not label_grad:
        # Without a gradient to the label, every derivative here is finite.
        return label * F.where(label, F.log(label) - log_pred, label)
    # The derivative through the logarithm is label * (1 / label), which overflows for the smallest labels. So the
    # logarithm has no gradient, and (label - fixed), which is 0, adds this derivative of 1. Where a label is 0, the
    # logarithm is 1 less instead.
    fixed = F.BlockGrad(label)
    absent = F.abs(fixed) <= 0  # `==` takes up to ten times as long
    least = max(epsilon / math.e, _TINY)
    log_label = F.log(fixed + absent * least)
    if least > epsilon / math.e:
        log_label = log_label + absent * (math.log(epsilon) - 1 - math.log(least))
    # The condition rarely fails: `where` takes ten times as long if it cannot be predicted.
    minus_log_ratio = F.where(fixed + is_finite(log_pred), log_pred - log_label, absent)
    return (label - fixed) - label * minus_log_ratio


def relative_entropy_of_logs(F: Any, log_pred: Any, label: Any, log_label: Any, whole: bool) -> Any:
    """``label * (log_label - log_pred)``; 0 where `label` is 0. The logarithm of the label is a constant.

    The derivative by the label is ``log_label - log_pred + 1``. With `whole`, the label is a softmax and whole rows are
    summed: then the 1 has no effect and is left out.
    """
    terms = label * F.where(label, log_label - log_pred, label)
    return terms if whole else terms + (label - F.BlockGrad(label))


def log_ratio_of_logits(F: Any, pred: Any, label: Any, q: Any, p: Any, axis: int) -> Any:
    """Log p - log q for q = softmax(pred) and p = softmax(label), right in its last digits even if it is small.

    The difference of two log-softmaxes would contain the rounding of two log-sums. Here, only the ratio of the two
    largest probabilities is rounded. Masks are not allowed.
    """
    tops = [F.max(x, axis=axis, keepdims=True) for x in (pred, label, q, p)]
    from_top = F.broadcast_sub(label, tops[1]) - F.broadcast_sub(pred, tops[0])
    return F.broadcast_add(from_top, F.log(tops[3] / tops[2]))


def relative_entropy_of_logits(
    F: Any, pred: Any, label: Any, axis: int, pred_grad: bool = True, label_grad: bool = True,
) -> Any:
    """Non-negative terms whose sum over `axis` is KL(softmax(label) || softmax(pred)).

    With p, q the two softmaxes and u = log p - log q, a term is ``p*u + q - p``: the added
    ``q - p`` sums to 0, and every term is 0 at u = 0. For u > -1 it is ``p * (u + expm1(-u))``,
    which keeps the leading digits of nearly equal rows. The gradients are written as closed forms: q - p to `pred`, and
    p * (u - the sum of p * u) to `label`.
    """
    fixed_pred, fixed_label = F.BlockGrad(pred) if pred_grad else pred, F.BlockGrad(label) if label_grad else label
    q, p = F.softmax(fixed_pred, axis=axis), F.softmax(label, axis=axis)
    fixed_p = F.BlockGrad(p) if label_grad else p
    u = log_ratio_of_logits(F, fixed_pred, fixed_label, q, fixed_p, axis)
    u = F.where(fixed_p, u, fixed_p - _HUGE)
    excess = q - fixed_p
    near = F.maximum(u, -1)
    square = F.square(near)
    # If u is below 3e-4, u + expm1(-u) loses digits, and two terms of its series are enough.
    value = fixed_p * F.where(square < 1e-7, square * (0.5 - near / 6), near + F.expm1(-near))
    value = F.where(u < -1, fixed_p * u + excess, value)
    carriers = [F.contrib.sign_ste(pred) * excess] if pred_grad else []
    carriers += [p * F.minimum(u, _HUGE)] if label_grad else []
    return sum([x - F.BlockGrad(x) for x in carriers], value)


def kl_terms(
    F: Any, pred: Any, label: Any, *, pred_space: str, label_space: str, axis: int, epsilon: float = 1e-12,
    rows: Rows = UNKNOWN, mask: Optional[Mask] = None, pred_grad: bool = True, label_grad: bool = True,
) -> Any:
    """Terms of KL(label || pred) in pred's shape, with the gradients that are needed.

    If both sides are logits and `rows` says that whole rows are summed under one weight, the terms have the form that
    keeps the digits of small divergences.
    """
    both_logits = pred_space == label_space == "logits"
    if both_logits and rows.whole is not False:
        of_whole = relative_entropy_of_logits(
            F, open_rows(F, pred, mask), open_rows(F, label, mask), axis, pred_grad, label_grad)
        if rows.whole is True:
            return of_whole
    if pred_space == "probs" and not pred_grad:
        log_pred = F.log(pred)
    else:
        log_pred = to_log(F, pred, pred_space, axis, rows, mask)
    if label_space == "probs":
        return relative_entropy(F, log_pred, silenced(F, label, mask, 0), epsilon, label_grad)
    whole = rows.whole is True and label_space == "logits"
    terms = relative_entropy_of_logs(F, log_pred, *to_weight(F, label, label_space, axis, rows, mask), whole)
    if both_logits and rows.whole is not False:
        terms = F.where(F.broadcast_like(rows.whole, terms), of_whole, terms)
    return terms


def to_probs(F: Any, x: Any, space: str, axis: int, mask: Optional[Mask] = None) -> Any:
    """The probabilities that `x` stands for, 0 with a weight of 0."""
    if space == "logits":
        x = F.softmax(open_rows(F, x, mask), axis=axis)
    return F.exp(silenced(F, x, mask, -_HUGE)) if space == "log_probs" else silenced(F, x, mask, 0)


def _two_sides(
    F: Any, pred: Any, label: Any, pred_space: str, label_space: str, axis: int, rows: Rows, mask: Optional[Mask],
) -> Tuple[Any, Any, Any, Any, bool]:
    """Probabilities p of label and q of pred; log p - log q without a gradient, 0 where both are 0; log q.

    The last value is whether both are softmaxes whose whole rows are summed. Then the difference is right in all its
    digits, and log q is None.
    """
    both_logits = rows.whole is not False and pred_space == label_space == "logits"
    if both_logits:
        pred, label = (open_rows(F, x, mask) for x in (pred, label))
        q, p = F.softmax(pred, axis=axis), F.softmax(label, axis=axis)
        u = log_ratio_of_logits(F, pred, label, q, p, axis)
        return p, q, F.BlockGrad(F.clip(F.where(p + q, u, F.zeros_like(u)), -_FLOOR, _FLOOR)), None, True
    p, log_p = to_weight(F, label, label_space, axis, rows, mask)
    q, log_q = to_weight(F, pred, pred_space, axis, rows, mask)
    return p, q, F.BlockGrad(F.maximum(log_p, -_FLOOR) - F.maximum(log_q, -_FLOOR)), log_q, False


def skew_terms(
    F: Any, pred: Any, label: Any, *, pred_space: str, label_space: str, axis: int, skew: float,
    epsilon: float = 1e-12, rows: Rows = UNKNOWN, mask: Optional[Mask] = None, label_grad: bool = True,
) -> Any:
    """Terms ``p * log(p/m)`` of label p, pred q and m = s * p + r * q, with s the skew and r = 1 - s.

    A term is p and q times their derivatives ``log(p/m) + r * q/m`` and ``-r * p/m``, which are constants to autograd.
    If whole rows of two softmaxes are summed, the terms are ``p * (y - log1p(y))`` with y = m/p - 1: none is below 0,
    and the added ``p * y = r * (q - p)`` sums to 0.
    """
    p, q, u, log_q, exact = _two_sides(F, pred, label, pred_space, label_space, axis, rows, mask)
    rest = 1 - skew
    of_p, of_q = _log_mixture(F, u, skew)
    by_p, by_q = rest * F.exp(-of_q) - of_p, -rest * F.exp(-of_p)
    if label_space == "probs" and label_grad:
        at_zero = F.where(is_finite(log_q), math.log(epsilon) - math.log(rest) - log_q, F.zeros_like(p))
        by_p = F.where(p, by_p, at_zero)
    if pred_space == "probs":
        by_q = by_q * ((p + q) != 0)
    terms = p * by_p + q * by_q
    if not exact:
        return terms
    fixed_p, fixed = F.BlockGrad(p), F.BlockGrad(terms)
    y = rest * F.expm1(F.minimum(-u, 1))
    square = F.square(y)
    series = square * (0.5 - y * (1 / 3 - y * (0.25 - y / 5)))
    whole = F.where(square < 1e-4, fixed_p * series, F.relu(rest * (F.BlockGrad(q) - fixed_p) - fixed_p * of_p))
    if rows.whole is not True:
        whole = F.where(F.broadcast_like(rows.whole, terms), whole, fixed)
    return terms + (whole - fixed)


def js_terms(
    F: Any, pred: Any, label: Any, *, pred_space: str, label_space: str, axis: int, beta: float,
    rows: Rows = UNKNOWN, mask: Optional[Mask] = None, label_grad: bool = True,
) -> Any:
    """Terms ``beta * p * log(p/m) + (1-beta) * q * log(q/m)`` of label p, pred q and their mixture m.

    The derivatives by p and by q are ``beta * log(p/m)`` and ``(1-beta) * log(q/m)``, the same factors that multiply
    p and q in a term. So these factors are constants to autograd, and no derivative of them can overflow. In exact
    arithmetic no term is below 0, for any two positive numbers.
    """
    p, q, u, _, both_logits = _two_sides(F, pred, label, pred_space, label_space, axis, rows, mask)
    of_p, of_q = _log_mixture(F, u, beta)
    if label_space == "probs" and label_grad:
        of_p = _bounded(F, of_p, of_q)
    if pred_space == "probs":
        of_q = _bounded(F, of_q, of_p)
    terms = p * (of_p * -beta) + q * (of_q * (beta - 1))
    # The addition changes only values, not gradients: if rounding gave less than 0, or if digits were lost.
    fixed = F.BlockGrad(terms)
    missing = F.relu(-fixed)
    if both_logits:
        square = F.square(u)
        series = square * (beta * (1 - beta) / 2 - u * (beta * (1 - beta) * (1 + beta) / 6))
        missing = F.where(square < 1e-6, F.BlockGrad(p) * series - fixed, missing)
    return terms + missing


def _bounded(F: Any, log_share: Any, other: Any) -> Any:
    """The logarithm of m / p; if p is 0, as if it were e^80 times smaller than the other side."""
    return F.where(log_share < _FLOOR / 2, log_share, other + 80)


def _log_mixture(F: Any, u: Any, beta: float) -> Tuple[Any, Any]:
    """The logarithms of m / p and of m / q with m = beta * p + (1-beta) * q, from u = log p - log q.

    For the larger side it is ``log1p(c * expm1(-|u|))``, with c the share of the smaller side: this is 0 at u = 0, and
    keeps its digits nearby. For the smaller side it is larger by |u|.
    """
    size = -F.abs(u)
    odds = F.expm1(size)
    if beta == 0.5:
        log_m = F.log1p(0.5 * odds)
        return log_m - F.minimum(u, 0), log_m + F.relu(u)
    ahead = u > 0
    behind = 1 - ahead
    smaller, larger = ahead * (1 - beta) + behind * beta, ahead * beta + behind * (1 - beta)
    ratio = F.exp(size)
    own = smaller * odds
    # log1p loses digits close to -1, and |u| + log_m loses those of a small sum.
    log_m = F.where(own < -0.5, F.log(larger + smaller * ratio), F.log1p(own))
    other = F.where(size > -20, F.log1p(-larger * odds / ratio), log_m - size)
    return F.where(ahead, log_m, other), F.where(ahead, other, log_m)


def js_form(beta: float) -> Dict[str, Any]:
    """The options of `pair_terms` for the Jensen-Shannon divergence; for `beta` 0 or 1, for the limit."""
    return {"form": "reverse_kl" if beta else "kl"} if beta in (0, 1) else {"form": "js", "beta": float(beta)}


def skew_form(form: str, skew: float) -> Dict[str, Any]:
    """The options of `pair_terms` for the skewed divergence of a form; with a skew of 0, for the form itself."""
    return {"form": "skew_" + form, "skew": float(skew)} if skew else {"form": form}


def pair_terms(
    F: Any, pred: Any, label: Any, *, pred_space: str, label_space: str, axis: int, form: str = "kl",
    beta: float = 0.5, skew: float = 0.0, epsilon: float = 1e-12, rows: Rows = UNKNOWN, mask: Optional[Mask] = None,
    label_grad: bool = True,
) -> Any:
    """Terms of "kl", KL(label || pred), of "reverse_kl", KL(pred || label), of these two skewed, of "js" or of "tv".

    Terms that a `mask` leaves out are finite, and their gradients are 0.
    """
    own: Dict[str, Any] = {"pred_space": pred_space, "label_space": label_space}
    given: Dict[str, Any] = {"axis": axis, "rows": rows, "mask": mask}
    if form == "tv":
        q, p = (to_probs(F, x, space, axis, mask) for x, space in ((pred, pred_space), (label, label_space)))
        return F.abs(q - p) * 0.5
    if form == "skew_kl":
        return skew_terms(F, pred, label, skew=skew, epsilon=epsilon, label_grad=label_grad, **own, **given)
    if form == "skew_reverse_kl":
        return skew_terms(F, label, pred, skew=skew, pred_space=label_space, label_space=pred_space, **given)
    if form == "kl":
        return kl_terms(F, pred, label, epsilon=epsilon, label_grad=label_grad, **own, **given)
    if form == "reverse_kl":
        return kl_terms(F, label, pred, pred_space=label_space, label_space=pred_space, pred_grad=label_grad, **given)
    return js_terms(F, pred, label, beta=beta, label_grad=label_grad, **own, **given)


def more_than_one(F: Any, x: Any, axis: int, batch_axis: int) -> Any:
    """1 if `axis` has several categories and is not the `batch_axis`, else 0; the rank may be unknown."""
    return F.sum(F.ones_like(first_along(F, x, batch_axis)), axis=axis, keepdims=True) > 1


def numpy_of(x: Any) -> Any:
    return mx.np if isinstance(x, mx.nd.NDArray) else mx.sym.np


def total(x: Any, axis: Optional[int] = None) -> Any:
    """The sum, with as many axes as `x`, by NumPy's operator, which also takes an empty array."""
    return numpy_of(x).sum(x.as_np_ndarray(), axis=axis, keepdims=True).as_nd_ndarray()


def _dot(x: Any, y: Any) -> Any:
    """NumPy's dot of legacy arrays or Symbols."""
    return numpy_of(x).dot(x.as_np_ndarray(), y.as_np_ndarray()).as_nd_ndarray()


def one_hot(F: Any, index: Any, pred: Any, axis: int, batch_axis: int, smoothing: float = 0) -> Any:
    """Class indices, with length 1 along `axis`, as one-hot rows in pred's shape; NaN for an index that is no class.

    `smoothing` is the share that is spread evenly over all categories.
    """
    ones = F.ones_like(first_along(F, pred, batch_axis))
    # cumsum takes no negative axis.
    first = F.swapaxes(ones, dim1=0, dim2=axis)
    numbers = F.swapaxes(numpy_of(first).cumsum(first.as_np_ndarray(), axis=0).as_nd_ndarray(), dim1=0, dim2=axis) - 1
    count = F.sum(ones, axis=axis, keepdims=True)
    known = (index >= 0) * (index == F.floor(index)) * F.broadcast_lesser(index, count)
    # `numbers` comes first, because print_summary treats the first variable of a graph as a layer with two axes.
    hot = F.broadcast_mul(F.broadcast_equal(numbers, index), known / known)
    return F.broadcast_add(hot * (1 - smoothing), smoothing / count) if smoothing else hot


def cross_entropy(F: Any, log_pred: Any, label: Any) -> Any:
    """``-label * log_pred``; 0 where label is 0, even if `log_pred` is not finite there."""
    size = F.abs(label)
    # This condition rarely fails: `where` takes ten times as long if its condition cannot be predicted.
    return -label * F.where(size + is_finite(log_pred), log_pred, size)


def gaussian_differences(
    F: Any, mean: Any, width: Any, prior_mean: Optional[Any] = None, prior_width: Optional[Any] = None, *,
    std: bool = False,
) -> Tuple[Any, Any]:
    """The differences of mean and log-variance from the prior's; that of the mean in the prior's standard deviations.

    Widths are log-variances, or standard deviations if `std`; None stands for the standard prior.
    """
    distance = mean if prior_mean is None else mean - prior_mean
    if std:
        d = 2 * F.log(width if prior_width is None else width / prior_width)
        return distance if prior_width is None else distance / prior_width, d
    if prior_width is None:
        return distance, width
    # Two steps, because exp may overflow although the product does not; and a distance of 0 must give 0, not 0 * inf.
    scale = F.exp(-0.25 * F.where(distance == 0, F.zeros_like(distance), prior_width))
    return distance * scale * scale, width - prior_width


def gaussian_terms(F: Any, distance: Any, d: Any, doubled: bool = False) -> Any:
    """KL(N(m, v) || N(m', v')) of every dimension, with distance = (m - m') / sqrt(v') and d = log v - log v'.

    A term is ``(distance^2 + expm1(d) - d) / 2``; neither summand is below 0. With `doubled`, the result is twice that,
    in float64 for a result in float32: exp(d) - 1 then has enough digits.
    """
    if doubled:
        excess = F.exp(d) - 1 - F.minimum(d, _HUGE)  # avoids inf - inf
        return F.square(distance) + _not_negative(F, excess)
    return F.add_n(F.square(distance * math.sqrt(0.5)), *_half_expm1_excess(F, d))


def gaussian_sums(
    F: Any, squares: Any, d: Any, batch_axis: Optional[int], mean: bool, long: bool, scale: float,
) -> Any:
    """The terms of squared distances and of `d` in float64, reduced as by `sum_per_sample` in fewer passes: a column.

    With `long`, squares and result are in float64, else in float32. A square may overflow although its half does not.
    Operators of two arrays are NumPy's, because AMP puts a cast before MXNet's own that refuses float64 on CPUs.
    """
    squares, d = (as_rows(F, x, batch_axis) for x in (squares, d))
    ones = _ones(F, d)
    shares = ones * (scale / 2)
    if mean:
        shares = (shares.as_np_ndarray() / _dot(F.transpose(ones), ones).as_np_ndarray()).as_nd_ndarray()
    np, total = numpy_of(d), _dot(d, shares)
    # If the total is infinite, so is the sum of exp(d): this avoids inf - inf, and keeps the derivative.
    total = np.where(*(x.as_np_ndarray() for x in (total < _HUGE, total, F.contrib.sign_ste(total))))
    excess = _dot(F.exp(d) - 1, shares).as_np_ndarray() - total
    excess = (excess - F.BlockGrad(np.minimum(excess, 0).as_nd_ndarray()).as_np_ndarray()).as_nd_ndarray()
    if not long:
        shares, excess = (F.cast(x, dtype="float32") for x in (shares, excess))
    return (_dot(squares, shares).as_np_ndarray() + excess.as_np_ndarray()).as_nd_ndarray()


def _not_negative(F: Any, x: Any) -> Any:
    """`x`, or 0 where rounding made it negative; the gradient is that of `x`."""
    return x - F.BlockGrad(F.minimum(x, 0))


# Between these, a polynomial replaces (expm1(s) - s) / 2. With this upper end, exp does not overflow if expm1(d) / 2
# does not.
_LOW, _HIGH = -0.25, 0.75
# The Chebyshev polynomial of (expm1(s) - s) / (2 s^2) between them, right to 1e-17, from the highest power down.
_EXCESS = (
    9.987345145599013e-11, 1.0208160714365642e-09, 1.2537035098988785e-08,
    1.3778624477451703e-07, 1.3778645005256313e-06, 1.2400793991581933e-05,
    9.92063492563606e-05, 0.0006944444444250738, 0.004166666666666269,
    0.020833333333333655, 0.08333333333333333, 0.25,
)


def _half_expm1_excess(F: Any, d: Any) -> Tuple[Any, Any, Any]:
    """Summands of ``(expm1(d) - d) / 2``, right in its leading digits, and infinite only if its value is.

    There is no branch. Let s be d clipped to the ends of the polynomial, p = (expm1(s) - s) / 2, h = expm1(s) / 2, and
    o = d - s, which is 0 between the ends. Then the value is ``p + h o + (h + 1/2)(expm1(o) - o)``. s is a constant to
    autograd: the derivative, ``h + (h + 1/2) expm1(o)``, is right for every s.
    """
    s = F.minimum(F.maximum(F.BlockGrad(d), _LOW), _HIGH)
    p = F.square(s) * _excess(s)
    minus_h = s * -0.5 - p
    o = d - s
    # Not h * o: the gradients to one o would be added in an order that loses digits. The minimum avoids inf - inf.
    return (0.5 - minus_h) * (F.exp(o) - F.minimum(o, _HUGE) - 1), (s - d) * minus_h, p


def _excess(s: Any) -> Any:
    polynomial = s * _EXCESS[0] + _EXCESS[1]
    for coefficient in _EXCESS[2:]:
        polynomial = polynomial * s + coefficient
    return polynomial


def bernoulli_terms(
    F: Any, pred: Any, label: Any, *, pred_space: str, label_space: str, epsilon: float = 1e-12,
) -> Any:
    """KL(Bernoulli(label) || Bernoulli(pred)) of every element; each side probabilities or logits.

    With p, q the probabilities, s, z their logits and u = s - z, a term is ``p u + log1p(p expm1(-u))``
    where |u| < 1, and ``-H(p) - p log q - (1-p) log(1-q)`` elsewhere. Both are computed for the rarer outcome of the
    label, so p is at most 1/2 and the logarithms lose no digits. The derivatives are written as closed forms.
    """
    own, other = F.BlockGrad(pred), F.BlockGrad(label)
    common = other > (0.5 if label_space == "probs" else 0)
    sign = 1 - 2 * common
    p, not_p, s = _outcome(F, other, label_space, common, sign)
    q, not_q, z = _outcome(F, own, pred_space, common, sign)
    absent, zero = p == 0, F.zeros_like(p)
    u = s - z
    near = F.abs(u) < 1
    small = F.where(near, u, zero)
    present_s, present_z = (F.where(absent, zero, x) for x in (s, F.relu(-z)))
    far = p * present_s + F.log1p(-p) + not_p * F.relu(z) + p * present_z + F.log1p(F.exp(-F.abs(z)))
    value = F.relu(F.where(near, p * small + F.log1p(p * F.expm1(-small)), far))

    if pred_space == "logits":
        to_pred = q - p
    else:  # if a probability is 0, the derivative of its logarithm counts as 0, as in `log_of_probs`
        ratios = [F.minimum(x * (y != 0) / (y + (y == 0)), _HUGE) for x, y in ((not_p, not_q), (p, q))]
        to_pred = ratios[0] - ratios[1]
    log_ratio = F.where(absent, zero + math.log(epsilon), s) - z
    to_label = F.where(is_finite(log_ratio) + (log_ratio != log_ratio), log_ratio, zero)
    if label_space == "logits":
        to_label = p * not_p * to_label
    return _with_gradients(F, value, (pred, sign * to_pred), (label, sign * to_label))


def _outcome(F: Any, x: Any, space: str, common: Any, sign: Any) -> Tuple[Any, Any, Any]:
    """The probability of the label's rarer outcome (0 where `common`, else 1), that of the other, and the logit."""
    if space == "logits":
        score = sign * x
        return F.sigmoid(score), F.sigmoid(-score), score
    other = 1 - x
    return F.where(common, other, x), F.where(common, x, other), sign * (F.log(x) - F.log1p(-x))


def _with_gradients(F: Any, value: Any, *gradients: Any) -> Any:
    """`value`, with the given gradient to x for each of the pairs (x, gradient)."""
    # The sign is finite for every x, and the gradient passes through this operator unchanged.
    parts = [F.contrib.sign_ste(x) * gradient for x, gradient in gradients]
    return F.add_n(value, *[part - F.BlockGrad(part) for part in parts])


def weigh(
    F: Any, world: Any, terms: Callable[..., Any], inputs: Sequence[Any], weight: Any, axis: Optional[int],
    learned: bool = True,
) -> Any:
    """``terms(*inputs, mask) * weight``, where weight 0 ignores a whole row along `axis`, or a term, even if it is NaN.

    Terms that the mask leaves out are finite, and their gradients are 0. `inputs` have one shape. `weight` None counts
    as 1, without a mask. With `axis` None, every term is a row by itself. With `learned` False, nobody asks for the
    gradient to the weight.
    """
    if weight is None:
        return terms(*inputs, None)
    none = weight == 0
    weight, off = F.broadcast_like(weight, inputs[0]), F.broadcast_like(none, inputs[0])
    by_row = axis is None or world.row_weight
    rows_off = off if by_row else F.broadcast_like(F.min(none, axis=axis, keepdims=True), inputs[0])
    heard = terms(*inputs, Mask(rows_off, off))
    if not (learned and world.gradients[-1]):
        return heard * weight
    # The gradient to a weight of 0 is the term itself, if its row is finite.
    silent = F.BlockGrad(terms(*(F.BlockGrad(x) for x in inputs), None))
    finite = is_finite(silent if axis is None else F.sum(silent, axis=axis, keepdims=True))
    zero = F.zeros_like(weight)
    silent = F.where(off * F.broadcast_like(finite, off), silent, zero)
    return (F.where(off, zero, heard) + silent) * weight
