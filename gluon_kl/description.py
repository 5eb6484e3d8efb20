"""What a loss computes: its inputs and their checks, its call of the fused operator, and the same with MXNet's."""

from typing import Any, Container, Dict, NamedTuple, Optional, Sequence, Tuple

from gluon_kl import diagnostics, lifting, operators
from gluon_kl.checks import Frame, check_same_shape, fit_prior, fit_sample_weight

from mxnet.ndarray import NDArray
from mxnet.symbol import Symbol


class Description:
    """The base class. A world (worlds.py) says what is known of the inputs."""

    names: Tuple[str, ...] = ("pred", "label", "sample_weight")
    operator_names: Tuple[str, ...] = ("pred", "target", "weight")  # the fused operator's names, in the same order
    optional: Tuple[str, ...] = ("sample_weight",)
    same_shape_inputs: Tuple[str, ...] = ("label",)  # the inputs that have the shape of the first input
    numeric: Tuple[str, ...] = ()  # the inputs that may be numbers
    no_grad_inputs: Tuple[str, ...] = ()
    needs_two_axes = False  # whether categories and samples must have different axes
    scores_axis: Optional[int] = None  # the axis of a softmax

    def __init__(self, weight: Optional[float], batch_axis: int, reduction: str, axis: Optional[int] = None) -> None:
        self.weight, self.batch_axis, self.reduction, self._axis = weight, batch_axis, reduction, axis

    def check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Frame]:
        """The checked inputs and the frame of the first, or an error."""
        raise NotImplementedError

    def with_all_axes(self, inputs: Sequence[Any], checked: Sequence[Any]) -> Tuple[Any, ...]:
        """The inputs with as many axes as the first, so that other shapes fit too; `checked` fits only this shape."""
        return (*inputs[:-1], checked[-1])

    def fused(self, world: Any, *inputs: Any) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """The inputs and options of the fused operator."""
        raise NotImplementedError

    def over_fused(self, F: Any, world: Any, *inputs: Any) -> Any:
        """The loss, by the fused operator."""
        arrays, options = self.fused(world, *inputs)
        no_grad = [name for name, own in zip(self.operator_names, self.names) if own in self.no_grad_inputs]
        return world.call_fused(F, dict(zip(self.operator_names, arrays)), no_grad, options)

    def over_operators(self, F: Any, world: Any, *inputs: Any) -> Any:
        """The loss, by MXNet's operators."""
        raise NotImplementedError

    def options(self, scale: float = 1.0, **others: Any) -> Dict[str, Any]:
        """The options of the fused operator that every loss has, and `others`."""
        return {**others, "batch_axis": self.batch_axis, "reduction": self.reduction,
                "scale": scale if self.weight is None else scale * self.weight}

    def frame(self, first: Any) -> Frame:
        """How the first input is laid out."""
        shape = first.shape
        ndim, axis, batch_axis = len(shape), self._axis, self.batch_axis
        for name, value in (("axis", axis), ("batch_axis", batch_axis)):
            if value is not None and not -ndim <= value < ndim:
                raise ValueError(f"{name} = {value} is out of range for {self.names[0]} of shape {shape}")
        if self.needs_two_axes and axis is not None and axis % ndim == batch_axis % ndim:
            raise ValueError(f"axis = {axis} and batch_axis = {batch_axis} are the same axis "
                             f"of {self.names[0]} of shape {shape}: categories and samples need one each")
        return Frame(shape, batch_axis % ndim, None if axis is None else axis % ndim)

    def result_shape(self, frame: Frame) -> Tuple[int, ...]:
        """The shape of the loss."""
        shape, batch_axis, axis = frame
        if self.reduction == "row" and axis is not None:
            return (*shape[:axis], *shape[axis + 1:]) or (1,)
        return shape if self.reduction == "none" else (shape[batch_axis],)

    def lifted(self, F: Any, world: Any, inputs: Sequence[Any], wide: Container[str] = ()) -> Any:
        """The inputs in one floating dtype, those named in `wide` in float64; with a weight of 0, ones instead."""
        if self.weight == 0:
            inputs = [F.ones_like(x) if isinstance(x, (NDArray, Symbol)) else x for x in inputs]
        same = [name in self.same_shape_inputs and isinstance(x, (NDArray, Symbol))
                for name, x in zip(self.names, inputs)]
        return world.lifted(F, inputs, same, [name in wide for name in self.names])

    def reduced(
        self, F: Any, world: Any, terms: Any, rows: Any = None, scale: float = 1.0, wide: bool = False,
    ) -> Any:
        """The terms of each sample reduced, times `scale` and the loss's weight; `rows` are those of "row_mean".

        With `wide`, the terms are in float64, also where the inputs are not.
        """
        if self.weight is not None:
            scale *= self.weight
        if self.reduction == "none":
            return terms if scale == 1 else terms * scale
        if self.reduction == "row" and self._axis is not None:
            return operators.sum_per_row(F, terms, self._axis, scale)
        out = operators.sum_per_sample(
            F, terms, world.batch_axis(self.batch_axis), self.reduction == "mean", world.long, scale, rows,
            world.lifts_to_float32 and not wide)
        return world.in_result_dtype(F, out)

    def rows_that_count(self, F: Any, pred: Any, weight: Any) -> Any:
        """1 for each row whose weight is not 0, for "row_mean"; else None."""
        if self._axis is None or self.reduction != "row_mean":
            return None
        return operators.nonzero_weight_rows(F, pred, weight, self._axis)


class PairDescription(Description):
    """A divergence between `pred` and `label`."""

    def __init__(
        self, weight: Optional[float], batch_axis: int, reduction: str, axis: int, pred_space: str, label_space: str,
        form: Dict[str, Any],
    ) -> None:
        super().__init__(weight, batch_axis, reduction, axis)
        self._axis: int = axis
        self._pred_space, self._label_space, self._form = pred_space, label_space, form
        self.scores_axis = axis if "logits" in (pred_space, label_space) else None
        self._options = self.options(axis=axis, pred=pred_space, target=label_space, **form)

    def check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Frame]:
        """Only the weight is broadcast."""
        pred, label, weight = arrays
        frame = self.frame(pred)
        if label.shape != frame.shape:
            hint = diagnostics.index_hint(label.shape, frame.shape, self._axis % len(frame.shape))
            check_same_shape("pred", "label", frame.shape, label.shape, hint)
        return (pred, label, weight if weight is None else fit_sample_weight(weight, frame, self._axis)), frame

    def fused(self, world: Any, *inputs: Any) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """The inputs and options of the fused operator."""
        # For small arrays it is faster to compute the statistics again than to have MXNet manage a second output.
        again = world.small and inputs[-1] is None and self._label_space != "logits"
        return inputs, {**self._options, "keep": 0 if again else 1}

    def over_operators(self, F: Any, world: Any, *inputs: Any) -> Any:
        """The terms, weighted and reduced."""
        pred, label, weight = self.lifted(F, world, inputs)
        exact = self._pred_space == self._label_space == "logits"
        rows = world.rows(F, pred, weight, self._axis, self.batch_axis, exact and self.reduction != "none")
        if self.reduction == "none":
            rows = rows._replace(whole=False)
        if self.reduction == "row":
            rows = world.rows_of_samples(weight)

        def terms(pred: Any, label: Any, mask: Any) -> Any:
            return operators.pair_terms(
                F, pred, label, pred_space=self._pred_space, label_space=self._label_space, axis=self._axis,
                rows=rows, mask=mask, label_grad=world.gradients[1], **self._form)

        out = operators.weigh(F, world, terms, (pred, label), weight, self._axis)
        return self.reduced(F, world, out, self.rows_that_count(F, pred, weight))


def check_label(label: Any, shape: Tuple[int, ...], axis: int, given_axis: int, sparse: bool) -> None:
    """Raise ValueError unless class indices lack pred's axis or have 1 there, and other labels have pred's shape."""
    if not sparse:
        check_same_shape("pred", "label", shape, label.shape)
    elif label.shape not in diagnostics.index_shapes(shape, axis):
        per_row, column = diagnostics.index_shapes(shape, axis)
        raise ValueError(
            f"label of class indices must have the shape of pred without axis {given_axis}, {per_row}, or with 1 "
            f"there, {column}, not {label.shape}; for one-hot rows set sparse_label=False")


class HardLabels(NamedTuple):
    """The arguments of a student's cross-entropy with its labels."""

    share: float  # its share of the loss
    sparse: bool  # whether labels are class indices
    ignore_label: Optional[float]  # a row of this class has weight 0
    smoothing: float  # the share of a label that is spread over all categories


class StudentDescription(Description):
    """A student's cross-entropy with a label, and a part learnt from a teacher, which a subclass defines."""

    needs_two_axes = True

    def __init__(self, weight: Optional[float], batch_axis: int, reduction: str, axis: int, hard: HardLabels,
                 unused: Sequence[str]) -> None:
        super().__init__(weight, batch_axis, reduction, axis)
        self._axis: int = axis
        self.hard, self._unused = hard, tuple(unused)
        self.optional = ("sample_weight", *unused)

    def _used(self, inputs: Sequence[Any]) -> Tuple[Any, ...]:
        """The inputs; those whose part of the loss has the share 0 become None."""
        return tuple([None if name in self._unused else x for name, x in zip(self.names, inputs)])

    def hard_options(self) -> Dict[str, Any]:
        """The options of the fused operator for the hard labels."""
        _, sparse, ignored, smoothing = self.hard
        return {"hard": "index" if sparse else "dense", "hard_weight": float(self.hard.share),
                **({} if ignored is None else {"ignore_label": float(ignored)}),
                **({"label_smoothing": float(smoothing)} if smoothing else {})}

    def with_pred_axes(self, F: Any, pred: Any, label: Any) -> Any:
        """Class indices with length 1 along the axis; call it before the lifting, while a graph knows their shape."""
        if label is None or not self.hard.sparse:
            return label
        return F.reshape_like(label, operators.first_along(F, pred, self._axis))

    def probabilities(self, F: Any, pred: Any, label: Any, weight: Any) -> Tuple[Any, Any]:
        """A lifted label as probabilities, None if its share is 0; and the weight, 0 for rows that are ignored."""
        if label is None or not self.hard.sparse:
            return label, weight
        if self.weight == 0:
            label = F.zeros_like(label)  # class 0, which always exists
        if self.hard.ignore_label is not None:
            heard = label != self.hard.ignore_label
            weight = heard if weight is None else F.broadcast_mul(weight, heard)
        if self.hard.share == 0:
            return None, weight
        return operators.one_hot(F, label, pred, self._axis, self.batch_axis, self.hard.smoothing), weight

    def hard_terms(self, F: Any, pred: Any, label: Any, rows: operators.Rows, mask: Any) -> Any:
        """The terms of the cross-entropy with the label, times its share."""
        log_pred = operators.to_log(F, pred, "logits", self._axis, rows._replace(whole=False), mask)
        return self.hard.share * operators.cross_entropy(F, log_pred, operators.silenced(F, label, mask, 0))


class DistillationDescription(StudentDescription):
    """A student's cross-entropy with a label, and its divergence from a teacher."""

    names = ("pred", "label", "teacher_pred", "sample_weight")
    operator_names = ("pred", "hard", "target", "weight")

    def __init__(
        self, weight: Optional[float], batch_axis: int, reduction: str, axis: int, hard: HardLabels, temperature: float,
        teacher_space: str, form: Dict[str, Any],
    ) -> None:
        unused = ["label"] if hard.share == 0 and hard.ignore_label is None else []
        super().__init__(weight, batch_axis, reduction, axis, hard, [*unused, *["teacher_pred"] * (hard.share == 1)])
        self._temperature, self._teacher_space, self._form = temperature, teacher_space, form
        self.scores_axis = axis
        # This undoes what the temperature does to the gradient: T² for smooth divergences, T for total variation.
        self._restored = temperature if form.get("form") == "tv" else temperature**2
        soft = {} if hard.share == 1 else {"target": teacher_space, "temperature": float(temperature), **form}
        # The operator multiplies by this factor itself, unless it gets no label.
        self._options = self.options(
            self._restored if "label" in unused else 1.0, axis=axis, pred="logits", **self.hard_options(), **soft)
        self.same_shape_inputs = ("teacher_pred",) if hard.sparse else ("label", "teacher_pred")
        self.no_grad_inputs = ("label", "teacher_pred") if hard.sparse else ("teacher_pred",)

    def check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Frame]:
        """Only the weight is broadcast; class indices may lack the axis."""
        pred, label, teacher_pred, weight = self._used(arrays) if self._unused else arrays
        frame = self.frame(pred)
        shape = frame.shape
        if teacher_pred is not None and teacher_pred.shape != shape:
            check_same_shape("pred", "teacher_pred", shape, teacher_pred.shape)
        if label is not None:
            check_label(label, shape, self._axis % len(shape), self._axis, self.hard.sparse)
        weight = weight if weight is None else fit_sample_weight(weight, frame, self._axis)
        return (pred, label, teacher_pred, weight), frame

    def fused(self, world: Any, *inputs: Any) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """The inputs and options of the fused operator."""
        return self._used(inputs) if self._unused else inputs, self._options

    def over_operators(self, F: Any, world: Any, *inputs: Any) -> Any:
        """The terms of both parts, weighted and reduced."""
        pred, label, teacher_pred, own = self._used(inputs)
        label = self.with_pred_axes(F, pred, label)
        pred, label, teacher_pred, own = self.lifted(F, world, (pred, label, teacher_pred, own))
        label, weight = self.probabilities(F, pred, label, own)
        rows = world.rows_of_samples(own)

        def terms(pred: Any, *targets: Any) -> Any:
            *given, mask = targets
            parts = []
            if label is not None:
                parts.append(self.hard_terms(F, pred, given.pop(0), rows, mask))
            if teacher_pred is not None:
                parts.append(self._soft_terms(F, pred, F.BlockGrad(given.pop(0)), rows, mask))
            return sum(parts[1:], parts[0])

        present = (pred, *(x for x in (label, teacher_pred) if x is not None))
        out = operators.weigh(F, world, terms, present, weight, self._axis, learned=own is not None)
        return self.reduced(F, world, out, self.rows_that_count(F, pred, weight))

    def _soft_terms(self, F: Any, pred: Any, teacher_pred: Any, rows: operators.Rows, mask: Any) -> Any:
        """The terms of the divergence from the teacher, times its share."""
        if self._teacher_space == "logits":
            teacher_pred = teacher_pred / self._temperature
        return (1 - self.hard.share) * self._restored * operators.pair_terms(
            F, pred / self._temperature, teacher_pred, pred_space="logits", label_space=self._teacher_space,
            axis=self._axis, rows=rows, mask=mask, label_grad=False, **self._form)


class BernoulliDescription(Description):
    """The divergence of yes-or-no distributions."""

    numeric = ("label",)

    def __init__(self, weight: Optional[float], batch_axis: int, reduction: str, pred_space: str, label_space: str,
                 ) -> None:
        super().__init__(weight, batch_axis, reduction)
        self._pred_space, self._label_space = pred_space, label_space
        self._options = self.options(form="bernoulli", pred=pred_space, target=label_space)

    def check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Frame]:
        """Only the weight is broadcast, and a label that is a number."""
        pred, label, weight = arrays
        if type(label) is not float and label.shape != pred.shape:
            check_same_shape("pred", "label", pred.shape, label.shape)
        frame = self.frame(pred)
        return (pred, label, weight if weight is None else fit_sample_weight(weight, frame)), frame

    def fused(self, world: Any, *inputs: Any) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """The inputs and options of the fused operator: a label that is a number is an option."""
        pred, label, weight = inputs
        if type(label) is float:
            return (pred, None, weight), {**self._options, "target_value": label}
        return inputs, self._options

    def over_operators(self, F: Any, world: Any, *inputs: Any) -> Any:
        """The terms, weighted and reduced."""
        pred, label, weight = self.lifted(F, world, inputs)
        spaces = self._pred_space, self._label_space
        if self.weight == 0:  # the inputs are ones here, which are finite as logits
            spaces = "logits", "logits"

        def terms(pred: Any, label: Any, mask: Any) -> Any:
            pred, label = (operators.silenced(F, x, mask, 0.5 if space == "probs" else 0)
                           for x, space in zip((pred, label), spaces))
            return operators.bernoulli_terms(F, pred, label, pred_space=spaces[0], label_space=spaces[1])

        return self.reduced(F, world, operators.weigh(F, world, terms, (pred, label), weight, None))


class GaussianDescription(Description):
    """The divergence of a diagonal Gaussian from a prior."""

    names = ("mean", "log_variance", "prior_mean", "prior_log_variance", "sample_weight")
    operator_names = ("mean", "log_variance", "prior_mean", "prior_log_variance", "weight")
    optional = ("prior_mean", "prior_log_variance", "sample_weight")
    numeric = ("prior_mean", "prior_log_variance")
    same_shape_inputs = ("log_variance",)

    def __init__(self, weight: Optional[float], batch_axis: int, reduction: str, free_nats: float, std: bool) -> None:
        super().__init__(weight, batch_axis, reduction)
        self._free_nats, self._std = free_nats, std
        self._options = self.options(form="gaussian", spread="std" if std else "log_variance",
                                     free_nats=float(free_nats))
        # Whether only the sums of the terms are needed. With a larger weight, `gaussian_sums` would treat finite sums
        # as infinite.
        self._only_sums = reduction != "none" and free_nats == 0 and (weight is None or 0 < weight < 1e20)

    def check(self, *arrays: Any) -> Tuple[Tuple[Any, ...], Frame]:
        """A prior is broadcast to the mean."""
        mean, log_variance, *prior, weight = arrays
        if log_variance.shape != mean.shape:
            check_same_shape("mean", "log_variance", mean.shape, log_variance.shape)
        prior = [x if x is None else fit_prior(name, x, mean.shape) for name, x in zip(self.numeric, prior)]
        frame = self.frame(mean)
        weight = weight if weight is None else fit_sample_weight(weight, frame, of="mean")
        return (mean, log_variance, *prior, weight), frame

    def with_all_axes(self, inputs: Sequence[Any], checked: Sequence[Any]) -> Tuple[Any, ...]:
        """A prior gets the leading axes that it lacks; in `checked` it was broadcast to this shape."""
        mean, log_variance, *prior, _ = inputs
        for i, x in enumerate(prior):
            if isinstance(x, NDArray):
                for _ in range(mean.ndim - x.ndim):
                    prior[i] = prior[i].expand_dims(0)
        return (mean, log_variance, *prior, checked[-1])

    def fused(self, world: Any, *inputs: Any) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """The inputs and options of the fused operator: priors that are numbers are options."""
        mean, log_variance, *prior, weight = inputs
        numbers = {name: x for name, x in zip(self.numeric, prior) if type(x) is float}
        prior = [None if x is None or type(x) is float else world.fill_fused(x, mean) for x in prior]
        return (mean, log_variance, *prior, weight), {**self._options, **numbers}

    def over_operators(self, F: Any, world: Any, *inputs: Any) -> Any:
        """The terms, weighted and reduced; or directly their sums."""
        if world.infers_shapes and self._only_sums and all(x is None for x in inputs[2:]):
            return self._sums_in_a_graph(F, *inputs[:2])
        # A result in float32 takes a third of the passes if it is computed in float64.
        wide = world.in_float32
        # It takes even fewer if only the sums of samples are needed; the means then stay in float32.
        summed = wide and self._only_sums and inputs[3] is inputs[4] is None
        in_float64 = [name for name in self.names if not (summed and name in ("mean", "prior_mean"))] if wide else ()
        mean, log_variance, *prior, weight = self.lifted(F, world, inputs, in_float64)
        prior = [world.broadcast(F, x, mean) for x in prior]
        if summed:
            return self._sums(F, world, mean, log_variance, *prior)
        least = self._free_nats * (2 if wide else 1)
        present = [x is not None for x in prior]

        def terms(*given: Any) -> Any:
            *arrays, mask = given
            of_each = (0, 1 if self._std else 0) * 2  # the values of a standard mean and spread, for both sides
            silent = [value for value, here in zip(of_each, (True, True, *present)) if here]
            kept = iter([operators.silenced(F, x, mask, value) for x, value in zip(arrays, silent)])
            mean, log_variance = next(kept), next(kept)
            differences = operators.gaussian_differences(
                F, mean, log_variance, *(next(kept) if here else None for here in present), std=self._std)
            out = operators.gaussian_terms(F, *differences, doubled=wide)
            return F.where(out < least, F.ones_like(out) * least, out) if least else out

        given = (mean, log_variance, *(x for x in prior if x is not None))
        out = operators.weigh(F, world, terms, given, weight, None)
        out = self.reduced(F, world, out, scale=0.5 if wide else 1.0, wide=wide)
        return F.cast(out, dtype="float32") if wide else out

    def _sums(self, F: Any, world: Any, mean: Any, log_variance: Any, *prior: Any) -> Any:
        """The sum of each sample in float32, from log-variances in float64."""
        mean_distance, d = operators.gaussian_differences(F, mean, log_variance, *prior, std=self._std)
        squares = F.square(mean_distance)
        squares = F.cast(squares, dtype="float64") if world.long else squares
        out = operators.gaussian_sums(F, squares, d, world.batch_axis(self.batch_axis), self.reduction == "mean",
                                      world.long, self.weight or 1.0)
        return F.reshape(world.in_result_dtype(F, out), shape=(-1,))

    def _sums_in_a_graph(self, F: Any, mean: Any, log_variance: Any) -> Any:
        """The sums with the standard prior if dtypes are unknown: in float64, then cast to the result's dtype."""
        rows, zero = lifting.widened(F, (mean, log_variance), self.batch_axis)
        mean_distance, d = operators.gaussian_differences(F, *rows, std=self._std)
        sums = operators.gaussian_sums(
            F, F.square(mean_distance), d, None, self.reduction == "mean", True, self.weight or 1.0)
        return F.reshape(lifting.narrowed(F, sums, zero), shape=(-1,))
