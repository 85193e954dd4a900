"""Ranges by what the layer gives: each scale shrunk to where the error of the outputs, not of the weights, is least."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qi.algorithms.gptq import checked_count, checked_positive, moments_of
from qi.algorithms.problem import Problem, Solution
from qi.algorithms.registry import algorithm
from qi.core import IntGrid, asymmetric_params
from qi.core.affine import fake_quantize
from qi.core.scaling import range_of
from qi.errors import ConfigError

__all__ = ["output_range"]

_FINE = 8  # candidates around the best coarse one
_MARGIN = 1e-9  # of an error: what a change has to win to count, well above rounding

_Parameters = tuple[np.ndarray, np.ndarray]


def _classes(problem: Problem) -> np.ndarray:
    """``[P]``: a class for each parameter, such that no column uses two of one class: those are independent."""
    groups, _, outputs = problem.weight.shape
    count = len(problem.scale)
    column = np.arange(groups * outputs).reshape(groups, 1, outputs)
    pairs = np.unique(column * count + problem.sharing)
    columns, users = np.divmod(pairs, count)
    rank = np.arange(len(pairs)) - np.searchsorted(columns, columns)
    classes = np.zeros(count, np.int64)
    np.maximum.at(classes, users, rank)
    if len(np.unique(columns * count + classes[users])) < len(pairs):
        return np.arange(count)  # shared in no pattern: one after the other
    return classes


class _Search:
    """The output error as a function of the parameters, with what it takes to change those of one class."""

    def __init__(self, problem: Problem, second: np.ndarray) -> None:
        self.problem, self.second = problem, second
        self.weight = problem.weight.astype(np.float64)
        self.parameters: _Parameters = (problem.scale.astype(np.float32), problem.zero_point)
        self.error = self.weight - problem.values(problem.nearest())
        self.gradient = second @ self.error

    def select(self, members: np.ndarray) -> None:
        """Turns to the parameters where `members`, ``[P]``, is true."""
        used = members[self.problem.sharing]
        self._rows = np.flatnonzero(used.any(axis=(0, 2)))
        self._used, self._sharing = used[:, self._rows], self.problem.sharing[:, self._rows]
        self._block = self.second[:, self._rows[:, None], self._rows]
        self._own = np.where(self._used, self._sharing, -1).max(axis=1)
        products = self.error[:, self._rows] * self.gradient[:, self._rows]
        self._margin = _MARGIN * self._sums(np.abs(np.sum(products * self._used, axis=1)))

    def _sums(self, columns: np.ndarray) -> np.ndarray:
        """``[G, N]`` summed per parameter of the class."""
        valid = self._own >= 0
        return np.bincount(self._own[valid], columns[valid], minlength=len(self.problem.scale))

    def _difference(self, parameters: _Parameters) -> np.ndarray:
        """By how much other parameters change the errors of the rows."""
        scale, zero_point = (a[self._sharing] for a in parameters)
        weight = self.weight[:, self._rows]
        values = fake_quantize(weight.astype(np.float32), scale, zero_point, self.problem.grid).astype(np.float64)
        return np.where(self._used, weight - values - self.error[:, self._rows], 0.0)

    def improve(self, candidates: Iterator[_Parameters]) -> None:
        """Gives each parameter of the class the best of its candidates, if that lowers the output error."""
        least, best = np.zeros(len(self.problem.scale)), self.parameters
        for candidate in candidates:
            change = self._difference(candidate)
            effect = self._sums(np.sum(change * (2 * self.gradient[:, self._rows] + self._block @ change), axis=1))
            better = effect < least - self._margin
            least = np.where(better, effect, least)
            best = (np.where(better, candidate[0], best[0]), np.where(better, candidate[1], best[1]))
        if np.any(least):
            change = self._difference(best)
            self.error[:, self._rows] += change
            self.gradient += self.second[:, :, self._rows] @ change
            self.parameters = best


def _shrunk(parameters: _Parameters, grid: IntGrid, low: float, high: float) -> _Parameters:
    """The parameters of ranges whose ends are multiplied."""
    lowest, highest = range_of(*parameters, grid)
    return asymmetric_params(np.minimum(lowest, 0.0) * low, np.maximum(highest, 0.0) * high, grid)


def _scaled(parameters: _Parameters, factor: float) -> _Parameters:
    scale = np.maximum(parameters[0] * np.float32(factor), np.finfo(np.float32).tiny)
    return scale.astype(np.float32), parameters[1]


@algorithm("output_range", stage="range", needs="moments")
def output_range(
    problem: Problem, *, least: float = 0.2, steps: int = 16, passes: int = 2, zero_points: bool = True
) -> Solution:
    """Shrinks ranges to where the output error of the nearest codes is least.

    Each parameter is searched over ``steps`` factors from `least` to 1, and around the best of them. Where the grid has
    zero points (one of those given isn't 0), the lower and the upper end are then shrunk each on its own. Parameters that
    no column of weights shares with another (per tensor, per channel) are independent and found at once; groups within a
    column are visited in turns, which never raises the output error either.

    Source: the search over output errors of Nagel et al., A White Paper on Neural Network Quantization, 2021
    (arXiv:2106.08295), section 3.1, with the layer's output in place of the tensor.

    Args:
        problem: a weight, its parameters and the second moments of its inputs.
        least: smallest factor, above 0 and below 1.
        steps: coarse factors, at least 1.
        passes: over all parameters, where columns use several; at least 1.
        zero_points: whether zero points may move.

    Raises:
        ConfigError: an option outside its range.
        InputError: the second moments aren't known, or aren't moments.

    Example:
        >>> weight = np.array([0.1, -0.2, 0.3, 0.1, -0.1, 0.2, 4.0]).reshape(1, 7, 1)
        >>> second = np.diag([1.0, 1, 1, 1, 1, 1, 1e-6])[None]  # the last input is hardly ever there
        >>> shared, zeros = np.zeros((1, 7, 1), int), np.zeros(1, "int32")
        >>> absmax = Problem(weight, np.full(1, 4 / 7, "float32"), zeros, shared, IntGrid(4), second)
        >>> bool(output_range(absmax).scale < 0.5 * absmax.scale)
        True
    """
    if checked_positive("least", least) >= 1:
        raise ConfigError(f"expected least above 0 and below 1; received least={least!r}")
    steps, passes = checked_count("steps", steps), checked_count("passes", passes)
    grid, classes = problem.grid, _classes(problem)
    search = _Search(problem, moments_of(problem, "output_range"))
    factors = np.linspace(1.0, least, steps + 1)
    fine = np.linspace(-1, 1, _FINE + 1) * (1 - least) / steps
    for turn in range(passes if classes.any() else 1):
        for number in range(int(classes.max(initial=0)) + 1):
            search.select(classes == number)
            start = search.parameters
            search.improve(_scaled(start, f) for f in (factors[1:] if turn == 0 else 1 + 4 * fine))
            if isinstance(grid, IntGrid) and zero_points and np.any(problem.zero_point):
                now = search.parameters
                search.improve(_shrunk(now, grid, f, 1.0) for f in factors[1:])
                now = search.parameters
                search.improve(_shrunk(now, grid, 1.0, f) for f in factors[1:])
            # Relative to the range as given a coarse step is one length; relative to a shrunk one it is longer.
            now = search.parameters
            search.improve(_scaled(now, 1 + f) for f in fine)
    found = problem.with_parameters(*search.parameters)
    return found.solution(found.nearest())
