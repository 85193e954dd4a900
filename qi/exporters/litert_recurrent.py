"""LSTM in a LiteRT file: one fused operator for all steps.

Its weights are codes that DEQUANTIZE makes real once, so that nothing but them is rounded: the operator's own int8 form has one
scale for each gate, and rounds states and inputs as well.
"""

from __future__ import annotations

import numpy as np

from qi.core import IntGrid, PerGroup
from qi.exporters.litert_file import Draft
from qi.exporters.litert_ops import writer
from qi.exporters.litert_unrolled import columns_of, real_kernel, unrolled_lstm
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.recurrent import GATES, split_bias

__all__ = ["one_by_one"]

_FUSED = {"tanh": "TANH", "relu": "RELU"}
_RESET = np.float32(1e30)  # closes gates whose weights have the smallest of scales


def one_by_one(graph: QGraph) -> list[str]:
    """The layers for which a file takes one sample at a time: those that the fused operator does."""
    return list(dict.fromkeys(op.source for op in graph.ops if op.kind == "lstm" and _fuses(op)))


def _fuses(op: Op) -> bool:
    """Whether the fused operator can do an LSTM: its gates are sigmoids, and a step of ours can close them."""
    if op.attrs["recurrent_activation"] != "sigmoid" or op.attrs["activation"] not in _FUSED:
        return False
    qparams = op.inputs[1].qparams
    if qparams is None:
        return True
    signed = isinstance(qparams.grid, IntGrid) and qparams.grid.signed and not qparams.zero_point.any()
    return signed and not isinstance(qparams.granularity, PerGroup)


@writer("lstm")
def _lstm(draft: Draft, op: Op) -> None:
    if _fuses(op):
        _fused(draft, op)
    else:
        unrolled_lstm(draft, op)


def _fused(draft: Draft, op: Op) -> None:
    """One operator for all steps, on one sample: LiteRT fixes the size of its states when a file is read.

    They are also kept from one run to the next, as if sequences went on. A step of our own in front forgets them: it alone has a
    value in one more feature, whose weights close all gates. Only NaN outlives it, where inputs are real numbers and hold any.
    """
    (kernel, recurrent), units = op.inputs[1:3], int(op.inputs[2].shape[0] or 0)
    parts = [(g * units, (g + 1) * units) for g in range(GATES["lstm"])]
    given = [real_kernel(draft, op, columns_of(_with_reset(kernel), *part)) for part in parts]
    given += [real_kernel(draft, op, columns_of(recurrent, *part)) for part in parts]
    bias = split_bias(op, op.inputs[3].values() if len(op.inputs) > 3 else None)[0]
    biases = [draft.constant(f"{op.y.name}/bias", bias[first:last]) for first, last in parts]
    states = [draft.state(f"{op.y.name}/{name}", (1, units)) for name in ("output_state", "cell_state")]
    x, steps = _led_in(draft, op), op.x.shape[1]
    y = draft.real(f"{op.y.name}/all", (None, None if steps is None else steps + 1, units))
    options = draft.options(
        "UnidirectionalSequenceLSTMOptions",
        fusedActivationFunction=getattr(draft.fb.ActivationFunctionType, _FUSED[op.attrs["activation"]]),
        cellClip=0.0,
        projClip=0.0,
    )
    none = [-1]  # no peepholes, no projection, no normalization
    inputs = [x, *given, *none * 3, *biases, *none * 2, *states, *none * 4]
    draft.operator("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], 1, options)
    _cut(draft, op, y)


def _with_reset(kernel: Tensor) -> Tensor:
    """A kernel with one more input, which closes the gates for input, states and output, and gives no candidate."""
    data = np.asarray(kernel.data)
    lowest = kernel.grid.qmin if kernel.quantized else -1
    row = np.full(data.shape[1], lowest, data.dtype)
    row.reshape(GATES["lstm"], -1)[2] = 0
    data = np.concatenate([data, row[None]])
    return Tensor(kernel.name, data.shape, kernel.dtype, kernel.qparams, data)


def _led_in(draft: Draft, op: Op) -> int:
    """The steps with one more in front, and one more feature, which is zero but there."""
    _, steps, features = op.x.shape
    count = int(features or 0) + 1
    pads = draft.constant(f"{op.y.name}/pads", np.asarray([[0, 0], [0, 0], [0, 1]], np.int32))
    padded = draft.real(f"{op.y.name}/padded", (None, steps, count))
    draft.operator("PAD", [draft.tensor(op.x), pads], [padded], 1, draft.options("PadOptions"))
    step = np.zeros((1, 1, count), np.float32)
    step[..., -1] = _RESET
    first = draft.constant(f"{op.y.name}/first_step", step)
    whole = draft.real(f"{op.y.name}/steps", (None, None if steps is None else steps + 1, count))
    draft.operator("CONCATENATION", [first, padded], [whole], 1, draft.options("ConcatenationOptions", axis=1))
    return whole


def _cut(draft: Draft, op: Op, y: int) -> None:
    """All states but that of the step in front, or the last alone."""
    sequences = op.attrs["sequences"]
    values = {"begin": [0, 1 if sequences else -1, 0], "end": [0, 0, 0], "strides": [1, 1, 1]}
    further = [draft.numbers(f"{op.y.name}/{name}", value) for name, value in values.items()]
    masks = {"beginMask": 0b101, "endMask": 0b111, "shrinkAxisMask": 0 if sequences else 0b010}
    draft.operator(
        "STRIDED_SLICE", [y, *further], [draft.tensor(op.y)], 1, draft.options("StridedSliceOptions", **masks)
    )
