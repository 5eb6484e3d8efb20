"""Knowledge distillation: a student learns from a teacher's softened predictions, and from labels."""

import copy
from typing import Any, Dict, Optional, Tuple

from gluon_kl import diagnostics
from gluon_kl.checks import check_axis, check_between, check_choice, check_flag, check_share, check_whole, normal_axis
from gluon_kl.description import Description, DistillationDescription, HardLabels
from gluon_kl.front import CheckedLoss
from gluon_kl.operators import js_form, skew_form

import mxnet as mx

DIVERGENCES = ("kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "tv")
REDUCTIONS = ("row_mean", "row", "sum")


class StudentLoss(CheckedLoss):
    """What the losses of a student share: temperature, hard labels, reduction and the two parts."""

    # For losses that were pickled before these arguments existed.
    _reduction, _ignore_label, _label_smoothing = "row_mean", None, 0

    def __init__(
        self, temperature: float, hard_weight: float, sparse_label: bool, weight: Optional[float], batch_axis: int,
        axis: int, reduction: str, ignore_label: Optional[float], label_smoothing: float, **kwargs: Any,
    ) -> None:
        super().__init__(weight, batch_axis, **kwargs)
        self._temperature = check_between("temperature", temperature, 1e-6, 1e6)  # its square is a factor
        self._hard_weight = check_between("hard_weight", hard_weight, 0, 1)
        self._axis = check_axis("axis", axis)
        self._sparse_label = check_flag("sparse_label", sparse_label)
        check_choice("reduction", reduction, REDUCTIONS)
        self._reduction = reduction
        self._ignore_label = ignore_label if ignore_label is None else check_whole("ignore_label", ignore_label)
        self._label_smoothing = check_share("label_smoothing", label_smoothing)
        for name, value in (("ignore_label", self._ignore_label), ("label_smoothing", self._label_smoothing or None)):
            if value is not None and not self._sparse_label:
                raise ValueError(f"{name} = {value!r} is for class indices, and sparse_label=False says that label "
                                 f"holds probabilities: leave {name} out")

    def _hard_labels(self) -> HardLabels:
        return HardLabels(self._hard_weight, self._sparse_label, self._ignore_label, self._label_smoothing)

    def _describe_hard(self) -> str:
        return (f"reduction={self._reduction!r}, ignore_label={self._ignore_label}, "
                f"label_smoothing={self._label_smoothing}")

    def _parts(self, inputs: Tuple[Any, ...]) -> Tuple[Optional[Any], Optional[Any]]:
        """The loss of the hard labels alone, and the loss without them; None for a part whose share is 0."""
        self._real(*inputs)
        found = []
        for hard_weight, share in ((1, self._hard_weight), (0, 1 - self._hard_weight)):
            twin = copy.copy(self)
            twin._hard_weight, twin._weight, twin._active = hard_weight, None, False
            twin._set_out()
            with mx.autograd.pause():
                found.append(twin._road(twin, inputs) if share else None)
        return found[0], found[1]


class DistillationLoss(StudentLoss):
    r"""Loss of a student that learns from a teacher's predictions, and from labels.

    With :math:`z` the logits of the student, :math:`v` those of the teacher, :math:`y` the
    label, temperature :math:`T` and hard weight :math:`\alpha`,

    .. math::

       & \alpha \, \mathrm{CE}(y, \mathrm{softmax}(z)) \\
       & + (1 - \alpha) \, T^2 \, \mathrm{KL}(p \,\|\, q)

    where :math:`p = \mathrm{softmax}(v / T)` and :math:`q = \mathrm{softmax}(z / T)`, in
    nats and summed over categories. For each sample, if `rows` holds this value of each row::

        "row_mean":  loss = rows.mean()  # default
        "row":       loss = rows
        "sum":       loss = rows.sum()

    The mean leaves out rows of weight 0. The division by :math:`T` makes the gradient of the
    divergence smaller by :math:`T^2`. The factor :math:`T^2` undoes this, so that `hard_weight`
    and the learning rate keep their meaning when the temperature changes. `divergence` replaces
    KL by another divergence.

    The positional arguments and the gradients are those of gluon-cv's
    DistillationSoftmaxCrossEntropyLoss. Its value is larger, by
    :math:`(1 - \alpha) \, T^2` times the entropy of :math:`p`.

    Parameters
    ----------
    temperature : float, default 1.0
        Between 1e-6 and 1e6. Above 1 it softens both distributions, so that the teacher's small
        probabilities count.
    hard_weight : float, default 0.5
        Between 0 and 1, the share of the cross-entropy with the label. At 0 the label is not
        read and may be None, unless there is an `ignore_label`. At 1 `teacher_pred` is not read
        and may be None.
    sparse_label : bool, default True
        `True` if `label` holds class indices, `False` if it holds a probability for each
        category, one-hot, smoothed or mixed.
    weight : float, optional
        Factor for every result.
    batch_axis : int, default 0
        The axis of the samples.
    axis : int, default -1
        The axis of the categories. It must differ from the axis of the samples.
    divergence : {"kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "tv"}
        "kl" is KL(teacher ‖ pred). "reverse_kl" is KL(pred ‖ teacher), with which a small student
        may leave out some of the teacher's categories. "js" is the generalised Jensen-Shannon
        divergence of :class:`JSDivLoss`. "skew_kl" is
        :math:`\mathrm{KL}(p \,\|\, s p + (1 - s) q)` with :math:`s` the `skew`, and
        "skew_reverse_kl" is :math:`\mathrm{KL}(q \,\|\, s q + (1 - s) p)`. Both are finite, with
        bounded gradients, even if one side has categories that the other lacks. "tv" is the total
        variation :math:`\frac{1}{2} \sum_i |p_i - q_i|`. It is multiplied by :math:`T` instead of
        :math:`T^2`, because :math:`T` makes its gradient smaller by :math:`T` only.
    beta : float, default 0.5
        Between 0 and 1, the share of the teacher in the mixture of "js".
    teacher_space : {"logits", "probs", "log_probs"}
        What `teacher_pred` holds: logits, which are divided by `temperature`; or the softened
        distribution ``softmax(logits / temperature)``, or its logarithm, which are used as given.
        If you have probabilities at temperature 1, pass their logarithms as "logits".
    skew : float, default 0.1
        From 0 to below 1, the share :math:`s` in "skew_kl" and "skew_reverse_kl". At 0 these are
        "kl" and "reverse_kl".
    reduction : {"row_mean", "row", "sum"}
        "row_mean" averages over the rows of a sample whose weight is not 0; "row" returns one
        value for each row; "sum" adds up the rows of a sample.
    ignore_label : float, optional
        A whole number. A row with this class index has weight 0, in the soft part too. The label
        is then required even with ``hard_weight=0``. Only with `sparse_label`.
    label_smoothing : float, default 0
        From 0 to below 1. The label has 1 − `label_smoothing` at the class, plus
        `label_smoothing` spread evenly over all categories, including the class. A masked
        category then makes the cross-entropy +inf. Only with `sparse_label`.
    prefix, params
        As for every Gluon block.

    Inputs
    ------
    pred
        Array or Symbol, the logits of the student. A logit of -inf masks its category.
    label
        Class indices of any dtype, in pred's shape without `axis`, or with length 1 there. If
        not `sparse_label`, probabilities in pred's shape.
    teacher_pred
        The teacher's output, in pred's shape. No gradient reaches it.
    sample_weight
        Optional. Shape (batch,) for one weight per sample; pred's shape without `axis`, such as
        (batch, time), for one per row; or as many axes as `pred`, each of length 1 or that of
        `pred`. Weight 0 ignores the row, even NaN.

    Outputs
    -------
    loss
        Shape (batch,); pred's shape without `axis` for ``reduction="row"``. float64 if an input
        is, else float32. The same kind of array as `pred`.

    Raises
    ------
    ValueError
        If shapes do not fit, an axis is out of range, both axes are the same, or the arrays are on
        different devices; if `temperature` is not in [1e-6, 1e6], `hard_weight` or `beta` not in
        [0, 1], `skew` or `label_smoothing` not in [0, 1), or `ignore_label` not a whole number;
        if `label_smoothing` or `ignore_label` is given without `sparse_label`; or if an argument
        is not among the allowed ones.
    TypeError
        If an input is not an MXNet array or Symbol, or an argument has the wrong type.

    Notes
    -----
    If a class index is negative, too large or not a whole number, the loss and the gradient of
    its row are NaN, not those of another class; :meth:`check_inputs` raises an error for it. To
    leave out rows without a class, give them weight 0, or pass their index as `ignore_label`.

    References
    ----------
    G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network",
    arXiv:1503.02531 (2015).

    R. Agarwal et al., "On-Policy Distillation of Language Models: Learning from
    Self-Generated Mistakes", ICLR 2024, for "reverse_kl" and "js".

    J. Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models",
    ICML 2024, for the skewed ones.

    Y. Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation",
    ACL 2023, for "tv".

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

    First the same with the teacher's softened probabilities, then with KL(pred ‖ teacher):

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

    One value for each position; the second position has no class:

    >>> tokens = nd.array([[0, -100]])
    >>> loss = DistillationLoss(
    ...     2, ignore_label=-100,
    ...     reduction="row")
    >>> value = loss(
    ...     student.expand_dims(0), tokens,
    ...     teacher.expand_dims(0))
    >>> print(value.asnumpy().round(4))
    [[0.1934 0.    ]]
    """

    _skew = 0.1  # for losses that were pickled before this argument existed

    def __init__(
        self, temperature: float = 1.0, hard_weight: float = 0.5, sparse_label: bool = True,
        weight: Optional[float] = None, batch_axis: int = 0, *, axis: int = -1, divergence: str = "kl",
        beta: float = 0.5, teacher_space: str = "logits", skew: float = 0.1, reduction: str = "row_mean",
        ignore_label: Optional[float] = None, label_smoothing: float = 0.0, prefix: Optional[str] = None,
        params: Any = None,
    ) -> None:
        super().__init__(temperature, hard_weight, sparse_label, weight, batch_axis, axis, reduction, ignore_label,
                         label_smoothing, prefix=prefix, params=params)
        check_choice("divergence", divergence, DIVERGENCES)
        self._beta, self._skew = check_between("beta", beta, 0, 1), check_share("skew", skew)
        check_choice("teacher_space", teacher_space, ("logits", "probs", "log_probs"))
        self._divergence = divergence
        self._teacher_space = teacher_space
        factor, soft = {
            "kl": ("T²", "KL(teacher_pred ‖ pred)"), "reverse_kl": ("T²", "KL(pred ‖ teacher_pred)"),
            "js": ("T²", "JS(teacher_pred, pred)"), "tv": ("T", "TV(teacher_pred, pred)"),
            "skew_kl": ("T²", "KL(teacher_pred ‖ skew * teacher_pred + (1 - skew) * pred)"),
            "skew_reverse_kl": ("T²", "KL(pred ‖ skew * pred + (1 - skew) * teacher_pred)"),
        }[divergence]
        self._direction = f"hard_weight * CE(label, pred) + (1 - hard_weight) * {factor} * {soft} in nats"
        self._set_out()

    def _form(self) -> Dict[str, Any]:
        """The options that choose the divergence, for `operators.pair_terms` and the fused operator."""
        if self._divergence == "js":
            return js_form(self._beta)
        if self._divergence.startswith("skew_"):
            return skew_form(self._divergence[len("skew_"):], self._skew)
        return {"form": self._divergence}

    def _describe(self) -> str:
        return (f"temperature={self._temperature}, hard_weight={self._hard_weight}, "
                f"sparse_label={self._sparse_label}, weight={self._weight}, batch_axis={self._batch_axis}, "
                f"axis={self._axis}, divergence={self._divergence!r}, beta={self._beta}, "
                f"teacher_space={self._teacher_space!r}, skew={self._skew}, {self._describe_hard()}")

    def _loss(self, F: Any, pred: Any, label: Any, teacher_pred: Any, sample_weight: Any = None) -> Any:
        """The loss of arrays or Symbols, for subclasses that override this method."""
        return self._road(self, (pred, label, teacher_pred, sample_weight))

    def _description(self) -> Description:
        return DistillationDescription(self._weight, self._batch_axis, self._reduction, self._axis, self._hard_labels(),
                                       self._temperature, self._teacher_space, self._form())

    def parts(
        self, pred: Any, label: Any, teacher_pred: Any, sample_weight: Any = None,
    ) -> Tuple[Optional[Any], Optional[Any]]:
        """Compute the two parts of the loss, without a gradient, to watch them during training.

        ``weight * (hard_weight * hard + (1 - hard_weight) * soft)`` is the loss.

        Parameters
        ----------
        pred, label, teacher_pred
            Arrays, as the loss takes them.
        sample_weight
            Optional, as the loss takes it.

        Returns
        -------
        hard, soft
            The cross-entropy with the label, and the divergence from the teacher times T² (times T with "tv"). They
            are reduced and weighted by `sample_weight` like the loss, and have its shape. None for a part whose share
            is 0.

        Raises
        ------
        TypeError
            If an input is not an MXNet array.
        ValueError
            As for the loss.

        Examples
        --------
        >>> from gluon_kl import DistillationLoss
        >>> from mxnet import nd
        >>> student = nd.array([[2, 0.5, -1]])
        >>> teacher = nd.array([[3, 1, -2]])
        >>> label = nd.array([0])
        >>> loss = DistillationLoss(temperature=2)
        >>> hard, soft = loss.parts(
        ...     student, label, teacher)
        >>> print(hard.asnumpy().round(4))
        [0.2413]
        >>> print(soft.asnumpy().round(4))
        [0.1456]
        """
        return self._parts((pred, label, teacher_pred, sample_weight))

    def check_inputs(self, pred: Any, label: Any, teacher_pred: Any, sample_weight: Any = None) -> None:
        """Look at the values once, on a first batch or while debugging, and name a likely mistake.

        It finds probabilities that would go through softmax twice, a teacher that is not in
        `teacher_space`, class indices for which `pred` has no category, rows of dense labels that
        do not sum to 1, padding without a weight, and lengths as `sample_weight`. Values of
        weight 0 are ignored. The method never runs by itself: it waits for the values, and an
        error on one worker would hang the others.

        Parameters
        ----------
        pred, label, teacher_pred
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
                                       self._teacher_space, self._ignore_label)
