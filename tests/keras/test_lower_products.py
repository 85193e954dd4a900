from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from tests.keras.lowered import agrees, branches, in_integers, kinds, refusal, weights_only


def test_products_of_activations() -> None:
    a, b, heads = (
        keras.Input(shape, name=name) for name, shape in (("a", (3, 4)), ("b", (4, 5)), ("heads", (2, 3, 4)))
    )
    row = keras.Input((4,), name="row")
    made = {
        "matmul": ops.matmul(a, b),
        "matmul_of_heads": ops.matmul(heads, ops.transpose(heads, (0, 1, 3, 2))),
        "matmul_by_numbers": ops.matmul(a, np.arange(8, dtype="float32").reshape(4, 2)),
        "einsum": ops.einsum("bij,bjk->bik", a, b),
        "einsum_turned": ops.einsum("bij,bjk->bki", a, b),
        "einsum_of_heads": ops.einsum("bhqd,bhkd->bhqk", heads, heads),
        "einsum_heads_last": ops.einsum("bhqd,bhkd->bqkh", heads, heads),
        "dot": layers.Dot(axes=(2, 1))([a, b]),
        "dot_of_rows": layers.Dot(axes=1)([row, row]),
        "dense": layers.Dense(2)(row),
    }
    branches([a, b, heads, row], made)


def test_products_with_kernels_by_an_equation() -> None:
    x, heads = keras.Input((3, 8), name="x"), keras.Input((3, 2, 4), name="heads")
    made = {
        "plain": layers.EinsumDense("abc,cd->abd", (3, 5), bias_axes="d")(x),
        "ellipsis": layers.EinsumDense("...x,xy->...y", 5, bias_axes="y", activation="relu")(x),
        "transposed": layers.EinsumDense("abc,dc->abd", (3, 5), bias_axes="d")(x),
        "into_heads": layers.EinsumDense("abc,cde->abde", (3, 2, 4), bias_axes="de")(x),
        "out_of_heads": layers.EinsumDense("abde,dec->abc", (3, 6), bias_axes="c")(heads),
        "turned": layers.EinsumDense("abc,cd->adb", (5, 3), bias_axes="d")(x),
        "bias_elsewhere": layers.EinsumDense("abc,cd->abd", (3, 5), bias_axes="bd")(x),
        "no_bias": layers.EinsumDense("abc,cd->abd", (3, 5))(x),
    }
    branches([x, heads], made)


def test_attention_is_products_and_a_softmax() -> None:
    x, y = keras.Input((4, 6), name="x"), keras.Input((3, 5), name="y")
    own = layers.MultiHeadAttention(2, 3, name="own")(x, x)
    causal = layers.MultiHeadAttention(1, 4, use_bias=False, name="causal")(x, x, use_causal_mask=True)
    other = layers.MultiHeadAttention(2, 3, value_dim=4, output_shape=7, name="other")(x, y)
    qmodel, graph = weights_only(keras.Model([x, y], [own, causal, other]))
    agrees(qmodel, graph)
    assert kinds(graph).count("batch_matmul") == 6
    assert kinds(graph).count("softmax") == 3


def test_in_integers_a_product_is_one_operation() -> None:
    x = keras.Input((3, 8), name="x")
    y = layers.EinsumDense("abc,cde->abde", (3, 2, 4), bias_axes="de", activation="relu", name="heads")(x)
    z = ops.einsum("bqhd,bkhd->bhqk", y, y)
    _, graph, _ = in_integers(keras.Model(x, layers.Dense(2, name="dense")(z)))
    assert [kind for kind in kinds(graph) if kind not in ("reshape", "transpose")] == [
        "quantize",
        "dense",
        "batch_matmul",
        "dense",
    ]
    assert all(op.quantized for op in graph.ops[1:])
    assert next(op for op in graph.ops if op.kind == "dense").attrs["activation"] == "relu"


def test_refusals() -> None:
    x, heads = keras.Input((3, 4)), keras.Input((1, 4, 5))
    dense = layers.Dense(4)
    assert "with normalize=True" in refusal(x, layers.Dot(axes=2, normalize=True)([dense(x), x]))
    assert "of 3 tensors; do use two at a time" in refusal(x, ops.einsum("bij,bij,bij->bij", dense(x), x, x))
    assert "joins samples of a batch" in refusal(x, ops.einsum("bij,cij->bc", dense(x), x))
    assert "which sums over one operand alone" in refusal(x, ops.einsum("bij,bkl->bik", dense(x), x))
    assert "aren't in stacks of one rank" in refusal([x, heads], ops.matmul(dense(x), heads))
