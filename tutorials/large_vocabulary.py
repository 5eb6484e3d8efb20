r"""
Soft labels at scale
====================

**You will learn** what a step of the loss costs at 32,000 categories, how to learn from a teacher of which only the
best categories were stored, with :class:`~gluon_kl.TopKDistillationLoss`, and how many categories are enough.

.. image:: ../../figures/large_vocabulary.png
   :alt: Bars for a teacher of which 4, 16, 64 or all tokens were stored. The more tokens, the more memory and the more
         accurate the student: with 64 of 4,000 tokens it is six points less accurate than with all.
   :class: first-figure

A language model chooses among tens of thousands of tokens. When a small one learns from a large one, each position of
each text has a whole distribution as its label: 320 positions are ten million numbers for the student, and as many for
the teacher. Then the loss takes much memory and time, and the distributions of the teacher are too large to store.

There is no language model on this page. The logits are **synthetic**: random numbers with the two properties that
matter here. A few tokens are likely, and there is a long tail.
"""

# %%
# One step
# --------
# First measure the loss alone: its value for a batch, and the gradient with respect to ``pred``. With
# ``reduction="sum"`` the two losses below compute the same.

import re
import statistics
import time
from pathlib import Path

import plots  # names any missing package
from gluon_kl import DistillationLoss, KLDivLoss
from gluon_kl import TopKDistillationLoss
from gluon_kl import native
from gluon_kl.metric import Agreement
from gluon_kl.metric import KLDivergence

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from tqdm import tqdm

plt.style.use(plots.STYLE)

sizes = plots.options(
    "A large vocabulary, and a stored teacher.",
    categories=(32000, "of the measured step"),
    rows=(320, "of that step"),
    turns=(3, "timed steps of each loss"),
    tokens=(4000, "categories of the training"),
    kept=([4, 16, 64], "best tokens stored"),
    states=(2048, "that the teacher has seen"),
    steps=(160, "training steps of a student"),
    batch=(64, "states of a training step"))


def make_losses():
    """MXNet's own and ours, of equal value."""
    own = gluon.loss.KLDivLoss(from_logits=False)
    ours = KLDivLoss(from_logits=False,
                     reduction="sum")
    own.hybridize()
    ours.hybridize()
    return {"MXNet's own": own, "gluon_kl": ours}


def make_inputs(rows, categories):
    """Logits, and rows of probabilities."""
    mx.random.seed(0)
    logits = nd.random.normal(
        shape=(rows, categories))
    label = nd.random.normal(
        shape=(rows, categories)).softmax()
    logits.attach_grad()
    logits.grad[:] = 0  # memory in use counts
    return logits, label


def take_step(loss, logits, label):
    """The loss of a batch, and its gradient."""
    with autograd.record():
        # as if a layer had made it
        pred = nd.identity(logits)
        value = loss(pred, label)
    value.backward()
    nd.waitall()
    return value


# %%
# The memory of a step is the peak memory of the process during the step, minus its memory before, and minus ``pred``
# and its gradient, which every loss needs. Linux counts it, and can reset its counter. The unit is the size of
# ``pred``. Time is processor time, so that other programs do not matter. The losses take turns, and the median counts.


def memory(kind):
    """Bytes, now (VmRSS) or at most (VmHWM)."""
    status = Path("/proc/self/status")
    found = re.search(kind + r":\s+(\d+) kB",
                      status.read_text())
    return 1024 * int(found.group(1))


def measure(losses, inputs, turns):
    """Copies of pred, and seconds, by name."""
    size = 4 * inputs[0].size
    peak = Path("/proc/self/clear_refs")
    copies = {name: [] for name in losses}
    seconds = {name: [] for name in losses}
    for turn in tqdm(range(turns + 1),
                     disable=None):
        for name, loss in losses.items():
            nd.waitall()
            time.sleep(0.2)  # MXNet frees late
            peak.write_text("5")
            before = memory("VmRSS")
            start = time.process_time()
            take_step(loss, *inputs)
            took = time.process_time() - start
            if turn == 0:
                continue  # it made the graphs
            seconds[name].append(took)
            held = memory("VmHWM") - before
            copies[name].append(
                max(held / size - 2, 0))
    return [{name: statistics.median(values)
             for name, values in found.items()}
            for found in (copies, seconds)]


copies, seconds = measure(
    make_losses(),
    make_inputs(sizes.rows, sizes.categories),
    sizes.turns)

why_not = native.why_not()
print("fused operator:", why_not or "in use")
print("              copies of pred   time")
for name in copies:
    print(f"{name:14} {copies[name]:12.1f}"
          f" {1000 * seconds[name]:7.0f} ms")

fig, (top, bottom) = plt.subplots(
    2, 1, figsize=(5, 3.2))
top.set_title(
    "Memory of a step, in copies of pred")
plots.draw_bars(
    top, copies, copies.values(), "%.1f")
bottom.set_title(
    "Processor time of a step, in ms")
plots.draw_bars(
    bottom, seconds,
    [1000 * s for s in seconds.values()],
    "%.0f")
fig.savefig(
    sizes.figures / "vocabulary_step.png",
    **plots.PNG)

# %%
# The times belong to the machine that made this page. The copies are much the same everywhere.
#
# MXNet's own loss is a chain of operators. Each leaves an array behind for the next one, or for the gradient. The fused
# operator of gluon_kl reads a row while it is in the processor's cache, and keeps two numbers of it for the gradient.
# (Without its fused operator, gluon_kl is a chain of operators too, and needs as much memory as MXNet's own loss.
# ``gluon_kl.native.why_not()`` says why the operator is missing.)
#
# A stored teacher
# ----------------
# A large teacher is slow, so it is run once. Its whole distributions, 32,000 numbers for each position, take more room
# than the texts. So only the *k* most likely tokens of each position and their probabilities are stored.
# :class:`~gluon_kl.TopKDistillationLoss` takes these two arrays instead of the teacher's logits:
# ``loss(pred, label, teacher_index, teacher_value)``.
#
# Here the teacher is a matrix. It turns 32 numbers, the state of a language model at some position, into the logits of
# 4,000 tokens. In addition each token has a bias that falls with its rank, as the frequencies of words do.


def make_teacher(tokens, random, width=32):
    """A function from states to logits."""
    matrix = random.standard_normal(
        (width, tokens), dtype="float32")
    matrix *= 2 / np.sqrt(width)
    matrix = nd.array(matrix)
    rank = np.arange(tokens)
    bias = nd.array(-np.log(rank + 10.0))
    return lambda states: (
        nd.dot(states, matrix) + bias)


def draw_states(count, random, width=32):
    return nd.array(random.standard_normal(
        (count, width), dtype="float32"))


def store(logits, k):
    """The k best tokens: indices, logarithms."""
    log_probs = nd.log_softmax(logits)
    value, index = nd.topk(
        log_probs, k=k, ret_typ="both",
        dtype="int32")
    return index, value


def make_loss(k=None, tail="bucket"):
    """For k stored tokens, or for all logits."""
    if k is None:
        loss = DistillationLoss(hard_weight=0)
    else:
        loss = TopKDistillationLoss(
            hard_weight=0, tail=tail)
    loss.hybridize()
    return loss


# %%
# With ``hard_weight=0`` there is no label but the teacher. The student has the teacher's form, and starts at zero.


def make_student(tokens, width=32):
    student = gluon.nn.Dense(
        tokens, in_units=width,
        weight_initializer="zeros")
    student.initialize()
    student.hybridize()
    # the biases have furthest to go
    student.bias.lr_mult = 4
    return student


def train(student, loss, states, stored, steps,
          batch):
    """Milliseconds of a step, the median."""
    rate = mx.lr_scheduler.CosineScheduler(
        steps, base_lr=0.03, final_lr=0.001)
    trainer = gluon.Trainer(
        student.collect_params(), "adam",
        {"learning_rate": 0.03,
         "lr_scheduler": rate})
    random = np.random.RandomState(0)
    took = []
    for _ in range(steps):
        start = time.process_time()
        rows = nd.array(random.randint(
            len(states), size=batch))
        inputs = states.take(rows)
        teacher = [x.take(rows) for x in stored]
        with autograd.record():
            pred = student(inputs)
            value = loss(pred, None, *teacher)
        value.backward()
        trainer.step(batch)
        nd.waitall()
        took.append(time.process_time() - start)
    return 1000 * statistics.median(took)


# %%
# Two metrics judge a student on states that it has not seen. :class:`~gluon_kl.metric.Agreement` is its accuracy here:
# the share of states for which its first choice is the teacher's. :class:`~gluon_kl.metric.KLDivergence` is its
# distance, KL(teacher ‖ student) over all tokens.


def judge(student, teacher, unseen):
    """Accuracy, and distance in nats."""
    metrics = Agreement(), KLDivergence(
        from_logits=False, label_space="logits")
    for metric in metrics:
        metric.update(
            teacher(unseen), student(unseen))
    return [m.get()[1] for m in metrics]


def learn(teacher, states, unseen, steps, batch,
          k=None, tail="bucket"):
    """Megabytes, ms, accuracy, distance."""
    logits = teacher(states)
    stored = store(logits, k) if k else [logits]
    megabytes = sum(4 * x.size for x in stored)
    megabytes /= 1e6
    student = make_student(logits.shape[1])
    took = train(student, make_loss(k, tail),
                 states, stored, steps, batch)
    return (megabytes, took,
            *judge(student, teacher, unseen))


random = np.random.default_rng(0)
teacher = make_teacher(sizes.tokens, random)
states = draw_states(sizes.states, random)
unseen = draw_states(512, random)
data = teacher, states, unseen
length = sizes.steps, sizes.batch

results = {
    f"k = {k}" if k else "all tokens":
        learn(*data, *length, k)
    for k in tqdm([*sizes.kept, None],
                  disable=None)}

print("               MB   step"
      " accuracy distance")
for name, found in results.items():
    megabytes, took, accuracy, distance = found
    print(f"{name:10} {megabytes:6.2f}"
          f" {took:3.0f} ms {accuracy:8.1%}"
          f" {distance:8.2f}")

fig, grid = plt.subplots(3, 1, figsize=(5, 5.6))
columns = list(zip(*results.values()))
panels = (
    ("Memory of the stored teacher, in MB",
     "%.2f"),
    ("Processor time of a training step, in ms",
     "%.1f"),
    ("Accuracy of the student", "%.2f"))
for ax, values, (title, form) in zip(
        grid, columns, panels):
    ax.set_title(title)
    plots.draw_bars(ax, results, values, form,
                    colors=[plots.FIRST])
fig.savefig(
    sizes.figures / "large_vocabulary.png",
    **plots.PNG)

# %%
# A stored token takes eight bytes, its index and its logarithm, so 64 tokens take a thirtieth of the memory of all. The
# student is six points less accurate than with all of them: it sees less of the teacher in as many steps.
#
# What was not stored
# -------------------
# The probabilities of the stored tokens do not add up to 1. The rest belongs to all other tokens together, and ``tail``
# says what the loss does with it:
#
# * ``"bucket"``, the default, compares it with what the student gives to all other tokens together.
# * ``"renormalize"`` scales the stored probabilities to 1, as if the others had none.
# * ``"drop"`` leaves it out. Many toolkits do this. The loss may be negative then.

middle = sizes.kept[len(sizes.kept) // 2]
tails = {
    tail: learn(*data, *length, middle, tail)
    for tail in tqdm(("renormalize", "drop"),
                     disable=None)}
tails["bucket"] = results[f"k = {middle}"]
print(f"k = {middle}       accuracy  distance")
for tail, found in tails.items():
    _, _, accuracy, distance = found
    print(f"{tail:12} {accuracy:7.1%}"
          f" {distance:9.2f}")

# %%
# The first choices are about equally good. But with the other two, the student learns that the stored tokens are all
# there is: both losses fall as long as any other token has probability left. With the bucket, it keeps the tail.
#
# Exercises
# ---------
#
# **1.** You may store four times as much as for k = 16. Is it better to keep k = 64, or to run the teacher on four
# times as many states?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>

more = draw_states(4 * sizes.states, random)
megabytes, _, accuracy, _ = learn(
    teacher, more, unseen, *length, middle)
print(f"k = {middle}, {len(more)} states:")
print(f"stored: {megabytes:.2f} MB")
print(f"accuracy: {accuracy:.1%}")

# %%
# The row of k = 64 in the table above takes the same memory and is more accurate: here more tokens are better. A state
# is only 32 numbers, and the first ones have shown nearly all that there is. Texts have more to show, so measure it.
#
# .. raw:: html
#
#    </details>
#
# **2.** The probabilities were stored at temperature 1. How do you distil at temperature 2?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>
#
# At temperature 2 the stored part of the softmax is known only up to a factor, so scale it to 1. Use the stored
# logarithms as logits:

index, value = store(teacher(unseen), middle)
loss = TopKDistillationLoss(
    temperature=2, hard_weight=0,
    tail="renormalize", teacher_space="logits")
pred = teacher(unseen)
out = loss(pred, None, index, value)
out = float(out.mean().asscalar())
print(f"loss of the teacher: {out:.2f}")

# %%
# The teacher took the place of the student here, and its loss is far from 0: at temperature 2 most of its probability
# lies in the tail, which is scaled away. To use the bucket at temperature 2, store ``log_softmax(logits / 2)``.
#
# .. raw:: html
#
#    </details>
#
# What to take away
# -----------------
#
# * At this size memory decides: the fused operator is fast because it writes no arrays in between.
# * Store the k best tokens of a teacher, not all: ``TopKDistillationLoss()(pred, label, index, log_probs)``.
# * The tail counts. ``tail="bucket"`` keeps it with one number.
# * ``reduction="sum"`` keeps the gradient independent of the size of the vocabulary. The mean divides it by 32,000.
