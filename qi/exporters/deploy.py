"""export: a quantized model as a file that a runtime runs with the very same numbers, and the proof that it does."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from qi.errors import QuantizationWarning, StrictError
from qi.exporters.code_io import check_codes
from qi.exporters.formats import Format, format_of, path_of
from qi.exporters.fronts import front_of
from qi.exporters.integers import export_integers
from qi.exporters.manifest import Options, manifest
from qi.exporters.proof import Proof, coded, made_samples, prove
from qi.exporters.report import ExportReport, told_difference
from qi.files import check_place, write_atomically
from qi.ir import QGraph
from qi.ir.kinds import KINDS
from qi.ir.lowered import in_real_numbers
from qi.ir.routing import route
from qi.ir.unquantized import told_real

__all__ = ["export", "written"]

_RUNS, _MOST_SECONDS = 100, 1.0
_MANIFEST_SHARE = 0.01


def export(
    qmodel: Any,
    path: str | os.PathLike[str],
    *,
    samples: Any = None,
    format: str | None = None,
    integer_io: bool = False,
    integer_only: bool = False,
    packed: bool = False,
    opset: int | None = None,
    dynamic: bool = True,
    strict: bool = False,
    latency: bool = True,
) -> ExportReport:
    """Writes a quantized model as a LiteRT or ONNX file, runs it there, and tells whether it gives what the twin gives.

    The file is written operation by operation, with the scales, zero points and integers that the model has; no converter comes
    between. Its own runtime then runs the samples, and every output is compared with `qi.emulate`'s.

    Args:
        qmodel: from `qi.quantize_model` or `qi.convert`, or from `qi.torch`: such a model's files take and give tensors as it
            does, images with channels first.
        path: ends in ".tflite" or ".onnx". It is written whole or not at all, and not before the runtime has run it.
        samples: inputs to compare on, as ``predict`` takes them; by default 64 seeded ones, uniform over the calibrated range. A
            torch model takes a tensor or array, a tuple of them, or a dict by its arguments' names; one that was traced without
            sample inputs needs them.
        format: "litert" or "onnx", where the path doesn't tell; or "integers": then the path is a folder, for kernels of other
            hardware, and the report an `IntegersReport`.
        integer_io: whether the file takes and gives codes (int8; ONNX: uint8) in place of real numbers; inputs and outputs that
            have none stay as they are, and the report names them.
        integer_only: for microcontrollers and NPUs: no float operation where there is a way in integers; by default some
            operations whose integer kernels are slow are done in float, between codes. What is left in float all the same (an
            operation without such a way, a layer whose weights or activations aren't quantized) is named in a warning, with the
            reason, and refused with `strict`.
        packed: whether weights below 8 bits are packed everywhere, for size; by default only where that costs no time.
        opset: of an ONNX file.
        dynamic: whether a Dense whose weights alone are quantized rounds its activations to 8 bits as they come, row by row,
            where the target has a fast kernel for that (LiteRT); the twin does so too. Otherwise it is done in float.
        strict: raise where the runtime and the twin differ, or `integer_only` leaves an operation in float, and write nothing; a
            warning tells otherwise.
        latency: whether to time the file beside one of the same model without quantization.

    Returns:
        the report; ``report.exact`` says whether everything was equal bit for bit, ``report.equal`` whether outputs that are real
        numbers differ by float rounding at most, ``print(report)`` shows the rest.

    Raises:
        UnsupportedError: a float model, one that still trains, or a layer or operation that the target can't carry; it is named,
            and nothing is written.
        ConfigError: an unknown format or option, or `integer_io` for a model whose inputs and outputs have no codes.
        InputError: samples that don't fit.
        StrictError: with `strict`, a difference, or a float operation where `integer_only` wants none.
        MissingDependencyError: the writer's or the runtime's package isn't installed.
        OSError: the file can't be written; one that was there survives.

    Example:
        >>> import keras, numpy as np, qi
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> qmodel, _ = qi.quantize_model(model, "w8a8", x, progress=False)
        >>> import tempfile, os
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = qi.export(qmodel, os.path.join(folder, "model.tflite"), samples=x, latency=False)
        >>> report.exact, report.float_operations
        (True, ())
    """
    options = Options(integer_io, integer_only, packed, opset, dynamic).checked()
    target = path_of(path, format)
    front = front_of(qmodel, samples)
    if format == "integers":
        arrays = None if samples is None else front.inputs(samples)
        unfit = {"integer_io": integer_io, "opset": opset}
        lowered = front.lower()
        left = _left_real(route(lowered, "reference", integer_only=True), strict) if integer_only else []
        return replace(export_integers(lowered, path, samples=arrays, packed=packed, unfit=unfit), warnings=tuple(left))
    kind = format_of(target, format, ("integers",))
    check_place(target)
    graph, plain_graph = front.lower_both()
    routed = route(graph, kind.target, **options.arithmetic)
    left = _left_real(routed, strict) if integer_only else []
    left += check_codes(routed) if integer_io else []
    data = written(routed, kind, options)
    plain = kind.write(route(in_real_numbers(plain_graph), kind.target), Options(opset=opset), b"")

    arrays = made_samples(routed) if samples is None else front.inputs(samples)
    source = "seeded, over the calibrated range" if samples is None else "given"
    proof = prove(data, routed, kind, arrays, source=source, options=options)
    found = _warnings(routed, proof, kind, strict)
    for text in found:
        warnings.warn(text, QuantizationWarning, stacklevel=2)
    fed = coded(routed, kind, arrays) if integer_io else arrays
    ours, floats = _latencies(kind, (data, fed), (plain, arrays)) if latency else (None, None)
    write_atomically(target, data)
    integer = Counter(op.kind for op in routed.ops if op.quantized)
    real = tuple(f"{op.kind} ({op.source})" for op in _real_operations(routed))
    sizes = len(data), len(plain)
    notes = kind.notes(routed)
    weights_only = not any(tensor.quantized and not tensor.constant for tensor in routed.tensors())
    return ExportReport(
        str(path), kind.target, proof, dict(integer), real, *sizes, ours, floats, (*left, *found), weights_only, notes
    )


def _left_real(graph: QGraph, strict: bool) -> list[str]:
    """Warns of what `integer_only` leaves in real numbers, and gives the text for the report.

    Raises:
        StrictError: with `strict`, where there is any.
    """
    told = told_real(graph)
    if not told:
        return []
    if strict:
        raise StrictError(
            f"expected every operation in integers, as integer_only=True and strict=True ask; received {told}; do quantize or "
            "replace those layers, or leave out one of the two"
        )
    text = f"integer_only=True leaves operations in real numbers: {told}"
    warnings.warn(text, QuantizationWarning, stacklevel=3)
    return [text]


def _real_operations(graph: QGraph) -> list[Any]:
    borders = ("quantize", "dequantize")
    real = [op for op in graph.ops if not op.quantized and op.kind not in borders and op.y.dtype.startswith("float")]
    return [op for op in real if not KINDS.get(op.kind).moves]


def _warnings(graph: QGraph, proof: Proof, kind: Format, strict: bool) -> list[str]:
    """What is to be told of a proof.

    Raises:
        StrictError: with `strict`, where there is any.
    """
    if proof.equal:
        return []
    where = f", first in {proof.first.name!r}" if proof.first is not None else ""
    islands = sorted({op.kind for op in _real_operations(graph)})
    because = f" (behind float operations: {', '.join(islands)})" if islands else ""
    told = f"{kind.target} and the twin differ: {told_difference(proof)}{where}{because}"
    if strict:
        way_out = "look at the first difference" if where else "export without strict to see the report"
        raise StrictError(f"expected {kind.target} to give what the twin gives; {told}; do {way_out}")
    return [told]


def written(graph: QGraph, kind: Format, options: Options) -> bytes:
    """The file of a routed graph, with its manifest: the same bytes for the same graph and options."""
    bare = kind.write(graph, options, b"")
    text = manifest(graph, int(len(bare) * _MANIFEST_SHARE), options)
    return kind.write(graph, options, text) if text else bare


def _latencies(kind: Format, *files: tuple[bytes, Sequence[np.ndarray]]) -> tuple[float, ...]:
    """Seconds of one sample in one thread: the median of interleaved runs, for each file with its inputs."""
    actions: list[Callable[[], Any]] = []
    for data, arrays in files:
        actions.append(partial(kind.session(data, threads=1), [array[:1] for array in arrays]))
    for action in actions:
        action()
    seconds: list[list[float]] = [[] for _ in actions]
    begin = time.perf_counter()
    for _ in range(_RUNS):
        for found, action in zip(seconds, actions, strict=True):
            start = time.perf_counter()
            action()
            found.append(time.perf_counter() - start)
        if time.perf_counter() - begin > _MOST_SECONDS:
            break
    return tuple(median(found) for found in seconds)
