"""The demo's data and model: complete, licensed, small, and loadable with nothing but numpy and Keras."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qi.demo import assets
from qi.demo.assets import demo_model_path, load_demo_data
from qi.errors import FileFormatError


@pytest.fixture(scope="module")
def data() -> assets.DemoData:
    return load_demo_data()


def test_data_have_the_documented_shapes_types_and_ranges(data: assets.DemoData) -> None:
    assert data.x_calib.shape == (500, 28, 28, 1)
    assert data.x_test.shape == (2000, 28, 28, 1)
    for x in (data.x_calib, data.x_test):
        assert x.dtype == np.float32
        assert x.min() == 0.0
        assert x.max() == 1.0
    for y in (data.y_calib, data.y_test):
        assert y.dtype == np.int64


def test_every_class_is_there_equally_often(data: assets.DemoData) -> None:
    assert len(data.class_names) == 10
    assert np.bincount(data.y_calib).tolist() == [50] * 10
    assert np.bincount(data.y_test).tolist() == [200] * 10


def test_no_test_image_is_a_calibration_image(data: assets.DemoData) -> None:
    calib = {image.tobytes() for image in data.x_calib}
    assert not any(image.tobytes() in calib for image in data.x_test)


def test_the_licence_is_stated_with_the_data_and_in_full_beside_them(data: assets.DemoData) -> None:
    text = Path(assets.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert "Copyright (c) 2017 Zalando SE" in data.licence
    assert "MIT" in data.licence
    assert "Copyright (c) 2017 Zalando SE" in text
    assert "Permission is hereby granted, free of charge" in text


def test_both_files_together_stay_below_one_and_a_half_megabytes() -> None:
    sizes = [demo_model_path().stat().st_size, demo_model_path().with_name("data.npz").stat().st_size]
    assert sum(sizes) < 1_500_000


def test_no_framework_is_imported() -> None:
    code = (
        "import sys, qi.demo; qi.demo.load_demo_data(); qi.demo.demo_model_path();"
        "sys.exit(bool({'tensorflow', 'keras', 'torch', 'jax'} & set(sys.modules)))"
    )
    root = Path(assets.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(assets.resources, "files", lambda package: tmp_path)
    with pytest.raises(FileFormatError, match=r"model\.keras"):
        demo_model_path()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no_archive", "keys"])
def test_a_damaged_data_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str) -> None:
    whole = bytearray(demo_model_path().with_name("data.npz").read_bytes())
    damaged = tmp_path / "data.npz"
    if damage == "truncated":
        damaged.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        whole[2000:3000] = bytes(1000)
        damaged.write_bytes(whole)
    elif damage == "no_archive":
        damaged.write_bytes(b"")
    else:
        np.savez(damaged, x_calib=np.zeros((1, 28, 28), np.uint8))
    monkeypatch.setattr(assets.resources, "files", lambda package: tmp_path)
    with pytest.raises(FileFormatError, match="damaged"):
        load_demo_data()


def test_the_model_file_holds_no_optimizer_and_no_code_of_ours() -> None:
    with zipfile.ZipFile(demo_model_path()) as archive:
        config = archive.read("config.json").decode()
        weights = archive.getinfo("model.weights.h5").file_size
    assert "qi>" not in config
    assert "optimizer" not in config
    assert weights < 260_000  # the optimizer's state would triple it


def test_keras_alone_loads_the_model_and_it_classifies_well(data: assets.DemoData) -> None:
    keras = pytest.importorskip("keras")
    model = keras.models.load_model(demo_model_path())
    assert not model.compiled
    assert {w.dtype for w in model.weights} == {"float32"}
    assert 20_000 <= model.count_params() <= 60_000
    kinds = {type(layer).__name__ for layer in model.layers}
    assert kinds >= {"Conv2D", "BatchNormalization", "ReLU", "DepthwiseConv2D", "SeparableConv2D", "Add"}
    assert kinds >= {"MaxPooling2D", "GlobalAveragePooling2D", "Dense", "Dropout", "Activation"}
    predicted = model.predict(data.x_test, batch_size=250, verbose=0).argmax(-1)
    assert np.mean(predicted == data.y_test) >= 0.92
