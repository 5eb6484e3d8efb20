"""The divergence of diagonal Gaussians, as variational autoencoders use it."""

from typing import Any, List, Optional

from gluon_kl import diagnostics
from gluon_kl.checks import REDUCTIONS, check_choice, check_not_negative, check_number, is_number
from gluon_kl.description import Description, GaussianDescription
from gluon_kl.front import CheckedLoss

from mxnet.ndarray import NDArray

SPREADS = ("log_variance", "std")


class GaussianKLLoss(CheckedLoss):
    r"""Kullback-Leibler divergence of a diagonal Gaussian from a prior, in nats.

    Each sample has latent dimensions with means :math:`\mu` and log-variances :math:`\lambda`;
    :math:`\mu'` and :math:`\lambda'` are those of the prior, 0 by default. The divergence is

    .. math::

       & \mathrm{KL}(N(\mu, e^{\lambda}) \,\|\, N(\mu', e^{\lambda'})) = \\
       & \tfrac12 \sum_j \left( (\mu_j - \mu'_j)^2 e^{-\lambda'_j} + e^{d_j} - 1 - d_j \right)

    with :math:`d_j = \lambda_j - \lambda'_j`. ``spread="std"`` takes standard deviations
    :math:`e^{\lambda / 2}` in place of log-variances. For each sample, with these terms::

        "sum":   loss = terms.sum()  # default
        "mean":  loss = terms.mean()
        "none":  loss = terms

    .. warning::

       In a variational autoencoder (VAE) pass ``reduction="sum"`` to the loss of the pixels too.
       The default of this loss adds over the latent dimensions, and :class:`BernoulliKLLoss`
       averages over the pixels by default: together they give the KL term too much weight, and
       the latent dimensions collapse.

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
        Each latent dimension of each sample counts at least this much. Below it, the dimension
        has no gradient, so a decoder may use it at no cost.
    spread : {"log_variance", "std"}
        What `log_variance` and `prior_log_variance` hold: logarithms of variances, or standard
        deviations (above 0), as distribution libraries give them.
    prefix, params
        As for every Gluon block.

    Inputs
    ------
    mean
        Array or Symbol of any shape with at least one axis.
    log_variance
        The same shape; for ``spread="std"`` standard deviations.
    prior_mean, prior_log_variance
        Optional; N(0, 1) by default. Numbers, or arrays that broadcast to mean's shape, such as
        (latents,) for a prior that all samples share. Arrays receive gradients, for a learned
        prior. Symbols must have as many axes as `mean`.
    sample_weight
        Optional. Shape (batch,) for one weight per sample; or as many axes as `mean`, each of
        length 1 or that of `mean`. Weight 0 ignores its terms, even NaN.

    Outputs
    -------
    loss
        Shape (batch,), or that of `mean` for ``reduction="none"``; float64 if an input is,
        else float32. The same kind of array as `mean`.

    Raises
    ------
    ValueError
        If shapes do not fit, `batch_axis` is out of range, the arrays are on different devices,
        a prior is a number that is not finite or a standard deviation that is not above 0,
        `free_nats` is negative, or `reduction` or `spread` is unknown.
    TypeError
        If an input is not an MXNet array or Symbol, or an argument has the wrong type.

    Notes
    -----
    No term is negative, equal Gaussians give exactly 0, and nearly equal ones keep their leading
    digits. A term is infinite only if its value exceeds the dtype, for log-variances down to
    the most negative number of the dtype. Without the fused operator, terms keep the digits above
    1e-16 in float32; in float64 the same holds for sums inside another hybridized block. A sum is
    then infinite if the square of a mean is, which in float32 happens for means from 1.8e19 on.

    Kingma et al. (2016) apply the free nats to the average over a minibatch. Here they apply to
    every sample, so a result does not depend on which samples share a batch.

    References
    ----------
    D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes", ICLR 2014,
    appendix B.

    D. P. Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow",
    NeurIPS 2016, appendix C.8.

    Examples
    --------
    >>> from gluon_kl import GaussianKLLoss
    >>> from mxnet import nd
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

    Standard deviations. The prior has mean 0 in the first latent dimension and mean 1 in the
    second, and standard deviation 2 in both:

    >>> loss = GaussianKLLoss(spread="std")
    >>> std = (log_var / 2).exp()
    >>> prior_mean = nd.array([0, 1])
    >>> value = loss(mean, std, prior_mean, 2)
    >>> print(value.asnumpy().round(4))
    [0.7613 1.7782]
    """

    def __init__(
        self, weight: Optional[float] = None, batch_axis: int = 0, *, reduction: str = "sum", free_nats: float = 0.0,
        spread: str = "log_variance", prefix: Optional[str] = None, params: Any = None,
    ) -> None:
        super().__init__(weight, batch_axis, prefix=prefix, params=params)
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("spread", spread, SPREADS)
        self._reduction = reduction
        self._free_nats = check_not_negative("free_nats", free_nats)
        self._spread = spread
        own = "exp(log_variance)" if spread == "log_variance" else "std²"
        self._direction = f"KL(N(mean, {own}) ‖ prior) in nats"
        self._set_out()

    def _describe(self) -> str:
        return (f"weight={self._weight}, batch_axis={self._batch_axis}, reduction={self._reduction!r}, "
                f"free_nats={self._free_nats}, spread={self._spread!r}")

    def _loss(
        self, F: Any, mean: Any, log_variance: Any, prior_mean: Any = None, prior_log_variance: Any = None,
        sample_weight: Any = None,
    ) -> Any:
        """The loss of arrays or Symbols, for subclasses that override this method."""
        prior = self._fit_numbers(prior_mean, prior_log_variance)
        return self._road(self, (mean, log_variance, *prior, sample_weight))

    def _fit_numbers(self, *prior: Any) -> List[Any]:
        """The priors; numbers are checked, with every call, and become floats, or None for the standard prior."""
        fitted: List[Any] = []
        std = self._spread == "std"
        for name, x, standard in zip(GaussianDescription.numeric, prior, (0, 1 if std else 0)):
            if x is not None and not isinstance(x, NDArray) and is_number(x):
                number = float(check_number(name, x))
                if name == "prior_log_variance" and std and not number > 0:
                    raise ValueError(f"{name} must be positive, a standard deviation since spread='std', not {x!r}")
                x = None if number == standard else number
            fitted.append(x)
        return fitted

    def _description(self) -> Description:
        return GaussianDescription(self._weight, self._batch_axis, self._reduction, self._free_nats,
                                   self._spread == "std")

    def check_inputs(
        self, mean: Any, log_variance: Any, prior_mean: Any = None, prior_log_variance: Any = None,
        sample_weight: Any = None,
    ) -> None:
        """Look at the values once, on a first batch or while debugging, and name a likely mistake.

        It finds variances or standard deviations instead of logarithms of variances, the reverse
        with ``spread="std"``, swapped arguments, a prior whose log-variance is 1 instead of its
        variance, values that are not finite, and lengths as `sample_weight`. Values of weight 0
        are ignored. The method never runs by itself: it waits for the values, and an error on one
        worker of a distributed job would hang the others.

        Parameters
        ----------
        mean, log_variance
            Arrays, as the loss takes them.
        prior_mean, prior_log_variance, sample_weight
            Optional, as the loss takes them; the priors may be numbers.

        Raises
        ------
        ValueError
            If the values suggest a mistake; the message names it and the remedy.
        TypeError
            If an input is not an MXNet array.

        Examples
        --------
        >>> from gluon_kl import GaussianKLLoss
        >>> from mxnet import nd
        >>> mean = nd.arange(12).reshape((3, 4))
        >>> variance = (mean - 6).exp()
        >>> loss = GaussianKLLoss()
        >>> try:
        ...     loss.check_inputs(mean, variance)
        ... except ValueError as error:
        ...     print(str(error).split(" from")[0])
        log_variance holds values
        >>> loss.check_inputs(mean, variance.log())
        """
        prior_mean, prior_log_variance = self._fit_numbers(prior_mean, prior_log_variance)
        (mean, log_variance, *prior, weight), frame = self._check(
            *self._real(mean, log_variance, prior_mean, prior_log_variance, sample_weight))
        diagnostics.check_gaussian(mean, log_variance, prior[0], prior[1], weight, frame.batch_axis, self._spread)
