"""What the output of each layer of a quantized model is off: by itself, and with all errors ahead of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest

import qi
from qi.keras.calibrate import run
from qi.keras.graph import build_tensors, flatten_model
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.low_bits import LowBits
from qi.keras.rounding import weight_sites
from qi.keras.variables import to_numpy
from qi.ledger import QuantizationReport

__all__ = ["LayerErrors", "layer_errors"]

_BATCH = 64


@dataclass(frozen=True, eq=False)
class LayerErrors:
    """Errors of layers' outputs ahead of their activations, by path.

    Each is an array: of each channel the mean squared error over the channel's variance in float. So channels that a
    recipe scales, or shifts, stay comparable.

    Attributes:
        own: of the layer alone: its input is the float model's, but for the quantizer that stands ahead of the layer.
        network: of the layer in the quantized model, the errors of all layers ahead of it included.
        variances: of each channel in the float model as this recipe scaled it.
        report: of the quantization.
    """

    own: dict[str, np.ndarray]
    network: dict[str, np.ndarray]
    variances: dict[str, np.ndarray]
    report: QuantizationReport

    def touched_by(self, algorithm: str) -> list[str]:
        """The layers a weight of which the algorithm worked on."""
        return [
            path
            for path in self.own
            for row in self.report.rows
            if row.kind == "weight" and row.layer == path and algorithm in (row.algorithms or "").split(", ")
        ]


def layer_errors(model: keras.Model, recipe: qi.Recipe, x: np.ndarray) -> LayerErrors:
    """Quantizes a model, calibrated on x, and measures every layer that has quantized weights, on x as well."""
    floats: dict[str, tuple[Any, np.ndarray, np.ndarray]] = {}
    known = LowBits.round

    def see(low_bits: LowBits, *args: Any, **kwargs: Any) -> Any:
        """The float graph, folded and scaled, just before its weights are rounded."""
        graph = low_bits.ready.graph
        weighted = {id(site.op) for site in weight_sites(low_bits.ready)}
        calls = [call for call in graph.calls if id(call.op) in weighted]
        inputs = run(graph, build_tensors(graph), [call.inputs[0] for call in calls])([x])
        for call, given in zip(calls, inputs, strict=True):
            with _linear(call.op):
                floats[call.path] = (call.op, given, _output(call.op, given))
        return known(low_bits, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LowBits, "round", see)
        quantized, report = qi.quantize_model(model, recipe, x, progress=False)
    graph = flatten_model(quantized)
    makers = {id(value): call.op for call in graph.calls for value in call.outputs}
    calls = {id(call.op.layer): call for call in graph.calls if hasattr(call.op, "layer")}
    wrapped = {path: calls[id(op)] for path, (op, _, _) in floats.items()}
    inputs = run(graph, build_tensors(graph), [call.inputs[0] for call in wrapped.values()])([x])
    found = LayerErrors({}, {}, {}, report)
    for (path, call), given in zip(wrapped.items(), inputs, strict=True):
        op, alone, wanted = floats[path]
        ahead = makers.get(id(call.inputs[0]))
        alone = _output(ahead, alone) if isinstance(ahead, KerasActivationQuantizationHolder) else alone
        axes = tuple(range(wanted.ndim - 1))
        variance = found.variances[path] = wanted.var(axis=axes)
        alive = variance > 1e-9 * variance.max()
        with _linear(op):
            for errors, taken in ((found.own, alone), (found.network, given)):
                squares = ((_output(call.op, taken) - wanted) ** 2).mean(axis=axes)
                errors[path] = np.divide(squares, variance, out=np.zeros_like(squares), where=alive)
    return found


def _output(op: Any, x: np.ndarray) -> np.ndarray:
    return np.concatenate([to_numpy(op(x[at : at + _BATCH])) for at in range(0, len(x), _BATCH)]).astype(np.float64)


@contextmanager
def _linear(op: Any) -> Iterator[None]:
    """Leaves out a layer's activation for a while."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(op, "activation"):
            patch.setattr(op, "activation", keras.activations.linear)
        yield
