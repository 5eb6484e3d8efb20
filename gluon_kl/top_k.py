"""Knowledge distillation from a teacher whose best categories were kept."""

from typing import Any, Dict, Optional, Tuple

from gluon_kl import diagnostics
from gluon_kl.checks import check_between, check_choice, normal_axis
from gluon_kl.description import Description
from gluon_kl.distillation import StudentLoss
from gluon_kl.operators import js_form
from gluon_kl.top_k_description import TopKDescription

# The divergences and the teacher spaces of each tail. The other combinations have no meaning or no use.
DIVERGENCES = {"bucket": ("kl", "reverse_kl", "js"), "renormalize": ("kl", "js"), "drop": ("kl",)}
SPACES = {"bucket": ("log_probs", "probs"), "renormalize": ("log_probs", "probs", "logits"),
          "drop": ("log_probs", "probs")}


class TopKDistillationLoss(StudentLoss):
    r"""Loss of a student that learns from a teacher's best categories, and from labels.

    A teacher is run once, and the best :math:`k` of its many categories are stored: their
    indices :math:`K` and their probabilities :math:`p`. With :math:`z` the logits of the student,
    :math:`q = \mathrm{softmax}(z / T)`, :math:`y` the label and hard weight :math:`\alpha`,
    the loss is

    .. math::

       & \alpha \, \mathrm{CE}(y, \mathrm{softmax}(z)) \\
       & + (1 - \alpha) \, T^2 \, \Big( \sum_{i \in K} p_i \log \frac{p_i}{q_i} \\
       & \qquad + p_t \log \frac{p_t}{q_t} \Big)

    in nats. All other categories become one, the tail. The teacher gives it
    :math:`p_t = 1 - \sum_{i \in K} p_i` and the student :math:`q_t = \sum_{j \notin K} q_j`. This
    sum runs over the other categories themselves, so it is right however small it is. With
    :math:`P = \sum_{i \in K} p_i + p_t`, the gradient to :math:`z / T` is :math:`q_i P - p_i` at a
    kept category and :math:`q_j (P - p_t / q_t)` at any other. If every category is kept, the loss
    equals :class:`DistillationLoss`. The teacher's values are never expanded to the student's
    shape. For each sample, if `rows` holds this value of each row::

        "row_mean":  loss = rows.mean()  # default
        "row":       loss = rows
        "sum":       loss = rows.sum()

    The mean leaves out rows of weight 0.

    Parameters
    ----------
    temperature : float, default 1.0
        Between 1e-6 and 1e6. It divides the student's logits, and also the teacher's values if
        they are logits.
    hard_weight : float, default 0.5
        Between 0 and 1, the share of the cross-entropy with the label. At 0 the label is not
        read and may be None, unless there is an `ignore_label`. At 1 `teacher_index` and
        `teacher_value` are not read and may be None.
    sparse_label : bool, default True
        `True` if `label` holds class indices, `False` if it holds a probability for each
        category.
    weight : float, optional
        Factor for every result.
    batch_axis : int, default 0
        The axis of the samples.
    axis : int, default -1
        The axis of the categories. It must differ from the axis of the samples.
    divergence : {"kl", "reverse_kl", "js"}
        As in :class:`DistillationLoss`, between the kept categories and the tail of the teacher
        and those of the student.
    beta : float, default 0.5
        Between 0 and 1, the share of the teacher in the mixture of "js".
    tail : {"bucket", "renormalize", "drop"}
        How the categories that the teacher did not keep count. "bucket": as one more category, as
        above; the teacher's tail is never below 0, and exactly 0 if every category is kept. It
        works with "kl", "reverse_kl" and "js". "renormalize": the kept probabilities are scaled
        so that they sum to 1, and the others count as 0. It works with "kl" and "js". "drop":
        only the terms of the kept categories are added, as in most toolkits. It works with "kl",
        and the loss may be below 0.
    teacher_space : {"log_probs", "probs", "logits"}
        What `teacher_value` holds. "log_probs" and "probs" are the kept values of the softened
        distribution ``softmax(logits / temperature)`` over all categories, which are used as
        given. "logits" are kept logits, to which the loss applies the softmax at `temperature`;
        only with ``tail="renormalize"``. Logarithms of probabilities at temperature 1 are such
        logits.
    reduction : {"row_mean", "row", "sum"}
        This and the next two are as in :class:`DistillationLoss`.
    ignore_label : float, optional
        A whole number. A row with this class index has weight 0.
    label_smoothing : float, default 0
        From 0 to below 1, the share of each label that is spread evenly over all categories.
    prefix, params
        As for every Gluon block.

    Inputs
    ------
    pred
        Array or Symbol, the logits of the student. A logit of -inf masks its category.
    label
        Class indices of any dtype, in pred's shape without `axis`, or with length 1 there. If
        not `sparse_label`, probabilities in pred's shape.
    teacher_index
        The kept categories, in any order: integers, float32 or float64, in pred's shape with k
        instead of the number of categories. -1 is an empty place, whose `teacher_value` is not
        read.
    teacher_value
        The teacher's values at these categories, in the shape of `teacher_index`. No gradient
        reaches it.
    sample_weight
        Optional. Shape (batch,) for one weight per sample; pred's shape without `axis`, such as
        (batch, time), for one per row; or as many axes as `pred`, with length 1 along `axis`.
        Weight 0 ignores the row, even NaN.

    Outputs
    -------
    loss
        Shape (batch,); pred's shape without `axis` for ``reduction="row"``. float64 if an input
        is, else float32. The same kind of array as `pred`.

    Raises
    ------
    ValueError
        If shapes do not fit, k is 0, `teacher_index` is of float16 or bool, an axis is out of
        range, both axes are the same, or the arrays are on different devices; if an argument is
        out of its range or not among the allowed ones; or if `divergence` or `teacher_space` does
        not work with this `tail`.
    TypeError
        If an input is not an MXNet array or Symbol, or an argument has the wrong type.

    Notes
    -----
    The loss and the gradient of a row are NaN if its `teacher_index` names a category twice or
    one that `pred` does not have, or if its label is not a class; :meth:`check_inputs` raises an
    error for these. If all places of a row are empty, its divergence is 0. If the teacher has a
    tail but the student has none, because all other categories are masked, the loss is +inf.

    References
    ----------
    G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network",
    arXiv:1503.02531 (2015).

    Examples
    --------
    >>> from gluon_kl import TopKDistillationLoss
    >>> from mxnet import nd
    >>> teacher = nd.array([[3, 1, -2, 0],
    ...                     [0, 0.5, 4, 0]])
    >>> log_probs = nd.log_softmax(teacher / 2)
    >>> index = nd.topk(log_probs, k=2)
    >>> value = nd.topk(log_probs, k=2,
    ...                 ret_typ="value")
    >>> student = nd.array([[2, 0.5, -1, 0],
    ...                     [0.2, 0, 0.4, 0]])
    >>> label = nd.array([0, 2])
    >>> loss = TopKDistillationLoss(temperature=2)
    >>> out = loss(student, label, index, value)
    >>> print(out.asnumpy().round(4))
    [0.2395 1.3025]
    """

    def __init__(
        self, temperature: float = 1.0, hard_weight: float = 0.5, sparse_label: bool = True,
        weight: Optional[float] = None, batch_axis: int = 0, *, axis: int = -1, divergence: str = "kl",
        beta: float = 0.5, tail: str = "bucket", teacher_space: str = "log_probs", reduction: str = "row_mean",
        ignore_label: Optional[float] = None, label_smoothing: float = 0.0, prefix: Optional[str] = None,
        params: Any = None,
    ) -> None:
        super().__init__(temperature, hard_weight, sparse_label, weight, batch_axis, axis, reduction, ignore_label,
                         label_smoothing, prefix=prefix, params=params)
        check_choice("tail", tail, tuple(DIVERGENCES))
        check_choice("divergence", divergence, DIVERGENCES["bucket"])
        check_choice("teacher_space", teacher_space, SPACES["renormalize"])
        for name, value, fitting in (("divergence", divergence, DIVERGENCES), ("teacher_space", teacher_space, SPACES)):
            if value not in fitting[tail]:
                allowed = " or ".join(repr(choice) for choice in fitting[tail])
                raise ValueError(f"{name} must be {allowed} with tail={tail!r}, not {value!r}")
        self._beta = check_between("beta", beta, 0, 1)
        self._divergence, self._tail, self._teacher_space = divergence, tail, teacher_space
        soft = {"kl": "KL(teacher ‖ pred)", "reverse_kl": "KL(pred ‖ teacher)", "js": "JS(teacher, pred)"}[divergence]
        self._direction = f"hard_weight * CE(label, pred) + (1 - hard_weight) * T² * {soft} in nats"
        self._set_out()

    def _form(self) -> Dict[str, Any]:
        """The options that choose the divergence, for `operators.pair_terms`."""
        return js_form(self._beta) if self._divergence == "js" else {"form": self._divergence}

    def _describe(self) -> str:
        return (f"temperature={self._temperature}, hard_weight={self._hard_weight}, "
                f"sparse_label={self._sparse_label}, weight={self._weight}, batch_axis={self._batch_axis}, "
                f"axis={self._axis}, divergence={self._divergence!r}, beta={self._beta}, tail={self._tail!r}, "
                f"teacher_space={self._teacher_space!r}, {self._describe_hard()}")

    def _loss(self, F: Any, pred: Any, label: Any, teacher_index: Any, teacher_value: Any,
              sample_weight: Any = None) -> Any:
        """The loss of arrays or Symbols, for subclasses that override this method."""
        return self._road(self, (pred, label, teacher_index, teacher_value, sample_weight))

    def _description(self) -> Description:
        return TopKDescription(self._weight, self._batch_axis, self._reduction, self._axis, self._hard_labels(),
                               self._temperature, self._tail, self._teacher_space, self._form())

    def parts(
        self, pred: Any, label: Any, teacher_index: Any, teacher_value: Any, sample_weight: Any = None,
    ) -> Tuple[Optional[Any], Optional[Any]]:
        """Compute the two parts of the loss, like :meth:`DistillationLoss.parts`.

        Parameters
        ----------
        pred, label, teacher_index, teacher_value
            Arrays, as the loss takes them.
        sample_weight
            Optional, as the loss takes it.

        Returns
        -------
        hard, soft
            Arrays of the loss's shape: the cross-entropy with the label, and the divergence from
            the teacher times T². None for a part whose share is 0.

        Raises
        ------
        TypeError
            If an input is not an MXNet array.
        ValueError
            As for the loss.

        Examples
        --------
        >>> from gluon_kl import TopKDistillationLoss
        >>> from mxnet import nd
        >>> student = nd.array([[2, 0.5, -1, 0]])
        >>> label = nd.array([0])
        >>> index = nd.array([[0, 3]])
        >>> value = nd.log(nd.array([[0.6, 0.2]]))
        >>> loss = TopKDistillationLoss()
        >>> hard, soft = loss.parts(
        ...     student, label, index, value)
        >>> print(hard.asnumpy().round(3))
        [0.342]
        >>> print(soft.asnumpy().round(3))
        [0.052]
        """
        return self._parts((pred, label, teacher_index, teacher_value, sample_weight))

    def check_inputs(self, pred: Any, label: Any, teacher_index: Any, teacher_value: Any,
                     sample_weight: Any = None) -> None:
        """Look at the values once, on a first batch or while debugging, and name a likely mistake.

        It finds the mistakes in `pred` and `label` that :meth:`DistillationLoss.check_inputs`
        finds, an index that is not a category of `pred`, an index that occurs twice in a row,
        swapped index and value, and values that are not in `teacher_space`. Values of weight 0
        and values at empty places are ignored. The method never runs by itself.

        Parameters
        ----------
        pred, label, teacher_index, teacher_value
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
        >>> from gluon_kl import TopKDistillationLoss
        >>> from mxnet import nd
        >>> student = nd.array([[2, 0.5, -1, 0]])
        >>> index = nd.array([[0, 3]])
        >>> value = nd.array([[0.6, 0.2]])
        >>> loss = TopKDistillationLoss(
        ...     hard_weight=0)
        >>> try:
        ...     loss.check_inputs(
        ...         student, None, index, value)
        ... except ValueError as error:
        ...     print(str(error).split(": ")[-1])
        set teacher_space='probs'
        """
        inputs = self._real(pred, label, teacher_index, teacher_value, sample_weight)
        axis = normal_axis("axis", self._axis, inputs[0].shape, "pred")
        if not self._sparse_label and inputs[1] is not None:
            diagnostics.check_not_indices(inputs[1], inputs[0].shape, axis, "looks like class indices: set "
                                          "sparse_label=True for a label")
        (pred, label, index, value, weight), frame = self._check(*inputs)
        diagnostics.check_distillation(pred, label, None, weight, frame.batch_axis, axis, self._sparse_label, "logits",
                                       self._ignore_label)
        if index is not None:
            diagnostics.check_kept(pred, label, index, value, weight, frame.batch_axis, axis, self._teacher_space,
                                   self._ignore_label)
