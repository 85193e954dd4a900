"""numpy, TensorFlow (eager, graph, XLA), torch, and Keras on JAX and on torch give identical codes and values.

The exceptions, each with its cause and its own test below:

* TensorFlow divides by a *constant* of a graph through its reciprocal, so codes next to a tie move; parameters are
  variables, arguments or `frozen` for that reason. JAX would too, and by any broadcast scale: see `divide`.
* TensorFlow, XLA and JAX may take subnormal inputs for 0 (flush-to-zero); numpy and torch don't.
* Keras' torch backend has no uint16: it holds such codes, the same numbers, as int32.
* JAX has no float64 unless its x64 mode is on.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from qi.core.affine import fake_quantize, quantize
from qi.core.grid import IntGrid
from qi.core.namespace import namespace_of
from tests.backends import BACKENDS
from tests.parity import cases
from tests.parity.cases import CASES

each_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def expected():
    """numpy's results for every case."""
    return {name: cases.expected(case) for name, case in CASES.items()}


def plain(function):
    return function


def graph(function):
    import tensorflow as tf

    return tf.function(function, autograph=False)


def xla(function):
    import tensorflow as tf

    return tf.function(function, autograph=False, jit_compile=True)


@pytest.mark.parametrize("compiled", [plain, graph, xla])
@each_case
def test_tensorflow_gives_numpys_bits(name, compiled, expected):
    tensorflow = BACKENDS[0]
    found = cases.computed(CASES[name], tensorflow.tensor, tensorflow.numpy, compiled)
    cases.assert_same(found, expected[name])


@each_case
def test_torch_gives_numpys_bits(name, expected):
    torch = BACKENDS[1]
    cases.assert_same(cases.computed(CASES[name], torch.tensor, torch.numpy, plain), expected[name])


@pytest.fixture(scope="module", params=["jax", "torch"])
def backend(request, checkout, tmp_path_factory):
    """(name, what `on_backend` computed in a process of its own)"""
    pytest.importorskip(request.param)
    out = tmp_path_factory.mktemp("backend") / "out.npz"
    command = [sys.executable, "-m", "tests.parity.on_backend", str(out)]
    environment = os.environ | {"KERAS_BACKEND": request.param}
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    with np.load(out) as arrays:
        return request.param, dict(arrays)


@each_case
def test_keras_on_other_backends_gives_numpys_bits(name, backend, expected):
    framework, arrays = backend
    modes = ["eager", "variables", *(["compiled", "constants"] if framework == "jax" else [])]
    for mode in modes:
        found = {result: arrays[key] for result in cases.NAMES if (key := f"{mode}/{name}/{result}") in arrays}
        if framework == "jax" and CASES[name].dtype == "float64":
            assert not found
            continue
        if (framework, mode) == ("torch", "variables") and CASES[name].grid.storage_dtype == np.uint16:
            for result in ("codes", "floor", "stochastic"):
                assert found[result].dtype == np.int32  # if not: Keras knows uint16 now, and the exception can go
                found[result] = found[result].astype(np.uint16)
        cases.assert_same(found, expected[name])


def test_gradients_on_other_backends_are_1_at_both_edges_and_those_of_lsq(backend):
    _, arrays = backend
    np.testing.assert_array_equal(arrays["gradients/for_x"], cases.EDGES_GRADIENT)
    np.testing.assert_allclose(arrays["gradients/for_scale"], cases.lsq_gradient(), rtol=1e-6)


def assert_numpys_or_flushed(codes):
    """Each code is numpy's for x, or numpy's for x with subnormal numbers taken for 0."""
    x, case = cases.subnormals(), cases.SMALLEST
    own, alternative = (quantize(v, case.scale, 0, case.grid) for v in (x, cases.flushed(x)))
    assert (own != alternative).any()
    assert np.all((codes == own) | (codes == alternative))


@pytest.mark.parametrize("compiled", [plain, graph, xla])
def test_exception_subnormal_inputs_are_0_to_tensorflow_and_xla(compiled):
    import tensorflow as tf

    case = cases.SMALLEST
    function = compiled(lambda x, scale: quantize(x, scale, 0, case.grid))
    assert_numpys_or_flushed(function(tf.constant(cases.subnormals()), tf.constant(np.float32(case.scale))).numpy())


def test_exception_subnormal_inputs_are_0_to_jax_but_not_to_torch(backend):
    framework, arrays = backend
    if framework == "torch":
        case = cases.SMALLEST
        np.testing.assert_array_equal(arrays["subnormals"], quantize(cases.subnormals(), case.scale, 0, case.grid))
    assert_numpys_or_flushed(arrays["subnormals"])


@pytest.mark.parametrize("compiled", [graph, xla])
def test_exception_tensorflow_divides_by_a_constant_through_its_reciprocal(compiled):
    import tensorflow as tf

    grid, scale = IntGrid(8), np.float32(1 / 3)
    x = np.float32((np.arange(-200, 200) + 0.5) * float(scale))
    x = np.concatenate(
        [x, np.nextafter(x, np.float32(0)), np.random.default_rng(0).normal(0, 30, 999)], dtype=np.float32
    )
    codes = compiled(lambda x: quantize(x, scale, 0, grid))(tf.constant(x)).numpy()
    own = quantize(x, scale, 0, grid)
    through_reciprocal = np.clip(np.rint(x * (np.float32(1) / scale)), grid.qmin, grid.qmax)
    np.testing.assert_array_equal(codes, through_reciprocal)
    moved = codes != own
    assert moved.any()  # if not: TensorFlow divides now, and the exception can go
    u = np.abs(x[moved].astype(np.float64) / float(scale))
    assert np.all(np.abs(u - np.floor(u) - 0.5) <= 2 * np.spacing(np.float32(u)))
    assert np.all(np.abs(codes[moved].astype(int) - own[moved]) == 1)


@pytest.mark.parametrize("compiled", [graph, xla])
def test_a_frozen_scale_or_a_variable_is_no_constant_to_a_graph(compiled):
    import keras
    import tensorflow as tf

    grid, scale = IntGrid(8), np.float32(1 / 3)
    x = np.float32((np.arange(-200, 200) + 0.5) * float(scale))
    xp = namespace_of(tf.constant(0))
    for held in (xp.frozen(scale), keras.Variable(scale, trainable=False), tf.Variable(scale)):
        function = compiled(lambda x, held=held: fake_quantize(x, held, 0, grid))
        np.testing.assert_array_equal(function(tf.constant(x)).numpy(), fake_quantize(x, scale, 0, grid))
