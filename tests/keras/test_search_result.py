"""What a search gives, as text, picture and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qi.errors import InputError
from qi.keras.search_result import SearchPoint, SearchResult, WeightChoice
from qi.recipes import Recipe, Rule, TensorSpec, load
from qi.recipes.io import from_mapping


def point(bits: tuple[int, int], loss: float, bound: float | None = None) -> SearchPoint:
    rules = tuple(Rule(name, weights=TensorSpec(bits=n)) for name, n in zip(("one", "two"), bits, strict=True))
    names = {"one/kernel": f"w{bits[0]}", "two/kernel": f"w{bits[1]}"}
    costs = {"bytes": 10.0 * bits[0] + 1000 * bits[1], "bits": sum(bits) / 2}
    return SearchPoint(costs, loss, bound, names, Recipe("found", rules=rules))


@pytest.fixture
def result() -> SearchResult:
    weights = (
        WeightChoice("one/kernel", 80, 640, "w8", 8, 80, {"w4": 0.5, "w8": 0.01}),
        WeightChoice("two/kernel", 8000, 8000, "w4", 4, 4000, {"w4": 0.25, "w8": 0.001}),
    )
    return SearchResult(
        model="small",
        metric="task",
        budgets={"bytes": 5000.0},
        chosen=point((8, 4), 0.26, 0.26),
        front=(point((4, 4), 0.75, 0.75), point((8, 4), 0.26, 0.26), point((8, 8), 0.011, 0.01)),
        uniform={"w4": point((4, 4), 0.75), "w8": point((8, 8), 0.011)},
        weights=weights,
        seconds=1.25,
    )


def test_gaps(result: SearchResult) -> None:
    assert [p.gap for p in result.front] == pytest.approx([0, 0, 1 / 11])
    assert result.uniform["w4"].gap is None
    assert result.recipe.rules[0].weights == TensorSpec(bits=8)


def test_the_table_shows_weights_and_points_in_the_order_of_cost(result: SearchResult) -> None:
    lines = result.table().splitlines()
    assert lines[0] == "small: bytes <= 5,000; losses: task; 1.2 s"
    assert lines[3].split() == ["one/kernel", "80", "w8", "80", "0.01"]
    assert [line.split()[0] for line in lines[7:]] == ["all", "front", "front", "chosen", "all", "front"]
    assert lines[-1].split() == ["front", "8,080", "8", "0.011", "9.1", "%"]
    assert str(result) == result.table()


def test_all_is_saved_in_one_file(result: SearchResult, tmp_path: Path) -> None:
    assert result.save(tmp_path / "found.json") == tmp_path / "found.json"
    data = json.loads((tmp_path / "found.json").read_text())["_data"]
    assert data["chosen"]["candidates"] == {"one/kernel": "w8", "two/kernel": "w4"}
    assert data["weights"][1]["losses"] == {"w4": 0.25, "w8": 0.001}
    assert from_mapping(data["front"][0]["recipe"]) == result.front[0].recipe


def test_a_folder_gets_recipes_that_load(result: SearchResult, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "out" / "found")
    assert sorted(path.name for path in folder.iterdir()) == [
        "front_01.json", "front_02.json", "front_03.json", "recipe.json", "search.json",
    ]  # fmt: skip
    assert load(folder / "recipe.json") == result.recipe
    assert load(folder / "front_03.json") == result.front[2].recipe


@pytest.mark.parametrize(("name", "start"), [("front.png", b"\x89PNG"), ("front.svg", b"<?xml")])
def test_the_front_is_drawn(result: SearchResult, tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    assert result.plot(tmp_path / name).read_bytes().startswith(start)


def test_another_kind_of_picture_is_refused(result: SearchResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ending in \.png or \.svg; received .*front\.pdf"):
        result.plot(tmp_path / "front.pdf")
    assert list(tmp_path.iterdir()) == []
