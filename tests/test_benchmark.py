"""The benchmark: that it runs with nothing but MXNet beside gluon_kl, and measures only what computes the same."""

import csv
import os
import subprocess
import sys

import gluon_kl
from gluon_kl import native

import numpy as np
import pytest
from conftest import LEAN

import tasks

BENCHMARKS = tasks.ROOT / "benchmarks"


@pytest.fixture(scope="module")
def here():
    """The benchmark's own modules."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import plot
        import rows
        import run

        yield {"plot": plot, "rows": rows, "run": run}
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run, with torch and JAX out of sight."""
    if not native.is_available():
        pytest.skip(f"without the native operator: {native.why_not()}")
    folder = tmp_path_factory.mktemp("benchmark")
    absent = folder / "absent"
    for name in ("torch", "jax"):
        (absent / name).mkdir(parents=True)
        (absent / name / "__init__.py").write_text(f"raise ImportError('{name} is not here')")
    environment = {**os.environ, "PYTHONPATH": f"{absent}{os.pathsep}{LEAN}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(BENCHMARKS / "run.py"), "--quick", "--out", str(folder)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
                          timeout=300)
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


def table(folder, name):
    with open(folder / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_row_is_measured(quick, here):
    folder, said = quick
    # Of arrays this small, what a loss adds to a step may be lost in noise: then that is said instead of a time.
    drowned = said.count("gluon_kl left out (what it adds to a step drowns in noise)")
    family, shapes = here["rows"].FAMILY, here["rows"].SHAPES
    measured = table(folder, "benchmark"), table(folder, "benchmark_shapes")
    assert all(hasattr(gluon_kl, row.title.split(",")[0]) for row in family)
    assert {row["loss"] for row in measured[0]} <= {row.title for row in family}
    assert drowned < 5 and sum(map(len, measured)) + drowned == len(family) + len(shapes)
    for name in ("benchmark", "benchmark_shapes"):
        for row in table(folder, name):
            assert float(row["gluon_kl (µs)"]) > 0
            assert not row["torch"] and not row["torch.compile"] and not row["JAX"]
    assert "computes something else" not in said
    assert all(row["Gluon"] or "Gluon left out (what it adds" in said for row in measured[0])
    assert "left out: torch (torch is not here)" in said and "left out: JAX (jax is not here)" in said


def test_memory_tells_a_copy_from_none(quick):
    """By hand, arrays of pred's size are kept from forward to backward; the fused operator keeps none."""
    row, = table(quick[0], "benchmark_memory")
    assert float(row["gluon_kl"]) < 1 < float(row["Gluon"])


def test_the_plot_is_drawn_from_the_tables(quick, here):
    folder, _ = quick
    drawn = (folder / "benchmark.png").read_bytes()
    (folder / "benchmark.png").unlink()
    assert here["plot"].draw(folder).read_bytes() == drawn


def test_the_forms_of_every_library_are_complete(here):
    """A form that one library lacks would be left out without a word."""
    forms = set(here["rows"].FORMS)
    for library in ("with_torch", "with_jax"):
        source = (BENCHMARKS / f"{library}.py").read_text(encoding="utf-8")
        assert forms == {form for form in forms if f'    "{form}": ' in source}, library


@pytest.mark.parametrize("spoil, word", [
    (lambda value, gradient: (value * 1.01, gradient), "value"),
    (lambda value, gradient: (value, -gradient), "gradient 1"),
    (lambda value, gradient: (value, np.where(np.arange(5) == 3, np.nan, gradient)), "nan"),
    (lambda value, gradient: (value[:1], gradient), "shape (1,)"),
    (lambda value, gradient: (value,), "1 results for 2"),
])
def test_another_result_is_noticed(here, spoil, word):
    differs = here["run"].differs
    ours = [np.array([1.0, 2.0]), np.linspace(-1, 1, 10).reshape(2, 5)]
    assert differs(ours, [x * (1 + 1e-6) for x in ours]) is None
    assert word in differs(ours, list(spoil(*ours)))


class Told:
    """A subject that answers at once, with the results that it was given."""

    def __init__(self, *results):
        self.results = results

    def ask(self, do, row, file):
        assert do == "prepare"
        np.savez(file, *self.results)
        return {"first": {"step": 1e-3}}


def test_a_loss_that_is_wrong_is_left_out_and_fails_the_run(here):
    """A competitor that computes half as much as gluon_kl, and one that agrees."""
    said = []
    bench = here["run"].Bench(sys.executable, 1, 1e-3, said.append)
    value, gradient = np.array([1.0, 2.0]), np.linspace(-1, 1, 10).reshape(2, 5)
    workers = {"gluon_kl": Told(value, gradient), "gluon": Told(value / 2, gradient), "eager": Told(value, gradient)}
    assert set(bench.prepare(workers, here["rows"].Row("kl", (2, 5)))) == {"gluon_kl", "eager"}
    assert "Gluon computes something else: value" in bench.wrong[0] and said == bench.wrong


def test_an_unknown_row_is_refused():
    done = subprocess.run([sys.executable, str(BENCHMARKS / "run.py"), "--rows", "hellinger"], stderr=subprocess.PIPE,
                          text=True)
    assert done.returncode == 2 and "--list" in done.stderr and "hellinger" in done.stderr


@pytest.mark.parametrize("copy, gained, share", [
    (2e-3, "1.25", "100%"),  # memory takes longer, forward and backward: 2 + 3 of 5 ms
    # arithmetic does, 1 + 0.4; and copying no longer than to start a thread, so that its gain says nothing
    (1e-4, "", "28%"),
])
def test_shares_and_gains(here, copy, gained, share):
    run, row = here["run"], here["rows"].Row("kl", (1000, 1000))
    times = {"gluon_kl": 5e-3, "two-threads": 2.5e-3, "copy": copy, "copy-two-threads": copy / 1.25,
             "forward": 1e-3, "backward": 4e-4}
    head, line = run.shapes_table([(row, times)])
    told = dict(zip(head, line))
    assert (told["of ceiling"], told["2 threads"], told["copy"]) == (share, "2.00", gained)
    del times["forward"]  # no compiler
    assert dict(zip(*run.shapes_table([(row, times)])))["of ceiling"] == ""


def test_the_ceiling_is_measured(quick):
    """What no core can beat, in the same run: it is compiled here. Of arrays this small it may be less than 1 %."""
    assert all(row["of ceiling"].endswith("%") for row in table(quick[0], "benchmark_shapes"))


def test_the_page_quotes_what_two_threads_gain():
    """Measured anew, it is to be written anew."""
    page = " ".join((tasks.ROOT / "docs" / "benchmarks.rst").read_text(encoding="utf-8").split())
    wide, narrow = (next(row for row in table(folder, "benchmark_shapes") if row["pred"] == "8192×1000")
                    for folder in (tasks.ROOT / "figures", tasks.ROOT / "figures" / "avx2"))
    assert f"two threads copy {narrow['copy']} times as fast as one" in page
    assert f"also computes, gains {narrow['2 threads']}." in page
    assert f"they copy {wide['copy']} times as fast, and the loss gains {wide['2 threads']};" in page


def test_the_readme_says_how_much_faster():
    readme = " ".join((tasks.ROOT / "README.md").read_text(encoding="utf-8").split())
    words = {6: "six", 8: "eight", 11: "eleven", 18: "eighteen"}
    wide, narrow = ([round(float(row["Gluon"])) for row in table(folder, "benchmark_shapes")
                     if "leaf" not in row["pred"] and not row["pred"].endswith("×10")]
                    for folder in (tasks.ROOT / "figures", tasks.ROOT / "figures" / "avx2"))
    assert (f"**{words[min(wide)].capitalize()} to {words[max(wide)]} times as fast as MXNet's own loss** "
            f"on large arrays ({words[min(narrow)]} to {words[max(narrow)]} without AVX-512)") in readme
    assert f"({words[min(wide)]} to {words[max(wide)]} times as fast as MXNet's own) and level" in readme
    small = next(row for row in table(tasks.ROOT / "figures", "benchmark_shapes") if row["pred"] == "128×10")
    assert f"At 128×10 MXNet's own takes {float(small['Gluon']):.1f} times as long" in readme
    step = next(row for row in table(tasks.ROOT / "figures", "benchmark") if "step with" in row["loss"])
    assert abs(float(step["Gluon"]) - 1) < 0.05, "they are not level"


def test_the_readme_says_what_the_operator_is_worth():
    readme = " ".join((tasks.ROOT / "README.md").read_text(encoding="utf-8").split())
    slower = [float(row["MXNet operators"]) / float(row["Gluon"])
              for row in table(tasks.ROOT / "figures", "benchmark_shapes") if not row["pred"].endswith("×10")]
    assert f"{min(slower):.1f} to {max(slower):.1f} times as long as MXNet's own on large arrays" in readme
