"""Evaluation metrics to watch during training: divergences, agreement and entropy."""

import math
from typing import Any, List, Optional, Tuple

from gluon_kl.base import as_legacy
from gluon_kl.checks import (
    Frame,
    check_axis,
    check_kinds,
    check_same_shape,
    fit_sample_weight,
    normal_axis,
)
from gluon_kl.front import Metric, alias, check_label_shapes, register
from gluon_kl.operators import to_log
from gluon_kl.pair import JSDivLoss, KLDivLoss, pred_space_of

import mxnet as mx
import numpy as np
from mxnet.ndarray import NDArray


class _Sum:
    """A float64 sum that also stores its rounding error, so that no small update is lost."""

    def __init__(self) -> None:
        self.value = 0.0
        self._lost = 0.0

    def add(self, x: float) -> None:
        parts = [self.value, self._lost, x]
        if not math.isfinite(sum(parts)):
            self.value, self._lost = sum(parts), 0.0
            return
        self.value = math.fsum(parts)
        self._lost = math.fsum([*parts, -self.value])


class _MeanMetric(Metric):
    """A mean over all batches of what `_measure` sums in each."""

    def _measure(self, label: Any, pred: Any, weight: Any) -> Tuple[float, int]:
        """The sum over a batch, and the number of its samples or rows."""
        raise NotImplementedError

    def update(self, labels: Any, preds: Any, sample_weight: Any = None) -> None:
        """Add a batch.

        Parameters
        ----------
        labels, preds : array or list of arrays
            A list holds one array per device or output.
        sample_weight : array or list of arrays, optional
            As the losses take it, one array for each pred. A row of weight 0 is ignored, even NaN.

        Raises
        ------
        ValueError
            If shapes or the lengths of lists differ.
        TypeError
            If an input is not an MXNet array.
        """
        labels, preds = check_label_shapes(labels, preds, wrap=True)
        weights = _listed(sample_weight, len(preds))
        if len(weights) != len(preds):
            raise ValueError(f"sample_weight must hold an array for each of {len(preds)} preds, not {len(weights)}")
        for label, pred, weight in zip(labels, preds, weights):
            with mx.autograd.pause():
                if isinstance(pred, NDArray):
                    label, weight = (x.as_in_context(pred.context) if isinstance(x, NDArray) else x
                                     for x in (label, weight))
                total, count = self._measure(label, pred, weight)
            for seen in (self._local, self._global):
                seen.add(total)
            self.num_inst += count
            self.global_num_inst += count
        self.sum_metric = self._local.value
        self.global_sum_metric = self._global.value

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._local, self._global = _Sum(), _Sum()

    def reset_local(self) -> None:
        """Forget what was added since the last such call; the global value stays."""
        super().reset_local()
        self._local = _Sum()


def _listed(weight: Any, count: int) -> Any:
    """The weights as a list: one array alone becomes a list of one, and None becomes `count` times None."""
    if isinstance(weight, (list, tuple)):
        return weight
    return [None] * count if weight is None else [weight]


class _DivergenceMetric(_MeanMetric):
    """Mean over samples of a loss between pred and label; a subclass chooses the loss."""

    def __init__(
        self, loss: Any, name: str, output_names: Optional[List[str]], label_names: Optional[List[str]],
        **arguments: Any,
    ) -> None:
        self._loss = loss
        super().__init__(name, output_names, label_names, **arguments)

    def _measure(self, label: Any, pred: Any, weight: Any) -> Tuple[float, int]:
        divergences = self._loss(pred, label, weight).asnumpy()
        return float(divergences.sum(dtype="float64")), divergences.size


class _RowMetric(_MeanMetric):
    """Mean over the rows whose weight is not 0 of a number that a subclass computes for each."""

    names: Tuple[str, ...] = ("pred", "label", "sample_weight")
    optional: Tuple[str, ...] = ("sample_weight",)

    def __init__(
        self, axis: int, name: str, output_names: Optional[List[str]], label_names: Optional[List[str]],
        **arguments: Any,
    ) -> None:
        self._axis = check_axis("axis", axis)
        super().__init__(name, output_names, label_names, axis=axis, **arguments)

    def _of_rows(self, label: Any, pred: Any, axis: int) -> Any:
        """A number for each row along the axis, as a NumPy array in pred's shape without this axis."""
        raise NotImplementedError

    def _measure(self, label: Any, pred: Any, weight: Any) -> Tuple[float, int]:
        if check_kinds(self.names, (pred, label, weight), self.optional):
            raise TypeError("pred must be an MXNet array, not a Symbol: a Symbol has no values")
        label, pred, weight = (x if x is None else as_legacy(x) for x in (label, pred, weight))
        axis, shape = normal_axis("axis", self._axis, pred.shape, "pred"), pred.shape
        if label is not None:
            check_same_shape("pred", "label", shape, label.shape)
        if 0 in shape:
            return 0.0, 0
        found = self._of_rows(label, pred, axis)
        if weight is not None:
            weight = fit_sample_weight(weight, Frame(shape, 0, axis)).asnumpy()
            found = found[np.broadcast_to(weight != 0, shape).any(axis=axis)]
        return float(found.sum(dtype="float64")), found.size


@register
@alias("kl-divergence")
class KLDivergence(_DivergenceMetric):
    """Mean over samples of KL(label ‖ pred), in nats.

    A sample's divergence is the result of :class:`gluon_kl.KLDivLoss` with ``reduction="sum"``:
    the sum over the categories, and over every other axis except the first, which is that of the
    samples. ``mx.metric.create("kl-divergence")`` finds this metric after ``import gluon_kl``.

    Parameters
    ----------
    from_logits : bool, default True
        `True` if predictions are log-probabilities, `False` if they are logits.
    axis : int, default -1
        The axis of the categories.
    label_space : {"probs", "log_probs", "logits"}
        What labels hold.
    pred_space : {"probs", "log_probs", "logits"}, optional
        What predictions hold, instead of what `from_logits` says: "probs" for networks that end
        in a softmax.
    name : str, default "kl-divergence"
        The name that `get` returns.
    output_names, label_names : list of str, optional
        The outputs and labels of a module that count; all of them by default.

    Raises
    ------
    ValueError
        If shapes differ, the numbers of labels and predictions differ, or an argument is not
        among the allowed ones.
    TypeError
        If an input is not an MXNet array, or an argument has the wrong type.

    Notes
    -----
    Divergences are computed in the precision of the loss and added up in float64. The sum also
    stores its rounding error, so that a small update is not lost beside a large sum. Every update
    waits for its values.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical
    Statistics 22 (1951), 79-86.

    Examples
    --------
    >>> import gluon_kl
    >>> import mxnet as mx
    >>> kl = mx.metric.create("kl-divergence")
    >>> pred = mx.nd.array([[0.2, 0.5, 0.3]])
    >>> label = mx.nd.array([[0.3, 0.4, 0.3]])
    >>> kl.update(label, pred.log())
    >>> name, value = kl.get()
    >>> print(name, round(value, 4))
    kl-divergence 0.0324

    With a network that ends in a softmax:

    >>> kl = gluon_kl.metric.KLDivergence(
    ...     pred_space="probs")
    >>> kl.update(label, pred)
    >>> print(round(kl.get()[1], 4))
    0.0324
    """

    def __init__(
        self, from_logits: bool = True, axis: int = -1, label_space: str = "probs", pred_space: Optional[str] = None,
        name: str = "kl-divergence", output_names: Optional[List[str]] = None,
        label_names: Optional[List[str]] = None,
    ) -> None:
        loss = KLDivLoss(from_logits, axis, label_space=label_space, pred_space=pred_space, reduction="sum")
        super().__init__(loss, name, output_names, label_names, from_logits=from_logits, axis=axis,
                         label_space=label_space, pred_space=pred_space)


@register
@alias("js-divergence")
class JSDivergence(_DivergenceMetric):
    """Mean over samples of the Jensen-Shannon divergence of predictions and labels, in nats.

    A sample's divergence is the result of :class:`gluon_kl.JSDivLoss` with ``reduction="sum"``:
    the sum over the categories, and over every other axis except the first, which is that of the
    samples. With ``beta=0.5`` it lies between 0 and log 2, even if a prediction is 0 and its label
    is not, which makes a KL divergence infinite. ``mx.metric.create("js-divergence")`` finds this
    metric after ``import gluon_kl``.

    Parameters
    ----------
    from_logits : bool, default True
        `True` if predictions are log-probabilities, `False` if they are logits.
    axis : int, default -1
        The axis of the categories.
    label_space : {"probs", "log_probs", "logits"}
        What labels hold.
    pred_space : {"probs", "log_probs", "logits"}, optional
        What predictions hold, instead of what `from_logits` says: "probs" for networks that end
        in a softmax.
    beta : float, default 0.5
        Between 0 and 1, the share of the label in the mixture, as for the loss.
    name : str, default "js-divergence"
        The name that `get` returns.
    output_names, label_names : list of str, optional
        The outputs and labels of a module that count; all of them by default.

    Raises
    ------
    ValueError
        If shapes differ, the numbers of labels and predictions differ, or an argument is not
        among the allowed ones.
    TypeError
        If an input is not an MXNet array, or an argument has the wrong type.

    References
    ----------
    J. Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on
    Information Theory 37 (1991), 145-151.

    Examples
    --------
    The second sample shares no category with its label, so its divergence is log 2:

    >>> import gluon_kl
    >>> import mxnet as mx
    >>> js = gluon_kl.metric.JSDivergence(
    ...     pred_space="probs")
    >>> pred = mx.nd.array([[0.2, 0.5, 0.3],
    ...                     [0, 0, 1]])
    >>> label = mx.nd.array([[0.3, 0.4, 0.3],
    ...                      [1, 0, 0]])
    >>> js.update(label, pred)
    >>> name, value = js.get()
    >>> print(name, round(value, 4))
    js-divergence 0.3505
    """

    def __init__(
        self, from_logits: bool = True, axis: int = -1, label_space: str = "probs", pred_space: Optional[str] = None,
        beta: float = 0.5, name: str = "js-divergence", output_names: Optional[List[str]] = None,
        label_names: Optional[List[str]] = None,
    ) -> None:
        loss = JSDivLoss(from_logits, axis, label_space=label_space, pred_space=pred_space, beta=beta, reduction="sum")
        super().__init__(loss, name, output_names, label_names, from_logits=from_logits, axis=axis,
                         label_space=label_space, pred_space=pred_space, beta=beta)


@register
class Agreement(_RowMetric):
    r"""Share of rows whose best category is the teacher's.

    With :math:`z_r` the logits of prediction row :math:`r` and :math:`v_r` those of the label,

    .. math:: \frac{1}{R} \sum_{r=1}^{R}
              [\operatorname{argmax} z_r = \operatorname{argmax} v_r],

    over the :math:`R` rows whose weight is not 0. It says how closely a student follows its
    teacher, which its accuracy does not show. ``mx.metric.create("agreement")`` finds this metric
    after ``import gluon_kl``.

    Parameters
    ----------
    axis : int, default -1
        The axis of the categories; each row along it counts once.
    name : str, default "agreement"
        The name that `get` returns.
    output_names, label_names : list of str, optional
        The outputs and labels of a module that count; all of them by default.

    Raises
    ------
    ValueError
        If shapes differ, the numbers of labels and predictions differ, or `axis` is out of
        range.
    TypeError
        If an input is not an MXNet array, or an argument has the wrong type.

    Notes
    -----
    Predictions and labels may be logits, probabilities or their logarithms, because only the order
    of the categories counts. If several are equal, the first is the best. Labels are the teacher's
    output, in the shape of the predictions.

    References
    ----------
    S. Stanton, P. Izmailov, P. Kirichenko, A. A. Alemi and A. G. Wilson, "Does Knowledge
    Distillation Really Work?", Advances in Neural Information Processing Systems 34 (2021).

    Examples
    --------
    >>> import gluon_kl
    >>> import mxnet as mx
    >>> agreement = gluon_kl.metric.Agreement()
    >>> student = mx.nd.array([[2, 0.5, -1],
    ...                        [0.2, 0.1, 0.4]])
    >>> teacher = mx.nd.array([[3, 1, -2],
    ...                        [0, 4, 0]])
    >>> agreement.update(teacher, student)
    >>> print(agreement.get())
    ('agreement', 0.5)
    """

    def __init__(
        self, axis: int = -1, name: str = "agreement", output_names: Optional[List[str]] = None,
        label_names: Optional[List[str]] = None,
    ) -> None:
        super().__init__(axis, name, output_names, label_names)

    def _of_rows(self, label: Any, pred: Any, axis: int) -> Any:
        best = [_best(x, axis) for x in (label, pred)]
        return best[0] == best[1]


def _best(x: Any, axis: int) -> Any:
    """The first of the largest along the axis; MXNet gives it in the dtype of `x`, and float16 counts only to 2048."""
    return (x if x.dtype == np.float64 else x.astype("float32")).argmax(axis=axis).asnumpy()


@register
class Entropy(_RowMetric):
    r"""Mean entropy of predictions, in nats.

    With :math:`q_r` the distribution of prediction row :math:`r`,

    .. math:: \frac{1}{R} \sum_{r=1}^{R} \sum_i -q_{ri} \log q_{ri},

    over the :math:`R` rows whose weight is not 0. It is 0 if all predictions are certain, and the
    logarithm of the number of categories if they say nothing. If it falls fast, the student or the
    policy may have stopped trying alternatives. Labels are not read, and may be None.
    ``mx.metric.create("entropy")`` finds this metric after ``import gluon_kl``.

    Parameters
    ----------
    from_logits : bool, default True
        `True` if predictions are log-probabilities, `False` if they are logits.
    axis : int, default -1
        The axis of the categories.
    pred_space : {"probs", "log_probs", "logits"}, optional
        What predictions hold, instead of what `from_logits` says: "probs" for networks that end
        in a softmax.
    name : str, default "entropy"
        The name that `get` returns.
    output_names, label_names : list of str, optional
        The outputs and labels of a module that count; all of them by default.

    Raises
    ------
    ValueError
        If `axis` is out of range, or an argument is not among the allowed ones.
    TypeError
        If an input is not an MXNet array, or an argument has the wrong type.

    Notes
    -----
    The entropy is computed in float64. A category of probability 0, such as a masked one, adds 0.

    References
    ----------
    C. E. Shannon, "A Mathematical Theory of Communication", Bell System Technical Journal 27
    (1948), 379-423.

    Examples
    --------
    The first row is certain; the second is undecided between two categories:

    >>> import gluon_kl
    >>> import mxnet as mx
    >>> entropy = gluon_kl.metric.Entropy(
    ...     pred_space="probs")
    >>> pred = mx.nd.array([[1, 0, 0],
    ...                     [0.5, 0, 0.5]])
    >>> entropy.update(None, pred)
    >>> name, value = entropy.get()
    >>> print(name, round(value, 4))
    entropy 0.3466
    """

    optional = ("label", "sample_weight")

    def __init__(
        self, from_logits: bool = True, axis: int = -1, pred_space: Optional[str] = None, name: str = "entropy",
        output_names: Optional[List[str]] = None, label_names: Optional[List[str]] = None,
    ) -> None:
        self._space = pred_space_of(from_logits, pred_space)
        super().__init__(axis, name, output_names, label_names, from_logits=from_logits, pred_space=pred_space)

    def update(self, labels: Any, preds: Any, sample_weight: Any = None) -> None:
        """Add a batch.

        Parameters
        ----------
        labels : any
            Not read.
        preds : array or list of arrays
            A list holds one array per device or output.
        sample_weight : array or list of arrays, optional
            As the losses take it, one array for each pred. A row of weight 0 is ignored, even NaN.

        Raises
        ------
        ValueError
            If a weight does not fit, or the lengths of lists differ.
        TypeError
            If an input is not an MXNet array.
        """
        preds = preds if isinstance(preds, (list, tuple)) else [preds]
        super().update([None] * len(preds), [*preds], sample_weight)

    def _of_rows(self, label: Any, pred: Any, axis: int) -> Any:
        log = to_log(mx.nd, pred.astype("float64"), self._space, axis)
        probs = mx.nd.exp(log)
        return -mx.nd.where(probs, probs * log, probs).sum(axis=axis).asnumpy()
