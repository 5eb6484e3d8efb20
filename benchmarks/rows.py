"""What is measured: the forms of the losses, the rows of the tables, and the arrays that every competitor gets."""

from typing import NamedTuple, Tuple

import numpy as np

TEMPERATURE = 4.0
HARD_WEIGHT = 0.5
SKEW = 0.1
KEPT = 64  # categories of a stored teacher


class Form(NamedTuple):
    """A loss and the kinds of its inputs, in order; the first `followed` of them receive gradients."""

    title: str
    inputs: Tuple[str, ...]
    followed: int = 1


FORMS = {
    "kl": Form("KLDivLoss", ("logits", "probs")),
    "kl-two-logits": Form("KLDivLoss, two logits", ("logits", "logits")),
    "kl-none": Form("KLDivLoss, no reduction", ("logits", "probs")),
    "kl-rows": Form("KLDivLoss, for each row", ("logits", "probs")),
    "kl-row-weights": Form("KLDivLoss, row weights", ("logits", "probs", "row_weights")),
    "kl-element-weights": Form("KLDivLoss, element weights", ("logits", "probs", "weights")),
    "skew-kl": Form("KLDivLoss, skew 0.1", ("logits", "probs")),
    "reverse-kl": Form("ReverseKLDivLoss", ("logits", "probs")),
    "js": Form("JSDivLoss", ("logits", "probs")),
    "distillation-index": Form("DistillationLoss, class index", ("logits", "index", "logits")),
    "distillation-dense": Form("DistillationLoss, dense label", ("logits", "probs", "logits")),
    "distillation-tv": Form("DistillationLoss, total variation", ("logits", "index", "logits")),
    "top-k": Form("TopKDistillationLoss, k = 64", ("logits", "index", "kept_index", "kept_log_probs")),
    "gaussian": Form("GaussianKLLoss", ("logits", "log_variance"), followed=2),
    "bernoulli": Form("BernoulliKLLoss", ("logits", "bernoulli")),
}


class Row(NamedTuple):
    """One form at one shape of pred.

    setting:
        leaf     the inputs are handed to the loss as they are
        parent   a hybridized block of the user's multiplies pred by 2 and calls the loss
        layer    a layer multiplies what receives gradients by 2, as a network's output is computed too; what
                 counts is the step with the loss, less the same step that is handed those gradients
        trainer  a step of Dense(64, categories), the loss and an optimizer
    """

    form: str
    shape: Tuple[int, ...]
    setting: str = "layer"
    axis: int = -1

    @property
    def size(self):
        return "×".join(map(str, self.shape)) + ("" if self.axis == -1 else f", axis {self.axis}")

    @property
    def result_shape(self):
        return {"kl-none": self.shape, "kl-rows": self.shape[:-1]}.get(self.form, self.shape[:1])

    @property
    def title(self):
        return FORMS[self.form].title + {"parent": ", in a parent", "trainer": ", step with Dense and Trainer"}.get(
            self.setting, "")

    @property
    def name(self):
        return f"{self.form}-{self.setting}-{'x'.join(map(str, self.shape))}"


FAMILY = [
    Row("distillation-index", (256, 1000)),
    Row("distillation-index", (64, 50257)),
    Row("distillation-dense", (256, 1000)),
    Row("distillation-dense", (64, 50257)),
    Row("distillation-tv", (256, 1000)),
    Row("top-k", (64, 50257)),
    Row("gaussian", (256, 64)),
    Row("gaussian", (256, 4096)),
    Row("bernoulli", (256, 1000)),
    Row("js", (256, 1000)),
    Row("reverse-kl", (256, 1000)),
    Row("skew-kl", (256, 1000)),
    Row("kl-two-logits", (256, 1000)),
    Row("kl-none", (256, 1000)),
    Row("kl-rows", (8, 32, 1000)),
    Row("kl-element-weights", (256, 1000)),
    Row("kl", (256, 1000), "parent"),
    Row("kl-row-weights", (256, 1000), "parent"),
    Row("kl", (128, 10), "trainer"),
]
SHAPES = [
    Row("kl", (128, 10)),
    Row("kl", (4096, 10)),
    Row("kl", (1024, 1000)),
    Row("kl", (256, 32000)),
    Row("kl", (64, 128256)),
    Row("kl", (8192, 1000)),
    Row("kl", (8, 21, 256, 256), axis=1),
    Row("kl", (1024, 1000), "leaf"),
]
MEMORY = [
    *(Row(form, (2048, 50257)) for form in FORMS if form not in ("kl-rows", "kl-row-weights")),
    Row("kl", (2048, 50257), "parent"),
    Row("kl-row-weights", (2048, 50257), "parent"),
]


def smaller(row):
    """The row at a tiny shape, for a run that only shows that everything works."""
    return row._replace(shape=tuple(min(size, limit) for size, limit in zip(row.shape, (16, 64, 4, 4))))


def inputs(row):
    """The arrays of a row, the same in every process: float32, class indices int32."""
    rng = np.random.RandomState(0)
    return [_draw(rng, kind, row) for kind in FORMS[row.form].inputs]


def layer_inputs(row):
    """Input, weight and bias of the Dense layer of a row whose setting is "trainer"."""
    rng = np.random.RandomState(1)
    (batch, categories), width = row.shape, 64
    x, weight = rng.standard_normal((batch, width)), rng.standard_normal((categories, width)) / 8
    return [array.astype("float32") for array in (x, weight, np.zeros(categories))]


def _stored_teacher(row):
    """The best categories of each row, and the logarithms of their softened probabilities."""
    teacher = np.random.RandomState(2).standard_normal(row.shape).astype("float32") / np.float32(TEMPERATURE)
    kept = min(KEPT, row.shape[-1] // 2)
    index = np.argpartition(-teacher, kept, -1)[:, :kept]
    log_sum = np.log(np.exp(teacher).sum(-1, keepdims=True))
    return index.astype("int32"), np.take_along_axis(teacher, index, -1) - log_sum


def _draw(rng, kind, row):
    shape, axis = row.shape, row.axis
    if kind.startswith("kept"):
        return _stored_teacher(row)[kind == "kept_log_probs"]
    if kind == "index":
        return rng.randint(0, shape[axis], size=shape[0]).astype("int32")
    if kind == "row_weights":
        return rng.uniform(0.5, 1.5, size=(*shape[:-1], 1)).astype("float32")
    # Large arrays repeat a few million random numbers, because drawing more would take longer than the benchmark.
    count = min(int(np.prod(shape)), 1 << 22)
    if kind in ("weights", "bernoulli"):
        low, high = (0.5, 1.5) if kind == "weights" else (0.01, 0.99)
        return np.resize(rng.uniform(low, high, size=count).astype("float32"), shape)
    array = np.resize(rng.standard_normal(count).astype("float32"), shape)
    if kind == "probs":
        np.exp(array, out=array)
        array /= array.sum(axis=axis, keepdims=True)
    return array
