"""The plan of activations, on graphs of no framework."""

from __future__ import annotations

import numpy as np
import pytest

from qi.errors import ConfigError, InputError
from qi.observers import TensorStatistics
from qi.recipes import FLOAT, Rule, TensorSpec, get_recipe
from qi.recipes.plan import ActivationPlan, Group, group_statistics, plan_activations
from tests.recipes.chains import TRAITS, Chain, Value


def planned(chain: Chain, *rules: Rule, folds_later: tuple[str, ...] = ()) -> ActivationPlan:
    return plan_activations(chain, get_recipe("w8a8").with_rules(*rules).resolve(), TRAITS, folds_later)


def test_a_fused_activation_has_one_quantizer_after_it() -> None:
    x = Value("x")
    chain = Chain([x])
    raw = chain.add("linear", x)
    y = chain.add("relu", raw)
    chain.results = [y]
    plan = planned(chain)
    assert [group.names for group in plan.groups] == [["x"], [y.name]]
    assert plan.fused == {id(raw)}
    chain.results = [raw, y]
    assert not planned(chain).fused, "what the model gives exists"
    assert planned(chain, folds_later=(y.producer.path,)).fused == {id(raw)}


def test_what_moves_values_inherits_and_what_averages_shares() -> None:
    x = Value("x")
    chain = Chain([x])
    moved = chain.add("move", x)
    mean = chain.add("average", moved)
    plan = planned(chain)
    (group,) = plan.groups
    assert plan.group_of(moved) is plan.group_of(mean) is plan.group_of(x) is group
    assert id(moved) in plan.inherited
    assert id(mean) in plan.quantized
    assert group.names == ["x", mean.name]


def test_joined_values_share_one_grid_unless_one_is_fixed() -> None:
    x = Value("x")
    chain = Chain([x])
    a, b, s = chain.add("linear", x), chain.add("linear", x), chain.add("softmax", x)
    both, mixed = chain.add("join", a, b), chain.add("join", a, s)
    plan = planned(chain)
    assert plan.group_of(a) is plan.group_of(b) is plan.group_of(both)
    assert id(both) in plan.inherited
    assert plan.group_of(mixed) is plan.group_of(a), "the one that is free"
    fixed = plan.group_of(s)
    assert fixed is not None
    assert fixed.fixed == (0.0, 1.0)
    assert plan.group_of(mixed) is not fixed
    assert id(mixed) in plan.quantized, "a part of it lies on another grid"


def test_the_second_factor_of_a_product_lies_about_zero() -> None:
    x = Value("x")
    chain = Chain([x])
    a, b = chain.add("linear", x), chain.add("linear", x)
    chain.add("matmul", a, b)
    plan = planned(chain)
    assert plan.group_of(a).spec.method == "uniform"
    assert plan.group_of(b).spec.method == "symmetric"


def test_what_stays_in_float_has_its_reason() -> None:
    x, ids = Value("x"), Value("ids")
    chain = Chain([x, ids, Value("flags", dtype="bool")])
    y = chain.add("linear", x, path="head")
    chain.add("look_up", ids)
    plan = planned(chain, Rule("head", activations=FLOAT))
    assert plan.floats[id(chain.given[2])] == "holds bool, not real numbers"
    assert plan.floats[id(ids)] == "holds indices"
    assert "by rule" in plan.floats[id(y)]
    assert plan.group_of(y) is None


def seen(*values: float) -> TensorStatistics:
    statistics = TensorStatistics()
    statistics.update(np.array(values, "float32"))
    return statistics


def test_a_groups_statistics_are_those_of_all_its_values() -> None:
    group = Group(TensorSpec(bits=8), names=["a", "b"])
    merged = group_statistics(group, {"a": seen(-1, 2), "b": seen(3)})
    assert merged is not None
    assert (merged.lo, merged.hi, merged.count) == (-1, 3, 3)
    assert group_statistics(Group(TensorSpec(bits=8), (0, 1), names=["c"]), {}) is None
    with pytest.raises(ConfigError, match=r"statistics for \['b'\]; received those of 1 other"):
        group_statistics(group, {"a": seen(1)})
    with pytest.raises(InputError, match="expected finite activations"):
        group_statistics(group, {"a": seen(np.nan), "b": seen(np.inf)})
