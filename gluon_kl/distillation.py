"""Knowledge distillation: a student learns from a teacher's softened predictions, and from labels."""

from typing import Any, Optional, Tuple

from gluon_kl import divergence
from gluon_kl.inputs import (
    CheckedLoss, Facts, check_axis, check_between, check_flag, check_positive, check_same_shape,
    fit_sample_weight, normal_axis, observe, weigh,
)


class DistillationLoss(CheckedLoss):
    _names = ("pred", "label", "teacher_pred", "sample_weight")
    _direction = "hard_weight * CE(label, pred) + (1 - hard_weight) * T² * KL(teacher_pred ‖ pred) in nats"

    def __init__(
        self, temperature: float = 1.0, hard_weight: float = 0.0, axis: int = -1, sparse_label: bool = True,
        weight: Optional[float] = None, batch_axis: int = 0, *, prefix: Optional[str] = None, params: Any = None,
    ) -> None:
        super().__init__(weight, batch_axis, prefix=prefix, params=params)
        check_positive("temperature", temperature)
        check_between("hard_weight", hard_weight, 0, 1)
        self._temperature = temperature
        self._hard_weight = hard_weight
        self._axis = check_axis("axis", axis)
        self._sparse_label = check_flag("sparse_label", sparse_label)
        unused = {0: ("label",), 1: ("teacher_pred",)}.get(hard_weight, ())
        self._optional = (*unused, "sample_weight")

    def _describe(self) -> str:
        return (f"temperature={self._temperature}, hard_weight={self._hard_weight}, axis={self._axis}, "
                f"sparse_label={self._sparse_label}, weight={self._weight}, batch_axis={self._batch_axis}")

    def __call__(self, pred: Any, label: Any, teacher_pred: Any, sample_weight: Any = None) -> Any:
        return super().__call__(pred, label, teacher_pred, sample_weight)

    def _used(self, pred: Any, label: Any, teacher_pred: Any, weight: Any) -> Tuple[Any, ...]:
        """The inputs, without the one whose part has no weight."""
        return (pred, None if "label" in self._optional else label,
                None if "teacher_pred" in self._optional else teacher_pred, weight)

    def _check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Facts]:
        pred, label, teacher_pred, weight = self._used(*arrays)
        shape = pred.shape
        axis = normal_axis("axis", self._axis, shape, "pred")
        batch_axis = normal_axis("batch_axis", self._batch_axis, shape, "pred")
        if axis == batch_axis:
            raise ValueError(f"axis = {self._axis} and batch_axis = {self._batch_axis} are the same axis "
                             f"of pred of shape {shape}: categories and samples need one each")
        if teacher_pred is not None:
            check_same_shape("pred", "teacher_pred", pred, teacher_pred)
        if label is not None and not self._sparse_label:
            check_same_shape("pred", "label", pred, label)
        elif label is not None and label.shape != shape[:axis] + shape[axis + 1:]:
            raise ValueError(
                f"label of class indices must have the shape of pred without axis {self._axis}, "
                f"{shape[:axis] + shape[axis + 1:]}, not {label.shape}; for one-hot rows set sparse_label=False")
        if weight is not None:
            weight = fit_sample_weight(weight, shape, batch_axis)
        inputs = (pred, label, teacher_pred, weight)
        return inputs, observe(inputs, self._names, weight is None or weight.shape[axis] == 1)

    def _compute(self, F: Any, facts: Optional[Facts], *inputs: Any) -> Any:
        pred, label, teacher_pred, weight = self._lifted(F, facts, self._used(*inputs))
        parts = []
        if label is not None:
            if self._sparse_label:
                label = divergence.one_hot(F, label, pred, self._axis)
            parts.append((self._hard_weight, self._hard_terms, label))
        if teacher_pred is not None:
            parts.append((1 - self._hard_weight, self._soft_terms, teacher_pred))
        results = [share * self._per_sample(F, facts, terms, pred, target, weight) for share, terms, target in parts]
        return results[0] if len(results) == 1 else results[0] + results[1]

    def _hard_terms(self, F: Any, pred: Any, label: Any) -> Any:
        return divergence.cross_entropy(F, divergence.log_softmax(F, pred, self._axis), label)

    def _soft_terms(self, F: Any, pred: Any, teacher_pred: Any) -> Any:
        return divergence.distillation_terms(F, pred, teacher_pred, self._temperature, self._axis)

    def _per_sample(self, F: Any, facts: Optional[Facts], terms: Any, pred: Any, target: Any, weight: Any) -> Any:
        """Terms between pred and target, weighted, summed over categories and averaged over other axes."""
        weight_grad = facts is None or facts.recorded[-1]
        out = weigh(F, lambda *pair: terms(F, *pair), (pred, target), weight, self._axis, weight_grad)
        mean = self._reduced(F, facts, out, "mean")
        return F.broadcast_mul(mean, divergence.categories(F, pred, self._axis))
