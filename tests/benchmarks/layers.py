"""What is done with each public layer of Keras, as a table in Markdown.

Run: python -m tests.benchmarks.layers --write [--only NAME ...]

Each layer of `tests.keras.zoo` stands in a small model, which is quantized, trained for a step, saved and read again, run by
the twin of a runtime, and exported. An empty cell has its reason below the table. `--write` makes docs/layers.md from all
results so far, which docs/layers.json keeps, so that single rows can be made again; `--page` writes it from them alone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = ("weights", "activations", "PTQ", "QAT", "reload", "twin", "LiteRT", "ONNX")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "layers.md"
RESULTS = DOCUMENT.with_suffix(".json")
_YES, _WHY = "yes", "why: "
_HELPERS = {"before", "after", "left", "right", "to_query", "to_value", "flat", "x"}
_EXACT = 99.0
_BIAS = re.compile(r"(^|[/_])bias(_\d+)?$")

_TEXT = """\
What QI {version} does with each class of `keras.layers` (Keras {keras}), and with layers as users write them (names in small
letters). Made on {date} by `python -m tests.benchmarks.layers --write`: each layer stands between others in a small network
with random weights, which is quantized by `qi.quantize_model(model, "w8a8", data)`.

- weights, activations: whether all matrices of weights, and all tensors that the layer gives, have 8 bits; "none" where there
  are none.
- PTQ: signal to noise ratio of the network's output against the float one; "exact" where both are the same.
- QAT: `qi.prepare_qat`, a step of training, `qi.convert`. reload: `save` and `keras.models.load_model`, to equal outputs.
- twin: `qi.emulate` runs the network in integers, as LiteRT does. LiteRT, ONNX: `qi.export` writes a file, and its runtime
  gives what its twin gives.

Numbers in brackets are reasons, below the table."""


def page(rows: dict[str, dict[str, str]]) -> str:
    """The page.

    Args:
        rows: for each layer, its cells by column; those that start with "why: " are reasons.
    """
    import keras

    from qi._version import __version__
    from tests.keras.zoo import REASONS, USERS

    reasons: list[str] = []

    def cell(value: str) -> str:
        done, _, why = value.partition(_WHY)
        if why:
            why = plain(why)
            if why not in reasons:
                reasons.append(why)
            done += f"[{reasons.index(why) + 1}]"
        return done

    rows = {**rows, **{name: dict.fromkeys(COLUMNS, f"{_WHY}it {reason}") for name, reason in REASONS.items()}}
    lines = [f"| layer | {' | '.join(COLUMNS)} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for name in sorted(rows, key=lambda name: (name in USERS, name)):
        lines.append(f"| {name} | {' | '.join(cell(rows[name].get(column, '')) for column in COLUMNS)} |")
    listed = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    text = _TEXT.format(version=__version__, keras=keras.__version__, date=f"{datetime.now(UTC):%Y-%m-%d}")
    return "\n".join(["# Layers of Keras", "", text, "", *lines, "", "## Reasons", "", *listed]) + "\n"


def plain(reason: str) -> str:
    """A reason without the names of one small model, so that layers share it."""
    error, _, text = reason.partition("Error: ")
    if not text:
        name, _, why = reason.partition(": ")
        return (
            f"`{name}` stays in float: {why}.".replace(" of 'before'", " before it")
            if why
            else f"{reason[:1].upper()}{reason[1:]}."
        )
    found = re.search(r"received '[^']*' of class (\w+), (.*)", text)
    if "has no lowering" in text:
        return "Not exported: neither runtime computes it in integers, and QI doesn't put it together of what they do."
    if "is no layer of Keras' own" in text:
        return "Not exported: a class of a user's, whose call couldn't be followed into operations of Keras."
    if found:
        return f"Not exported: {found[1]}, {found[2]}."
    return f"{error}Error: {text}."


def measure(name: str, folder: Path) -> dict[str, str]:
    """One row."""
    import keras

    import qi
    from tests.keras.zoo import build, data_for

    model = build(name)
    x = data_for(name, model)
    row: dict[str, str] = {}
    found = _try(row, "PTQ", lambda: qi.quantize_model(model, "w8a8", x, progress=False))
    if found is None:
        return dict.fromkeys(COLUMNS, row["PTQ"])
    quantized, report = found
    _weights_and_activations(row, report)
    row["PTQ"] = _sqnr(model, quantized, x)

    def trained() -> Any:
        training = qi.prepare_qat(model, "w8a8", x, progress=False)
        training.compile("sgd", "mse", jit_compile=False, run_eagerly=True)
        training.train_on_batch(x, keras.ops.convert_to_numpy(model(x)))
        return qi.convert(training)

    def read() -> Any:
        quantized.save(folder / "m.keras")
        same = keras.models.load_model(folder / "m.keras")
        if not np.array_equal(_outputs(same, x), _outputs(quantized, x)):
            raise ValueError("gives something else")
        return same

    _try(row, "QAT", trained)
    _try(row, "reload", read)
    _try(row, "twin", lambda: qi.emulate(quantized, x, "litert", progress=False))
    for column, file in (("LiteRT", "m.tflite"), ("ONNX", "m.onnx")):
        _try(row, column, lambda file=file: _exported(quantized, folder / file, x))
    return row


def _exported(model: Any, path: Path, x: np.ndarray) -> Any:
    import qi

    report = qi.export(model, path, samples=x[:8], latency=False)
    if not report.equal:
        raise ValueError("the runtime answers otherwise than its twin")
    return report


def _try(row: dict[str, str], column: str, step: Callable[[], Any]) -> Any:
    try:
        found = step()
    except Exception as error:  # what a table of what works is for
        row[column] = f"{_WHY}{type(error).__name__}: {' '.join(str(error).split()).partition('; do ')[0]}"
        return None
    row[column] = _YES
    return found


def _weights_and_activations(row: dict[str, str], report: Any) -> None:
    mine = [one for one in report.rows if one.layer.partition("/")[0] not in _HELPERS]
    for column, kind in (("weights", "weight"), ("activations", "activation")):
        all_of = [one for one in mine if one.kind == kind and not _BIAS.search(one.name)]
        left = [one for one in all_of if not one.quantized]
        if not left:
            row[column] = _YES if all_of else "none"
        else:
            some = f"{_YES} " if len(left) < len(all_of) else ""
            row[column] = f"{some}{_WHY}{left[0].name}: {left[0].reason}".partition("; 8 bits would")[0]


def _outputs(model: Any, x: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(model(x, training=False)))


def _sqnr(model: Any, quantized: Any, x: Any) -> str:
    from qi.core import sqnr_db

    found = sqnr_db(_outputs(model, x), _outputs(quantized, x))
    return "exact" if found > _EXACT else f"{found:.0f} dB"


def main() -> None:
    """Measures all layers, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="layers to measure; the others' rows stay")
    parser.add_argument("--write", action="store_true", help=f"keep the results, and write {DOCUMENT.name}")
    parser.add_argument("--page", action="store_true", help=f"write {DOCUMENT.name} from the results so far")
    given = parser.parse_args()
    from tests.keras.zoo import LAYERS, USERS

    warnings.simplefilter("ignore")
    rows: dict[str, dict[str, str]] = {}
    if RESULTS.exists() and (given.only or given.page):
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for name in () if given.page else given.only or [*LAYERS, *USERS]:
            sys.stderr.write(f"{name}\n")
            rows[name] = measure(name, Path(folder))
            if given.write:
                _keep(rows)
    if given.page:
        _keep(rows)
    sys.stdout.write(page(rows))


def _keep(rows: dict[str, dict[str, str]]) -> None:
    RESULTS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    DOCUMENT.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
