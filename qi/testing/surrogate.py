"""The written formula of a quantizer's gradients, without writing it: finite differences of a surrogate in float64.

A straight-through gradient isn't the derivative of the forward pass, but of what is left of it when all that steps is frozen
at the point in question: each rounding becomes "plus this residual", each ``stop_gradient`` a constant. `Real` is an array
that brings a namespace which does this. A quantizer's own ``transform``, ``prepared`` and ``scale_zero_point`` run on it
unchanged, so only what is common to all quantizers is written down here:

    y = s (clip(u, l, h) + r),   u = x / s,  r = round(clip(u, l, h)) - clip(u, l, h) frozen,  [l, h] = [qmin - z, qmax - z]

with y = x in place of it within the range for ``residual=False``, and with the estimator's word on dx. A quantizer whose `apply`
is another function says so by a method ``formula(x, variables, noise)`` that gives a smooth function with the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qi.core.estimators import ESTIMATORS
from qi.core.namespace import NUMPY
from qi.core.rounding import ROUNDINGS
from qi.quantizers import BaseTrainableQuantizer
from qi.typing import Array

__all__ = ["Real", "expected_gradients"]

_STEP = 1e-6


class _Frozen:
    """numpy in float64, in which everything that steps keeps the offset that it had in the first run."""

    name = "frozen"

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._next: int | None = None  # None while recording

    def __getattr__(self, name: str) -> Any:
        function = getattr(NUMPY, name)
        return lambda *args, **kwargs: self.real(function(*args, **kwargs))

    def replay(self) -> None:
        """From here on the offsets are those of the first run, in its order."""
        self._next = 0

    def _keep(self, value: Array) -> np.ndarray:
        if self._next is None:
            self._kept.append(np.array(value, np.float64))
            return self._kept[-1]
        self._next += 1
        return self._kept[self._next - 1]

    def real(self, x: Any) -> Real:
        """X as an array of this namespace."""
        found = np.asarray(x, np.float64).view(Real)
        found.__qi_namespace__ = self
        return found

    def round(self, x: Array) -> Array:
        return x + self._keep(np.rint(x) - x)

    def ceil(self, x: Array) -> Array:
        return x + self._keep(np.ceil(x) - x)

    def floor(self, x: Array) -> Array:
        return x + self._keep(np.floor(x) - x)

    def clip(self, x: Array, lo: Array, hi: Array) -> Array:
        """At an end, x has the gradient, as in `qi.core.namespace`."""
        below, above = self._keep(np.less(x, lo)), self._keep(np.greater(x, hi))
        return self.real(np.where(below, lo, np.where(above, hi, x)))

    def maximum(self, a: Array, b: Array) -> Array:
        return self.real(np.where(self._keep(np.greater_equal(a, b)), a, b))

    def minimum(self, a: Array, b: Array) -> Array:
        return self.real(np.where(self._keep(np.less_equal(a, b)), a, b))

    def stop_gradient(self, x: Array) -> Array:
        return self.real(self._keep(x))

    def take(self, values: Array, indices: Array) -> Array:
        return self.real(np.take(np.asarray(values), self._keep(np.rint(indices)).astype(int)))

    def cast(self, x: Array, dtype: str) -> Array:
        return self.real(x)

    def dtype(self, x: Array) -> str:
        return "float64"

    def asarray(self, x: Any, dtype: str | None = None) -> Array:
        return self.real(x)

    def frozen(self, x: Any) -> Array:
        return self.real(x)


class Real(np.ndarray):
    """A float64 array with a namespace of its own."""

    __qi_namespace__: Any = None

    def __array_finalize__(self, other: Any) -> None:
        self.__qi_namespace__ = getattr(other, "__qi_namespace__", None)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Arrays of rank 0 stay arrays."""
        found = np.asarray(array).view(Real)
        found.__qi_namespace__ = self.__qi_namespace__
        return found


def _body(
    quantizer: BaseTrainableQuantizer, x: np.ndarray, scale: Any, zero: Any, residual: np.ndarray, inside: np.ndarray
) -> Any:
    """The result with x and the residual frozen, by the formula above; `inside` is frozen, too."""
    lo, hi = quantizer.grid.qmin - zero, quantizer.grid.qmax - zero
    clipped = np.where(inside, x / scale, np.where(x / scale < lo, lo, hi))
    if quantizer.residual:
        return scale * (clipped + residual)
    return np.where(inside, x, scale * clipped)


def expected_gradients(
    quantizer: BaseTrainableQuantizer,
    variables: Mapping[str, np.ndarray],
    x: np.ndarray,
    upstream: np.ndarray,
    noise: np.ndarray,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Gradients of ``sum(upstream * result)`` for x and for every variable, in float64.

    Args:
        quantizer: in training.
        variables: its variables.
        x: no element within 1e-6 of a tie or a clip edge, in steps.
        upstream: of the result's shape.
        noise: of x's shape, for quantizers that need it.
    """
    own = getattr(quantizer, "formula", None)

    def total(frozen: _Frozen, x: np.ndarray, values: Mapping[str, np.ndarray], first: dict[str, Any]) -> float:
        real = {name: frozen.real(value) for name, value in values.items()}
        point = frozen.real(x)
        if own is not None:
            return float(np.sum(upstream * np.asarray(own(point, real, frozen.real(noise)))))
        transformed = quantizer.transform(point, real)
        scale, zero = quantizer.scale_zero_point(quantizer.prepared(point, real))
        zero = np.zeros(np.shape(scale)) if zero is None else np.asarray(zero)
        scale, transformed = np.asarray(scale), np.asarray(transformed)
        if not first:
            first |= _frozen_terms(quantizer, transformed, scale, zero, upstream, noise)
        result = _body(quantizer, first["x"], scale, zero, first["residual"], first["inside"])
        return float(np.sum(first["for_x"] * transformed) + np.sum(upstream * result))

    def function(x: np.ndarray, values: Mapping[str, np.ndarray]) -> Callable[[], float]:
        return lambda: total(frozen, x, values, first)

    frozen = _Frozen()
    first: dict[str, Any] = {}
    held = {name: np.array(value, np.float64) for name, value in variables.items()}
    point = np.array(x, np.float64)
    function(point, held)()
    evaluate = function(point, held)
    for_x = _differences(evaluate, point, frozen)
    return for_x, {name: _differences(evaluate, value, frozen) for name, value in held.items()}


def _frozen_terms(
    quantizer: BaseTrainableQuantizer, x: np.ndarray, scale: Any, zero: Any, upstream: np.ndarray, noise: np.ndarray
) -> dict[str, Any]:
    u = x / scale
    clipped = np.clip(u, quantizer.grid.qmin - zero, quantizer.grid.qmax - zero)
    if quantizer.rounding == "noise":
        value = np.clip(clipped + noise - 0.5, quantizer.grid.qmin - zero, quantizer.grid.qmax - zero)
    else:
        value = np.asarray(ROUNDINGS.get(quantizer.rounding)(clipped, xp=NUMPY, noise=noise))
    estimate = ESTIMATORS.get(quantizer.estimator)
    for_x = estimate(upstream, u, clipped, value, xp=NUMPY, **quantizer.estimator_options)
    return {"x": x.copy(), "residual": value - clipped, "inside": clipped == u, "for_x": np.asarray(for_x)}


def _differences(function: Callable[[], float], array: np.ndarray, frozen: _Frozen) -> np.ndarray:
    """Central differences of a function of the array's current content, by each of its elements."""
    result = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        kept = float(array[index])
        step = _STEP * max(1.0, abs(kept))
        sides = []
        for side in (kept + step, kept - step):
            array[index] = side
            frozen.replay()
            sides.append(function())
        array[index] = kept
        result[index] = (sides[0] - sides[1]) / (2 * step)
    return result
