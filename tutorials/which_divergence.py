r"""
Which divergence?
=================

**You will learn** what KL(p ‖ q), KL(q ‖ p) and the Jensen-Shannon divergence do when a model cannot become equal to
its target, and how ``beta`` and the temperature of a softmax move between the extremes.

.. image:: ../../figures/which_divergence.png
   :alt: A target with two peaks in grey, and the bell that each of three divergences fits to it. KL(p ‖ q) covers both
         peaks with one wide bell. Jensen-Shannon and KL(q ‖ p) fit one peak.
   :class: first-figure

If a model can become equal to its target, every divergence leads it there. Most models cannot: they are too small, or
have another shape. Then the divergence decides where the model is wrong. This page fits one bell to a target with two
peaks, with three losses.
"""

# %%
# 1. A target that the model cannot reach
# ---------------------------------------
#
# The target is a distribution over 65 places on a line. It has a high peak on the left and a lower, wider one on the
# right. The model is a single bell with two parameters: its centre and its width. Its logits form a parabola, and
# softmax turns them into a bell.

# sphinx_gallery_thumbnail_number = 2
import plots  # names any missing package
from gluon_kl import (DistillationLoss, JSDivLoss,
                      KLDivLoss, ReverseKLDivLoss)

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from tqdm import tqdm

plt.style.use(plots.STYLE)

places = np.linspace(-8, 8, 65)


def peak(centre, width):
    """A bell over the places, of total 1."""
    distance = (places - centre) / width
    heights = np.exp(-0.5 * distance ** 2)
    return heights / heights.sum()


target = 0.6 * peak(-3, 0.7) + 0.4 * peak(3, 1.0)


class Bell(gluon.HybridBlock):
    """The logits of a bell over the places."""

    def __init__(self, centre, width):
        super().__init__()
        with self.name_scope():
            self.centre = self.number(
                "centre", centre)
            self.log_width = self.number(
                "log_width", np.log(width))

    def number(self, name, start):
        """Make a parameter of one number."""
        return self.params.get(
            name, shape=(1, 1), dtype="float64",
            init=mx.init.Constant(start))

    def hybrid_forward(
            self, F, x, centre, log_width):
        distance = F.broadcast_div(
            F.broadcast_sub(x, centre),
            F.exp(log_width))
        return -0.5 * distance ** 2


def array(values):
    """A batch of one distribution."""
    values = values[None]
    return mx.nd.array(values, dtype="float64")


def fit(loss, centre, steps=400):
    """Fit a bell that starts at a centre."""
    net = Bell(centre, width=1.5)
    net.initialize()
    net.hybridize()
    trainer = gluon.Trainer(
        net.collect_params(), "adam",
        {"learning_rate": 0.1})
    x, label = array(places), array(target)
    for _ in range(steps):
        with autograd.record():
            value = loss(net(x), label)
        value.backward()
        trainer.step(1)
    return net(x)


# %%
# 2. Three losses
# ---------------
#
# Let :math:`p` be the target (the *label*) and :math:`q` the model's distribution (the *prediction*).
#
# * :class:`~gluon_kl.KLDivLoss` is KL(p ‖ q). Wherever the *target* has probability, the model must have some too.
#   Otherwise the loss grows without limit.
# * :class:`~gluon_kl.ReverseKLDivLoss` is KL(q ‖ p). Wherever the *model* has probability, the target must have some
#   too.
# * :class:`~gluon_kl.JSDivLoss` compares both with their mixture. It is never larger than log 2 = 0.6931 [2]_.
#
# The figure shows four categories, and the term that each category adds to the last two losses. On the site you can
# move a probability of :math:`q` to 0, and then one of :math:`p`. Which divergence becomes infinite, and which never
# does?
#
# .. raw:: html
#
#    <div class="sliders" data-categories="a b c d" data-names="p q" data-terms="reverse_kl js"
#         data-label="0.45 0.05 0.05 0.45" data-pred="0.1 0.4 0.4 0.1">

categories = ["a", "b", "c", "d"]
p = np.array([0.45, 0.05, 0.05, 0.45])
q = np.array([0.1, 0.4, 0.4, 0.1])
labels, preds = array(p), array(q).log()
terms = {}
for name, kind in (("KL(q ‖ p)", ReverseKLDivLoss),
                   ("JS", JSDivLoss)):
    loss = kind(reduction="none")
    terms[name] = loss(preds, labels)[0].asnumpy()

fig, (upper, lower) = plt.subplots(
    2, 1, figsize=(5, 5.6))
fig.suptitle("What each category adds")
upper.set_title("Probabilities")
plots.draw_distributions(
    upper, categories, q, p, ("q", "p"))
lower.set_title("Terms")
plots.draw_terms(lower, categories, terms)
fig.savefig(
    plots.FIGURES / "which_terms.png", **plots.PNG)

# %%
# .. raw:: html
#
#    </div>
#
# A loss can have several local minima, so train with each loss from three starting points: left, middle and right.

losses = {
    "KL(p ‖ q)": KLDivLoss,
    "Jensen-Shannon": JSDivLoss,
    "KL(q ‖ p)": ReverseKLDivLoss,
}
losses = {
    name: kind(from_logits=False, reduction="sum")
    for name, kind in losses.items()}
starts = {"left": -4, "middle": 0, "right": 4}

fits = {}
for name in tqdm(losses, disable=None):
    loss = losses[name]
    loss.hybridize()
    for start, centre in starts.items():
        fits[name, start] = fit(loss, centre)


def value(loss, logits):
    """A model against the target, in nats."""
    return loss(logits, array(target)).asscalar()


print("loss            start   divergence  centre")
for (name, start), logits in fits.items():
    probabilities = logits.softmax()[0].asnumpy()
    nats = value(losses[name], logits)
    centre = np.sum(probabilities * places)
    print(f"{name:14}  {start:6}  {nats:10.4f}"
          f"  {centre:6.2f}")

# %%
# KL(p ‖ q) ends at the same place from every start. The other two have several minima: the bell stays at a peak near
# its start.
#
# The figure shows the best of the three fits, and as a dashed line another minimum:

best = {}
for name, loss in losses.items():
    best[name] = min(
        (fits[name, start] for start in starts),
        key=lambda z, loss=loss: value(loss, z))

others = {"Jensen-Shannon": "middle",
          "KL(q ‖ p)": "right"}

fig, axes = plt.subplots(
    3, 1, figsize=(5, 5.4),
    sharex=True, sharey=True)
fig.suptitle("One bell for two peaks")
for ax, (name, logits) in zip(axes, best.items()):
    bells = {"best": logits.softmax()[0].asnumpy()}
    if name in others:
        start = others[name]
        other = fits[name, start].softmax()[0]
        dashed = f"from the {start}"
        bells[dashed] = other.asnumpy()
    ax.set_title(f"Smallest {name}")
    plots.draw_fits(ax, places, target, bells)
axes[-1].set_xlabel("place")
fig.savefig(
    plots.FIGURES / "which_divergence.png",
    **plots.PNG)

# %%
# This is the meaning of **mode covering** and **mode seeking** [1]_:
#
# * KL(p ‖ q) **covers**. To miss the small peak would cost most, so the bell covers both peaks, and it is highest where
#   the target is almost 0. This is good for a forecast: nothing that happens was called impossible. It is bad for a
#   generator, which would often produce things that do not exist.
# * KL(q ‖ p) **seeks**. It chooses one peak and fits it perfectly. Everything that it produces is realistic, but it
#   never produces two fifths of what is real.
# * Jensen-Shannon is between the two. It has minima of both kinds, and here the seeking one is deeper.
#
# Which fit is best? Each fit is the best by its own loss only:

print("               measured by")
print("fitted by      "
      "KL(p ‖ q)       JS KL(q ‖ p)")
for fitted, logits in best.items():
    nats = [value(loss, logits)
            for loss in losses.values()]
    print(f"{fitted:14}"
          + "".join(f"{x:10.4f}" for x in nats))

# %%
# (The last two lines are nearly the same, because both losses chose the same peak.)
#
# 3. From one to the other: beta
# ------------------------------
#
# ``beta`` is the share of the target in the mixture. It turns one divergence into the other [3]_. Near 0 the
# formula approaches ``beta * KL(p ‖ q)``, and near 1 it approaches ``(1 - beta) * KL(q ‖ p)``. At ``beta=0`` and
# ``beta=1`` the loss is these two without the factor. So divide by ``beta * (1 - beta)`` to get one smooth curve. Here
# are the covering bell and the seeking bell, measured at every ``beta``:

near_0 = np.logspace(-4, -1.1, 30)
shares = np.concatenate([
    [0], near_0, np.linspace(0.1, 0.9, 33),
    1 - near_0[::-1], [1]])


def scaled(logits, beta):
    """JSDivLoss without the factor."""
    loss = JSDivLoss(from_logits=False, beta=beta,
                     reduction="sum")
    nats = value(loss, logits)
    if beta in (0, 1):
        return nats
    return nats / (beta * (1 - beta))


bells = {"covering bell": best["KL(p ‖ q)"],
         "seeking bell": best["KL(q ‖ p)"]}
curves = {
    name: np.array([
        scaled(logits, beta) for beta in shares])
    for name, logits in bells.items()}
print("  beta  covering bell  seeking bell")
for beta in (0, 0.0001, 0.25, 0.5, 0.75,
             0.9999, 1):
    at = np.argmin(abs(shares - beta))
    covering, seeking = (
        line[at] for line in curves.values())
    print(f"{beta:6}  {covering:13.4f}"
          f"  {seeking:12.4f}")

fig, ax = plt.subplots()
ax.set_title("The better bell depends on beta")
plots.draw_dial(ax, shares, curves)
ax.set_xlabel("beta")
ax.set_ylabel("JS / (beta (1 − beta)) (nats)")
fig.savefig(
    plots.FIGURES / "which_beta.png", **plots.PNG)

# %%
# The dots at the ends are the two KL divergences. To the left of the crossing the covering bell is better, to the
# right the seeking one. The curve of the seeking bell reaches 14 nats only at the very end. Everywhere else the
# Jensen-Shannon divergence is bounded, so the cost of missing a peak is limited.
#
# 4. No category in common
# ------------------------
#
# The difference is largest for two distributions that have no category in common. Both KL divergences are infinite,
# and their gradients do not help. The Jensen-Shannon divergence is log 2:

pred = np.array([0.5, 0.5, 0, 0])
label = np.array([0, 0, 0.5, 0.5])
for kind in (KLDivLoss, JSDivLoss,
             ReverseKLDivLoss):
    loss = kind(reduction="sum")
    nats = loss(array(pred).log(), array(label))
    print(f"{kind.__name__:16}"
          f"  {nats.asscalar():.4f}")

# %%
# For this reason, be careful with one-hot labels. KL(p ‖ q) takes them as they are. KL(q ‖ p) needs smoothed labels.
#
# 5. Temperature
# --------------
#
# Soft labels often come from another model, and a well-trained model is nearly certain of everything. Divide its
# logits by a **temperature** before the softmax, and the probabilities of the other classes become visible [4]_:

names = ["cat", "dog", "wolf", "fox", "car"]
teacher = np.array([7.0, 4.0, 2.5, 1.0, -4.0])

softened = {}
for temperature in (1, 3, 10):
    logits = array(teacher) / temperature
    probabilities = logits.softmax()[0].asnumpy()
    softened[f"T = {temperature}"] = probabilities

print(" " * 6, *(f"{name:>6}" for name in names))
for name, probabilities in softened.items():
    print(f"{name:6}",
          *(f"{x:6.4f}" for x in probabilities))

fig, axes = plt.subplots(1, 3, sharey=True)
fig.suptitle("The same logits, three temperatures")
plots.draw_temperatures(axes, names, softened)
fig.savefig(
    plots.FIGURES / "temperature.png", **plots.PNG)

# %%
# The order never changes, and at a high temperature all classes look alike. In between, you can see that a dog is more
# similar to a cat than a car is. This is what a student can learn.
#
# A high temperature also makes the gradient smaller: by :math:`1/T^2`, if the logits are small compared with
# :math:`T`. :class:`~gluon_kl.DistillationLoss` multiplies by :math:`T^2`, so you can keep the learning rate:

student = np.array([1.0, 2.0, 0.0, 0.5, 0.0])
plain = KLDivLoss(
    from_logits=False, label_space="logits",
    reduction="sum")


def gradient_size(loss):
    """Norm of the gradient to the student."""
    pred, label = array(student), array(teacher)
    pred.attach_grad()
    with autograd.record():
        out = loss(pred, label)
    out.backward()
    return pred.grad.norm().asscalar()


print(" T  without T²  with T²")
for T in (1, 2, 5, 10, 20):
    distil = DistillationLoss(T, hard_weight=0)
    bare = gradient_size(
        lambda z, t, T=T: plain(z / T, t / T))
    times_t2 = gradient_size(
        lambda z, t, loss=distil: loss(z, None, t))
    print(f"{T:2}  {bare:10.4f}  {times_t2:7.4f}")

# %%
# Summary
# -------
#
# ============================================================  ==========================================
# you want                                                      use
# ============================================================  ==========================================
# calibrated probabilities; labels from data, one-hot or soft   :class:`~gluon_kl.KLDivLoss`
# only plausible samples; a policy; a target without zeros      :class:`~gluon_kl.ReverseKLDivLoss`
# a bounded loss; supports that may not overlap                 :class:`~gluon_kl.JSDivLoss`
# a student of a larger model                                   :class:`~gluon_kl.DistillationLoss`
# Gaussian latent variables                                     :class:`~gluon_kl.GaussianKLLoss`
# several yes-or-no outputs; units that are rarely active       :class:`~gluon_kl.BernoulliKLLoss`
# ============================================================  ==========================================
#
# Exercises
# ---------
#
# **1.** A model predicts (0.5, 0.5, 0), and the target is (0.4, 0.4, 0.2). Which of the three divergences are finite?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>

pred = np.array([0.5, 0.5, 0])
label = np.array([0.4, 0.4, 0.2])
for kind in (KLDivLoss, JSDivLoss,
             ReverseKLDivLoss):
    loss = kind(reduction="sum")
    nats = loss(array(pred).log(), array(label))
    print(f"{kind.__name__}:",
          f"{nats.asscalar():.4f}")

# %%
# KL(p ‖ q) is infinite, because the prediction excludes a category that the target has. KL(q ‖ p) is finite: the model
# has probability only where the target has some too.
#
# .. raw:: html
#
#    </details>
#
# **2.** You swap ``pred`` and ``label`` in ``JSDivLoss()``. Does the value change? And with ``beta=0.25``?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>

for beta in (0.5, 0.25):
    loss = JSDivLoss(
        pred_space="probs", beta=beta,
        reduction="sum")
    there = loss(array(pred), array(label))
    back = loss(array(label), array(pred))
    print(f"beta {beta}: {there.asscalar():.4f}"
          f" and {back.asscalar():.4f}")

# %%
# With ``beta=0.5``, the default, the divergence is symmetric. With any other ``beta`` it is not.
#
# .. raw:: html
#
#    </details>
#
# .. rubric:: Sources
#
# .. [1] T. Minka, `Divergence measures and message passing
#    <https://www.microsoft.com/en-us/research/publication/divergence-measures-and-message-passing/>`__, Microsoft
#    Research Technical Report MSR-TR-2005-173, 2005.
# .. [2] J. Lin, `Divergence measures based on the Shannon entropy <https://doi.org/10.1109/18.61115>`__, IEEE
#    Transactions on Information Theory 37, 1991.
# .. [3] R. Agarwal et al., `On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes
#    <https://arxiv.org/abs/2306.13649>`__, 2024.
# .. [4] G. Hinton, O. Vinyals and J. Dean, `Distilling the Knowledge in a Neural Network
#    <https://arxiv.org/abs/1503.02531>`__, 2015.
