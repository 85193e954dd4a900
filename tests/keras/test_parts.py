"""What is quantized within layers that are called as a whole."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.errors import UnsupportedError
from qi.keras.parts import Part, cells_of, inner_parts, outputs_seen
from qi.recipes import Rule, TensorSpec, get_recipe
from tests.keras.loops import Mix

EIGHT = TensorSpec(bits=8, method="symmetric")
CELLS = get_recipe("w8a8").with_rules(Rule("*/lstm_cell", activations=EIGHT))


def x(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def recurrent() -> keras.Model:
    keras.utils.set_random_seed(3)
    steps = keras.Input((6, 4))
    return keras.Model(steps, layers.Dense(2, name="head")(layers.LSTM(5, name="lstm")(steps)))


def rows_of(report: Any, layer: str) -> dict[str, Any]:
    return {
        row.layer + "|" + row.name: row
        for row in report.rows
        if row.layer.startswith(layer) and row.kind == "activation"
    }


def test_cells_stay_in_float_until_a_rule_speaks_of_them() -> None:
    _, plain = qi.quantize_model(recurrent(), "w8a8", x(32, 6, 4), progress=False)
    assert "a rule for its cell" in rows_of(plain, "lstm")["lstm|states"].reason
    model, report = qi.quantize_model(recurrent(), CELLS, x(32, 6, 4), progress=False)
    rows = rows_of(report, "lstm")
    assert list(rows) == ["lstm/lstm_cell|output", "lstm/lstm_cell:1|output", "lstm|output", "lstm|gates"]
    assert all(rows[name].sqnr_db > 35 and rows[name].total_sqnr_db > 25 for name in list(rows)[:2])
    assert report.unused_rules == ()
    with pytest.raises(
        UnsupportedError, match=r"'lstm' of class LSTM, which quantizes what 'lstm_cell' gives within it"
    ):
        qi.emulate(model, x(2, 6, 4), progress=False)


def test_rules_for_all_layers_speak_of_no_cell() -> None:
    recipe = get_recipe("w8a8").with_rules(Rule("*", activations=EIGHT))
    _, report = qi.quantize_model(recurrent(), recipe, x(32, 6, 4), progress=False)
    assert "lstm|states" in rows_of(report, "lstm")


def test_each_output_of_a_cell_may_have_a_rule() -> None:
    recipe = CELLS.with_rules(
        Rule("*/lstm_cell:1", activations=TensorSpec(bits=16, method="symmetric")),
    )
    _, report = qi.quantize_model(recurrent(), recipe, x(32, 6, 4), progress=False)
    assert [row.bits for name, row in rows_of(report, "lstm/").items()] == [8, 16]
    recipe = CELLS.with_rules(Rule("*/lstm_cell:1", activations="float"))
    model, report = qi.quantize_model(recurrent(), recipe, x(32, 6, 4), progress=False)
    assert [row.bits for name, row in rows_of(report, "lstm/").items()] == [8, None]
    assert model.get_layer("lstm").inner_quantizers["lstm_cell"][1] is None


@pytest.mark.filterwarnings("ignore:.*drown in error")
def test_more_bits_within_lose_less() -> None:
    model, data = recurrent(), x(64, 6, 4)
    exact = model.predict(data, verbose=0)

    def lost(bits: int) -> float:
        recipe = get_recipe("w8").with_rules(Rule(layer_type="LSTMCell", activations=TensorSpec(bits=bits)))
        found = qi.quantize_model(model, recipe, data, progress=False)[0].predict(data, verbose=0)
        return float(np.abs(found - exact).mean())

    assert lost(3) > 2 * lost(5) > 4 * lost(8)


def test_stored_statistics_tell_of_parts_too() -> None:
    model, data = recurrent(), x(32, 6, 4)
    one, _ = qi.quantize_model(model, CELLS, data, progress=False)
    seen = qi.calibrate(model, data, CELLS, progress=False)
    assert {"lstm/lstm_cell", "lstm/lstm_cell:1"} <= set(seen)
    other, _ = qi.quantize_model(model, CELLS, statistics=seen, progress=False)
    np.testing.assert_array_equal(one.predict(data, verbose=0), other.predict(data, verbose=0))
    _, third = qi.quantize_model(
        model, CELLS, statistics={k: v for k, v in seen.items() if "cell" not in k}, progress=False
    )
    assert rows_of(third, "lstm/")["lstm/lstm_cell|output"].reason == "the statistics know nothing of it"


def test_layers_that_are_made_of_others_are_quantized_within() -> None:
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Dense(2)(Mix(8, name="mix")(inputs)))
    quantized, report = qi.quantize_model(model, "w8a8", x(64, 5), progress=False)
    rows = rows_of(report, "mix")
    assert list(rows) == ["mix/inner|output", "mix|output", "mix|within"]
    assert "it has weights of its own; what its parts give is quantized" in rows["mix|within"].reason
    inner = quantized.get_layer("mix").inner_quantizers["inner"][0]
    np.testing.assert_allclose(
        float(inner.min_range[0] if np.ndim(inner.min_range) else inner.min_range), rows["mix/inner|output"].range_lo
    )
    exempt = get_recipe("w8a8").with_rules(Rule("mix/inner", activations="float"))
    _, report = qi.quantize_model(model, exempt, x(64, 5), progress=False)
    assert "left in float by rule" in rows_of(report, "mix/")["mix/inner|output"].reason


def test_attentions_that_are_kept_whole_are_quantized_within() -> None:
    inputs = keras.Input((6, 8))
    y, scores = layers.MultiHeadAttention(2, 4, name="att")(inputs, inputs, return_attention_scores=True)
    _, report = qi.quantize_model(keras.Model(inputs, [y, scores]), "w8a8", x(32, 6, 8), progress=False)
    found = {name: row.status for name, row in rows_of(report, "att").items()}
    assert {f"att/{part}|output": "quantized" for part in ("query", "key", "value", "softmax")}.items() <= found.items()
    assert found["att|scores"] == "float"


def test_cells_are_found_behind_wrappers() -> None:
    cell = layers.RNN(layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(2)]))
    cell.build((None, 4, 3))
    assert [type(c).__name__ for c in cells_of(cell).values()] == ["LSTMCell", "GRUCell"]
    both = layers.Bidirectional(layers.LSTM(2))
    both.build((None, 4, 3))
    assert len(cells_of(both)) == 2
    assert cells_of(layers.Dense(2)) == {}


def test_parts_that_only_move_values_need_no_quantizer() -> None:
    part = Part.of(layers.Dropout(0.5), "a/drop", get_recipe("w8a8").resolve())
    assert part.spec is None
    assert "moves" in part.reason


def test_parts_whose_outputs_arent_numbers_stay_in_float() -> None:
    part = Part.of(layers.Dense(2), "a", get_recipe("w8a8").resolve())
    part.see([], [ops.ones((2, 2), dtype="int32")])
    assert part.spec is None
    assert not part.quantizers


def test_what_is_seen_is_all_that_runs() -> None:
    layer = layers.Dense(2)
    layer.build((None, 3))
    part = {"a": Part.of(layer, "a", get_recipe("w8a8").resolve())}
    found = outputs_seen(part, lambda: [layer(x(4, 3)), layer(x(2, 3))])
    assert found["a"][0].shape == (12,)


def test_only_layers_have_parts() -> None:
    assert inner_parts(ops.matmul, "a", get_recipe("w8a8").resolve()) == {}


def test_a_cell_of_two_layers_stays_in_float_with_a_reason() -> None:
    cell, steps = layers.LSTMCell(4), keras.Input((6, 3))
    both = layers.Add()(
        [layers.RNN(cell, name="ahead")(steps), layers.RNN(cell, go_backwards=True, name="behind")(steps)]
    )
    recipe = get_recipe("w8a8").with_rules(Rule(layer_type="*Cell", activations=EIGHT))
    _, report = qi.quantize_model(keras.Model(steps, both), recipe, x(32, 6, 3), progress=False)
    reasons = [row.reason for name, row in rows_of(report, "").items() if "/lstm_cell" in name]
    assert reasons == ["'behind/lstm_cell' is the same layer", "'ahead/lstm_cell' is the same layer"]


def test_errors_of_layers_that_are_called_twice_arent_mixed_up() -> None:
    lstm, one, two = layers.LSTM(4, name="lstm"), keras.Input((6, 4)), keras.Input((6, 4))
    model = keras.Model([one, two], layers.Add()([lstm(one), lstm(two)]))
    _, report = qi.quantize_model(model, CELLS, [x(32, 6, 4), 3 * x(32, 6, 4)], progress=False)
    assert rows_of(report, "lstm/")["lstm/lstm_cell|output"].total_sqnr_db is None
