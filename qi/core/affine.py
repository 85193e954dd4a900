"""Quantize, dequantize, fake-quantize, requantize: the only place with round, clip and scale.

``x_hat = (clip(round(x / s) + z, qmin, qmax) - z) * s``, by these rules:

* division by the scale (never by its reciprocal), round half to even, then the integer zero point;
* arithmetic in float32 whatever the input's dtype, which the result gets back;
* inside a compiled function the scale has to be an argument or a variable: compilers (TensorFlow's graph
  optimizer, XLA, XLA under JAX) multiply by a constant's reciprocal instead, which moves codes next to ties;
* 0 maps to exactly 0; infinities saturate; NaN becomes the zero-point code in `quantize` and stays NaN in
  `fake_quantize`;
* ``fake_quantize(x)`` equals ``dequantize(quantize(x))`` bit for bit.

Every function takes a scale and zero point that broadcast against x (see `qi.core.QParams` for groups) and
works on numpy arrays, Keras tensors of every backend and torch tensors. Large numpy arrays go through
`qi.core.blocked`, which gives the same bits from a cache's worth of memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.core import sweep
from qi.core.gradients import straight_through, surrogate
from qi.core.grid import Grid, IntGrid, LutGrid
from qi.core.namespace import NUMPY, ArrayNamespace, namespace_of, numpy_dtype
from qi.core.rounding import ROUNDINGS
from qi.errors import InputError
from qi.typing import Array

__all__ = ["dequantize", "fake_quantize", "quantize", "requantize"]


_LARGE = 1 << 14


def _real(x: Any, xp: ArrayNamespace) -> Array:
    """The input as an array of real numbers."""
    x = xp.asarray(x) if xp is NUMPY else x
    kind = xp.dtype(x)
    if not kind.startswith(("float", "bfloat", "int", "uint", "bool")):
        raise InputError(f"expected an array of real numbers; received dtype={kind}")
    return x


def _float(value: Any, xp: ArrayNamespace, like: Array) -> Array:
    """A parameter as a float32 array of the namespace, where `like` is."""
    if xp is not NUMPY and namespace_of(value) is NUMPY:
        value = xp.asarray(np.asarray(value, np.float32))
    return xp.cast(xp.beside(value, like), "float32")


def _result_dtype(dtype: str) -> str:
    return dtype if "float" in dtype else "float32"


def _clipped(x: Array, scale: Array, zero_point: Array, grid: IntGrid, xp: ArrayNamespace) -> Array:
    """``x / scale`` clipped where the codes end: at integers, so clipping before rounding changes no code."""
    u = xp.divide(xp.cast(x, "float32"), scale)
    return xp.clip(u, np.float32(grid.qmin) - zero_point, np.float32(grid.qmax) - zero_point)


def _large(x: Array, scale: Array, zero_point: Array, xp: ArrayNamespace) -> bool:
    """Whether `qi.core.sweep` gives the same sooner: a numpy array of some size with zero points that are integers."""
    if xp is not NUMPY or not isinstance(x, np.ndarray) or x.size < _LARGE:
        return False
    fits = np.broadcast_shapes(x.shape, scale.shape, zero_point.shape) == x.shape
    return fits and bool(np.all((np.abs(zero_point) <= 2**16) & (np.rint(zero_point) == zero_point)))


def _in_blocks(name: str, x: Array, s: Array, z: Array, grid: IntGrid, dtype: np.dtype) -> Array:
    out = np.empty_like(x, dtype, subok=False)
    sweep.apply(name, x, out, s, z, grid)
    return out


def _midpoints(grid: LutGrid) -> np.ndarray:
    values = np.asarray(grid.values, np.float32)
    return (values[:-1] + values[1:]) / 2


def _lut_index(t: Array, grid: LutGrid, xp: ArrayNamespace) -> Array:
    """Index of the nearest entry; the lower one at a tie."""
    return xp.searchsorted(xp.asarray(_midpoints(grid)), t)


def quantize(
    x: Array,
    scale: Array,
    zero_point: Array,
    grid: Grid,
    *,
    rounding: str = "nearest",
    noise: Array | None = None,
) -> Array:
    """Real numbers to codes: ``clip(round(x / scale) + zero_point, qmin, qmax)``.

    Args:
        x: real array of any shape and dtype; computed in float32.
        scale: positive float32, broadcastable to x.
        zero_point: integer codes, broadcastable to x; ignored by a `LutGrid`.
        grid: which codes exist.
        rounding: a name from `qi.core.rounding.ROUNDINGS`; look-up tables always take the nearest entry.
        noise: uniform [0, 1) numbers for ``rounding="stochastic"``.

    Returns:
        codes of x's shape in ``grid.storage_dtype``.

    Raises:
        InputError: x isn't real, the rounding is unknown or lacks its noise.

    Example:
        >>> import numpy as np
        >>> quantize(np.array([-1.0, 0.0, 0.26, np.nan, np.inf]), 0.1, 3, IntGrid(4, signed=False)).tolist()
        [0, 3, 6, 3, 15]
    """
    xp = namespace_of(x, scale, zero_point)
    x = _real(x, xp)
    s = _float(scale, xp, x)
    if isinstance(grid, LutGrid):
        u = xp.divide(xp.cast(x, "float32"), s)
        nearest_zero = int(_lut_index(np.zeros((), np.float32), grid, NUMPY))
        index = xp.cast(_lut_index(u, grid, xp), "int32")
        return xp.cast(xp.where(xp.isnan(u), nearest_zero, index), grid.storage_dtype.name)
    z = _float(zero_point, xp, x)
    if rounding == "nearest" and _large(x, s, z, xp):
        return _in_blocks("quantize", x, s, z, grid, grid.storage_dtype)
    u = _clipped(x, s, z, grid, xp)
    q = ROUNDINGS.get(rounding)(u, xp=xp, noise=noise) + z
    return xp.cast(xp.where(xp.isnan(u), z, q), grid.storage_dtype.name)


def dequantize(codes: Array, scale: Array, zero_point: Array, grid: Grid, *, dtype: str = "float32") -> Array:
    """Codes to real numbers: ``(codes - zero_point) * scale``, or ``values[codes] * scale`` for a `LutGrid`.

    Args:
        codes: integer array.
        scale: float32, broadcastable to codes.
        zero_point: integer codes, broadcastable to codes.
        grid: which codes exist.
        dtype: of the result.

    Example:
        >>> import numpy as np
        >>> dequantize(np.array([0, 3, 15], np.uint8), 0.5, 3, IntGrid(4, signed=False)).tolist()
        [-1.5, 0.0, 6.0]
    """
    xp = namespace_of(codes, scale, zero_point)
    if isinstance(grid, LutGrid):
        values = xp.asarray(np.asarray(grid.values, np.float32))
        steps = xp.take(values, xp.cast(codes, "int32"))
        return xp.cast(xp.multiply(steps, _float(scale, xp, codes)), dtype)
    s, z = _float(scale, xp, codes), _float(zero_point, xp, codes)
    if _large(codes, s, z, xp):
        return _in_blocks("dequantize", codes, s, z, grid, numpy_dtype(dtype))
    return xp.cast(xp.multiply(xp.cast(codes, "float32") - z, s), dtype)


def fake_quantize(
    x: Array,
    scale: Array,
    zero_point: Array,
    grid: Grid,
    *,
    rounding: str = "nearest",
    noise: Array | None = None,
) -> Array:
    """What `quantize` then `dequantize` give, in x's dtype, with the straight-through gradient.

    The estimator sits on the grid, after the clip, so automatic differentiation yields 1 inside the range and
    0 outside for x, and the gradient of LSQ (arXiv:1902.08153) for the scale. Integer input gives float32.

    Args and Raises: as `quantize`.

    Example:
        >>> import numpy as np
        >>> fake_quantize(np.array([-3.0, 0.3, 0.26]), 0.5, 0, IntGrid(3)).tolist()
        [-2.0, 0.5, 0.5]
    """
    xp = namespace_of(x, scale, zero_point)
    x = _real(x, xp)
    s = _float(scale, xp, x)
    if isinstance(grid, LutGrid):
        u = xp.divide(xp.cast(x, "float32"), s)
        u = xp.clip(u, np.float32(grid.values[0]), np.float32(grid.values[-1]))
        value = xp.take(xp.asarray(np.asarray(grid.values, np.float32)), _lut_index(u, grid, xp))
        value = surrogate(value, u, xp=xp)  # u - u is NaN where u is
    else:
        z = _float(zero_point, xp, x)
        if rounding == "nearest" and _large(x, s, z, xp):
            return _in_blocks("fake_quantize", x, s, z, grid, numpy_dtype(_result_dtype(xp.dtype(x))))
        u = _clipped(x, s, z, grid, xp)
        value = straight_through(u, ROUNDINGS.get(rounding)(u, xp=xp, noise=noise), xp=xp)
    return xp.cast(xp.multiply(value, s), _result_dtype(xp.dtype(x)))


def requantize(
    codes: Array, scale: Array, zero_point: Array, new_scale: Array, new_zero_point: Array, grid: IntGrid
) -> Array:
    """Codes (or int32 accumulators) of one scale to codes of another by one float32 multiplier.

    ``clip(round(f32(codes - zero_point) * f32(scale / new_scale)) + new_zero_point, qmin, qmax)``: the
    multiplier is derived first, so next to a tie a result may differ by one step from `quantize` of the
    dequantized value.

    Args:
        codes: integer array; ``codes - zero_point`` fits int32.
        scale: float32 of the codes.
        zero_point: integer of the codes.
        new_scale: float32 of the result.
        new_zero_point: integer of the result.
        grid: of the result.

    Example:
        >>> import numpy as np
        >>> requantize(np.array([-20, 0, 7], np.int32), 0.5, 0, 1.0, 10, IntGrid(4, signed=False)).tolist()
        [0, 10, 14]
    """
    xp = namespace_of(codes, scale, zero_point, new_scale, new_zero_point)
    z, new_z = _float(zero_point, xp, codes), _float(new_zero_point, xp, codes)
    multiplier = xp.divide(_float(scale, xp, codes), _float(new_scale, xp, codes))
    multiplier = xp.clip(multiplier, np.float32(0), np.finfo(np.float32).max)  # an infinite one would make 0 NaN
    difference = xp.cast(codes, "int32") - xp.cast(z, "int32")
    q = xp.round(xp.multiply(xp.cast(difference, "float32"), multiplier)) + new_z
    return xp.cast(xp.clip(q, np.float32(grid.qmin), np.float32(grid.qmax)), grid.storage_dtype.name)
