"""`qi verify`: a deployed file beside the model it was made of, and a gate for scripts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qi.cli.console import Console
from qi.cli.exits import RefusedError
from qi.cli.options import add_arithmetic, add_json, add_samples, arithmetic_of, check_input, positive, tolerance
from qi.errors import InputError

__all__ = ["add", "run"]

_SUFFIXES = (".tflite", ".onnx")


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "verify", help="compare a deployed file with its model, bit for bit", allow_abbrev=False,
        description="Runs a file in its runtime and compares every output with what `qi emulate` gives for the model; exits "
        "with 3 where they differ.",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", type=Path, help=f"a {' or '.join(_SUFFIXES)} file")
    parser.add_argument("--model", metavar="MODEL", type=Path, required=True, help="the quantized .keras file")
    add_samples(parser, required=False)
    parser.add_argument(
        "--max-lsb", metavar="D", type=tolerance, default=0.0,
        help="allow differences of so many steps of the output's scale; of real numbers: 255ths of the largest (default: 0, and "
        "float rounding)",
    )  # fmt: skip
    parser.add_argument("--threads", metavar="N", type=positive, default=1, help="of the runtime (default: 1)")
    add_json(parser)
    add_arithmetic(parser, from_file=True)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Compares and prints; raises RefusedError where the file differs."""
    check_input(arguments.file, "a deployed model")
    check_input(arguments.model, "a model")
    if arguments.file.suffix.lower() not in _SUFFIXES:
        raise InputError(f"expected a file ending in {' or '.join(_SUFFIXES)}; received {str(arguments.file)!r}")
    from qi.cli.models import load_to_compare

    model, data = load_to_compare(arguments.model, arguments.data)
    from qi.cli.quiet import without_chatter
    from qi.exporters.report import told_difference
    from qi.exporters.verify import verify

    with without_chatter():
        found = verify(arguments.file, model, data, threads=arguments.threads, **arithmetic_of(arguments))
    console.say(json.dumps(found.to_dict(), indent=1) if arguments.json else found)
    if not (found.equal or found.proof.max_lsb <= arguments.max_lsb):
        first = f", first in {found.proof.first.name!r}" if found.proof.first is not None else ""
        way_out = (
            "look at the runtime's version and at this processor, as the file is what an export gives"
            if found.identical
            else "export the model again"
        )
        raise RefusedError(
            f"expected {str(arguments.file)!r} to give what {str(arguments.model)!r} gives; {told_difference(found.proof)}"
            f"{first}; do {way_out}"
        )
