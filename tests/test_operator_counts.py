"""How many of MXNet's operators our hybridized graph takes, forward and backward to pred: each is a launch on a GPU."""

import contextlib
import json
import os
import tempfile

import gluon_kl

import mxnet as mx
import numpy as np
import pytest

from cases import Model

pytestmark = pytest.mark.skipif(not mx.__version__.startswith("1.9."), reason="counted on MXNet 1.9")
OVERHEAD = {"DeleteVariable", "SetValueOp", "WaitForVar"}  # the engine's own: they free memory, and start the backward


@contextlib.contextmanager
def profiled():
    """What runs inside is counted by MXNet's profiler, which replaces the file that it is given: os.devnull too."""
    with tempfile.TemporaryDirectory() as folder:
        mx.profiler.set_config(profile_imperative=True, profile_symbolic=True, aggregate_stats=True,
                               filename=os.path.join(folder, "profile.json"))
        mx.profiler.set_state("run")
        yield
        mx.nd.waitall()
        mx.profiler.set_state("stop")


def print_operators(source):
    """Those of one step of the block that `source` makes, and how often each."""
    block = eval(source, {**vars(gluon_kl), "Model": Model})
    block.hybridize()
    rng = np.random.RandomState(0)
    pred, label = (mx.nd.array(x) for x in (rng.normal(size=(4, 5)), rng.dirichlet(np.ones(5), 4)))
    pred.attach_grad()

    def step():
        with mx.autograd.record():
            loss = block(pred, label)
        loss.backward()
        mx.nd.waitall()

    step()
    step()
    with profiled():
        step()
    names = json.loads(mx.profiler.dumps(reset=True, format="json"))["Time"]["operator"]
    print(json.dumps({name: entry["Count"] for name, entry in names.items() if name not in OVERHEAD}))


MOST = {
    "KLDivLoss(False, reduction='sum')": 18,
    "ReverseKLDivLoss(False, reduction='sum')": 20,
    "JSDivLoss(False, reduction='sum')": 38,
    "KLDivLoss(False, label_space='logits', reduction='sum')": 47,
    "KLDivLoss(False)": 21,
    "Model(KLDivLoss(False, reduction='sum'))": 51,
}


def test_operators_of_a_step(in_subprocess):
    source = f"import test_operator_counts as t\nfor each in {list(MOST)}: t.print_operators(each)"
    lines = in_subprocess(source, GLUON_KL_NATIVE="0").splitlines()[-len(MOST):]  # whose profiler is its own
    found = {block: json.loads(line) for block, line in zip(MOST, lines)}
    assert not {block: names for block, names in found.items() if sum(names.values()) > MOST[block]}
    assert all(found.values())
