from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.errors import ConfigError, UnsupportedError
from qi.exporters.deploy import export
from qi.exporters.integers import FILES, _first, export_integers, written_files
from qi.ir import Op, QGraph, Tensor, run
from qi.ir.routing import route
from tests.exporters.integers_interpreter import Interpreter
from tests.ir.graphs import act, codes_of, graph_of, perceptron, real, weight
from tests.parity.operations import CASES, cases, samples

RNG = np.random.default_rng


def differing(folder: Path, graph: QGraph, inputs: list[np.ndarray]) -> tuple[int, int]:
    """(codes of the export, how many of them aren't the twin's); every tensor is compared."""
    found = Interpreter(folder)
    expected, compared, wrong = run(route(graph, "reference", integer_only=True), inputs, every=True), 0, 0
    for name, array in found.run(inputs).items():
        tensor = found.graph["tensors"][name]
        if not tensor.get("constant"):
            compared += array.size
            wrong += int(np.count_nonzero(array != expected[tensor["name"]]))
    return compared, wrong


def network(seed: int = 0) -> QGraph:
    """A convolution with strides and padding on one side, and a product, both with ReLU or not."""
    rng = RNG(seed)
    x, image, seen = real("x", 9, 8, 2), codes_of("image", 9, 8, 2, qparams=act(0.02, 7)), act(0.03, -128)
    features, flat = codes_of("features", 5, 4, 6, qparams=seen), codes_of("flat", 120, qparams=seen)
    y = codes_of("y", 10, qparams=act(0.09, -11))

    def bias(name: str, n: int) -> Tensor:
        return Tensor(name, (n,), "int32", data=rng.integers(-900, 900, n).astype(np.int32))

    kernel = weight("kernel", rng.integers(-127, 128, (3, 3, 2, 6)), rng.uniform(0.002, 0.01, 6))
    attrs = {"strides": [2, 2], "pads": [1, 1, 0, 1], "dilation": [1, 1], "groups": 1, "activation": "relu"}
    dense = weight("matrix", rng.integers(-127, 128, (120, 10)), rng.uniform(0.002, 0.01, 10))
    return graph_of(
        Op("quantize", [x], [image], source="x"),
        Op("conv2d", [image, kernel, bias("kernel_bias", 6)], [features], attrs, "conv"),
        Op("reshape", [features], [flat], {"shape": [None, 120]}, "flatten"),
        Op("dense", [flat, dense, bias("matrix_bias", 10)], [y], {"activation": "none"}, "dense"),
        inputs=[x],
    )


# The numbers ----------------------------------------------------------------------------------------------------------


def test_random_operations_by_the_readme(tmp_path: Path) -> None:
    """An interpreter of its own gives the twin's codes, for all kinds of operations."""
    kinds, codes = set(), 0
    moves = "reshape transpose pad slice concat resize_nearest tile broadcast"
    for name, graph in [*cases(6 * len(CASES.names()), seed=100), *cases(40, ["moves"], seed=1000)]:
        inputs = samples(graph)
        folder = tmp_path / name
        report = export_integers(graph, folder, samples=inputs)
        if report.float_operations:
            continue
        compared, wrong = differing(folder, graph, inputs)
        assert not wrong, f"{name}: {wrong} of {compared}; {graph.ops[-1]}"
        kinds, codes = kinds | set(report.operations), codes + compared
    assert {
        "conv2d",
        "depthwise_conv2d",
        "conv2d_transpose",
        "dense",
        "add",
        "sub",
        "mul",
        "mean",
        "avg_pool2d",
    } <= kinds
    assert {
        "softmax",
        "unary",
        "prelu",
        "relu",
        "batch_matmul",
        "resize_bilinear",
        "max_pool2d",
        *moves.split(),
    } <= kinds
    assert codes > 150_000


def test_from_codes_to_codes(tmp_path: Path) -> None:
    x, a, b = real("x", 300), codes_of("a", 300, qparams=act(0.05, 9)), codes_of("b", 300, qparams=act(0.07, -30))
    graph = graph_of(Op("quantize", [x], [a]), Op("quantize", [a], [b]), inputs=[x])
    export_integers(graph, tmp_path)
    assert differing(tmp_path, graph, [np.linspace(-9, 9, 300, dtype=np.float32)[None]]) == (900, 0)


def test_checks_hold_what_the_twin_gives(tmp_path: Path) -> None:
    graph = network()
    export_integers(graph, tmp_path)
    with np.load(tmp_path / "check.npz", allow_pickle=False) as file:
        checks = dict(file)
    assert {name: (a.shape[0], a.dtype.name) for name, a in checks.items()} == {
        f"graph_{name}": (16, "float32" if name == "x" else "int8") for name in ("x", "image", "features", "flat", "y")
    }
    found = Interpreter(tmp_path).run([checks["graph_x"]])
    assert all(np.array_equal(found[name], array) for name, array in checks.items())
    assert len(np.unique(checks["graph_image"])) > 200


def test_checks_of_large_models_are_few() -> None:
    x, y = codes_of("x", 512, 512, 1), codes_of("y", 512, 512, 1)
    graph = route(graph_of(Op("mul", [x, x], [y], {"activation": "none"}), inputs=[x]), "reference")
    assert len(_first(graph, [np.zeros((16, 512, 512, 1))])[0]) == 2


_MAIN = r"""
#include <stdio.h>
#include "model.h"

static int32_t twice(int32_t x, int32_t multiplier, int shift) {
    const int left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
    int64_t a = (int64_t)x * ((int64_t)1 << left);
    a = a > INT32_MAX ? INT32_MAX : a < INT32_MIN ? INT32_MIN : a;
    const int32_t h = (int32_t)((a * multiplier + ((int64_t)1 << 30)) >> 31);
    const int32_t mask = (int32_t)(((int64_t)1 << right) - 1);
    return (h >> right) + ((h & mask) > (mask >> 1) + (h < 0 ? 1 : 0));
}

static int32_t once(int32_t x, int32_t multiplier, int shift) {
    return (int32_t)(((int64_t)x * multiplier + ((int64_t)1 << (30 - shift))) >> (31 - shift));
}

static int8_t clip(int32_t v, int32_t least, int32_t greatest) {
    return (int8_t)(v < least ? least : v > greatest ? greatest : v);
}

int main(void) {
    static int8_t x[GRAPH_IMAGE_SIZE], features[GRAPH_FEATURES_SIZE];
    while (fread(x, 1, sizeof x, stdin) == sizeof x) {
        for (int i = 0; i < GRAPH_FEATURES_DIM1; i++)
            for (int j = 0; j < GRAPH_FEATURES_DIM2; j++)
                for (int o = 0; o < GRAPH_FEATURES_DIM3; o++) {
                    int32_t sum = graph_kernel_bias[o];
                    for (int k = 0; k < GRAPH_KERNEL_DIM0; k++)
                        for (int l = 0; l < GRAPH_KERNEL_DIM1; l++) {
                            const int row = i * GRAPH_OP1_STRIDES_0 + k * GRAPH_OP1_DILATION_0 - GRAPH_OP1_PADS_0;
                            const int column = j * GRAPH_OP1_STRIDES_1 + l * GRAPH_OP1_DILATION_1 - GRAPH_OP1_PADS_2;
                            if (row < 0 || row >= GRAPH_IMAGE_DIM1 || column < 0 || column >= GRAPH_IMAGE_DIM2) continue;
                            for (int c = 0; c < GRAPH_KERNEL_DIM2; c++)
                                sum += (x[(row * GRAPH_IMAGE_DIM2 + column) * GRAPH_IMAGE_DIM3 + c] - GRAPH_IMAGE_ZERO_POINT)
                                    * graph_kernel[((k * GRAPH_KERNEL_DIM1 + l) * GRAPH_KERNEL_DIM2 + c) * GRAPH_KERNEL_DIM3 + o];
                        }
                    features[(i * GRAPH_FEATURES_DIM2 + j) * GRAPH_FEATURES_DIM3 + o] = clip(
                        twice(sum, graph_op1_multiplier[o], graph_op1_shift[o]) + GRAPH_FEATURES_ZERO_POINT,
                        GRAPH_OP1_CODE_MIN, GRAPH_OP1_CODE_MAX);
                }
        for (int o = 0; o < GRAPH_Y_DIM1; o++) {
            int32_t sum = graph_matrix_bias[o];
            for (int c = 0; c < GRAPH_FLAT_DIM1; c++)
                sum += (features[c] - GRAPH_FLAT_ZERO_POINT) * graph_matrix[c * GRAPH_MATRIX_DIM1 + o];
            printf("%d ", clip(once(sum, graph_op3_multiplier[o], graph_op3_shift[o]) + GRAPH_Y_ZERO_POINT,
                               GRAPH_OP3_CODE_MIN, GRAPH_OP3_CODE_MAX));
        }
    }
    return 0;
}
"""


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here")
def test_a_program_in_c_gives_the_codes_of_the_twin(tmp_path: Path) -> None:
    graph = network(3)
    export_integers(graph, tmp_path / "model")
    (tmp_path / "main.c").write_text(_MAIN)
    command = ["gcc", "-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-Imodel", "main.c", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    x = RNG(5).uniform(-3, 3, (50, 9, 8, 2)).astype(np.float32)
    expected = run(route(graph, "reference"), [x], every=True)
    fed = expected["image"].astype(np.int8).tobytes()
    done = subprocess.run([tmp_path / "main"], input=fed, capture_output=True, check=True, timeout=60)
    found = np.array(done.stdout.split(), np.int64).reshape(50, 10)
    np.testing.assert_array_equal(found, expected["y"])
    assert len(np.unique(found)) > 100


# A model of Keras -----------------------------------------------------------------------------------------------------


def cnn() -> Any:
    import keras

    layers = keras.layers
    x = keras.Input((13, 12, 3), name="image")
    y = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="first")(x)
    skip = layers.Conv2D(8, 1, name="skip")(y)
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(y)
    y = layers.Add(name="sum")([layers.Conv2D(8, 1, name="point")(y), skip])
    y = layers.Concatenate(name="both")(
        [layers.AveragePooling2D(2, name="mean")(y), layers.MaxPooling2D(2, name="top")(y)]
    )
    y = layers.GlobalAveragePooling2D(name="all")(y)
    y = layers.Dense(7, activation="tanh", name="hidden")(y)
    return keras.Model(x, layers.Dense(3, activation="sigmoid", name="answer")(y), name="small cnn")


@pytest.fixture(scope="module")
def quantized() -> tuple[Any, np.ndarray]:
    import keras

    import qi

    keras.utils.set_random_seed(0)
    x = RNG(0).normal(size=(64, 13, 12, 3)).astype(np.float32)
    return qi.quantize_model(cnn(), "w8a8", x, progress=False)[0], x


def test_a_convolutional_network(quantized: tuple[Any, np.ndarray], tmp_path: Path) -> None:
    from qi.keras.emulate import emulate

    qmodel, x = quantized
    report = export(qmodel, tmp_path / "cnn", format="integers", samples=x)
    kinds = "conv2d depthwise_conv2d add concat avg_pool2d max_pool2d mean dense unary"
    assert set(report.operations) == set(kinds.split()), report
    assert report.float_operations == ()
    reader = Interpreter(tmp_path / "cnn")
    found = reader.run([x])[reader.graph["outputs"][0]]
    codes = emulate(qmodel, x, "reference", raw=True, integer_only=True, progress=False)
    np.testing.assert_array_equal(found, codes)
    assert len(np.unique(codes)) > 20
    assert "'small cnn'" in (tmp_path / "cnn" / "model.h").read_text(encoding="ascii")


def test_its_options(quantized: tuple[Any, np.ndarray], tmp_path: Path) -> None:
    for options in ({"integer_io": True}, {"opset": 18}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            export(quantized[0], tmp_path / "cnn", format="integers", **options)
    assert list(tmp_path.iterdir()) == []


# The report, and what can't be written --------------------------------------------------------------------------------


def test_the_report(tmp_path: Path) -> None:
    report = export_integers(network(), tmp_path / "net")
    assert report.operations == {"conv2d": 1, "reshape": 1, "dense": 1}
    assert (report.target, report.exact, report.samples, report.proof.samples) == ("reference", True, 16, 0)
    assert report.float_file_bytes == 4 * (108 + 6 + 1200 + 10)
    assert report.file_bytes < 1.5 * (108 + 1200)
    assert json.loads(json.dumps(report.to_dict()))["exact"] is None
    text = str(report)
    assert "16 samples (seeded, over the calibrated range) in check.npz" in text
    assert "bit for bit" not in text


def test_packed_weights_take_half(tmp_path: Path) -> None:
    graph = perceptron(sizes=(64, 64, 2))
    w = graph.ops[1].inputs[1]
    w.qparams = type(w.qparams)(
        w.qparams.scale, w.qparams.zero_point, type(w.grid)(4, narrow=True), w.qparams.granularity
    )
    w.data = np.clip(w.data, -7, 7)
    sizes = [export_integers(graph, tmp_path, packed=packed).file_bytes for packed in (False, True)]
    assert sizes[0] - sizes[1] == 64 * 64 // 2
    x = RNG(0).normal(size=(9, 64)).astype(np.float32)
    assert differing(tmp_path, graph, [x]) == (9 * (64 + 64 + 64 + 2), 0)


def test_the_same_bytes_again() -> None:
    x = [np.zeros((1, 9, 8, 2), np.float32)]
    first, second = (written_files(route(network(), "reference"), x)[0] for _ in range(2))
    assert first == second
    assert set(first) == FILES


def test_the_record_reads_well(tmp_path: Path) -> None:
    export_integers(network(), tmp_path)
    lines = (tmp_path / "graph.json").read_text(encoding="utf-8").splitlines()
    found = Interpreter(tmp_path).graph
    assert len(lines) == 2 + len(found) + 2 + len(found["tensors"]) + len(found["operations"])
    assert [json.loads(line.rstrip(",")) for line in lines if line.startswith("  {")] == found["operations"]


def test_float_islands_are_listed(tmp_path: Path) -> None:
    x, y = codes_of("x", 4), codes_of("y", 4)
    graph = graph_of(Op("layer_norm", [x], [y], {"axes": [1], "epsilon": 1e-3}, "norm"), inputs=[x])
    report = export_integers(graph, tmp_path)
    assert report.float_operations == ("layer_norm (norm)",)
    assert "### layer_norm" in (tmp_path / "README.md").read_text(encoding="utf-8")
    domains = [op["domain"] for op in json.loads((tmp_path / "graph.json").read_text())["operations"]]
    assert domains == ["border", "real", "border"]


def test_functions_without_a_kernel_are_tables(tmp_path: Path) -> None:
    x, y = codes_of("x", 4), codes_of("y", 4)
    graph = graph_of(Op("unary", [x], [y], {"function": "silu", "alpha": None}, "swish"), inputs=[x])
    report = export_integers(graph, tmp_path / "net")
    assert (report.operations, report.float_operations) == ({"table": 1}, ())
    assert "### table" in (tmp_path / "net" / "README.md").read_text(encoding="utf-8")


def test_a_former_export_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    export_integers(network(), tmp_path / "net")
    export_integers(perceptron(), tmp_path / "net")
    assert {path.name for path in (tmp_path / "net").iterdir()} == FILES
    assert len(Interpreter(tmp_path / "net").graph["operations"]) == 3
    (tmp_path / "net" / "kernels.c").write_text("int x;")
    with pytest.raises(ConfigError, match=r"kernels\.c"):
        export_integers(network(), tmp_path / "net")


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"format": "other"}', "[" * 100_000, "\xff"])
def test_a_graph_of_somebody_else_stays(tmp_path: Path, text: str) -> None:
    (tmp_path / "graph.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="former export"):
        export_integers(perceptron(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["graph.json"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        export_integers(perceptron(), tmp_path / "net")
    x, y = codes_of("x", None, 4), codes_of("y", None, 4)
    with pytest.raises(UnsupportedError):
        export_integers(graph_of(Op("mul", [x, x], [y], {"activation": "none"}), inputs=[x]), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []
