"""The plan of a model's activations: which values share a scale, which get a quantizer, which stay float and why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from qi.keras.graph import Call, Graph, Value, looks_up
from qi.keras.masks import masked_scores
from qi.keras.traits import Role, fuses_activation, is_fusable_activation, known_range, multiplies, role_of
from qi.recipes import RuleBook, TensorSpec

__all__ = ["ActivationPlan", "Group", "plan_activations", "value_name"]

_MASKED = "a mask's large numbers stand among scores: no grid has room for both"
_INDICES = "holds indices into a table"


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


def plan_activations(graph: Graph, book: RuleBook, folds_later: Collection[str] = ()) -> ActivationPlan:
    """Decides for every value of a folded graph, in the order of the graph.

    One quantizer sits after a fused activation and none in between; values that runtimes demand to be on one scale share
    one; softmax, sigmoid and tanh have fixed grids; whatever merely moves values around needs no quantizer.

    Args:
        graph: folded, but for `folds_later`.
        book: the recipe's decisions.
        folds_later: paths of normalizations that are folded after training: nothing comes between them and their layer.
    """
    plan = ActivationPlan()
    _mark_fused(graph, plan, folds_later)
    values = [*graph.flat_inputs(), *(value for call in graph.calls for value in call.outputs)]
    # A rule that speaks of a value that fusing removes decides nothing, and is reported so.
    specs = {id(value): _spec_of(value, book, plan) for value in values if id(value) not in plan.fused}
    for reason, exempt in ((_MASKED, masked_scores(graph)), (_INDICES, _indices(graph))):
        for value in exempt:
            if specs.get(id(value)) is not None:
                specs[id(value)] = None
                plan.floats[id(value)] = reason
    groups: dict[int, Group] = {}
    union = _tie(graph, specs)
    for value in values:
        spec = specs.get(id(value))
        if spec is None:
            continue
        call = value.producer
        fixed = known_range(call) if call is not None and role_of(call) is Role.FIXED else None
        root = union.root(value)
        group = groups.get(root)
        if group is None:
            group = groups[root] = Group(spec, fixed)
            plan.groups.append(group)
        if call is not None and _on_grid(call, group, plan):
            plan.inherited[id(value)] = group
        else:
            plan.quantized[id(value)] = group
            group.observed.append(value)
            group.names.append(value_name(value))
    _centre(graph, groups, union)
    plan.groups = [group for group in plan.groups if group.observed]
    return plan


def _centre(graph: Graph, groups: dict[int, Group], union: _Union) -> None:
    """Gives what a product of activations takes second a grid about 0: the fast kernels know no zero point there.

    Results of linear operations lie about 0 anyhow; those of a clamp would lose half of their codes, and keep theirs.
    """
    for call in graph.calls:
        if not multiplies(call):
            continue
        group = groups.get(union.root(call.inputs[1]))
        if group is not None and group.fixed is None and group.spec.method == "uniform":
            sources = [value.producer for value in group.observed]
            if sources and all(source is not None and fuses_activation(source) for source in sources):
                group.spec = replace(group.spec, method="symmetric")


def value_name(value: Value) -> str:
    """The call site that gives a value, or the input's name; further outputs get ":1", ":2"..."""
    if value.producer is None:
        return value.name
    index = next(i for i, other in enumerate(value.producer.outputs) if other is value)
    return value.producer.site + (f":{index}" if index else "")


def _spec_of(value: Value, book: RuleBook, plan: ActivationPlan) -> TensorSpec | None:
    call = value.producer
    call = call.split_from or call if call is not None else None  # rules speak of the layers of the given model
    path, kind = (call.path, call.kind) if call is not None else (value.name, "InputLayer")
    if not value.is_float:
        plan.floats[id(value)] = f"holds {value.dtype}, not real numbers"
        return None
    spec, reason = book.activations_for(path, kind)
    if spec is None:
        plan.floats[id(value)] = reason
    return spec


def _indices(graph: Graph) -> list[Value]:
    """Values that are looked up, or become so once they were moved; some networks hand in indices as real numbers."""
    found: dict[int, Value] = {}
    for call in reversed(graph.calls):
        moved = role_of(call) is Role.KEEPS and any(id(value) in found for value in call.outputs)
        if moved or looks_up(call):
            found.update((id(value), value) for value in call.inputs)
    return list(found.values())


def _mark_fused(graph: Graph, plan: ActivationPlan, folds_later: Collection[str]) -> None:
    consumers = graph.consumers()
    outputs = {id(value) for value in graph.flat_outputs()}
    for call in graph.calls:
        if call.path in folds_later:
            plan.fused.add(id(call.inputs[0]))
        after = consumers.get(id(call.outputs[0]), [])
        alone = len(after) == 1 and id(call.outputs[0]) not in outputs
        if alone and is_fusable_activation(after[0]) and fuses_activation(call):
            plan.fused.add(id(call.outputs[0]))


def _tie(graph: Graph, specs: dict[int, TensorSpec | None]) -> _Union:
    """Joins the values that must share a scale; a fixed grid is never joined with a different one."""
    union = _Union()
    fixed: dict[int, tuple[float, float] | None] = {}

    def alike(a: Value, b: Value) -> bool:
        return specs.get(id(a)) is not None and specs.get(id(a)) == specs.get(id(b))

    for call in graph.calls:
        role = role_of(call)
        if role is Role.FIXED:
            fixed[union.root(call.outputs[0])] = known_range(call)
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


def _on_grid(call: Call, group: Group, plan: ActivationPlan) -> bool:
    return role_of(call) in (Role.KEEPS, Role.JOINS) and all(plan.group_of(value) is group for value in call.inputs)
