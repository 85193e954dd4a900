"""The model run with other values of one weight at a time: in this process, or in several at once through joblib."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import keras
import numpy as np

from qi.errors import ConfigError, InputError
from qi.keras.graph import Call, Graph
from qi.keras.prepare import Prepared
from qi.keras.running import translated
from qi.keras.searched import Searched
from qi.keras.sending import Source, not_rebuilt
from qi.keras.variables import to_numpy
from qi.optional import require

__all__ = ["Changes", "TaskMetric", "measured_losses"]

TaskMetric: TypeAlias = Callable[[list[np.ndarray], list[np.ndarray]], float]
"""From the outputs of the float model and of the changed one to a loss, 0 where they are equal."""

Changes: TypeAlias = Callable[[Searched], Sequence[Callable[[], np.ndarray]]]
"""Functions that give the values that a weight is to take, one after the other."""

_REBUILT: dict[str, tuple[Graph, list[Searched]]] = {}  # of the last source alone: models are large
_GIVEN: dict[str, tuple[Graph, list[Searched]]] = {}  # what this process has at hand itself, while it measures
_LOCK = threading.Lock()


class _Walk:
    """One batch on its way through the float graph: from any call on, the rest can be run with other weights.

    What lies before is computed once; of that only the tensors live on that are needed later.
    """

    def __init__(self, graph: Graph, inputs: Sequence[np.ndarray]) -> None:
        self._graph, self._position = graph, 0
        self._last = {id(value): place for place, call in enumerate(graph.calls) for value in call.inputs}
        self._last |= {id(value): len(graph.calls) for value in graph.flat_outputs()}
        self._tensors = {
            id(value): array if array is None else keras.ops.convert_to_tensor(array)
            for value, array in zip(graph.flat_inputs(), inputs, strict=True)
        }

    def to(self, call: Call) -> None:
        """Runs all before a call."""
        place = self._graph.calls.index(call)
        with keras.StatelessScope():  # states, as of a recurrent layer, stay as they are
            self._run(self._tensors, self._position, place)
        self._position = place

    def outputs(self, variable: keras.Variable | None = None, values: np.ndarray | None = None) -> list[np.ndarray]:
        """What the model gives with other values of a variable that no call before here reads."""
        changed = [] if variable is None else [(variable, keras.ops.convert_to_tensor(values, dtype=variable.dtype))]
        tensors = dict(self._tensors)
        with keras.StatelessScope(state_mapping=changed):
            self._run(tensors, self._position, len(self._graph.calls))
            return [to_numpy(tensors[id(value)]) for value in self._graph.flat_outputs()]

    def _run(self, tensors: dict[int, Any], start: int, stop: int) -> None:
        for place, call in enumerate(self._graph.calls[start:stop], start):
            args, kwargs = call.arguments([tensors[id(value)] for value in call.inputs])
            results = keras.tree.flatten(call.op(*args, **kwargs))
            tensors.update((id(value), result) for value, result in zip(call.outputs, results, strict=True))
            for value in call.inputs:
                if self._last[id(value)] == place:
                    tensors.pop(id(value), None)


def measured_losses(
    ready: Prepared,
    data: Iterable[tuple[list[np.ndarray], int]],
    weights: Sequence[Searched],
    changes: Changes,
    distance: TaskMetric,
    advance: Callable[[int], object] = lambda steps: None,
    *,
    jobs: int | None = 1,
    source: Source | None = None,
) -> list[np.ndarray]:
    """The loss of the model with other values of one weight at a time, all else in float; the mean over the samples.

    Args:
        ready: its graph is run, as often as there are changes, from the changed layer on; nothing of it is changed.
        data: (flat inputs, number of samples), batch by batch.
        weights: those to change.
        changes: gives the values that a weight is to take.
        distance: from the float model's outputs and the changed one's to a loss, batch by batch.
        advance: called with the number of weights that were changed since, of one batch.
        jobs: how many processes, as of `qi.algorithms.run.calls`; the losses are the same, bit for bit.
        source: what other processes make the graph of; needed unless jobs is 1.

    Returns:
        of each weight the losses, float64.

    Raises:
        InputError: outputs or losses that aren't finite; data on which the model raises an error.
        UnsupportedError: a model that other processes can't rebuild.
        ConfigError: a distance that can't be sent to other processes.
    """
    graph = ready.graph
    order = sorted(range(len(weights)), key=lambda place: graph.calls.index(weights[place].call))
    totals: dict[int, np.ndarray] = {}
    seen = 0
    parts: Iterator[tuple[int, int, np.ndarray]]
    if source is None or _alone(jobs):
        parts = (
            (place, count, losses)
            for inputs, count in data
            for place, losses in _changed(graph, inputs, weights, order, changes, distance)
        )
    else:
        parts = _in_parallel(ready, list(data), weights, order, changes, distance, jobs, source)
    for place, count, losses in parts:
        totals[place] = totals.get(place, 0.0) + count * losses
        seen += count if place == order[0] else 0
        advance(1)
    return [totals[place] / seen for place in range(len(weights))]


def _alone(jobs: int | None) -> bool:
    return jobs == 1 or require("joblib", "search", "work in parallel").effective_n_jobs(jobs) == 1


def _changed(
    graph: Graph,
    inputs: Sequence[np.ndarray],
    weights: Sequence[Searched],
    places: Sequence[int],
    changes: Changes,
    distance: TaskMetric,
    expected: Sequence[np.ndarray] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Of some of the weights, in the order of the graph, the losses on one batch."""
    walk, before = _begun(graph, inputs)
    if expected is not None and not all(map(_alike, before, expected)):
        raise not_rebuilt("its outputs are others")
    for place in places:
        weight = weights[place]
        walk.to(weight.call)
        made = changes(weight)
        yield (
            place,
            np.array([_loss(distance, before, walk.outputs(weight.variable, make()), weight.label) for make in made]),
        )


def _begun(graph: Graph, inputs: Sequence[np.ndarray]) -> tuple[_Walk, list[np.ndarray]]:
    """A walk at its start, and the float model's outputs."""
    known = graph.flat_inputs()
    named = {value.name: array for value, array in zip(known, inputs, strict=True)}
    with translated(graph.name, named, [value.shape for value in known]):
        walk = _Walk(graph, inputs)
        before = walk.outputs()
    if not all(np.isfinite(array.astype(np.float32)).all() for array in before):
        raise InputError(
            f"expected finite outputs; received NaN or infinity from {graph.name!r} in float; do look at the model, or at "
            "the samples"
        )
    return walk, before


def _loss(distance: TaskMetric, before: list[np.ndarray], after: list[np.ndarray], label: str) -> float:
    value = distance(before, after)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"expected a finite number of the metric; received {value!r} with {label!r} changed; do have it return a loss "
            "that is 0 for equal outputs"
        )
    return number


def _in_parallel(
    ready: Prepared,
    held: Sequence[tuple[list[np.ndarray], int]],
    weights: Sequence[Searched],
    order: Sequence[int],
    changes: Changes,
    distance: TaskMetric,
    jobs: int | None,
    source: Source,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(place of the weight, samples of the batch, losses), batch after batch."""
    joblib = require("joblib", "search", "work in parallel")
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
    here = bool(getattr(joblib.parallel.get_active_backend()[0], "supports_sharedmem", False))
    packed = source.packed(weights, here=here)
    first = None if here else _begun(ready.graph, held[0][0])[1]
    shares = max(1, min(len(order), -(-2 * joblib.effective_n_jobs(jobs) // len(held))))
    tasks = [(batch, order[share::shares]) for batch in range(len(held)) for share in range(shares)]
    work = (
        joblib.delayed(_part)(packed, held[batch][0], places, changes, distance, None if batch else first)
        for batch, places in tasks
    )
    with _at_hand(packed.key, ready.graph, list(weights)), _sendable():
        for (batch, _), found in zip(tasks, parallel(work), strict=True):
            for place, losses in found:
                yield place, held[batch][1], losses


def _part(
    source: Source,
    inputs: Sequence[np.ndarray],
    places: Sequence[int],
    changes: Changes,
    distance: TaskMetric,
    expected: Sequence[np.ndarray] | None,
) -> list[tuple[int, np.ndarray]]:
    """A worker's share: losses of some weights on one batch."""
    with _LOCK:
        found = _GIVEN.get(source.key) or _REBUILT.get(source.key)
        if found is None:
            _REBUILT.clear()
            found = _REBUILT[source.key] = source.rebuilt()
    # Large arrays come as read-only maps of files.
    arrays = [array if array is None else np.array(array) for array in inputs]
    return list(_changed(found[0], arrays, found[1], places, changes, distance, expected))


@contextmanager
def _at_hand(key: str, graph: Graph, weights: list[Searched]) -> Iterator[None]:
    """Lets work that happens to run in this process, as with threads, take the graph that is there."""
    _GIVEN[key] = graph, weights
    try:
        yield
    finally:
        del _GIVEN[key]


@contextmanager
def _sendable() -> Iterator[None]:
    """Says what can't be sent to other processes."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "PicklingError":
            raise
        raise ConfigError(
            "expected a metric, and layers, that can be sent to other processes; received some that can't be: "
            f"{error.__cause__ or error}; do define them in a module, set jobs=1, or use joblib.parallel_config('threading')"
        ) from error


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-3, atol=1e-3 * float(np.abs(other).max()))
