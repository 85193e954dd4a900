"""Ranges of what calibration saw at 0 alone, on graphs of no framework."""

from __future__ import annotations

import numpy as np

from qi.observers import TensorStatistics
from qi.recipes import get_recipe
from qi.recipes.dormant import activation_quantizers, dormant_ranges
from qi.recipes.plan import plan_activations
from tests.recipes.chains import TRAITS, Chain, Value


def seen(*values: float) -> TensorStatistics:
    statistics = TensorStatistics()
    statistics.update(np.array(values, "float32"))
    return statistics


def test_what_sleeps_gets_the_range_that_those_after_it_could_take() -> None:
    x = Value("x")
    chain = Chain([x])
    dead = chain.add("linear", x, op=0.5)
    alive = chain.add("linear", dead, op=0.25)
    plan = plan_activations(chain, get_recipe("w8a8").resolve(), TRAITS)
    statistics = {"x": seen(-3, 3), dead.name: seen(0, 0), alive.name: seen(0, 8)}
    found = dormant_ranges(chain, plan, statistics, float)
    assert found == {id(plan.group_of(dead)): 8 / (16 * 0.25)}
    quantizer = activation_quantizers(chain, plan, statistics, float)[id(plan.group_of(dead))]
    assert float(np.max(quantizer.max_range)) >= 1.98
    assert dormant_ranges(chain, plan, statistics | {dead.name: seen(1)}, float) == {}


def test_without_weights_the_size_is_that_of_the_result() -> None:
    x = Value("x")
    chain = Chain([x])
    chain.add("add", x, op=0.0)
    plan = plan_activations(chain, get_recipe("w8a8").resolve(), TRAITS)
    found = dormant_ranges(chain, plan, {"x": seen(0), chain.calls[0].path: seen(-5, 1)}, float)
    assert found == {id(plan.group_of(x)): 5.0}
