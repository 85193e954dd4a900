from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qi.errors import InputError
from qi.ir import Op, QGraph, Tensor, validate
from tests.ir.graphs import act, codes_of, graph_of, per_channel, perceptron, real, weight


def test_a_good_graph_passes() -> None:
    graph = perceptron()
    before = str(graph)
    validate(graph)
    assert str(graph) == before


def _two_names(g: QGraph) -> None:
    g.ops[1].y.name = "x"


def _wrong_shape(g: QGraph) -> None:
    g.ops[1].inputs[1].shape = (3, 4)


def _scales_of_an_activation(g: QGraph) -> None:
    g.ops[1].y.qparams = per_channel([1, 2, 3], 1, 2)


def _off_the_grid(g: QGraph) -> None:
    g.ops[1].inputs[1].data = np.full((4, 3), -128, np.int8)


def _codes_that_are_no_integers(g: QGraph) -> None:
    g.ops[1].inputs[1].data = np.zeros((4, 3), np.float32)


def _scales_of_another_axis(g: QGraph) -> None:
    w = g.ops[1].inputs[1]
    w.qparams = per_channel([1, 2, 3, 4, 5], 1, 2)


def _too_few_inputs(g: QGraph) -> None:
    g.ops[1].inputs = g.ops[1].inputs[:1]


def _too_many_inputs(g: QGraph) -> None:
    g.ops[0].inputs = g.inputs * 2


def _no_output(g: QGraph) -> None:
    g.ops[2].outputs = []


def _unknown_kind(g: QGraph) -> None:
    g.ops[1].kind = "denseness"


def _missing_attribute(g: QGraph) -> None:
    g.ops[1].attrs = {}


def _surplus_attribute(g: QGraph) -> None:
    g.ops[1].attrs["bias"] = True


def _out_of_order(g: QGraph) -> None:
    g.ops.reverse()


def _from_nowhere(g: QGraph) -> None:
    g.ops[2].inputs[0] = codes_of("elsewhere", 3)


def _given_twice(g: QGraph) -> None:
    g.ops.append(g.ops[2])


def _input_given(g: QGraph) -> None:
    g.ops.append(Op("dequantize", [g.ops[0].y], [g.inputs[0]]))


def _constant_given(g: QGraph) -> None:
    g.ops[2].outputs = [weight("made", [1.0])]


def _output_from_nowhere(g: QGraph) -> None:
    g.outputs = [codes_of("elsewhere", 3)]


def _dequantizer_to_codes(g: QGraph) -> None:
    g.ops.append(Op("dequantize", [g.ops[2].y], [codes_of("z", 2)]))


def _quantizer_without_codes(g: QGraph) -> None:
    g.ops.append(Op("quantize", [g.inputs[0]], [real("z", 4)]))


def _dequantizer_of_real_numbers(g: QGraph) -> None:
    g.ops.append(Op("dequantize", [g.inputs[0]], [real("z", 4)]))


def _computed_weights(g: QGraph) -> None:
    g.ops[2].inputs[1] = g.ops[1].y


def _real_bias(g: QGraph) -> None:
    g.ops[1].inputs[2] = Tensor("b", (3,), "int32", data=np.zeros(3, np.int64))


def _overflowing_sum(g: QGraph) -> None:
    g.ops[1].inputs[2].data = np.full(3, 2**31 - 1, np.int32)


def _unlike_scales(g: QGraph) -> None:
    g.ops.append(Op("reshape", [g.ops[2].y], [codes_of("z", 2, qparams=act(0.2))], {"shape": [None, 2]}))


def _moved_from_real(g: QGraph) -> None:
    g.ops.append(Op("reshape", [g.inputs[0]], [codes_of("z", 4)], {"shape": [None, 4]}))


REFUSALS: dict[Callable[[QGraph], None], str] = {
    _two_names: "names of their own; two are called 'x'",
    _wrong_shape: r"'w0' of shape \(3, 4\); its data are \(4, 3\)",
    _scales_of_an_activation: "one scale for the activation 'hidden'; received 3",
    _off_the_grid: "codes from -127 to 127 in 'w0'",
    _codes_that_are_no_integers: "codes from -127 to 127 in 'w0'",
    _scales_of_another_axis: r"scales that fit 'w0' of shape \(4, 3\)",
    _too_few_inputs: "2 to 3 inputs and an output for 'dense'",
    _too_many_inputs: "1 to 1 inputs and an output for 'quantize'",
    _no_output: "2 to 3 inputs and an output for 'dense'",
    _unknown_kind: "known kinds; received 'denseness'",
    _missing_attribute: r"attributes \['activation'\] of 'dense'; received \[\]",
    _surplus_attribute: r"attributes \['activation'\] of 'dense'; received \['activation', 'bias'\]",
    _out_of_order: "order of their running; 'hidden' isn't known yet",
    _from_nowhere: "order of their running; 'elsewhere' isn't known yet",
    _given_twice: "given once; .* gives 'y' again",
    _input_given: "given once; .* gives 'x' again",
    _constant_given: "given once; .* gives 'made' again",
    _output_from_nowhere: "outputs that an operation gives; nothing gives 'elsewhere'",
    _quantizer_without_codes: "codes from 'quantize'",
    _dequantizer_to_codes: "real numbers from codes from 'dequantize'",
    _dequantizer_of_real_numbers: "real numbers from codes from 'dequantize'",
    _computed_weights: "constant weights; received",
    _real_bias: "a constant int32 bias",
    _overflowing_sum: "sums that int32 holds; those of 'hidden' may reach 2.15e",
    _unlike_scales: "one scale for all that 'reshape' moves",
    _moved_from_real: "one scale for all that 'reshape' moves",
}


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda f: f.__name__.strip("_"))
def test_what_breaks_a_law_is_named(spoil: Callable[[QGraph], None]) -> None:
    graph = perceptron()
    spoil(graph)
    with pytest.raises(InputError, match=f"graph 'graph': expected .*{REFUSALS[spoil]}"):
        validate(graph)


def test_a_sum_may_reach_the_last_number_of_int32() -> None:
    graph = perceptron()
    _, w, bias = graph.ops[1].inputs
    largest = int((133 * np.abs(w.data).astype(int).sum(0)).max())  # codes from -128 with zero point 5
    bias.data = np.full(3, 2**31 - 1 - largest, np.int32)
    validate(graph)
    bias.data = bias.data + np.int32(1)
    with pytest.raises(InputError, match="sums that int32 holds"):
        validate(graph)


def test_codes_of_a_weight_may_serve_real_numbers_with_any_bias() -> None:
    x, y = real("x", 2), real("y", 2)
    inputs = [x, weight("w", [[1, -2], [3, 4]], [0.5, 2.0]), weight("b", [0.5, 0.25])]
    validate(graph_of(Op("dense", inputs, [y], {"activation": "none"}), inputs=[x]))


def test_moved_indices_have_no_scale_to_share() -> None:
    ids, rows = real("ids", 2, dtype="int32"), codes_of("rows", 2, 3)
    table = Tensor("table", (4, 3), qparams=act(), data=np.zeros((4, 3), np.int8))
    validate(graph_of(Op("embedding", [ids, table], [rows]), inputs=[ids]))
    rows.qparams = act(0.3)
    with pytest.raises(InputError, match="one scale for all that 'embedding' moves"):
        validate(graph_of(Op("embedding", [ids, table], [rows]), inputs=[ids]))
