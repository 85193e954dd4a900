"""Which configurations the contract tries."""

from __future__ import annotations

import numpy as np
import pytest

from qi.quantizers import LearnedRangeQuantizer, LSQQuantizer, PACTQuantizer, QuantizationTarget, TQTQuantizer
from qi.testing.cases import CHANNELS, ROWS, awkward, cases_of


@pytest.mark.parametrize(
    ("cls", "bits", "count"),
    [(LSQQuantizer, (1,), 7), (LSQQuantizer, (2, 8), 16), (PACTQuantizer, (4,), 1), (LearnedRangeQuantizer, (4,), 8)],
)
def test_every_target_method_and_layout(cls, bits, count):
    found = cases_of(cls, bits)
    assert len(set(map(str, found))) == len(found) == count
    for case in found:
        quantizer = case.quantizer()
        assert quantizer.num_bits == case.bits
        assert quantizer.quantization_target is case.target
        assert quantizer.spec.method is case.method
        assert quantizer.per_channel is (case.layout in ("channel", "narrow"))
        assert quantizer.grid.narrow is (case.layout == "narrow")


def test_variables_at_first_and_after_training():
    for case in cases_of(TQTQuantizer, (4,)):
        _, variables = case.start()
        assert case.trainable() == ("log2_threshold",)
        shape = (
            (1,) if case.target is QuantizationTarget.ACTIVATION else (1, CHANNELS if case.layout != "tensor" else 1)
        )
        assert variables["log2_threshold"].shape == shape
        ratio = case.moved(variables)["log2_threshold"] / np.where(
            variables["log2_threshold"] == 0, 1, variables["log2_threshold"]
        )
        assert np.all(ratio < 1.31)


def test_awkward_numbers_hold_ties_edges_and_the_huge():
    x = awkward(np.float32(0.5), None, -8, 7)
    assert x.shape == (4 * ROWS, CHANNELS)
    u = x.astype(np.float64) / 0.5
    for wanted in (-8.5, 7.5, -8.0, 7.0, 0.0):
        assert wanted in u
    assert np.float32(3e38) in x
    shifted = awkward(np.float32(0.5), np.float32(4), 0, 15).astype(np.float64) / 0.5
    assert {-4.5, 11.5} <= set(shifted.ravel().tolist())
