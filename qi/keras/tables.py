"""Embedding tables as weights of layers: rows that are looked up matter by what the layers behind make of them.

A row that is looked up and goes into linear layers alone is a weight of those: of a table E ``[V, D]`` and layers W, row v gives
``E[v] @ W``, so an error d of the row makes ``d W W^T d^T``, whatever the data. GPTQ on ``E^T`` with ``W W^T`` as the second
moments of its inputs lowers that. (The product with a table turned round, as of tied scores, is a layer like any other:
`qi.keras.linear`.) Where rows go elsewhere, into a normalization say, the nearest codes are best for what the table itself gives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from qi.algorithms import MatrixView
from qi.keras.graph import Call, Graph, Value, looks_up
from qi.keras.linear import LinearView, linear_views
from qi.keras.rounding import WeightSite
from qi.keras.variables import to_numpy, weights_of
from qi.observers import Moments

__all__ = ["Taken", "consumers_of", "is_table", "table_moments", "with_tables"]

_KINDS = ("Embedding", "ReversibleEmbedding")
_TABLE = "embeddings"
# Each place keeps its features, whatever happens to the places.
_PASSES = frozenset(
    "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianDropout GaussianNoise AlphaDropout Identity "
    "ActivityRegularization Add Subtract GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D "
    "AveragePooling1D AveragePooling2D AveragePooling3D Cropping1D Cropping2D Cropping3D ZeroPadding1D ZeroPadding2D "
    "ZeroPadding3D UpSampling1D".split()
)
_MOVES = ("Reshape", "Flatten")  # which put rows beside each other, whole
_LAST = frozenset("Dense LSTM GRU SimpleRNN ReversibleEmbedding".split())  # sum over the last axis
_WINDOWS = frozenset("Conv1D Conv2D Conv3D".split())
_CHANNELS = frozenset("DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D".split())


@dataclass(frozen=True, eq=False)
class Taken:
    """A linear layer that takes rows of a table.

    Attributes:
        call: of the layer.
        linear: its weight.
    """

    call: Call
    linear: LinearView

    def columns(self, features: int) -> np.ndarray:
        """Vectors ``[n, D]`` whose products summed up are W W^T."""
        weight = to_numpy(weights_of(self.call.op)[self.linear.weight])
        matrix = self.linear.view.matrix(weight).astype(np.float64)
        if self.linear.view.group_axes:  # each feature has weights of its own
            return np.diag(np.sqrt(np.sum(matrix**2, axis=(1, 2)).reshape(-1, features).sum(axis=0)))
        return matrix.reshape(-1, features, matrix.shape[2]).swapaxes(1, 2).reshape(-1, features)


def is_table(call: Call, weight: str) -> bool:
    """Whether a weight is the table of a layer that looks rows up."""
    return call.builtin_kind in _KINDS and weight == _TABLE


def consumers_of(graph: Graph, op: Any) -> list[Taken]:
    """The linear layers that take what is looked up in a table; none where anything else takes it too.

    On the way it may go through dropout, reshaping, averages of places, and the addition of another tensor.
    """
    consumers, outputs = graph.consumers(), {id(value) for value in graph.flat_outputs()}
    found: list[Taken] = []
    left = [(call.outputs[0], 1) for call in graph.calls_of().get(id(op), []) if looks_up(call)]
    seen: set[int] = set()
    while left:
        value, places = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        takers = consumers.get(id(value), [])
        if id(value) in outputs or not takers:
            return []
        for call in takers:
            taken = _taken(call, value)
            if taken is not None:
                found.append(taken)
                continue
            behind = _places_behind(call, value, places)
            if behind is None:
                return []
            left.append((call.outputs[0], behind))
    return found


def _places_behind(call: Call, value: Value, places: int) -> int | None:
    """How many rows lie side by side along the last axis of what a call makes of a value; None where it doesn't pass rows."""
    if getattr(call.op, "data_format", "channels_last") != "channels_last":
        return None
    before, after = value.shape[-1], call.outputs[0].shape[-1]
    if before is None or after is None:
        return None
    if call.builtin_kind in _MOVES:
        return places * after // before if after % (before // places) == 0 else None
    return places if call.builtin_kind in _PASSES and before == after else None


def _taken(call: Call, value: Value) -> Taken | None:
    """The call as a linear layer whose features are those of rows."""
    if [v is value for v in call.inputs] != [True] or getattr(
        call.op, "data_format", "channels_last"
    ) != "channels_last":
        return None
    kind = call.builtin_kind
    for linear in linear_views(call):
        view = linear.view
        if kind == "EinsumDense":
            source, kernel = call.op.equation.replace(" ", "").split("->")[0].split(",")
            last = len(view.input_axes) == 1 and kernel[view.input_axes[0]] == source[-1] and not view.group_axes
            return Taken(call, linear) if last else None
        if kind in _LAST or kind in _CHANNELS or (kind in _WINDOWS and view.groups == 1):
            return Taken(call, linear)
    return None


def with_tables(graph: Graph, sites: Iterable[WeightSite]) -> tuple[list[WeightSite], dict[str, list[Taken]]]:
    """The sites, those of tables seen as weights of the layers behind them, and those layers by the site's key."""
    done, found = [], {}
    calls = {id(call.op): call for call in graph.calls}
    for site in sites:
        if site.linear is None and is_table(calls[id(site.op)], site.weight):
            takers = consumers_of(graph, site.op)
            if takers:
                found[site.key] = takers
                rows = LinearView(site.weight, MatrixView(site.array.shape, (1,), (0,)), _as_rows)
                site = replace(site, linear=rows)
        done.append(site)
    return done, found


def _as_rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, 1, x.shape[-1])


def table_moments(site: WeightSite, takers: list[Taken]) -> Moments:
    """What stands for the moments of the inputs of ``E^T``: W W^T, but for a factor, of all layers that take rows.

    Example:
        With one Dense layer behind the table, the output error of the table is the mean squared error of that layer's outputs.
    """
    features = prod(site.array.shape[1:])
    moments = Moments(1, features)
    moments.update(np.concatenate([taker.columns(features) for taker in takers])[:, None, :])
    return moments
