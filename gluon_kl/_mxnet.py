"""Imports MXNet: lends it what a newer Python or NumPy took away, and says what is in the way where it cannot run.

The last MXNet, 1.9.1, is of 2022. Python 3.12 dropped distutils, NumPy 1.24 and 2 dropped names, and NumPy 2 spells
numbers in another way; MXNet's wheel fits every Python all the same, since only its Python half stumbles. Where
something is missing, each module of MXNet, and no other, is run with builtins of its own, whose ``__import__`` hands
out a view of NumPy with the old names and a stand-in for distutils. All that changes for the rest of the process is
one entry of ``sys.meta_path``. Where nothing is missing, nothing is done.
"""

import builtins
import importlib
import importlib.machinery
import importlib.util
import platform
import re
import sys
import types

import numpy as np

PYTHONS = (3, 8), (3, 13)  # the oldest and the newest that the tests are run on
NUMPYS = (1, 17), (2, 5)
MXNETS = (1, 7), (1, 9)
LIBRARIES = {"libgomp.so.1": "libgomp1", "libquadmath.so.0": "libquadmath0"}  # what MXNet links to: Debian's package


class Version(tuple):
    """A release's leading numbers; all of distutils' LooseVersion and StrictVersion that MXNet uses."""

    def __new__(cls, text):
        return super().__new__(cls, map(int, re.findall(r"\d+", re.split(r"[^\d.]", text)[0])))


NUMPY = Version(np.__version__)
NEEDED = sys.version_info >= (3, 12) or NUMPY >= (1, 24)


# What MXNet sees


def _renamed(old, new):
    # A function of its own: MXNet keys its dispatch by function, and NumPy's `prod` must not be taken for `product`.
    def function(*args, **kwargs):
        return getattr(np, new)(*args, **kwargs)

    function.__name__ = old
    return function


def _gone(name):
    def function(*args, **kwargs):
        raise NotImplementedError(f"mx.np.{name} calls numpy.{name}, which NumPy {np.__version__} no longer has")

    function.__name__ = name
    return function


def _wrapping_array(values, dtype=None, **kwargs):
    """As NumPy's `array` before 2.0: integers that do not fit their dtype wrap around."""
    try:
        return np.array(values, dtype=dtype, **kwargs)
    except OverflowError:
        return np.array(values, **kwargs).astype(dtype)


def _numpy_view():
    view = types.ModuleType("numpy")
    view.__dict__.update(np.__dict__)  # its __getattr__ included, so that lazy submodules are found
    old = {"PZERO": 0.0, "NZERO": -0.0, "PINF": np.inf, "NINF": -np.inf, "NAN": np.nan, "NaN": np.nan, "Inf": np.inf,
           "msort": lambda a: np.sort(a, axis=0)}
    old.update({name: _renamed(name, new) for name, new in {
        "alltrue": "all", "sometrue": "any", "product": "prod", "round_": "round", "in1d": "isin",
        "trapz": "trapezoid"}.items()})
    # Of finance, NumPy 1.20 to 1.26 had stubs left that raise; MXNet reads the names when it is imported.
    old.update({name: _gone(name) for name in ("mirr", "npv", "pmt", "ppmt", "pv", "rate")})
    for name, value in old.items():
        view.__dict__.setdefault(name, value)
    view.__dict__.update({"bool": bool, "int": int})  # gone in 1.24; in 2.0 `bool` is back as another type
    if NUMPY >= (2,):
        view.__dict__.update({
            "array": _wrapping_array, "compat": types.SimpleNamespace(basestring=str),
            "core": types.SimpleNamespace(numeric=importlib.import_module("numpy.lib.array_utils"))})
    return view


def _distutils_views():
    package, version = types.ModuleType("distutils"), types.ModuleType("distutils.version")
    package.__dict__["version"] = version
    version.__dict__.update({"LooseVersion": Version, "StrictVersion": Version})
    return package, version


class _IsText(type):
    def __instancecheck__(cls, value):
        return isinstance(value, str)


class Text(str, metaclass=_IsText):
    """``str`` for the modules that spell parameters for MXNet's C++ half, which cannot read NumPy 2's "np.int64(3)"."""

    def __new__(cls, value="", *args):
        return str(_plain(value), *args)


def _plain(value):
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


SPELLERS = {"mxnet._ctypes.ndarray", "mxnet._ctypes.symbol", "mxnet.io.io", "mxnet.kvstore.base",
            "mxnet.symbol.symbol"}


# How it comes to see it


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs a module of MXNet with builtins that hand out the views."""

    def __init__(self, name, path, views):
        super().__init__(name, path)
        self.views = views

    def exec_module(self, module):
        changed = {"__import__": self.import_}
        if NUMPY >= (2,) and self.name in SPELLERS:
            changed["str"] = Text
        # A plain dict, not one that looks through to `builtins`: CPython would take the slow way with every name.
        module.__dict__["__builtins__"] = {**builtins.__dict__, **changed}
        super().exec_module(module)

    def import_(self, name, globals=None, locals=None, fromlist=(), level=0):
        if level == 0 and name in self.views:
            return self.views[name if fromlist else name.partition(".")[0]]
        return builtins.__import__(name, globals, locals, fromlist, level)

    def get_code(self, fullname):
        if self.name != "mxnet.recordio" or NUMPY < (2, 3):
            return super().get_code(fullname)
        # `ndarray.tostring` is gone in 2.3. Not from or into the cache, which an older NumPy may share.
        return self.source_to_code(self.get_data(self.path).replace(b".tostring()", b".tobytes()"), self.path)


class _Finder:
    """An entry of ``sys.meta_path`` that finds MXNet's modules where they are, for `_Loader`."""

    def __init__(self):
        self.views = {view.__name__: view for view in (_numpy_view(), *_distutils_views())}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "mxnet":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _Loader(name, spec.loader.path, self.views)
        return spec


# What is in the way


def _spelled(version):
    return ".".join(map(str, version))


def _refuse_versions():
    python, oldest, newest = sys.version_info[:2], *PYTHONS
    if not oldest <= python <= newest:
        raise ImportError(
            f"gluon_kl runs on Python {_spelled(oldest)} to {_spelled(newest)}, where MXNet has been tried, and "
            f"this is {_spelled(python)}: make a virtual environment with one of those.")
    oldest, newest = NUMPYS
    if not oldest <= NUMPY < (newest[0] + 1,):
        raise ImportError(
            f"MXNet has been tried with NumPy {_spelled(oldest)} to {_spelled(newest)}, and this is {np.__version__}: "
            f"`pip install 'numpy>={_spelled(oldest)},<{newest[0] + 1}'`.")


def _refuse_absence():
    if "mxnet" in sys.modules:
        return
    spec = importlib.util.find_spec("mxnet")
    if spec is None or spec.origin is None:  # the second: a folder of that name, without a package in it
        alone = sys.version_info < (3, 13)  # no NumPy that MXNet's metadata allow has a wheel for later ones
        how = (f"`pip install 'mxnet>={_spelled(MXNETS[0])},<2'`" if alone else
               "`pip install numpy requests 'graphviz<0.9'`, then `pip install --no-deps mxnet`")
        raise ModuleNotFoundError(
            "gluon_kl works on Apache MXNet, of which any build will do, and there is none here: "
            f"{how} brings the one for CPUs.", name="mxnet")


def _lend():
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if any(name.partition(".")[0] == "mxnet" for name in sys.modules):
        raise ImportError(
            f"With Python {platform.python_version()} and NumPy {np.__version__}, `import gluon_kl` must come before "
            "`import mxnet`, which was imported, or failed to be, first: change the order and start Python anew.")
    sys.meta_path.insert(0, _Finder())


def _import_mxnet():
    try:
        import mxnet
    except OSError as error:
        missing = [package for library, package in LIBRARIES.items() if library in str(error)]
        if not missing:
            raise
        raise ImportError(f"MXNet needs a library that this machine lacks ({error}): `apt-get install "
                          f"{' '.join(LIBRARIES.values())}` brings it on Debian and Ubuntu.") from error
    except AttributeError as error:
        if NUMPY[:2] <= NUMPYS[1]:
            raise
        raise ImportError(f"MXNet has been tried with NumPy up to {_spelled(NUMPYS[1])}, and misses something in "
                          f"{np.__version__} ({error}): `pip install 'numpy=={_spelled(NUMPYS[1])}.*'`.") from error
    if not MXNETS[0] <= Version(mxnet.__version__)[:2] <= MXNETS[1]:
        raise ImportError(
            f"gluon_kl works on MXNet {_spelled(MXNETS[0])} to {_spelled(MXNETS[1])}, and this is {mxnet.__version__}: "
            f"`pip install 'mxnet>={_spelled(MXNETS[0])},<2'`, or the like for your build of it.")
    return Version(mxnet.__version__)


_refuse_versions()
_refuse_absence()
if NEEDED:
    _lend()
MXNET = _import_mxnet()

# Where MXNet's versions differ
LIKE_WANTS_EQUAL_DTYPES = MXNET < (1, 8)  # both sides of `broadcast_like`
