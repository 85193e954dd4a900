"""One weight to be put on a grid, as matrices: what rounding algorithms get, and what they give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from qi.core import Grid
from qi.core.affine import dequantize, quantize
from qi.errors import InputError
from qi.typing import Array

__all__ = ["Problem", "Solution"]


@dataclass(frozen=True, eq=False)
class Solution:
    """Codes and the parameters that they stand on.

    Attributes:
        codes: integers ``[G, K, N]`` of `grid` (indices of the table where that is a `LutGrid`).
        scale: float32 ``[P]``.
        zero_point: int32 ``[P]``; zeros where the grid is symmetric.
        grid: which codes exist.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    grid: Grid


@dataclass(frozen=True, eq=False)
class Problem:
    """A weight ``[G, K, N]`` with the grid it is to lie on, and what is known of its inputs.

    Scales per tensor, channel or group need no branches: `sharing` says for every weight which parameter it uses, and
    ``np.bincount(sharing.ravel(), ...)`` sums over the weights that share one.

    Args:
        weight: float ``[G, K, N]``, finite: ``y[g] = x[g] @ weight[g]``.
        scale: positive float32 ``[P]``.
        zero_point: integers ``[P]``.
        sharing: integers ``[G, K, N]`` below P.
        grid: which codes exist.
        second: float64 ``[G, K, K]``, ``E[x x^T]`` of the inputs; None where they aren't known.
        mean: float64 ``[G, K]``, ``E[x]``; None likewise.

    Raises:
        InputError: shapes that don't fit each other, a weight or moment that isn't finite, or a scale that isn't positive.

    Example:
        >>> import numpy as np
        >>> from qi.core import IntGrid
        >>> weight = np.array([[[0.3, -1.0], [0.9, 0.4]]])
        >>> problem = Problem(weight, np.ones(1, "float32"), np.zeros(1, int), np.zeros((1, 2, 2), int), IntGrid(2))
        >>> problem.nearest().tolist()
        [[[0, -1], [1, 0]]]

    `of` makes one without the sharing.
    """

    weight: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    sharing: np.ndarray
    grid: Grid
    second: np.ndarray | None = None
    mean: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.weight.ndim != 3 or self.sharing.shape != self.weight.shape:
            raise InputError(
                f"expected a weight and its sharing as [G, K, N]; received {self.weight.shape}, {self.sharing.shape}"
            )
        if self.scale.ndim != 1 or self.zero_point.shape != self.scale.shape:
            raise InputError(
                f"expected scale and zero_point as [P]; received {self.scale.shape}, {self.zero_point.shape}"
            )
        groups, inputs, _ = self.weight.shape
        for name, expected in (("second", (groups, inputs, inputs)), ("mean", (groups, inputs))):
            value = getattr(self, name)
            if value is not None and value.shape != expected:
                raise InputError(f"expected {name} of shape {expected}; received {value.shape}")
            if value is not None and not np.isfinite(value).all():
                raise InputError(f"expected finite moments; received NaN or infinity in {name}")
        if not np.isfinite(self.weight).all():
            raise InputError("expected finite weights; received NaN or infinity; do repair the model")
        if not (np.isfinite(self.scale) & (self.scale > 0)).all():
            raise InputError("expected positive, finite scales; received others")

    @classmethod
    def of(cls, weight: Array, scale: Array, grid: Grid, second: Array | None = None, *, zero_point: Array = 0) -> Self:
        """A problem whose weights share the parameters that broadcasting gives them.

        Args:
            weight: ``[G, K, N]``.
            scale: broadcastable to the weight: one number; ``[1, 1, N]`` for one a column; ...
            grid: which codes exist.
            second: as of the class.
            zero_point: of the scale's shape, or one number.

        Raises:
            InputError: as of the class; parameters that don't broadcast.

        Example:
            >>> from qi.core import IntGrid
            >>> Problem.of([[[0.3, -1.0], [0.9, 0.4]]], [[[1.0, 0.5]]], IntGrid(4)).sharing.tolist()
            [[[0, 1], [0, 1]]]
        """
        weights, scales = np.asarray(weight), np.asarray(scale, np.float32)
        index = np.arange(scales.size).reshape(scales.shape)
        try:
            sharing = np.broadcast_to(index, weights.shape)
            zeros = np.broadcast_to(np.asarray(zero_point), scales.shape).ravel()
        except ValueError as error:
            raise InputError(
                f"expected parameters that broadcast to the weight {weights.shape}; received a scale {scales.shape} and a zero "
                f"point {np.shape(zero_point)}"
            ) from error
        moments = None if second is None else np.asarray(second, np.float64)
        return cls(weights, scales.ravel(), zeros, sharing, grid, moments)

    def with_parameters(
        self, scale: np.ndarray, zero_point: np.ndarray | None = None, grid: Grid | None = None
    ) -> Self:
        """The same weight on other parameters, or on another grid."""
        return replace(
            self,
            scale=np.asarray(scale, np.float32),
            zero_point=self.zero_point if zero_point is None else zero_point,
            grid=self.grid if grid is None else grid,
        )

    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """(scale, zero point) of every weight, ``[G, K, N]``."""
        return self.scale[self.sharing], self.zero_point[self.sharing]

    def nearest(self) -> np.ndarray:
        """The codes ``[G, K, N]`` that are nearest to the weights."""
        return np.asarray(quantize(self.weight, *self.spread(), self.grid))

    def values(self, codes: np.ndarray) -> np.ndarray:
        """What codes ``[G, K, N]`` stand for, float32."""
        return np.asarray(dequantize(codes, *self.spread(), self.grid))

    def require_second(self, why: str) -> np.ndarray:
        """The second moments.

        Raises:
            InputError: they aren't known.
        """
        if self.second is None:
            raise InputError(f"expected moments of the layer's inputs for {why}; received none; do calibrate with data")
        return self.second

    def output_error(self, values: np.ndarray) -> np.ndarray:
        """The expected squared error ``[G, N]`` of each output, float64, with `values` in place of the weights.

        Raises:
            InputError: the second moments aren't known.
        """
        second = self.require_second("output errors")
        difference = self.weight.astype(np.float64) - values
        return np.asarray(np.maximum(np.sum(difference * (second @ difference), axis=1), 0.0))

    def solution(self, codes: np.ndarray) -> Solution:
        """These parameters with codes ``[G, K, N]``."""
        return Solution(codes, self.scale, self.zero_point, self.grid)
