"""Cyclic coordinate descent on the codes: each weight in turn to the code that is best with all the others as they are."""

from __future__ import annotations

import numpy as np

from qi.algorithms.gptq import DAMPING, gptq, keep_better, moments_of
from qi.algorithms.options import Count, Options
from qi.algorithms.problem import Problem, Solution
from qi.algorithms.registry import algorithm
from qi.core import Grid
from qi.core.affine import dequantize, quantize

__all__ = ["descent"]

_OPTIONS = Options(sweeps=Count(0), damping=DAMPING)
_BLOCK = 64  # rows between which gradients are computed afresh


class _Columns:
    """The columns of a problem that still change."""

    def __init__(self, problem: Problem, codes: np.ndarray, columns: np.ndarray) -> None:
        self.weight = problem.weight[:, :, columns].astype(np.float64)
        self.scale, self.zero_point = (a[:, :, columns] for a in problem.spread())
        self.codes = codes[:, :, columns]
        self.error = self.weight - dequantize(self.codes, self.scale, self.zero_point, problem.grid)

    def visit(self, i: int, gradient: np.ndarray, curvature: np.ndarray, grid: Grid) -> np.ndarray:
        """Puts row i, ``[G, N]``, where its parabola is least on the grid; gives the change of its error."""
        scale, zero_point = self.scale[:, i], self.zero_point[:, i]
        value = self.weight[:, i] - self.error[:, i]
        live = curvature > 0
        wanted = value + np.where(live, gradient / np.where(live, curvature, 1.0), 0.0)
        codes = quantize(wanted, scale, zero_point, grid)
        new = dequantize(codes, scale, zero_point, grid)
        better = live & (np.abs(new - wanted) < np.abs(value - wanted))
        self.codes[:, i] = np.where(better, codes, self.codes[:, i])
        change = np.where(better, value - new, 0.0)
        self.error[:, i] += change
        return change

    def sweep(self, second: np.ndarray, grid: Grid) -> np.ndarray:
        """Visits every row once; gives which columns changed in any matrix."""
        changed = np.zeros(self.weight.shape[2], bool)
        for start in range(0, self.weight.shape[1], _BLOCK):
            stop = min(start + _BLOCK, self.weight.shape[1])
            gradient = second[:, start:stop] @ self.error
            moved = np.zeros_like(gradient)
            for i in range(start, stop):
                row = gradient[:, i - start] + (second[:, i, None, start:i] @ moved[:, : i - start])[:, 0]
                moved[:, i - start] = self.visit(i, row, second[:, i, i, None], grid)
            changed |= np.any(moved, axis=(0, 1))
        return changed


@algorithm("descent", stage="rounding", needs="moments", options=_OPTIONS)
def descent(problem: Problem, *, sweeps: int = 10, damping: float = 0.01) -> Solution:
    """Starts at GPTQ's codes and sweeps over the inputs, each weight to its best code given all the others.

    A code changes only where that lowers the output error, so no sweep raises it, and the result is never worse than
    GPTQ's (nor than the nearest codes) in any column. Sweeps end early where no code changes any more.

    Source: Behdin et al., QuantEase: Optimization-based Quantization for Language Models, 2023 (arXiv:2309.01885).

    Args:
        problem: a weight, its parameters and the second moments of its inputs.
        sweeps: over all inputs, at most; 0 gives GPTQ's codes.
        damping: of GPTQ; the descent itself works on the moments as they are.

    Raises:
        ConfigError: a negative number of sweeps, a damping that isn't positive and finite.
        InputError: the second moments aren't known, or aren't moments.

    Example:
        >>> from qi.core import IntGrid
        >>> correlated = 0.1 * np.eye(3) + 0.9
        >>> problem = Problem.of([[[0.4], [0.4], [0.4]]], 1.0, IntGrid(4), correlated[None])
        >>> descent(problem).codes.sum().tolist()  # the sum of the weights is 1.2, of the nearest codes 0
        1
    """
    _OPTIONS.check(sweeps=sweeps, damping=damping)
    second = moments_of(problem, "descent")
    start = gptq(problem, damping=damping).codes
    codes, columns = start.copy(), np.arange(start.shape[2])
    for _ in range(sweeps):
        part = _Columns(problem, codes, columns)
        changed = part.sweep(second, problem.grid)
        codes[:, :, columns] = part.codes
        columns = columns[changed]
        if not len(columns):
            break
    return problem.solution(keep_better(problem, codes, start))
