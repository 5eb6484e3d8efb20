"""What ``check_inputs`` looks for: values that a loss takes without a word and computes nonsense from."""

import copy
from typing import Any, Optional, Tuple

import numpy as np

_NAMES = {"probs": "probabilities", "log_probs": "log-probabilities", "logits": "raw scores (logits)"}

# Rows may miss a sum of 1 by this much: labels rounded to two or three decimals do.
_SLACK = 5e-3


class _Rows:
    """The rows along the axis of an array, in float64, and what they may be."""

    def __init__(self, name: str, array: Any, axis: Optional[int]) -> None:
        self.name = name
        if 0 in array.shape:
            raise ValueError(f"{name} of shape {array.shape} holds no values: there is nothing to look at")
        values = array.asnumpy()
        # Integers and booleans hold no rounding, floats that of their own dtype.
        dtype = values.dtype if values.dtype.kind == "f" else np.dtype("float32")
        values = values.astype("float64")
        if np.isnan(values).any():
            raise ValueError(f"{name} holds NaN")
        self._eps = float(np.finfo(dtype).eps)
        self._whole, self._axis = values, axis
        self.values = values.ravel() if axis is None else self._along(axis)

    def _along(self, axis: int) -> np.ndarray:
        return np.moveaxis(self._whole, axis, -1).reshape(-1, self._whole.shape[axis])

    @property
    def _rounding(self) -> float:
        """How far from 1 rounding may take the sum of a softmax in this dtype."""
        return self._eps * (4 + self.values.shape[1] ** 0.5)

    def sums(self, space: str) -> np.ndarray:
        """The total probability of each row, read as `space`."""
        with np.errstate(over="ignore"):
            return (np.exp(self.values) if space == "log_probs" else self.values).sum(axis=1)

    def are(self, space: str) -> bool:
        """Whether every row is a distribution in this space; any row without +inf is one of logits."""
        if space == "logits":
            return bool((self.values.max(axis=1) < np.inf).all() and (self.values.max(axis=1) > -np.inf).all())
        if space == "probs" and self.values.min() < 0:
            return False
        return bool((np.abs(self.sums(space) - 1) <= _SLACK + self._rounding).all())

    def are_softmax_outputs(self) -> bool:
        """Whether the rows are probabilities to the last digit, as raw scores hardly ever are by chance."""
        if self.values.shape[1] == 1 or self.values.min() < 0:
            return False
        exact = (np.abs(self.sums("probs") - 1) <= self._rounding).all()
        # Scores around 0 are positive half the time, and positive ones add up to 1 by rarer chance.
        chance = self.values.size * np.log10(0.5) + len(self.values) * np.log10(2 * self._rounding)
        return bool(exact and chance < -5)

    def fit(self, space: str) -> bool:
        """Whether nothing speaks against reading the rows as `space`."""
        return self.are(space) and not (space == "logits" and self.are_softmax_outputs())

    def fitting_axis(self, space: str) -> Optional[int]:
        """Another axis along which all is a distribution in this space, if there is one."""
        others = [axis for axis, size in enumerate(self._whole.shape) if axis != self._axis and size > 1]
        return next((axis for axis in others if self._turned(axis).are(space)), None)

    def _turned(self, axis: int) -> "_Rows":
        twin = copy.copy(self)
        twin.values = self._along(axis)
        return twin

    def likeliest(self) -> str:
        """What the rows seem to hold."""
        if self.are("probs"):
            return "probs"
        return "log_probs" if self.are("log_probs") else "logits"

    def are_indices(self) -> bool:
        """Whether these are whole numbers as a class index is."""
        return bool((self.values >= 0).all() and (self.values == np.floor(self.values)).all() and self.values.max() > 1)

    def totals(self, space: str) -> str:
        """The sums of the rows, for a message."""
        low, high = (f"{end(self.sums(space)):.6g}" for end in (np.min, np.max))
        return low if low == high else f"between {low} and {high}"


def check_pair(pred: Any, label: Any, pred_space: str, label_space: str, axis: int) -> None:
    """Raise ValueError for the likeliest mistake in a pair of arrays of one shape."""
    p, q = _Rows("pred", pred, axis), _Rows("label", label, axis)
    pred_fits, label_fits = p.fit(pred_space), q.fit(label_space)
    if not (pred_fits and label_fits) and pred_space != label_space and q.fit(pred_space) and p.fit(label_space):
        raise ValueError(
            f"pred and label seem to be swapped: pred holds {_NAMES[label_space]} and label {_NAMES[pred_space]}; "
            f"the order is loss(pred, label), the output of the model first")
    if not pred_fits:
        check_pred(p, pred_space)
    if not label_fits:
        _refuse_label(q, label_space)


def _check_axis(rows: _Rows, space: str) -> None:
    """Raise ValueError if the rows are distributions, but along another axis."""
    axis = None if space == "logits" else rows.fitting_axis(space)
    if axis is not None:
        what = rows.name if space == "probs" else f"the exponential of {rows.name}"
        raise ValueError(f"rows of {rows.name} do not sum to 1, but to {rows.totals(space)}; "
                         f"{what} sums to 1 along axis {axis}: set axis={axis}")


def _twice(rows: _Rows, remedy: str) -> str:
    return (f"{rows.name} holds probabilities where raw scores (logits) belong: each row adds up to 1, and the loss "
            f"applies softmax itself, so it would be applied twice; {remedy}")


def check_pred(
    rows: _Rows, space: str, remedy: str = "leave the softmax out of the network, or set pred_space='probs'",
) -> None:
    """Raise ValueError if model outputs are not in the space that the loss takes."""
    if rows.fit(space):
        return
    _check_axis(rows, space)
    found = rows.likeliest()
    if space == "logits" and rows.are_softmax_outputs():
        raise ValueError(_twice(rows, remedy))
    if space == "logits":
        raise ValueError(f"{rows.name} has a row of scores with +inf in it, or with nothing but -inf")
    if space == "probs":
        remedy = "pred_space='log_probs'" if found == "log_probs" else "pred_space='logits'"
        raise ValueError(
            f"{rows.name} holds {_NAMES[found]} where probabilities belong (pred_space='probs'): its rows add up to "
            f"{rows.totals('probs')}, not 1; set {remedy}")
    if found == "probs":
        raise ValueError(
            f"{rows.name} holds probabilities where log-probabilities belong (from_logits=True): each row adds up "
            f"to 1; set pred_space='probs', return log_softmax from the network, or raw scores with from_logits=False")
    raise ValueError(
        f"{rows.name} holds raw scores (logits) where log-probabilities belong (from_logits=True): its exponentials "
        f"add up to {rows.totals('log_probs')} per row, not 1; set from_logits=False")


def _refuse_label(rows: _Rows, space: str) -> None:
    found = rows.likeliest()
    if space == "probs" and rows.are_indices():
        raise ValueError(f"{rows.name} {_INDICES} {one_hot(rows.name)}")
    _check_axis(rows, space)
    if space == "probs" and found == "logits" and rows.values.min() >= 0:
        raise ValueError(
            f"rows of {rows.name} do not sum to 1, but to {rows.totals('probs')}; divide each row by its sum, "
            f"or set label_space='logits' if these are raw scores")
    if space == "logits" and found != "probs":
        raise ValueError(f"{rows.name} has a row of scores with +inf in it, or with nothing but -inf")
    raise ValueError(
        f"{rows.name} holds {_NAMES[found]} where {_NAMES[space]} belong (label_space={space!r}); "
        f"set label_space={found!r}")


_INDICES = "looks like class indices; a divergence needs a probability for each category: pass"


def one_hot(name: str, depth: str = "categories") -> str:
    """How to turn class indices into distributions."""
    return f"mx.nd.one_hot({name}, depth={depth})"


def index_shapes(shape: Tuple[int, ...], axis: int) -> Tuple[Tuple[int, ...], Tuple[int, ...]]:
    """The shapes that class indices have, one for each row of pred of this shape."""
    return shape[:axis] + shape[axis + 1:], shape[:axis] + (1,) + shape[axis + 1:]


def index_hint(label: Tuple[int, ...], shape: Tuple[int, ...], axis: int) -> str:
    """What a shape error says of one_hot, if a label of this shape may hold class indices."""
    per_row, column = index_shapes(shape, axis)
    if label == shape or label not in (per_row, column):
        return ""
    name = "label" if label == per_row else f"label.reshape({per_row})"
    turned = "" if axis == len(shape) - 1 else f", its last axis moved to axis {axis}"
    return (f"; if label holds class indices, pass the distributions that they stand for, "
            f"{one_hot(name, str(shape[axis]))}{turned}")


def check_not_indices(label: Any, shape: Tuple[int, ...], axis: int) -> None:
    """Raise ValueError for a label of class indices, one for each row of pred of this shape."""
    if label.shape in index_shapes(shape, axis) and label.shape != shape:
        values = label.asnumpy()
        if (values == np.floor(values)).all() and (values >= 0).all():
            raise ValueError(f"label {_INDICES} {one_hot('label')}, not an array of shape {label.shape} "
                             f"with pred of shape {shape}")


def check_distillation(
    pred: Any, label: Optional[Any], teacher_pred: Optional[Any], sparse_label: bool, teacher_space: str, axis: int,
) -> None:
    """Raise ValueError for the likeliest mistake in the inputs of a distillation loss."""
    check_pred(_Rows("pred", pred, axis), "logits", "leave the softmax out of the network")
    if teacher_pred is not None:
        _check_teacher(_Rows("teacher_pred", teacher_pred, axis), teacher_space)
    if label is None:
        return
    if not sparse_label:
        rows = _Rows("label", label, axis)
        if not rows.fit("probs"):
            _check_axis(rows, "probs")
            raise ValueError(f"rows of label do not sum to 1 or hold negative values, but sparse_label=False takes "
                             f"one probability for each category: they sum to {rows.totals('probs')}")
        return
    indices, count = _Rows("label", label, None).values, pred.shape[axis]
    wrong = indices[(indices < 0) | (indices >= count) | (indices != np.floor(indices))]
    if wrong.size:
        raise ValueError(f"label must hold class indices from 0 to {count - 1}, not {wrong[0]:g}; "
                         f"give rows without a class sample_weight 0 and any valid index")


def _check_teacher(rows: _Rows, space: str) -> None:
    if rows.fit(space):
        return
    _check_axis(rows, space)
    if space == "logits":
        check_pred(rows, space, "set teacher_space='probs' if they are softmax(scores / temperature), "
                                "or pass their logarithms if they are softmax(scores)")
    found = rows.likeliest()
    raise ValueError(f"{rows.name} holds {_NAMES[found]} where {_NAMES[space]} belong (teacher_space={space!r}); "
                     f"set teacher_space={found!r}")
