"""Calibration: one pass of the data through the float graph, statistics of every value that gets a scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from qi.keras.data import batches, count_batches
from qi.keras.graph import Graph, Value, build_model
from qi.keras.inputs import Watch
from qi.keras.parts import UNSEEN, Part, recording
from qi.keras.plan import value_name
from qi.keras.running import fixed_batch, stateless_call, translated
from qi.observers import Moments, TensorStatistics

__all__ = ["Calibration", "collect", "run"]

_WATCHED_ELEMENTS = 2**27  # activations held at once: 512 MiB, whatever the batch


@dataclass(eq=False)
class Calibration:
    """What one pass gave.

    Attributes:
        statistics: of each watched value by its name.
        samples: how many samples were seen; 0 where it isn't known.
        sample: the inputs of the first few samples, for measuring errors.
        source: where the statistics come from if not from data just seen.
        inputs: moments of the inputs of layers, by `qi.keras.inputs.weight_key`.
        channels: statistics of single channels, by the value's name.
    """

    statistics: dict[str, TensorStatistics] = field(default_factory=dict)
    samples: int = 0
    sample: list[np.ndarray] = field(default_factory=list)
    source: str = ""
    inputs: dict[str, Moments] = field(default_factory=dict)
    channels: dict[str, TensorStatistics] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str | float | bool | None]:
        """What the report says of the calibration."""
        origin: dict[str, str | float | bool | None] = {"calibration": self.source} if self.source else {}
        return origin | ({"calibration_samples": self.samples} if self.samples else {})


def run(graph: Graph, tensors: dict[int, Any], values: list[Value]) -> Any:
    """A function from flat inputs to the numpy arrays of `values`; every call starts from the same states.

    The function raises InputError where the model can't be run on its inputs.
    """
    model = build_model(graph, tensors, values)

    def call(inputs: list[np.ndarray]) -> list[np.ndarray]:
        # Called rather than compiled: a trace would serve a few batches only, and XLA would compile the last one anew.
        known = graph.flat_inputs()
        named = {value.name: array for value, array in zip(known, inputs, strict=True)}
        with translated(graph.name, named, [value.shape for value in known]):
            return stateless_call(model, keras.tree.pack_sequence_as(graph.inputs, inputs))

    return call


def collect(
    graph: Graph,
    tensors: dict[int, Any],
    values: list[Value],
    data: Any,
    parts: Mapping[str, Part] | None = None,
    watch: Watch | None = None,
    *,
    batch_size: int,
    progress: bool,
    keep: int,
) -> Calibration:
    """Runs the data through the graph once; memory holds the activations of one batch, or of a part of it where they are large.

    Args:
        graph: the float graph.
        tensors: its KerasTensors by ``id(value)``.
        values: which values to watch.
        data: see `qi.keras.data.batches`.
        parts: layers within others, which see what they give.
        watch: what else is to be seen.
        batch_size: for arrays.
        progress: whether to show a progress bar.
        keep: samples to keep as `Calibration.sample`.

    Raises:
        InputError: illegal data, see `qi.keras.data.batches`; or data on which the model raises an error.
    """
    watch = watch or Watch()
    result = Calibration(
        {value_name(value): TensorStatistics() for value in values}, inputs=watch.inputs, channels=watch.channels
    )
    within = {path: part for path, part in (parts or {}).items() if part.spec is not None}
    looked_at = list({id(value): value for value in [*values, *watch.values]}.values())
    outputs_of = run(graph, tensors, looked_at or graph.flat_outputs()) if looked_at or within else None
    bar = keras.utils.Progbar(count_batches(data, batch_size), unit_name="batch", verbose=int(progress))
    done = 0
    for inputs, count in batches(data, graph, batch_size):
        if not result.samples:
            result.sample = [array[:keep].copy() for array in inputs]  # a view would keep the whole batch
        result.samples += count
        if outputs_of is not None:
            for piece in _pieces(inputs, count, graph, looked_at):
                with recording(within):
                    arrays = outputs_of(piece)[: len(looked_at)]
                _observe([result.statistics[value_name(value)] for value in values], arrays[: len(values)])
                watch.update(looked_at, arrays)
                del arrays
                del piece
        done += 1
        bar.update(done, finalize=False)
        del inputs  # or it would live on while the next batch is made
    bar.update(done, finalize=True)
    for part in within.values():
        result.statistics |= dict(zip(part.names, part.outputs, strict=True))
        if not part.outputs and part.spec is not None:
            part.spec, part.reason = None, UNSEEN
    return result


def _pieces(inputs: list[np.ndarray], count: int, graph: Graph, values: list[Value]) -> Iterator[list[np.ndarray]]:
    """A batch in parts whose watched activations fit into memory; whole where the model demands its size."""
    each = sum(int(np.prod([size or 1 for size in value.shape[1:]])) for value in values if value.shape is not None)
    step = max(1, _WATCHED_ELEMENTS // max(1, each))
    if step >= count or fixed_batch([value.shape for value in graph.flat_inputs()]):
        yield inputs
        return
    for start in range(0, count, step):
        yield [array[start : start + step] for array in inputs]


def _observe(statistics: list[TensorStatistics], arrays: list[np.ndarray]) -> None:
    """Updates each statistic; once it returns, nothing holds the arrays."""
    for seen, array in zip(statistics, arrays, strict=True):
        seen.update(array)
