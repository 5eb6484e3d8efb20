"""MXNet's names that are not public: each does what the package takes it for."""

import re
from pathlib import Path

import gluon_kl
from gluon_kl import mxnet_private

import mxnet as mx
import numpy as np
import pytest


def marked():
    x = mx.nd.array([[1.0, 2.0]])
    x.attach_grad()
    return x


def test_an_operator_by_its_handle():
    x = mx.nd.array([[1.0, -2.0]])
    np.testing.assert_array_equal(mxnet_private.array_function("abs")(x).asnumpy(), [[1, 2]])
    out = mxnet_private.symbol_function("abs")(mx.sym.var("x")).eval(x=x)[0]
    np.testing.assert_array_equal(out.asnumpy(), [[1, 2]])
    with pytest.raises(mx.MXNetError):
        mxnet_private.operator_handle("no_operator_of_this_name")


def test_functions_go_around_those_that_amp_wraps(monkeypatch):
    monkeypatch.setattr(mx.nd, "abs", None)
    assert mxnet_private.array_function("abs")(mx.nd.array([-1.0])).asscalar() == 1


def test_what_autograd_follows():
    x, plain = marked(), mx.nd.ones((1, 2))
    with mx.autograd.record():
        y = x * 2
    for array, followed in ((x, True), (y, True), (plain, False), (x.detach(), False)):
        assert mxnet_private.is_followed(array) is followed
    y.backward()
    np.testing.assert_array_equal(x.grad.asnumpy(), [[2, 2]])  # to ask has changed nothing


def test_a_shallow_copy_shares_memory_and_gradient():
    x = marked()
    with mx.autograd.record():
        y = x * 3
        twin = mxnet_private.shallow_copy(y)
        out = twin * 2
    out.backward()
    np.testing.assert_array_equal(x.grad.asnumpy(), [[6, 6]])
    twin[:] = 7
    np.testing.assert_array_equal(y.asnumpy(), [[7, 7]])


def test_a_copy_onto_the_same_memory_is_an_operator_that_adds_gradients():
    x = mx.nd.array([[1.0, 2.0]])
    x.attach_grad("add")
    for _ in range(2):
        with mx.autograd.record():
            out = mxnet_private.copy_function()(x, out=x.detach())
        out.backward()
    np.testing.assert_array_equal(x.grad.asnumpy(), [[2, 2]])
    out[:] = 5
    np.testing.assert_array_equal(x.asnumpy(), [[5, 5]])


def test_casts_of_amp_are_removed():
    graph = mx.sym.amp_cast(mx.sym.var("x"), dtype="float16") + 1
    for each, casts in ((graph, True), (mxnet_private.without_amp_casts(graph), False)):
        assert any("amp_cast" in name for name in each.get_internals().list_outputs()) is casts


def test_a_shape_is_inferred_from_what_is_tied_to_it():
    tied = mxnet_private.same_shape(mx.sym, mx.sym.var("x"), mx.sym.var("like"))
    assert tied.infer_shape(like=(2, 3))[0] == [(2, 3), (2, 3)]


def test_uses_are_told_apart_and_named_again_in_a_second_trace():
    assert mxnet_private.unique_use() != mxnet_private.unique_use()
    names = []
    for _ in range(2):
        with mx.name.Prefix("outer_"), mx.name.Prefix("inner_"):
            names.append([mxnet_private.unique_use(), mxnet_private.unique_use()])
    assert names[0] == names[1]
    assert len(set(names[0])) == 2


def test_nothing_is_traced_with_arrays():
    assert not mxnet_private.tracing()


def test_the_type_of_numpy_symbols():
    assert type(mx.sym.var("x").as_np_ndarray()) is mxnet_private.NumpySymbol


@pytest.mark.parametrize("name", mxnet_private.BLOCK_MEMBERS)
def test_members_of_a_block(name):
    if name == "_cached_op_args" and mx.__version__.startswith(("1.7.", "1.8.")):
        pytest.skip("it is there once a block was called")
    block = mx.gluon.loss.L2Loss()
    block.hybridize()
    assert hasattr(block, name)


def test_members_of_blocks_that_the_package_uses_are_named():
    """Every underscored member of a block that is none of ours stands in the table."""
    package = Path(gluon_kl.__file__).parent
    used = set()
    for file in package.glob("*.py"):
        used |= set(re.findall(r"(?:self|block)\.(_[a-z]\w+)", file.read_text(encoding="utf-8")))
    theirs = {name for name in used if hasattr(mx.gluon.loss.L2Loss(), name)}
    assert theirs <= set(mxnet_private.BLOCK_MEMBERS), theirs
