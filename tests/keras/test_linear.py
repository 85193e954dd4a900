"""Tests for qi.keras.linear: what a layer gives is its rows times its matrices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, strategies as st
from keras import layers

from qi.algorithms import MatrixView
from qi.keras.graph import Call, flatten_model
from qi.keras.linear import LinearView, linear_views
from qi.keras.variables import to_numpy, weights_of


def called(layer: Any, shape: tuple[int, ...]) -> Call:
    """The layer's call in a model, with random weights."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    random = np.random.default_rng(0)
    for variable in layer.variables:
        if "seed" not in variable.path:
            variable.assign(random.normal(size=variable.shape).astype("float32"))
    return flatten_model(model).calls[-1]


def data(shape: tuple[int, ...], count: int = 3) -> np.ndarray:
    """Inputs around 0.3."""
    return np.random.default_rng(1).normal(0.3, 1.0, (count, *shape)).astype("float32")


def products(call: Call, linear: LinearView, x: np.ndarray) -> np.ndarray:
    """``[n, G * N]``: rows times matrices, and the bias."""
    found = weights_of(call.op)
    matrix = linear.view.matrix(to_numpy(found[linear.weight]).astype(np.float64))
    rows = linear.rows(x)
    assert rows.shape[1:] == matrix.shape[:2]
    result = np.einsum("ngk,gko->ngo", rows.astype(np.float64), matrix).reshape(len(rows), -1)
    return result if linear.bias is None else result + to_numpy(found[linear.bias]).ravel()


def agrees(layer: Any, shape: tuple[int, ...], axis: int = -1) -> LinearView:
    """Checks rows times matrices against what the layer gives at every place, in the order of samples and places."""
    call = called(layer, shape)
    (linear,) = linear_views(call)
    x = data(shape)
    expected = np.moveaxis(np.asarray(layer(x)), axis, -1)
    found = products(call, linear, x)
    np.testing.assert_allclose(found, expected.reshape(-1, found.shape[-1]), rtol=1e-4, atol=1e-4)
    assert (linear.bias is not None) == (getattr(layer, "bias", None) is not None)
    return linear


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_at_every_place(shape: tuple[int, ...], use_bias: bool) -> None:
    linear = agrees(layers.Dense(3, use_bias=use_bias), shape)
    assert linear.view == MatrixView((5, 3), (0,), (1,))


CONVOLUTIONS = [
    (layers.Conv1D, (11, 4), {"kernel_size": 3}),
    (layers.Conv1D, (11, 4), {"kernel_size": 4, "padding": "same", "strides": 3}),
    (layers.Conv1D, (11, 4), {"kernel_size": 3, "padding": "causal"}),
    (layers.Conv1D, (11, 4), {"kernel_size": 3, "padding": "causal", "dilation_rate": 2}),
    (layers.Conv1D, (12, 4), {"kernel_size": 3, "padding": "causal", "strides": 2}),
    (layers.Conv2D, (7, 6, 4), {"kernel_size": 3}),
    (layers.Conv2D, (7, 6, 4), {"kernel_size": (2, 3), "padding": "same"}),
    (layers.Conv2D, (7, 8, 4), {"kernel_size": (3, 5), "padding": "same", "strides": 2}),
    (layers.Conv2D, (7, 8, 4), {"kernel_size": (1, 2), "padding": "valid", "strides": 3}),
    (layers.Conv2D, (7, 6, 4), {"kernel_size": 3, "padding": "same", "dilation_rate": 2}),
    (layers.Conv2D, (7, 6, 4), {"kernel_size": 2, "dilation_rate": (2, 3)}),
    (layers.Conv2D, (7, 6, 4), {"kernel_size": 3, "groups": 2, "padding": "same"}),
    (layers.Conv2D, (7, 6, 4), {"kernel_size": 2, "groups": 4, "use_bias": False}),
    (layers.Conv3D, (4, 3, 5, 4), {"kernel_size": 2, "padding": "same", "strides": (1, 2, 2)}),
    (layers.Conv3D, (4, 3, 5, 4), {"kernel_size": (2, 1, 3)}),
]


@pytest.mark.parametrize(("kind", "shape", "options"), CONVOLUTIONS)
def test_convolution(kind: Any, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    linear = agrees(kind(8, **options), shape)
    assert linear.view.sizes[0] == options.get("groups", 1)


@pytest.mark.parametrize(("kind", "shape", "options"), [c for c in CONVOLUTIONS if c[2].get("padding") != "causal"])
def test_channels_first_rows_are_those_of_channels_last(
    kind: Any, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    """Of any layout, whether or not the backend can run it: the channels are moved last."""
    layer = kind(8, data_format="channels_first", **options)
    layer.build((None, shape[-1], *shape[:-1]))
    last = kind(8, **options)
    last.build((None, *shape))
    x = data(shape)
    (first_view,), (last_view,) = (
        linear_views(SimpleNamespace(op=op, builtin_kind=kind.__name__))  # type: ignore[arg-type]
        for op in (layer, last)
    )
    np.testing.assert_array_equal(first_view.rows(np.moveaxis(x, -1, 1)), last_view.rows(x))


def test_channels_first_gives_what_the_layer_gives() -> None:
    layer = layers.Conv1D(6, 3, padding="valid", data_format="channels_first", groups=2)
    call = called(layer, (4, 9))
    (linear,) = linear_views(call)
    x = data((4, 9))
    try:
        expected = np.moveaxis(np.asarray(layer(x)), 1, -1).reshape(-1, 6)
    except Exception as error:  # a backend's own refusal
        pytest.skip(f"this backend can't run it: {type(error).__name__}")
    np.testing.assert_allclose(products(call, linear, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        (layers.DepthwiseConv1D, (9, 4), {"kernel_size": 3, "padding": "same"}),
        (layers.DepthwiseConv1D, (9, 4), {"kernel_size": 3, "strides": 2}),
        (layers.DepthwiseConv2D, (7, 6, 4), {"kernel_size": (3, 2)}),
        (layers.DepthwiseConv2D, (7, 6, 4), {"kernel_size": 3, "strides": 2, "padding": "same"}),
        (layers.DepthwiseConv2D, (7, 6, 4), {"kernel_size": 2, "dilation_rate": 2, "padding": "same"}),
    ],
)
def test_depthwise(kind: Any, shape: tuple[int, ...], options: dict[str, Any], multiplier: int) -> None:
    linear = agrees(kind(depth_multiplier=multiplier, **options), shape)
    assert linear.view.sizes[0] == 4
    assert linear.view.sizes[2] == multiplier


@pytest.mark.parametrize("kind", [layers.SeparableConv1D, layers.SeparableConv2D])
def test_separable_depthwise_part(kind: Any) -> None:
    """Its pointwise part sees something that is no input of the layer."""
    shape = (8, 3) if kind is layers.SeparableConv1D else (8, 7, 3)
    call = called(kind(5, 3, depth_multiplier=2, padding="same", strides=2), shape)
    (linear,) = linear_views(call)
    assert linear.weight == "depthwise_kernel"
    assert linear.bias is None
    found = weights_of(call.op)
    x = data(shape)
    pointwise = to_numpy(found["pointwise_kernel"]).reshape(6, 5)
    result = products(call, linear, x) @ pointwise + to_numpy(found["bias"])
    np.testing.assert_allclose(result, np.asarray(call.op(x)).reshape(-1, 5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(layers.Conv1DTranspose, (5, 3)), (layers.Conv2DTranspose, (4, 5, 3)), (layers.Conv3DTranspose, (2, 3, 2, 3))],
)
def test_transposed_convolution_multiplies_each_place(kind: Any, shape: tuple[int, ...]) -> None:
    """With strides of the window's size every product of a place and the kernel is an output of its own."""
    call = called(kind(4, 2, strides=2, padding="valid"), shape)
    (linear,) = linear_views(call)
    assert linear.bias is None  # one number for many products
    x, rank = data(shape), len(shape) - 1
    found = np.asarray(call.op(x)) - to_numpy(weights_of(call.op)["bias"])
    windows = found.reshape(len(x), *(n for size in shape[:-1] for n in (size, 2)), 4)
    order = [0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1]
    expected = windows.transpose(order).reshape(-1, 2**rank * 4)
    np.testing.assert_allclose(products(call, linear, x), expected, rtol=1e-4, atol=1e-4)


EINSUMS = [
    ("ab,bc->ac", (5,), {"output_shape": 3, "bias_axes": "c"}),
    ("abc,cd->abd", (4, 5), {"output_shape": (None, 3), "bias_axes": "d"}),
    ("...x,xy->...y", (2, 4, 5), {"output_shape": (2, 4, 3), "bias_axes": "y"}),
    ("abc,cde->abde", (4, 5), {"output_shape": (None, 2, 3), "bias_axes": "de"}),
    ("abcd,cde->abe", (4, 2, 3), {"output_shape": (None, 6), "bias_axes": "e"}),
    ("abc,dc->abd", (4, 5), {"output_shape": (None, 3), "bias_axes": "d"}),
]


@pytest.mark.parametrize(("equation", "shape", "options"), EINSUMS)
def test_einsum(equation: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    linear = agrees(layers.EinsumDense(equation, **options), shape)
    assert linear.view.sizes[0] == 1


def test_einsum_with_places_behind_the_features() -> None:
    layer = layers.EinsumDense("ab...,bc->ac...", output_shape=(3, 2, 4), bias_axes="c")
    assert agrees(layer, (5, 2, 4), axis=1).view.sizes == (1, 5, 3)


def test_einsum_with_independent_axes() -> None:
    """A matrix for each position: the positions are groups, and the bias has a number for each of both."""
    layer = layers.EinsumDense("abc,bcd->abd", output_shape=(4, 3), bias_axes="bd")
    linear = agrees_grouped(layer, (4, 5))
    assert linear.view.sizes == (4, 5, 3)
    assert linear.bias == "bias"


def agrees_grouped(layer: Any, shape: tuple[int, ...]) -> LinearView:
    call = called(layer, shape)
    (linear,) = linear_views(call)
    x = data(shape)
    np.testing.assert_allclose(
        products(call, linear, x), np.asarray(layer(x)).reshape(len(x), -1), rtol=1e-4, atol=1e-4
    )
    return linear


@pytest.mark.parametrize(
    ("equation", "shape", "options"),
    [
        ("abc,bcd->adb", (4, 5), {"output_shape": (3, 4), "bias_axes": "db"}),  # another order than the view's
        ("abc,cd->abd", (3, 5), {"output_shape": (3, 3), "bias_axes": "b"}),  # of places, as many as outputs
        ("abc,cde->abde", (4, 5), {"output_shape": (None, 2, 3), "bias_axes": "e"}),  # shared by outputs
        ("abc,cde->abed", (4, 5), {"output_shape": (None, 3, 2), "bias_axes": "ed"}),
    ],
)
def test_einsum_whose_bias_isnt_of_the_outputs(equation: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    call = called(layers.EinsumDense(equation, **options), shape)
    (linear,) = linear_views(call)
    assert linear.bias is None


@pytest.mark.parametrize(
    ("equation", "shape", "options"),
    [
        ("abc,cd->ad", (4, 5), {"output_shape": 3}),  # summed over places first
        ("abc,c->ab", (4, 5), {"output_shape": (4,)}),
    ],
)
def test_einsum_sums_outside_the_weight(equation: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """What is summed over places too has no rows of its own; a vector is a matrix of one output."""
    try:
        call = called(layers.EinsumDense(equation, **options), shape)
    except (ValueError, IndexError) as error:
        pytest.skip(f"Keras refuses it: {error}")
    views = linear_views(call)
    if equation.endswith("ad"):
        assert views == []
        return
    x = data(shape)
    np.testing.assert_allclose(
        products(call, views[0], x).ravel(), np.asarray(call.op(x)).ravel(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_recurrent_kernel_multiplies_the_input(kind: Any) -> None:
    call = called(kind(4, return_sequences=True), (6, 3))
    (linear,) = linear_views(call)
    kernel = to_numpy(weights_of(call.op)[linear.weight])
    x = data((6, 3))
    np.testing.assert_array_equal(linear.rows(x)[:, 0], x.reshape(-1, 3))
    np.testing.assert_array_equal(linear.view.matrix(kernel)[0], kernel)
    np.testing.assert_array_equal(to_numpy(call.op.cell.kernel), kernel)
    assert linear.bias is None


def test_many_places_are_sampled_the_same_every_time() -> None:
    layer = layers.Conv2D(3, 3, padding="same")
    call = called(layer, (20, 20, 2))
    (linear,) = linear_views(call)
    x = data((20, 20, 2))
    rows = linear.rows(x)
    assert rows.shape == (3 * 64, 1, 18)
    np.testing.assert_array_equal(rows, linear.rows(x))
    every = {row.tobytes() for row in np.round(np.asarray(layer(x)), 3).reshape(-1, 3) + 0.0}
    found = np.round(products(call, linear, x), 3).astype("float32") + 0.0
    assert np.mean([row.tobytes() in every for row in found]) > 0.9  # but for the last digit of some
    dense = called(layers.Dense(2), (300, 4))
    assert linear_views(dense)[0].rows(data((300, 4))).shape == (3 * 64, 1, 4)
    einsum = called(layers.EinsumDense("abc,cd->abd", output_shape=(None, 2)), (300, 4))
    assert linear_views(einsum)[0].rows(data((300, 4))).shape == (3 * 64, 1, 4)


def test_layers_of_users_have_no_views() -> None:
    class Twice(layers.Dense):
        def call(self, x: Any) -> Any:
            return 2.0 * super().call(x)

    assert linear_views(called(Twice(3), (5,))) == []


@pytest.mark.parametrize("layer", [layers.ReLU(), layers.LayerNormalization(), layers.PReLU()])
def test_other_layers_have_no_views(layer: Any) -> None:
    assert linear_views(called(layer, (5,))) == []


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
    groups=st.integers(1, 3),
)
def test_views_there_and_back(sizes: list[int], order: Any, groups: int) -> None:
    axes = list(range(len(sizes)))
    order.shuffle(axes)
    cuts = sorted(order.randint(0, len(axes)) for _ in range(2))
    inputs, outputs, shared = axes[: cuts[0]], axes[cuts[0] : cuts[1]], axes[cuts[1] :]
    grouped = groups if outputs and not shared else 1
    if grouped > 1:
        sizes[outputs[-1]] *= grouped
    view = MatrixView(tuple(sizes), tuple(inputs), tuple(outputs), tuple(shared), grouped)
    tensor = np.arange(np.prod(sizes)).reshape(sizes)
    matrix = view.matrix(tensor)
    assert matrix.shape == view.sizes
    np.testing.assert_array_equal(view.tensor(matrix), tensor)
