"""Bias correction from samples: one walk through the float graph, one through the quantized one, which is corrected on the way.

The walk calls one operation after the other on all samples, so each layer is corrected with all before it corrected, and yet
no layer runs on any sample more than twice (once to see its means, once with its new bias).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np

from qi.algorithms import empirical_bias_correction
from qi.errors import InputError
from qi.keras.data import batches
from qi.keras.graph import Call, Graph
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.prepare import Prepared
from qi.keras.running import fixed_batch
from qi.keras.variables import to_numpy, weights_of
from qi.quantizers import BaseInferableQuantizer

__all__ = ["correct_biases", "output_means", "samples_of", "why_not"]

_KINDS = frozenset(
    "Dense EinsumDense Conv1D Conv2D Conv3D DepthwiseConv1D DepthwiseConv2D Conv1DTranspose Conv2DTranspose Conv3DTranspose "
    "SeparableConv1D SeparableConv2D".split()
)
_HELD_ELEMENTS = 2**27  # of values held at once: 512 MiB
_BATCH = 64

Means = Mapping[int, np.ndarray]
"""Of a layer's outputs before the activation, in the shape of its bias, by ``id(op)``."""


def why_not(graph: Graph, op: Any) -> str:
    """Why a layer's bias can't take what its outputs are off by; "" where it can."""
    calls = graph.calls_of().get(id(op), [])
    if len(calls) != 1 or calls[0].builtin_kind not in _KINDS:
        return "is called several times" if len(calls) > 1 else "isn't a layer that adds a bias to products"
    if "bias" not in weights_of(op):
        return "has no bias"
    return "has a layer as its activation" if isinstance(getattr(op, "activation", None), keras.layers.Layer) else ""


def samples_of(graph: Graph, data: Any, samples: int) -> list[np.ndarray]:
    """The inputs of the first samples, as many as memory allows, in whole batches of a size that the graph demands.

    Raises:
        InputError: illegal data, or fewer samples than a batch.
    """
    demanded = fixed_batch([value.shape for value in graph.flat_inputs()])
    most = max(1, min(samples, _HELD_ELEMENTS // _most_held(graph)))
    kept: list[list[np.ndarray]] = []
    count = 0
    for flat, number in batches(data, graph, demanded or min(most, _BATCH), "data to correct biases with"):
        kept.append([np.array(array) for array in flat])
        count += number
        if count >= most:
            break
    size = demanded or 1
    usable = max(size, min(count, most) - min(count, most) % size)
    if count < size:
        raise InputError(f"expected whole batches of {size} samples to correct biases with; received {count} samples")
    return [np.concatenate(several)[:usable] for several in zip(*kept, strict=True)]


def _most_held(graph: Graph) -> int:
    """Elements of one sample's values that a walk holds at once, at most."""
    sizes = {id(value): int(np.prod([n or 1 for n in value.shape[1:]])) for value in graph.flat_inputs()}
    uses, held = _uses(graph), sum(sizes.values())
    most = held
    for call in graph.calls:
        made = {id(value): int(np.prod([n or 1 for n in value.shape[1:]])) for value in call.outputs}
        sizes |= made
        held += sum(made.values())
        most = max(most, held)
        for value in call.inputs:
            uses[id(value)] -= 1
            held -= sizes.get(id(value), 0) if not uses[id(value)] else 0
    return max(1, most)


def _uses(graph: Graph) -> Counter[int]:
    """How often each value is taken."""
    return Counter(id(value) for call in graph.calls for value in call.inputs)


def output_means(ready: Prepared, ops: list[Any], inputs: list[np.ndarray]) -> dict[int, np.ndarray]:
    """The means of the outputs of layers before their activations, with the graph as it is and activations in float.

    Args:
        ready: only read.
        ops: layers of its graph of which `why_not` says nothing.
        inputs: samples.
    """
    found: dict[int, np.ndarray] = {}
    wanted = {id(op) for op in ops}

    def see(call: Call, means: Callable[[], np.ndarray]) -> None:
        if id(call.op) in wanted:
            found[id(call.op)] = means()

    _walk(ready.graph, inputs, {}, see)
    return found


def correct_biases(
    ready: Prepared,
    wanted: Means,
    activations: Mapping[int, BaseInferableQuantizer],
    inputs: list[np.ndarray],
) -> dict[int, np.ndarray]:
    """Gives the outputs of layers the means that they are to have, one layer after the other in the order of the graph.

    Quantizers of activations between layers are at work; those within layers that are called as a whole are not.

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019 (arXiv:1906.04721),
    section 4.2.

    Args:
        ready: with weights on their grids; biases are changed.
        wanted: means that `output_means` found before.
        activations: quantizers by ``id(group)``.
        inputs: the same samples.

    Returns:
        what each bias grew by, by ``id(op)``.
    """
    made = {
        id(group): KerasActivationQuantizationHolder(activations[id(group)])
        for group in ready.plan.groups
        if id(group) in activations
    }
    holders = {key: made[id(group)] for key, group in ready.plan.quantized.items() if id(group) in made}
    shifts: dict[int, np.ndarray] = {}

    def see(call: Call, means: Callable[[], np.ndarray]) -> None:
        if id(call.op) not in wanted:
            return
        variable, now = weights_of(call.op)["bias"], means()
        shift = empirical_bias_correction(wanted[id(call.op)].ravel(), now.ravel()).reshape(now.shape)
        bias = to_numpy(variable)
        variable.assign((bias + shift).astype(bias.dtype))
        shifts[id(call.op)] = shift

    _walk(ready.graph, inputs, holders, see)
    return shifts


def _walk(
    graph: Graph,
    inputs: list[np.ndarray],
    holders: Mapping[int, KerasActivationQuantizationHolder],
    see: Callable[[Call, Callable[[], np.ndarray]], None],
) -> None:
    """Calls one operation after the other on all samples; `see` hears of each call ahead of it, and how to get its means."""
    size = fixed_batch([value.shape for value in graph.flat_inputs()]) or _BATCH
    starts = range(0, len(inputs[0]), size)
    known: dict[int, list[Any]] = {}

    def keep(value: Any, tensors: list[Any]) -> None:
        holder = holders.get(id(value))
        known[id(value)] = tensors if holder is None else [_called(holder, (t,), {}) for t in tensors]

    uses = _uses(graph)
    for value, array in zip(graph.flat_inputs(), inputs, strict=True):
        keep(value, [keras.ops.convert_to_tensor(array[at : at + size], dtype=value.dtype) for at in starts])
    for call in graph.calls:
        given = [call.arguments([known[id(value)][i] for value in call.inputs]) for i in range(len(starts))]
        see(call, partial(_means, call, given))
        results = [keras.tree.flatten(_called(call.op, *one)) for one in given]
        for value, tensors in zip(call.outputs, zip(*results, strict=True), strict=True):
            keep(value, list(tensors))
        for value in call.inputs:
            uses[id(value)] -= 1
            if not uses[id(value)]:
                known.pop(id(value), None)


def _called(op: Any, args: Any, kwargs: Any) -> Any:
    """What an operation gives at inference; states stay as they are."""
    if isinstance(op, keras.layers.Layer) and "training" in inspect.signature(op.call).parameters:
        kwargs = {"training": False, **kwargs}
    with keras.StatelessScope():
        return op(*args, **kwargs)


def _means(call: Call, given: list[tuple[Any, Any]]) -> np.ndarray:
    """The mean of a layer's outputs before its activation, float64 in the shape of its bias."""
    shape = tuple(weights_of(call.op)["bias"].shape)
    first = getattr(call.op, "data_format", "channels_last") == "channels_first"
    total, count = np.zeros(shape), 0
    with _linear(call.op):
        for args, kwargs in given:
            y = to_numpy(_called(call.op, args, kwargs)).astype(np.float64)
            y = np.moveaxis(y, 1, -1) if first else y
            lead = y.ndim - len(shape)
            axes = (*range(lead), *(lead + i for i, n in enumerate(shape) if n == 1 and y.shape[lead + i] > 1))
            total += y.mean(axis=axes, keepdims=True).reshape(shape) * len(y)
            count += len(y)
    return total / count


@contextmanager
def _linear(op: Any) -> Iterator[None]:
    """Leaves out a layer's activation for a while."""
    if not hasattr(op, "activation"):
        yield
        return
    before, op.activation = op.activation, keras.activations.linear
    try:
        yield
    finally:
        op.activation = before
