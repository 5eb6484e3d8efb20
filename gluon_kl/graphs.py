"""Our own graphs: one for each key of a hybridized loss; only a few are kept."""

import threading
from typing import Any, Callable, Dict, List, Optional, Sequence

from gluon_kl import mxnet_private
from gluon_kl.worlds import Known

import mxnet as mx
from mxnet.ndarray import NDArray

OPTIONS = ("static_alloc", "static_shape", "inline_limit", "forward_bulk_size", "backward_bulk_size")
MAX_GRAPHS = 8  # graphs that a loss keeps, up to 200 KB each; bounded, because a program may call it in ever new ways
_TRACING = threading.Lock()


class Graph:
    """The graph of one kind of call, traced at the first call; one thread at a time makes or uses it."""

    def __init__(self) -> None:
        # MXNet's CachedOp allocates its memory at the first call, which two threads must not make at once.
        self._lock = threading.Lock()
        self._op: Any = None
        self._hook: Any = None

    def __call__(self, block: Any, compute: Callable[..., Any], options: Dict[str, Any], key: Known,
                 inputs: Sequence[Any]) -> Any:
        with self._lock:
            if self._op is None:
                self._trace(block, compute, options, key, inputs)
            if block._callback is not self._hook:
                self._hook = block._callback
                self._op._register_op_hook(self._hook, block._monitor_all)
            return self._op(*[_array(key, inputs[i]) for i in self._used])

    def _trace(self, block: Any, compute: Callable[..., Any], options: Dict[str, Any], key: Known,
               inputs: Sequence[Any]) -> None:
        names = [None if x is None else f"data{i}" for i, x in enumerate(inputs)]
        with _TRACING, key.device, block.names_of_nodes():
            symbols = [None if name is None else mx.sym.var(name) for name in names]
            out = mxnet_private.without_amp_casts(compute(mx.sym, key, symbols))
        self._used = [names.index(name) for name in out.list_inputs()]
        indices = [("data_indices", list(range(len(self._used)))), ("param_indices", [])]
        self._op = mx.nd.CachedOp(out, indices + sorted(options.items()))


def _array(key: Known, x: Any) -> NDArray:
    """The input as an array, so that one graph works for every number."""
    return mx.nd.full((1,) * key.ndim, x, key.device, "float64") if type(x) is float else x


class GraphStore:
    """The graphs of a hybridized loss."""

    def __init__(self, options: Dict[str, Any]) -> None:
        self._options = options
        self._graphs: Dict[Known, Graph] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, block: Any, compute: Callable[..., Any], key: Known, inputs: Sequence[Any]) -> Any:
        """The result of the graph for this key, which is made if there is none."""
        graph: Optional[Graph] = self._graphs.get(key)
        if graph is None:
            oldest: List[Known] = list(self._graphs)[:len(self._graphs) - MAX_GRAPHS + 1]
            for other in oldest:
                self._graphs.pop(other, None)
            block.note_call(inputs)
            graph = self._graphs.setdefault(key, Graph())
        return graph(block, compute, self._options, key, inputs)
