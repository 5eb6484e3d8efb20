"""The divergences between two arrays of distributions, as Gluon losses."""

from typing import Any, Optional, Tuple

from gluon_kl import divergence
from gluon_kl.inputs import (
    CheckedLoss, Facts, check_axis, check_choice, check_flag, check_positive, check_same_shape,
    fit_sample_weight, lift, normal_axis, observe, weigh,
)

REDUCTIONS = ("mean", "sum", "none")


class PairLoss(CheckedLoss):
    """What the losses between `pred` and `label` share: arguments, checks, weights and reduction.

    A subclass gives the elementwise terms.
    """

    _direction = ""

    def __init__(
        self, from_logits: bool, axis: int, weight: Optional[float], batch_axis: int,
        reduction: str, label_space: str, **kwargs: Any,
    ) -> None:
        super().__init__(weight, batch_axis, **kwargs)
        self._from_logits = check_flag("from_logits", from_logits)
        self._axis = check_axis("axis", axis)
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("label_space", label_space, divergence.SPACES)
        self._reduction = reduction
        self._label_space = label_space

    @property
    def _pred_space(self) -> str:
        return "log_probs" if self._from_logits else "logits"

    def _describe(self) -> str:
        return (f"from_logits={self._from_logits}, axis={self._axis}, weight={self._weight}, "
                f"batch_axis={self._batch_axis}, reduction={self._reduction!r}, label_space={self._label_space!r}")

    def __repr__(self) -> str:
        return f"{super().__repr__()}: {self._direction}"

    def __call__(self, pred: Any, label: Any, sample_weight: Any = None) -> Any:
        return super().__call__(pred, label, sample_weight)

    def _check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Facts]:
        pred, label, weight = arrays
        shape = pred.shape
        check_same_shape("pred", "label", pred, label)
        axis = normal_axis("axis", self._axis, shape, "pred")
        batch_axis = normal_axis("batch_axis", self._batch_axis, shape, "pred")
        if weight is not None:
            weight = fit_sample_weight(weight, shape, batch_axis)
        inputs = (pred, label, weight)
        return inputs, observe(inputs, self._names, weight is None or weight.shape[axis] == 1)

    def _whole_rows(self, facts: Optional[Facts], weight: Any) -> bool:
        """Whether the whole of `axis` is summed into one result under one weight, as far as can be known."""
        if self._reduction == "none":
            return False
        if facts is None:
            return weight is None and self._axis != self._batch_axis
        return facts.row_weight and (self._axis - self._batch_axis) % facts.ndim != 0

    def _compute(self, F: Any, facts: Optional[Facts], *inputs: Any) -> Any:
        pred, label, weight = inputs
        whole_rows = self._whole_rows(facts, weight)
        label_grad, weight_grad = (True, True) if facts is None else facts.recorded[1:]

        def terms(pred: Any, label: Any) -> Any:
            return self._terms(F, pred, label, whole_rows, label_grad)

        if self._weight == 0:  # silences NaN too
            pred, label = F.zeros_like(pred), F.zeros_like(label)
        if weight is None:
            out = terms(*lift(F, facts, (pred, label)))
        else:
            *pair, weight = lift(F, facts, (pred, label, weight))
            out = weigh(F, terms, pair, weight, self._axis, weight_grad)
        if self._reduction != "none":
            batch_axis = self._batch_axis if facts is None else self._batch_axis % facts.ndim
            out = divergence.sum_per_sample(F, out, batch_axis, self._reduction == "mean")
        return out if self._weight is None else out * self._weight

    def _terms(self, F: Any, pred: Any, label: Any, whole_rows: bool, label_grad: bool) -> Any:
        raise NotImplementedError


class KLDivLoss(PairLoss):
    _direction = "KL(label ‖ pred) in nats"

    def __init__(
        self, from_logits: bool = True, axis: int = -1, weight: Optional[float] = None, batch_axis: int = 0, *,
        reduction: str = "mean", label_space: str = "probs", epsilon: float = 1e-12,
        prefix: Optional[str] = None, params: Any = None,
    ) -> None:
        super().__init__(from_logits, axis, weight, batch_axis, reduction, label_space, prefix=prefix, params=params)
        check_positive("epsilon", epsilon)
        self._epsilon = epsilon

    def _describe(self) -> str:
        return f"{super()._describe()}, epsilon={self._epsilon}"

    def _terms(self, F: Any, pred: Any, label: Any, whole_rows: bool, label_grad: bool) -> Any:
        return divergence.kl_terms(
            F, pred, label, pred_space=self._pred_space, label_space=self._label_space, axis=self._axis,
            epsilon=self._epsilon, whole_rows=whole_rows, label_grad=label_grad)
