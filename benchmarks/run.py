"""Forward and backward of the KL loss in gluon_kl, MXNet, torch and JAX, measured in one run.

    python3 tasks.py bench                          # what is installed beside gluon_kl
    python3 tasks.py bench --peers PATH/TO/python   # with torch and JAX from another environment

Every subject runs in a process of its own, with the same number of threads; only one works at a
time, and they take turns within each shape, so that a noisy machine disturbs all alike. A figure is
the median over all turns. Pred are logits, label probabilities without gradient, float32.
Prints the table; writes figures/benchmark.csv and figures/benchmark.png.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

FIGURES = Path(__file__).resolve().parent.parent / "figures"
SUBJECTS = {
    "gluon_kl": "gluon_kl, hybridized",
    "gluon_kl-eager": "gluon_kl, eager",
    "gluon_kl-ops": "gluon_kl, MXNet operators",
    "mxnet": "MXNet's own, hybridized",
    "torch": "torch, eager",
    "torch-compile": "torch.compile",
    "jax": "JAX, jit",
}
# Name, shape, axis of the categories.
SHAPES = [
    ("128×10", (128, 10), -1),
    ("4096×10", (4096, 10), -1),
    ("1024×1000", (1024, 1000), -1),
    ("256×32000", (256, 32000), -1),
    ("64×128256", (64, 128256), -1),
    ("8192×1000", (8192, 1000), -1),
    ("8×21×256×256, axis 1", (8, 21, 256, 256), 1),
]
GROWTH_SUBJECTS = ["gluon_kl", "gluon_kl-ops", "mxnet", "torch", "torch-compile", "jax"]
CATEGORIES = [10, 100, 1000, 10000, 100000]
BATCHES = [1, 10, 100, 1000, 10000]
# Nanoseconds per element on one core with AVX-512: exp and log forward, exp backward.
FORWARD_NS, BACKWARD_NS = 0.37, 0.17


# ---- A worker: one subject, told on standard input what to do, answering in JSON lines. ----

def random_inputs(shape, axis):
    import numpy as np

    rng = np.random.RandomState(0)
    pred, label = (rng.standard_normal(shape).astype("float32") for _ in range(2))
    label = np.exp(label - label.max(axis=axis, keepdims=True))
    return pred, label / label.sum(axis=axis, keepdims=True)


def mxnet_step(subject):
    import mxnet as mx

    if subject == "mxnet":
        def make(axis):
            return mx.gluon.loss.KLDivLoss(from_logits=False, axis=axis)
    else:
        import gluon_kl

        if subject != "gluon_kl-ops" and not gluon_kl.native.is_available():
            raise ImportError(gluon_kl.native.why_not())

        def make(axis):
            return gluon_kl.KLDivLoss(from_logits=False, axis=axis, reduction="sum")

    def prepare(shape, axis):
        pred, label = (mx.nd.array(x) for x in random_inputs(shape, axis))
        pred.attach_grad()
        loss = make(axis)
        if subject != "gluon_kl-eager":
            loss.hybridize(static_alloc=True, static_shape=True)

        def step():
            with mx.autograd.record():
                out = loss(pred, label)
            out.backward()
            pred.grad.wait_to_read()

        return step

    return prepare


def torch_step(subject, threads):
    import torch

    torch.set_num_threads(threads)

    def loss(pred, label, axis):
        terms = torch.nn.functional.kl_div(torch.log_softmax(pred, axis), label, reduction="none")
        return terms.sum(tuple(range(1, pred.dim())))

    def prepare(shape, axis):
        torch.compiler.reset()  # it would give up compiling after eight shapes
        call = torch.compile(loss, dynamic=False) if subject == "torch-compile" else loss
        pred, label = (torch.from_numpy(x) for x in random_inputs(shape, axis))
        pred.requires_grad_()
        head = torch.ones(shape[0])

        def step():
            pred.grad = None
            call(pred, label, axis).backward(head)

        return step

    return prepare


def jax_step():
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_platforms", "cpu")

    def prepare(shape, axis):
        def loss(pred, label):
            log_label = jnp.where(label > 0, jnp.log(jnp.where(label > 0, label, 1)), 0)
            terms = label * (log_label - jax.nn.log_softmax(pred, axis))
            out = terms.sum(tuple(range(1, pred.ndim)))
            return out.sum(), out

        call = jax.jit(jax.value_and_grad(loss, has_aux=True))
        pred, label = (jax.device_put(x) for x in random_inputs(shape, axis))

        def step():
            jax.block_until_ready(call(pred, label))

        return step

    return prepare


def copy_step(threads):
    """Bytes per nanosecond that a copy of an array of this size moves: the memory's ceiling."""
    import numpy as np

    def prepare(shape, axis):
        source = np.ones(int(np.prod(shape)), dtype="float32")
        target = np.empty_like(source)
        parts = list(zip(np.array_split(target, threads), np.array_split(source, threads)))

        def step():
            workers = [threading.Thread(target=np.copyto, args=part) for part in parts[1:]]
            for worker in workers:
                worker.start()
            np.copyto(*parts[0])
            for worker in workers:
                worker.join()

        return step

    return prepare


def work(subject, threads):
    try:
        if subject == "copy":
            prepare = copy_step(threads)
        elif subject.startswith("torch"):
            prepare = torch_step(subject, threads)
        elif subject == "jax":
            prepare = jax_step()
        else:
            prepare = mxnet_step(subject)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    print(json.dumps({"ready": True}), flush=True)
    step = None
    for line in sys.stdin:
        order = json.loads(line)
        if "shape" in order:
            step = prepare(tuple(order["shape"]), order["axis"])
            for _ in range(3):
                step()
            answer = True
        else:
            answer = []
            for _ in range(order["steps"]):
                start = time.perf_counter()
                step()
                answer.append(time.perf_counter() - start)
        print(json.dumps(answer), flush=True)


# ---- The conductor ----

class Worker:
    def __init__(self, subject, python, threads):
        count = str(threads)
        environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "GLUON_KL_NUM_THREADS": count}
        if subject == "gluon_kl-ops":
            environment["GLUON_KL_NATIVE"] = "0"
        command = [python, "-W", "ignore", __file__, "--worker", subject, "--threads", count]
        if subject == "jax":  # JAX takes every core it may
            command = ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads])), *command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=environment, stderr=subprocess.DEVNULL)
        self.missing = self.answer().get("missing")

    def answer(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"missing": "did not start"}

    def ask(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def measure(workers, shape, axis, rounds):
    """Median seconds per step of every subject, taking turns."""
    times = {subject: [] for subject in workers}
    steps = {}
    for subject, worker in workers.items():
        worker.ask(shape=shape, axis=axis)
        steps[subject] = max(1, min(200, int(0.05 / min(worker.ask(steps=3)))))
    for _ in range(rounds):
        for subject, worker in workers.items():
            times[subject] += worker.ask(steps=steps[subject])
    return {subject: statistics.median(taken) for subject, taken in times.items()}


def roofline(shape, copy_seconds, threads):
    """Seconds that arithmetic or memory traffic alone take: forward reads 8 bytes an element, backward moves 12."""
    n = 1
    for size in shape:
        n *= size
    per_byte = copy_seconds / (8 * n)
    return max(FORWARD_NS * 1e-9 * n / threads, 8 * n * per_byte) + max(
        BACKWARD_NS * 1e-9 * n / threads, 12 * n * per_byte)


def start_workers(subjects, peers, threads):
    workers = {}
    for subject in subjects:
        worker = Worker(subject, peers if subject.startswith(("torch", "jax")) else sys.executable, threads)
        if worker.missing:
            print(f"left out: {SUBJECTS.get(subject, subject)} ({worker.missing})")
            worker.process.wait()
        else:
            workers[subject] = worker
    return workers


def bench(rounds, peers, threads, growth):
    from tqdm import tqdm

    workers = start_workers([*SUBJECTS, "copy"], peers, threads)
    table, by_categories, by_batch = {}, {}, {}
    plan = [(table, name, shape, axis, workers) for name, shape, axis in SHAPES]
    if growth:
        some = {subject: workers[subject] for subject in GROWTH_SUBJECTS if subject in workers}
        plan += [(by_categories, c, (max(1, 1000000 // c), c), -1, some) for c in CATEGORIES]
        plan += [(by_batch, b, (b, 1000), -1, some) for b in BATCHES]
    for results, name, shape, axis, subjects in tqdm(plan, desc="shapes", unit="shape"):
        results[name] = measure(subjects, shape, axis, rounds)
    for worker in workers.values():
        worker.stop()
    for name, shape, _ in SHAPES:
        table[name]["roofline"] = roofline(shape, table[name].pop("copy"), threads)
    return table, by_categories, by_batch


SHORT = {"gluon_kl-eager": "eager", "gluon_kl-ops": "MXNet operators", "mxnet": "MXNet's own", "torch": "torch",
         "torch-compile": "torch.compile", "jax": "JAX"}


def rows_of(table):
    """The table as text: microseconds of gluon_kl, its share of the ceiling, and the others in multiples of it."""
    others = [subject for subject in SHORT if subject in next(iter(table.values()))]
    yield ["shape", "gluon_kl", "of ceiling", *[SHORT[subject] for subject in others]]
    for name, times in table.items():
        base = times["gluon_kl"]
        yield [name, f"{base * 1e3:.1f} ms" if base > 1e-3 else f"{base * 1e6:.0f} µs",
               f"{times['roofline'] / base:.0%}",
               *[f"{times[subject] / base:.2g}×" for subject in others]]


def draw(table, by_categories, by_batch, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = Path(__file__).resolve().parent.parent / "tutorials" / "matplotlibrc"
    with plt.rc_context(fname=str(style)) if style.exists() else plt.rc_context():
        figure = plt.figure(figsize=(6, 9.5))
        grid = figure.add_gridspec(2, 2, height_ratios=[1.7, 1])
        bars, *curves = (figure.add_subplot(grid[0, :]), figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1]))
        subjects = [s for s in SUBJECTS if s in next(iter(table.values()))]
        colours = dict(zip(SUBJECTS, ["#0b6e4f", "#55a98b", "#a8d5c2", "#8c2d19", "#d98c3f", "#e8c07d", "#4c6fae"]))
        for i, subject in enumerate(subjects):
            heights = [times[subject] / times["gluon_kl"] for times in table.values()]
            bars.barh([y + (i - (len(subjects) - 1) / 2) / (len(subjects) + 1.5) for y in range(len(table))], heights,
                      height=1 / (len(subjects) + 1.5), color=colours[subject], label=SUBJECTS[subject])
        bars.axvline(1, color="black", linewidth=1)
        bars.set(xscale="log", xlabel="times the time of gluon_kl, hybridized", yticks=range(len(table)),
                 title="Forward and backward: shorter is faster")
        bars.set_xticks([0.2, 0.5, 1, 2, 5, 10, 20])
        bars.xaxis.set_major_formatter("{x:g}")
        bars.minorticks_off()
        bars.set_yticklabels([name.replace(", ", ",\n") for name in table])
        bars.invert_yaxis()
        for curve, results, label, elements in (
                (curves[0], by_categories, "categories", lambda c: max(1, 1000000 // c) * c),
                (curves[1], by_batch, "batch", lambda b: 1000 * b)):
            for subject in [s for s in GROWTH_SUBJECTS if s in subjects]:
                curve.plot(list(results), [1e9 * times[subject] / elements(x) for x, times in results.items()],
                           marker="o", markersize=4, color=colours[subject])
            curve.set(xscale="log", yscale="log", xlabel=label, ylabel="ns per element")
            curve.yaxis.set_major_formatter("{x:g}")
            curve.minorticks_off()
        curves[0].set_title("One million elements")
        curves[1].set_title("1000 categories")
        figure.legend(*bars.get_legend_handles_labels(), loc="outside lower center", ncol=2, frameon=False)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each subject on each shape (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="threads of every subject (default 1)")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="interpreter that has torch and JAX")
    parser.add_argument("--table-only", action="store_true", help="leave out the growth curves, write no files")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments.worker, arguments.threads)
    growth = not arguments.table_only
    table, by_categories, by_batch = bench(arguments.rounds, arguments.peers, arguments.threads, growth)
    rows = list(rows_of(table))
    for row in rows:
        print(" | ".join(row))
    if growth:
        FIGURES.mkdir(exist_ok=True)
        with open(FIGURES / "benchmark.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        draw(table, by_categories, by_batch, FIGURES / "benchmark.png")
        print(f"wrote {FIGURES / 'benchmark.csv'} and {FIGURES / 'benchmark.png'}")


if __name__ == "__main__":
    main()
