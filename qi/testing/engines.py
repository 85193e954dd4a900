"""TensorFlow, as the contract runs it: results eagerly, in a graph and compiled by XLA, and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from qi.errors import UnsupportedError
from qi.quantizers import BaseTrainableQuantizer

__all__ = ["ENGINES", "evaluate", "gradients_of", "tensorflow_backend"]

ENGINES = ("tensorflow eager", "tf.function", "XLA")

Job = tuple[BaseTrainableQuantizer, Mapping[str, np.ndarray], np.ndarray, np.ndarray]
"""(quantizer, variables, x, noise)"""


def tensorflow_backend() -> tuple[Any, Any]:
    """(tensorflow, keras).

    Raises:
        UnsupportedError: Keras runs on another backend.
    """
    import keras
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        raise UnsupportedError(
            f"expected Keras on TensorFlow for the contract; received backend={keras.backend.backend()!r}; "
            "do set KERAS_BACKEND=tensorflow before Keras is imported"
        )
    return tf, keras


def evaluate(engine: str, jobs: Sequence[Job]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(result, result in training, transform) of every job, in one function that is compiled once."""
    tf, _ = tensorflow_backend()
    quantizers = [job[0] for job in jobs]

    def run(given: Any) -> Any:
        return [
            (
                quantizer.apply(x, variables),
                quantizer.apply(x, variables, training=True, noise=partial(_given, noise)),
                quantizer.transform(x, variables),
            )
            for quantizer, (variables, x, noise) in zip(quantizers, given, strict=True)
        ]

    function = run if engine == ENGINES[0] else tf.function(run, autograph=False, jit_compile=engine == ENGINES[2])
    given = tf.nest.map_structure(tf.constant, [(dict(variables), x, noise) for _, variables, x, noise in jobs])
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [
        (a.numpy(), b.numpy(), c.numpy()) for a, b, c in function(given)
    ]
    return found


def _given(noise: Any, x: Any) -> Any:
    """The noise, whatever asks for it."""
    return noise


def gradients_of(job: Job, upstream: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """(gradient of x, gradients of the variables, result) of ``sum(upstream * result)`` of a training step."""
    tf, _ = tensorflow_backend()
    quantizer, variables, values, noise = job
    x, held = tf.constant(values), {name: tf.constant(value) for name, value in variables.items()}
    with tf.GradientTape() as tape:
        tape.watch([x, held])
        result = quantizer.apply(x, held, training=True, noise=lambda _: tf.constant(noise))
    for_x, for_variables = tape.gradient(
        result,
        [x, held],
        output_gradients=tf.constant(upstream),
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return for_x.numpy(), {name: value.numpy() for name, value in for_variables.items()}, result.numpy()
