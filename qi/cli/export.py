"""`qi export`: a quantized model as a file for LiteRT or ONNX Runtime, with the proof that it gives the same numbers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qi.cli.console import Console
from qi.cli.exits import RefusedError
from qi.cli.options import (
    add_arithmetic,
    add_json,
    add_samples,
    arithmetic_of,
    check_input,
    check_output,
    positive,
    writing,
)
from qi.errors import InputError, StrictError

__all__ = ["SUFFIXES", "add", "run"]

SUFFIXES = {".tflite": "litert", ".onnx": "onnx"}
"""Of the files that can be written -> their format."""


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "export", help="write a quantized model for LiteRT or ONNX Runtime", allow_abbrev=False,
        description="Writes a quantized model as a file for LiteRT (.tflite) or ONNX Runtime (.onnx), runs it there, and "
        "compares every output with what `qi emulate` gives.",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", type=Path, help="a quantized .keras file")
    parser.add_argument(
        "-o", "--out", metavar="OUT", type=Path, required=True,
        help=f"the file to write ({' or '.join(SUFFIXES)}), or the folder of integers",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=[*SUFFIXES.values(), "integers"],
        help="by default as OUT ends; integers: a folder of plain integers, for kernels of other hardware",
    )  # fmt: skip
    add_samples(parser, required=False)
    parser.add_argument("--integer-io", action="store_true", help="codes as inputs and outputs, in place of float32")
    parser.add_argument("--opset", metavar="N", type=positive, help="of an .onnx file")
    parser.add_argument("--strict", action="store_true", help="exit with 3 and write nothing if any output differs")
    parser.add_argument("--no-latency", action="store_true", help="don't time the file beside a float one")
    add_json(parser)
    add_arithmetic(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Writes the file and prints its report."""
    check_input(arguments.model, "a model")
    _check_out(arguments)
    from qi.cli.models import load_to_compare

    model, data = load_to_compare(arguments.model, arguments.data)
    from qi.cli.quiet import without_chatter
    from qi.exporters.deploy import export

    try:
        with writing(arguments.out), without_chatter():
            report = export(
                model,
                arguments.out,
                samples=data,
                format=arguments.format,
                integer_io=arguments.integer_io,
                opset=arguments.opset,
                **arithmetic_of(arguments),
                strict=arguments.strict,
                latency=not arguments.no_latency,
            )
    except StrictError as error:
        raise RefusedError(str(error)) from error
    console.say(json.dumps(report.to_dict(), indent=1) if arguments.json else f"{report}\n\nsaved {arguments.out}")


def _check_out(arguments: argparse.Namespace) -> None:
    """Raises InputError where what is to be written, and where, can't be."""
    out, format = arguments.out, arguments.format
    meant = SUFFIXES.get(out.suffix.lower())
    if format is not None and meant not in (None, format):
        raise InputError(f"expected another name for --format {format}; received {str(out)!r}, as {meant} files end")
    if arguments.opset is not None and "onnx" not in (format, meant):
        raise InputError(f"expected --opset for .onnx files only; received {str(out)!r}")
    if format != "integers":
        suffixes = list(SUFFIXES) if format is None else [out.suffix.lower()]
        check_output(out, suffixes, [path for path in (arguments.model, arguments.data) if path is not None])
    elif arguments.integer_io:
        raise InputError(
            "expected --integer-io for files only; received --format integers, which takes codes in any case"
        )
    elif not out.parent.is_dir():
        raise InputError(f"expected a folder that exists; received {str(out.parent)!r}; do create it first")
