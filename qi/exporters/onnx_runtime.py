"""ONNX files run by ONNX Runtime on a CPU: what a graph's file really answers, and with which kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qi.errors import FileFormatError, InputError
from qi.exporters.onnx_file import places
from qi.ir import twin
from qi.ir.graph import QGraph
from qi.optional import require

__all__ = ["first_difference", "float_kernels", "integer_kernels", "kernels", "parsed", "run"]

# They move or choose values, of any type.
_MOVES = frozenset(
    "Concat Expand Flatten Gather Identity MaxPool NhwcMaxPool Pad ReduceMax Reshape Slice Squeeze Tile Transpose".split()
)
# They give real numbers, though they take integers.
_TO_REAL = frozenset("DequantizeLinear MatMulIntegerToFloat DynamicQuantizeMatMul Cast".split())
_BORDERS = ("QuantizeLinear", "DequantizeLinear")
_FATAL = 4  # the least that ONNX Runtime writes to the terminal
_QGEMM_INPUTS = 9  # of one that gives integers


def run(
    data: bytes,
    inputs: Mapping[str, np.ndarray] | Sequence[np.ndarray],
    *,
    threads: int = 1,
    tensors: Sequence[str] = (),
    optimized: bool = True,
) -> dict[str, np.ndarray]:
    """Runs a file.

    Args:
        data: the file.
        inputs: by name, or in the file's order.
        threads: of ONNX Runtime.
        tensors: others of the file that are asked for. This may keep ONNX Runtime from joining the operations around them: it
            then computes these in real numbers. Codes that an operation gives are safe.
        optimized: as ONNX Runtime runs by default, with integer kernels; else node by node, in real numbers.

    Returns:
        outputs and `tensors` by name.

    Raises:
        FileFormatError: a damaged file, or something else.
        InputError: inputs or tensors that the file hasn't.
        MissingDependencyError: without the package onnxruntime.
    """
    session = _session(data, threads, optimized=optimized, tensors=tensors)
    names = [given.name for given in session.get_inputs()]
    if not isinstance(inputs, Mapping):
        if len(inputs) != len(names):
            raise InputError(f"expected {len(names)} inputs {names}; received {len(inputs)}")
        inputs = dict(zip(names, inputs, strict=True))
    if set(inputs) != set(names):
        raise InputError(f"expected inputs {names}; received {sorted(inputs)}")
    arrays = {given.name: _fitting(given, inputs[given.name]) for given in session.get_inputs()}
    outputs = [given.name for given in session.get_outputs()]
    try:
        found = session.run(outputs, arrays)
    except Exception as error:
        raise FileFormatError(f"expected a file that runs; ONNX Runtime says: {_first_line(error)}") from error
    return dict(zip(outputs, found, strict=True))


def _fitting(given: Any, array: np.ndarray) -> np.ndarray:
    """An array for an input of the file, checked."""
    array = np.ascontiguousarray(array)
    types = {"float": "float32", "double": "float64"}
    wanted = given.type.removeprefix("tensor(").removesuffix(")")
    fits = len(array.shape) == len(given.shape) and all(
        not isinstance(n, int) or n == m for n, m in zip(given.shape, array.shape, strict=True)
    )
    if array.dtype.name != types.get(wanted, wanted) or not fits:
        raise InputError(
            f"expected {given.name!r} of shape {given.shape} and type {types.get(wanted, wanted)}; received {array.shape} "
            f"of {array.dtype}"
        )
    return array


def kernels(data: bytes, *, threads: int = 1) -> list[str]:
    """The kernels that ONNX Runtime runs a file with, in their order: its operations after all optimization.

    Raises:
        FileFormatError: a damaged file, or something else.
    """
    return [node.op_type for node in _optimized(data, threads).graph.node]


def integer_kernels(data: bytes, *, threads: int = 1) -> list[str]:
    """Those of `kernels` that calculate with integers."""
    return _calculating(data, threads, real=False)


def float_kernels(data: bytes, *, threads: int = 1) -> list[str]:
    """Those of `kernels` that calculate with real numbers; the steps between integers and real numbers don't count."""
    return _calculating(data, threads, real=True)


def _calculating(data: bytes, threads: int, *, real: bool) -> list[str]:
    nodes = _real_nodes(_optimized(data, threads).graph)
    return [name for name, is_real in nodes if is_real is real and name not in _MOVES and name not in _BORDERS]


def _real_nodes(graph: Any) -> list[tuple[str, bool]]:
    """(operation, whether it takes or gives real numbers) for each node; scales and other constants are no matter."""
    floats = {given.name for given in graph.input if given.type.tensor_type.elem_type == 1}
    found = []
    for node in graph.node:
        takes = any(name in floats for name in node.input)
        gives = (takes and node.op_type != "QuantizeLinear") or node.op_type in _TO_REAL
        gives = gives or (node.op_type == "QGemm" and sum(map(bool, node.input)) < _QGEMM_INPUTS)
        if gives:
            floats.update(node.output)
        found.append((node.op_type, takes or gives))
    return found


def _optimized(data: bytes, threads: int) -> Any:
    onnx = require("onnx", "onnx", "an ONNX file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        _session(data, threads, save=path)
        return onnx.load(str(path))


def first_difference(graph: QGraph, data: bytes, inputs: Sequence[np.ndarray], **options: Any) -> str | None:
    """The first tensor of codes whose codes in the file aren't the twin's; None where all agree.

    Args:
        graph: that the file was written from.
        data: the file, of real inputs.
        inputs: real numbers, in the graph's order.
        options: those the file was written with.
    """
    expected = twin.run(graph, inputs, every=True)
    where = {tensor.name: tensor for tensor in graph.tensors() if tensor.quantized}
    found = {name: place for name, place in places(graph, **options).items() if name in where and name in expected}
    answers = run(
        data, dict(zip((t.name for t in graph.inputs), inputs, strict=True)), tensors=[n for n, _ in found.values()]
    )
    for name, (there, axes) in found.items():
        codes = answers[there].transpose(np.argsort(axes)).astype(np.int64)
        offset = 0 if not where[name].grid.signed else 128 if where[name].grid.bits <= 8 else 32768
        if not np.array_equal(codes - offset, expected[name]):
            return name
    return None


def parsed(data: bytes) -> Any:
    """The model, checked: ONNX Runtime itself trusts much of what it reads."""
    onnx = require("onnx", "onnx", "an ONNX file")
    checker = require("onnx.checker", "onnx", "an ONNX file")
    try:
        model = onnx.load_from_string(data)
        checker.check_model(model, full_check=True)
    except Exception as error:
        raise FileFormatError(
            f"expected an ONNX file; it is damaged or something else ({_first_line(error)})"
        ) from error
    return model


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _with_outputs(model: Any, tensors: Sequence[str]) -> bytes:
    known = {name for node in model.graph.node for name in node.output} | {given.name for given in model.graph.input}
    for name in tensors:
        if name not in known:
            raise InputError(f"expected tensors of the file; received {name!r}")
        if name not in {given.name for given in model.graph.output}:
            model.graph.output.add().name = name
    return bytes(model.SerializeToString(deterministic=True))


def session(data: bytes, *, threads: int = 1) -> Callable[[Sequence[np.ndarray]], object]:
    """A function that runs inputs as fast as the runtime can.

    Raises:
        FileFormatError, MissingDependencyError: as `run`.
    """
    made = _session(data, threads)
    names = [given.name for given in made.get_inputs()]
    return lambda inputs: made.run(None, dict(zip(names, inputs, strict=True)))


def _session(
    data: bytes, threads: int, *, optimized: bool = True, tensors: Sequence[str] = (), save: Path | None = None
) -> Any:
    runtime = require("onnxruntime", "onnx", "running an ONNX file")
    model = parsed(data)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    if not optimized:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save is not None:
        options.optimized_model_filepath = str(save)
    content = _with_outputs(model, tensors) if tensors else data
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for given in (*session.get_inputs(), *session.get_outputs()):
            _ = given.name, given.shape, given.type  # texts that may not be any
    except Exception as error:
        raise FileFormatError(f"expected a file that ONNX Runtime takes; it says: {_first_line(error)}") from error
    return session
