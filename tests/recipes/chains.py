"""Graphs of no framework, for what is decided from a graph alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qi.recipes.plan import Role, Traits

FIXED = {"softmax": (0.0, 1.0), "tanh": (-1.0, 1.0)}
KEEPS, SAME, JOINS = ("move", "pool"), ("average",), ("join",)


@dataclass(eq=False)
class Value:
    name: str
    producer: Any = None
    dtype: str = "float32"

    @property
    def is_float(self) -> bool:
        return self.dtype == "float32"


@dataclass(eq=False)
class Call:
    kind: str
    path: str
    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)
    op: Any = None


@dataclass(eq=False)
class Chain:
    """A graph that grows call by call; `given` are its inputs."""

    given: list[Value]
    calls: list[Call] = field(default_factory=list)
    results: list[Value] = field(default_factory=list)

    def add(self, kind: str, *inputs: Value, path: str = "", op: Any = None, dtype: str = "float32") -> Value:
        call = Call(kind, path or f"{kind}_{len(self.calls)}", list(inputs), op=op)
        call.outputs.append(Value(call.path, call, dtype))
        self.calls.append(call)
        return call.outputs[0]

    def flat_inputs(self) -> list[Value]:
        return self.given

    def flat_outputs(self) -> list[Value]:
        return self.results

    def consumers(self) -> dict[int, list[Call]]:
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            for value in call.inputs:
                found.setdefault(id(value), []).append(call)
        return found


def role_of(call: Call) -> Role:
    if call.kind in FIXED:
        return Role.FIXED
    table = {Role.KEEPS: KEEPS, Role.SAME: SAME, Role.JOINS: JOINS}
    return next((role for role, kinds in table.items() if call.kind in kinds), Role.OWN)


TRAITS = Traits(
    role_of,
    lambda call: FIXED.get(call.kind),
    lambda call: call.kind in ("linear", "add"),
    lambda call: call.kind == "relu",
    lambda call: call.kind == "matmul",
    lambda value: value.name,
    lambda value: (value.name, "InputLayer" if value.producer is None else value.producer.kind),
    lambda graph: [("holds indices", [v for call in graph.calls if call.kind == "look_up" for v in call.inputs])],
)
