"""Moments of a layer's input: what rounding, scaling and correction need to know of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from qi.errors import ConfigError, InputError, NotCalibratedError
from qi.observers.base import State
from qi.typing import Array

__all__ = ["Moments"]

_ROWS = 4096  # multiplied in float32 at a time at most: the sums of longer products would lose digits
_VALUES = 1 << 22  # at a time, or as many rows as there are features
_EXPONENTS = (-120, 126)  # whose powers of two float32 holds, inverses included
_TOLERANCE = 1e-3  # of float32 products, in what the arrays of a state are checked for


class Moments:
    """First and second moments of feature vectors: sums over rows, without the rows.

    A row is one product that a layer computes: of a Dense layer one input vector, of a convolution one patch.
    Rows that hold a NaN or an infinity are skipped and counted. Values are taken as float32 and multiplied in
    blocks as float32; the blocks are summed up as float64. Not for use by several threads at once: give each
    its own and merge them.

    Memory: ``8 * groups * features**2`` bytes.

    Args:
        groups: Independent groups of features (the channels of a depthwise convolution).
        features: Features per group; None takes them from the first rows.

    Attributes:
        groups: As given.
        features: As given, or those of the first rows; None before.
        count: Rows seen, without those skipped.
        nonfinite: Rows skipped because of a NaN or an infinity.

    Raises:
        ConfigError: If a number isn't a whole one from 1 on.

    Example:
        >>> seen = Moments()
        >>> seen.update(np.array([[[1.0, 2.0]], [[3.0, -2.0]]]))
        >>> seen.count, seen.mean.tolist(), seen.second.tolist()
        (2, [[2.0, 0.0]], [[[5.0, -2.0], [-2.0, 4.0]]])
    """

    _NUMBERS: ClassVar[tuple[str, ...]] = ("count", "nonfinite", "groups")
    _ARRAYS: ClassVar[dict[str, type[np.generic]]] = {
        "sum": np.float64,
        "abs_sum": np.float64,
        "absmax": np.float64,
        "second": np.float32,
    }

    def __init__(self, groups: int = 1, features: int | None = None) -> None:
        for name, value in (("groups", groups), ("features", features)):
            if (value is None and name == "features") or (_is_integer(value) and value >= 1):  # type: ignore[operator]
                continue
            raise ConfigError(f"expected {name} to be a whole number from 1 on; received {name}={value!r}")
        self.groups = int(groups)
        self.features: int | None = None
        self.count = self.nonfinite = 0
        if features is not None:
            self._open(int(features))

    def _open(self, features: int) -> None:
        self.features = features
        shape = (self.groups, features)
        self._sum, self._abs_sum, self._absmax = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self._products = np.zeros((*shape, features))  # sums of x x^T; only the upper triangle counts

    def update(self, rows: Array) -> None:
        """See some rows.

        Args:
            rows: Real numbers of any dtype ``[n, groups, features]``; n may be 0.

        Raises:
            InputError: If the dtype isn't real, or the shape another one.
        """
        rows = np.asarray(rows)
        if rows.dtype.kind not in "biuf" and not rows.dtype.name.startswith(("bfloat", "float", "int", "uint")):
            raise InputError(
                f"expected rows of real numbers; received dtype={rows.dtype}; convert them to a float dtype"
            )
        wanted = (self.groups, "features" if self.features is None else self.features)
        fits = rows.ndim == 3 and rows.shape[1] == self.groups and rows.shape[2] > 0
        if not fits or self.features not in (None, rows.shape[2]):
            raise InputError(f"expected rows of shape [n, {wanted[0]}, {wanted[1]}]; received shape {rows.shape}")
        if self.features is None:
            self._open(rows.shape[2])
        features = rows.shape[2]
        step = min(_ROWS, max(features, _VALUES // (self.groups * features)))
        for start in range(0, len(rows), step):
            with np.errstate(over="ignore", invalid="ignore"):  # to infinity, and NaN of small float types
                block = np.asarray(rows[start : start + step], np.float32)
            self._add(block)

    def _add(self, block: np.ndarray) -> None:
        finite = np.isfinite(block)
        if not finite.all():
            whole = finite.all(axis=(1, 2))
            self.nonfinite += len(block) - int(whole.sum())
            block = block[whole]
        if not len(block):
            return
        self.count += len(block)
        greatest = np.maximum(block.max(axis=0), -block.min(axis=0))
        self._absmax = np.maximum(self._absmax, greatest)
        # In units of a power of two per feature, exact to multiply with, float32 holds all products that matter.
        exponent = np.clip(np.frexp(greatest)[1], *_EXPONENTS)
        unit = np.ldexp(1.0, exponent)
        scaled = block * np.ldexp(np.float32(1), -exponent)
        columns = scaled.transpose(1, 2, 0)  # which BLAS reads as it is
        products = np.matmul(columns, columns.transpose(0, 2, 1)).astype(np.float64)
        products *= unit[:, :, None]
        products *= unit[:, None, :]
        self._products += products
        self._sum += scaled.sum(axis=0, dtype=np.float64) * unit
        self._abs_sum += np.abs(scaled, out=scaled).sum(axis=0, dtype=np.float64) * unit

    def merge(self, other: Moments) -> Moments:
        """Return new moments of the rows that these and `other` have seen.

        Raises:
            ConfigError: If `other` is something else or has other groups.
            InputError: If it has other features.
        """
        if not isinstance(other, Moments) or other.groups != self.groups:
            groups = getattr(other, "groups", None)
            raise ConfigError(
                f"expected Moments of {self.groups} groups to merge with; received a {type(other).__name__} of {groups}"
            )
        features = {part.features for part in (self, other)} - {None}
        if len(features) > 1:
            raise InputError(f"expected {self.features} features to merge with; received {other.features}")
        merged = Moments(self.groups, *features)
        for part in (self, other):
            merged.count += part.count
            merged.nonfinite += part.nonfinite
            if part.features is not None:
                merged._sum += part._sum
                merged._abs_sum += part._abs_sum
                merged._absmax = np.maximum(merged._absmax, part._absmax)
                merged._products += part._products
        return merged

    def scaled(self, factors: Array) -> Moments:
        """Return the moments of ``x * factors``, without the rows.

        Args:
            factors: Finite real numbers ``[groups, features]``.

        Raises:
            NotCalibratedError: If no row was seen.
            InputError: If the factors have another shape, or one isn't finite.
        """
        self._require_rows()
        factors = np.asarray(factors, np.float64)
        if factors.shape != self._sum.shape or not np.isfinite(factors).all():
            raise InputError(f"expected finite factors of shape {self._sum.shape}; received shape {factors.shape}")
        made = Moments(self.groups, self.features)
        made.count, made.nonfinite = self.count, self.nonfinite
        made._sum, made._absmax = self._sum * factors, self._absmax * np.abs(factors)
        made._abs_sum = self._abs_sum * np.abs(factors)
        made._products = self._products * factors[:, :, None] * factors[:, None, :]
        return made

    def shifted(self, offsets: Array) -> Moments:
        """Return the moments of ``x - offsets``, without the rows.

        Mean and second moments are exact up to rounding; `absmax` and `absmean` are upper bounds, the former the greater of
        ``absmax - offset`` and ``offset`` where all values and the offset have one sign.

        Args:
            offsets: Finite real numbers ``[groups, features]``.

        Raises:
            NotCalibratedError: If no row was seen.
            InputError: If the offsets have another shape, or one isn't finite.

        Example:
            >>> seen = Moments()
            >>> seen.update(np.array([[[1.0, 2.0]], [[3.0, 2.0]]]))
            >>> moved = seen.shifted([[1.0, 2.0]])
            >>> moved.mean.tolist(), moved.second.tolist()
            ([[1.0, 0.0]], [[[2.0, 0.0], [0.0, 0.0]]])
        """
        self._require_rows()
        offsets = np.asarray(offsets, np.float64)
        if offsets.shape != self._sum.shape or not np.isfinite(offsets).all():
            raise InputError(f"expected finite offsets of shape {self._sum.shape}; received shape {offsets.shape}")
        made = Moments(self.groups, self.features)
        made.count, made.nonfinite = self.count, self.nonfinite
        made._sum = self._sum - self.count * offsets
        moved = self._sum[:, :, None] * offsets[:, None, :]
        made._products = self._products - moved - moved.swapaxes(1, 2)
        made._products += self.count * offsets[:, :, None] * offsets[:, None, :]
        power = np.maximum(np.diagonal(made._products, axis1=1, axis2=2), made._sum**2 / self.count)
        places = np.arange(offsets.shape[1])
        rounded = np.sqrt(power)  # which rounding may leave smaller than what other features made with these
        limit = rounded[:, :, None] * rounded[:, None, :]
        made._products = np.clip(made._products, -limit, limit)
        made._products[:, places, places] = power
        magnitude = np.abs(offsets)
        one_sign = (self._abs_sum <= np.abs(self._sum) * (1 + 1e-6)) & (self._sum * offsets >= 0)
        bound = np.where(one_sign, np.maximum(self._absmax - magnitude, magnitude), self._absmax + magnitude)
        made._absmax = np.clip(bound, np.sqrt(power / self.count), rounded)
        made._abs_sum = np.minimum(np.sqrt(power * self.count), made._absmax * self.count)
        return made

    @property
    def mean(self) -> np.ndarray:
        """E[x], float64 ``[groups, features]``.

        Raises:
            NotCalibratedError: If no row was seen; so do all of them.
        """
        self._require_rows()
        return self._sum / self.count

    @property
    def absmean(self) -> np.ndarray:
        """E[abs(x)], float64 ``[groups, features]``."""
        self._require_rows()
        return self._abs_sum / self.count

    @property
    def absmax(self) -> np.ndarray:
        """The greatest abs(x), float64 ``[groups, features]``; exact."""
        self._require_rows()
        return self._absmax.copy()

    @property
    def second(self) -> np.ndarray:
        """E[x x^T], float64 ``[groups, features, features]``, symmetric, as precise as float32 is.

        The values are rounded so that moments read from a file give the very same ones.
        """
        self._require_rows()
        unit = self._unit()
        upper = np.triu(self._rounded(unit).astype(np.float64) * unit[:, :, None] * unit[:, None, :])
        return np.asarray(upper + np.triu(upper, 1).swapaxes(1, 2))

    @property
    def covariance(self) -> np.ndarray:
        """E[x x^T] - E[x] E[x]^T, float64 ``[groups, features, features]``."""
        mean = self.mean
        return np.asarray(self.second - mean[:, :, None] * mean[:, None, :])

    def _require_rows(self) -> None:
        if self.count == 0:
            raise NotCalibratedError(
                f"expected Moments that have seen finite rows; received some with none ({self.nonfinite} rows with "
                "NaN or infinite values); update them first"
            )

    def _unit(self) -> np.ndarray:
        """A power of two at or above each feature's greatest magnitude, float64 ``[groups, features]``."""
        return np.asarray(np.ldexp(1.0, np.frexp(self._absmax)[1]))

    def _rounded(self, unit: np.ndarray) -> np.ndarray:
        """The mean products in units, within -1..1: float32 holds them whatever the features' magnitudes."""
        inverse = (1.0 / unit) / max(self.count, 1)
        return np.asarray(self._products * inverse[:, :, None] / unit[:, None, :], np.float32)

    def state(self) -> State:
        """Return everything as plain arrays; what `from_state` makes of them has the same values bit for bit.

        ``second`` is the upper triangle of E[x x^T] by rows, as float32 ``[groups, features (features + 1) / 2]``
        in units of powers of two: the products are of float32, so float64 would take twice the space for no
        digits more.
        """
        state = {name: np.asarray(getattr(self, name), np.int64) for name in self._NUMBERS}
        if self.features is not None:
            rows, columns = np.triu_indices(self.features)
            state |= {name: getattr(self, f"_{name}").copy() for name in ("sum", "abs_sum", "absmax")}
            state["second"] = self._rounded(self._unit())[:, rows, columns]
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Self:
        """Return the moments that `state` describes.

        Raises:
            InputError: If arrays are missing, unknown, of a wrong type or shape, or contradict each other.
        """
        arrays = {name: np.asarray(value) for name, value in state.items()}
        expected = {*cls._NUMBERS, *cls._ARRAYS} if set(arrays) - {*cls._NUMBERS} else {*cls._NUMBERS}
        if set(arrays) != expected:
            raise InputError(f"expected the arrays {sorted({*cls._NUMBERS, *cls._ARRAYS})}; received {sorted(arrays)}")
        count, nonfinite, groups = (_number(arrays, name) for name in cls._NUMBERS)
        if groups < 1 or (count and "sum" not in arrays):
            raise InputError(f"expected moments of at least one group; received groups={groups}, count={count}")
        made = cls(groups)
        made.count, made.nonfinite = count, nonfinite
        if "sum" in arrays:
            made._restore(arrays)
        return made

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        shape = arrays["sum"].shape
        features = shape[1] if len(shape) == 2 else 0
        shapes = dict.fromkeys(self._ARRAYS, (self.groups, features))
        shapes["second"] = (self.groups, features * (features + 1) // 2)
        for name, dtype in self._ARRAYS.items():
            array = arrays[name]
            if not features or array.dtype != dtype or array.shape != shapes[name] or not np.isfinite(array).all():
                raise InputError(
                    f"expected {name} as {np.dtype(dtype)} {shapes[name]}, finite; received {array.dtype} {array.shape}"
                )
        self._open(features)
        self._sum, self._abs_sum, self._absmax = (arrays[name].copy() for name in ("sum", "abs_sum", "absmax"))
        rows, columns = np.triu_indices(features)
        unit = self._unit()
        triangle = arrays["second"] * unit[:, rows] * unit[:, columns] * self.count
        self._products[:, rows, columns] = triangle
        if not self._is_consistent(arrays["second"], rows, columns):
            raise InputError("expected the arrays of Moments to fit each other; received damaged ones")

    def _is_consistent(self, second: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> bool:
        """Whether the arrays can be those of `count` rows."""
        slack, count, unit = 1 + _TOLERANCE, max(self.count, 1), self._unit()
        power = second[:, rows == columns].astype(np.float64)
        greatest, absmean, mean = self._absmax / unit, self._abs_sum / count / unit, np.abs(self._sum) / count / unit
        spread = np.sqrt(np.maximum(power, 0.0)) * slack
        return bool(
            (self._absmax >= 0).all()
            and (mean <= absmean * slack).all()
            and (absmean <= spread).all()
            and (power <= greatest * absmean * slack).all()
            and (greatest**2 <= power * count * slack).all()
            and (greatest.any() <= self.count)
            and (np.abs(second) <= spread[:, rows] * spread[:, columns]).all()
        )


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _number(arrays: Mapping[str, np.ndarray], name: str) -> Any:
    array = arrays[name]
    if array.shape != () or array.dtype.kind not in "iu" or array < 0:
        raise InputError(f"expected a whole number {name} from 0 on; received {array.dtype} {array.shape}")
    return array.item()
