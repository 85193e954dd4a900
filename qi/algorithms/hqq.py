"""Half-quadratic quantization: scales and zero points fitted to the weights alone, in a norm that forgives outliers."""

from __future__ import annotations

import numpy as np

from qi.algorithms.options import Count, Flag, Number, Options
from qi.algorithms.output_range import shrunk_ends
from qi.algorithms.problem import Problem, Solution
from qi.algorithms.registry import algorithm
from qi.core import IntGrid

__all__ = ["hqq"]

_OPTIONS = Options(
    norm=Number(above=0, most=2), strength=Number(above=0), iterations=Count(0, 1000), zero_points=Flag()
)
_SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the given scales, to start from the best of them


class _Fit:
    """The best parameters so far, each by its own share of the objective."""

    def __init__(self, problem: Problem, norm: float, grid: IntGrid | None) -> None:
        self._problem, self._norm, self._grid = problem, norm, grid
        self._weight, self._index = problem.weight.astype(np.float64), problem.sharing.ravel()
        self.best = problem
        self.objective = np.full(problem.scale.shape, np.inf)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """``[G, K, N]`` summed per parameter."""
        return np.bincount(self._index, values.ravel(), minlength=len(self._problem.scale))

    def offer(self, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
        """Takes the parameters that lower the objective; gives the steps from the zero point, and the errors in steps."""
        codes = problem.nearest()
        values = problem.values(codes).astype(np.float64)
        scale = problem.scale.astype(np.float64)[problem.sharing]
        objective = self.sums(np.abs(self._weight - values) ** self._norm)
        better = objective < self.objective
        self.objective = np.where(better, objective, self.objective)
        self.best = self.best.with_parameters(
            np.where(better, problem.scale, self.best.scale), np.where(better, problem.zero_point, self.best.zero_point)
        )
        return values / scale, (self._weight - values) / scale

    def refit(self, problem: Problem, steps: np.ndarray, kept: np.ndarray) -> Problem:
        """Least squares of ``weight - kept`` on the steps, per parameter: a new scale, and zero point where those move."""
        scale = problem.scale.astype(np.float64)
        target = self._weight - kept * scale[problem.sharing]
        zero_point = problem.zero_point
        if self._grid:
            # The mean of what is left, in steps, is how far the zero point is off.
            left = self.sums(steps - target / scale[problem.sharing]) / np.maximum(self.sums(np.ones_like(steps)), 1)
            moved = np.clip(np.rint(zero_point + left), self._grid.qmin, self._grid.qmax)
            steps = steps - (moved - zero_point)[problem.sharing]
            zero_point = moved.astype(zero_point.dtype)
        squares, products = self.sums(steps * steps), self.sums(steps * target)
        fitted = (squares > 0) & (products > 0)
        new = np.divide(products, squares, out=scale.copy(), where=fitted)
        return problem.with_parameters(np.maximum(new, np.finfo(np.float32).tiny), zero_point)


@algorithm("hqq", stage="range", needs="weights", options=_OPTIONS, fits_scales=True)
def hqq(
    problem: Problem, *, norm: float = 1.5, strength: float = 10.0, iterations: int = 20, zero_points: bool = True
) -> Solution:
    """Fits scales, and zero points where there are any, to the weights alone, in a norm that forgives outliers.

    Minimizes ``sum |weight - value|^norm`` for each parameter. Half-quadratic splitting alternates between a part of the
    error that is set aside, by generalized soft thresholding, and least squares on the rest. It starts from the best of
    a few shrunk ranges, and each parameter keeps the best that it met: the objective never ends above that of the
    parameters given. Zero points stay integers on the grid; they move only where one of those given isn't 0, as the grid
    is symmetric otherwise.

    Source: Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023
    (https://mobiusml.github.io/hqq_blog).

    Args:
        problem: a weight and its parameters; moments aren't used.
        norm: exponent of the errors, above 0 and at most 2, where it is the mean square; below 1 outliers hardly count. The
            paper takes 0.7, which on layers of trained networks gave greater output errors than 1 to 2 at 3 and 4 bits.
        strength: of the coupling, positive and in steps of the grid: the greater, the less of an error is set aside.
        iterations: 0 to 1,000; 0 only chooses among shrunk ranges.
        zero_points: whether zero points may move.

    Raises:
        ConfigError: a norm outside (0, 2], a strength that isn't positive and finite, iterations outside 0 to 1,000.

    Example:
        >>> weight = np.append(np.linspace(-0.3, 0.3, 50), 4.0).reshape(1, 51, 1)  # with an outlier
        >>> absmax = Problem.of(weight, 4 / 7, IntGrid(4))
        >>> bool(hqq(absmax, norm=0.7).scale < 0.5 * absmax.scale)
        True
    """
    _OPTIONS.check(norm=norm, strength=strength, iterations=iterations, zero_points=zero_points)
    asymmetric = zero_points and bool(np.any(problem.zero_point))
    grid = problem.grid if isinstance(problem.grid, IntGrid) and asymmetric else None
    fit = _Fit(problem, norm, grid)
    for shrink in _SHRINKS:
        fit.offer(problem.with_parameters(np.maximum(problem.scale * shrink, np.finfo(np.float32).tiny)))
    if grid is not None:
        for end in (0, 1):
            start = fit.best
            for shrink in _SHRINKS[1:]:
                low, high = (1.0, shrink) if end else (shrink, 1.0)
                fit.offer(start.with_parameters(*shrunk_ends(start.scale, start.zero_point, grid, low, high)))
    current = fit.best
    for _ in range(iterations):
        steps, error = fit.offer(current)
        size = np.abs(error)
        power = np.power(size, norm - 1, out=np.zeros_like(size), where=size > 0)
        kept = np.sign(error) * np.maximum(size - power / strength, 0.0)
        current = fit.refit(current, steps, kept)
    fit.offer(current)
    return fit.best.solution(fit.best.nearest())
