"""The divergence of diagonal Gaussians, as variational autoencoders use it."""

from typing import Any, Optional, Tuple

from gluon_kl import divergence
from gluon_kl.inputs import (
    REDUCTIONS,
    CheckedLoss,
    Facts,
    Frame,
    check_choice,
    check_not_negative,
    check_same_shape,
    fit_sample_weight,
    normal_axis,
    weigh,
)


class GaussianKLLoss(CheckedLoss):
    r"""Kullback-Leibler divergence of a diagonal Gaussian from a prior, in nats.

    For each sample, summed over latent dimensions with means :math:`\mu`, log-variances
    :math:`\lambda`, and :math:`\mu', \lambda'` those of the prior (0, where none is given),

    .. math::

       & \mathrm{KL}(N(\mu, e^{\lambda}) \,\|\, N(\mu', e^{\lambda'})) = \\
       & \tfrac12 \sum_j \left( (\mu_j - \mu'_j)^2 e^{-\lambda'_j} + e^{d_j} - 1 - d_j \right)

    with :math:`d_j = \lambda_j - \lambda'_j`.

    Parameters
    ----------
    weight : float, optional
        Factor for every result.
    batch_axis : int, default 0
        The axis of the samples; every other axis is reduced.
    reduction : {"sum", "mean", "none"}
        "sum" is the divergence itself; "mean" divides it by the number of latent dimensions;
        "none" returns the terms.
    free_nats : float, default 0.0
        Each latent dimension of each sample counts at least this much, and has no gradient
        below it, so that a decoder may use it at no cost.
    prefix, params
        As for every Gluon block.

    Inputs
    ------
    mean
        Array or Symbol of any shape with at least one axis.
    log_variance
        The same shape; logarithms of variances, not of standard deviations.
    prior_mean, prior_log_variance
        Optional, each 0 if left out; of mean's shape. Gradients reach them, for a learned prior.
    sample_weight
        Optional. Shape (batch,), a weight per sample; or as many axes as `mean`, each 1 or
        that of `mean`. Weight 0 silences its terms whatever they hold.

    Outputs
    -------
    loss
        Shape (batch,), or that of `mean` for ``reduction="none"``; float64 if an input is,
        else float32. Of the array kind of `mean`.

    Raises
    ------
    ValueError
        If shapes differ (a prior shared by all samples needs `broadcast_like` first),
        `sample_weight` does not fit, `batch_axis` is out of range, the arrays are on different
        devices, `free_nats` is negative or `reduction` unknown.
    TypeError
        If an input is not an MXNet array or Symbol, or an argument has the wrong type.

    Notes
    -----
    No term is negative, equal Gaussians give exactly 0 and nearly equal ones keep their leading
    digits. A term is infinite only where its value exceeds the dtype.

    Kingma et al. (2016) apply the free nats to the average over a minibatch; here they apply to
    every sample, so that a result does not depend on which samples share a batch.

    References
    ----------
    D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes", ICLR 2014,
    appendix B.

    D. P. Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow",
    NeurIPS 2016, appendix C.8.

    Examples
    --------
    >>> from mxnet import nd
    >>> from gluon_kl import GaussianKLLoss
    >>> mean = nd.array([[0, 0], [1, 0]])
    >>> log_var = nd.array([[0, 0], [0, -2]])
    >>> loss = GaussianKLLoss()
    >>> value = loss(mean, log_var)
    >>> print(value.asnumpy().round(4))
    [0.     1.0677]
    >>> loss = GaussianKLLoss(free_nats=0.1)
    >>> value = loss(mean, log_var)
    >>> print(value.asnumpy().round(4))
    [0.2    1.0677]
    """

    _names = ("mean", "log_variance", "prior_mean", "prior_log_variance", "sample_weight")
    _optional = ("prior_mean", "prior_log_variance", "sample_weight")
    _alike = ("log_variance",)
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

    def _check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Frame]:
        *parameters, weight = arrays
        mean = parameters[0]
        for name, x in zip(self._names[1:], parameters[1:]):
            if x is not None:
                check_same_shape("mean", name, mean.shape, x.shape)
        frame = Frame(mean.shape, normal_axis("batch_axis", self._batch_axis, mean.shape, "mean"), None)
        return (*parameters, None if weight is None else fit_sample_weight(weight, frame, "mean")), frame

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
