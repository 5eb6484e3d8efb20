"""Graphs of our own: their options, when they are made anew, and what pickles keep."""

import pickle

from gluon_kl import JSDivLoss, KLDivLoss

import mxnet as mx
import numpy as np
import pytest


@pytest.fixture
def made(monkeypatch):
    """The flags of each graph that is made."""
    seen, make = [], mx.nd.CachedOp
    monkeypatch.setattr(mx.nd, "CachedOp", lambda graph, flags: seen.append(dict(flags)) or make(graph, flags))
    return seen


@pytest.mark.parametrize("option, value", [("static_alloc", True), ("static_shape", True), ("inline_limit", 3),
                                           ("forward_bulk_size", 7), ("backward_bulk_size", 9)])
def test_options_reach_the_graph(path, made, option, value):
    loss = JSDivLoss(False)
    loss.hybridize(**{"static_alloc": True, option: value})  # MXNet allows static_shape with static_alloc alone
    loss(mx.nd.ones((2, 3)), mx.nd.ones((2, 3)) / 3).wait_to_read()
    assert [flags[option] for flags in made] == [value]


def test_hybridize_makes_graphs_anew(path, made):
    loss, arrays = KLDivLoss(False), (mx.nd.ones((2, 3)), mx.nd.ones((2, 3)) / 3)
    for options in ({}, {"static_alloc": True}, {}):
        loss.hybridize(**options)
        for _ in range(2):
            loss(*arrays).wait_to_read()
    assert [flags.get("static_alloc") for flags in made] == [None, True, None]


def test_pickles_of_an_older_release(path):
    """They name the module and hold the attributes of 0.2."""
    loss = KLDivLoss(False, reduction="sum")
    state = {name: x for name, x in loss.__getstate__().items() if name not in ("_road", "_own_graphs")}
    state.update(_kinds={}, _graphs={}, _graph_options={}, _called_with=None)
    named = pickle.dumps(loss).replace(b"gluon_kl.pair", b"gluon_kl.loss")
    assert type(pickle.loads(named)) is KLDivLoss
    old = KLDivLoss.__new__(KLDivLoss)
    old.__setstate__(state)
    arrays = mx.nd.array([[1, 2, 3]]), mx.nd.array([[0.2, 0.3, 0.5]])
    for _ in range(2):
        np.testing.assert_array_equal(old(*arrays).asnumpy(), loss(*arrays).asnumpy())
        old.hybridize()
