"""The command `qi`: reads the command line, runs one command, ends with an exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

import qi
from qi.cli import calibrate, demo, emulate, evaluate, export, inspect, quantize, search, serve, verify
from qi.cli.console import Console
from qi.cli.exits import BAD_INPUT, FAILED, INTERRUPTED, OK, REFUSED, exit_code, message_of
from qi.cli.options import Parser
from qi.cli.quiet import debugging, shown_warnings

__all__ = ["main", "make_parser"]

COMMANDS = (demo, quantize, search, calibrate, evaluate, inspect, export, emulate, verify, serve)
"""The modules of the commands, in the order of the help; each has ``add(commands)`` and ``run(arguments, console)``."""

_ENDING = f"""exit codes: {OK} done; {FAILED} failed (no space, no memory, a missing package); {BAD_INPUT} wrong option or
input; {REFUSED} a condition isn't met (--strict, --max-drop, verify); {INTERRUPTED} interrupted.
Results go to standard output, everything else to standard error. QI_DEBUG=1 shows where an error comes from."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; it imports nothing that is slow."""
    parser = Parser(
        prog="qi", usage="qi COMMAND ...", description="Quantize trained Keras models and deploy them.", epilog=_ENDING,
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"qi {qi.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND ...", prog="qi", required=True)
    for module in COMMANDS:
        module.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        argv: the arguments after "qi"; those of the process by default.

    Returns:
        0 done; 1 failed; 2 wrong option or input; 3 a condition of the user's isn't met; 130 interrupted.

    Raises:
        SystemExit: ``--help``, ``--version`` and wrong options end the process.
    """
    arguments = make_parser().parse_args(argv)
    console = Console(quiet=getattr(arguments, "quiet", False))
    try:
        with shown_warnings(console):
            arguments.run(arguments, console)
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        with contextlib.suppress(OSError, ValueError):  # or Python complains once more when it ends
            descriptor = sys.stdout.fileno()
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        return FAILED
    except (Exception, KeyboardInterrupt) as error:
        if debugging():
            traceback.print_exc()
        console.fail(message_of(error))
        return exit_code(error)
    return OK
