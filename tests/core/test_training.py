"""`train_quantize` against automatic differentiation of `fake_quantize`, and against other frameworks' own operators."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from qi.core.affine import fake_quantize
from qi.core.grid import IntGrid
from qi.core.training import train_quantize
from qi.errors import ConfigError, InputError
from tests.backends import BACKENDS

RNG = np.random.default_rng(0)
UNSIGNED = IntGrid(4, signed=False)
CASES = {  # x's shape, scale, zero point, grid
    "one": ((40, 3), np.float32(0.37), None, IntGrid(3)),
    "per channel": ((40, 3), np.float32([[0.1, 0.37, 2.0]]), None, IntGrid(4, narrow=True)),
    "axis 0": ((3, 2, 9), np.float32([0.1, 0.37, 2.0]).reshape(3, 1, 1), None, IntGrid(8)),
    "zero point": ((40, 3), np.float32([[0.1, 0.37, 2.0]]), np.float32([[0, 7, 15]]), UNSIGNED),
    "one zero point": ((40, 3), np.float32(0.21), np.float32(5), UNSIGNED),
    "1 bit": ((40, 3), np.float32(0.8), None, IntGrid(1)),
}
each_case = pytest.mark.parametrize("name", CASES)
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


def problem(name):
    """(arrays: x, scale and perhaps zero point; grid; upstream); x holds ties, edges, 0 and the huge."""
    shape, scale, zero_point, grid = CASES[name]
    rng = np.random.default_rng(1)
    steps = rng.integers(2 * (grid.qmin - grid.qmax), 2 * (grid.qmax - grid.qmin), shape) / 2
    steps = np.where(rng.random(shape) < 0.5, steps, rng.normal(size=shape) * grid.levels / 2)
    x = (steps * scale).astype(np.float32)
    x.flat[:4] = [0.0, -0.0, 1e30, -1e30]
    arrays = (x, scale) if zero_point is None else (x, scale, zero_point)
    return arrays, grid, rng.normal(size=shape).astype(np.float32)


def ours(grid, **options):
    return lambda x, s, *z: train_quantize(x, s, z[0] if z else None, grid, **options)


def reference(grid, **options):
    return lambda x, s, *z: fake_quantize(x, s, z[0] if z else np.float32(0), grid, **options)


def assert_equal_gradients(found, wanted):
    np.testing.assert_array_equal(found[0] == 0, wanted[0] == 0)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)  # autodiff multiplies by s and divides by it
    for mine, other in zip(found[1:], wanted[1:], strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(other).max()))


@each_case
def test_the_forward_pass_is_fake_quantizes(name):
    arrays, grid, _ = problem(name)
    found, wanted = ours(grid)(*arrays), reference(grid)(*arrays)
    np.testing.assert_array_equal(found, wanted)
    assert not np.signbit(found[found == 0]).any()
    assert found.dtype == np.float32


@each_case
@each_backend
def test_gradients_are_those_of_autodiff(name, backend):
    arrays, grid, upstream = problem(name)
    found = backend.gradients(ours(grid), *arrays, upstream=upstream)
    assert_equal_gradients(found, backend.gradients(reference(grid), *arrays, upstream=upstream))
    tensors = [backend.tensor(a) for a in arrays]
    np.testing.assert_array_equal(backend.numpy(ours(grid)(*tensors)), reference(grid)(*arrays))


@pytest.mark.parametrize("xla", [False, True], ids=["graph", "xla"])
def test_graphs_and_xla(xla):
    import tensorflow as tf

    problems = [problem(name) for name in CASES]

    def run(function_of, all_arrays):
        found = []
        for (_, grid, upstream), arrays in zip(problems, all_arrays, strict=True):
            with tf.GradientTape() as tape:
                tape.watch(arrays)
                y = function_of(grid)(*arrays)
            found.append((y, tape.gradient(y, arrays, output_gradients=upstream)))
        return found

    given = [[tf.constant(a) for a in arrays] for arrays, _, _ in problems]
    compiled = tf.function(lambda a: run(ours, a), autograph=False, jit_compile=xla)
    for (y, found), (eager, wanted), (arrays, grid, _) in zip(
        compiled(given), run(reference, given), problems, strict=True
    ):
        np.testing.assert_array_equal(y, eager)
        np.testing.assert_array_equal(y, reference(grid)(*arrays))
        assert_equal_gradients([g.numpy() for g in found], [g.numpy() for g in wanted])


@pytest.mark.parametrize("rounding", ["floor", "stochastic"])
@each_backend
def test_other_roundings(backend, rounding):
    arrays, grid, upstream = problem("zero point")
    options = {"rounding": rounding, "noise": np.random.default_rng(2).random(arrays[0].shape, dtype=np.float32)}
    np.testing.assert_array_equal(ours(grid, **options)(*arrays), reference(grid, **options)(*arrays))
    found = backend.gradients(ours(grid, **options), *arrays, upstream=upstream)
    assert_equal_gradients(found, backend.gradients(reference(grid, **options), *arrays, upstream=upstream))


@each_backend
def test_additive_noise(backend):
    arrays, grid, upstream = problem("one")
    x, scale = arrays
    noise = np.random.default_rng(2).random(x.shape, dtype=np.float32)
    function = ours(grid, rounding="noise", noise=noise)
    u = np.clip(x.astype(np.float64) / scale, grid.qmin, grid.qmax)
    value = np.clip(u + noise - 0.5, grid.qmin, grid.qmax)
    np.testing.assert_allclose(function(*arrays), value * scale, rtol=1e-5, atol=1e-6)
    _, for_scale = backend.gradients(function, *arrays, upstream=upstream)
    inside = u == x.astype(np.float64) / scale
    np.testing.assert_allclose(for_scale, np.sum(upstream * np.where(inside, value - u, value)), rtol=1e-4)


def test_without_the_residual_it_is_tensorflows_fake_quant():
    """fake_quant_with_min_max_vars: 1 for the end that clips, nothing from rounding errors within the range."""
    import tensorflow as tf

    arrays, grid, upstream = problem("one zero point")
    x, scale, zero_point = arrays
    lo, hi = (grid.qmin - zero_point) * scale, (grid.qmax - zero_point) * scale
    for_x, for_lo, for_hi = tf.quantization.fake_quant_with_min_max_vars_gradient(
        upstream, x, lo, hi, num_bits=grid.bits
    )
    found = BACKENDS[0].gradients(ours(grid, residual=False), *arrays, upstream=upstream)
    edges = np.isclose(x, lo) | np.isclose(x, hi)  # there it compares with its own nudged ends
    np.testing.assert_array_equal(found[0][~edges], for_x.numpy()[~edges])
    # y = lo below and hi above, with lo = -z s and hi = (qmax - z) s
    keep = np.where(edges, 0, upstream).astype(np.float32)
    _, for_lo, for_hi = tf.quantization.fake_quant_with_min_max_vars_gradient(keep, x, lo, hi, num_bits=grid.bits)
    _, for_scale, for_zero = BACKENDS[0].gradients(ours(grid, residual=False), *arrays, upstream=keep)
    np.testing.assert_allclose(for_scale, -zero_point * for_lo + (grid.qmax - zero_point) * for_hi, rtol=1e-5)
    np.testing.assert_allclose(for_zero, -scale * (for_lo + for_hi), rtol=1e-5)


def test_it_is_torchs_learnable_fake_quantize():
    torch = pytest.importorskip("torch")
    (x, scale, zero_point), grid, upstream = problem("one zero point")
    x = np.clip(x, -50, 50)
    tensors = [torch.tensor(np.reshape(a, np.shape(a) or (1,)), requires_grad=True) for a in (x, scale, zero_point)]
    y = torch._fake_quantize_learnable_per_tensor_affine(*tensors, grid.qmin, grid.qmax, 1.0)
    y.backward(torch.tensor(upstream))
    arrays = (x, np.reshape(scale, (1,)), np.reshape(zero_point, (1,)))
    u = x / scale
    ties = np.abs(u - np.floor(u) - 0.5) < 1e-4  # torch multiplies by the reciprocal
    np.testing.assert_allclose(ours(grid)(*arrays)[~ties], y.detach().numpy()[~ties], rtol=1e-6)
    for_x, for_scale, for_zero = BACKENDS[1].gradients(ours(grid), *arrays, upstream=upstream)
    codes = np.rint(u) + zero_point
    edge = (codes <= grid.qmin) & (codes >= grid.qmin - 1) | (codes >= grid.qmax) & (codes <= grid.qmax + 1)
    edge |= ties  # torch clips what is rounded, we clip before
    np.testing.assert_array_equal(for_x[~edge], tensors[0].grad.numpy()[~edge])
    differ = np.sum(np.abs(upstream[edge | ties]))
    assert np.all(np.abs(for_scale - tensors[1].grad.numpy()) <= differ + 1e-3)
    assert np.all(np.abs(for_zero - tensors[2].grad.numpy()) <= differ * scale + 1e-3)
    # Away from those the three agree.
    kept = np.where(edge | ties, 0, upstream).astype(np.float32)
    for tensor in tensors:
        tensor.grad = None
    torch._fake_quantize_learnable_per_tensor_affine(*tensors, grid.qmin, grid.qmax, 1.0).backward(torch.tensor(kept))
    found = BACKENDS[1].gradients(ours(grid), *arrays, upstream=kept)
    for mine, tensor in zip(found, tensors, strict=True):
        np.testing.assert_allclose(mine, tensor.grad.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["ste", "ewgs", "dsq"])
@each_backend
def test_estimators_change_the_gradient_of_the_tensor_alone(backend, name):
    from qi.core.estimators import ESTIMATORS
    from qi.core.namespace import NUMPY

    (x, scale), grid, upstream = problem("one")
    found = backend.gradients(ours(grid, estimator=name), x, scale, upstream=upstream)
    plain = backend.gradients(ours(grid), x, scale, upstream=upstream)
    np.testing.assert_allclose(found[1], plain[1], rtol=1e-6)  # sums, in whatever order a body makes them
    u = x / scale
    clipped = np.clip(u, grid.qmin, grid.qmax)
    wanted = ESTIMATORS.get(name)(upstream, u, clipped, np.rint(clipped), xp=NUMPY)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=1e-6)
    assert not np.array_equal(found[0], plain[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@each_backend
def test_half_precision_in_and_out(backend, dtype):
    xp_cast = {"tensorflow": lambda x: __import__("tensorflow").cast(x, dtype)}.get(backend.name)
    if xp_cast is None:
        xp_cast = lambda x: x.to(getattr(__import__("torch"), dtype))
    x = backend.tensor(np.float32([-3.0, 0.3, 0.26, 9.0]))
    y = train_quantize(xp_cast(x), backend.tensor(np.float32(0.5)), None, IntGrid(3))
    assert str(y.dtype).endswith(dtype) or y.dtype.name == dtype
    assert [float(v) for v in y] == [-2.0, 0.5, 0.5, 1.5]


def test_integers_give_float32_and_nan_stays():
    y = train_quantize(np.array([3, -9]), np.float32(2), None, IntGrid(3))
    assert y.dtype == np.float32
    assert y.tolist() == [4, -8]
    y = train_quantize(np.float32([np.nan, np.inf, -np.inf]), np.float32(0.5), None, IntGrid(3))
    np.testing.assert_array_equal(y, [np.nan, 1.5, -2.0])


def test_golden_numbers():
    x = np.float32([-9, -1.26, -0.25, 0.0, 0.24, 0.75, 1.25, 9])
    y = train_quantize(x, np.float32(0.5), np.float32(3), IntGrid(3, signed=False))
    assert y.tolist() == [-1.5, -1.5, 0.0, 0.0, 0.0, 1.0, 1.0, 2.0]
    found = BACKENDS[0].gradients(ours(IntGrid(3, signed=False)), x, np.float32(0.5), np.float32(3))
    assert found[0].tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
    # -3 and 4 outside; within, what rounding added: -0.48, 0.5, 0, -0.48, 0.5, -0.5
    np.testing.assert_allclose(found[1], -3 + 4 - 0.48 + 0.5 - 0.48 + 0.5 - 0.5, rtol=1e-5)
    assert found[2] == -1.0


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="expected the name of a rounding; received 'up'"):
        train_quantize(np.ones(2), np.float32(1), None, IntGrid(3), rounding="up")
    with pytest.raises(ConfigError, match="expected the name of a gradient estimator; received 'none'"):
        train_quantize(np.ones(2), np.float32(1), None, IntGrid(3), estimator="none")
    with pytest.raises(InputError, match="expected noise"):
        train_quantize(np.ones(2), np.float32(1), None, IntGrid(3), rounding="stochastic")


@pytest.mark.parametrize("keras_backend", ["jax", "torch"])
def test_keras_on_other_backends(keras_backend, checkout):
    pytest.importorskip(keras_backend)
    environment = os.environ | {"KERAS_BACKEND": keras_backend, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "tests.core.training_on_backend"]
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == str(len(CASES))
