r"""
A sparse autoencoder
====================

**You will learn** how to make hidden units sparse with :class:`~gluon_kl.BernoulliKLLoss`: a penalty lets each unit be
active for few images only, so that each unit comes to mean something.

.. image:: ../../figures/sparse_activity.png
   :alt: The mean activation of each hidden unit, sorted, of a dense and of a sparse network. Units of the sparse
         network are near a tenth, those of the dense network near a half.
   :class: first-figure

An autoencoder with many hidden units can reconstruct an image, but it tells us little about the image: every unit takes
part in every digit, and no unit has a meaning of its own. If each unit should be active for only *one image in twenty*,
it has to specialize. The penalty is the KL divergence between two coins. One shows heads in 5 % of all throws. The
other shows heads as often as the unit is active.

:class:`~gluon_kl.BernoulliKLLoss` is the divergence of coins, or of yes-or-no answers. This page uses it twice: for the
sparsity penalty, and for the reconstruction.
"""

# %%
# The divergence of two coins
# ---------------------------
#
# For a coin with the probability :math:`\rho` of heads and a coin with :math:`q`, the divergence is
#
# .. math:: \mathrm{KL}(\rho \,\|\, q) = \rho \log \frac{\rho}{q} + (1 - \rho) \log \frac{1 - \rho}{1 - q}
#
# nats. The label is :math:`\rho`. It can be an array, or one number for all elements.

# sphinx_gallery_thumbnail_number = 2
import plots  # names any missing package
from gluon_kl import BernoulliKLLoss

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from sklearn import model_selection
from sklearn.datasets import load_digits
from tqdm import tqdm

plt.style.use(plots.STYLE)
sizes = plots.options(
    "Train autoencoders, dense and sparse.",
    epochs=(80, "passes over the images"),
    hidden=(48, "hidden units, a multiple of 8"),
    activity=(0.05, "target for the activation"),
    weight=(0.5, "of the sparsity penalty"))


def array(x):
    """Make an MXNet array of 64-bit numbers."""
    return nd.array(x, dtype="float64")


penalty = BernoulliKLLoss(
    from_sigmoid=True, reduction="none")
active = array([[0.01, 0.05, 0.2, 0.5, 0.99]])
nats = penalty(active, sizes.activity)
print("active for  penalty")
for share, cost in zip(active[0].asnumpy(),
                       nats[0].asnumpy()):
    print(f"{share:10.0%}{cost:8.4f} nats")

# %%
# ``from_sigmoid=True`` means that ``pred`` already holds probabilities. The penalty is exactly 0 for the target, and it
# grows without limit as a unit becomes active for every image.
#
# (The page uses 64-bit numbers so that every machine prints the same. You do not need them.)
#
# The network
# -----------
#
# A hidden unit is a sigmoid, so its activation is between 0 and 1. The output of the network is one logit per pixel,
# before the sigmoid, which is the default of ``BernoulliKLLoss``. A pixel is a number from 0 to 1, the share of ink.
# The reconstruction loss is the divergence, added over the 64 pixels.


def load_images():
    """Images, pixels from 0 to 1, and digits.

    Training part and 600 held-out ones of each.
    """
    images, digits = load_digits(return_X_y=True)
    return model_selection.train_test_split(
        images / 16, digits, test_size=600,
        stratify=digits, random_state=0)


parts = load_images()
images, held_out, digits, held_out_digits = parts


class Autoencoder(gluon.nn.HybridBlock):
    """Logits of pixels, activations of units."""

    def __init__(self, hidden):
        super().__init__()
        with self.name_scope():
            self.encoder = gluon.nn.Dense(
                hidden, activation="sigmoid")
            self.decoder = gluon.nn.Dense(
                64, in_units=hidden)

    def hybrid_forward(self, F, images):
        activations = self.encoder(images)
        pred = self.decoder(activations)
        return pred, activations


# %%
# The penalty uses the *mean* activation of a unit over the batch, not the activation for a single image. So a unit can
# be fully active for some images. The penalty is added over the units.

pixel_loss = BernoulliKLLoss(reduction="sum")
sparsity_loss = BernoulliKLLoss(
    from_sigmoid=True, reduction="sum")
pixel_loss.hybridize()
sparsity_loss.hybridize()


def fit(weight):
    """Train with this weight of the penalty."""
    mx.random.seed(0)
    net = Autoencoder(sizes.hidden)
    net.cast("float64")
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True)
    trainer = gluon.Trainer(
        net.collect_params(), "adam",
        {"learning_rate": 0.01})
    random = np.random.RandomState(0)
    epochs = range(sizes.epochs)
    for _ in tqdm(epochs, disable=None):
        order = random.permutation(len(images))
        parts = np.array_split(
            order, len(order) // 100)
        for part in parts:
            x = array(images[part])
            with autograd.record():
                pred, activations = net(x)
                loss = pixel_loss(pred, x).mean()
                mean = activations.mean(
                    axis=0, keepdims=True)
                if weight:
                    extra = sparsity_loss(
                        mean, sizes.activity)
                    loss = loss + weight * extra
            loss.backward()
            trainer.step(1)
    return net


networks = {"dense": fit(0),
            "sparse": fit(sizes.weight)}

# %%
# Costs and benefits
# ------------------
#
# Measured on the held-out images: the reconstruction loss, the mean activation, and how many units are more than half
# active for one image.

activations = {}
print("           loss  activation  active units")
for name, net in networks.items():
    pred, found = net(array(held_out))
    loss = pixel_loss(pred, array(held_out))
    found = found.asnumpy()
    activations[name] = found
    many = np.sum(found > 0.5, axis=1).mean()
    print(f"{name:6}{loss.mean().asscalar():5.2f}"
          f" nats{found.mean():11.1%}{many:14.1f}")

# %%
# In the sparse network, two or three units are active for an image, instead of half of the units. The reconstructions
# are a little worse. The figure shows each unit:

fig, ax = plt.subplots()
ax.set_title("How often hidden units are active")
plots.draw_ranked(ax, {
    name: found.mean(axis=0)
    for name, found in activations.items()})
plots.draw_level(
    ax, sizes.activity, "target", ":",
    side="right")
ax.set_xlabel("hidden units, sorted")
ax.set_ylabel("mean activation")
fig.savefig(
    sizes.figures / "sparse_activity.png",
    **plots.PNG)

# %%
# The penalty is a cost, not a constraint. Units are active for one image in ten, although the target is one in twenty,
# because this makes the reconstructions better. One unit of the dense network is always active: it acts as a constant.
#
# What the units mean
# -------------------
#
# To see what a unit means, set its activation to 1, set all others to their mean, and decode the result.


def decode_units(name):
    """One image per hidden unit, (units, 8, 8)."""
    means = activations[name].mean(axis=0)
    units = np.tile(means, (sizes.hidden, 1))
    np.fill_diagonal(units, 1)
    net = networks[name]
    ink = net.decoder(array(units)).sigmoid()
    return ink.asnumpy().reshape(-1, 8, 8)


fig, axes = plt.subplots(2, 1, figsize=(5, 7.4))
fig.suptitle("Each hidden unit, fully active")
for ax, name in zip(axes, networks):
    tiles = decode_units(name)
    plots.draw_sheet(
        ax, tiles.reshape(-1, 8, 8, 8))
    ax.set_title(name)
fig.savefig(
    sizes.figures / "sparse_units.png",
    **plots.PNG)

# %%
# In the dense network a single unit hardly changes the image, which is always near the mean of all digits. Most
# units of the sparse network show a digit or a part of one, although the network never got the digits.
#
# How much does the most active unit alone tell about the digit? A guess is correct for one image in ten. For each unit,
# take the digit for which it was most often the most active one among the training images. Then use these digits to
# classify the held-out images.


def accuracy_of_top_unit(net):
    """Accuracy if the most active unit decides."""
    top, unseen = (
        net(array(x))[1].asnumpy().argmax(axis=1)
        for x in (images, held_out))
    counts = np.zeros((sizes.hidden, 10))
    np.add.at(counts, (top, digits), 1)
    found = counts.argmax(axis=1)[unseen]
    return np.mean(found == held_out_digits)


for name, net in networks.items():
    accuracy = accuracy_of_top_unit(net)
    print(f"{name:6} {accuracy:.1%} accuracy")

# %%
# Summary
# -------
#
# * The sparsity penalty is ``BernoulliKLLoss(from_sigmoid=True, reduction="sum")`` of the mean activations, with the
#   label 0.05.
# * For yes-or-no labels and logits, use ``BernoulliKLLoss()``. It differs from ``SigmoidBinaryCrossEntropyLoss`` by the
#   entropy of the labels, so it is 0 if the prediction equals the label.
# * Choose the weight of the penalty by the mean activation. If it is too small, the units are not sparse; if it is too
#   large, the reconstructions are bad.
#
# Exercises
# ---------
#
# **1.** A unit is active for a fifth of the images. Is the divergence in the other direction, KL(q ‖ ρ), the same as
# the penalty, KL(ρ ‖ q)?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>

rho, q = array([[0.05]]), array([[0.2]])
for name, pred, label in (("KL(ρ ‖ q)", q, rho),
                          ("KL(q ‖ ρ)", rho, q)):
    nats = penalty(pred, label).sum().asscalar()
    print(f"{name}: {nats:.4f} nats")

# %%
# No. As for every KL divergence, the order matters: ``label`` is the first argument of KL.
#
# .. raw:: html
#
#    </details>
#
# **2.** All pixels of the prediction have the logit 0. How large is the loss for a black pixel (1), a white pixel (0)
# and a grey pixel (0.5)?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>

pixels = BernoulliKLLoss(reduction="none")
values = pixels(
    array([[0, 0, 0]]), array([[1, 0, 0.5]]))
print(values.asnumpy().round(4))

# %%
# It is log 2 = 0.6931 for black and white. It is 0 for grey, because the sigmoid of 0 is 0.5.
#
# .. raw:: html
#
#    </details>
#
# .. rubric:: Sources
#
# The penalty is that of A. Ng, `Sparse autoencoder
# <https://web.stanford.edu/class/cs294a/sparseAutoencoder.pdf>`__, lecture notes of CS294A, Stanford, 2011.
#
# The images are those of E. Alpaydin and C. Kaynak, `Optical Recognition of Handwritten Digits
# <https://doi.org/10.24432/C50P49>`__, UCI Machine Learning Repository, 1998.
