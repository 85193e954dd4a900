"""What a target does with a model, and what of it Keras can do too."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.errors import ConfigError, UnsupportedError
from qi.ir.graph import Op
from qi.keras.exact_routed import Routed, check_exact, is_dynamic, product_kind, table_of
from qi.keras.graph import flatten_model
from tests.ir.graphs import act, codes_of, weight

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")


def routed(target: str = "litert", recipe: str = "w8a8") -> tuple[Routed, dict[str, Op | None]]:
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="first"), layers.Dense(2, name="last")])
    graph = flatten_model(qi.quantize_model(model, recipe, X, progress=False)[0])
    found = Routed(graph, target, trains=False)
    return found, {call.op.name: found.op_of(call.outputs[0]) for call in graph.calls}


def test_operations_by_value() -> None:
    _, ops = routed()
    kinds = {name: op.kind if op is not None else None for name, op in ops.items()}
    assert [kind for kind in kinds.values() if kind is not None] == ["quantize", "dense", "dense"]
    assert kinds["first"] is None  # fused with the quantizer that follows


def test_what_is_not_covered_is_refused() -> None:
    found, ops = routed()
    with pytest.raises(
        UnsupportedError, match=r"received 'first', a 'dense' for which exact models have no formula; do leave"
    ):
        found.check()
    for op in ops.values():
        found.cover(op)
    found.check()


def test_dynamic_products_must_be_covered_too() -> None:
    found, ops = routed(recipe="w8")
    assert is_dynamic(ops["first"])
    with pytest.raises(UnsupportedError, match=r"received 'first', a 'dynamic_dense' which it does in real numbers"):
        found.check()


@pytest.mark.parametrize(
    ("target", "bits", "rows", "kind"),
    [
        ("litert", 8, 3, "float"),
        ("litert", 4, 4, "float"),
        ("litert", 4, 3, "up"),
        ("onnxruntime", 4, 3, "float"),
        ("reference", 8, 3, "once"),
    ],
)
def test_products(target: str, bits: int, rows: int, kind: str) -> None:
    w = weight("w", np.ones((rows, 2)), [0.1, 0.2])
    w.qparams = qi.core.QParams(
        w.qparams.scale, w.qparams.zero_point, qi.core.IntGrid(bits, narrow=True), w.qparams.granularity
    )
    assert (
        product_kind(Op("dense", [codes_of("x", rows), w], [codes_of("y", 2)], {"activation": "none"}), target) == kind
    )


def test_tables_hold_what_constants_tell_apart() -> None:
    constant = codes_of("c", qparams=act(0.1))
    constant.shape, constant.data = (3,), np.array([1, 2, 3], np.int8)
    op = Op("mul", [codes_of("x", 5, 3), constant], [codes_of("y", 5, 3)], {"activation": "none"})
    table = table_of(op, "litert")
    assert table is not None
    assert table.shape == (256, 1, 3)
    assert table[128 + 10, 0].tolist() == [1, 2, 3]
    op.inputs[1] = codes_of("z", 5, 3)
    assert table_of(op, "litert") is None


def test_unknown_targets() -> None:
    check_exact(None)
    check_exact("onnxruntime")
    with pytest.raises(ConfigError, match="received exact='tflite'"):
        check_exact("tflite")


def test_a_refused_recurrent_layer_has_the_name_its_user_gave_and_a_way_out_that_works(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((5, 3)), layers.LSTM(4, name="memory")])
    x = np.random.default_rng(0).normal(size=(32, 5, 3)).astype("float32")
    told = r"received 'memory' \('memory_raw' once quantized\), a 'lstm' \(recurrent layers have no exact form\); do leave out"
    with pytest.raises(UnsupportedError, match=told):
        qi.quantize_model(model, "w8a8", x, exact="litert", progress=False)
    quantized, _ = qi.quantize_model(model, "w8a8", x, progress=False)
    with pytest.raises(UnsupportedError, match=r"'lstm' of layer 'memory' .*; do export to \.tflite or \.onnx"):
        qi.export(quantized, tmp_path / "memory.json", format="integers")
