"""Problems for the tests of rounding algorithms: layers of a network trained on scikit-learn's digits, and random ones."""

from __future__ import annotations

import numpy as np

from qi.algorithms import Problem
from qi.core import Grid, IntGrid, asymmetric_params, symmetric_scale
from tests.algorithms.digits import digits


def moments(rows: np.ndarray) -> np.ndarray:
    """``E[x x^T]`` of ``[n, G, K]`` rows."""
    return np.einsum("ngi,ngj->gij", rows, rows) / len(rows)


def put_on_grid(
    weight: np.ndarray, grid: Grid, second: np.ndarray | None, *, per: str = "channel", asymmetric: bool = False
) -> Problem:
    """A problem whose ranges are the extremes of the weights, per "tensor", "channel" or "group" of 8 inputs."""
    groups, inputs, outputs = weight.shape
    column = np.arange(groups * outputs).reshape(groups, 1, outputs)
    run = np.arange(inputs).reshape(1, inputs, 1) // 8
    index = {"tensor": 0 * (column + run), "channel": column + 0 * run, "group": column + groups * outputs * run}[per]
    count = int(index.max()) + 1
    low, high = np.zeros(count), np.zeros(count)
    np.minimum.at(low, index.ravel(), weight.ravel())
    np.maximum.at(high, index.ravel(), weight.ravel())
    if asymmetric:
        scale, zero_point = asymmetric_params(low, high, grid)
    else:
        scale, zero_point = symmetric_scale(np.maximum(-low, high), grid), np.zeros(count, np.int32)
    return Problem(weight.astype(np.float32), scale, zero_point, index, grid, second)


def random_problem(
    seed: int,
    shape: tuple[int, int, int] = (1, 12, 5),
    *,
    grid: Grid | None = None,
    samples: int | None = None,
    per: str = "channel",
    asymmetric: bool = False,
) -> Problem:
    """Random weights whose inputs are correlated and of different sizes."""
    random = np.random.default_rng(seed)
    groups, inputs, _ = shape
    samples = 4 * inputs if samples is None else samples
    mixing = random.standard_normal((groups, inputs, inputs)) * (1 + np.arange(inputs)[:, None]) ** -0.5
    rows = random.standard_normal((groups, samples, inputs)) @ mixing + 0.3
    weight = random.standard_normal(shape) * 0.1
    return put_on_grid(
        weight, grid or IntGrid(4, narrow=True), moments(rows.swapaxes(0, 1)), per=per, asymmetric=asymmetric
    )


def digits_problems(grid: Grid, *, per: str = "channel", asymmetric: bool = False) -> list[Problem]:
    """The layers of a network trained on the digits, with what they see of them."""
    net = digits()
    return [
        put_on_grid(weight[None], grid, moments(net.inputs(layer)[:, None]), per=per, asymmetric=asymmetric)
        for layer, weight in enumerate(net.weights)
    ]


def output_errors(problem: Problem, solution: object) -> np.ndarray:
    """``[G, N]`` of a solution, which may stand on other parameters than the problem."""
    on = problem.with_parameters(solution.scale, solution.zero_point, solution.grid)
    return problem.output_error(on.values(solution.codes))


def nearest_errors(problem: Problem) -> np.ndarray:
    """``[G, N]`` of the nearest codes."""
    return problem.output_error(problem.values(problem.nearest()))
