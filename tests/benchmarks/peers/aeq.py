"""AI Edge Quantizer on the float LiteRT file, run by LiteRT."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer
from cell import BATCH, Cell, main

OPS = qtyping.TFLOperationName
KERNELS = {"CONV_2D": OPS.CONV_2D, "DEPTHWISE_CONV_2D": OPS.DEPTHWISE_CONV_2D, "FULLY_CONNECTED": OPS.FULLY_CONNECTED}
TEST_BATCH = 250


def kernel_ops(path: str) -> list[tuple[str, str]]:
    """(operation, name of its output) of every one with a kernel, in order."""
    lite = Interpreter(path)
    names = {tensor["index"]: tensor["name"] for tensor in lite.get_tensor_details()}
    return [
        (op["op_name"], names[op["outputs"][0]])
        for op in lite._get_ops_details()  # the interpreter has no public list of operations
        if op["op_name"] in KERNELS
    ]


def lost_hessians(path: str, found: dict[str, Any]) -> list[str]:
    """Inputs of FULLY_CONNECTED for which calibration has no Hessian in the end."""
    lite = Interpreter(path)
    names = {tensor["index"]: tensor["name"] for tensor in lite.get_tensor_details()}
    inputs = [names[op["inputs"][0]] for op in lite._get_ops_details() if op["op_name"] == "FULLY_CONNECTED"]
    return [name for name in inputs if "hessian" not in found.get(name, {})]


class Plan:
    """Adds settings to a quantizer, and notes which it refused."""

    def __init__(self, tool: Any, mode: str) -> None:
        self.tool, self.mode = tool, mode

    def add(self, regex: str, op: Any, bits: int, algorithm: str) -> None:
        """One setting; raises ValueError where the tool refuses it."""
        common = {"regex": regex, "operation_name": op, "algorithm_key": algorithm}
        if self.mode == "static":
            self.tool.add_static_config(**common, activation_num_bits=8, weight_num_bits=bits)
        elif self.mode == "dynamic":
            self.tool.add_dynamic_config(**common, num_bits=bits)
        else:
            self.tool.add_weight_only_config(**common, num_bits=bits)


def algorithm_for(cell: Cell, kind: str) -> str:
    """The asked algorithm; the one of the option "elsewhere", where there is one, for all but FULLY_CONNECTED."""
    chosen = cell.options["algorithm"]
    return str(chosen if kind == "FULLY_CONNECTED" else cell.options.get("elsewhere", chosen))


def planned(cell: Cell, tool: Any) -> None:
    """8 bits for everything, then the asked bits by the asked algorithm for what lies between the ends and can have them."""
    plan, ops = Plan(tool, cell.options["mode"]), kernel_ops(str(cell.file(".tflite")))
    plan.add(".*", OPS.ALL_SUPPORTED, 8, "min_max_uniform_quantize")
    if "elsewhere" in cell.options:  # the ends too: in a convolutional network they are all that is FULLY_CONNECTED
        name = cell.options["algorithm"]
        plan.add(".*", OPS.FULLY_CONNECTED, 8, name)
        known = sum(kind == "FULLY_CONNECTED" for kind, _ in ops)
        cell.remarks.append(f"{name} for {known} of {len(ops)} kernels, {cell.options['elsewhere']} for the rest")
    refused: dict[str, str] = {}
    taken = 0
    for kind in sorted({kind for kind, _ in ops}):
        wanted = [name for op, name in ops[1:-1] if op == kind]
        for name in wanted:
            try:
                plan.add(f"^{re.escape(name)};?$", KERNELS[kind], cell.bits, algorithm_for(cell, kind))
                taken += 1
            except ValueError as error:
                refused[f"{kind} x {len(wanted)}"] = str(error)
    if refused and not taken:
        raise ValueError(next(iter(refused.values())))
    cell.partial = bool(refused)
    cell.remarks += [f"{what} keep 8 bits: {why.split(' Error:')[0]}" for what, why in refused.items()]


def run(cell: Cell) -> np.ndarray:
    """The scores of the quantized file."""
    tool = quantizer.Quantizer(str(cell.file(".tflite")))
    runner = Interpreter(str(cell.file(".tflite"))).get_signature_runner()
    argument = next(iter(runner.get_input_details()))
    with cell.timed():
        planned(cell, tool)
        found = None
        if tool.need_calibration:
            batches = [{argument: images} for images in cell.batches(cell.options.get("batch", BATCH))]
            found = tool.calibrate({"serving_default": batches}, num_threads=2)
            if "elsewhere" in cell.options and lost_hessians(str(cell.file(".tflite")), found):
                cell.remarks.append(
                    "the operation before has another algorithm, which drops GPTQ's Hessian from the tensor; "
                    "the tool then stores the bytes of the float kernel as codes"
                )
        content = tool.quantize(found).quantized_model
    return scores_of(Interpreter(model_content=bytes(content), num_threads=2), cell.data["x_test"])


def scores_of(lite: Any, images: np.ndarray) -> np.ndarray:
    """What a file gives, from real numbers to real numbers, whether it takes and gives codes or not."""
    entry, out = lite.get_input_details()[0], lite.get_output_details()[0]
    lite.resize_tensor_input(entry["index"], (TEST_BATCH, *images.shape[1:]))
    lite.allocate_tensors()
    if entry["dtype"] != np.float32:
        scale, zero_point = entry["quantization"]
        info = np.iinfo(entry["dtype"])
        images = np.clip(np.rint(images / scale) + zero_point, info.min, info.max).astype(entry["dtype"])
    scores = []
    for start in range(0, len(images), TEST_BATCH):
        lite.set_tensor(entry["index"], images[start : start + TEST_BATCH])
        lite.invoke()
        scores.append(lite.get_tensor(out["index"]))
    found = np.concatenate(scores)
    if found.dtype == np.float32:
        return found
    scale, zero_point = out["quantization"]
    return (found.astype(np.float32) - zero_point) * scale


if __name__ == "__main__":
    main(run)
