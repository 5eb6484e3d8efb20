"""Knowledge distillation: a student learns from a teacher's softened predictions, and from labels."""

from typing import Any, Dict, Optional, Tuple

from gluon_kl import diagnostics, divergence
from gluon_kl.inputs import (
    CheckedLoss,
    Facts,
    Frame,
    check_axis,
    check_between,
    check_choice,
    check_flag,
    check_same_shape,
    fit_sample_weight,
    normal_axis,
    own,
    weigh,
)

DIVERGENCES = ("kl", "reverse_kl", "js")


class DistillationLoss(CheckedLoss):
    r"""Loss of a student that learns from a teacher's predictions, and from labels.

    With :math:`z` the scores of the student, :math:`v` those of the teacher, :math:`y` the
    label, temperature :math:`T` and hard weight :math:`\alpha`,

    .. math::

       & \alpha \, \mathrm{CE}(y, \mathrm{softmax}(z)) \\
       & + (1 - \alpha) \, T^2 \, \mathrm{KL}(p \,\|\, q)

    where :math:`p = \mathrm{softmax}(v / T)` and :math:`q = \mathrm{softmax}(z / T)`, in
    nats, summed over categories and averaged over the rows of a sample whose weight is not 0.
    Dividing by :math:`T` shrinks the gradient of the divergence by :math:`T^2`; the factor
    gives it back, so that `hard_weight` and the learning rate keep their meaning when the
    temperature changes. Another `divergence` takes the place of KL.

    Positional arguments and gradients are those of gluon-cv's
    DistillationSoftmaxCrossEntropyLoss, whose value is this one plus
    :math:`(1 - \alpha) \, T^2` times the entropy of :math:`p`.

    Parameters
    ----------
    temperature : float, default 1.0
        Above 1 it softens both distributions, so that the teacher's small probabilities count. Between 1e-6 and
        1e6.
    hard_weight : float, default 0.5
        Between 0 and 1, the share of the cross-entropy with the label. At 0 the label is not
        looked at and may be None; at 1 neither is `teacher_pred`.
    sparse_label : bool, default True
        `True` if `label` holds class indices, `False` if it holds a probability for each
        category, one-hot, smoothed or mixed.
    weight : float, optional
        Factor for every result.
    batch_axis : int, default 0
        The axis of the samples.
    axis : int, default -1
        The axis of the categories; not that of the samples.
    divergence : {"kl", "reverse_kl", "js"}
        "kl" is KL(teacher ‖ pred); "reverse_kl" is KL(pred ‖ teacher), which lets a small student
        keep to what it can say well; "js" is the generalised Jensen-Shannon divergence of
        :class:`JSDivLoss`.
    beta : float, default 0.5
        Between 0 and 1, the share of the teacher in the mixture of "js".
    teacher_space : {"logits", "probs", "log_probs"}
        What `teacher_pred` holds: raw scores, which are divided by `temperature`; or the softened
        distribution itself, ``softmax(scores / temperature)``, or its logarithm, used as given.
        Probabilities at temperature 1 are neither: pass their logarithms as "logits".
    prefix, params
        As for every Gluon block.

    Inputs
    ------
    pred
        Array or Symbol, the scores (logits) of the student. A score of -inf masks its category.
    label
        Class indices of any dtype, of pred's shape without `axis` or with 1 there; or pred's
        shape if not `sparse_label`.
    teacher_pred
        Of pred's shape, the teacher's output. No gradient reaches it.
    sample_weight
        Optional. Shape (batch,), a weight per sample; pred's shape without `axis`, one per row,
        such as (batch, time); or as many axes as `pred`, each 1 or that of `pred`. Weight 0
        silences a row whatever it holds.

    Outputs
    -------
    loss
        Shape (batch,); float64 if an input is, else float32. Of the array kind of `pred`.

    Raises
    ------
    ValueError
        If shapes do not fit, an axis is out of range or both are the same, the arrays are on
        different devices, `temperature` is not in [1e-6, 1e6], `hard_weight` or `beta` not in [0, 1], or an argument
        not among the allowed ones.
    TypeError
        If an input is not an MXNet array or Symbol, or an argument has the wrong type.

    Notes
    -----
    A class index that is negative, too large or no whole number makes the loss and the
    gradient of its row NaN, rather than another class's; :meth:`check_inputs` raises an error
    for it. To leave rows without a class out, give them weight 0.

    References
    ----------
    G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network",
    arXiv:1503.02531 (2015).

    R. Agarwal et al., "On-Policy Distillation of Language Models: Learning from
    Self-Generated Mistakes", ICLR 2024, for the other divergences.

    Examples
    --------
    >>> from gluon_kl import DistillationLoss
    >>> from mxnet import nd
    >>> student = nd.array([[2, 0.5, -1],
    ...                     [0.2, 0.1, 0.4]])
    >>> teacher = nd.array([[3, 1, -2],
    ...                     [0, 0, 4]])
    >>> label = nd.array([0, 2])
    >>> loss = DistillationLoss(temperature=2)
    >>> value = loss(student, label, teacher)
    >>> print(value.asnumpy().round(4))
    [0.1934 1.2265]

    The same from the teacher's softened probabilities; and with KL(pred ‖ teacher):

    >>> softened = nd.softmax(teacher / 2)
    >>> loss = DistillationLoss(
    ...     2, teacher_space="probs")
    >>> value = loss(student, label, softened)
    >>> print(value.asnumpy().round(4))
    [0.1934 1.2265]
    >>> loss = DistillationLoss(
    ...     2, divergence="reverse_kl")
    >>> value = loss(student, label, teacher)
    >>> print(value.asnumpy().round(4))
    [0.2103 1.3094]
    """

    _names = ("pred", "label", "teacher_pred", "sample_weight")
    _reduction = "row_mean"

    def __init__(
        self, temperature: float = 1.0, hard_weight: float = 0.5, sparse_label: bool = True,
        weight: Optional[float] = None, batch_axis: int = 0, *, axis: int = -1, divergence: str = "kl",
        beta: float = 0.5, teacher_space: str = "logits", prefix: Optional[str] = None, params: Any = None,
    ) -> None:
        super().__init__(weight, batch_axis, prefix=prefix, params=params)
        self._temperature = check_between("temperature", temperature, 1e-6, 1e6)  # its square is a factor
        self._hard_weight = hard_weight = check_between("hard_weight", hard_weight, 0, 1)
        self._axis = check_axis("axis", axis)
        self._sparse_label = check_flag("sparse_label", sparse_label)
        check_choice("divergence", divergence, DIVERGENCES)
        self._beta = check_between("beta", beta, 0, 1)
        check_choice("teacher_space", teacher_space, ("logits", "probs", "log_probs"))
        self._divergence = divergence
        self._teacher_space = teacher_space
        self._unused = {0: "label", 1: "teacher_pred"}[int(hard_weight)] if hard_weight in (0, 1) else ""
        self._optional = ("sample_weight", self._unused)
        self._alike = ("teacher_pred",) if self._sparse_label else ("label", "teacher_pred")
        self._fixed = ("label", "teacher_pred") if self._sparse_label else ("teacher_pred",)
        soft = {"kl": "KL(teacher_pred ‖ pred)", "reverse_kl": "KL(pred ‖ teacher_pred)",
                "js": "JS(teacher_pred, pred)"}[divergence]
        self._direction = f"hard_weight * CE(label, pred) + (1 - hard_weight) * T² * {soft} in nats"

    def _form(self) -> Dict[str, Any]:
        """Which divergence it is, in the words of `divergence.pair_terms` and of the operator."""
        return divergence.js_form(self._beta) if self._divergence == "js" else {"form": self._divergence}

    def _describe(self) -> str:
        return (f"temperature={self._temperature}, hard_weight={self._hard_weight}, "
                f"sparse_label={self._sparse_label}, weight={self._weight}, batch_axis={self._batch_axis}, "
                f"axis={self._axis}, divergence={self._divergence!r}, beta={self._beta}, "
                f"teacher_space={self._teacher_space!r}")

    @own
    def hybrid_forward(self, F: Any, pred: Any, label: Any, teacher_pred: Any, sample_weight: Any = None) -> Any:
        """The loss of arrays or Symbols, for subclasses that override this method."""
        return self._loss(pred, label, teacher_pred, sample_weight)

    def _used(self, pred: Any, label: Any, teacher_pred: Any, weight: Any) -> Tuple[Any, ...]:
        """The inputs, without the one whose part has no weight."""
        return tuple(None if name == self._unused else x
                     for name, x in zip(self._names, (pred, label, teacher_pred, weight)))

    def _check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Frame]:
        pred, label, teacher_pred, weight = self._used(*arrays)
        shape = pred.shape
        axis = normal_axis("axis", self._axis, shape, "pred")
        batch_axis = normal_axis("batch_axis", self._batch_axis, shape, "pred")
        if axis == batch_axis:
            raise ValueError(f"axis = {self._axis} and batch_axis = {self._batch_axis} are the same axis "
                             f"of pred of shape {shape}: categories and samples need one each")
        if teacher_pred is not None:
            check_same_shape("pred", "teacher_pred", shape, teacher_pred.shape)
        if label is not None and not self._sparse_label:
            check_same_shape("pred", "label", shape, label.shape)
        elif label is not None and label.shape not in diagnostics.index_shapes(shape, axis):
            per_row, column = diagnostics.index_shapes(shape, axis)
            raise ValueError(
                f"label of class indices must have the shape of pred without axis {self._axis}, {per_row}, or with 1 "
                f"there, {column}, not {label.shape}; for one-hot rows set sparse_label=False")
        frame = Frame(shape, batch_axis, axis)
        weight = None if weight is None else fit_sample_weight(weight, frame)
        return (pred, label, teacher_pred, weight), frame

    def check_inputs(self, pred: Any, label: Any, teacher_pred: Any, sample_weight: Any = None) -> None:
        """Look at the values once, on a first batch or while debugging, and name a likely mistake.

        Caught are probabilities that would go through softmax twice, a teacher in another space
        than `teacher_space` says, class indices that `pred` has no category for, rows of dense
        labels that do not sum to 1, padding without a weight, and lengths as `sample_weight`.
        Values of weight 0 are ignored. The method never runs by itself: it waits for the values,
        and an error on one worker would hang the others.

        Parameters
        ----------
        pred, label, teacher_pred
            Arrays, as the loss takes them.
        sample_weight
            Optional, as the loss takes it.

        Raises
        ------
        ValueError
            If the values speak for a mistake; the message names it and the remedy.
        TypeError
            If an input is not an MXNet array.

        Examples
        --------
        >>> from gluon_kl import DistillationLoss
        >>> from mxnet import nd
        >>> student = nd.array([[2, 0.5, -1],
        ...                     [0.2, 0.1, 0.4]])
        >>> teacher = nd.array([[3, 1, -2],
        ...                     [0, 0, 4]])
        >>> from_one = nd.array([1, 3])
        >>> loss = DistillationLoss(temperature=2)
        >>> try:
        ...     loss.check_inputs(student, from_one, teacher)
        ... except ValueError as error:
        ...     print(str(error).split(";")[0])
        label must hold class indices from 0 to 2, not 3
        >>> loss.check_inputs(student, from_one - 1, teacher)
        """
        inputs = self._real(pred, label, teacher_pred, sample_weight)
        axis = normal_axis("axis", self._axis, inputs[0].shape, "pred")
        if not self._sparse_label and inputs[1] is not None:
            diagnostics.check_not_indices(inputs[1], inputs[0].shape, axis, "looks like class indices: set "
                                          "sparse_label=True for a label")
        (pred, label, teacher_pred, weight), frame = self._check(*inputs)
        diagnostics.check_distillation(pred, label, teacher_pred, weight, frame.batch_axis, axis, self._sparse_label,
                                       self._teacher_space)

    def _fused(self, F: Any, facts: Optional[Facts], *inputs: Any) -> Any:
        pred, label, teacher_pred, weight = self._used(*inputs)
        soft: Dict[str, Any] = {}
        if teacher_pred is not None:
            soft = {"target": self._teacher_space, "temperature": float(self._temperature), **self._form()}
        return self._call_fused(
            F, facts, {"pred": pred, "hard": label, "target": teacher_pred, "weight": weight},
            axis=self._axis, pred="logits", hard="index" if self._sparse_label else "dense",
            hard_weight=float(self._hard_weight), scale=self._temperature**2 if label is None else 1.0, **soft)

    def _over_operators(self, F: Any, facts: Optional[Facts], *inputs: Any) -> Any:
        used = list(self._used(*inputs))
        sparse = self._sparse_label and used[1] is not None
        if sparse:  # before it is lifted, while a graph knows its shape
            used[1] = F.reshape_like(used[1], divergence.first_along(F, inputs[0], self._axis))
        pred, label, teacher_pred, weight = self._lifted(F, facts, used)
        if sparse:
            if self._weight == 0:
                label = F.zeros_like(label)  # the class that there always is
            label = divergence.one_hot(F, label, pred, self._axis, self._batch_axis)
        rows = divergence.Rows(weight is None) if facts is None else divergence.Rows(facts.row_weight, facts.single)

        def terms(pred: Any, *targets: Any) -> Any:
            *given, mask = targets
            parts = []
            if label is not None:
                parts.append(self._hard_terms(F, pred, given.pop(0), rows, mask))
            if teacher_pred is not None:
                parts.append(self._soft_terms(F, pred, F.BlockGrad(given.pop(0)), rows, mask))
            return sum(parts[1:], parts[0])

        given = (pred, *(x for x in (label, teacher_pred) if x is not None))
        out = weigh(F, terms, given, weight, self._axis, facts)
        return self._reduced(F, facts, out, "row_mean", pred, weight, self._axis)

    def _hard_terms(self, F: Any, pred: Any, label: Any, rows: divergence.Rows, mask: Any) -> Any:
        """Of the cross-entropy with the label, weighted."""
        log_pred = divergence.to_log(F, pred, "logits", self._axis, rows._replace(whole=False), mask)
        return self._hard_weight * divergence.cross_entropy(F, log_pred, divergence.silenced(F, label, mask, 0))

    def _soft_terms(self, F: Any, pred: Any, teacher_pred: Any, rows: divergence.Rows, mask: Any) -> Any:
        """Of the divergence from the teacher, weighted."""
        if self._teacher_space == "logits":
            teacher_pred = teacher_pred / self._temperature
        return (1 - self._hard_weight) * self._temperature**2 * divergence.pair_terms(
            F, pred / self._temperature, teacher_pred, pred_space="logits", label_space=self._teacher_space,
            axis=self._axis, rows=rows, mask=mask, label_grad=False, **self._form())
