"""Models on disk, for the commands: loading them, feeding them, naming their files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qi.cli.options import check_input
from qi.cli.quiet import load_keras

if TYPE_CHECKING:
    from qi.cli.data import ArrayFile, Samples

__all__ = ["BATCH_SIZE", "input_names", "load", "optional_samples", "output_names", "predict"]

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


def output_names(model: Any, outputs: Any) -> dict[str, Any]:
    """A model's results by the names of its outputs.

    Args:
        model: Functional or Sequential.
        outputs: in the structure of its outputs.
    """
    from qi.keras.emulate import named_outputs

    return named_outputs(model, outputs)


def optional_samples(file: ArrayFile | None, model: Any) -> Samples | None:
    """The samples of a file to compare on, if there is one.

    Raises:
        InputError, FileFormatError: as `qi.cli.data.samples`.
    """
    from qi.cli.data import EVALUATION, samples

    return None if file is None else samples(file, EVALUATION, input_names(model))[1]


def predict(model: Any, x: Any, batch_size: int = BATCH_SIZE) -> Any:
    """A model's predictions as numpy arrays.

    Raises:
        InputError: the model doesn't take such samples.
    """
    from qi.keras.running import predict

    return predict(model, x, batch_size)
