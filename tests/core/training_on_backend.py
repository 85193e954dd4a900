"""A process of its own (KERAS_BACKEND is chosen once): `train_quantize` against autodiff of `fake_quantize` on that backend."""

from __future__ import annotations

import keras
import numpy as np

from tests.core.test_training import CASES, assert_equal_gradients, ours, problem, reference


def gradients(function, arrays, upstream):
    """(result, gradients)"""

    def total(*given):
        return keras.ops.sum(function(*given) * keras.ops.convert_to_tensor(upstream))

    tensors = [keras.ops.convert_to_tensor(a) for a in arrays]
    if keras.backend.backend() == "jax":
        import jax

        for compiled in (lambda f: f, jax.jit):
            result = compiled(function)(*tensors)
            found = compiled(jax.grad(total, argnums=tuple(range(len(arrays)))))(*tensors)
            yield np.asarray(result), [np.asarray(g) for g in found]
        return
    variables = [keras.Variable(a) for a in tensors]
    values = [v.value for v in variables]
    total(*values).backward()
    result = keras.ops.convert_to_numpy(function(*values))
    yield result, [keras.ops.convert_to_numpy(v.grad) for v in values]


def main() -> None:
    """Prints how many cases agreed."""
    for name in CASES:
        arrays, grid, upstream = problem(name)
        pairs = zip(gradients(ours(grid), arrays, upstream), gradients(reference(grid), arrays, upstream), strict=True)
        for (result, found), (_, wanted) in pairs:
            np.testing.assert_array_equal(result, reference(grid)(*arrays), err_msg=name)
            assert_equal_gradients(found, wanted)
    print(len(CASES))


if __name__ == "__main__":
    main()
