"""`gluon_kl._mxnet`: what MXNet is lent on a newer Python or NumPy, and what is said where it cannot run."""

import ast
import functools
import importlib.util
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

from gluon_kl import _lend, _mxnet

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
MXNET = Path(importlib.util.find_spec("mxnet").origin).parent


@pytest.fixture
def imported(tmp_path):
    """``imported(mxnet, before)``: import gluon_kl where NumPy is, and MXNet is as given; return the last words."""

    def call(mxnet=None, before="", code=1):
        numpy = Path(np.__file__).parent
        for package in [numpy, *numpy.parent.glob("numpy.libs")]:
            (tmp_path / package.name).symlink_to(package)
        if mxnet is not None:
            (tmp_path / "mxnet").mkdir()
            (tmp_path / "mxnet" / "__init__.py").write_text(mxnet)
        paths = [str(tmp_path), str(ROOT)]
        source = f"import sys; sys.path[:0] = {paths}; import numpy\n{before}\nimport gluon_kl"
        done = subprocess.run([sys.executable, "-I", "-S", "-c", source], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=120)
        assert done.returncode == code, done.stdout
        return done.stdout.strip().split("\n")[-1]

    return call


# What is in the way


@pytest.mark.parametrize("version", ["(3, 7, 17)", "(3, 14, 0)", "(4, 0, 0)"])
def test_a_python_that_was_never_tried(imported, version):
    said = imported("", f"sys.version_info = {version}")
    major, minor = version.strip("()").split(", ")[:2]
    assert said == (f"ImportError: gluon_kl runs on Python 3.8 to 3.13, where MXNet has been tried, and this is "
                    f"{major}.{minor}: make a virtual environment with one of those.")


@pytest.mark.parametrize("version", ["1.16.6", "3.0.0", "3.1.0.dev0"])
def test_a_numpy_that_was_never_tried(imported, version):
    said = imported("", f"numpy.__version__ = '{version}'")
    assert said == (f"ImportError: MXNet has been tried with NumPy 1.17 to 2.5, and this is {version}: "
                    "`pip install 'numpy>=1.17,<3'`.")


@pytest.mark.skipif(_mxnet.NUMPY < (2,), reason="this NumPy cannot be taken for a later one")
def test_a_numpy_of_tomorrow_that_lost_one_name_more(imported):
    said = imported("raise AttributeError(\"module 'numpy' has no attribute 'argwhere'\")",
                    "numpy.__version__ = '2.99.1'")
    assert "NumPy up to 2.5, and 2.99.1 lacks something that it needs (module 'numpy' has" in said
    assert "`pip install 'numpy==2.5.*'`" in said


def test_an_attribute_error_for_another_reason_stays_what_it_is(imported):
    assert imported("raise AttributeError('the vendor forgot')") == "AttributeError: the vendor forgot"


@pytest.mark.parametrize("version, how", [
    ("(3, 8, 1)", "`pip install 'mxnet>=1.7,<2'` installs"),
    ("(3, 12, 4)", "`pip install 'mxnet>=1.7,<2'` installs"),
    ("(3, 13, 1)", "`pip install numpy requests 'graphviz<0.9'`, then `pip install --no-deps mxnet` installs"),
])
def test_no_mxnet(imported, version, how):
    said = imported(None, f"sys.version_info = {version}")
    assert said.startswith("ModuleNotFoundError: gluon_kl needs Apache MXNet, in any build")
    assert how in said


def test_a_folder_called_mxnet_is_no_mxnet(imported, tmp_path):
    (tmp_path / "mxnet").mkdir()
    assert "none is installed" in imported()


@pytest.mark.parametrize("library", ["libgomp.so.1", "libquadmath.so.0"])
def test_a_library_that_mxnet_links_to(imported, library):
    said = imported(f"raise OSError('{library}: cannot open shared object file: No such file or directory')")
    assert said.startswith(f"ImportError: MXNet needs a library that this machine lacks ({library}: cannot open")
    assert "`apt-get install libgomp1 libquadmath0`" in said


def test_a_library_that_we_know_nothing_of(imported):
    assert imported("raise OSError('libcudart.so.11: cannot open')") == "OSError: libcudart.so.11: cannot open"


@pytest.mark.parametrize("version", ["1.6.0", "1.10.0", "2.1.0"])
def test_an_mxnet_that_was_never_tried(imported, version):
    said = imported(f"__version__ = '{version}'")
    assert f"gluon_kl works on MXNet 1.7 to 1.9 and 2.0, and this is {version}: `pip install 'mxnet>=1.7,<2'`" in said


def test_mxnet_first(imported):
    said = imported("", "import types; sys.modules['mxnet'] = types.ModuleType('mxnet'); sys.version_info = (3, 12, 1)")
    assert f"and NumPy {np.__version__}, `import gluon_kl` must come before `import mxnet`, which was imported" in said
    assert said.endswith("change the order and start Python again.")


def test_what_a_failed_import_of_mxnet_leaves_is_thrown_away(imported):
    said = imported("import sys; raise SystemExit('mxnet.base' in sys.modules)",
                    "import types; sys.modules['mxnet.base'] = types.ModuleType('mxnet.base')\n"
                    "sys.version_info = (3, 12, 1)", code=0)
    assert said == ""


# What MXNet is lent


def numpy_names(file):
    """Every dotted name that a module takes from NumPy, strings in lists of operators aside."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    aliases = {name.asname or name.name for node in ast.walk(tree) if isinstance(node, ast.Import)
               for name in node.names if name.name == "numpy"}
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in aliases:
            yield tuple(parts)


def test_every_name_that_mxnet_takes_from_numpy_is_there():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        view = _lend._numpy_view()
        names = {parts for file in MXNET.rglob("*.py") for parts in numpy_names(file)}
        assert len(names) > 200
        assert ("bool",) in names and ("compat", "basestring") in names
        for parts in names:
            functools.reduce(getattr, parts, view)


def test_renamed_functions_are_told_apart():
    view = _lend._numpy_view()
    pairs = [("product", "prod"), ("round_", "round"), ("sometrue", "any"), ("alltrue", "all"), ("in1d", "isin")]
    for old, new in pairs:
        assert old in np.__dict__ or getattr(view, old) is not getattr(view, new)
        assert old in np.__dict__ or getattr(view, old).__name__ == old
    assert view.product([2, 3]) == 6 and view.in1d([1, 2], [2]).tolist() == [False, True]
    assert view.trapz([1, 2, 3]) == 4 and view.msort([[3, 1], [2, 4]]).tolist() == [[2, 1], [3, 4]]


def test_text_is_str_with_plain_numbers():
    assert _lend.Text((np.int64(3), [np.float32(0.5), 1])) == "(3, [0.5, 1])"
    assert _lend.Text(b"ab", "ascii") == "ab" and _lend.Text() == ""
    assert isinstance("x", _lend.Text) and not isinstance(3, _lend.Text)


@pytest.mark.parametrize("text, version", [
    ("1.17", (1, 17)), ("2.5.0.dev0+git2024", (2, 5, 0)), ("2.0.0rc1", (2, 0, 0)), ("1.9.1", (1, 9, 1)),
    ("2.0.0beta1", (2, 0, 0))])
def test_versions(text, version):
    assert _lend.Version(text) == version


def test_nothing_is_touched(script):
    """No name of NumPy, no builtin and no module comes or goes, but where MXNet looks."""
    said = script("""
import builtins, sys, numpy
before, names = dict(builtins.__dict__), dict(numpy.__dict__)
had_distutils = "distutils" in sys.modules
import gluon_kl
from gluon_kl import _lend, _mxnet
after = {name: value for name, value in builtins.__dict__.items() if not name.startswith("__pybind11")}
assert after == before
assert {k: numpy.__dict__[k] for k in names} == names
assert not {"PINF", "Inf", "product"} & (set(numpy.__dict__) - set(names))
added = [finder for finder in sys.meta_path if isinstance(finder, _lend._Finder)]
assert len(added) == _mxnet.NEEDED
if added:
    assert added[0].find_spec("numpy.linalg") is None and added[0].find_spec("mxnet_other") is None
    assert ("distutils" in sys.modules) == had_distutils
    import mxnet.ndarray.ndarray as module
    assert module.np is not numpy and module.np.float32 is numpy.float32 and module.np.bool is bool
    assert gluon_kl.pair.__dict__["__builtins__"] in (builtins, builtins.__dict__)
""")
    assert said == ""


def test_the_table_of_versions():
    """The row of the MXNet at hand, and that every promised version has one."""
    versions = runpy.run_path(str(ROOT / "docs" / "versions.py"))
    header, *rows = versions["table"]()
    assert header == versions["HEADER"]
    assert [row[0] for row in rows] == [*(version.split(".post")[0] for version in versions["VERSIONS"]), "2.0.0"]
    assert versions["row"](MXNET.parent) in rows
