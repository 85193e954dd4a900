"""LiteRT files (``.tflite``) of integer graphs, written by ourselves, and the runtime that runs them.

No converter comes between: every scale, zero point and integer of the graph is in the file as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import qi.exporters.litert_elementwise
import qi.exporters.litert_linear
import qi.exporters.litert_moves
import qi.exporters.litert_norms  # noqa: F401 - the modules register what they write
from qi.errors import ConfigError, FileFormatError, InputError, UnsupportedError
from qi.exporters.isolated import run_isolated
from qi.exporters.litert_check import check, with_outputs
from qi.exporters.litert_file import Draft
from qi.exporters.litert_ops import WRITERS, write_operation
from qi.exporters.litert_recurrent import one_by_one
from qi.ir.graph import QGraph, Tensor
from qi.ir.routing import input_quantizers
from qi.optional import require

__all__ = ["run", "session", "write"]

_TARGETS = ("litert", "reference")


def write(graph: QGraph, *, integer_io: bool = False, metadata: Mapping[str, bytes] | None = None) -> bytes:
    """A graph as a LiteRT file.

    Tensors keep their names; the signature "serving_default" calls inputs and outputs as the graph does. The batch is open,
    but for graphs with a fused LSTM, whose files take one sample at a time.

    Args:
        graph: routed for "litert" or "reference" (`qi.ir.routing.route`).
        integer_io: whether codes go in and come out instead of real numbers.
        metadata: what else the file holds, by name.

    Returns:
        the file; the same graph gives the same bytes.

    Raises:
        ConfigError: a graph that was routed for something else, or not at all.
        UnsupportedError: an operation or a tensor that LiteRT can't carry; it is named.
        MissingDependencyError: ai-edge-litert isn't installed.
    """
    if graph.target not in _TARGETS:
        raise ConfigError(
            f"expected a graph routed for one of {_TARGETS}; received target={graph.target!r}; do call route first"
        )
    _check(graph)
    draft = Draft(batch=1 if one_by_one(graph) else None)
    draft.reserve([tensor for tensor in graph.tensors() if not tensor.constant])
    inputs, skipped = _inputs(graph, integer_io)
    for tensor in inputs:
        draft.tensor(tensor)
    for op in graph.ops:
        if id(op) not in skipped:
            write_operation(draft, op)
    names = [tensor.name for tensor in graph.inputs]
    pairs = [(name, draft.tensor(t)) for name, t in zip(names, inputs, strict=True)]
    outputs = [(t.name, _output(draft, t, integer_io)) for t in graph.outputs]
    return draft.finish(graph.name, pairs, outputs, metadata or {})


def _check(graph: QGraph) -> None:
    for op in graph.ops:
        if op.kind not in WRITERS:
            raise UnsupportedError(
                f"expected operations that LiteRT carries; received {op.kind!r} of layer {op.source!r}; do replace the layer, or "
                "export for another runtime"
            )
        for tensor in op.outputs:
            if tensor.quantized and (tensor.grid.bits > 8 or not tensor.grid.signed):
                raise UnsupportedError(
                    f"expected activations of at most 8 bits, signed, for LiteRT; received {tensor} of layer {op.source!r}; do "
                    "give it 8 bits by a rule of the recipe, or export for ONNX Runtime"
                )


def _inputs(graph: QGraph, integer_io: bool) -> tuple[list[Tensor], set[int]]:
    """The tensors that are fed, and the quantizers that are left out for that."""
    if not integer_io:
        return graph.inputs, set()
    quantizers = input_quantizers(graph)
    found = [quantizers[id(tensor)].y if id(tensor) in quantizers else tensor for tensor in graph.inputs]
    return found, {id(op) for op in quantizers.values()}


def _output(draft: Draft, tensor: Tensor, integer_io: bool) -> int:
    """The number of what comes out for an output: codes come out as real numbers, unless codes are asked for."""
    number = draft.tensor(tensor)
    if integer_io or not tensor.quantized:
        return number
    real = draft.real(f"{tensor.name}/real", tensor.shape)
    draft.operator("DEQUANTIZE", [number], [real], 2)
    return real


def run(
    data: bytes,
    inputs: Sequence[np.ndarray],
    *,
    threads: int = 1,
    reference: bool = False,
    tensors: Sequence[str] = (),
    here: bool = False,
) -> dict[str, np.ndarray]:
    """Runs a LiteRT file in its own runtime.

    Args:
        data: the file.
        inputs: one array for each input, the batch in front; any size of batch: where the file takes one sample at a time, they
            are run so.
        threads: for the runtime.
        reference: with its reference kernels instead of XNNPACK's.
        tensors: names of tensors within, whose arrays (codes where they hold codes) are wanted as well.
        here: whether to run it in this process even if we didn't write it: a damaged one ends that.

    Returns:
        arrays by the outputs' names in the signature, then by the names in `tensors`, which win.

    Raises:
        FileFormatError: damaged bytes, or a file that the runtime refuses.
        InputError: inputs of another number, shape or type, or unknown tensors.
        MissingDependencyError: ai-edge-litert isn't installed.
    """
    contents = check(data)
    unknown = [name for name in tensors if name not in contents.names]
    if unknown:
        raise InputError(f"expected names of tensors in the file; received {unknown[:5]}")
    arrays = [np.asarray(array) for array in inputs]
    if not contents.sealed and not here:
        options = {"threads": threads, "reference": reference, "tensors": tensors}
        return dict(run_isolated("litert", data, arrays, **options))
    wanted = {**dict(contents.outputs), **{name: contents.names[name] for name in tensors}}
    data = with_outputs(data, sorted(set(wanted.values()))) if tensors else data
    return _execute(data, arrays, wanted, threads, reference)


def _execute(
    data: bytes, inputs: Sequence[np.ndarray], wanted: Mapping[str, int], threads: int, reference: bool
) -> dict[str, np.ndarray]:
    """Runs a file in this process; `wanted` has numbers of tensors by the names under which they are wanted."""
    interpreter = _interpreter(data, threads, reference)
    details = interpreter.get_input_details()
    if _takes_one(details, inputs):
        _check_inputs(details, [array[:1] for array in inputs])
        return _one_by_one(interpreter, inputs, wanted)
    _check_inputs(details, inputs)
    try:
        return _ran(interpreter, inputs, wanted)
    except (ValueError, RuntimeError) as error:
        batch = {len(array) if array.ndim else 0 for array in inputs}
        if len(batch) != 1 or batch.pop() < 2:
            raise FileFormatError(f"expected a file that LiteRT runs; it says: {error}") from error
    return _one_by_one(_interpreter(data, threads, reference), inputs, wanted)


def _takes_one(details: Sequence[Any], inputs: Sequence[np.ndarray]) -> bool:
    """Whether a file of one sample at a time was given several."""
    sizes = {len(array) if array.ndim else 0 for array in inputs}
    ones = all(len(entry["shape_signature"]) and entry["shape_signature"][0] == 1 for entry in details)
    return ones and len(sizes) == 1 and sizes.pop() > 1 and len(details) == len(inputs)


def _one_by_one(interpreter: Any, inputs: Sequence[np.ndarray], wanted: Mapping[str, int]) -> dict[str, np.ndarray]:
    """One sample at a time: LiteRT's own kernel for transposed convolutions takes no other size of batch than the file's."""
    try:
        runs = [_ran(interpreter, [array[i : i + 1] for array in inputs], wanted) for i in range(len(inputs[0]))]
    except (ValueError, RuntimeError) as error:
        raise FileFormatError(f"expected a file that LiteRT runs; it says: {error}") from error
    return {name: np.concatenate([run[name] for run in runs]) for name in wanted}


def _interpreter(data: bytes, threads: int, reference: bool) -> Any:
    runtime = require("ai_edge_litert.interpreter", "litert", "running a LiteRT file")
    kind = runtime.OpResolverType
    resolver = kind.BUILTIN_REF if reference else kind.AUTO
    try:
        return runtime.Interpreter(model_content=data, num_threads=threads, experimental_op_resolver_type=resolver)
    except (ValueError, RuntimeError) as error:
        raise FileFormatError(f"expected a file that LiteRT runs; it says: {error}") from error


def _check_inputs(details: Sequence[Any], arrays: Sequence[np.ndarray]) -> None:
    if len(details) != len(arrays):
        raise InputError(f"expected {len(details)} inputs; received {len(arrays)}")
    for entry, array in zip(details, arrays, strict=True):
        shape = entry["shape_signature"]
        if array.ndim != len(shape) or any(n not in (-1, m) for n, m in zip(shape, array.shape, strict=True)):
            raise InputError(f"expected {entry['name']!r} of shape {shape.tolist()}; received {array.shape}")
        if array.dtype != entry["dtype"]:
            raise InputError(f"expected {entry['name']!r} of dtype {entry['dtype'].__name__}; received {array.dtype}")


def _ran(interpreter: Any, inputs: Sequence[np.ndarray], wanted: Mapping[str, int]) -> dict[str, np.ndarray]:
    details = interpreter.get_input_details()
    for entry, array in zip(details, inputs, strict=True):
        if tuple(entry["shape"]) != array.shape:
            interpreter.resize_tensor_input(entry["index"], array.shape)
    interpreter.allocate_tensors()
    for entry, array in zip(details, inputs, strict=True):
        interpreter.set_tensor(entry["index"], array)
    interpreter.invoke()
    return {name: interpreter.get_tensor(number) for name, number in wanted.items()}


def session(data: bytes, *, threads: int = 1) -> Callable[[Sequence[np.ndarray]], None]:
    """A function that runs inputs of always the same shapes, as fast as the runtime can; results are dropped.

    Raises:
        FileFormatError, MissingDependencyError: as `run`.
    """
    layout = check(data)
    interpreter = _interpreter(data, threads, reference=False)
    ready = False

    def call(inputs: Sequence[np.ndarray]) -> None:
        nonlocal ready
        if not ready:
            _ran(interpreter, inputs, dict(layout.outputs))
            ready = True
        for detail, array in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()

    return call
