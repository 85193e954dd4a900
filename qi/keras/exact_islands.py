"""Layers that compute the codes of normalizations, softmaxes and functions that a target does in real numbers.

Those of which every processor finds the same codes: `qi.ir.norms`, `qi.ir.softmax` and `qi.ir.margins` tell how. They stand
beside the layer that computes the same in real numbers, as those of `qi.keras.exact_kernels` do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from qi.ir.formulas import normalized, rounded_real
from qi.ir.graph import Op
from qi.ir.kinds import KINDS, kernel_of
from qi.ir.norms import OF_CODES, epsilon_of
from qi.keras.exact_kernels import ExactTable, _Kernel

__all__ = ["ExactNorm", "ExactShares", "island_layer"]

_CODES = np.arange(-128, 128, dtype=np.int32)


def island_layer(ops: Sequence[Op], target: str, shape: Sequence[int | None], name: Callable[[], str]) -> Any:
    """The layer that computes the codes of an island as all processors do; None where they don't agree.

    Args:
        ops: of the island, from "dequantize" to "quantize".
        target: that they are routed for.
        shape: of the codes that the layer takes.
        name: gives a name for a layer that is made.
    """
    kinds = [op.kind for op in ops[1:-1]]
    if not kinds or ops[0].x.grid.bits > 8 or None in ops[0].x.shape[1:]:
        return None
    if len(kinds) == 1 and kinds[0] in OF_CODES:
        return _norm(ops[1], ops[2], target, name())
    if tuple(ops[0].x.shape[1:]) != tuple(shape[1:]):
        return None
    if kinds in (["unary"], ["unary", "mul"]):
        return ExactTable((), _table(ops, target), name=name())
    if kinds[-1] == "softmax_of_codes":
        return _shares(ops, target, name())
    return None


def _table(ops: Sequence[Op], target: str) -> np.ndarray:
    """What becomes of each of the 256 codes."""
    values = kernel_of(ops[0], target)(ops[0], _CODES)
    for op in ops[1:-1]:
        values = KINDS.get(op.kind).real(op, values, *(t.values() for t in op.inputs if t.constant))
    return np.asarray(kernel_of(ops[-1], target)(ops[-1], values))


def _norm(op: Op, last: Op, target: str, name: str) -> ExactNorm:
    shape = [int(n or 0) for n in op.x.shape[1:]]
    weights = [np.broadcast_to(t.values(), shape) for t in op.inputs[1:]]
    how: dict[str, Any] = {"scale": float(last.y.scale), "zero_point": last.y.zero_point, "target": target}
    how |= {"rounded": bool(op.attrs["rounded"]), "centred": op.kind == "layer_norm_of_codes"}
    return ExactNorm(op.attrs["axes"], shape, float(epsilon_of(op)), weights, **how, name=name)


def _shares(ops: Sequence[Op], target: str, name: str) -> ExactShares:
    first, softmax, last = ops[0], ops[-2], ops[-1]
    distances = np.float64(first.x.scale) * np.arange(256)
    terms = np.rint(np.exp(np.float64(np.float32(softmax.attrs["shift"])) - distances))
    masks = [t.values() for op in ops[1:-2] for t in op.inputs if t.constant]
    seen = np.asarray(masks[0] == 0, np.float32) if masks else np.ones((1,), np.float32)
    how = {"scale": float(last.y.scale), "zero_point": last.y.zero_point, "target": target}
    return ExactShares(softmax.attrs["axis"], seen.shape, terms, seen, **how, name=name)


class _Island(_Kernel):
    """A kernel whose real numbers become codes at last.

    Args:
        scale: of the result.
        zero_point: likewise.
        target: whose way it is to do so.
    """

    def __init__(self, scale: float, zero_point: int, target: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale, self.zero_point, self.target = scale, zero_point, target

    def _coded(self, real: Any) -> Any:
        steps = rounded_real(
            real, keras.ops.convert_to_tensor(np.float32(self.scale)), reciprocal=self.target == "litert"
        )
        return keras.ops.clip(steps + float(self.zero_point), -128.0, 127.0)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments but arrays, which are variables."""
        own = {"scale": self.scale, "zero_point": self.zero_point, "target": self.target}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="qi")
class ExactNorm(_Island):
    """Normalization of codes.

    Args:
        axes: of the codes, the batch included.
        shape: that the codes are brought to, without the batch.
        epsilon: over the square of the codes' step.
        weights: gamma, or gamma and beta, or neither, of that shape; None where a file gives them.
        given: how many of them there are.
        rounded: as of `qi.ir.formulas.normalized`.
        centred: likewise.
        kwargs: of the result.
    """

    def __init__(
        self,
        axes: Sequence[int],
        shape: Sequence[int],
        epsilon: float,
        weights: Sequence[Any] | None = None,
        *,
        given: int = 0,
        rounded: bool,
        centred: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.axes, self.shape = [int(a) for a in axes], [int(n) for n in shape]
        self.epsilon, self.rounded, self.centred = epsilon, rounded, centred
        values = list(weights) if weights is not None else [None] * given
        names = ("gamma", "beta")[: len(values)]
        self.affine = [self._numbers(name, value, self.shape) for name, value in zip(names, values, strict=True)]

    def call(self, codes: Any, zero: Any) -> Any:
        """Codes of normalized numbers."""
        del zero
        ops, count = keras.ops, int(np.prod([self.shape[axis - 1] for axis in self.axes]))
        how = {"rounded": self.rounded, "centred": self.centred}
        q = ops.reshape(codes, (-1, *self.shape))
        y = normalized(q, count, np.float32(self.epsilon), tuple(self.axes), **how)
        for weight, function in zip(self.affine, (ops.multiply, ops.add), strict=False):
            y = function(y, weight.value)
        return ops.reshape(self._coded(y), (-1, *codes.shape[1:]))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments but gamma and beta, which are variables."""
        own = {"axes": self.axes, "shape": self.shape, "epsilon": self.epsilon, "given": len(self.affine)}
        return {**super().get_config(), **own, "rounded": self.rounded, "centred": self.centred}


@keras.saving.register_keras_serializable(package="qi")
class ExactShares(_Island):
    """Softmax of codes over one axis, from a table of integers.

    Args:
        axis: of the codes.
        shape: of what tells seen scores from others, as it broadcasts to the codes.
        terms: of the 256 distances of a score to the greatest; None where a file gives them.
        seen: 1 for scores that count, 0 for others; None where a file gives it.
        kwargs: of the result.
    """

    def __init__(self, axis: int, shape: Sequence[int], terms: Any = None, seen: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis, self.shape = axis, [int(n) for n in shape]
        self.terms, self.seen = self._numbers("terms", terms, (256,)), self._numbers("seen", seen, self.shape)

    def call(self, codes: Any, zero: Any) -> Any:
        """Codes of probabilities."""
        ops = keras.ops
        del zero
        seen = self.seen.value
        masked = codes * seen - 1024.0 * (1.0 - seen)
        distances = ops.minimum(ops.max(masked, axis=self.axis, keepdims=True) - masked, 255.0)
        terms = ops.take(self.terms.value, ops.cast(distances, "int32")) * seen
        return self._coded(terms / ops.sum(terms, axis=self.axis, keepdims=True))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments but tables, which are variables."""
        return {**super().get_config(), "axis": self.axis, "shape": self.shape}
