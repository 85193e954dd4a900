"""Which parameters are quantized, and their rows."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import nn

from qi.recipes import FLOAT, Rule, get_recipe
from qi.torch.quantize import frozen_wrapper
from qi.torch.weights import original_weights, share_quantizers, weight_quantizers, weight_rows


def chosen(module: nn.Module, *rules: Rule, path: str = "m", **options: object):
    book = get_recipe("w8").with_rules(*rules).resolve()
    return weight_quantizers(module, path, original_weights(module), book, **options)


def test_matrices_are_quantized_and_biases_arent() -> None:
    quantizers, reasons = chosen(nn.Linear(4, 3))
    assert list(quantizers) == ["weight"]
    assert quantizers["weight"].channel_axis == 0
    assert reasons["bias"].startswith("bias: float32 here")


def test_rules_name_modules_and_those_within() -> None:
    attention = nn.MultiheadAttention(8, 2)
    both = {"in_proj_weight", "out_proj.weight"}
    assert set(chosen(attention)[0]) == both
    for rule in (
        Rule("m.out_proj", weights=FLOAT),
        Rule("m", weight="out_proj.weight", weights=FLOAT),
        Rule(layer_type="NonDynamicallyQuantizableLinear", weights=FLOAT),
    ):
        quantizers, reasons = chosen(attention, rule)
        assert set(quantizers) == {"in_proj_weight"}
        assert "by rule" in reasons["out_proj.weight"]
    assert not chosen(attention, Rule("m", weights=FLOAT))[0]


def test_parts_answer_to_what_they_were_taken_from() -> None:
    part, split = nn.Linear(8, 8), ("block.attn", "MultiheadAttention")
    for rule in (
        Rule("block.attn", weights=FLOAT),
        Rule(layer_type="MultiheadAttention", weights=FLOAT),
        Rule("block.attn", weight="q_proj.weight", weights=FLOAT),
        Rule("block.attn.q_proj", weights=FLOAT),
    ):
        assert not chosen(part, rule, path="block.attn.q_proj", split_from=split)[0]
    assert chosen(
        part, Rule("block.attn", weight="k_proj.weight", weights=FLOAT), path="block.attn.q_proj", split_from=split
    )[0]


def test_what_has_no_elements_stays() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that there is nothing to initialize
        quantizers, reasons = chosen(nn.Linear(0, 3))
    assert not quantizers
    assert reasons["weight"] == "has no elements"


def test_rows_of_a_wrapper_and_of_a_module() -> None:
    torch.manual_seed(0)
    module = nn.Linear(6, 3)
    originals = original_weights(module)
    quantizers, reasons = chosen(module)
    weight, bias = weight_rows(
        frozen_wrapper(module, quantizers), "m", "Linear + BatchNorm1d", originals, reasons, {"weight": 18}
    )
    assert (weight.status, weight.bits, weight.macs, weight.shape) == ("quantized", 8, 18, (3, 6))
    assert weight.size_after < weight.size_before == 72
    assert weight.sqnr_db is not None
    assert weight.sqnr_db > 30
    assert (bias.status, bias.size_after, bias.layer_type) == ("float", 12, "Linear + BatchNorm1d")
    plain = nn.Linear(6, 3)
    rows = weight_rows(plain, "m", "Linear", original_weights(plain), {"weight": "since"}, {})
    assert [(row.status, row.reason) for row in rows] == [
        ("float", "since"),
        ("float", "no rule of the recipe covers it"),
    ]


def test_values_are_read_as_they_are() -> None:
    module = nn.Linear(2, 2).to(torch.bfloat16)
    found = original_weights(module)
    assert found["weight"].dtype == np.float32
    np.testing.assert_array_equal(found["weight"], module.weight.detach().float().numpy())


def test_shared_parameters_share_their_quantizer() -> None:
    first, second, other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    known: dict[int, nn.Module] = {}
    wrappers = [share_quantizers(frozen_wrapper(module, chosen(module)[0]), known) for module in (first, second, other)]
    bound = [wrapper.weight_quantizers["weight"] for wrapper in wrappers]
    assert bound[0] is bound[1]
    assert bound[2] is not bound[0]
