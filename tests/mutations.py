"""Break the source on purpose, one line at a time, and name the test that notices.

    python tests/mutations.py            # every mutation, two at a time; exit code 1 if one survives
    python tests/mutations.py epsilon    # those whose description holds the word

Each mutation is applied to a copy of the package, on which the suite then runs without the native
operator until the first failure. The table below names the file, what is broken, and by what.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITE = ["test_loss.py", "test_modes.py", "test_requests.py", "test_distillation.py", "test_gaussian.py",
         "test_family.py"]
MUTATIONS = [  # what breaks, file, the source, what it becomes
    ("mean instead of sum", "divergence.py", "if mean:", "if not mean:"),
    ("the label's logarithm is dropped", "divergence.py", "F.log(label + 0.5 * absent) -", "0 -"),
    ("0 * inf at a masked score", "divergence.py", "F.where(label + _is_finite(F, log_pred), log_pred, label)",
     "log_pred"),
    ("epsilon is ignored", "divergence.py", "math.log(epsilon) * _is_finite", "math.log(1e-12) * _is_finite"),
    ("epsilon biases every label", "divergence.py", "label + 0.5 * absent)", "label + 0.5 * absent + epsilon)"),
    ("label gradient at a masked score", "divergence.py", "math.log(epsilon) * _is_finite(F, log_pred)",
     "math.log(epsilon)"),
    ("label gradient at a zero", "divergence.py", "math.log(2) +", "0 +"),
    ("NaN hides in a row of logits", "divergence.py", "logits + F.broadcast_like(0.0 / (total < math.inf), logits)",
     "logits"),
    ("small divergences lose their digits", "divergence.py",
     "if whole_rows is not False and pred_space", "if False and pred_space"),
    ("a 1-D pred in a graph as a whole row", "divergence.py", "F.size_array(F.shape_array(x)) != rank",
     "F.size_array(F.shape_array(x)) != -1"),
    ("difference form over parts of rows", "loss.py", 'if self._reduction == "none":\n            return False',
     "if False:\n            return False"),
    ("far terms without q - p", "divergence.py", "p * u + excess", "p * u"),
    ("softmax over the last axis only", "divergence.py", "pred = F.log_softmax(pred, axis=axis) if",
     "pred = F.log_softmax(pred, axis=-1) if"),
    ("batch_axis is taken for 0", "divergence.py", "if batch_axis != 0:", "if False:"),
    ("weight 0 lets NaN through", "inputs.py", "F.where(row_off, zero, x) for x in inputs", "x for x in inputs"),
    ("an element of weight 0 counts", "inputs.py", "F.where(off, zero, heard) * weight", "heard * weight"),
    ("no gradient to a weight of 0", "inputs.py", "if not weight_grad:", "if True:"),
    ("a weight per sample runs along columns", "inputs.py", "if i == batch_axis else 1 for",
     "if i == len(shape) - 1 else 1 for"),
    ("float16 is not lifted", "inputs.py", 'else "float32"\n', 'else facts.dtypes[0]\n'),
    ("nested graphs do not lift", "inputs.py", "return _lift_unknown(F, inputs)", "return inputs"),
    ("shapes broadcast", "inputs.py", "if shape != other:", "if False:"),
    ("one graph for all calls", "inputs.py", "if facts != self._facts:", "if self._cached_op is None:"),
    ("copies keep their graph", "inputs.py", '"_cached_op": None, ', ""),
    ("mx.np arrays come back as mx.nd", "inputs.py", "out.as_np_ndarray() if numpy_kind else out", "out"),
    ("recorded labels get no gradient", "inputs.py", "recorded, inputs = zip(*[follow(x) for x in inputs])",
     "recorded = (True,) + (False,) * (len(inputs) - 1)"),
    ("the mixture's sides are swapped", "divergence.py", "m = beta * p + (1 - beta) * q",
     "m = beta * q + (1 - beta) * p"),
    ("gradients shrink with the temperature", "distillation.py", "return self._temperature**2 * div",
     "return 1.0 * div"),
    ("the teacher learns", "distillation.py", "F.BlockGrad(teacher_pred)", "teacher_pred"),
    ("near Gaussians lose a term", "divergence.py", "range(8, 1, -1)", "range(8, 2, -1)"),
    ("free nats are a ceiling", "gaussian.py", "F.where(out < self._free_nats", "F.where(out > self._free_nats"),
    ("operators get adding arrays bare", "native/requests.py", "request == _ADD else x", "False else x"),
]


def try_mutation(mutation):
    """The test that catches it, or None."""
    what, name, source, target = mutation
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "gluon_kl"
        shutil.copytree(str(ROOT / "gluon_kl"), str(package), ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        shutil.copytree(str(ROOT / "tests"), str(Path(folder) / "tests"), ignore=shutil.ignore_patterns("__pycache__"))
        path = package / name
        text = path.read_text(encoding="utf-8")
        if text.count(source) != 1:
            raise SystemExit(f"{what}: {source!r} stands {text.count(source)} times in {name}, not once")
        path.write_text(text.replace(source, target), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-c", os.devnull,
             "--rootdir", folder, *[str(Path(folder) / "tests" / name) for name in SUITE]],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, cwd=folder,
            env={**os.environ, "PYTHONPATH": folder, "GLUON_KL_NATIVE": "0", "OMP_NUM_THREADS": "1"})
    caught = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) and not caught:
        return f"crash, exit code {done.returncode}"
    return caught and caught.group(1).rpartition("/")[2]


def main():
    chosen = [mutation for mutation in MUTATIONS if all(word in mutation[0] for word in sys.argv[1:])]
    survivors = 0
    with ThreadPoolExecutor(2) as pool:
        for mutation, catcher in zip(chosen, pool.map(try_mutation, chosen)):
            survivors += catcher is None
            print(f"{mutation[0]:40}  {catcher or 'SURVIVES'}", flush=True)
    print(f"{len(chosen) - survivors} passed, {survivors} failed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
