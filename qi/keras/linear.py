"""Layers that multiply their input with a weight: the weight as matrices, and the input as rows of features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from qi.algorithms import MatrixView
from qi.keras.graph import Call, looks_up

__all__ = ["LinearView", "linear_views"]

Rows = Callable[[np.ndarray], np.ndarray]

_CONVOLUTIONS = ("Conv1D", "Conv2D", "Conv3D")
_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
_TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_SEPARABLE = ("SeparableConv1D", "SeparableConv2D")
_RECURRENT = {"LSTM": "lstm_cell", "GRU": "gru_cell", "SimpleRNN": "simple_rnn_cell"}
# Places of one sample that are looked at: neighbours tell nearly the same, and a layer has to learn K^2 numbers of them.
_PLACES = 64


@dataclass(frozen=True, eq=False)
class LinearView:
    """One weight of a layer that multiplies the layer's first input.

    Attributes:
        weight: its path.
        view: the weight as matrices.
        rows: turns an array of inputs ``[batch, ...]`` into rows ``[n, G, K]`` in the order of the view's features.
        bias: the path of the bias that is added to the products, of one number each of the G * N outputs; None where there is
            none.
    """

    weight: str
    view: MatrixView
    rows: Rows
    bias: str | None = None


def linear_views(call: Call) -> list[LinearView]:
    """The weights of a built layer of Keras' own that multiply its input, each as a view; none for all other operations.

    Of a separable convolution that is the depthwise part, of a recurrent layer the kernel of the inputs: what else multiplies in
    there multiplies something that isn't the layer's input. A table is one where it is turned round, not where it is looked up
    in.
    """
    op, kind = call.op, call.builtin_kind
    if kind == "Dense":
        return [_linear(op, "kernel", (0,), (1,), _dense_rows)]
    if kind == "EinsumDense":
        return _einsum(op)
    if kind in _CONVOLUTIONS:
        return [_convolution(op)]
    if kind in _DEPTHWISE:
        return [_depthwise(op, "kernel", "bias" if op.use_bias else None)]
    if kind in _SEPARABLE:
        return [_depthwise(op, "depthwise_kernel", None)]
    if kind in _TRANSPOSED:
        rank = len(op.kernel.shape)
        return [_linear(op, "kernel", (rank - 1,), tuple(range(rank - 1)), _places(op, _dense_rows), with_bias=False)]
    if kind in _RECURRENT:
        kernel = op.cell.kernel
        return [LinearView(f"{_RECURRENT[kind]}/kernel", MatrixView(tuple(kernel.shape), (0,), (1,)), _dense_rows)]
    return [_reversed(op)] if kind == "ReversibleEmbedding" and not looks_up(call) else []


def _reversed(op: Any) -> LinearView:
    """The product with a table turned round, or with one that is so already."""
    name, inputs, outputs = ("embeddings", (1,), (0,)) if op.tie_weights else ("reverse_embeddings", (0,), (1,))
    return _linear(op, name, inputs, outputs, _dense_rows)


def _linear(
    op: Any, weight: str, inputs: tuple[int, ...], outputs: tuple[int, ...], rows: Rows, *, with_bias: bool = True
) -> LinearView:
    bias = "bias" if with_bias and getattr(op, "bias", None) is not None else None
    return LinearView(weight, MatrixView(tuple(getattr(op, weight).shape), inputs, outputs), rows, bias)


def _dense_rows(x: np.ndarray) -> np.ndarray:
    """The last axis are the features; of many places some are looked at."""
    rows = x.reshape(len(x), -1, x.shape[-1])
    picked = _picked(rows.shape[1])
    return rows[:, picked].reshape(-1, 1, x.shape[-1])


def _picked(places: int) -> np.ndarray | slice:
    """Some places of many, spread over all: the same for every batch, and not on a line of the raster."""
    if places <= _PLACES:
        return slice(None)
    return np.sort(np.random.default_rng(places).choice(places, _PLACES, replace=False))


def _places(op: Any, rows: Rows) -> Rows:
    """Rows of an image whose channels may come first."""
    if getattr(op, "data_format", "channels_last") == "channels_last":
        return rows
    return lambda x: rows(np.moveaxis(x, 1, -1))


def _convolution(op: Any) -> LinearView:
    shape = tuple(op.kernel.shape)
    rank = len(shape)
    view = MatrixView(shape, tuple(range(rank - 1)), (rank - 1,), groups=op.groups)

    def rows(x: np.ndarray) -> np.ndarray:
        patches = _patches(x, op)
        split = patches.reshape(len(patches), -1, op.groups, patches.shape[-1] // op.groups)
        return split.transpose(0, 2, 1, 3).reshape(len(patches), op.groups, -1)

    return LinearView("kernel", view, _places(op, rows), "bias" if op.use_bias else None)


def _depthwise(op: Any, weight: str, bias: str | None) -> LinearView:
    shape = tuple(getattr(op, weight).shape)
    rank = len(shape)
    view = MatrixView(shape, tuple(range(rank - 2)), (rank - 1,), group_axes=(rank - 2,))

    def rows(x: np.ndarray) -> np.ndarray:
        patches = _patches(x, op)
        return patches.reshape(len(patches), -1, patches.shape[-1]).swapaxes(1, 2)

    return LinearView(weight, view, _places(op, rows), bias)


def _patches(x: np.ndarray, op: Any) -> np.ndarray:
    """``[n, *window, channels]``: what the window sees at some places of every sample."""
    sizes, rank = x.shape[1:-1], x.ndim - 2
    window, strides, rates = (
        _each(value, rank) for value in (op.kernel_size, op.strides, getattr(op, "dilation_rate", 1))
    )
    reach = [(k - 1) * rate + 1 for k, rate in zip(window, rates, strict=True)]
    padding = op.padding
    counts, pads = [], []
    for size, stride, r in zip(sizes, strides, reach, strict=True):
        if padding == "same":
            count = -(-size // stride)
            missing = max((count - 1) * stride + r - size, 0)
            pads.append((missing // 2, missing - missing // 2))
        else:
            before = r - 1 if padding == "causal" else 0
            count = (size + before - r) // stride + 1
            pads.append((before, 0))
        counts.append(count)
    padded = np.pad(x, [(0, 0), *pads, (0, 0)])
    places = np.unravel_index(np.arange(math.prod(counts))[_picked(math.prod(counts))], counts)
    index: list[np.ndarray] = []
    for axis, (place, stride, k, rate) in enumerate(zip(places, strides, window, rates, strict=True)):
        along = place[:, None] * stride + np.arange(k)[None, :] * rate
        index.append(along.reshape(len(place), *(k if other == axis else 1 for other in range(rank))))
    where: tuple[Any, ...] = (slice(None), *index)
    found = padded[where]  # [batch, places, *window, channels]
    return found.reshape(-1, *window, x.shape[-1])


def _each(value: Any, rank: int) -> tuple[int, ...]:
    return (int(value),) * rank if isinstance(value, int) else tuple(int(v) for v in value)[:rank]


def _einsum(op: Any) -> list[LinearView]:
    """An EinsumDense: summed axes are inputs, axes of the kernel alone are outputs, those of both operands are independent."""
    left, result = op.equation.replace(" ", "").split("->")
    source, kernel = left.split(",")
    if any(len(set(part)) != len(part) for part in (source.replace("...", ""), kernel)) or "..." in kernel:
        return []
    inputs = [label for label in kernel if label not in result]
    shared = [label for label in kernel if label in result and label in source]
    outputs = [label for label in kernel if label in result and label not in source]
    if not inputs or any(label not in source for label in inputs):
        return []
    if any(label not in kernel + result for label in source):
        return []  # summed over places as well: no place gives an output of its own
    view = MatrixView(
        tuple(op.kernel.shape),
        tuple(kernel.index(label) for label in inputs),
        tuple(kernel.index(label) for label in outputs),
        tuple(kernel.index(label) for label in shared),
    )

    def rows(x: np.ndarray) -> np.ndarray:
        before, _, after = source.partition("...")
        axes = {label: place for place, label in enumerate(before)}
        axes |= {label: x.ndim - len(after) + place for place, label in enumerate(after)} if "..." in source else {}
        taken = [axes[label] for label in (*shared, *inputs)]
        rest = [axis for axis in range(x.ndim) if axis not in taken]
        ordered = x.transpose([*rest, *taken]).reshape(-1, view.sizes[0], view.sizes[1])
        return ordered[_picked_rows(len(ordered), len(x))]

    biased = (
        op.bias is not None
        and {*op.bias_axes} <= {*shared, *outputs}
        and math.prod(op.bias.shape) == view.sizes[0] * view.sizes[2]
        and _ordered(result, kernel, [*shared, *outputs])
    )
    return [LinearView("kernel", view, rows, "bias" if biased else None)]


def _ordered(result: str, kernel: str, labels: list[str]) -> bool:
    """Whether the outputs of the view come in the order of the layer's bias."""
    places = [result.index(label) for label in labels]
    return all(a < b for a, b in pairwise(places))


def _picked_rows(rows: int, samples: int) -> np.ndarray | slice:
    most = _PLACES * samples
    return slice(None) if rows <= most else np.sort(np.random.default_rng(rows).choice(rows, most, replace=False))
