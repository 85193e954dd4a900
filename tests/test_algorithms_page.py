"""docs/algorithms.md names every algorithm as it is registered: stage, needs, options, and a source that its module names."""

from __future__ import annotations

import inspect
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from qi.algorithms import ALGORITHMS, STAGES, Algorithm

PAGE = Path(__file__).resolve().parents[1] / "docs" / "algorithms.md"
COLUMNS = "| name | stage | needs | options with defaults | what it does | source |"


def rows() -> dict[str, list[str]]:
    """The cells of each algorithm's row, by its name."""
    _, _, table = PAGE.read_text(encoding="utf-8").partition(COLUMNS)
    found = re.findall(r"^\| `(\w+)` \| (.+) \|$", table, flags=re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in found}


def options(algorithm: Algorithm) -> str:
    """The options as the page writes them."""
    text = ", ".join(f"{name}={value!r}" for name, value in algorithm.options.items())
    return f"`{text}`" if text else "none"


def test_the_page_has_each_algorithm_once_by_stage_and_name() -> None:
    known = sorted(
        (found for _, found in ALGORITHMS.items()), key=lambda found: (STAGES.index(found.stage), found.name)
    )
    assert list(rows()) == [found.name for found in known]
    assert PAGE.read_text(encoding="utf-8").count("\n| `") == len(known)


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_a_row_says_what_the_registry_says(name: str) -> None:
    algorithm = ALGORITHMS.get(name)
    stage, needs, given, what, source = rows()[name]
    assert (stage, needs, given) == (algorithm.stage, algorithm.needs, options(algorithm))
    assert what
    module = inspect.getmodule(algorithm.function)
    assert module is not None
    papers = re.findall(r"arXiv:[\d.]+\d|mobiusml\.github\.io/\w+", source)
    assert papers
    assert [paper for paper in papers if paper not in inspect.getsource(module)] == []


def test_the_page_explains_each_stage() -> None:
    assert re.findall(r"^\| ([a-z]+) \| [^|]+ \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:] == list(
        STAGES
    )


def test_the_pages_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (PAGE.parent / target).exists()] == []


def test_the_pages_code_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "page.py"))
    recipe, quicker = names["recipe"], names["quicker"]
    assert [step.name for step in recipe.weights.algorithms] == [step.name for step in quicker.weights.algorithms]
    assert replace(recipe.weights, algorithms=quicker.weights.algorithms) == quicker.weights, "but for the damping"
    assert recipe.activations == quicker.activations
