"""Cuts a graph into blocks that follow one another, so that each can be run, and trained, by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import keras

from qi.errors import ConfigError
from qi.keras.graph import Call, Graph, Value, build_model
from qi.registry import suggest

__all__ = ["SCOPES", "Block", "cut_graph", "several_blocks"]

SCOPES = ("network", "block", "layer")


@dataclass(frozen=True, eq=False)
class Block:
    """A run of calls of a graph.

    Attributes:
        name: path of the first of its layers that weigh in.
        calls: in the graph's order.
        inputs: values from before it that it takes, each once.
        outputs: its values that are taken after it, or that the graph gives, each once.
    """

    name: str
    calls: list[Call]
    inputs: list[Value]
    outputs: list[Value]

    def build(self) -> keras.Model:
        """A model of lists of inputs and outputs, which calls the block's operations."""
        tensors = {
            id(value): keras.Input(batch_shape=value.shape, dtype=value.dtype, name=f"input_{place}")
            for place, value in enumerate(self.inputs)
        }
        for call in self.calls:
            args, kwargs = call.arguments([tensors[id(value)] for value in call.inputs])
            results = keras.tree.flatten(call.op(*args, **kwargs))
            tensors |= dict(zip(map(id, call.outputs), results, strict=True))
        graph = Graph(self.name.replace("/", "_"), list(self.inputs), list(self.outputs), self.calls)
        return build_model(graph, tensors)


def cut_graph(
    graph: Graph,
    scope: str,
    weighted: Callable[[Call], bool],
    passes: Callable[[Value], bool] = lambda value: True,
) -> list[Block]:
    """The blocks of a graph, in order; each has one of the weighted calls at least, and none is left out.

    Args:
        graph: its calls are in topological order; it is only read.
        scope: "layer" begins a block at every weighted call; "block" at those where a single value leads from what is before to
            what follows, so that residual blocks stay whole; "network" makes one block of all.
        weighted: whether a call is worth a block.
        passes: whether a value can be handed from one block to another as an array: nothing is cut where one can't.

    Raises:
        ConfigError: an unknown scope.

    Example:
        >>> import keras
        >>> from qi.keras.graph import flatten_model
        >>> dense = lambda name: keras.layers.Dense(4, name=name)
        >>> x = keras.Input((4,))
        >>> y = dense("a")(x)
        >>> y = keras.layers.Add()([y, dense("c")(dense("b")(y))])
        >>> graph = flatten_model(keras.Model(x, dense("d")(y)))
        >>> has_weights = lambda call: call.kind == "Dense"
        >>> [block.name for block in cut_graph(graph, "block", has_weights)]
        ['a', 'b', 'd']
        >>> [block.name for block in cut_graph(graph, "layer", has_weights)]
        ['a', 'b', 'c', 'd']
    """
    if scope not in SCOPES:
        raise ConfigError(
            f"expected scope to be one of {SCOPES}; received scope={scope!r}." + suggest(str(scope), SCOPES)
        )
    heads = [place for place, call in enumerate(graph.calls) if weighted(call)]
    starts = [0]
    for place in heads[1:] if scope != "network" else []:
        alive = _alive(graph, place)
        if (scope == "layer" or len(alive) == 1) and all(map(passes, alive)):
            starts.append(place)
    ends = [*starts[1:], len(graph.calls)]
    known = set(heads)
    return [_block(graph, start, end, known) for start, end in zip(starts, ends, strict=True) if end > start]


def _alive(graph: Graph, place: int) -> list[Value]:
    """The values from before a place that calls from there on take."""
    later = {id(value): value for call in graph.calls[place:] for value in call.inputs}
    made = {id(value) for call in graph.calls[place:] for value in call.outputs}
    return [value for key, value in later.items() if key not in made]


def _block(graph: Graph, start: int, end: int, heads: Collection[int]) -> Block:
    calls = graph.calls[start:end]
    made = {id(value): value for call in calls for value in call.outputs}
    taken = {id(value): value for call in calls for value in call.inputs}
    wanted = {id(value) for call in graph.calls[end:] for value in call.inputs}
    wanted |= {id(value) for value in graph.flat_outputs()}
    head = next((place for place in range(start, end) if place in heads), start)
    return Block(
        graph.calls[head].path,
        calls,
        [value for key, value in taken.items() if key not in made],
        [value for key, value in made.items() if key in wanted],
    )


def several_blocks(blocks: list[Block]) -> dict[int, Any]:
    """The operations that several blocks call, by their ``id``."""
    first: dict[int, int] = {}
    found: dict[int, Any] = {}
    for place, block in enumerate(blocks):
        for call in block.calls:
            if first.setdefault(id(call.op), place) != place:
                found[id(call.op)] = call.op
    return found
