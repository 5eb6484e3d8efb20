"""The loss inside training: MXNet's own convergence test for its KLDivLoss, and a Gluon loop."""

from gluon_kl import KLDivLoss

import mxnet as mx
import numpy as np
import pytest


def test_module_fit_converges():
    """Symbol, make_loss and Module.fit bring the loss below 0.05."""
    np.random.seed(1234)
    mx.random.seed(1234)
    batch, classes = 10, 2
    scores = np.random.uniform(-1, 1, size=(20, 10)).astype("float32")
    target = np.exp(np.random.uniform(size=(20, classes)))
    target = (target / target.sum(1, keepdims=True)).astype("float32")
    data = mx.io.NDArrayIter(scores, target, batch, label_name="label")
    hidden = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=64)
    hidden = mx.sym.Activation(hidden, act_type="relu")
    output = mx.sym.log_softmax(mx.sym.FullyConnected(hidden, num_hidden=classes))
    loss = mx.sym.make_loss(KLDivLoss(reduction="sum")(output, mx.sym.var("label")))
    module = mx.mod.Module(loss, data_names=("data",), label_names=("label",))
    module.fit(data, num_epoch=200, optimizer="adam", optimizer_params={"learning_rate": 0.01},
               eval_metric=mx.metric.Loss(), initializer=mx.init.Xavier(magnitude=2))
    assert module.score(data, eval_metric=mx.metric.Loss())[0][1] < 0.05


@pytest.mark.parametrize("label_space", ["probs", "log_probs", "logits"])
def test_gluon_loop_finds_the_target(run, label_space):
    """Gradient descent on free logits arrives at the label, in whatever space the label came."""
    target = np.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05]])
    label = mx.nd.array(target if label_space == "probs" else np.log(target))
    pred = mx.nd.zeros((2, 3))
    pred.attach_grad()
    loss = run.prepare(KLDivLoss(from_logits=False, reduction="sum", label_space=label_space))
    for _ in range(400):
        with mx.autograd.record():
            out = loss(pred, label)
        out.backward()
        pred -= 1.0 * pred.grad
    np.testing.assert_allclose(mx.nd.softmax(pred).asnumpy(), target, atol=1e-3)
