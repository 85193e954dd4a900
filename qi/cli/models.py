"""Models on disk, for the commands: loading them, feeding them, naming their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qi.cli.options import check_input
from qi.cli.quiet import load_keras

if TYPE_CHECKING:
    from qi.cli.data import Samples

__all__ = ["BATCH_SIZE", "input_names", "load", "load_to_compare", "load_with_samples", "output_names", "predict"]

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


def load_with_samples(path: Path, data: Path, names: Sequence[str]) -> tuple[Any, str, Samples]:
    """A model and the samples for it: (model, what they are called, as " (x_test)", samples).

    Args:
        path: of the model.
        data: of the samples; looked into before anything slow is done.
        names: `qi.cli.data.CALIBRATION` or `EVALUATION`.

    Raises:
        InputError, FileFormatError, OSError: as `load` and `qi.cli.data.samples`.
    """
    from qi.cli.data import ArrayFile, check_samples, samples

    file = ArrayFile(data)
    check_samples(file)
    model = load(path)
    name, found = samples(file, names, input_names(model))
    return model, f" ({name})" if name else "", found


def load_to_compare(path: Path, data: Path | None) -> tuple[Any, Samples | None]:
    """A model, and the samples to compare it on if there are any; as `load_with_samples`."""
    from qi.cli.data import EVALUATION

    if data is None:
        return load(path), None
    model, _, found = load_with_samples(path, data, EVALUATION)
    return model, found


def predict(model: Any, x: Any, batch_size: int = BATCH_SIZE) -> Any:
    """A model's predictions as numpy arrays.

    Raises:
        InputError: the model doesn't take such samples.
    """
    from qi.keras.running import predict

    return predict(model, x, batch_size)
