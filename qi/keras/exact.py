"""Layers that compute what a runtime's integer kernels compute, in float32, with the gradients of fake quantization.

Between them flow codes with their zero point taken off, as float32 integers, beside their scale and zero point: three tensors for
one. Sums of products of such numbers are exact below 2**24, so one convolution serves both, the exact result and the gradient:

    codes = stop_gradient(exact) + (h - stop_gradient(h)),  h = fake_quantize(activation(sums * sx * sw)) / s
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import keras

from qi.errors import ConfigError
from qi.ir.passes import SMALLEST, most_steps
from qi.keras.exact_steps import EXACT_TARGETS, STEP_SHAPES, STEPS
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.wrapper import KerasQuantizationWrapper

__all__ = ["ExactDecode", "ExactGrid", "ExactPool", "ExactSums"]

_HALF = 16.0


def _snapped(x: Any) -> Any:
    """The nearest integer, with the gradient of x."""
    return x + keras.ops.stop_gradient(keras.ops.round(x) - x)


class _Exact(keras.layers.Layer):
    """A layer in float32 whatever the policy, around others."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "autocast": False} | kwargs)
        self.supports_masking = True
        self.built = True


@keras.saving.register_keras_serializable(package="qi")
class ExactSums(_Exact):
    """The int32 sums of a convolution or product on codes, bias included.

    Args:
        wrapper: of a linear layer without an activation.
        halves: whether to add up in two parts, of the upper and the lower bits of the weights: where one could reach 2**24.
        wide: whether sums and scale are wanted in double precision, for fixed-point arithmetic.
    """

    def __init__(
        self, wrapper: KerasQuantizationWrapper, halves: bool = False, wide: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.wrapper, self.halves, self.wide = wrapper, halves, wide

    def call(self, codes: Any, scale: Any, training: Any = None) -> tuple[Any, Any]:
        """(sums, their scale for each channel).

        Args:
            codes: without their zero point.
            scale: of the codes.
            training: whether a training step runs.
        """
        ops, wrapper = keras.ops, self.wrapper
        step = ops.stop_gradient(wrapper.bounds["kernel"].parameters()[0])
        weights = wrapper.quantized_weight("kernel", training) / step
        # A frozen weight has no gradient to keep, and two passes over it are dear beside a product with few rows.
        weights = ops.round(weights) if wrapper.frozen else _snapped(weights)
        scale, shape = ops.stop_gradient(scale), step.shape
        step = self._by_channel(step, weights)
        has_bias = "bias" in wrapper.layer_weights
        if has_bias:
            weights, step = self._coarsened(weights, step, scale, shape)
        factor = scale * step
        bias = {"bias": _snapped(wrapper.layer_weights["bias"].value / factor)} if has_bias else {}
        if self.wide:
            factor = ops.cast(scale, "float64") * ops.cast(step, "float64")
        if not self.halves:
            return self._cast(wrapper.run_with(bias | {"kernel": weights}, codes)), factor
        zero = {"bias": ops.zeros_like(bias["bias"])} if has_bias else {}
        upper = ops.stop_gradient(ops.round(weights / _HALF))
        lower = wrapper.run_with((zero if self.wide else bias) | {"kernel": weights - _HALF * upper}, codes)
        sums = _HALF * self._cast(wrapper.run_with(zero | {"kernel": upper}, codes)) + self._cast(lower)
        if has_bias and self.wide:  # in float32 a large one would push bits of the sums out
            sums = sums + self._cast(bias["bias"])
        return sums, factor

    def _coarsened(self, weights: Any, step: Any, scale: Any, shape: Any) -> tuple[Any, Any]:
        """(weights, step) of channels as good as dead at a scale at which int32 holds their bias, as `qi.ir.passes` has it.

        Args:
            weights: codes, as float32.
            step: for each channel of the result, or one.
            scale: of the activations.
            shape: of the step as its quantizer has it.
        """
        ops = keras.ops
        bias = ops.stop_gradient(ops.reshape(self.wrapper.layer_weights["bias"].value, (-1,)))
        most = most_steps(self.wrapper.bounds["kernel"].quantizer.num_bits)

        def coarse() -> tuple[Any, Any]:
            wide, by = ops.cast(step, "float64"), ops.cast(scale, "float64")
            least = ops.abs(ops.cast(bias, "float64")) / (most * by)
            least = least if step.shape[0] > 1 else ops.max(least, keepdims=True)
            least = ops.where(least < SMALLEST / by, SMALLEST / by, least)  # `maximum` makes float32 of it with torch
            coarse = ops.cast(ops.where(wide < least, least, wide), "float32")
            ratio = ops.where(wide >= least, ops.ones_like(wide), wide / ops.cast(coarse, "float64"))
            # Depthwise kernels end with the two axes that its channels are made of.
            of_pairs = step.shape[0] > 1 and step.shape[0] != prod(shape)
            ratio = ops.reshape(ratio, weights.shape[-2:] if of_pairs else shape)
            return ops.cast(_snapped(ops.cast(weights, "float64") * ratio), "float32"), coarse

        # Seldom is there such a channel, and working through all weights isn't free; a factor of 2 is for rounding.
        factor = scale * step
        alive = ops.all((ops.abs(bias / factor) < most / 2) & (factor > 2 * SMALLEST))
        return ops.cond(alive, lambda: (weights, step), coarse)

    def _cast(self, sums: Any) -> Any:
        return keras.ops.cast(sums, "float64") if self.wide else sums

    def _by_channel(self, step: Any, weights: Any) -> Any:
        flat = keras.ops.reshape(step, (-1,))
        if "Depthwise" in type(self.wrapper.layer).__name__ and flat.shape[0] > 1:
            return keras.ops.repeat(flat, weights.shape[-1])
        return flat

    def compute_output_spec(self, codes: Any, scale: Any, training: Any = None) -> Any:
        """Symbolic sums and scales."""
        shape = self.wrapper.layer.compute_output_shape(codes.shape)
        steps = self.wrapper.bounds["kernel"].parameters()[0]
        channels = 1 if len(steps.shape) == 0 or max(steps.shape) == 1 else shape[-1]
        dtype = "float64" if self.wide else "float32"
        return keras.KerasTensor(shape, dtype), keras.KerasTensor((channels,), dtype)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "wrapper": keras.saving.serialize_keras_object(self.wrapper),
            "halves": self.halves,
            "wide": self.wide,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ExactSums:
        """A layer from `get_config`'s record."""
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("wrapper")), **config)


@keras.saving.register_keras_serializable(package="qi")
class ExactPool(_Exact):
    """What an average pooling divides, and by what: sums of codes, or of real numbers in the order in which ONNX Runtime adds.

    Args:
        layer: a keras.layers.AveragePooling1D or 2D, channels last.
        target: one of `EXACT_TARGETS`.
    """

    def __init__(self, layer: Any, target: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer, self.target = layer, target

    def call(self, codes: Any, scale: Any) -> tuple[Any, Any]:
        """(sums, counts).

        Args:
            codes: without their zero point.
            scale: of the codes.
        """
        integers = self.target != "onnxruntime" or self.whole(codes.shape)
        x = codes
        if not integers:  # in float64, so that XLA fuses no product with a sum
            wide = keras.ops.cast(codes, "float64") * keras.ops.cast(keras.ops.stop_gradient(scale), "float64")
            x = keras.ops.cast(wide, "float32")
        return self._sums(x), self._sums(keras.ops.ones_like(x[:1, ..., :1]))

    def whole(self, shape: Any) -> int:
        """How many elements its window holds where that is the whole image; else 0."""
        sizes = tuple(shape[1:-1])
        return prod(sizes) if tuple(self.layer.pool_size) == sizes and self.layer.padding == "valid" else 0

    def _sums(self, x: Any) -> Any:
        """Zeros stand for what lies outside."""
        rank = len(self.layer.pool_size)
        if self.whole(x.shape):
            return keras.ops.sum(x, axis=tuple(range(1, 1 + rank)), keepdims=True)
        axes = [
            self._window(size, *w)
            for size, *w in zip(x.shape[1 : 1 + rank], self.layer.pool_size, self.layer.strides, strict=True)
        ]
        x = keras.ops.pad(x, [(0, 0), *(pads for pads, _ in axes), (0, 0)])
        total: Any = None
        for place in product(*(starts for _, starts in axes)):
            part = x[(slice(None), *place)]
            total = part if total is None else total + part
        return total

    def _window(self, size: int, pool: int, stride: int) -> tuple[tuple[int, int], list[slice]]:
        """(padding, a slice for each place in the window) along one axis."""
        if self.layer.padding == "valid":
            count, pads = (size - pool) // stride + 1, (0, 0)
        else:
            count = -(-size // stride)
            total = max((count - 1) * stride + pool - size, 0)
            pads = (total // 2, total - total // 2)
        return pads, [slice(i, i + (count - 1) * stride + 1, stride) for i in range(pool)]

    def compute_output_spec(self, codes: Any, scale: Any) -> Any:
        """Symbolic sums and counts."""
        shape = self.layer.compute_output_shape(codes.shape)
        return keras.KerasTensor(shape, "float32"), keras.KerasTensor((1, *shape[1:-1], 1), "float32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer), "target": self.target}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ExactPool:
        """A layer from `get_config`'s record."""
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


@keras.saving.register_keras_serializable(package="qi")
class ExactDecode(_Exact):
    """What codes stand for: ``codes * scale``."""

    def call(self, codes: Any, scale: Any) -> Any:
        """Real numbers."""
        return codes * keras.ops.stop_gradient(scale)

    def compute_output_spec(self, codes: Any, scale: Any) -> Any:
        """A symbolic tensor of the codes' shape."""
        return keras.KerasTensor(codes.shape, "float32")


@keras.saving.register_keras_serializable(package="qi")
class ExactGrid(_Exact):
    """Brings results to the grid of an activation quantizer as a runtime does.

    Args:
        holder: of the quantizer, inferable or trainable.
        target: one of `EXACT_TARGETS`.
    """

    def __init__(self, holder: KerasActivationQuantizationHolder, target: str, **kwargs: Any) -> None:
        if target not in EXACT_TARGETS:
            raise ConfigError(f"expected exact to be one of {EXACT_TARGETS}; received exact={target!r}")
        super().__init__(**kwargs)
        self.holder, self.target = holder, target
        if not holder.built:
            holder.build(None)

    def call(
        self,
        *tensors: Any,
        step: str = "real",
        activation: str = "none",
        layers: Any = (),
        kept: bool = False,
        training: Any = None,
        **attrs: Any,
    ) -> Any:
        """(codes without their zero point, scale, zero point).

        Args:
            tensors: what the step takes.
            step: a name of `STEPS`.
            activation: "none", "relu" or "relu6".
            layers: names of the layers that the step stands for; `qi.keras.exact_plain.plain` makes them again.
            kept: whether the first of the tensors holds the real numbers, from layers that stay in the graph.
            training: whether gradients are wanted.
            attrs: of the step.
        """
        ops, bound = keras.ops, self.holder.bound
        grid: Any = bound.quantizer.grid  # of integers: `exact_graph` wraps no others
        shift = 0 if grid.signed else 1 << (grid.bits - 1)  # codes are signed in integer graphs
        scale, zero = (ops.stop_gradient(value) for value in bound.parameters())
        zero = zero - shift
        real, exact = STEPS.get(step)(self.target, scale, zero, *tensors[kept:], **attrs)
        real = (lambda: tensors[0]) if kept else real
        low, high = grid.qmin - shift - zero, grid.qmax - shift - zero
        if activation != "none":
            low = ops.maximum(low, 0.0)
        if activation == "relu6":
            high = ops.minimum(high, ops.round(6.0 / scale))
        codes = ops.stop_gradient(ops.minimum(ops.maximum(exact(), low), high))
        if training is True or (training is None and bound.trains):
            usual = self.holder(_activated(real(), activation), training=training) / scale
            codes = codes + (usual - ops.stop_gradient(usual)) if bound.enabled else usual
        elif not bound.enabled:
            codes = _activated(real(), activation) / scale
        return codes, scale, zero

    def compute_output_spec(self, *tensors: Any, step: str = "real", kept: bool = False, **attrs: Any) -> Any:
        """Symbolic codes and scalars."""
        shape = tensors[0].shape if kept or step not in STEP_SHAPES else STEP_SHAPES[step](tensors, **attrs)
        return tuple(keras.KerasTensor(s, "float32") for s in (shape, (), ()))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "holder": keras.saving.serialize_keras_object(self.holder),
            "target": self.target,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ExactGrid:
        """A layer from `get_config`'s record."""
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("holder")), **config)


def _activated(x: Any, activation: str) -> Any:
    if activation == "none":
        return x
    return keras.ops.relu6(x) if activation == "relu6" else keras.ops.relu(x)
