"""Independent float64 reference, written from the definitions; imports nothing of the package.

KL(P || Q) = sum_i p_i (log p_i - log q_i), in nats, with 0 log 0 = 0.
"""

import numpy as np


def wide(x, dtype=np.float64):
    """x in `dtype` at least; complex stays complex, for `gradients`."""
    x = np.asarray(x)
    return x.astype(np.result_type(x, dtype))


def log_softmax(x, axis=-1):
    """log softmax; NaN for a row that holds NaN or +inf, or nothing but -inf."""
    x = wide(x)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        shifted = x - x.max(axis=axis, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def log_of(x, space, axis):
    """The logarithm of the probabilities that x stands for."""
    x = wide(x)
    if space == "logits":
        return log_softmax(x, axis)
    if space == "log_probs":
        return x
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(x)


def probability_of(x, space, axis):
    return wide(x) if space == "probs" else np.exp(log_of(x, space, axis))


def kl_terms(pred, label, pred_space="log_probs", label_space="probs", axis=-1):
    """p (log p - log q) for every element; 0 where p is 0."""
    p = probability_of(label, label_space, axis)
    with np.errstate(invalid="ignore"):
        terms = p * (log_of(label, label_space, axis) - log_of(pred, pred_space, axis))
    return np.where(p == 0, 0.0, terms)


def full_weights(weight, shape, batch_axis, axis):
    """sample_weight with as many axes as shape: per sample, or per row along axis, or as it is."""
    weight, ndim = np.asarray(weight, dtype=np.float64), len(shape)
    if weight.ndim == ndim:
        return weight
    if weight.shape == (shape[batch_axis],):
        return weight.reshape([-1 if i == batch_axis % ndim else 1 for i in range(ndim)])
    assert axis is not None and weight.shape == tuple(n for i, n in enumerate(shape) if i != axis % ndim)
    return np.expand_dims(weight, axis % ndim)


def row_weights(weight, shape, batch_axis, axis):
    """sample_weight in pred's shape, and where it is 0: for whole rows along axis, and for single elements.

    axis None: every element is a row.
    """
    weight = np.broadcast_to(1.0 if weight is None else full_weights(weight, shape, batch_axis, axis), shape)
    silent = weight == 0
    return weight, silent if axis is None else np.broadcast_to(silent.all(axis=axis, keepdims=True), shape)


def count(shape, batch_axis, reduction, axis=-1, weights=None):
    """The divisor of a result; for "row_mean" the number of each sample's rows that count, or inf if there is none."""
    if reduction in ("none", "sum", "row"):
        return 1
    if reduction == "mean":
        return np.prod(shape, dtype=np.int64) // max(shape[batch_axis], 1)
    heard = np.broadcast_to(1.0 if weights is None else weights, shape) != 0
    if axis is not None:
        heard = heard.any(axis=axis, keepdims=True)
    rows = heard.sum(axis=tuple(i for i in range(len(shape)) if i != batch_axis % len(shape)))
    return np.broadcast_to(np.where(rows == 0, np.inf, rows), shape[batch_axis])


def result_shape(shape, batch_axis, reduction, axis=-1):
    if reduction == "row":
        return tuple(n for i, n in enumerate(shape) if i != axis % len(shape)) or (1,)
    return tuple(shape) if reduction == "none" else (shape[batch_axis],)


def reduce(terms, batch_axis=0, reduction="mean", axis=-1, weights=None):
    if reduction == "none":
        return terms
    if reduction == "row":
        return np.atleast_1d(terms.sum(axis=axis))
    axes = tuple(i for i in range(terms.ndim) if i != batch_axis % terms.ndim)
    return terms.sum(axis=axes) / count(terms.shape, batch_axis, reduction, axis, weights)


def space_of(from_logits, pred_space):
    return pred_space or ("log_probs" if from_logits else "logits")


def kl_divergence(pred, label, *, from_logits=True, label_space="probs", pred_space=None, axis=-1, batch_axis=0,
                  weight=None, reduction="mean", sample_weight=None):
    """The result of KLDivLoss."""
    terms = kl_terms(pred, label, space_of(from_logits, pred_space), label_space, axis)
    return weighted(terms, batch_axis=batch_axis, axis=axis, weight=weight, reduction=reduction,
                    sample_weight=sample_weight)


def through_softmax(gradient, x, axis):
    """The gradient to logits, from the gradient to their log softmax."""
    return gradient - np.exp(log_softmax(x, axis)) * gradient.sum(axis=axis, keepdims=True)


def kl_gradients(pred, label, head=None, *, from_logits=True, label_space="probs", pred_space=None, axis=-1,
                 batch_axis=0, weight=None, reduction="mean", sample_weight=None, epsilon=1e-12):
    """Closed-form gradients of sum(head * kl_divergence(...)) to pred, label and sample_weight."""
    pred, label = np.asarray(pred, np.float64), np.asarray(label, np.float64)
    shape = pred.shape
    weights, silent = row_weights(sample_weight, shape, batch_axis, axis)
    if head is None:
        head = np.ones(result_shape(shape, batch_axis, reduction, axis))
    head = head_of_terms(head, shape, batch_axis, reduction, axis, weights) * (1.0 if weight is None else weight)

    pred_space = space_of(from_logits, pred_space)
    p = probability_of(label, label_space, axis)
    log_p, log_q = log_of(label, label_space, axis), log_of(pred, pred_space, axis)
    scale = head * weights
    with np.errstate(invalid="ignore"):
        to_pred = -p * scale
        ratio = np.where(p == 0, 0.0, log_p - log_q)
        if label_space == "probs":
            absent = np.where(np.isfinite(log_q), np.log(epsilon) - log_q, 0.0)
            to_label = np.where(p == 0, absent, ratio + 1) * scale
        else:
            to_label = p * (ratio + 1) * scale
        if pred_space == "logits":
            to_pred = through_softmax(to_pred, pred, axis)
        elif pred_space == "probs":
            to_pred = np.where(pred == 0, 0.0, to_pred / np.where(pred == 0, 1.0, pred))
        if label_space == "logits":
            to_label = through_softmax(to_label, label, axis)
        to_pred, to_label = np.where(silent, 0.0, to_pred), np.where(silent, 0.0, to_label)

        terms = kl_terms(pred, label, pred_space, label_space, axis)
        finite = np.isfinite(terms.sum(axis=axis, keepdims=True))
        to_weight = np.where((weights == 0) & ~finite, 0.0, terms) * head
    if sample_weight is None:
        return to_pred, to_label, None
    return to_pred, to_label, to_given_weight(to_weight, sample_weight, batch_axis, axis)


def head_of_terms(head, shape, batch_axis, reduction, axis, weights):
    """The gradient to each weighted term of sum(head * reduce(terms))."""
    if reduction == "row" and len(shape) > 1:
        head = np.expand_dims(head, axis % len(shape))
    elif reduction not in ("none", "row"):
        head = head / count(shape, batch_axis, reduction, axis, weights)
        head = np.reshape(head, [-1 if i == batch_axis % len(shape) else 1 for i in range(len(shape))])
    return np.broadcast_to(head, shape)


def to_given_weight(gradient, sample_weight, batch_axis, axis):
    """The gradient to sample_weight, from that to its broadcast copy."""
    return sum_to(gradient, full_weights(sample_weight, gradient.shape, batch_axis, axis).shape).reshape(
        np.shape(sample_weight))


def sum_to(x, shape):
    """x summed over the axes that NumPy would broadcast from shape."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    return x.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def gradients(terms, inputs, scale, axis):
    """d sum(scale * terms(*inputs)) / d input, for each input; None for those that are None or numbers.

    By a complex step: Im f(x + ih) / h is f'(x), exact to rounding, since nothing is subtracted. A term depends on its
    own row along axis alone (axis None: on its own element), so one category of every row is moved at once.
    """
    results = []
    for i, x in enumerate(inputs):
        if x is None or np.ndim(x) == 0:
            results.append(None)
            continue
        result, places = np.zeros(scale.shape), [...]
        if axis is not None:
            places = [(slice(None),) * (axis % scale.ndim) + (k,) for k in range(scale.shape[axis])]
        for place in places:
            moved = np.broadcast_to(x, scale.shape).astype(complex)
            moved[place] += 1e-30j
            change = scale * terms(*inputs[:i], moved, *inputs[i + 1:]).imag / 1e-30
            result[place] = change if axis is None else change.sum(axis=axis)
        results.append(sum_to(result, np.shape(x)))
    return results


def reverse_kl_terms(pred, label, pred_space="log_probs", label_space="probs", axis=-1):
    """q (log q - log p): the divergence of the label from the prediction."""
    return kl_terms(label, pred, label_space, pred_space, axis)


def log_add(x, y):
    """log(e^x + e^y), of complex numbers too."""
    high, low = np.maximum(x, y), np.minimum(x, y)
    return np.where(high == -np.inf, high, high + np.log1p(np.exp(low - high)))


def js_terms(pred, label, pred_space="log_probs", label_space="probs", axis=-1, beta=0.5):
    """beta p log(p / m) + (1 - beta) q log(q / m) for every element, m = beta p + (1 - beta) q.

    At the ends of beta, KL(label || pred) and KL(pred || label), which the formula divided by beta and 1 - beta nears.
    """
    if beta == 0:
        return kl_terms(pred, label, pred_space, label_space, axis)
    if beta == 1:
        return reverse_kl_terms(pred, label, pred_space, label_space, axis)
    log_p, log_q = log_of(label, label_space, axis), log_of(pred, pred_space, axis)
    with np.errstate(invalid="ignore"):
        log_m = log_add(np.log(beta) + log_p, np.log1p(-beta) + log_q)
        terms = [np.where(log_side == -np.inf, 0.0, share * np.exp(log_side) * (log_side - log_m))
                 for share, log_side in ((beta, log_p), (1 - beta, log_q))]
    return terms[0] + terms[1]


def skew_terms(pred, label, pred_space="log_probs", label_space="probs", axis=-1, skew=0.1):
    """p (log p - log(s p + (1 - s) q)) for every element; 0 where p is 0."""
    log_p, log_q = log_of(label, label_space, axis), log_of(pred, pred_space, axis)
    with np.errstate(invalid="ignore"):
        log_m = log_add(np.log(skew) + log_p, np.log1p(-skew) + log_q)
        return np.where(log_p == -np.inf, 0.0, np.exp(log_p) * (log_p - log_m))


def skew_reverse_terms(pred, label, pred_space="log_probs", label_space="probs", axis=-1, skew=0.1):
    """q (log q - log(s q + (1 - s) p)) for every element."""
    return skew_terms(label, pred, label_space, pred_space, axis, skew)


def total_variation_terms(pred, label, pred_space="log_probs", label_space="probs", axis=-1):
    """|p - q| / 2 for every element; the sign is that of the real parts."""
    apart = probability_of(pred, pred_space, axis) - probability_of(label, label_space, axis)
    return apart * np.sign(apart.real) / 2


def divergence_terms(pred, label, pred_space, label_space, axis, divergence, beta=0.5, skew=0.1):
    """The terms of a divergence, by its name."""
    sides = pred, label, pred_space, label_space, axis
    if divergence == "tv":
        return total_variation_terms(*sides)
    if divergence.startswith("skew") and skew > 0:
        return (skew_terms if divergence == "skew_kl" else skew_reverse_terms)(*sides, skew)
    return js_terms(*sides, {"kl": 0, "reverse_kl": 1, "js": beta}[divergence.replace("skew_", "")])


def js_gradients(pred, label, pred_space="log_probs", label_space="probs", axis=-1, beta=0.5):
    """Closed-form gradients of the sum of js_terms to pred and to label, for 0 < beta < 1.

    By a side's probability it is its share times the logarithm of what m leaves it. A probability of 0 has the slope
    of one e^80 times smaller than the other side's, and 0 where that is 0 too.
    """
    logs = log_of(pred, pred_space, axis), log_of(label, label_space, axis)
    shares = np.log1p(-beta), np.log(beta)
    gradients = []
    for own, other, x, space in ((0, 1, pred, pred_space), (1, 0, label, label_space)):
        probability = probability_of(x, space, axis)
        with np.errstate(invalid="ignore"):
            absent = (logs[own] == -np.inf) & (logs[other] > -np.inf)
            log_own = np.where(absent, logs[other] - 80, logs[own])
            log_m = np.logaddexp(shares[own] + log_own, shares[other] + logs[other])
            slope = np.where(logs[own] == logs[other], 0.0, np.exp(shares[own]) * (log_own - log_m))
        if space != "probs":
            slope = probability * slope
        gradients.append(through_softmax(slope, x, axis) if space == "logits" else slope)
    return gradients


def reverse_kl_gradients(pred, label, pred_space="log_probs", label_space="probs", axis=-1):
    """Closed-form gradients of the sum of reverse_kl_terms to pred and to label; 0 to a label of 0."""
    to_label, to_pred, _ = kl_gradients(label, pred, pred_space=label_space, label_space=pred_space, axis=axis,
                                        reduction="sum")
    return to_pred, to_label


def weighted(terms, *, batch_axis=0, axis=-1, weight=None, reduction="mean", sample_weight=None, heard=1):
    """Terms times their weights, reduced; where `heard` is 0, the weight is 0 too."""
    weights = row_weights(sample_weight, terms.shape, batch_axis, axis)[0] * heard
    with np.errstate(invalid="ignore"):
        terms = np.where(weights == 0, 0.0, terms * weights)
    return reduce(terms, batch_axis, reduction, axis, weights) * (1.0 if weight is None else weight)


def distillation_terms(pred, label, teacher_pred, axis=-1, *, temperature=1.0, hard_weight=0.5, sparse_label=True,
                       divergence="kl", beta=0.5, skew=0.1, teacher_space="logits", label_smoothing=0):
    """hard_weight * CE(label, pred) + (1 - hard_weight) * T^2 * D(teacher, pred) for every element."""
    pred, terms = wide(pred), 0.0
    if hard_weight > 0:
        if sparse_label:
            label = np.asarray(label)
            if label.ndim < pred.ndim:  # else it has 1 along axis
                label = np.expand_dims(label, axis)
            classes = np.moveaxis(np.arange(float(pred.shape[axis])).reshape([1] * (pred.ndim - 1) + [-1]), -1, axis)
            known = (label == classes).any(axis=axis, keepdims=True)
            label = np.where(known, label == classes, np.nan)
            label = (1 - label_smoothing) * label + label_smoothing / pred.shape[axis]
        with np.errstate(invalid="ignore"):
            terms = terms - hard_weight * np.where(label == 0, 0.0, label * log_softmax(pred, axis))
    if hard_weight < 1:
        teacher_pred = wide(teacher_pred)
        if teacher_space == "logits":
            teacher_pred = teacher_pred / temperature
        soft = divergence_terms(pred / temperature, teacher_pred, "logits", teacher_space, axis, divergence, beta, skew)
        terms = terms + (1 - hard_weight) * temperature ** (1 if divergence == "tv" else 2) * soft
    return terms


def heard(label, shape, axis, ignore_label):
    """1 for each row whose class is not ignored, else 0, in pred's shape with 1 along axis."""
    column = [1 if i == axis % len(shape) else n for i, n in enumerate(shape)]
    return (np.reshape(label, column) != ignore_label).astype(float)


def distillation(pred, label, teacher_pred, *, weight=None, batch_axis=0, axis=-1, sample_weight=None,
                 reduction="row_mean", **options):
    """The result of DistillationLoss."""
    return weighted(distillation_terms(pred, label, teacher_pred, axis, **options), batch_axis=batch_axis, axis=axis,
                    weight=weight, reduction=reduction, sample_weight=sample_weight)


def top_k_terms(pred, label, index, value, axis=-1, *, temperature=1.0, hard_weight=0.5, sparse_label=True,
                divergence="kl", beta=0.5, tail="bucket", teacher_space="log_probs", label_smoothing=0):
    """distillation_terms for a teacher that kept some categories; the soft part of a row is its first element."""
    pred = wide(pred)
    terms = np.zeros(pred.shape, pred.dtype)
    if hard_weight > 0:
        terms = terms + hard_weight * distillation_terms(pred, label, None, axis, hard_weight=1,
                                                         sparse_label=sparse_label, label_smoothing=label_smoothing)
    if hard_weight == 1:
        return terms
    rows, index, value = (np.moveaxis(wide(x), axis, -1) for x in (pred, index, value))
    soft = np.zeros(rows.shape, terms.dtype)
    for row in np.ndindex(rows.shape[:-1]):
        soft[row][0] = top_k_row(rows[row] / temperature, index[row], value[row] / (
            temperature if teacher_space == "logits" else 1), divergence, beta, tail, teacher_space)
    return terms + (1 - hard_weight) * temperature ** 2 * np.moveaxis(soft, -1, axis)


def top_k_row(x, index, value, divergence, beta, tail, teacher_space):
    """The divergence of one row: the kept categories, and all others as one."""
    value, index = value[index != -1], index[index != -1]
    if np.isnan(index).any() or not set(index) <= set(range(len(x))) or len(set(index)) < len(index):
        return np.nan
    if not len(index):
        return 0.0
    index = index.astype(int)
    others = np.delete(np.arange(len(x)), index)
    p = probability_of(value, teacher_space, -1)
    p_tail = max(0.0, 1 - p.sum()) if tail == "bucket" and len(others) else 0.0
    if tail == "renormalize":
        p = p / p.sum()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        top = x.real.max()
        total = np.log(np.exp(x - top).sum()) + top
        rest = x[others]
        highest = rest.real.max(initial=-np.inf)
        log_q_tail = -np.inf if highest == -np.inf else np.log(np.exp(rest - highest).sum()) + highest - total
        log_q = np.append(x[index] - total, log_q_tail)
    return js_terms(log_q, np.append(p, p_tail), "log_probs", "probs", -1,
                    {"kl": 0, "reverse_kl": 1, "js": beta}[divergence]).sum()


def top_k(pred, label, index, value, *, weight=None, batch_axis=0, axis=-1, sample_weight=None,
          reduction="row_mean", **options):
    """The result of TopKDistillationLoss."""
    return weighted(top_k_terms(pred, label, index, value, axis, **options), batch_axis=batch_axis, axis=axis,
                    weight=weight, reduction=reduction, sample_weight=sample_weight)


def bernoulli_terms(pred, label, from_sigmoid=False, label_space="probs"):
    """p log(p / q) + (1 - p) log((1 - p) / (1 - q)) for every element, in long double; 0 log 0 = 0."""
    def logs(x, logits):  # the logarithms of the probability and of its complement
        x = wide(x, np.longdouble)
        if not logits:
            return np.log(x), np.log1p(-x)
        return [np.minimum(score, 0) - np.log1p(np.exp(np.minimum(score, -score))) for score in (x, -x)]

    with np.errstate(divide="ignore", invalid="ignore"):
        own, other = logs(label, label_space == "logits"), logs(pred, not from_sigmoid)
        own, other = np.broadcast_arrays(own[0], own[1], other[0], other[1])[:2], other
        return sum(np.where(np.exp(log_p) == 0, 0, np.exp(log_p) * (log_p - log_q))
                   for log_p, log_q in zip(own, other))


def gaussian_terms(mean, spread, prior_mean=None, prior_spread=None, free_nats=0.0, spread_is="log_variance"):
    """log(s' / s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2 for every dimension, in long double; priors broadcast."""
    mean, spread = wide(mean, np.longdouble), wide(spread, np.longdouble)
    prior_mean = wide(0 if prior_mean is None else prior_mean, np.longdouble)
    if spread_is == "std":
        prior_spread = wide(1 if prior_spread is None else prior_spread, np.longdouble)
        terms = np.log(prior_spread / spread) + (spread ** 2 + (mean - prior_mean) ** 2) / (2 * prior_spread ** 2) - 0.5
    else:
        prior_spread = wide(0 if prior_spread is None else prior_spread, np.longdouble)
        ratio = (np.exp(spread) + (mean - prior_mean) ** 2) / np.exp(prior_spread)
        terms = (prior_spread - spread + ratio - 1) / 2
    return np.maximum(terms, free_nats)
