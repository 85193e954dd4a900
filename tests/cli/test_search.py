from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qi.recipes import load

pytest.importorskip("scipy")


@pytest.fixture
def search(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> Callable[..., Any]:
    """The command on the float model, to r.json, with more options."""
    return lambda *options: qi_command("search", files / "float.keras", "-o", tmp_path / "r.json", *options)


def test_the_recipe_is_written_and_quantizes_as_promised(
    search: Callable[..., Any], files: Path, tmp_path: Path, qi_command: Callable[..., Any]
) -> None:
    done = search("--data", files / "data.npz", "--budget", "bytes=0.6x", "--budget", "bits=5", "--bits", "2,4,w8")
    assert (done.code, done.err) == (0, "")
    assert "head/kernel" in done.out
    assert done.out.endswith(f"saved {tmp_path / 'r.json'}\n")
    assert {rule.match for rule in load(tmp_path / "r.json").rules} == {"conv", "head"}
    arguments = "--data", files / "data.npz", "--recipe", tmp_path / "r.json", "-o", tmp_path / "q.keras"
    assert qi_command("quantize", files / "float.keras", *arguments).code == 0


def test_the_front_is_drawn(search: Callable[..., Any], files: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = "--budget", "bits=4", "--metric", "output", "--plot", tmp_path / "front.png", "--quiet"
    done = search("--data", files / "data.npz", *options)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_statistics_are_enough(
    search: Callable[..., Any], files: Path, tmp_path: Path, qi_command: Callable[..., Any]
) -> None:
    stats = tmp_path / "s.npz"
    assert qi_command("calibrate", files / "float.keras", "--data", files / "data.npz", "-o", stats).code == 0
    done = search("--stats", stats, "--budget", "bits=4")
    assert done.code == 0
    assert "losses: output" in done.out


def test_a_budget_that_cannot_be_met(search: Callable[..., Any], files: Path, tmp_path: Path) -> None:
    done = search("--data", files / "data.npz", "--budget", "bytes=1")
    assert done.code == 2
    assert "received bytes=1; do allow at least bytes=" in done.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--budget", "bits=4"], "one of the arguments --data --stats is required"),
        (["--data", "d.npz"], "the following arguments are required: --budget"),
        (["--data", "d.npz", "--budget", "4"], "expected a budget as bytes=40000"),
        (["--data", "d.npz", "--budget", "bits=4", "--budget", "bits=5"], "each budget once; received 'bits' 2 times"),
        (["--data", "d.npz", "--budget", "bits=4", "--bits", "2,,4"], "expected bits as 2,4,8"),
        (["--data", "d.npz", "--budget", "bits=4", "--metric", "mse"], "invalid choice: 'mse'"),
        (["--data", "d.npz", "--budget", "bits=4", "--plot", "f.pdf"], "ending in .png or .svg"),
        (["--data", "d.npz", "--budget", "bits=4", "--jobs", "0"], "a whole number from 1 to"),
        (["--data", "d.npz", "--budget", "bits=4"], "a file with samples"),
        (["--stats", "s.npz", "--budget", "bits=4"], "a file with statistics"),
        (["--data", "d.npz", "--budget", "bits=4", "--recipe", "w8a88x"], "Did you mean 'w8a8'"),
    ],
)
def test_bad_options_are_refused_before_the_work(
    options: list[str], problem: str, search: Callable[..., Any], tmp_path: Path
) -> None:
    done = search(*options)
    assert done.code == 2
    assert problem in done.error
    assert list(tmp_path.iterdir()) == []


def test_with_workers_standard_output_is_ours_and_the_rest_is_silent(
    environment: dict[str, str], files: Path, tmp_path: Path
) -> None:
    pytest.importorskip("joblib")
    recipes = []
    for jobs in ("1", "2"):
        arguments = [
            "search",
            files / "float.keras",
            "--data",
            files / "data.npz",
            "--budget",
            "bits=4",
            "--jobs",
            jobs,
        ]
        done = subprocess.run(
            [sys.executable, "-m", "qi", *arguments, "-o", tmp_path / f"{jobs}.json"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("tiny: bits <= 4; losses: task;")
        assert done.stdout.endswith(f"saved {tmp_path / jobs}.json\n")
        recipes.append((tmp_path / f"{jobs}.json").read_text())
    assert recipes[0] == recipes[1]
