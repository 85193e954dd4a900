"""What QuantizationLogger records, writes and prints."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import qi
from qi import BitWidthSchedule, MissingDependencyError, QuantizationLogger, StartQuantization
from qi.keras.sites import quantizer_sites
from qi.keras.variables import to_numpy
from tests.keras.tiny_qat import X, compiled, fit, float_model, qat_model

EAGER = {"run_eagerly": True}


def still_model(recipe: str = "w4a4", **options: Any) -> keras.Model:
    return qat_model(recipe, optimizer=keras.optimizers.SGD(0.0), **EAGER, **options)


def test_a_row_for_each_quantizer_and_epoch() -> None:
    model = qat_model(**EAGER)
    logger = QuantizationLogger()
    fit(model, BitWidthSchedule({1: 3}), logger, epochs=2)
    assert [(row.epoch, row.layer, row.bits) for row in logger.rows] == [
        (epoch, layer, bits)
        for epoch, bits in ((0, 4), (1, 3))
        for layer in ("x_quant", "first", "relu_quant", "last_raw", "last")
    ]
    for row, site in zip(logger.rows[5:], quantizer_sites(model), strict=True):
        now = site.bound.current()
        scale = now.qparams(site.bound.shape).scale
        assert (row.low, row.high) == (now.min_range.min(), now.max_range.max())
        assert row.scale == pytest.approx(scale.mean(), rel=1e-6)
        assert row.scale_range == (scale.min(), scale.max())
        assert (row.clipped is None) == (site.tensor == "output")
    fit(model, logger, epochs=3, initial_epoch=2)
    assert [row.epoch for row in logger.rows] == [0] * 5 + [1] * 5 + [2] * 5


def test_the_share_of_clipped_values() -> None:
    model = still_model()
    sites = {site.layer: site for site in quantizer_sites(model)}
    sites["x_quant"].bound.variables["step"].assign(0.1)  # codes from -7 to 8, or near
    sites["first"].bound.variables["step"].assign(np.full((1, 6), 0.05))
    logger = QuantizationLogger(X)
    fit(model, logger)
    shares = {row.layer: row.clipped for row in logger.rows}
    zero = float(to_numpy(sites["x_quant"].bound.variables["zero_point"]))
    codes = np.round(X.astype(np.float64) / np.float32(0.1)) + zero
    assert shares["x_quant"] == np.mean((codes < 0) | (codes > 15))
    kernel = to_numpy(model.get_layer("first").layer.kernel).astype(np.float64)
    assert shares["first"] == np.mean(np.abs(np.round(kernel / np.float32(0.05))) > 7)
    assert 0.1 < shares["first"] < 0.9
    assert all(site.bound.probe is None for site in sites.values())


def test_a_holder_called_twice_counts_both() -> None:
    config = qi.TrainableQuantizerActivationConfig(qi.QuantizationMethod.SYMMETRIC, 8, {"threshold": 1.0})
    holder = qi.KerasActivationQuantizationHolder(qi.LSQQuantizer(config), name="both")
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(2)(holder(inputs) + holder(inputs * 100.0))
    model = compiled(keras.Model(inputs, outputs), keras.optimizers.SGD(0.0), **EAGER)
    data = np.array([[0.1, 0.2, 0.3, 5.0]], "float32")  # 5 of 8 beyond 1: one as it is, four times a hundred
    logger = QuantizationLogger(data)
    fit(model, logger)
    assert logger.rows[0].clipped == 5 / 8


def test_the_table_is_the_last_epochs_or_one_of_choice() -> None:
    logger = QuantizationLogger(X)
    assert logger.table() == "epoch  layer  tensor  bits  scale  range  clipped"
    fit(still_model("w8a8"), StartQuantization(1), logger, epochs=2)
    lines = logger.table().splitlines()
    assert lines[0].split() == ["epoch", "layer", "tensor", "bits", "scale", "range", "clipped"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["1", "x_quant", "output", "8"],
        ["1", "first", "kernel", "8"],
        ["1", "relu_quant", "output", "8"],
        ["1", "last_raw", "kernel", "8"],
        ["1", "last", "output", "8"],
    ]
    assert "8 (off)" in logger.table(0)
    assert "0 %" in lines[2]
    assert logger.table(7).split() == lines[0].split()


def test_nothing_is_printed_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    fit(still_model(), QuantizationLogger())
    assert capsys.readouterr().out == ""
    logger = QuantizationLogger(verbose=True)
    fit(still_model(), logger)
    assert capsys.readouterr().out == f"\n{logger.table()}\n"


def events(folder: Path) -> dict[str, list[tuple[int, str, np.ndarray]]]:
    """Tag -> (step, plugin, value) of every summary in a folder's files."""
    found: dict[str, list[tuple[int, str, np.ndarray]]] = {}
    for record in tf.data.TFRecordDataset([str(path) for path in sorted(folder.iterdir())]):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            plugin = value.metadata.plugin_data.plugin_name
            found.setdefault(value.tag, []).append((event.step, plugin, tf.make_ndarray(value.tensor)))
    return found


def test_what_tensorboard_gets(tmp_path: Path) -> None:
    logger = QuantizationLogger(X, tmp_path / "logs")
    model = still_model()
    fit(model, logger, epochs=2)
    found = events(tmp_path / "logs")
    for row in logger.rows:
        for name, value in (("bits", 4), ("scale", row.scale), ("low", row.low), ("clipped", row.clipped)):
            step, plugin, given = found[f"{name}/{row.layer}/{row.tensor}"][row.epoch]
            assert (step, plugin, float(given)) == (row.epoch, "scalars", np.float32(value))
    step, plugin, buckets = found["scales/first/kernel"][1]
    assert (step, plugin, buckets.shape, buckets[:, 2].sum()) == (1, "histograms", (30, 3), 6)
    scale = to_numpy(quantizer_sites(model)[1].bound.variables["step"])
    assert (np.float32(buckets[0, 0]), np.float32(buckets[-1, 1])) == (scale.min(), scale.max())
    assert "scales/last/output" not in found


def test_tensorboard_without_tensorflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str, package: str | None = None) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match="log_dir needs tensorflow; do: pip install tensorflow"):
        QuantizationLogger(log_dir=tmp_path)


def test_bad_input() -> None:
    with pytest.raises(qi.ConfigError, match="expected log_dir to be a path or None; received log_dir=3"):
        QuantizationLogger(log_dir=3)
    with pytest.raises(qi.ConfigError, match="expected verbose to be True or False"):
        QuantizationLogger(verbose=2)
    with pytest.raises(qi.ConfigError, match="expected a model with trainable quantizers"):
        fit(compiled(float_model()), QuantizationLogger())
