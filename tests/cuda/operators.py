"""Which operators of MXNet the losses use without the fused operator: forward and backward, in every way of running.

python tests/cuda/operators.py cpu    # prints their names
python tests/cuda/operators.py gpu    # the same on MXNet's first GPU; run.py calls it where the GPU is a stand-in
"""

import ctypes
import json
import os
import sys
from pathlib import Path

# Operators one by one: in bulk and in fused kernels their names are not seen.
os.environ.update(GLUON_KL_NATIVE="0", MXNET_EXEC_BULK_EXEC_TRAIN="0", MXNET_EXEC_BULK_EXEC_INFERENCE="0",
                  MXNET_USE_FUSION="0", MXNET_ENGINE_TYPE="NaiveEngine", MXNET_CUDNN_LIB_CHECKING="0",
                  MXNET_SUBGRAPH_BACKEND="NONE")
sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent.parent)]

import gluon_kl  # noqa: E402, F401  before MXNet

import mxnet as mx  # noqa: E402
from mxnet.base import _LIB, OpHandle, c_str  # noqa: E402
from test_operator_counts import profiled  # noqa: E402

from cases import LAYOUTS, MEMBERS, NESTED, Case, Model, all_inputs, called, every, fits, sizes  # noqa: E402


def walk(name):
    """Call a member in every reduction, weighted or not: eager, hybridized, nested, in halves, with mx.np arrays."""
    member, turn = MEMBERS[name], list(MEMBERS).index(name) % 2
    for layout in LAYOUTS if name == "kl logits probs" else LAYOUTS[turn:turn + 1]:
        for size in (None, sizes(member, layout)[-1 - turn]) if fits(member, layout) else ():
            if size == layout[0] and member.weights == "rows":
                continue
            case = Case(name, layout, None, size)
            called(case.make(), all_inputs(case), "float32", case.head)
    layout = LAYOUTS[0]
    weights = (None, layout[0] if member.weights == "elements" else (layout[0][0], 1))
    for i, reduction in enumerate(member.reductions):
        size = weights[(i + turn) % 2]
        case = Case(name, layout, reduction, size, 0.5)
        inputs = all_inputs(case)
        hybridized, nested = case.make(), Model(case.make())
        hybridized.hybridize(static_alloc=True, static_shape=True)
        nested.hybridize()
        how = dict(grad_req="add") if i % 2 else dict(kind=mx.np.array)
        called(hybridized, inputs, "float32" if i % 2 else "float16", case.head, **how)
        if name in NESTED and (size is None or all(x is not None for x in inputs)):
            called(nested, [x for x in inputs if x is not None], "float64", case.head)


def used(device):
    """Return the operators that ran, of all that MXNet's profiler names."""
    with profiled(), device:
        every(list(MEMBERS), walk)
    names = json.loads(mx.profiler.dumps(reset=True, format="json"))["Time"]["operator"]
    return sorted(name for name in names if not _LIB.NNGetOpHandle(c_str(name), ctypes.byref(OpHandle())))


if __name__ == "__main__":
    print("\n".join(used(mx.gpu(0) if sys.argv[1] == "gpu" else mx.cpu())))
