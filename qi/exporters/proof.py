"""The proof: a file's runtime and the twin on the same samples, code by code.

Codes are equal or they aren't. Real numbers are added up in another order by every runtime, so outputs that have no codes are
equal within float rounding: `ROUNDING` of the output's largest magnitude. Where products round real numbers to 8 bits as they
come (`qi.ir.dynamic`), the last bit of such a number may move a code: then some outputs are further apart, up to `MOVED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qi.errors import ConfigError, InputError
from qi.exporters.formats import Format
from qi.exporters.manifest import Options
from qi.ir import QGraph, Tensor, run
from qi.ir.dynamic import KIND as DYNAMIC
from qi.ir.kinds import kernel_of
from qi.ir.routing import input_quantizers
from qi.ir.twin import real_values
from qi.typing import Json

__all__ = ["MOVED", "ROUNDING", "Agreement", "Proof", "coded", "made_samples", "prove", "stored"]

ROUNDING = 4e-5
"""Of an output's largest magnitude: up to there, real numbers differ by the order of sums alone. A hundredth of a step of 8 bits;
deep models were seen to need 1e-6."""
MOVED = 1 / 255
"""Of an output's largest magnitude: what codes that moved by one within dynamic products may come to. A step of 8 bits."""

_OFFSETS = {1: 128, 2: 32768}  # bytes of unsigned codes -> what the graph's are less


@dataclass(frozen=True)
class Agreement:
    """How one tensor of the file compares with the twin's.

    Attributes:
        name: of the tensor.
        elements: compared.
        differing: how many differ.
        max_lsb: the largest difference, in steps of the tensor's scale; in units of its largest magnitude / 255 for one that
            isn't quantized.
        relative: the largest difference of real numbers, by the largest magnitude; None for what has codes, or whole numbers.
        beyond: how many real numbers differ by more than float rounding.
    """

    name: str
    elements: int
    differing: int
    max_lsb: float
    relative: float | None = None
    beyond: int = 0

    @property
    def equal(self) -> bool:
        """Whether all elements are equal: codes bit for bit, real numbers within float rounding."""
        return self.differing == 0 or (self.relative is not None and self.beyond == 0)

    @property
    def moved(self) -> bool:
        """Whether all are equal, but for real numbers that codes within dynamic products moved."""
        return self.equal or (self.relative is not None and self.relative <= MOVED)

    @property
    def apart(self) -> int:
        """How many elements aren't equal: codes that differ at all, real numbers beyond float rounding."""
        return self.differing if self.relative is None else self.beyond

    @property
    def share(self) -> float:
        """The share of differing elements, 0 to 1."""
        return self.differing / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class Proof:
    """What running a file showed.

    Attributes:
        samples: how many were run.
        source: where they came from.
        outputs: each output's agreement.
        first: the first tensor in the order of the graph that differs, where that could be seen.
        threads: of the runtime.
        dynamic: whether products round real numbers to 8 bits as they come.
    """

    samples: int
    source: str
    outputs: tuple[Agreement, ...]
    first: Agreement | None = None
    threads: int = 1
    dynamic: bool = False

    @property
    def exact(self) -> bool:
        """Whether every element of every output is equal, bit for bit."""
        return all(output.differing == 0 for output in self.outputs)

    @property
    def equal(self) -> bool:
        """Whether the file gives what the twin gives: codes bit for bit, real numbers within float rounding.

        Behind dynamic products, also where they are a step of 8 bits apart: `share_apart` says how many are.
        """
        return all(output.moved if self.dynamic else output.equal for output in self.outputs)

    @property
    def relative(self) -> float:
        """The largest difference of real outputs, each by its largest magnitude."""
        return max((output.relative or 0.0 for output in self.outputs), default=0.0)

    @property
    def share_apart(self) -> float:
        """The share of outputs that aren't equal, 0 to 1: codes that differ at all, real numbers beyond float rounding."""
        elements = sum(output.elements for output in self.outputs)
        return sum(output.apart for output in self.outputs) / elements if elements else 0.0

    @property
    def max_lsb(self) -> float:
        """The largest difference of any output, in steps; those of real outputs are their largest magnitude / 255."""
        return max((output.max_lsb for output in self.outputs), default=0.0)

    @property
    def share(self) -> float:
        """The share of outputs that differ, 0 to 1."""
        elements = sum(output.elements for output in self.outputs)
        return sum(output.differing for output in self.outputs) / elements if elements else 0.0

    def to_dict(self) -> Json:
        """A record of plain JSON values; a difference that is no number is "inf"."""
        return {
            "exact": self.exact,
            "equal": self.equal,
            "samples": self.samples,
            "samples_from": self.source,
            "max_lsb": self.max_lsb if np.isfinite(self.max_lsb) else "inf",
            "max_relative": self.relative if np.isfinite(self.relative) else "inf",
            "share_differing": self.share,
            "share_apart": self.share_apart,
            "first_difference": self.first.name if self.first else None,
        }


def prove(
    data: bytes,
    graph: QGraph,
    kind: Format,
    samples: Sequence[np.ndarray],
    *,
    source: str = "given",
    options: Options | None = None,
    threads: int = 1,
) -> Proof:
    """Runs a file and the twin of the graph it was written from.

    Args:
        data: the file.
        graph: routed for the format's target.
        kind: its format.
        samples: an array for each input: real numbers.
        source: where they came from, for the report.
        options: that the file was written with.
        threads: of the runtime.

    Raises:
        FileFormatError: a damaged file.
        InputError: outputs of another number, name or shape than the graph's.
    """
    expected = run(graph, samples)
    options = options or Options()
    fed = coded(graph, kind, samples) if options.integer_io else samples
    found = kind.run(data, fed, threads=threads)
    if len(found) == len(graph.outputs) == 1:  # other tools name it otherwise
        found = {graph.outputs[0].name: next(iter(found.values()))}
    missing = [t.name for t in graph.outputs if t.name not in found]
    if missing:
        raise InputError(f"expected a file with the outputs {missing}; received one with {sorted(found)}")
    outputs = tuple(_agreement(t, expected[t.name], found[t.name]) for t in graph.outputs)
    first = None
    dynamic = any(op.kind == DYNAMIC for op in graph.ops)
    if not Proof(len(samples[0]), source, outputs, dynamic=dynamic).equal:
        first = _first_difference(data, graph, kind, (samples, fed), options, threads)
    return Proof(len(samples[0]), source, outputs, first, threads, dynamic)


def _first_difference(
    data: bytes,
    graph: QGraph,
    kind: Format,
    samples: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    options: Options,
    threads: int,
) -> Agreement | None:
    """The first tensor that differs. Asking for tensors in the middle can change what a runtime fuses: then there is none."""
    places = kind.places(data, graph, options)
    inside = [t for t in graph.tensors() if not t.constant and t.quantized and t.name in places]
    expected = run(graph, samples[0], every=True)
    try:
        found = kind.run(data, samples[1], threads=threads, tensors=[places[t.name][0] for t in inside])
    except (ConfigError, InputError):
        return None
    for tensor in inside:
        there, axes = places[tensor.name]
        agreement = _agreement(tensor, expected[tensor.name], found[there].transpose(np.argsort(axes)))
        if agreement.differing:
            return agreement
    return None


def coded(graph: QGraph, kind: Format, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The inputs as a file takes them that takes codes: unsigned for ONNX Runtime, int8 elsewhere; others as they are."""
    quantizers = input_quantizers(graph)
    found = []
    for tensor, array in zip(graph.inputs, samples, strict=True):
        if id(tensor) not in quantizers:
            found.append(array)
            continue
        op = quantizers[id(tensor)]
        codes = kernel_of(op, graph.target)(op, array.astype(np.float32))
        found.append(stored(op.y, codes, kind.target))
    return found


def stored(tensor: Tensor, codes: np.ndarray, target: str) -> np.ndarray:
    """Codes as a target has them: int8, or int16 beyond 8 bits; for ONNX Runtime unsigned, half the grid added."""
    wide = tensor.grid.bits > 8
    if target == "onnxruntime":
        return (codes + _OFFSETS[2 if wide else 1]).astype(np.uint16 if wide else np.uint8)
    return codes.astype(np.int16 if wide else np.int8)


def _agreement(tensor: Tensor, expected: np.ndarray, found: np.ndarray) -> Agreement:
    """Compares real numbers, or codes where the runtime gives those."""
    if expected.shape != found.shape or found.dtype.kind not in "fiub":
        raise InputError(f"expected {tensor.name!r} of shape {expected.shape}; received {found.shape} of {found.dtype}")
    if found.dtype.kind in "iu" and tensor.quantized:
        offset = _OFFSETS.get(found.dtype.itemsize, 0) if found.dtype.kind == "u" else 0
        steps = np.abs(found.astype(np.int64) - offset - expected)
    else:
        real = real_values(tensor, expected).astype(np.float64)
        unit = float(tensor.scale) if tensor.quantized else float(np.abs(real).max(initial=0)) / 255 or 1.0
        with np.errstate(invalid="ignore"):  # infinity on both sides
            steps = np.abs(found.astype(np.float64) - real) / unit
        steps[(found == real) | ((found != found) & (real != real))] = 0
    steps = np.nan_to_num(steps, nan=np.inf, posinf=np.inf)
    largest, differing = float(steps.max(initial=0)), int(np.count_nonzero(steps))
    if tensor.quantized or not tensor.dtype.startswith("float"):
        return Agreement(tensor.name, steps.size, differing, largest)
    beyond = int(np.count_nonzero(~(steps <= 255 * ROUNDING)))
    return Agreement(tensor.name, steps.size, differing, largest, largest / 255, beyond)


def made_samples(graph: QGraph, count: int = 64, seed: int = 0) -> list[np.ndarray]:
    """Seeded inputs over the calibrated range of each input: uniform over its codes, so that all of them are met.

    Args:
        graph: whose inputs are quantized first; others are normal with deviation 1, and integers are 0 or 1.
        count: samples.
        seed: of the generator.
    """
    rng = np.random.default_rng(seed)
    borders = {id(op.x): op.y for op in graph.ops if op.kind == "quantize"}
    arrays = []
    for tensor in graph.inputs:
        shape = (count, *(n or 1 for n in tensor.shape[1:]))
        if tensor.quantized or id(tensor) in borders:
            coded = tensor if tensor.quantized else borders[id(tensor)]
            low, high = ((q - coded.zero_point) * float(coded.scale) for q in (coded.grid.qmin, coded.grid.qmax))
            arrays.append(rng.uniform(low, high, shape).astype(np.float32))
        elif tensor.dtype.startswith("float"):
            arrays.append(rng.normal(size=shape).astype(tensor.dtype))
        else:
            arrays.append(rng.integers(0, 2, shape).astype(tensor.dtype))
    return arrays
