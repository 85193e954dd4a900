from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.errors import FileFormatError
from qi.exporters import isolated, litert
from qi.exporters.litert_check import check
from qi.exporters.litert_file import packed, schema
from qi.ir.routing import route
from tests.ir.graphs import perceptron

X = np.random.default_rng(0).uniform(-2, 2, (5, 4)).astype(np.float32)


def foreign() -> bytes:
    """A file without our digest."""
    model = schema().ModelT.InitFromPackedBuf(litert.write(route(perceptron(), "litert")))
    model.metadata = None
    return packed(model, 10_000)


def test_a_foreign_file_runs_in_a_process_of_its_own() -> None:
    assert not check(foreign()).sealed
    found = litert.run(foreign(), [X], tensors=["hidden"])
    expected = litert.run(litert.write(route(perceptron(), "litert")), [X], tensors=["hidden"])
    for name in ("y", "hidden"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_one_that_ends_the_process_is_an_error() -> None:
    """A vector of shape that the runtime reads without asking; it passes every check of structure."""
    fb = schema()
    model = fb.ModelT.InitFromPackedBuf(foreign())
    for operator in model.subgraphs[0].operators:
        operator.inputs = [-1] * len(operator.inputs)
    with pytest.raises(FileFormatError, match="ended with"):
        litert.run(packed(model, 10_000), [X])


def test_the_process_gets_this_very_qi(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been found through sys.path, which no other process knows of."""
    given: list[str] = []
    run = isolated.subprocess.run

    def watched(command: list[str], **options: Any) -> Any:
        given.extend(options["env"]["PYTHONPATH"].split(os.pathsep))
        return run(command, **options)

    monkeypatch.setattr(isolated.subprocess, "run", watched)
    litert.run(foreign(), [X])
    assert str(Path(isolated.__file__).parents[2]) in given
