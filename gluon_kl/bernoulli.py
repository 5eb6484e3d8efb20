"""The divergence of Bernoulli distributions: independent yes-or-no probabilities, one per element."""

from typing import Any, Optional

from gluon_kl import diagnostics
from gluon_kl.checks import REDUCTIONS, check_choice, check_flag, check_number, is_number
from gluon_kl.description import BernoulliDescription, Description
from gluon_kl.front import CheckedLoss

from mxnet.ndarray import NDArray

SPACES = ("probs", "logits")


class BernoulliKLLoss(CheckedLoss):
    r"""Kullback-Leibler divergence of Bernoulli predictions from Bernoulli targets, in nats.

    Every element is a separate yes-or-no distribution. With :math:`p` the label's probability
    of yes and :math:`q` the prediction's,

    .. math::

       & \mathrm{KL}(p \,\|\, q) = \\
       & p \log\frac{p}{q} + (1 - p) \log\frac{1 - p}{1 - q}.

    It is the binary cross-entropy of :class:`mxnet.gluon.loss.SigmoidBCELoss` minus the entropy
    of the label. So it has the same gradient to `pred`, and it is 0 if both agree. Use it for
    classes that do not exclude each other (distillation of a multi-label classifier), for the
    pixels of a VAE, for binary latent variables and, with a number as label, for the sparsity
    penalty of an autoencoder. For each sample, with these terms::

        "mean":  loss = terms.mean()  # default
        "sum":   loss = terms.sum()
        "none":  loss = terms

    .. warning::

       In a variational autoencoder (VAE) pass ``reduction="sum"``. The default averages over the
       pixels, and :class:`GaussianKLLoss` adds over the latent dimensions: together they give the
       KL term too much weight, and the latent dimensions collapse.

    Parameters
    ----------
    from_sigmoid : bool, default False
        `False` if `pred` holds logits, to which the loss applies the sigmoid, `True` if it
        holds probabilities.
    weight : float, optional
        Factor for every result.
    batch_axis : int, default 0
        The axis of the samples; every other axis is reduced.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by the number of elements of a sample, as SigmoidBCELoss does.
        "sum" is the divergence of a sample, whose elements are independent. "none" returns the
        terms.
    label_space : {"probs", "logits"}
        What `label` holds: probabilities, or logits that go through the sigmoid.
    prefix, params
        As for every Gluon block.

    Inputs
    ------
    pred
        Array or Symbol of any shape with at least one axis, any floating dtype. An infinite
        logit stands for a probability of exactly 0 or 1.
    label
        The same shape, of any floating, integer or boolean dtype; or a number, which is the
        label of every element.
    sample_weight
        Optional. Shape (batch,) for one weight per sample; or as many axes as `pred`, each of
        length 1 or that of `pred`. Weight 0 ignores its elements, even NaN.

    Outputs
    -------
    loss
        Shape (batch,), or that of `pred` for ``reduction="none"``; float64 if an input is,
        else float32. The same kind of array as `pred`.

    Raises
    ------
    ValueError
        If shapes differ, `sample_weight` does not fit, `batch_axis` is out of range, the arrays
        are on different devices, a label that is a number is not a probability (or, as a logit,
        not finite), or an argument is not among the allowed ones.
    TypeError
        If an input is not an MXNet array or Symbol, or an argument has the wrong type.

    Notes
    -----
    No term is negative, equal sides in one space give exactly 0, and nearly equal ones keep
    their leading digits. Labels of exactly 0 and 1 have no entropy, and large logits lose no
    digits on either side. The term is infinite if the prediction excludes an outcome that the
    label allows.

    The gradient to a logit is :math:`\sigma(\mathrm{pred}) - p`. For the gradient to a label of
    exactly 0, 1e-12 replaces it inside the logarithm, as in :class:`KLDivLoss`; for a label of
    exactly 1, 1e-12 replaces its complement. A label below 0 or above 1 gives NaN.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical
    Statistics 22 (1951), 79-86.

    A. Ng, "Sparse autoencoder", CS294A lecture notes, Stanford University (2011), for the
    penalty.

    Examples
    --------
    >>> from gluon_kl import BernoulliKLLoss
    >>> from mxnet import nd
    >>> logits = nd.array([[2, -1, 0.5],
    ...                    [0, 3, -4]])
    >>> label = nd.array([[1, 0, 0.5],
    ...                   [0.5, 1, 0]])
    >>> loss = BernoulliKLLoss(reduction="sum")
    >>> value = loss(logits, label)
    >>> print(value.asnumpy().round(4))
    [0.4711 0.0667]

    A penalty on hidden units, each of which should be active in 5 of 100 samples. The mean
    activity over the batch is one sample of probabilities:

    >>> hidden = nd.array([[0.1, 0.9],
    ...                    [0, 0.7]])
    >>> penalty = BernoulliKLLoss(
    ...     from_sigmoid=True, reduction="sum")
    >>> active = hidden.mean(
    ...     axis=0, keepdims=True)
    >>> value = penalty(active, 0.05)
    >>> print(value.asnumpy().round(4))
    [1.3416]
    """

    _direction = "KL(Bernoulli(label) ‖ Bernoulli(pred)) in nats"

    def __init__(
        self, from_sigmoid: bool = False, weight: Optional[float] = None, batch_axis: int = 0, *,
        reduction: str = "mean", label_space: str = "probs", prefix: Optional[str] = None, params: Any = None,
    ) -> None:
        super().__init__(weight, batch_axis, prefix=prefix, params=params)
        self._from_sigmoid = check_flag("from_sigmoid", from_sigmoid)
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("label_space", label_space, SPACES)
        self._reduction = reduction
        self._label_space = label_space
        self._pred_space = "probs" if from_sigmoid else "logits"
        self._set_out()

    def _describe(self) -> str:
        return (f"from_sigmoid={self._from_sigmoid}, weight={self._weight}, batch_axis={self._batch_axis}, "
                f"reduction={self._reduction!r}, label_space={self._label_space!r}")

    def _loss(self, F: Any, pred: Any, label: Any, sample_weight: Any = None) -> Any:
        """The loss of arrays or Symbols, for subclasses that override this method."""
        label = label if isinstance(label, NDArray) else self._fit_number(label)
        return self._road(self, (pred, label, sample_weight))

    def _fit_number(self, label: Any) -> Any:
        """The label; a number is checked, with every call, and becomes a float."""
        if not is_number(label):
            return label
        number = float(check_number("label", label))
        if self._label_space == "probs" and not 0 <= number <= 1:
            raise ValueError(f"label must lie between 0 and 1, a probability since label_space='probs', not {label!r}")
        return number

    def _description(self) -> Description:
        return BernoulliDescription(self._weight, self._batch_axis, self._reduction, self._pred_space,
                                    self._label_space)

    def check_inputs(self, pred: Any, label: Any, sample_weight: Any = None) -> None:
        """Look at the values once, on a first batch or while debugging, and name a likely mistake.

        It finds labels or predictions that should be probabilities and lie outside 0 to 1 (pixels
        from 0 to 255, labels of -1 and 1, logits), probabilities that would go through the
        sigmoid twice, and lengths as `sample_weight`. Values of weight 0 are ignored. The method
        never runs by itself: it waits for the values, and an error on one worker of a distributed
        job would hang the others.

        Parameters
        ----------
        pred, label
            As the loss takes them: arrays, and for the label also a number.
        sample_weight
            Optional, as the loss takes it.

        Raises
        ------
        ValueError
            If the values suggest a mistake; the message names it and the remedy.
        TypeError
            If an input is not an MXNet array.

        Examples
        --------
        >>> from gluon_kl import BernoulliKLLoss
        >>> from mxnet import nd
        >>> logits = nd.array([[2, -1, 0.5]])
        >>> pixels = nd.array([[0, 128, 255]])
        >>> loss = BernoulliKLLoss()
        >>> try:
        ...     loss.check_inputs(logits, pixels)
        ... except ValueError as error:
        ...     print(str(error).split(" where")[0])
        label holds values from 0 to 255
        >>> loss.check_inputs(logits, pixels / 255)
        """
        label = self._fit_number(label)
        (pred, label, weight), frame = self._check(*self._real(pred, label, sample_weight))
        diagnostics.check_bernoulli(pred, label, weight, frame.batch_axis, self._pred_space, self._label_space)
