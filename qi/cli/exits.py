"""How the command ends: exit codes, and the one line that says what went wrong."""

from __future__ import annotations

from qi.errors import MissingDependencyError, QiError

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "OK", "REFUSED", "RefusedError", "exit_code", "message_of"]

OK = 0
FAILED = 1
"""The machine was in the way: no space, no memory, a missing package, a fault of ours."""
BAD_INPUT = 2
"""What the user gave was wrong: an option, a file, a recipe. argparse uses it too."""
REFUSED = 3
"""All went well, but a condition that the user set (``--strict``, ``--max-drop``, `qi verify`) isn't met."""
INTERRUPTED = 130

_MAX_LENGTH = 1000


class RefusedError(QiError):
    """A condition that the user set isn't met."""


def exit_code(error: BaseException) -> int:
    """The exit code that an exception ends the command with.

    Example:
        >>> from qi.errors import InputError
        >>> exit_code(InputError("expected ...")), exit_code(OSError(28, "No space left on device"))
        (2, 1)
    """
    if isinstance(error, RefusedError):
        return REFUSED
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, QiError | FileNotFoundError | IsADirectoryError):
        return FAILED if isinstance(error, MissingDependencyError) else BAD_INPUT
    return FAILED


def message_of(error: BaseException) -> str:
    """What to tell the user of an exception, in one line.

    Example:
        >>> message_of(OSError(28, "No space left on device", "out.keras"))
        'No space left on device: out.keras'
    """
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, QiError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = f"not enough memory: {error}; do pass fewer samples or a smaller --batch-size"
    else:
        text = f"{type(error).__name__}: {error}; do set QI_DEBUG=1 to see where it comes from"
    line = " ".join(text.split())
    return line if len(line) <= _MAX_LENGTH else f"{line[:_MAX_LENGTH]} ... (QI_DEBUG=1 shows all)"
