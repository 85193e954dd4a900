from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.core import PerChannel, PerGroup, QParams, QTensor
from qi.errors import ConfigError, UnsupportedError
from qi.ir import QGraph, Tensor
from qi.keras.graph import flatten_model
from qi.keras.lowering import LOWERINGS, Site, lowering, real_dtype
from tests.keras.models import settle


def sites(outputs: Any, inputs: Any, recipe: Any = "w8") -> dict[str, Site]:
    """The site of each call of a quantized model, by path."""
    model = settle(keras.Model(inputs, outputs))
    qmodel, _ = qi.quantize_model(model, recipe, progress=False)
    graph = flatten_model(qmodel)
    target, names = QGraph("target", [], [], []), {"taken"}
    made = {id(value): Tensor(value.name, value.shape, value.dtype) for value in graph.flat_inputs()}
    found = {}
    for call in graph.calls:
        found[call.path] = Site(call, target, [made[id(value)] for value in call.inputs], names)
        made |= {id(value): Tensor(call.site, value.shape, value.dtype) for value in call.outputs}
    return found


@pytest.fixture(scope="module")
def model() -> dict[str, Site]:
    x = keras.Input((4, 6), name="x")
    y = layers.Dense(3, activation="tanh", name="dense")(x)
    z = ops.subtract(y, 2.0)
    ids = ops.cast(z, "int32")
    return sites([z, ids, ops.add(ids, y), layers.Permute((2, 1), name="permute")(x[:, 1:])], x)


def test_a_site_knows_its_layer_out_of_its_wrapper(model: dict[str, Site]) -> None:
    dense = model["dense"]
    assert (dense.kind, type(dense.layer)) == ("Dense", layers.Dense)
    assert dense.x.name == "x"
    assert dense.shape == (None, 4, 3)
    assert (dense.has("bias"), dense.has("gamma")) == (True, False)
    assert model["permute"].kind == "Permute"


def test_somebodys_own_layer_has_no_kind() -> None:
    class Dense(layers.Dense):
        pass

    x = keras.Input((4,), name="x")
    assert sites(layers.Dense(2, name="known")(Dense(2, name="own")(x)), x)["own"].kind == ""


def test_arguments_hold_tensors_where_the_call_had_them(model: dict[str, Site]) -> None:
    site = next(site for site in model.values() if site.kind == "Subtract")
    assert site.arguments == ([site.x, 2.0], {})
    sliced = next(site for site in model.values() if site.kind == "GetItem")
    assert sliced.arguments[0][1] == (slice(None), slice(1, None))


def test_a_quantized_weight_is_codes_with_a_scale_for_each_channel(model: dict[str, Site]) -> None:
    kernel = model["dense"].weight("kernel")
    assert kernel.qparams is not None
    assert kernel.qparams.granularity == PerChannel(1)
    assert (kernel.shape, kernel.data.dtype) == ((6, 3), np.int8)
    np.testing.assert_allclose(kernel.values(), model["dense"].array("kernel"), atol=kernel.qparams.scale.max())
    bias = model["dense"].weight("bias")
    assert (bias.qparams, bias.dtype, bias.data.dtype) == (None, "float32", np.float32)


def test_a_change_of_axes_moves_codes_and_scales_alike(model: dict[str, Site]) -> None:
    site = model["dense"]
    plain, turned = site.weight("kernel"), site.weight("kernel", np.transpose)
    assert turned.qparams.granularity == PerChannel(0)
    np.testing.assert_array_equal(turned.values(), plain.values().T)
    raised = site.weight("kernel", lambda array: array[None, None])
    assert raised.qparams.granularity == PerChannel(3)
    np.testing.assert_array_equal(raised.values()[0, 0], plain.values())


def test_scales_along_several_axes_are_refused(model: dict[str, Site]) -> None:
    with pytest.raises(UnsupportedError, match="scales along one axis"):
        model["dense"].weight("kernel", lambda array: array.reshape(-1) if array.size > 3 else np.ones((1,)))


def test_scales_of_groups_follow_their_axes() -> None:
    x = keras.Input((64,), name="x")
    site = sites(layers.Dense(4, name="dense")(x), x, "w4_g32")["dense"]
    kernel, turned = site.weight("kernel"), site.weight("kernel", lambda array: array.T[None])
    assert kernel.qparams.granularity == PerGroup(0, 32, 1)
    assert turned.qparams.granularity == PerGroup(2, 32, 1)
    assert turned.qparams.scale.shape == (1, 4, 2)
    np.testing.assert_array_equal(turned.values(), kernel.values().T[None])


@pytest.mark.parametrize("change", [lambda a: a.reshape(-1), lambda a: a.reshape(4, -1, *a.shape[1:])])
def test_groups_may_neither_be_joined_nor_parted(change: Callable[[np.ndarray], np.ndarray]) -> None:
    x = keras.Input((128,), name="x")
    site = sites(layers.Dense(4, name="dense")(x), x, "w4_g32")["dense"]
    with pytest.raises(UnsupportedError, match=r"expected (groups along one axis|scales of shape)"):
        site.weight("kernel", change)


def test_one_group_is_a_scale_for_each_channel() -> None:
    x = keras.Input((20,), name="x")
    site = sites(layers.Dense(4, name="dense")(x), x, "w4_g32")["dense"]
    assert site.weight("kernel").qparams.granularity == PerChannel(1)


def test_groups_of_depthwise_convolutions_are_refused() -> None:
    x = keras.Input((6, 6, 4), name="x")
    site = sites(layers.DepthwiseConv2D(1, depth_multiplier=3, name="dense")(x), x)["dense"]
    tensor = site._quantized["kernel"]
    groups = QParams(np.ones((1, 1, 2, 3)), np.zeros((1, 1, 2, 3)), tensor.qparams.grid, PerGroup(2, 2, 3))
    site._quantized["kernel"] = QTensor(tensor.codes, groups)
    with pytest.raises(UnsupportedError, match="one scale for each channel"):
        LOWERINGS.get("DepthwiseConv2D")(site)


def test_one_scale_serves_any_shape() -> None:
    x = keras.Input((8,), name="x")
    site = sites(layers.Dense(1, name="dense")(x), x)["dense"]
    kernel = site.weight("kernel", lambda array: array.reshape(2, 4))
    assert kernel.shape == (2, 4)
    assert kernel.qparams.scale.shape == ()


def test_names_are_of_the_site_and_unique(model: dict[str, Site]) -> None:
    site = model["permute"]
    assert [site.name(), site.name(), site.name("part"), site.name("part")] == [
        "permute",
        "permute_1",
        "permute/part",
        "permute/part_1",
    ]


def test_an_operation_gets_the_shape_type_and_path_of_its_call(model: dict[str, Site]) -> None:
    site = model["permute"]
    site.graph.ops.clear()
    y = site.emit("transpose", [site.x], perm=[0, 2, 1])
    assert (y.shape, y.dtype) == ((None, 6, 3), "float32")
    other = site.emit("reshape", [y], (None, 18), suffix="flat", dtype="int32", shape=[None, 18])
    assert (other.shape, other.dtype) == ((None, 18), "int32")
    assert [(op.kind, op.source, op.attrs) for op in site.graph.ops] == [
        ("transpose", "permute", {"perm": [0, 2, 1]}),
        ("reshape", "permute", {"shape": [None, 18]}),
    ]
    assert site.graph.ops[1].inputs == [y]


def test_activations_are_those_of_the_layer(model: dict[str, Site]) -> None:
    site = model["dense"]
    site.graph.ops.clear()
    y = site.activate(site.x)
    assert (site.graph.ops[0].attrs["function"], y.shape) == ("tanh", site.x.shape)
    assert model["permute"].activate(site.x) is site.x


def test_constants_are_float32_or_indices(model: dict[str, Site]) -> None:
    site = model["dense"]
    assert (site.constant("c", 2.0).dtype, site.constant("c", 2.0).shape) == ("float32", ())
    assert site.constant("c", np.int32([1, 2])).dtype == "int32"
    assert site.constant("c", np.float64([1])).data.dtype == np.float32


def test_only_the_batch_may_be_open(model: dict[str, Site]) -> None:
    site = model["dense"]
    assert site.sizes(site.x) == (4, 6)
    with pytest.raises(UnsupportedError, match=r"received 'dense' of class Dense, whose input has open sizes"):
        site.sizes(Tensor("open", (None, None, 3)))
    with pytest.raises(
        UnsupportedError, match=r"whose sizes \(None, None, 3\) are open; do give the model an Input of fixed"
    ):
        site.reshape(site.x, (None, None, 3))


def test_types_change_where_they_differ(model: dict[str, Site]) -> None:
    site = next(site for site in model.values() if site.kind == "Add")
    site.graph.ops.clear()
    ids, real = site.inputs
    assert site.cast(real, "float16") is real
    site.cast_inputs()
    assert [tensor.dtype for tensor in site.inputs] == ["float32", "float32"]
    assert site.inputs[1] is real
    assert [(op.kind, op.attrs) for op in site.graph.ops] == [("cast", {"to": "float32"})]
    assert site.graph.ops[0].x is ids


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_real_numbers_are_float32(dtype: str) -> None:
    assert real_dtype(dtype) == "float32"
    assert real_dtype("int64") == "int64"


def test_a_refusal_names_layer_class_and_way_out(model: dict[str, Site]) -> None:
    text = str(model["dense"].refuse("which is blue", "paint it"))
    assert text.endswith("received 'dense' of class Dense, which is blue; do paint it")


def test_a_class_has_one_lowering() -> None:
    assert "Dense" in LOWERINGS
    with pytest.raises(ConfigError, match="Dense"):
        lowering("Dense")(lambda site: site.x)
