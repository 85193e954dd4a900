"""A small report whose sums can be checked by hand."""

from __future__ import annotations

import math

import pytest

from qi.ledger import Evaluation, QuantizationReport, Row


@pytest.fixture
def rows() -> list[Row]:
    conv = {"layer": "block/conv", "layer_type": "Conv2D"}
    int4 = {"status": "quantized", "bits": 4, "method": "symmetric", "granularity": "per channel (axis -1)"}
    int8 = {"status": "quantized", "bits": 8, "method": "uniform", "granularity": "per_tensor"}
    return [
        Row(kind="activation", layer="input", layer_type="InputLayer", name="output", **int8, sqnr_db=math.inf),
        Row(kind="weight", **conv, name="kernel", **int4, shape=(3, 3, 1, 10), size_before=360, size_after=85,
            macs=9000, sqnr_db=18.5, clipped_share=0.25),
        Row(kind="weight", **conv, name="bias", status="float", reason="a bias", shape=(10,), size_before=40),
        Row(kind="activation", **conv, name="output", **int8, shape=(None, 10, 10, 10), sqnr_db=40.0,
            total_sqnr_db=17.0),
        Row(kind="weight", layer="head", layer_type="Dense", name="kernel", status="float",
            reason="left in float by rule match='head'", shape=(10, 10), size_before=400, macs=1000),
        Row(kind="activation", layer="head", layer_type="Dense", name="output", status="float",
            reason="left in float by rule match='head'", total_sqnr_db=16.0),
    ]  # fmt: skip


@pytest.fixture
def report(rows: list[Row]) -> QuantizationReport:
    return QuantizationReport(
        recipe="w4a8",
        rows=tuple(rows),
        model="small",
        description="weights 4 bits; activations 8 bits",
        unused_rules=("match='hed': matches no layer. Did you mean 'head'?",),
        warnings=["few samples"],
        settings={"samples": 32, "seconds": 1.5, "worst": math.inf, "folded": True, "note": None},
        evaluations=[Evaluation(metric="accuracy", float_value=0.9, quantized_value=0.875, samples=8)],
        float_file_bytes=2000,
        quantized_file_bytes=500,
    )
