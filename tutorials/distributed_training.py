r"""
More machines
=============

When one machine is too slow, several can share each batch: every *worker* computes the gradient of its part,
and *servers* add the parts up, take the optimizer's step and hand out the new parameters. MXNet carries all of
this in its wheel. In the training loop it costs one word, ``Trainer(..., kvstore="dist_sync")``; what is left to
do is to start the processes, and to notice when one of them dies.

This page trains on scikit-learn's digits twice, in one process and in several, and compares the results. All
processes run on the machine at hand. Further down it says how the same file runs on more than one.

A loss has one duty in such a run: never to behave differently on one worker because of the values that this
worker happens to see. An error raised on one of them leaves the others waiting for a gradient that never comes.
That is why ``KLDivLoss`` checks shapes, which all workers share, and leaves values alone.
"""

import argparse
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import plots  # first: it says which Python this needs
from gluon_kl import KLDivLoss

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from sklearn.datasets import load_digits
from tqdm import tqdm

# There is no __file__ where sphinx-gallery runs this.
SCRIPT = Path(plots.__file__).with_name("distributed_training.py")

parser = argparse.ArgumentParser(
    description="Train on the digits in several processes, on any hosts.")
option = parser.add_argument
option("--workers", type=int, default=2,
       help="workers on each host (default: %(default)s)")
option("--hosts", type=int, default=1,
       help="hosts in all (default: %(default)s)")
option("--host", type=int, default=0,
       help="which of them this is, from 0 (default: %(default)s)")
option("--root", default="127.0.0.1:0",
       help="address:port of host 0, port 0: any (default: %(default)s)")
option("--patience", type=float, default=60,
       help="seconds of silence allowed (default: %(default)s)")
option("--epochs", type=int, default=12,
       help="passes over the images (default: %(default)s)")
option("--batch", type=int, default=96,
       help="rows per step, all workers together (default: %(default)s)")
option("--seed", type=int, default=0,
       help="of weights and batches (default: %(default)s)")
option("--save", metavar="FILE",
       help="where the worker of rank 0 writes the trained parameters")
option("--figures", type=Path, default=plots.FIGURES,
       help="folder for the figure (default: that of the project)")
options = parser.parse_args(None if "__file__" in globals() else [])

# %%
# The training, for any number of workers
# ---------------------------------------
# The labels are soft: for each image, how the fifteen most similar training images vote. Most votes are
# unanimous, so most probabilities are exactly 0, which the loss takes as they are. Every worker makes these
# labels for itself, so they have to come out the same everywhere: pixels are integers up to 16, their squared
# distances are exact, and equally near neighbours are taken in a fixed order.


def load_data(held_out=360, neighbours=15):
    """Images and soft labels: training rows, then held-out rows."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, digits = images[order], digits[order]
    voters, votes = images[held_out:], np.eye(10)[digits[held_out:]]
    squares = (images**2).sum(axis=1)
    distances = squares[:, None] + squares[held_out:] - 2 * images @ voters.T
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :neighbours]
    images, labels = images / 16, votes[nearest].mean(axis=1)
    training = images[held_out:], labels[held_out:]
    return training, (images[:held_out], labels[:held_out])


def make_network(seed):
    mx.random.seed(seed)
    network = gluon.nn.HybridSequential()
    network.add(gluon.nn.Dense(64, activation="relu", in_units=64),
                gluon.nn.Dense(10, in_units=64))
    network.initialize(mx.init.Xavier())
    network.cast("float64")
    network.hybridize()
    return network


# %%
# The loop is the usual one. Two things make it fit for company. Each worker takes its share of *every* batch,
# ``rows[rank::workers]``, so that together they see what one process would see. And ``step`` is told the
# size of the whole batch, since the servers add the gradients of all shares before they divide.


def train(kvstore, epochs, batch, seed, report):
    """Fit a network to the soft labels.

    Calls report(epoch, held-out divergence) after each epoch.
    """
    rank, workers = (kvstore.rank, kvstore.num_workers) if kvstore else (0, 1)
    (images, labels), unseen = load_data()
    unseen = [nd.array(x, dtype="float64") for x in unseen]
    network = make_network(seed)
    loss = KLDivLoss(from_logits=False, reduction="sum")
    loss.hybridize()
    trainer = gluon.Trainer(
        network.collect_params(), "sgd",
        {"learning_rate": 0.2, "momentum": 0.9}, kvstore=kvstore or "device")
    shuffle = np.random.default_rng(seed)
    for epoch in range(epochs):
        order = shuffle.permutation(len(images))
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start:start + batch][rank::workers]
            inputs = nd.array(images[rows], dtype="float64")
            targets = nd.array(labels[rows], dtype="float64")
            with autograd.record():
                divergence = loss(network(inputs), targets)
            divergence.backward()
            trainer.step(batch)
        held_out = loss(network(unseen[0]), unseen[1]).mean()
        report(epoch, float(held_out.asscalar()))
    return network


# %%
# The roles
# ---------
# MXNet reads from environment variables what a process is to be. A **scheduler** introduces the others to one
# another; a **server** holds parameters; both do their work inside ``import mxnet``, which in their case never
# returns. A **worker** runs a script, and here it is this very file: in a worker it goes no further than this.


def work():
    kvstore = mx.kv.create("dist_sync")

    def report(epoch, held_out):
        print(json.dumps({"epoch": epoch, "held_out": held_out}), flush=True)

    network = train(
        kvstore, options.epochs, options.batch, options.seed, report)
    if kvstore.rank == 0 and options.save:
        network.save_parameters(options.save)


if os.environ.get("DMLC_ROLE") == "worker":
    work()
    sys.exit()

# %%
# The rest is for the process that you start: one on each host. It becomes the parent of that host's workers
# and its server; the first host has the scheduler too. ``DMLC_NODE_HOST`` is the address under which the other
# hosts find this one.


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_address(root, port):
    """The address of this host on the network that leads to the root.

    Nothing is sent.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((root, port))
        return probe.getsockname()[0]


def plan(hosts, host, workers, root, arguments):
    """What this host has to start: name -> (command, environment)."""
    address, port = root.rsplit(":", 1)
    port = int(port) or free_port()
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    shared = {
        **os.environ,
        "DMLC_PS_ROOT_URI": address,
        "DMLC_PS_ROOT_PORT": str(port),
        "DMLC_NODE_HOST": own_address(address, port),
        "DMLC_NUM_SERVER": str(hosts),
        "DMLC_NUM_WORKER": str(hosts * workers),
        "OMP_NUM_THREADS": str(threads),
    }
    helper = [sys.executable, "-c", "import mxnet"]
    commands = {}
    if host == 0:
        commands["scheduler"] = helper, {**shared, "DMLC_ROLE": "scheduler"}
    commands["server"] = helper, {**shared, "DMLC_ROLE": "server"}
    this_file = [sys.executable, str(SCRIPT), *arguments]
    for i in range(workers):
        commands[f"worker {i}"] = this_file, {**shared, "DMLC_ROLE": "worker"}
    return commands


# %%
# When one of them dies
# ---------------------
# With ``dist_sync`` every worker waits for every other, so the death of one leaves the rest waiting for good.
# The parent therefore watches. A child whose output ends has ended itself; unless it ended well, the run has
# failed, and the parent says who it was and what it said last. On another host nothing ends, the workers there
# merely fall silent: that is what ``patience`` is for.
#
# Whatever happens, and Ctrl-C is no exception, no child stays behind: the parent ends those that it started, by
# their process number. Should the parent itself be killed, the kernel does it in its place: that is what each
# child asks for (``prctl``) before it turns into what it is to be.

TIED = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def start(command, environment):
    """Start a process that does not outlive this one.

    Its output, errors included, is to be read.
    """
    # No preexec_fn: an interrupt that comes while Python runs its fork
    # hooks would be lost.
    tied = [sys.executable, "-c", TIED, str(os.getpid()), *command]
    return subprocess.Popen(
        tied, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def forward(name, stream, lines):
    for line in stream:
        lines.put((name, line.rstrip()))
    lines.put((name, None))


def run(commands, patience, heard):
    """Start the processes, and fail as soon as one of them fails.

    ``heard(name, line, processes)`` is called for each line that they
    print. RuntimeError if a process does not end well, or if none of
    them prints anything for `patience` seconds.
    """
    processes, lines = {}, queue.Queue()
    said = {name: [] for name in commands}
    try:
        for name, (command, environment) in commands.items():
            processes[name] = start(command, environment)
            output = name, processes[name].stdout, lines
            threading.Thread(target=forward, args=output, daemon=True).start()
        running = set(processes)
        while running:
            try:
                name, line = lines.get(timeout=patience)
            except queue.Empty:
                waiting = ", ".join(sorted(running))
                raise RuntimeError(f"nothing heard for {patience:g} s from "
                                   f"{waiting}; run stopped") from None
            if line is not None:
                said[name].append(line)
                heard(name, line, processes)
                continue
            running.remove(name)
            code = processes[name].wait()
            if code:
                how = (f"by {signal.Signals(-code).name}" if code < 0
                       else f"with code {code}")
                words = "".join(f"\n  {line}" for line in said[name][-5:])
                raise RuntimeError(f"{name} ended {how}; run stopped\n"
                                   f"its last words:{words or ' none'}")
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


# %%
# Two workers against one process
# -------------------------------


def train_distributed(hosts, host, workers, root, disturb=None):
    """The held-out divergence after each epoch, by worker.

    For accidents there is disturb(name, epoch, processes).
    """
    arguments = [f"--epochs={options.epochs}", f"--batch={options.batch}",
                 f"--seed={options.seed}"]
    if options.save:
        arguments.append(f"--save={options.save}")
    curves = {f"worker {i}": [] for i in range(workers)}
    total = options.epochs * workers
    with tqdm(total=total, unit="epoch", disable=None) as bar:

        def heard(name, line, processes):
            if line.startswith("{"):
                news = json.loads(line)
                curves[name].append(news["held_out"])
                bar.update()
                if disturb:
                    disturb(name, news["epoch"], processes)

        commands = plan(hosts, host, workers, root, arguments)
        run(commands, options.patience, heard)
    return curves


alone = []
train(None, options.epochs, options.batch, options.seed,
      lambda epoch, held_out: alone.append(held_out))
together = train_distributed(
    options.hosts, options.host, options.workers, options.root)

print("held-out nats  first epoch       last")
for name, curve in {"one process": alone, **together}.items():
    print(f"{name:13}  {curve[0]:11.6f}  {curve[-1]:9.6f}")

# %%
# The figures agree to six decimals. Far below that they may not, because floating-point sums depend on the order
# of their terms, and every batch is added up in as many parts as there are workers. (The page computes in float64
# so that its figures are the same on any machine. Your own training can do with float32, where runs part at the
# seventh digit.)

import matplotlib.pyplot as plt  # down here, where no worker comes

plt.style.use(plots.STYLE)

fig, (top, bottom) = plt.subplots(2, 1, figsize=(5.8, 6))
fig.suptitle("One training, several processes")
top.set_title("Who talks to whom")
plots.draw_roles(top, options.workers)
bottom.set_title("Held-out digits")
plots.draw_agreement(bottom, alone, together)
options.figures.mkdir(exist_ok=True)
fig.savefig(options.figures / "distributed_training.png", **plots.PNG)

# %%
# An accident
# -----------
# The same run again, on this host alone, and once worker 1 has finished its second epoch it is killed.


def kill_second_worker(name, epoch, processes):
    if name == "worker 1" and epoch == 1:
        os.kill(processes[name].pid, signal.SIGKILL)


try:
    train_distributed(hosts=1, host=0, workers=2, root="127.0.0.1:0",
                      disturb=kill_second_worker)
except RuntimeError as error:
    print(str(error).splitlines()[0])
else:
    raise RuntimeError("the death of a worker went unnoticed")

# %%
# Without the watching parent, the other worker would still be waiting.
#
# Several hosts
# -------------
# Copy the folder of this file to every host, with the same versions of Python, MXNet and gluon_kl, and start the
# file on each. The commands differ in one number. Host 0 has the scheduler, at the address and port after
# ``--root``; every host has a server and its own workers.
#
# .. code-block:: console
#
#    # on 192.168.0.10
#    python distributed_training.py --host 0 \
#        --hosts 2 --root 192.168.0.10:9091
#
#    # on the other one
#    python distributed_training.py --host 1 \
#        --hosts 2 --root 192.168.0.10:9091
#
# If a worker dies, its own parent stops at once, and those on the other hosts when they have heard nothing for
# ``--patience`` seconds; choose that longer than an epoch, and than the start of all hosts. They find one another by
# the addresses of the network that leads to the root, on ports which the system picks, so a firewall between them
# has to let those pass.
#
# .. warning::
#
#    The parameter server has neither passwords nor encryption, and it unpickles the optimizer that a worker
#    sends: whoever can reach its ports can run code on it. Use it on a network where you trust every host.
#
# What to take away
# -----------------
#
# * ``Trainer(..., kvstore="dist_sync")`` is all that the training loop needs. Give ``step`` the size of the whole
#   batch, and each worker its share of every batch.
# * Equal seeds and equal batches give equal results: compare a run with a single process before you trust it.
# * Watch the processes. With ``dist_sync`` one that dies does not end the run, it hangs it.
# * Keep errors that depend on values, such as those of ``check_inputs``, out of the loop: raised on one worker, they
#   hang the others as well.
