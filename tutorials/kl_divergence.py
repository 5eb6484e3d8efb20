r"""
KL divergence, step by step
===========================

How wrong is a forecast? Not "right or wrong", but *how far* were the probabilities that it gave from those that came
true? The **Kullback-Leibler divergence** answers with one number: 0 for a perfect forecast, and more the worse it
was. A network can learn by making that number small, and many do:

* A **student** learns what a larger network believes, all of it and not just the answer:
  :doc:`distillation <knowledge_distillation>`.
* An **autoencoder** keeps its hidden variables close to a distribution that it can draw from:
  :doc:`the variational one <variational_autoencoder>`.
* A **policy** improves in steps that stay close to what it did before: :doc:`trust regions <trust_region_policy>`.

This page starts from four kinds of weather and ends with a network that learns to be unsure where people are unsure.
It asks for logarithms and a little MXNet. Every number below was printed by the code above it.
"""

# %%
# 1. What it measures
# -------------------
#
# Here are four distributions over the same four categories. Take ``dist_1`` for a forecast, and ``dist_2`` and
# ``dist_3`` for what two seasons really brought. (``dist_4`` waits for step 5.)

import plots  # first: it says which Python this needs
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
# A picture first. Where the bars cover each other the forecast was good; where one colour stands alone it was not.

fig, (left, right) = plt.subplots(1, 2, sharey=True)
fig.suptitle("The same forecast in two seasons")
left.set_title("Distributions 1 & 2")
plots.draw_distributions(
    left, weather, dist_1, dist_2, ("dist_1", "dist_2"))
right.set_title("Distributions 1 & 3")
plots.draw_distributions(
    right, weather, dist_1, dist_3, ("dist_1", "dist_3"))
right.set_ylabel("")
fig.savefig(plots.FIGURES / "distributions.png", **plots.PNG)

# %%
# The eye says that 2 is near 1, and 3 is far. To put a number on it, measure **surprise**. An event that you gave
# the probability :math:`q` surprises you by :math:`-\log q`: nothing at all if you were sure of it, and ever more the
# less you believed in it.
#
# When the weather follows :math:`p` and you believe :math:`q`, your average surprise is :math:`-\sum_i p_i \log q_i`.
# Nobody can do better than to believe :math:`p` itself, which still leaves :math:`-\sum_i p_i \log p_i`: weather is
# uncertain. The difference is the price of believing the wrong thing, and that is the divergence [1]_:
#
# .. math:: \mathrm{KL}(p \,\|\, q) = \sum_i p_i \,(\log p_i - \log q_i)
#
# It is never negative, and 0 only if :math:`p = q`. With the natural logarithm it is counted in *nats*; one nat is
# 1.4427 bits.


def kl_divergence(p, q):
    """Compute KL(p || q) in nats, straight from the formula."""
    return np.sum(p * (np.log(p) - np.log(q)))


print(f"KL(dist_2 || dist_1) = {kl_divergence(dist_2, dist_1):.4f}")
print(f"KL(dist_1 || dist_2) = {kl_divergence(dist_1, dist_2):.4f}")
print(f"KL(dist_3 || dist_1) = {kl_divergence(dist_3, dist_1):.4f}")
print(f"KL(dist_1 || dist_3) = {kl_divergence(dist_1, dist_3):.4f}")

# %%
# Two things to take away. The eye was right: 3 is ten times as far from 1 as 2 is. And **order matters**:
# :math:`p` decides which surprises happen and how often, so swapping the two asks another question. It is no
# distance in the sense of geometry.
#
# Something to move
# ^^^^^^^^^^^^^^^^^
#
# Each category adds one term to the sum. Where the label, what really happened, is above the prediction, the term is
# positive, elsewhere negative, and yet the total never is. On the site you can move a share (the others keep their
# proportions), swap the two, and forecast no snow at all: with a prediction of 0 the divergence is infinite.
#
# .. raw:: html
#
#    <div class="sliders" data-categories="sun cloud rain snow" data-names="label pred" data-terms="kl"
#         data-label="0.3 0.4 0.1 0.2" data-pred="0.2 0.5 0.2 0.1">

fig, (left, right) = plt.subplots(1, 2)
fig.suptitle("Where the 0.1017 nats come from")
left.set_title("Shares")
plots.draw_distributions(
    left, weather, dist_1, dist_2, ("pred", "label"))
right.set_title("Terms")
plots.draw_terms(
    right, weather, {"KL": dist_2 * np.log(dist_2 / dist_1)})
fig.savefig(plots.FIGURES / "terms.png", **plots.PNG)

# %%
# .. raw:: html
#
#    </div>
#
# 2. The loss: log-probabilities against probabilities
# ----------------------------------------------------
#
# In Gluon every loss is called as ``loss(pred, label)``: first what the model says, then what it should have said.
# :class:`~gluon_kl.KLDivLoss` computes KL(label ‖ pred), so the *label* is the :math:`p` of the formula and the
# *prediction* is its :math:`q`.
#
# With ``from_logits=True``, the default, it wants
#
# * ``pred`` as **log**-probabilities, as ``log_softmax`` gives them,
# * ``label`` as plain probabilities,
# * and both with a batch axis, the first one unless told otherwise. One number comes back per sample.
#
# ``reduction="sum"`` asks for the formula above; step 6 is about the other choice.


def batch(*distributions):
    """Stack distributions along a new first axis, the batch."""
    return mx.nd.array(np.stack(distributions))


def rounded(values):
    """Round an array to four decimals, for printing."""
    return np.round(values.asnumpy().astype("float64"), 4).tolist()


divergence = KLDivLoss(from_logits=True, reduction="sum")

for name, label in [("2", dist_2), ("3", dist_3), ("1", dist_1)]:
    value = divergence(batch(dist_1).log(), batch(label)).asscalar()
    print(f"distribution 1 against {name}: {value:.4f}")

# %%
# The first two agree with NumPy above, and a perfect forecast costs nothing. A batch does all three in one call:

forecasts = batch(dist_1, dist_1, dist_1)
seasons = batch(dist_2, dist_3, dist_1)
print(rounded(divergence(forecasts.log(), seasons)))

# %%
# The usual accident is a forgotten logarithm, probabilities where log-probabilities belong. The loss does not look
# at values while it trains, but *you* can tell: no divergence is below zero. (``divergence.check_inputs(pred, label)``
# looks for this and other mix-ups when asked to, say on the first batch. A network that ends in a softmax needs no
# logarithm but ``pred_space="probs"``.)

print(rounded(divergence(forecasts, seasons)))

# %%
# .. note::
#
#    The name ``from_logits`` is Gluon's and easily misread: ``True`` means that ``pred`` is in log space *already*.
#    In Keras the same words mean the opposite, raw scores that still need a softmax.
#
# 3. Raw scores: let the loss do the softmax
# ------------------------------------------
#
# A network's last layer gives neither probabilities nor their logarithms but raw scores, *logits*, which softmax turns
# into probabilities. With ``from_logits=False`` they go in as they are. These were chosen so that their softmax is
# ``dist_1``:

scores = mx.nd.array([[0.39056206, 1.3068528, 0.39056206, -0.30258512]])
divergence_of_scores = KLDivLoss(from_logits=False, reduction="sum")

print("softmax:", rounded(scores.softmax())[0])
value = divergence_of_scores(scores, batch(dist_2)).asscalar()
print(f"distribution 1 against 2: {value:.4f}")

# %%
# The same figure as before. So why not call ``softmax`` and ``log`` yourself? Because a confident network breaks it.
# Let two scores be 200 apart, as can happen when training begins. The smaller probability, :math:`e^{-200}`, is too
# small for a 32-bit number: it becomes 0, its logarithm minus infinity, and the loss is lost:

confident = mx.nd.array([[0.0, 200.0]])
even = batch([0.5, 0.5])
confident.attach_grad()

logs = confident.softmax().log()
print("softmax, then log: ", rounded(divergence(logs, even)))
with autograd.record():
    value = divergence_of_scores(confident, even)
value.backward()
print("from_logits=False: ", rounded(value))
print("its gradient:      ", rounded(confident.grad)[0])

# %%
# Inside, the loss uses log-softmax, which never forms the small number:
#
# .. math:: \log \mathrm{softmax}(z)_i = z_i - m - \log \sum_j e^{z_j - m}
#
# with :math:`m = \max_j z_j`. The gradient is as tame as it gets, :math:`\mathrm{softmax}(z) - p`: what the model
# believes, less what is true. **Rule of thumb: networks give scores, so train with** ``from_logits=False``.
#
# 4. Both sides as logits
# -----------------------
#
# Sometimes the label is itself the output of a network, a teacher's say. ``label_space="logits"`` takes its raw scores
# too and stays in log space throughout. Two samples, three categories:

label_scores = mx.nd.array([[0.05, 0.16, 0.9], [0.8, 4.15, 0.05]])
pred_scores = mx.nd.array([[0.7, 0.2, 0.1], [0.15, 0.9, 0.05]])
divergence_of_logits = KLDivLoss(
    from_logits=False, label_space="logits", reduction="sum")

print(rounded(divergence_of_logits(pred_scores, label_scores)))

# %%
# TensorFlow has the same number in two calls. Step 1 built the divergence as a difference of two average surprises,
# *cross-entropy* and *entropy*:
#
# .. math:: \mathrm{KL}(p \,\|\, q) = H(p, q) - H(p)
#
# ``tf.nn.softmax_cross_entropy_with_logits`` [2]_ gives the first, and, asked about the label's own scores, the second:


def softmax_cross_entropy(labels, logits):
    """Compute what TensorFlow's function of that name does."""
    return -(labels * logits.log_softmax()).sum(axis=1)


labels = label_scores.softmax()
cross_entropy = softmax_cross_entropy(labels, pred_scores)
entropy = softmax_cross_entropy(labels, label_scores)

print("cross-entropy:    ", rounded(cross_entropy))
print("entropy of label: ", rounded(entropy))
print("difference:       ", rounded(cross_entropy - entropy))

# %%
# The routes meet. The entropy does not depend on the prediction, so cross-entropy and divergence give a network the
# same gradient. But only the divergence tells how much is left to learn: it ends at 0, cross-entropy at whatever the
# entropy of the labels happens to be.
#
# Subtracting two nearly equal numbers costs digits, which is why the loss does not compute it that way: for equal
# scores it is exactly 0, and never below.
#
# 5. When something "never" happens
# ---------------------------------
#
# ``dist_4`` gives sun and rain the probability 0. The categories that a distribution does not rule out are called its
# *support*, and now the supports differ. Again, order decides:

rows = [
    ("4 against 1", dist_4, dist_1),
    ("1 against 4", dist_1, dist_4),
    ("4 against 4", dist_4, dist_4),
]
for name, pred, label in rows:
    value = divergence(batch(pred).log(), batch(label)).asscalar()
    print(f"distribution {name}: {value:.4f}")

# %%
# **4 against 1 is infinite, and should be.** The forecast swore that the sun never shines, and then it shone on one
# day in five. No finite number makes up for that.
#
# **1 against 4 is finite.** The forecast expected sun that never came. A category that never happens surprises nobody:
# its term is 0, as :math:`p \log p` has the limit 0.
#
# **4 against 4 is 0**, as for any perfect forecast. The two sides rule out the same things.
#
# Other texts print *not-a-number* in the first case. MXNet's own tutorial does [3]_: until version 1.6 its mean kept a
# running correction for round-off, and an infinite term turned that into :math:`\infty - \infty` [4]_. The third case
# is undefined in MXNet's own loss to this day, since it multiplies :math:`0 \cdot \infty`. Here the missing terms are
# left out before anything is multiplied.
#
# Two repairs that hide it
# ^^^^^^^^^^^^^^^^^^^^^^^^
#
# An infinite loss looks like a bug, and two repairs are common: add a small value to all probabilities, as MXNet's
# tutorial advises [3]_, or clip the prediction from below. Both make the number finite. But which number?


def added(pred, label, small):
    """Compute the divergence with a small value on both sides."""
    return divergence((pred + small).log(), label + small)


def clipped(pred, label, small):
    """Compute the divergence with pred cut off below."""
    return divergence(pred.clip(small, 1).log(), label)


for name, pred, label in [("4 against 1", dist_4, dist_1),
                          ("1 against 2", dist_1, dist_2)]:
    print(f"distribution {name}")
    for small in (1e-12, 1e-7, 1e-3):
        values = [repair(batch(pred), batch(label), small).asscalar()
                  for repair in (added, clipped)]
        print(f"{small:7g}: added {values[0]:7.4f}"
              f"  clipped {values[1]:7.4f}")

# %%
# The first three lines measure the small value, not the forecast: make it a thousand times smaller and the "divergence"
# grows by 2.8. And added to a pair that had no trouble (the true figure is 0.1017), the largest one changes the answer.
#
# Worse is what training sees. Let a network grow ever surer that there is no sun, while the label says one day in five,
# and look at the slope that its score for sun receives, the only thing that could bring it back:

SMALL = 1e-7
ways = {
    "from_logits=False": divergence_of_scores,
    "added": lambda z, label: added(z.softmax(), label, SMALL),
    "clipped": lambda z, label: clipped(z.softmax(), label, SMALL),
}
for name, way in ways.items():
    print(f"{name}\n  pred of sun     loss    slope")
    for score in (-5, -15, -25, -50):
        z = mx.nd.array([[score, 1.3068528, 0.39056206, -0.30258512]])
        z.attach_grad()
        with autograd.record():
            value = way(z, batch(dist_1))
        value.backward()
        print(f"  {z.softmax()[0, 0].asscalar():11.1e}"
              f"  {value.asscalar():7.4f}"
              f"  {round(z.grad[0, 0].asscalar(), 4) + 0:7.4f}")

# %%
# Both repairs go silent where the network is most wrong: the loss no longer grows, and the slope, which should stay at
# −0.2, is gone. Clipping ends it at once, adding little by little. The better cure is a prediction that never says
# never. Softmax of finite scores is one, so with ``from_logits=False`` you will hardly meet infinity at all.
#
# .. raw:: html
#
#    <details class="fold"><summary>And what does the loss's own epsilon do?</summary>
#
# The logarithm of a zero *label* must never be taken. There, and nowhere else, ``epsilon`` stands in for it. No value
# changes, whatever you choose; what changes is the slope that a label of 0 sees, if labels are being learned as well:

for epsilon in (1e-12, 1e-3):
    guarded = KLDivLoss(reduction="sum", epsilon=epsilon)
    label = batch(dist_4)
    label.attach_grad()
    with autograd.record():
        value = guarded(batch(dist_1).log(), label)
    value.backward()
    print(f"epsilon {epsilon:g}: value {value.asscalar():.4f}, slopes")
    print(rounded(label.grad)[0])

# %%
# It does **not** soften a prediction of 0: an infinite loss stays infinite, because the model really is infinitely
# wrong.
#
# .. raw:: html
#
#    </details>
#
# Masks
# ^^^^^
#
# A score of minus infinity is different: it says on purpose that a category is *impossible*, such as snow in July or
# the padding of a sequence. Softmax makes it a true 0. As long as the label agrees, that category adds nothing to the
# loss and receives no gradient:

july_scores = mx.nd.array([[0.39056206, 1.3068528, 0.39056206, -np.inf]])
july = batch([0.4, 0.4, 0.2, 0.0])
july_scores.attach_grad()
with autograd.record():
    value = divergence_of_scores(july_scores, july)
value.backward()

print("forecast", rounded(july_scores.softmax())[0])
print("gradient", rounded(july_scores.grad)[0])
print(f"divergence {value.asscalar():.4f}")

# %%
# 6. Mean or sum
# --------------
#
# The formula adds its terms, one per category. Gluon's documentation says that a loss *averages* over everything but
# the batch, which divides the divergence by the number of categories. Here are the terms of 1 against 2, and what
# becomes of them:

terms = KLDivLoss(reduction="none")(batch(dist_1).log(), batch(dist_2))
true_divergence = np.sum(dist_2 * (np.log(dist_2) - np.log(dist_1)))
per_category = true_divergence / len(dist_1)

print("terms", rounded(terms)[0])
print(f"true divergence (NumPy): {true_divergence:.4f}")
print(f"divided by {len(dist_1)} categories: {per_category:.4f}")

# %%
# A single term may be negative, their sum may not. And now the loss, with each reduction:

rows = [
    ("1 against 2", dist_1, dist_2),
    ("1 against 3", dist_1, dist_3),
    ("1 against 1", dist_1, dist_1),
    ("4 against 1", dist_4, dist_1),
    ("1 against 4", dist_1, dist_4),
]

print('distribution    "sum"   "mean"')
for name, pred, label in rows:
    inputs = batch(pred).log(), batch(label)
    summed = KLDivLoss(reduction="sum")(*inputs).asscalar()
    averaged = KLDivLoss(reduction="mean")(*inputs).asscalar()
    print(f"{name:13}  {summed:6.4f}   {averaged:6.4f}")

# %%
# ``gluon_kl`` lets you say which one you mean:
#
# * ``reduction="mean"``, the default: what Gluon documents, and MXNet up to 1.8 computes.
# * ``reduction="sum"``: the divergence in nats, and what MXNet 1.9 computes. Take it to keep a learning rate that was
#   found there, and whenever the number is to be read by people.
# * ``reduction="none"``: the terms themselves; ``"row_mean"``: nats per position of a sequence.
#
# .. raw:: html
#
#    <details class="fold"><summary>And MXNet's own loss? That depends on the day you installed it</summary>

builtin = gluon.loss.KLDivLoss()
value = builtin(batch(dist_1).log(), batch(dist_2)).asscalar()
print(f"mxnet {mx.__version__}: {value:.4f}")

# %%
# Releases 1.2 to 1.8, and the 2.0 beta, average; 1.9 adds. In June 2020 a user reported that the loss disagrees with
# cross-entropy by the number of categories [5]_; the change to a sum [6]_ was carried over to the 1.x line [7]_ and
# came out in 1.9, with a docstring that still says "averaged". So an upgrade silently multiplied every gradient of this
# loss, by 1000 for 1000 categories, and learning rates that had been fine were not.
#
# .. raw:: html
#
#    </details>
#
# 7. Learning from people who disagree
# ------------------------------------
#
# Why compare whole distributions at all, when data usually come with one right answer each? Because often they do not.
# Show a scrawled digit to twenty people, and twelve read a 3, seven a 9 and one an 8. The majority's answer throws
# away what the other eight saw; the shares of the votes, *soft labels*, keep it.
#
# scikit-learn carries 1797 scans of real handwriting, 8×8 pixels each [8]_. The readers we have to invent: each of
# twenty has seen only forty scans, drawn at random from a part set aside, and reads a new one as the most similar
# that they know. Little experience, honest disagreement. No reader has seen any of the scans that are voted on.

READERS, EXPERIENCE = 20, 40


def votes_of_readers(scans, known_scans, known_digits, random):
    """Give the share of the votes for each digit, shape (scans, 10)."""
    votes = np.zeros((len(scans), 10))
    for _ in range(READERS):
        seen = random.permutation(len(known_scans))[:EXPERIENCE]
        differences = scans[:, None] - known_scans[seen]
        nearest = seen[(differences ** 2).sum(axis=2).argmin(axis=1)]
        votes[np.arange(len(scans)), known_digits[nearest]] += 1
    return votes / READERS


random = np.random.RandomState(0)
scans, digits = load_digits(return_X_y=True)
order = random.permutation(len(scans))
scans, digits = scans[order], digits[order]

known, train = slice(0, 600), slice(600, 1400)
held_out = slice(1400, None)
votes = votes_of_readers(scans, scans[known], digits[known], random)

agreed = np.mean(votes[held_out].max(axis=1) == 1)
print(f"to learn from: {len(digits[train])} scans")
print(f"held out: {len(digits[held_out])} scans")
print(f"all readers agree on {agreed:.1%} of those")

# %%
# Now a small network and the loop that you would write for any Gluon loss. It trains on the votes alone and is never
# told which digit was meant. Most labels hold exact zeros, digits that no reader voted for; step 5 is why that is no
# trouble.
#
# .. raw:: html
#
#    <details class="fold"><summary>Why 64-bit numbers?</summary>
#
# For this page's sake: they keep differences of round-off between machines far below the four decimals printed. In your
# own code 32 bits do.
#
# .. raw:: html
#
#    </details>


def make_network():
    """Build a network from 64 pixels to the raw scores of 10 digits."""
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Dense(64, activation="relu"), gluon.nn.Dense(10))
    net.cast("float64")
    net.initialize(mx.init.Xavier())
    net.hybridize()
    return net


def fit(net, loss, train, held_out, epochs, batch_size=32):
    """Train on inputs and soft labels, watching the divergence.

    Returns it for the rows trained on and for those held out, each of
    shape (epochs + 1, rows): before training and after each epoch.
    """
    dataset = gluon.data.ArrayDataset(*train)
    batches = gluon.data.DataLoader(dataset, batch_size, shuffle=True)
    trainer = gluon.Trainer(
        net.collect_params(), "adam", {"learning_rate": 0.003})

    def measure():
        return [loss(net(inputs), labels).asnumpy()
                for inputs, labels in (train, held_out)]

    history = [measure()]
    for _ in tqdm(range(epochs), desc="training", disable=None):
        for inputs, labels in batches:
            with autograd.record():
                values = loss(net(inputs), labels)
            values.backward()
            trainer.step(len(inputs))
        history.append(measure())
    return [np.array(values) for values in zip(*history)]


def arrays(rows):
    """Give scans, with pixels from 0 to 1, and votes as MXNet arrays."""
    return (mx.nd.array(scans[rows] / 16, dtype="float64"),
            mx.nd.array(votes[rows], dtype="float64"))


mx.random.seed(0)
np.random.seed(0)
EPOCHS = 30
net = make_network()
loss = KLDivLoss(from_logits=False, reduction="sum")
loss.hybridize()
trained_on, unseen = fit(
    net, loss, arrays(train), arrays(held_out), EPOCHS)

print("epochs  trained on  held out")
for epoch in (0, 1, 5, EPOCHS):
    print(f"{epoch:6}  {trained_on[epoch].mean():10.4f}"
          f"  {unseen[epoch].mean():8.4f}")

# %%
# ``reduction="sum"`` makes these numbers readable: nats per scan, comparable between any two models and any number of
# categories. Only the held-out ones count as proof, since the network could learn the others by heart.
#
# Does every digit get better, or just the easy ones? The loss gives a number per sample, so group them by digit:

by_digit = np.array([
    unseen[:, digits[held_out] == digit].mean(axis=1)
    for digit in range(10)
])
print("digit  untrained  trained")
for digit, path in enumerate(by_digit):
    print(f"{digit:5}  {path[0]:9.4f}  {path[-1]:7.4f}")

# %%
# Every one of them. Mind that the axes are logarithmic: each gridline is about half of the one above it.

fig, (top, bottom) = plt.subplots(2, 1, figsize=(5, 6.4))
fig.suptitle("The divergence falls, for every digit")
top.set_title("All digits, epoch by epoch")
plots.draw_loss_curves(
    top, {"trained on": trained_on.mean(axis=1),
          "held out": unseen.mean(axis=1)})
bottom.set_title("Held-out scans, digit by digit")
plots.draw_descent(
    bottom, range(10),
    {"untrained": by_digit[:, 0], "1 epoch": by_digit[:, 1],
     "5 epochs": by_digit[:, 5], "30 epochs": by_digit[:, 30]})
bottom.set_xlabel("digit that was meant")
fig.savefig(plots.FIGURES / "digits_training.png", **plots.PNG)

# %%
# And did it learn to be unsure? Compare how much of the votes the favourite digit gets, and how often that favourite
# is what the writer meant.

beliefs = net(arrays(held_out)[0]).softmax().asnumpy()

print("         favourite's share  right")
rows = [("readers", votes[held_out]), ("network", beliefs)]
for name, shares in rows:
    right = np.mean(shares.argmax(axis=1) == digits[held_out])
    print(f"{name}  {shares.max(axis=1).mean():17.4f}  {right:.1%}")

# %%
# It is about as sure as the readers, no more, and nearly as often right, though nobody ever told it an answer. Here
# are the three held-out scans that divided the readers most.

divided = np.argsort(votes[held_out].max(axis=1), kind="stable")[:3]

fig, grid = plt.subplots(
    3, 2, figsize=(5, 6.4), width_ratios=[1, 3])
fig.suptitle("Hard to read: votes and prediction")
for (scan, bars), row in zip(grid, divided):
    scan.set_title(f"meant: {digits[held_out][row]}")
    plots.draw_scan(scan, scans[held_out][row].reshape(8, 8))
    bars.set_title(f"divergence {unseen[-1, row]:.2f} nats")
    names = ("readers", "network") if row == divided[0] else None
    plots.draw_distributions(
        bars, range(10), votes[held_out][row], beliefs[row], names)
grid[-1, 1].set_xlabel("digit")
fig.savefig(plots.FIGURES / "digits_votes.png", **plots.PNG)

# %%
# What to take away
# -----------------
#
# * KL(label ‖ pred) is the extra surprise of believing *pred* while *label* happens. Order matters.
# * Networks give scores: ``KLDivLoss(from_logits=False)``. Both sides scores: add ``label_space="logits"``.
# * ``reduction="sum"`` for nats per sample, ``"mean"`` for Gluon's documented scale.
# * A label of 0 is harmless. A prediction of 0 where the label is not is infinitely wrong, and says so.
#
# Where to go next
# ----------------
#
# * Two distributions that cannot become equal: :doc:`which_divergence`
# * A small network that learns from a large one: :doc:`knowledge_distillation`
# * Latent variables that stay awake: :doc:`variational_autoencoder`
# * Steps that a policy survives: :doc:`trust_region_policy`
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
#    MXNet's tutorials, where the four distributions and the scores of step 3 come from; and the reference of
#    `mxnet.gluon.loss.KLDivLoss
#    <https://mxnet.apache.org/versions/1.9.1/api/python/docs/api/gluon/loss/index.html>`__.
# .. [4] `apache/mxnet#16234 <https://github.com/apache/mxnet/pull/16234>`__, sums and means of infinities.
# .. [5] `apache/mxnet#18506 <https://github.com/apache/mxnet/issues/18506>`__, "KLDivLoss misbehave".
# .. [6] `apache/mxnet#18423 <https://github.com/apache/mxnet/pull/18423>`__, the change to a sum.
# .. [7] `apache/mxnet#19356 <https://github.com/apache/mxnet/pull/19356>`__, its backport.
# .. [8] E. Alpaydin and C. Kaynak, `Optical Recognition of Handwritten Digits
#    <https://doi.org/10.24432/C50P49>`__, UCI Machine Learning Repository, 1998.
