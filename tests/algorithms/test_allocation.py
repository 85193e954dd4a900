"""Bit allocation under budgets, against brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.algorithms.allocation import Allocation, allocate, front, round_up
from qi.errors import ConfigError, InputError

pytest.importorskip("scipy")

LOSSES = [[9.0, 4.0, 1.0], [5.0, 4.5, 0.5], [2.0, 1.0, 0.9]]
BYTES = [[2, 4, 8], [20, 40, 80], [6, 12, 24]]


def brute_force(
    losses: list[list[float]], costs: dict[str, list[list[float]]], budgets: dict[str, float]
) -> float | None:
    """The least loss within the budgets by looking at every choice."""
    best = None
    for choice in product(*(range(len(own)) for own in losses)):
        spent = {name: sum(own[c] for own, c in zip(costs[name], choice, strict=True)) for name in budgets}
        if all(spent[name] <= budgets[name] for name in budgets):
            loss = sum(own[c] for own, c in zip(losses, choice, strict=True))
            best = loss if best is None else min(best, loss)
    return best


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[float]], dict[str, list[list[float]]], dict[str, float]]:
    """Up to 5 items of up to 4 candidates with two whole-numbered costs; losses of very different sizes."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    loss = st.integers(0, 10**6).map(lambda n: n / 1000)
    magnitude = draw(st.sampled_from([1e-9, 1.0, 1e7]))
    losses = [[magnitude * draw(loss) for _ in range(size)] for size in sizes]
    costs = {
        n: [[float(draw(st.integers(0, 10**k))) for _ in range(s)] for s in sizes] for n, k in (("a", 3), ("b", 8))
    }
    totals = {name: sum(max(own) for own in values) for name, values in costs.items()}
    budgets = {name: float(draw(st.integers(0, int(total)))) for name, total in totals.items()}
    return losses, costs, budgets


@settings(max_examples=150)
@given(problems())
def test_equals_brute_force(problem: tuple[list[list[float]], dict[str, list[list[float]]], dict[str, float]]) -> None:
    losses, costs, budgets = problem
    best = brute_force(losses, costs, budgets)
    if best is None:
        with pytest.raises(ConfigError, match="that can be met"):
            allocate(losses, costs, budgets)
        return
    found = allocate(losses, costs, budgets)
    assert found.loss == pytest.approx(best, rel=1e-9, abs=1e-15)
    assert found.gap == pytest.approx(0, abs=1e-6)
    assert found.bound <= found.loss
    for name, budget in budgets.items():
        spent = sum(own[c] for own, c in zip(costs[name], found.choice, strict=True))
        assert found.costs[name] == spent <= budget


def test_without_a_budget_each_item_takes_its_best() -> None:
    assert allocate(LOSSES, {"bytes": BYTES}, {}).choice == (2, 2, 2)


def test_the_bound_of_a_stopped_search_is_kept() -> None:
    rng = np.random.default_rng(0)
    losses = [np.sort(rng.random(8))[::-1] for _ in range(200)]
    costs = {name: [np.sort(rng.random(8)) for _ in range(200)] for name in ("a", "b")}
    found = allocate(losses, costs, {"a": 60.0, "b": 60.0}, time_limit=1.0)
    assert 0 <= found.gap < 0.05
    assert found.bound <= found.loss <= sum(max(own) for own in losses)
    assert max(found.costs.values()) <= 60


def test_front_is_monotone_and_bounded() -> None:
    points = front(LOSSES, {"bytes": BYTES, "bops": BYTES[::-1]}, "bytes", points=9)
    costs = [point.allocation.costs["bytes"] for point in points]
    losses = [point.allocation.loss for point in points]
    assert len(points) > 3
    assert costs[0] == 28
    assert costs[-1] == 112
    assert costs == sorted(set(costs))
    assert losses == sorted(set(losses), reverse=True)
    for budget, allocation in points:
        assert allocation.costs["bytes"] <= budget
        assert allocation.loss == brute_force(LOSSES, {"bytes": BYTES}, {"bytes": budget})  # type: ignore[dict-item,arg-type]


def test_front_respects_the_other_budgets() -> None:
    costs = {"bytes": BYTES, "bops": BYTES[::-1]}
    points = front(LOSSES, costs, "bytes", {"bops": 60, "bytes": 1}, points=8)
    assert points
    assert all(point.allocation.costs["bops"] <= 60 for point in points)
    assert front(LOSSES, costs, "bytes", points=[1, 30, 50])[-1].budget == 50


def test_budgets_that_nothing_meets_are_named() -> None:
    with pytest.raises(ConfigError, match=r"received bytes=27; do allow at least bytes=28$"):
        allocate(LOSSES, {"bytes": BYTES, "bops": BYTES}, {"bytes": 27, "bops": 50})


def test_the_nearest_combination_is_named() -> None:
    losses, costs = [[0.0, 1.0]], {"a": [[1.0, 10.0]], "b": [[10.0, 1.0]]}
    with pytest.raises(
        ConfigError, match=r"received a=8, b=1\.5, of which each can be met alone; do allow a=10, b=1\.5"
    ):
        allocate(losses, costs, {"a": 8, "b": 1.5})
    assert allocate(losses, costs, {"a": 10, "b": 1.5}).choice == (1,)


@pytest.mark.parametrize(
    ("value", "text"), [(28.0, "28"), (0.123456789, "0.123457"), (1234567.25, "1234568"), (0, "0")]
)
def test_costs_are_told_rounded_up(value: float, text: str) -> None:
    assert round_up(value) == text
    assert float(round_up(value)) >= value


@pytest.mark.parametrize(
    ("losses", "costs", "budgets", "error", "words"),
    [
        ([], {}, {}, InputError, "at least one item"),
        ([[1.0, np.nan]], {}, {}, InputError, r"losses\[0\] to hold a finite number"),
        ([[1.0]], {"a": [[np.inf]]}, {}, InputError, r"costs\['a'\]\[0\]"),
        ([[1.0]], {"a": [[1.0, 2.0]]}, {}, InputError, "expected a cost 'a' for each candidate"),
        ([[1.0]], {"a": [[-1.0]]}, {}, InputError, "costs from 0 on"),
        ([[1.0]], {"a": [[1.0]]}, {"b": 1}, ConfigError, "budgets among a; received 'b'"),
        ([[1.0]], {"a": [[1.0]]}, {"a": np.inf}, ConfigError, "a finite budget"),
    ],
)
def test_bad_input_is_refused(
    losses: list[list[float]], costs: dict[str, list[list[float]]], budgets: dict[str, float],
    error: type[Exception], words: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=words):
        allocate(losses, costs, budgets)


def test_fronts_of_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="a budget among bytes; received 'bits'"):
        front(LOSSES, {"bytes": BYTES}, "bits")
    with pytest.raises(ConfigError, match="at least 2 points"):
        front(LOSSES, {"bytes": BYTES}, "bytes", points=1)


def test_an_allocation_is_plain_values() -> None:
    assert allocate([[1.0]], {}, {}) == Allocation((0,), 1.0, {}, 1.0, 0.0)
