"""What tests share: every way of running a loss, processes of their own, and the tutorials."""

import functools
import os
import subprocess
import sys
import textwrap
import warnings
import zlib
from pathlib import Path

from gluon_kl import _mxnet, native

import gallery
import mxnet as mx
import numpy as np
import pytest

warnings.filterwarnings("ignore", message=".*np_shape.*")

TESTS = Path(__file__).resolve().parent
LEAN = TESTS / "lean"
MODES = {"eager": None, "hybrid": {}, "static": {"static_alloc": True, "static_shape": True}}


def pytest_addoption(parser):
    parser.addoption("--thin", type=int, default=1, metavar="N", help="of each test's cases run one in N, at least one")


def pytest_collection_modifyitems(config, items):
    """Which cases --thin keeps differs from test to test, so that they do not all keep the same way of running."""
    thin, tests = config.getoption("thin"), {}
    for item in items:
        tests.setdefault(item.nodeid.split("[")[0], []).append(item)
    kept = {item for name, cases in tests.items()
            for item in cases[zlib.crc32(name.encode()) % min(thin, len(cases))::thin]}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


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


@pytest.fixture(scope="session")
def bfloat16_layers():
    """MXNet's own layers compute in bfloat16 on processors with AVX-512 alone."""
    layer = ("import gluon_kl, mxnet as mx\nfrom mxnet.contrib import amp\namp.init(target_dtype='bfloat16')\n"
             "x = mx.nd.ones((2, 2))\nmx.nd.FullyConnected(x, x, no_bias=True, num_hidden=2).wait_to_read()")
    if subprocess.run([sys.executable, "-W", "ignore", "-c", layer], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("MXNet has no Dense in bfloat16 on this processor")


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
def eager(path):
    """What `run` is, eager alone: for what the other ways, which test_modes.py compares, share with it."""
    return Run("eager")


@pytest.fixture
def rng():
    return np.random.RandomState(7)


@pytest.fixture(scope="session")
def page_of(tmp_path_factory):
    """What a tutorial prints, as lines, when it is told nothing but where to draw, and that folder; each runs once."""
    @functools.lru_cache(maxsize=None)
    def run(name):
        folder = tmp_path_factory.mktemp("figures") / "new"
        printed, errors = gallery.run(name, tmp_path_factory.mktemp("elsewhere"), "--figures", folder)
        assert errors == "", "the progress bar is for terminals"
        return printed.splitlines(), folder

    return run


@pytest.fixture(scope="session")
def plots():
    """The module that the tutorials share."""
    sys.path.insert(0, str(TESTS.parent / "tutorials"))
    try:
        import plots
    finally:
        sys.path.pop(0)
    return plots


@pytest.fixture
def in_subprocess(request):
    """Run Python source in a process of its own, on the path of the test: for what ends a process or stays in it."""
    chosen = getattr(request.node, "callspec", None)
    base = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [LEAN, TESTS, TESTS.parent]))}
    if chosen is not None and chosen.params.get("path") == "operators":
        base["GLUON_KL_NATIVE"] = "0"

    def call(source, timeout=600, **environment):
        source = textwrap.dedent(source)
        if _mxnet.NEEDED:
            source = "import gluon_kl\n" + source  # before MXNet
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", source], timeout=timeout, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**base, **environment})
        assert done.returncode == 0, done.stdout
        return done.stdout

    return call


@pytest.fixture
def script(tmp_path):
    """Run Python source as a script of its own, as a process that is spawned wants it; its output."""

    def call(source, *arguments, timeout=120):
        file = tmp_path / "script.py"
        file.write_text(source, encoding="utf-8")
        path = os.pathsep.join([str(LEAN), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run([sys.executable, "-W", "ignore", str(file), *arguments], timeout=timeout, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path})
        assert done.returncode == 0, done.stdout
        return done.stdout

    return call
