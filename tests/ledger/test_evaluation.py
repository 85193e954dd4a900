from __future__ import annotations

import json
import math

import pytest

from qi.errors import FileFormatError
from qi.ledger import Evaluation

FULL = Evaluation(metric="accuracy", float_value=0.82, quantized_value=0.8125, samples=5000, agreement=0.97)


@pytest.mark.parametrize("evaluation", [FULL, Evaluation(metric="m", float_value=math.inf, quantized_value=-1.0)])
def test_round_trip(evaluation):
    assert Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))) == evaluation


def test_text_and_difference():
    assert FULL.difference == pytest.approx(-0.0075)
    header, line = str(FULL).splitlines()
    assert header.split() == ["metric", "float", "quantized", "difference", "agreement", "samples"]
    assert line.split() == ["accuracy", "0.82", "0.8125", "-0.0075", "97.0", "%", "5000"]


@pytest.mark.parametrize(
    "values",
    [None, {}, {"metric": "m", "float_value": 1.0}, {**FULL.to_dict(), "extra": 1}, {**FULL.to_dict(), "samples": "x"}],
)
def test_junk_is_refused(values):
    with pytest.raises(FileFormatError):
        Evaluation.from_dict(values)
