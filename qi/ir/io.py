"""Graphs as files: a record of plain JSON values, and the arrays of the constants."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qi.core import Granularity, IntGrid, PerChannel, PerGroup, PerTensor, QParams
from qi.errors import FileFormatError
from qi.files import DAMAGE, read_limited, write_atomically
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.validate import validate
from qi.typing import Json

__all__ = ["from_record", "load_graph", "save_graph", "to_record"]

_VERSION = 1
_LIMIT = 2**32


def to_record(graph: QGraph) -> tuple[Json, dict[str, np.ndarray]]:
    """A graph as (JSON record, arrays by name)."""
    tensors, arrays = graph.tensors(), {}
    number = {id(t): i for i, t in enumerate(tensors)}
    records = []
    for i, tensor in enumerate(tensors):
        record: Json = {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}
        if tensor.data is not None:
            arrays[f"data_{i}"] = tensor.data
        if tensor.qparams is not None:
            record["quantized"] = _grid_record(tensor)
            arrays[f"scale_{i}"], arrays[f"zero_point_{i}"] = tensor.qparams.scale, tensor.qparams.zero_point
        records.append(record | ({"constant": True} if tensor.constant else {}))

    def numbers(found: Iterable[Tensor]) -> list[int]:
        return [number[id(t)] for t in found]

    ops = [
        {
            "kind": o.kind,
            "inputs": numbers(o.inputs),
            "outputs": numbers(o.outputs),
            "attrs": o.attrs,
            "source": o.source,
        }
        for o in graph.ops
    ]
    return {
        "format": "qi graph",
        "version": _VERSION,
        "name": graph.name,
        "target": graph.target,
        "inputs": numbers(graph.inputs),
        "outputs": numbers(graph.outputs),
        "input_structure": graph.input_structure,
        "output_structure": graph.output_structure,
        "tensors": records,
        "ops": ops,
    }, arrays


def _grid_record(tensor: Tensor) -> Json:
    granularity, grid = getattr(tensor.qparams, "granularity", None), tensor.grid
    record: Json = {"bits": grid.bits, "signed": grid.signed, "narrow": grid.narrow, "axis": None}
    if isinstance(granularity, PerChannel):
        record["axis"] = granularity.axis
    if isinstance(granularity, PerGroup):
        record |= {"axis": granularity.channel_axis, "group": [granularity.axis, granularity.size]}
    return record


def _granularity(how: Mapping[str, Any]) -> Granularity:
    axis, group = how["axis"], how.get("group")
    if group is not None:
        along, size = group
        return PerGroup(along, size, axis)
    return PerTensor() if axis is None else PerChannel(axis)


def from_record(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> QGraph:
    """The graph that `to_record` gave.

    Raises:
        FileFormatError: something else, another version, or a graph that isn't valid.
    """
    if not isinstance(record, Mapping) or record.get("format") != "qi graph" or record.get("version") != _VERSION:
        raise FileFormatError(f"expected a record of a graph, version {_VERSION}")
    try:
        tensors = {i: _tensor(entry, i, arrays) for i, entry in enumerate(record["tensors"])}

        def pick(numbers: Iterable[Any]) -> list[Tensor]:
            return [tensors[n] for n in numbers]

        ops = [
            Op(str(o["kind"]), pick(o["inputs"]), pick(o["outputs"]), dict(o["attrs"]), str(o["source"]))
            for o in record["ops"]
        ]
        graph = QGraph(
            str(record["name"]),
            pick(record["inputs"]),
            pick(record["outputs"]),
            ops,
            record["input_structure"],
            record["output_structure"],
            str(record["target"]),
        )
        validate(graph)
    except DAMAGE as error:
        raise FileFormatError(
            f"expected a whole graph; received one that is damaged ({type(error).__name__}: {error})"
        ) from error
    return graph


def _tensor(entry: Mapping[str, Any], i: int, arrays: Mapping[str, np.ndarray]) -> Tensor:
    shape = tuple(None if n is None else int(n) for n in entry["shape"])
    data = np.asarray(arrays[f"data_{i}"]) if entry.get("constant") else None
    qparams, how = None, entry.get("quantized")
    if how is not None:
        grid = IntGrid(how["bits"], signed=how["signed"], narrow=how["narrow"])
        qparams = QParams(arrays[f"scale_{i}"], arrays[f"zero_point_{i}"], grid, _granularity(how))
    dtype = np.dtype(entry["dtype"])
    if dtype.kind not in "fiub":
        raise ValueError(f"a tensor of dtype {dtype}")
    return Tensor(str(entry["name"]), shape, dtype.name, qparams, data)


def save_graph(graph: QGraph, path: str | os.PathLike[str]) -> Path:
    """Writes a graph to one ``.npz`` file: the arrays, and the record as JSON text in "graph".

    Raises:
        OSError: the file can't be written; one that was there survives.
    """
    record, arrays = to_record(graph)
    text = np.frombuffer(json.dumps(record).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, graph=text, **arrays)  # type: ignore[arg-type]
    return write_atomically(path, buffer.getvalue())


def load_graph(path: str | os.PathLike[str]) -> QGraph:
    """Reads what `save_graph` wrote.

    Raises:
        FileFormatError: a damaged file, something else, or more than 4 GiB once unpacked.
        OSError: it can't be opened.
    """
    content = read_limited(path, _LIMIT)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _LIMIT:
            raise ValueError(f"it unpacks to {size} bytes")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        record = json.loads(arrays.pop("graph").tobytes())
    except DAMAGE as error:
        raise FileFormatError(f"expected a graph's .npz file; {path} is damaged or something else ({error})") from error
    return from_record(record, arrays)
