"""Patches the names that MXNet needs where a newer Python or NumPy has removed them.

The last MXNet, 1.9.1, is from 2022. Python 3.12 removed distutils, NumPy 1.24 and 2 removed names, and NumPy 2 prints
numbers in another way. MXNet's wheel works with every Python nevertheless, because only its Python half fails. If
something is missing, each module of MXNet, and no other module, runs with its own builtins. Their ``__import__``
returns a view of NumPy with the old names and a replacement for distutils. For the rest of the process, only one entry
of ``sys.meta_path`` is new. If nothing is missing, nothing is done.

The hook for a plain ``import mxnet`` runs this file by itself, so it imports nothing from gluon_kl.
"""

import builtins
import importlib
import importlib.machinery
import os
import re
import sys
import types

import numpy as np


class Version(tuple):
    """A release's leading numbers; all of distutils' LooseVersion and StrictVersion that MXNet uses."""

    def __new__(cls, text):
        return super().__new__(cls, map(int, re.findall(r"\d+", re.split(r"[^\d.]", text)[0])))


NUMPY = Version(np.__version__)
NEEDED = sys.version_info >= (3, 12) or NUMPY >= (1, 24)


# What MXNet sees


def _renamed(old, new):
    # A new function, because MXNet finds its own version by the function: `product` must not be the same as `prod`.
    def function(*args, **kwargs):
        return getattr(np, new)(*args, **kwargs)

    function.__name__ = old
    return function


def _gone(name):
    def function(*args, **kwargs):
        raise NotImplementedError(f"mx.np.{name} calls numpy.{name}, which NumPy {np.__version__} no longer has")

    function.__name__ = name
    return function


def _dtype(kind, *args, **kwargs):
    """NumPy's `dtype` before 2.4: it accepted an array of MXNet's, whose `dtype` is a type, not a `numpy.dtype`."""
    own = getattr(kind, "dtype", None)  # for a type such as numpy.float32, this is a descriptor
    return np.dtype(own if isinstance(own, type) else kind, *args, **kwargs)


def _wrapping_array(values, dtype=None, **kwargs):
    """NumPy's `array` before 2.0: integers that do not fit their dtype wrap around."""
    dtype = None if dtype is None else _dtype(dtype)
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
    # For finance, NumPy 1.20 to 1.26 kept stubs that raise an error; MXNet reads the names when it is imported.
    old.update({name: _gone(name) for name in ("mirr", "npv", "pmt", "ppmt", "pv", "rate")})
    for name, value in old.items():
        view.__dict__.setdefault(name, value)
    # NumPy 1.24 removed `bool` and `int`; in 2.0 `bool` is another type.
    view.__dict__.update({"bool": bool, "int": int, "dtype": _dtype})
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
    """``str`` for the modules that write parameters for MXNet's C++ half, which cannot read NumPy 2's "np.int64(3)"."""

    def __new__(cls, value="", *args):
        return str(_plain(value), *args)


def _plain(value):
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


SPELLERS = {"mxnet._ctypes.ndarray", "mxnet._ctypes.symbol", "mxnet.io.io", "mxnet.kvstore.base",
            "mxnet.symbol.symbol"}


# How MXNet gets these views


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs a module of MXNet with builtins that return the views."""

    def __init__(self, name, path, views):
        super().__init__(name, path)
        self.views = views

    def exec_module(self, module):
        changed = {"__import__": self.import_}
        if NUMPY >= (2,) and self.name in SPELLERS:
            changed["str"] = Text
        # A plain dict. With a subclass that falls back to `builtins`, CPython would look up every name the slow way.
        module.__dict__["__builtins__"] = {**builtins.__dict__, **changed}
        super().exec_module(module)

    def import_(self, name, globals=None, locals=None, fromlist=(), level=0):
        if level == 0 and name in self.views:
            return self.views[name if fromlist else name.partition(".")[0]]
        return builtins.__import__(name, globals, locals, fromlist, level)

    def get_code(self, fullname):
        if self.name != "mxnet.recordio" or NUMPY < (2, 3):
            return super().get_code(fullname)
        # NumPy 2.3 removed `ndarray.tostring`. The cache is not used, because an older NumPy may share it.
        return self.source_to_code(self.get_data(self.path).replace(b".tostring()", b".tobytes()"), self.path)


class _Finder:
    """An entry of ``sys.meta_path`` that finds MXNet's modules as usual, and loads them with `_Loader`."""

    gluon_kl_lends = True

    def __init__(self):
        self.views = {view.__name__: view for view in (_numpy_view(), *_distutils_views())}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "mxnet":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _Loader(name, spec.loader.path, self.views)
        return spec


def lent():
    """Return the finder with which MXNet is imported in this process; None if there is none."""
    # The attribute also finds one that another copy of this module has installed.
    return next((finder for finder in sys.meta_path if getattr(finder, "gluon_kl_lends", False)), None)


def is_mxnet_2():
    """Tell whether `import mxnet` would import MXNet 2, which needs no patches; nothing is imported."""
    spec = importlib.machinery.PathFinder.find_spec("mxnet")
    return spec is not None and spec.origin is not None and os.path.exists(
        os.path.join(os.path.dirname(spec.origin), "_deferred_compute.py"))


def lend():
    """Install the finder, if MXNet needs one and there is none; return it, or None."""
    if NEEDED and lent() is None and not is_mxnet_2():
        sys.meta_path.insert(0, _Finder())
    return lent()
