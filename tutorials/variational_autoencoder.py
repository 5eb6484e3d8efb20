r"""
A variational autoencoder, and how to keep it awake
===================================================

An *autoencoder* squeezes a scan of 64 pixels into a handful of numbers, the *latent* variables, and draws it again
from those alone. A *variational* one [1]_ can also invent scans that nobody ever wrote: it learns to make the latent
numbers of real scans look like draws from a standard normal distribution, so that any such draw becomes a digit.

What makes them look like that is a KL divergence, and it works against the drawing. Where it wins, latent dimensions
fall asleep: they become pure noise, and the decoder learns to ignore them. That is *posterior collapse*. This page
lets it happen, dimension by dimension, and then prevents it in two ways.
"""

# %%
# Two divergences
# ---------------
#
# The encoder turns a scan :math:`x` into a mean and a variance for each latent dimension, a distribution
# :math:`q(z|x)`. A draw :math:`z` from it goes to the decoder, which gives every pixel a probability of ink. Two things
# should be small:
#
# .. math:: \mathrm{KL}(x \,\|\, \text{drawing from } z) \;+\; w \, \mathrm{KL}(q(z|x) \,\|\, \mathcal{N}(0, 1))
#
# The first is the loss of drawing: each pixel of the scan is a share of ink, a distribution over "ink" and "paper",
# and so is each pixel of the drawing. (It is the usual cross-entropy less the entropy of the scan, and so 0 for a
# perfect drawing.) The second is the price of telling scans apart: how many nats :math:`z` says about :math:`x`. With
# a weight :math:`w` of 1 their sum is the *negative evidence lower bound*, which is what a variational autoencoder
# stands for.
#
# Both are summed, over pixels and over latent dimensions, and this matters: had the first been *averaged* over its 64
# pixels and the second not, the price would weigh 64 times too much, and no latent dimension would survive.

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
from gluon_kl import GaussianKLLoss, KLDivLoss

parser = argparse.ArgumentParser(description="Train variational autoencoders on digits, collapsing and not.")
parser.add_argument("--epochs", type=int, default=80, help="passes over the scans (default: %(default)s)")
parser.add_argument("--latent", type=int, default=8, help="latent dimensions (default: %(default)s)")
parser.add_argument("--hidden", type=int, default=128, help="units of each hidden layer (default: %(default)s)")
parser.add_argument("--free-nats", type=float, default=0.5, help="for each latent dimension (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="of weights, batches and noise (default: %(default)s)")
parser.add_argument("--figures", type=Path, default=plots.FIGURES, help="folder for the figures")
options = parser.parse_args(None if __name__ == "__main__" else [])
plt.style.use(plots.STYLE)


def load_scans():
    """Load the scans, with pixels from 0 to 1, and their digits: those to learn from, and 600 held out."""
    scans, digits = load_digits(return_X_y=True)
    return train_test_split(scans / 16, digits, test_size=600, stratify=digits, random_state=0)


scans, held_out, _, held_out_digits = load_scans()
print(f"{len(scans)} scans to learn from, {len(held_out)} held out")

# %%
# The network
# -----------
#
# The encoder gives the *logarithm* of the variance, which may be any number. The draw is written as mean plus noise
# times standard deviation, so that gradients reach both. The noise comes in as an input, made by NumPy: every run of
# this page draws the same.


class Autoencoder(gluon.nn.HybridBlock):
    """Give the scores of a drawing's pixels, and the mean and log-variance of its latent variables."""

    def __init__(self, latent, hidden):
        super().__init__()
        with self.name_scope():
            self.mean, self.log_variance = gluon.nn.Dense(latent), gluon.nn.Dense(latent)
            self.encoder, self.decoder = gluon.nn.HybridSequential(), gluon.nn.HybridSequential()
            self.encoder.add(gluon.nn.Dense(hidden, activation="tanh"))
            self.decoder.add(gluon.nn.Dense(hidden, activation="tanh"), gluon.nn.Dense(hidden, activation="tanh"))
            self.decoder.add(gluon.nn.Dense(64))

    def hybrid_forward(self, F, scans, noise):
        features = self.encoder(scans)
        mean, log_variance = self.mean(features), self.log_variance(features)
        return self.decoder(mean + F.exp(log_variance / 2) * noise), mean, log_variance


def array(x):
    """Make an MXNet array of 64-bit numbers (for this page only: every machine prints the same)."""
    return nd.array(x, dtype="float64")


def ink_and_paper(scans):
    """Give each pixel's two probabilities, shape (scans, 64, 2)."""
    return nd.stack(1 - scans, scans, axis=2)


def scores_of(drawing):
    """Give each pixel's two scores, shape (scans, 64, 2): 0 for paper, the network's for ink."""
    return nd.stack(nd.zeros_like(drawing), drawing, axis=2)


# %%
# The losses are :class:`~gluon_kl.KLDivLoss` on raw scores and :class:`~gluon_kl.GaussianKLLoss`, which knows the
# divergence of normal distributions in closed form. The same class with ``reduction="none"`` says what each latent
# dimension carries.

drawing_loss = KLDivLoss(from_logits=False, reduction="sum")
per_dimension = GaussianKLLoss(reduction="none")
drawing_loss.hybridize()
per_dimension.hybridize()


def fit(weights, latent, free_nats=0.0, batch_size=100, rate=0.002):
    """Train with one weight of the latent divergence per epoch; return the network and what its dimensions carried.

    The second result is the held-out divergence of each latent dimension, shape (epochs + 1, latent).
    """
    mx.random.seed(options.seed)
    random = np.random.RandomState(options.seed)
    net = Autoencoder(latent, options.hidden)
    net.cast("float64")
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True, static_shape=True)
    latent_loss = GaussianKLLoss(free_nats=free_nats)
    latent_loss.hybridize()
    trainer = gluon.Trainer(net.collect_params(), "adam", {"learning_rate": rate})

    history = [carried(net, latent)]
    for weight in tqdm(weights, desc="training", unit="epoch", disable=None):
        order = random.permutation(len(scans))
        for rows in np.array_split(order, len(order) // batch_size):
            inputs, noise = array(scans[rows]), array(random.randn(len(rows), latent))
            with autograd.record():
                drawing, mean, log_variance = net(inputs, noise)
                values = drawing_loss(scores_of(drawing), ink_and_paper(inputs))
                values = values + weight * latent_loss(mean, log_variance)
            values.backward()
            trainer.step(len(rows))
        history.append(carried(net, latent))
    return net, np.array(history)


def carried(net, latent):
    """Divergence of each latent dimension, averaged over the held-out scans."""
    _, mean, log_variance = net(array(held_out), nd.zeros((len(held_out), latent), dtype="float64"))
    return per_dimension(mean, log_variance).asnumpy().mean(axis=0)


# %%
# First run: the formula, as it stands
# ------------------------------------

always = np.ones(options.epochs)
plain, plain_history = fit(always, options.latent)


def report(name, history):
    """Print what each latent dimension carries in the end, the largest first, and how many are awake."""
    final = np.sort(history[-1])[::-1]
    print(f"{name}: {' '.join(f'{nats:.2f}' for nats in final)} nats; {np.sum(final > AWAKE)} of {len(final)} awake")


AWAKE = 0.05
report("plain", plain_history)

# %%
# Some of the dimensions carry nothing. Early on drawings are poor whatever :math:`z` says, while the price of saying it
# is due from the first step. A dimension that does not pay at once is given up: its mean goes to 0 and its variance to
# 1 for every scan. From there the decoder hears only noise and ignores it, and so there is no gradient that would wake
# the dimension again.
#
# Second run: no price at first
# -----------------------------
#
# One cure is to let the network draw before it has to pay [2]_: the weight rises from 0 to 1 over the first half of
# the training.

rising = np.minimum(1, np.arange(options.epochs) / (options.epochs / 2))
annealed, annealed_history = fit(rising, options.latent)
report("annealed", annealed_history)

# %%
# Third run: some nats for free
# -----------------------------
#
# The other cure is to change the price [3]_. With ``free_nats`` a dimension counts as at least that much, whatever it
# carries, so there is nothing to be saved by falling below. Both cures together:

free, free_history = fit(rising, options.latent, free_nats=options.free_nats)
report("annealed, free nats", free_history)

# %%
# Here are the three, epoch by epoch, one line per latent dimension.

runs = {
    "plain": (plain, plain_history),
    "annealed weight": (annealed, annealed_history),
    f"annealed weight, {options.free_nats:g} free nats": (free, free_history),
}
fig, axes = plt.subplots(len(runs), 1, figsize=(6.4, 8.4), sharex=True, sharey=True)
fig.suptitle("What each latent dimension carries")
for ax, (name, (_, history)) in zip(axes, runs.items()):
    plots.draw_dimensions(ax, history, AWAKE)
    ax.set_ylim(0, 1.5)
    ax.set_title(f"{name}: {np.sum(history[-1] > AWAKE)} of {options.latent} awake")
axes[-1].set_xlabel("epochs")
fig.savefig(options.figures / "autoencoder_dimensions.png", **plots.PNG)

# %%
# Dashed grey lines are dimensions that end asleep. Without a price, at the start of the lower two, all of them carry
# far more than fits in the picture; then the price rises. Annealing alone only gives them a better start, and some are
# given up later. Free nats hold all of them, just above the line below which nothing is charged.
#
# Awake, or only restless?
# ------------------------
#
# A dimension could also pay its free nats with noise of the wrong size, and say nothing. So ask the decoder. Give
# every held-out scan the value that *another* scan has in one dimension: if the drawings get no worse, nobody listened.


def measure(net, latent):
    """Held-out drawing loss, latent divergence, and what the drawing loses when each dimension is shuffled."""
    random = np.random.RandomState(1)
    inputs, noise = array(held_out), array(random.randn(len(held_out), latent))
    _, mean, log_variance = net(inputs, noise)
    draws = (mean + (log_variance / 2).exp() * noise).asnumpy()

    def loss_of(draws):
        return drawing_loss(scores_of(net.decoder(array(draws))), ink_and_paper(inputs)).mean().asscalar()

    losses = []
    for dimension in range(latent):
        shuffled = draws.copy()
        shuffled[:, dimension] = random.permutation(draws[:, dimension])
        losses.append(loss_of(shuffled) - loss_of(draws))
    return loss_of(draws), per_dimension(mean, log_variance).sum(axis=1).mean().asscalar(), np.array(losses)


measured = {name: measure(net, options.latent) for name, (net, _) in runs.items()}
print("nats that drawings lose when one dimension is shuffled")
for name, (_, _, losses) in measured.items():
    print(f"{name:31} {' '.join(f'{nats:.2f}' for nats in np.sort(losses)[::-1])}")

# %%
# The sleepers are deaf: shuffle them, and nothing happens. The dimensions that free nats kept awake are all heard.
#
# What it costs
# -------------

print("per held-out scan, in nats       drawing  latent    sum")
for name, (drawing, latent, _) in measured.items():
    print(f"{name:31}  {drawing:7.2f}  {latent:6.2f}  {drawing + latent:5.2f}")

# %%
# Free nats buy better drawings and better-used latent variables, and pay for them in the sum: the negative evidence
# lower bound is *higher* than without. That is no accident. The bound itself is content to leave a dimension asleep
# that gives less than it costs, and free nats overrule it. Take them when the latent variables are what you are after,
# to search, to sort or to steer by. If it is the bound that you want, anneal, and let sleepers lie.
#
# Pictures
# --------
#
# One held-out scan of each digit, and how the networks draw it from the mean of its latent variables.


def draw_from(net, latent_values):
    """Let the decoder draw; shape (drawings, 8, 8)."""
    return net.decoder(array(latent_values)).sigmoid().asnumpy().reshape(-1, 8, 8)


def means_of(net, latent):
    """Give the means of the held-out scans' latent variables, shape (scans, latent)."""
    return net(array(held_out), nd.zeros((len(held_out), latent), dtype="float64"))[1].asnumpy()


examples = [np.flatnonzero(held_out_digits == digit)[0] for digit in range(10)]
drawings = {
    "held-out scans": held_out[examples].reshape(-1, 8, 8),
    "drawn by the plain run": draw_from(plain, means_of(plain, options.latent)[examples]),
    "drawn by the run with free nats": draw_from(free, means_of(free, options.latent)[examples]),
}
fig, axes = plt.subplots(3, 1, figsize=(6.4, 3.4))
fig.suptitle("Scans, drawn again")
for ax, (name, images) in zip(axes, drawings.items()):
    plots.draw_sheet(ax, images[None])
    ax.set_title(name)
fig.savefig(options.figures / "autoencoder_drawings.png", **plots.PNG)

# %%
# And digits that nobody wrote: standard normal draws, straight to the decoder.

random = np.random.RandomState(2)
draws = random.randn(40, options.latent)
fig, axes = plt.subplots(2, 1, figsize=(6.4, 5.6))
fig.suptitle("Scans that never were")
for ax, name, net in zip(axes, ("plain run", "run with free nats"), (plain, free)):
    plots.draw_sheet(ax, draw_from(net, draws).reshape(4, 10, 8, 8))
    ax.set_title(name)
fig.savefig(options.figures / "autoencoder_samples.png", **plots.PNG)

# %%
# Free nats make them crisper, but not truer: most are digits on both sheets, and some are not on either.

# %%
# Two dimensions, to look at
# --------------------------
#
# With two latent dimensions everything that the network knows fits on paper. Above, where the held-out scans land;
# nobody told the network which digit they are. Below, what the decoder draws at each place of the same plane.

plane, plane_history = fit(always, 2)
report("plane", plane_history)

EDGE = 2.5
steps = np.linspace(-EDGE, EDGE, 13)
places = np.array([[(x, y) for x in steps] for y in steps[::-1]])

fig, (top, bottom) = plt.subplots(2, 1, figsize=(6.4, 12))
fig.suptitle("The latent plane")
plots.draw_plane(top, means_of(plane, 2), held_out_digits, EDGE)
top.set_title("where held-out scans land")
plots.draw_sheet(bottom, draw_from(plane, places.reshape(-1, 2)).reshape(13, 13, 8, 8))
bottom.set_title("what is drawn there")
fig.savefig(options.figures / "autoencoder_plane.png", **plots.PNG)

# %%
# In one number: the nats that the most neglected dimension carries, plain and with free nats.

print(f"smallest dimension: {plain_history[-1].min():.2f} nats plain, {free_history[-1].min():.2f} with free nats")

# %%
# What to take away
# -----------------
#
# * Sum both losses: ``KLDivLoss(reduction="sum")`` or a cross-entropy summed over pixels, and ``GaussianKLLoss()``, which
#   sums by default.
# * Watch ``GaussianKLLoss(reduction="none")`` per dimension. The total hides who is asleep.
# * Multiply the latent loss by a weight that rises. Annealing delays the collapse, and sometimes averts it.
# * ``free_nats`` prevents it, at a price in the bound that you should know.
#
# .. rubric:: Sources
#
# .. [1] D. P. Kingma and M. Welling, `Auto-Encoding Variational Bayes <https://arxiv.org/abs/1312.6114>`__, 2014.
# .. [2] S. R. Bowman, L. Vilnis, O. Vinyals, A. M. Dai, R. Jozefowicz and S. Bengio, `Generating Sentences from a
#    Continuous Space <https://arxiv.org/abs/1511.06349>`__, 2016.
# .. [3] D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever and M. Welling, `Improving Variational
#    Inference with Inverse Autoregressive Flow <https://arxiv.org/abs/1606.04934>`__, 2016. There the free nats are
#    counted per dimension over a minibatch; here per dimension and scan.
#
# The scans are those of E. Alpaydin and C. Kaynak, `Optical Recognition of Handwritten Digits
# <https://doi.org/10.24432/C50P49>`__, UCI Machine Learning Repository, 1998.
