"""Every public name says what it is, and its examples are true."""

import doctest
import importlib
import inspect
import pkgutil

import gluon_kl
from gluon_kl import _mxnet, metric, native

import pytest

MODULES = ["gluon_kl", *(module.name for module in pkgutil.walk_packages(gluon_kl.__path__, "gluon_kl.")
                         if "_kernels" not in module.name
                         and module.name[-1] != ("1" if _mxnet.GLUON_2 else "2"))]  # the other MXNet's
LOSSES = [getattr(gluon_kl, name) for name in gluon_kl.__all__ if name.endswith("Loss")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("public", [*LOSSES, metric.KLDivergence, metric.JSDivergence],
                         ids=lambda public: public.__name__)
def test_a_class_tells_what_its_user_needs(public):
    text = inspect.getdoc(public)
    for section in ("Parameters", "References", "Examples", "Raises", "nats", ":math:" if public in LOSSES else "nats"):
        assert section in text, f"{public.__name__} says nothing of {section}"
    assert ">>> " in text
    for name in inspect.signature(public.__init__).parameters:
        assert name in ("self", "prefix", "params") or name in text, f"{public.__name__} does not explain {name}"


@pytest.mark.parametrize("name", native.__all__)
def test_the_operators_functions_are_documented(name):
    assert inspect.getdoc(getattr(native, name))
