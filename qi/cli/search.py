"""`qi search`: a trained model, samples and a budget in, a recipe with bits for every weight out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qi.cli.console import Console
from qi.cli.inputs import add_jobs, add_model, add_recipe, check_read, load_inputs, ours_alone, say_saved, start_workers
from qi.cli.options import add_batch_size, check_output, positive, writing
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
    add_model(parser, required=True, statistics=" (--metric output)")
    parser.add_argument(
        "--budget", metavar="NAME=VALUE", type=_budget, action="append", required=True,
        help="the most that may be spent, as bytes=40000, bytes=0.5x or bits=4; can be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--bits", metavar="LIST", type=_candidates, default=[2, 3, 4, 6, 8],
        help="what to choose from: bits or names of recipes for weights, as 2,4,w4_g32,8 (default: 2,3,4,6,8)",
    )  # fmt: skip
    add_recipe(parser, "quantizes the activations, and its rules hold: ")
    parser.add_argument(
        "--metric", choices=_METRICS,
        help="how losses are found: by running the model with each weight quantized alone (task), from moments of the layers' "
        "inputs (output), or from those and two runs a weight (hessian); default: task, with --stats output",
    )  # fmt: skip
    parser.add_argument(
        "--samples", metavar="N", type=positive, default=256, help="how many the model is run on (default: 256)"
    )
    add_jobs(parser, "processes work")
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
    model, data = load_inputs(arguments)
    start_workers(arguments.jobs)
    from qi.keras.search import search

    with console.progress() as progress, ours_alone():
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
            jobs=arguments.jobs,
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
    say_saved(console, written)


def _check(arguments: argparse.Namespace) -> None:
    """What can be known to be wrong before TensorFlow is loaded."""
    read = check_read(arguments)
    names = [name for name, _ in arguments.budget]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"expected each budget once; received {twice!r} {names.count(twice)} times")
    check_output(arguments.out, [".json"], [*read, Path(arguments.recipe)])
    if arguments.plot is not None:
        check_output(arguments.plot, _PLOTS, [*read, Path(arguments.recipe)])
