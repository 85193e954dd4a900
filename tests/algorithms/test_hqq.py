"""Half-quadratic fits of scales and zero points: never worse in their own objective, better where ranges have outliers."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.algorithms import Problem, Solution, hqq
from qi.core import IntGrid, LutGrid
from qi.errors import ConfigError
from tests.algorithms.problems import digits_problems, nearest_errors, output_errors, put_on_grid, random_problem
from tests.algorithms.test_gptq import GRIDS, problem_on


def objective(problem: Problem, norm: float, solution: Solution | None = None) -> np.ndarray:
    """``[P]``: what each parameter's weights add to the sum of ``|error|^norm``."""
    on = problem.with_parameters(solution.scale, solution.zero_point) if solution else problem
    values = on.values(solution.codes if solution else on.nearest())
    errors = np.abs(problem.weight.astype(np.float64) - values) ** norm
    return np.bincount(problem.sharing.ravel(), errors.ravel(), minlength=len(problem.scale))


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["tensor", "channel", "group"]),
    st.sampled_from(sorted(GRIDS)),
    st.sampled_from([0.5, 0.7, 1.0, 1.5, 2.0]),
)
def test_no_parameter_ends_worse_in_the_objective(seed: int, per: str, kind: str, norm: float) -> None:
    problem = problem_on(kind, seed, (2, 20, 4), per)
    solution = hqq(problem, norm=norm)
    assert np.all(objective(problem, norm, solution) <= objective(problem, norm) * (1 + 1e-12))
    on = problem.with_parameters(solution.scale, solution.zero_point)
    np.testing.assert_array_equal(solution.codes, on.nearest())
    assert solution.scale.dtype == np.float32
    assert np.all(solution.zero_point == np.rint(solution.zero_point))
    if isinstance(problem.grid, IntGrid):
        assert np.all((solution.zero_point >= problem.grid.qmin) & (solution.zero_point <= problem.grid.qmax))


@pytest.mark.parametrize("norm", [0.7, 1.5])
def test_iterations_lower_the_objective_below_the_best_shrunk_range(norm: float) -> None:
    for kind in ("narrow", "asymmetric"):
        problem = problem_on(kind, 1, (1, 200, 30), "channel")
        start, end = (objective(problem, norm, hqq(problem, norm=norm, iterations=n)).sum() for n in (0, 20))
        assert end < start


def test_symmetric_grids_keep_their_zero_points() -> None:
    for kind in ("narrow", "table"):
        assert not hqq(problem_on(kind, 2, (1, 30, 4), "channel")).zero_point.any()
    asymmetric = problem_on("asymmetric", 2, (1, 30, 4), "channel")
    np.testing.assert_array_equal(hqq(asymmetric, zero_points=False).zero_point, asymmetric.zero_point)


def test_zero_points_move_where_one_end_is_an_outlier() -> None:
    weight = np.append(np.random.default_rng(0).uniform(-0.5, 1.0, 100), -2.0).reshape(1, 101, 1)
    problem = put_on_grid(weight, IntGrid(4, signed=False), None, asymmetric=True)
    moved, kept = hqq(problem, norm=0.7), hqq(problem, norm=0.7, zero_points=False)
    assert problem.zero_point.tolist() == kept.zero_point.tolist() == [10]
    assert 4 <= moved.zero_point[0] <= 6
    assert objective(problem, 0.7, moved) < 0.8 * objective(problem, 0.7, kept)


def test_least_squares_recovers_scale_and_zero_point() -> None:
    grid, codes = IntGrid(4, signed=False), np.random.default_rng(0).integers(0, 16, (1, 50, 2))
    true = Problem(
        np.zeros((1, 50, 2)),
        np.array([0.1, 0.3], "f"),
        np.array([5, 9], "i"),
        np.tile([0, 1], (1, 50, 1)),
        grid,
    )
    off = replace(true, weight=true.values(codes), zero_point=np.array([7, 8], "i"))
    fit = importlib.import_module("qi.algorithms.hqq")._Fit(off, 1.0, grid)
    found = fit.refit(off, codes - off.zero_point[off.sharing], np.zeros((1, 50, 2)))
    assert found.zero_point.tolist() == [5, 9]
    np.testing.assert_allclose(found.scale, [0.1, 0.3], rtol=1e-6)


def test_outliers_hardly_count_below_norm_1() -> None:
    weight = np.append(np.random.default_rng(1).normal(0, 0.1, 300), 2.0).reshape(1, 301, 1)
    problem = Problem(weight, np.full(1, 2 / 7, "f"), np.zeros(1, "i"), np.zeros((1, 301, 1), int), IntGrid(4))
    scale = {norm: float(hqq(problem, norm=norm, iterations=200).scale[0]) for norm in (0.7, 2.0)}
    assert scale[0.7] < scale[2.0] < 0.28


@pytest.mark.parametrize("bits", [2, 3])
def test_lowers_the_output_error_of_real_layers(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = after = 0.0
    problems = digits_problems(IntGrid(bits, narrow=True))
    for problem in problems:
        errors, nearest = output_errors(problem, hqq(problem)).sum(), nearest_errors(problem).sum()
        assert errors <= nearest
        before, after = before + nearest, after + errors
    assert after <= 0.8 * before
    # The control: no candidates, no iterations.
    monkeypatch.setattr(importlib.import_module("qi.algorithms.hqq"), "_SHRINKS", (1.0,))
    broken = sum(output_errors(problem, hqq(problem, iterations=0)).sum() for problem in problems)
    assert broken > 0.8 * before


def test_weights_of_zero_and_weights_on_the_grid_stay() -> None:
    problem = random_problem(0)
    zero = hqq(replace(problem, weight=0 * problem.weight))
    assert np.all(np.isfinite(zero.scale) & (zero.scale > 0))
    assert not zero.codes.any()
    there = replace(problem, weight=problem.values(problem.nearest()))
    np.testing.assert_array_equal(hqq(there).codes, problem.nearest())


def test_works_on_tables_and_without_moments() -> None:
    problem = replace(random_problem(3, (1, 64, 8), grid=IntGrid(8)), second=None)
    problem = problem.with_parameters(problem.scale, grid=LutGrid([-127, -60, -20, 0, 20, 60, 127]))
    assert objective(problem, 1.5, hqq(problem)).sum() < objective(problem, 1.5).sum()


@pytest.mark.parametrize(
    "options",
    [{"norm": 0}, {"norm": 2.5}, {"norm": np.nan}, {"strength": 0.0}, {"strength": np.inf}, {"iterations": -1}],
)
def test_refuses_options(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        hqq(random_problem(0), **options)
