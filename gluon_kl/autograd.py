"""What autograd follows, what gets no gradient, and where gradients add up.

An operator of an extension writes its gradients over what is there, and never learns which are wanted. So whatever
reaches it has an operator of MXNet's in front, which adds, and each gradient that nobody may ask for is cut off.
"""

import contextlib
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from gluon_kl import mxnet_private
from gluon_kl.native import fused, is_index, operator_dtype, top_k, with_known_ranks, with_ranks

import mxnet as mx
from mxnet import autograd


def prepare_for_autograd(
    inputs: Sequence[Any], known: Sequence[Optional[bool]],
) -> Tuple[Tuple[bool, ...], Tuple[Any, ...]]:
    """Whether autograd, while it records, may ask for a gradient of each input, and the inputs to give to operators.

    It may if an array is marked, or computed from such. A marked one comes behind a view: where its gradients
    add up (``grad_req="add"``), MXNet's own identity adds; the operator of an extension would not, and MXNet's own add
    several uses wrong. One that autograd does not follow is detached: recording would mark it, until the next backward,
    like one that it follows.

    To ask about an array that is not marked takes longer than the gradient of a small one, since MXNet answers by
    raising an exception. `known` says what to take it for instead: True is right of any, as what recording marks
    then is a copy; False cuts it off; None asks.
    """
    followed: List[bool] = []
    prepared: List[Any] = []
    for x, take in zip(inputs, known):
        marked = x is not None and type(x) is not float and x.grad is not None
        if x is None or type(x) is float:
            take = False
        elif marked or take is None:
            take = mxnet_private.is_followed(x)
            if marked and take:
                # The result of an operator that autograd goes through, also twice: a copy onto the same memory is none.
                x = mxnet_private.copy_function()(x, out=x.detach())
            elif not take:
                x = x.detach()
        else:
            x = mxnet_private.shallow_copy(x) if take else x.detach()
        followed.append(take)
        prepared.append(x)
    return tuple(followed), tuple(prepared)


@contextlib.contextmanager
def apart(F: Any) -> Iterator[Dict[str, str]]:
    """What is put into a user's graph inside belongs to one use alone; gives what operators on arrays are to be told.

    An operator of MXNet's own keeps grad_req="add" and sums over many uses right. But unless its attributes tell it
    from every other, MXNet merges it with theirs, and the sum lands on the operator behind it again.
    """
    name = mxnet_private.unique_use()
    with mx.AttrScope(__gluon_kl_use__=name):  # which Symbols obey; a trace keeps what a call says
        yield {"__gluon_kl_use__": name} if F is mx.nd else {}


def fused_in_users_graph(F: Any, inputs: Mapping[str, Any], no_grad: Sequence[str] = (), **options: Any) -> Any:
    """`native.fused` in a user's graph, where neither dtypes are known nor which gradients are wanted.

    The gradient to the first input is one node's. Those to the others but `no_grad` are those of another node without
    a value, the anchor, so that MXNet leaves out what nobody asks for.
    """
    (first, pred), *others = [(name, x) for name, x in inputs.items() if x is not None]
    with apart(F) as use:
        pred = F.identity(pred, **use)
        # print_summary takes what an operator makes of class indices alone for a layer, with two axes at least.
        others = [(name, F.expand_dims(x, axis=0) if is_index(name, options) else x) for name, x in others]
        given: Dict[str, Any] = {first: pred, **{name: operator_dtype(x, use) for name, x in others}}
    given = with_known_ranks(given, options) if F is mx.sym else with_ranks(F, given)
    given.update({name: F.BlockGrad(given[name]) for name, _ in others if name in no_grad})
    learned = [name for name, _ in others if name not in no_grad]
    if options.get("reduction") == "none":  # a second result of this size would cost more than a gradient
        return fused(F, given, [first, *learned], **options)
    seen = {name: F.BlockGrad(x) if name in learned else x for name, x in given.items()}
    if learned:
        silent = {name: F.BlockGrad(x) if name == first else x for name, x in given.items()}
        seen["anchor"] = fused(F, silent, learned, **{**options, "value": 0, "keep": 0})
    return fused(F, seen, [first], **options)


def top_k_in_users_graph(F: Any, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """`native.top_k` in a user's graph, where dtypes and ranks are not known."""
    with apart(F) as use:
        # A label may have one axis, for which print_summary has no column.
        given = {name: F.identity(x, **use) if name == "pred" else operator_dtype(
            F.expand_dims(x, axis=0) if name == "hard" else x, use) for name, x in inputs.items()}
    given = with_ranks(F, given)
    given.update({name: F.BlockGrad(given[name]) for name in inputs if name != "pred"})
    return top_k(F, given, **options)


class NoRows(autograd.Function):
    """The result for inputs that hold nothing: nothing, and gradients of 0 to all of them.

    MXNet's operators would divide by the number of rows and end the process.
    """

    def __init__(self, shape: Tuple[int, ...], dtype: str) -> None:
        super().__init__()
        self._result = shape, dtype

    def forward(self, *inputs: Any) -> Any:
        self._inputs = inputs
        shape, dtype = self._result
        return mx.np.zeros(shape, dtype=dtype, ctx=inputs[0].context).as_nd_ndarray()

    def backward(self, *_: Any) -> Any:
        with mx.util.np_shape(True):  # it is another thread's that runs this
            return tuple(mx.np.zeros(x.shape, dtype=x.dtype, ctx=x.context).as_nd_ndarray() for x in self._inputs)
