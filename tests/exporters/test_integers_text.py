from __future__ import annotations

import re

import pytest

from qi.errors import UnsupportedError
from qi.exporters.integers_fixed import fixed_point
from qi.exporters.integers_record import domain_of, record_of
from qi.exporters.integers_text import BORDER, FUNCTIONS, INTEGERS, REAL, readme
from qi.ir import Op, twin  # noqa: F401 - registers the kinds
from qi.ir.elementwise import FUNCTIONS as REGISTERED
from qi.ir.kinds import KINDS
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, perceptron, real
from tests.parity.operations import CASES, cases


def text_of(graph, packed: bool = False) -> str:
    return readme(record_of(route(graph, "reference"))[0], samples="3 samples (given)", packed=packed)


def test_every_kind_with_an_integer_kernel_is_told() -> None:
    done = {name for name in KINDS.names() if KINDS.get(name).moves or "reference" in KINDS.get(name).kernels}
    assert done - {"dequantize"} <= set(INTEGERS)
    assert set(BORDER) == {"quantize", "dequantize"}
    assert set(FUNCTIONS) == set(REGISTERED.names())


def test_every_attribute_and_number_is_told() -> None:
    """No text leaves out a name that graph.json has; the activation is in the code range, alpha in the table."""
    seen: dict[str, set[str]] = {}
    for _, graph in cases(20 * len(CASES.names())):
        op = route(graph, "reference", integer_only=True).ops[-1]
        if domain_of(op) == "integers":
            seen.setdefault(op.kind, set()).update(op.attrs, fixed_point(op))
    assert set(INTEGERS) - set(seen) <= {"quantize", "broadcast", "reverse"}
    told = {"activation", "alpha"}
    missing = {
        (kind, name)
        for kind, names in seen.items()
        for name in names - told
        if not re.search(rf"\b{name}\b", INTEGERS[kind])
    }
    assert not missing


def test_only_what_occurs_is_told() -> None:
    text = text_of(perceptron())
    assert re.findall(r"^### (.*)", text, re.MULTILINE) == ["dense", "quantize"]
    assert "`graph_op1` (dense0), `graph_op2` (dense1)" in text
    assert "## Operations in real numbers\n\nNone." in text
    assert "3 samples (given)" in text
    assert "`graph_y` (`y`): int8, batch x 2, codes, scale 0.10000000149011612, zero point 3" in text


def test_float_islands_are_told() -> None:
    x, y = codes_of("x", 4), codes_of("y", 4)
    text = text_of(graph_of(Op("unary", [x], [y], {"function": "silu", "alpha": None}, "swish"), inputs=[x]))
    assert re.findall(r"^### (.*)", text, re.MULTILINE) == ["dequantize", "quantize", "unary"]
    assert "* silu: `x / (1 + exp(-x))`" in text


def test_how_weights_are_packed_is_told() -> None:
    assert "lies in a byte" in text_of(perceptron())
    assert "are packed" in text_of(perceptron(), packed=True)


def test_what_is_not_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = real("x", 2), real("y", 2)
    graph = graph_of(Op("div", [x, x], [y], {"activation": "none"}, "quotient"), inputs=[x])
    monkeypatch.delitem(REAL, "div")
    with pytest.raises(UnsupportedError, match="'div' of layer 'quotient'"):
        text_of(graph)


def test_requantizing_is_told() -> None:
    x, y = codes_of("x", 2), codes_of("y", 2, qparams=act(0.3))
    assert "From codes to codes" in text_of(graph_of(Op("quantize", [x], [y]), inputs=[x]))
