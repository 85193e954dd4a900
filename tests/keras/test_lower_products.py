from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.ir import run
from qi.ir.routing import route
from qi.keras.lower import lower
from tests.keras.lowered import agrees, branches, in_integers, kinds, refusal
from tests.keras.models import settle

# Kernels ----------------------------------------------------------------------------------------------------------------

# Equation, shape of the input, shape of the output without its batch, axes of the bias.
EQUATIONS = {
    "dense": ("abc,cd->abd", (3, 4), (3, 5), "d"),
    "heads": ("abc,cde->abde", (3, 4), (3, 2, 5), "de"),
    "part of a bias": ("abc,cde->abde", (3, 4), (3, 2, 5), "e"),
    "joined": ("abcd,cde->abe", (3, 2, 4), (3, 5), "e"),
    "ellipsis": ("...x,xy->...y", (3, 2, 4), (5,), "y"),
    "turned kernel": ("abc,dc->abd", (3, 4), (3, 5), "d"),
    "turned kernel of heads": ("abc,edc->abde", (3, 4), (3, 2, 5), "de"),
    "columns first": ("abc,cde->aedb", (3, 4), (5, 2, 3), "e"),
    "along the sequence": ("abc,bd->adc", (3, 4), (5, 4), None),
    "sums apart": ("abcd,bde->ace", (3, 2, 4), (2, 5), "e"),
    "without a bias": ("ab,bc->ac", (4,), (5,), None),
    "a bias for each place": ("abc,cd->abd", (3, 4), (3, 5), "bd"),
}


def einsum_dense(which: str, x: Any, **options: Any) -> Any:
    equation, _, shape, bias = EQUATIONS[which]
    return layers.EinsumDense(equation, shape, bias_axes=bias, **options)(x)


def test_equations() -> None:
    inputs = {name: keras.Input(EQUATIONS[name][1], name=f"x{i}") for i, name in enumerate(EQUATIONS)}
    made = {name.replace(" ", "_"): einsum_dense(name, x, activation="relu") for name, x in inputs.items()}
    branches(list(inputs.values()), made)


@pytest.mark.parametrize("name", EQUATIONS)
def test_in_integers_an_equation_is_a_product_with_a_scale_for_each_column(name: str) -> None:
    x = keras.Input(EQUATIONS[name][1], name="x")
    y = layers.ReLU()(einsum_dense(name, x, name="einsum"))
    qmodel, graph, given = in_integers(keras.Model(x, y))
    dense = next(op for op in graph.ops if op.kind == "dense")
    found = run(route(graph, "litert"), [given])[graph.outputs[0].name]
    steps = np.abs((found - graph.outputs[0].zero_point) - qmodel.predict(given, verbose=0) / graph.outputs[0].scale)
    assert steps.max() < 1.01
    assert (steps > 0.01).mean() < 0.01
    if name == "a bias for each place":  # no product has such a bias
        assert not dense.quantized
        assert kinds(graph).count("add") == 1
        return
    assert dense.quantized
    assert dense.attrs["activation"] == "relu"
    assert all(op.quantized for op in graph.ops[1:])
    kernel = next(layer for layer in qmodel.layers if layer.name == "einsum").get_quantized_tensors()["kernel"]
    matrix = dense.inputs[1]
    assert matrix.shape[1] == dense.y.shape[-1]
    values = kernel.dequantize()
    np.testing.assert_allclose(np.sort(matrix.values().ravel()), np.sort(values.ravel()), rtol=1e-6)


def test_refused_equations() -> None:
    x = keras.Input((3, 4))
    assert "summed or come out, not both" in refusal(x, layers.EinsumDense("abc,bcd->abd", (3, 5))(x))
    spread = settle(keras.Model(x, layers.EinsumDense("abc,cd->abd", (3, 5), name="spread")(x)))
    quantizer = qi.WeightsSymmetricInferableQuantizer(8, [1.0] * 4, per_channel=True, channel_axis=0, input_rank=2)
    wrapper = qi.KerasQuantizationWrapper(
        spread.get_layer("spread"), qi.KerasNodeQuantizationDispatcher({"kernel": quantizer})
    )
    with pytest.raises(qi.UnsupportedError, match="of class EinsumDense, whose kernel has scales"):
        lower(keras.Model(x, wrapper(x)))


# Activations ------------------------------------------------------------------------------------------------------------


def test_products_of_activations() -> None:
    a, b, c = keras.Input((3, 4), name="a"), keras.Input((4, 5), name="b"), keras.Input((2, 6, 4), name="c")
    d, e, f = keras.Input((2, 5, 4), name="d"), keras.Input((4,), name="e"), keras.Input((3, 2, 4), name="f")
    matrix = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    made = {
        "matmul": ops.matmul(a, b),
        "matmul_matrix": ops.matmul(a, matrix),
        "stacks": ops.matmul(c, ops.transpose(d, (0, 1, 3, 2))),
        "einsum": ops.einsum("abc,acd->abd", a, b),
        "einsum_turned": ops.einsum("ahqc,ahkc->ahqk", c, d),
        "einsum_heads": ops.einsum("aqhc,ahkc->ahqk", f, d),
        "einsum_out": ops.einsum("ahqc,ahkc->akhq", c, d),
        "einsum_outer": ops.einsum("abc,acd->adb", a, b),
        "einsum_of_vectors": ops.einsum("ac,acd->ad", e, b),
        "einsum_ellipsis": ops.einsum("a...qc,a...kc->a...qk", c, d),
        "dot": layers.Dot((2, 1))([a, b]),
        "dot_vectors": layers.Dot(1)([e, e]),
        "dot_mixed": layers.Dot((1, 1))([e, b]),
        "a_weight": layers.Dense(2)(e),  # or nothing would be quantized
    }
    branches([a, b, c, d, e, f], made)


def test_in_integers_products_of_activations_take_and_give_codes() -> None:
    a, b = keras.Input((2, 6, 4), name="a"), keras.Input((5, 2, 4), name="b")
    y = layers.ReLU()(ops.einsum("ahqc,akhc->aqhk", a, b))
    _, graph, _ = in_integers(keras.Model([a, b], y))
    assert all(op.quantized for op in graph.ops if op.kind != "quantize")
    assert kinds(graph).count("batch_matmul") == 1
    assert next(op for op in graph.ops if op.kind == "batch_matmul").attrs["transpose_b"] is False


def test_refused_products() -> None:
    x, b = keras.Input((3, 4)), keras.Input((4, 5))
    a = layers.Dense(4)(x)
    assert "of 3 tensors" in refusal([x, b], ops.einsum("abc,acd,abd->ad", a, b, ops.matmul(a, b)))
    assert "joins samples of a batch" in refusal([x, b], ops.einsum("abc,fcd->afbd", a, b))
    assert "sums over one operand" in refusal([x, b], ops.einsum("abc,acd->ac", a, b))
    assert "normalize=True" in refusal([x, b], layers.Dot((2, 1), normalize=True)([a, b]))
    assert "in stacks of one rank" in refusal([x, b], ops.matmul(ops.expand_dims(a, 1), b))


# Attention --------------------------------------------------------------------------------------------------------------


def attention(**options: Any) -> keras.Model:
    x = keras.Input((6, 8), name="x")
    y = layers.MultiHeadAttention(2, 4, name="mha")(x, x, **options)
    return settle(keras.Model(x, layers.Dense(3, name="out")(y)))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_real_numbers_is_what_the_model_computes(causal: bool) -> None:
    model = attention(use_causal_mask=causal)
    qmodel, _ = qi.quantize_model(model, "w8", progress=False)
    agrees(qmodel, lower(qmodel))


def test_attention_in_integers() -> None:
    _, graph, _ = in_integers(attention())
    assert all(op.quantized for op in graph.ops if op.kind != "quantize")
    products = [op for op in graph.ops if op.kind == "batch_matmul"]
    assert [op.inputs[1].zero_point for op in products] == [0, 0]
    assert [op.kind for op in graph.ops].count("dense") == 5


def test_a_causal_mask_is_a_sum_and_a_softmax_in_real_numbers() -> None:
    model = attention(use_causal_mask=True)
    qmodel, graph, x = in_integers(model)
    real = [op.kind for op in graph.ops if not op.quantized and op.kind != "quantize"]
    assert real == ["add", "softmax"]
    softmax = next(op for op in graph.ops if op.kind == "softmax")
    routed = route(graph, "litert")
    found = run(routed, [x], every=True)
    given = next(op for op in routed.ops if op.kind.startswith("softmax")).y
    codes = found[next(op for op in routed.ops if op.kind == "quantize" and op.x is given).y.name]
    assert softmax.y.shape == (None, 2, 6, 6)
    assert (codes[:, :, ~np.tri(6, dtype=bool)] == -128).all()
    assert np.abs((codes + 128).sum(-1) - 256).max() <= 3
    out = graph.outputs[0]
    steps = np.abs(found[out.name] - out.zero_point - qmodel.predict(x, verbose=0) / out.scale)
    assert steps.max() < 2.01
    assert (steps > 0.01).mean() < 0.02
