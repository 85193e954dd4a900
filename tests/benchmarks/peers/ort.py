"""ONNX Runtime's `quantize_static` (QDQ) on the float ONNX file, run by ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from cell import BATCH, Cell, Limit, main
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

KERNELS = ("Conv", "Gemm", "MatMul")


class Reader(CalibrationDataReader):
    """The calibration images, batch after batch."""

    def __init__(self, name: str, batches: Iterator[np.ndarray]) -> None:
        self.name, self.batches = name, batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self.batches, None)
        return None if images is None else {self.name: images}


def at_eight_bits(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Overrides that give the first and the last kernel of a file 8 bits, per output channel."""
    nodes = [node for node in onnx.load(path).graph.node if node.op_type in KERNELS]
    found = {}
    for node in (nodes[0], nodes[-1]):
        across = any(one.name == "transB" and one.i for one in node.attribute)
        found[node.input[1]] = [{"quant_type": QuantType.QInt8, "axis": 0 if node.op_type == "Conv" or across else 1}]
    return found


def run(cell: Cell) -> np.ndarray:
    """The scores of the quantized file."""
    types = {8: QuantType.QInt8, 4: QuantType.QInt4}
    if cell.bits not in types:
        has = ", ".join(one.name for one in QuantType)
        raise Limit(f"no integer type of {cell.bits} bits: onnxruntime {onnxruntime.__version__} has {has}")
    with tempfile.TemporaryDirectory() as folder:
        ready, done = Path(folder) / "ready.onnx", Path(folder) / "done.onnx"
        with cell.timed():
            quant_pre_process(str(cell.file(".onnx")), str(ready))
        name = onnx.load(ready).graph.input[0].name
        extra: dict[str, Any] = {}
        if cell.bits != 8:
            extra["TensorQuantOverrides"] = at_eight_bits(ready)
        with cell.timed():
            quantize_static(
                str(ready),
                str(done),
                Reader(name, cell.batches(cell.options.get("batch", BATCH))),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=types[cell.bits],
                calibrate_method=CalibrationMethod[cell.options["calibration"]],
                extra_options=extra,
            )
        cell.check_kernels(kernel_bits(done))
        session = onnxruntime.InferenceSession(str(done))
        images = cell.data["x_test"]
        return np.concatenate([session.run(None, {name: part})[0] for part in np.split(images, len(images) // 250)])


def kernel_bits(path: Path) -> list[int | str]:
    """Of every kernel that is stored as integers; the type's name where it is not one of those."""
    graph = onnx.load(path).graph
    bits: dict[str, int | str] = {"INT8": 8, "INT4": 4}
    types = {one.name: onnx.TensorProto.DataType.Name(one.data_type) for one in graph.initializer}
    source = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    used = [node.input[1] for node in graph.node if node.op_type in KERNELS]
    kinds = [types.get(source.get(name, name), "computed") for name in used]
    return [bits.get(kind, kind) for kind in kinds]


if __name__ == "__main__":
    main(run)
