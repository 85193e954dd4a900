"""What a row says of a tensor."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core import sqnr_db
from qi.ledger.outcomes import describe_granularity, in_float, quantized_activation, quantized_weight
from qi.observers import TensorStatistics
from qi.quantizers import (
    ActivationUniformInferableQuantizer,
    BaseInferableQuantizer,
    WeightsLUTSymmetricInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
)

WEIGHT = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def test_what_stays_in_float_says_why() -> None:
    assert in_float("since") == {"status": "float", "reason": "since"}


def test_a_weights_fields() -> None:
    quantizer = WeightsSymmetricInferableQuantizer(4, [1.0, 2.0, 4.0, 8.0], per_channel=True, narrow_range=True)
    tensor = quantizer.qparams(WEIGHT.shape).quantize(WEIGHT)
    found = quantized_weight(WEIGHT, tensor, quantizer)
    assert (found["status"], found["bits"], found["grid"]) == ("quantized", 4, "int4 -7..7")
    assert (found["scale_min"], found["scale_max"]) == (0.125, 1.0)
    assert found["sqnr_db"] == sqnr_db(WEIGHT, tensor.dequantize())
    assert found["size_after"] == tensor.nbytes < WEIGHT.nbytes


def test_an_activations_fields() -> None:
    quantizer, seen = ActivationUniformInferableQuantizer(8, 0.0, 1.0), TensorStatistics()
    seen.update(np.linspace(0, 2, 1000, dtype=np.float32))
    found = quantized_activation(quantizer, seen)
    assert found["grid"] == "uint8 0..255"
    assert found["clipped_share"] == pytest.approx(0.5, abs=0.01)
    assert "clipped_share" not in quantized_activation(quantizer, None) | quantized_activation(quantizer, seen, True)


@pytest.mark.parametrize(
    ("quantizer", "words"),
    [
        (WeightsSymmetricInferableQuantizer(8, 1.0, per_channel=False), "per tensor"),
        (WeightsSymmetricInferableQuantizer(8, 1.0, per_channel=True, channel_axis=0), "per channel (axis 0)"),
        (
            WeightsSymmetricInferableQuantizer(
                8, 1.0, per_channel=True, channel_axis=1, input_rank=2, group_size=3, group_axis=0
            ),
            "per group of 3 (axis 0)",
        ),
    ],
)
def test_granularity_in_words(quantizer: BaseInferableQuantizer, words: str) -> None:
    assert describe_granularity(quantizer, 2) == words


def test_tables_are_counted() -> None:
    quantizer = WeightsLUTSymmetricInferableQuantizer(
        num_bits=2, lut_values=[-8.0, 0.0, 7.0], threshold=[1.0], per_channel=False, lut_values_bitwidth=4
    )
    tensor = quantizer.qparams(WEIGHT.shape).quantize(WEIGHT)
    assert quantized_weight(WEIGHT, tensor, quantizer)["grid"] == "table of 3 values"
