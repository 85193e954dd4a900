"""`qi emulate`: what a runtime will answer, computed here, bit for bit."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from qi.cli.console import Console
from qi.cli.options import (
    add_arithmetic,
    add_batch_size,
    add_samples,
    arithmetic_of,
    check_input,
    check_output,
    writing,
)
from qi.files import write_atomically

__all__ = ["TARGETS", "add", "run"]

TARGETS = ("litert", "onnxruntime", "reference")
"""The runtimes that are known."""


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "emulate", help="compute what a runtime will answer, bit for bit", allow_abbrev=False,
        description="Computes what a quantized model answers once it is deployed, by the integer arithmetic of the runtime, "
        "and saves the outputs by name.",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", type=Path, help="a quantized .keras file")
    add_samples(parser, required=True)
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="the .npz file to write")
    parser.add_argument(
        "--target", choices=TARGETS, default=TARGETS[0],
        help="the runtime (default: litert); reference: LiteRT's reference kernels, as on microcontrollers",
    )  # fmt: skip
    parser.add_argument("--raw", action="store_true", help="save codes in place of what they stand for")
    add_batch_size(parser)
    add_arithmetic(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Computes the outputs and saves them."""
    check_input(arguments.model, "a model")
    check_output(arguments.out, [".npz"], [arguments.model, arguments.data])
    from qi.cli.data import EVALUATION
    from qi.cli.models import load_with_samples, output_names

    model, name, data = load_with_samples(arguments.model, arguments.data, EVALUATION)
    import numpy as np

    from qi.keras import emulate

    with console.progress() as progress:
        found = emulate(
            model,
            data,
            arguments.target,
            raw=arguments.raw,
            **arithmetic_of(arguments),
            batch_size=arguments.batch_size,
            progress=progress,
        )
    outputs = output_names(model, found)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **outputs)
    with writing(arguments.out):
        write_atomically(arguments.out, buffer.getvalue())
    count = len(next(iter(outputs.values())))
    what = "output" if len(outputs) == 1 else "outputs"
    console.say(f"{what} {', '.join(map(repr, outputs))}: {count} samples{name} on {arguments.target}")
    console.say(f"saved {arguments.out}")
