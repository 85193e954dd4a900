from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.cli.data import CALIBRATION, EVALUATION, ArrayFile, check_samples, labelled, samples
from qi.errors import FileFormatError, InputError

X = np.arange(12.0, dtype="float32").reshape(4, 3)


def npz(folder: Path, **arrays: Any) -> ArrayFile:
    np.savez(folder / "data.npz", **arrays)
    return ArrayFile(folder / "data.npz")


def test_samples_go_by_the_best_name(tmp_path: Path) -> None:
    file = npz(tmp_path, x_test=X, x=X + 1, x_calib=X + 2)
    name, x = samples(file, CALIBRATION, ["image"])
    assert (name, x[0, 0]) == ("x_calib", 2)  # type: ignore[index]
    name, x = samples(file, EVALUATION, ["image"])
    assert (name, x[0, 0]) == ("x_test", 0)  # type: ignore[index]


def test_samples_go_by_the_names_of_the_inputs(tmp_path: Path) -> None:
    file = npz(tmp_path, left=X, right=X + 1, x=X)
    name, x = samples(file, CALIBRATION, ["left", "right"])
    assert name == ""
    assert list(x) == ["left", "right"]
    assert samples(file, CALIBRATION, ["right"])[1][0, 0] == 1  # type: ignore[index]


def test_a_single_array_is_mapped_into_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    x = samples(ArrayFile(tmp_path / "x.npy"), CALIBRATION, ["image"])[1]
    assert isinstance(x, np.memmap)
    assert np.array_equal(x, X)


def test_only_the_array_that_is_asked_for_is_read(tmp_path: Path) -> None:
    samples(npz(tmp_path, x=X, names=np.array([{}], dtype=object)), CALIBRATION, [])


@pytest.mark.parametrize(
    ("arrays", "inputs", "expected"),
    [
        ({"images": X}, ["image"], r"called x_calib, x, x_train or x_test; received images in .* np.savez\(path, x="),
        ({"x": X}, ["left", "right"], r"each input of the model \(left, right\); received x .*left=..., right=..."),
        ({"left": X, "right": X[:2]}, ["left", "right"], "as many samples in each array; received left of shape"),
        ({"x": X[:0]}, ["image"], r"at least one sample; received x of shape \(0, 3\)"),
        ({"x": np.float32(1)}, ["image"], "at least one sample"),
        ({"x": np.array(["a", "b"])}, ["image"], "expected numbers; received x of dtype <U1"),
        ({}, ["image"], "received no arrays"),
    ],
)
def test_what_is_no_sample_is_refused(arrays: dict[str, Any], inputs: list[str], expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=expected):
        samples(npz(tmp_path, **arrays), CALIBRATION, inputs)


def test_true_values_go_with_their_samples(tmp_path: Path) -> None:
    y = np.arange(4)
    x, found = labelled(npz(tmp_path, x=X, y=y, x_test=X + 1, y_test=y + 1), ["image"])
    assert (x[0, 0], found[0]) == (1, 1)  # type: ignore[index]
    x, found = labelled(npz(tmp_path, left=X, right=X, y=y), ["left", "right"])
    assert list(x) == ["left", "right"]
    assert np.array_equal(found, y)
    assert np.array_equal(labelled(npz(tmp_path, image=X, y=y), ["image"])[0], X)


def test_missing_or_too_few_true_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="true values called y_test beside x_test; received x_test, y in"):
        labelled(npz(tmp_path, x_test=X, y=np.arange(4)), ["image"])
    with pytest.raises(InputError, match=r"as many samples .* y of shape \(3,\)"):
        labelled(npz(tmp_path, x=X, y=np.arange(3)), ["image"])


def test_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path(tmp_path / "sprung").touch, ()

    trap = np.array([Trap()], dtype=object)
    np.save(tmp_path / "x.npy", trap)
    for file in (ArrayFile(tmp_path / "x.npy"), npz(tmp_path, x=trap)):
        with pytest.raises(FileFormatError, match=r"holds Python objects .* never unpickles"):
            samples(file, CALIBRATION, ["image"])
    assert not (tmp_path / "sprung").exists()


def test_damage_is_named(tmp_path: Path) -> None:
    file = npz(tmp_path, x=np.zeros((1000, 3)))
    whole = file.path.read_bytes()
    for content in (whole[:200], b"no archive", b""):
        file.path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"data.npz' (is damaged|holds Python)"):
            ArrayFile(file.path)
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    file.path.write_bytes(flipped)
    with pytest.raises(FileFormatError, match="is damaged"):
        file["x"]
    np.save(tmp_path / "x.npy", np.zeros(1000))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    with pytest.raises(FileFormatError, match="is damaged"):
        ArrayFile(tmp_path / "x.npy")["x"]
    np.save(tmp_path / "x.npy", np.zeros((3, 4)))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes().replace(b"4), }", b"4   }"))
    with pytest.raises(FileFormatError, match=r"is damaged.*EOF in multi-line"):
        ArrayFile(tmp_path / "x.npy")["x"]


def test_a_directory_that_lies_before_the_file_is_damage(tmp_path: Path) -> None:
    file = npz(tmp_path, x=np.zeros(3))
    damaged = bytearray(file.path.read_bytes())
    damaged[-10:-6] = (2**31).to_bytes(4, "little")  # the length of the directory
    file.path.write_bytes(damaged)
    with pytest.raises(FileFormatError, match="is damaged"):
        ArrayFile(file.path)


def test_what_the_disk_says_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = npz(tmp_path, x=np.zeros(3))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(OSError, match="Input/output error"):
        file["x"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"ending in .npz or .npy"):
        ArrayFile(tmp_path / "x.csv")
    with pytest.raises(InputError, match="doesn't exist"):
        ArrayFile(tmp_path / "x.npz")


def test_the_only_array_needs_no_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", X)
    name, x = samples(ArrayFile(tmp_path / "one.npz"), EVALUATION, ["image"])
    assert name == "arr_0"
    assert np.array_equal(x, X)
    with pytest.raises(InputError, match="true values called y_test or y beside arr_0"):
        labelled(ArrayFile(tmp_path / "one.npz"), ["image"])
    np.savez(tmp_path / "two.npz", X, X)
    for file, inputs in (("one", ["left", "right"]), ("two", ["image"])):
        with pytest.raises(InputError, match="received arr_0"):
            samples(ArrayFile(tmp_path / f"{file}.npz"), EVALUATION, inputs)


def test_a_file_is_looked_into_before_the_model(tmp_path: Path) -> None:
    check_samples(npz(tmp_path, x=X))
    check_samples(npz(tmp_path, x=X[:0], image=X))  # the model decides which is taken
    with pytest.raises(InputError, match="received no arrays"):
        check_samples(npz(tmp_path))
    with pytest.raises(InputError, match="at least one sample"):
        check_samples(npz(tmp_path, x=X[:0]))
    with pytest.raises(FileFormatError, match="holds Python objects"):
        check_samples(npz(tmp_path, x=np.array([{}], dtype=object)))
