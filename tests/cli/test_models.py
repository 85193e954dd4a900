from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.cli.data import CALIBRATION
from qi.cli.models import input_names, load, load_to_compare, load_with_samples, output_names, predict
from qi.errors import FileFormatError, InputError


def test_a_model_is_loaded_fed_and_its_inputs_named(files: Path, samples: dict[str, np.ndarray]) -> None:
    model = load(files / "float.keras")
    assert input_names(model) == ["image"]
    assert predict(model, samples["x_test"], batch_size=10).shape == (64, 6)


def test_several_inputs_are_fed_by_name(two_inputs: Path) -> None:
    model = load(two_inputs)
    assert input_names(model) == ["left", "right"]
    given = {"right": np.ones((5, 3), "float32"), "left": np.ones((5, 4), "float32")}
    expected = model.predict([given["left"], given["right"]], verbose=0)
    assert np.array_equal(predict(model, given), expected)


def test_samples_to_compare_on_may_be_left_out(files: Path, samples: dict[str, np.ndarray]) -> None:
    assert load_to_compare(files / "float.keras", None)[1] is None
    model, found = load_to_compare(files / "float.keras", files / "data.npz")
    assert input_names(model) == ["image"]
    assert np.array_equal(found, samples["x_test"])


def test_samples_come_with_their_name(files: Path, samples: dict[str, np.ndarray]) -> None:
    _, name, found = load_with_samples(files / "float.keras", files / "data.npz", CALIBRATION)
    assert name == " (x_calib)"
    assert np.array_equal(found, samples["x_calib"])


def test_samples_are_looked_for_before_a_framework_is_loaded(files: Path, tmp_path: Path, no_packages: Any) -> None:
    no_packages("keras", "tensorflow")
    with pytest.raises(InputError, match=r"no\.npz"):
        load_to_compare(files / "float.keras", tmp_path / "no.npz")


def test_results_go_by_the_names_of_the_outputs(files: Path) -> None:
    result = np.zeros((2, 6))
    assert output_names(load(files / "float.keras"), result) == {"head": result}


def test_a_model_without_known_inputs_has_no_names() -> None:
    class Unbuilt:
        inputs = None

    assert input_names(Unbuilt()) == []


def test_samples_of_another_shape_are_refused(files: Path) -> None:
    with pytest.raises(
        InputError, match=r"'tiny' can run on, of shape \[\(None, 8, 8, 1\)\]; received 'x' of shape \(4, 3\)"
    ):
        predict(load(files / "float.keras"), np.zeros((4, 3), "float32"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", None])
def test_a_damaged_file_is_no_model(content: bytes | None, files: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.keras"
    whole = (files / "float.keras").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(FileFormatError, match=r"bad.keras"):
        load(path)


def test_a_missing_file_is_named_without_loading_a_framework(tmp_path: Path, no_packages: Any) -> None:
    no_packages("keras", "tensorflow")
    with pytest.raises(InputError, match=r"a file with a model; received .*no.keras', which doesn't exist"):
        load(tmp_path / "no.keras")
