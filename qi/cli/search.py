"""`qi search`: a trained model, samples and a budget in, a recipe with bits for every weight out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qi.cli.console import Console
from qi.cli.options import add_batch_size, check_input, check_output, positive, writing
from qi.errors import InputError

__all__ = ["add", "run"]

_DESCRIPTION = """Chooses how many bits each weight gets: the least loss within the budgets, proven to be the least.
`qi quantize --recipe OUT` then quantizes the model so.

budgets: bytes (of all weights as stored), bops (multiply-accumulates x bits of weight x bits of activation), bits (the mean
over all weights that can be quantized); as numbers, or as 0.5x: so much of what 8 bits take."""

_PLOTS = (".png", ".svg")
_METRICS = ("task", "output", "hessian")


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "search", help="choose bits for every weight within a budget", description=_DESCRIPTION, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", type=Path, help="a .keras file, or an .h5 file of Keras 2 or 3")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="FILE", type=Path, help="samples, as of `qi quantize`")
    source.add_argument("--stats", metavar="FILE", type=Path, help="statistics from `qi calibrate` (--metric output)")
    parser.add_argument(
        "--budget", metavar="NAME=VALUE", type=_budget, action="append", required=True,
        help="the most that may be spent, as bytes=40000, bytes=0.5x or bits=4; can be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--bits", metavar="LIST", type=_candidates, default=[2, 3, 4, 6, 8],
        help="what to choose from: bits or names of recipes for weights, as 2,4,w4_g32,8 (default: 2,3,4,6,8)",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", metavar="RECIPE", default="w8a8",
        help="quantizes the activations, and its rules hold: a name or a .json file (default: w8a8)",
    )  # fmt: skip
    parser.add_argument(
        "--metric", choices=_METRICS,
        help="how losses are found: by running the model with each weight quantized alone (task), from moments of the layers' "
        "inputs (output), or from those and two runs a weight (hessian); default: task, with --stats output",
    )  # fmt: skip
    parser.add_argument(
        "--samples", metavar="N", type=positive, default=256, help="how many the model is run on (default: 256)"
    )
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="the recipe's .json file to write")
    parser.add_argument("--plot", metavar="FILE", type=Path, help=f"draw the front too ({', '.join(_PLOTS)})")
    add_batch_size(parser)
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    parser.set_defaults(run=run)


def _budget(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"expected a budget as bytes=40000; received {text!r}")
    return name, value


def _candidates(text: str) -> list[int | str]:
    """Bits as numbers, all else as names."""
    found = [item.strip() for item in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"expected bits as 2,4,8; received {text!r}")
    return [int(item) if item.isascii() and item.isdecimal() else item for item in found]


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Searches, saves the recipe, shows the table."""
    _check(arguments)
    from qi.recipes import get_recipe, save

    recipe = get_recipe(arguments.recipe)
    model, data = _loaded(arguments)
    from qi.keras.search import search

    with console.progress() as progress:
        found = search(
            model,
            data,
            dict(arguments.budget),
            arguments.bits,
            recipe=recipe,
            metric=arguments.metric,
            statistics=arguments.stats,
            samples=arguments.samples,
            batch_size=arguments.batch_size,
            progress=progress,
        )
    written = [arguments.out]
    with writing(arguments.out):
        save(found.recipe, arguments.out)
    if arguments.plot is not None:
        with writing(arguments.plot):
            found.plot(arguments.plot)
        written.append(arguments.plot)
    console.say(found.table())
    console.say()
    for path in written:
        console.say(f"saved {path}")


def _check(arguments: argparse.Namespace) -> None:
    """What can be known to be wrong before TensorFlow is loaded."""
    read = [path for path in (arguments.model, arguments.data, arguments.stats) if path is not None]
    check_input(arguments.model, "a model")
    if arguments.stats is not None:
        check_input(arguments.stats, "statistics")
    names = [name for name, _ in arguments.budget]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"expected each budget once; received {twice!r} {names.count(twice)} times")
    check_output(arguments.out, [".json"], [*read, Path(arguments.recipe)])
    if arguments.plot is not None:
        check_output(arguments.plot, _PLOTS, read)


def _loaded(arguments: argparse.Namespace) -> tuple[Any, Any]:
    from qi.cli.data import CALIBRATION
    from qi.cli.models import load, load_with_samples

    if arguments.data is None:
        return load(arguments.model), None
    model, _, data = load_with_samples(arguments.model, arguments.data, CALIBRATION)
    return model, data
