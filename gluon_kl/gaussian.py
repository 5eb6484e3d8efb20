"""The divergence of diagonal Gaussians, as variational autoencoders use it."""

from typing import Any, Optional, Tuple

from gluon_kl import divergence
from gluon_kl.inputs import (
    REDUCTIONS, CheckedLoss, Facts, check_choice, check_not_negative, check_same_shape, fit_sample_weight,
    normal_axis, observe, weigh,
)


class GaussianKLLoss(CheckedLoss):
    _names = ("mean", "log_variance", "prior_mean", "prior_log_variance", "sample_weight")
    _optional = ("prior_mean", "prior_log_variance", "sample_weight")
    _direction = "KL(N(mean, exp(log_variance)) ‖ prior) in nats"

    def __init__(
        self, weight: Optional[float] = None, batch_axis: int = 0, *, reduction: str = "sum", free_nats: float = 0.0,
        prefix: Optional[str] = None, params: Any = None,
    ) -> None:
        super().__init__(weight, batch_axis, prefix=prefix, params=params)
        check_choice("reduction", reduction, REDUCTIONS)
        check_not_negative("free_nats", free_nats)
        self._reduction = reduction
        self._free_nats = free_nats

    def _describe(self) -> str:
        return (f"weight={self._weight}, batch_axis={self._batch_axis}, reduction={self._reduction!r}, "
                f"free_nats={self._free_nats}")

    def __call__(
        self, mean: Any, log_variance: Any, prior_mean: Any = None, prior_log_variance: Any = None,
        sample_weight: Any = None,
    ) -> Any:
        return super().__call__(mean, log_variance, prior_mean, prior_log_variance, sample_weight)

    def _check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Facts]:
        *parameters, weight = arrays
        mean = parameters[0]
        for name, x in zip(self._names[1:], parameters[1:]):
            if x is not None:
                check_same_shape("mean", name, mean, x)
        batch_axis = normal_axis("batch_axis", self._batch_axis, mean.shape, "mean")
        if weight is not None:
            weight = fit_sample_weight(weight, mean.shape, batch_axis, "mean")
        inputs = (*parameters, weight)
        return inputs, observe(inputs, self._names, True)

    def _compute(self, F: Any, facts: Optional[Facts], *inputs: Any) -> Any:
        *parameters, weight = self._lifted(F, facts, inputs)
        present = [x is not None for x in parameters]

        def terms(*given: Any) -> Any:
            values = iter(given)
            out = divergence.gaussian_terms(F, *(next(values) if here else None for here in present))
            if self._free_nats == 0:
                return out
            return F.where(out < self._free_nats, F.ones_like(out) * self._free_nats, out)

        weight_grad = facts is None or facts.recorded[-1]
        out = weigh(F, terms, [x for x in parameters if x is not None], weight, None, weight_grad)
        return self._reduced(F, facts, out, self._reduction)
