"""`qi quantize`: a trained model and samples in, a quantized model and its report out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qi.cli.console import Console
from qi.cli.evaluate import HIGHER_IS_BETTER
from qi.cli.exits import RefusedError
from qi.cli.inputs import (
    add_jobs,
    add_model,
    add_recipe,
    check_read,
    labels,
    load_inputs,
    ours_alone,
    say_saved,
)
from qi.cli.options import REPORTS, add_batch_size, check_output, tolerance, writing
from qi.errors import InputError, StrictError

if TYPE_CHECKING:
    from qi.ledger import QuantizationReport

__all__ = ["add", "run"]

_DESCRIPTION = """Quantizes a trained Keras model; the given file stays as it is. A file that holds layers or classes of
yours can't be read here, as their code isn't in it: quantize those in Python, by qi.quantize_model.

recipes: a name such as w8a8 (weights and activations of 8 bits), w8 (weights alone), w4a8, w8a16 or w4_g32 (one scale
per 32 weights), with algorithms behind it as in w4a8_gptq, or a .json file with rules. Recipes with activations need
--data or --stats.

efforts: fast rounds to nearest, balanced adds GPTQ and bias correction for weights of fewer than 8 bits, best trains
weights and scales against the float model's outputs (needs --data).

--max-drop D adds bits where they do the most good until the metric of --metric is worse than the float model's by D at
most, on x_test with y_test, or x with y, of --data."""


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "quantize", help="quantize a model", description=_DESCRIPTION, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_model(parser, required=False)
    add_recipe(parser)
    parser.add_argument(
        "--effort",
        metavar="EFFORT",
        help="fast, balanced or best: algorithms for weights that the recipe names none for",
    )
    add_jobs(parser, "weights the algorithms work on")
    parser.add_argument(
        "--resume", metavar="FILE", type=Path,
        help="a .progress file that keeps what the algorithms have done: stopped by Ctrl-C, the same command goes on there",
    )  # fmt: skip
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="the .keras file to write")
    parser.add_argument(
        "--report", metavar="FILE", type=Path, action="append", default=[],
        help=f"write the report too ({', '.join(REPORTS)}); can be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--max-drop", metavar="D", type=tolerance,
        help="add bits until the metric is worse by no more: in percentage points for accuracy and top5, in the metric's own "
        "unit for mse and mae; exit with 3 if none do",
    )  # fmt: skip
    parser.add_argument(
        "--metric", metavar="NAME", help=f"with --max-drop: {', '.join(HIGHER_IS_BETTER)} (default: accuracy)"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 3 if a weight matrix would stay in float")
    add_batch_size(parser)
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Quantizes, saves, reports."""
    _check(arguments)
    from qi.recipes import get_recipe, with_effort

    recipe = get_recipe(arguments.recipe)
    recipe = recipe if arguments.effort is None else with_effort(recipe, arguments.effort)
    if arguments.data is None and arguments.stats is None and recipe.activations is not None:
        raise InputError(
            f"expected --data or --stats, for recipe {recipe.name} quantizes activations; received neither"
        )
    model, data = load_inputs(arguments)
    control = {} if arguments.max_drop is None else _control(model, arguments)
    with console.progress() as progress, ours_alone():
        quantized, report = _quantize(model, recipe, data, control, arguments, progress)
    from qi.keras import save_model

    with writing(arguments.out):
        save_model(quantized, arguments.out)
    for path in arguments.report:
        with writing(path):
            report.save(path)
    console.report(report)
    say_saved(console, (arguments.out, *arguments.report))


def _check(arguments: argparse.Namespace) -> None:
    """What can be known to be wrong before TensorFlow is loaded."""
    read = check_read(arguments)
    check_output(arguments.out, [".keras"], read)
    for path in arguments.report:
        check_output(path, REPORTS, [*read, Path(arguments.recipe)])
    if arguments.resume is not None:
        check_output(arguments.resume, [".progress"], [*read, arguments.out])
    if arguments.max_drop is None:
        if arguments.metric is not None:
            raise InputError(f"expected --max-drop with --metric {arguments.metric}; received none")
        return
    if arguments.data is None:
        raise InputError("expected --data with --max-drop, for its metric needs true values; received none")
    from qi.ledger import METRICS

    METRICS.get(arguments.metric or "accuracy")  # an unknown name shall not cost the loading of a model


def _control(model: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that say how far the metric may fall."""
    from qi.cli.models import predict
    from qi.ledger import METRICS

    x, y = labels(arguments.data, model)
    name = arguments.metric or "accuracy"
    measure = METRICS.get(name)
    factor = 100.0 if HIGHER_IS_BETTER.get(name, True) else -1.0  # points, and the more the better

    def metric(judged: Any) -> float:
        return factor * float(measure(y, predict(judged, x, arguments.batch_size)))

    return {"max_drop": arguments.max_drop, "metric": metric}


def _quantize(
    model: Any, recipe: Any, data: Any, control: dict[str, Any], arguments: argparse.Namespace, progress: bool
) -> tuple[Any, QuantizationReport]:
    from qi.keras import quantize_model
    from qi.keras.accuracy import DropError

    try:
        return quantize_model(
            model,
            recipe,
            data,
            statistics=arguments.stats,
            strict=arguments.strict,
            jobs=arguments.jobs,
            resume=arguments.resume,
            batch_size=arguments.batch_size,
            progress=progress,
            **control,
        )
    except (StrictError, DropError) as error:
        raise RefusedError(str(error)) from error
