"""Knowledge distillation: a student learns from a teacher's softened predictions, and from labels."""

from typing import Any, Dict, Optional

from gluon_kl import diagnostics
from gluon_kl.checks import check_axis, check_between, check_choice, check_flag, normal_axis
from gluon_kl.description import Description, DistillationDescription
from gluon_kl.front import CheckedLoss
from gluon_kl.operators import js_form

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
        soft = {"kl": "KL(teacher_pred ‖ pred)", "reverse_kl": "KL(pred ‖ teacher_pred)",
                "js": "JS(teacher_pred, pred)"}[divergence]
        self._direction = f"hard_weight * CE(label, pred) + (1 - hard_weight) * T² * {soft} in nats"
        self._set_out()

    def _form(self) -> Dict[str, Any]:
        """Which divergence it is, in the words of `operators.pair_terms` and of the fused operator."""
        return js_form(self._beta) if self._divergence == "js" else {"form": self._divergence}

    def _describe(self) -> str:
        return (f"temperature={self._temperature}, hard_weight={self._hard_weight}, "
                f"sparse_label={self._sparse_label}, weight={self._weight}, batch_axis={self._batch_axis}, "
                f"axis={self._axis}, divergence={self._divergence!r}, beta={self._beta}, "
                f"teacher_space={self._teacher_space!r}")

    def _loss(self, F: Any, pred: Any, label: Any, teacher_pred: Any, sample_weight: Any = None) -> Any:
        """The loss of arrays or Symbols, for subclasses that override this method."""
        return self._road(self, (pred, label, teacher_pred, sample_weight))

    def _description(self) -> Description:
        return DistillationDescription(self._weight, self._batch_axis, self._axis, self._temperature, self._hard_weight,
                                       self._sparse_label, self._teacher_space, self._form())

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
        ...     loss.check_inputs(
        ...         student, from_one, teacher)
        ... except ValueError as error:
        ...     print(str(error).split(",")[0])
        label must hold class indices from 0 to 2
        >>> loss.check_inputs(
        ...     student, from_one - 1, teacher)
        """
        inputs = self._real(pred, label, teacher_pred, sample_weight)
        axis = normal_axis("axis", self._axis, inputs[0].shape, "pred")
        if not self._sparse_label and inputs[1] is not None:
            diagnostics.check_not_indices(inputs[1], inputs[0].shape, axis, "looks like class indices: set "
                                          "sparse_label=True for a label")
        (pred, label, teacher_pred, weight), frame = self._check(*inputs)
        diagnostics.check_distillation(pred, label, teacher_pred, weight, frame.batch_axis, axis, self._sparse_label,
                                       self._teacher_space)
