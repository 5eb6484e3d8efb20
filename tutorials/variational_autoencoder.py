r"""
A variational autoencoder, and how to keep it awake
===================================================

An *autoencoder* squeezes a scan of 64 pixels into a handful of numbers, the *latent* variables, and draws it again
from those alone. A *variational* one [1]_ can also invent scans that nobody ever wrote: it learns to make the latent
numbers of real scans look like draws from a standard normal distribution, so that any such draw becomes a digit.

What makes them look like that is a KL divergence, and it works against the drawing. Where it wins, latent dimensions
fall asleep: they become pure noise, and the decoder learns to ignore them. That is *posterior collapse*. This page
lets it happen, one dimension after the other; then it postpones it, and then prevents it.
"""

# %%
# Two divergences
# ---------------
#
# The encoder turns a scan :math:`x` into a mean and a variance for each latent dimension, a distribution
# :math:`q(z|x)`. A draw :math:`z` from it goes to the decoder, which makes a drawing :math:`\hat x`: for every pixel a
# probability of ink. Two things should be small:
#
# .. math:: \mathrm{KL}(x \,\|\, \hat x) + w \, \mathrm{KL}(q(z|x) \,\|\, \mathcal{N}(0, 1))
#
# The first is the loss of drawing. Each pixel of a scan is a share of ink, a distribution over "ink" and "paper", and
# so is each pixel of the drawing. The second is the price of telling scans apart: :math:`q(z|x)` costs nothing only if
# it is the same standard normal for every scan. With a weight :math:`w` of 1 their sum is the *negative evidence lower
# bound* that a variational autoencoder stands for, less the entropy of the scans, which no network can change.
#
# Both are summed, over pixels and over latent dimensions, and this matters. Had the first been *averaged* over its 64
# pixels and the second not, the price would weigh 64 times too much, and no latent dimension would survive.

# sphinx_gallery_thumbnail_number = 3
import argparse
from pathlib import Path

import plots  # first: it says which Python this needs
from gluon_kl import BernoulliKLLoss, GaussianKLLoss

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

parser = argparse.ArgumentParser(
    description="Train autoencoders on digits, collapsing and not.")
option = parser.add_argument
option("--epochs", type=int, default=60,
       help="passes over the scans (default: %(default)s)")
option("--latent", type=int, default=8,
       help="latent dimensions (default: %(default)s)")
option("--hidden", type=int, default=128,
       help="units of each hidden layer (default: %(default)s)")
option("--free-nats", type=float, default=0.5,
       help="free nats of each dimension (default: %(default)s)")
option("--seed", type=int, default=0,
       help="of weights, batches and noise (default: %(default)s)")
option("--figures", type=Path, default=plots.FIGURES,
       help="folder for the figures (default: that of the project)")
options = parser.parse_args(None if "__file__" in globals() else [])
options.figures.mkdir(parents=True, exist_ok=True)
plt.style.use(plots.STYLE)


def load_scans():
    """Load scans, pixels from 0 to 1, and digits; 600 are held out."""
    scans, digits = load_digits(return_X_y=True)
    return train_test_split(scans / 16, digits, test_size=600,
                            stratify=digits, random_state=0)


scans, held_out, _, held_out_digits = load_scans()
print(f"to learn from: {len(scans)} scans")
print(f"held out: {len(held_out)} scans")

# %%
# The network
# -----------
#
# The encoder gives the *logarithm* of the variance, which may be any number. The draw is written as mean plus noise
# times standard deviation, so that gradients reach both. The noise comes in as an input, made by NumPy: every run of
# this page draws the same.


class Autoencoder(gluon.nn.HybridBlock):
    """Give the scores of drawn pixels and the latent distribution."""

    def __init__(self, latent, hidden):
        super().__init__()
        with self.name_scope():
            self.encoder = gluon.nn.HybridSequential()
            self.encoder.add(gluon.nn.Dense(hidden, activation="tanh"))
            self.mean = gluon.nn.Dense(latent)
            self.log_variance = gluon.nn.Dense(latent)
            self.decoder = gluon.nn.HybridSequential()
            self.decoder.add(gluon.nn.Dense(hidden, activation="tanh"),
                             gluon.nn.Dense(hidden, activation="tanh"),
                             gluon.nn.Dense(64))

    def hybrid_forward(self, F, scans, noise):
        code = self.encoder(scans)
        mean, log_variance = self.mean(code), self.log_variance(code)
        draw = mean + F.exp(log_variance / 2) * noise
        return self.decoder(draw), mean, log_variance


def make_network(latent):
    """Build an autoencoder with first weights from the seed."""
    mx.random.seed(options.seed)
    net = Autoencoder(latent, options.hidden)
    net.cast("float64")
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def array(x):
    """Make an MXNet array of 64-bit numbers."""
    return nd.array(x, dtype="float64")


# %%
# (64-bit numbers are for this page only: round-off is then too small to show, and every machine prints the same.)
#
# The losses
# ----------
#
# :class:`~gluon_kl.BernoulliKLLoss` measures the drawing: a pixel is ink or paper, its label is the share of ink, and
# the network gives its score before the sigmoid. :class:`~gluon_kl.GaussianKLLoss` knows the divergence of normal
# distributions in closed form. With ``reduction="none"`` it tells what each latent dimension carries.

misdrawn = BernoulliKLLoss(reduction="sum")
per_dimension = GaussianKLLoss(reduction="none")
misdrawn.hybridize(static_alloc=True, static_shape=True)
per_dimension.hybridize()


def carried(net, latent):
    """Average what each latent dimension carries for held-out scans."""
    noise = nd.zeros((len(held_out), latent), dtype="float64")
    _, mean, log_variance = net(array(held_out), noise)
    return per_dimension(mean, log_variance).asnumpy().mean(axis=0)


def fit(net, weights, latent, free_nats=0.0, batch_size=100):
    """Train for one epoch per weight of the latent divergence.

    Returns what each latent dimension carries, before training and
    after each epoch: shape (epochs + 1, latent).
    """
    latent_loss = GaussianKLLoss(free_nats=free_nats)
    latent_loss.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(
        net.collect_params(), "adam", {"learning_rate": 0.002})
    random = np.random.RandomState(options.seed)
    history = [carried(net, latent)]
    for weight in tqdm(weights, unit="epoch", disable=None):
        order = random.permutation(len(scans))
        for rows in np.array_split(order, len(order) // batch_size):
            inputs = array(scans[rows])
            noise = array(random.randn(len(rows), latent))
            with autograd.record():
                drawing, mean, log_variance = net(inputs, noise)
                price = weight * latent_loss(mean, log_variance)
                values = misdrawn(drawing, inputs) + price
            values.backward()
            trainer.step(len(rows))
        history.append(carried(net, latent))
    return np.array(history)


# %%
# First run: the formula, as it stands
# ------------------------------------
#
# What each of the eight dimensions carries for a held-out scan, in nats, is printed when the training is over.

AWAKE = 0.1  # nats; a dimension that carries less is asleep


def report(history):
    """Print what each dimension carries in the end, in order."""
    final = np.sort(history[-1])[::-1]
    print(" ".join(f"{nats:.2f}" for nats in final))
    print(f"awake: {np.sum(final > AWAKE)} of {len(final)}")


always = np.ones(options.epochs)
plain = make_network(options.latent)
plain_history = fit(plain, always, options.latent)
report(plain_history)

# %%
# Half of the dimensions carry nothing. Early on drawings are poor whatever :math:`z` says, while the price of saying it
# is due from the first step. A dimension that does not pay at once is given up: its mean goes to 0 and its variance to
# 1 for every scan. From there the decoder hears only noise and ignores it, and so there is no gradient that would wake
# the dimension again.
#
# Second run: no price at first
# -----------------------------
#
# One cure is to let the network draw before it has to pay [2]_: the weight rises from 0 to 1 over the first half of
# the training.

rising = np.minimum(1, 2 * np.arange(options.epochs) / options.epochs)
annealed = make_network(options.latent)
annealed_history = fit(annealed, rising, options.latent)
report(annealed_history)

# %%
# Third run: some nats for free
# -----------------------------
#
# The other cure is to change the price [3]_. With ``free_nats`` a dimension counts as at least that much, whatever it
# carries, so there is nothing to be saved by falling below. Both cures together:

free = make_network(options.latent)
free_history = fit(free, rising, options.latent, options.free_nats)
report(free_history)

# %%
# Here are the three, epoch by epoch, one line per latent dimension.

runs = {
    "plain": (plain, plain_history),
    "annealed": (annealed, annealed_history),
    "free nats": (free, free_history),
}
fig, axes = plt.subplots(
    3, 1, figsize=(5, 8.4), sharex=True, sharey=True)
fig.suptitle("What each latent dimension carries")
for ax, (name, (_, history)) in zip(axes, runs.items()):
    plots.draw_dimensions(ax, history, AWAKE)
    awake = np.sum(history[-1] > AWAKE)
    ax.set_title(f"{name}: {awake} of {options.latent} awake")
plots.list_names(axes[0])
axes[-1].set_xlabel("epochs")
fig.savefig(options.figures / "autoencoder_dimensions.png", **plots.PNG)

# %%
# Dashed grey lines are dimensions that end asleep. (The axis is a logarithmic one that reaches 0.) Without a price,
# at the start of the lower two, dimensions carry up to ten nats; then the price rises. Annealing alone only
# gives them a better start, and some are given up later, when the price has risen. Free nats hold all of them, at half
# a nat and above. In numbers per run, what is left of the dimension that carries least, and the most that any ever
# carried:

print("nats       least in the end  most ever")
for name, (_, history) in runs.items():
    print(f"{name:9}  {history[-1].min():17.2f}  {history.max():9.2f}")

# %%
# Awake, or only restless?
# ------------------------
#
# A dimension could also pay its free nats with noise of the wrong size, and say nothing. So ask the decoder. Give
# every held-out scan the value that *another* scan has in one dimension: if the drawings get no worse, nobody listened.


def measure(net, latent):
    """Give both divergences, and what shuffling a dimension costs."""
    random = np.random.RandomState(1)
    inputs = array(held_out)
    noise = array(random.randn(len(held_out), latent))
    _, mean, log_variance = net(inputs, noise)
    draws = (mean + (log_variance / 2).exp() * noise).asnumpy()

    def drawing_of(draws):
        drawing = net.decoder(array(draws))
        return misdrawn(drawing, inputs).mean().asscalar()

    costs = []
    for dimension in range(latent):
        shuffled = draws.copy()
        random.shuffle(shuffled[:, dimension])
        costs.append(drawing_of(shuffled) - drawing_of(draws))
    nats = per_dimension(mean, log_variance).asnumpy().sum(axis=1)
    return drawing_of(draws), nats.mean(), np.sort(costs)[::-1]


measured = {name: measure(net, options.latent)
            for name, (net, _) in runs.items()}
print("nats lost by shuffling each dimension")
for name, (_, _, costs) in measured.items():
    print(f"{name}:")
    print(" ".join(f"{cost:.2f}" for cost in costs))

# %%
# The sleepers are deaf: shuffle them, and nothing happens. The dimensions that free nats kept awake are all heard.
#
# What it costs
# -------------

print("nats       drawing  latent    sum")
for name, (drawing, nats, _) in measured.items():
    bound = drawing + nats
    print(f"{name:9}  {drawing:7.2f}  {nats:6.2f}  {bound:5.2f}")

# %%
# Free nats buy better drawings and better-used latent variables, and pay for them in the sum: the negative evidence
# lower bound is *higher* than without. That is no accident. The bound itself is content to leave a dimension asleep
# that gives less than it costs, and free nats overrule it. Take them when the latent variables are what you are after,
# to search, to sort or to steer by. If it is the bound that you want, let sleepers lie.
#
# Pictures
# --------
#
# One held-out scan of each digit, and how the networks draw it from the mean of its latent variables.


def draw_from(net, places):
    """Let the decoder draw; latent values to (drawings, 8, 8)."""
    ink = net.decoder(array(places)).sigmoid()
    return ink.asnumpy().reshape(-1, 8, 8)


def means_of(net, latent, scans):
    """Give the means of the latent variables of scans."""
    noise = nd.zeros((len(scans), latent), dtype="float64")
    return net(array(scans), noise)[1].asnumpy()


examples = held_out[[np.flatnonzero(held_out_digits == digit)[0]
                     for digit in range(10)]]
drawings = {"held-out scans": examples.reshape(-1, 8, 8)}
for name, net in (("plain", plain), ("free nats", free)):
    means = means_of(net, options.latent, examples)
    drawings[f"drawn again: {name}"] = draw_from(net, means)

fig, axes = plt.subplots(3, 1, figsize=(5, 3.3))
fig.suptitle("Ten scans, as two networks draw them")
for ax, (name, images) in zip(axes, drawings.items()):
    plots.draw_sheet(ax, images[None])
    ax.set_title(name)
fig.savefig(options.figures / "autoencoder_drawings.png", **plots.PNG)

# %%
# And digits that nobody wrote: standard normal draws, straight to the decoder, the same draws for both.

draws = np.random.RandomState(2).randn(40, options.latent)

fig, axes = plt.subplots(2, 1, figsize=(5, 4.6))
fig.suptitle("Digits that nobody wrote")
for ax, name, net in zip(axes, ("plain", "free nats"), (plain, free)):
    plots.draw_sheet(ax, draw_from(net, draws).reshape(4, 10, 8, 8))
    ax.set_title(name)
fig.savefig(options.figures / "autoencoder_samples.png", **plots.PNG)

# %%
# Free nats make them crisper, but not truer: most are digits on both sheets, and some are not on either.
#
# Two dimensions, to look at
# --------------------------
#
# With two latent dimensions everything that the network knows fits on paper. Above, where twenty held-out scans of each
# digit land; nobody told the network which digit they are. Below, what the decoder draws at each place of the same
# plane.

plane = make_network(2)
report(fit(plane, always, 2))

EDGE = 2.5
steps = np.linspace(-EDGE, EDGE, 11)
places = np.array([(x, y) for y in steps[::-1] for x in steps])

fig, (top, bottom) = plt.subplots(2, 1, figsize=(5, 10))
fig.suptitle("The latent plane, read and drawn")
some = np.sort(np.concatenate([
    np.flatnonzero(held_out_digits == digit)[:20] for digit in range(10)]))
means = means_of(plane, 2, held_out[some])
plots.draw_plane(top, means, held_out_digits[some], EDGE)
top.set_title("where held-out scans land")
drawn = draw_from(plane, places).reshape(11, 11, 8, 8)
plots.draw_sheet(bottom, drawn, EDGE)
bottom.set_title("what is drawn there")
bottom.set_xlabel("first latent variable")
for ax in (top, bottom):
    ax.set_ylabel("second latent variable")
fig.savefig(options.figures / "autoencoder_plane.png", **plots.PNG)

# %%
# What to take away
# -----------------
#
# * Sum both losses: ``BernoulliKLLoss(reduction="sum")`` or a cross-entropy summed over pixels, and
#   ``GaussianKLLoss()``, which sums by default.
# * Watch ``GaussianKLLoss(reduction="none")`` per dimension. The total hides who is asleep.
# * Multiply the latent loss by a weight that rises. Annealing postpones the collapse, and spares some dimensions.
# * ``free_nats`` prevents it, at a price in the bound that you should know.
#
# .. rubric:: Sources
#
# .. [1] D. P. Kingma and M. Welling, `Auto-Encoding Variational Bayes
#    <https://arxiv.org/abs/1312.6114>`__, 2014.
# .. [2] S. R. Bowman, L. Vilnis, O. Vinyals, A. M. Dai, R. Jozefowicz and S. Bengio, `Generating Sentences from a
#    Continuous Space <https://arxiv.org/abs/1511.06349>`__, 2016.
# .. [3] D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever and M. Welling, `Improving Variational
#    Inference with Inverse Autoregressive Flow <https://arxiv.org/abs/1606.04934>`__, 2016. There the free nats are
#    counted per dimension over a minibatch; here per dimension and scan.
#
# The scans are those of E. Alpaydin and C. Kaynak, `Optical Recognition of Handwritten Digits
# <https://doi.org/10.24432/C50P49>`__, UCI Machine Learning Repository, 1998.
