r"""
Knowledge distillation: learning from a teacher
===============================================

**You will learn** how to train a small network with :class:`~gluon_kl.DistillationLoss`, what the temperature and
``hard_weight`` do, and how much a teacher helps if there are few labels.

.. image:: ../../figures/knowledge_distillation.png
   :alt: Accuracy on held-out images, for 2, 5 and 20 training images per digit. Students that learn from a teacher are
         several points more accurate than students that learn from labels, most of all where images are few.
   :class: first-figure

A label says "this is a 7". A network that has seen many digits says more: "probably a 7, perhaps a 1, certainly not an
8". The probabilities of the wrong classes are knowledge too. *Distillation* [1]_ uses them: a large **teacher** is
trained once, and a small **student** learns to give the same probabilities as the teacher.

The students on this page see two, five or twenty images of each digit. They are tested on 600 other images. Every
experiment is repeated with five seeds.
"""

# %%
# The rules of the experiment
# ---------------------------
#
# scikit-learn contains 1797 images of handwritten digits [2]_. They are split once:
#
# * 600 images are **held out**. No network learns from them, and every network is tested on them.
# * The **teacher**, a network of 85 thousand parameters, learns from the other 1197 images and their labels.
# * A **student**, a network of 2.4 thousand parameters, gets a few of these 1197 images, the same number for each
#   digit. It learns from their labels, from the teacher's logits, or from both. All kinds of students get the same
#   images, the same initial weights and the same number of steps.
#
# So only the source of knowledge differs. The teacher adds what it has learned from images that the student never sees.

# sphinx_gallery_thumbnail_number = 2
import plots  # names any missing package
from gluon_kl import DistillationLoss
from gluon_kl.metric import Agreement
from gluon_kl.metric import KLDivergence

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from sklearn.datasets import load_digits
from sklearn import model_selection
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
images, held_out_images = parts[:2]
digits, held_out_digits = parts[2:]
print(f"training images: {len(images)}")
print(f"held out: {len(held_out_images)} images")

# %%
# One loss for teacher and students
# ---------------------------------
#
# :class:`~gluon_kl.DistillationLoss` is called as ``loss(pred, label, teacher_pred)``. It combines two objectives. Let
# :math:`z` be the student's logits, :math:`t` the teacher's, and :math:`\alpha` the ``hard_weight``. The loss is
#
# .. math:: \alpha \, \mathrm{CE}(\text{label}, z) + (1-\alpha) \, T^2 \, \mathrm{KL}(p_t \| p_z)
#
# with :math:`p_t = \mathrm{softmax}(t/T)` and :math:`p_z = \mathrm{softmax}(z/T)`. The first part learns from the
# label, the second from the teacher. With ``hard_weight=1`` the loss is plain cross-entropy, so one training loop
# serves the teacher and all students.
#
# .. admonition:: Do you come from gluon-cv?
#
#    The arguments have the order and the defaults of its ``DistillationSoftmaxCrossEntropyLoss``, and the gradients are
#    the same. The value is smaller by the entropy of the teacher, so that 0 means agreement. The scripts of gluon-cv
#    pass the teacher's softmax instead of its logits. Add ``teacher_space="probs"``, and you can keep the rest of such
#    a script. Both ways are compared below.

sizes = plots.options(
    "Distil a digit reader into a smaller one.",
    images=([2, 5, 20], "images of each digit"),
    seeds=(5, "students of each kind"),
    steps=(200, "training steps per student"),
    hidden=(32, "hidden units of a student"),
    temperature=(4.0, "of the softmax"))
T = sizes.temperature


def array(x):
    """Make an MXNet array of 64-bit numbers."""
    return nd.array(x, dtype="float64")


def make_network(*hidden):
    """From the 64 pixels to 10 logits."""
    net = gluon.nn.HybridSequential()
    for units in hidden:
        net.add(gluon.nn.Dense(
            units, activation="relu"))
    net.add(gluon.nn.Dense(10))
    net.cast("float64")
    net.initialize(mx.init.Xavier())
    net.hybridize(
        static_alloc=True, static_shape=True)
    return net


def make_loss(temperature, hard_weight, **more):
    """Make a hybridized DistillationLoss."""
    loss = DistillationLoss(
        temperature, hard_weight, **more)
    loss.hybridize(
        static_alloc=True, static_shape=True)
    return loss


def batches(count, steps, seed):
    """Indices of the samples of each step.

    A step has 50 samples, or all if there are
    fewer.
    """
    random = np.random.RandomState(seed)
    size = min(50, count)
    epochs = steps * size // count + 1
    order = np.concatenate([
        random.permutation(count)
        for _ in range(epochs)])
    order = order[:steps * size]
    return order.reshape(steps, size)


def fit(net, loss, images, digits, teacher_logits,
        steps, rate, seed, watch=None):
    """Train on labels and a teacher's logits.

    Calls watch(step, net) every 50 steps.
    """
    trainer = gluon.Trainer(
        net.collect_params(), "adam",
        {"learning_rate": rate})
    arrays = [array(x) for x in (
        images, digits, teacher_logits)]
    steps = batches(len(images), steps, seed)
    for step, samples in enumerate(steps):
        if watch and step % 50 == 0:
            watch(step, net)
        samples = nd.array(samples)
        inputs, *targets = (
            x.take(samples) for x in arrays)
        with autograd.record():
            pred = net(inputs)
            values = loss(pred, *targets)
        if step == 0:
            loss.check_inputs(pred, *targets)
        values.backward()
        trainer.step(len(samples))


def accuracy(logits):
    """Share of correct digits, held-out images."""
    found = logits.argmax(axis=1)
    return np.mean(found == held_out_digits)


# %%
# ``check_inputs`` looks at the values of the first batch. It raises an error that names the likely mistake, for example
# probabilities instead of logits, or a class index without a logit. The later batches are made in the same way and are
# not checked.
#
# (The page uses 64-bit numbers so that every machine prints the same. You do not need them.)
#
# Compare gluon-cv's way with the shorter one:

logits = np.array([
    [5.0, 1.0, 0.0], [0.0, 2.0, 4.0]])
pred = array([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
label = array([0, 2])

soft_target = (array(logits) / T).softmax()
from_probs = DistillationLoss(
    T, 0.5, teacher_space="probs")
value = from_probs(pred, label, soft_target)
print(value.asnumpy().round(4))

from_logits = DistillationLoss(T, 0.5)
value = from_logits(pred, label, array(logits))
print(value.asnumpy().round(4))

# %%
# The teacher
# -----------

mx.random.seed(0)
teacher = make_network(256, 256)
no_teacher = np.zeros((len(images), 10))
fit(teacher, make_loss(1.0, hard_weight=1.0),
    images, digits, no_teacher, steps=500,
    rate=0.001, seed=0)

teacher_logits = teacher(array(images)).asnumpy()
teacher_held_out = teacher(
    array(held_out_images)).asnumpy()
correct = teacher_logits.argmax(axis=1) == digits
print(f"accuracy, training: {correct.mean():.1%}")
print("accuracy, held out: "
      f"{accuracy(teacher_held_out):.1%}")

# %%
# The temperature
# ---------------
#
# The teacher has memorized its 1197 images, so its probabilities for them are almost the labels again. All the other
# classes together get about one percent. Divide the logits by a *temperature* :math:`T` before the softmax, and the
# other classes become visible. Here are the images of a 1, a 5 and a 9 that the teacher is least certain about:

ranked = np.sort(teacher_logits, axis=1)
margin = ranked[:, -1] - ranked[:, -2]
unsure = [min(np.flatnonzero(digits == digit),
              key=margin.__getitem__)
          for digit in (1, 5, 9)]
at_1, at_T = (
    array(teacher_logits)
    .softmax(temperature=t).asnumpy()
    for t in (1, T))

fig, grid = plt.subplots(
    3, 2, figsize=(5, 6.2),
    gridspec_kw={"width_ratios": [1, 3]})
fig.suptitle("The teacher at two temperatures")
names = ("T = 1", f"T = {T:g}")
for (left, right), i in zip(grid, unsure):
    plots.draw_image(left, images[i].reshape(8, 8))
    left.set_title(f"label: {digits[i]}")
    plots.draw_distributions(
        right, range(10), at_1[i], at_T[i], names)
    names = None  # one legend is enough
grid[-1, 1].set_xlabel("digit")
fig.savefig(
    sizes.figures / "distillation_teacher.png",
    **plots.PNG)

print("probability outside of the first choice")
for t, probabilities in ((1, at_1), (T, at_T)):
    rest = 1 - probabilities.max(axis=1)
    print(f"T = {t:g}: {rest.mean():.1%}")

# %%
# A higher temperature also makes the gradient of the divergence smaller, by :math:`1/T^2`. The factor :math:`T^2` in
# the loss corrects this. So the soft part keeps its size beside the hard part, and ``hard_weight`` means the same at
# every temperature.
#
# Three kinds of students
# -----------------------
#
# All three get the same images. The first learns from the labels, the second from the teacher, the third from both.
# Every seed chooses other images and other initial weights.

STUDENTS = {
    "labels only": make_loss(T, hard_weight=1.0),
    "teacher only": make_loss(T, hard_weight=0.0),
    "both": make_loss(T, hard_weight=0.5),
}


def few_images(each, seed):
    """Choose `each` images of every digit."""
    random = np.random.RandomState(seed)
    members = [np.flatnonzero(digits == digit)
               for digit in range(10)]
    return np.concatenate([
        random.choice(some, each, replace=False)
        for some in members])


def distance_to_teacher(logits):
    """Mean KL(teacher || student), held out."""
    metric = KLDivergence(
        from_logits=False, label_space="logits")
    metric.update(
        array(teacher_held_out), array(logits))
    return metric.get()[1]


def teach(loss, chosen, seed,
          teacher_logits=teacher_logits):
    """Train a student on the chosen images.

    Returns its accuracy and its distance.
    """
    mx.random.seed(seed)
    student = make_network(sizes.hidden)
    fit(student, loss, images[chosen],
        digits[chosen], teacher_logits[chosen],
        sizes.steps, rate=0.01, seed=seed)
    inputs = array(held_out_images)
    logits = student(inputs).asnumpy()
    return (accuracy(logits),
            distance_to_teacher(logits))


seeds = range(sizes.seeds)
shape = len(sizes.images), sizes.seeds, 2
results = {
    name: np.zeros(shape) for name in STUDENTS}
runs = [(i, name, seed)
        for i in range(len(sizes.images))
        for name in STUDENTS for seed in seeds]
for i, name, seed in tqdm(runs, disable=None):
    chosen = few_images(sizes.images[i], seed)
    results[name][i, seed] = teach(
        STUDENTS[name], chosen, seed)

print("images             mean  worst   best")
for i, each in enumerate(sizes.images):
    for name, values in results.items():
        found = values[i, :, 0]
        print(f"{each:2} {name:12}"
              f" {found.mean():7.1%}"
              f" {found.min():6.1%}"
              f" {found.max():6.1%}")

# %%
# The first column is the number of images per digit; the others are accuracies. With two images per digit, students of
# the teacher are as accurate as students of labels with five. With five, they are almost as accurate as students of
# labels with twenty. To add the labels changes little: the teacher is right about nearly all of these images, so its
# probabilities contain the label.
#
# The figure shows the same results. Each dot is one student, and each line is the mean of one kind:

fig, ax = plt.subplots(figsize=(5, 3.8))
ax.set_title("Labels, a teacher, or both")
plots.draw_seeds(ax, sizes.images, {
    name: values[:, :, 0]
    for name, values in results.items()})
plots.draw_level(
    ax, accuracy(teacher_held_out),
    "the teacher itself", ":")
ax.set_xlabel("training images per digit")
ax.set_ylim(top=1.01)
ax.set_ylabel("accuracy (held out)")
ax.yaxis.set_major_formatter("{x:.0%}")
ax.legend(loc="lower right")
fig.savefig(
    sizes.figures / "knowledge_distillation.png",
    **plots.PNG)

# %%
# Accuracy counts only the first choice. The distance to the teacher counts all probabilities: it is
# :class:`~gluon_kl.metric.KLDivergence` between the teacher and the student on the held-out images.

fig, ax = plt.subplots()
ax.set_title(
    "Distance of each student to the teacher")
plots.draw_seeds(ax, sizes.images, {
    name: values[:, :, 1]
    for name, values in results.items()})
ax.set_ylim(bottom=0)
ax.set_xlabel("training images per digit")
ax.set_ylabel("KL(teacher ‖ student) (nats)")
ax.legend()
fig.savefig(
    sizes.figures / "distillation_distance.png",
    **plots.PNG)

# %%
# What to watch while it trains
# -----------------------------
#
# The loss is one number, but it may fall for the labels alone. ``loss.parts``, called like the loss, gives its two
# parts before they are weighted: the cross-entropy with the label, and the divergence from the teacher times
# :math:`T^2`. It records no gradient. :class:`~gluon_kl.metric.Agreement` counts how often the student's first choice
# is the teacher's. Here is one student that learns from both, with five images per digit, on the held-out images:

both = STUDENTS["both"]


def report(step, net):
    """Print the parts and the agreement."""
    pred = net(array(held_out_images))
    logits = array(teacher_held_out)
    hard, soft = both.parts(
        pred, array(held_out_digits), logits)
    agreement = Agreement()
    agreement.update(logits, pred)
    print(f"{step:4}"
          f" {hard.mean().asscalar():8.2f}"
          f" {soft.mean().asscalar():8.2f}"
          f" {agreement.get()[1]:11.1%}")


mx.random.seed(0)
student = make_network(sizes.hidden)
chosen = few_images(
    sizes.images[len(sizes.images) // 2], seed=0)
print("step    label  teacher  agreement")
fit(student, both, images[chosen], digits[chosen],
    teacher_logits[chosen], sizes.steps, rate=0.01,
    seed=0, watch=report)
report(sizes.steps, student)

# %%
# Is it the teacher, or only the softness?
# ----------------------------------------
#
# Smoothed labels can help too, although they contain nothing new [3]_. So train two more kinds of students on the
# middle number of images. One learns from labels that are smoothed *evenly*: nine tenths for the correct digit, and a
# hundredth more for every digit. The other learns from the teacher, but at :math:`T = 1`.

middle = len(sizes.images) // 2
each = sizes.images[middle]
smooth_logits = np.log(
    0.9 * np.eye(10)[digits] + 0.01)


def teach_all(loss, teacher_logits):
    """One student per seed, as in the middle."""
    return np.array([
        teach(loss, few_images(each, seed), seed,
              teacher_logits)
        for seed in tqdm(seeds, disable=None)])


at_one = make_loss(1.0, hard_weight=0.0)
compared = {
    "labels": results["labels only"][middle],
    "smoothed labels": teach_all(
        at_one, smooth_logits),
    "teacher, T = 1": teach_all(
        at_one, teacher_logits),
    f"teacher, T = {T:g}":
        results["teacher only"][middle],
}
print(f"{each} images per digit")
print("                accuracy  distance")
for name, values in compared.items():
    found, nats = values.mean(axis=0)
    print(f"{name:15} {found:8.1%} {nats:9.2f}")

# %%
# Smoothing alone does not help here, so the gain comes from the teacher. Without the temperature, the student learns
# less than half of what the teacher can give.
#
# Other divergences
# -----------------
#
# With KL(teacher ‖ student), the student must cover everything that the teacher thinks possible. With
# ``divergence="reverse_kl"`` the loss is KL(student ‖ teacher): the student may leave something out, but it should not
# say what the teacher would not say. ``"js"`` is the Jensen-Shannon divergence of :class:`~gluon_kl.JSDivLoss`, and its
# ``beta`` leads from one to the other. They are useful for students that are too small to cover their teacher, as is
# common in text generation [4]_. For ten digits all three work:

turned = {
    "KL(teacher ‖ student)":
        results["teacher only"][middle],
    "KL(student ‖ teacher)": teach_all(
        make_loss(T, 0.0, divergence="reverse_kl"),
        teacher_logits),
    "Jensen-Shannon": teach_all(
        make_loss(T, 0.0, divergence="js"),
        teacher_logits),
}
print("                      accuracy  distance")
for name, values in turned.items():
    found, nats = values.mean(axis=0)
    print(f"{name:21} {found:8.1%} {nats:9.2f}")

# %%
# Images without labels
# ---------------------
#
# Labels are expensive, and images are often cheap. A teacher needs no label to give its probabilities. So a student can
# also learn from images that nobody labelled. This one learns from all 1197 images and never sees a label. (The teacher
# did see the labels. This student shows what a teacher can pass on, not how to train without any labels.)

every_image = np.arange(len(images))
loss = STUDENTS["teacher only"]
all_images = np.array([
    teach(loss, every_image, seed)
    for seed in tqdm(seeds, disable=None)])

found = all_images[:, 0]
print(f"{len(images)} images: {found.mean():.1%}")
print("worst and best seed: "
      f"{found.min():.1%}, {found.max():.1%}")

# %%
# In one number
# -------------
#
# How much more accurate is a student of the teacher than a student of the labels, with the same images and the same
# initial weights? In percentage points, as the mean over the seeds and as the smallest and largest:

gain = (results["teacher only"]
        - results["labels only"])
gain = 100 * gain[middle, :, 0]
print(f"gain with {each} images per digit:")
print(f"{gain.mean():.1f} points, "
      f"{gain.min():.1f} to {gain.max():.1f}")

# %%
# Summary
# -------
#
# * Train the large network once, then the small one with ``DistillationLoss(temperature=4)``. Pass logits on both
#   sides. If you only have the teacher's softmax at this temperature, add ``teacher_space="probs"``.
# * The temperature matters. If the teacher is almost certain of everything, a student at :math:`T = 1` learns little
#   about the other classes.
# * ``hard_weight`` is the share of the labels; the default is a half. It matters if the teacher makes mistakes.
# * A teacher can label any image, so give the student more images.
# * With many labels the gain becomes small.
#
# Exercises
# ---------
#
# **1.** A student gives the teacher's logits plus 3. How large is the soft part of its loss?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>

soft_part = DistillationLoss(T, hard_weight=0)
value = soft_part(
    array(logits) + 3, label, array(logits))
print(abs(value.asnumpy().round(6)))

# %%
# It is 0: softmax ignores a constant that is added to all logits.
#
# .. raw:: html
#
#    </details>
#
# **2.** You stored the teacher's softmax at :math:`T = 1`, not its logits. How do you distil at :math:`T = 4`?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>
#
# Pass the logarithms as logits. They differ from the logits by a constant per row, which softmax ignores:

stored = array(logits).softmax()
value = from_logits(pred, label, stored.log())
print(value.asnumpy().round(4))

# %%
# .. raw:: html
#
#    </details>
#
# .. rubric:: Sources
#
# .. [1] G. Hinton, O. Vinyals and J. Dean, `Distilling the Knowledge in a Neural Network
#    <https://arxiv.org/abs/1503.02531>`__, 2015.
# .. [2] E. Alpaydin and C. Kaynak, `Optical Recognition of Handwritten Digits
#    <https://doi.org/10.24432/C50P49>`__, UCI Machine Learning Repository, 1998.
# .. [3] C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens and Z. Wojna, `Rethinking the Inception Architecture for Computer
#    Vision <https://arxiv.org/abs/1512.00567>`__, 2016.
# .. [4] R. Agarwal et al., `On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes
#    <https://arxiv.org/abs/2306.13649>`__, 2024.
