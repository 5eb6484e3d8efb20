r"""
Knowledge distillation: learning from a teacher
===============================================

A label says "this is a 7". A network that has seen many digits says more: "a 7, but it could pass for a 1, and
never for an 8". What it thinks of the wrong answers is knowledge too, and a small network can be taught with it.
That is *distillation* [1]_: a large **teacher** is trained once, and a small **student** learns to give the
teacher's probabilities, by making the divergence between the two small.

It pays most where labels are few. Here students get five labelled scans of each digit and are asked to read the
rest. Every number and figure below comes from the code above it; each comparison is run from several seeds.
"""

# %%
# Who may see what
# ----------------
#
# An experiment on learning is only as fair as its rules, so these come first. scikit-learn carries 1797 scans of
# handwritten digits [2]_, which are split once:
#
# * 600 scans are **held out**. Nobody learns from them; every accuracy on this page is theirs.
# * The **teacher**, a large network, learns from all of the other 1197, with their labels.
# * A **student**, a small network, gets a few *rows* of those 1197, the same number of each digit. With every row
#   comes its label, or the teacher's scores for it, or both. The students that are compared have the same rows, the
#   same first weights and the same number of steps.
#
# So students differ in *what they are told* about the same scans, and in nothing else. The teacher is no better
# informed about those scans than the labels are, but it has seen others.

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import plots
from gluon_kl import DistillationLoss, KLDivLoss
from gluon_kl.metric import KLDivergence

parser = argparse.ArgumentParser(description="Distil a digit reader into a smaller one, from few labelled rows.")
parser.add_argument("--rows", type=int, nargs="+", default=[2, 5, 20], metavar="N",
                    help="labelled rows of each digit, one experiment per number (default: 2 5 20)")
parser.add_argument("--seeds", type=int, default=5, help="students of each kind (default: %(default)s)")
parser.add_argument("--steps", type=int, default=200, help="training steps per student (default: %(default)s)")
parser.add_argument("--hidden", type=int, default=32, help="hidden units of a student (default: %(default)s)")
parser.add_argument("--temperature", type=float, default=4.0, help="softens the teacher (default: %(default)s)")
parser.add_argument("--figures", type=Path, default=plots.FIGURES, help="folder for the figures")
options = parser.parse_args(None if __name__ == "__main__" else [])
plt.style.use(plots.STYLE)


def load_scans():
    """Load the scans, with pixels from 0 to 1, and their digits: those to learn from, and 600 held out."""
    scans, digits = load_digits(return_X_y=True)
    return train_test_split(scans / 16, digits, test_size=600, stratify=digits, random_state=0)


T = options.temperature
scans, held_out_scans, digits, held_out_digits = load_scans()
print(f"{len(scans)} scans to learn from, {len(held_out_scans)} held out")

# %%
# One loss for everybody
# ----------------------
#
# :class:`~gluon_kl.DistillationLoss` is called as ``loss(pred, label, teacher_pred)`` and mixes two wishes. With
# :math:`z` for the student's scores, :math:`t` for the teacher's and :math:`\alpha` for ``hard_weight`` it is
#
# .. math:: \alpha \, \mathrm{CE}(\text{label}, z) + (1-\alpha) \, T^2 \, \mathrm{KL}(p_t \| p_z)
#
# where :math:`p_t = \mathrm{softmax}(t/T)` and :math:`p_z = \mathrm{softmax}(z/T)`. The first part wants the right
# answer, the second the teacher's opinion. ``hard_weight=1`` is plain cross-entropy, so the same loop trains the
# teacher and every student.


def make_network(*hidden):
    """Build a network from the 64 pixels of a scan to 10 raw scores."""
    net = gluon.nn.HybridSequential()
    net.add(*(gluon.nn.Dense(units, activation="relu") for units in hidden), gluon.nn.Dense(10))
    net.cast("float64")  # for this page only: every machine prints the same
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def make_loss(temperature, hard_weight):
    """Make a hybridized DistillationLoss."""
    loss = DistillationLoss(temperature=temperature, hard_weight=hard_weight)
    loss.hybridize(static_alloc=True, static_shape=True)
    return loss


def fit(loss, hidden, scans, digits, teacher_scores, steps, seed, batch_size=50, rate=0.01):
    """Train a new network on rows of scans, with class indices or teacher's scores or both; return it."""
    mx.random.seed(seed)
    net = make_network(*hidden)
    trainer = gluon.Trainer(net.collect_params(), "adam", {"learning_rate": rate})
    arrays = [nd.array(x, dtype="float64") for x in (scans, digits, teacher_scores)]
    size = min(batch_size, len(scans))
    random = np.random.RandomState(seed)
    epochs = steps * size // len(scans) + 1
    order = np.concatenate([random.permutation(len(scans)) for _ in range(epochs + 1)])
    for step in range(steps):
        rows = nd.array(order[step * size:(step + 1) * size])
        inputs, labels, targets = (x.take(rows) for x in arrays)
        with autograd.record():
            pred = net(inputs)
            values = loss(pred, labels, targets)
        if step == 0:
            loss.check_inputs(pred, labels, targets)
        values.backward()
        trainer.step(size)
    return net


def scores_of(net, scans):
    """Give a network's raw scores for scans, shape (scans, 10)."""
    return net(nd.array(scans, dtype="float64")).asnumpy()


def accuracy(scores):
    """Share of the held-out scans that scores read rightly."""
    return np.mean(scores.argmax(axis=1) == held_out_digits)


# %%
# ``check_inputs`` looks at the first batch and raises an error that names the likely mistake, such as probabilities
# where scores belong, or a class for which there is no score. Later batches are made the same way, and are not looked
# at again.
#
# The teacher
# -----------

nobody = np.zeros((len(scans), 10))  # there is no teacher to listen to yet
teacher = fit(make_loss(T, 1.0), (256, 256), scans, digits, nobody, steps=500, seed=0, rate=0.001)

teacher_scores, teacher_held_out = scores_of(teacher, scans), scores_of(teacher, held_out_scans)
student_size, teacher_size = ((64 + 1) * n + (n + 1) * 10 + k for n, k in ((options.hidden, 0), (256, 257 * 256)))
print(f"teacher: {teacher_size} parameters, {accuracy(teacher_held_out):.1%} of the held-out scans read rightly")
print(f"student: {student_size} parameters")

# %%
# What the teacher has to say
# ---------------------------
#
# The teacher has learned its 1197 rows by heart, and its probabilities for them are nearly the labels again: what it
# thinks of the other nine digits is squeezed into one percent. Dividing the scores by a *temperature* :math:`T` before
# the softmax brings it out. These are the scans of a 1, a 5 and a 9 that it is least sure of:

ranked = np.sort(teacher_scores, axis=1)
lead = ranked[:, -1] - ranked[:, -2]
hesitant = [min(np.flatnonzero(digits == digit), key=lead.__getitem__) for digit in (1, 5, 9)]
by_temperature = [nd.softmax(nd.array(teacher_scores, dtype="float64"), temperature=t).asnumpy()
                  for t in (1, T)]

fig, grid = plt.subplots(3, 2, figsize=(6.4, 7.2), gridspec_kw={"width_ratios": [1, 3]})
fig.suptitle("The teacher's opinion, at two temperatures")
for (scan, bars), row in zip(grid, hesitant):
    plots.draw_scan(scan, scans[row].reshape(8, 8))
    scan.set_title(f"label: {digits[row]}")
    names = ["T = 1", f"T = {T:g}"]
    plots.draw_distributions(bars, range(10), by_temperature[0][row], by_temperature[1][row], names)
fig.savefig(options.figures / "distillation_teacher.png", **plots.PNG)

for temperature, probabilities in zip((1, T), by_temperature):
    print(f"T = {temperature:g}: {1 - probabilities.max(axis=1).mean():.4f} of the probability is not on the first choice")

# %%
# A higher temperature also flattens the slope of the divergence, by :math:`1/T^2`. That is what the factor
# :math:`T^2` in the loss is for: it keeps the soft part as loud as the hard part, so ``hard_weight`` means the same
# at every temperature.
#
# Three students
# --------------
#
# All are told about the same rows: the first by the labels, the second by the teacher, the third by both. Every seed
# draws rows and first weights of its own.


def few_rows(digits, each, seed):
    """Draw rows at random, `each` of every digit."""
    random = np.random.RandomState(seed)
    return np.concatenate([random.choice(np.flatnonzero(digits == digit), each, replace=False) for digit in range(10)])


STUDENTS = {
    "labels alone": make_loss(T, 1.0),
    "teacher alone": make_loss(T, 0.0),
    "both": make_loss(T, 0.5),
}


def distance_to_teacher(scores):
    """Average KL(teacher || student) over the held-out scans, in nats."""
    metric = KLDivergence(from_logits=False, label_space="logits")
    metric.update(nd.array(teacher_held_out, dtype="float64"), nd.array(scores, dtype="float64"))
    return metric.get()[1]


def train_student(loss, rows, seed, teacher_scores=teacher_scores):
    """Train a student on `rows` alone; return its held-out accuracy and distance to the teacher."""
    net = fit(loss, (options.hidden,), scans[rows], digits[rows], teacher_scores[rows], options.steps, seed)
    scores = scores_of(net, held_out_scans)
    return accuracy(scores), distance_to_teacher(scores)


# {name: array of shape (numbers of rows, seeds, 2)}, the last axis being accuracy and distance
results = {name: np.zeros((len(options.rows), options.seeds, 2)) for name in STUDENTS}
with tqdm(total=len(options.rows) * options.seeds * len(STUDENTS), unit="student", disable=None) as bar:
    for i, each in enumerate(options.rows):
        for seed in range(options.seeds):
            for name, loss in STUDENTS.items():
                results[name][i, seed] = train_student(loss, few_rows(digits, each, seed), seed)
                bar.update()

print("rows of each digit, told by        accuracy: mean, worst and best seed")
for i, each in enumerate(options.rows):
    for name, values in results.items():
        reached = values[i, :, 0]
        print(f"{each:18}  {name:13}  {reached.mean():19.1%}  {reached.min():.1%} to {reached.max():.1%}")

# %%
# The teacher's words are worth several times as many labels. Adding the labels to them changes little: the teacher
# is right about nearly all of these rows, so its opinion has the label in it.
#
# Is it the teacher, or only the softness?
# ----------------------------------------
#
# Soft labels are known to help a little even if they carry nothing. So here are two more students of the middle
# experiment. One learns from labels that are softened *evenly*, nine tenths for the right digit and a hundredth for
# each; no teacher had a hand in them. The other learns from the teacher, but at :math:`T = 1`.

middle = len(options.rows) // 2
even_scores = np.log(0.9 * np.eye(10)[digits] + 0.01)
CONTROLS = {
    "softened labels": (make_loss(1.0, 0.0), even_scores),
    "teacher at T = 1": (make_loss(1.0, 0.0), teacher_scores),
}
controls = {
    name: np.array([train_student(loss, few_rows(digits, options.rows[middle], seed), seed, scores)
                    for seed in range(options.seeds)])
    for name, (loss, scores) in CONTROLS.items()
}

compared = {"labels alone": results["labels alone"][middle], **controls, f"teacher at T = {T:g}": results["teacher alone"][middle]}
print(f"{options.rows[middle]} rows of each digit")
for name, values in compared.items():
    print(f"{name:17}  {values[:, 0].mean():.1%} right, {values[:, 1].mean():.2f} nats from the teacher")

# %%
# Even softness teaches nothing here, so it is the teacher; and without the temperature most of what it knows stays
# unsaid.
#
# Scans without labels
# --------------------
#
# Labels cost money, scans often do not. A teacher needs no label to give its opinion, so a student can also be taught
# on the rows that nobody labelled for it. This one is told about all 1197, and never sees a label. (The labels did go
# into the teacher: this student shows what *passes through* a teacher, not how to do without labels.)

everything = np.arange(len(scans))
pool = np.array([train_student(STUDENTS["teacher alone"], everything, seed) for seed in range(options.seeds)])
print(f"teacher's opinion on {len(scans)} scans: {pool[:, 0].mean():.1%} right, "
      f"{pool[:, 0].min():.1%} to {pool[:, 0].max():.1%}")

# %%
# All results
# -----------
#
# Each dot is one student, each line the mean of its kind. Below, how far the students are from what they were not
# told: :class:`~gluon_kl.metric.KLDivergence` between the teacher's and the student's opinion of the held-out scans.

fig, (top, bottom) = plt.subplots(2, 1, figsize=(6.4, 8), sharex=True)
fig.suptitle("Taught by labels, by a teacher, by both")
for ax, measure in ((top, 0), (bottom, 1)):
    plots.draw_seeds(ax, options.rows, {name: values[:, :, measure] for name, values in results.items()})
top.axhline(accuracy(teacher_held_out), color="black", linewidth=1.2, linestyle=":", label="the teacher itself")
top.axhline(pool[:, 0].mean(), color="black", linewidth=1.2, label="student, all scans, no labels")
top.set_ylabel("read rightly (held out)")
top.yaxis.set_major_formatter("{x:.0%}")
top.legend(loc="lower right")
bottom.set_ylabel("nats from the teacher")
bottom.set_ylim(bottom=0)
bottom.set_xlabel("rows of each digit that the student sees")
fig.savefig(options.figures / "knowledge_distillation.png", **plots.PNG)

# %%
# And in one number, seed by seed on equal rows and equal first weights: how much more of the held-out scans the student
# reads that learned from the teacher.

gain = (results["teacher alone"] - results["labels alone"])[middle, :, 0]
print(f"gain at {options.rows[middle]} rows of each digit: {100 * gain.mean():.1f} points, "
      f"{100 * gain.min():.1f} to {100 * gain.max():.1f}")

# %%
# What to take away
# -----------------
#
# * Train the big network once, then teach the small one with ``DistillationLoss(temperature=4)``. Scores go in on
#   both sides, no softmax of your own.
# * Temperature is not decoration. Where the teacher is nearly sure of everything, :math:`T = 1` hides what it knows.
# * ``hard_weight`` adds the labels. It matters where the teacher errs; with a good teacher it changes little.
# * A teacher can label anything. Give the student more to read.
# * The gain shrinks as labels grow in number: with enough of them, labels alone will do.
#
# .. rubric:: Sources
#
# .. [1] G. Hinton, O. Vinyals and J. Dean, `Distilling the Knowledge in a Neural Network
#    <https://arxiv.org/abs/1503.02531>`__, 2015.
# .. [2] E. Alpaydin and C. Kaynak, `Optical Recognition of Handwritten Digits
#    <https://doi.org/10.24432/C50P49>`__, UCI Machine Learning Repository, 1998.
