"""`python -m tests.benchmarks.layers [--write]`: what is done with each public layer of Keras, as a table in Markdown.

Each layer of `tests.keras.zoo` stands in a small model, which is quantized, trained for a step, saved and read again, run by
the twins of both runtimes, and exported. An empty cell has its reason below the table. ``--write`` makes docs/layers.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = ("weights", "activations", "PTQ", "QAT", "reload", "twin", "LiteRT", "ONNX")
_TARGET = Path(__file__).resolve().parents[2] / "docs" / "layers.md"
_YES = "yes"
_HELPERS = {"before", "after", "left", "right", "to_query", "to_value", "flat", "x"}


class Table:
    """Cells by layer and column, and the numbered reasons of those that are empty."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, str]] = {}
        self.reasons: list[str] = []

    def note(self, layer: str, column: str, reason: str) -> None:
        """Leaves a cell empty, for a reason."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.rows[layer][column] = f"[{self.reasons.index(reason) + 1}]"

    def markdown(self, heading: str) -> str:
        """All of it."""
        lines = [heading, "", f"| layer | {' | '.join(COLUMNS)} |", "| --- " * (len(COLUMNS) + 1) + "|"]
        for layer, cells in sorted(self.rows.items()):
            lines.append(f"| {layer} | {' | '.join(cells.get(column, '') for column in COLUMNS)} |")
        lines += ["", "## Reasons", ""]
        lines += [f"{number}. {reason}" for number, reason in enumerate(self.reasons, start=1)]
        return "\n".join(lines) + "\n"


def measure(table: Table, name: str, folder: Path) -> None:
    """Fills one row."""
    import keras

    import qi
    from tests.keras.zoo import build, data_for

    model = build(name)
    x = data_for(name, model)
    table.rows[name] = {}
    quantized, report = qi.quantize_model(model, "w8a8", x, progress=False)
    _weights_and_activations(table, name, report)
    table.rows[name]["PTQ"] = f"{_sqnr(model, quantized, x):.0f} dB"

    def trained() -> Any:
        training = qi.prepare_qat(model, "w8a8", x, progress=False)
        training.compile("sgd", "mse")
        training.train_on_batch(x, keras.ops.convert_to_numpy(model(x)))
        return qi.convert(training)

    def read() -> Any:
        quantized.save(folder / "m.keras")
        same = keras.models.load_model(folder / "m.keras")
        if not np.array_equal(_outputs(same, x), _outputs(quantized, x)):
            raise ValueError("gives something else")
        return same

    _try(table, name, "QAT", trained)
    _try(table, name, "reload", read)
    _try(table, name, "twin", lambda: qi.emulate(quantized, x, "litert"))
    for column, file in (("LiteRT", "m.tflite"), ("ONNX", "m.onnx")):
        _try(table, name, column, lambda file=file: _exported(quantized, folder / file))


def _exported(model: Any, path: Path) -> None:
    import qi

    report = qi.export(model, path)
    if not report.equal:
        raise ValueError("the runtime answers otherwise than its twin")


def _try(table: Table, layer: str, column: str, step: Callable[[], Any]) -> None:
    try:
        step()
        table.rows[layer][column] = _YES
    except Exception as error:  # what a table of what works is for
        text = " ".join(str(error).split()).partition("; do ")[0]
        table.note(layer, column, _general(text, layer))


def _general(text: str, layer: str) -> str:
    """A refusal without the names of one model, so that layers share reasons."""
    if "has no lowering" in text:
        return "no integer kernels of the runtimes compute it, and QI has no way to put it together of others"
    return text if len(text) < 300 else f"{text[:300]}..."


def _weights_and_activations(table: Table, layer: str, report: Any) -> None:
    mine = [row for row in report.rows if row.layer.partition("/")[0] not in _HELPERS]
    for column, kind in (("weights", "weight"), ("activations", "activation")):
        rows = [row for row in mine if row.kind == kind and row.name.rpartition("/")[2] != "bias"]
        left = [row for row in rows if not row.quantized]
        if not rows:
            table.rows[layer][column] = "none"
        elif not left:
            table.rows[layer][column] = _YES
        else:
            table.note(layer, column, f"{left[0].name}: {left[0].reason}".partition("; 8 bits would")[0])
            if len(left) < len(rows):
                table.rows[layer][column] = f"{_YES} {table.rows[layer][column]}"


def _outputs(model: Any, x: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(model(x, training=False)))


def _sqnr(model: Any, quantized: Any, x: Any) -> float:
    from qi.core import sqnr_db

    return min(sqnr_db(_outputs(model, x), _outputs(quantized, x)), 99.0)


def main() -> None:
    """Measures all layers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {_TARGET.name}")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    import keras

    from qi._version import __version__
    from tests.keras.zoo import LAYERS, REASONS, USERS

    warnings.simplefilter("ignore")
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        for name in given.names or [*LAYERS, *USERS]:
            sys.stderr.write(f"{name}\n")
            measure(table, name, Path(folder))
    for name, reason in REASONS.items() if not given.names else ():
        table.rows[name] = dict.fromkeys(COLUMNS, "")
        table.note(name, "weights", reason)
    text = table.markdown(
        f"# Layers of Keras\n\nWhat QI {__version__} does with each class of `keras.layers` (Keras {keras.__version__}), and "
        f"with layers as users write them (in small letters), on {datetime.now(UTC):%Y-%m-%d}. Made by "
        "`python -m tests.benchmarks.layers --write`. PTQ: the signal to noise ratio of a small random network under w8a8. "
        "Numbers in brackets are reasons."
    )
    if given.write:
        _TARGET.parent.mkdir(exist_ok=True)
        _TARGET.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
