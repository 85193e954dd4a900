"""Loading TensorFlow without its chatter, which would bury the one line that a script looks for."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

from qi.cli.console import Console
from qi.errors import QiError

__all__ = ["debugging", "load_keras", "shown_warnings", "without_chatter"]


def debugging() -> bool:
    """Whether QI_DEBUG asks for everything to be shown."""
    return os.environ.get("QI_DEBUG", "") not in ("", "0")


def load_keras() -> None:
    """Imports `qi.keras`; what TensorFlow writes meanwhile is shown only if that fails, or with QI_DEBUG=1."""
    if "qi.keras" in sys.modules:
        return
    if not debugging():
        # What fails also raises; below that level, CPUs without CUDA complain.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with without_chatter():
        importlib.import_module("qi.keras")


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, past Python, unless that may explain an error, or with QI_DEBUG=1.

    No log level reaches TensorFlow's first lines, nor LiteRT's.
    """
    if debugging():
        yield
        return
    try:
        terminal = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except (QiError, KeyboardInterrupt):  # which need no explanation
            raise
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


@contextlib.contextmanager
def shown_warnings(console: Console) -> Iterator[None]:
    """Shows Python's warnings as one line each, at the end and each only once."""
    with warnings.catch_warnings(record=True) as caught:
        from qi.errors import QuantizationWarning

        warnings.simplefilter("always", QuantizationWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(found.message) for found in caught):
                console.warn(text)
