"""QParams (how a tensor is quantized) and QTensor (its codes together with how)."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any, Self

import numpy as np

from qi.core import affine, blocked
from qi.core.granularity import Granularity, PerTensor
from qi.core.grid import Grid, IntGrid, code_bits
from qi.core.namespace import NUMPY, namespace_of
from qi.core.packing import pack, unpack
from qi.errors import ConfigError, InputError
from qi.typing import Array, Shape

__all__ = ["QParams", "QTensor"]

_SMALL = 1 << 13  # codes that are quicker handled as a whole


def _owned(value: Any, dtype: str) -> np.ndarray:
    """A private, read-only copy."""
    array = np.array(value, dtype=dtype)
    array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale, zero point, grid and granularity of one tensor; immutable and checked.

    Args:
        scale: float32, positive, finite and not subnormal (TensorFlow and XLA would take it for 0); rank of
            the tensor, 1 along shared axes (a scalar for any rank).
        zero_point: integer codes within the grid, shaped like scale or a scalar.
        grid: which codes exist.
        granularity: which elements share a scale.
        config: what asked for them, where something did; not part of what they are.

    Raises:
        ConfigError: a scale is zero, negative, subnormal or not finite; a zero point is fractional or off the
            grid (for a `LutGrid`, not 0); shapes differ.

    Example:
        >>> params = QParams(0.5, 0, IntGrid(4))
        >>> params.quantize([0.4, 1.3, 99.0]).codes.tolist()
        [1, 3, 7]
    """

    scale: np.ndarray
    zero_point: np.ndarray
    grid: Grid
    granularity: Granularity = field(default_factory=PerTensor)
    config: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.grid, Grid) or not isinstance(self.granularity, Granularity):
            raise ConfigError(
                f"expected a grid and a granularity of qi.core; received {self.grid!r} and {self.granularity!r}"
            )
        try:
            with np.errstate(over="ignore"):
                scale = _owned(self.scale, "float32")
        except (TypeError, ValueError):
            raise ConfigError(f"expected scales to be numbers; received scale={self.scale!r}") from None
        good = np.isfinite(scale) & (scale >= np.finfo(np.float32).tiny)
        if not np.all(good):
            raise ConfigError(
                "expected scales to be positive and finite, at least 1.1754944e-38 (float32's smallest "
                f"normal number); received scale={np.asarray(self.scale)[~good].flat[0]}"
            )
        try:
            raw = np.asarray(self.zero_point, np.float64)
        except (TypeError, ValueError):
            raise ConfigError(f"expected zero points to be integers; received zero_point={self.zero_point!r}") from None
        if not np.all(np.isfinite(raw)) or np.any(raw != np.rint(raw)):
            raise ConfigError(f"expected zero points to be integers; received zero_point={self.zero_point!r}")
        if raw.ndim and raw.shape != scale.shape:
            raise ConfigError(f"expected zero_point shaped like scale {scale.shape}; received {raw.shape}")
        lowest, highest = (self.grid.qmin, self.grid.qmax) if isinstance(self.grid, IntGrid) else (0, 0)
        if np.any(raw < lowest) or np.any(raw > highest):
            raise ConfigError(
                f"expected zero points from {lowest} to {highest}; received {raw.min():g} to {raw.max():g}"
            )
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", _owned(np.broadcast_to(raw, scale.shape), "int32"))

    @classmethod
    def of(
        cls, scale: np.ndarray, zero_point: np.ndarray, grid: Grid, granularity: Granularity, config: Any = None
    ) -> Self:
        """Parameters that `qi.core.scaling` just made: float32 and int32 of one shape; nothing is checked or copied."""
        params = cls.__new__(cls)
        scale.flags.writeable = zero_point.flags.writeable = False
        own = {"scale": scale, "zero_point": zero_point, "grid": grid, "granularity": granularity, "config": config}
        params.__dict__.update(own)
        return params

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QParams):
            return NotImplemented
        alone = isinstance(self.granularity, PerTensor)  # one scale: for a tensor of any rank
        return (
            (self.grid, self.granularity) == (other.grid, other.granularity)
            and (alone or self.scale.shape == other.scale.shape)
            and np.array_equal(self.scale.ravel(), other.scale.ravel())
            and np.array_equal(self.zero_point.ravel(), other.zero_point.ravel())
        )

    def __hash__(self) -> int:
        found: int | None = self.__dict__.get("_hash")
        if found is None:  # once: it takes as long as reading all scales
            found = hash((self.grid, self.granularity, self.scale.tobytes(), self.zero_point.tobytes()))
            self.__dict__["_hash"] = found
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of scales and zero points."""
        return int(self.scale.nbytes + self.zero_point.nbytes)

    def check_shape(self, shape: Shape) -> None:
        """Raises InputError unless these parameters fit a tensor of `shape`."""
        expected = self.granularity.param_shape(tuple(shape))
        if self.scale.shape != expected and not (isinstance(self.granularity, PerTensor) and self.scale.size == 1):
            raise InputError(
                f"expected scales of shape {expected} for a tensor of shape {tuple(shape)} "
                f"({self.granularity}); received {self.scale.shape}"
            )

    def expanded(self, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
        """(scale, zero_point) as arrays that broadcast against a tensor of `shape`."""
        self.check_shape(shape)
        if self.scale.size == 1:
            return self.scale.reshape(()), self.zero_point.reshape(())
        expand = self.granularity.expand
        return expand(self.scale, tuple(shape)), expand(self.zero_point, tuple(shape))

    def quantize(self, x: Array, *, rounding: str = "nearest", noise: Array | None = None) -> QTensor:
        """Codes of an array (brought to numpy), and how many NaN it has; see `qi.core.affine.quantize`."""
        x = np.asarray(x)
        dtype = x.dtype.name if "float" in x.dtype.name else "float32"
        if rounding == "nearest":
            return self.quantize_counted(x, dtype=dtype)[0]
        codes = affine.quantize(x, *self.expanded(x.shape), self.grid, rounding=rounding, noise=noise)
        nans = int(np.isnan(x).sum()) if x.dtype.kind not in "iub" else 0
        return QTensor.of(codes, self, dtype, nans)

    def quantize_counted(
        self, x: np.ndarray, *, dtype: str = "float32", num_threads: int = 1, block: int | None = None
    ) -> tuple[QTensor, blocked.Counts]:
        """Codes of a numpy array, rounded to the nearest, and what was met on the way; packed as they are made.

        Args:
            x: as of `qi.core.blocked.quantize`.
            dtype: that the tensor's `dequantize` gives.
            num_threads: as there.
            block: as there; for codes that aren't packed.
        """
        bits = code_bits(self.grid)
        if bits == 8 * self.grid.storage_dtype.itemsize or x.size <= _SMALL:
            codes, counts = blocked.quantize(x, self, num_threads=num_threads, block=block)
            return QTensor.of(codes, self, dtype, counts.nans), counts
        stored, counts = blocked.quantize_packed(x, self, num_threads=num_threads)
        return QTensor.of_packed(stored, x.shape, self, dtype, counts.nans), counts

    def fake_quantize(self, x: Array) -> Array:
        """Fake-quantized x, in x's own framework and dtype."""
        if namespace_of(x) is NUMPY:
            return blocked.fake_quantize(x, self)[0]
        scale, zero_point = self.expanded(tuple(x.shape))
        return affine.fake_quantize(x, scale, zero_point, self.grid)


class QTensor:
    """Codes and the parameters that made them: immutable, shape-checked, and packed where codes have few bits.

    Args:
        codes: integer array.
        qparams: how to read the codes.
        dtype: float dtype that `dequantize` gives.
        nan_count: NaN inputs that were stored as the zero-point code.

    Raises:
        ConfigError: codes off the grid or of a wrong dtype.
        InputError: the parameters don't fit the shape.

    Example:
        >>> tensor = QTensor(np.int8([1, -2, 7]), QParams(0.5, 0, IntGrid(4)))
        >>> tensor.dequantize().tolist(), tensor.data_nbytes, tensor.nbytes
        ([0.5, -1.0, 3.5], 2, 6)
    """

    __slots__ = ("_shape", "_stored", "dtype", "nan_count", "qparams")

    qparams: QParams
    dtype: str
    nan_count: int
    _shape: Shape
    _stored: np.ndarray

    def __init__(self, codes: Array, qparams: QParams, dtype: str = "float32", nan_count: int = 0) -> None:
        if not isinstance(qparams, QParams):
            raise ConfigError(f"expected QParams; received qparams={qparams!r}")
        raw = np.asarray(codes)
        grid = qparams.grid
        lowest, highest = (grid.qmin, grid.qmax) if isinstance(grid, IntGrid) else (0, grid.levels - 1)
        if raw.dtype.kind not in "iu":
            raise ConfigError(f"expected integer codes from {lowest} to {highest}; received dtype={raw.dtype}")
        if raw.size and (raw.min() < lowest or raw.max() > highest):
            raise ConfigError(f"expected codes from {lowest} to {highest}; received {raw.min()} to {raw.max()}")
        qparams.check_shape(raw.shape)
        self._keep(_owned(raw, grid.storage_dtype.name), qparams, dtype, nan_count)

    @classmethod
    def of(cls, codes: np.ndarray, qparams: QParams, dtype: str = "float32", nan_count: int = 0) -> Self:
        """Codes that `quantize` just made with these parameters: nothing is checked, nor copied where it needn't be."""
        tensor = cls.__new__(cls)
        tensor._keep(codes, qparams, dtype, nan_count)
        return tensor

    @classmethod
    def of_packed(
        cls, stored: np.ndarray, shape: Shape, qparams: QParams, dtype: str = "float32", nan_count: int = 0
    ) -> Self:
        """Likewise, of codes that are packed already."""
        tensor = cls.__new__(cls)
        tensor._set(stored, shape, qparams, dtype, nan_count)
        return tensor

    def _keep(self, codes: np.ndarray, qparams: QParams, dtype: str, nan_count: int) -> None:
        bits = code_bits(qparams.grid)
        stored = codes if bits == 8 * codes.itemsize else pack(codes, bits)
        codes.flags.writeable = False
        self._set(stored, codes.shape, qparams, dtype, nan_count)

    def _set(self, stored: np.ndarray, shape: Shape, qparams: QParams, dtype: str, nan_count: int) -> None:
        stored.flags.writeable = False
        fields = {"qparams": qparams, "dtype": dtype, "nan_count": nan_count, "_shape": shape, "_stored": stored}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"expected a QTensor to stay as it is; received {name}={value!r}")

    __delattr__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"QTensor(shape={self.shape}, bits={self.bits}, scales={self.qparams.scale.size}, nbytes={self.nbytes})"

    def __reduce__(self) -> Any:
        return type(self).of_packed, (self._stored, self._shape, self.qparams, self.dtype, self.nan_count)

    @property
    def codes(self) -> np.ndarray:
        """The codes in ``qparams.grid.storage_dtype``, read-only; unpacked at each access where they are packed."""
        grid = self.qparams.grid
        if self.bits == 8 * grid.storage_dtype.itemsize:
            return self._stored
        codes = unpack(self._stored, self.bits, self._shape, signed=isinstance(grid, IntGrid) and grid.signed)
        codes = codes.astype(grid.storage_dtype, copy=False)
        codes.flags.writeable = False
        return codes

    @property
    def data(self) -> np.ndarray:
        """Another name of `codes`."""
        return self.codes

    @property
    def params(self) -> QParams:
        """Another name of `qparams`."""
        return self.qparams

    @property
    def shape(self) -> Shape:
        """Shape of the tensor."""
        return self._shape

    @property
    def bits(self) -> int:
        """Bits that one stored code takes."""
        return code_bits(self.qparams.grid)

    @property
    def data_nbytes(self) -> int:
        """Bytes of the codes, as they are held in memory and in files."""
        return int(self._stored.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of it all: codes, scales, and zero points where any is not 0."""
        params = self.qparams.scale.nbytes + (self.qparams.zero_point.nbytes if self.qparams.zero_point.any() else 0)
        return self.data_nbytes + params

    @property
    def compression_ratio(self) -> float:
        """Bytes of the tensor in float32 over `nbytes`."""
        return 4 * math.prod(self._shape) / self.nbytes

    def dequantize(
        self, *, out: np.ndarray | None = None, dtype: str | None = None, num_threads: int = 1
    ) -> np.ndarray:
        """The real numbers that the codes stand for; packed ones are never unpacked as a whole.

        Args:
            out: gets them: of the tensor's shape.
            dtype: of the result; the tensor's own by default.
            num_threads: as of `qi.core.blocked.dequantize`.
        """
        how: Any = {"out": out, "dtype": dtype or self.dtype, "num_threads": num_threads}
        if self._stored.shape == self._shape or math.prod(self._shape) <= _SMALL:
            return blocked.dequantize(self.codes, self.qparams, **how)
        return blocked.dequantize_packed(self._stored, self._shape, self.qparams, **how)
