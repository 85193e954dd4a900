"""Run in a process of its own with KERAS_BACKEND set: the callbacks on other backends, and on two devices.

Prints a line once everything held; `test_callbacks.py` reads it.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np

import qi
from tests.keras.tiny_qat import Watch, X, bits, fit, qat_model, ranges

PLACE = sys.argv[1]


def statistics(model: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model.get_layer("norm").moving_mean)).copy()


def train(**engine: Any) -> None:
    model = qat_model("w3a3", norm=True, optimizer=keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.1), **engine)
    watch = Watch(ranges=ranges, bits=bits, statistics=statistics)
    logger = qi.QuantizationLogger(X)
    start = ranges(model)
    found = fit(
        model,
        qi.StartQuantization(1),
        qi.BitWidthSchedule({2: 2}),
        qi.FreezeRanges(3),
        qi.FreezeBatchNorm(3),
        watch,
        logger,
        epochs=5,
    )
    seen = watch.seen
    same = lambda a, b: all(np.array_equal(a[name], b[name]) for name in a)
    assert same(seen["ranges"][0], start)
    assert not same(seen["ranges"][1], start)
    assert same(seen["ranges"][4], seen["ranges"][3])
    assert [set(now.values()) for now in seen["bits"]] == [{3}, {3}, {2}, {2}, {2}]
    assert np.array_equal(seen["statistics"][4], seen["statistics"][3])
    assert not np.array_equal(seen["statistics"][3], seen["statistics"][1])
    assert len({f"{value:.6f}" for value in found["val_loss"][:3]}) == 3
    assert [row.clipped is None for row in logger.rows] == [False] * 25
    prediction = model.predict(X, verbose=0)
    assert len(np.unique(prediction[:, 0])) <= 4
    assert np.allclose(qi.convert(model).predict(X, verbose=0), prediction, atol=1e-6)


if PLACE == "mirrored":
    import tensorflow as tf

    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        train(jit_compile=False)
else:
    train(**({"jit_compile": True} if PLACE == "jax" else {"run_eagerly": True}))
print(f"{PLACE} holds")
