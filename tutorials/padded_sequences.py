r"""
Sequences, and the padding that must not count
==============================================

Sentences differ in length, arrays do not: a batch of sentences is filled up to the longest one. What stands in the
filled places means nothing, yet a loss that averages over the whole array counts it. This page shows what that does,
and how not to: ``reduction="row_mean"`` with one weight per position.

The task is small and real. A recurrent network, the **teacher**, has learned to guess the next letter of a text; a
**student** of a ninth of its size learns the teacher's probabilities at every letter.
"""

# %%
# The text
# --------
#
# It is the licence of gluon_kl, which comes with the package, cut into phrases at the punctuation and at 40 letters. A
# network reads a phrase letter by letter, and says before each one which it expects. A full stop begins and ends every
# phrase, and fills the array up behind it.

# sphinx_gallery_thumbnail_number = 2
import argparse
import re
from importlib import metadata
from pathlib import Path

import plots  # first: it says which Python this needs
from gluon_kl import DistillationLoss, KLDivLoss

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from tqdm import tqdm

parser = argparse.ArgumentParser(
    description="Distil a reader of phrases, with padding and without.")
option = parser.add_argument
option("--seeds", type=int, default=3,
       help="students of each kind (default: %(default)s)")
option("--steps", type=int, default=200,
       help="training steps of each network (default: %(default)s)")
option("--hidden", type=int, default=24,
       help="units of a student (default: %(default)s)")
option("--figures", type=Path, default=plots.FIGURES,
       help="folder for the figures (default: that of the project)")
options = parser.parse_args(None if "__file__" in globals() else [])
options.figures.mkdir(parents=True, exist_ok=True)
plt.style.use(plots.STYLE)

ALPHABET = ". abcdefghijklmnopqrstuvwxyz"


def load_phrases(longest=40):
    """Cut the licence into phrases of small letters and spaces."""
    licence, = (file for file in metadata.files("gluon_kl")
                if file.name == "LICENSE")
    text = licence.read_text(encoding="utf-8").lower()
    phrases = []
    for phrase in re.split(r"[^a-z\s]+", text):
        phrase = " ".join(phrase.split())
        while len(phrase) > longest:
            end = phrase.rindex(" ", 0, longest)
            phrases.append(phrase[:end])
            phrase = phrase[end + 1:]
        phrases.append(phrase)
    return [phrase for phrase in phrases if len(phrase) > 2]


def fill(phrases):
    """Letters as numbers, (phrases, time), and the lengths.

    The full stop at the end of a phrase is part of it.
    """
    lengths = np.array([len(phrase) + 1 for phrase in phrases])
    letters = np.zeros((len(phrases), lengths.max()))
    for row, phrase in zip(letters, phrases):
        row[:len(phrase)] = [ALPHABET.index(letter) for letter in phrase]
    return letters, lengths


phrases = load_phrases()
letters, lengths = fill(phrases)
order = np.random.RandomState(0).permutation(len(phrases))
held_out, seen = order[:80], order[80:]
print(f"{len(seen)} phrases to learn from, {len(held_out)} held out")
print(f"shape of the array: {letters.shape}")
print(f"of it padding: {1 - lengths.sum() / letters.size:.0%}")

# %%
# One weight per position
# -----------------------
#
# MXNet's ``SequenceMask`` makes ones where a phrase is, zeros behind it:


def array(x):
    """Make an MXNet array of 64-bit numbers."""
    return nd.array(x, dtype="float64")


def mask(lengths):
    """Weights (phrases, time): 1 within each phrase, 0 behind it."""
    ones = nd.ones((len(lengths), letters.shape[1]), dtype="float64")
    return nd.SequenceMask(
        ones, array(lengths), use_sequence_length=True, axis=1)


print(mask(np.array([4, 2]))[:, :6].asnumpy())

# %%
# As ``sample_weight`` they need no axis for the categories. ``reduction="row_mean"`` adds up over the categories, which
# gives the divergence at each position, and averages over the positions *whose weight is not 0*. So the loss of a
# phrase is its mean divergence per letter, in nats, however much padding its neighbours forced on it:

loss = KLDivLoss(
    from_logits=False, label_space="logits", reduction="row_mean")
loss.hybridize()

random = np.random.RandomState(1)
pred, label = array(random.randn(2, 6, 5)), array(random.randn(2, 6, 5))
weights = mask(np.array([4, 2]))[:, :6]
alone = [loss(pred[i:i + 1, :n], label[i:i + 1, :n]).asscalar()
         for i, n in enumerate((4, 2))]
print("each cut to length:", np.round(alone, 4))
print("with the weights:  ", loss(pred, label, weights).asnumpy().round(4))
print("padding counted:   ", loss(pred, label).asnumpy().round(4))

# %%
# And it does not matter what the padding holds. Even if a network overflowed there, the loss is what it was, and so is
# every gradient: in the padding exactly 0.

spoilt = nd.where(weights.expand_dims(2).broadcast_like(pred) > 0,
                  pred, nd.full(pred.shape, np.nan, dtype="float64"))
spoilt.attach_grad()
with autograd.record():
    values = loss(spoilt, label, weights)
values.backward()
print("NaN in the padding:", values.asnumpy().round(4))
padding = weights.asnumpy() == 0
print("its gradient:", np.unique(spoilt.grad.asnumpy()[padding]))

# %%
# (64-bit numbers are for this page only: round-off is then too small to show, and every machine prints the same.)
#
# Teacher and students
# --------------------


class Reader(gluon.nn.HybridBlock):
    """From letters read so far to scores for the next one."""

    def __init__(self, hidden):
        super().__init__()
        with self.name_scope():
            self.embedding = gluon.nn.Embedding(len(ALPHABET), 16)
            self.memory = gluon.rnn.GRU(
                hidden, layout="NTC", input_size=16)
            self.scores = gluon.nn.Dense(
                len(ALPHABET), flatten=False, in_units=hidden)

    def hybrid_forward(self, F, letters):
        return self.scores(self.memory(self.embedding(letters)))


def make_reader(hidden, seed):
    """Build a network with first weights from the seed."""
    mx.random.seed(seed)
    net = Reader(hidden)
    net.cast("float64")
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True)
    return net


def before(letters):
    """What has been read before each letter: a full stop at first."""
    return array(np.pad(letters, ((0, 0), (1, 0)))[:, :-1])


def size(net):
    """Number of parameters."""
    return sum(p.data().size for p in net.collect_params().values())


def fit(net, loss, labels, counted, rate, seed, watch=None):
    """Train on batches of 32 phrases that it has seen.

    `labels` has a row per phrase, `counted` the weights of its positions.
    Every 20 steps `watch` is called, if it is given; what it returns is
    handed back in a list.
    """
    trainer = gluon.Trainer(
        net.collect_params(), "adam", {"learning_rate": rate})
    random = np.random.RandomState(seed)
    watched = []
    for step in range(options.steps + 1):
        if watch and step % 20 == 0:
            watched.append(watch(net))
        rows = random.choice(seen, 32, replace=False)
        with autograd.record():
            pred = net(before(letters[rows]))
            values = loss(pred, array(labels[rows]), array(counted[rows]))
        values.backward()
        trainer.step(len(rows))
    return watched


# %%
# The teacher learns from the text itself: its labels are one-hot, and the divergence from a one-hot label is the
# cross-entropy. So the same loss will do, but for the space of the label.

one_hot = np.eye(len(ALPHABET))[letters.astype(int)]
valid = mask(lengths).asnumpy()

from_text = KLDivLoss(from_logits=False, reduction="row_mean")
from_text.hybridize()
teacher = make_reader(96, seed=0)
fit(teacher, from_text, one_hot, valid, rate=0.005, seed=0)

unread = before(letters[held_out])
surprise = from_text(
    teacher(unread), array(one_hot[held_out]), array(valid[held_out]))
print(f"teacher: {size(teacher):,} parameters")
print(f"held out: {surprise.mean().asscalar():.2f} nats per letter")
print(f"blind guess: {np.log(len(ALPHABET)):.2f} nats")

# %%
# The students get the teacher's scores as labels, with ``label_space="logits"``. One kind learns from the letters
# alone, the other from every position of the array, padding too. They have the same first weights and the same batches,
# and all are measured alike: by the mean divergence per letter of the held-out phrases.

opinion = teacher(before(letters)).asnumpy()


def distances(net, *weights):
    """Average KL(teacher || student) of held-out phrases, in nats.

    Per position that counts, for each of `weights`.
    """
    pred, label = net(unread), array(opinion[held_out])
    return [loss(pred, label, array(counted[held_out])).mean().asscalar()
            for counted in weights]


everywhere = np.ones_like(valid)
KINDS = {"padding left out": valid, "padding counted": everywhere}

results = {name: [] for name in KINDS}
students = {}
runs = [(name, seed) for name in KINDS for seed in range(options.seeds)]
for name, seed in tqdm(runs, unit="student", disable=None):
    student = make_reader(options.hidden, seed + 1)
    results[name].append(fit(
        student, loss, opinion, KINDS[name], rate=0.01, seed=seed,
        watch=lambda net, own=KINDS[name]: distances(net, valid, own)))
    students[name, seed] = student
results = {name: np.array(rows) for name, rows in results.items()}

print(f"a student: {size(student):,} parameters")
print("                   nats   what its own")
print("                 a letter  loss says")
for name, curves in results.items():
    true, told = curves[:, -1].mean(axis=0)
    print(f"{name:17}{true:7.3f}{told:11.3f}")

# %%
# The loss of the students that count the padding says that they are the better ones, and they are the worse ones.
# Padding is easily learned, so it makes the mean small; and while it is learned, the letters are not.

fig, ax = plt.subplots()
ax.set_title("How far students are from the teacher")
plots.draw_true_and_own(ax, 20 * np.arange(options.steps // 20 + 1), results)
ax.set_xlabel("training steps")
ax.set_ylabel("divergence (nats per letter)")
fig.savefig(options.figures / "sequences_students.png", **plots.PNG)

# %%
# Where they disagree
# -------------------
#
# ``reduction="none"`` keeps every term; added up over the categories they tell at which letters a student would have
# said something else than its teacher. Here are some held-out phrases; each letter is shaded by the divergence of what
# the two expected in its place.

terms = KLDivLoss(
    from_logits=False, label_space="logits", reduction="none")
pred = students["padding left out", 0](before(letters))
by_letter = terms(pred, array(opinion)).sum(axis=2).asnumpy()
shown = [row for row in held_out if 14 < lengths[row] < 31][:9]

fig, ax = plt.subplots(figsize=(5, 3.6))
ax.set_title("Teacher and student, letter by letter")
shades = plots.draw_phrases(
    ax, [phrases[row] + "." for row in shown], by_letter[shown])
fig.colorbar(shades, ax=ax, orientation="horizontal", aspect=40,
             label="divergence (nats)")
fig.savefig(options.figures / "sequences_phrases.png", **plots.PNG)

# %%
# Is it the beginnings of words that divide them, or the ends?

places = {}
for row in held_out:
    for word in re.finditer("[a-z]+[ .]", phrases[row] + "."):
        for k in range(word.start(), word.end()):
            name = ("end of the word" if k == word.end() - 1
                    else f"letter {min(k - word.start() + 1, 6)}")
            places.setdefault(name, []).append(by_letter[row, k])
for name in sorted(places):
    print(f"{name:16}{np.mean(places[name]):.2f} nats")

# %%
# Neither. They part a few letters into a word (the last line stands for the sixth letter and all behind it), where the
# teacher's larger memory already knows the word, and the student's not yet.
#
# With the text as well
# ---------------------
#
# :class:`~gluon_kl.DistillationLoss` mixes the teacher's opinion with the letters that were really written. It averages
# over positions in the same way and takes the same weights, and letters as numbers:

both = DistillationLoss(temperature=2, hard_weight=0.5)
few = shown[:3]
values = both(students["padding left out", 0](before(letters[few])),
              array(letters[few]), array(opinion[few]),
              array(valid[few]))
for row, nats in zip(few, values.asnumpy()):
    print(f"{nats:.2f} nats: {phrases[row]}")

# %%
# What to take away
# -----------------
#
# * ``loss(pred, label, mask)`` with ``reduction="row_mean"`` is the mean divergence per position that counts. The mask
#   has the shape (batch, time).
# * Padding has the gradient 0, whatever stands there, and a phrase does not pay for the length of its neighbours.
# * Mistrust a mean that became better when batches became longer.
#
# The text is the `Apache License 2.0 <https://www.apache.org/licenses/LICENSE-2.0>`__.
