"""What TopKDistillationLoss computes: a divergence from a teacher's best categories, and hard labels."""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from gluon_kl import compact, operators
from gluon_kl.checks import DTYPE_NAMES, Frame, check_same_shape, fit_sample_weight
from gluon_kl.description import (
    DistillationDescription,
    HardLabels,
    StudentDescription,
    check_label,
)


class TopKDescription(StudentDescription):
    """A student's cross-entropy with a label, and its divergence from a teacher's best categories."""

    names = ("pred", "label", "teacher_index", "teacher_value", "sample_weight")
    same_shape_inputs = ()

    def __init__(
        self, weight: Optional[float], batch_axis: int, reduction: str, axis: int, hard: HardLabels, temperature: float,
        tail: str, teacher_space: str, form: Dict[str, Any],
    ) -> None:
        unused = ["label"] if hard.share == 0 and hard.ignore_label is None else []
        super().__init__(weight, batch_axis, reduction, axis, hard,
                         [*unused, *["teacher_index", "teacher_value"] * (hard.share == 1)])
        self._temperature, self._tail, self._teacher_space, self._form = temperature, tail, teacher_space, form
        self.no_grad_inputs = (*(("label",) if hard.sparse else ()), "teacher_index", "teacher_value")
        # With dense labels, the hard part is a separate loss; with hard_weight=1 it is the whole loss.
        self._hard_loss: Optional[DistillationDescription] = None
        if hard.share == 1 or (hard.share and not hard.sparse):
            self._hard_loss = DistillationDescription(
                hard.share if weight is None else weight * hard.share, batch_axis, reduction, axis,
                hard._replace(share=1), 1.0, "logits", {"form": "kl"})
        self._of_class = self._hard_loss is None and hard.share > 0  # the hard part uses the same pass over pred
        self._options = {"pred": "logits", "target": teacher_space, "tail": tail, "temperature": float(temperature),
                         "hard_weight": float(hard.share), "label_smoothing": float(hard.smoothing), **form}

    def check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Frame]:
        """Index and value have pred's shape with k along the axis; class indices are as in DistillationLoss."""
        pred, label, index, value, weight = self._used(arrays)
        frame = self.frame(pred)
        shape, batch_axis, _ = frame
        axis = self._axis % len(shape)
        if label is not None:
            check_label(label, shape, axis, self._axis, self.hard.sparse)
        if index is not None:
            _check_teacher(index, value, shape, axis)
        if weight is not None:
            given = weight.shape
            weight = fit_sample_weight(weight, frame, self._axis)
            if weight.shape[axis] != 1:
                raise ValueError(f"sample_weight must hold one number for each row, not for each category: pass "
                                 f"{shape[batch_axis:batch_axis + 1]}, or pred's shape with 1 along axis {self._axis}, "
                                 f"not {given}")
        return (pred, label, index, value, weight), frame

    def over_fused(self, F: Any, world: Any, *inputs: Any) -> Any:
        """The loss, by an operator that gives the loss of each row."""
        return self._compute(F, world, inputs, "over_fused", self._rest_fused)

    def over_operators(self, F: Any, world: Any, *inputs: Any) -> Any:
        """The loss, by MXNet's operators."""
        return self._compute(F, world, inputs, "over_operators", self._rest_over_operators)

    def _compute(self, F: Any, world: Any, inputs: Sequence[Any], way: str, rest: Callable[..., Any]) -> Any:
        """The hard part if it is a separate loss, plus the rest."""
        pred, label, index, value, weight = self._used(inputs)
        if self._hard_loss is None:
            return rest(F, world, pred, label, index, value, weight)
        hard = getattr(self._hard_loss, way)(F, world.with_inputs(0, 1, None, 4), pred, label, None, weight)
        if index is None:
            return hard
        soft = rest(F, world, pred, label if self.hard.ignore_label is not None else None, index, value, weight)
        return (hard.as_np_ndarray() + soft.as_np_ndarray()).as_nd_ndarray()  # only one of them may be in float64

    def _rest_fused(self, F: Any, world: Any, pred: Any, *others: Any) -> Any:
        """The loss of each row from the operator, weighted and reduced."""
        label, index, value, own = others
        given = {"pred": pred, "index": index, "target": value}
        if self._of_class:
            given["hard"] = label if self._axis == -1 else F.reshape_like(
                label, operators.first_along(F, index, self._axis))
        rows = world.with_inputs(0, 2, 3, 1).call_top_k(F, given, self._axis, **self._options)
        label = F.reshape_like(label, rows) if self.hard.ignore_label is not None else None
        rows, label, _, _, own = world.lifted(F, [rows, label, None, None, own], [False] * 5, [False] * 5)
        weight = own
        if label is not None:
            heard = label != self.hard.ignore_label
            weight = heard if own is None else F.broadcast_mul(own, heard)

        def terms(rows: Any, mask: Any) -> Any:
            return operators.silenced(F, rows, mask, 0)

        # If each row is a sample, its mean over the rows that count is the row itself, or 0 without a gradient.
        whole = world.two_axes and self.reduction == "row_mean"
        out = operators.weigh(F, world, terms, (rows,), weight, None, learned=own is not None and not whole)
        if world.two_axes:
            out = F.reshape(out, shape=(-1,))
            return out if self.weight is None else out * self.weight
        return self.reduced(F, world, out, self.rows_that_count(F, rows, weight))

    def _rest_over_operators(self, F: Any, world: Any, pred: Any, *others: Any) -> Any:
        """The loss of each row, weighted and reduced."""
        label, index, value, weight = others
        axis = world.from_end(self._axis)
        like = operators.first_along(F, index, axis)
        if label is not None:  # here, because a graph no longer knows its shape after the lifting
            label = F.reshape_like(label, like)
        inputs = [pred, *(x if x is None else F.BlockGrad(x) for x in (label, index, value)), weight]
        if self.weight == 0:  # hides even NaN; below, the index becomes -1: a teacher that kept nothing
            inputs = [x if x is None else F.zeros_like(x) for x in inputs]
        exact: List[Any] = [x if x is None else compact.as_rows(F, F.cast(x, dtype="float64"), axis)
                            for x in inputs[1:4]]
        if self.weight == 0:
            exact[1] = exact[1] - 1
        rows = self._rows_over_operators(F, world, inputs, exact, axis)
        out, counted = (compact.from_column(F, x, like, axis) for x in rows)
        return self.reduced(F, world, out, counted if self.reduction == "row_mean" else None)

    def _rows_over_operators(
        self, F: Any, world: Any, inputs: Sequence[Any], exact: Sequence[Any], axis: int,
    ) -> Any:
        """The weighted loss of each row, as a column, and 1 for each row that counts; `exact` is in float64."""
        pred, _, like, value, weight = world.lifted(F, inputs, [False] * 5, [False] * 5)
        if weight is not None:
            like = operators.first_along(F, like, axis)
            weight = compact.as_rows(F, F.broadcast_like(weight, like), axis)
        pred, value = (compact.as_rows(F, x, axis) for x in (pred, value))
        label, index, exact_value = exact
        categories = compact.number_of_categories(F, pred)
        kept = compact.look_at(F, index, categories)
        teacher = self._teacher(F, world, value, exact_value, kept)

        def row(pred: Any, silent: Any) -> Any:
            if silent is not None:
                pred = F.where(compact.broadcast_flag(F, silent, pred), F.zeros_like(pred), pred)
            scores = compact.read(F, pred, index, kept, self._temperature, categories)
            soft = self._soft(F, scores, teacher, kept, silent)
            if not self._of_class:
                return soft
            return soft + self.hard.share * compact.cross_entropy(
                F, pred, label, categories, silent, self.hard.smoothing)

        return self._weighted(F, world, row, pred, weight, self._heard(F, world, label, value))

    def _heard(self, F: Any, world: Any, label: Any, like: Any) -> Any:
        """1 for each row whose class is not ignored, else 0, in the dtype of `like`; None without an ignore_label."""
        return None if self.hard.ignore_label is None else world.narrowed(F, label != self.hard.ignore_label, like)

    def _weighted(self, F: Any, world: Any, row: Any, source: Any, weight: Any, heard: Any) -> Tuple[Any, Any]:
        """Rows times `weight` and `heard`, where 0 ignores even NaN as in `operators.weigh`; and 1 if a row counts.

        ``row(source, silent)`` is the loss of each row, which is finite and has no gradient where `silent` is 1.
        """
        learned = weight is not None and world.gradients[-1]
        if heard is not None:
            weight = heard if weight is None else weight * heard
        if weight is None:
            out = row(source, None)
            return out, F.ones_like(out)
        off = F.cast(weight, dtype="float64") == 0
        out, counted = row(source, off), weight != 0
        if not learned:
            return out * weight, counted
        silent = F.BlockGrad(row(F.BlockGrad(source), None))
        zero = F.zeros_like(weight)
        silent = F.where(off, F.where(operators.is_finite(silent), silent, zero), zero)
        return (F.where(off, zero, out) + silent) * weight, counted

    def _teacher(self, F: Any, world: Any, value: Any, exact: Any, kept: compact.Kept) -> Any:
        """The teacher's probabilities of the kept categories and of all others together, (rows, k + 1)."""
        probs = compact.probabilities(F, value, kept, self._teacher_space, self._temperature, self._tail)
        if self._tail == "bucket":
            left = world.narrowed(F, compact.mass_left(F, exact, kept, self._teacher_space), value)
        else:
            left = F.zeros_like(F.sum(probs, axis=-1, keepdims=True))
        return F.BlockGrad(F.concat(probs, left, dim=-1))

    def _soft(self, F: Any, scores: Any, teacher: Any, kept: compact.Kept, silent: Any) -> Any:
        """The divergence of each row from the teacher, times its share; 0 for a row that kept nothing."""
        heard, sound = kept.some, kept.sound
        if silent is not None:
            heard, sound = heard * (silent == 0), sound + silent > 0
        on = compact.broadcast_flag(F, heard, scores)
        scores, teacher = (F.where(on, x, F.zeros_like(x)) for x in (scores, teacher))
        log_pred = compact.log_softmax_of_few(F, scores)
        terms = operators.pair_terms(F, log_pred, teacher, pred_space="log_probs", label_space="probs", axis=-1,
                                     label_grad=False, **self._form)
        out = F.sum(terms, axis=-1, keepdims=True) * ((1 - self.hard.share) * self._temperature**2)
        return F.where(heard, out, F.zeros_like(out)) * compact.nan_unless(F, sound, out)


def _check_teacher(index: Any, value: Any, shape: Tuple[int, ...], axis: int) -> None:
    """Raise ValueError unless index and value have pred's shape, except along the axis."""
    k = index.shape[axis] if index.ndim == len(shape) else 0
    if index.shape != (*shape[:axis], k, *shape[axis + 1:]):
        wanted = ", ".join("k" if i == axis else str(n) for i, n in enumerate(shape))
        raise ValueError(f"teacher_index must have pred's shape {shape} with the number k of kept categories along "
                         f"axis {axis}, ({wanted}), not {index.shape}")
    if k == 0:
        raise ValueError(f"teacher_index of shape {index.shape} keeps no category: k must be at least 1")
    if value.shape != index.shape:
        check_same_shape("teacher_index", "teacher_value", index.shape, value.shape)
    if DTYPE_NAMES[index.dtype] in ("float16", "bfloat16", "bool"):
        raise ValueError(f"teacher_index must hold whole numbers, not {DTYPE_NAMES[index.dtype]}, which cannot tell "
                         f"2049 from 2048: use int32, or float32 below 2^24")
