"""`qi calibrate`: statistics of a model's activations, to quantize later without the samples."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qi.cli.console import Console
from qi.cli.options import add_batch_size, add_samples, check_input, check_output, writing

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "calibrate", help="collect statistics, for `qi quantize --stats`", allow_abbrev=False,
        description="Runs samples through a model and writes down the statistics from which `qi quantize --stats` chooses "
        "ranges: the samples themselves are then no longer needed.",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", type=Path, help="a .keras file")
    add_samples(parser, required=True)
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="the .npz file to write")
    parser.add_argument(
        "--recipe", metavar="RECIPE", default="w8a8", help="decides which activations are watched (default: w8a8)"
    )
    add_batch_size(parser)
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Collects the statistics and saves them."""
    check_input(arguments.model, "a model")
    check_output(arguments.out, [".npz"], [arguments.model, arguments.data])
    from qi.cli.data import CALIBRATION
    from qi.cli.models import load_with_samples
    from qi.recipes import get_recipe

    recipe = get_recipe(arguments.recipe)
    model, name, data = load_with_samples(arguments.model, arguments.data, CALIBRATION)
    from qi.keras import calibrate
    from qi.observers import save_statistics

    with console.progress() as progress:
        statistics = calibrate(model, data, recipe, batch_size=arguments.batch_size, progress=progress)
    with writing(arguments.out):
        save_statistics(arguments.out, statistics)
    console.say(f"{len(statistics)} activations over {statistics.samples} samples{name}")
    console.say(f"saved {arguments.out}")
