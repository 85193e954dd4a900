"""emulate: what a runtime will answer, computed here, bit for bit."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from qi.errors import ConfigError
from qi.ir import QGraph, run
from qi.ir.kinds import TARGETS
from qi.ir.lowered import in_real_numbers, shown
from qi.ir.routing import route
from qi.keras.data import batches, count_batches
from qi.keras.graph import flatten_model
from qi.keras.lower import lower
from qi.keras.lowering import real_dtype

__all__ = ["emulate", "float_graph", "in_real_numbers", "model_inputs", "named_outputs"]


def emulate(
    qmodel: keras.Model,
    x: Any,
    target: str = "litert",
    *,
    raw: bool = False,
    integer_only: bool = False,
    packed: bool = False,
    dynamic: bool = True,
    batch_size: int = 64,
    progress: bool = True,
) -> Any:
    """What a runtime answers once a quantized model is deployed there, by that runtime's own integer arithmetic.

    The model's own ``predict`` emulates quantization with real numbers between the quantizers; kernels of runtimes sum integers
    and round once more, which moves some results by a step. This computes what they compute.

    Args:
        qmodel: from `qi.quantize_model` or `qi.convert`.
        x: samples, as ``predict`` takes them: an array, a list or dict of arrays, or an iterable of batches.
        target: "litert" (LiteRT with XNNPACK), "onnxruntime", or "reference" (LiteRT's reference kernels, as on
            microcontrollers).
        raw: the codes themselves (int8; uint8 for ONNX Runtime) in place of what they stand for. Outputs that stay in float are
            given as they are.
        integer_only: no float islands where there is a way in integers; this and the next two as of `qi.export`. Exports of
            plain integers have none.
        packed: whether weights below 8 bits are packed everywhere, which other kernels of LiteRT may compute.
        dynamic: whether Dense layers whose weights alone are quantized round their activations row by row, where the target has a
            kernel for that.
        batch_size: for arrays.
        progress: whether to show a progress bar.

    Returns:
        float32 arrays (codes with `raw`) in the structure of the model's outputs.

    Raises:
        ConfigError: an unknown target.
        UnsupportedError: a float model, one that still trains, or a layer that can't be lowered.
        InputError: samples that don't fit the model.

    Example:
        >>> import keras, numpy as np, qi
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> qmodel, _ = qi.quantize_model(model, "w8a8", x, progress=False)
        >>> y = qi.emulate(qmodel, x, "litert", progress=False)
        >>> y.shape, bool(abs(y - qmodel.predict(x, verbose=0)).max() < 0.1)
        ((64, 2), True)
    """
    if not isinstance(target, str) or target not in TARGETS:
        raise ConfigError(f"expected target to be one of {sorted(TARGETS)}; received target={target!r}")
    routed = route(lower(qmodel), target, integer_only=integer_only, packed=packed, dynamic=dynamic)
    graph = flatten_model(qmodel)
    bar = keras.utils.Progbar(count_batches(x, batch_size), unit_name="batch", verbose=int(progress))
    parts: list[list[np.ndarray]] = []
    for flat, _ in batches(x, graph, batch_size, "samples"):
        found = run(routed, flat)
        parts.append([shown(tensor, found[tensor.name], target, raw) for tensor in routed.outputs])
        bar.update(len(parts), finalize=False)
    bar.update(len(parts), finalize=True)
    arrays = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    nested = keras.tree.pack_sequence_as(graph.outputs, arrays)
    single = isinstance(nested, (list, tuple)) and len(nested) == 1
    return nested[0] if single else nested  # as Keras' own models do


def model_inputs(qmodel: keras.Model, x: Any, batch_size: int = 64) -> list[np.ndarray]:
    """Samples as one array for each of a model's inputs, in the type that a file takes: that of the model's input.

    Raises:
        InputError: samples that don't fit the model.
    """
    graph = flatten_model(qmodel)
    parts = [flat for flat, _ in batches(x, graph, batch_size, "samples to compare on")]
    dtypes = [real_dtype(value.dtype) for value in graph.flat_inputs()]
    columns = zip(*parts, strict=True)
    return [np.concatenate(arrays).astype(dtype, copy=False) for arrays, dtype in zip(columns, dtypes, strict=True)]


def named_outputs(qmodel: keras.Model, outputs: Any) -> dict[str, Any]:
    """What `emulate` gives, or ``predict``, by the names of the outputs."""
    return dict(zip(flatten_model(qmodel).output_names, keras.tree.flatten(outputs), strict=True))


def float_graph(qmodel: keras.Model) -> QGraph:
    """The same operations with the same weights, all in real numbers: what an export without quantization would hold."""
    return in_real_numbers(lower(qmodel, fused=False))
