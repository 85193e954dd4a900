"""Loading of compiled functions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from qi.core import compiled
from qi.engine import QuantizationType, load_fast
from qi.errors import ConfigError

pytest.importorskip("numba")


def test_functions_are_there_once_they_are_loaded(monkeypatch):
    monkeypatch.setattr(compiled, "_LOADED", {})
    monkeypatch.setattr(compiled, "_SEEN", Counter())
    codes = np.dtype(np.uint8)
    assert not compiled.worth("quantize", codes, 1 << 17)
    load_fast(QuantizationType.UINT8)
    assert compiled.worth("quantize", codes, 1 << 17)
    assert compiled.worth("dequantize", codes, 1 << 17)
    assert not compiled.worth("quantize", np.dtype(np.int16), 1 << 17)


@pytest.mark.parametrize("wrong", ["float16", "none", "int5", None, 8, []])
def test_only_types_of_integer_codes_have_any(wrong):
    with pytest.raises(ConfigError, match="expected an integer type, such as 'int8'; received quantization_type="):
        load_fast(wrong)
