"""The divergences between two arrays of distributions, as Gluon losses."""

from typing import Any, Optional, Tuple

from gluon_kl import divergence
from gluon_kl.inputs import (
    REDUCTIONS, CheckedLoss, Facts, check_axis, check_choice, check_flag, check_positive, check_same_shape,
    fit_sample_weight, normal_axis, observe, weigh,
)


class PairLoss(CheckedLoss):
    """What the losses between `pred` and `label` share: arguments, checks, weights and reduction.

    A subclass gives the elementwise terms.
    """

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
        pred, label, weight = self._lifted(F, facts, inputs)
        whole_rows = self._whole_rows(facts, weight)
        label_grad, weight_grad = (True, True) if facts is None else facts.recorded[1:]

        def terms(pred: Any, label: Any) -> Any:
            return self._terms(F, pred, label, whole_rows, label_grad)

        out = weigh(F, terms, (pred, label), weight, self._axis, weight_grad)
        return self._reduced(F, facts, out, self._reduction)

    def _terms(self, F: Any, pred: Any, label: Any, whole_rows: bool, label_grad: bool) -> Any:
        raise NotImplementedError


class KLDivLoss(PairLoss):
    r"""Kullback-Leibler divergence of a prediction from a target distribution, in nats.

    For each sample, with :math:`p` the label and :math:`q` the prediction,

    .. math:: \mathrm{KL}(p \,\|\, q) = \sum_i p_i \, (\log p_i - \log q_i),

    also called the relative entropy of the label with respect to the prediction. It is
    0 where both agree, grows without bound where the prediction misses mass that the
    label has, and ignores what the prediction puts where the label has none.

    Drop-in for :class:`mxnet.gluon.loss.KLDivLoss`, with the same positional arguments;
    ``reduction="sum"`` keeps the scale of MXNet 1.9.

    Parameters
    ----------
    from_logits : bool, default True
        In Gluon's meaning: `True` if `pred` holds log-probabilities, `False` if it holds
        raw scores, to which the loss applies log softmax over `axis`.
    axis : int, default -1
        The axis of the categories.
    weight : float, optional
        Factor for every result.
    batch_axis : int, default 0
        The axis of the samples; every other axis is reduced.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by the number of terms of a sample, as Gluon documents;
        "sum" is the divergence itself; "none" returns the terms.
    label_space : {"probs", "log_probs", "logits"}
        What `label` holds: probabilities, their logarithms, or raw scores that go through
        softmax over `axis`.
    epsilon : float, default 1e-12
        Stands in for a label of exactly 0 inside the logarithm. It changes no value: only
        the gradient to such a label, which is ``log(epsilon) - log_pred``.
    prefix, params
        As for every Gluon block.

    Inputs
    ------
    pred
        Array or Symbol of any shape with at least one axis, any floating dtype. A score of
        -inf masks its category.
    label
        The same shape; any floating, integer or boolean dtype. Need not sum to 1.
    sample_weight
        Optional. Shape (batch,), a weight per sample; or as many axes as `pred`, each 1 or
        that of `pred`. Weight 0 silences a row whatever it holds.

    Outputs
    -------
    loss
        Shape (batch,), or that of `pred` for ``reduction="none"``; float64 if an input is,
        else float32. Of the array kind of `pred`.

    Raises
    ------
    ValueError
        If shapes differ, `sample_weight` does not fit, an axis is out of range, the arrays
        are on different devices, or an argument is not among the allowed ones.
    TypeError
        If an input is not an MXNet array or Symbol, or an argument has the wrong type.

    Notes
    -----
    A term whose label is 0 is 0, also at a masked score. A label above 0 at a masked score
    gives infinity, and a negative label NaN.

    Where both sides are logits and whole rows are reduced, the terms are summed in the
    form :math:`p u + q - p` with :math:`u = \log p - \log q`: never negative, exactly 0 for
    equal rows, and correct in its leading digits for nearly equal ones.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical
    Statistics 22 (1951), 79-86.

    Examples
    --------
    >>> import mxnet as mx
    >>> from gluon_kl import KLDivLoss
    >>> pred = mx.nd.log(mx.nd.array([[0.2, 0.5, 0.2, 0.1]]))
    >>> label = mx.nd.array([[0.3, 0.4, 0.1, 0.2]])
    >>> print(KLDivLoss(reduction="sum")(pred, label).asnumpy().round(4))
    [0.1017]
    >>> print(KLDivLoss()(pred, label).asnumpy().round(4))
    [0.0254]
    >>> scores = mx.nd.array([[2.0, 0.5, -1.0, 0.1]])
    >>> print(KLDivLoss(from_logits=False, reduction="sum")(scores, label).asnumpy().round(4))
    [0.3526]
    """

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
