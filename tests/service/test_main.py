from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fastapi import HTTPException

from qi.engine import QuantizationConfig, Quantizer
from qi.errors import InputError
from qi.service import main
from qi.service.main import get_quantizer, list_to_numpy, numpy_to_list, quantizer_instances

MODELS = (
    "QuantizerConfigModel QuantizationRequest DequantizationRequest CalibrationRequest QuantizationParamsRequest "
    "ScaleZeroPointResponse QuantizationResponse StatsResponse ImportExportParams"
)


@pytest.mark.parametrize("name", [*MODELS.split(), "app", "create_app"])
def test_the_documented_names_are_there(name: str) -> None:
    assert name in main.__all__
    assert getattr(main, name) is not None


def test_importing_it_loads_no_framework(checkout: Path) -> None:
    code = "import json, sys, qi.service.main\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "fastapi" in loaded
    assert not loaded & {"keras", "tensorflow", "torch", "jax", "matplotlib", "pandas", "pyarrow", "onnx"}


def test_lists_and_arrays() -> None:
    assert numpy_to_list(np.array([[1, 2]], np.int8)) == [[1, 2]]
    assert (numpy_to_list(np.float32(0.5)), numpy_to_list([1])) == (0.5, [1])
    assert list_to_numpy([[1, 2]]).dtype == np.float32
    assert list_to_numpy([1], dtype=np.int16).dtype == np.int16
    with pytest.raises(InputError, match="one length"):
        list_to_numpy([[1], [1, 2]])


def test_a_quantizer_by_name() -> None:
    assert isinstance(get_quantizer(), Quantizer)
    assert get_quantizer("default") is get_quantizer()
    with pytest.raises(HTTPException) as caught:
        get_quantizer("nobody")
    assert caught.value.status_code == 404


def test_the_mapping_of_quantizers() -> None:
    quantizer_instances["mapped"] = Quantizer(QuantizationConfig(quantization_type="int16"))
    try:
        assert get_quantizer("mapped").config.num_bits == 16
        assert "mapped" in quantizer_instances
        assert list(quantizer_instances) == ["default", "mapped"]
        assert len(quantizer_instances) == 2
    finally:
        del quantizer_instances["mapped"]
    for use in (lambda: quantizer_instances["mapped"], lambda: quantizer_instances.pop("mapped")):
        with pytest.raises(KeyError):
            use()
