r"""
A sparse autoencoder: units that are mostly silent
==================================================

An autoencoder with many hidden units can draw a scan again and still tell us nothing: every unit takes part in every
digit, and none of them means anything by itself. If each unit may speak up for *one scan in twenty* only, it has to
choose what for. That wish is a KL divergence between two coins: one that shows heads in 5 % of all throws, and one
that shows heads as often as the unit speaks.

:class:`~gluon_kl.BernoulliKLLoss` is the divergence of coins, or of yes-or-no questions. On this page it does two
jobs: it asks for silence, and it judges the drawings.
"""

# %%
# The divergence of two coins
# ---------------------------
#
# A coin with the probability :math:`\rho` of heads differs from one with :math:`q` by
#
# .. math:: \mathrm{KL}(\rho \,\|\, q) = \rho \log \frac{\rho}{q} + (1 - \rho) \log \frac{1 - \rho}{1 - q}
#
# nats. The label is :math:`\rho`; it may be an array, or one number for all.

# sphinx_gallery_thumbnail_number = 2
import argparse
from pathlib import Path

import plots  # first: it says which Python this needs
from gluon_kl import BernoulliKLLoss

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

parser = argparse.ArgumentParser(
    description="Train autoencoders on digits, dense and sparse.")
option = parser.add_argument
option("--epochs", type=int, default=80,
       help="passes over the scans (default: %(default)s)")
option("--hidden", type=int, default=48,
       help="hidden units, a multiple of 8 (default: %(default)s)")
option("--activity", type=float, default=0.05,
       help="share of scans to speak up for (default: %(default)s)")
option("--weight", type=float, default=0.5,
       help="of the sparsity penalty (default: %(default)s)")
option("--figures", type=Path, default=plots.FIGURES,
       help="folder for the figures (default: that of the project)")
options = parser.parse_args(None if "__file__" in globals() else [])
options.figures.mkdir(parents=True, exist_ok=True)
plt.style.use(plots.STYLE)


def array(x):
    """Make an MXNet array of 64-bit numbers."""
    return nd.array(x, dtype="float64")


penalty = BernoulliKLLoss(from_sigmoid=True, reduction="none")
shares = array([[0.01, 0.05, 0.2, 0.5, 0.99]])
nats = penalty(shares, options.activity)
print("speaks for   costs")
for share, cost in zip(shares[0].asnumpy(), nats[0].asnumpy()):
    print(f"{share:10.0%}{cost:8.4f} nats")

# %%
# ``from_sigmoid=True`` says that ``pred`` holds probabilities already, from a sigmoid in the network. Speaking up as
# often as is asked for costs exactly nothing; speaking always costs without limit.
#
# (64-bit numbers are for this page only: round-off is then too small to show, and every machine prints the same.)
#
# The network
# -----------
#
# A hidden unit is a sigmoid, so it speaks with a loudness between 0 and 1. The drawing is left as scores before the
# sigmoid, one per pixel, which is what ``BernoulliKLLoss`` expects if nothing else is said: a pixel of a scan is a
# share of ink, and the loss of a drawing is the divergence summed over its 64 pixels.


def load_scans():
    """Load scans, pixels from 0 to 1, and digits; 600 are held out."""
    scans, digits = load_digits(return_X_y=True)
    return train_test_split(scans / 16, digits, test_size=600,
                            stratify=digits, random_state=0)


scans, held_out, digits, held_out_digits = load_scans()


class Autoencoder(gluon.nn.HybridBlock):
    """Give the scores of drawn pixels, and how loud each unit was."""

    def __init__(self, hidden):
        super().__init__()
        with self.name_scope():
            self.encoder = gluon.nn.Dense(hidden, activation="sigmoid")
            self.decoder = gluon.nn.Dense(64, in_units=hidden)

    def hybrid_forward(self, F, scans):
        loudness = self.encoder(scans)
        return self.decoder(loudness), loudness


# %%
# The penalty looks at a unit's *mean* loudness over the batch, not at single scans: silence on average leaves it free
# when to speak. It is summed over units.

drawing_loss = BernoulliKLLoss(reduction="sum")
silence_loss = BernoulliKLLoss(from_sigmoid=True, reduction="sum")
drawing_loss.hybridize()
silence_loss.hybridize()


def fit(weight, batch_size=100):
    """Train an autoencoder under so much of the sparsity penalty."""
    mx.random.seed(0)
    net = Autoencoder(options.hidden)
    net.cast("float64")
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True)
    trainer = gluon.Trainer(
        net.collect_params(), "adam", {"learning_rate": 0.01})
    random = np.random.RandomState(0)
    for _ in tqdm(range(options.epochs), unit="epoch", disable=None):
        order = random.permutation(len(scans))
        for rows in np.array_split(order, len(order) // batch_size):
            inputs = array(scans[rows])
            with autograd.record():
                drawing, loudness = net(inputs)
                mean = loudness.mean(axis=0, keepdims=True)
                value = drawing_loss(drawing, inputs).mean()
                if weight:
                    value = value + weight * silence_loss(
                        mean, options.activity)
            value.backward()
            trainer.step(1)
    return net


networks = {"dense": fit(0), "sparse": fit(options.weight)}

# %%
# What it costs, and what it buys
# -------------------------------
#
# Held-out scans, measured: the nats by which a drawing is off, the mean loudness, and how many units are louder than a
# half for one scan.

loudness = {}
print("          off by   loudness  loud units")
for name, net in networks.items():
    drawing, loud = net(array(held_out))
    off = drawing_loss(drawing, array(held_out)).mean().asscalar()
    loudness[name] = loud.asnumpy()
    many = np.mean(np.sum(loudness[name] > 0.5, axis=1))
    print(f"{name:7}{off:6.2f} nats{loudness[name].mean():9.1%}"
          f"{many:12.1f}")

# %%
# A scan is now told by two or three units instead of by half of them, and its drawing is somewhat worse. Unit by unit:

fig, ax = plt.subplots()
ax.set_title("How often hidden units speak up")
plots.draw_ranked(ax, {
    name: loud.mean(axis=0) for name, loud in loudness.items()})
plots.draw_level(ax, options.activity, "asked\nfor", ":", side="right")
ax.set_xlabel("hidden units, from loud to silent")
ax.set_ylabel("mean loudness")
fig.savefig(options.figures / "sparse_activity.png", **plots.PNG)

# %%
# The penalty is a price, not an order: units speak for one scan in ten, where they were asked to speak for one in
# twenty, because drawings are worth it. One unit of the dense network always speaks; it is no more than a constant.
#
# What the units say
# ------------------
#
# To see what a unit stands for, turn it up to 1, leave all others at their average, and let the decoder draw.


def draw_units(name):
    """One drawing per hidden unit, that unit turned up: (units, 8, 8)."""
    units = np.tile(loudness[name].mean(axis=0), (options.hidden, 1))
    np.fill_diagonal(units, 1)
    ink = networks[name].decoder(array(units)).sigmoid()
    return ink.asnumpy().reshape(-1, 8, 8)


fig, axes = plt.subplots(2, 1, figsize=(5, 7.4))
fig.suptitle("Each hidden unit, turned up")
for ax, name in zip(axes, networks):
    plots.draw_sheet(ax, draw_units(name).reshape(-1, 8, 8, 8))
    ax.set_title(name)
fig.savefig(options.figures / "sparse_units.png", **plots.PNG)

# %%
# A dense unit hardly changes the picture, which is the average of all digits, whichever it is. Most of the sparse ones
# draw a digit or a good part of one, though nobody told them about digits.
#
# So how much does the loudest unit alone know? A guess is right for one scan in ten. Let each unit stand for the digit
# that it was most often the loudest for, among the scans to learn from, and read the held-out ones by that.


def read_by_loudest(net):
    """Share of held-out scans whose loudest unit names the digit."""
    loudest, unseen = (
        net(array(x))[1].asnumpy().argmax(axis=1)
        for x in (scans, held_out))
    counts = np.zeros((options.hidden, 10))
    np.add.at(counts, (loudest, digits), 1)
    return np.mean(counts.argmax(axis=1)[unseen] == held_out_digits)


for name, net in networks.items():
    print(f"{name:6} {read_by_loudest(net):.1%} read rightly")

# %%
# What to take away
# -----------------
#
# * ``BernoulliKLLoss(from_sigmoid=True, reduction="sum")`` of the mean loudness, with the label 0.05, asks for silence.
# * For yes-or-no labels and scores before a sigmoid, ``BernoulliKLLoss()`` is the divergence that
#   ``SigmoidBinaryCrossEntropyLoss`` leaves the labels' entropy on top of: it is 0 when drawing and scan agree.
# * Its weight is a price. Too low, and nobody keeps silent; too high, and drawings suffer. Look at the mean loudness.
#
# .. rubric:: Sources
#
# The penalty is that of A. Ng, `Sparse autoencoder
# <https://web.stanford.edu/class/cs294a/sparseAutoencoder.pdf>`__, lecture notes of CS294A, Stanford, 2011.
#
# The scans are those of E. Alpaydin and C. Kaynak, `Optical Recognition of Handwritten Digits
# <https://doi.org/10.24432/C50P49>`__, UCI Machine Learning Repository, 1998.
