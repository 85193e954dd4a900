from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qi.ledger.numbers import format_bytes


def test_a_quantized_file_shows_codes_and_sizes(files: Path, qi_command: Callable[..., Any]) -> None:
    path = files / "quantized.keras"
    done = qi_command("inspect", path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("tiny: 910 parameters in ")
    assert "2 of 4 weights quantized" in done.out
    assert f"{path}: {format_bytes(path.stat().st_size)} on disk" in done.out
    assert "8 bits symmetric, per channel (axis 3)" in done.out


def test_a_float_file_says_that_nothing_is_quantized(files: Path, qi_command: Callable[..., Any]) -> None:
    assert "nothing is quantized; the weights take 3.64 kB" in qi_command("inspect", files / "float.keras").out


def test_json_holds_all_there_is_to_know(files: Path, qi_command: Callable[..., Any]) -> None:
    found = json.loads(qi_command("inspect", files / "quantized.keras", "--json").out)
    assert found["file_bytes"] == (files / "quantized.keras").stat().st_size
    assert (found["weights"], found["quantized_weights"]) == (4, 2)
    assert [path.partition("/")[2] for path in found["unquantized"]] == ["bias", "bias"]
    (kernel, _) = next(layer for layer in found["layers"] if layer["type"] == "Conv2D")["tensors"]
    assert (kernel["name"], kernel["bits"], kernel["shape"]) == ("kernel", 8, [3, 3, 1, 4])
    assert 0 < kernel["scale_min"] <= kernel["scale_max"]


def test_what_is_no_model_is_refused(tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    (tmp_path / "a.keras").write_text("no model")
    done = qi_command("inspect", tmp_path / "a.keras")
    assert done.code == 2
    assert "expected a .keras archive" in done.error
