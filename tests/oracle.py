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
