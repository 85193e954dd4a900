"""Ranges by what the layer gives: each scale shrunk to where the error of the outputs, not of the weights, is least."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qi.algorithms.gptq import gptq, moments_of
from qi.algorithms.options import Choice, Count, Flag, Number, Options
from qi.algorithms.problem import Problem, Solution
from qi.algorithms.registry import algorithm
from qi.core import IntGrid, asymmetric_params
from qi.core.affine import fake_quantize
from qi.core.scaling import range_of

__all__ = ["output_range", "shrunk_ends"]

_OPTIONS = Options(
    least=Number(above=0, below=1),
    steps=Count(1),
    passes=Count(1),
    zero_points=Flag(),
    rounding=Choice(("nearest", "gptq")),
)
_BATCH = 1 << 22  # weights that GPTQ rounds at once, candidates beside each other
_FINE = 8  # candidates around the best coarse one
_MARGIN = 1e-9  # of an error: what a change has to win to count, well above rounding

_Parameters = tuple[np.ndarray, np.ndarray]


def _uses(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of a column and a parameter that it uses, sorted."""
    groups, _, outputs = problem.weight.shape
    column = np.arange(groups * outputs).reshape(groups, 1, outputs)
    return np.divmod(np.unique(column * len(problem.scale) + problem.sharing), len(problem.scale))


def _classes(problem: Problem) -> np.ndarray:
    """``[P]``: a class for each parameter, such that no column uses two of one class: those are independent."""
    columns, users = _uses(problem)
    count = len(problem.scale)
    classes = np.zeros(count, np.int64)
    np.maximum.at(classes, users, np.arange(len(columns)) - np.searchsorted(columns, columns))
    if len(np.unique(columns * count + classes[users])) < len(columns):
        return np.arange(count)  # shared in no pattern: one after the other
    return classes


def _units(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The unit of each parameter ``[P]`` and of each column ``[G, N]``: neither is shared between two units."""
    groups, _, outputs = problem.weight.shape
    columns, users = _uses(problem)
    of_parameter, of_column = np.zeros(len(problem.scale), np.int64), np.zeros(groups * outputs, np.int64)
    if len(np.unique(users)) == len(users):
        of_parameter[users], of_column = columns, np.arange(groups * outputs)
    elif len(np.unique(columns)) == len(columns):
        of_parameter, of_column[columns] = np.arange(len(problem.scale)), users
    return of_parameter, of_column.reshape(groups, outputs)


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
        self._own = np.where(self._used, self._sharing, -1).max(axis=1, initial=-1)
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

    def improve(self, candidates: Iterable[_Parameters]) -> None:
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


class _Rounding:
    """The output error after GPTQ as a function of the parameters of whole units."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._of_parameter, self._of_column = _units(problem)
        self.parameters: _Parameters = (problem.scale.astype(np.float32), problem.zero_point)
        self.codes, self._least = problem.nearest(), np.full(self._of_column.max(initial=0) + 1, np.inf)

    def improve(self, candidates: Iterable[_Parameters]) -> None:
        """Gives each unit the best of its candidates, if that lowers the output error."""
        every = list(candidates)
        batch = max(1, _BATCH // max(1, self.problem.weight.size))
        for start in range(0, len(every), batch):
            self._try(every[start : start + batch])

    def _try(self, candidates: list[_Parameters]) -> None:
        problem, count = self.problem, len(candidates)
        groups, inputs, outputs = problem.weight.shape
        # GPTQ takes one column like a thousand: candidates become columns.
        beside = Problem(
            np.tile(problem.weight, (1, 1, count)),
            np.concatenate([scale for scale, _ in candidates]),
            np.concatenate([zero_point for _, zero_point in candidates]),
            np.concatenate([problem.sharing + i * len(problem.scale) for i in range(count)], axis=2),
            problem.grid,
            problem.second,
        )
        codes = gptq(beside).codes
        errors = beside.output_error(beside.values(codes)).reshape(groups, count, outputs)
        codes = codes.reshape(groups, inputs, count, outputs)
        for i, (scale, zero_point) in enumerate(candidates):
            units = np.bincount(self._of_column.ravel(), errors[:, i].ravel(), minlength=len(self._least))
            better = units < self._least
            self._least = np.where(better, units, self._least)
            self.codes = np.where(better[self._of_column][:, None], codes[:, :, i], self.codes)
            own = better[self._of_parameter]
            self.parameters = (
                np.where(own, scale, self.parameters[0]),
                np.where(own, zero_point, self.parameters[1]),
            )


def shrunk_ends(
    scale: np.ndarray, zero_point: np.ndarray, grid: IntGrid, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of the same ranges with their lower and upper ends multiplied.

    Example:
        >>> scale, zero_point = shrunk_ends(np.ones(1), np.array([5]), IntGrid(4, signed=False), 0.2, 1.0)
        >>> round(float(scale[0]), 3), zero_point.tolist()  # [-5, 10] became [-1, 10]
        (0.733, [1])
    """
    lowest, highest = range_of(scale, zero_point, grid)
    return asymmetric_params(np.minimum(lowest, 0.0) * low, np.maximum(highest, 0.0) * high, grid)


def _scaled(parameters: _Parameters, factor: float) -> _Parameters:
    scale = np.maximum(parameters[0] * np.float32(factor), np.finfo(np.float32).tiny)
    return scale.astype(np.float32), parameters[1]


def _refine(search: _Search | _Rounding, grid: IntGrid | None, factors: np.ndarray, fine: np.ndarray) -> None:
    """Each end on its own where there is a grid with zero points, then all around what is best so far."""
    if grid is not None:
        now = search.parameters
        search.improve(shrunk_ends(*now, grid, f, 1.0) for f in factors[1:])
        now = search.parameters
        search.improve(shrunk_ends(*now, grid, 1.0, f) for f in factors[1:])
    now = search.parameters
    search.improve(_scaled(now, f) for f in fine)


@algorithm("output_range", stage="range", needs="moments", options=_OPTIONS, fits_scales=True)
def output_range(
    problem: Problem,
    *,
    least: float = 0.2,
    steps: int = 16,
    passes: int = 2,
    zero_points: bool = True,
    rounding: str = "nearest",
) -> Solution:
    """Shrinks ranges to where the output error is least, of the nearest codes or of those that GPTQ finds.

    Each parameter is searched over ``steps`` factors from `least` to 1, and around the best of them. Where the grid has
    zero points (one of those given isn't 0), the lower and the upper end are then shrunk each on its own. Parameters that
    no column of weights shares with another (per tensor, per channel) are independent and found at once; groups within a
    column are visited in turns, which never raises the output error either.

    The best range for the nearest codes is too narrow for GPTQ, which makes up for clipping as well. With
    ``rounding="gptq"`` every candidate is rounded by `gptq`, from the ranges given and from those best for the nearest
    codes; groups of a column then share a factor. On layers of a trained network this gave a fifth to a half less output
    error at 2 and 3 bits per channel than GPTQ on the extremes.

    Source: the search over output errors of Nagel et al., A White Paper on Neural Network Quantization, 2021
    (arXiv:2106.08295), section 3.1, with the layer's output in place of the tensor.

    Args:
        problem: a weight, its parameters and the second moments of its inputs.
        least: smallest factor, above 0 and below 1.
        steps: coarse factors, at least 1.
        passes: over all parameters, where columns use several; at least 1.
        zero_points: whether zero points may move.
        rounding: "nearest" or "gptq": what the ranges are for.

    Returns:
        the parameters and the codes of that rounding.

    Raises:
        ConfigError: an option outside its range.
        InputError: the second moments aren't known, or aren't moments.

    Example:
        >>> weight = np.array([0.1, -0.2, 0.3, 0.1, -0.1, 0.2, 4.0]).reshape(1, 7, 1)
        >>> second = np.diag([1.0, 1, 1, 1, 1, 1, 1e-6])[None]  # the last input is hardly ever there
        >>> absmax = Problem.of(weight, 4 / 7, IntGrid(4), second)
        >>> bool(output_range(absmax).scale < 0.5 * absmax.scale)
        True
    """
    _OPTIONS.check(least=least, steps=steps, passes=passes, zero_points=zero_points, rounding=rounding)
    second = moments_of(problem, "output_range")
    asymmetric = zero_points and bool(np.any(problem.zero_point))
    grid = problem.grid if isinstance(problem.grid, IntGrid) and asymmetric else None
    factors = np.linspace(1.0, least, steps + 1)
    fine = 1 + np.linspace(-1, 1, _FINE + 1) * (1 - least) / steps
    search, classes = _Search(problem, second), _classes(problem)
    for turn in range(passes if classes.any() else 1):
        for number in range(int(classes.max(initial=0)) + 1):
            search.select(classes == number)
            now = search.parameters
            search.improve(_scaled(now, f) for f in (factors[1:] if turn == 0 else 4 * fine - 3))
            _refine(search, grid, factors, fine)
    if rounding == "nearest":
        found = problem.with_parameters(*search.parameters)
        return found.solution(found.nearest())
    rounded = _Rounding(problem)
    rounded.improve([_scaled(rounded.parameters, f) for f in factors])
    rounded.improve([_scaled(search.parameters, f) for f in (1.0, 1.15, 1.3)])
    _refine(rounded, grid, factors[:: max(1, steps // 8)], fine[::2])
    return problem.with_parameters(*rounded.parameters).solution(rounded.codes)
