"""`qi evaluate`: a metric of the float model beside that of the quantized one, and a gate for scripts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qi.cli.console import Console
from qi.cli.exits import RefusedError
from qi.cli.options import add_batch_size, add_json, check_input, tolerance

if TYPE_CHECKING:
    from qi.ledger import Evaluation

__all__ = ["HIGHER_IS_BETTER", "add", "loss_of", "run"]

HIGHER_IS_BETTER = {"accuracy": True, "top5": True, "mse": False, "mae": False}
"""The metrics of the help, and which way is up."""


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "evaluate", help="measure a quantized model beside the float one", allow_abbrev=False,
        description="Measures both models with one metric on the same samples.",
    )  # fmt: skip
    parser.add_argument("float_model", metavar="FLOAT", type=Path, help="the model before, a .keras file")
    parser.add_argument("quantized_model", metavar="QUANTIZED", type=Path, help="the model after")
    parser.add_argument(
        "--data", metavar="FILE", type=Path, required=True,
        help=".npz with x_test and y_test, or x and y (or an array for each input by its name, and y)",
    )  # fmt: skip
    parser.add_argument(
        "--metric", metavar="NAME", default="accuracy", help=f"{', '.join(HIGHER_IS_BETTER)} (default: accuracy)"
    )
    parser.add_argument(
        "--max-drop", metavar="D", type=tolerance,
        help="exit with 3 if the quantized model is worse by more: in percentage points for accuracy and top5, in the "
        "metric's own unit for mse and mae",
    )  # fmt: skip
    add_batch_size(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Measures and prints; raises RefusedError where the drop is larger than allowed."""
    for path in (arguments.float_model, arguments.quantized_model):
        check_input(path, "a model")
    from qi.cli.data import ArrayFile, labelled
    from qi.ledger import METRICS, evaluate_models
    from qi.ledger.evaluation import EVALUATION_HEADER

    METRICS.get(arguments.metric)  # an unknown name shall not cost the loading of two models
    file = ArrayFile(arguments.data)
    from qi.cli.models import input_names, load, predict

    before, after = load(arguments.float_model), load(arguments.quantized_model)
    x, y = labelled(file, input_names(before))
    result = evaluate_models(
        before, after, arguments.metric, x, y, predict=lambda model, x: predict(model, x, arguments.batch_size)
    )
    if arguments.json:
        console.say(json.dumps({**result.to_dict(), "difference": result.difference}, indent=1))
    else:
        console.table(EVALUATION_HEADER, [result.cells()])
    if arguments.max_drop is not None:
        judgement = _judge(result, arguments.max_drop)
        if not arguments.json:
            console.say(judgement)


def loss_of(result: Evaluation) -> float:
    """How much worse the quantized model is: percentage points of a share, else in the metric's unit."""
    if HIGHER_IS_BETTER.get(result.metric, True):
        return -100 * result.difference
    return result.difference


def _judge(result: Evaluation, allowed: float) -> str:
    """What to say of a drop that is allowed; raises RefusedError where it isn't."""
    lost = loss_of(result)
    unit = " points" if HIGHER_IS_BETTER.get(result.metric, True) else ""
    if not lost <= allowed + 1e-9:  # rounding of a share, not of a result; NaN is refused
        raise RefusedError(
            f"expected {result.metric} to get worse by at most {allowed:g}{unit}; received {lost:.4g}{unit} on "
            f"{result.samples} samples; do try a recipe with more bits, or keep the worst layers of the report at 8 bits"
        )
    change = f"better by {-lost:.4g}{unit}" if lost < 0 else f"worse by {lost:.4g}{unit}"
    return f"passed: {change}; {allowed:g} allowed"
