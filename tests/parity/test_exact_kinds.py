"""Every kind of operation that a target does in integers: exact in Keras, in the twin and in the file, or refused by name."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.errors import UnsupportedError
from qi.exporters import litert, onnx_file, onnx_runtime
from qi.ir import QGraph, run
from qi.ir.kinds import KINDS
from qi.ir.routing import route
from qi.keras.exact_steps import EXACT_TARGETS
from tests.keras.models import settle

RNG = np.random.default_rng(0)
X = {
    "image": RNG.normal(0.2, 1.0, (24, 6, 7, 4)).astype("float32"),
    "row": RNG.normal(0.2, 1.0, (24, 9)).astype("float32"),
    "ids": RNG.integers(0, 11, (24, 5)).astype("int32"),
}

# What no exact model does though the target has an integer kernel for it: refused by name.
REFUSED: dict[str, set[str]] = {"litert": set(), "onnxruntime": set(), "reference": set()}
# Kinds that files of quantize_model's models hold in real numbers: for speed, or because their tensors have several scales.
# There are tables only where integers alone are wanted, which exact models aren't made for.
ISLANDS = {
    "litert": {"relu", "prelu", "table"},
    "onnxruntime": {"maximum", "minimum", "table"},
    "reference": {"prelu", "table"},
}


def branches() -> keras.Model:
    """A model with an output for each kind of layer."""
    keras.backend.clear_session()
    image, row, ids = (keras.Input(X[name].shape[1:], name=name, dtype=X[name].dtype.name) for name in X)
    c, d = layers.Conv2D(4, 3, padding="same")(image), layers.Dense(9)(row)
    e = layers.Dense(9, activation="relu")(row)
    made = {
        "depthwise": layers.DepthwiseConv2D(3, depth_multiplier=2)(c),
        "grouped": layers.Conv2D(6, 3, groups=2, strides=2, padding="same", activation="relu")(c),
        "sequence": layers.Conv1D(5, 3, dilation_rate=2)(layers.Reshape((6, 28))(c)),
        "transposed": layers.Conv2DTranspose(5, 3, strides=2)(c),
        "add": layers.Add()([d, e]),
        "sub": layers.Subtract()([d, e]),
        "mul": layers.Multiply()([d, e]),
        "constant": ops.add(d, 0.75),
        "factor": layers.Rescaling(0.6)(d),
        "maximum": layers.Maximum()([d, e]),
        "minimum": layers.Minimum()([d, e]),
        "leaky": layers.LeakyReLU(0.1)(d),
        "sigmoid": layers.Activation("sigmoid")(d),
        "tanh": layers.Activation("tanh")(d),
        "elu": layers.ELU()(d),
        "square": ops.square(d),
        "abs": ops.abs(d),
        "exp": ops.exp(layers.Activation("tanh")(d)),
        "softmax": layers.Softmax()(d),
        "mean": layers.GlobalAveragePooling2D()(c),
        "mean_of_rows": ops.mean(layers.Reshape((3, 3))(d), axis=1, keepdims=True),
        "average": layers.AveragePooling2D(2)(c),
        "average_same": layers.AveragePooling2D(3, strides=2, padding="same")(c),
        "average_all": layers.AveragePooling2D((6, 7))(c),
        "largest": layers.MaxPooling2D(3, strides=2, padding="same")(c),
        "largest_all": layers.GlobalMaxPooling2D()(c),
        "nearest": layers.UpSampling2D(2)(c),
        "bilinear": layers.UpSampling2D((2, 3), interpolation="bilinear")(c),
        "bilinear_rows": layers.UpSampling2D((1, 2), interpolation="bilinear")(c),
        "average_odd": layers.AveragePooling2D(2, padding="same")(c),
        "transposed_more": layers.Conv2DTranspose(3, 3, strides=2, padding="same", output_padding=0)(c),
        "sum_of_three": layers.Add()([d, e, layers.Dense(9)(row)]),
        "average_of_three": layers.Average()([d, e, layers.Dense(9)(row)]),
        "greatest_of_three": layers.Maximum()([d, e, layers.Dense(9)(row)]),
        "matmul": ops.matmul(layers.Reshape((3, 3))(e), layers.Reshape((3, 3))(layers.Dense(9)(row))),
        "moved": layers.Permute((2, 1, 3))(layers.ZeroPadding2D(1)(layers.Cropping2D(1)(c))),
        "sliced": c[:, 1:5:2, ::3],
        "joined": layers.Concatenate()([d, e]),
        "repeated": layers.RepeatVector(3)(d),
        "embedding": layers.Dense(3)(layers.Embedding(11, 4)(ids)),
        "relu": layers.ReLU()(layers.MaxPooling2D(2)(c)),
        "prelu": layers.PReLU(shared_axes=[1, 2])(c),
    }
    model = keras.Model([image, row, ids], {name: made[name] for name in sorted(made)}, name="branches")
    return settle(model)


def from_file(routed: QGraph, arrays: list[np.ndarray]) -> Any:
    """What the file gives in its runtime."""
    if routed.target == "onnxruntime":
        return onnx_runtime.run(onnx_file.write(routed), arrays)
    return litert.run(litert.write(routed), arrays, reference=routed.target == "reference")


@pytest.fixture(scope="module", params=EXACT_TARGETS)
def exact(request: pytest.FixtureRequest) -> tuple[str, keras.Model, QGraph]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        qmodel, _ = qi.quantize_model(branches(), "w8a8", X, exact=request.param, progress=False)
    return request.param, qmodel, route(qi.lower(qmodel), request.param)


def test_predictions_twin_and_file_are_one(exact: tuple[str, keras.Model, QGraph]) -> None:
    _, qmodel, routed = exact
    arrays = [X[t.name] for t in routed.inputs]
    predicted = qmodel.predict(X, verbose=0)
    twin, file = run(routed, arrays), from_file(routed, arrays)
    real = {t.name: (twin[t.name] - t.zero_point) * t.scale if t.quantized else twin[t.name] for t in routed.outputs}
    wrong = {}
    for (name, found), tensor in zip(sorted(predicted.items()), routed.outputs, strict=True):
        for other, array in (("twin", real[tensor.name]), ("file", file[tensor.name])):
            differing = np.count_nonzero(found != np.asarray(array, np.float32))
            if differing:
                wrong[name, other] = (
                    f"{differing} of {found.size}, {np.abs(found - array).max() / tensor.scale:.3g} steps"
                )
    assert wrong == {}


def test_every_kind_with_a_kernel_is_exact_or_refused(exact: tuple[str, keras.Model, QGraph]) -> None:
    target, _, routed = exact
    done = {op.kind for op in routed.ops if op.quantized}
    kinds = {name for name, kind in KINDS.items() if target in kind.kernels and name not in ("quantize", "dequantize")}
    assert kinds - done == REFUSED[target] | ISLANDS[target]


def small(*layers_: Any) -> keras.Model:
    keras.backend.clear_session()
    return settle(keras.Sequential([keras.Input((4, 4, 40), name="image"), *layers_]))


def made(model: keras.Model, recipe: str, target: str) -> keras.Model:
    x = RNG.normal(size=(16, *model.inputs[0].shape[1:])).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return qi.quantize_model(model, recipe, x, exact=target, progress=False)[0]


@pytest.mark.parametrize(
    ("recipe", "target", "layer", "kind"),
    [
        ("w8", "litert", layers.Conv2D(2, 3, name="named"), "conv2d"),
        ("w8", "onnxruntime", layers.Dense(2, name="named"), "dense"),
        ("w8", "reference", layers.Dense(2, name="named"), "dense"),
        ("w4_g32", "litert", layers.Dense(2, name="named"), "dense"),
        ("w4a8_g32", "litert", layers.Dense(2, name="named"), "dense"),
        ("w8a16", "litert", layers.Dense(2, name="named"), "quantize"),
        ("w8a16", "onnxruntime", layers.Dense(2, name="named"), "dense"),
    ],
)
def test_what_is_refused_is_named_with_a_way_out(recipe: str, target: str, layer: Any, kind: str) -> None:
    named = "image" if kind == "quantize" else "named"
    message = (
        f"expected layers that Keras can compute as '{target}' does; received '{named}', a '{kind}' .*; do give|leave"
    )
    with pytest.raises(UnsupportedError, match=message):
        made(small(layer), recipe, target)


@pytest.mark.parametrize("recipe", ["w8", "w4"])
def test_dynamic_products_are_the_files(recipe: str) -> None:
    """Weights alone are quantized; of rank 2 and 3, with and without bias, one whose sums float32 doesn't hold."""
    keras.backend.clear_session()
    x = RNG.normal(size=(20, 5, 700)).astype("float32")
    inputs = keras.Input((5, 700))
    hidden = layers.Dense(64, activation="relu")(inputs)
    y = layers.Dense(3, use_bias=False, activation="relu6")(layers.Flatten()(hidden))
    qmodel = made(settle(keras.Model(inputs, {"y": y, "hidden": hidden})), recipe, "litert")
    found = qmodel.predict(x, verbose=0)
    twin = qi.emulate(qmodel, x, "litert", progress=False)
    file = from_file(route(qi.lower(qmodel), "litert"), [x])
    assert sorted(found) == ["hidden", "y"]
    assert len(file) == 2
    for name in found:
        np.testing.assert_array_equal(found[name], twin[name])
        assert any(np.array_equal(found[name], array) for array in file.values())


def test_packed_products_of_odd_rows() -> None:
    """LiteRT's own kernel takes these, in fixed point."""
    keras.backend.clear_session()
    qmodel = made(small(layers.Flatten(), layers.Dense(9), layers.Dense(4)), "w4a8", "litert")
    x = RNG.normal(size=(64, 4, 4, 40)).astype("float32")
    found = qmodel.predict(x, verbose=0)
    np.testing.assert_array_equal(found, qi.emulate(qmodel, x, "litert", progress=False))
    np.testing.assert_array_equal(found, *from_file(route(qi.lower(qmodel), "litert"), [x]).values())


@pytest.mark.parametrize("target", EXACT_TARGETS)
def test_activations_of_four_bits(target: str) -> None:
    keras.backend.clear_session()
    image = keras.Input((6, 6, 3))
    a, b = layers.Conv2D(4, 3, activation="relu")(image), layers.Conv2D(4, 3)(image)
    y = layers.AveragePooling2D(2)(layers.LeakyReLU()(layers.Add()([a, b, layers.Conv2D(4, 3)(image)])))
    qmodel = made(settle(keras.Model(image, layers.Dense(5)(layers.Flatten()(y)))), "w4a4", target)
    x = RNG.normal(size=(64, 6, 6, 3)).astype("float32")
    routed = route(qi.lower(qmodel), target)
    assert all(op.quantized for op in routed.ops if op.kind != "quantize")
    found = qmodel.predict(x, verbose=0)
    np.testing.assert_array_equal(found, qi.emulate(qmodel, x, target, progress=False))
    np.testing.assert_array_equal(found, *from_file(routed, [x]).values())
