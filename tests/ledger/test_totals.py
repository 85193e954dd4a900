from __future__ import annotations

from qi.ledger import Totals


def test_a_model_added_up_by_hand(rows):
    totals = Totals.of(rows)
    assert (totals.weights, totals.weights_quantized) == (3, 1)
    assert (totals.activations, totals.activations_quantized) == (3, 2)
    assert totals.bytes_before == 360 + 40 + 400
    assert totals.bytes_after == 85 + 40 + 400
    assert totals.byte_share == 360 / 800
    assert totals.size_ratio == 525 / 800
    assert (totals.macs, totals.macs_quantized) == (10_000, 9_000)
    assert totals.mac_share == 0.9


def test_a_model_without_weights_has_no_shares(rows):
    totals = Totals.of(row for row in rows if row.kind == "activation")
    assert (totals.byte_share, totals.mac_share, totals.size_ratio) == (None, None, None)
