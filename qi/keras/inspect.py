"""What a model consists of: layers, shapes, parameters, and which of them are quantized, how."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import keras
import numpy as np

from qi.core import QTensor
from qi.errors import InputError, UnsupportedError
from qi.keras.exact_plain import plain
from qi.keras.graph import flatten_model
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.variables import check_model, weights_of
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.ledger.numbers import format_bytes, format_number, format_ratio, format_share
from qi.ledger.outcomes import describe_granularity
from qi.ledger.table import table
from qi.quantizers import BaseInferableQuantizer
from qi.typing import Json

__all__ = ["Inspection", "LayerInfo", "TensorInfo", "inspect_model"]

_HEADER = ("layer", "type", "output", "tensor", "shape", "codes", "scale", "bytes")
_NOTHING = "-"


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One weight of a layer, or one of its outputs where that is quantized.

    Attributes:
        name: the weight's path within its layer, or "output", "output:1"...
        kind: "weight" or "activation".
        dtype: what it is computed in.
        shape: of a weight; None for an activation.
        bits: of a code; None in float, as are the four below.
        method: "symmetric", "uniform", ...
        granularity: how scales are shared, in words.
        scale_min: the least scale.
        scale_max: the greatest scale.
        float_bytes: a weight's size in `dtype`.
        stored_bytes: its size in a saved file: packed codes with their scales, once it is frozen.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...] | None = None
    bits: int | None = None
    method: str | None = None
    granularity: str | None = None
    scale_min: float | None = None
    scale_max: float | None = None
    float_bytes: int | None = None
    stored_bytes: int | None = None

    @property
    def quantized(self) -> bool:
        """Whether it has codes."""
        return self.bits is not None

    def cells(self) -> tuple[str, ...]:
        """Name, shape, codes, scale and size as text."""
        shape = _NOTHING if self.shape is None else _shape_text(self.shape)
        size = format_bytes(self.float_bytes)
        if not self.quantized:
            return self.name, shape, self.dtype, _NOTHING, size
        codes = f"{self.bits} bits {self.method}, {self.granularity}".replace("_", " ")
        scale = format_number(self.scale_min)
        if self.scale_max != self.scale_min:
            scale = f"{scale} .. {format_number(self.scale_max)}"
        if self.stored_bytes is not None:
            size = f"{size} -> {format_bytes(self.stored_bytes)}"
        return self.name, shape, codes, scale, size


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One layer or operation.

    Attributes:
        path: its place in the model, as "backbone/conv1".
        type: its class; of a wrapper, the class of the wrapped layer.
        outputs: shape of each output, None for open sizes; empty where it isn't known.
        parameters: how many numbers its weights hold; scales and zero points don't count.
        frozen: of a wrapper, whether the weights are quantized once and for all; None for any other layer.
        tensors: its weights, and its outputs where these are quantized.
    """

    path: str
    type: str
    outputs: tuple[tuple[int | None, ...], ...] = ()
    parameters: int = 0
    frozen: bool | None = None
    tensors: tuple[TensorInfo, ...] = ()

    def rows(self) -> list[tuple[str, ...]]:
        """One row of text a tensor; the layer itself stands in the first."""
        own = (self.path, self.type, ", ".join(map(_shape_text, self.outputs)) or _NOTHING)
        cells = [tensor.cells() for tensor in self.tensors] or [(_NOTHING,) * 5]
        return [(*(own if index == 0 else ("", "", "")), *row) for index, row in enumerate(cells)]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a model consists of; prints as a table.

    Attributes:
        model: its name.
        layers: in the order of the model.
    """

    model: str
    layers: tuple[LayerInfo, ...]

    @property
    def parameters(self) -> int:
        """How many numbers all weights hold."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def weights(self) -> tuple[TensorInfo, ...]:
        """All weights."""
        return tuple(t for layer in self.layers for t in layer.tensors if t.kind == "weight")

    @property
    def quantized_activations(self) -> int:
        """How many tensors between layers have a quantizer."""
        return sum(t.kind == "activation" for layer in self.layers for t in layer.tensors)

    @property
    def unquantized(self) -> tuple[str, ...]:
        """Paths of the weights in float, as "stem/bias"."""
        return tuple(f"{layer.path}/{t.name}" for layer in self.layers for t in layer.tensors if not t.quantized)

    @property
    def float_bytes(self) -> int:
        """Size of all weights as they are computed with."""
        return sum(t.float_bytes or 0 for t in self.weights)

    @property
    def stored_bytes(self) -> int:
        """Size of all weights as they are saved."""
        return sum(t.stored_bytes or 0 for t in self.weights)

    @property
    def is_quantized(self) -> bool:
        """Whether anything in it is quantized."""
        return any(t.quantized for layer in self.layers for t in layer.tensors)

    def header(self) -> tuple[str, ...]:
        """Titles of the columns of `rows`."""
        return _HEADER

    def rows(self) -> list[tuple[str, ...]]:
        """The table: one row a tensor, or a layer that has none."""
        return [row for layer in self.layers for row in layer.rows()]

    def summary(self) -> str:
        """The totals in two lines."""
        codes = [t for t in self.weights if t.quantized]
        share = sum(t.float_bytes or 0 for t in codes) / self.float_bytes if self.float_bytes else None
        ratio = self.stored_bytes / self.float_bytes if self.float_bytes else None
        first = f"{self.model}: {self.parameters:,} parameters in {len(self.layers)} layers"
        size = format_bytes(self.float_bytes)
        if not self.is_quantized:
            return f"{first}\nnothing is quantized; the weights take {size}"
        return (
            f"{first}\n{len(codes)} of {len(self.weights)} weights quantized ({format_share(share)} of their bytes, "
            f"{size} -> {format_bytes(self.stored_bytes)}, {format_ratio(ratio)}); "
            f"{self.quantized_activations} activation quantizers"
        )

    def to_dict(self) -> Json:
        """Everything as plain JSON values."""
        names = ("parameters", "float_bytes", "stored_bytes", "quantized_activations")
        return {
            "model": self.model,
            **{name: getattr(self, name) for name in names},
            "quantized_weights": sum(t.quantized for t in self.weights),
            "weights": len(self.weights),
            "unquantized": list(self.unquantized),
            "layers": [asdict(layer) for layer in self.layers],
        }

    def __str__(self) -> str:
        return f"{self.summary()}\n\n{table(_HEADER, self.rows(), left=7)}"


def inspect_model(model: keras.Model) -> Inspection:
    """Lists the layers of a model with what is quantized in them, and how.

    Args:
        model: any built Keras model, quantized or not; it is only read. Nested models are listed layer by layer.

    Raises:
        InputError: not a Keras model, one that isn't built, or frozen weights that were changed since.

    Example:
        >>> import keras, qi
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> quantized, _ = qi.quantize_model(model, "w4")
        >>> found = qi.inspect_model(quantized)
        >>> found.unquantized, [(t.name, t.bits, t.stored_bytes) for t in found.weights]
        (('head/bias',), [('kernel', 4, 32), ('bias', None, 16)])
    """
    check_model(model)
    if not model.built:
        raise InputError(f"expected a built model; received {model.name!r}; do give it an Input, or call it once")
    try:
        graph = plain(flatten_model(model))
    except (InputError, UnsupportedError):  # it defines its own call: no graph to follow, but its layers are known
        own, *parts = _composite(model, {"path": model.name, "type": type(model).__name__}, "")
        return Inspection(model=model.name, layers=(own, *parts) if own.tensors else tuple(parts))
    layers = [LayerInfo(path=v.name, type="InputLayer", outputs=(v.shape,)) for v in graph.flat_inputs()]
    for calls in graph.calls_of().values():
        layers += _visit(calls[0].op, calls[0].path, tuple(value.shape for value in calls[0].outputs))
    return Inspection(model=model.name, layers=tuple(layers))


def _visit(op: Any, path: str, outputs: tuple[Any, ...] = ()) -> Iterator[LayerInfo]:
    """The layer itself, and its parts where there is something to see in them."""
    info: dict[str, Any] = {"path": path, "type": type(op).__name__, "outputs": outputs}
    if isinstance(op, KerasQuantizationWrapper):
        yield _wrapped(op, info)
    elif isinstance(op, KerasActivationQuantizationHolder):
        yield LayerInfo(**info, tensors=(_activation("output", op.bound.current()),))
    elif isinstance(op, keras.Model) or _holds_quantizers(op):
        yield from _composite(op, info, f"{path}/")
    else:
        weights = _weights(op) if isinstance(op, keras.layers.Layer) else {}
        tensors = tuple(_in_float(name, variable) for name, variable in weights.items())
        yield LayerInfo(**info, parameters=_count(weights), tensors=tensors)


def _composite(layer: Any, info: dict[str, Any], prefix: str) -> Iterator[LayerInfo]:
    """The layer with the weights that are its own, then its parts."""
    # No public name lists the direct parts of a layer that isn't a model.
    parts = list(layer._flatten_layers(include_self=False, recursive=False))
    inner = {id(variable) for part in parts for variable in part.variables}
    own = {name: variable for name, variable in _weights(layer).items() if id(variable) not in inner}
    tensors = tuple(_in_float(name, variable) for name, variable in own.items())
    yield LayerInfo(**info, parameters=_count(own), tensors=tensors)
    for part in parts:
        yield from _visit(part, prefix + part.name)


def _holds_quantizers(op: Any) -> bool:
    ours = (KerasQuantizationWrapper, KerasActivationQuantizationHolder)
    return isinstance(op, keras.layers.Layer) and any(
        isinstance(part, ours) for part in op._flatten_layers(include_self=False, recursive=True)
    )


def _weights(layer: Any) -> dict[str, Any]:
    """A layer's variables by path, without the states of random generators."""
    return {path: v for path, v in weights_of(layer).items() if "seed_generator" not in path}


def _count(weights: dict[str, Any]) -> int:
    return sum(prod(variable.shape) for variable in weights.values())


def _in_float(name: str, variable: Any) -> TensorInfo:
    shape, dtype = tuple(variable.shape), str(keras.backend.standardize_dtype(variable.dtype))
    size = prod(shape) * np.dtype(dtype).itemsize
    return TensorInfo(name=name, kind="weight", dtype=dtype, shape=shape, float_bytes=size, stored_bytes=size)


def _wrapped(wrapper: KerasQuantizationWrapper, info: dict[str, Any]) -> LayerInfo:
    weights = _weights(wrapper.layer)
    coded, quantizers = wrapper.get_quantized_tensors(), wrapper.quantizers
    tensors = []
    for name, variable in weights.items():
        plain = _in_float(name, variable)
        tensors.append(_in_codes(plain, coded[name], quantizers[name], wrapper.frozen) if name in coded else plain)
    outputs = wrapper.output_quantizers
    tensors += [_activation("output" + (f":{i}" if i else ""), quantizer) for i, quantizer in enumerate(outputs)]
    kind = type(wrapper.layer).__name__
    return LayerInfo(
        **(info | {"type": kind}), parameters=_count(weights), frozen=wrapper.frozen, tensors=tuple(tensors)
    )


def _in_codes(plain: TensorInfo, tensor: QTensor, quantizer: BaseInferableQuantizer, frozen: bool) -> TensorInfo:
    stored = tensor.nbytes if frozen else (plain.float_bytes or 0) + tensor.qparams.scale.nbytes
    described = _described(quantizer, len(tensor.shape), tensor.qparams.scale)
    return TensorInfo(**(asdict(plain) | described | {"stored_bytes": stored}))


def _activation(name: str, quantizer: BaseInferableQuantizer) -> TensorInfo:
    scale = quantizer.parameters((1,))["scale"]
    return TensorInfo(name=name, kind="activation", dtype="float32", **_described(quantizer, 1, scale))


def _described(quantizer: BaseInferableQuantizer, rank: int, scale: np.ndarray) -> dict[str, Any]:
    return {
        "bits": quantizer.num_bits,
        "method": quantizer.quantization_method[0].value,
        "granularity": describe_granularity(quantizer, rank),
        "scale_min": float(scale.min()),
        "scale_max": float(scale.max()),
    }


def _shape_text(shape: Iterable[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"
