"""The losses on MXNet's CUDA build, on a machine without a GPU: to be run before a release, in an environment of tests.

python tests/cuda/run.py              # the tests of the losses, then each operator on a GPU that is a stand-in
python tests/cuda/run.py record       # the latter alone, whose names gpu_operators.txt then holds

It needs gcc and nm, 500 MB to fetch and 1.7 GB in .venv-cuda, which stays. The first part shows that the CUDA build
computes what the build for CPUs does. The second calls the losses on mx.gpu(0), whose kernels do nothing: MXNet looks
for the GPU's kernel of each operator, forward and backward, and raises "not implemented for GPU" where there is none.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import stubs

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / ".venv-cuda"
BUILD = "mxnet-cu112==1.9.1"
RECORD = Path(__file__).resolve().parent / "gpu_operators.txt"
HEADER = """\
# The operators of MXNet 1.9.1 that the losses use without the fused operator and whose GPU kernels were found, forward
# and backward, by running the losses on mx.gpu(0) of its CUDA build: written by `python tests/cuda/run.py record`.
"""
TESTS = ["test_cases.py", "test_loss.py", "test_family.py", "test_modes.py", "test_metric.py", "test_gradients.py",
         "test_distillation.py", "test_gaussian.py", "test_bernoulli.py"]


def unpack():
    """The CUDA build, in a folder of its own that goes in front of the environment's MXNet."""
    packages = HOME / "packages"
    if not (packages / "mxnet" / "libmxnet.so").exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
                        "--platform=manylinux2014_x86_64", "--dest", str(HOME), BUILD], check=True)
        wheel = next(HOME.glob("*.whl"))
        with zipfile.ZipFile(str(wheel)) as archive:
            archive.extractall(str(packages))
        wheel.unlink()
    return packages


def run(packages, gpu, *command):
    """Run Python on the CUDA build, beside a GPU that is a stand-in or none; return how it ended."""
    folder = HOME / ("one_gpu" if gpu else "no_gpu")
    stubs.make(packages / "mxnet" / "libmxnet.so", folder, gpu)
    environment = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])}
    return subprocess.run([sys.executable, "-W", "ignore", *command], cwd=str(ROOT), text=True,
                          env={**os.environ, **environment}, stdout=subprocess.PIPE if gpu else None)


def main(arguments):
    packages, failed = unpack(), False
    if arguments != ["record"]:
        check = "import mxnet; assert mxnet.runtime.Features().is_enabled('CUDA') and not mxnet.context.num_gpus()"
        run(packages, False, "-c", check).check_returncode()
        failed = run(packages, False, "-m", "pytest", "-q", *[f"tests/{name}" for name in TESTS]).returncode != 0
    done = run(packages, True, "tests/cuda/operators.py", "gpu")
    found = done.stdout.split()
    if done.returncode:
        print("An operator has no kernel for GPUs, or the losses fail there.")
    elif arguments == ["record"]:
        RECORD.write_text(HEADER + "\n".join(found) + "\n", encoding="utf-8")
    elif set(found) != set(RECORD.read_text(encoding="utf-8").split("\n")[2:-1]):
        print(f"{RECORD.name} is of another time: `python tests/cuda/run.py record`")
        failed = True
    print(f"{len(found)} operators ran on the GPU")
    return int(failed or done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
