"""The steps to a grid, as runtimes do them, on tensors: each gives (function of the real numbers, function of the exact codes).

Codes are float32 integers without their zero point. Scales are tensors, for they may train.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import keras

from qi.core.namespace import namespace_of
from qi.ir.formulas import fixed_sum, fused_sum, integer_mean, offset_mean, rounded_product, rounded_real
from qi.ir.linear import EXACT32
from qi.keras.exact_fixed import (
    divided_factor,
    half_away,
    multiplied,
    multiplied_twice,
    multiplier_of,
)
from qi.registry import Registry

__all__ = ["EXACT_TARGETS", "STEPS", "STEP_SHAPES"]

EXACT_TARGETS = ("litert", "onnxruntime", "reference")
"""The runtimes whose arithmetic Keras models can have."""

Step = Callable[..., tuple[Callable[[], Any], Callable[[], Any]]]
STEPS: Registry[Step] = Registry("step to a grid")
"""By name: takes the target, scale and zero point of the grid, then tensors and attributes of its own."""


def _reduced(shape: Any, axes: Any, keepdims: bool) -> tuple[Any, ...]:
    axes = [axis % len(shape) for axis in axes]
    kept = [1 if i in axes else n for i, n in enumerate(shape) if keepdims or i not in axes]
    return tuple(kept)


def _broadcast(a: Any, b: Any) -> tuple[Any, ...]:
    """The shape of both together; sizes that are open stay so."""
    a, b = ((1,) * (max(len(a), len(b)) - len(s)) + tuple(s) for s in (a, b))
    return tuple(m if n == 1 else n for n, m in zip(a, b, strict=True))


STEP_SHAPES: dict[str, Callable[..., Any]] = {
    "add": lambda tensors, **attrs: _broadcast(tensors[0].shape, tensors[3].shape),
    "mul": lambda tensors, **attrs: _broadcast(tensors[0].shape, tensors[3].shape),
    "matmul": lambda tensors, **attrs: (*tensors[0].shape[:-1], tensors[3].shape[-1]),
    "mean": lambda tensors, **attrs: _reduced(tensors[0].shape, attrs["axes"], attrs["keepdims"]),
}
"""What shape a step gives, where that isn't the shape of its first tensor."""


def _wide(*tensors: Any) -> Any:
    return tuple(keras.ops.cast(x, "float64") for x in tensors)


def _integers(x: Any) -> Any:
    return keras.ops.cast(x, "int64")


def _codes(x: Any) -> Any:
    return keras.ops.cast(x, "float32")


def _fixed(x: Any, factor: Any, by: str = "twice") -> Any:
    """Codes: the product of integers and a positive factor as LiteRT's own kernels make it."""
    return multiplied(x, multiplier_of(_wide(factor)[0]), by)


@STEPS.register("real")
def _from_real(target: str, scale: Any, zero: Any, x: Any) -> Any:
    if target == "reference":
        return lambda: x, lambda: half_away(namespace_of(x).divide(x, scale))
    return lambda: x, lambda: rounded_real(x, scale, reciprocal=target == "litert")


@STEPS.register("given")
def _from_given(target: str, scale: Any, zero: Any, codes: Any) -> Any:
    """What a layer has computed, codes with their zero point; the real numbers are another's."""
    del target, scale
    return lambda: None, lambda: codes - zero


@STEPS.register("rescale")
def _from_codes(target: str, scale: Any, zero: Any, x: Any, sx: Any, zx: Any) -> Any:
    """From one grid to another."""
    if target == "onnxruntime":
        return lambda: x * sx, lambda: rounded_real(x * sx, scale, reciprocal=False)
    if target == "reference":
        return lambda: x * sx, lambda: _fixed(x, sx / scale)
    return lambda: x * sx, lambda: rounded_product(x, sx / scale)


@STEPS.register("sums")
def _from_sums(target: str, scale: Any, zero: Any, sums: Any, factor: Any, *, by: str = "float") -> Any:
    """Of a convolution or product.

    `by` says how it is multiplied with its factor: in "float", or in fixed point, where the factor has double precision.
    """
    del target
    real = lambda: _codes(sums * factor)
    if by == "float":
        return real, lambda: _by_channel(rounded_product, sums, factor / scale)
    return real, lambda: _by_channel(partial(_fixed, by=by), sums, factor / _wide(scale)[0])


def _by_channel(product: Callable[[Any, Any], Any], sums: Any, factor: Any) -> Any:
    """The product with a factor for each channel, along whole rows at once: short vectors make broadcasting slow."""
    shape = tuple(sums.shape)
    if factor.shape[0] == 1 or len(shape) < 3 or None in shape[1:]:
        return product(sums, factor)
    rows = keras.ops.reshape(sums, (-1, shape[-2] * shape[-1]))
    return keras.ops.reshape(product(rows, keras.ops.tile(factor, shape[-2])), (-1, *shape[1:]))


@STEPS.register("add")
def _from_add(
    target: str, scale: Any, zero: Any, a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, *, sign: int = 1
) -> Any:
    def exact() -> Any:
        ra, rb = sa / scale, sb / scale
        if target == "litert":
            return fixed_sum(a, ra, b, rb, sign=sign)
        if target == "reference":
            return _common_sum(scale, a, sa, b, sb, sign)
        # Codes are uint8 there; those of a negative are 255 less the code.
        ua, uy = za + 128.0, zero + 128.0
        ub = zb + 128.0 if sign > 0 else 127.0 - zb
        offset = uy - fused_sum(ra, ua, rb, ub, keras.ops.zeros_like(ra))
        return keras.ops.round(fused_sum(a + ua, ra, b if sign > 0 else -b, rb, offset, ub)) - uy

    return lambda: a * sa + sign * b * sb, exact


def _common_sum(scale: Any, a: Any, sa: Any, b: Any, sb: Any, sign: int) -> Any:
    """Both with 20 more bits at twice the larger scale, then at the scale of the result."""
    wa, wb, wy = _wide(sa, sb, scale)
    common = 2.0 * keras.ops.maximum(wa, wb)
    first, second = (multiplied_twice(_integers(x * 2.0**20), multiplier_of(w / common)) for x, w in ((a, wa), (b, wb)))
    return _codes(multiplied_twice(first + sign * second, multiplier_of(common / (2.0**20 * wy))))


@STEPS.register("mul")
def _from_mul(target: str, scale: Any, zero: Any, a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any) -> Any:
    products = a * b

    def exact() -> Any:
        factor = (sa * sb) / scale
        if target == "reference":
            return _fixed(products, factor)
        if target == "litert":
            return rounded_product(products, factor)
        shifted = zero + 128.0  # codes are uint8 there, and the zero point is added before rounding
        # In float64 product and sum are exact, or nearly: two roundings to float32 follow, and no fused one.
        product = keras.ops.cast(keras.ops.multiply(*_wide(products, factor)), "float32")
        return keras.ops.round(product + shifted) - shifted

    return lambda: products * (sa * sb), exact


@STEPS.register("matmul")
def _from_matmul(
    target: str, scale: Any, zero: Any, a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, *, wide: bool = False
) -> Any:
    """`wide`: float32 doesn't hold every sum."""

    def exact() -> Any:
        sums = operator.matmul(*_wide(a, b)) if wide else keras.ops.matmul(a, b)  # Keras' own is float32 with torch
        if target == "reference":
            product, step = _wide(sa * sb, scale)
            return _fixed(sums, product / step)
        return rounded_product(sums, (sa * sb) / scale)

    return lambda: keras.ops.matmul(a, b) * (sa * sb), exact


@STEPS.register("mean")
def _from_mean(target: str, scale: Any, zero: Any, a: Any, sa: Any, za: Any, *, axes: Any, keepdims: bool) -> Any:
    count = math.prod(a.shape[axis] for axis in axes)
    a = _wide(a)[0] if count * 255 >= EXACT32 else a
    sums = keras.ops.sum(a, axis=tuple(axes), keepdims=keepdims)
    return lambda: _codes(sums) * (sa / float(count)), lambda: _mean_codes(target, scale, zero, sums, sa, za, count)


def _mean_codes(target: str, scale: Any, zero: Any, sums: Any, sa: Any, za: Any, count: int) -> Any:
    if target == "litert":
        return (
            offset_mean(sums + keras.ops.cast(za * float(count), sums.dtype), float(count), sa / scale, za, zero) - zero
        )
    if target == "reference":
        wa, wy = _wide(sa, scale)
        return _codes(multiplied_twice(_integers(sums), divided_factor(multiplier_of(wa / wy), count)))
    return rounded_product(sums, sa / (scale * float(count)))


@STEPS.register("pool")
def _from_pool(
    target: str, scale: Any, zero: Any, sums: Any, counts: Any, sa: Any, za: Any, *, whole: int = 0, same: bool = True
) -> Any:
    if target != "onnxruntime":
        mean = lambda: integer_mean(sums + counts * za, counts) - za
        if same:
            return lambda: sums / counts * sa, mean
        # The kernel keeps the scale; another one takes a product with one.
        rescale = (
            (lambda: _fixed(mean(), sa / scale))
            if target == "reference"
            else (lambda: rounded_product(mean(), sa / scale))
        )
        return lambda: sums / counts * sa, rescale
    if whole:  # of the whole image: a kernel of its own
        return lambda: sums * (sa / whole), lambda: _mean_codes(target, scale, zero, sums, sa, za, whole)
    shifted = zero + 128.0  # codes are uint8 there, and the zero point is added before rounding
    # What the counts are chosen by can't be multiplied with their reciprocals, as graph optimizers do with constants.
    known = lambda: keras.ops.where(keras.ops.isnan(sums), sums, counts)
    divide = namespace_of(sums).divide
    return lambda: sums / counts, lambda: keras.ops.round(divide(sums / known(), scale) + shifted) - shifted
