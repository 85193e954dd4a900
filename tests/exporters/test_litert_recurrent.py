"""The fused LSTM of LiteRT files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.errors import InputError
from qi.exporters import litert
from qi.exporters.formats import FORMATS
from qi.exporters.litert_check import check
from qi.exporters.litert_file import schema
from qi.exporters.litert_recurrent import one_by_one
from qi.ir import QGraph, run
from qi.ir.routing import route
from tests.ir.graphs import grouped, per_channel
from tests.ir.recurrences import recurrence, sequences


def written(**options: Any) -> tuple[QGraph, bytes]:
    routed = route(recurrence("lstm", **options), "litert")
    return routed, litert.write(routed)


def operators(data: bytes) -> list[str]:
    names = {number: name for name, number in vars(schema().BuiltinOperator).items() if isinstance(number, int)}
    return [names[code] for code, _, _ in check(data).operators]


def interpreter(data: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    made = Interpreter(model_content=data)
    made.allocate_tensors()
    return made


def answered(made: Any, x: np.ndarray) -> np.ndarray:
    made.set_tensor(made.get_input_details()[0]["index"], x)
    made.invoke()
    return np.array(made.get_tensor(made.get_output_details()[0]["index"]))


def test_it_is_one_operator_on_real_numbers_of_integer_weights() -> None:
    _, data = written()
    names = operators(data)
    assert names.count("UNIDIRECTIONAL_SEQUENCE_LSTM") == 1
    assert names.count("DEQUANTIZE") == 8
    fb = schema()
    graph = fb.ModelT.InitFromPackedBuf(data).subgraphs[0]
    scales = {len(t.quantization.scale) for t in graph.tensors if t.type == fb.TensorType.INT8}
    assert scales == {6}  # one for each unit
    assert sum(t.isVariable for t in graph.tensors) == 2


@pytest.mark.parametrize("all_steps", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"activation": "relu"}, {"bits": None}, {"bits": 4}, {"bits": 2}, {"steps": 1}, {"units": 1}],
    ids=str,
)
def test_it_gives_what_the_twin_gives(options: dict[str, Any], all_steps: bool) -> None:
    routed, data = written(**options, all_steps=all_steps)
    x = sequences(5, options.get("steps", 7))
    np.testing.assert_allclose(litert.run(data, [x])["y"], run(routed, [x])["y"], rtol=2e-6, atol=2e-6)


def test_the_file_says_that_it_takes_one_sample_at_a_time() -> None:
    routed, data = written(steps=None)
    made = interpreter(data)
    for entry in made.get_input_details() + made.get_output_details():
        assert entry["shape_signature"][0] == 1
    assert made.get_input_details()[0]["shape_signature"][1] == -1
    assert one_by_one(routed) == [routed.ops[0].source]
    assert FORMATS["litert"].notes(routed) == (
        f"the file takes one sample at a time: LSTM layer {routed.ops[0].source!r}",
    )
    for wrong in (sequences(3)[0], sequences(3, features=9)):
        with pytest.raises(InputError, match="of shape"):
            litert.run(data, [wrong])
    routed, data = written(activation="sigmoid")  # step by step
    assert (one_by_one(routed), FORMATS["litert"].notes(routed), FORMATS["onnx"].notes(routed)) == ([], (), ())
    assert interpreter(data).get_input_details()[0]["shape_signature"][0] == -1


def test_each_run_begins_anew() -> None:
    """The operator by itself goes on with the states of the run before."""
    routed, data = written()
    made, x = interpreter(data), sequences(4)
    expected = run(routed, [x])["y"]
    for i in (0, 1, 1, 3, 2, 0):
        np.testing.assert_allclose(answered(made, x[i : i + 1])[0], expected[i], atol=1e-6)
    first = answered(made, x[:1])
    answered(made, 100 * x[1:2])
    np.testing.assert_array_equal(answered(made, x[:1]), first)


@pytest.mark.parametrize("least", [1e-12, 1.0])
def test_scales_of_any_size_close_the_gates(least: float) -> None:
    graph = recurrence("lstm", all_steps=False)
    kernel = graph.ops[0].inputs[1]
    kernel.qparams = per_channel([least if i % 3 == 0 else 0.004 for i in range(24)], 1, 2)
    routed = route(graph, "litert")
    made, x = interpreter(litert.write(routed)), sequences(2)
    answers = [answered(made, x[i : i + 1]) for i in (0, 1, 0)]
    np.testing.assert_array_equal(answers[0], answers[2])
    np.testing.assert_allclose(answers[0], run(routed, [x])["y"][:1], atol=1e-6)


def test_the_length_is_open() -> None:
    routed, data = written(steps=None)
    for steps in (1, 9):
        x = sequences(2, steps)
        np.testing.assert_allclose(litert.run(data, [x])["y"], run(routed, [x])["y"], atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"activation": "sigmoid"}, {"recurrent_activation": "hard_sigmoid"}, {"activation": "linear"}],
    ids=str,
)
def test_functions_that_it_has_not_are_written_step_by_step(options: dict[str, Any]) -> None:
    routed, data = written(**options)
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" not in operators(data)
    x = sequences(3)
    np.testing.assert_allclose(litert.run(data, [x])["y"], run(routed, [x])["y"], rtol=1e-5, atol=2e-6)


def test_so_are_weights_of_groups() -> None:
    graph, rng = recurrence("lstm", features=32, units=32), np.random.default_rng(0)
    for i, name in ((1, "kernel"), (2, "recurrent")):
        graph.ops[0].inputs[i] = grouped(name, rng, (32, 128), 16)
    routed = route(graph, "litert")
    data, x = litert.write(routed), sequences(2, features=32)
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" not in operators(data)
    np.testing.assert_allclose(litert.run(data, [x])["y"], run(routed, [x])["y"], atol=2e-6)
