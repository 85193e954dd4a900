"""With integers only, what has no integer kernel is a table or a convolution: real runtimes give the twin's codes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.ir.elementwise import FUNCTIONS
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.routing import route
from qi.ir.unquantized import told_real
from qi.ir.validate import validate
from tests.parity import onnx_agreement
from tests.parity.agreement import differences
from tests.parity.operations import Draft, case

TARGETS = ["litert", "reference", "onnxruntime"]
SHAPES = [(7,), (3, 5, 4), (6, 5), (2, 3, 2, 3)]
WITH_CONSTANT = ["mul", "add", "sub", "prelu", "maximum", "minimum"]


def output(draft: Draft, shape: tuple[int, ...]) -> Tensor:
    bits = int(draft.pick(8, 8, 4))
    return Tensor("y", (None, *shape), qparams=QParams(draft.scale(), draft.size(-8, 7), IntGrid(bits)))


def finished(draft: Draft, *ops: Op) -> QGraph:
    draft.graph.ops += ops
    draft.graph.outputs.append(ops[-1].y)
    validate(draft.graph)
    return draft.graph


def by_constant(kind: str, seed: int) -> QGraph:
    draft = Draft(f"constant_{kind}", seed)
    shape = SHAPES[seed % len(SHAPES)]
    x, y = draft.input(shape), output(draft, shape)
    sizes = draft.pick((), shape[-1:], (1,) * len(shape) + shape[-1:], shape)
    constant = Tensor("c", sizes, data=draft.rng.uniform(-2, 2, sizes).astype(np.float32))
    binary = kind in ("mul", "add", "sub")
    inputs = [x, constant] if not binary or draft.rng.random() < 0.6 else [constant, x]
    attrs = {"activation": draft.pick("none", "relu")} if binary else {}
    return finished(draft, Op(kind, inputs, [y], attrs, "layer"))


def normalization(seed: int) -> QGraph:
    draft = Draft("normalization", seed)
    shape = SHAPES[seed % len(SHAPES)]
    x, y = draft.input(shape), output(draft, shape)
    middle = Tensor("scaled", (None, *shape))
    a, b = (
        Tensor(name, shape[-1:], data=draft.rng.uniform(-2, 2, shape[-1:]).astype(np.float32)) for name in ("a", "b")
    )
    a.data[0] = draft.pick(0.0, 1e-6, 1.0)  # type: ignore[index]
    first = Op("mul", [x, a], [middle], {"activation": "none"}, "layer")
    return finished(draft, first, Op("add", [middle, b], [y], {"activation": draft.pick("none", "relu")}, "layer"))


def function(name: str, seed: int) -> QGraph:
    draft = Draft(name, seed)
    shape = SHAPES[seed % len(SHAPES)]
    x, y = draft.input(shape), output(draft, shape)
    return finished(draft, Op("unary", [x], [y], {"function": name, "alpha": 0.3}, "layer"))


def extreme(kind: str, seed: int) -> QGraph:
    draft = Draft(f"extreme_{kind}", seed)
    shape = SHAPES[seed % len(SHAPES)]
    a = draft.input(shape)
    b = draft.input(draft.pick(shape, (1,) * (len(shape) - 1) + shape[-1:]))
    return finished(draft, Op(kind, [a, b], [output(draft, shape)], {}, "layer"))


def equal(graph: QGraph, target: str) -> Counter[str]:
    """Runs a graph where no operation is in real numbers; gives the kinds it has."""
    routed = route(graph, target, integer_only=True)
    validate(routed)
    assert told_real(routed) == ""
    onnx = target == "onnxruntime"
    steps = onnx_agreement.differences(graph, integer_only=True) if onnx else differences(graph, target)
    assert steps.size
    assert not steps.any(), f"{graph}"
    return Counter(op.kind for op in routed.ops)


@pytest.mark.parametrize("target", TARGETS)
def test_functions(target: str) -> None:
    found = sum((equal(function(name, seed), target) for name in FUNCTIONS.names() for seed in range(4)), Counter())
    assert found["table"] >= 40


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", WITH_CONSTANT)
def test_constants(kind: str, target: str) -> None:
    found = sum((equal(by_constant(kind, seed), target) for seed in range(16)), Counter())
    assert found["table"] > 0
    assert (found["depthwise_conv2d"] > 0) == (kind in ("mul", "add", "sub"))


@pytest.mark.parametrize("target", TARGETS)
def test_normalizations(target: str) -> None:
    found = sum((equal(normalization(seed), target) for seed in range(24)), Counter())
    assert found["depthwise_conv2d"] >= 20


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["maximum", "minimum"])
def test_extremes_of_several_scales(kind: str, target: str) -> None:
    found = sum((equal(extreme(kind, seed), target) for seed in range(12)), Counter())
    assert found[kind] == 12


@pytest.mark.parametrize("kind", ["unary", "maximum", "minimum"])
def test_between_convolutions_in_onnx(kind: str) -> None:
    """Where channels come first."""
    for seed in range(12):
        equal(onnx_agreement.behind_convolutions(case(kind, seed), seed), "onnxruntime")
