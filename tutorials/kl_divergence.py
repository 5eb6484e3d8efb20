r"""
KL divergence, step by step
===========================

**You will learn** what the KL divergence measures, how to call :class:`~gluon_kl.KLDivLoss` on probabilities and on
logits, what a probability of 0 does, and how to train a network on soft labels.

.. image:: ../../figures/terms.png
   :alt: On the left, bars of a predicted and a true distribution over four kinds of weather. On the right, the term
         that each of them adds to the KL divergence: 0.12, -0.09, -0.07 and 0.14.
   :class: first-figure

A forecast gives a probability to each kind of weather. How far is it from what really happens? The
**Kullback-Leibler divergence** answers with one number. It is 0 for a perfect forecast, and it grows as the forecast
gets worse. A network learns by making this number small. You need to know logarithms and a little MXNet. The code
above each number prints it.
"""

# %%
# 1. What it measures
# -------------------
#
# Here are four distributions over the same four categories. ``dist_1`` is a forecast. ``dist_2`` and ``dist_3`` are
# the weather of two seasons. (Step 5 uses ``dist_4``.)

import plots  # names any missing package
from gluon_kl import KLDivLoss

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from sklearn.datasets import load_digits
from tqdm import tqdm

plt.style.use(plots.STYLE)

weather = ["sun", "cloud", "rain", "snow"]
dist_1 = np.array([0.2, 0.5, 0.2, 0.1])
dist_2 = np.array([0.3, 0.4, 0.1, 0.2])
dist_3 = np.array([0.1, 0.1, 0.1, 0.7])
dist_4 = np.array([0.0, 0.9, 0.0, 0.1])

# %%
# Draw them. Where the bars overlap, the forecast was good. Where you see one colour alone, it was wrong.

fig, axes = plt.subplots(1, 2, sharey=True)
fig.suptitle("The same forecast in two seasons")
pairs = [("dist_2", dist_2), ("dist_3", dist_3)]
for ax, (name, season) in zip(axes, pairs):
    ax.set_title(f"dist_1 & {name}")
    plots.draw_distributions(
        ax, weather, dist_1, season,
        ("dist_1", name))
axes[1].set_ylabel("")
fig.savefig(
    plots.FIGURES / "distributions.png",
    **plots.PNG)

# %%
# The figure shows that ``dist_2`` is close to ``dist_1``, and ``dist_3`` is far from it. To get a number, measure
# **surprise**. If you gave an event the probability :math:`q`, then your surprise when it happens is
# :math:`-\log q`. It is 0 if you were certain of the event, and large if you thought it unlikely.
#
# Suppose that the weather follows :math:`p` and you believe :math:`q`. Then your average surprise is
# :math:`-\sum_i p_i \log q_i`. It is smallest if you believe :math:`p` itself. Even then
# :math:`-\sum_i p_i \log p_i` is left, because the weather is uncertain. The difference between the two is the KL
# divergence [1]_. It is the extra surprise that the wrong belief causes:
#
# .. math:: \mathrm{KL}(p \,\|\, q) = \sum_i p_i \,(\log p_i - \log q_i)
#
# It is never negative, and it is 0 only if :math:`p = q`. With the natural logarithm, its unit is the *nat*; one nat
# is 1.4427 bits.


def kl_divergence(p, q):
    """KL(p || q) in nats, by the formula."""
    return np.sum(p * (np.log(p) - np.log(q)))


pairs = {
    "dist_2 || dist_1": (dist_2, dist_1),
    "dist_1 || dist_2": (dist_1, dist_2),
    "dist_3 || dist_1": (dist_3, dist_1),
    "dist_1 || dist_3": (dist_1, dist_3),
}
for name, (p, q) in pairs.items():
    value = kl_divergence(p, q)
    print(f"KL({name}) = {value:.4f}")

# %%
# The figure was right: ``dist_3`` is ten times as far from ``dist_1`` as ``dist_2`` is. And **the order matters**:
# :math:`p` decides how often each surprise happens. KL(p ‖ q) and KL(q ‖ p) are different numbers, so the divergence
# is not a distance as in geometry.
#
# Try it
# ^^^^^^
#
# Each category adds one term to the sum. The term is positive where the label (what really happened) is above the
# prediction, and negative where it is below. The total is never negative. On the site you can move each probability;
# the others keep their proportions. Try to predict no snow at all: a prediction of 0 makes the divergence infinite.
#
# .. raw:: html
#
#    <div class="sliders" data-categories="sun cloud rain snow" data-names="label pred" data-terms="kl"
#         data-label="0.3 0.4 0.1 0.2" data-pred="0.2 0.5 0.2 0.1">

fig, (left, right) = plt.subplots(1, 2)
fig.suptitle("Where the 0.1017 nats come from")
left.set_title("Probabilities")
plots.draw_distributions(
    left, weather, dist_1, dist_2,
    ("pred", "label"))
right.set_title("Terms")
terms = dist_2 * np.log(dist_2 / dist_1)
plots.draw_terms(right, weather, {"KL": terms})
fig.savefig(
    plots.FIGURES / "terms.png", **plots.PNG)

# %%
# .. raw:: html
#
#    </div>
#
# 2. The loss on probabilities
# ----------------------------
#
# Every Gluon loss is called as ``loss(pred, label)``. The prediction is what the model says; the label is what it
# should say. :class:`~gluon_kl.KLDivLoss` computes KL(label ‖ pred): the *label* is :math:`p` in the formula, and the
# *prediction* is :math:`q`.
#
# With ``from_logits=True``, the default, the loss expects
#
# * ``pred`` as **log**-probabilities, which ``log_softmax`` gives,
# * ``label`` as plain probabilities,
# * both with a batch axis, which is the first one by default.
#
# It returns one number per sample. ``reduction="sum"`` asks for the formula above; step 6 explains the default.


def batch(*distributions):
    """Stack distributions along a batch axis."""
    return mx.nd.array(np.stack(distributions))


def rounded(values):
    """Round to four decimals, for printing."""
    values = values.asnumpy().astype("float64")
    return np.round(values, 4).tolist()


divergence = KLDivLoss(
    from_logits=True, reduction="sum")

labels = {"2": dist_2, "3": dist_3, "1": dist_1}
for name, label in labels.items():
    value = divergence(
        batch(dist_1).log(), batch(label))
    print(f"distribution 1 against {name}: "
          f"{value.asscalar():.4f}")

# %%
# The first two numbers are those of NumPy above, and a perfect forecast gives 0. One call can compute all three:

forecasts = batch(dist_1, dist_1, dist_1)
seasons = batch(dist_2, dist_3, dist_1)
print(rounded(
    divergence(forecasts.log(), seasons)))

# %%
# A common mistake is a missing logarithm: probabilities instead of log-probabilities. The loss does not check values
# while it trains. But *you* can see the mistake, because no divergence is below zero:

print(rounded(divergence(forecasts, seasons)))

# %%
# ``divergence.check_inputs(pred, label)`` finds this mistake and others; call it on the first batch. If a network ends
# in a softmax, do not take the logarithm yourself: use ``pred_space="probs"``.
#
# .. note::
#
#    The name ``from_logits`` comes from Gluon and is easy to misread. ``True`` means that ``pred`` is *already* in log
#    space. In Keras the same name means the opposite: outputs that still need a softmax.
#
# 3. Logits: the loss applies the softmax
# ---------------------------------------
#
# The last layer of a network gives neither probabilities nor their logarithms. It gives *logits*: any real numbers,
# which softmax turns into probabilities. With ``from_logits=False``, pass the logits as they are. The softmax of
# these logits is ``dist_1``:

logits = mx.nd.array([[
    0.39056206, 1.3068528, 0.39056206,
    -0.30258512]])
divergence_of_logits = KLDivLoss(
    from_logits=False, reduction="sum")

print("softmax:", rounded(logits.softmax())[0])
value = divergence_of_logits(
    logits, batch(dist_2))
print("distribution 1 against 2: "
      f"{value.asscalar():.4f}")

# %%
# This is the same number as before. Why not call ``softmax`` and ``log`` yourself? Because it fails for a confident
# network. Suppose that two logits differ by 200, which can happen early in training. The smaller probability is
# :math:`e^{-200}`. A 32-bit number cannot hold it, so it becomes 0, its logarithm becomes minus infinity, and the loss
# becomes infinite:

confident = mx.nd.array([[0.0, 200.0]])
even = batch([0.5, 0.5])
confident.attach_grad()

logs = confident.softmax().log()
print("softmax, then log: ",
      rounded(divergence(logs, even)))
with autograd.record():
    value = divergence_of_logits(confident, even)
value.backward()
print("from_logits=False: ", rounded(value))
print("its gradient:      ",
      rounded(confident.grad)[0])

# %%
# The loss uses log-softmax inside, which never computes the small number itself:
#
# .. math:: \log \mathrm{softmax}(z)_i = z_i - m - \log \sum_j e^{z_j - m}
#
# with :math:`m = \max_j z_j`. The gradient is simple and never large, :math:`\mathrm{softmax}(z) - p`: the predicted
# probabilities minus the true ones. **Networks give logits, so train with** ``from_logits=False``.
#
# 4. Both sides as logits
# -----------------------
#
# Sometimes the label is the output of another network, such as a teacher. With ``label_space="logits"`` the loss takes
# its logits too. Here are two samples of three categories:

label_logits = mx.nd.array(
    [[0.05, 0.16, 0.9], [0.8, 4.15, 0.05]])
pred_logits = mx.nd.array(
    [[0.7, 0.2, 0.1], [0.15, 0.9, 0.05]])
both_logits = KLDivLoss(
    from_logits=False, label_space="logits",
    reduction="sum")

print(rounded(
    both_logits(pred_logits, label_logits)))

# %%
# In TensorFlow you need two calls for this number. Step 1 defined the divergence as the difference of two average
# surprises. They are called *cross-entropy* and *entropy*:
#
# .. math:: \mathrm{KL}(p \,\|\, q) = H(p, q) - H(p)
#
# ``tf.nn.softmax_cross_entropy_with_logits`` [2]_ gives the first. Called with the label's own logits, it gives the
# second:


def softmax_cross_entropy(labels, logits):
    """What TensorFlow's function computes."""
    logs = logits.log_softmax()
    return -(labels * logs).sum(axis=1)


labels = label_logits.softmax()
cross_entropy = softmax_cross_entropy(
    labels, pred_logits)
entropy = softmax_cross_entropy(
    labels, label_logits)

print("cross-entropy:    ",
      rounded(cross_entropy))
print("entropy of label: ", rounded(entropy))
print("difference:       ",
      rounded(cross_entropy - entropy))

# %%
# Both ways give the same result. The entropy does not depend on the prediction. So cross-entropy and divergence give a
# network the same gradient. But only the divergence shows how much is left to learn: its minimum is 0, and the minimum
# of the cross-entropy is the entropy of the labels.
#
# The loss does not subtract two nearly equal numbers as above, because that loses digits. For equal logits it gives
# exactly 0, and it never gives less.
#
# 5. Probabilities of 0
# ---------------------
#
# ``dist_4`` gives sun and rain the probability 0. The categories with a probability above 0 are the *support* of a
# distribution. Here the supports differ, and the order matters again:

pairs = [
    ("4 against 1", dist_4, dist_1),
    ("1 against 4", dist_1, dist_4),
    ("4 against 4", dist_4, dist_4),
]
for name, pred, label in pairs:
    value = divergence(
        batch(pred).log(), batch(label))
    print(f"distribution {name}: "
          f"{value.asscalar():.4f}")

# %%
# **4 against 1 is infinite, and this is correct.** The forecast said that sun is impossible, and then the sun shone
# on one day in five.
#
# **1 against 4 is finite.** The forecast expected some sun, and there was none. A category that never happens adds 0,
# because :math:`p \log p` has the limit 0.
#
# **4 against 4 is 0**, as for every perfect forecast.
#
# Other texts print *not-a-number* in the first case, for example MXNet's own tutorial [3]_. Up to version 1.6, MXNet's
# mean kept a correction for round-off, and an infinite term turned it into :math:`\infty - \infty` [4]_. In the third
# case MXNet's own loss still gives not-a-number, because it multiplies :math:`0 \cdot \infty`. ``gluon_kl`` leaves
# these terms out before it multiplies.
#
# Two repairs that hide it
# ^^^^^^^^^^^^^^^^^^^^^^^^
#
# An infinite loss looks like an error. Two repairs are common: add a small value to all probabilities, as MXNet's
# tutorial advises [3]_, or clip the prediction from below. Both give a finite number. Which number?


def added(pred, label, small):
    """A small value added on both sides."""
    logs = (pred + small).log()
    return divergence(logs, label + small)


def clipped(pred, label, small):
    """The prediction clipped from below."""
    logs = pred.clip(small, 1).log()
    return divergence(logs, label)


pairs = [("4 against 1", dist_4, dist_1),
         ("1 against 2", dist_1, dist_2)]
for name, pred, label in pairs:
    print(f"distribution {name}")
    inputs = batch(pred), batch(label)
    for small in (1e-12, 1e-7, 1e-3):
        first = added(*inputs, small).asscalar()
        last = clipped(*inputs, small).asscalar()
        print(f"{small:7g}: added {first:7.4f}"
              f"  clipped {last:7.4f}")

# %%
# The first three lines depend on the small value, not on the forecast. If the value is a thousand times smaller, the
# result grows by 2.8. And the pair ``1 against 2`` had no problem (its divergence is 0.1017), but the largest small
# value changes its result.
#
# The effect on training is worse. Let a network become more and more certain that there is no sun, while the label
# says one day in five. Only the gradient to the logit of sun can correct the network:

SMALL = 1e-7


def with_added(logits, label):
    return added(logits.softmax(), label, SMALL)


def with_clipped(logits, label):
    return clipped(
        logits.softmax(), label, SMALL)


ways = {"from_logits=False": divergence_of_logits,
        "added": with_added,
        "clipped": with_clipped}
for name, way in ways.items():
    print(f"{name}\n"
          "  pred of sun     loss  gradient")
    for logit_of_sun in (-5, -15, -25, -50):
        z = logits.copy()
        z[0, 0] = logit_of_sun
        z.attach_grad()
        with autograd.record():
            value = way(z, batch(dist_1))
        value.backward()
        sun = z.softmax()[0, 0].asscalar()
        to_sun = round(z.grad[0, 0].asscalar(), 4)
        print(f"  {sun:11.1e}"
              f"  {value.asscalar():7.4f}"
              f"  {to_sun + 0:8.4f}")

# %%
# With both repairs the network stops learning where it is most wrong: the loss no longer grows, and the gradient,
# which should stay at −0.2, vanishes. With clipping it vanishes at once, with adding step by step. A better repair is
# a prediction that is never 0. The softmax of finite logits is never 0, so with ``from_logits=False`` you will hardly
# ever see infinity.
#
# .. raw:: html
#
#    <details class="fold"><summary>What does the loss's own epsilon do?</summary>
#
# The loss must not take the logarithm of a *label* of 0. There, and nowhere else, it uses ``epsilon`` instead. This
# changes no value. It only sets the gradient to a label of 0, which matters if the labels are learned too:

for epsilon in (1e-12, 1e-3):
    guarded = KLDivLoss(
        reduction="sum", epsilon=epsilon)
    label = batch(dist_4)
    label.attach_grad()
    with autograd.record():
        value = guarded(
            batch(dist_1).log(), label)
    value.backward()
    print(f"epsilon {epsilon:g}: value "
          f"{value.asscalar():.4f}, gradient")
    print(rounded(label.grad)[0])

# %%
# ``epsilon`` does **not** change a prediction of 0: an infinite loss stays infinite.
#
# .. raw:: html
#
#    </details>
#
# Masks
# ^^^^^
#
# A logit of minus infinity is different. It says on purpose that a category is *impossible*, such as snow in July.
# Softmax gives it the probability 0. If the label is 0 there too, the category adds nothing to the loss and gets no
# gradient:

july_logits = mx.nd.array([[
    0.39056206, 1.3068528, 0.39056206,
    -np.inf]])
july = batch([0.4, 0.4, 0.2, 0.0])
july_logits.attach_grad()
with autograd.record():
    value = divergence_of_logits(
        july_logits, july)
value.backward()

print("forecast",
      rounded(july_logits.softmax())[0])
print("gradient", rounded(july_logits.grad)[0])
print(f"divergence {value.asscalar():.4f}")

# %%
# 6. Mean or sum
# --------------
#
# The formula adds its terms, one per category. Gluon's documentation says that a loss *averages* over all axes except
# the batch axis. This divides the divergence by the number of categories. Here are the terms of 1 against 2:

terms = KLDivLoss(reduction="none")(
    batch(dist_1).log(), batch(dist_2))
by_numpy = kl_divergence(dist_2, dist_1)

print("terms", rounded(terms)[0])
print("true divergence (NumPy): "
      f"{by_numpy:.4f}")
print(f"divided by {len(dist_1)} categories: "
      f"{by_numpy / len(dist_1):.4f}")

# %%
# A single term can be negative, but the sum cannot. Now the loss with each reduction:

pairs = [
    ("1 against 2", dist_1, dist_2),
    ("1 against 3", dist_1, dist_3),
    ("1 against 1", dist_1, dist_1),
    ("4 against 1", dist_4, dist_1),
    ("1 against 4", dist_1, dist_4),
]
by_sum = KLDivLoss(reduction="sum")
by_mean = KLDivLoss(reduction="mean")

print('distribution    "sum"   "mean"')
for name, pred, label in pairs:
    inputs = batch(pred).log(), batch(label)
    total = by_sum(*inputs).asscalar()
    mean = by_mean(*inputs).asscalar()
    print(f"{name:13}  {total:6.4f}   {mean:6.4f}")

# %%
# Choose one:
#
# * ``reduction="mean"``, the default, averages over the categories. It is what Gluon documents and MXNet up to 1.8
#   computes.
# * ``reduction="sum"`` is the divergence in nats, and what MXNet 1.9 computes. Use it if your learning rate was found
#   with MXNet 1.9, or if people will read the number.
# * ``reduction="none"`` gives the terms, and ``"row_mean"`` the nats per position of a sequence.
#
# .. raw:: html
#
#    <details class="fold"><summary>What does MXNet's own loss compute? That depends on its version</summary>

builtin = gluon.loss.KLDivLoss()
value = builtin(
    batch(dist_1).log(), batch(dist_2))
print(f"mxnet {mx.__version__}: "
      f"{value.asscalar():.4f}")

# %%
# Releases 1.2 to 1.8 and the 2.0 beta average; 1.9 adds. In June 2020 a user reported that the loss and the
# cross-entropy differ by a factor, the number of categories [5]_. The loss was changed to a sum [6]_. The change was
# applied to the 1.x line too [7]_ and released with 1.9, but the docstring still says "averaged". So the upgrade
# multiplied every gradient of this loss without notice, by 1000 for 1000 categories, and learning rates that had
# worked were suddenly too large.
#
# .. raw:: html
#
#    </details>
#
# 7. Train on labels that people disagree about
# ---------------------------------------------
#
# Most data sets have one correct class per sample. But often people disagree. Show a badly written digit to twenty
# people: twelve read a 3, seven a 9 and one an 8. The majority's answer loses what the other eight people saw. The
# shares of the votes keep it. They are called *soft labels*.
#
# scikit-learn contains 1797 images of handwritten digits of 8×8 pixels [8]_. We simulate the readers. Each of twenty
# readers has seen only forty images, drawn at random from a part that nobody else uses. To read a new image, a reader
# takes the digit of the most similar image among these forty.

READERS, EXPERIENCE = 20, 40


def reader_votes(images, known, digits, random):
    """Share of votes for each digit."""
    votes = np.zeros((len(images), 10))
    every = np.arange(len(images))
    for _ in range(READERS):
        seen = random.permutation(len(known))
        seen = seen[:EXPERIENCE]
        apart = images[:, None] - known[seen]
        apart = (apart ** 2).sum(axis=2)
        nearest = seen[apart.argmin(axis=1)]
        votes[every, digits[nearest]] += 1
    return votes / READERS


random = np.random.RandomState(0)
images, digits = load_digits(return_X_y=True)
order = random.permutation(len(images))
images, digits = images[order], digits[order]

known, train = slice(0, 600), slice(600, 1400)
held_out = slice(1400, None)
votes = reader_votes(
    images, images[known], digits[known], random)

agreed = votes[held_out].max(axis=1) == 1
print(f"training images: {len(digits[train])}")
print(f"held out: {len(digits[held_out])} images")
print("all readers agree on "
      f"{agreed.mean():.1%} of those")

# %%
# Now build a small network and the usual loop for a Gluon loss. The network learns from the votes only; it never gets
# the correct digit. Most labels contain exact zeros, for digits without votes. Step 5 showed that zeros in a label are
# no problem.
#
# .. raw:: html
#
#    <details class="fold"><summary>Why 64-bit numbers?</summary>
#
# Only for this page: with 64-bit numbers, every machine prints the same four decimals. In your own code 32 bits are
# enough.
#
# .. raw:: html
#
#    </details>


def make_network():
    """From 64 pixels to logits of 10 digits."""
    net = gluon.nn.HybridSequential()
    net.add(
        gluon.nn.Dense(64, activation="relu"),
        gluon.nn.Dense(10))
    net.cast("float64")
    net.initialize(mx.init.Xavier())
    net.hybridize()
    return net


def fit(net, loss, train, held_out, epochs):
    """Train; return the divergence per image.

    Before training and after each epoch, of
    the training images and of those held out:
    two arrays of shape (epochs + 1, images).
    """
    dataset = gluon.data.ArrayDataset(*train)
    batches = gluon.data.DataLoader(
        dataset, batch_size=32, shuffle=True)
    trainer = gluon.Trainer(
        net.collect_params(), "adam",
        {"learning_rate": 0.003})

    def measure(part):
        inputs, labels = part
        return loss(net(inputs), labels).asnumpy()

    parts = train, held_out
    history = [[measure(part) for part in parts]]
    for _ in tqdm(range(epochs), disable=None):
        for inputs, labels in batches:
            with autograd.record():
                values = loss(net(inputs), labels)
            values.backward()
            trainer.step(len(inputs))
        history.append(
            [measure(part) for part in parts])
    return [np.array(part)
            for part in zip(*history)]


def arrays(part):
    """Images, pixels from 0 to 1, and votes."""
    return [mx.nd.array(x[part], dtype="float64")
            for x in (images / 16, votes)]


mx.random.seed(0)
np.random.seed(0)
EPOCHS = 30
net = make_network()
loss = KLDivLoss(
    from_logits=False, reduction="sum")
loss.hybridize()
seen, unseen = fit(
    net, loss, arrays(train), arrays(held_out),
    EPOCHS)

print("epochs  training  held out")
for epoch in (0, 1, 5, EPOCHS):
    print(f"{epoch:6}"
          f"  {seen[epoch].mean():8.4f}"
          f"  {unseen[epoch].mean():8.4f}")

# %%
# Because of ``reduction="sum"`` these numbers are easy to read: nats per image. You can compare them between models.
# Judge by the held-out images only, because the network may have memorized the others.
#
# Does the loss fall for every digit, or only for the easy ones? The loss gives one number per image, so average them
# by digit:

by_digit = np.array([
    unseen[:, digits[held_out] == digit].mean(1)
    for digit in range(10)])
print("digit  untrained  trained")
for digit, path in enumerate(by_digit):
    print(f"{digit:5}  {path[0]:9.4f}"
          f"  {path[-1]:7.4f}")

# %%
# It falls for every digit. The vertical axes are logarithmic: each grid line is about half of the one above.

fig, (top, bottom) = plt.subplots(
    2, 1, figsize=(5, 6.4))
fig.suptitle("The loss falls for every digit")
top.set_title("All digits, epoch by epoch")
plots.draw_loss_curves(top, {
    "training": seen.mean(axis=1),
    "held out": unseen.mean(axis=1)})
bottom.set_title("Held-out images, by digit")
plots.draw_descent(bottom, range(10), {
    "untrained": by_digit[:, 0],
    "1 epoch": by_digit[:, 1],
    "5 epochs": by_digit[:, 5],
    "30 epochs": by_digit[:, 30]})
bottom.set_xlabel("correct digit")
fig.savefig(
    plots.FIGURES / "digits_training.png",
    **plots.PNG)

# %%
# Is the network as uncertain as the readers? Compare the largest probability (for the readers, the largest share of
# the votes), and the accuracy: how often the digit with this probability is the correct one.

inputs, _ = arrays(held_out)
beliefs = net(inputs).softmax().asnumpy()

print("         largest share  accuracy")
for name, shares in (
        ("readers", votes[held_out]),
        ("network", beliefs)):
    correct = (shares.argmax(axis=1)
               == digits[held_out])
    print(f"{name}"
          f"  {shares.max(axis=1).mean():13.4f}"
          f"  {correct.mean():8.1%}")

# %%
# The network is about as certain as the readers, not more. It is almost as accurate as they are, although it never saw
# a correct answer. Here are the three held-out images that the readers disagree about most:

divided = np.argsort(
    votes[held_out].max(axis=1),
    kind="stable")[:3]

fig, grid = plt.subplots(
    3, 2, figsize=(5, 6.4), width_ratios=[1, 3])
fig.suptitle("Hard to read: votes and prediction")
names = ("readers", "network")
for (left, right), i in zip(grid, divided):
    digit = digits[held_out][i]
    left.set_title(f"digit: {digit}")
    pixels = images[held_out][i]
    plots.draw_image(left, pixels.reshape(8, 8))
    right.set_title(
        f"divergence {unseen[-1, i]:.2f} nats")
    plots.draw_distributions(
        right, range(10), votes[held_out][i],
        beliefs[i], names)
    names = None  # one legend is enough
grid[-1, 1].set_xlabel("digit")
fig.savefig(
    plots.FIGURES / "digits_votes.png",
    **plots.PNG)

# %%
# Summary
# -------
#
# * KL(label ‖ pred) is the extra surprise if you believe *pred* and *label* happens. The order matters.
# * Networks give logits: use ``KLDivLoss(from_logits=False)``. If the label is logits too, add
#   ``label_space="logits"``.
# * ``reduction="sum"`` gives nats per sample, ``"mean"`` the scale that Gluon documents.
# * A label of 0 is no problem. A prediction of 0 where the label is above 0 gives infinity.
#
# Exercises
# ---------
#
# **1.** Somebody forecasts the same probability for each kind of weather. In the season ``dist_3``, is this forecast
# better than ``dist_1``? Guess first.
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>

uniform = np.full(4, 0.25)
for name, forecast in (("uniform", uniform),
                       ("dist_1", dist_1)):
    nats = kl_divergence(dist_3, forecast)
    print(f"{name:7} {nats:.4f} nats")

# %%
# It is better. ``dist_1`` gives snow the probability 0.1, and in this season it snows on most days.
#
# .. raw:: html
#
#    </details>
#
# **2.** A network ends in a softmax, and its output is passed to a loss with ``from_logits=False``. What goes wrong,
# and how do you notice?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>
#
# The loss applies a second softmax. The probabilities come out almost equal, the loss cannot get near 0, and no error
# is raised. ``check_inputs`` finds it:

try:
    divergence_of_logits.check_inputs(
        batch(dist_1), batch(dist_2))
except ValueError as error:
    words = str(error).split()
    print("ValueError:", *words[:3], "...")

# %%
# .. raw:: html
#
#    </details>
#
# **3.** Your training used MXNet 1.9 with 10 categories, and you change to ``KLDivLoss(from_logits=False)`` of
# ``gluon_kl``. What happens to the gradient?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>
#
# It is divided by 10, because the default is ``reduction="mean"`` and MXNet 1.9 adds. Use ``reduction="sum"`` to keep
# it.
#
# .. raw:: html
#
#    </details>
#
# Where to go next
# ----------------
#
# * Loops to copy: :doc:`/quickstart`
# * Two distributions that cannot become equal: :doc:`which_divergence`
# * A small network that learns from a large one: :doc:`knowledge_distillation`
# * Latent variables that do not collapse: :doc:`variational_autoencoder`
# * Steps of limited size for a policy: :doc:`trust_region_policy`
# * Several machines, or 32,000 categories: :doc:`distributed_training`, :doc:`large_vocabulary`
# * A number that looks wrong: :doc:`/troubleshooting`
# * The same call in MXNet, torch, Keras and TensorFlow: :doc:`/moving`
# * Every class and argument: :doc:`/api`
#
# .. rubric:: Sources
#
# .. [1] S. Kullback and R. A. Leibler, `On Information and Sufficiency <https://doi.org/10.1214/aoms/1177729694>`__,
#    Annals of Mathematical Statistics 22, 1951.
# .. [2] `tf.nn.softmax_cross_entropy_with_logits
#    <https://www.tensorflow.org/api_docs/python/tf/nn/softmax_cross_entropy_with_logits>`__ in TensorFlow's reference.
# .. [3] `Kullback-Leibler (KL) Divergence
#    <https://mxnet.apache.org/versions/1.9.1/api/python/docs/tutorials/packages/gluon/loss/kl_divergence.html>`__ among
#    MXNet's tutorials, where the four distributions and the logits of step 3 come from; and the reference of
#    `mxnet.gluon.loss.KLDivLoss
#    <https://mxnet.apache.org/versions/1.9.1/api/python/docs/api/gluon/loss/index.html>`__.
# .. [4] `apache/mxnet#16234 <https://github.com/apache/mxnet/pull/16234>`__, sums and means of infinities.
# .. [5] `apache/mxnet#18506 <https://github.com/apache/mxnet/issues/18506>`__, "KLDivLoss misbehave".
# .. [6] `apache/mxnet#18423 <https://github.com/apache/mxnet/pull/18423>`__, the change to a sum.
# .. [7] `apache/mxnet#19356 <https://github.com/apache/mxnet/pull/19356>`__, its backport.
# .. [8] E. Alpaydin and C. Kaynak, `Optical Recognition of Handwritten Digits
#    <https://doi.org/10.24432/C50P49>`__, UCI Machine Learning Repository, 1998.
