r"""
Soft labels at scale
====================

A language model chooses among tens of thousands of tokens. When one model learns from another, every position
of every text comes with a whole distribution as its label, and the loss, a footnote elsewhere, becomes a place
where memory and time are spent: at 32,000 categories, 320 positions are ten million numbers on either side.

This page first weighs the loss: memory and time of one step, MXNet's own beside ``KLDivLoss``. Then it trains
on such labels. There is no language model in it. The logits are **synthetic**, drawn from a random number
generator, with the two properties that matter here: few tokens are likely, and there is a long tail.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import plots  # first: it says which Python this needs
from gluon_kl import KLDivLoss, native

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from tqdm import tqdm

# There is no __file__ where sphinx-gallery runs this.
SCRIPT = Path(plots.__file__).with_name("large_vocabulary.py")
SUBJECTS = ["MXNet's own, eager", "gluon_kl, eager",
            "MXNet's own, hybridized", "gluon_kl, hybridized"]

parser = argparse.ArgumentParser(
    description="The loss at 32,000 categories: memory, time, a training.")
option = parser.add_argument
option("--categories", type=int, default=32000,
       help="tokens to choose from (default: %(default)s)")
option("--rows", type=int, default=320,
       help="rows of the step that is weighed (default: %(default)s)")
option("--turns", type=int, default=4,
       help="timed steps of each loss (default: %(default)s)")
option("--steps", type=int, default=200,
       help="of the training (default: %(default)s)")
option("--batch", type=int, default=32,
       help="rows per step of the training (default: %(default)s)")
option("--seed", type=int, default=0,
       help="of the training (default: %(default)s)")
option("--figures", type=Path, default=plots.FIGURES,
       help="folder for the figure (default: that of the project)")
option("--weigh", choices=SUBJECTS,
       help="only print the memory of one loss, for this page itself")
options = parser.parse_args(None if "__file__" in globals() else [])

# %%
# What is weighed
# ---------------
# One step is the loss of a batch and the gradient with respect to ``pred``, raw scores, which come from a layer as
# they do in a network. Here the layer changes nothing, since the loss alone is of interest. The label holds
# probabilities. With ``reduction="sum"`` both losses compute the same thing.


def make_loss(subject):
    if subject.startswith("MXNet"):
        loss = gluon.loss.KLDivLoss(from_logits=False)
    else:
        loss = KLDivLoss(from_logits=False, reduction="sum")
    if subject.endswith("hybridized"):
        loss.hybridize()
    return loss


def make_step(subject, rows, categories):
    """A function that takes one step, with all that it needs in place."""
    loss = make_loss(subject)
    mx.random.seed(0)
    scores = nd.random.normal(shape=(rows, categories))
    label = nd.random.gamma(shape=(rows, categories))
    nd.broadcast_div(label, label.sum(axis=1, keepdims=True), out=label)
    scores.attach_grad()
    scores.grad[:] = 0  # memory counts once it is written to

    def step():
        with autograd.record():
            divergence = loss(nd.identity(scores), label)
        divergence.backward()
        nd.waitall()

    nd.waitall()
    return step


# %%
# Memory is the most that the process ever held during three steps, less what it held before the first one, and less
# ``pred`` and its gradient, which no loss can do without. Each loss is weighed in a process of its own. The unit is
# the size of ``pred``.


def resident(kind):
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{kind}:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found.group(1))


def weigh(subject, rows, categories):
    """Peak memory of a step beyond the loss's inputs and gradient.

    In units of pred's size.
    """
    step = make_step(subject, rows, categories)
    before = resident("VmRSS")
    for _ in range(3):
        step()
    return (resident("VmHWM") - before) / (4 * rows * categories) - 2


if options.weigh:
    print(weigh(options.weigh, options.rows, options.categories))
    sys.exit()


def weigh_apart(subjects, rows, categories):
    """`weigh` for each subject, all at once, each in its own process."""
    command = [sys.executable, "-W", "ignore", str(SCRIPT),
               f"--rows={rows}", f"--categories={categories}"]
    # Or it might find another gluon_kl than this process did.
    same = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = {
        subject: subprocess.Popen([*command, "--weigh", subject],
                                  env=same, stdout=subprocess.PIPE, text=True)
        for subject in subjects}
    answers = {}
    try:
        for subject, process in processes.items():
            said, _ = process.communicate(timeout=300)
            if process.returncode:
                raise RuntimeError(f"weighing {subject} ended with code "
                                   f"{process.returncode}")
            answers[subject] = float(said)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return answers


# %%
# Time is measured in turns, one step of each loss after the other, so that whatever else the machine does
# disturbs all alike; the median counts.


def time_in_turns(subjects, rows, categories, turns):
    """Median seconds per step of each subject."""
    steps = {subject: make_step(subject, rows, categories)
             for subject in subjects}
    seconds = {subject: [] for subject in subjects}
    for turn in tqdm(range(turns + 1), unit="turn", disable=None):
        for subject, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first one warms up
                seconds[subject].append(time.perf_counter() - start)
    return {subject: statistics.median(values)
            for subject, values in seconds.items()}


memory = weigh_apart(SUBJECTS, options.rows, options.categories)
seconds = time_in_turns(
    SUBJECTS, options.rows, options.categories, options.turns)

why_not = native.why_not()
print("fused operator:", f"not in use, {why_not}" if why_not else "in use")
print(f"{'':24} memory  speed")
for subject in SUBJECTS:
    speed = seconds["MXNet's own, hybridized"] / seconds[subject]
    print(f"{subject:24}{memory[subject]:7.1f}{speed:7.1f}")

# %%
# Read a row as: so many arrays of the size of ``pred`` come and go, and so many times the speed of MXNet's own
# hybridized loss. The second column belongs to the machine that made this page; the first is much the same
# everywhere.
#
# MXNet's own loss is a chain of operators, and each leaves an array behind for the next, or for the way back.
# The fused operator goes over a row while it is in the processor's cache and keeps two numbers of it, from
# which the way back makes the gradient; no other array of that size comes into being. (Where no layer made ``pred``,
# and ``pred.attach_grad()`` asks for the gradient itself, there is one: MXNet copies it to ``pred.grad``.) Where
# gluon_kl was installed without a compiler, it is a chain of operators as well and no lighter than MXNet's:
# ``gluon_kl.native.why_not()`` tells.

# Down here, where no weighing process comes.
import matplotlib.pyplot as plt

plt.style.use(plots.STYLE)

relative = {name: value / seconds["MXNet's own, hybridized"]
            for name, value in seconds.items()}
fig, (top, bottom) = plt.subplots(2, 1, figsize=(5, 5))
fig.suptitle(f"One step of the loss, {options.rows} × {options.categories:,}")
top.set_title("Memory, in copies of pred")
plots.draw_bars(top, SUBJECTS, memory.values(), "%.1f")
bottom.set_title("Time, MXNet's own hybridized = 1")
plots.draw_bars(bottom, SUBJECTS, relative.values(), "%.2f")

# %%
# Training
# --------
# The teacher is a matrix: it turns 64 numbers, the state that a language model would have reached at some position,
# into 32,000 logits. On top of that every token has a bias that falls with its rank, as word frequencies do. The
# student has the same form, starts at zero, sees the state, and is told what the teacher says. States are drawn
# afresh for every step.


def make_teacher(categories, random, width=64):
    """The teacher's matrix and bias."""
    matrix = random.standard_normal((width, categories), dtype="float32")
    matrix *= np.float32(2 / np.sqrt(width))
    return nd.array(matrix), nd.array(-np.log(np.arange(categories) + 10.0))


def make_student(categories, width=64):
    student = gluon.nn.Dense(
        categories, in_units=width, weight_initializer="zeros")
    student.initialize()
    student.hybridize()
    return student


# %%
# ``label_space="logits"`` takes the teacher's logits as they come. Nobody has to turn them into probabilities first,
# which would cost another array and, for the unlikely tokens, digits.


def train(steps, batch, categories, seed, held_out=256, every=40):
    """The divergence of each training step, and of held-out states.

    The latter before the first step and after `every` so many.
    """
    random = np.random.default_rng(seed)
    matrix, bias = make_teacher(categories, random)
    student = make_student(categories)
    student.bias.lr_mult = 4  # the biases have furthest to go
    loss = KLDivLoss(from_logits=False, label_space="logits", reduction="sum")
    slower = mx.lr_scheduler.CosineScheduler(
        max_update=steps, base_lr=0.03, final_lr=0.001)
    trainer = gluon.Trainer(
        student.collect_params(), "adam",
        {"learning_rate": 0.03, "lr_scheduler": slower})

    def draw_states(count):
        shape = count, len(matrix)
        return nd.array(random.standard_normal(shape, dtype="float32"))

    def teacher(states):
        return nd.dot(states, matrix) + bias

    unseen = draw_states(held_out)
    trained_on, after = [], {}
    for step in tqdm(range(steps + 1), unit="step", disable=None):
        if step % every == 0:
            divergence = loss(student(unseen), teacher(unseen))
            after[step] = float(divergence.mean().asscalar())
        if step < steps:
            states = draw_states(batch)
            with autograd.record():
                divergence = loss(student(states), teacher(states))
            divergence.backward()
            trainer.step(batch)
            trained_on.append(float(divergence.mean().asscalar()))
    return trained_on, after


trained_on, after = train(
    options.steps, options.batch, options.categories, options.seed)
for step, divergence in after.items():
    print(f"after {step:3} steps: {divergence:.3f} nats, held out")

# %%
# Of nearly four nats hardly anything is left: on states that it never saw, the student knows what the teacher would
# say, tail and all.

fig, ax = plt.subplots()
fig.suptitle(f"Learning {options.categories:,} categories from soft labels")
plots.draw_training(ax, trained_on, after)
options.figures.mkdir(exist_ok=True)
fig.savefig(options.figures / "large_vocabulary.png", **plots.PNG)

# %%
# What to take away
# -----------------
#
# * At this size the loss is bound by memory. What is not written need not be read again: the fused operator saves the
#   arrays in between, and most of the time with them.
# * A teacher's logits are labels as they are: ``KLDivLoss(from_logits=False, label_space="logits")``.
# * ``reduction="sum"`` keeps the gradient independent of the size of the vocabulary. The mean would divide it by
#   32,000.
