"""MXNet's CUDA build (tests/cuda/run.py says more): that every operator the losses use has a kernel for GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import pytest

CUDA = Path(__file__).resolve().parent / "cuda"


@pytest.mark.skipif(not mx.__version__.startswith("1.9."), reason="the record is of MXNet 1.9, and names vary")
def test_every_operator_has_a_kernel_for_gpus():
    """Forward and backward, of every member: none but what was found on the CUDA build, and none too many there."""
    recorded = {line for line in (CUDA / "gpu_operators.txt").read_text().split("\n") if line and line[0] != "#"}
    done = subprocess.run([sys.executable, "-W", "ignore", str(CUDA / "operators.py"), "cpu"], timeout=900, text=True,
                          stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    used = set(done.stdout.split())
    assert len(used) > 50 and any(name.startswith("_backward_") for name in used)
    assert not used - recorded, "if these have a kernel, `python tests/cuda/run.py record` writes them down"
    assert not recorded - used
