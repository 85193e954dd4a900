"""Files of arrays quantized in pieces, and back."""

from __future__ import annotations

import json
import tracemalloc
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qi.core import PerGroup, QTensor
from qi.engine import (
    QuantizationConfig,
    Quantizer,
    dequantize_file,
    files,
    load_quantized,
    quantize_file,
)
from qi.engine.containers import open_arrays
from qi.errors import ConfigError, FileFormatError, InputError, QuantizationWarning

CONFIGS = [
    QuantizationConfig(),
    QuantizationConfig(quantization_type="int4", per_channel=True),
    QuantizationConfig(num_bits=3, symmetric=False),
    QuantizationConfig(quantization_type="uint8", symmetric=False),
    QuantizationConfig(quantization_type="uint8"),
    QuantizationConfig(quantization_type="int4", granularity=PerGroup(0, 32)),
    QuantizationConfig(quantization_type="int16", num_bits=11, granularity="per_channel"),
    QuantizationConfig(use_percentile=True),
]


@pytest.fixture
def checkpoint():
    rng = np.random.default_rng(0)
    return {
        "dense/kernel": rng.normal(size=(70, 33)).astype(np.float32),
        "conv/kernel": rng.normal(size=(3, 3, 7, 50)).astype(np.float16),
        "brain": rng.normal(size=(40, 40)).astype(ml_dtypes.bfloat16),
        "double": rng.normal(size=(17, 5)),
        "bias": rng.normal(size=33).astype(np.float32),
        "steps": np.arange(6).reshape(2, 3),
        "none": np.zeros((0, 4), np.float32),
        "scalar": np.array(3.0, np.float32),
    }


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.quantization_type}-{c.num_bits}-{c.granularity}")
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_checkpoint_in_pieces_is_what_the_quantizer_makes_of_each_array(
    tmp_path, monkeypatch, checkpoint, config, suffix
):
    monkeypatch.setattr(files, "PIECE", 100)
    save_file(checkpoint, tmp_path / "model.safetensors")
    report = quantize_file(tmp_path / "model.safetensors", tmp_path / f"small{suffix}", config, progress=False)
    dequantize_file(tmp_path / f"small{suffix}", tmp_path / "back.safetensors", progress=False)
    loaded, back = load_quantized(tmp_path / f"small{suffix}"), load_file(tmp_path / "back.safetensors")
    assert set(loaded) == set(back) == set(checkpoint) == {row.name for row in report.rows}
    for name, array in checkpoint.items():
        got = loaded[name]
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        if array.ndim < 2 or array.dtype.kind == "i":
            np.testing.assert_array_equal(got, array)
            np.testing.assert_array_equal(back[name], array)
            continue
        expected = Quantizer(config).quantize(array, return_tensor=True)
        assert isinstance(got, QTensor)
        np.testing.assert_array_equal(got.codes, expected.codes)
        assert got.qparams.scale.tobytes() == np.broadcast_to(expected.qparams.scale, got.qparams.scale.shape).tobytes()
        np.testing.assert_array_equal(back[name], got.dequantize().astype(array.dtype))


def test_the_report_says_what_became_of_each_array(tmp_path, checkpoint):
    checkpoint.pop("brain")  # numpy itself can't store it
    np.savez(tmp_path / "model.npz", **checkpoint)
    config = QuantizationConfig(skip_layers=["double"], quantize_bias=False)
    report = quantize_file(tmp_path / "model.npz", tmp_path / "small.npz", config, progress=False)
    rows = {row.name: row for row in report.rows}
    assert rows["double"].reason == "skipped by the configuration"
    assert rows["bias"].reason == "fewer than 2 dimensions"
    assert rows["steps"].reason == "no real numbers of 16, 32 or 64 bits"
    assert rows["dense/kernel"].bits == 8
    assert rows["dense/kernel"].stored_nbytes == 70 * 33 + 4
    assert "dense/kernel  70x33" in str(report)
    stored = sum(member.file_size for member in zipfile.ZipFile(tmp_path / "small.npz").infolist())
    assert sum(row.stored_nbytes for row in report.rows) <= stored


def test_layers_may_have_widths_of_their_own(tmp_path):
    arrays = {"a": np.ones((2, 2), np.float32), "b": np.ones((2, 2), np.float32)}
    save_file(arrays, tmp_path / "model.safetensors")
    config = QuantizationConfig(enable_mixed_precision=True, custom_quantization_config={"b": {"type": "int4"}})
    quantize_file(tmp_path / "model.safetensors", tmp_path / "small.safetensors", config)
    loaded = load_quantized(tmp_path / "small.safetensors")
    assert (loaded["a"].bits, loaded["b"].bits) == (8, 4)


@pytest.mark.parametrize("shape", [(), (5,), (0,), (1, 300), (3, 1, 200)])
def test_one_array_of_any_shape(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(files, "PIECE", 64)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    quantize_file(tmp_path / "x.npy", tmp_path / "q.npz", QuantizationConfig(quantization_type="int4"))
    dequantize_file(tmp_path / "q.npz", tmp_path / "y.npy")
    y = np.load(tmp_path / "y.npy")
    np.testing.assert_array_equal(y, Quantizer(QuantizationConfig(quantization_type="int4")).quantize_dequantize(x))


def test_memory_stays_below_the_array(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (48, 1 << 20))
    x[:, ::4096] = np.arange(48)[:, None]
    del x
    tracemalloc.start()
    try:
        quantize_file(tmp_path / "x.npy", tmp_path / "q.safetensors", progress=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * files.PIECE * 4 < 48 << 22  # bytes: four pieces; the array has twelve


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_column_major_arrays_keep_their_values(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(files, "PIECE", 16)
    x = np.asfortranarray(np.arange(77, dtype=np.float32).reshape(11, 7))
    if suffix == ".npy":
        np.save(tmp_path / "x.npy", x)
    else:
        np.savez(tmp_path / "x.npz", array=x)
    quantize_file(tmp_path / f"x{suffix}", tmp_path / "q.safetensors")
    np.testing.assert_array_equal(load_quantized(tmp_path / "q.safetensors")["array"].codes, Quantizer().quantize(x))


def test_nan_and_infinity_are_counted_or_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.float32([[1, np.nan], [np.inf, -1]]))
    (row,) = quantize_file(tmp_path / "x.npy", tmp_path / "q.npz").rows
    assert (row.clipped, row.nans) == (1, 1)
    (tmp_path / "r.npz").write_bytes(b"old")
    with pytest.raises(InputError, match="expected no NaN"):
        quantize_file(tmp_path / "x.npy", tmp_path / "r.npz", QuantizationConfig(error_on_nan=True))
    assert (tmp_path / "r.npz").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q.npz", "r.npz", "x.npy"]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (QuantizationConfig(quantization_type="float16"), "expected an integer type for 'w'"),
        (QuantizationConfig(granularity=PerGroup(2, 4)), "channel_axis from -2 to 1"),
    ],
)
def test_configurations_that_no_file_can_have_are_refused(tmp_path, config, match):
    save_file({"w": np.ones((4, 4), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises((ConfigError, InputError), match=match):
        quantize_file(tmp_path / "model.safetensors", tmp_path / "q.safetensors", config)
    assert not (tmp_path / "q.safetensors").exists()


def test_a_channel_dimension_is_checked_and_used_or_warned_about(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.savez(tmp_path / "m.npz", w=x, bias=x[0])
    layers = {"enable_mixed_precision": True, "custom_quantization_config": {"w": {"per_channel": True}}}
    for config in (QuantizationConfig(per_channel=True), QuantizationConfig(**layers)):
        quantize_file(tmp_path / "m.npz", tmp_path / "q.npz", config, channel_dim=1)  # without a warning
        assert load_quantized(tmp_path / "q.npz")["w"].params.scale.shape == (1, 4)
    with pytest.warns(QuantizationWarning, match="channel_dim=1 has no effect: the configuration isn't") as caught:
        quantize_file(tmp_path / "m.npz", tmp_path / "q.npz", channel_dim=1)
    assert caught[0].filename == __file__
    for config in (QuantizationConfig(), QuantizationConfig(per_channel=True)):
        for bad in (2, -3, "0"):
            with pytest.raises(InputError, match="array 'w': expected channel_dim to be an integer from -2 to 1"):
                quantize_file(tmp_path / "m.npz", tmp_path / "bad.npz", config, channel_dim=bad)
    assert not (tmp_path / "bad.npz").exists()


def test_threads_are_checked_where_nothing_is_computed(tmp_path):
    np.savez(tmp_path / "m.npz", steps=np.arange(3))
    for bad in (0, "2", None):
        with pytest.raises(InputError, match="expected num_threads"):
            quantize_file(tmp_path / "m.npz", tmp_path / "q.npz", num_threads=bad)
        with pytest.raises(InputError, match="expected num_threads"):
            dequantize_file(tmp_path / "m.npz", tmp_path / "q.npz", num_threads=bad)


def test_an_archive_with_python_objects_is_refused_whole(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.ones((2, 2), np.float32), names=np.array([{}], object))
    with pytest.raises(
        FileFormatError, match=r"received 'm\.npz', whose member 'names\.npy' holds Python objects; do: "
    ):
        quantize_file(tmp_path / "m.npz", tmp_path / "q.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


@pytest.mark.parametrize("fields", [{"use_percentile": True}, {"outlier_threshold": 2.0}], ids=str)
def test_percentiles_and_outliers_are_found_in_pieces(tmp_path, monkeypatch, fields):
    monkeypatch.setattr(files, "PIECE", 1 << 14)
    x = np.random.default_rng(0).normal(size=(40, 10_000)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    tracemalloc.start()
    try:
        quantize_file(tmp_path / "x.npy", tmp_path / "q.safetensors", QuantizationConfig(**fields), progress=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20 < x.nbytes


def test_names_that_would_meet_are_refused(tmp_path):
    save_file({"w": np.ones((2, 2), np.float32), "w.scale": np.ones(2, np.float32)}, tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match=r"expected names that stay apart; received an array called 'w\.scale'"):
        quantize_file(tmp_path / "m.safetensors", tmp_path / "q.npz")


def test_files_that_qi_did_not_write_are_refused(tmp_path):
    save_file({"w": np.ones((2, 2), np.float32)}, tmp_path / "m.safetensors")
    for read in (load_quantized, lambda path: dequantize_file(path, tmp_path / "out.npz")):
        with pytest.raises(FileFormatError, match="its metadata: "):
            read(tmp_path / "m.safetensors")


def test_damaged_metadata_and_arrays_give_errors(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    config = QuantizationConfig(quantization_type="int4", per_channel=True)
    quantize_file(tmp_path / "x.npy", tmp_path / "q.npz", config)
    with zipfile.ZipFile(tmp_path / "q.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    facts = json.loads(json.loads(members["qi.json"])["qi"])
    own = facts["arrays"]["array"]
    changes = [
        {"version": 99},
        {"version": True},
        {"version": 1.0},
        {"arrays": []},
        *({"arrays": {"array": {**own, **change}}} for change in (
            {"bits": 5}, {"bits": "4"}, {"shape": [3, 5]}, {"shape": [-3, -4]}, {"shape": [10**18, 10**18]},
            {"shape": "34"}, {"shape": [3, 4.0]}, {"shape": [3, True]}, {"shape": {"3": 1, "4": 1}}, {"bits": True},
            {"signed": 1}, {"signed": "no"}, {"signed": None}, {"zero_point": 0}, {"zero_point": ""}, {"dtype": []},
            {"dtype": "object"}, {"granularity": {"PerChannel": {"axis": 9}}}, {"granularity": {"Any": {}}},
        )),
        {"arrays": {"other": own}},
    ]  # fmt: skip
    for change in changes:
        with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
            for name, data in members.items():
                text = json.dumps({"qi": json.dumps({**facts, **change})})
                archive.writestr(name, text if name == "qi.json" else data)
        with pytest.raises(FileFormatError):
            load_quantized(tmp_path / "bad.npz")


@pytest.mark.parametrize("granularity", ["per_channel", PerGroup(-1, 64, 0)])
def test_one_channel_or_group_is_no_special_case(tmp_path, granularity):
    x = np.arange(-32, 32, dtype=np.float32).reshape(1, 64)
    save_file({"head": x}, tmp_path / "m.safetensors")
    config = QuantizationConfig(granularity=granularity)
    quantize_file(tmp_path / "m.safetensors", tmp_path / "q.npz", config)
    dequantize_file(tmp_path / "q.npz", tmp_path / "back.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "back.npz")["head"], Quantizer(config).quantize_dequantize(x))


def test_an_array_called_like_a_zero_point_is_refused(tmp_path):
    np.savez(tmp_path / "m.npz", **{"foo": np.eye(2, dtype=np.float32), "foo.zero_point": np.array([[5]], np.int32)})
    with pytest.raises(ConfigError, match=r"received an array called 'foo\.zero_point'"):
        quantize_file(tmp_path / "m.npz", tmp_path / "q.npz")


def test_a_lost_zero_point_is_told(tmp_path):
    np.save(tmp_path / "x.npy", np.float32([[0.0, 1.0], [2.0, 3.0]]))
    quantize_file(tmp_path / "x.npy", tmp_path / "q.npz", QuantizationConfig(symmetric=False))
    with zipfile.ZipFile(tmp_path / "q.npz") as archive, zipfile.ZipFile(tmp_path / "cut.npz", "w") as cut:
        for name in archive.namelist():
            if "zero_point" not in name:
                cut.writestr(name, archive.read(name))
    with pytest.raises(FileFormatError, match=r"array\.zero_point"):
        load_quantized(tmp_path / "cut.npz")


def test_dtypes_that_numpy_files_can_not_hold_are_refused(tmp_path):
    save_file(
        {"w": np.ones((2, 2), ml_dtypes.bfloat16), "b": np.ones(2, ml_dtypes.bfloat16)}, tmp_path / "m.safetensors"
    )
    quantize_file(tmp_path / "m.safetensors", tmp_path / "q.safetensors")
    with pytest.raises(ConfigError, match=r"do: write a \.safetensors file"):
        quantize_file(tmp_path / "m.safetensors", tmp_path / "q.npz")
    with pytest.raises(ConfigError, match=r"do: write a \.safetensors file"):
        dequantize_file(tmp_path / "q.safetensors", tmp_path / "back.npz")


def test_other_reals_are_copied(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.ones((2, 2), np.longdouble))
    (row,) = quantize_file(tmp_path / "m.npz", tmp_path / "q.npz").rows
    assert row.reason == "no real numbers of 16, 32 or 64 bits"
    np.testing.assert_array_equal(load_quantized(tmp_path / "q.npz")["w"], np.ones((2, 2), np.longdouble))


def test_metadata_of_the_checkpoint_stay(tmp_path):
    save_file({"w": np.ones((2, 2), np.float32)}, tmp_path / "m.safetensors", metadata={"format": "pt"})
    quantize_file(tmp_path / "m.safetensors", tmp_path / "q.safetensors")
    dequantize_file(tmp_path / "q.safetensors", tmp_path / "back.safetensors")
    for name in ("q.safetensors", "back.safetensors"):
        assert open_arrays(tmp_path / name).metadata["format"] == "pt"
