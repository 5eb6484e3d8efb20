r"""
Which divergence?
=================

A model that can become equal to its target makes the choice easy: every divergence is 0 there, and only there. Most
models cannot. They are too small, or of another shape, and must be wrong *somewhere*. Which divergence they minimise
decides where.

This page fits one bell to a target with two peaks, three times, and looks at what comes out. At the end it turns the
temperature of a softmax, the other dial of those who learn from soft labels.
"""

# %%
# 1. A target that the model cannot reach
# ---------------------------------------
#
# The target is a distribution over 65 places on a line, with a high peak on the left and a lower, wider one on the
# right. The model is a single bell, with two parameters: its centre and its width. Its raw scores are a parabola, and
# softmax makes a bell of them.

# sphinx_gallery_thumbnail_number = 2
import plots  # first: it says which Python this needs
from gluon_kl import DistillationLoss, JSDivLoss, KLDivLoss, ReverseKLDivLoss

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from tqdm import tqdm

plt.style.use(plots.STYLE)

places = np.linspace(-8, 8, 65)


def peak(centre, width):
    """Give a bell over the places, of total 1."""
    heights = np.exp(-0.5 * ((places - centre) / width) ** 2)
    return heights / heights.sum()


target = 0.6 * peak(-3, 0.7) + 0.4 * peak(3, 1.0)


class Bell(gluon.HybridBlock):
    """A distribution over places with one peak, as raw scores."""

    def __init__(self, centre, width):
        super().__init__()
        with self.name_scope():
            self.centre = self.number("centre", centre)
            self.log_width = self.number("log_width", np.log(width))

    def number(self, name, start):
        """Make a parameter that holds one number."""
        return self.params.get(name, shape=(1, 1), dtype="float64",
                               init=mx.init.Constant(start))

    def hybrid_forward(self, F, x, centre, log_width):
        distance = F.broadcast_sub(x, centre)
        return -0.5 * F.broadcast_div(distance, F.exp(log_width)) ** 2


def array(values):
    """Put one distribution or row of scores into a batch of its own."""
    return mx.nd.array(values[None], dtype="float64")


def fit(loss, centre, steps=400):
    """Fit a bell that starts at a centre; give its raw scores."""
    net = Bell(centre, width=1.5)
    net.initialize()
    net.hybridize()
    trainer = gluon.Trainer(
        net.collect_params(), "adam", {"learning_rate": 0.1})
    x, label = array(places), array(target)
    for _ in range(steps):
        with autograd.record():
            value = loss(net(x), label)
        value.backward()
        trainer.step(1)
    return net(x)


# %%
# 2. Three ways to be wrong
# -------------------------
#
# With :math:`p` the target (the *label*) and :math:`q` the model's distribution (the *prediction*):
#
# * :class:`~gluon_kl.KLDivLoss` is KL(p ‖ q). The target decides what counts: wherever it has mass, the model must
#   have some too, or pay without limit.
# * :class:`~gluon_kl.ReverseKLDivLoss` is KL(q ‖ p). The model decides: wherever *it* puts mass, the target must have
#   some too.
# * :class:`~gluon_kl.JSDivLoss` compares both with their mixture and never exceeds log 2 = 0.6931 [2]_.
#
# Here they are over four categories, with the term that each category adds to the last two. On the site you can take a
# share of :math:`q` to 0, then one of :math:`p`: which divergence becomes infinite, and which never does?
#
# .. raw:: html
#
#    <div class="sliders" data-categories="a b c d" data-names="p q" data-terms="reverse_kl js"
#         data-label="0.45 0.05 0.05 0.45" data-pred="0.1 0.4 0.4 0.1">

categories = ["a", "b", "c", "d"]
p, q = np.array([[0.45, 0.05, 0.05, 0.45], [0.1, 0.4, 0.4, 0.1]])
labels, preds = mx.nd.array(p[None]), mx.nd.array(q[None]).log()
terms = {
    "KL(q ‖ p)": ReverseKLDivLoss(reduction="none")(preds, labels),
    "JS": JSDivLoss(reduction="none")(preds, labels),
}

fig, (upper, lower) = plt.subplots(2, 1, figsize=(5, 5.6))
fig.suptitle("What each category adds")
upper.set_title("Shares")
plots.draw_distributions(upper, categories, q, p, ("q", "p"))
lower.set_title("Terms")
plots.draw_terms(lower, categories, {
    name: values[0].asnumpy() for name, values in terms.items()})
fig.savefig(plots.FIGURES / "which_terms.png", **plots.PNG)

# %%
# .. raw:: html
#
#    </div>
#
# The way down can end in different valleys, so each loss gets three starts: left, middle and right.

losses = {
    "KL(p ‖ q)": KLDivLoss(from_logits=False, reduction="sum"),
    "Jensen-Shannon": JSDivLoss(from_logits=False, reduction="sum"),
    "KL(q ‖ p)": ReverseKLDivLoss(from_logits=False, reduction="sum"),
}
starts = {"left": -4, "middle": 0, "right": 4}

fits = {}
for name, loss in tqdm(losses.items(), desc="fitting", disable=None):
    loss.hybridize()
    for start, centre in starts.items():
        fits[name, start] = fit(loss, centre)


def value(loss, scores):
    """Measure a model against the target, in nats."""
    return loss(scores, array(target)).asscalar()


print("loss            start   divergence  centre")
for (name, start), scores in fits.items():
    probabilities = scores.softmax()[0].asnumpy()
    print(f"{name:14}  {start:6}  {value(losses[name], scores):10.4f}"
          f"  {np.sum(probabilities * places):6.2f}")

# %%
# KL(p ‖ q) ends in the same place from everywhere. The other two have several valleys: they keep the peak that they
# started near, and cannot see the other one any more.
#
# Here is the best of each three, and with a dashed line another valley:

best = {name: min((fits[name, start] for start in starts),
                  key=lambda scores, loss=loss: value(loss, scores))
        for name, loss in losses.items()}

others = {"Jensen-Shannon": "middle", "KL(q ‖ p)": "right"}

fig, axes = plt.subplots(
    3, 1, figsize=(5, 6.8), sharex=True, sharey=True)
fig.suptitle("One bell for two peaks, three answers")
for ax, (name, scores) in zip(axes, best.items()):
    bells = {"best": scores.softmax()[0].asnumpy()}
    if name in others:
        start = others[name]
        bells[f"from the {start}"] = (
            fits[name, start].softmax()[0].asnumpy())
    ax.set_title(f"The least {name}")
    plots.draw_fits(ax, places, target, bells)
axes[-1].set_xlabel("place")
fig.savefig(plots.FIGURES / "which_divergence.png", **plots.PNG)

# %%
# This is what **mode covering** and **mode seeking** mean [1]_:
#
# * KL(p ‖ q) **covers**. Missing the small peak would cost more than anything else, so the bell spreads over both,
#   and is highest where the target has almost nothing. As a forecast that is safe: nothing that happens was called
#   impossible. As a generator it would often produce things that do not exist.
# * KL(q ‖ p) **seeks**. It settles on one peak and fits it perfectly. All that it produces is real, and two fifths of
#   what is real it never produces.
# * Jensen-Shannon stands in between: it has a valley of either kind, and here the seeking one is deeper.
#
# Who is right? Each is the best by its own measure, and by no other:

print("               measured by")
print("fitted by      KL(p ‖ q)       JS KL(q ‖ p)")
for fitted, scores in best.items():
    row = [value(loss, scores) for loss in losses.values()]
    print(f"{fitted:14}" + "".join(f"{x:10.4f}" for x in row))

# %%
# (The last two rows are nearly the same: both settled on the same peak.)
#
# 3. A dial between the two
# -------------------------
#
# ``beta`` is the share of the target in the mixture, and turns one divergence into the other [3]_. Towards 0 the
# formula approaches ``beta * KL(p ‖ q)`` and towards 1 ``(1 - beta) * KL(q ‖ p)``; ``beta=0`` and ``beta=1`` are these
# two without the factor. So divide it by ``beta * (1 - beta)``, and a smooth line leads from end to end. Here are the
# bell that covers and the bell that seeks, both measured all the way:

shares = np.concatenate([
    [0], np.logspace(-4, -1.1, 30), np.linspace(0.1, 0.9, 33),
    1 - np.logspace(-1.1, -4, 30), [1]])


def dialled(scores, beta):
    """Measure a model by JSDivLoss, free of the factors at its ends."""
    loss = JSDivLoss(
        from_logits=False, beta=beta, reduction="sum")
    factor = beta * (1 - beta) if 0 < beta < 1 else 1
    return value(loss, scores) / factor


curves = {
    "covering bell": np.array([
        dialled(best["KL(p ‖ q)"], beta) for beta in shares]),
    "seeking bell": np.array([
        dialled(best["KL(q ‖ p)"], beta) for beta in shares]),
}
print("  beta  covering bell  seeking bell")
for beta in (0, 0.0001, 0.25, 0.5, 0.75, 0.9999, 1):
    at = np.argmin(abs(shares - beta))
    covering, seeking = (line[at] for line in curves.values())
    print(f"{beta:6}  {covering:13.4f}  {seeking:12.4f}")

fig, ax = plt.subplots()
ax.set_title("Where the covering bell loses its lead")
plots.draw_dial(ax, shares, curves)
ax.set_xlabel("beta")
ax.set_ylabel("JS / (beta (1 − beta)) (nats)")
fig.savefig(plots.FIGURES / "which_beta.png", **plots.PNG)

# %%
# The dots at the ends are the two KL divergences themselves. Left of the crossing the covering bell is better, right
# of it the seeking one. The seeking bell's line reaches its 14 nats only at the very end: anywhere else the
# Jensen-Shannon divergence is bounded, so that missing a peak has a price, but not any price.
#
# 4. When nothing is shared
# -------------------------
#
# The difference is starkest for distributions that have no category in common. Both KL divergences are infinite,
# and give training nothing to follow; the Jensen-Shannon divergence is log 2.

pred, label = np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 0.5, 0.5])
for loss in (KLDivLoss(reduction="sum"), JSDivLoss(reduction="sum"),
             ReverseKLDivLoss(reduction="sum")):
    value_apart = loss(array(pred).log(), array(label)).asscalar()
    print(f"{type(loss).__name__:16}  {value_apart:.4f}")

# %%
# Mind one-hot labels for that reason: KL(p ‖ q) takes them as they are, KL(q ‖ p) needs them smoothed first.
#
# 5. The other dial: temperature
# ------------------------------
#
# Soft labels often come from a model themselves, and a well-trained model is nearly sure of everything. Dividing raw
# scores by a **temperature** before the softmax brings out what it thinks of the rest [4]_:

names = ["cat", "dog", "wolf", "fox", "car"]
teacher = np.array([7.0, 4.0, 2.5, 1.0, -4.0])

softened = {}
for temperature in (1, 3, 10):
    scores = array(teacher) / temperature
    softened[f"T = {temperature}"] = scores.softmax()[0].asnumpy()

print("      " + "".join(f"{name:>7}" for name in names))
for name, shares in softened.items():
    print(f"{name:6}" + "".join(f"{p:7.4f}" for p in shares))

fig, axes = plt.subplots(1, 3, sharey=True)
fig.suptitle("The same scores at three temperatures")
plots.draw_temperatures(axes, names, softened)
fig.savefig(plots.FIGURES / "temperature.png", **plots.PNG)

# %%
# The order never changes, and at a high temperature everything looks alike. In between, a dog is visibly more like a
# cat than a car is, and that is what a student can learn.
#
# A high temperature also makes gradients small: by :math:`1/T^2`, once the scores are small beside :math:`T`.
# :class:`~gluon_kl.DistillationLoss` multiplies by :math:`T^2`, so that the learning rate can stay as it is:

student = np.array([1.0, 2.0, 0.0, 0.5, 0.0])


def gradient_size(loss, *inputs):
    """Give the norm of the gradient to the first input."""
    inputs[0].attach_grad()
    with autograd.record():
        out = loss(*inputs)
    out.backward()
    return inputs[0].grad.norm().asscalar()


plain = KLDivLoss(from_logits=False, label_space="logits", reduction="sum")
print(" T  without T²  with T²")
for temperature in (1, 2, 5, 10, 20):
    bare = gradient_size(
        lambda pred, label, T=temperature: plain(pred / T, label / T),
        array(student), array(teacher))
    scaled = gradient_size(
        lambda pred, label, T=temperature: (
            DistillationLoss(T, hard_weight=0)(pred, None, label)),
        array(student), array(teacher))
    print(f"{temperature:2}  {bare:10.4f}  {scaled:7.4f}")

# %%
# Which one, then?
# ----------------
#
# ============================================================  ==========================================
# you want                                                      take
# ============================================================  ==========================================
# calibrated probabilities; labels from data, one-hot or soft   :class:`~gluon_kl.KLDivLoss`
# samples that are all plausible; a policy; a smooth target     :class:`~gluon_kl.ReverseKLDivLoss`
# something bounded, or supports that may not meet              :class:`~gluon_kl.JSDivLoss`
# a student of a larger model                                   :class:`~gluon_kl.DistillationLoss`
# Gaussian latent variables                                     :class:`~gluon_kl.GaussianKLLoss`
# many yes-or-no answers at once; units that seldom fire        :class:`~gluon_kl.BernoulliKLLoss`
# ============================================================  ==========================================
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
