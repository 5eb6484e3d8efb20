r"""
Training on several machines
============================

**You will learn** how to train with :class:`~gluon_kl.KLDivLoss` on several workers so that the result is that of one
process, which scale of the loss this needs, and what must never happen on one worker alone.

.. image:: ../../figures/distributed_training.png
   :alt: Above, workers send gradients to a server and get parameters back. Below, the divergence on held-out digits
         over twelve epochs: the marks of two workers lie on the line of one process.
   :class: first-figure

If one machine is too slow, several can share each batch. Every *worker* computes the gradient of its part. *Servers*
add the parts, take the optimizer's step and send the new parameters back. MXNet does this with one word:
``Trainer(..., kvstore="dist_sync")``. The rest is about the loss.
"""

# %%
# The data
# --------
# The labels are soft. For each of scikit-learn's digits, they are the votes of the fifteen most similar training
# images. Most votes are unanimous, so most probabilities are exactly 0, which the loss takes as they are. Every worker
# makes these labels for itself, so they must come out the same everywhere: pixels are integers up to 16, so that their
# squared distances are exact, and equally near neighbours have a fixed order.

import os
import sys

import plots  # names any missing package
from gluon_kl import KLDivLoss

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from sklearn.datasets import load_digits
from tqdm import tqdm


def load_data(held_out=360, neighbours=15):
    """Images and soft labels.

    Training part, then held-out part.
    """
    images, digits = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    order = random.permutation(len(images))
    images, digits = images[order], digits[order]
    voters = images[held_out:]
    votes = np.eye(10)[digits[held_out:]]
    squares = (images**2).sum(axis=1)
    distances = (squares[:, None]
                 + squares[held_out:]
                 - 2 * images @ voters.T)
    nearest = np.argsort(
        distances, axis=1, kind="stable")
    nearest = nearest[:, :neighbours]
    labels = votes[nearest].mean(axis=1)
    images = images / 16
    training = images[held_out:], labels[held_out:]
    unseen = images[:held_out], labels[:held_out]
    return training, unseen


def array(x):
    """Make an MXNet array of 64-bit numbers."""
    return nd.array(x, dtype="float64")


def make_network(seed):
    """From the 64 pixels to 10 logits."""
    mx.random.seed(seed)
    net = gluon.nn.HybridSequential()
    net.add(
        gluon.nn.Dense(
            64, activation="relu", in_units=64),
        gluon.nn.Dense(10, in_units=64))
    net.initialize(mx.init.Xavier())
    net.cast("float64")
    net.hybridize()
    return net


# %%
# The scale of the loss
# ---------------------
# The servers add what the workers send. So the sum over the samples of a worker is right, whatever their number, and
# ``trainer.step`` divides once by the number of samples in the whole batch. A mean on each worker is wrong as soon as
# their shares differ: here seven samples are shared by two workers, who get four and three. One number each is
# compared with that of a step that one process takes: the gradient to the first bias.

loss = KLDivLoss(from_logits=False,
                 reduction="sum")
loss.hybridize()


def first_gradient(rows, reduce):
    """To the first bias of the last layer."""
    (images, labels), _ = load_data()
    net = make_network(seed=0)
    with autograd.record():
        pred = net(array(images[rows]))
        out = loss(pred, array(labels[rows]))
        out = reduce(out)
    out.backward()
    gradient = net[-1].bias.grad()[0]
    return float(gradient.asscalar())


def mean(x):
    """The mean over the samples here."""
    return x.mean()


batch = np.arange(49, 56)
shares = [batch[0::2], batch[1::2]]
whole = first_gradient(batch, mean)
sums = [first_gradient(s, nd.sum) for s in shares]
means = [first_gradient(s, mean) for s in shares]
print(f"whole batch:         {whole:.6f}")
print(f"sums, divided by 7:  {sum(sums) / 7:.6f}")
print(f"means, divided by 2: {sum(means) / 2:.6f}")

# %%
# The loss itself returns one value per sample, and no mean over the batch: ``out.backward()`` adds them up, as above.
# ``reduction="row_mean"``, for sequences with padding, averages within a sample alone, so that it can be shared too. A
# ``sample_weight`` whose sum differs from worker to worker is no trouble either, as long as nobody divides by that sum.
#
# The training loop
# -----------------
# The loop is the usual one. Each worker takes its share of *every* batch, ``rows[rank::workers]``, so that together
# they see what one process would see. ``step`` gets the size of the whole batch.


def train(kvstore, epochs, batch, seed, report):
    """Fit a network to the soft labels.

    Calls report(epoch, held-out divergence)
    after each epoch.
    """
    rank, workers = 0, 1
    if kvstore:
        rank = kvstore.rank
        workers = kvstore.num_workers
    (images, labels), unseen = load_data()
    unseen = [array(x) for x in unseen]
    net = make_network(seed)
    trainer = gluon.Trainer(
        net.collect_params(), "sgd",
        {"learning_rate": 0.2, "momentum": 0.9},
        kvstore=kvstore or "device")
    shuffle = np.random.default_rng(seed)
    last = len(images) - batch + 1
    for epoch in range(epochs):
        order = shuffle.permutation(len(images))
        for start in range(0, last, batch):
            rows = order[start:start + batch]
            rows = rows[rank::workers]
            targets = array(labels[rows])
            with autograd.record():
                pred = net(array(images[rows]))
                out = loss(pred, targets)
            out.backward()
            trainer.step(batch)
        held_out = loss(net(unseen[0]), unseen[1])
        held_out = held_out.mean().asscalar()
        report(epoch, float(held_out))
    return net


# %%
# Two workers against one process
# -------------------------------
# The workers run this same file. The environment variable ``DMLC_ROLE`` says that a process is a worker, and a worker
# stops here.

sizes = plots.options(
    "Train on the digits in several processes.",
    workers=(2, "processes that share a batch"),
    epochs=(12, "passes over the images"),
    batch=(96, "images per step, of all workers"),
    seed=(0, "of weights and batches"),
    save=("", "file for the trained parameters"))

if os.environ.get("DMLC_ROLE") == "worker":
    kvstore = mx.kv.create("dist_sync")

    def say(epoch, held_out):
        """Print what the other process reads."""
        print(f"epoch {epoch}: {held_out!r}",
              flush=True)

    net = train(kvstore, sizes.epochs, sizes.batch,
                sizes.seed, say)
    if kvstore.rank == 0 and sizes.save:
        net.save_parameters(sizes.save)
    sys.exit()

# %%
# ``launch.py``, which comes with the download of this page, starts the workers, the server and a scheduler that
# introduces them to one another. As a command it is ``python launch.py --workers 2 distributed_training.py``.

import launch  # down here, where no worker comes

script = [plots.HERE / "distributed_training.py"]
for name in ("epochs", "batch", "seed"):
    size = getattr(sizes, name)
    script.append(f"--{name}={size}")
if sizes.save:
    script.append(f"--save={sizes.save}")


def train_together(workers):
    """The curve of each worker, by its name."""
    curves = {}
    bar = tqdm(total=workers * sizes.epochs,
               unit="epoch", disable=None)

    def heard(name, line, processes):
        """Note the divergence that is printed."""
        if line.startswith("epoch"):
            value = float(line.split()[-1])
            curve = curves.setdefault(name, [])
            curve.append(value)
            bar.update()

    with bar:
        launch.run(
            launch.plan(script, workers), heard)
    return {name: curves[name]
            for name in sorted(curves)}


alone = []
train(None, sizes.epochs, sizes.batch, sizes.seed,
      lambda epoch, value: alone.append(value))
together = train_together(sizes.workers)

print("held-out nats  first epoch       last")
for name, curve in {
        "one process": alone, **together}.items():
    print(f"{name:13}  {curve[0]:11.6f}  "
          f"{curve[-1]:9.6f}")

# %%
# The results agree to six decimals. The later digits may differ, because a sum of floating-point numbers depends on
# the order of its terms, and every batch is added up in as many parts as there are workers. (This page computes in
# float64, so that its figures are the same on any machine. Your own training can use float32, where two runs differ
# from the seventh digit on.)

import matplotlib.pyplot as plt

plt.style.use(plots.STYLE)

fig, (top, bottom) = plt.subplots(
    2, 1, figsize=(5, 5.8))
fig.suptitle("One training, several processes")
top.set_title("Who talks to whom")
plots.draw_roles(top, sizes.workers)
bottom.set_title("Divergence on held-out digits")
plots.draw_agreement(bottom, alone, together)
fig.savefig(
    sizes.figures / "distributed_training.png",
    **plots.PNG)

# %%
# What must not happen on one worker alone
# ----------------------------------------
# With ``dist_sync``, every worker waits for every other. If one of them raises an error, the others wait forever for a
# gradient that never comes. So a loss must not behave differently on one worker because of the values that this worker
# sees.
#
# * ``KLDivLoss`` raises errors for shapes, dtypes and devices, which all workers share. It never raises one for a
#   value. A NaN reaches all workers with the next parameters, and all of them see it.
# * ``loss.check_inputs`` looks at values and raises errors. Call it on a first batch before the key-value store is
#   made, or in one process, but not in the loop.
# * ``launch.py`` ends all processes as soon as one of them fails, and says which one and what it printed last.
#
# On several machines
# -------------------
# Copy the folder to every machine, with the same versions of Python, MXNet and gluon_kl, and start the same command on
# each. Only the number after ``--host`` differs. Machine 0 runs the scheduler, at the address after ``--root``.
#
# .. code-block:: console
#
#    # on 192.168.0.10
#    python launch.py --hosts 2 --host 0 \
#        --root 192.168.0.10:9091 \
#        distributed_training.py
#
#    # on the other one
#    python launch.py --hosts 2 --host 1 \
#        --root 192.168.0.10:9091 \
#        distributed_training.py
#
# The system chooses the ports by which the machines find one another, so a firewall between them must let all ports
# pass.
#
# .. warning::
#
#    The parameter server has neither passwords nor encryption, and it unpickles the optimizer that a worker sends.
#    Anybody who reaches its ports can run code on it. Use it on a network where you trust every machine.
#
# Exercises
# ---------
#
# **1.** Your loop ends with ``loss(net(x), y).mean().backward()`` and ``trainer.step(1)``. It trains well in one
# process. What changes with four workers?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>
#
# The servers add four means, so the step is four times as large as in one process. Remove ``.mean()``, and give
# ``trainer.step`` the size of the whole batch.
#
# .. raw:: html
#
#    </details>
#
# **2.** The last batch of an epoch has five samples, and there are eight workers. What do the other three do?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>
#
# They must take part too, or the five wait for them. Leave out the last batch on all workers, as this page does. Or pad
# it and give the padding a ``sample_weight`` of 0: then its gradient is 0, even if it holds NaN.
#
# .. raw:: html
#
#    </details>
#
# What to take away
# -----------------
#
# * The training loop needs only ``Trainer(..., kvstore="dist_sync")``. Give ``step`` the size of the whole batch, and
#   give each worker its share of every batch.
# * Take no mean over the batch on a worker.
# * Equal seeds and equal batches give equal results: compare a run with a single process before you trust it.
# * Keep errors that depend on values out of the loop.
