"""ONNX Runtime's `quantize_static` (QDQ) on the float ONNX file, run by ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from cell import BATCH, Cell, main
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


def end_weights(path: Path) -> list[str]:
    """The names of the first and the last kernel of a file."""
    graph = onnx.load(path).graph
    stored = {one.name for one in graph.initializer}
    names = [name for node in graph.node if node.op_type in KERNELS for name in node.input[1:2] if name in stored]
    return [names[0], names[-1]]


def run(cell: Cell) -> np.ndarray:
    """The scores of the quantized file."""
    types = {8: QuantType.QInt8, 4: QuantType.QInt4}
    if cell.bits not in types:
        has = ", ".join(one.name for one in QuantType)
        raise ValueError(f"no integer type of {cell.bits} bits: onnxruntime {onnxruntime.__version__} has {has}")
    with tempfile.TemporaryDirectory() as folder:
        ready, done = Path(folder) / "ready.onnx", Path(folder) / "done.onnx"
        with cell.timed():
            quant_pre_process(str(cell.file(".onnx")), str(ready))
        name = onnx.load(ready).graph.input[0].name
        extra = {}
        if cell.bits != 8:
            eight = {"quant_type": QuantType.QInt8, "axis": 0}
            extra["TensorQuantOverrides"] = {end: [eight] for end in end_weights(ready)}
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
        cell.remarks.append(told(done))
        session = onnxruntime.InferenceSession(str(done))
        images = cell.data["x_test"]
        return np.concatenate([session.run(None, {name: part})[0] for part in np.split(images, len(images) // 250)])


def told(path: Path) -> str:
    """How many kernels have which type."""
    graph = onnx.load(path).graph
    types = {one.name: onnx.TensorProto.DataType.Name(one.data_type).lower() for one in graph.initializer}
    source = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    counts: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in KERNELS:
            kind = types.get(source.get(node.input[1], node.input[1]), "computed")
            counts[kind] = counts.get(kind, 0) + 1
    return "kernels: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


if __name__ == "__main__":
    main(run)
