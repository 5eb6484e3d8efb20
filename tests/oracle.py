"""Independent float64 reference, written from the definitions; imports nothing of the package.

KL(P || Q) = sum_i p_i (log p_i - log q_i), in nats, with 0 log 0 = 0.
"""

import numpy as np


def log_softmax(x, axis=-1):
    """log softmax; NaN for a row that holds NaN or +inf, or nothing but -inf."""
    x = np.asarray(x, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        shifted = x - x.max(axis=axis, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def log_of(x, space, axis):
    """The logarithm of the probabilities that x stands for."""
    x = np.asarray(x, dtype=np.float64)
    if space == "logits":
        return log_softmax(x, axis)
    if space == "log_probs":
        return x
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(x)


def probability_of(x, space, axis):
    return np.asarray(x, dtype=np.float64) if space == "probs" else np.exp(log_of(x, space, axis))


def kl_terms(pred, label, pred_space="log_probs", label_space="probs", axis=-1):
    """p (log p - log q) for every element; 0 where p is 0."""
    p = probability_of(label, label_space, axis)
    with np.errstate(invalid="ignore"):
        terms = p * (log_of(label, label_space, axis) - log_of(pred, pred_space, axis))
    return np.where(p == 0, 0.0, terms)


def row_weights(weight, shape, batch_axis, axis):
    """sample_weight in pred's shape, and where it silences: whole rows along axis, and single elements."""
    if weight is None:
        weight = np.ones(shape)
    weight = np.asarray(weight, dtype=np.float64)
    if weight.ndim != len(shape):
        weight = weight.reshape([-1 if i == batch_axis % len(shape) else 1 for i in range(len(shape))])
    weight = np.broadcast_to(weight, shape)
    return weight, np.broadcast_to((weight == 0).all(axis=axis, keepdims=True), shape)


def count(shape, batch_axis, reduction):
    """What a result is divided by."""
    return np.prod(shape, dtype=np.int64) // max(shape[batch_axis], 1) if reduction == "mean" else 1


def reduce(terms, batch_axis=0, reduction="mean"):
    if reduction == "none":
        return terms
    axes = tuple(i for i in range(terms.ndim) if i != batch_axis % terms.ndim)
    return terms.sum(axis=axes) / count(terms.shape, batch_axis, reduction)


def kl_divergence(pred, label, *, from_logits=True, label_space="probs", axis=-1, batch_axis=0, weight=None,
                  reduction="mean", sample_weight=None):
    """What KLDivLoss returns."""
    terms = kl_terms(pred, label, "log_probs" if from_logits else "logits", label_space, axis)
    weights, _ = row_weights(sample_weight, terms.shape, batch_axis, axis)
    with np.errstate(invalid="ignore"):
        terms = np.where(weights == 0, 0.0, terms * weights)
    return reduce(terms, batch_axis, reduction) * (1.0 if weight is None else weight)


def through_softmax(gradient, x, axis):
    """Gradient to logits from the gradient to their log softmax."""
    return gradient - np.exp(log_softmax(x, axis)) * gradient.sum(axis=axis, keepdims=True)


def kl_gradients(pred, label, head=None, *, from_logits=True, label_space="probs", axis=-1, batch_axis=0,
                 weight=None, reduction="mean", sample_weight=None, epsilon=1e-12):
    """Closed-form gradients of sum(head * kl_divergence(...)) to pred, label and sample_weight."""
    pred, label = np.asarray(pred, np.float64), np.asarray(label, np.float64)
    shape = pred.shape
    weights, silent = row_weights(sample_weight, shape, batch_axis, axis)
    if head is None:
        head = np.ones(shape if reduction == "none" else shape[batch_axis])
    if reduction != "none":
        head = np.reshape(head, [-1 if i == batch_axis % len(shape) else 1 for i in range(len(shape))])
    head = np.broadcast_to(head, shape) * (1.0 if weight is None else weight) / count(shape, batch_axis, reduction)

    pred_space = "log_probs" if from_logits else "logits"
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
        if label_space == "logits":
            to_label = through_softmax(to_label, label, axis)
        to_pred, to_label = np.where(silent, 0.0, to_pred), np.where(silent, 0.0, to_label)

        terms = kl_terms(pred, label, pred_space, label_space, axis)
        finite = np.isfinite(terms.sum(axis=axis, keepdims=True))
        to_weight = np.where((weights == 0) & ~finite, 0.0, terms) * head
    if sample_weight is None:
        return to_pred, to_label, None
    size = np.shape(sample_weight)
    if len(size) != len(shape):
        axes = tuple(i for i in range(len(shape)) if i != batch_axis % len(shape))
        return to_pred, to_label, to_weight.sum(axis=axes)
    axes = tuple(i for i in range(len(shape)) if size[i] == 1)
    return to_pred, to_label, to_weight.sum(axis=axes, keepdims=True)


def reverse_kl_terms(pred, label, pred_space="log_probs", label_space="probs", axis=-1):
    """q (log q - log p): the divergence of the label from the prediction."""
    return kl_terms(label, pred, label_space, pred_space, axis)


def js_terms(pred, label, pred_space="log_probs", label_space="probs", axis=-1, beta=0.5):
    """beta p log(p / m) + (1 - beta) q log(q / m) for every element, m = beta p + (1 - beta) q."""
    log_p, log_q = log_of(label, label_space, axis), log_of(pred, pred_space, axis)
    with np.errstate(invalid="ignore"):
        log_m = np.logaddexp(np.log(beta) + log_p, np.log1p(-beta) + log_q)
        terms = [np.where(log_side == -np.inf, 0.0, share * np.exp(log_side) * (log_side - log_m))
                 for share, log_side in ((beta, log_p), (1 - beta, log_q))]
    return terms[0] + terms[1]


def weighted(terms, *, batch_axis=0, axis=-1, weight=None, reduction="mean", sample_weight=None):
    """Terms under their weights, reduced."""
    weights, _ = row_weights(sample_weight, terms.shape, batch_axis, axis)
    with np.errstate(invalid="ignore"):
        terms = np.where(weights == 0, 0.0, terms * weights)
    return reduce(terms, batch_axis, reduction) * (1.0 if weight is None else weight)


def distillation(pred, label, teacher_pred, *, temperature=1.0, hard_weight=0.0, axis=-1, sparse_label=True,
                 weight=None, batch_axis=0, sample_weight=None):
    """What DistillationLoss returns."""
    pred = np.asarray(pred, np.float64)
    terms = 0.0
    if hard_weight > 0:
        if sparse_label:
            label = np.moveaxis(np.eye(pred.shape[axis])[np.asarray(label).astype(int)], -1, axis)
        with np.errstate(invalid="ignore"):
            terms = terms - hard_weight * np.where(label == 0, 0.0, label * log_softmax(pred, axis))
    if hard_weight < 1:
        teacher_pred = np.asarray(teacher_pred, np.float64)
        soft = kl_terms(pred / temperature, teacher_pred / temperature, "logits", "logits", axis)
        terms = terms + (1 - hard_weight) * temperature ** 2 * soft
    return pred.shape[axis] * weighted(terms, batch_axis=batch_axis, axis=axis, weight=weight,
                                       sample_weight=sample_weight)


def gaussian_terms(mean, log_variance, prior_mean=None, prior_log_variance=None, free_nats=0.0):
    """log(s' / s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2 for every dimension, in long double."""
    mean, log_variance = np.longdouble(mean), np.longdouble(log_variance)
    prior_mean = np.longdouble(0 if prior_mean is None else prior_mean)
    prior_log_variance = np.longdouble(0 if prior_log_variance is None else prior_log_variance)
    variance, prior_variance = np.exp(log_variance), np.exp(prior_log_variance)
    terms = (prior_log_variance - log_variance + (variance + (mean - prior_mean) ** 2) / prior_variance - 1) / 2
    return np.maximum(terms, free_nats)


def numeric_gradients(function, inputs, wanted, head=None, step=1e-6):
    """Central differences of sum(head * function(*inputs)) to the wanted inputs; None for the others."""
    gradients = [np.zeros(np.shape(x)) if want else None for x, want in zip(inputs, wanted)]
    for i, gradient in enumerate(gradients):
        for index in np.ndindex(*np.shape(gradient)) if wanted[i] else ():
            ends = []
            for sign in (1, -1):
                moved = list(inputs)
                moved[i] = np.array(inputs[i], np.float64)
                moved[i][index] += sign * step
                value = function(*moved)
                ends.append(np.sum(value if head is None else head * value))
            gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradients
