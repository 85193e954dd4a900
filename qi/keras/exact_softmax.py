"""Softmax in fixed point on tensors of any backend: the codes of `qi.ir.fixed_softmax`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from qi.keras.exact_fixed import divided, multiplied_twice
from qi.keras.exact_kernels import _Kernel

__all__ = ["ExactFixedSoftmax"]

_LOW = 15  # bits of the lower part of an exponential: float32, in which weights are saved, holds neither part inexactly


@keras.saving.register_keras_serializable(package="qi")
class ExactFixedSoftmax(_Kernel):
    """Softmax as LiteRT's reference kernel computes it, over one axis; int64 throughout.

    Args:
        axis: of the codes.
        terms: the 256 exponentials in 31 bits; None where a file gives them.
    """

    def __init__(self, axis: int, terms: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = axis
        given = None if terms is None else np.asarray(terms, np.int64)
        parts = None if given is None else np.stack([given >> _LOW, given & ((1 << _LOW) - 1)])
        self.terms = self._numbers("terms", parts, (2, 256))

    def call(self, codes: Any, zero: Any) -> Any:
        """Codes of probabilities."""
        ops = keras.ops
        del zero
        place = ops.cast(ops.max(codes, axis=self.axis, keepdims=True) - codes, "int32")
        high, low = (ops.cast(ops.take(self.terms.value[i], place), "int64") for i in (0, 1))
        terms = high * 2**_LOW + low
        total = ops.sum(divided(terms, ops.full_like(terms, 12)), axis=self.axis, keepdims=True)
        factor, zeros = _reciprocal(total)
        found = divided(_high(factor, terms), 35 - zeros + ops.zeros_like(terms))
        return ops.clip(ops.cast(found, "float32") - 128.0, -128.0, 127.0)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments but the exponentials, which are a variable."""
        return {**super().get_config(), "axis": self.axis}


def _high(x: Any, multiplier: Any) -> Any:
    return multiplied_twice(x, (multiplier, keras.ops.zeros_like(x)))


def _reciprocal(total: Any) -> tuple[Any, Any]:
    """As `qi.ir.fixed_softmax.reciprocal`."""
    ops = keras.ops
    powers = ops.convert_to_tensor(np.int64(1) << np.arange(32))
    flat = ops.reshape(total, (-1, 1))
    zeros = ops.reshape(32 - ops.sum(ops.cast(flat >= powers, "int64"), axis=1), ops.shape(total))
    half = ops.right_shift(ops.left_shift(total, zeros), ops.ones_like(total))
    found = 1515870810 + _high(half, ops.full_like(half, -1010580540))
    for _ in range(3):
        found = found + 4 * _high(found, 2**29 - _high(half, found))
    return ops.minimum(2 * found, ops.full_like(found, 2**31 - 1)), zeros
