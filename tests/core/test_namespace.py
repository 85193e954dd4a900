from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from qi.core.namespace import NUMPY, namespace_of, to_numpy
from qi.errors import InputError
from tests.backends import BACKENDS

each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)

X = np.float32([[-2.5, -0.5, 0.0], [0.5, 1.5, 3.0]])
POSITIVE = np.abs(X) + np.float32(0.25)
CALLS = {
    "divide": lambda xp, x, p: xp.divide(x, p),
    "multiply": lambda xp, x, p: xp.multiply(x, p),
    "round": lambda xp, x, p: xp.round(x),
    "floor": lambda xp, x, p: xp.floor(x),
    "ceil": lambda xp, x, p: xp.ceil(x),
    "abs": lambda xp, x, p: xp.abs(x),
    "minimum": lambda xp, x, p: xp.minimum(x, p),
    "maximum": lambda xp, x, p: xp.maximum(x, p),
    "clip": lambda xp, x, p: xp.clip(x, np.float32(-1), np.float32(1)),
    "clip to tensors": lambda xp, x, p: xp.clip(x, -p, p),
    "where": lambda xp, x, p: xp.where(x < 0, x, p),
    "isnan": lambda xp, x, p: xp.isnan(x),
    "sum": lambda xp, x, p: xp.sum(x),
    "sum over an axis": lambda xp, x, p: xp.sum(x, axis=0, keepdims=True),
    "sum over axes": lambda xp, x, p: xp.sum(x, axis=(0, 1)),
    "max": lambda xp, x, p: xp.max(x),
    "max over an axis": lambda xp, x, p: xp.max(x, axis=1, keepdims=True),
    "min": lambda xp, x, p: xp.min(x),
    "min over axes": lambda xp, x, p: xp.min(x, axis=(0, 1), keepdims=True),
    "reshape": lambda xp, x, p: xp.reshape(x, (3, 2)),
    "repeat": lambda xp, x, p: xp.repeat(x, 2, 1),
    "searchsorted": lambda xp, x, p: xp.searchsorted(xp.asarray(np.float32([-1, 0, 1])), x),
    "take": lambda xp, x, p: xp.take(xp.asarray(np.float32([5, 6, 7])), xp.cast(p, "int32") % 3),
    "stop_gradient": lambda xp, x, p: xp.stop_gradient(x),
    "frozen": lambda xp, x, p: xp.multiply(xp.frozen(POSITIVE), x),
    "cast to an integer": lambda xp, x, p: xp.cast(x, "int8"),
}
INEXACT = {
    "sqrt": lambda xp, x, p: xp.sqrt(p),
    "log2": lambda xp, x, p: xp.log2(p),
    "exp2": lambda xp, x, p: xp.exp2(x),
    "tanh": lambda xp, x, p: xp.tanh(x),
}


@each_backend
@pytest.mark.parametrize("name", CALLS)
def test_every_namespace_gives_numpys_numbers(name, backend):
    x, p = backend.tensor(X), backend.tensor(POSITIVE)
    expected = CALLS[name](NUMPY, X, POSITIVE)
    np.testing.assert_array_equal(np.asarray(CALLS[name](namespace_of(x), x, p)), expected, strict=False)


@each_backend
@pytest.mark.parametrize("name", INEXACT)
def test_transcendental_functions_agree_to_a_few_ulps(name, backend):
    x, p = backend.tensor(X), backend.tensor(POSITIVE)
    expected = INEXACT[name](NUMPY, X, POSITIVE)
    np.testing.assert_allclose(np.asarray(INEXACT[name](namespace_of(x), x, p)), expected, rtol=1e-6)


@each_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "bool"])
def test_dtypes_have_numpys_names(dtype, backend):
    tensor = backend.tensor(X)
    xp = namespace_of(tensor)
    assert xp.dtype(xp.cast(tensor, dtype)) == dtype
    assert NUMPY.dtype(NUMPY.cast(X, dtype)) == dtype


@each_backend
def test_numpy_arrays_are_cast_to_tensors_of_the_backend(backend):
    tensor = namespace_of(backend.tensor(X)).cast(X, "float16")
    assert type(tensor) is type(backend.tensor(X))
    np.testing.assert_array_equal(backend.numpy(tensor), X.astype(np.float16))


@each_backend
def test_clip_passes_nan_and_makes_infinities_finite(backend):
    x = backend.tensor(np.float32([np.nan, np.inf, -np.inf]))
    clipped = namespace_of(x).clip(x, np.float32(-1), np.float32(2))
    np.testing.assert_array_equal(backend.numpy(clipped), [np.nan, 2, -1])


@each_backend
def test_a_read_only_array_becomes_a_tensor_without_a_warning(backend, readonly):
    xp = namespace_of(backend.tensor(X))
    np.testing.assert_array_equal(np.asarray(xp.asarray(readonly(X))), X)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4", "uint2"])
def test_numpy_knows_the_small_dtypes_of_ml_dtypes(dtype):
    assert NUMPY.cast(X[1], dtype).dtype == np.dtype(getattr(ml_dtypes, dtype))


def test_an_unknown_dtype_is_refused_by_name():
    with pytest.raises(InputError, match=r"name of a dtype.* received dtype='float33'"):
        NUMPY.cast(X, "float33")


def test_names_of_dtypes_leave_the_byte_order_out():
    assert NUMPY.dtype(np.zeros(1, ">f8")) == "float64"


def test_overflow_and_nan_are_no_warnings():
    huge = np.float32([3e38, np.nan, np.inf])
    assert NUMPY.multiply(huge, huge).tolist()[0] == np.inf
    assert NUMPY.divide(huge, np.float32(1e-30)).tolist()[0] == np.inf
    assert np.isnan(NUMPY.divide(huge, huge)[2])
    assert NUMPY.cast(np.array([1e300]), "float32").tolist() == [np.inf]
    assert NUMPY.cast(huge, "int8").shape == (3,)


class Arraylike:
    def __array__(self, dtype=None, copy=None):
        return np.array([1.0, 2.0])


@pytest.mark.parametrize(
    "x",
    [1, 1.0, True, [1], (1, 2), np.zeros(3), np.float32(1), np.ma.array([1.0]), Arraylike()],
    ids=lambda x: type(x).__name__,
)
def test_plain_data_is_numpys(x):
    assert namespace_of(x) is NUMPY


def test_tensors_variables_and_symbols_find_their_framework():
    import keras
    import tensorflow as tf
    import torch

    for tensor in (tf.constant(1.0), tf.Variable(1.0), keras.Variable(1.0), keras.Input((3,))):
        assert namespace_of(tensor).name == "keras"
    for tensor in (torch.zeros(3), torch.nn.Parameter(torch.zeros(3))):
        assert namespace_of(tensor).name == "torch"
    assert namespace_of(tf.constant(1.0)) is namespace_of(keras.Variable(1.0))


def test_a_tensor_among_arrays_decides_and_keras_goes_before_torch():
    import tensorflow as tf
    import torch

    assert namespace_of(np.zeros(3), 1.0, tf.constant(1.0)).name == "keras"
    assert namespace_of(np.zeros(3), torch.zeros(3)).name == "torch"
    assert namespace_of(torch.zeros(3), tf.constant(1.0), np.zeros(3)).name == "keras"


@pytest.mark.parametrize("x", [None, "abc", {"a": 1}, object(), {1, 2}], ids=lambda x: type(x).__name__)
def test_what_is_no_array_is_refused_by_its_type(x):
    with pytest.raises(InputError, match=rf"expected a numpy array, .*received {type(x).__name__}; do numpy\."):
        namespace_of(np.zeros(3), x)


def test_asking_about_numpy_arrays_imports_no_framework(checkout):
    program = (
        "import sys, numpy as np\n"
        "from qi.core import IntGrid, fake_quantize\n"
        "fake_quantize(np.zeros(3, np.float32), 1.0, 0, IntGrid(8))\n"
        "print(*{'tensorflow', 'keras', 'jax', 'torch', 'ml_dtypes'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def torch_namespace():
    import torch

    return torch, namespace_of(torch.zeros(1))


def test_clip_of_torch_gives_x_the_gradient_at_both_ends():
    torch, xp = torch_namespace()
    for learned in (False, True):
        x = torch.tensor([-3.0, -1.0, 0.0, 2.0, 3.0], requires_grad=True)
        lo, hi = (torch.tensor(v, requires_grad=learned) for v in (-1.0, 2.0))
        xp.clip(x, lo, hi).sum().backward()
        assert x.grad.tolist() == [0, 1, 1, 1, 0]
        if learned:
            assert (lo.grad, hi.grad) == (1, 1)  # not 2: nothing of the elements at the ends


@each_backend
def test_at_ties_the_first_argument_has_the_gradient(backend):
    a, b = np.float32([-1, 0, 1]), np.float32([0, 0, 0])
    for name, wanted in (("minimum", [1, 1, 0]), ("maximum", [0, 1, 1])):
        for_a, for_b = backend.gradients(lambda a, b, name=name: getattr(namespace_of(a), name)(a, b), a, b)
        assert for_a.tolist() == wanted
        assert for_b.tolist() == [1 - share for share in wanted]


@each_backend
def test_minimum_and_maximum_keep_nan_of_either_argument(backend):
    a, b = backend.tensor(np.float32([np.nan, 1, 2])), backend.tensor(np.float32([0, np.nan, 3]))
    xp = namespace_of(a)
    np.testing.assert_array_equal(backend.numpy(xp.minimum(a, b)), [np.nan, np.nan, 2])
    np.testing.assert_array_equal(backend.numpy(xp.maximum(a, b)), [np.nan, np.nan, 3])


def test_reductions_of_torch_take_numpys_axes():
    torch, xp = torch_namespace()
    x = torch.tensor(X)
    for name in ("sum", "max", "min"):
        for axis, keepdims in ((None, True), (None, False), ((), False), (-1, True), ((0, 1), False)):
            wanted = getattr(np, name)(X, axis=axis, keepdims=keepdims)
            found = getattr(xp, name)(x, axis=axis, keepdims=keepdims)
            np.testing.assert_array_equal(found.numpy(), wanted, strict=True)
    assert xp.sum(torch.tensor(3.0), keepdims=True).shape == ()


def test_numbers_and_arrays_mix_with_torch_tensors():
    torch, xp = torch_namespace()
    for name in ("divide", "multiply", "minimum", "maximum"):
        for a, b in ((X, POSITIVE), (np.float32(2), POSITIVE)):
            wanted = getattr(np, name)(a, b)
            np.testing.assert_array_equal(getattr(xp, name)(a, torch.tensor(b)).numpy(), wanted, strict=True)
            np.testing.assert_array_equal(getattr(xp, name)(torch.tensor(a), b).numpy(), wanted, strict=True)


def test_a_table_is_indexed_by_codes_of_any_integer_dtype():
    torch, xp = torch_namespace()
    table = torch.tensor([5.0, 6.0, 7.0])
    for dtype in (torch.uint8, torch.int8, torch.int32, torch.int64):
        assert xp.take(table, torch.tensor([2, 0], dtype=dtype)).tolist() == [7, 5]


def test_arrays_of_either_byte_order_become_tensors():
    _, xp = torch_namespace()
    assert xp.asarray(np.array([1.5, -2.0], ">f4")).tolist() == [1.5, -2.0]
    assert xp.asarray(np.arange(3.0)[::-1]).tolist() == [2, 1, 0]


def test_an_unknown_dtype_is_refused_by_torchs_namespace_too():
    torch, xp = torch_namespace()
    for name in ("float33", "nn"):
        with pytest.raises(InputError, match=rf"name of a dtype.* received dtype='{name}'"):
            xp.cast(torch.zeros(1), name)


def test_constants_go_where_the_tensor_is_and_not_to_a_default_device():
    torch, xp = torch_namespace()
    far = torch.empty(3, device="meta")
    assert xp.beside(np.float32([1, 2, 3]), far).device.type == "meta"
    assert xp.beside(torch.zeros(3), np.zeros(3)).device.type == "cpu"
    assert xp.searchsorted(torch.zeros(3), far).device.type == "meta"
    assert xp.take(torch.zeros(3), far.long()).device.type == "meta"
    with torch.device("meta"):
        assert xp.asarray([1.0, 2.0]).tolist() == [1, 2]
        assert xp.cast(np.float32(2), "float16").tolist() == 2


def cubed(x, factor):
    """x**3 with the gradients 2 x for x and 7 for the factor."""
    return x * x * x * factor, lambda upstream: (upstream * 2 * x, upstream.sum() * 7)


def test_custom_gradients_of_torch_eagerly_compiled_and_under_transforms():
    torch, xp = torch_namespace()
    x, factor = torch.tensor([1.0, -2.0, 3.0]), torch.tensor(0.5)
    function = lambda x, factor: xp.custom_gradient(cubed, x, factor)
    total = lambda x, factor: function(x, factor).sum()
    leaves = [x.clone().requires_grad_(), factor.clone().requires_grad_()]
    total(*leaves).backward()
    found = {"eager": [leaf.grad for leaf in leaves]}
    found["grad"] = torch.func.grad(total, argnums=(0, 1))(x, factor)
    rows = torch.func.vmap(torch.func.grad(total, argnums=(0, 1)), in_dims=(0, None))(x[:, None], factor)
    found["vmap"] = rows[0][:, 0], rows[1].sum()
    for mine, scaled in found.values():
        assert mine.tolist() == [2, -4, 6]
        assert float(scaled) == 21
    np.testing.assert_array_equal(torch.func.vmap(function, in_dims=(0, None))(x, factor), x**3 * factor)
    assert function(x, factor).grad_fn is None


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch.compile itself
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_custom_gradients_are_traced_whole(backend):
    torch, xp = torch_namespace()
    torch.compiler.reset()
    compiled = torch.compile(lambda x, f: xp.custom_gradient(cubed, x, f) + 1, backend=backend, fullgraph=True)
    x, factor = torch.tensor([1.0, -2.0, 3.0]), torch.tensor(0.5)
    np.testing.assert_array_equal(compiled(x, factor), x**3 * factor + 1)
    leaves = [x.clone().requires_grad_(), factor.clone().requires_grad_()]
    compiled(*leaves).sum().backward()
    assert leaves[0].grad.tolist() == [2, -4, 6]
    assert float(leaves[1].grad) == 21
    with torch.no_grad():
        assert not compiled(*leaves).requires_grad


def test_values_of_any_tensor_as_numpy():
    torch, _ = torch_namespace()
    for tensor in (
        torch.nn.Parameter(torch.tensor(X)),
        torch.tensor(X),
        torch.tensor(X).to(torch.bfloat16),
        X,
        X.tolist(),
    ):
        np.testing.assert_array_equal(to_numpy(tensor), X)
    assert to_numpy(torch.zeros(1, dtype=torch.bfloat16)).dtype == np.float32
