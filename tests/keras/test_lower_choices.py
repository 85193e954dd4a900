from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from tests.keras.lowered import branches, refusal


def test_comparisons() -> None:
    x, y = keras.Input((3, 4), name="x"), keras.Input((3, 4), name="y")
    ids, other = (keras.Input((4,), dtype=dtype, name=name) for name, dtype in (("ids", "int32"), ("other", "int64")))
    made = {"zz_dense": layers.Dense(2)(x)}
    for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
        compare = getattr(ops, name)
        made[name] = ops.cast(compare(x, y), "float32") + 0.5
        made[f"{name}_number"] = ops.cast(compare(ids, 3), "float32") + 0.5
        made[f"{name}_places"] = ops.cast(compare(np.arange(4)[None], ids), "float32") + 0.5
    made["mixed"] = ops.cast(ids > 2.5, "float32") + 0.5
    made["of_two_types"] = ops.cast(ids < other, "float32") + 0.5
    made["equal"] = ops.cast(ops.equal(x, x), "float32")  # of two draws none would be
    branches([x, y, ids, other], made)


def test_choices() -> None:
    x, ids = keras.Input((3, 4), name="x"), keras.Input((4,), dtype="int32", name="ids")
    seen = ops.less_equal(np.arange(4)[None], ids)
    made = {
        "rows": ops.where(seen[:, None, :], x, -5.0),
        "shares": ops.softmax(ops.where(seen[:, None, :], x, -1e9)),
        "either": ops.where(x > 0, x, x * 2.0),
        "by_numbers": ops.where(ids, 1.0, 2.0),
        "whole": ops.cast(ops.where(seen, ids, 7), "float32"),
        "constant": ops.where(np.asarray([True, False, True, False]), x, 0.25),
        "zz_dense": layers.Dense(2)(x),
    }
    branches([x, ids], made)


def test_indices_as_vectors() -> None:
    ids = keras.Input((4,), dtype="int32", name="ids")
    made = {
        "last": ops.one_hot(ids, 6),
        "first": ops.one_hot(ids, 5, axis=1),
        "dense": layers.Dense(3)(ops.one_hot(ids, 7)),
    }
    branches(ids, made)


def test_refusals() -> None:
    x = keras.Input((3,), name="x")
    assert "with indices of dtype float32" in refusal(x, layers.Dense(2)(ops.one_hot(x, 4)))
    whole = ops.where(x > 0, np.ones(3, "int8"), np.zeros(3, "int8"))
    assert "let it choose among real numbers" in refusal(x, layers.Dense(2)(ops.cast(whole, "float32")))
