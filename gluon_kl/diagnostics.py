"""What ``check_inputs`` looks for: values that a loss accepts although they are probably a mistake."""

import copy
import math
from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np

_NAMES = {"probs": "probabilities", "log_probs": "log-probabilities", "logits": "logits"}

# The sum of a row may differ from 1 by this much, because labels may be rounded to two or three decimals.
_SLACK = 5e-3

# It is unlikely that so many random numbers of either sign are all positive.
_ENOUGH = 10

# Other logarithms of probabilities: the factor that turns them into natural ones, the name, and the remedy.
_OTHER_LOGARITHMS = (
    (math.log(2), "logarithms to base 2", "multiply {name} by math.log(2)"),
    (math.log(10), "logarithms to base 10", "multiply {name} by math.log(10)"),
    (-1.0, "negative log-probabilities", "pass -{name}"),
)


class _Side(NamedTuple):
    """An array that holds one distribution per row, and the argument that names its space."""

    name: str
    space: str
    told: str  # this argument, for a message
    settings: Dict[str, str]  # for each space, the remedy if the array holds that


class _Values:
    """The values of an array whose weight is not 0, in float64."""

    def __init__(self, name: str, array: Any, weight: Optional[np.ndarray] = None) -> None:
        self.name = name
        if 0 in array.shape:
            raise ValueError(f"{name} of shape {array.shape} holds no values: there is nothing to look at")
        values, self._eps = _read(array)
        self._whole = values
        self._heard = np.ones(values.shape, bool) if weight is None else np.broadcast_to(weight != 0, values.shape)
        self.counted = values[self._heard]
        wrong = int(np.isnan(self.counted).sum())
        if wrong:
            raise ValueError(f"{name} holds NaN, in {wrong} of {self.counted.size} values")
        self.low, self.high = float(self.counted.min()), float(self.counted.max())
        self.whole_numbers = bool((self.counted == np.floor(self.counted)).all())

    def range(self) -> str:
        """The values, for a message."""
        return f"values from {self.low:g} to {self.high:g}" if self.low < self.high else f"the value {self.low:g}"


def _read(array: Any) -> Tuple[np.ndarray, float]:
    """The values of an MXNet array in float64, and the rounding unit of its own dtype."""
    values = array.asnumpy()
    if values.dtype.kind == "V":  # the bits of bfloat16, which NumPy does not have
        return array.astype("float32").asnumpy().astype("float64"), 2.0**-7
    # Integers and booleans are not rounded.
    dtype = values.dtype if values.dtype.kind == "f" else np.dtype("float32")
    return values.astype("float64"), float(np.finfo(dtype).eps)


class _Rows(_Values):
    """The rows along the axis of an array whose weight is not 0, and the spaces that they may be in.

    If some elements of a row have weight 0, the row need not sum to 1, because these elements may hold anything.
    """

    def __init__(self, name: str, array: Any, axis: int, weight: Optional[np.ndarray] = None) -> None:
        super().__init__(name, array, weight)
        self._axis = axis
        self._lay(axis)

    def _lay(self, axis: int) -> None:
        values, heard = (np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in (self._whole, self._heard))
        present = heard.any(axis=1)
        self.values, self.heard = values[present], heard[present]

    def _kept(self, rows: np.ndarray) -> "_Rows":
        twin = copy.copy(self)
        twin.values, twin.heard = self.values[rows], self.heard[rows]
        twin.counted = twin.values[twin.heard]
        twin.low, twin.high = float(twin.counted.min()), float(twin.counted.max())
        return twin

    @property
    def _rounding(self) -> float:
        """The largest difference from 1 that rounding can give to the sum of a softmax in this dtype."""
        return self._eps * (4 + self.values.shape[1] ** 0.5)

    def sums(self, space: str, factor: float = 1.0) -> np.ndarray:
        """The total probability of each row, read as `space`."""
        with np.errstate(over="ignore", invalid="ignore"):
            terms = np.exp(factor * self.values) if space == "log_probs" else self.values
            return np.where(self.heard, terms, 0).sum(axis=1)

    def _sum_to_one(self, space: str, factor: float = 1.0) -> bool:
        excess, slack = self.sums(space, factor) - 1, _SLACK + self._rounding
        return bool((excess <= slack).all() and (excess[self.heard.all(axis=1)] >= -slack).all())

    def are(self, space: str) -> bool:
        """Whether every row is a distribution in this space; as logits, any row that is not masked or infinite is."""
        if space == "logits":
            highest = self.values.max(axis=1)  # NaN stays
            return bool(((highest < np.inf) & (highest > -np.inf)).all())
        return not (space == "probs" and self.low < 0) and self._sum_to_one(space)

    def are_softmax_outputs(self) -> bool:
        """Whether the rows are probabilities to the last digit; by chance, logits hardly ever are."""
        filled = self.values[(self.values != 0).any(axis=1)]  # others may be padding
        if self.values.shape[1] == 1 or not filled.size or not filled.min() >= 0:
            return False
        exact = (np.abs(filled.sum(axis=1) - 1) <= self._rounding).all()
        # Logits around 0 are positive half of the time, and positive ones sum to 1 even more rarely.
        chance = filled.size * np.log10(0.5) + len(filled) * np.log10(2 * self._rounding)
        return bool(exact and chance < -5)

    def fit(self, space: str) -> bool:
        """Whether the rows may hold `space`."""
        return self.are(space) and not (space == "logits" and self.are_softmax_outputs())

    def seem(self, space: str) -> bool:
        """Whether the rows look like `space`: almost any row may hold logits, but few rows look like logits."""
        if space == "logits" and (self.low >= 0 or self.likeliest() != "logits" or self.nearly_probabilities()):
            return False
        return self.fit(space)

    def fitting_axis(self, space: str) -> Optional[int]:
        """Another axis along which all rows are distributions in this space, if there is one."""
        others = [axis for axis, size in enumerate(self._whole.shape) if axis != self._axis and size > 1]
        return next((axis for axis in others if self._turned(axis).are(space)), None)

    def _turned(self, axis: int) -> "_Rows":
        twin = copy.copy(self)
        twin._lay(axis)
        return twin

    def likeliest(self) -> str:
        """The most likely space of the rows."""
        if self.are("probs"):
            return "probs"
        return "log_probs" if self.are("log_probs") else "logits"

    def without_padding(self) -> "_Rows":
        """The rows without those that are 0 throughout; all rows if none or all of them are."""
        filled = ((self.values != 0) & self.heard).any(axis=1)
        return self if filled.all() or not filled.any() else self._kept(filled)

    def other_logarithms(self) -> Optional[Tuple[str, str]]:
        """The kind of logarithms of the rows and the remedy, if they are not natural logarithms of probabilities."""
        for factor, what, remedy in _OTHER_LOGARITHMS:
            logs = factor * self.values
            # The last condition excludes rows of one 0 and large numbers, which may be anything.
            if not (logs > 0).any() and self._sum_to_one("log_probs", factor) and logs.max(axis=1).min() < -0.01:
                return what, remedy.format(name=self.name)
        return None

    def nearly_probabilities(self) -> bool:
        """Whether the rows are probabilities, except for a few values that are slightly below 0."""
        if not self.low < 0 or self.high > 1.05:
            return False
        near = np.abs(self.sums("probs") - 1) <= 0.05
        return self.low >= -0.05 * self.high or bool(near.all() and self.low >= -0.25)

    def are_indices(self) -> bool:
        """Whether each row repeats one whole number, like a class index that was broadcast over the categories."""
        same = (self.values == self.values[:, :1]).all() and self.values.shape[1] > 1
        return bool(same and self.whole_numbers and 1 < self.high < self.values.shape[1])

    def totals(self, space: str) -> str:
        """The sums of the rows, for a message."""
        low, high = (f"{end(self.sums(space)):.6g}" for end in (np.min, np.max))
        return low if low == high else f"between {low} and {high}"


def _weight(
    weight: Optional[Any], shape: Tuple[int, ...], batch_axis: int, axis: Optional[int],
) -> Optional[np.ndarray]:
    """The values of a `sample_weight` that was fitted to `shape`, or None; an error if they cannot be weights."""
    if weight is None or 0 in shape:
        return None
    values = _Values("sample_weight", weight)
    if not np.isfinite(values.counted).all():
        raise ValueError(f"sample_weight must be finite, but holds {values.range()}")
    if values.low == values.high == 0:
        raise ValueError("every sample_weight is 0: there is nothing to look at")
    _refuse_lengths(values, weight.shape, shape, batch_axis, axis)
    return values._whole


def _refuse_lengths(
    weight: _Values, size: Tuple[int, ...], shape: Tuple[int, ...], batch_axis: int, axis: Optional[int],
) -> None:
    """Raise ValueError if there is one weight for each sample and the weights look like the lengths of sequences."""
    per_sample = all(have == 1 for i, have in enumerate(size) if i != batch_axis)
    times = [i for i in range(len(shape)) if i not in (batch_axis, axis)] if len(shape) > 2 else []
    longest = max((shape[i] for i in times), default=0)
    if not (per_sample and weight.whole_numbers and weight.low >= 0 and 1 < weight.high <= longest):
        return
    remedy = "1 for each valid position and 0 for the others"
    if len(shape) == 3 and (axis is not None or batch_axis < 2):
        sizes = [size if i in (batch_axis, times[0]) else 1 for i, size in enumerate(shape) if i != axis]
        remedy += f", mx.nd.SequenceMask(mx.nd.ones({tuple(sizes)}), lengths, True, axis={int(batch_axis < times[0])})"
    raise ValueError(
        f"sample_weight holds whole numbers from {weight.low:g} to {weight.high:g}, as the lengths of sequences do; a "
        f"weight is a factor: pass {remedy}. If they are factors, call check_inputs without them")


def check_pair(
    pred: Any, label: Any, weight: Any, batch_axis: int, axis: int, from_logits: bool, pred_space: Optional[str],
    label_space: str,
) -> None:
    """Raise ValueError for the likeliest mistake in a pair of arrays of one shape and the weights of that shape."""
    weight = _weight(weight, pred.shape, batch_axis, axis)
    ours, theirs = _pred_side(from_logits, pred_space), _label_side("label", "label_space", label_space)
    p, q = _Rows("pred", pred, axis, weight), _Rows("label", label, axis, weight)
    both_fit = p.fit(ours.space) and q.fit(label_space)
    if not both_fit and ours.space != label_space and q.seem(ours.space) and p.seem(label_space):
        raise ValueError(
            f"pred and label seem to be swapped: pred holds {_NAMES[label_space]} and label {_NAMES[ours.space]}; "
            f"the order is loss(pred, label), the output of the model first")
    _check_side(p, ours)
    _check_side(q, theirs)


def _pred_side(from_logits: bool, pred_space: Optional[str]) -> _Side:
    if pred_space is not None and not (pred_space == "logits" and not from_logits):
        settings = {space: f"set pred_space={space!r}" for space in _NAMES}
        return _Side("pred", pred_space, f"pred_space={pred_space!r}", settings)
    probs = "set pred_space='probs'" if from_logits else "set pred_space='probs' and leave from_logits out"
    settings = {"probs": probs, "log_probs": "set from_logits=True", "logits": "set from_logits=False"}
    return _Side("pred", "log_probs" if from_logits else "logits", f"from_logits={from_logits}", settings)


def _label_side(name: str, argument: str, space: str) -> _Side:
    return _Side(name, space, f"{argument}={space!r}", {each: f"set {argument}={each!r}" for each in _NAMES})


def _check_side(rows: _Rows, side: _Side) -> None:
    """Raise ValueError with the remedy if the rows are not in the space that the argument names."""
    if rows.fit(side.space):
        return
    if side.space == "logits":
        _refuse_logits(rows, side)
    rows = _check_padding(rows, side)
    if side.space == "probs" and rows.are_indices():
        raise ValueError(f"{rows.name} {_INDICES} {one_hot(rows.name)}")
    _check_axis(rows, side.space)
    found = rows.likeliest()
    if found != "logits":
        raise ValueError(_in_another_space(rows, side, found))
    other = rows.other_logarithms()
    if other is not None:
        natural = "" if side.space == "log_probs" else f" and {side.settings['log_probs']}"
        raise ValueError(f"{rows.name} holds {other[0]} where {_NAMES[side.space]} belong ({side.told}); "
                         f"{other[1]}{natural}")
    if rows.nearly_probabilities():
        also = "" if side.space == "probs" else f", and {side.settings['probs']}"
        raise ValueError(f"{rows.name} holds a negative probability, {rows.low:g}; "
                         f"set it to 0, {rows.name}.clip(0, 1){also}")
    if rows.low >= 0:
        raise ValueError(_not_normalised(rows, side))
    raise ValueError(_in_another_space(rows, side, found))


def _refuse_logits(rows: _Rows, side: _Side) -> None:
    if rows.are_softmax_outputs():
        if side.name == "label":
            raise ValueError(_in_another_space(rows, side, "probs"))
        raise ValueError(
            f"{rows.name} holds probabilities where logits belong: each row adds up to 1, and the loss "
            f"applies softmax itself, so it would be applied twice; {side.settings['probs']}")
    highest = rows.values.max(axis=1)
    if np.isnan(highest).any():
        raise ValueError(f"{rows.name} holds NaN, at an element of weight 0 in a row that counts: softmax reads the "
                         f"whole row; give every element of the row weight 0, or replace the NaN")
    if (highest == np.inf).any():
        raise ValueError(f"{rows.name} holds +inf, in {(highest == np.inf).sum()} of {len(highest)} rows: softmax "
                         f"makes NaN of it; pass finite logits, and -inf for categories that are masked")
    raise ValueError(_masked(rows, highest == -np.inf))


def _masked(rows: _Rows, where: np.ndarray) -> str:
    return (f"{where.sum()} of {len(where)} rows of {rows.name} hold nothing but -inf: a row that is masked everywhere "
            f"is NaN; give it the sample_weight 0, or leave one category unmasked")


def _check_padding(rows: _Rows, side: _Side) -> _Rows:
    """The rows without those that are 0 throughout; ValueError if only these are wrong."""
    masked = (rows.values == -np.inf).all(axis=1)
    if side.space == "log_probs" and masked.any():
        raise ValueError(_masked(rows, masked))
    filled = rows.without_padding()
    if len(filled.values) < len(rows.values) and filled.fit(side.space):
        count, whole = len(rows.values) - len(filled.values), len(rows.values)
        raise ValueError(f"{count} of {whole} rows of {rows.name} {'is' if count == 1 else 'are'} 0 throughout, as "
                         f"padding is; leave such rows out by their weight: "
                         f"sample_weight=({rows.name}.sum(axis={rows._axis}) != 0)")
    if not rows.counted.any() and rows.values.shape[1] > 1:
        raise ValueError(f"{rows.name} is 0 throughout, where {_NAMES[side.space]} belong ({side.told}): "
                         f"it was probably never filled")
    return filled


def _check_axis(rows: _Rows, space: str) -> None:
    """Raise ValueError if the rows are distributions, but along another axis."""
    axis = rows.fitting_axis(space)
    if axis is not None:
        what = rows.name if space == "probs" else f"the exponential of {rows.name}"
        raise ValueError(f"rows of {rows.name} do not sum to 1, but to {rows.totals(space)}; "
                         f"{what} sums to 1 along axis {axis}: set axis={axis}")


def _in_another_space(rows: _Rows, side: _Side, found: str) -> str:
    where = f"{rows.name} holds {_NAMES[found]} where {_NAMES[side.space]} belong ({side.told})"
    if side.name == "pred" and side.space == "log_probs" and found == "probs":
        return (f"{where}: each row adds up to 1; {side.settings['probs']}, return log_softmax from the network, or "
                f"return logits and {side.settings['logits']}")
    if found == "logits" and side.space == "log_probs":
        return (f"{where}: its exponentials add up to {rows.totals('log_probs')} per row, not 1; "
                f"{side.settings['logits']}")
    if found == "logits":
        return f"{where}: its lowest value is {rows.low:g}; {side.settings['logits']}"
    return f"{where}; {side.settings[found]}"


def _not_normalised(rows: _Rows, side: _Side) -> str:
    """The message for rows without a negative value that fit no space."""
    also = "" if side.space == "probs" else f" and {side.settings['probs']}"
    sums = f"rows of {rows.name} do not sum to 1, but to {rows.totals('probs')}"
    divide = f"divide each row by its sum{also}"
    if rows.whole_numbers and rows.high > 1:
        return (f"{rows.name} holds counts, whole numbers up to {rows.high:g}: its rows do not sum to 1, but to "
                f"{rows.totals('probs')}; {divide}: {rows.name} / {rows.name}.sum(axis={rows._axis}, keepdims=True)")
    if rows.high > 1:
        return f"{sums}; {divide}, or {side.settings['logits']} if these are logits"
    if side.name == "label":
        return f"{sums}; {divide}, or take gluon_kl.BernoulliKLLoss if every element is a separate yes or no"
    scores = side.settings["logits"] if side.name != "pred" else "pass from_logits=False alone"
    return (f"{sums}; {rows.name} holds {rows.range()}, as a sigmoid gives them: leave the sigmoid out of the network "
            f"and {scores}, or take gluon_kl.BernoulliKLLoss(from_sigmoid=True), for which every element is a separate "
            f"yes or no")


_INDICES = "looks like class indices; a divergence needs a probability for each category: pass"


def one_hot(name: str, depth: str = "categories") -> str:
    """How to turn class indices into distributions."""
    return f"mx.nd.one_hot({name}, depth={depth})"


def index_shapes(shape: Tuple[int, ...], axis: int) -> Tuple[Tuple[int, ...], Tuple[int, ...]]:
    """The two shapes that class indices may have, with one index for each row of a pred of this shape."""
    return shape[:axis] + shape[axis + 1:], shape[:axis] + (1,) + shape[axis + 1:]


def index_hint(label: Tuple[int, ...], shape: Tuple[int, ...], axis: int) -> str:
    """The hint at one_hot for a shape error, if a label of this shape may hold class indices."""
    per_row, column = index_shapes(shape, axis)
    if label == shape or label not in (per_row, column):
        return ""
    name = "label" if label == per_row else f"label.reshape({per_row})"
    turned = "" if axis == len(shape) - 1 else f", its last axis moved to axis {axis}"
    return (f"; if label holds class indices, pass the distributions that they stand for, "
            f"{one_hot(name, str(shape[axis]))}{turned}")


def check_not_indices(label: Any, shape: Tuple[int, ...], axis: int, remedy: str = "") -> None:
    """Raise ValueError if the label holds one class index for each row; by default the remedy is one_hot."""
    if label.shape in index_shapes(shape, axis) and label.shape != shape and 0 not in shape:
        values = _read(label)[0]
        if (values == np.floor(values)).all() and (values >= 0).all():
            remedy = remedy or f"{_INDICES} {one_hot('label')}, not an array"
            raise ValueError(f"label {remedy} of shape {label.shape} with pred of shape {shape}")


def check_distillation(
    pred: Any, label: Optional[Any], teacher_pred: Optional[Any], weight: Any, batch_axis: int, axis: int,
    sparse_label: bool, teacher_space: str, ignore_label: Optional[float] = None,
) -> None:
    """Raise ValueError for the likeliest mistake in the inputs of a distillation loss."""
    weight = _weight(weight, pred.shape, batch_axis, axis)
    if ignore_label is not None and label is not None:
        weight = _without_ignored(weight, label, pred.shape, axis, ignore_label)
    _check_side(_Rows("pred", pred, axis, weight),
                _Side("pred", "logits", "", {"probs": "leave the softmax out of the network"}))
    if teacher_pred is not None:
        side = _label_side("teacher_pred", "teacher_space", teacher_space)
        if teacher_space == "logits":
            side.settings["probs"] = ("set teacher_space='probs' if they are softmax(logits / temperature), "
                                      "or pass their logarithms if they are softmax(logits)")
        _check_side(_Rows("teacher_pred", teacher_pred, axis, weight), side)
    if label is None:
        return
    if sparse_label:
        _check_indices(label, pred.shape, axis, weight)
    else:
        _check_side(_Rows("label", label, axis, weight), _Side("label", "probs", "sparse_label=False", {
            "log_probs": "pass label.exp()", "logits": "pass mx.nd.softmax(label)"}))


def check_kept(
    pred: Any, label: Optional[Any], index: Any, value: Any, weight: Any, batch_axis: int, axis: int,
    teacher_space: str, ignore_label: Optional[float],
) -> None:
    """Raise ValueError for the likeliest mistake in a teacher's kept categories."""
    weight = _weight(weight, pred.shape, batch_axis, axis)
    if ignore_label is not None:
        weight = _without_ignored(weight, label, pred.shape, axis, ignore_label)
    categories = pred.shape[axis]
    places, given = (_Rows(name, x, axis, weight) for name, x in (("teacher_index", index), ("teacher_value", value)))
    rows, values = places.values, given.values
    if not places.whole_numbers and given.whole_numbers:
        raise ValueError("teacher_index and teacher_value seem to be swapped: teacher_index holds fractions, and "
                         "teacher_value whole numbers; the order is loss(pred, label, teacher_index, teacher_value)")
    wrong = rows[(rows < -1) | (rows >= categories) | (rows != np.floor(rows))]
    if wrong.size:
        hint = ("they seem to count from 1: pass teacher_index - 1" if places.low >= 1 and places.high == categories
                else "an empty place is -1")
        raise ValueError(f"teacher_index must hold categories from 0 to {categories - 1}, or -1, not {wrong[0]:g}; "
                         f"{hint}")
    ordered = np.sort(rows, axis=1)
    twice = ordered[:, 1:][(ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)]
    if twice.size:
        raise ValueError(f"teacher_index names category {twice[0]:g} twice in one row")
    given.heard = given.heard & (rows >= 0)
    kept = values[given.heard]
    if kept.size:
        _check_kept_space(given, kept, teacher_space)


def _check_kept_space(given: _Rows, kept: np.ndarray, told: str) -> None:
    """Raise ValueError if the kept values do not look like `told`; the kept part of a row sums to 1 at most."""
    low, high, slack = float(kept.min()), float(kept.max()), 1 + _SLACK
    fits = {"log_probs": high <= 0 and (given.sums("log_probs") <= slack).all(),
            "probs": low >= 0 and (given.sums("probs") <= slack).all()}
    found = next((space for space, fit in fits.items() if fit), "logits")
    if (told == "logits" and found == "log_probs") or fits.get(told, found == told):
        return
    remedy = {"logits": "pass them with tail='renormalize' and teacher_space='logits', or the logarithm of the softmax "
                        "over all categories"}.get(found, f"set teacher_space={found!r}")
    raise ValueError(f"teacher_value must hold {_NAMES[told]} (teacher_space={told!r}), but values from {low:g} to "
                     f"{high:g} look like {_NAMES[found]}: {remedy}")


def _without_ignored(
    weight: Optional[np.ndarray], label: Any, shape: Tuple[int, ...], axis: int, ignore_label: float,
) -> np.ndarray:
    """The weights, but 0 in the rows whose class is `ignore_label`."""
    heard = _read(label)[0].reshape(index_shapes(shape, axis)[1]) != ignore_label
    if not heard.any():
        raise ValueError(f"every label is {ignore_label}, the ignore_label: there is nothing to look at")
    return np.asarray(heard if weight is None else heard * weight)


def _check_indices(label: Any, shape: Tuple[int, ...], axis: int, weight: Optional[np.ndarray]) -> None:
    """Raise ValueError unless the label holds a class index for each row that counts."""
    if weight is not None:
        rows = np.broadcast_to(weight != 0, shape).any(axis=axis)
        weight = rows.reshape(label.shape)
    indices, count = _Values("label", label, weight), shape[axis]
    found = indices.counted
    wrong = found[(found < 0) | (found >= count) | (found != np.floor(found))]
    if not wrong.size:
        return
    must = f"label must hold class indices from 0 to {count - 1}, not {wrong[0]:g}; "
    if indices.whole_numbers and indices.low >= 1 and indices.high == count:
        raise ValueError(f"{must}they seem to count from 1: pass label - 1")
    if not indices.whole_numbers:
        raise ValueError(f"{must}set sparse_label=False for a probability for each category")
    raise ValueError(f"{must}give rows without a class sample_weight 0 and any valid index, or name theirs, such as "
                     f"ignore_label={wrong[0]:g}")


def check_bernoulli(
    pred: Any, label: Any, weight: Any, batch_axis: int, pred_space: str, label_space: str,
) -> None:
    """Raise ValueError for the likeliest mistake in the inputs of a loss of yes-or-no distributions."""
    weight = _weight(weight, pred.shape, batch_axis, None)
    p, given = _Values("pred", pred, weight), {"probs": "from_sigmoid=True", "logits": "from_sigmoid=False"}
    q = _Values("label", label, weight) if hasattr(label, "asnumpy") else None
    scores, probs = (p, q) if pred_space == "logits" else (q, p)
    if q is not None and pred_space != label_space and _exchanged(scores, probs):
        raise ValueError(f"pred and label seem to be swapped: pred holds {p.range()}, where {_NAMES[pred_space]} "
                         f"belong ({given[pred_space]}), and label {q.range()}; the order is loss(pred, label), the "
                         f"output of the model first")
    _check_yes_or_no(p, pred_space, given)
    given = {space: f"label_space={space!r}" for space in given}
    if q is not None:
        _check_yes_or_no(q, label_space, given)
    elif label_space == "logits" and 0 < label < 1:
        raise ValueError(f"label={label:g} stands for a probability of {1 / (1 + math.exp(-label)):.3g}, since "
                         f"label_space='logits' takes logits; for {label:g} itself set label_space='probs'")


def _exchanged(scores: Any, probs: Any) -> bool:
    """Whether the array that should hold logits lies between 0 and 1, and the one that should lie there does not."""
    inside = scores.low >= 0 and scores.high <= 1 and scores.counted.size >= _ENOUGH
    return bool(inside and probs.low < -0.05 and probs.high > 0 and not probs.whole_numbers)


def _check_yes_or_no(values: _Values, space: str, given: Dict[str, str]) -> None:
    """Raise ValueError unless each value is a probability, or a logit, as `space` says."""
    if space == "logits":
        _check_scores(values, given)
        return
    if values.low >= 0 and values.high <= 1:
        return
    what = f"{values.name} holds {values.range()} where probabilities belong ({given['probs']}); "
    if values.whole_numbers and values.low == -1 and values.high == 1:
        if (values.counted == 0).any():
            raise ValueError(f"{what}if -1 marks an unknown label, pass sample_weight=({values.name} >= 0)")
        raise ValueError(f"{what}for labels of -1 and 1 pass ({values.name} + 1) / 2")
    if values.low >= -0.05 * values.high and values.high <= 1.05:
        raise ValueError(f"{what}outside 0 to 1 the loss is NaN: pass {values.name}.clip(0, 1)")
    if values.low < 0:
        logs = "" if values.high > 0 else f", or pass {values.name}.exp() if they are logarithms of probabilities"
        scaled = "" if values.name == "pred" else ", or scale them to lie between 0 and 1"
        raise ValueError(f"{what}set {given['logits']} if these are logits{logs}{scaled}")
    scaled = f"divide {values.name} by its largest possible value"
    if 20 < values.high <= 255:
        scaled += ", 255 for pixels or 100 for percentages" if values.high <= 100 else ", 255 for pixels"
    raise ValueError(f"{what}{scaled}, or set {given['logits']} if these are logits")


def _check_scores(values: _Values, given: Dict[str, str]) -> None:
    if values.low < 0 or values.high > 1 or values.low == values.high:
        return
    flags = values.whole_numbers
    # Logits lie on both sides of 0, and close to it in a new network.
    if values.counted.size >= (_ENOUGH if flags else 2 * _ENOUGH) and values.low < 0.5 < values.high:
        what = "0 and 1 alone" if flags else f"{values.range()}, all between 0 and 1,"
        sigmoid = "" if values.name == "label" else " (a sigmoid would be applied twice)"
        raise ValueError(f"{values.name} holds {what} where logits belong ({given['logits']}); "
                         f"set {given['probs']} if these are probabilities{sigmoid}")


def check_gaussian(
    mean: Any, spread: Any, prior_mean: Any, prior_spread: Any, weight: Any, batch_axis: int, space: str,
) -> None:
    """Raise ValueError for the likeliest mistake in the inputs of a loss of Gaussians; priors may be numbers."""
    weight = _weight(weight, mean.shape, batch_axis, None)
    means = _finite("mean", mean, weight)
    spreads = _Values("log_variance", spread, weight)
    if space == "std" and not spreads.low > 0 and means.low > 0 and means.counted.size >= _ENOUGH:
        raise ValueError(f"mean and log_variance seem to be swapped: since spread='std', log_variance takes standard "
                         f"deviations, but holds {spreads.range()}, and mean {means.range()}; the order is "
                         f"loss(mean, std)")
    _check_spread(spreads, space)
    if prior_mean is not None and hasattr(prior_mean, "asnumpy"):
        _finite("prior_mean", prior_mean, weight)
    standard = prior_mean is None or _all_equal(prior_mean, 0)
    if prior_spread is None:
        return
    if space == "log_variance" and standard and _all_equal(prior_spread, 1):
        raise ValueError(f"prior_log_variance is 1, the logarithm of a variance of {math.e:.3f}; "
                         f"for N(0, 1), whose variance is 1, pass 0 or leave both priors out")
    if hasattr(prior_spread, "asnumpy"):
        _check_spread(_Values("prior_log_variance", prior_spread, weight), space)


def _all_equal(x: Any, value: float) -> bool:
    return bool((_read(x)[0] == value).all()) if hasattr(x, "asnumpy") else x == value


def _finite(name: str, array: Any, weight: Optional[np.ndarray]) -> _Values:
    values = _Values(name, array, weight)
    if not np.isfinite(values.counted).all():
        raise ValueError(f"{name} holds {values.range()}: a mean must be finite")
    return values


def _check_spread(values: _Values, space: str) -> None:
    """Raise ValueError unless the values are logarithms of variances, or standard deviations."""
    name, found = values.name, values.range()
    if space == "std":
        if values.low > 0 and values.high < np.inf:
            return
        remedy = "add a small number such as 1e-6, or use softplus"
        if values.low < 0:
            remedy = (f"set spread='log_variance' if these are logarithms of variances, or pass {name}.exp() if they "
                      f"are logarithms of standard deviations")
        raise ValueError(f"{name} holds {found}, but spread='std' takes standard deviations, above 0 and finite; "
                         f"{remedy}")
    if not np.isfinite(values.counted).all():
        raise ValueError(f"{name} holds {found}: the logarithm of a variance must be finite; a variance of 0 gives "
                         f"-inf: add a small number before the logarithm")
    many = values.low > 0 and values.low < values.high and values.counted.size >= _ENOUGH
    if many or values.high > 50:
        why = ", none below 0, as variances or standard deviations do" if many else \
            f", whose exponential is {math.exp(min(values.high, 700)):.1e}"
        raise ValueError(
            f"{name} holds {found}{why}, but spread='log_variance' takes logarithms of variances; pass {name}.log() if "
            f"these are variances, or set spread='std' if they are standard deviations")
