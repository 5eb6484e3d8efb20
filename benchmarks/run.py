"""Forward and backward of gluon_kl's losses beside MXNet, torch and JAX, measured in one run.

    python3 tasks.py bench                          # with the libraries that are installed beside gluon_kl
    python3 tasks.py bench --peers PATH/TO/python   # with torch and JAX from another environment
    python3 tasks.py bench --rows js gaussian       # only rows whose name contains one of these; writes no files
    python3 tasks.py bench --draw                   # draws the plot from the tables, without measuring

Every subject runs in a process of its own; only one works at a time, and they take turns within each row, so that a
noisy machine disturbs all alike. A figure is the median over all turns. Before anything is timed, each subject's
value and gradients are compared with gluon_kl's; what differs is reported and left out.
Prints the tables; writes figures/benchmark*.csv and figures/benchmark.png.
"""

import contextlib
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from operator import itemgetter
from pathlib import Path

import numpy as np
import options
from rows import FAMILY, MEMORY, SHAPES, smaller

ROOT = Path(__file__).resolve().parent.parent
SUBJECTS = {
    "gluon_kl": "gluon_kl",
    "two-threads": "two threads",
    "eager": "eager",
    "operators": "MXNet operators",
    "gluon": "Gluon",
    "torch": "torch",
    "torch-compile": "torch.compile",
    "jax": "JAX",
}
COPIES = ["copy", "copy-two-threads"]
CEILING = [*COPIES, "forward", "backward"]  # memory traffic and arithmetic alone, without a loss
IN_FAMILY = ["gluon_kl", "gluon", "torch", "torch-compile", "jax", "operators"]
IN_SHAPES = ["gluon_kl", "gluon", "torch", "torch-compile", "jax", "operators", "eager", "two-threads", *CEILING]
IN_MEMORY = ["gluon_kl", "gluon", "torch"]
# glibc's allocator must keep all freed memory. Otherwise it depends on the layout of the heap whether a step needs
# fresh pages for an array, which take longer than the loss.
KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "10000000000", "MALLOC_MMAP_MAX_": "0",
               "MALLOC_TOP_PAD_": "268435456"}


class Worker:
    def __init__(self, subject, peers, **environment):
        threads = "2" if subject.endswith("two-threads") else "1"
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, **environment, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
                       "GLUON_KL_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(paths)}
        if subject == "operators":
            environment["GLUON_KL_NATIVE"] = "0"
        python = peers if subject.startswith(("torch", "jax")) else sys.executable
        command = [python, "-W", "ignore", str(Path(__file__).with_name("worker.py")), subject, threads]
        if subject == "jax":  # JAX uses every core that it may use
            command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment)

    def answer(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"missing": "the process ended"}

    def ask(self, do, row, **order):
        try:
            self.process.stdin.write(json.dumps({"do": do, "row": row._asdict(), **order}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"missing": "the process ended"}
        return self.answer()

    def stop(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


class Bench:
    def __init__(self, peers, rounds, turn_seconds, tell):
        self.peers, self.rounds, self.turn_seconds, self.tell = peers, rounds, turn_seconds, tell
        self.versions, self.wrong = {}, []

    def start(self, subjects, **environment):
        started = {subject: Worker(subject, self.peers, **environment) for subject in subjects}
        for subject, worker in list(started.items()):
            answer = worker.answer()
            if "missing" in answer:
                self.tell(f"left out: {SUBJECTS.get(subject, subject)} ({answer['missing']})")
                started.pop(subject).stop()
            else:
                self.versions[subject] = answer["version"]
        return started

    def times(self, workers, row):
        """The median seconds of `row` for every competitor that computes the same as gluon_kl."""
        first = self.prepare(workers, row)
        if "gluon_kl" not in first:
            return {}
        # The system takes a while to decide whether threads that wait for each other share a core, and this changes the
        # time of a small step a lot.
        turn_seconds = self.turn_seconds * (10 if np.prod(row.shape) < 1 << 16 else 1)
        counts = {subject: {name: max(2, min(2000, int(turn_seconds / taken))) for name, taken in steps.items()}
                  for subject, steps in first.items()}
        taken = {subject: {name: [] for name in steps} for subject, steps in first.items()}
        for _ in range(self.rounds):
            for subject in list(taken):
                answer = workers[subject].ask("turn", row, counts=counts[subject])
                if "missing" in answer:
                    self.tell(f"{row.name}: {SUBJECTS.get(subject, subject)} left out ({answer['missing']})")
                    del taken[subject]
                for name, values in answer.get("taken", {}).items():
                    taken[subject][name] += values
        medians = {subject: {name: statistics.median(values) for name, values in steps.items()}
                   for subject, steps in taken.items()}
        times = {subject: steps["step"] - steps.get("without", 0) for subject, steps in medians.items()}
        for subject in [subject for subject, seconds in times.items() if seconds <= 0]:
            self.tell(f"{row.name}: {SUBJECTS.get(subject, subject)} left out (what it adds to a step drowns in noise)")
            del times[subject]
        return times if "gluon_kl" in times else {}

    def prepare(self, workers, row):
        """The seconds of a first step of every competitor whose results are those of gluon_kl."""
        first, ours = {}, None
        with tempfile.TemporaryDirectory() as folder:
            for subject, worker in workers.items():
                file = os.path.join(folder, subject + ".npz")
                answer = worker.ask("prepare", row, file=file)
                if "missing" in answer:
                    self.tell(f"{row.name}: {SUBJECTS.get(subject, subject)} left out ({answer['missing']})")
                    if subject == "gluon_kl":
                        break
                    continue
                results = list(np.load(file).values())
                os.remove(file)
                ours = results if subject == "gluon_kl" else ours
                difference = None if subject in CEILING else differs(ours, results)
                if difference:
                    self.wrong.append(f"{row.name}: {SUBJECTS[subject]} computes something else: {difference}")
                    self.tell(self.wrong[-1])
                else:
                    first[subject] = answer["first"]
        return first

    def memory(self, row, subject):
        """The peak memory of a step beyond inputs and gradients, in arrays of pred, in a separate process."""
        worker = self.start([subject]).get(subject)
        if worker is None:
            return None
        answer = worker.ask("peak", row)
        worker.stop()
        if "missing" in answer:
            self.tell(f"{row.name}, memory: {SUBJECTS[subject]} left out ({answer['missing']})")
            return None
        return answer["bytes"] / (4 * int(np.prod(row.shape)))


def differs(ours, theirs):
    """The first of value and gradients in which `theirs` is wrong, or None; the tolerance is for float32."""
    names = ["value"] + [f"gradient {i}" for i in range(1, len(ours))]
    if len(theirs) != len(ours):
        return f"{len(theirs)} results for {len(ours)}"
    for name, a, b in zip(names, ours, theirs):
        if a.shape != b.shape:
            return f"{name} of shape {b.shape} for {a.shape}"
        scale = np.abs(a).max()
        excess = np.abs(a - b) - 1e-3 * np.abs(a)
        if not (np.isfinite(scale) and scale > 0 and excess.max() <= 2e-5 * scale):
            worst = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), a.shape)
            return f"{name} {b[worst]} for {a[worst]} at {tuple(map(int, worst))}"
    return None


def ceiling(copy, forward, backward):
    """The seconds that arithmetic or memory traffic alone take: forward reads 8 bytes per element, as many as a copy
    moves, and backward moves 12."""
    return max(forward, copy) + max(backward, 1.5 * copy)


# ---- Tables: microseconds of gluon_kl, the others in multiples of it ----

def microseconds(times):
    return f"{times['gluon_kl'] * 1e6:.0f}"


def multiple(times, subject):
    return f"{times[subject] / times['gluon_kl']:.3g}" if subject in times else ""


def gain(times, one, two):
    """The speed with two threads as a multiple of that with one."""
    return f"{times[one] / times[two]:.2f}" if one in times and two in times else ""


def share_of_ceiling(times):
    known = all(subject in times for subject in ("copy", "forward", "backward"))
    return f"{ceiling(times['copy'], times['forward'], times['backward']) / times['gluon_kl']:.0%}" if known else ""


def family_table(measured):
    yield ["loss", "pred", "gluon_kl (µs)", *(SUBJECTS[subject] for subject in IN_FAMILY[1:])]
    for row, times in measured:
        yield [row.title, row.size, microseconds(times), *(multiple(times, subject) for subject in IN_FAMILY[1:])]


def shapes_table(measured):
    others = [subject for subject in IN_SHAPES[1:] if subject not in ("two-threads", *CEILING)]
    yield ["pred", "gluon_kl (µs)", "of ceiling", *(SUBJECTS[subject] for subject in others), "2 threads",
           "copy"]  # with two threads; for arrays so large that the start of a thread does not matter
    for row, times in measured:
        yield [row.size + (", a leaf" if row.setting == "leaf" else ""), microseconds(times),
               share_of_ceiling(times), *(multiple(times, subject) for subject in others),
               gain(times, "gluon_kl", "two-threads"), gain(times, *COPIES) if times.get("copy", 0) > 1e-3 else ""]


def memory_table(measured):
    yield ["loss", *(SUBJECTS[subject] for subject in IN_MEMORY)]
    for row, arrays in measured:
        yield [row.title, *("" if x is None else f"{round(x, 1) + 0:.1f}" for x in arrays)]  # + 0: no -0.0


def setting_table(versions):
    yield ["processor", processor()]
    yield ["Python", platform.python_version()]
    yield ["libraries", ", ".join(sorted(set(versions.values())))]


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        facts = dict(line.rstrip("\n").split("\t", 1) for line in file if "\t" in line)
    name = facts.get("model name", ": " + platform.machine()).split(":", 1)[1].strip()
    widest = next((flag for flag in ("avx512f", "avx2") if flag in facts.get("flags", "").split()), "")
    return f"{name}, {widest.replace('avx512f', 'AVX-512').upper()}".rstrip(", ")


def measure(bench, family, shapes, memory):
    """The tables by the name of their file."""
    from tqdm import tqdm

    tables = {}
    subjects = [*(IN_FAMILY if family else []), *(IN_SHAPES if shapes else [])]
    workers = bench.start(dict.fromkeys(subjects), **KEEP_MEMORY)
    plan = [(row, IN_FAMILY) for row in family] + [(row, IN_SHAPES) for row in shapes]
    measured = [(row, bench.times({s: workers[s] for s in subjects if s in workers}, row))
                for row, subjects in tqdm(plan, desc="rows", unit="row", disable=not plan)]
    for worker in workers.values():
        worker.stop()
    if family:
        tables["benchmark"] = list(family_table(filter(itemgetter(1), measured[:len(family)])))
    if shapes:
        tables["benchmark_shapes"] = list(shapes_table(filter(itemgetter(1), measured[len(family):])))
    if memory:
        arrays = [(row, [bench.memory(row, subject) for subject in IN_MEMORY])
                  for row in tqdm(memory, desc="memory", unit="row")]
        tables["benchmark_memory"] = list(memory_table(arrays))
    tables["benchmark_setting"] = list(setting_table(bench.versions))
    return tables


def write(tables, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(table)


def main():
    parser = options.parser(__doc__)
    arguments = parser.parse_args()
    family, shapes, memory = (
        [row for row in rows if not arguments.rows or any(part in row.name for part in arguments.rows)]
        for rows in (FAMILY, SHAPES, MEMORY))
    if arguments.list:
        print("\n".join(row.name for row in [*family, *shapes, *memory]))
        return 0
    if not (family or shapes or memory):
        parser.error(f"--rows must be parts of the names that --list prints, not {' '.join(arguments.rows)}")
    folder = arguments.out or (None if arguments.rows or arguments.quick else ROOT / "figures")
    if not arguments.draw:
        if arguments.quick:
            family, shapes = ([smaller(row) for row in rows] for rows in (family, shapes))
            # Arrays above 32 MiB, which malloc returns to the system at once.
            memory = [row._replace(shape=(1024, 10000)) for row in memory[:1]]
        from tqdm import tqdm

        rounds, turn_seconds = (3, 1e-3) if arguments.quick else (arguments.rounds, 0.05)
        measuring = Bench(arguments.peers, rounds, turn_seconds, tqdm.write)
        tables = measure(measuring, family, shapes, memory)
        for table in tables.values():
            print("\n" + "\n".join(" | ".join(row) for row in table))
        if folder:
            write(tables, folder)
        if measuring.wrong:
            print("\nNot what gluon_kl computes:\n" + "\n".join(measuring.wrong))
            return 1
    if arguments.draw or (folder and (family or shapes)):
        import plot

        print(f"wrote {plot.draw(folder or ROOT / 'figures')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
