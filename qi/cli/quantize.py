"""`qi quantize`: a trained model and samples in, a quantized model and its report out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qi.cli.console import Console
from qi.cli.exits import RefusedError
from qi.cli.options import REPORTS, add_batch_size, check_input, check_output, positive, writing
from qi.errors import InputError, StrictError

if TYPE_CHECKING:
    from qi.ledger import QuantizationReport

__all__ = ["add", "run"]

_DESCRIPTION = """Quantizes a trained Functional or Sequential Keras model; the given file stays as it is.

recipes: a name such as w8a8 (weights and activations of 8 bits), w8 (weights alone), w4a8, w8a16 or w4_g32 (one scale
per 32 weights), with algorithms behind it as in w4a8_gptq, or a .json file with rules. Recipes with activations need
--data or --stats.

efforts: fast rounds to nearest, balanced adds GPTQ and bias correction for weights of fewer than 8 bits, best trains
weights and scales against the float model's outputs (needs --data)."""


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "quantize", help="quantize a model", description=_DESCRIPTION, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", type=Path, help="a .keras file, or an .h5 file of Keras 2 or 3")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--data", metavar="FILE", type=Path,
        help="samples as the model takes them: .npy, or .npz with x_calib or x (or an array for each input by its name)",
    )  # fmt: skip
    source.add_argument(
        "--stats", metavar="FILE", type=Path, help="statistics from `qi calibrate`, in place of samples"
    )
    parser.add_argument("--recipe", metavar="RECIPE", default="w8a8", help="a name or a .json file (default: w8a8)")
    parser.add_argument(
        "--effort",
        metavar="EFFORT",
        help="fast, balanced or best: algorithms for weights that the recipe names none for",
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=positive,
        default=1,
        help="how many weights the algorithms work on at once (default: 1)",
    )
    parser.add_argument(
        "--resume", metavar="FILE", type=Path,
        help="an .npz file that keeps what the algorithms have done: stopped by Ctrl-C, the same command goes on there",
    )  # fmt: skip
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="the .keras file to write")
    parser.add_argument(
        "--report", metavar="FILE", type=Path, action="append", default=[],
        help=f"write the report too ({', '.join(REPORTS)}); can be given several times",
    )  # fmt: skip
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
    file = None
    if arguments.data is not None:
        from qi.cli.data import ArrayFile, check_samples

        file = ArrayFile(arguments.data)
        check_samples(file)
    elif arguments.stats is None and recipe.activations is not None:
        raise InputError(
            f"expected --data or --stats, for recipe {recipe.name} quantizes activations; received neither"
        )
    from qi.cli.models import load

    model = load(arguments.model)
    with console.progress() as progress:
        quantized, report = _quantize(model, recipe, file, arguments, progress)
    from qi.keras import save_model

    with writing(arguments.out):
        save_model(quantized, arguments.out)
    for path in arguments.report:
        with writing(path):
            report.save(path)
    console.report(report)
    console.say()
    for path in (arguments.out, *arguments.report):
        console.say(f"saved {path}")


def _check(arguments: argparse.Namespace) -> None:
    """What can be known to be wrong before TensorFlow is loaded."""
    read = [path for path in (arguments.model, arguments.data, arguments.stats) if path is not None]
    check_input(arguments.model, "a model")
    if arguments.stats is not None:
        check_input(arguments.stats, "statistics")
    check_output(arguments.out, [".keras"], read)
    for path in arguments.report:
        check_output(path, REPORTS, [*read, Path(arguments.recipe)])
    if arguments.resume is not None:
        check_output(arguments.resume, [".npz"], [*read, arguments.out])


def _quantize(
    model: Any, recipe: Any, file: Any, arguments: argparse.Namespace, progress: bool
) -> tuple[Any, QuantizationReport]:
    from qi.cli.data import CALIBRATION, samples
    from qi.cli.models import input_names
    from qi.keras import quantize_model

    data = None if file is None else samples(file, CALIBRATION, input_names(model))[1]
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
        )
    except StrictError as error:
        raise RefusedError(str(error)) from error
