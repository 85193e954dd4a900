"""What Keras 2 wrote into its files, said as Keras 3 takes it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from keras import layers

from qi.errors import UnsupportedError
from qi.keras.legacy import renewed, who_wrote


def layer(kind: str, nodes: Any = (), **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": "it", **config}, "inbound_nodes": list(nodes)}


@pytest.mark.parametrize(
    ("kind", "known", "gone"),
    [
        ("DepthwiseConv2D", {"kernel_size": 3}, {"groups": 1}),
        ("Conv2DTranspose", {"filters": 2, "kernel_size": 3}, {"groups": 1}),
        ("SeparableConv1D", {"filters": 2, "kernel_size": 3}, {"groups": 1, "kernel_initializer": {"class_name": "Ones"}}),
        ("LSTM", {"units": 3}, {"time_major": False}),
        ("MultiHeadAttention", {"num_heads": 2, "key_dim": 3}, {"query_shape": [None, 4, 6], "softmax_robust_masking": False}),
        ("RandomFlip", {"mode": "horizontal"}, {"rng_type": "stateful"}),
        ("SpatialDropout2D", {"rate": 0.1}, {"trainable": True, "noise_shape": None}),
        ("Discretization", {"bin_boundaries": [1.0]}, {"trainable": True}),
    ],
)  # fmt: skip
def test_entries_that_mean_nothing_are_left_out(kind: str, known: dict[str, Any], gone: dict[str, Any]) -> None:
    given = layer(kind, **known, **gone)
    before = json.dumps(given)
    assert renewed(given) == layer(kind, **known)
    assert json.dumps(given) == before
    cls = getattr(layers, kind)
    assert cls.from_config(renewed(given)["config"]).name == "it"
    with pytest.raises((TypeError, ValueError)):  # or there would be nothing to leave out
        cls.from_config(json.loads(before)["config"])


def test_layers_within_layers_are_reached() -> None:
    inner = {"class_name": "LSTM", "config": {"units": 3, "time_major": False}}
    model = {"layers": [layer("Bidirectional", layer=inner), layer("Sequential", layers=[inner])]}
    first, second = renewed(model)["layers"]
    assert first["config"]["layer"]["config"] == second["config"]["layers"][0]["config"] == {"units": 3}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (layer("DepthwiseConv2D", groups=2), r"received 'it' of class DepthwiseConv2D, with \{'groups': 2\}"),
        (layer("LSTM", time_major=True), r"with \{'time_major': True\}"),
        (
            layer("TFOpLambda", function="nn.relu"),
            "of class TFOpLambda, which is an operation of TensorFlow's; do build",
        ),
    ],
)
def test_what_keras_3_has_not(record: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        renewed({"layers": [record]})


def test_tensors_among_keyword_arguments() -> None:
    nodes = [[["a", 0, 0, {"value": ["b", 0, 1], "training": None}]]]
    (node,) = renewed(layer("MultiHeadAttention", nodes))["inbound_nodes"]
    assert node["args"][0]["config"]["keras_history"] == ["a", 0, 0]
    assert node["kwargs"]["value"]["config"]["keras_history"] == ["b", 0, 1]
    assert node["kwargs"]["training"] is None
    for plain in ([["a", 0, 0, {}]], [["a", 0, 0, {"axis": [1, 2, 3]}]], [["a", 0, 0, {}], ["b", 0, 0, {}]]):
        assert renewed(layer("Add", [plain]))["inbound_nodes"] == [plain]


def test_who_wrote_an_archive(tmp_path: Path) -> None:
    for version, told in (
        ("2.15.0", " (Keras 2.15.0 wrote it; do save it there as .h5, which is read)"),
        ("3.8.0", ""),
    ):
        path = tmp_path / f"{version}.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        assert who_wrote(path) == told
    (tmp_path / "no.keras").write_bytes(b"nothing")
    assert who_wrote(tmp_path / "no.keras") == who_wrote(tmp_path / "missing.keras") == ""
