"""Whole files quantized in pieces: one array or a checkpoint of many, larger than memory if need be.

What `quantize_file` writes, for an array called ``name``:

==================== =============================================================================================
array                contents
==================== =============================================================================================
``name``             codes of 8 or 16 bits in the array's shape; of other widths one row of bytes, packed as
                     `qi.core.packing` says
``name.scale``       float32, in the shape of `qi.core`'s granularities: the array's rank, 1 where it is shared
``name.zero_point``  int32, likewise; left out where it is 0 everywhere by construction (symmetric, signed)
==================== =============================================================================================

The metadata (of a `.safetensors` file; the member "qi.json" of an `.npz`) hold under "qi" a JSON text: the version, and for every
quantized array its shape, dtype, bits, signedness and granularity. Arrays that aren't quantized are copied.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qi.core import (
    Granularity,
    IntGrid,
    PerChannel,
    PerGroup,
    PerTensor,
    QParams,
    QTensor,
    blocked,
    pack,
    packed_nbytes,
    unpack,
)
from qi.core.namespace import numpy_dtype
from qi.core.tiles import boxes, check_threads
from qi.engine.channels import check_channel_dim, warn_without_effect
from qi.engine.config import QuantizationConfig, checked_config, granularity_from_dict, granularity_to_dict
from qi.engine.containers import Arrays, Layout, Sink, open_arrays, writing
from qi.engine.inputs import refuse
from qi.engine.progress import Progress
from qi.engine.ranges import params_of, requantized, see
from qi.engine.types import QuantizationType
from qi.errors import ConfigError, FileFormatError, InputError, QiError
from qi.typing import Shape

__all__ = ["FileReport", "FileRow", "dequantize_file", "load_quantized", "quantize_file"]

PIECE = 1 << 22
"""Elements that are in memory at a time."""
_VERSION = 1


@dataclass(frozen=True)
class FileRow:
    """What became of one array.

    Attributes:
        name: Its name; "array" in a `.npy` file.
        shape: Its shape.
        dtype: Its dtype in the source.
        bits: Bits of a code, or None if it was copied.
        reason: Why it was copied.
        nbytes: Its bytes in the source.
        stored_nbytes: Its bytes in the target, scales included.
        clipped: Numbers that saturated.
        nans: NaN that became the code of 0.
    """

    name: str
    shape: Shape
    dtype: str
    bits: int | None
    reason: str
    nbytes: int
    stored_nbytes: int
    clipped: int = 0
    nans: int = 0


@dataclass(frozen=True)
class FileReport:
    """What `quantize_file` did: a row for every array. Prints as a table."""

    rows: tuple[FileRow, ...]

    @property
    def compression_ratio(self) -> float:
        """Bytes of all arrays before over after."""
        return sum(r.nbytes for r in self.rows) / max(1, sum(r.stored_nbytes for r in self.rows))

    def __str__(self) -> str:
        cells = [("array", "shape", "dtype", "bits", "bytes", "stored", "clipped", "")]
        for r in self.rows:
            shape = "x".join(map(str, r.shape)) or "scalar"
            bits = str(r.bits or "-")
            cells.append(
                (r.name, shape, r.dtype, bits, f"{r.nbytes:,}", f"{r.stored_nbytes:,}", f"{r.clipped:,}", r.reason)
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join([*lines, f"{self.compression_ratio:.2f}x smaller"])


def quantize_file(
    source: str | Path,
    target: str | Path,
    config: QuantizationConfig | None = None,
    *,
    channel_dim: int | None = None,
    num_threads: int = 1,
    progress: bool | None = None,
) -> FileReport:
    """Quantizes the arrays of a file, in pieces.

    Arrays of real numbers with at least two dimensions are quantized, and the array of a `.npy` file whatever it has; the
    others (biases, counters), and layers that the configuration skips, are copied. Each array's name is its layer's name.

    Args:
        source: A `.npy`, `.npz` or `.safetensors` file. At most `PIECE` elements of an array of the first and last kind are in
            memory at a time (all of it for requantization); of an `.npz`, one array.
        target: A `.safetensors` or `.npz` file; replaced when all is done.
        config: How; 8 bits, symmetric, one scale per array, if None. The range is each array's own.
        channel_dim: The channel dimension, where the configuration is per channel; 0 if None. Where it has no effect on any
            array, a warning says so; each array that is quantized has to have it.
        num_threads: Threads that share the work; one takes at least 2**22 values, and two pay with the extra `fast`.
        progress: Whether to show a progress bar; None: if somebody watches and it takes a while.

    Returns:
        a row for each array; printed, a table.

    Raises:
        ConfigError: A suffix is unknown, the type isn't an integer one, a name is taken.
        FileFormatError: The source is damaged, or holds Python objects; nothing is written then.
        ValueError: NaN or infinity, where they are errors.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.savez(folder / "model.npz", kernel=np.eye(64, dtype=np.float32), bias=np.ones(64, np.float32))
        >>> config = QuantizationConfig(quantization_type="int4", per_channel=True)
        >>> print(quantize_file(folder / "model.npz", folder / "small.npz", config))
        array   shape  dtype    bits  bytes   stored  clipped
        kernel  64x64  float32  4     16,384  2,304   0
        bias    64     float32  -     256     256     0        fewer than 2 dimensions
        6.50x smaller
        >>> load_quantized(folder / "small.npz")["kernel"].dequantize()[:2, :2].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    config = checked_config(QuantizationConfig() if config is None else config)
    check_threads(num_threads)
    arrays = open_arrays(source)
    alone = Path(source).suffix.lower() == ".npy"
    jobs = {name: _job(name, like, config, channel_dim, alone) for name, like in arrays.layout.items()}
    quantized = [job for job in jobs.values() if job.config is not None]
    if channel_dim is not None and quantized and not any(isinstance(job.granularity, PerChannel) for job in quantized):
        why = f"the configuration isn't per channel, but {config.granularity!s}"
        warn_without_effect(channel_dim, why, stacklevel=2)
    layout: dict[str, Layout] = {}
    beside = {f"{job.name}.{part}" for job in quantized for part in ("scale", "zero_point")}
    for job in jobs.values():
        for name, entry in job.layout().items():
            if name in layout or (name == job.name and name in beside):
                raise ConfigError(
                    f"expected names that stay apart; received an array called {name!r} beside {job.name!r}"
                )
            layout[name] = entry
    facts = {job.name: job.facts() for job in quantized}
    metadata = arrays.metadata | {"qi": json.dumps({"version": _VERSION, "arrays": facts})}
    total = sum(math.prod(job.like.shape) * (1 + (job.config is not None)) for job in jobs.values())
    rows = []
    with Progress("Quantizing", total, progress) as bar, writing(target, layout, metadata) as sink:
        for name, job in jobs.items():
            rows.append(job.run(arrays[name], sink, bar, num_threads))
    return FileReport(tuple(rows))


def dequantize_file(
    source: str | Path, target: str | Path, *, num_threads: int = 1, progress: bool | None = None
) -> None:
    """Writes the real numbers, in the dtypes they had, that a file of `quantize_file` stands for.

    Args:
        source: What `quantize_file` wrote.
        target: A `.safetensors`, `.npz` or, for one array, `.npy` file; replaced when all is done.
        num_threads: Threads that share the work; one takes at least 2**22 values, and two pay with the extra `fast`.
        progress: As in `quantize_file`.

    Raises:
        FileFormatError: The source is damaged.
    """
    check_threads(num_threads)
    arrays = open_arrays(source)
    stored = _stored(arrays, Path(source))
    layout = {name: arrays.layout[name] for name in arrays if not _beside(name, stored)}
    layout |= {name: Layout(numpy_dtype(own.dtype), own.shape) for name, own in stored.items()}
    total = sum(math.prod(entry.shape) for entry in layout.values())
    metadata = {key: value for key, value in arrays.metadata.items() if key != "qi"}
    with Progress("Dequantizing", total, progress) as bar, writing(target, layout, metadata) as sink:
        for name, entry in layout.items():
            if name not in stored:
                _copy(name, arrays[name], sink, bar)
                continue
            own, codes, at = stored[name], arrays[name], 0
            for where in _pieces(entry.shape, own.params.granularity):
                part = own.piece(codes, where, at)
                numbers = blocked.dequantize(
                    part, _at(own.params, where, entry.shape), dtype=entry.dtype, num_threads=num_threads
                )
                sink.write(name, numbers)
                at += part.size
                bar.advance(part.size)


def load_quantized(path: str | Path) -> dict[str, QTensor | np.ndarray]:
    """The arrays of a file that `quantize_file` wrote: quantized ones with their parameters, the others as they are.

    Raises:
        FileFormatError: The file is damaged, or of another version.
    """
    arrays = open_arrays(path)
    stored = _stored(arrays, Path(path))
    loaded: dict[str, QTensor | np.ndarray] = {}
    for name in arrays:
        if name in stored:
            own = stored[name]
            codes = own.piece(arrays[name], (slice(None),) * len(own.shape), 0)
            try:
                loaded[name] = QTensor(codes, own.params, own.dtype)
            except QiError as error:
                raise _damaged(Path(path), name, error) from error
        elif not _beside(name, stored):
            loaded[name] = np.array(arrays[name])
    return loaded


# Quantizing one array.


@dataclass(frozen=True)
class _Job:
    """One array of the source: how it is quantized, or why it isn't."""

    name: str
    like: Layout
    config: QuantizationConfig | None
    granularity: Granularity
    reason: str = ""

    @property
    def packed(self) -> bool:
        """Whether codes are stored as bytes of several."""
        return self.config is not None and self.config.bits not in (8, 16)

    def layout(self) -> dict[str, Layout]:
        """What it becomes in the target."""
        if self.config is None:
            return {self.name: self.like}
        grid, shape = self.config.grid, self.like.shape
        beside = self.granularity.param_shape(shape)
        codes = Layout(grid.storage_dtype, shape)
        if self.packed:
            codes = Layout(np.dtype("uint8"), (packed_nbytes(math.prod(shape), grid.bits),))
        made = {self.name: codes, f"{self.name}.scale": Layout(np.dtype("<f4"), beside)}
        if not (self.config.is_symmetric and grid.signed):
            made[f"{self.name}.zero_point"] = Layout(np.dtype("<i4"), beside)
        return made

    def facts(self) -> dict[str, Any]:
        """What the metadata say."""
        grid = self.config.grid if self.config is not None else IntGrid(8)
        return {
            "shape": list(self.like.shape),
            "dtype": self.like.dtype.name,
            "bits": grid.bits,
            "signed": grid.signed,
            "zero_point": f"{self.name}.zero_point" in self.layout(),
            "granularity": granularity_to_dict(self.granularity),
        }

    def run(self, array: np.ndarray, sink: Sink, bar: Progress, num_threads: int) -> FileRow:
        """Quantizes, or copies, into the target."""
        shape, dtype = self.like.shape, self.like.dtype.name
        stored = sum(entry.nbytes for entry in self.layout().values())
        if self.config is None:
            _copy(self.name, array, sink, bar)
            return FileRow(self.name, shape, dtype, None, self.reason, self.like.nbytes, stored)
        params = self._params(array, self.config, bar)
        clipped = nans = 0
        left = np.empty(0, params.grid.storage_dtype)
        for where in _pieces(shape, self.granularity):
            codes, counts = blocked.quantize(array[where], _at(params, where, shape), num_threads=num_threads)
            clipped, nans = clipped + counts.clipped, nans + counts.nans
            if not self.packed:
                sink.write(self.name, codes)
            else:
                left = np.concatenate([left, codes.ravel()])
                whole = left.size // 8 * 8  # codes that fill bytes
                sink.write(self.name, pack(left[:whole], self.config.bits))
                left = left[whole:]
            bar.advance(codes.size)
        if left.size:
            sink.write(self.name, pack(left, self.config.bits))
        beside = self.granularity.param_shape(shape)
        sink.write(f"{self.name}.scale", np.broadcast_to(params.scale, beside))
        if f"{self.name}.zero_point" in self.layout():
            sink.write(f"{self.name}.zero_point", np.broadcast_to(params.zero_point, beside))
        bits = self.config.bits
        return FileRow(self.name, shape, dtype, bits, "", self.like.nbytes, stored, clipped, nans)

    def _params(self, array: np.ndarray, config: QuantizationConfig, bar: Progress) -> QParams:
        if config.use_percentile or config.outlier_threshold is not None or config.enable_requantization:
            x = np.asarray(array)
            seen = see(x, self.granularity, config)
            refuse(seen.nans, seen.infs, config)
            params = params_of(seen.lo, seen.hi, self.granularity, config)
            bar.advance(x.size)
            return requantized(x, params, config) if config.enable_requantization else params
        shape = self.granularity.param_shape(self.like.shape)
        lo, hi = np.full(shape, np.inf), np.full(shape, -np.inf)
        groups = blocked.groups_of(self.like.shape, lo, self.granularity)
        for where in _pieces(self.like.shape, self.granularity):
            part = see(array[where], self.granularity, config)
            refuse(part.nans, part.infs, config)
            for ends, found, widen in ((lo, part.lo, np.minimum), (hi, part.hi, np.maximum)):
                own = blocked.part_of(ends, where, groups)
                widen(own, found.reshape(own.shape), out=own)
            bar.advance(array[where].size)
        empty = lo > hi
        lo[empty] = hi[empty] = 0.0
        return params_of(lo, hi, self.granularity, config)


def _job(name: str, like: Layout, config: QuantizationConfig, channel_dim: int | None, alone: bool) -> _Job:
    own, reason = config.for_layer(name), ""
    if like.dtype.newbyteorder("=") not in _FLOATS:
        reason = "no real numbers of 16, 32 or 64 bits"
    elif len(like.shape) < 2 and not alone:
        reason = "fewer than 2 dimensions"
    elif not config.should_quantize(name) or own.quantization_type is QuantizationType.NONE:
        reason = "skipped by the configuration"
    elif not own.quantization_type.integer:
        raise ConfigError(f"expected an integer type for {name!r}; received {own.quantization_type.value!r}")
    if reason:
        return _Job(name, like, None, PerTensor(), reason)
    try:  # refused now rather than half-way
        check_channel_dim(channel_dim, len(like.shape))
        sharing = own.sharing(channel_dim)
        sharing = PerTensor() if isinstance(sharing, PerChannel) and not like.shape else sharing
        sharing.param_shape(like.shape)
    except InputError as error:
        raise InputError(f"array {name!r}: {error}") from error
    return _Job(name, like, own, sharing)


def _copy(name: str, array: np.ndarray, sink: Sink, bar: Progress) -> None:
    for where in _pieces(array.shape, PerTensor()):
        sink.write(name, array[where])
        bar.advance(array[where].size)


# Reading what was written.


@dataclass(frozen=True)
class _Stored:
    """A quantized array in a file."""

    shape: Shape
    dtype: str
    params: QParams

    def piece(self, codes: np.ndarray, where: tuple[slice, ...], at: int) -> np.ndarray:
        """The codes of a piece, whose first element is the one at `at` in C order."""
        bits = self.params.grid.bits
        if bits in (8, 16):
            return codes[where]
        shape = tuple(len(range(*w.indices(n))) for w, n in zip(where, self.shape, strict=False))
        shape += self.shape[len(where) :]
        extra = at % 8  # codes before it in the first byte that they share
        count = math.prod(shape) + extra
        start = (at - extra) * bits // 8
        found = unpack(
            np.asarray(codes[start : start + packed_nbytes(count, bits)]),
            bits,
            (count,),
            signed=self.params.grid.signed,
        )
        return found[extra:].reshape(shape)


def _stored(arrays: Arrays, path: Path) -> dict[str, _Stored]:
    """The quantized arrays of a file.

    Raises:
        FileFormatError: The metadata or an array don't fit.
    """
    try:
        header = json.loads(arrays.metadata["qi"])
        if type(header["version"]) is not int or header["version"] != _VERSION:
            raise ValueError(f"version {header['version']!r} isn't {_VERSION}")
        return {name: _one(name, own, arrays) for name, own in header["arrays"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _damaged(path, "its metadata", error) from error


def _one(name: str, own: Mapping[str, Any], arrays: Arrays) -> _Stored:
    for key, kind in (("shape", list), ("bits", int), ("signed", bool), ("zero_point", bool)):
        if type(own[key]) is not kind:
            raise TypeError(f"{key!r} of {name!r} is {own[key]!r}")
    if not all(type(n) is int and n >= 0 for n in own["shape"]):
        raise ValueError(f"'shape' of {name!r} is {own['shape']!r}")
    shape = tuple(own["shape"])
    grid = IntGrid(own["bits"], signed=own["signed"])
    granularity = granularity_from_dict(own["granularity"])
    scale = arrays[f"{name}.scale"]
    zero_point = arrays[f"{name}.zero_point"] if own["zero_point"] else np.zeros((), np.int32)
    params = QParams(np.asarray(scale), np.asarray(zero_point), grid, granularity)
    params.check_shape(shape)
    expected = Layout(grid.storage_dtype, shape)
    if grid.bits not in (8, 16):
        expected = Layout(np.dtype("uint8"), (packed_nbytes(math.prod(shape), grid.bits),))
    if arrays.layout[name] != expected:
        raise ValueError(f"{name!r} is {arrays.layout[name]}, not {expected}")
    if own["dtype"] not in ("float16", "bfloat16", "float32", "float64"):
        raise ValueError(f"{name!r} has the dtype {own['dtype']!r}")
    return _Stored(shape, own["dtype"], params)


def _beside(name: str, stored: Mapping[str, _Stored]) -> bool:
    """Whether an array is a part of a quantized one."""
    head, _, tail = name.rpartition(".")
    return tail in ("scale", "zero_point") and head in stored


def _damaged(path: Path, what: str, error: Exception) -> FileFormatError:
    return FileFormatError(f"expected a file that quantize_file wrote; received {path.name!r} ({what}: {error})")


# Pieces.


def _pieces(shape: Shape, granularity: Granularity) -> Iterator[tuple[slice, ...]]:
    """Slices of at most `PIECE` elements, in C order, each of whole groups or within one."""
    groups = [1] * len(shape)
    if isinstance(granularity, PerGroup):
        groups[granularity.axis] = granularity.size
    return boxes(shape, PIECE, groups) if math.prod(shape) else iter(())


def _at(params: QParams, where: tuple[slice, ...], shape: Shape) -> QParams:
    """The parameters of a piece."""
    if params.scale.size == 1:
        return params
    groups = blocked.groups_of(shape, params.scale, params.granularity)
    own = [blocked.part_of(param, where, groups) for param in (params.scale, params.zero_point)]
    return QParams(own[0], own[1], params.grid, params.granularity)


_FLOATS = tuple(numpy_dtype(name) for name in ("float16", "bfloat16", "float32", "float64"))
