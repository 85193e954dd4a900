"""GPTQ: against a plain reference, the exhaustive optimum, and on layers of a trained network."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.algorithms import Problem, gptq
from qi.core import IntGrid, LutGrid
from qi.errors import ConfigError, InputError
from tests.algorithms.problems import digits_problems, nearest_errors, output_errors, random_problem

GRIDS = {
    "narrow": (IntGrid(3, narrow=True), False),
    "asymmetric": (IntGrid(3, signed=False), True),
    "table": (LutGrid([-7, -3, -1, 0, 2, 6], 4), False),
}


def problem_on(kind: str, seed: int, shape: tuple[int, int, int], per: str) -> Problem:
    grid, asymmetric = GRIDS[kind]
    if isinstance(grid, IntGrid):
        return random_problem(seed, shape, grid=grid, per=per, asymmetric=asymmetric)
    problem = random_problem(seed, shape, grid=IntGrid(grid.bits), per=per)
    return problem.with_parameters(problem.scale, grid=grid)


def reference(problem: Problem, damping: float, act_order: bool) -> np.ndarray:
    """The paper's algorithm 1 for one matrix, without blocks: the inverse, its Cholesky factor, an update per input."""
    weight, codes = problem.weight[0].astype(np.float64), np.zeros(problem.weight.shape, int)
    second = problem.second[0]
    order = np.argsort(-np.diag(second), kind="stable") if act_order else np.arange(len(second))
    second = second[order][:, order] + damping * np.mean(np.diag(second)) * np.eye(len(second))
    upper = np.linalg.cholesky(np.linalg.inv(second)).T
    weight = weight[order]
    for step, i in enumerate(order):
        whole = np.zeros(problem.weight.shape)
        whole[0, i] = weight[step]
        codes[0, i] = replace(problem, weight=whole).nearest()[0, i]
        error = (weight[step] - problem.values(codes)[0, i]) / upper[step, step]
        weight[step + 1 :] -= np.outer(upper[step, step + 1 :], error)
    return codes


def optimum(problem: Problem) -> np.ndarray:
    """The least output error of any codes, per column."""
    grid = problem.grid
    choices = range(grid.qmin, grid.qmax + 1)
    every = itertools.product(choices, repeat=problem.weight.shape[1])
    one = np.ones(problem.weight.shape, int)
    return np.min([problem.output_error(problem.values(one * np.array(c)[:, None])) for c in every], axis=0)


@pytest.mark.parametrize("block", [1, 5, 128])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("per", ["tensor", "channel", "group"])
def test_equals_the_plain_algorithm(kind: str, per: str, act_order: bool, block: int) -> None:
    problem = problem_on(kind, 3, (1, 20, 7), per)
    plain = reference(problem, 0.01, act_order)
    found = gptq(problem, damping=0.01, act_order=act_order, block=block).codes
    better = problem.output_error(problem.values(plain)) < nearest_errors(problem)
    assert better.mean() > 0.5  # or there is nothing to compare
    np.testing.assert_array_equal(found, np.where(better[:, None], plain, problem.nearest()))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(["tensor", "channel", "group"]), st.sampled_from(sorted(GRIDS)))
def test_codes_lie_on_the_grid_and_no_column_loses(seed: int, per: str, kind: str) -> None:
    problem = problem_on(kind, seed, (2, 9, 4), per)
    grid = problem.grid
    solution = gptq(problem)
    lowest, highest = (grid.qmin, grid.qmax) if isinstance(grid, IntGrid) else (0, grid.levels - 1)
    assert solution.codes.dtype == grid.storage_dtype
    assert solution.codes.min() >= lowest
    assert solution.codes.max() <= highest
    assert solution.scale is problem.scale
    assert solution.grid is grid
    assert np.all(output_errors(problem, solution) <= nearest_errors(problem))


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_independent_inputs_are_rounded_to_nearest(seed: int) -> None:
    problem = random_problem(seed)
    sizes = np.random.default_rng(seed).uniform(0.1, 9, 12)
    problem = replace(problem, second=np.diag(sizes)[None])
    np.testing.assert_array_equal(gptq(problem).codes, problem.nearest())


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_with_act_order_the_order_of_the_inputs_does_not_matter(seed: int) -> None:
    problem = random_problem(seed)
    order = np.random.default_rng(seed).permutation(12)
    shuffled = replace(
        problem,
        weight=problem.weight[:, order],
        sharing=problem.sharing[:, order],
        second=problem.second[:, order][..., order],
    )
    np.testing.assert_array_equal(gptq(shuffled).codes, gptq(problem).codes[:, order])


def test_matrices_are_independent() -> None:
    problem = random_problem(5, (40, 9, 1))
    whole = gptq(problem).codes
    for g in (0, 17, 39):
        alone = replace(problem, weight=problem.weight[[g]], sharing=problem.sharing[[g]], second=problem.second[[g]])
        np.testing.assert_array_equal(whole[g], gptq(alone).codes[0])


def test_is_near_the_optimum_of_tiny_problems() -> None:
    best = found = nearest = 0.0
    for seed in range(20):
        problem = random_problem(seed, (1, 4, 3), grid=IntGrid(2))
        assert np.all(optimum(problem) <= output_errors(problem, gptq(problem)) * (1 + 1e-9))
        best, found = best + optimum(problem).sum(), found + output_errors(problem, gptq(problem)).sum()
        nearest += nearest_errors(problem).sum()
    assert found - best <= 0.5 * (nearest - best)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_lowers_the_output_error_of_real_layers(bits: int) -> None:
    for problem in digits_problems(IntGrid(bits, narrow=True)):
        errors, before = output_errors(problem, gptq(problem)), nearest_errors(problem)
        assert np.all(errors <= before)
        assert errors.sum() <= 0.8 * before.sum()
        # The control: without correlations in the moments nothing is made up for.
        blind = replace(problem, second=np.eye(problem.weight.shape[1])[None])
        assert output_errors(problem, gptq(blind)).sum() > 0.8 * before.sum()


def test_dead_inputs_get_their_nearest_code_and_move_nothing() -> None:
    problem = random_problem(8)
    second = problem.second.copy()
    second[:, [2, 7]] = 0
    second[:, :, [2, 7]] = 0
    codes = gptq(replace(problem, second=second)).codes
    np.testing.assert_array_equal(codes[:, [2, 7]], problem.nearest()[:, [2, 7]])
    rest = np.delete(np.arange(12), [2, 7])
    alone = replace(
        problem, weight=problem.weight[:, rest], sharing=problem.sharing[:, rest], second=second[:, rest][..., rest]
    )
    np.testing.assert_array_equal(codes[:, rest], gptq(alone).codes)
    np.testing.assert_array_equal(gptq(replace(problem, second=0 * second)).codes, problem.nearest())


@pytest.mark.parametrize("damping", [1e-300, 1e-15, 0.01, 100.0])
def test_fewer_samples_than_features(damping: float) -> None:
    problem = random_problem(2, (3, 24, 5), samples=4)
    errors = output_errors(problem, gptq(problem, damping=damping))
    assert np.all(np.isfinite(errors))
    assert np.all(errors <= nearest_errors(problem))
    assert errors.sum() < 0.5 * nearest_errors(problem).sum() or damping > 1


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30, 1e200])
def test_the_size_of_the_inputs_does_not_matter(size: float) -> None:
    problem = random_problem(4)
    np.testing.assert_array_equal(gptq(replace(problem, second=problem.second * size)).codes, gptq(problem).codes)


def test_much_damping_gives_the_nearest_codes() -> None:
    problem = random_problem(6)
    np.testing.assert_array_equal(gptq(problem, damping=1e9).codes, problem.nearest())


def test_arguments_stay_as_they_are(readonly) -> None:
    problem = random_problem(1)
    gptq(replace(problem, weight=readonly(problem.weight), second=readonly(problem.second)))


@pytest.mark.parametrize(
    "options",
    [
        {"damping": 0},
        {"damping": -1.0},
        {"damping": np.nan},
        {"damping": np.inf},
        {"damping": "a"},
        {"block": 0},
        {"block": 1.5},
    ],
)
def test_refuses_options(options: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        gptq(random_problem(0), **options)


def test_refuses_moments_that_are_none() -> None:
    problem = random_problem(0)
    with pytest.raises(InputError, match="moments"):
        gptq(replace(problem, second=None))
    with pytest.raises(InputError, match="second"):
        gptq(replace(problem, second=problem.second[:, :5]))
    with pytest.raises(InputError, match="diagonal"):
        gptq(replace(problem, second=-problem.second))
    indefinite = np.eye(12)[None].copy()
    indefinite[0, 3, 4] = indefinite[0, 4, 3] = 1e9
    with pytest.raises(InputError, match="semidefinite"):
        gptq(replace(problem, second=indefinite))
