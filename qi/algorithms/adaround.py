"""AdaRound, layer by layer: whether each weight goes up or down is learned, the gradient in closed form from moments."""

from __future__ import annotations

import numpy as np

from qi.algorithms.gptq import keep_better, moments_of
from qi.algorithms.options import Count, Number, Options
from qi.algorithms.problem import Problem, Solution
from qi.algorithms.registry import algorithm
from qi.core import IntGrid

__all__ = ["adaround"]

_OPTIONS = Options(steps=Count(0), learning_rate=Number(above=0), regularization=Number(above=0))
_STRETCH, _SHIFT = 1.2, -0.1  # the sigmoid is stretched to [-0.1, 1.1] and clipped, so that 0 and 1 can be reached
_SHARP, _FLAT = 20.0, 2.0  # the exponent of the regularizer at its start and at the end
_FIRST, _SECOND, _TINY = 0.9, 0.999, 1e-8  # of Adam


def _neighbours(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The codes below and above each weight; one and the same beyond an end of the grid."""
    grid, nearest = problem.grid, problem.nearest()
    least, most = (grid.qmin, grid.qmax) if isinstance(grid, IntGrid) else (0, grid.levels - 1)
    wide = nearest.astype(np.int32)
    below = problem.values(nearest) <= problem.weight
    lower = np.where(below, wide, np.maximum(wide - 1, least))
    upper = np.where(below, np.minimum(wide + 1, most), wide)
    return lower.astype(nearest.dtype), upper.astype(nearest.dtype)


class _Adam:
    """Adam (Kingma and Ba, 2014, arXiv:1412.6980) on one float32 array, in place."""

    def __init__(self, like: np.ndarray, rate: float) -> None:
        self._mean, self._square, self._rate, self._steps = np.zeros_like(like), np.zeros_like(like), rate, 0

    def step(self, variable: np.ndarray, gradient: np.ndarray) -> None:
        self._steps += 1
        self._mean += np.float32(1 - _FIRST) * (gradient - self._mean)
        self._square += np.float32(1 - _SECOND) * (gradient * gradient - self._square)
        rate = self._rate * (1 - _SECOND**self._steps) ** 0.5 / (1 - _FIRST**self._steps)
        variable -= np.float32(rate) * self._mean / (np.sqrt(self._square) + np.float32(_TINY))


def _logits(fraction: np.ndarray) -> np.ndarray:
    """Where the rectified sigmoid is `fraction`."""
    inner = (fraction - np.float32(_SHIFT)) / np.float32(_STRETCH)
    return np.asarray(np.log(inner) - np.log1p(-inner))


def _learned(
    offset: np.ndarray, gap: np.ndarray, second: np.ndarray, steps: int, rate: float, regularization: float
) -> np.ndarray:
    """How far up each weight went, ``[G, K, N]`` from 0 to 1, when ``offset - gap * h`` is the error of the weights."""
    fraction = np.clip(np.divide(offset, gap, out=np.zeros_like(gap), where=gap > 0), 0, 1)
    # Errors relative to the square of a step at an average input: the regularizer then means the same in every layer.
    unit = np.mean(gap * gap * np.diagonal(second, axis1=1, axis2=2)[..., None], axis=1, keepdims=True)
    pull = np.divide(2 * gap, unit, out=np.zeros_like(gap), where=unit > 0)
    logits, warm = _logits(fraction), steps // 5
    adam = _Adam(logits, rate)
    for step in range(steps):
        sigmoid = 1 / (1 + np.exp(-logits))
        raw = np.float32(_STRETCH) * sigmoid + np.float32(_SHIFT)
        up = np.clip(raw, 0, 1)
        gradient = -pull * (second @ (offset - gap * up))
        if step >= warm:
            sharp = _FLAT + (_SHARP - _FLAT) * (1 - (step - warm) / (steps - warm))
            side = 2 * up - 1
            gradient -= np.float32(2 * regularization * sharp) * np.sign(side) * np.abs(side) ** np.float32(sharp - 1)
        gradient *= np.float32(_STRETCH) * sigmoid * (1 - sigmoid) * (raw == up)
        adam.step(logits, gradient)
    return np.asarray(np.float32(_STRETCH) / (1 + np.exp(-logits)) + np.float32(_SHIFT))


@algorithm("adaround", stage="rounding", needs="moments", options=_OPTIONS)
def adaround(
    problem: Problem, *, steps: int = 1000, learning_rate: float = 0.02, regularization: float = 0.5
) -> Solution:
    """Learns for each weight whether to round down or up, by gradient descent on the output error.

    A rectified sigmoid places each weight between its two neighbours on the grid; Adam moves it under the output error,
    whose gradient is ``second @ error``, and, after the first fifth of the steps, under a regularizer that ends at either
    neighbour. All inputs count in every step, so far fewer steps are needed than with batches of samples. Computed in
    float32. Columns whose output error ends above that of the nearest codes keep those.

    Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, 2020 (arXiv:2004.10568).

    Args:
        problem: a weight, its parameters and the second moments of its inputs.
        steps: of Adam; 0 gives the nearest codes.
        learning_rate: of Adam, positive.
        regularization: weight of the regularizer, positive; relative to the error of one step at an average input.

    Raises:
        ConfigError: a negative number of steps, a learning rate or regularization that isn't positive and finite.
        InputError: the second moments aren't known, or aren't moments.

    Example:
        >>> from qi.core import IntGrid
        >>> learned = adaround(Problem.of([[[0.4], [0.45]]], 1.0, IntGrid(4), [[[1.0, 0.9], [0.9, 1.0]]]), steps=200)
        >>> learned.codes.ravel().tolist()
        [0, 1]
    """
    _OPTIONS.check(steps=steps, learning_rate=learning_rate, regularization=regularization)
    second = moments_of(problem, "adaround")
    nearest = problem.nearest()
    if not steps:
        return problem.solution(nearest)
    greatest = second.max(axis=(1, 2), keepdims=True)
    relative = np.asarray(second / np.where(greatest > 0, greatest, 1.0), np.float32)
    lower, upper = _neighbours(problem)
    step = np.asarray(np.max(problem.spread()[0], axis=1, keepdims=True), np.float64)
    offset = (problem.weight - problem.values(lower).astype(np.float64)) / step
    gap = (problem.values(upper).astype(np.float64) - problem.values(lower)) / step
    up = _learned(offset.astype(np.float32), gap.astype(np.float32), relative, steps, learning_rate, regularization)
    return problem.solution(keep_better(problem, np.where(up >= 0.5, upper, lower), nearest))
