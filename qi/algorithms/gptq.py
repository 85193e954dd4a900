"""GPTQ: weights rounded one input after the other, each error made up for by the inputs that are still to come."""

from __future__ import annotations

import numpy as np

from qi.algorithms.options import Count, Flag, Number, Options
from qi.algorithms.problem import Problem, Solution
from qi.algorithms.registry import algorithm
from qi.core import Grid
from qi.core.affine import dequantize, quantize
from qi.errors import InputError

__all__ = ["DAMPING", "gptq", "keep_better", "moments_of"]

DAMPING = Number(above=0)

_LEAST_RAISED = 1e-10  # where raising starts: below it a damping is lost in the rounding of the moments
_MOST_RAISED = 1e6
_OPTIONS = Options(damping=DAMPING, act_order=Flag(), block=Count(1))


def moments_of(problem: Problem, why: str) -> np.ndarray:
    """The second moments ``[G, K, K]`` in float64, if they can be moments.

    Raises:
        InputError: they aren't known, or a square has a negative mean.

    Example:
        >>> from qi.core import IntGrid
        >>> moments_of(Problem.of([[[1.0]]], 1.0, IntGrid(4), [[[2.0]]]), "an example").tolist()
        [[[2.0]]]
    """
    second = np.asarray(problem.require_second(why), np.float64)
    diagonal = np.diagonal(second, axis1=1, axis2=2)
    if np.any(diagonal < 0):
        raise InputError(
            f"expected second moments E[x x^T], whose diagonal isn't negative; received {diagonal.min():g}; "
            "do calibrate again"
        )
    return second


def keep_better(problem: Problem, codes: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Of two sets of codes ``[G, K, N]``, the one with the smaller output error for each column ``(g, n)``.

    Raises:
        InputError: the second moments aren't known.

    Example:
        >>> from qi.core import IntGrid
        >>> problem = Problem.of([[[1.0]]], 1.0, IntGrid(4), [[[1.0]]])
        >>> keep_better(problem, np.array([[[7]]]), np.array([[[1]]])).tolist()
        [[[1]]]
    """
    better = problem.output_error(problem.values(codes)) < problem.output_error(problem.values(baseline))
    return np.where(better[:, None, :], codes, baseline)


def _cholesky(matrix: np.ndarray, damping: float) -> np.ndarray:
    """Lower factors of ``matrix + damping * I``, the damping raised tenfold where it doesn't do."""
    damped = matrix.copy()
    np.einsum("gkk->gk", damped)[...] += damping
    try:
        return np.asarray(np.linalg.cholesky(damped))
    except np.linalg.LinAlgError:
        if len(matrix) > 1:
            return np.concatenate([_cholesky(one[None], damping) for one in matrix])
        if damping > _MOST_RAISED:
            raise InputError(
                "expected second moments E[x x^T], which are positive semidefinite; received others; do calibrate again"
            ) from None
        return _cholesky(matrix, max(10 * damping, _LEAST_RAISED))


def _feedback(second: np.ndarray, damping: float) -> np.ndarray:
    """``[G, K, K]``, lower: by how much the target of input i moves for an error of 1 at an input j < i.

    With ``H = R R^T``, R upper triangular, the output error of e is ``sum_i (R[i,i] e[i] + sum_{j<i} R[j,i] e[j])^2``, so
    each term is least where ``e[i] = -sum_{j<i} R[j,i] / R[i,i] e[j]``. That is GPTQ's update, as the Cholesky factor of
    the inverse that it works with is the inverse of R, without inverting anything. Inputs that were always 0 have zeros in
    their row and column: they neither give nor take.
    """
    diagonal = np.diagonal(second, axis1=1, axis2=2)
    live = diagonal > 0
    greatest = np.where(live.any(axis=1), diagonal.max(axis=1), 1.0)[:, None]
    relative = diagonal / greatest
    mean = np.where(live.any(axis=1), relative.sum(axis=1) / np.maximum(live.sum(axis=1), 1), 1.0)
    matrix = second / greatest[..., None] / mean[:, None, None]
    # Upper times its transpose is lower times its transpose with both axes reversed.
    lower = _cholesky(matrix[:, ::-1, ::-1], damping)[:, ::-1, ::-1].swapaxes(1, 2)
    return np.ascontiguousarray(lower / np.diagonal(lower, axis1=1, axis2=2)[..., None])


def _round_in_order(
    weight: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, grid: Grid, feedback: np.ndarray, block: int
) -> np.ndarray:
    """Codes ``[G, K, N]`` input after input; errors reach later blocks by one product per block."""
    codes = np.empty(weight.shape, grid.storage_dtype)
    error = np.empty(weight.shape, np.float64)
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        target = weight[:, start:stop] + feedback[:, start:stop, :start] @ error[:, :start]
        for i in range(start, stop):
            row = target[:, i - start] + (feedback[:, i, None, start:i] @ error[:, start:i])[:, 0]
            codes[:, i] = quantize(row, scale[:, i], zero_point[:, i], grid)
            error[:, i] = weight[:, i] - dequantize(codes[:, i], scale[:, i], zero_point[:, i], grid)
    return codes


@algorithm("gptq", stage="rounding", needs="moments", options=_OPTIONS)
def gptq(problem: Problem, *, damping: float = 0.01, act_order: bool = True, block: int = 128) -> Solution:
    """Rounds input after input, moving the weights not yet rounded to where they make up for the error so far.

    Scales and zero points stay as they are, so the order of the inputs is free whatever they share. Each column of a
    matrix is rounded on its own: where the result has a greater output error than the nearest codes, those are kept.
    Weights of inputs that were 0 throughout calibration get their nearest code. Where moments plus damping aren't
    positive definite (fewer samples than features and hardly any damping), the damping is raised tenfold until they are.

    Source: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2022
    (arXiv:2210.17323).

    Args:
        problem: a weight, its parameters and the second moments of its inputs.
        damping: added to the diagonal of the moments, relative to its mean; positive. More of it trusts the moments less.
        act_order: inputs of the greatest mean square first, while there are many left to make up for them.
        block: inputs whose errors reach the rest at once; for speed only.

    Raises:
        ConfigError: a damping that isn't positive and finite, a block below 1.
        InputError: the second moments aren't known, or aren't moments.

    Example:
        >>> from qi.core import IntGrid
        >>> problem = Problem.of([[[0.4], [0.4]]], 1.0, IntGrid(4), [[[1.0, 0.9], [0.9, 1.0]]])
        >>> problem.nearest().ravel().tolist(), gptq(problem).codes.ravel().tolist()
        ([0, 0], [0, 1])
    """
    _OPTIONS.check(damping=damping, act_order=act_order, block=block)
    second = moments_of(problem, "gptq")
    scale, zero_point = problem.spread()
    weight = problem.weight.astype(np.float64)
    if not act_order:
        codes = _round_in_order(weight, scale, zero_point, problem.grid, _feedback(second, damping), block)
        return problem.solution(keep_better(problem, codes, problem.nearest()))
    order = np.argsort(-np.diagonal(second, axis1=1, axis2=2), axis=1, kind="stable")
    ordered = np.take_along_axis(np.take_along_axis(second, order[:, :, None], 1), order[:, None, :], 2)
    weight, scale, zero_point = (np.take_along_axis(a, order[:, :, None], 1) for a in (weight, scale, zero_point))
    codes = _round_in_order(weight, scale, zero_point, problem.grid, _feedback(ordered, damping), block)
    codes = np.take_along_axis(codes, np.argsort(order, axis=1)[:, :, None], 1)
    return problem.solution(keep_better(problem, codes, problem.nearest()))
