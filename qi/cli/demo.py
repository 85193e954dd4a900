"""`qi demo`: the whole job on a small real model and data set that ship with the package; nothing is downloaded."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qi.cli.console import Console
from qi.cli.options import REPORTS, check_output
from qi.errors import InputError, MissingDependencyError, QiError

if TYPE_CHECKING:
    from qi.demo import DemoData
    from qi.ledger import Evaluation, QuantizationReport

__all__ = ["RECIPES", "Outcome", "add", "run"]

RECIPES = ("w8a8", "w4a8")
"""What the demo compares with float."""

_HEADER = ("model", "accuracy", "change", "same answer", "weights", "ratio", "file")
_WORST = 3
_RELOADED = 512  # samples on which a reloaded model is compared


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one recipe.

    Attributes:
        recipe: its name.
        report: of the quantization.
        evaluation: on the test images.
        model_path: the saved model.
        report_paths: the saved reports.
    """

    recipe: str
    report: QuantizationReport
    evaluation: Evaluation
    model_path: Path
    report_paths: tuple[Path, ...]

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        from qi.ledger.numbers import format_bytes, format_ratio, format_share

        totals, result = self.report.totals, self.evaluation
        return (
            self.recipe,
            f"{100 * result.quantized_value:.2f} %",
            f"{100 * result.difference:+.2f}",
            format_share(result.agreement),
            format_bytes(totals.bytes_after),
            format_ratio(totals.size_ratio),
            format_bytes(self.model_path.stat().st_size),
        )


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "demo", help="quantize a small model that comes with the package", allow_abbrev=False,
        description="Quantizes a small image classifier that ships with the package, to 8 and to 4 bits, measures it on "
        "2,000 real images, saves the models and their reports, and reloads them. Nothing is downloaded.",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("qi-demo"), help="where to write (default: qi-demo)"
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help=f"write the report on {RECIPES[0]} here too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Quantizes, measures, saves, reloads, and says what to do next."""
    begin = time.perf_counter()
    if arguments.report is not None:
        check_output(arguments.report, REPORTS)
    if arguments.out.exists() and not arguments.out.is_dir():
        raise InputError(
            f"expected a folder to write to; received the file {str(arguments.out)!r}; do pass another --out"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    from qi.cli.models import load
    from qi.demo import demo_model_path, load_demo_data

    data = load_demo_data()
    console.say(
        f"An image classifier of ten classes, calibrated on {len(data.x_calib):,} images and measured on "
        f"{len(data.x_test):,} others.\n{data.licence}.\n"
    )
    model = load(demo_model_path())
    outcomes = [_try(recipe, model, data, arguments.out, console) for recipe in RECIPES]
    _show(outcomes, console)
    if arguments.report is not None:
        outcomes[0].report.save(arguments.report)
    _show_files(outcomes, arguments.report, console)
    console.say(f"\nThat took {time.perf_counter() - begin:.0f} seconds. Next, with a model of yours:\n\n{_next()}")


def _try(recipe: str, model: Any, data: DemoData, folder: Path, console: Console) -> Outcome:
    from qi.keras import quantize_model, save_model

    with console.progress() as progress:
        quantized, report = quantize_model(model, recipe, data.x_calib, progress=progress)
    evaluation = report.evaluate("accuracy", data.x_test, data.y_test)
    path = save_model(quantized, folder / f"{recipe}.keras")
    _check_reloaded(quantized, path, data)
    return Outcome(
        recipe=recipe,
        report=report,
        evaluation=evaluation,
        model_path=path,
        report_paths=_save_reports(report, folder / recipe, console),
    )


def _check_reloaded(model: Any, path: Path, data: DemoData) -> None:
    """The promise that the demo makes: a saved model predicts the very same numbers."""
    import numpy as np

    from qi.cli.models import load, predict

    x = data.x_test[:_RELOADED]
    if not np.array_equal(predict(load(path), x), predict(model, x)):
        raise QiError(f"expected {str(path)!r} to predict as the model that was saved; received other numbers")


def _save_reports(report: QuantizationReport, stem: Path, console: Console) -> tuple[Path, ...]:
    """A page and JSON; Markdown in place of the page where what draws it isn't installed."""
    paths = [stem.with_suffix(".json")]
    try:
        paths.insert(0, report.save(stem.with_suffix(".html")))
    except MissingDependencyError as error:
        console.warn(str(error))
        paths.insert(0, report.save(stem.with_suffix(".md")))
    report.save(paths[-1])
    return tuple(paths)


def _show(outcomes: list[Outcome], console: Console) -> None:
    from qi.ledger.numbers import format_bytes, format_db

    totals, before = outcomes[0].report.totals, outcomes[0].evaluation.float_value
    in_float = ("float32", f"{100 * before:.2f} %", "", "", format_bytes(totals.bytes_before), "1.00x")
    size = format_bytes(outcomes[0].report.float_file_bytes)  # written as the quantized ones are
    console.table(_HEADER, [(*in_float, size), *(outcome.cells() for outcome in outcomes)])
    console.say("\nWhere the errors are largest (6 dB less is twice the error):\n")
    rows = [
        (outcome.recipe, row.path, f"{row.bits} bits", f"{format_db(row.sqnr_db)} dB")
        for outcome in outcomes
        for row in outcome.report.worst(_WORST)
    ]
    console.table(("model", "tensor", "codes", "signal to noise"), rows, left=3)


def _show_files(outcomes: list[Outcome], report: Path | None, console: Console) -> None:
    console.say("\nSaved; reloaded, each model predicts the very same numbers, bit for bit:\n")
    for outcome in outcomes:
        extra = [report] if report is not None and outcome is outcomes[0] else []
        console.say(f"  {outcome.recipe}  {', '.join(map(str, (outcome.model_path, *outcome.report_paths, *extra)))}")


def _next() -> str:
    return (
        "  import qi\n"
        f'  quantized, report = qi.quantize_model(model, "{RECIPES[0]}", samples)\n'
        '  qi.save_model(quantized, "model.keras")'
    )
