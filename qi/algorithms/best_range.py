"""The best of the range selections for each weight: the one whose codes change the layer's output least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qi.algorithms.gptq import gptq, moments_of
from qi.algorithms.options import Choice, Options
from qi.algorithms.output_range import _units, output_range, shrunk_ends
from qi.algorithms.problem import Problem, Solution
from qi.algorithms.registry import algorithm
from qi.core import IntGrid, PerChannel, SymmetricRule, asymmetric_params, power_of_two, symmetric_scale
from qi.core.affine import fake_quantize
from qi.errors import ConfigError
from qi.observers import select_weight_threshold

__all__ = ["best_range", "candidates"]

_OPTIONS = Options(rounding=Choice(("recipe", "nearest", "gptq")))
_SELECTIONS: tuple[tuple[str, dict[str, float]], ...] = (
    ("minmax", {}),
    ("mse", {}),
    ("mse", {"norm": 2.4}),
    ("mse", {"norm": 3.0}),
    ("mse", {"norm": 4.0}),
    ("percentile", {}),
    ("entropy", {}),
)
_PERCENTILE = 99.99
_SHRINKING = np.linspace(1.0, 0.2, 33)  # of the ends of asymmetric ranges

_Parameters = tuple[np.ndarray, np.ndarray]


@algorithm("best_range", stage="range", needs="moments", options=_OPTIONS)
def best_range(problem: Problem, *, rounding: str = "recipe") -> Solution:
    """Takes for each channel (or tensor) the range of least output error among those that the selections choose.

    Tried are the parameters given, the extremes, the least errors of the weights in the norms 2, 2.4, 3 and 4, percentiles,
    entropy (of symmetric ranges) and `output_range`; the result is never worse than the parameters given. Parameters that no
    column of weights shares with another are chosen each on their own, groups of a column together.

    Where all scales given are powers of two, so are those tried.

    Source: the range setting methods of Nagel et al., A White Paper on Neural Network Quantization, 2021
    (arXiv:2106.08295), section 3.1, compared by the error of the layer's output.

    Args:
        problem: a weight on a grid of integers, its parameters and the second moments of its inputs.
        rounding: "nearest" or "gptq": which codes' errors are compared; "recipe": those of the algorithm that rounds after it
            (called on its own: "nearest").

    Returns:
        the parameters and the codes of that rounding.

    Raises:
        ConfigError: an unknown rounding, or a grid of other values than integers.
        InputError: the second moments aren't known, or aren't moments.

    Example:
        >>> weight = np.array([[[0.9, 1.0], [-0.2, 0.1], [0.7, -0.4]]])  # two columns, a scale each
        >>> given = Problem.of(weight, [[[1.0, 0.2]]], IntGrid(3), np.eye(3)[None])
        >>> found = best_range(given)
        >>> after = given.with_parameters(found.scale).values(found.codes)
        >>> bool((given.output_error(after) <= given.output_error(given.values(given.nearest()))).all())
        True
    """
    _OPTIONS.check(rounding=rounding)
    if not isinstance(problem.grid, IntGrid):
        raise ConfigError(f"expected a grid of integers for 'best_range'; received {problem.grid!r}")
    moments_of(problem, "best_range")
    rounds: Callable[[Problem], np.ndarray] = (
        (lambda p: gptq(p).codes) if rounding == "gptq" else (lambda p: p.nearest())
    )
    of_parameter, of_column = _units(problem)
    least = np.full(max(of_parameter.max(initial=0), of_column.max(initial=0)) + 1, np.inf)
    scale, zero_point = problem.scale.astype(np.float32), problem.zero_point
    codes = problem.nearest()
    for parameters in candidates(problem, "gptq" if rounding == "gptq" else "nearest"):
        tried = problem.with_parameters(*parameters)
        found = rounds(tried)
        errors = problem.output_error(tried.values(found))
        units = np.bincount(of_column.ravel(), errors.ravel(), minlength=len(least))
        better = units < least
        least = np.where(better, units, least)
        codes = np.where(better[of_column][:, None], found, codes)
        own = better[of_parameter]
        scale, zero_point = np.where(own, tried.scale, scale), np.where(own, tried.zero_point, zero_point)
    return problem.with_parameters(scale, zero_point).solution(codes)


def candidates(problem: Problem, rounding: str = "nearest") -> Iterator[_Parameters]:
    """Scales and zero points ``[P]`` that the selections choose for a weight, those given first.

    Args:
        problem: on a grid of integers.
        rounding: of `output_range`: "nearest" or "gptq".
    """
    grid = problem.grid
    if not isinstance(grid, IntGrid):
        raise ConfigError(f"expected a grid of integers; received {grid!r}")
    yield problem.scale, problem.zero_point
    asymmetric = bool(np.any(problem.zero_point)) or not grid.signed
    mantissas, _ = np.frexp(problem.scale)
    powers = not asymmetric and bool(np.all(mantissas == 0.5))
    rows = list(_rows(problem))
    for name, options in _SELECTIONS:
        if asymmetric and name == "entropy":
            continue  # its threshold is one of magnitudes
        scale, zero_point = problem.scale.copy(), problem.zero_point.copy()
        for members, values in rows:
            if asymmetric:
                scale[members], zero_point[members] = _asymmetric(values, name, options, grid)
            else:
                scale[members] = _symmetric(values, name, options, grid, powers=powers)
        yield scale, zero_point
    if not powers:
        found = output_range(problem, rounding=rounding)
        yield found.scale, found.zero_point


def _rows(problem: Problem) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(parameters ``[p]``, their weights ``[p, n]``) for each number n of weights that parameters have, from 1 on."""
    sharing = problem.sharing.ravel()
    weights = problem.weight.ravel()[np.argsort(sharing, kind="stable")].astype(np.float32)
    counts = np.bincount(sharing, minlength=len(problem.scale))
    starts = np.cumsum(counts) - counts
    for count in np.unique(counts[counts > 0]):
        members = np.flatnonzero(counts == count)
        yield members, weights[starts[members][:, None] + np.arange(count)]


def _symmetric(values: np.ndarray, name: str, options: dict[str, float], grid: IntGrid, *, powers: bool) -> np.ndarray:
    """Scales ``[p]`` for rows of weights ``[p, n]``."""
    rule = SymmetricRule.EDGE if powers else SymmetricRule.QMAX
    search: dict[str, Any] = options | ({"power_of_two": True} if powers and name == "mse" else {})
    found = select_weight_threshold(values, name, grid, PerChannel(0), rule, **search).ravel()
    if powers:
        return np.asarray(np.where(found > 0, power_of_two(found), 1.0) / rule.divisor(grid), np.float32)
    return np.asarray(symmetric_scale(found, grid, rule), np.float32)


def _asymmetric(values: np.ndarray, name: str, options: dict[str, float], grid: IntGrid) -> _Parameters:
    """Scales and zero points ``[p]`` for rows of weights ``[p, n]``: of extremes, of quantiles, or of both ends shrunk alike."""
    if name == "percentile":
        lo, hi = np.percentile(values, [100 - _PERCENTILE, _PERCENTILE], axis=1)
        return asymmetric_params(np.minimum(lo, 0.0), np.maximum(hi, 0.0), grid)
    widest = asymmetric_params(np.minimum(values.min(axis=1), 0.0), np.maximum(values.max(axis=1), 0.0), grid)
    best, least = widest, np.full(len(values), np.inf)
    for factor in _SHRINKING if name == "mse" else ():
        tried = shrunk_ends(*widest, grid, factor, factor)
        rounded = fake_quantize(values, tried[0][:, None], tried[1][:, None], grid)
        errors = np.sum(np.abs(values - rounded, dtype=np.float64) ** options.get("norm", 2.0), axis=1)
        better = errors < least
        least = np.where(better, errors, least)
        best = (np.where(better, tried[0], best[0]), np.where(better, tried[1], best[1]))
    return best
