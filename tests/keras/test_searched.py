"""Which weights are searched, and what is known of them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from qi.keras.prepare import prepare
from qi.keras.searched import FLOAT_BITS, Searched, searched_weights
from qi.recipes import Rule, decode_name, get_recipe
from tests.keras.models import build, settle

SPECS = [decode_name(f"w{bits}").weights for bits in (2, 4, 8)]


def found_in(model: keras.Model, recipe: Any = "w8a8") -> tuple[list[Searched], list[Any]]:
    return searched_weights(prepare(model, recipe), SPECS)  # type: ignore[arg-type]


def test_what_rules_decide_is_fixed() -> None:
    model = build("residual")
    rules = Rule("logits", weights="float"), Rule("stem_conv", weights=SPECS[1]), Rule("a_act", activations="float")
    weights, fixed = found_in(model, get_recipe("w8a8").with_rules(*rules))
    assert [weight.label for weight in weights] == ["a_conv/kernel", "b_conv/kernel", "c_conv/kernel"]
    known = {f"{f.path}/{f.name}": f for f in fixed}
    assert known["stem_conv/kernel"].bits == 4
    assert known["logits/kernel"].bits == FLOAT_BITS
    assert known["logits/bias"].bits is None
    assert known["logits/bias"].nbytes == 20
    # What a_conv gives stays in float, behind its activation; it itself takes 8 bits.
    assert [weight.activation_bits for weight in weights] == [8, FLOAT_BITS, 8]
    assert weights[0].macs == 8 * 8 * 9 * 4 * 4


def test_shared_layers_and_tied_weights_count_once() -> None:
    shared = keras.layers.Dense(6, name="shared")
    inputs = keras.Input((6,), name="x")
    model = settle(keras.Model(inputs, keras.layers.Dense(3, name="head")(shared(keras.layers.ReLU()(shared(inputs))))))
    weights, _ = found_in(model)
    assert [(weight.label, weight.macs) for weight in weights] == [("shared/kernel", 72), ("head/kernel", 18)]
    one, other = keras.layers.LSTMCell(4, name="cell"), keras.Input((5, 3), name="steps")
    towers = [keras.layers.RNN(one, name=name)(other) for name in ("left", "right")]
    weights, fixed = found_in(settle(keras.Model(other, keras.layers.Add()(towers))))
    assert {weight.path for weight in weights} == {"left"}
    assert [f.path for f in fixed].count("left") == 1  # the bias, and none of the other holder


def test_candidates_are_on_their_grids_and_grow_with_bits() -> None:
    for weight in found_in(build("residual"))[0]:
        errors = [np.mean((weight.values(place) - weight.array) ** 2) for place in range(3)]
        assert errors == sorted(errors, reverse=True)
        assert len(np.unique(weight.values(0)[..., 0])) <= 3  # 2 bits, narrow: -1, 0, 1
        sizes = [weight.nbytes(place) for place in range(3)]
        scales = 4 * weight.array.shape[-1]
        assert sizes == [-(-weight.array.size * bits // 8) + scales for bits in (2, 4, 8)]
        assert weight.array.shape == tuple(weight.variable.shape)
