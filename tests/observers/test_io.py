from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from qi.errors import FileFormatError, InputError
from qi.observers import CalibratedStatistics, Moments, TensorStatistics, load_statistics, save_statistics


def statistics(seed=0, axis=None):
    seen = TensorStatistics(axis, bins=128)
    seen.update(np.random.default_rng(seed).standard_normal((10, 3)))
    return seen


def saved(path):
    save_statistics(path, {"a": statistics()})
    return path.read_bytes()


def test_a_file_round_trips_bit_for_bit(tmp_path):
    given = {
        "block/conv:0": statistics(),
        "Übergang\x00 ../etc": statistics(1, axis=-1),
        "": TensorStatistics(),
        "unopened": TensorStatistics(axis=2),
    }
    path = tmp_path / "stats"
    assert save_statistics(path, given) == path
    assert [file.name for file in tmp_path.iterdir()] == ["stats"]
    loaded = load_statistics(str(path))
    assert list(loaded) == list(given)
    for name, seen in given.items():
        assert loaded[name].axis == seen.axis
        assert set(loaded[name].state()) == set(seen.state())
        for key, array in seen.state().items():
            np.testing.assert_array_equal(array, loaded[name].state()[key])


def test_no_statistics_are_a_file_too(tmp_path):
    save_statistics(tmp_path / "none.npz", {})
    assert load_statistics(tmp_path / "none.npz") == {}


def test_the_file_holds_plain_arrays(tmp_path):
    saved(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz", allow_pickle=False) as archive:
        assert json.loads(archive["header"].tobytes()) == {
            "format": "qi.statistics",
            "version": 2,
            "names": ["a"],
            "inputs": [],
            "channels": [],
        }
        assert archive["0.histogram.counts"].shape == (1, 128)


def moments(seed=0, features=4):
    seen = Moments(2)
    seen.update(np.random.default_rng(seed).standard_normal((20, 2, features)) * 10.0 ** np.arange(features))
    return seen


def calibrated():
    return CalibratedStatistics(
        {"a": statistics(), "inputs.0.x": statistics(1)},
        samples=10,
        inputs={"conv": moments(), "": Moments(3), "inputs": moments(1, 1)},
        channels={"inputs.0.x": statistics(2, axis=-1)},
    )


def assert_same_state(first, second):
    assert set(first) == set(second)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        assert array.dtype == second[name].dtype


def test_inputs_and_channels_round_trip_bit_for_bit(tmp_path):
    given = calibrated()
    found = load_statistics(save_statistics(tmp_path / "s.npz", given))
    assert (found.samples, list(found)) == (10, list(given))
    assert list(found.inputs) == ["conv", "", "inputs"]
    assert list(found.channels) == ["inputs.0.x"]
    for name, seen in given.inputs.items():
        assert_same_state(seen.state(), found.inputs[name].state())
        if seen.count:
            for value in ("mean", "second", "absmax", "absmean"):
                np.testing.assert_array_equal(getattr(seen, value), getattr(found.inputs[name], value))
    assert_same_state(given.channels["inputs.0.x"].state(), found.channels["inputs.0.x"].state())
    assert_same_state(given["inputs.0.x"].state(), found["inputs.0.x"].state())


def test_second_moments_are_kept_as_a_triangle_of_float32(tmp_path):
    save_statistics(tmp_path / "s", calibrated())
    with np.load(tmp_path / "s", allow_pickle=False) as archive:
        second = archive["inputs.0.second"]
    assert (second.shape, second.dtype) == ((2, 10), np.float32)


def version_1(path, given):
    """Rewrite a file of statistics as the first version of the format had them."""
    save_statistics(path, given)
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    path.write_bytes(archive_of(**arrays | {"header": header_of(names=list(given), samples=7)}))


def test_files_of_version_1_are_read(tmp_path):
    given = {"a": statistics(), "b": statistics(1, axis=1)}
    version_1(tmp_path / "s", given)
    found = load_statistics(tmp_path / "s")
    assert (list(found), found.samples, found.inputs, found.channels) == (["a", "b"], 7, {}, {})
    for name, seen in given.items():
        assert_same_state(seen.state(), found[name].state())


@pytest.mark.parametrize(
    ("key", "damage"),
    [
        ("inputs.0.second", lambda a: a * np.float32(3)),
        ("inputs.0.second", lambda a: -a),
        ("inputs.0.second", lambda a: a[:, :-1]),
        ("inputs.0.second", lambda a: a.astype(np.float64)),
        ("inputs.0.second", lambda a: a + np.float32(np.nan)),
        ("inputs.0.sum", lambda a: a * 100),
        ("inputs.0.sum", lambda a: a[:, :-1]),
        ("inputs.0.abs_sum", lambda a: a * 0),
        ("inputs.0.absmax", lambda a: -a),
        ("inputs.0.count", lambda a: -a),
        ("inputs.0.count", lambda a: a * 0),
        ("inputs.0.groups", lambda a: a + 1),
        ("inputs.1.groups", lambda a: a * 0),
        ("inputs.1.count", lambda a: a + 5),
        ("channels.0.histogram.counts", lambda a: a + 1),
        ("channels.0.histogram.axis", lambda a: np.empty(0, np.int64)),
    ],
)
def test_damaged_moments_and_channels_are_refused(tmp_path, key, damage):
    path = tmp_path / "s.npz"
    save_statistics(path, calibrated())
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    arrays[key] = damage(arrays[key])
    path.write_bytes(archive_of(**arrays))
    with pytest.raises(FileFormatError, match=r"s\.npz"):
        load_statistics(path)


@pytest.mark.parametrize("change", [{"drop": "inputs.0.sum"}, {"add": "inputs.7.sum"}, {"add": "inputs.-1.sum"}])
def test_missing_and_foreign_arrays_are_refused(tmp_path, change):
    path = tmp_path / "s.npz"
    save_statistics(path, calibrated())
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: value for key, value in archive.items() if key != change.get("drop")}
    if "add" in change:
        arrays[change["add"]] = arrays["inputs.0.sum"]
    path.write_bytes(archive_of(**arrays))
    with pytest.raises(FileFormatError, match=r"s\.npz"):
        load_statistics(path)


def test_the_origin_is_kept_where_it_is_known(tmp_path):
    path = tmp_path / "s.npz"
    save_statistics(path, CalibratedStatistics({"a": statistics()}, samples=7, model="abc"))
    found = load_statistics(path)
    assert (list(found), found.samples, found.model) == (["a"], 7, "abc")
    save_statistics(path, dict(found))
    assert (load_statistics(path).samples, load_statistics(path).model) == (None, "")


@pytest.mark.parametrize("bad", [{"a": 3}, {1: TensorStatistics()}])
def test_other_things_are_not_saved(tmp_path, bad):
    with pytest.raises(InputError, match="expected TensorStatistics by name"):
        save_statistics(tmp_path / "s", bad)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "s.npz"
    before = saved(path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_statistics(path, {"b": statistics(1)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_statistics(tmp_path / "none")


def archive_of(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def header_of(**changes):
    header = {"format": "qi.statistics", "version": 1, "names": ["a"]} | changes
    return np.frombuffer(json.dumps(header).encode(), np.uint8)


def test_a_name_given_twice_is_refused(tmp_path):
    path = tmp_path / "s"
    save_statistics(path, {"a": statistics(), "b": statistics(1)})
    with np.load(path) as archive:
        arrays = dict(archive)
    path.write_bytes(archive_of(**arrays | {"header": header_of(names=["a", "a"])}))
    with pytest.raises(FileFormatError, match="distinct names"):
        load_statistics(path)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def with_header(content):
    """An archive of one member, whole as far as a zip file goes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("header.npy", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"PK\x03\x04junk",
        npy(np.zeros(3)),
        npy(np.array([{}], dtype=object)),
        archive_of(x=np.zeros(3)),
        archive_of(header=np.array([{}], dtype=object)),
        archive_of(header=np.frombuffer(b"[]", np.uint8)),
        archive_of(header=np.frombuffer(b"{", np.uint8)),
        archive_of(header=np.frombuffer(b"\xff\xfe\xff", np.uint8)),
        archive_of(header=header_of(names=3)),
        archive_of(header=header_of(names=[], samples=-1)),
        archive_of(header=header_of(names=[], samples="7")),
        archive_of(header=header_of(names=[], model=3)),
        with_header(npy(np.zeros(3)).replace(b",), }", b",   }")),
        archive_of(header=header_of(names=[1])),
        archive_of(header=header_of(names=["a", "a"])),
        archive_of(header=header_of()),
        archive_of(header=header_of(), x=np.zeros(1)),
        archive_of(header=header_of(names="a")),
        archive_of(header=header_of(names=[], version=2)),
        archive_of(header=header_of(names=[], inputs=[], channels=[])),
        archive_of(header=header_of(names=[], version=2, inputs=3, channels=[])),
        archive_of(header=header_of(names=[], version=2, inputs=["a"], channels=[])),
        archive_of(header=header_of(names=[], version=True)),
        archive_of(**{"header": header_of(), "7.ema.steps": np.zeros(1)}),
    ],
)
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "stats.npz"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"stats\.npz"):
        load_statistics(path)


def test_formats_and_versions_are_named(tmp_path):
    path = tmp_path / "s"
    path.write_bytes(archive_of(header=header_of(version=3)))
    with pytest.raises(FileFormatError, match=r"expected version 1 to 2 .* received version=3; update"):
        load_statistics(path)
    path.write_bytes(archive_of(header=header_of(format="other")))
    with pytest.raises(FileFormatError, match="another format"):
        load_statistics(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path, share):
    path = tmp_path / "s"
    content = saved(path)
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileFormatError, match="damaged"):
        load_statistics(path)


@given(st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_byte_is_found_or_harmless(tmp_path, data):
    path = tmp_path / "s"
    content = bytearray(saved(path))
    original = load_statistics(path)["a"].state()
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        loaded = load_statistics(path)
    except FileFormatError:
        return
    # Bytes that nobody reads (time stamps and the like), or checksums did their work.
    assert all(np.array_equal(array, original[name]) for name, array in loaded["a"].state().items())


def test_an_array_that_claims_to_be_huge_is_refused(tmp_path):
    path = tmp_path / "s"
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1125899906842624,), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(FileFormatError, match="damaged"):
        load_statistics(path)
