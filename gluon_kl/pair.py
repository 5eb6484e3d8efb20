"""The divergences between two arrays of distributions, as Gluon losses."""

from typing import Any, Dict, Optional

from gluon_kl import diagnostics
from gluon_kl.checks import (
    ROW_REDUCTIONS,
    check_axis,
    check_between,
    check_choice,
    check_flag,
    check_positive,
    check_share,
    normal_axis,
)
from gluon_kl.description import Description, PairDescription
from gluon_kl.front import CheckedLoss
from gluon_kl.operators import SPACES, js_form, skew_form

from mxnet import gluon


def pred_space_of(from_logits: bool, pred_space: Optional[str]) -> str:
    """The space of `pred`, from the two arguments that name it."""
    from_logits = check_flag("from_logits", from_logits)
    if pred_space is None:
        pred_space = "log_probs" if from_logits else "logits"
    check_choice("pred_space", pred_space, SPACES)
    if not from_logits and pred_space != "logits":
        raise ValueError(f"from_logits=False says that pred holds logits, but pred_space={pred_space!r}: "
                         f"leave one of the two out")
    return pred_space


class PairLoss(CheckedLoss):
    """What the losses between `pred` and `label` share: arguments, checks, weights and reduction.

    A subclass gives the elementwise terms.
    """

    def __init__(
        self, from_logits: bool, axis: int, weight: Optional[float], batch_axis: int,
        reduction: str, label_space: str, pred_space: Optional[str], **kwargs: Any,
    ) -> None:
        super().__init__(weight, batch_axis, **kwargs)
        self._pred_space, self._given_pred_space = pred_space_of(from_logits, pred_space), pred_space
        self._from_logits = bool(from_logits)
        self._axis = check_axis("axis", axis)
        check_choice("reduction", reduction, ROW_REDUCTIONS)
        check_choice("label_space", label_space, SPACES)
        self._reduction = reduction
        self._label_space = label_space

    def _describe(self) -> str:
        return (f"from_logits={self._from_logits}, axis={self._axis}, weight={self._weight}, "
                f"batch_axis={self._batch_axis}, reduction={self._reduction!r}, label_space={self._label_space!r}, "
                f"pred_space={self._given_pred_space!r}")

    def _loss(self, F: Any, pred: Any, label: Any, sample_weight: Any = None) -> Any:
        """The loss of arrays or Symbols, for subclasses that override this method."""
        return self._road(self, (pred, label, sample_weight))

    def check_inputs(self, pred: Any, label: Any, sample_weight: Any = None) -> None:
        """Look at the values once, on a first batch or while debugging, and name a likely mistake.

        It finds probabilities or logits instead of log-probabilities, sigmoid outputs,
        logarithms to another base, probabilities that would go through softmax twice, class
        indices or counts as label, rows that do not sum to 1, rows that sum to 1 along another
        axis, negative probabilities, padding without a weight, lengths as `sample_weight`, and
        swapped arguments. Values of weight 0 are ignored. The method never runs by itself: it
        waits for the values, and an error on one worker of a distributed job would hang the others.

        Parameters
        ----------
        pred, label
            Arrays, as the loss takes them.
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
        >>> from gluon_kl import KLDivLoss
        >>> from mxnet import nd
        >>> pred = nd.array([[0.2, 1.3, -0.4]])
        >>> counts = nd.array([[2, 7, 1]])
        >>> loss = KLDivLoss(from_logits=False)
        >>> try:
        ...     loss.check_inputs(pred, counts)
        ... except ValueError as error:
        ...     print(str(error).split(",")[0])
        label holds counts
        >>> loss.check_inputs(pred, counts / 10)
        """
        pred, label, weight = self._real(pred, label, sample_weight)
        axis = normal_axis("axis", self._axis, pred.shape, "pred")
        diagnostics.check_not_indices(label, pred.shape, axis)
        (pred, label, weight), frame = self._check(pred, label, weight)
        diagnostics.check_pair(pred, label, weight, frame.batch_axis, axis, self._from_logits, self._given_pred_space,
                               self._label_space)

    def _form(self) -> Dict[str, Any]:
        """The options that choose the divergence, for `operators.pair_terms` and the fused operator."""
        raise NotImplementedError

    def _description(self) -> Description:
        return PairDescription(self._weight, self._batch_axis, self._reduction, self._axis, self._pred_space,
                               self._label_space, self._form())


class KLDivLoss(PairLoss, gluon.loss.KLDivLoss):
    r"""Kullback-Leibler divergence of a prediction from a target distribution, in nats.

    For each sample, with :math:`p` the label and :math:`q` the prediction,

    .. math:: \mathrm{KL}(p \,\|\, q) = \sum_i p_i \, (\log p_i - \log q_i),

    also called the relative entropy of the label with respect to the prediction. It is
    0 if both agree. It grows without bound if the prediction of a category goes to 0 while its
    label does not. A category whose label is 0 adds nothing.

    A drop-in replacement for :class:`mxnet.gluon.loss.KLDivLoss`, with the same positional
    arguments. For each sample of shape (rows, categories)::

        terms = p * (log(p) - log(q))
        "mean":      loss = terms.mean()  # default
        "sum":       loss = terms.sum()
        "row":       loss = terms.sum(axis)
        "row_mean":  loss = terms.sum(axis).mean()

    .. warning::

       "mean", the default of Gluon, divides the divergence and its gradient by the number of
       categories too. ``reduction="sum"`` is the divergence itself, and the scale of MXNet 1.9.

    Parameters
    ----------
    from_logits : bool, default True
        In Gluon's meaning: `True` if `pred` holds log-probabilities, `False` if it holds
        logits, to which the loss applies log softmax over `axis`.
    axis : int, default -1
        The axis of the categories.
    weight : float, optional
        Factor for every result.
    batch_axis : int, default 0
        The axis of the samples; every other axis is reduced.
    reduction : {"mean", "sum", "none", "row", "row_mean"}
        "mean" divides the sum by the number of terms of a sample, as Gluon documents;
        "sum" is the divergence itself; "none" returns the terms. "row" adds over `axis` alone
        and returns one value for each position of a sequence. "row_mean" averages these values
        over the rows of a sample whose weight is not 0. For sequences with padding this is the
        mean divergence per valid position, on the scale of Gluon's SoftmaxCELoss. A sample
        without such a row gives 0.
    label_space : {"probs", "log_probs", "logits"}
        What `label` holds: probabilities, their logarithms, or logits that go through
        softmax over `axis`.
    pred_space : {"probs", "log_probs", "logits"}, optional
        What `pred` holds, instead of what `from_logits` says: "probs" for networks that end in
        a softmax. A probability of 0 under a label of 0 has the gradient 0.
    epsilon : float, default 1e-12
        Replaces a label of exactly 0 inside the logarithm. It changes no value. It changes only
        the gradient to such a label, which is ``log(epsilon) - log_pred``.
    skew : float, default 0
        From 0 to below 1, the share :math:`s` of the label in the mixture that it is compared
        with: :math:`\mathrm{KL}(p \,\|\, s p + (1 - s) q)`. This is at most :math:`-\log s`,
        which it reaches if the two share no category.
    prefix, params
        As for every Gluon block.

    Inputs
    ------
    pred
        Array or Symbol of any shape with at least one axis, any floating dtype. A value of
        -inf masks its category.
    label
        The same shape; any floating, integer or boolean dtype. Its rows need not sum to 1.
    sample_weight
        Optional. Shape (batch,) for one weight per sample; pred's shape without `axis`, such as
        (batch, time), for one per row; or as many axes as `pred`, each of length 1 or that of
        `pred`. Weight 0 ignores the row, even NaN.

    Outputs
    -------
    loss
        Shape (batch,); pred's shape for ``reduction="none"``, and pred's shape without `axis` for
        "row", or (1,) if `pred` has one axis. float64 if an input is, else float32. The same kind
        of array as `pred`.

    Raises
    ------
    ValueError
        If shapes differ, `sample_weight` does not fit, an axis is out of range, the arrays
        are on different devices, or an argument is not among the allowed ones.
    TypeError
        If an input is not an MXNet array or Symbol, or an argument has the wrong type.

    Notes
    -----
    If the label is 0, the term is 0, even if the prediction is masked or NaN. A label above 0 at
    a masked category gives infinity without a `skew`, and a finite term with one. A negative
    label gives NaN. With a `skew`, the gradient to a label of 0 is
    ``log(epsilon) - log(1 - skew) - log_pred``.

    If both sides are logits and whole rows are reduced, the terms are summed in the
    form :math:`p u + q - p` with :math:`u = \log p - \log q`. The result is never negative, is
    exactly 0 for equal rows, and keeps its leading digits for nearly equal ones. With a `skew`,
    the terms are :math:`p \, (y - \log(1 + y))` with :math:`y = (1 - s) (q / p - 1)`, which are
    equally exact.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical
    Statistics 22 (1951), 79-86.

    J. Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models",
    ICML 2024, for the skew.

    Examples
    --------
    `pred` holds log-probabilities and `label` probabilities. First the sum, then the mean over the
    categories:

    >>> from gluon_kl import KLDivLoss
    >>> from mxnet import nd
    >>> pred = nd.array([[0.2, 0.5, 0.2, 0.1]])
    >>> label = nd.array([[0.3, 0.4, 0.1, 0.2]])
    >>> loss = KLDivLoss(reduction="sum")
    >>> value = loss(pred.log(), label)
    >>> print(value.asnumpy().round(4))
    [0.1017]
    >>> value = KLDivLoss()(pred.log(), label)
    >>> print(value.asnumpy().round(4))
    [0.0254]

    `pred` holds logits, as most networks return them:

    >>> logits = nd.array([[2, 0.5, -1, 0.1]])
    >>> loss = KLDivLoss(
    ...     from_logits=False, reduction="sum")
    >>> value = loss(logits, label)
    >>> print(value.asnumpy().round(4))
    [0.3526]

    `pred` holds probabilities, from a network that ends in a softmax:

    >>> loss = KLDivLoss(
    ...     pred_space="probs", reduction="sum")
    >>> value = loss(pred, label)
    >>> print(value.asnumpy().round(4))
    [0.1017]

    The prediction excludes categories that the label has; with a skew the result is finite:

    >>> sure = nd.array([[1, 0, 0, 0]])
    >>> loss = KLDivLoss(
    ...     pred_space="probs", reduction="sum",
    ...     skew=0.1)
    >>> value = loss(sure, label)
    >>> print(value.asnumpy().round(4))
    [1.2724]

    A sequence of two positions; the second is padding:

    >>> pair = nd.stack(pred, pred, axis=1)
    >>> padded = nd.stack(
    ...     label, 9 * label, axis=1)
    >>> loss = KLDivLoss(reduction="row_mean")
    >>> valid = nd.array([[1, 0]])
    >>> value = loss(
    ...     pair.log(), padded, valid)
    >>> print(value.asnumpy().round(4))
    [0.1017]
    """

    _direction = "KL(label ‖ pred) in nats"
    _skew = 0  # for losses that were pickled before this argument existed

    def __init__(
        self, from_logits: bool = True, axis: int = -1, weight: Optional[float] = None, batch_axis: int = 0, *,
        reduction: str = "mean", label_space: str = "probs", pred_space: Optional[str] = None,
        epsilon: float = 1e-12, skew: float = 0.0, prefix: Optional[str] = None, params: Any = None,
    ) -> None:
        super().__init__(from_logits, axis, weight, batch_axis, reduction, label_space, pred_space,
                         prefix=prefix, params=params)
        self._epsilon = check_positive("epsilon", epsilon, maximum=1)
        self._skew = check_share("skew", skew)
        if skew:
            self._direction = "KL(label ‖ skew * label + (1 - skew) * pred) in nats"
        self._set_out()

    def _describe(self) -> str:
        return f"{super()._describe()}, epsilon={self._epsilon}, skew={self._skew}"

    def _form(self) -> Dict[str, Any]:
        return {"epsilon": float(self._epsilon), **skew_form("kl", self._skew)}



class ReverseKLDivLoss(PairLoss):
    r"""Kullback-Leibler divergence of a target distribution from the prediction, in nats.

    :class:`KLDivLoss` with its sides exchanged. For each sample, with :math:`p` the label
    and :math:`q` the prediction,

    .. math:: \mathrm{KL}(q \,\|\, p) = \sum_i q_i \, (\log q_i - \log p_i).

    It is large if the prediction gives probability to categories where the label has little. It
    stays small if the prediction leaves out some of the label's categories. So a prediction that
    is too simple for its target settles on one peak of the target. For each sample of shape
    (rows, categories)::

        terms = q * (log(q) - log(p))
        "mean":      loss = terms.mean()  # default
        "sum":       loss = terms.sum()
        "row":       loss = terms.sum(axis)
        "row_mean":  loss = terms.sum(axis).mean()

    .. warning::

       "mean" divides the divergence and its gradient by the number of categories too.
       ``reduction="sum"`` is the divergence itself.

    Parameters
    ----------
    from_logits : bool, default True
        `True` if `pred` holds log-probabilities, `False` if it holds logits, to which
        the loss applies log softmax over `axis`.
    axis : int, default -1
        The axis of the categories.
    weight : float, optional
        Factor for every result.
    batch_axis : int, default 0
        The axis of the samples; every other axis is reduced.
    reduction : {"mean", "sum", "none", "row", "row_mean"}
        "mean" divides the sum by the number of terms of a sample; "sum" is the divergence
        itself; "none" returns the terms; "row" adds over `axis` alone; "row_mean" averages that
        over the rows of a sample whose weight is not 0.
    label_space : {"probs", "log_probs", "logits"}
        What `label` holds: probabilities, their logarithms, or logits that go through
        softmax over `axis`.
    pred_space : {"probs", "log_probs", "logits"}, optional
        What `pred` holds, instead of what `from_logits` says: "probs" for networks that end in
        a softmax.
    skew : float, default 0
        From 0 to below 1, the share :math:`s` of the prediction in the mixture that it is
        compared with: :math:`\mathrm{KL}(q \,\|\, s q + (1 - s) p)`. This is at most
        :math:`-\log s`, which it reaches if the two share no category.
    prefix, params
        As for every Gluon block.

    Inputs
    ------
    pred
        Array or Symbol of any shape with at least one axis. A value of -inf masks its category.
    label
        The same shape; any floating, integer or boolean dtype.
    sample_weight
        Optional. Shape (batch,) for one weight per sample; pred's shape without `axis`, such as
        (batch, time), for one per row; or as many axes as `pred`, each of length 1 or that of
        `pred`. Weight 0 ignores the row, even NaN.

    Outputs
    -------
    loss
        Shape (batch,); pred's shape for ``reduction="none"``, and pred's shape without `axis` for
        "row", or (1,) if `pred` has one axis. float64 if an input is, else float32. The same kind
        of array as `pred`.

    Raises
    ------
    ValueError
        If shapes differ, `sample_weight` does not fit, an axis is out of range, the arrays
        are on different devices, or an argument is not among the allowed ones.
    TypeError
        If an input is not an MXNet array or Symbol, or an argument has the wrong type.

    Notes
    -----
    If the predicted probability is 0, the term is 0, even if the label is 0 too. If the predicted
    probability is above 0 and the label is 0, the term is infinite and has no useful gradient:
    for one-hot labels use a `skew`, smooth the labels, or use :class:`JSDivLoss`. The gradient to
    a label of 0 is 0. With a `skew` it is :math:`-(1 - s) / s` if the predicted probability is
    above 0.

    If both sides are logits and whole rows are reduced, the result is never negative, is
    exactly 0 for equal rows, and keeps its leading digits for nearly equal ones.

    References
    ----------
    T. Minka, "Divergence measures and message passing", Microsoft Research Technical Report
    MSR-TR-2005-173 (2005).

    J. Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models",
    ICML 2024, for the skew.

    Examples
    --------
    >>> from gluon_kl import ReverseKLDivLoss
    >>> from mxnet import nd
    >>> pred = nd.array([[0.2, 0.5, 0.2, 0.1]])
    >>> label = nd.array([[0.3, 0.4, 0.1, 0.2]])
    >>> loss = ReverseKLDivLoss(reduction="sum")
    >>> value = loss(pred.log(), label)
    >>> print(value.asnumpy().round(4))
    [0.0998]

    The label is one-hot; with a skew the result is finite:

    >>> one_hot = nd.array([[0, 1, 0, 0]])
    >>> loss = ReverseKLDivLoss(
    ...     reduction="sum", skew=0.1)
    >>> value = loss(pred.log(), one_hot)
    >>> print(value.asnumpy().round(4))
    [0.8304]
    """

    _direction = "KL(pred ‖ label) in nats"
    _skew = 0  # for losses that were pickled before this argument existed

    def __init__(
        self, from_logits: bool = True, axis: int = -1, weight: Optional[float] = None, batch_axis: int = 0, *,
        reduction: str = "mean", label_space: str = "probs", pred_space: Optional[str] = None,
        skew: float = 0.0, prefix: Optional[str] = None, params: Any = None,
    ) -> None:
        super().__init__(from_logits, axis, weight, batch_axis, reduction, label_space, pred_space,
                         prefix=prefix, params=params)
        self._skew = check_share("skew", skew)
        if skew:
            self._direction = "KL(pred ‖ skew * pred + (1 - skew) * label) in nats"
        self._set_out()

    def _describe(self) -> str:
        return f"{super()._describe()}, skew={self._skew}"

    def _form(self) -> Dict[str, Any]:
        return skew_form("reverse_kl", self._skew)



class JSDivLoss(PairLoss):
    r"""Generalised Jensen-Shannon divergence of a prediction and a target, in nats.

    For each sample, with :math:`p` the label, :math:`q` the prediction and their mixture
    :math:`m = \beta p + (1 - \beta) q`,

    .. math:: \mathrm{JS}_\beta = \beta \, \mathrm{KL}(p \| m)
              + (1 - \beta) \, \mathrm{KL}(q \| m).

    For :math:`0 < \beta < 1` it is at most
    :math:`-\beta \log \beta - (1 - \beta) \log(1 - \beta)`, which it reaches if the two share no
    category. At :math:`\beta = 1/2` this bound is log 2, and the divergence is symmetric. For each
    sample of shape (rows, categories)::

        terms = (beta * p * (log(p) - log(m))
                 + (1 - beta) * q * (log(q) - log(m)))
        "mean":      loss = terms.mean()  # default
        "sum":       loss = terms.sum()
        "row":       loss = terms.sum(axis)
        "row_mean":  loss = terms.sum(axis).mean()

    .. warning::

       "mean" divides the divergence and its gradient by the number of categories too.
       ``reduction="sum"`` is the divergence itself.

    Parameters
    ----------
    from_logits : bool, default True
        `True` if `pred` holds log-probabilities, `False` if it holds logits, to which
        the loss applies log softmax over `axis`.
    axis : int, default -1
        The axis of the categories.
    weight : float, optional
        Factor for every result.
    batch_axis : int, default 0
        The axis of the samples; every other axis is reduced.
    beta : float, default 0.5
        Between 0 and 1, the share of the label in the mixture. 0 gives
        KL(label ‖ pred), and 1 gives KL(pred ‖ label).
    reduction : {"mean", "sum", "none", "row", "row_mean"}
        "mean" divides the sum by the number of terms of a sample; "sum" is the divergence
        itself; "none" returns the terms; "row" adds over `axis` alone; "row_mean" averages that
        over the rows of a sample whose weight is not 0.
    label_space : {"probs", "log_probs", "logits"}
        What `label` holds: probabilities, their logarithms, or logits that go through
        softmax over `axis`.
    pred_space : {"probs", "log_probs", "logits"}, optional
        What `pred` holds, instead of what `from_logits` says: "probs" for networks that end in
        a softmax.
    prefix, params
        As for every Gluon block.

    Inputs
    ------
    pred
        Array or Symbol of any shape with at least one axis. A value of -inf masks its category.
    label
        The same shape; any floating, integer or boolean dtype.
    sample_weight
        Optional. Shape (batch,) for one weight per sample; pred's shape without `axis`, such as
        (batch, time), for one per row; or as many axes as `pred`, each of length 1 or that of
        `pred`. Weight 0 ignores the row, even NaN.

    Outputs
    -------
    loss
        Shape (batch,); pred's shape for ``reduction="none"``, and pred's shape without `axis` for
        "row", or (1,) if `pred` has one axis. float64 if an input is, else float32. The same kind
        of array as `pred`.

    Raises
    ------
    ValueError
        If shapes differ, `sample_weight` does not fit, an axis is out of range, the arrays
        are on different devices, or an argument is not among the allowed ones.
    TypeError
        If an input is not an MXNet array or Symbol, or an argument has the wrong type.

    Notes
    -----
    As `beta` approaches 0, the formula approaches ``beta * KL(label ‖ pred)``, and as `beta`
    approaches 1, ``(1 - beta) * KL(pred ‖ label)``. At 0 and 1 the formula itself would always
    give 0; ``beta=0`` and ``beta=1`` give these divergences without the factor instead.

    No term is ever negative, and equal rows in one space give exactly 0. A label of 0 gets the
    gradient of a label that is :math:`e^{80}` times smaller than the prediction, which is finite.

    References
    ----------
    J. Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on
    Information Theory 37 (1991), 145-151.

    R. Agarwal et al., "On-Policy Distillation of Language Models: Learning from
    Self-Generated Mistakes", ICLR 2024.

    Examples
    --------
    The second sample shares no category with its label, so its divergence is log 2:

    >>> from gluon_kl import JSDivLoss
    >>> from mxnet import nd
    >>> pred = nd.array([[0.2, 0.5, 0.2, 0.1],
    ...                  [0, 0, 1, 0]])
    >>> label = nd.array([[0.3, 0.4, 0.1, 0.2],
    ...                   [1, 0, 0, 0]])
    >>> loss = JSDivLoss(reduction="sum")
    >>> value = loss(pred.log(), label)
    >>> print(value.asnumpy().round(4))
    [0.0248 0.6931]
    """

    _direction = "beta * KL(label ‖ m) + (1 - beta) * KL(pred ‖ m) in nats, m = beta * label + (1 - beta) * pred"

    def __init__(
        self, from_logits: bool = True, axis: int = -1, weight: Optional[float] = None, batch_axis: int = 0, *,
        beta: float = 0.5, reduction: str = "mean", label_space: str = "probs", pred_space: Optional[str] = None,
        prefix: Optional[str] = None, params: Any = None,
    ) -> None:
        super().__init__(from_logits, axis, weight, batch_axis, reduction, label_space, pred_space,
                         prefix=prefix, params=params)
        self._beta = beta = check_between("beta", beta, 0, 1)
        if beta in (0, 1):
            self._direction = (ReverseKLDivLoss if beta else KLDivLoss)._direction
        self._set_out()

    def _describe(self) -> str:
        return f"{super()._describe()}, beta={self._beta}"

    def _form(self) -> Dict[str, Any]:
        return js_form(self._beta)
