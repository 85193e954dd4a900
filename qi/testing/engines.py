"""The backend that Keras runs on, or torch by itself, as the contract runs it: results eagerly and compiled, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np

from qi.core.namespace import to_numpy
from qi.errors import ConfigError, UnsupportedError
from qi.optional import require
from qi.quantizers import BaseTrainableQuantizer

__all__ = [
    "ENGINES",
    "as_numpy",
    "engines_here",
    "evaluate",
    "gradients_of",
    "keras_here",
    "model_gradients",
    "running_on",
    "torch_here",
    "ways_to_train",
]

ENGINES: dict[str, tuple[str, ...]] = {
    "tensorflow": ("tensorflow eager", "tf.function", "XLA"),
    "jax": ("jax eager", "jax.jit"),
    "torch": ("torch eager",),  # torch.compile needs a compiler of C++ on the machine
    "torch tensors": ("torch tensors", "torch.compile"),  # traced and differentiated, and run without such a compiler
}
"""The ways to run a function, by Keras' backend; "torch tensors" are those of torch without Keras."""

_ON: ContextVar[str] = ContextVar("on", default="keras")

_WAYS: dict[str, tuple[dict[str, bool], ...]] = {
    "tensorflow": ({"run_eagerly": True}, {}, {"jit_compile": True}),
    "jax": ({"run_eagerly": True}, {"jit_compile": True}),
    "torch": ({"run_eagerly": True}, {}),
}

Job = tuple[BaseTrainableQuantizer, Mapping[str, np.ndarray], np.ndarray, np.ndarray]
"""(quantizer, variables, x, noise)"""


def keras_here() -> tuple[Any, str]:
    """(keras, the name of its backend).

    Raises:
        UnsupportedError: Keras runs on a backend that the contract doesn't know.
    """
    import keras

    backend = keras.backend.backend()
    if backend not in ENGINES:
        raise UnsupportedError(
            f"expected Keras on one of {sorted(ENGINES)} for the contract; received backend={backend!r}; "
            "do set KERAS_BACKEND before Keras is imported"
        )
    return keras, backend


@contextmanager
def running_on(framework: str) -> Iterator[None]:
    """Within it, clauses run on Keras' backend ("keras") or on tensors of torch without Keras ("torch").

    Raises:
        ConfigError: another name.
        MissingDependencyError: torch isn't installed.
    """
    if framework not in ("keras", "torch"):
        raise ConfigError(f"expected on='keras' or on='torch'; received on={framework!r}")
    if framework == "torch":
        torch_here()
    token = _ON.set(framework)
    try:
        yield
    finally:
        _ON.reset(token)


def torch_here() -> Any:
    """The package torch.

    Raises:
        MissingDependencyError: it isn't installed.
    """
    return require("torch", "torch", "the contract on torch tensors", has="Tensor")


def _backend() -> str:
    """A key of `ENGINES`."""
    return "torch tensors" if _ON.get() == "torch" else keras_here()[1]


def engines_here() -> tuple[str, ...]:
    """The names of the engines that clauses run on now."""
    return ENGINES[_backend()]


def ways_to_train() -> tuple[dict[str, bool], ...]:
    """What ``compile`` takes for each way in which the backend runs a training step."""
    return _WAYS[keras_here()[1]]


def _compiled(function: Callable[..., Any], engine: str) -> Any:
    """The function, as that engine runs it."""
    if engine in ("tf.function", "XLA"):
        import tensorflow as tf

        return tf.function(function, autograph=False, jit_compile=engine == "XLA")
    if engine == "jax.jit":
        import jax

        return jax.jit(function)
    if engine == "torch.compile":
        torch = torch_here()
        torch.compiler.reset()  # it counts how often one piece of code is compiled
        return torch.compile(function, backend="aot_eager", fullgraph=True)
    return function


def evaluate(engine: str, jobs: Sequence[Job]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(result, result in training, transform) of every job, in one function that is compiled once."""
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

    given = [(_tensors(variables), _tensor(x), _tensor(noise)) for _, variables, x, noise in jobs]
    return [(as_numpy(a), as_numpy(b), as_numpy(c)) for a, b, c in _compiled(run, engine)(given)]


def _given(noise: Any, x: Any) -> Any:
    """The noise, whatever asks for it."""
    return noise


def _tensor(x: np.ndarray) -> Any:
    if _ON.get() == "torch":
        return torch_here().tensor(np.array(x))
    return keras_here()[0].ops.convert_to_tensor(np.array(x))


def _tensors(variables: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: _tensor(value) for name, value in variables.items()}


def as_numpy(x: Any) -> np.ndarray:
    """A tensor or variable of the framework that clauses run on as a numpy array."""
    if _ON.get() == "torch":
        return to_numpy(x)
    keras, _ = keras_here()
    return np.asarray(keras.ops.convert_to_numpy(x))


def gradients_of(job: Job, upstream: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """(gradient of x, gradients of the variables, result) of ``sum(upstream * result)`` of a training step."""
    quantizer, variables, values, noise = job
    names, fixed = list(variables), _tensor(noise)

    def run(x: Any, *held: Any) -> Any:
        named = dict(zip(names, held, strict=True))
        return quantizer.apply(x, named, training=True, noise=partial(_given, fixed))

    result, (for_x, *others) = _pulled(run, [values, *variables.values()], upstream)
    return for_x, dict(zip(names, others, strict=True)), result


def _pulled(
    function: Callable[..., Any], arrays: Sequence[np.ndarray], upstream: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(result, gradient of each array) of ``sum(upstream * function(*arrays))``; 0 where an array has no influence."""
    backend, tensors, weights = _backend(), [_tensor(array) for array in arrays], _tensor(upstream)
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            result = function(*tensors)
        zero = tf.UnconnectedGradients.ZERO
        found = tape.gradient(result, tensors, output_gradients=weights, unconnected_gradients=zero)
    elif backend == "jax":
        import jax

        result, pull = jax.vjp(function, *tensors)
        found = pull(weights)
    else:
        import torch

        tensors = [tensor.requires_grad_() for tensor in tensors]
        with torch.enable_grad():
            result = function(*tensors)
        found = torch.autograd.grad(result, tensors, weights, allow_unused=True, materialize_grads=True)
    return as_numpy(result), [as_numpy(gradient) for gradient in found]


def model_gradients(model: Any, x: np.ndarray, loss: Callable[[Any], Any]) -> tuple[list[Any], list[np.ndarray | None]]:
    """(outputs, gradients of the trainable variables) of a loss of a model's outputs in training.

    Args:
        model: a built Keras model.
        x: its input.
        loss: from the flat outputs to a number.

    Returns:
        outputs as tensors; None for a variable that the loss doesn't reach, which on JAX is zeros.
    """
    keras, backend = keras_here()
    flat = keras.tree.flatten
    if backend == "jax":
        import jax

        def run(trainable: Any) -> Any:
            state = [variable.value for variable in model.non_trainable_variables]
            outputs, state = model.stateless_call(trainable, state, x, training=True)
            return loss(flat(outputs)), (flat(outputs), state)

        start = [variable.value for variable in model.trainable_variables]
        found, (outputs, changed) = jax.grad(run, has_aux=True)(start)
        for variable, value in zip(model.non_trainable_variables, changed, strict=True):
            variable.assign(value)
        return outputs, [as_numpy(gradient) for gradient in found]
    variables = [variable.value for variable in model.trainable_variables]
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            outputs = flat(model(x, training=True))
            total = loss(outputs)
        found = tape.gradient(total, variables)
    else:
        import torch

        outputs = flat(model(x, training=True))
        found = torch.autograd.grad(loss(outputs), variables, allow_unused=True)
    return outputs, [None if gradient is None else as_numpy(gradient) for gradient in found]
