"""`qi inspect`: what a model file holds, and what in it is quantized."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qi.cli.console import Console
from qi.cli.options import check_input

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "inspect", help="show the layers of a model and what is quantized", allow_abbrev=False,
        description="Shows layers, shapes, parameters, and what is quantized: bits, method, granularity, scales, sizes.",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", type=Path, help="a .keras file, quantized or not")
    parser.add_argument("--json", action="store_true", help="print JSON, with all that is known")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Prints what is in the file."""
    check_input(arguments.model, "a model")
    from qi.cli.models import load
    from qi.ledger.numbers import format_bytes

    model = load(arguments.model)
    from qi.keras import inspect_model

    found = inspect_model(model)
    size = arguments.model.stat().st_size
    if arguments.json:
        console.say(json.dumps({"file": str(arguments.model), "file_bytes": size, **found.to_dict()}, indent=1))
        return
    console.say(found.summary())
    console.say(f"{arguments.model}: {format_bytes(size)} on disk")
    console.say()
    console.table(found.header(), found.rows(), left=7, droppable=("output", "scale", "shape", "type"))
