"""What autograd wants of an array: found in MXNet, and right where it cannot be found."""

from gluon_kl import KLDivLoss
from gluon_kl.native import requests

import mxnet as mx
import numpy as np
import pytest

import oracle


def test_recorded_arrays_are_told_from_others():
    leaf, plain = mx.nd.ones((2,)), mx.nd.ones((2,))
    leaf.attach_grad()
    with mx.autograd.record():
        result = leaf * 2
        assert [requests.follow(x)[0] for x in (leaf, result, plain, result.detach(), None)] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("request_of, viewed", [("write", False), ("add", True), ("null", False)])
def test_only_adding_arrays_are_viewed(request_of, viewed):
    assert requests._layout() is not None, "MXNet keeps its requests elsewhere: every gradient is copied"
    x = mx.nd.ones((2, 3))
    x.attach_grad(request_of)
    with mx.autograd.record():
        assert (requests.follow(x)[1] is not x) == viewed
        result = x * 2
        assert requests.follow(result)[1] is result


@pytest.mark.parametrize("known", [False, True])
def test_an_unknown_request_counts_as_add(monkeypatch, known):
    x, plain = mx.nd.ones((2, 3)), mx.nd.ones((2, 3))
    x.attach_grad()
    layout = requests._layout()._replace(kind=1) if known else None
    monkeypatch.setattr(requests, "_layout", lambda: layout)
    with mx.autograd.record():
        recorded, view = requests.follow(x)
        assert recorded and view is not x and requests.follow(view)[0]
        assert requests.follow(x * 2)[0] and not requests.follow(plain)[0]


def test_gradients_stay_right_without_the_layout(monkeypatch, run, rng):
    requests._layout()
    monkeypatch.setattr(requests, "_layout", lambda: None)
    pred, label = rng.normal(size=(3, 4)), np.full((3, 4), 0.25)
    want, _, _ = oracle.kl_gradients(pred, label, from_logits=False)
    for grad_req, times in (("write", 1), ("add", 3)):
        x = mx.nd.array(pred, dtype="float64")
        x.attach_grad(grad_req)
        loss = run.prepare(KLDivLoss(False))
        for _ in range(3):
            with mx.autograd.record():
                out = loss(x, mx.nd.array(label, dtype="float64"))
            out.backward()
        np.testing.assert_allclose(x.grad.asnumpy(), times * want, rtol=1e-9)


def test_an_unfollowed_label_stays_unfollowed(run, rng):
    """Recording marks the inputs of an operator; a second loss must not take the mark for a wish."""
    loss = run.prepare(KLDivLoss(False))
    pred, label = mx.nd.array(rng.normal(size=(3, 4))), mx.nd.ones((3, 4)) / 4
    pred.attach_grad()
    with mx.autograd.record():
        loss(pred, label)
        assert not requests.follow(label)[0]
