from __future__ import annotations

import pytest

from qi.errors import ConfigError
from qi.exporters.code_io import check_codes
from qi.ir import Op, Tensor
from tests.ir.graphs import act, codes_of, graph_of, real


def test_what_has_codes_is_not_told_of() -> None:
    x, index, codes = real("x", 2), Tensor("i", (None, 1), "int32"), codes_of("c", 2, qparams=act())
    graph = graph_of(Op("quantize", [x], [codes]), inputs=[x, index], target="litert")
    assert check_codes(graph) == []


def test_what_stays_real_is_named() -> None:
    x, plain, codes, y = real("x", 2), real("p", 2), codes_of("c", 2, qparams=act()), real("y", 2)
    ops = Op("quantize", [x], [codes]), Op("unary", [plain], [y], {"function": "tanh"})
    graph = graph_of(*ops, inputs=[x, plain], target="litert")
    graph.outputs = [codes, y]
    assert check_codes(graph) == [
        "integer_io=True leaves inputs 'p' and outputs 'y' in real numbers, which have no codes"
    ]


def test_a_model_without_any_codes_is_refused() -> None:
    x, y = real("x", 2), real("y", 2)
    graph = graph_of(Op("unary", [x], [y], {"function": "tanh"}), inputs=[x], target="litert")
    with pytest.raises(ConfigError, match=r"expected integer_io=True for a model .* do leave integer_io out"):
        check_codes(graph)
