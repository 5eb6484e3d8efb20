r"""
Knowledge distillation: learning from a teacher
===============================================

A label says "this is a 7". A network that has seen many digits says more: "a 7, but it could pass for a 1, and
never for an 8". What it thinks of the wrong answers is knowledge too, and a small network can be taught with it.
That is *distillation* [1]_: a large **teacher** is trained once, and a small **student** learns to give the
teacher's probabilities, by making the divergence between the two small.

It pays most where there is little to learn from. Here students get to see two, five or twenty scans of each digit,
and are then tested on hundreds. Every comparison is run from five seeds, and every seed is shown.
"""

# %%
# Who may see what
# ----------------
#
# An experiment on learning is only as fair as its rules, so these come first. scikit-learn carries 1797 scans of
# handwritten digits [2]_, which are split once:
#
# * 600 scans are **held out**. Nobody learns from them, and it is on them that everybody is tested.
# * The **teacher**, a network of 85 thousand parameters, learns from all of the other 1197, with their labels.
# * A **student**, a network of 2.4 thousand, gets a few *rows* of those 1197, the same number of each digit. With
#   every row comes its label, or the teacher's scores for it, or both. Students that are compared have the same rows,
#   the same first weights and the same number of steps.
#
# So students differ in *what they are told* about the same scans, and in nothing else. What the teacher can add is
# what it has learned from the scans that the students do not see.

# sphinx_gallery_thumbnail_number = 2
import argparse
from pathlib import Path

import plots  # first: it says which Python this needs
from gluon_kl import DistillationLoss
from gluon_kl.metric import KLDivergence

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

parser = argparse.ArgumentParser(
    description="Distil a digit reader into a smaller one.")
option = parser.add_argument
option("--rows", type=int, nargs="+", default=[2, 5, 20], metavar="N",
       help="rows of each digit, one experiment per N (default: 2 5 20)")
option("--seeds", type=int, default=5,
       help="students of each kind (default: %(default)s)")
option("--steps", type=int, default=200,
       help="training steps per student (default: %(default)s)")
option("--hidden", type=int, default=32,
       help="hidden units of a student (default: %(default)s)")
option("--temperature", type=float, default=4.0,
       help="softens the teacher's opinion (default: %(default)s)")
option("--figures", type=Path, default=plots.FIGURES,
       help="folder for the figures (default: that of the project)")
options = parser.parse_args(None if "__file__" in globals() else [])
options.figures.mkdir(parents=True, exist_ok=True)
T = options.temperature
plt.style.use(plots.STYLE)


def load_scans():
    """Load scans, pixels from 0 to 1, and digits; 600 are held out."""
    scans, digits = load_digits(return_X_y=True)
    return train_test_split(scans / 16, digits, test_size=600,
                            stratify=digits, random_state=0)


scans, held_out_scans, digits, held_out_digits = load_scans()
print(f"to learn from: {len(scans)} scans")
print(f"held out: {len(held_out_scans)} scans")

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
#
# .. admonition:: Coming from gluon-cv?
#
#    Order and defaults of the arguments are those of its ``DistillationSoftmaxCrossEntropyLoss``, and so are the
#    gradients; the value is smaller by the entropy of the teacher, so that 0 means agreement. Its scripts soften the
#    teacher's scores themselves and hand over the probabilities. Say so with ``teacher_space="probs"``, and the rest of
#    the script stays as it is. Both ways are tried below.


def make_network(*hidden):
    """Build a network from the 64 pixels of a scan to 10 raw scores."""
    net = gluon.nn.HybridSequential()
    for units in hidden:
        net.add(gluon.nn.Dense(units, activation="relu"))
    net.add(gluon.nn.Dense(10))
    net.cast("float64")
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def make_loss(temperature, hard_weight, **more):
    """Make a hybridized DistillationLoss."""
    loss = DistillationLoss(temperature, hard_weight, **more)
    loss.hybridize(static_alloc=True, static_shape=True)
    return loss


def fit(net, loss, scans, digits, teacher_scores, steps, rate, seed):
    """Train on scans with their digits and a teacher's scores.

    A step sees 50 rows, or all if there are fewer.
    """
    trainer = gluon.Trainer(
        net.collect_params(), "adam", {"learning_rate": rate})
    arrays = [array(x) for x in (scans, digits, teacher_scores)]
    size = min(50, len(scans))
    random = np.random.RandomState(seed)
    epochs = steps * size // len(scans) + 1
    order = np.concatenate([
        random.permutation(len(scans)) for _ in range(epochs)])
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


def array(x):
    """Make an MXNet array of 64-bit numbers."""
    return nd.array(x, dtype="float64")


def accuracy(scores):
    """Share of the held-out scans that scores read rightly."""
    return np.mean(scores.argmax(axis=1) == held_out_digits)


# %%
# ``check_inputs`` looks at the first batch and raises an error that names the likely mistake, such as probabilities
# where scores belong, or a class for which there is no score. Later batches are made the same way, and are not looked
# at again.
#
# (64-bit numbers are for this page only: round-off is then too small to show, and every machine prints the same.)
#
# gluon-cv's way and the shorter one give the same:

scores = np.array([[5.0, 1.0, 0.0], [0.0, 2.0, 4.0]])
pred, label = array([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), array([0, 2])
soft_target = (array(scores) / T).softmax()  # as in gluon-cv's scripts
theirs = DistillationLoss(T, 0.5, teacher_space="probs")
ours = DistillationLoss(T, 0.5)
print(theirs(pred, label, soft_target).asnumpy().round(4))
print(ours(pred, label, array(scores)).asnumpy().round(4))

# %%
# The teacher
# -----------

mx.random.seed(0)
teacher = make_network(256, 256)
nobody = np.zeros((len(scans), 10))  # no teacher taught the teacher
fit(teacher, make_loss(1.0, hard_weight=1.0), scans, digits, nobody,
    steps=500, rate=0.001, seed=0)

teacher_scores = teacher(array(scans)).asnumpy()
teacher_held_out = teacher(array(held_out_scans)).asnumpy()
seen = np.mean(teacher_scores.argmax(axis=1) == digits)
print(f"seen scans read rightly: {seen:.1%}")
print(f"held-out scans read rightly: {accuracy(teacher_held_out):.1%}")

# %%
# What the teacher has to say
# ---------------------------
#
# The teacher has learned its 1197 rows by heart, and its probabilities for them are nearly the labels again: what it
# thinks of the other nine digits is squeezed into one percent. Dividing the scores by a *temperature* :math:`T` before
# the softmax brings it out. These are the scans of a 1, a 5 and a 9 that it is least sure of:

ranked = np.sort(teacher_scores, axis=1)
lead = ranked[:, -1] - ranked[:, -2]
unsure = [min(np.flatnonzero(digits == digit), key=lead.__getitem__)
          for digit in (1, 5, 9)]
cold, warm = (array(teacher_scores).softmax(temperature=t).asnumpy()
              for t in (1, T))

fig, grid = plt.subplots(
    3, 2, figsize=(5, 6.2), gridspec_kw={"width_ratios": [1, 3]})
fig.suptitle("The teacher's opinion, at two temperatures")
for (scan, bars), row in zip(grid, unsure):
    plots.draw_image(scan, scans[row].reshape(8, 8))
    scan.set_title(f"label: {digits[row]}")
    names = ("T = 1", f"T = {T:g}") if row == unsure[0] else None
    plots.draw_distributions(bars, range(10), cold[row], warm[row], names)
grid[-1, 1].set_xlabel("digit")
fig.savefig(options.figures / "distillation_teacher.png", **plots.PNG)

print("probability of all but the first choice")
for t, opinion in ((1, cold), (T, warm)):
    print(f"T = {t:g}: {1 - opinion.max(axis=1).mean():.1%}")

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

STUDENTS = {
    "labels alone": make_loss(T, hard_weight=1.0),
    "teacher alone": make_loss(T, hard_weight=0.0),
    "both": make_loss(T, hard_weight=0.5),
}


def few_rows(each, seed):
    """Draw rows at random, `each` of every digit."""
    random = np.random.RandomState(seed)
    members = [np.flatnonzero(digits == digit) for digit in range(10)]
    return np.concatenate([
        random.choice(rows, each, replace=False) for rows in members])


def distance_to_teacher(scores):
    """Average KL(teacher || student) over held-out scans, in nats."""
    metric = KLDivergence(from_logits=False, label_space="logits")
    metric.update(array(teacher_held_out), array(scores))
    return metric.get()[1]


def teach(loss, rows, seed, teacher_scores=teacher_scores):
    """Train a student on `rows`; give its accuracy and distance."""
    mx.random.seed(seed)
    student = make_network(options.hidden)
    fit(student, loss, scans[rows], digits[rows], teacher_scores[rows],
        options.steps, rate=0.01, seed=seed)
    scores = student(array(held_out_scans)).asnumpy()
    return accuracy(scores), distance_to_teacher(scores)


seeds = range(options.seeds)
runs = [(i, name, seed) for i in range(len(options.rows))
        for name in STUDENTS for seed in seeds]
results = {name: np.zeros((len(options.rows), options.seeds, 2))
           for name in STUDENTS}
for i, name, seed in tqdm(runs, unit="student", disable=None):
    rows = few_rows(options.rows[i], seed)
    results[name][i, seed] = teach(STUDENTS[name], rows, seed)

print("rows told by         mean  worst   best")
for i, each in enumerate(options.rows):
    for name, values in results.items():
        right = values[i, :, 0]
        print(f"{each:4} {name:13} {right.mean():6.1%} "
              f"{right.min():6.1%} {right.max():6.1%}")

# %%
# On two rows of each digit the teacher's opinion does what labels do on five, and on five nearly what labels do on
# twenty. Adding the labels to it changes little: the teacher is right about nearly all of these rows, so its opinion
# has the label in it.
#
# Is it the teacher, or only the softness?
# ----------------------------------------
#
# Labels that are merely softened can help too, though there is nothing to be learned from them [3]_. So here are two
# more students of the middle experiment. One learns from labels that are softened *evenly*, with nine tenths for the
# right digit and a hundredth for every digit; no teacher had a hand in them. The other learns from the teacher, but at
# :math:`T = 1`.

middle = len(options.rows) // 2
even_scores = np.log(0.9 * np.eye(10)[digits] + 0.01)


def teach_all(loss, teacher_scores):
    """Teach one student per seed on the middle number of rows."""
    rows = [few_rows(options.rows[middle], seed) for seed in seeds]
    return np.array([
        teach(loss, rows[seed], seed, teacher_scores)
        for seed in tqdm(seeds, unit="student", disable=None)])


at_one = make_loss(1.0, hard_weight=0.0)
compared = {
    "labels": results["labels alone"][middle],
    "softened labels": teach_all(at_one, even_scores),
    "teacher, T = 1": teach_all(at_one, teacher_scores),
    f"teacher, T = {T:g}": results["teacher alone"][middle],
}
print(f"{options.rows[middle]} rows of each digit")
for name, values in compared.items():
    right, nats = values.mean(axis=0)
    print(f"{name:15} {right:6.1%}, {nats:.2f} nats off")

# %%
# Even softness teaches nothing here, so it is the teacher; and without the temperature most of what it knows stays
# unsaid.
#
# The other way round
# -------------------
#
# KL(teacher ‖ student) makes the student cover everything that the teacher holds possible. With
# ``divergence="reverse_kl"`` it is KL(student ‖ teacher), under which a student may pass over some of it but should not
# say what the teacher would not. With ``"js"`` it is the Jensen-Shannon divergence of :class:`~gluon_kl.JSDivLoss`, and
# ``beta`` leads from the one to the other. They are made for students too small to cover their teacher, which is common
# where words are generated [4]_. With ten digits there is room for everything:

turned = {
    "KL(teacher ‖ student)": results["teacher alone"][middle],
    "KL(student ‖ teacher)": teach_all(
        make_loss(T, 0.0, divergence="reverse_kl"), teacher_scores),
    "Jensen-Shannon": teach_all(
        make_loss(T, 0.0, divergence="js"), teacher_scores),
}
for name, values in turned.items():
    right, nats = values.mean(axis=0)
    print(f"{name:21} {right:6.1%}, {nats:.2f} nats off")

# %%
# Scans without labels
# --------------------
#
# Labels cost money, scans often do not. A teacher needs no label to give its opinion, so a student can also be taught
# on the rows that nobody labelled for it. This one is told about all 1197, and never sees a label. (The labels did go
# into the teacher: this student shows what *passes through* a teacher, not how to do without labels.)

everything = np.arange(len(scans))
all_scans = np.array([
    teach(STUDENTS["teacher alone"], everything, seed)
    for seed in tqdm(seeds, unit="student", disable=None)])

right = all_scans[:, 0]
print(f"taught on {len(scans)} scans: {right.mean():.1%}")
print(f"worst and best seed: {right.min():.1%}, {right.max():.1%}")

# %%
# All results
# -----------
#
# Each dot is one student, each line the mean of its kind. Below, how far the students are from what they were not
# told: :class:`~gluon_kl.metric.KLDivergence` between the teacher's and the student's opinion of the held-out scans.

fig, (top, bottom) = plt.subplots(2, 1, figsize=(5, 7.4), sharex=True)
fig.suptitle("Taught by labels, by a teacher, by both")
for ax, kind in ((top, 0), (bottom, 1)):
    plots.draw_seeds(ax, options.rows, {
        name: values[:, :, kind] for name, values in results.items()})
reached = accuracy(teacher_held_out)
plots.draw_level(top, reached, "the teacher itself", ":")
plots.draw_level(top, right.mean(), "taught on all scans", "-",
                 side="below")
top.set_ylabel("read rightly (held out)")
top.yaxis.set_major_formatter("{x:.0%}")
top.legend(loc="lower right")
bottom.set_ylim(bottom=0)
bottom.set_ylabel("nats from the teacher")
bottom.set_xlabel("rows of each digit that the student sees")
fig.savefig(options.figures / "knowledge_distillation.png", **plots.PNG)

# %%
# And in one number, seed by seed on equal rows and equal first weights: how much more of the held-out scans is read by
# the student that learned from the teacher.

gain = results["teacher alone"] - results["labels alone"]
gain = 100 * gain[middle, :, 0]
print(f"gain with {options.rows[middle]} rows of each digit:")
print(f"{gain.mean():.1f} points, {gain.min():.1f} to {gain.max():.1f}")

# %%
# What to take away
# -----------------
#
# * Train the big network once, then teach the small one with ``DistillationLoss(temperature=4)``. Scores go in on
#   both sides, no softmax of your own; if the teacher's softmax is there already, say ``teacher_space="probs"``.
# * Temperature is not decoration. Where the teacher is nearly sure of everything, :math:`T = 1` hides what it knows.
# * ``hard_weight`` is the share of the labels, a half if nothing is said. It matters where the teacher errs; with a
#   good teacher it changes little.
# * A teacher can label anything. Give the student more to read.
# * The gain shrinks as labels grow in number: with enough of them, labels alone will do.
#
# .. rubric:: Sources
#
# .. [1] G. Hinton, O. Vinyals and J. Dean, `Distilling the Knowledge in a Neural Network
#    <https://arxiv.org/abs/1503.02531>`__, 2015.
# .. [2] E. Alpaydin and C. Kaynak, `Optical Recognition of Handwritten Digits
#    <https://doi.org/10.24432/C50P49>`__, UCI Machine Learning Repository, 1998.
# .. [3] C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens and Z. Wojna, `Rethinking the Inception Architecture for Computer
#    Vision <https://arxiv.org/abs/1512.00567>`__, 2016.
# .. [4] R. Agarwal et al., `On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes
#    <https://arxiv.org/abs/2306.13649>`__, 2024.
