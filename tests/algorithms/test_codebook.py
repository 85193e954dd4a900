"""Codebooks: optimal clusters, tables that the look-up-table quantizers take, powers of two."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.algorithms import Problem, Solution, gptq, kmeans, powers
from qi.core import IntGrid, LutGrid
from qi.errors import ConfigError
from qi.quantizers import WeightsLUTSymmetricInferableQuantizer
from tests.algorithms.problems import digits_problems, nearest_errors, output_errors, random_problem

MODULE = importlib.import_module("qi.algorithms.codebook")


def on_solution(problem: Problem, solution: Solution) -> Problem:
    return problem.with_parameters(solution.scale, solution.zero_point, solution.grid)


def weight_error(problem: Problem, solution: Solution) -> float:
    return float(
        np.sum((problem.weight - on_solution(problem, solution).values(solution.codes).astype(np.float64)) ** 2)
    )


def check_solution(problem: Problem, solution: Solution, bits: int) -> None:
    assert isinstance(solution.grid, LutGrid)
    assert 0 in solution.grid.values
    assert solution.grid.levels <= 2**bits
    assert solution.scale.dtype == np.float32
    assert not solution.zero_point.any()
    np.testing.assert_array_equal(solution.codes, on_solution(problem, solution).nearest())


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 4))
def test_clusters_are_optimal(seed: int, levels_bits: int, lut_bits: int) -> None:
    random, base = np.random.default_rng(seed), IntGrid(lut_bits)
    levels = min(2**levels_bits, base.levels)
    position = random.uniform(base.qmin - 0.4, base.qmax + 0.4, 30)
    mass = random.uniform(0.1, 2, 30)

    def cost(entries: tuple[int, ...]) -> float:
        return float(np.sum(mass * np.min((position[:, None] - np.array(entries)) ** 2, axis=1)))

    found = MODULE._cluster(position, mass, levels, base)
    assert 0 in found
    assert len(found) <= levels
    others = [c for c in range(base.qmin, base.qmax + 1) if c]
    least = min(cost((0, *rest)) for rest in itertools.combinations(others, levels - 1))
    assert cost(tuple(found)) == pytest.approx(least, rel=1e-9)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["tensor", "channel", "group"]), st.integers(1, 4))
def test_tables_hold_zero_and_codes_are_nearest(seed: int, per: str, bits: int) -> None:
    problem = random_problem(seed, (2, 16, 4), per=per)
    check_solution(problem, kmeans(problem, bits=bits), bits)
    if bits > 1:
        check_solution(problem, powers(problem, bits=bits), bits)


def test_clusters_are_found_whatever_the_start() -> None:
    centers = np.array([-1.0, -0.25, 0.0, 0.5])
    random = np.random.default_rng(0)
    weight = (random.choice(centers, 500) + random.normal(0, 1e-3, 500)).reshape(1, 500, 1)
    problem = Problem(weight, np.ones(1, "f"), np.zeros(1, "i"), np.zeros((1, 500, 1), int), IntGrid(2))
    solution = kmeans(problem)
    np.testing.assert_allclose(np.array(solution.grid.values) * solution.scale, centers, atol=0.005)
    assert kmeans(problem).grid == solution.grid


def test_more_bits_and_refits_help() -> None:
    problem = replace(random_problem(3, (1, 200, 8)), second=None)
    errors = [weight_error(problem, kmeans(problem, bits=bits)) for bits in (2, 3, 4)]
    assert all(after < 0.5 * before for before, after in itertools.pairwise(errors))
    assert errors[0] < weight_error(problem, kmeans(problem, bits=2, refits=0))
    assert weight_error(problem, kmeans(problem, bits=4, lut_bits=12)) < errors[2]


def test_inputs_that_are_large_count_more() -> None:
    problem = random_problem(5, (1, 40, 20))
    weighted, plain = kmeans(problem, bits=2), kmeans(replace(problem, second=None), bits=2)

    def weighted_error(solution: Solution) -> float:
        errors = (problem.weight - on_solution(problem, solution).values(solution.codes).astype(np.float64)) ** 2
        return float(np.sum(errors * np.diagonal(problem.second, axis1=1, axis2=2)[..., None]))

    assert weighted_error(weighted) < weighted_error(plain)
    assert weight_error(problem, weighted) > weight_error(problem, plain)


@pytest.mark.parametrize("algorithm", [kmeans, powers])
def test_becomes_a_look_up_table_quantizer(algorithm) -> None:
    problem = random_problem(6, (1, 24, 5))
    solution = algorithm(problem, bits=3)
    quantizer = WeightsLUTSymmetricInferableQuantizer(
        num_bits=3,
        lut_values=list(solution.grid.values),
        threshold=(solution.scale.astype(np.float64) * solution.grid.edge).tolist(),
        per_channel=True,
        channel_axis=1,
        input_rank=2,
        lut_values_bitwidth=solution.grid.bits,
    )
    np.testing.assert_array_equal(
        np.asarray(quantizer(problem.weight[0])), on_solution(problem, solution).values(solution.codes)[0]
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_kmeans_lowers_the_output_error_of_real_layers(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = digits_problems(IntGrid(bits, narrow=True))
    before = [nearest_errors(problem).sum() for problem in problems]
    after = [output_errors(problem, kmeans(problem)).sum() for problem in problems]
    assert np.all(np.array(after) <= before)
    assert sum(after) <= 0.8 * sum(before)
    # The control: entries at equal distances, as the integers of the problem's grid are.
    even = np.rint(np.arange(1 - 2 ** (bits - 1), 2 ** (bits - 1)) * 127 / (2 ** (bits - 1) - 1)).astype(int).tolist()
    monkeypatch.setattr(MODULE, "_cluster", lambda *_: even)
    assert sum(output_errors(problem, kmeans(problem, refits=0)).sum() for problem in problems) > 0.8 * sum(before)


@pytest.mark.parametrize("bits", [2, 3])
def test_powers_lower_the_output_error_of_real_layers(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = digits_problems(IntGrid(bits, narrow=True))
    before = [nearest_errors(problem).sum() for problem in problems]
    after = [output_errors(problem, powers(problem)).sum() for problem in problems]
    assert np.all(np.array(after) <= before)
    assert sum(after) <= 0.8 * sum(before)
    # The control: the scale of the greatest magnitude, not searched.
    monkeypatch.setattr(MODULE, "_SHRINKS", (1.0,))
    assert sum(output_errors(problem, powers(problem)).sum() for problem in problems) > 0.8 * sum(before)


@pytest.mark.parametrize("algorithm", [kmeans, powers])
def test_gptq_rounds_on_the_table(algorithm) -> None:
    for problem in digits_problems(IntGrid(3, narrow=True)):
        on = on_solution(problem, algorithm(problem))
        assert output_errors(on, gptq(on)).sum() < 0.5 * nearest_errors(on).sum()


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_powers_are_powers(bits: int) -> None:
    problem = random_problem(2, (1, 30, 6))
    solution = powers(problem, bits=bits, power_of_two_scale=True)
    magnitudes = np.unique(np.abs(solution.grid.values))
    np.testing.assert_array_equal(magnitudes, [0, *(2**k for k in range(2 ** (bits - 1) - 1))])
    assert np.all(np.frexp(solution.scale)[0] == 0.5)
    values = np.abs(on_solution(problem, solution).values(solution.codes))
    assert np.all((values == 0) | (np.frexp(values)[0] == 0.5))
    assert weight_error(problem, powers(problem, bits=bits)) <= weight_error(problem, solution) * (1 + 1e-6)


@pytest.mark.parametrize("algorithm", [kmeans, powers])
def test_weights_of_zero(algorithm) -> None:
    problem = random_problem(0)
    solution = algorithm(replace(problem, weight=0 * problem.weight))
    assert not on_solution(problem, solution).values(solution.codes).any()
    assert np.all(np.isfinite(solution.scale) & (solution.scale > 0))


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (kmeans, {"bits": 9}),
        (kmeans, {"bits": -1}),
        (kmeans, {"lut_bits": 3}),
        (kmeans, {"lut_bits": 17}),
        (kmeans, {"refits": -1}),
        (powers, {"bits": 1}),
        (powers, {"bits": 6}),
    ],
)
def test_refuses_options(algorithm, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        algorithm(random_problem(0), **options)
