"""The divergences as evaluation metrics."""

import math
from typing import Any, List, Optional

from gluon_kl.front import Metric, alias, check_label_shapes, register
from gluon_kl.pair import JSDivLoss, KLDivLoss

import mxnet as mx


class _Sum:
    """A float64 sum that also keeps its rounding error, so that no small update is lost."""

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


class _DivergenceMetric(Metric):
    """Mean over samples of a loss between pred and label, which a subclass chooses."""

    def __init__(
        self, loss: Any, name: str, output_names: Optional[List[str]], label_names: Optional[List[str]],
        **arguments: Any,
    ) -> None:
        self._loss = loss
        super().__init__(name, output_names, label_names, **arguments)

    def update(self, labels: Any, preds: Any) -> None:
        """Add the divergences of a batch.

        Parameters
        ----------
        labels, preds : array or list of arrays
            As the loss takes them; a list holds one array per device or output.
        """
        labels, preds = check_label_shapes(labels, preds, wrap=True)
        for label, pred in zip(labels, preds):
            with mx.autograd.pause():
                if isinstance(label, mx.nd.NDArray) and isinstance(pred, mx.nd.NDArray):
                    label = label.as_in_context(pred.context)
                divergences = self._loss(pred, label).asnumpy()
            total = float(divergences.sum(dtype="float64"))
            for seen in (self._local, self._global):
                seen.add(total)
            self.num_inst += divergences.size
            self.global_num_inst += divergences.size
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


@register
@alias("kl-divergence")
class KLDivergence(_DivergenceMetric):
    """Mean over samples of KL(label ‖ pred), in nats.

    A sample's divergence is what :class:`gluon_kl.KLDivLoss` gives with ``reduction="sum"``:
    added up over the categories, and over every other axis but the first, that of the samples.
    Registered, so that ``mx.metric.create("kl-divergence")`` finds it once gluon_kl is imported.

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
        Which outputs and labels of a module count; all of them by default.

    Raises
    ------
    ValueError
        If shapes differ, the numbers of labels and predictions differ, or an argument is not
        among the allowed ones.
    TypeError
        If an input is not an MXNet array, or an argument has the wrong type.

    Notes
    -----
    Divergences are computed in the precision of the loss and added up in float64. The sum keeps
    its rounding error, so that a small update is not lost beside a large sum. Every update
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

    Of a network that ends in a softmax:

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

    A sample's divergence is what :class:`gluon_kl.JSDivLoss` gives with ``reduction="sum"``:
    added up over the categories, and over every other axis but the first, that of the samples.
    Between 0 and log 2 for ``beta=0.5``, also if a prediction is 0 where the label is not, for
    which a KL divergence is infinite. Registered, so that ``mx.metric.create("js-divergence")``
    finds it once gluon_kl is imported.

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
        Which outputs and labels of a module count; all of them by default.

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
    The second sample shares no category with its label, which costs log 2:

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
