"""One fixture: every way of running a loss, eager, hybridized and static."""

import os
import subprocess
import sys
import warnings

import mxnet as mx
import numpy as np
import pytest

from gluon_kl import native

warnings.filterwarnings("ignore", message=".*np_shape.*")

MODES = {"eager": None, "hybrid": {}, "static": {"static_alloc": True, "static_shape": True}}


class Run:
    """Calls a loss in one way: ``run(loss, ...)`` gives its value, ``run.gradients(loss, ...)`` its gradients."""

    def __init__(self, mode):
        self.mode = mode

    def prepare(self, block):
        if MODES[self.mode] is not None:
            block.hybridize(**MODES[self.mode])
        return block

    def __call__(self, loss, *inputs, kind=mx.nd.array):
        return self.prepare(loss)(*[self.array(x, kind) for x in inputs]).asnumpy()

    def gradients(self, loss, *inputs, head=None, grad_req="write", kind=mx.nd.array):
        """Gradients to every input that is given, of the sum of the outputs or under `head`."""
        arrays = [self.array(x, kind) for x in inputs]
        for x in arrays:
            if isinstance(x, mx.nd.NDArray):
                x.attach_grad(grad_req)
        with mx.autograd.record():
            out = self.prepare(loss)(*arrays)
        out.backward(None if head is None else self.array(head.astype(out.dtype), kind))
        return tuple(x.grad.asnumpy() if isinstance(x, mx.nd.NDArray) else None for x in arrays)

    @staticmethod
    def array(x, kind):
        if x is None or isinstance(x, (float, int, mx.nd.NDArray)):  # of numbers, those that a loss takes as such
            return x
        x = np.asarray(x)
        return kind(x, dtype=x.dtype)


@pytest.fixture(params=["native", "operators"])
def path(request, monkeypatch):
    """Run a test on both paths: the fused operator, and MXNet's operators."""
    if request.param == "operators":
        monkeypatch.setattr(native, "is_available", lambda: False)
    elif not native.is_available():
        pytest.skip(f"without the native operator: {native.why_not()}")
    return request.param


@pytest.fixture(params=list(MODES))
def run(request, path):
    return Run(request.param)


@pytest.fixture
def rng():
    return np.random.RandomState(7)


@pytest.fixture
def in_subprocess(request):
    """Run Python source in a process of its own, for what MXNet's memory of a failure would spoil; its output."""

    environment = {**os.environ, "GLUON_KL_NATIVE": "0"} if "operators" in request.node.name else None

    def call(source, timeout=120):
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", source], timeout=timeout, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        assert done.returncode == 0, done.stdout
        return done.stdout

    return call
