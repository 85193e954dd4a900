"""A routed graph as a record that people can read, and the arrays that it names."""

from __future__ import annotations

import re

import numpy as np

from qi._version import __version__
from qi.core import IntGrid, PerChannel
from qi.errors import UnsupportedError
from qi.exporters.integers_fixed import fixed_point
from qi.ir import Op, QGraph, Tensor
from qi.ir.arithmetic import code_range
from qi.ir.kinds import KINDS
from qi.ir.twin import real_values
from qi.typing import Json

__all__ = ["FORMAT", "VERSION", "domain_of", "record_of"]

FORMAT, VERSION = "qi integers", 1
_BORDERS = ("quantize", "dequantize")
_LONGEST = 36  # of a name's stem: C99 tells 63 characters apart, and every name gets ends


def record_of(graph: QGraph) -> tuple[Json, dict[str, np.ndarray]]:
    """A graph as (JSON record, arrays by name); the names are C identifiers.

    Args:
        graph: valid; routed for "reference".

    Raises:
        UnsupportedError: sizes that are open, codes of more than 8 bits, scales that fixed-point numbers can't hold.
    """
    return _Recorder(graph).record()


def domain_of(op: Op) -> str:
    """Where an operation is done: "integers", "real" numbers, or on the "border" between them."""
    if op.kind in _BORDERS and not (op.x.quantized and op.y.quantized):
        return "border"
    return "integers" if op.quantized else "real"


class _Names:
    """Names for C: letters, digits and underscores, no two alike even in capitals."""

    def __init__(self, model: str) -> None:
        stem = _stem(model, 16).lower()
        self.prefix = stem if stem[0].isalpha() else f"m{stem}"
        self._taken: set[str] = set()

    def new(self, text: str) -> str:
        stem = _stem(text, _LONGEST)
        stem = f"t_{stem}" if re.match(r"op\d", stem, re.IGNORECASE) else stem  # operations have these
        return self.claim(f"{self.prefix}_{stem}")

    def claim(self, wanted: str) -> str:
        name, count = wanted, 1
        while name.lower() in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name.lower())
        return name


def _stem(text: str, longest: int) -> str:
    return re.sub(r"[^0-9A-Za-z]+", "_", text).strip("_")[:longest].strip("_") or "x"


class _Recorder:
    def __init__(self, graph: QGraph) -> None:
        self.graph, self.names = graph, _Names(graph.name)
        self.arrays: dict[str, np.ndarray] = {}
        self.tensors: Json = {}
        self._ids: dict[int, str] = {}

    def record(self) -> tuple[Json, dict[str, np.ndarray]]:
        graph = self.graph
        by_integers = {id(t) for op in graph.ops if domain_of(op) == "integers" for t in op.inputs}
        for tensor in graph.tensors():
            self._add(tensor, id(tensor) in by_integers)
        operations = [self._operation(i, op) for i, op in enumerate(graph.ops)]
        record = {
            "format": FORMAT,
            "version": VERSION,
            "qi": __version__,
            "model": graph.name,
            "arithmetic": "reference",
            "prefix": self.names.prefix,
            "inputs": self._named(graph.inputs),
            "outputs": self._named(graph.outputs),
            "input_structure": graph.input_structure,
            "output_structure": graph.output_structure,
            "tensors": self.tensors,
            "operations": operations,
        }
        return record, self.arrays

    def _named(self, tensors: list[Tensor]) -> list[str]:
        return [self._ids[id(t)] for t in tensors]

    def _add(self, tensor: Tensor, by_integers: bool) -> None:
        name = self._ids[id(tensor)] = self.names.new(tensor.name)
        if any(n is None for n in tensor.shape[1:]) or (tensor.constant and None in tensor.shape):
            raise UnsupportedError(
                f"expected fixed sizes (but for the batch); received {tensor.name!r} of shape {tensor.shape}; do give the "
                "model an Input of fixed sizes"
            )
        entry: Json = {"name": tensor.name, "shape": list(tensor.shape), "type": tensor.dtype}
        self.tensors[name] = entry
        if tensor.constant and tensor.quantized and not by_integers and not _plain(tensor):
            self._store(entry, name, real_values(tensor, np.asarray(tensor.data)))
            return
        if tensor.quantized:
            entry |= {"type": "int8", "codes": self._codes(tensor, name)}
        if tensor.data is not None:
            self._store(entry, name, tensor.data.astype(entry["type"]))

    def _store(self, entry: Json, name: str, array: np.ndarray) -> None:
        entry |= {"type": array.dtype.name, "constant": True}
        self.arrays[name] = np.ascontiguousarray(array).reshape(array.shape)

    def _codes(self, tensor: Tensor, name: str) -> Json:
        if not _plain(tensor):
            raise UnsupportedError(
                f"expected signed codes of at most 8 bits with one scale, or one for each channel, and one zero point; received "
                f"{tensor}; do quantize it so, or leave it in float"
            )
        qparams, grid = tensor.qparams, tensor.grid
        codes: Json = {"bits": grid.bits, "least": grid.qmin, "greatest": grid.qmax}
        if qparams is None or qparams.scale.size == 1:
            return codes | {"scale": float(tensor.scale), "zero_point": tensor.zero_point}
        axis = getattr(qparams.granularity, "axis", -1) % len(tensor.shape)
        scales = self.names.claim(f"{name}_scales")
        self.arrays[scales] = tensor.scales()
        return codes | {"scales": scales, "axis": axis, "zero_point": 0}

    def _operation(self, i: int, op: Op) -> Json:
        domain = domain_of(op)
        entry: Json = {"id": f"{self.names.prefix}_op{i}", "kind": op.kind, "layer": op.source, "domain": domain}
        entry |= {"attributes": op.attrs, "inputs": self._named(op.inputs), "outputs": self._named(op.outputs)}
        if op.y.quantized and domain != "real" and not KINDS.get(op.kind).moves:
            entry["code_range"] = [int(bound) for bound in code_range(op)]
        found = fixed_point(op) if domain == "integers" else {}
        for key, value in found.items():
            if isinstance(value, np.ndarray):
                self.arrays[f"{entry['id']}_{key}"] = value
        if found:
            entry["fixed_point"] = {
                key: f"{entry['id']}_{key}" if isinstance(value, np.ndarray) else value for key, value in found.items()
            }
        return entry


def _plain(tensor: Tensor) -> bool:
    """Whether codes fit int8, with one scale and zero point, or a scale for each channel and zero points of 0."""
    qparams = tensor.qparams
    if qparams is None or not isinstance(qparams.grid, IntGrid) or qparams.grid.bits > 8 or not qparams.grid.signed:
        return False
    return qparams.scale.size == 1 or (isinstance(qparams.granularity, PerChannel) and not qparams.zero_point.any())
