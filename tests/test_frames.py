"""How long the road of a call is: how few functions of ours an eager call passes through, and how short they are."""

import ast
import sys
from pathlib import Path

import gluon_kl
from gluon_kl import BernoulliKLLoss, DistillationLoss, GaussianKLLoss, JSDivLoss, KLDivLoss, ReverseKLDivLoss, native

import mxnet as mx
import pytest

PACKAGE = Path(gluon_kl.__file__).parent
LENT = ("_lend.py", "_hook.py", "_mxnet.py")  # what MXNet itself calls on a newer NumPy is no station of the road


def functions_of_ours(call):
    """The names of the functions of the package that a call passes through, comprehensions aside."""
    seen = []

    def note(frame, event, arg):
        code = frame.f_code
        file = Path(code.co_filename)
        if event == "call" and PACKAGE in file.parents and file.name not in LENT and code.co_name[0] != "<":
            seen.append(code.co_name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


X, Y, INDEX = mx.nd.ones((4, 5)), mx.nd.ones((4, 5)) / 5, mx.nd.ones((4,))


@pytest.mark.skipif(not native.is_available(), reason="it is the fused operator's road that is short")
@pytest.mark.parametrize("make, inputs", [
    (lambda: KLDivLoss(False), (X, Y)), (lambda: ReverseKLDivLoss(False), (X, Y)), (lambda: JSDivLoss(False), (X, Y)),
    (DistillationLoss, (X, INDEX, Y)), (BernoulliKLLoss, (X, Y)), (GaussianKLLoss, (X, Y))],
    ids=["kl", "reverse", "js", "distillation", "bernoulli", "gaussian"])
def test_an_eager_call_passes_through_few_functions(make, inputs):
    """At most 22 the first time, of which 10 are checks, and 12 after, of which 3 are autograd's.

    Gaussians have one more, which looks at priors that are numbers. What differs from KL the first time: `_used`, and
    that each shape is compared by a function.
    """
    X.attach_grad()

    def step(loss):
        with mx.autograd.record():
            return loss(*inputs)

    step(make())  # the operator's text and MXNet's functions are kept for the process
    loss, more = make(), isinstance(make(), GaussianKLLoss)
    first, after = functions_of_ours(lambda: step(loss)), functions_of_ours(lambda: step(loss))
    assert len(first) <= 22, first
    assert len(after) <= 12 + more, after


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.name)
def test_functions_are_short(file):
    """40 lines at most, docstring aside."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 40, f"{node.name} has {lines} lines"
