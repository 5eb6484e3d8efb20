"""Which inputs autograd follows, which get no gradient, and where gradients are accumulated.

An extension's operator overwrites the gradients that are there, and cannot find out which ones are needed. So each of
its inputs first passes through one of MXNet's own operators, which accumulates gradients, and every gradient that
nobody can ask for is cut off.
"""

import contextlib
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from gluon_kl import mxnet_private
from gluon_kl.native import fused, is_index, top_k, with_known_ranks, with_ranks

import mxnet as mx
from mxnet import autograd


def prepare_for_autograd(
    inputs: Sequence[Any], known: Sequence[Optional[bool]],
) -> Tuple[Tuple[bool, ...], Tuple[Any, ...]]:
    """Whether autograd, while it records, may ask for a gradient of each input; and the inputs for the operators.

    It may if an array is marked (has a gradient buffer), or if it was computed from a marked one. A marked array is
    passed through MXNet's identity, which accumulates its gradients with ``grad_req="add"``. An extension's operator
    would not accumulate them, and MXNet's own operators sum several uses of one array wrongly. An array that autograd
    does not follow is detached: otherwise recording would mark it until the next backward pass.

    For an array that is not marked, MXNet answers by raising an exception, which takes longer than the gradient of a
    small array. So `known` may give the answer: True is safe for any array, because recording then marks a copy; False
    cuts it off; None asks MXNet.
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
                # A copy onto the same memory. It is an operator to autograd, which may go through it several times.
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
    """Marks nodes that are added to a user's graph as those of one use; yields keywords for operators on arrays.

    MXNet's own operators respect grad_req="add" and sum over many uses correctly. But MXNet merges equal nodes, and
    then the sum reaches the extension's operator again. So each node gets an attribute that is unique to this use.
    """
    name = mxnet_private.unique_use()
    with mx.AttrScope(__gluon_kl_use__=name):  # for Symbols; a trace keeps the keywords of a call
        yield {"__gluon_kl_use__": name} if F is mx.nd else {}


def fused_in_users_graph(F: Any, inputs: Mapping[str, Any], no_grad: Sequence[str] = (), **options: Any) -> Any:
    """`native.fused` in a user's graph, where neither the dtypes nor the needed gradients are known.

    One node has the gradient to the first input. Another node, the anchor, has no value; it has the gradients to the
    other inputs, except `no_grad`. So MXNet leaves out the anchor's gradients if nobody asks for them.
    """
    (first, pred), *others = [(name, x) for name, x in inputs.items() if x is not None]
    with apart(F) as use:
        pred = F.identity(pred, **use)
        # print_summary treats an operator of class indices alone as a layer, which must have at least two axes. The
        # addition turns booleans, which `pick` does not take, into numbers.
        others = [(name, F.expand_dims(x, axis=0) + 0 if is_index(name, options) else x) for name, x in others]
        given: Dict[str, Any] = {first: pred, **{name: F.identity(x, **use) for name, x in others}}
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
        # A label may have one axis, which print_summary cannot show.
        given = {name: F.identity(F.expand_dims(x, axis=0) if name == "hard" else x, **use)
                 for name, x in inputs.items()}
    given = with_ranks(F, given)
    given.update({name: F.BlockGrad(given[name]) for name in inputs if name != "pred"})
    return top_k(F, given, **options)


class NoRows(autograd.Function):
    """The empty result for empty inputs, with gradients of 0 to all of them.

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
        with mx.util.np_shape(True):  # backward runs in another thread
            return tuple(mx.np.zeros(x.shape, dtype=x.dtype, ctx=x.context).as_nd_ndarray() for x in self._inputs)
