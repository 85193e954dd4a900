"""The plan of a graph's activations: which values share a scale, which get a quantizer, which stay float and why.

It is made of any graph of calls and values; what operations do to grids, a framework tells by its `Traits`:

* KEEPS: its output holds only values of its (single) input, or 0: the output is on the input's grid already.
* SAME: its output must share the input's scale, but is computed, so it is quantized again (average pooling).
* JOINS: all inputs and the output share one scale (concatenation; the greater or the less of two).
* FIXED: its output range is known, and runtimes demand exactly that grid (softmax, sigmoid, tanh).
* OWN: every other; its output gets a quantizer of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from qi.errors import ConfigError, InputError
from qi.observers import TensorStatistics
from qi.recipes.book import RuleBook
from qi.recipes.spec import TensorSpec

__all__ = ["ActivationPlan", "Group", "Role", "Traits", "group_statistics", "plan_activations"]

Value = Any
"""What flows: with `producer` (its call, None for inputs), `dtype` and `is_float`."""

Call = Any
"""A call of an operation: with `inputs` and `outputs` (values), and its `path`."""

Graph = Any
"""With `calls` in order, `flat_inputs()`, `flat_outputs()`, and `consumers()` (the calls that take a value, by its ``id``)."""


class Role(Enum):
    """How an operation's output relates to the grid of its inputs."""

    OWN = "own"
    KEEPS = "keeps"
    SAME = "same"
    JOINS = "joins"
    FIXED = "fixed"


@dataclass(frozen=True)
class Traits:
    """What a framework's operations do to grids.

    Attributes:
        role_of: the role of a call.
        known_range: the range that the grid of a FIXED call covers.
        fuses_activation: whether a call's kernel takes over a clamp that follows it.
        is_fusable_activation: whether a call is such a clamp: ReLU or ReLU6.
        multiplies: whether a call is a product of two matrices neither of which is a weight.
        name_of: the place of a value, its name in reports and statistics.
        place_of: (path, class) that rules speak of, of the layer that gives a value.
        exempt: values that stay in float whatever the recipe says, with the reason.
    """

    role_of: Callable[[Call], Role]
    known_range: Callable[[Call], tuple[float, float] | None]
    fuses_activation: Callable[[Call], bool]
    is_fusable_activation: Callable[[Call], bool]
    multiplies: Callable[[Call], bool]
    name_of: Callable[[Value], str]
    place_of: Callable[[Value], tuple[str, str]]
    exempt: Callable[[Graph], Iterable[tuple[str, Iterable[Value]]]] = lambda graph: ()


@dataclass(eq=False)
class Group:
    """Values that share one scale.

    Attributes:
        spec: how they are quantized.
        fixed: a range that is known beforehand, or None where calibration finds it.
        observed: the values whose statistics make the range.
        names: where each observed value comes from.
    """

    spec: TensorSpec
    fixed: tuple[float, float] | None = None
    observed: list[Value] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The group's name in statistics files: that of its first value."""
        return self.names[0]


@dataclass(eq=False)
class ActivationPlan:
    """What becomes of every value.

    Attributes:
        groups: all groups, in graph order.
        quantized: values that get a quantizer, with their group, by ``id(value)``.
        inherited: values that are on a group's grid without a quantizer of their own, by ``id(value)``.
        floats: why a value stays float, by ``id(value)``.
        fused: values that don't exist once the activation after them is fused, by ``id(value)``.
    """

    groups: list[Group] = field(default_factory=list)
    quantized: dict[int, Group] = field(default_factory=dict)
    inherited: dict[int, Group] = field(default_factory=dict)
    floats: dict[int, str] = field(default_factory=dict)
    fused: set[int] = field(default_factory=set)

    def group_of(self, value: Value) -> Group | None:
        """The group whose grid a value is on."""
        return self.quantized.get(id(value)) or self.inherited.get(id(value))


class _Union:
    """Union-find over values."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def root(self, value: Value) -> int:
        node = id(value)
        while self._parent.get(node, node) != node:
            node = self._parent[node]
        return node

    def join(self, a: Value, b: Value) -> None:
        first, second = self.root(a), self.root(b)
        if first != second:
            self._parent[second] = first


def plan_activations(graph: Graph, book: RuleBook, traits: Traits, folds_later: Collection[str] = ()) -> ActivationPlan:
    """Decides for every value of a folded graph, in the order of the graph.

    One quantizer sits after a fused activation and none in between; values that runtimes demand to be on one scale share
    one; softmax, sigmoid and tanh have fixed grids; whatever merely moves values around needs no quantizer.

    Args:
        graph: folded, but for `folds_later`.
        book: the recipe's decisions.
        traits: of its operations.
        folds_later: paths of normalizations that are folded after training: nothing comes between them and their layer.
    """
    plan = ActivationPlan()
    _mark_fused(graph, plan, traits, folds_later)
    values = [*graph.flat_inputs(), *(value for call in graph.calls for value in call.outputs)]
    # A rule that speaks of a value that fusing removes decides nothing, and is reported so.
    specs = {id(value): _spec_of(value, book, plan, traits) for value in values if id(value) not in plan.fused}
    for reason, exempt in traits.exempt(graph):
        for value in exempt:
            if specs.get(id(value)) is not None:
                specs[id(value)] = None
                plan.floats[id(value)] = reason
    groups: dict[int, Group] = {}
    union = _tie(graph, specs, traits)
    for value in values:
        spec = specs.get(id(value))
        if spec is None:
            continue
        call = value.producer
        fixed = traits.known_range(call) if call is not None and traits.role_of(call) is Role.FIXED else None
        root = union.root(value)
        group = groups.get(root)
        if group is None:
            group = groups[root] = Group(spec, fixed)
            plan.groups.append(group)
        if call is not None and _on_grid(call, group, plan, traits):
            plan.inherited[id(value)] = group
        else:
            plan.quantized[id(value)] = group
            group.observed.append(value)
            group.names.append(traits.name_of(value))
    _centre(graph, groups, union, traits)
    plan.groups = [group for group in plan.groups if group.observed]
    return plan


def group_statistics(group: Group, statistics: Mapping[str, TensorStatistics]) -> TensorStatistics | None:
    """The statistics of all values of a group together; None where its range is fixed.

    Raises:
        ConfigError: a value wasn't calibrated.
        InputError: none of the values seen was finite.
    """
    if group.fixed is not None:
        return None
    missing = [name for name in group.names if name not in statistics]
    if missing:
        raise ConfigError(
            f"expected statistics for {missing}; received those of {len(statistics)} other values; "
            "do calibrate with this very model"
        )
    merged = statistics[group.names[0]]
    for name in group.names[1:]:
        merged = merged.merge(statistics[name])
    if not merged.count:
        raise InputError(
            f"expected finite activations; the float model gave none at {group.names} ({merged.nonfinite} NaN or infinite); "
            "do look at the range of data and weights"
        )
    return merged


def _centre(graph: Graph, groups: dict[int, Group], union: _Union, traits: Traits) -> None:
    """Gives what a product of activations takes second a grid about 0: the fast kernels know no zero point there.

    Results of linear operations lie about 0 anyhow; those of a clamp would lose half of their codes, and keep theirs.
    """
    for call in graph.calls:
        if not traits.multiplies(call):
            continue
        group = groups.get(union.root(call.inputs[1]))
        if group is not None and group.fixed is None and group.spec.method == "uniform":
            sources = [value.producer for value in group.observed]
            if sources and all(source is not None and traits.fuses_activation(source) for source in sources):
                group.spec = replace(group.spec, method="symmetric")


def _spec_of(value: Value, book: RuleBook, plan: ActivationPlan, traits: Traits) -> TensorSpec | None:
    path, kind = traits.place_of(value)
    if not value.is_float:
        plan.floats[id(value)] = f"holds {value.dtype}, not real numbers"
        return None
    spec, reason = book.activations_for(path, kind)
    if spec is None:
        plan.floats[id(value)] = reason
    return spec


def _mark_fused(graph: Graph, plan: ActivationPlan, traits: Traits, folds_later: Collection[str]) -> None:
    consumers = graph.consumers()
    outputs = {id(value) for value in graph.flat_outputs()}
    for call in graph.calls:
        if call.path in folds_later:
            plan.fused.add(id(call.inputs[0]))
        after = consumers.get(id(call.outputs[0]), [])
        alone = len(after) == 1 and id(call.outputs[0]) not in outputs
        if alone and traits.is_fusable_activation(after[0]) and traits.fuses_activation(call):
            plan.fused.add(id(call.outputs[0]))


def _tie(graph: Graph, specs: dict[int, TensorSpec | None], traits: Traits) -> _Union:
    """Joins the values that must share a scale; a fixed grid is never joined with a different one."""
    union = _Union()
    fixed: dict[int, tuple[float, float] | None] = {}

    def alike(a: Value, b: Value) -> bool:
        return specs.get(id(a)) is not None and specs.get(id(a)) == specs.get(id(b))

    for call in graph.calls:
        role = traits.role_of(call)
        if role is Role.FIXED:
            fixed[union.root(call.outputs[0])] = traits.known_range(call)
        elif role in (Role.KEEPS, Role.SAME):
            for result in call.outputs:
                if alike(call.inputs[0], result):  # the source's grid serves it, fixed or not
                    union.join(call.inputs[0], result)
        elif role is Role.JOINS:
            ranges = {fixed.get(union.root(value)) for value in call.inputs}
            one_grid = len(ranges) == 1 and all(alike(value, call.outputs[0]) for value in call.inputs)
            for value in call.inputs:
                free = not {union.root(value), union.root(call.outputs[0])} & set(fixed)
                if (free or one_grid) and alike(value, call.outputs[0]):
                    union.join(value, call.outputs[0])
    return union


def _on_grid(call: Call, group: Group, plan: ActivationPlan, traits: Traits) -> bool:
    role = traits.role_of(call)
    sources = call.inputs[:1] if role is Role.KEEPS else call.inputs  # what else it takes only tells how
    return role in (Role.KEEPS, Role.JOINS) and all(plan.group_of(value) is group for value in sources)
