"""Files run by ONNX Runtime, damaged ones too."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from qi.errors import FileFormatError, InputError
from qi.exporters import onnx_runtime
from qi.exporters.onnx_file import write
from qi.exporters.onnx_runtime import first_difference, float_kernels, integer_kernels, kernels, run
from qi.ir import twin
from qi.ir.routing import route
from tests.parity.operations import case, samples

GRAPH = route(case("dense", 2), "onnxruntime")
DATA, INPUTS = write(GRAPH), samples(GRAPH)


def test_inputs_by_order_or_name() -> None:
    by_order = run(DATA, INPUTS)
    by_name = run(DATA, dict(zip((t.name for t in GRAPH.inputs), INPUTS, strict=True)), threads=2)
    assert set(by_order) == {"y"}
    assert np.array_equal(by_order["y"], by_name["y"])


def test_without_optimization_all_is_done_in_real_numbers() -> None:
    plain, real = run(DATA, INPUTS)["y"], run(DATA, INPUTS, optimized=False)["y"]
    assert np.abs(plain - real).max() <= GRAPH.outputs[0].scale * 1.01


def test_more_tensors_can_be_asked_for() -> None:
    found = run(DATA, INPUTS, tensors=["x0_codes:codes"])
    expected = twin.run(GRAPH, INPUTS, every=True)["x0_codes"]
    assert np.array_equal(found["x0_codes:codes"].astype(int) - 128, expected)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "expected 1 inputs"),
        ({"other": INPUTS[0]}, r"received \['other'\]"),
        ([INPUTS[0][..., :-1]], "expected 'x0' of shape"),
        ([INPUTS[0].astype(np.float64)], "of float64"),
    ],
)
def test_inputs_that_the_file_does_not_take(inputs: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(DATA, inputs)


def test_a_tensor_that_the_file_has_not() -> None:
    with pytest.raises(InputError, match="received 'nothing'"):
        run(DATA, INPUTS, tensors=["nothing"])


def test_kernels_by_what_they_calculate_with() -> None:
    assert "QGemm" in kernels(DATA)
    assert "QGemm" in integer_kernels(DATA)
    assert float_kernels(DATA) == []
    norm = case("layer_norm", 0)
    norm.ops = norm.ops[1:]
    norm.inputs = norm.ops[0].inputs[:1]
    for tensor in norm.tensors():
        tensor.qparams = None
    real = write(route(norm, "onnxruntime"))
    assert float_kernels(real) == ["LayerNormalization"]
    assert integer_kernels(real) == []


def test_the_first_tensor_that_differs_is_named() -> None:
    assert first_difference(GRAPH, DATA, INPUTS) is None
    other = route(case("dense", 2), "onnxruntime")
    weight = other.ops[1].inputs[1]
    weight.data = -weight.data
    assert first_difference(other, DATA, INPUTS) == "y"


@pytest.mark.parametrize("data", [b"", b"nothing of the kind", DATA[: len(DATA) // 2], DATA[:-1]])
def test_something_else_than_a_file(data: bytes) -> None:
    with pytest.raises(FileFormatError, match="expected an ONNX file"):
        run(data, INPUTS)


DAMAGE = """
import numpy as np
from qi.errors import FileFormatError, InputError
from qi.exporters.onnx_file import write
from qi.exporters.onnx_runtime import run
from qi.ir.routing import route
from tests.parity.operations import case, samples
rng, survived = np.random.default_rng(0), 0
for kind in ("conv2d", "dense", "add", "softmax", "moves"):
    graph = case(kind, 1)
    data, inputs = write(route(graph, "onnxruntime")), samples(graph)
    for _ in range(80):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        try:
            run(bytes(damaged), inputs)
            survived += 1
        except (FileFormatError, InputError):
            pass
print("survived", survived)
"""


def test_damaged_bytes_give_an_error_and_nothing_worse(checkout: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE], cwd=str(checkout), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("survived")


def test_the_runtime_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    run(DATA, INPUTS)
    onnx_runtime.kernels(DATA)
    assert capfd.readouterr() == ("", "")
