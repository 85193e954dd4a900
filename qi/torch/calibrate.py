"""Running traced modules while what they compute is looked at: statistics for ranges, values for errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import fx

from qi.core import sqnr_db
from qi.engine.progress import Progress
from qi.errors import InputError
from qi.observers import TensorStatistics
from qi.quantizers import BaseInferableQuantizer
from qi.torch.data import Batch, Samples, quiet
from qi.torch.graph import Graph, Value
from qi.torch.tracer import bind, named, tensors_in
from qi.torch.variables import to_numpy

__all__ = ["collect", "errors_of", "same_draws", "sample_of", "values_of", "watch"]

SAMPLE = 16
"""How many samples errors are measured on, at most."""

_MEASURED_ELEMENTS = 2**24  # activations held at once to measure errors: 64 MiB a model


class _Watcher(fx.Interpreter):
    """Runs a graph and shows what some nodes give."""

    def __init__(self, module: fx.GraphModule, seen: Mapping[fx.Node, Callable[[torch.Tensor], None]]) -> None:
        super().__init__(module)
        self._seen = seen

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if n in self._seen:
            self._seen[n](found)
        return found


@contextmanager
def same_draws() -> Iterator[None]:
    """With random numbers that are the same each time, and those of the process left alone: errors compare two runs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def watch(graph: Graph, batch: Batch, seen: Mapping[fx.Node, Callable[[torch.Tensor], None]]) -> None:
    """Runs a graph on a batch in eval mode and hands over what nodes give.

    Raises:
        InputError: the module can't be run on it.
    """
    module = graph.module
    try:
        # What isn't made of tensors is fixed in the graph, and no argument of it.
        args = tuple(given for given in batch.args if tensors_in(given))
        kwargs = {name: given for name, given in batch.kwargs.items() if tensors_in(given)}
        bound = named(bind(module.forward, args, kwargs))
        inputs = [bound[str(node.target)] for node in module.graph.nodes if node.op == "placeholder"]
        with quiet(module):
            _Watcher(module, seen).run(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"expected samples that the module can be run on; it fails with: {text}") from error


def collect(
    graph: Graph, values: Iterable[Value], samples: Samples, *, progress: bool
) -> tuple[dict[str, TensorStatistics], int]:
    """Statistics of values by name, and how many samples were seen; memory holds one batch and what it makes.

    Raises:
        InputError: illegal data, or data that the module can't be run on.
    """
    found = {value.name: TensorStatistics() for value in values}
    seen = {value.node: _recorder(found[value.name]) for value in values}
    count = 0
    with Progress("calibrating", samples.length or 0, show=None if progress else False) as bar:
        for batch in samples:
            watch(graph, batch, seen)
            count += batch.count
            bar.advance(1)
    return found, count


def _recorder(statistics: TensorStatistics) -> Callable[[torch.Tensor], None]:
    return lambda tensor: statistics.update(to_numpy(tensor))


def values_of(graph: Graph, nodes: Mapping[str, fx.Node], batch: Batch) -> dict[str, np.ndarray]:
    """What nodes give on a batch, by name, as far as memory allows: once that is full, the others aren't there.

    Random numbers that the model draws are the same at every call.
    """
    found: dict[str, np.ndarray] = {}
    left = _MEASURED_ELEMENTS

    def keeper(name: str) -> Callable[[torch.Tensor], None]:
        def keep(tensor: torch.Tensor) -> None:
            nonlocal left
            if tensor.numel() <= left:
                left -= tensor.numel()
                found[name] = to_numpy(tensor)

        return keep

    with same_draws():
        watch(graph, batch, {node: keeper(name) for name, node in nodes.items()})
    return found


def sample_of(first: Batch, run: Callable[[Batch], Any]) -> Batch:
    """As many samples of a batch as errors are measured on; the whole batch where a model can't be run on a part.

    Its samples may be nodes of one graph, say, or steps that belong to a mask.

    Args:
        first: the batch.
        run: runs the model.
    """
    head = first.head(SAMPLE)
    if head.count == first.count:
        return first
    try:
        run(head)
    except InputError:
        return first
    return head


def errors_of(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    quantizers: Mapping[str, BaseInferableQuantizer],
) -> dict[str, tuple[float, float]]:
    """(own, total) SQNR in dB of each value by name: its own quantizer's error, and all error up to there."""
    return {
        name: (sqnr_db(exact, quantizers[name](exact)), sqnr_db(exact, after[name]))
        for name, exact in before.items()
        if exact.size and name in after and name in quantizers
    }
