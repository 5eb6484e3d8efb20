"""Reduces a row of logits to the categories that a teacher kept, and one for all others, with MXNet's operators.

Arrays have two axes here, (rows, ...). A row is read once, which leaves k + 1 numbers; the rest of the arithmetic uses
only these.
"""

from typing import Any, NamedTuple, Tuple

from gluon_kl.operators import numpy_of, swapaxes

# Overwrites a kept logit: below every other, but finite, so that the softmax of a row of such numbers exists.
_LOW = -1e38


class Kept(NamedTuple):
    """What the teacher's indices say about each row; all but `known` have one column."""

    known: Any  # (rows, k): 1 if a category is kept there, 0 at an empty place
    some: Any  # 1 if any category is kept
    every: Any  # 1 if every category is kept
    sound: Any  # 0 for a row that names a category twice, or one that does not exist; else 1


def axis_last(F: Any, x: Any, axis: int) -> Any:
    """`x` with this axis and the last one swapped."""
    return x if axis == -1 else swapaxes(F, x, axis, -1)


def as_rows(F: Any, x: Any, axis: int) -> Any:
    """`x` as (rows, length of the axis)."""
    return F.reshape(axis_last(F, x, axis), shape=(-1, 0), reverse=True)


def from_column(F: Any, column: Any, like: Any, axis: int) -> Any:
    """A number for each row in the shape of `like`, which has 1 along `axis`."""
    return axis_last(F, F.reshape_like(column, axis_last(F, like, axis)), axis)


def number_of_categories(F: Any, pred: Any) -> Any:
    """The number of categories of pred's rows, in shape (1, 1) and float64."""
    return F.sum(F.cast(F.ones_like(F.slice(pred, begin=(0,), end=(1,))), dtype="float64"), axis=-1, keepdims=True)


def is_category(F: Any, index: Any, categories: Any) -> Any:
    """1 where an index in float64 names a category."""
    return (index >= 0) * (index == F.floor(index)) * F.broadcast_lesser(index, categories)


def look_at(F: Any, index: Any, categories: Any) -> Kept:
    """What indices in float64 say about each row."""
    known = is_category(F, index, categories)
    places = F.where(known, index, F.zeros_like(index) - 1)
    some = F.max(known, axis=-1, keepdims=True)
    wrong = (1 - known) * (index != -1)
    # One more empty place, so that there are neighbours even if k is 1.
    ordered = F.sort(F.concat(places, some * 0 - 1, dim=-1), axis=-1)
    after = F.slice(ordered, begin=(None, 1), end=(None, None))
    before = F.slice(ordered, begin=(None, 0), end=(None, -1))
    sound = F.max(wrong + (after == before) * (after >= 0), axis=-1, keepdims=True) == 0
    every = F.broadcast_equal(F.sum(known, axis=-1, keepdims=True), categories)
    return Kept(known, some, every, sound)


def log_sum(F: Any, x: Any) -> Tuple[Any, Any]:
    """Two summands of the logarithm of the sum of e^x over each row: its largest x, and the rest.

    MXNet's log_softmax would lose digits that its softmax keeps.
    """
    # In a row with one NaN, oneDNN's softmax gives finite values beside it.
    no_number = F.max(F.BlockGrad(x), axis=-1, keepdims=True) * 0
    best = F.argmax(F.BlockGrad(x), axis=-1, keepdims=True)
    top = F.pick(x, best, axis=-1, keepdims=True) + no_number
    return top, -F.log(F.pick(F.softmax(x, axis=-1), best, axis=-1, keepdims=True))


def _flat_places(F: Any, places: Any, categories: Any) -> Any:
    """The categories of each row as positions in the flattened array of all rows; exact in float64."""
    column = F.ones_like(F.sum(places, axis=-1, keepdims=True))
    numbers = numpy_of(column).cumsum(column.as_np_ndarray(), axis=0).as_nd_ndarray() - 1
    return F.broadcast_add(F.broadcast_mul(numbers, categories), places)


def _take(F: Any, pred: Any, flat: Any) -> Any:
    taken = F.take(F.reshape(pred, shape=(-1, 1)), flat, axis=0, mode="clip")
    return F.reshape_like(taken, flat)


def read(F: Any, pred: Any, index: Any, kept: Kept, temperature: float, categories: Any) -> Any:
    """The kept logits and the logarithm of the others' sum, over the temperature, minus a constant: (rows, k + 1).

    The kept logits are overwritten in a copy, so that the sum of the others is exact however small it is. An empty
    place overwrites a kept logit of its row a second time. If there is none, the row has no soft part, and the value
    that is overwritten does not matter.
    """
    pred = pred if temperature == 1 else pred / temperature
    places = F.where(kept.known, index, F.zeros_like(index))
    last = F.broadcast_like(F.max(places, axis=-1, keepdims=True), places)
    flat = _flat_places(F, F.where(kept.known, places, last), categories)
    scores = _take(F, pred, flat)
    low = F.zeros_like(scores) + _LOW
    others = F.contrib.index_copy(F.reshape(pred, shape=(-1, 1)), F.reshape(flat, shape=(-1,)),
                                  F.reshape(low, shape=(-1, 1)))
    top, rest = log_sum(F, F.reshape_like(others, pred))
    none_left = top < _LOW / 2
    scores = F.where(kept.known, scores, low)
    shift = F.BlockGrad(F.max(F.concat(scores, top, dim=-1), axis=-1, keepdims=True))
    scores = F.where(kept.known, F.broadcast_sub(scores, shift), F.log(F.zeros_like(scores)))
    tail = F.where(none_left, F.log(F.zeros_like(top)), rest + (top - shift))
    return F.concat(scores, tail, dim=-1)


def log_softmax_of_few(F: Any, scores: Any) -> Any:
    """The log-softmax of what `read` returns, whose largest number is 0, with more digits than MXNet's own."""
    return F.broadcast_sub(scores, F.log(F.sum(F.exp(scores), axis=-1, keepdims=True)))


def cross_entropy(F: Any, pred: Any, label: Any, categories: Any, silent: Any, smoothing: float) -> Any:
    """The cross-entropy of each row, (rows, 1), with a share of `smoothing` spread over all categories.

    NaN if the label is not a class, except for a row that is `silent`.
    """
    known = is_category(F, label, categories)
    score = _take(F, pred, _flat_places(F, F.where(known, label, F.zeros_like(label)), categories))
    top, rest = log_sum(F, pred)
    below = top - score
    if smoothing:
        below = (1 - smoothing) * below + smoothing * (top - F.mean(pred, axis=-1, keepdims=True))
    return (rest + below) * nan_unless(F, known if silent is None else known + silent, score)


def broadcast_flag(F: Any, flag: Any, like: Any) -> Any:
    """A flag for each row in the shape and dtype of `like`; MXNet 1.7 requires equal dtypes."""
    column = F.slice(like, begin=(None, 0), end=(None, 1))
    return F.broadcast_like(F.where(flag, F.ones_like(column), F.zeros_like(column)), like)


def nan_unless(F: Any, condition: Any, like: Any) -> Any:
    """1 where the `condition` is 1, else NaN, in the shape and dtype of `like`."""
    one = F.where(condition, F.ones_like(like), F.zeros_like(like))
    return one / one


def probabilities(
    F: Any, value: Any, kept: Kept, space: str, temperature: float, tail: str,
) -> Any:
    """The teacher's probabilities of the kept categories: softened, as given, or scaled; 0 at empty places."""
    if space == "logits":
        low = F.zeros_like(value) + _LOW
        value = F.softmax(F.where(kept.known, value if temperature == 1 else value / temperature, low), axis=-1)
    elif space == "log_probs":
        value = F.exp(value)
    value = F.where(kept.known, value, F.zeros_like(value))
    if tail != "renormalize" or space == "logits":
        return value
    mass = F.sum(value, axis=-1, keepdims=True)
    return F.broadcast_div(value, F.where(kept.some, mass, F.ones_like(mass)))


def mass_left(F: Any, value: Any, kept: Kept, space: str) -> Any:
    """The teacher's probability of all categories that it did not keep, (rows, 1), in float64 and at least 0."""
    given = F.exp(value) if space == "log_probs" else value
    left = F.relu(1 - F.sum(F.where(kept.known, given, F.zeros_like(given)), axis=-1, keepdims=True))
    return F.where(kept.every, F.zeros_like(left), left)
