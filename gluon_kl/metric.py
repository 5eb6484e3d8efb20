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
