"""The committed tables of layers and of families: whole, and made by scripts that work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import families, family_page, layers
from tests.families import FAMILIES
from tests.keras.zoo import LAYERS, USERS, public_layers

KINDS = (("tensorflow", "full"), ("tensorflow", "small"), ("jax", "small"), ("torch", "small"))


def cells(text: str, heading: str = "| layer ") -> dict[str, list[str]]:
    """Rows of the table that begins so, by their first cells."""
    table = text[text.index(heading) :].partition("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {line[0]: line[1:] for line in lines}


def test_every_layer_has_a_row_and_every_empty_cell_a_reason() -> None:
    text = layers.DOCUMENT.read_text(encoding="utf-8")
    rows = cells(text)
    assert sorted(set(rows) - set(USERS)) == sorted(public_layers())
    assert set(USERS) <= set(rows)
    reasons = set(re.findall(r"^(\d+)\. \S", text, re.MULTILINE))
    for name, row in rows.items():
        assert len(row) == len(layers.COLUMNS)
        assert all(row), name
        assert set(re.findall(r"\[(\d+)\]", " ".join(row))) <= reasons, name


def test_layers_table_is_the_page_of_its_results() -> None:
    rows = json.loads(layers.RESULTS.read_text(encoding="utf-8"))
    assert set(rows) == set(LAYERS | USERS)
    made, kept = layers.page(rows), layers.DOCUMENT.read_text(encoding="utf-8")
    assert cells(made) == cells(kept)


@pytest.mark.filterwarnings("ignore")
def test_layers_script_measures(tmp_path: Path) -> None:
    row = layers.measure("Dense", tmp_path)
    assert row | {"PTQ": ""} == dict.fromkeys(layers.COLUMNS, "yes") | {"PTQ": ""}
    assert float(row["PTQ"].removesuffix(" dB")) > 30
    refused = layers.measure("Hashing", tmp_path)
    assert refused["weights"] == "none"
    assert "has no lowering" in refused["ONNX"]
    assert refused["reload"] == "yes"


def test_families_have_rows() -> None:
    rows = json.loads(family_page.RESULTS.read_text(encoding="utf-8"))
    text = family_page.DOCUMENT.read_text(encoding="utf-8")
    assert set(cells(text, "| network ")) == {row["name"] for row in rows.values()} == set(FAMILIES)
    measured = {(row["name"], row["backend"], row["size"]) for row in rows.values()}
    assert measured == {(name, *kind) for name in FAMILIES for kind in KINDS}
    assert text == family_page.page(rows).replace(_made(family_page.page(rows)), _made(text))


def _made(text: str) -> str:
    """The sentence of versions and machines, which are those of who measured."""
    return text.partition("The networks are")[0]


def test_families_script_keeps_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, size: str, backend: str) -> dict[str, Any]:
        times = dict.fromkeys(family_page.STEPS, 1.0)
        return {"name": name, "size": size, "backend": backend, "SQNR": 40.0, "date": "today", **times}

    page = tmp_path / "families.md"
    monkeypatch.setattr(families, "run", run)
    monkeypatch.setattr(families, "RESULTS", tmp_path / "families.json")
    monkeypatch.setattr(families, "DOCUMENT", page)
    families.sweep(["audio"], ["full", "small"], ["tensorflow", "jax"], write=True)
    first = page.read_text()
    families.sweep(["vit"], ["small"], ["torch"], write=True)
    rows = json.loads((tmp_path / "families.json").read_text())
    assert sorted(rows) == ["audio/full/tensorflow", "audio/small/jax", "audio/small/tensorflow", "vit/small/torch"]
    assert set(cells(page.read_text(), "| network ")) == {"audio", "vit"}
    assert set(first.splitlines()) <= set(page.read_text().splitlines())


def test_refusals_stand_once_with_all_that_they_stopped() -> None:
    rows = {
        family_page.key(name, "full", "tensorflow"): {
            "name": name,
            "size": "full",
            "backend": "tensorflow",
            "build": 1.0,
            "LiteRT": "UnsupportedError: no kernels",
            "ONNX": "UnsupportedError: no kernels",
        }
        for name in ("vit", "bert")
    }
    text = family_page.page(rows)
    assert text.count("no kernels") == 1
    assert "vit (LiteRT), vit (ONNX), bert (LiteRT), bert (ONNX): UnsupportedError: no kernels" in text
