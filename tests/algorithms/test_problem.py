"""Tests for qi.algorithms.problem: one weight on its grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qi.algorithms import Problem
from qi.core import IntGrid, LutGrid, QParams, QTensor
from qi.core.granularity import PerChannel, PerTensor
from qi.errors import InputError
from tests.algorithms.problems import random_problem


@pytest.mark.parametrize("per", ["tensor", "channel", "group"])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_nearest_codes_have_the_least_error(per: str, asymmetric: bool) -> None:
    problem = random_problem(0, (2, 20, 3), per=per, asymmetric=asymmetric)
    codes = problem.nearest()
    scale, _ = problem.spread()
    error = np.abs(problem.values(codes) - problem.weight)
    assert np.all(error <= 0.501 * scale)
    for step in (-1, 1):
        moved = np.clip(codes.astype(int) + step, problem.grid.qmin, problem.grid.qmax)
        assert np.all(np.abs(problem.values(moved) - problem.weight) >= error - 1e-6)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1)])
def test_values_are_those_of_the_core(granularity: Any) -> None:
    problem = random_problem(1, (1, 12, 5), per="tensor" if isinstance(granularity, PerTensor) else "channel")
    codes = problem.nearest()
    shape = granularity.param_shape((12, 5))
    params = QParams(problem.scale.reshape(shape), problem.zero_point.reshape(shape), problem.grid, granularity)
    np.testing.assert_array_equal(QTensor(codes[0], params).dequantize(), problem.values(codes)[0])
    np.testing.assert_array_equal(params.quantize(problem.weight[0]).codes, codes[0])


def test_output_error_is_that_of_the_outputs() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(500, 2, 6))
    problem = random_problem(2, (2, 6, 3))
    problem = replace(problem, second=np.einsum("ngi,ngj->gij", rows, rows) / len(rows))
    values = problem.values(problem.nearest())
    outputs = np.einsum("ngk,gko->ngo", rows, problem.weight - values)
    np.testing.assert_allclose(problem.output_error(values), np.mean(outputs**2, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(problem.output_error(problem.weight), np.zeros((2, 3)))


def test_tables() -> None:
    problem = random_problem(3).with_parameters(np.full(5, 0.01), grid=LutGrid([-7, -3, 0, 9]))
    codes = problem.nearest()
    assert codes.min() >= 0
    assert codes.max() <= 3
    table = np.array([-7, -3, 0, 9], "float32") * np.float32(0.01)
    np.testing.assert_array_equal(problem.values(codes), table[codes])


def test_parameters_and_solutions() -> None:
    problem = random_problem(4)
    other = problem.with_parameters(problem.scale.astype(np.float64) * 2)
    assert other.scale.dtype == np.float32
    assert other.grid is problem.grid
    codes = other.nearest()
    found = other.solution(codes)
    assert found.codes is codes
    assert found.scale is other.scale
    assert found.zero_point is other.zero_point


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a matrix": ({"weight": np.ones((12, 5))}, r"\[G, K, N\]"),
    "another sharing": ({"sharing": np.zeros((1, 12, 4), int)}, r"\[G, K, N\]"),
    "scales of a shape": ({"scale": np.ones((5, 1), "f")}, r"as \[P\]"),
    "zero points": ({"zero_point": np.zeros(4, int)}, r"as \[P\]"),
    "moments": ({"second": np.ones((1, 11, 11))}, "second of shape"),
    "means": ({"mean": np.ones((1, 11))}, "mean of shape"),
    "NaN moments": ({"second": np.full((1, 12, 12), np.nan)}, "finite moments"),
    "NaN means": ({"mean": np.full((1, 12), np.inf)}, "finite moments"),
    "NaN": ({"weight": np.full((1, 12, 5), np.nan)}, "finite weights"),
    "infinity": ({"weight": np.full((1, 12, 5), -np.inf)}, "finite weights"),
    "no scale": ({"scale": np.zeros(5, "f")}, "positive, finite scales"),
    "NaN scale": ({"scale": np.full(5, np.nan, "f")}, "positive, finite scales"),
}


@pytest.mark.parametrize("why", BAD)
def test_bad_problems(why: str) -> None:
    change, said = BAD[why]
    with pytest.raises(InputError, match=said):
        replace(random_problem(5), **change)


def test_no_moments() -> None:
    problem = replace(random_problem(6), second=None)
    with pytest.raises(InputError, match="moments of the layer's inputs for some reason"):
        problem.require_second("some reason")
    with pytest.raises(InputError, match="output errors"):
        problem.output_error(problem.weight)


def test_asymmetric_grid_reaches_both_ends() -> None:
    problem = random_problem(7, grid=IntGrid(4, signed=False), per="tensor", asymmetric=True)
    codes = problem.nearest()
    assert (codes.min(), codes.max()) == (0, 15)


@pytest.mark.parametrize(
    ("scale", "sharing"),
    [
        (0.5, np.zeros((2, 4, 3), int)),
        (np.full((1, 1, 3), 0.5), np.broadcast_to(np.arange(3), (2, 4, 3))),
        (np.full((2, 1, 3), 0.5), np.broadcast_to(np.arange(6).reshape(2, 1, 3), (2, 4, 3))),
    ],
)
def test_of_what_broadcasts(scale: Any, sharing: np.ndarray) -> None:
    weight = np.random.default_rng(0).normal(size=(2, 4, 3))
    found = Problem.of(weight, scale, IntGrid(4, signed=False), np.ones((2, 4, 4)), zero_point=8)
    np.testing.assert_array_equal(found.sharing, sharing)
    assert found.scale.tolist() == [0.5] * np.size(scale)
    assert found.zero_point.tolist() == [8] * np.size(scale)
    assert found.scale.dtype == np.float32
    np.testing.assert_allclose(found.values(found.nearest()), np.clip(np.rint(2 * weight), -8, 7) / 2)


@pytest.mark.parametrize("options", [{"scale": np.ones((1, 2, 1))}, {"scale": 1.0, "zero_point": np.zeros((1, 1, 3))}])
def test_of_what_does_not_broadcast(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="broadcast"):
        Problem.of(np.ones((1, 4, 3)), grid=IntGrid(4), **options)
