"""Files of named arrays."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qi.engine.containers import Layout, open_arrays, writing
from qi.errors import ConfigError, FileFormatError, InputError, UnsupportedError

ARRAYS = {
    "a/b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "empty": np.zeros((0, 2), np.int8),
    "c": np.array(5, np.int64),
    "flags": np.array([True, False]),
}


def layout_of(arrays):
    return {name: Layout(array.dtype, array.shape) for name, array in arrays.items()}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_come_back(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    with writing(path, layout_of(ARRAYS), {"k": "v"}) as sink:
        for name, array in ARRAYS.items():
            for row in array if array.ndim else [array]:
                sink.write(name, row)
    found = open_arrays(path)
    assert found.metadata["k"] == "v"
    assert list(found) == list(ARRAYS)
    assert found.layout == layout_of(ARRAYS)
    other = load_file(path) if suffix == ".safetensors" else np.load(path)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
        np.testing.assert_array_equal(other[name], array, strict=True)


def test_files_of_the_safetensors_library_are_read(tmp_path):
    save_file(ARRAYS, tmp_path / "m.safetensors", metadata={"format": "np"})
    found = open_arrays(tmp_path / "m.safetensors")
    assert found.metadata == {"format": "np"}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    with pytest.raises(KeyError):
        found["other"]


def test_a_part_of_what_was_announced_is_no_file(tmp_path):
    path = tmp_path / "m.npz"
    for broken in (
        lambda sink: None,
        lambda sink: sink.write("a/b", np.zeros(5, np.float32)),
        lambda sink: sink.write("a/b", np.zeros(7, np.float32)),
        lambda sink: sink.write("c", np.zeros((), np.int64)),
        lambda sink: sink.write("unknown", np.zeros(1)),
    ):
        with pytest.raises(InputError), writing(path, layout_of(ARRAYS), {}) as sink:
            broken(sink)
        assert list(tmp_path.iterdir()) == []


def test_what_a_kind_of_file_can_not_hold_is_refused(tmp_path):
    with (
        pytest.raises(ConfigError, match=r"expected one array for a \.npy file"),
        writing(tmp_path / "m.npy", layout_of(ARRAYS), {}),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="dtype complex64"),
        writing(tmp_path / "m.safetensors", {"z": Layout(np.dtype("complex64"), (1,))}, {}),
    ):
        pass
    for use in (open_arrays, lambda path: writing(path, {}, {}).__enter__()):
        with pytest.raises(ConfigError, match=r"suffix of .*; received 'm\.pt'"):
            use(tmp_path / "m.pt")


def header(text, data=b""):
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"t": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 10**15) + b"{}",
        header(b"{"),
        header(b"[" * 100_000),
        header([]),
        header({"t": 5}),
        header(tensor("object"), b"\0" * 4),
        header(tensor(shape=(-1,)), b"\0" * 4),
        header(tensor(shape=(True,)), b"\0" * 4),
        header(tensor(shape=(2**62, 4)), b"\0" * 4),
        header(tensor(shape=(1,) * 100), b"\0" * 4),
        header(tensor(offsets=(0, 8)), b"\0" * 4),
        header(tensor(offsets=(4, 0)), b"\0" * 4),
        header(tensor(offsets=(-4, 0)), b"\0" * 4),
        header(tensor(offsets=(0, 4.0)), b"\0" * 4),
        header(tensor(), b"\0" * 3),
        header({"t": {"dtype": "F32", "shape": None, "data_offsets": [0, 4]}}, b"\0" * 4),
    ],
)
def test_damaged_safetensors_files_give_one_kind_of_error(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"received a damaged one, 'm\.safetensors'"):
        open_arrays(tmp_path / "m.safetensors")


def test_damaged_numpy_files_give_one_kind_of_error(tmp_path):
    np.savez(tmp_path / "good.npz", **ARRAYS)
    good = (tmp_path / "good.npz").read_bytes()
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "zip.npy").write_bytes(good)
    (tmp_path / "short.npz").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.npz").write_bytes(b"hello")
    (tmp_path / "none.npy").write_bytes(b"")
    np.savez(tmp_path / "objects.npz", o=np.array([{}], object))
    for name in ("objects.npy", "zip.npy", "short.npz", "text.npz", "none.npy", "objects.npz"):
        with pytest.raises(FileFormatError, match="Python objects" if name == "objects.npz" else "damaged"):
            open_arrays(tmp_path / name)


@pytest.mark.parametrize("bad", [None, 5, [], b"m.npz"], ids=str)
def test_paths(bad):
    for use in (open_arrays, lambda path: writing(path, {}, {}).__enter__()):
        with pytest.raises(UnsupportedError, match="expected the path of a file; received"):
            use(bad)


def test_a_damaged_member_is_found_when_it_is_read(tmp_path):
    np.savez(tmp_path / "m.npz", a=np.arange(1000, dtype=np.float64))
    data = bytearray((tmp_path / "m.npz").read_bytes())
    data[2000] ^= 0xFF
    (tmp_path / "m.npz").write_bytes(data)
    with pytest.raises(FileFormatError, match="CRC"):
        open_arrays(tmp_path / "m.npz")["a"]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_any_changed_byte_gives_arrays_or_one_kind_of_error(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    arrays = {"array": np.arange(12, dtype=np.float32)}
    with writing(path, layout_of(arrays), {}) as sink:
        sink.write("array", arrays["array"])
    good, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        data = bytearray(good)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            found = open_arrays(path)
            assert all(isinstance(found[name], np.ndarray) for name in found)
        except FileFormatError:
            refused += 1
    assert refused > 50


def test_a_missing_file_is_python_s_own_error(tmp_path):
    for suffix in ("npy", "npz", "safetensors"):
        with pytest.raises(FileNotFoundError):
            open_arrays(tmp_path / f"no.{suffix}")
