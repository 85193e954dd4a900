"""Running models on data of users: whatever a layer raises becomes an error that says which data it was."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from qi.errors import InputError, QiError
from qi.keras.variables import to_numpy

__all__ = ["eagerly", "fixed_batch", "predict", "stateless_call", "translated"]

_LONGEST = 300
_COLOUR = re.compile(r"\x1b\[\d*m")


def fixed_batch(shapes: list[Any]) -> int | None:
    """The batch size that input shapes demand; None where any will do."""
    return next((shape[0] for shape in shapes if len(shape) and shape[0] is not None), None)


@contextmanager
def translated(model: str, inputs: Mapping[str, Any], expected: list[Any]) -> Iterator[None]:
    """Turns what a model raises on its inputs into an InputError that names them; the cause is kept.

    Args:
        model: its name.
        inputs: arrays by the name of the input.
        expected: the shapes of the model's inputs.

    Raises:
        InputError: the model raised anything but an error of QI's or one of too little memory.
    """
    try:
        yield
    except Exception as error:  # layers are code of users: they may raise anything
        if isinstance(error, (QiError, MemoryError)) or type(error).__name__ == "ResourceExhaustedError":
            raise
        received = ", ".join(f"{name!r} of shape {tuple(np.shape(array))}" for name, array in inputs.items())
        size = fixed_batch(expected)
        advice = f"pass whole batches of {size} samples" if size else "look at the samples, or at the layer it names"
        raise InputError(
            f"expected samples that {model!r} can run on, of shape {[tuple(shape) for shape in expected]}; received "
            f"{received}, on which it raised {type(error).__name__}: {_in_short(error)}; do {advice}"
        ) from error


@contextmanager
def eagerly() -> Iterator[None]:
    """Has functions that users compiled run as they are written, so that hooks see real values."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        before = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(before)
    elif backend == "jax":
        import jax

        with jax.disable_jit():
            yield
    else:
        yield


def stateless_call(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    """The flat outputs of a model on one batch; states, as those of a stateful RNN, stay as they are.

    Args:
        model: called in inference mode, not compiled.
        inputs: in its own structure.
    """
    with keras.StatelessScope():  # what is assigned within is dropped with it
        outputs = keras.tree.flatten(model(inputs, training=False))
        return [to_numpy(array) for array in outputs]


def predict(model: keras.Model, x: Any, batch_size: int | None = None) -> Any:
    """A model's predictions as numpy arrays.

    Args:
        model: any built model.
        x: an array, or a list or dict of them; text in any kind of array.
        batch_size: samples at a time; by default what the model's inputs demand, or what Keras takes.

    Raises:
        InputError: the model can't be run on such samples.
    """
    shapes = [tuple(tensor.shape) for tensor in getattr(model, "inputs", None) or ()]
    with translated(model.name, _named(x), shapes):
        return model.predict(
            keras.tree.map_structure(_text_as_tensor, x), batch_size=batch_size or fixed_batch(shapes), verbose=0
        )


def _named(x: Any) -> Mapping[str, Any]:
    if isinstance(x, Mapping):
        return x
    flat = keras.tree.flatten(x)
    return {f"x[{index}]" if len(flat) > 1 else "x": array for index, array in enumerate(flat)}


def _text_as_tensor(array: Any) -> Any:
    """Keras takes text in tensors only."""
    is_text = isinstance(array, np.ndarray) and (array.dtype.kind in "US" or _holds_text(array))
    return keras.ops.convert_to_tensor(array.astype(object), dtype="string") if is_text else array


def _holds_text(array: np.ndarray) -> bool:
    return array.dtype == object and all(isinstance(item, (str, bytes)) for item in array.flat)


def _in_short(error: Exception) -> str:
    """The first words of a message; frameworks add colours, arguments and call stacks."""
    text = _COLOUR.sub("", str(error)).partition("Arguments received by")[0]
    if text.startswith("Graph execution error"):  # what went wrong is said below the call stack, which is indented
        text = "\n".join(line for line in text.splitlines()[2:] if not line.startswith(("Detected at", " ", "\t")))
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
