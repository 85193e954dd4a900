"""Codebooks: weights as indices of a table of integers, clustered (k-means) or signed powers of two."""

from __future__ import annotations

import numpy as np

from qi.algorithms.gptq import moments_of
from qi.algorithms.options import Count, Flag, Options
from qi.algorithms.problem import Problem, Solution
from qi.algorithms.registry import algorithm
from qi.core import IntGrid, LutGrid, SymmetricRule, symmetric_scale
from qi.core.grid import code_bits
from qi.errors import ConfigError

__all__ = ["kmeans", "powers"]

_CLUSTERED = Options(bits=Count(1, 8, or_zero=True), lut_bits=Count(2, 16), refits=Count(0))
_POWERS = Options(bits=Count(2, 5, or_zero=True), power_of_two_scale=Flag())
_CELLS = 1024  # of the histogram in which clusters end: exact for tables of up to 9 bits
_SHRINKS = tuple(2.0 ** (-step / 8) for step in range(13))  # candidates for the scales of powers of two


def _importance(problem: Problem) -> np.ndarray:
    """``[G, K, N]``: the mean square of each weight's input, relative to the greatest of its matrix; 1 where unknown."""
    if problem.second is None:
        return np.ones(problem.weight.shape)
    squares = np.diagonal(moments_of(problem, "codebooks"), axis1=1, axis2=2)
    greatest = squares.max(axis=1, keepdims=True)
    # An input that was never there still gets values near its weights.
    relative = np.maximum(squares / np.where(greatest > 0, greatest, 1.0), 1e-6)
    return np.broadcast_to(relative[..., None], problem.weight.shape)


def _sums(problem: Problem, values: np.ndarray) -> np.ndarray:
    return np.bincount(problem.sharing.ravel(), values.ravel(), minlength=len(problem.scale))


def _absmax(problem: Problem) -> np.ndarray:
    greatest = np.zeros(len(problem.scale))
    np.maximum.at(greatest, problem.sharing.ravel(), np.abs(problem.weight).astype(np.float64).ravel())
    return greatest


def _index_bits(problem: Problem, bits: int, least: int, most: int) -> int:
    bits = bits or code_bits(problem.grid)
    if not least <= bits <= most:
        raise ConfigError(f"expected a grid of {least} to {most} bits; received bits={bits}; do give another, or bits")
    return bits


def _cluster(position: np.ndarray, mass: np.ndarray, levels: int, grid: IntGrid) -> list[int]:
    """The `levels` integers of the grid, 0 among them, with the least mass times squared distance to the nearest.

    Dynamic programming over a histogram (Wang and Song, 2011): clusters of sorted numbers are intervals, and an interval's
    best integer is its rounded mean. Exact where cells are half a step wide, as midpoints of integers are.
    """
    low, high = grid.qmin - 0.5, grid.qmax + 0.5
    width = max(0.5, (high - low) / _CELLS)
    cell = np.clip(np.floor((position.ravel() - low) / width), 0, np.ceil((high - low) / width) - 1).astype(np.int64)
    filled, cell = np.unique(cell, return_inverse=True)
    moments = [mass.ravel(), (mass * position).ravel(), (mass * position * position).ravel()]
    count, first, second = (np.append(0.0, np.cumsum(np.bincount(cell, m, minlength=len(filled)))) for m in moments)
    count, first, second = (s[:, None] - s[None, :] for s in (count, first, second))  # [j, i]: of cells i to j - 1
    center = np.clip(np.rint(np.divide(first, count, out=np.zeros_like(first), where=count > 0)), grid.qmin, grid.qmax)
    allowed = np.tri(len(filled) + 1, dtype=bool)
    cost = np.where(allowed, second - 2 * center * first + center * center * count, np.inf)
    return _best_cuts(cost, np.where(allowed, second, np.inf), center, levels)


def _least(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index, value) of the least of each row."""
    index = costs.argmin(axis=1)
    return index, costs[np.arange(len(costs)), index]


def _best_cuts(cost: np.ndarray, zero: np.ndarray, center: np.ndarray, levels: int) -> list[int]:
    """Entries of the best split of all cells into `levels` intervals, one of which (costs in `zero`) has the entry 0."""
    cells = len(cost)
    free = np.where(np.arange(cells) == 0, 0.0, np.inf)  # least cost of the first j cells, 0 not used yet
    used = np.full(cells, np.inf)
    steps = []
    for _ in range(levels):
        before, next_free = _least(free + cost)
        after, carried = _least(used + cost)
        at_zero, fresh = _least(free + zero)
        steps.append((before, after, at_zero, fresh < carried))
        free, used = next_free, np.minimum(carried, fresh)
    entries, end, holds = [0], cells - 1, True
    for before, after, at_zero, is_fresh in reversed(steps):
        if holds and is_fresh[end]:
            end, holds = int(at_zero[end]), False
            continue
        start = int((after if holds else before)[end])
        if start < end:
            entries.append(int(center[end, start]))
        end = start
    return sorted(set(entries))


@algorithm("kmeans", stage="range", needs="weights", options=_CLUSTERED, fits_scales=True, index_bits=(1, 8))
def kmeans(problem: Problem, *, bits: int = 0, lut_bits: int = 8, refits: int = 3) -> Solution:
    """Clusters the weights into a table of at most ``2**bits`` integers, one of them 0, shared by the whole tensor.

    The table lies on the signed grid of `lut_bits` bits; each parameter gets a scale that puts its greatest magnitude at
    that grid's end, so all channels use the table alike. The clusters are optimal, not the outcome of random starts:
    dynamic programming on sorted weights. Scales are then fitted to the table by least squares and the table to the
    scales, as long as that helps. Errors count by the mean square of the weight's input where moments are known.
    ``value = entry * scale``, so the threshold of a look-up-table quantizer is ``scale * 2**(lut_bits - 1)``.

    Source: Han et al., Deep Compression, 2015 (arXiv:1510.00149); Wang and Song, Ckmeans.1d.dp: Optimal k-means
    Clustering in One Dimension by Dynamic Programming, The R Journal 3(2), 2011.

    Args:
        problem: a weight and which weights share a parameter; the parameters themselves are replaced.
        bits: of an index, 1 to 8; 0 takes those of the problem's grid.
        lut_bits: of the entries, `bits` to 16, at least 2.
        refits: rounds of fitting scales and table to each other, at most.

    Raises:
        ConfigError: an option outside its range.

    Example:
        >>> weight = np.array([-0.9, -1.0, -1.1, 0.0, 0.4, 0.5, 2.0]).reshape(1, 7, 1)
        >>> found = kmeans(Problem.of(weight, 1.0, IntGrid(2)))
        >>> found.grid.values, found.codes.ravel().tolist()
        ((-64, 0, 29, 127), [0, 0, 0, 1, 2, 2, 3])
    """
    _CLUSTERED.check(bits=bits, lut_bits=lut_bits, refits=refits)
    bits = _index_bits(problem, bits, 1, 8)
    if lut_bits < bits:
        raise ConfigError(
            f"expected lut_bits not below the bits of an index, {bits}; received lut_bits={lut_bits}; do raise it"
        )
    base, importance = IntGrid(lut_bits), _importance(problem)
    weight, zeros = problem.weight.astype(np.float64), np.zeros(problem.scale.shape, np.int32)
    scale = symmetric_scale(_absmax(problem), base, SymmetricRule.QMAX)
    best, least = problem, np.inf
    for _ in range(refits + 1):
        step = scale.astype(np.float64)[problem.sharing]
        entries = _cluster(weight / step, importance * (step / step.max(initial=0.0)) ** 2, 2**bits, base)
        tried = problem.with_parameters(scale, zeros, LutGrid(entries, lut_bits))
        values = tried.values(tried.nearest()).astype(np.float64)
        error = float(np.sum(importance * (weight - values) ** 2))
        if error >= least:
            break
        best, least, steps = tried, error, values / step
        squares, products = _sums(problem, importance * steps * steps), _sums(problem, importance * steps * weight)
        fitted = np.divide(products, squares, out=scale.astype(np.float64), where=(squares > 0) & (products > 0))
        scale = np.maximum(fitted, np.finfo(np.float32).tiny).astype(np.float32)
    return best.solution(best.nearest())


@algorithm(
    "powers", stage="range", needs="weights", options=_POWERS, fits_scales="power_of_two_scale", index_bits=(2, 5)
)
def powers(problem: Problem, *, bits: int = 0, power_of_two_scale: bool = False) -> Solution:
    """Puts weights on 0 and signed powers of two, so that a product is a shift.

    The table has ``2**(bits-1) - 1`` powers of either sign, consecutive from 1; its entries take 8 bits up to 4 bits of
    index and 16 at 5. The scale of each parameter is searched from the one that puts its greatest magnitude on the
    greatest power downwards, by the squared error of the weights, weighted by the mean square of their inputs where
    moments are known.

    Source: Miyashita et al., Convolutional Neural Networks using Logarithmic Data Representation, 2016 (arXiv:1603.01025);
    Zhou et al., Incremental Network Quantization, 2017 (arXiv:1702.03044).

    Args:
        problem: a weight and which weights share a parameter; the parameters themselves are replaced.
        bits: of an index, 2 to 5; 0 takes those of the problem's grid.
        power_of_two_scale: whether scales are powers of two as well.

    Raises:
        ConfigError: bits outside 2 to 5.

    Example:
        >>> weight = np.array([-1.0, -0.5, 0.0, 0.3, 0.9]).reshape(1, 5, 1)
        >>> found = powers(Problem.of(weight, 1.0, IntGrid(3)), power_of_two_scale=True)
        >>> found.grid.values, found.scale.tolist(), found.codes.ravel().tolist()
        ((-4, -2, -1, 0, 1, 2, 4), [0.25], [0, 1, 3, 4, 6])
    """
    _POWERS.check(bits=bits, power_of_two_scale=power_of_two_scale)
    bits = _index_bits(problem, bits, 2, 5)
    magnitudes = [2**k for k in range(2 ** (bits - 1) - 1)]
    grid = LutGrid([-m for m in magnitudes] + [0, *magnitudes], 8 if bits < 5 else 16)
    importance, zeros = _importance(problem), np.zeros(problem.scale.shape, np.int32)
    absmax = _absmax(problem)
    greatest = np.where(absmax > 0, np.maximum(absmax / magnitudes[-1], np.finfo(np.float32).tiny), 1.0)
    best, least = problem.with_parameters(greatest, zeros, grid), np.full(greatest.shape, np.inf)
    for shrink in _SHRINKS:
        scale = greatest * shrink
        if power_of_two_scale:
            scale = np.exp2(np.rint(np.log2(scale)))
        tried = best.with_parameters(np.maximum(scale, np.finfo(np.float32).tiny))
        error = _sums(problem, importance * (problem.weight - tried.values(tried.nearest()).astype(np.float64)) ** 2)
        better = error < least
        least = np.where(better, error, least)
        best = best.with_parameters(np.where(better, tried.scale, best.scale))
    return best.solution(best.nearest())
