"""The time of memory traffic and arithmetic alone, without a loss. A competitor copies an array of pred's shape, or
computes what every form needs: an exponential and a logarithm per element forward, an exponential backward."""

import ctypes
import functools
import os
import runpy
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent / "gluon_kl" / "native"


def copying(threads, source):
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


@functools.lru_cache(maxsize=None)
def arithmetic():
    """The functions of arithmetic.cc, compiled like the kernels that this machine runs."""
    from gluon_kl import native  # not for a copy: importing MXNet takes seconds

    if not native.is_available():
        raise ImportError(native.why_not())
    build = runpy.run_path(str(NATIVE / "build_flags.py"))
    flags = [*build["FLAGS"], *build["ISA_FLAGS"][f"kernel_{native.info()['isa']}.cc"]]
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "arithmetic.so")
        command = [os.environ.get("CXX", "g++"), *flags, "-shared", "-fPIC", "-I", str(NATIVE),
                   str(HERE / "arithmetic.cc"), "-o", library]
        try:
            subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ImportError(f"arithmetic.cc was not compiled: {getattr(error, 'stderr', None) or error}") from error
        return ctypes.CDLL(library)


class Steps:
    threads = 1

    def __init__(self, subject, row, arrays):
        pred = arrays[0]
        self.steps = {"step": copying(self.threads, pred) if subject.startswith("copy") else
                      functools.partial(getattr(arithmetic(), subject), ctypes.c_int64(pred.size))}

    def results(self):
        return []


def start(subject, threads):
    """Prepare; return the version."""
    Steps.threads = threads
    if not subject.startswith("copy"):
        arithmetic()
    return f"NumPy {np.__version__}"
