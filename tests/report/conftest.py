"""Reports of any size, with a name that is markup in every format."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from qi.ledger import Evaluation, QuantizationReport, Row

NASTY = "<b>|*x*</script>[red]$&\"'"


@pytest.fixture
def nasty() -> str:
    return NASTY


@pytest.fixture
def make_report() -> Callable[..., QuantizationReport]:
    """A function of the number of layers that makes a report; the layers' SQNR runs from 3 to 42 dB."""

    def make(layers: int = 8, *, activations: bool = True, **fields: object) -> QuantizationReport:
        rows = [row for index in range(layers) for row in _layer(index, layers, activations)]
        return QuantizationReport(**{"recipe": "w4a8", "model": "small", "rows": tuple(rows), **fields})

    return make


@pytest.fixture
def nasty_report(make_report: Callable[..., QuantizationReport]) -> QuantizationReport:
    """Every text of it is markup."""
    rows = (
        *make_report(2).rows,
        Row(kind="weight", layer=NASTY, layer_type=NASTY, name=NASTY, status="quantized", bits=2, method=NASTY,
            granularity=NASTY, grid=NASTY, size_before=8, size_after=4, sqnr_db=math.inf, shape=()),
        Row(kind="activation", layer=NASTY, layer_type=NASTY, name="output", status="float", reason=NASTY),
    )  # fmt: skip
    return QuantizationReport(
        recipe=NASTY,
        rows=rows,
        model=NASTY,
        description=NASTY,
        unused_rules=(NASTY,),
        warnings=[NASTY],
        settings={NASTY: NASTY, "seconds": 1.5},
        evaluations=[Evaluation(metric=NASTY, float_value=0.5, quantized_value=math.nan, samples=8)],
    )


def _layer(index: int, layers: int, activations: bool) -> list[Row]:
    where = {"layer": f"block/conv{index}", "layer_type": "Conv2D"}
    db = 3.0 + 39.0 * index / max(1, layers - 1)
    size = 400 * (index + 1)
    rows = [
        Row(kind="weight", **where, name="kernel", status="quantized", bits=4, method="symmetric",
            granularity="per channel (axis -1)", grid="int4 -7..7", shape=(3, 3, 4, 8), scale_min=0.01, scale_max=0.02,
            range_lo=-0.14, range_hi=0.14, size_before=size, size_after=size // 8, macs=1000 * size, sqnr_db=db),
        Row(kind="weight", **where, name="bias", status="float", reason="a bias", shape=(8,), size_before=32),
    ]  # fmt: skip
    if activations:
        rows.append(
            Row(kind="activation", **where, name="output", status="quantized", bits=8, method="uniform",
                granularity="per tensor", shape=(None, 8, 8, 8), scale_min=0.02, scale_max=0.02, range_lo=0.0,
                range_hi=5.1, sqnr_db=math.inf if index == 0 else 38.0, total_sqnr_db=30.0, clipped_share=0.001)
        )  # fmt: skip
    return rows
