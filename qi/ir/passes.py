"""From operations on real numbers with quantizers between them to fused integer operations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qi.core import IntGrid, PerGroup, QParams
from qi.errors import InputError
from qi.ir.arithmetic import scale_of_sums
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.kinds import KINDS
from qi.ir.linear import LINEAR
from qi.ir.validate import validate

__all__ = ["PASSES", "SMALLEST", "fuse", "most_steps"]

_TAKES_ACTIVATION = LINEAR | {"add", "sub", "mul"}
_MOVES = ("reshape", "transpose", "slice")
_INT32 = np.iinfo(np.int32)
SMALLEST = float(np.finfo(np.float32).tiny)
"""Of scales of sums: below, kernels flush them to 0."""


def most_steps(bits: int) -> float:
    """What a bias may come to in steps of its sums: fewer beside packed weights, for XNNPACK shifts those sums by 4 bits."""
    return 2.0**30 if bits > 4 else 2.0**26


def fuse(graph: QGraph) -> QGraph:
    """Runs all passes on a graph, in place.

    Args:
        graph: as a front end makes it: operations on real numbers, "quantize" wherever a quantizer sits.

    Returns:
        the graph, valid.

    Raises:
        InputError: the result breaks a law of `qi.ir.validate`.
    """
    for step in PASSES:
        step(graph)
    validate(graph)
    return graph


def fold_padding(graph: QGraph) -> None:
    """Zeros around an image become the convolution's own."""
    for op in list(graph.ops):
        pads = op.attrs.get("pads")
        if op.kind not in ("conv2d", "depthwise_conv2d") or pads is None:
            continue
        before = graph.producers().get(id(op.x))
        if before is None or before.kind != "pad" or not _only(graph, op.x, op):
            continue
        batch, rows, columns, channels = before.attrs["pads"]
        if any(batch) or any(channels):
            continue
        op.attrs["pads"] = [int(a + b) for a, b in zip(pads, (*rows, *columns), strict=True)]
        op.inputs[0] = before.x
        graph.ops.remove(before)


def lift_over_reshapes(graph: QGraph) -> None:
    """ReLU and quantizers go in front of what moves or cuts values: next to the convolution or product that these follow."""
    for op in list(graph.ops):
        while op.kind in ("relu", "quantize") and not op.x.quantized:
            before = graph.producers().get(id(op.x))
            if before is None or before.kind not in _MOVES or not _only(graph, op.x, op):
                break
            if before.kind == "slice" and before.x.quantized:
                break  # of codes: fewer change their scale behind it
            name = graph.unique(f"{op.y.name}/{before.x.name.rpartition('/')[2]}")
            lifted = Tensor(name, before.x.shape, op.y.dtype, op.y.qparams)
            op.inputs, op.outputs, before.inputs, before.outputs = [before.x], [lifted], [lifted], op.outputs
            graph.ops.remove(op)
            graph.ops.insert(graph.ops.index(before), op)


def merge_reshapes(graph: QGraph) -> None:
    """A reshape of a reshape is one; one to the shape that is there already is none."""
    for op in list(graph.ops):
        if op.kind != "reshape":
            continue
        before = graph.producers().get(id(op.x))
        if before is not None and before.kind == "reshape" and before.x.qparams == op.x.qparams:
            if _only(graph, op.x, op):
                graph.ops.remove(before)
                graph.merged[before.y.name] = before.x.name
            op.inputs = [before.x]
        if op.x.shape == op.y.shape and all(t is not op.y for t in graph.outputs):
            graph.ops.remove(op)
            graph.substitute(op.y, op.x)
            graph.merged[op.y.name] = op.x.name


def fuse_activations(graph: QGraph) -> None:
    """ReLU and ReLU6 go into the operation before them."""
    for op in list(graph.ops):
        if op.kind != "relu" or op.attrs["max_value"] not in (None, 6):
            continue
        before = graph.producers().get(id(op.x))
        if before is None or not _only(graph, op.x, op) or op.x.quantized:
            continue
        if before.kind in _TAKES_ACTIVATION and before.attrs["activation"] == "none":
            before.attrs["activation"] = "relu" if op.attrs["max_value"] is None else "relu6"
            before.outputs = op.outputs
            graph.ops.remove(op)


def fuse_quantizers(graph: QGraph) -> None:
    """An operation all of whose inputs are codes gives codes itself, where a quantizer follows it."""
    for op in list(graph.ops):
        if op.kind != "quantize" or op.x.quantized or op.x.constant:
            continue
        before = graph.producers().get(id(op.x))
        if before is None or not _only(graph, op.x, op) or len(before.outputs) > 1 or before.kind == "dequantize":
            continue
        if _takes_codes(before) and not (KINDS.get(before.kind).moves and _moved_qparams(before) != op.y.qparams):
            before.outputs = op.outputs
            graph.ops.remove(op)


def inherit_scales(graph: QGraph) -> None:
    """What only moves or chooses codes gives codes; a quantizer with the scale that its input has already does nothing."""
    for op in list(graph.ops):
        keeps = KINDS.get(op.kind).moves or op.kind in ("maximum", "minimum")
        if keeps and not op.y.quantized and op.y.dtype.startswith("float"):
            qparams = _moved_qparams(op)
            for tensor in op.outputs if qparams is not None else ():
                tensor.qparams = qparams
        if op.kind == "quantize" and op.x.qparams is not None and op.x.qparams == op.y.qparams:
            graph.ops.remove(op)
            graph.substitute(op.y, op.x)


def quantize_constants(graph: QGraph) -> None:
    """The number that an integer operation adds or multiplies with: one symmetric scale, its largest value at 127."""
    for op in graph.ops:
        if op.kind not in ("add", "sub", "mul", "maximum", "minimum") or not op.y.quantized:
            continue
        others = [t for t in op.inputs if not t.constant]
        if any(not t.quantized for t in others):
            continue
        for i, tensor in enumerate(op.inputs):
            if tensor.constant and not tensor.quantized:
                op.inputs[i] = _symmetric(graph, tensor)


def _symmetric(graph: QGraph, tensor: Tensor) -> Tensor:
    values = np.asarray(tensor.values(), np.float64)
    largest = float(np.abs(values).max(initial=0)) or 127.0
    qparams = QParams(np.asarray(largest / 127), np.asarray(0), IntGrid(8))
    codes = qparams.quantize(values.astype(np.float32)).codes
    return Tensor(graph.unique(f"{tensor.name}_int8"), tensor.shape, tensor.dtype, qparams, np.array(codes))


def quantize_biases(graph: QGraph) -> None:
    """The bias of an integer convolution or product becomes int32 at the scale of its sums: ``rint(b / s)`` in float32.

    Models that compute exactly while they train do the same, on any backend; the step is far below one of the output.

    Raises:
        InputError: a bias that int32 can't hold.
    """
    for op in graph.ops:
        if op.kind not in LINEAR or len(op.inputs) < 3 or op.inputs[2].dtype == "int32":
            continue
        x, w, bias = op.inputs
        if not (x.quantized and w.quantized and op.y.quantized):
            continue
        if not np.all(np.isfinite(bias.values())):
            raise InputError(f"expected finite biases; received NaN or infinity in layer {op.source!r}; do mend it")
        w = op.inputs[1] = _coarsened(x, w, bias)
        exact = np.rint(bias.values().astype(np.float32) / scale_of_sums(x, w)).astype(np.float64)
        if not np.all(np.abs(exact) <= _INT32.max):
            raise InputError(
                f"expected a bias that int32 holds at the scale of its sums; received {np.abs(exact).max():.3g} in layer "
                f"{op.source!r}; do give its activations or weights a wider range"
            )
        codes = np.broadcast_to(exact, bias.values().shape).astype(np.int32)
        op.inputs[2] = Tensor(graph.unique(f"{bias.name}_int32"), bias.shape, "int32", None, codes)


def _coarsened(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """Weights of a scale at which int32 holds the bias: as they are, but in channels that are as good as dead.

    Where training let a channel's weights fade away, its bias may be 2**30 steps of its sums and more (kernels of packed
    weights hold less: 2**26). All that such weights
    can add to it lies below the rounding of float32, so fewer of their bits change nothing.
    """
    qparams = w.qparams
    if qparams is None or w.data is None or isinstance(qparams.granularity, PerGroup):
        return w
    scales = w.scales().astype(np.float64)
    least = np.abs(bias.values().reshape(-1).astype(np.float64)) / (most_steps(w.grid.bits) * float(x.scale))
    least = np.maximum(least if scales.size > 1 else least.max(initial=0.0), SMALLEST / float(x.scale))
    if not np.all(np.isfinite(least)) or np.all(scales >= least):
        return w
    scale = np.maximum(scales, least).astype(np.float32).reshape(qparams.scale.shape)
    coarser = QParams(scale, qparams.zero_point, qparams.grid, qparams.granularity)
    ratio, zero = (a.astype(np.float64) for a in QParams(
        np.where(scales >= least, 1.0, scales / scale.reshape(-1)).reshape(scale.shape), qparams.zero_point, qparams.grid,
        qparams.granularity,
    ).expanded(w.data.shape))  # fmt: skip
    codes = np.rint((w.data - zero) * ratio) + zero
    return Tensor(w.name, w.shape, w.dtype, coarser, codes.astype(w.data.dtype))


def _only(graph: QGraph, tensor: Tensor, op: Op) -> bool:
    """Whether a tensor is taken by one operation, once, and isn't an output."""
    uses = sum(t is tensor for other in graph.ops for t in other.inputs)
    return uses == 1 and any(t is tensor for t in op.inputs) and all(t is not tensor for t in graph.outputs)


def _takes_codes(op: Op) -> bool:
    reals = [t for t in op.inputs if t.dtype.startswith("float")]
    if any(t.qparams is not None and isinstance(t.qparams.granularity, PerGroup) for t in reals):
        return False  # no runtime sums integers group by group
    return all(t.quantized or t.constant for t in reals) and any(t.quantized and not t.constant for t in reals)


def _moved_qparams(op: Op) -> QParams | None:
    """The scale that all values share which an operation moves; None where they don't."""
    values = [t.qparams for t in op.inputs if t.dtype.startswith("float")]
    same = values and values[0] is not None and all(q == values[0] for q in values)
    return values[0] if same and values[0] is not None and values[0].scale.size == 1 else None


PASSES: tuple[Callable[[QGraph], None], ...] = (
    merge_reshapes,
    lift_over_reshapes,
    merge_reshapes,
    fold_padding,
    fuse_activations,
    inherit_scales,
    fuse_quantizers,
    inherit_scales,
    quantize_constants,
    quantize_biases,
)
