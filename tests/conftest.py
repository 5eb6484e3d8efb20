"""What tests share: every way of running a loss, separate processes, and the tutorials."""

import inspect
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

from gluon_kl import _mxnet, native

import mxnet as mx
import numpy as np
import pytest
from forks import Forks

from cases import legacy

warnings.filterwarnings("ignore", message=".*np_shape.*")

TESTS = Path(__file__).resolve().parent
LEAN = TESTS / "lean"
MODES = {"eager": None, "hybrid": {}, "static": {"static_alloc": True, "static_shape": True}}


# The longest files come first, so that no process works alone at the end. The browser's file builds the site, and the
# files that only read the site come last.
FIRST = ["test_browser", "test_reports", "test_programs", "test_native", "test_cases", "test_modes", "test_distributed",
         "test_benchmark"]
LAST = ["test_page", "test_prose", "test_which_divergence"]


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would put the files with the most tests first


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate([*FIRST, None, *LAST])}
    items.sort(key=lambda item: order.get(item.path.stem, len(FIRST)))


class Run:
    """Calls a loss in one way: ``run(loss, ...)`` returns its value, ``run.gradients(loss, ...)`` its gradients."""

    def __init__(self, mode):
        self.mode = mode

    def prepare(self, block):
        if MODES[self.mode] is not None:
            block.hybridize(**MODES[self.mode])
        return block

    def __call__(self, loss, *inputs, kind=mx.nd.array):
        return self.prepare(loss)(*[self.array(x, kind) for x in inputs]).asnumpy()

    def gradients(self, loss, *inputs, head=None, grad_req="write", kind=mx.nd.array):
        """The gradients of the sum of the outputs, or with `head`, to every input that is given."""
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
        if x is None or isinstance(x, (float, int, mx.nd.NDArray)):  # numbers that a loss takes as numbers
            return x
        x = np.asarray(x)
        return legacy(x, x.dtype) if kind is mx.nd.array else kind(x, dtype=x.dtype)


@pytest.fixture(scope="session")
def bfloat16_layers():
    """MXNet's own layers compute in bfloat16 only on processors with AVX-512."""
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
    """`run`, but only eager: test_modes.py compares the other ways with it."""
    return Run("eager")


@pytest.fixture
def rng():
    return np.random.RandomState(7)


@pytest.fixture(scope="session")
def site():
    """The folder of the rendered site; the first process that needs it builds it if it is stale."""
    import tasks

    tasks.build_site(sys.executable)
    return tasks.SITE


@pytest.fixture(scope="session")
def plots():
    """The module that the tutorials share."""
    sys.path.insert(0, str(TESTS.parent / "tutorials"))
    try:
        import plots
    finally:
        sys.path.pop(0)
    return plots


def environment_of(request):
    """The environment of a test's processes: where modules are, and the path of the test."""
    chosen = getattr(request.node, "callspec", None)
    lean = [] if hasattr(request.module, "PRELOADED") else [LEAN]  # a module that preloads may need SciPy
    base = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*lean, TESTS, TESTS.parent]))}
    if chosen is not None and chosen.params.get("path") == "operators":
        base["GLUON_KL_NATIVE"] = "0"
    return base


@pytest.fixture
def in_subprocess(request):
    """Run Python source in a new Python process, on the path of the test: for tests that depend on an import.

    What only ends a process or stays in it has `in_child`, which does not import everything again.
    """
    base = environment_of(request)

    def call(source, timeout=600, **environment):
        source = textwrap.dedent(source)
        if _mxnet.NEEDED:
            source = "import gluon_kl\n" + source  # before MXNet
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", source], timeout=timeout, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**base, **environment})
        assert done.returncode == 0, done.stdout
        return done.stdout

    return call


@pytest.fixture(scope="session")
def forks():
    """One forking process for each set of modules and path, started when it is first needed."""
    made = {}

    def get(modules, environment):
        key = (*modules, environment.get("GLUON_KL_NATIVE"))
        if key not in made:
            made[key] = Forks(modules, environment)
        return made[key]

    yield get
    for each in made.values():
        each.close()


@pytest.fixture
def in_child(request, forks):
    """Run Python source in a child of a process that has imported the test's own module, on the path of the test.

    No operator has run there before. Variables that MXNet reads when it is loaded need `in_subprocess`. Modules that
    the children want besides are in the module's PRELOADED.
    """
    modules = ("gluon_kl", request.module.__name__, *getattr(request.module, "PRELOADED", ()))
    server = forks(modules, environment_of(request))

    def call(source, timeout=600, **environment):
        code, printed = server.run(textwrap.dedent(source), timeout, environment)
        assert code == 0, f"exit code {code}\n{printed}"
        return printed

    return call


def program(function):
    """A test whose body runs in a separate process; its arguments are passed as text."""
    names = list(inspect.signature(function).parameters)

    def test(in_child, **arguments):
        module = function.__module__
        in_child(f"import {module}; {module}.{function.__name__}.body(**{arguments!r})")

    test.__name__, test.__doc__, test.body = function.__name__, function.__doc__, function
    test.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
                                            for name in ("in_child", *names)])
    return test


@pytest.fixture
def script(tmp_path):
    """Run Python source as a script, because a spawned process imports it again; return its output."""

    def call(source, *arguments, timeout=120):
        file = tmp_path / "script.py"
        file.write_text(source, encoding="utf-8")
        path = os.pathsep.join([str(LEAN), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run([sys.executable, "-W", "ignore", str(file), *arguments], timeout=timeout, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path})
        assert done.returncode == 0, done.stdout
        return done.stdout

    return call
