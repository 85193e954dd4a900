"""Models on disk, for the commands: loading them, feeding them, naming their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qi.cli.options import check_input
from qi.cli.quiet import load_keras

__all__ = ["BATCH_SIZE", "input_names", "load", "predict"]

BATCH_SIZE = 64
"""Samples at a time where the user doesn't say."""


def load(path: Path) -> Any:
    """A model, quantized or not, without its optimizer.

    Raises:
        InputError: no such file.
        FileFormatError: damaged, or no model.
    """
    check_input(path, "a model")
    load_keras()
    from qi.keras import load_model

    return load_model(path, compile=False)


def input_names(model: Any) -> list[str]:
    """The names of a model's inputs; none where the model defines its own call."""
    try:
        return [str(tensor.name) for tensor in model.inputs or ()]
    except (AttributeError, ValueError):
        return []


def predict(model: Any, x: Any, batch_size: int = BATCH_SIZE) -> Any:
    """A model's predictions as numpy arrays.

    Raises:
        InputError: the model doesn't take such samples.
    """
    from qi.keras.running import predict

    return predict(model, x, batch_size)
