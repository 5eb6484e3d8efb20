"""The divergence as an evaluation metric."""

import math
from typing import Any, List, Optional

import mxnet as mx
from mxnet.metric import EvalMetric, alias, check_label_shapes, register

from gluon_kl.loss import KLDivLoss


class _Sum:
    """A float64 sum that carries what rounding took from it, so that no small update is lost."""

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


@register
@alias("kl-divergence")
class KLDivergence(EvalMetric):
    """Mean over samples of KL(label ‖ pred), in nats.

    A sample's divergence is what :class:`gluon_kl.KLDivLoss` gives with ``reduction="sum"``:
    added up over the categories, and over every other axis but the first, that of the samples.
    Registered, so that ``mx.metric.create("kl-divergence")`` finds it once gluon_kl is imported.

    Parameters
    ----------
    from_logits : bool, default True
        `True` if predictions are log-probabilities, `False` if they are raw scores.
    axis : int, default -1
        The axis of the categories.
    label_space : {"probs", "log_probs", "logits"}
        What labels hold.
    name : str, default "kl-divergence"
        What `get` calls the figure.
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
    Divergences are computed in the precision of the loss and added up in float64, with what
    rounding takes carried along: a small update is not lost beside a large sum. Every update
    waits for its values.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical
    Statistics 22 (1951), 79-86.

    Examples
    --------
    >>> import mxnet as mx
    >>> import gluon_kl
    >>> kl = mx.metric.create("kl-divergence")
    >>> pred = mx.nd.array([[0.2, 0.5, 0.3]])
    >>> label = mx.nd.array([[0.3, 0.4, 0.3]])
    >>> kl.update(label, pred.log())
    >>> name, value = kl.get()
    >>> print(name, round(value, 4))
    kl-divergence 0.0324
    """

    def __init__(
        self, from_logits: bool = True, axis: int = -1, label_space: str = "probs", name: str = "kl-divergence",
        output_names: Optional[List[str]] = None, label_names: Optional[List[str]] = None,
    ) -> None:
        self._loss = KLDivLoss(from_logits, axis, label_space=label_space, reduction="sum")
        super().__init__(name, output_names, label_names, from_logits=from_logits, axis=axis,
                         label_space=label_space, has_global_stats=True)

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
        """Forget what was added since the last such call; the global figure stays."""
        super().reset_local()
        self._local = _Sum()
