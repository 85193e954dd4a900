"""Layers that compute the codes which kernels give where no step to a grid can be stated on tensors alone.

They stand beside the layer that computes the same in real numbers, whose result a quantizer takes where it must (gradients, and
calibrations that are switched off). Their numbers are those of quantizers that don't train any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from qi.core.namespace import namespace_of
from qi.ir.dynamic import quantized_rows
from qi.keras.exact import _Exact, _snapped
from qi.keras.exact_fixed import half_away
from qi.keras.variables import add_parameter
from qi.keras.wrapper import KerasQuantizationWrapper

__all__ = ["ExactBilinear", "ExactRealBilinear", "ExactRows", "ExactSoftmax", "ExactTable"]

_HALF = 16.0


@keras.saving.register_keras_serializable(package="qi")
class ExactRows(_Exact):
    """A Dense whose activations become 8-bit codes row by row as they come: `qi.ir.dynamic` with gradients.

    Args:
        wrapper: of a Dense, of which the kernel alone is quantized.
        halves: whether to add up in two parts, as `ExactSums` does.
    """

    def __init__(self, wrapper: KerasQuantizationWrapper, halves: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.wrapper, self.halves = wrapper, halves

    def call(self, x: Any, training: Any = None) -> Any:
        """What the kernel gives; the gradients of fake quantization where the weights train."""
        ops, wrapper = keras.ops, self.wrapper
        found = ops.stop_gradient(self._exact(x, training))
        if training is not True and not wrapper.trains:
            return found
        usual = wrapper(x, training=training)
        return found + (usual - ops.stop_gradient(usual))

    def _exact(self, x: Any, training: Any) -> Any:
        ops, wrapper = keras.ops, self.wrapper
        step = wrapper.bounds["kernel"].parameters()[0]
        weights = _snapped(wrapper.quantized_weight("kernel", training) / step)
        codes, unit = quantized_rows(x)
        if self.halves:
            upper = ops.round(weights / _HALF)
            sums = _HALF * ops.matmul(codes, upper) + ops.matmul(codes, weights - _HALF * upper)
        else:
            sums = ops.matmul(codes, weights)
        # The last product and the sum are rounded once: products of float32 are exact in float64.
        y = ops.cast(sums * unit, "float64") * ops.cast(ops.reshape(step, (-1,)), "float64")
        if "bias" in wrapper.layer_weights:
            y = y + ops.cast(wrapper.layer_weights["bias"].value, "float64")
        return wrapper.layer.activation(ops.cast(y, "float32"))

    def compute_output_spec(self, x: Any, training: Any = None) -> Any:
        """A symbolic result."""
        return keras.KerasTensor(self.wrapper.layer.compute_output_shape(x.shape), "float32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        wrapper = keras.saving.serialize_keras_object(self.wrapper)
        return {**super().get_config(), "wrapper": wrapper, "halves": self.halves}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ExactRows:
        """A layer from `get_config`'s record."""
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("wrapper")), **config)


class _Kernel(_Exact):
    """Takes codes without their zero point, and that; gives codes with theirs."""

    def compute_output_spec(self, codes: Any, zero: Any) -> Any:
        """Symbolic codes of the same shape."""
        return keras.KerasTensor(self.compute_output_shape(codes.shape), "float32")

    def compute_output_shape(self, shape: Any, *_: Any) -> Any:
        """That of the codes."""
        return shape

    def _numbers(self, name: str, values: Any, shape: Sequence[int]) -> keras.Variable:
        """Numbers that are saved with the model; zeros where a file will give them."""
        given = np.zeros(shape) if values is None else np.asarray(values, np.float64).reshape(shape)
        return add_parameter(self, name, given.astype(np.float32))


@keras.saving.register_keras_serializable(package="qi")
class ExactTable(_Kernel):
    """Codes by codes: a table of 256, or one for each element that a constant tells apart.

    Args:
        shape: of what the constant tells apart, without the batch, as it broadcasts to the codes; () for one table.
        values: the table, [256, *shape]; None where a file gives it.
    """

    def __init__(self, shape: Sequence[int] = (), values: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = tuple(int(n) for n in shape)
        self.table = self._numbers("table", values, (256, *self.shape))

    def call(self, codes: Any, zero: Any) -> Any:
        """The codes that the table has for codes."""
        ops = keras.ops
        count = int(np.prod(self.shape))
        place = ops.cast(codes + zero + 128.0, "int32")
        if count > 1:
            place = place * count + np.arange(count, dtype=np.int32).reshape(self.shape)
        return ops.take(ops.reshape(self.table, (-1,)), place)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments but the table, which is a variable."""
        return {**super().get_config(), "shape": list(self.shape)}


@keras.saving.register_keras_serializable(package="qi")
class ExactSoftmax(_Kernel):
    """Softmax from a table of exponentials, over one axis, whose float32 sums are added one after the other.

    Args:
        axis: of the codes.
        quotient: whether exponentials are divided by the sum (ONNX Runtime), or multiplied with a reciprocal (LiteRT).
        scale: of the result.
        zero_point: likewise.
        terms: the 256 exponentials; None where a file gives them.
    """

    def __init__(
        self, axis: int, quotient: bool, scale: float, zero_point: int, terms: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.axis, self.quotient, self.scale, self.zero_point = axis, quotient, scale, zero_point
        self.terms = self._numbers("terms", terms, (256,))

    def call(self, codes: Any, zero: Any) -> Any:
        """Codes of probabilities."""
        ops = keras.ops
        del zero
        place = ops.cast(ops.max(codes, axis=self.axis, keepdims=True) - codes, "int32")
        terms = ops.take(self.terms.value, place)
        total: Any = None
        for part in ops.split(terms, codes.shape[self.axis], axis=self.axis):
            total = part if total is None else total + part
        steps = terms * (1.0 / self.scale) / total if self.quotient else terms * (1.0 / (total * self.scale))
        codes = ops.round(steps) if self.quotient else half_away(steps)
        return ops.clip(codes + float(self.zero_point), -128.0, 127.0)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments but the exponentials, which are a variable."""
        own = {"axis": self.axis, "quotient": self.quotient, "scale": self.scale, "zero_point": self.zero_point}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="qi")
class ExactBilinear(_Kernel):
    """Bilinear up-sampling in fixed point: places with some bits behind the point, one rounding.

    Args:
        size: height and width of the result.
        bits: behind the point of a place: 11 in XNNPACK, 10 in LiteRT's reference kernel.
        places: for both axes the index before, the index behind and the weight of the latter, of 2**bits.
        away: whether a half goes away from zero; up otherwise.
    """

    def __init__(self, size: Sequence[int], bits: int, places: Any, away: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size, self.bits, self.away = tuple(size), bits, away
        self.places = [[[int(n) for n in row] for row in axis] for axis in places]

    def call(self, codes: Any, zero: Any) -> Any:
        """Codes of the larger image."""
        ops, one = keras.ops, 2.0**self.bits
        x = ops.cast(codes + zero, "float64")  # whose integers reach further than those sums do
        for axis, (low, high, part) in enumerate(self.places, 1):
            share = np.asarray(part, np.float64).reshape([-1 if i == axis else 1 for i in range(4)])
            before, behind = (ops.take(x, np.asarray(index, np.int32), axis=axis) for index in (low, high))
            x = before * (one - share) + behind * share
        x = x / one**2
        floor = namespace_of(x).floor
        x = ops.sign(x) * floor(ops.abs(x) + 0.5) if self.away else floor(x + 0.5)
        return ops.cast(x, "float32")

    def compute_output_shape(self, shape: Any, *_: Any) -> Any:
        """That of the larger image."""
        return (shape[0], *self.size, shape[3])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        own = {"size": list(self.size), "bits": self.bits, "places": self.places, "away": self.away}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="qi")
class ExactRealBilinear(_Kernel):
    """Bilinear up-sampling in real numbers, in ONNX Runtime's order of products and sums.

    Args:
        size: height and width of the result.
        places: for both axes the index before, the index behind, the distances to them.
        zero_point: of the result.
        scales: of the codes and of the result; None where a file gives them.
    """

    def __init__(self, size: Sequence[int], places: Any, zero_point: int, scales: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size, self.zero_point = tuple(size), zero_point
        self.places = [[np.asarray(row).reshape(-1).tolist() for row in axis] for axis in places]
        self.scales = self._numbers("scales", scales, (2,))

    def call(self, codes: Any, zero: Any) -> Any:
        """Codes of the larger image."""
        ops = keras.ops
        del zero
        scale, step = self.scales.value[0], self.scales.value[1]
        x = codes * scale
        if self.size == tuple(x.shape[1:3]):
            total: Any = x
        else:
            (top, bottom, e1, e2), (left, right, d1, d2) = self.places
            total = None
            corners = (top, left, e2, d2), (top, right, e2, d1), (bottom, left, e1, d2), (bottom, right, e1, d1)
            for rows, columns, down, across in corners:
                part = self._product(
                    ops.take(ops.take(x, np.asarray(rows, np.int32), axis=1), np.asarray(columns, np.int32), axis=2),
                    down,
                    across,
                )
                total = part if total is None else self._sum(total, part)
        return ops.clip(ops.round(total / step) + float(self.zero_point), -128.0, 127.0)

    def _sum(self, a: Any, b: Any) -> Any:
        """In float64, then float32, which is the sum in float32; graph optimizers reorder plain ones."""
        return keras.ops.cast(keras.ops.cast(a, "float64") + keras.ops.cast(b, "float64"), "float32")

    def _product(self, x: Any, down: Any, across: Any) -> Any:
        """With the product of both distances; in float64, where it is exact, so that no sum is fused with it."""
        factor = np.asarray(across, np.float32)[None, None, :, None] * np.asarray(down, np.float32)[None, :, None, None]
        return keras.ops.cast(keras.ops.cast(x, "float64") * factor.astype(np.float64), "float32")

    def compute_output_shape(self, shape: Any, *_: Any) -> Any:
        """That of the larger image."""
        return (shape[0], *self.size, shape[3])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments but the scales, which are a variable."""
        own = {"size": list(self.size), "places": self.places, "zero_point": self.zero_point}
        return {**super().get_config(), **own}
