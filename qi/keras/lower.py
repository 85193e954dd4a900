"""From a quantized Keras model to `qi.ir.QGraph`."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from typing import Any

import keras

import qi.keras.lower_activations
import qi.keras.lower_choices
import qi.keras.lower_linear
import qi.keras.lower_norms
import qi.keras.lower_parts
import qi.keras.lower_picks
import qi.keras.lower_products
import qi.keras.lower_recurrent
import qi.keras.lower_shapes
import qi.keras.lower_volumes  # noqa: F401 - the modules register what they lower
from qi.errors import ConfigError, InputError, UnsupportedError
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.lowered import part_outputs, signed_qparams
from qi.ir.passes import fuse
from qi.keras.exact_plain import plain
from qi.keras.graph import Call, Graph, flatten_model
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.lower_activations import CARRIED
from qi.keras.lowering import LOWERINGS, WAY_OUT, Site, real_dtype
from qi.keras.variables import sub_layers
from qi.keras.wrapper import KerasQuantizationWrapper

__all__ = ["lower", "lower_both", "lower_graph"]

_PREPARED = "prepare the data so in front of the model"
_INSTEAD = {
    "": "write what it computes with Keras' layers and keras.ops in the functional graph",
    "Lambda": "write its function with keras.ops in the functional graph",
    "Attention": "use MultiHeadAttention",
    "AdditiveAttention": "use MultiHeadAttention",
    "MultiHeadAttention": "call it without masks",
    "GroupedQueryAttention": "call it without masks",
    "Masking": "leave masks out",
    **dict.fromkeys(("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), "use LSTM or GRU on what convolutions give"),
    **dict.fromkeys("CategoryEncoding Discretization Hashing IntegerLookup StringLookup".split(), _PREPARED),
    **dict.fromkeys("MelSpectrogram STFTSpectrogram AutoContrast RandomCrop".split(), _PREPARED),
    "ContrastLimitedAdaptiveHistogramEqualization": _PREPARED,
}
"""What serves in the place of classes without a lowering."""


def lower(qmodel: keras.Model, *, fused: bool = True) -> QGraph:
    """The integer graph that a quantized model stands for.

    Args:
        qmodel: from `qi.quantize_model` or `qi.convert`, or a model of your own with inferable wrappers and holders. It is
            only read.
        fused: whether to fuse; else operations are on real numbers, with a "quantize" wherever a quantizer sits.

    Returns:
        a valid graph, for any target.

    Raises:
        UnsupportedError: a float model, one that still trains, or a layer that no integer graph can hold; it is named.
        InputError: an unbuilt model, weights off their grid, or scales and biases that aren't finite.

    Example:
        >>> import keras, numpy as np, qi
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu", name="hidden")])
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> qmodel, _ = qi.quantize_model(model, "w8a8", x, progress=False)
        >>> [op.kind for op in qi.lower(qmodel).ops]
        ['quantize', 'dense']
    """
    graph = plain(flatten_model(qmodel))
    _check_quantized(qmodel, graph)
    _open_batch(graph)
    result, _ = lower_graph(graph, fused=fused)
    return result


def lower_both(qmodel: keras.Model) -> tuple[QGraph, QGraph]:
    """(`lower` of a model, the same with ``fused=False``) for the work of one."""
    plain_graph = lower(qmodel, fused=False)
    fused = fuse(plain_graph.copy())
    names = {before.name: after.name for before, after in zip(plain_graph.outputs, fused.outputs, strict=True)}
    fused.output_structure = keras.tree.map_structure(names.__getitem__, plain_graph.output_structure)
    return fused, plain_graph


def lower_graph(graph: Graph, *, fused: bool = True) -> tuple[QGraph, dict[int, Tensor]]:
    """The integer graph of a flat one, and what became of its values, by their ``id``.

    Args:
        graph: of wrappers and holders, which may train still: as they are now. It is only read.
        fused: as of `lower`. What fusing left out isn't in the graph any more.
    """
    tensors = {id(value): Tensor(value.name, value.shape, real_dtype(value.dtype)) for value in graph.flat_inputs()}
    inputs = [tensors[id(value)] for value in graph.flat_inputs()]
    result = QGraph(graph.name, inputs, [], [])
    names = {tensor.name for tensor in inputs}
    for call in graph.calls:
        given = [tensors[id(value)] for value in call.inputs]
        for value, tensor in zip(call.outputs, _sound(call, result, given, names), strict=True):
            tensors[id(value)] = tensor
    result.outputs = [tensors[id(value)] for value in graph.flat_outputs()]
    part_outputs(result, names)
    _name_outputs(result, graph.output_names)
    if fused:
        fuse(result)
    result.input_structure, result.output_structure = (_names(s) for s in _structures(graph, inputs, result.outputs))
    return result, tensors


def _open_batch(graph: Graph) -> None:
    """Makes a batch of fixed size one of any: operations that mix samples are refused in any case."""
    sizes = {value.shape[0] for value in graph.flat_inputs() if value.shape}
    for value in [*graph.flat_inputs(), *(value for call in graph.calls for value in call.outputs)]:
        if len(sizes) == 1 and value.shape and value.shape[0] in sizes:
            value.shape = (None, *value.shape[1:])


def _name_outputs(graph: QGraph, names: Sequence[str]) -> None:
    """Gives outputs the names that Keras has for them, where each has its own; tensors within give way, inputs don't."""
    once = {id(tensor): (tensor, name) for tensor, name in zip(graph.outputs, names, strict=True)} if names else {}
    counts = Counter(name for _, name in once.values())
    for tensor, name in once.values():
        if tensor.name == name or counts[name] > 1:
            continue
        other = next((t for t in graph.tensors() if t.name == name), None)
        if other is not None and all(t is not other for t in graph.inputs):
            other.name = graph.unique(f"{name}/inner")
        tensor.name = graph.unique(name)


def _check_quantized(model: keras.Model, graph: Graph) -> None:
    ops = [call.op for call in graph.calls]
    if not any(isinstance(op, (KerasQuantizationWrapper, KerasActivationQuantizationHolder)) for op in ops):
        raise UnsupportedError(
            f"expected a quantized model; received {model.name!r}, in which nothing is quantized; do give what quantize_model or "
            "convert returns"
        )
    for call in graph.calls:
        trains = isinstance(call.op, KerasQuantizationWrapper) and call.op.trains
        trains = trains or (isinstance(call.op, KerasActivationQuantizationHolder) and call.op.bound.trains)
        if trains:
            raise UnsupportedError(
                f"expected a model that is done with training; received {model.name!r}, in which {call.path!r} still trains; do "
                "call qi.convert first"
            )


def _structures(graph: Graph, inputs: list[Tensor], outputs: list[Tensor]) -> Any:
    pack = keras.tree.pack_sequence_as
    return pack(graph.inputs, inputs), pack(graph.outputs, outputs)


def _names(structure: Any) -> Any:
    """A structure of tensors as one of names, of lists and dicts only."""
    if isinstance(structure, Tensor):
        return structure.name
    if isinstance(structure, dict):
        return {str(key): _names(value) for key, value in structure.items()}
    return [_names(value) for value in structure]


def _sound(call: Call, graph: QGraph, inputs: list[Tensor], names: set[str]) -> list[Tensor]:
    """What `_lowered` gives; scales and zero points that can't be are told of with the layer's name."""
    try:
        return _lowered(call, graph, inputs, names)
    except ConfigError as error:
        raise InputError(f"expected quantizers that can be; received layer {call.path!r}: {error}") from error


def _lowered(call: Call, graph: QGraph, inputs: list[Tensor], names: set[str]) -> list[Tensor]:
    site = Site(call, graph, inputs, names)
    if isinstance(call.op, KerasActivationQuantizationHolder):
        return [_held(site, call.op.bound.current())]
    kind = site.kind
    if kind not in LOWERINGS.names():
        raise site.refuse(*_unknown(site.layer, kind))
    _check_arguments(site)
    site.cast_inputs()
    found = LOWERINGS.get(kind)(site)
    outputs = list(found) if isinstance(found, (list, tuple)) else [found]
    wrapper = call.op if isinstance(call.op, KerasQuantizationWrapper) else None
    held = wrapper.output_quantizers if wrapper is not None else []
    return (
        [_held(site, quantizer, tensor) for quantizer, tensor in zip(held, outputs, strict=True)] if held else outputs
    )


def _unknown(layer: Any, kind: str) -> tuple[str, str]:
    """What is to say of a class without a lowering, and what to do about it."""
    if kind:
        return "which has no lowering", _way_out(kind)
    if isinstance(layer, keras.Layer) and not layer.weights and not sub_layers(layer):
        return (
            "a layer of yours without layers inside, which isn't followed",
            "call its keras.ops in the functional graph itself, or make it of Keras' layers",
        )
    return "which is no layer of Keras' own", _way_out(kind)


def _way_out(kind: str) -> str:
    """What to do about a class without a lowering."""
    if kind.lower() in {name.replace("_", "") for name in dir(keras.activations)}:
        return f"use one of {', '.join(CARRIED)}"
    return _INSTEAD.get(kind, WAY_OUT)


def _check_arguments(site: Site) -> None:
    """What makes a layer compute something else in one call than its configuration says."""
    inner = site.call.op.inner_quantizers if isinstance(site.call.op, KerasQuantizationWrapper) else {}
    if inner:
        raise site.refuse(
            f"which quantizes what {next(iter(inner))!r} gives within it, as no operator of a runtime does",
            "leave that in float by a rule",
        )
    _, options = site.arguments
    if options.get("training") not in (None, False) and not _trains_unless_told(site.layer):
        raise site.refuse("which is called with training=True", "call it without, as in inference")
    if isinstance(site.layer, keras.Layer) and options.get("mask") is not None:
        raise site.refuse("with a mask", "give Embedding mask_zero=False, and no masks")


def _trains_unless_told(layer: Any) -> bool:
    """Whether ``training=True`` is what a layer's own ``call`` says, as those that augment images do: predict tells them."""
    parameter = inspect.signature(layer.call).parameters.get("training")
    return parameter is not None and parameter.default is True


def _held(site: Site, quantizer: Any, tensor: Tensor | None = None) -> Tensor:
    """A "quantize" for what an activation quantizer does."""
    x = site.x if tensor is None else tensor
    if not quantizer.enabled:
        return x
    qparams = quantizer.qparams((1,))
    if qparams.scale.size != 1:
        raise site.refuse("whose activation has several scales", "give it one")
    value = Tensor(site.name(), x.shape, x.dtype, signed_qparams(qparams))
    site.graph.ops.append(Op("quantize", [x], [value], {}, site.call.path))
    return value
