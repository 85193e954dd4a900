"""Factors of channels: bounded, and applied along axes of arrays."""

from __future__ import annotations

from math import prod

import numpy as np

from qi.algorithms.options import Flag, Number
from qi.errors import InputError
from qi.typing import Array

__all__ = ["LIMIT", "POWER_OF_TWO", "bounded_factors", "checked", "scale_axis"]

LIMIT = Number(least=1)
"""Of factors and their inverses."""

POWER_OF_TWO = Flag()
"""Whether factors are powers of two."""


def bounded_factors(factors: Array, *, limit: float = 1000.0, power_of_two: bool = False) -> np.ndarray:
    """Factors within ``1 / limit .. limit``, 1 where there is none to choose.

    Args:
        factors: Numbers from 0 on of any shape; 0, infinity and NaN, as dead channels make them, become 1.
        limit: From 1 on.
        power_of_two: Whether to round to the nearest power of two (in the exponent), so that scaling and scaling back
            changes no bit of a float.

    Returns:
        float64, of the same shape.

    Raises:
        ConfigError: If the limit is below 1 or not finite.

    Example:
        >>> bounded_factors([0.0, 3.0, 1e9, np.inf], limit=100.0).tolist()
        [1.0, 3.0, 100.0, 1.0]
        >>> bounded_factors([3.0], power_of_two=True).tolist()
        [4.0]
    """
    LIMIT("limit", limit)
    POWER_OF_TWO("power_of_two", power_of_two)
    given = np.asarray(factors, np.float64)
    alive = np.isfinite(given) & (given > 0)
    safe = np.clip(np.where(alive, given, 1.0), 1.0 / limit, limit)
    if power_of_two:
        most = np.floor(np.log2(limit))
        safe = np.exp2(np.clip(np.round(np.log2(safe)), -most, most))
    return np.asarray(safe)


def scale_axis(array: Array, factors: Array, axis: int | tuple[int, ...]) -> np.ndarray:
    """Multiply an array by one factor per channel.

    Args:
        array: Floats of any shape.
        factors: ``[channels]``.
        axis: Whose index is the channel; several axes count the channels in row-major order, as the output channels
            of a depthwise kernel ``[kh, kw, c, m]`` are counted over axes ``(2, 3)``.

    Returns:
        The product, computed as float64, of the array's dtype.

    Raises:
        InputError: If there is no such axis, or not as many factors as channels.

    Example:
        >>> scale_axis(np.ones((2, 3)), [1.0, 2.0, 3.0], axis=1).tolist()
        [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    """
    array, factors = np.asarray(array), np.asarray(factors, np.float64)
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not all(-array.ndim <= one < array.ndim for one in axes):
        raise InputError(f"expected an array with axis {axis}; received shape {array.shape}")
    places = [one % array.ndim for one in axes]
    lengths = [array.shape[one] for one in places]
    if places != sorted(set(places)) or factors.shape != (prod(lengths),):
        raise InputError(
            f"expected {prod(lengths)} factors for ascending axes {axis} of shape {array.shape}; "
            f"received factors of shape {factors.shape}"
        )
    shape = [length if place in places else 1 for place, length in enumerate(array.shape)]
    return np.asarray(array.astype(np.float64) * factors.reshape(shape), array.dtype)


def checked(name: str, values: Array, shape: tuple[int, ...] | None = None, *, least: float = -np.inf) -> np.ndarray:
    """Values as float64, after a look at their shape, finiteness and least value.

    Raises:
        InputError: If they are of another shape (None allows any vector), not finite or below `least`.
    """
    found = np.asarray(values, np.float64)
    fits = found.ndim == 1 if shape is None else found.shape == shape
    if not fits or not np.isfinite(found).all() or (found < least).any():
        bound = f" from {least:g} on" if np.isfinite(least) else ""
        raise InputError(
            f"expected {name} as finite numbers{bound} of shape {'[channels]' if shape is None else shape}; "
            f"received shape {found.shape}"
        )
    return found
