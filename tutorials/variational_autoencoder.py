r"""
A variational autoencoder, and how to prevent collapse
======================================================

**You will learn** how to train a variational autoencoder (VAE) with :class:`~gluon_kl.BernoulliKLLoss` and
:class:`~gluon_kl.GaussianKLLoss`, how to notice latent dimensions that collapse, and two ways to prevent it.

.. image:: ../../figures/autoencoder_drawings.png
   :alt: Ten images of digits that the networks never saw, and two reconstructions of each. Those of the network with
         free nats are sharper.
   :class: first-figure

.. warning::

   **Pass** ``reduction="sum"`` **to both losses.** By default BernoulliKLLoss averages over the pixels and
   GaussianKLLoss adds over the latent dimensions. Together the defaults give the KL term 64 times too much weight here,
   and all latent dimensions collapse.

An *autoencoder* encodes an image of 64 pixels as a few numbers, the *latent variables*, and decodes a *reconstruction*
of the image from them. A *variational* autoencoder [1]_ can also generate new images. It keeps the latent variables
close to a standard normal distribution, so the decoder can turn a random draw into a digit.

The term that keeps them close is a KL divergence, and it competes with the reconstruction. If it wins, a latent
dimension becomes pure noise, and the decoder learns to ignore it. This is called *posterior collapse*. This page shows
the collapse, then a way to delay it, and then a way to prevent it.
"""

# %%
# Two divergences
# ---------------
#
# The encoder turns an image :math:`x` into a mean and a variance for each latent dimension. They define a distribution
# :math:`q(z|x)`. A draw :math:`z` from it goes to the decoder. The decoder returns a reconstruction :math:`\hat x`: the
# probability of ink for every pixel. The loss has two terms:
#
# .. math:: \mathrm{KL}(x \,\|\, \hat x) + w \, \mathrm{KL}(q(z|x) \,\|\, \mathcal{N}(0, 1))
#
# The first is the reconstruction loss. A pixel is a number from 0 to 1, so it is a distribution over "ink" and "paper",
# and so is a pixel of the reconstruction. The second is the KL term. It is 0 only if :math:`q(z|x)` is the standard
# normal distribution for every image, so that the latent variables say nothing about the image. :math:`w` is the KL
# weight. With :math:`w = 1` the sum is the negative *evidence lower bound* (ELBO), minus the entropy of the images,
# which no network can change.
#
# Both terms are added, over pixels and over latent dimensions.

# sphinx_gallery_thumbnail_number = 3
import plots  # names any missing package
from gluon_kl import (BernoulliKLLoss,
                      GaussianKLLoss)

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from sklearn import model_selection
from sklearn.datasets import load_digits
from tqdm import tqdm

plt.style.use(plots.STYLE)


def load_images():
    """Images, pixels from 0 to 1, and digits.

    Training part and 600 held-out ones of each.
    """
    images, digits = load_digits(return_X_y=True)
    return model_selection.train_test_split(
        images / 16, digits, test_size=600,
        stratify=digits, random_state=0)


parts = load_images()
images, held_out, _, held_out_digits = parts
print(f"training images: {len(images)}")
print(f"held out: {len(held_out)} images")

# %%
# The network
# -----------
#
# The encoder gives the *logarithm* of the variance, which can be any number. The draw is the mean plus noise times the
# standard deviation, so the gradient reaches both. The noise is an input made by NumPy, so that every run of this page
# uses the same noise.

sizes = plots.options(
    "Train variational autoencoders on digits.",
    epochs=(60, "passes over the images"),
    latent=(8, "latent dimensions"),
    hidden=(128, "units of each hidden layer"),
    free_nats=(0.5, "free nats of a dimension"),
    seed=(0, "of weights, batches and noise"))


def layers(*units):
    """Dense layers, all but the last with tanh."""
    net = gluon.nn.HybridSequential()
    for size in units[:-1]:
        net.add(gluon.nn.Dense(
            size, activation="tanh"))
    net.add(gluon.nn.Dense(units[-1]))
    return net


class Autoencoder(gluon.nn.HybridBlock):
    """Logits of pixels, mean and log variance."""

    def __init__(self, latent, hidden):
        super().__init__()
        with self.name_scope():
            self.encoder = gluon.nn.Dense(
                hidden, activation="tanh")
            self.mean = layers(latent)
            self.log_variance = layers(latent)
            self.decoder = layers(
                hidden, hidden, 64)

    def hybrid_forward(self, F, images, noise):
        code = self.encoder(images)
        mean = self.mean(code)
        log_variance = self.log_variance(code)
        deviation = F.exp(log_variance / 2)
        draw = mean + deviation * noise
        pred = self.decoder(draw)
        return pred, mean, log_variance


def make_network(latent):
    """An autoencoder with initial weights."""
    mx.random.seed(sizes.seed)
    net = Autoencoder(latent, sizes.hidden)
    net.cast("float64")
    net.initialize(mx.init.Xavier())
    net.hybridize(
        static_alloc=True, static_shape=True)
    return net


def array(x):
    """Make an MXNet array of 64-bit numbers."""
    return nd.array(x, dtype="float64")


# %%
# (The page uses 64-bit numbers so that every machine prints the same. You do not need them.)
#
# The losses
# ----------
#
# :class:`~gluon_kl.BernoulliKLLoss` is the reconstruction loss. Its label is a pixel, from 0 to 1, and the network
# gives logits, before the sigmoid. :class:`~gluon_kl.GaussianKLLoss` computes the KL term in closed form. With
# ``reduction="none"`` it returns the nats of each latent dimension: the information that the dimension carries about
# the image.

pixel_loss = BernoulliKLLoss(reduction="sum")
per_dimension = GaussianKLLoss(reduction="none")
pixel_loss.hybridize(
    static_alloc=True, static_shape=True)
per_dimension.hybridize()


def nats_per_dimension(net, latent):
    """Mean over the held-out images."""
    shape = len(held_out), latent
    noise = nd.zeros(shape, dtype="float64")
    _, mean, log_variance = net(
        array(held_out), noise)
    nats = per_dimension(mean, log_variance)
    return nats.asnumpy().mean(axis=0)


def fit(net, kl_weights, latent, free_nats=0.0):
    """Train for one epoch per KL weight.

    Returns the nats of each latent dimension,
    before training and after each epoch: shape
    (epochs + 1, latent).
    """
    latent_loss = GaussianKLLoss(
        reduction="sum", free_nats=free_nats)
    latent_loss.hybridize(
        static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(
        net.collect_params(), "adam",
        {"learning_rate": 0.002})
    random = np.random.RandomState(sizes.seed)
    history = [nats_per_dimension(net, latent)]
    for w in tqdm(kl_weights, disable=None):
        order = random.permutation(len(images))
        parts = np.array_split(
            order, len(order) // 100)
        for part in parts:
            x = array(images[part])
            noise = array(
                random.randn(len(part), latent))
            with autograd.record():
                pred, *gaussian = net(x, noise)
                kl = latent_loss(*gaussian)
                loss = pixel_loss(pred, x) + w * kl
            loss.backward()
            trainer.step(len(part))
        history.append(
            nats_per_dimension(net, latent))
    return np.array(history)


# %%
# First run: KL weight 1
# ----------------------
#
# The code prints the nats of each of the eight dimensions after training, from the largest to the smallest.

ACTIVE = 0.1  # nats; below, it has collapsed


def show(values):
    """Print numbers, the largest first."""
    values = np.sort(values)[::-1]
    print(" ".join(f"{x:.2f}" for x in values))


def report(history):
    """Print the final nats of the dimensions."""
    final = history[-1]
    show(final)
    print(f"active: {np.sum(final > ACTIVE)}"
          f" of {len(final)}")


constant = np.ones(sizes.epochs)
plain = make_network(sizes.latent)
plain_history = fit(plain, constant, sizes.latent)
report(plain_history)

# %%
# Half of the dimensions carry nothing. At the beginning of training, reconstructions are poor whatever :math:`z` is,
# but the KL term has its full weight from the first step. If a dimension does not improve the reconstruction at once,
# its mean goes to 0 and its variance to 1 for every image. Then the decoder gets only noise from it and ignores it, so
# no gradient can make the dimension active again.
#
# Second run: a KL weight that rises
# ----------------------------------
#
# The first cure is *annealing* [2]_: the KL weight rises from 0 to 1 during the first half of the training. So the
# network learns to reconstruct before the KL term counts.

epoch = np.arange(sizes.epochs)
rising = np.minimum(1, 2 * epoch / sizes.epochs)
annealed = make_network(sizes.latent)
annealed_history = fit(
    annealed, rising, sizes.latent)
report(annealed_history)

# %%
# Third run: free nats
# --------------------
#
# The second cure changes the KL term [3]_. With ``free_nats=0.5``, every dimension counts as at least half a nat. So
# there is nothing to gain if it carries less. Use both cures together:

free = make_network(sizes.latent)
free_history = fit(
    free, rising, sizes.latent, sizes.free_nats)
report(free_history)

# %%
# The figure shows the three runs. Each line is one latent dimension.

runs = {
    "plain": (plain, plain_history),
    "annealed": (annealed, annealed_history),
    "free nats": (free, free_history),
}
fig, axes = plt.subplots(
    3, 1, figsize=(5, 8.4),
    sharex=True, sharey=True)
fig.suptitle("Nats of each latent dimension")
for ax, name in zip(axes, runs):
    history = runs[name][1]
    plots.draw_dimensions(ax, history, ACTIVE)
    active = np.sum(history[-1] > ACTIVE)
    ax.set_title(f"{name}: {active} active")
plots.list_names(axes[0])
axes[-1].set_xlabel("epochs")
fig.savefig(
    sizes.figures / "autoencoder_dimensions.png",
    **plots.PNG)

# %%
# Dashed grey lines are dimensions that have collapsed at the end. (The axis is nearly logarithmic, but it includes 0.)
# While the KL weight is small, at the beginning of the second and third run, dimensions carry up to ten nats. Then the
# weight rises. With annealing alone, some dimensions still collapse later. With free nats, all of them stay active, at
# half a nat or more. Here are the smallest value at the end, and the largest value at any time:

print("nats       smallest at end   largest")
for name, (_, history) in runs.items():
    print(f"{name:9}  {history[-1].min():15.2f}"
          f"  {history.max():8.2f}")

# %%
# Does the decoder use them?
# --------------------------
#
# A dimension could also reach its free nats with noise of a wrong size, without information. So test the decoder. Give
# every held-out image the value of *another* image in one dimension. If the reconstructions do not get worse, the
# decoder ignores this dimension.


def measure(net, latent):
    """Both divergences, and costs of shuffling."""
    random = np.random.RandomState(1)
    x = array(held_out)
    noise = array(
        random.randn(len(held_out), latent))
    _, mean, log_variance = net(x, noise)
    deviation = (log_variance / 2).exp()
    draws = (mean + deviation * noise).asnumpy()

    def loss_of(draws):
        pred = net.decoder(array(draws))
        values = pixel_loss(pred, x)
        return values.mean().asscalar()

    costs = []
    for dimension in range(latent):
        shuffled = draws.copy()
        random.shuffle(shuffled[:, dimension])
        costs.append(loss_of(shuffled)
                     - loss_of(draws))
    nats = per_dimension(mean, log_variance)
    nats = nats.asnumpy().sum(axis=1).mean()
    return loss_of(draws), nats, costs


measured = {name: measure(net, sizes.latent)
            for name, (net, _) in runs.items()}
print("nats lost by shuffling each dimension")
for name, (_, _, costs) in measured.items():
    print(f"{name}:")
    show(costs)

# %%
# Collapsed dimensions carry no information: if you shuffle them, nothing changes. The decoder uses all dimensions of
# the network with free nats.
#
# What free nats cost
# -------------------

print("nats        pixels  latent    sum")
for name, (pixels, nats, _) in measured.items():
    bound = pixels + nats
    print(f"{name:9}  {pixels:7.2f}  {nats:6.2f}"
          f"  {bound:5.2f}")

# %%
# With free nats the reconstructions are better and the latent variables carry more, but the sum is *larger*: the
# evidence lower bound is worse. The reason is that a dimension collapses if it gains less for the reconstruction than
# its KL term costs, and free nats keep it active nevertheless. Use free nats if you need the latent variables, for
# example to search or to sort. If you only want the best bound, accept the collapse.
#
# Images
# ------
#
# Here is one held-out image of each digit, and its reconstruction from the means of its latent variables by two
# networks.


def decode(net, latents):
    """Latent values to images, (count, 8, 8)."""
    ink = net.decoder(array(latents)).sigmoid()
    return ink.asnumpy().reshape(-1, 8, 8)


def encode(net, latent, images):
    """Means of the latent variables."""
    shape = len(images), latent
    noise = nd.zeros(shape, dtype="float64")
    return net(array(images), noise)[1].asnumpy()


examples = np.array([
    held_out[held_out_digits == digit][0]
    for digit in range(10)])
shown = {
    "held-out images": examples.reshape(-1, 8, 8)}
for name, net in (("plain", plain),
                  ("free nats", free)):
    means = encode(net, sizes.latent, examples)
    title = f"reconstructions, {name}"
    shown[title] = decode(net, means)

fig, axes = plt.subplots(3, 1, figsize=(5, 3.3))
fig.suptitle("Images and reconstructions")
for ax, (title, tiles) in zip(axes, shown.items()):
    plots.draw_sheet(ax, tiles[None])
    ax.set_title(title)
fig.savefig(
    sizes.figures / "autoencoder_drawings.png",
    **plots.PNG)

# %%
# To generate new images, pass standard normal draws to the decoder. Both networks get the same draws.

random = np.random.RandomState(2)
draws = random.randn(40, sizes.latent)

fig, axes = plt.subplots(2, 1, figsize=(5, 4.6))
fig.suptitle("Generated digits")
for ax, name in zip(axes, ("plain", "free nats")):
    tiles = decode(runs[name][0], draws)
    plots.draw_sheet(
        ax, tiles.reshape(4, 10, 8, 8))
    ax.set_title(name)
fig.savefig(
    sizes.figures / "autoencoder_samples.png",
    **plots.PNG)

# %%
# Those with free nats are sharper, but not better digits. Most images on both sheets look like digits, and some do not.
#
# A latent space of two dimensions
# --------------------------------
#
# If there are only two latent dimensions, you can draw the whole latent space. The upper part of the figure shows the
# means of twenty held-out images of each digit; the network never got the digits. The lower part shows what the decoder
# makes of each point.

plane = make_network(2)
report(fit(plane, constant, 2))

EDGE = 2.5
steps = np.linspace(-EDGE, EDGE, 11)
points = np.array([
    (x, y) for y in steps[::-1] for x in steps])
some = np.sort(np.concatenate([
    np.flatnonzero(held_out_digits == digit)[:20]
    for digit in range(10)]))

fig, (top, bottom) = plt.subplots(
    2, 1, figsize=(5, 10))
fig.suptitle("A latent space of two dimensions")
plots.draw_plane(
    top, encode(plane, 2, held_out[some]),
    held_out_digits[some], EDGE)
top.set_title("means of held-out images")
tiles = decode(plane, points)
plots.draw_sheet(
    bottom, tiles.reshape(11, 11, 8, 8), EDGE)
bottom.set_title("decoded points")
bottom.set_xlabel("first latent variable")
for ax in (top, bottom):
    ax.set_ylabel("second latent variable")
fig.savefig(
    sizes.figures / "autoencoder_plane.png",
    **plots.PNG)

# %%
# Summary
# -------
#
# * Use ``reduction="sum"`` for both losses. Instead of ``BernoulliKLLoss(reduction="sum")`` you can use a
#   cross-entropy that is summed over the pixels.
# * Watch ``GaussianKLLoss(reduction="none")`` per dimension. The total does not show which dimensions have collapsed.
# * Let the KL weight rise. Annealing delays the collapse and prevents it for some dimensions.
# * ``free_nats`` prevents the collapse, but the evidence lower bound becomes worse.
#
# Exercises
# ---------
#
# **1.** A latent dimension has the mean 1 and the variance 1 for every image. How many nats does its KL term count, and
# how much information does it carry?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>

mean = array([[1.0]])
log_variance = array([[0.0]])
nats = per_dimension(mean, log_variance)
print(f"{nats.sum().asscalar():.2f} nats")

# %%
# Its KL term is half a nat, but it carries no information, because it is the same for every image. This is why the page
# also shuffles the dimensions.
#
# .. raw:: html
#
#    </details>
#
# **2.** You use the defaults of both losses. How large is the reconstruction loss compared with ``reduction="sum"``?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>

pred = nd.zeros((1, 64), dtype="float64")
x = array(held_out[:1])
by_sum = pixel_loss(pred, x).asscalar()
by_mean = BernoulliKLLoss()(pred, x).asscalar()
print(f"sum / mean: {by_sum / by_mean:.0f}")

# %%
# It is 64 times smaller, so the KL term has 64 times the weight, and the dimensions collapse.
#
# .. raw:: html
#
#    </details>
#
# .. rubric:: Sources
#
# .. [1] D. P. Kingma and M. Welling, `Auto-Encoding Variational Bayes
#    <https://arxiv.org/abs/1312.6114>`__, 2014.
# .. [2] S. R. Bowman, L. Vilnis, O. Vinyals, A. M. Dai, R. Jozefowicz and S. Bengio, `Generating Sentences from a
#    Continuous Space <https://arxiv.org/abs/1511.06349>`__, 2016.
# .. [3] D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever and M. Welling, `Improving Variational
#    Inference with Inverse Autoregressive Flow <https://arxiv.org/abs/1606.04934>`__, 2016. There the free nats are
#    counted per dimension over a minibatch; here per dimension and image.
#
# The images are those of E. Alpaydin and C. Kaynak, `Optical Recognition of Handwritten Digits
# <https://doi.org/10.24432/C50P49>`__, UCI Machine Learning Repository, 1998.
