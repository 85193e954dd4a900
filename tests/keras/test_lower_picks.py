from __future__ import annotations

import keras
from keras import layers, ops

from tests.keras.lowered import agrees, branches, close, in_integers, kinds, refusal, weights_only


def test_what_picks_values() -> None:
    x = keras.Input((5, 6, 3), name="x")
    made = {
        "head": x[:, :2],
        "tail": x[:, -2:],
        "row": x[:, 3],
        "last_row": x[:, -1],
        "pixel": x[:, 1, 2],
        "column": x[:, :, 2:3],
        "every_other": x[:, 1::2, ::3],
        "channel": x[..., 0],
        "channels": x[..., -2:],
        "both": x[:, ..., 1],
        "new_axis": x[:, None],
        "new_axes": x[:, None, :, None],
        "new_last_axis": x[..., None],
        "new_axis_of_a_row": x[:, None, 2],
        "new_axis_of_a_part": x[:, 1:3, None, ..., 0],
        "all": x[:, :],
        "second_half": ops.split(x, 2, axis=2)[1],
        "third": ops.split(x, [1, 4], axis=1)[2],
        "piece": ops.unstack(x, axis=1)[3],
        "middle": layers.CenterCrop(3, 4)(x),
    }
    branches(x, made | {"zz_dense": layers.Dense(2)(x)})


def test_embeddings() -> None:
    ids = keras.Input((6,), dtype="int32", name="ids")
    made = {
        "rows": layers.Embedding(10, 3)(ids),
        "next_rows": layers.Embedding(11, 3)(ids + 1),
        "rows_of_rows": layers.Embedding(10, 3)(ops.reshape(ids, (-1, 2, 3))),
    }
    branches(ids, made)


def test_a_table_in_both_directions() -> None:
    ids = keras.Input((6,), dtype="int32", name="ids")
    made = {}
    for name, options in {"tied": {}, "apart": {"tie_weights": False}, "capped": {"logit_soft_cap": 2.0}}.items():
        table = layers.ReversibleEmbedding(10, 3, **options)
        made[name] = table(ops.tanh(table(ids)), reverse=True)
    branches(ids, made)


def test_in_integers_a_table_multiplies_its_codes() -> None:
    ids = keras.Input((6,), dtype="int32", name="ids")
    table = layers.ReversibleEmbedding(10, 4, name="table")
    qmodel, graph, data = in_integers(keras.Model(ids, table(layers.Dense(4, name="dense")(table(ids)), reverse=True)))
    close(qmodel, data)
    assert [op.quantized for op in graph.ops if op.kind == "dense"] == [True, True]


def test_an_embedding_of_one_scale_gives_codes() -> None:
    ids = keras.Input((4,), dtype="int32", name="ids")
    y = layers.Dense(3, name="dense")(layers.Flatten()(layers.Embedding(10, 3, name="rows")(ids)))
    qmodel, graph = weights_only(keras.Model(ids, y))
    agrees(qmodel, graph)
    assert kinds(graph) == ["embedding", "reshape", "dense"]


def test_refusals() -> None:
    steps, row = keras.Input((None, 3)), keras.Input((3,))
    dense = layers.Dense(3)
    assert "along an open size" in refusal(steps, dense(steps)[:, :2])
    assert "slice all but the batch by numbers" in refusal(row, dense(row)[:1, :])
    assert "with step -1" in refusal(row, dense(row)[:, ::-1])
    indices = keras.Input((3,), name="indices")
    assert "with indices of dtype float32; do give the model an Input of dtype 'int32'" in refusal(
        indices, layers.Embedding(4, 2)(indices)
    )
    images = keras.Input((4, 4, 3))
    assert "which makes (6, 4) of smaller images (4, 4)" in refusal(images, layers.CenterCrop(6, 4)(dense(images)))


def test_refusals_of_masks() -> None:
    ids = keras.Input((5,), dtype="int32")
    rows = layers.Embedding(10, 4, mask_zero=True)(ids)
    assert "with a mask; do give Embedding mask_zero=False, and no masks" in refusal(
        ids, layers.GlobalAveragePooling1D()(rows)
    )
