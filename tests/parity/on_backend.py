"""A process of its own: Keras' backend (KERAS_BACKEND) is chosen once, when Keras is imported.

``KERAS_BACKEND=jax python -m tests.parity.on_backend OUT.npz`` computes every case on that backend: eagerly, compiled
(JAX), compiled with the parameters as constants (JAX), through Keras variables; and the gradients at the clip's edges.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np

from qi.core.affine import fake_quantize, quantize
from tests.parity import cases


def with_constants(function: Any) -> Any:
    """Compiles with everything but x held as a numpy constant."""
    import jax

    return lambda x, *constants: jax.jit(lambda x: function(x, *map(np.asarray, constants)))(x)


def with_variables(function: Any) -> Any:
    """The scale in a `keras.Variable`, as Keras layers hold it."""
    return lambda x, scale, *rest: function(x, keras.Variable(scale), *rest)


def modes(backend: str) -> dict[str, Any]:
    """How a function is run, by name."""
    found = {"eager": lambda function: function, "variables": with_variables}
    if backend == "jax":
        import jax

        found |= {"compiled": jax.jit, "constants": with_constants}
    return found


def gradients(backend: str) -> dict[str, np.ndarray]:
    """For x and for the scale, of the sum of fake_quantize at the edges."""
    case = cases.EDGES_CASE

    def total(x: Any, scale: Any) -> Any:
        return keras.ops.sum(fake_quantize(x, scale, 0, case.grid))

    x, scale = (keras.ops.convert_to_tensor(np.float32(v)) for v in (cases.EDGES, case.scale))
    if backend == "jax":
        import jax

        for_x, for_scale = jax.grad(total, argnums=(0, 1))(x, scale)
    else:
        x, scale = keras.Variable(x), keras.Variable(scale)
        total(x, scale).backward()
        for_x, for_scale = x.value.grad, scale.value.grad
    return {"for_x": to_numpy(for_x), "for_scale": to_numpy(for_scale)}


def to_numpy(x: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(x))


def main(path: str) -> None:
    """Computes everything and writes one array for each ``mode/case/result``."""
    backend, tensor = keras.backend.backend(), keras.ops.convert_to_tensor
    found = {f"gradients/{name}": value for name, value in gradients(backend).items()}
    for mode, compiled in modes(backend).items():
        for name, case in cases.CASES.items():
            if (backend, case.dtype) != ("jax", "float64"):  # JAX has no float64 unless its x64 mode is on
                done = cases.computed(case, tensor, to_numpy, compiled)
                found |= {f"{mode}/{name}/{result}": value for result, value in done.items()}
    smallest = cases.SMALLEST
    codes = quantize(tensor(cases.subnormals()), tensor(np.float32(smallest.scale)), 0, smallest.grid)
    np.savez(path, subnormals=to_numpy(codes), **found)


if __name__ == "__main__":
    main(sys.argv[1])
