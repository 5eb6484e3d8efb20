r"""
Sequences and padding
=====================

**You will learn** how to train on sequences of different lengths with ``reduction="row_mean"`` and one weight per
position, and what goes wrong if the padding counts.

.. image:: ../../figures/sequences_students.png
   :alt: The divergence of students from their teacher, by training step. Students that count the padding end with a
         larger divergence, although their own loss is the smallest curve.
   :class: first-figure

Sentences have different lengths, but all parts of an array have the same length. So short sentences are filled up with
*padding*. The padding means nothing, but a loss that averages over the whole array counts it.

The task is small and real. A recurrent network, the **teacher**, has learned to predict the next letter of a text. A
**student** of a ninth of its size learns the teacher's probabilities at every letter.
"""

# %%
# The text
# --------
#
# The text is the licence of gluon_kl, which is part of the package. It is cut into phrases at the punctuation and at 40
# letters, without apostrophes. A network reads a phrase letter by letter and predicts each letter before it reads it. A
# full stop begins and ends every phrase. The array is filled up with full stops too: this is the padding.

# sphinx_gallery_thumbnail_number = 2
import re
from importlib import metadata

import plots  # names any missing package
from gluon_kl import DistillationLoss, KLDivLoss

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from tqdm import tqdm

plt.style.use(plots.STYLE)

ALPHABET = ". abcdefghijklmnopqrstuvwxyz"


def load_phrases(longest=40):
    """The licence as phrases of small letters."""
    licence, = (
        file for file in metadata.files("gluon_kl")
        if file.name == "LICENSE")
    text = licence.read_text(encoding="utf-8")
    text = text.lower().replace("'", "")
    phrases = []
    for phrase in re.split(r"[^a-z\s]+", text):
        phrase = " ".join(phrase.split())
        while len(phrase) > longest:
            end = phrase.rindex(" ", 0, longest)
            phrases.append(phrase[:end])
            phrase = phrase[end + 1:]
        phrases.append(phrase)
    return [phrase for phrase in phrases
            if len(phrase) > 2]


def fill(phrases):
    """Letters as numbers, and the lengths.

    Shape (phrases, time). The full stop at the end
    of a phrase is part of it.
    """
    lengths = np.array([
        len(phrase) + 1 for phrase in phrases])
    shape = len(phrases), lengths.max()
    letters = np.zeros(shape)
    for i, phrase in enumerate(phrases):
        letters[i, :len(phrase)] = [
            ALPHABET.index(c) for c in phrase]
    return letters, lengths


phrases = load_phrases()
letters, lengths = fill(phrases)
random = np.random.RandomState(0)
order = random.permutation(len(phrases))
held_out, seen = order[:80], order[80:]
padding = 1 - lengths.sum() / letters.size
print(f"training phrases: {len(seen)}")
print(f"held-out phrases: {len(held_out)}")
print(f"shape of the array: {letters.shape}")
print(f"of it padding: {padding:.0%}")

# %%
# One weight per position
# -----------------------
#
# MXNet's ``SequenceMask`` gives 1 inside of a phrase and 0 in the padding:


def array(x):
    """Make an MXNet array of 64-bit numbers."""
    return nd.array(x, dtype="float64")


def mask(lengths):
    """Weights of shape (phrases, time)."""
    shape = len(lengths), letters.shape[1]
    return nd.SequenceMask(
        nd.ones(shape, dtype="float64"),
        array(lengths), use_sequence_length=True,
        axis=1)


print(mask(np.array([4, 2]))[:, :6].asnumpy())

# %%
# Pass these weights as ``sample_weight``; they need no axis for the categories. ``reduction="row_mean"`` adds over the
# categories, which gives the divergence at each position. Then it averages over the positions *whose weight is not 0*.
# So the loss of a phrase is its mean divergence per letter, in nats, and does not depend on the padding:

loss = KLDivLoss(
    from_logits=False, label_space="logits",
    reduction="row_mean")
loss.hybridize()

random = np.random.RandomState(1)
pred = array(random.randn(2, 6, 5))
label = array(random.randn(2, 6, 5))
weights = mask(np.array([4, 2]))[:, :6]
alone = [loss(pred[i:j, :n], label[i:j, :n])
         for i, j, n in ((0, 1, 4), (1, 2, 2))]

print("each cut to length:",
      nd.concat(*alone, dim=0).asnumpy().round(4))
values = loss(pred, label, weights)
print("with the weights:  ",
      values.asnumpy().round(4))
values = loss(pred, label)
print("padding counted:   ",
      values.asnumpy().round(4))

# %%
# The content of the padding does not matter. Even if a network gives NaN there, the loss stays the same, and the
# gradient in the padding is exactly 0:

inside = weights.expand_dims(2)
spoilt = nd.where(inside.broadcast_like(pred),
                  pred, pred * np.nan)
spoilt.attach_grad()
with autograd.record():
    values = loss(spoilt, label, weights)
values.backward()
print("NaN in the padding:",
      values.asnumpy().round(4))
in_padding = weights.asnumpy() == 0
gradient = spoilt.grad.asnumpy()[in_padding]
print("its gradient:", np.unique(gradient))

# %%
# (The page uses 64-bit numbers so that every machine prints the same. You do not need them.)
#
# Teacher and students
# --------------------

sizes = plots.options(
    "Distil a reader, with padding and without.",
    seeds=(3, "students of each kind"),
    steps=(200, "training steps of each network"),
    hidden=(24, "units of a student"))


class Reader(gluon.nn.HybridBlock):
    """Logits of each letter from those before."""

    def __init__(self, hidden):
        super().__init__()
        categories = len(ALPHABET)
        with self.name_scope():
            self.embedding = gluon.nn.Embedding(
                categories, 16)
            self.memory = gluon.rnn.GRU(
                hidden, layout="NTC",
                input_size=16)
            self.logits = gluon.nn.Dense(
                categories, flatten=False,
                in_units=hidden)

    def hybrid_forward(self, F, letters):
        read = self.memory(self.embedding(letters))
        return self.logits(read)


def make_reader(hidden, seed):
    """A network; the seed sets its weights."""
    mx.random.seed(seed)
    net = Reader(hidden)
    net.cast("float64")
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True)
    return net


def before(letters):
    """The letter before each letter.

    A full stop stands before the first.
    """
    shifted = np.pad(letters, ((0, 0), (1, 0)))
    return array(shifted[:, :-1])


def size(net):
    """Number of parameters."""
    parameters = net.collect_params().values()
    return sum(p.data().size for p in parameters)


def fit(net, loss, labels, weights, rate, seed,
        watch=None):
    """Train on batches of 32 training phrases.

    `labels` and `weights` belong to all phrases.
    Every 20 steps it calls `watch`, and it returns
    the list of the results.
    """
    trainer = gluon.Trainer(
        net.collect_params(), "adam",
        {"learning_rate": rate})
    random = np.random.RandomState(seed)
    watched = []
    for step in range(sizes.steps + 1):
        if watch and step % 20 == 0:
            watched.append(watch(net))
        some = random.choice(
            seen, 32, replace=False)
        label = array(labels[some])
        weight = array(weights[some])
        with autograd.record():
            pred = net(before(letters[some]))
            values = loss(pred, label, weight)
        values.backward()
        trainer.step(len(some))
    return watched


# %%
# The teacher learns from the text itself, so its labels are one-hot. The divergence from a one-hot label is the
# cross-entropy. So the same loss works, with probabilities as labels.

indices = letters.astype(int)
one_hot = np.eye(len(ALPHABET))[indices]
valid = mask(lengths).asnumpy()

from_text = KLDivLoss(
    from_logits=False, reduction="row_mean")
from_text.hybridize()
teacher = make_reader(96, seed=0)
fit(teacher, from_text, one_hot, valid,
    rate=0.005, seed=0)

unread = before(letters[held_out])
nats = from_text(
    teacher(unread), array(one_hot[held_out]),
    array(valid[held_out])).mean().asscalar()
print(f"teacher: {size(teacher):,} parameters")
print(f"held out: {nats:.2f} nats per letter")
print(f"uniform guess: {np.log(len(ALPHABET)):.2f}"
      " nats")

# %%
# The students get the teacher's logits as labels, with ``label_space="logits"``. Students of the first kind leave the
# padding out. Students of the second kind count every position of the array. Both kinds have the same initial weights
# and the same batches. All are measured in the same way: by the mean divergence per letter of the held-out phrases.

teacher_logits = teacher(before(letters)).asnumpy()


def distances(net, *weights):
    """Mean KL(teacher || student), held out.

    In nats per position, for each of `weights`.
    """
    pred = net(unread)
    label = array(teacher_logits[held_out])
    return [
        loss(pred, label, array(some[held_out]))
        .mean().asscalar() for some in weights]


everywhere = np.ones_like(valid)
KINDS = {"padding left out": valid,
         "padding counted": everywhere}

curves = {name: [] for name in KINDS}
students = {}
runs = [(name, seed) for name in KINDS
        for seed in range(sizes.seeds)]
for name, seed in tqdm(runs, disable=None):
    own = KINDS[name]
    net = make_reader(sizes.hidden, seed + 1)
    curves[name].append(fit(
        net, loss, teacher_logits, own,
        rate=0.01, seed=seed,
        watch=lambda net, own=own: distances(
            net, valid, own)))
    students[name, seed] = net
results = {name: np.array(values)
           for name, values in curves.items()}

print(f"a student: {size(net):,} parameters")
print("nats per letter     true   own loss")
for name, values in results.items():
    true, own = values[:, -1].mean(axis=0)
    print(f"{name:17}{true:7.3f}{own:11.3f}")

# %%
# The loss of the students that count the padding is smaller, but these students are worse. Padding is easy to predict,
# so it makes the mean small. And a network that learns to predict padding learns less about letters.

fig, ax = plt.subplots()
ax.set_title(
    "Distance of each student to the teacher")
steps = 20 * np.arange(sizes.steps // 20 + 1)
plots.draw_true_and_own(ax, steps, results)
ax.set_xlabel("training steps")
ax.set_ylabel("divergence (nats per letter)")
fig.savefig(
    sizes.figures / "sequences_students.png",
    **plots.PNG)

# %%
# Where they disagree
# -------------------
#
# ``reduction="none"`` returns every term. The sum over the categories shows at which letters the student would predict
# something else than the teacher. Here are some held-out phrases. The shade of a letter is the divergence of the two
# predictions at its place.

terms = KLDivLoss(
    from_logits=False, label_space="logits",
    reduction="none")
student = students["padding left out", 0]
pred = student(before(letters))
by_letter = terms(pred, array(teacher_logits))
by_letter = by_letter.sum(axis=2).asnumpy()
shown = [i for i in held_out
         if 14 < lengths[i] < 31][:9]

fig, ax = plt.subplots(figsize=(5, 3.6))
ax.set_title(
    "Divergence of the model, letter by letter")
shades = plots.draw_phrases(
    ax, [phrases[i] + "." for i in shown],
    by_letter[shown])
fig.colorbar(
    shades, ax=ax, orientation="horizontal",
    aspect=40, label="divergence (nats)")
fig.savefig(
    sizes.figures / "sequences_phrases.png",
    **plots.PNG)

# %%
# Do they disagree at the beginning of a word, or at its end?

places = {}
for i in held_out:
    text = phrases[i] + "."
    for word in re.finditer("[a-z]+[ .]", text):
        last = word.end() - 1
        for k in range(word.start(), word.end()):
            place = min(k - word.start() + 1, 6)
            name = f"letter {place}"
            if k == last:
                name = "end of the word"
            found = places.setdefault(name, [])
            found.append(by_letter[i, k])
for name in sorted(places):
    nats = np.mean(places[name])
    print(f"{name:16}{nats:.2f} nats")

# %%
# Neither. They disagree most from the fourth letter on ("letter 6" stands for the sixth letter and all later ones).
# There the teacher, with its larger memory, already knows the word, and the student does not.
#
# Learn from the text too
# -----------------------
#
# :class:`~gluon_kl.DistillationLoss` combines the teacher's probabilities with the true letters. It averages over
# positions in the same way and takes the same weights. The letters are class indices:

both = DistillationLoss(
    temperature=2, hard_weight=0.5)
few = shown[:3]
values = both(
    student(before(letters[few])),
    array(letters[few]),
    array(teacher_logits[few]),
    array(valid[few]))
for i, nats in zip(few, values.asnumpy()):
    print(f"{nats:.2f} nats: {phrases[i]}")

# %%
# Summary
# -------
#
# * ``loss(pred, label, mask)`` with ``reduction="row_mean"`` is the mean divergence per valid position. The mask has
#   the shape (batch, time).
# * The gradient in the padding is 0, and the loss of a phrase does not depend on the length of other phrases.
# * If a mean becomes better when the batches become longer, check the padding.
#
# Exercises
# ---------
#
# **1.** What does ``reduction="row_mean"`` give for a phrase that is padding only, so that all its weights are 0?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>

random = np.random.RandomState(1)
pred = array(random.randn(2, 6, 5))
weights = mask(np.array([4, 0]))[:, :6]
row_mean = loss(pred, pred * 2, weights)
row_mean = row_mean.asnumpy()
print(row_mean.round(4))

# %%
# It gives 0, not NaN: there is nothing to divide by, and nothing to learn.
#
# .. raw:: html
#
#    </details>
#
# **2.** With ``reduction="mean"`` and the same weights, how does the loss of the first phrase change?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>

mean = KLDivLoss(
    from_logits=False, label_space="logits")
mean = mean(pred, pred * 2, weights)
mean = mean.asnumpy()
print(mean.round(4))
print(f"ratio: {row_mean[0] / mean[0]:.1f}")

# %%
# ``"mean"`` divides by all positions and all categories, 6 × 5 = 30. ``"row_mean"`` divides by the 4 valid positions
# only. So the ratio is 30 / 4 = 7.5, and for a longer padding it would be larger.
#
# .. raw:: html
#
#    </details>
#
# The text is the `Apache License 2.0 <https://www.apache.org/licenses/LICENSE-2.0>`__.
