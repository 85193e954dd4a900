"""Run in processes of its own: quantization-aware training on two devices, each through an engine of Keras or TensorFlow.

``python distributed.py MODE`` prints one JSON line; `test_distribution.py` reads it. Modes: "mirrored" (one process, two
logical devices), "worker" (one of two processes, told so by TF_CONFIG) and "jax" (two host devices).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import qi

__all__: list[str] = []

SAMPLES, BATCH, EPOCHS = 64, 16, 2


def dataset() -> tuple[np.ndarray, np.ndarray]:
    """Images of two patterns, each brighter in its own half."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, SAMPLES)
    x = rng.normal(0.0, 0.5, (SAMPLES, 6, 6, 1))
    x[y == 1, :3] += 1.0
    x[y == 0, 3:] += 1.0
    return x.astype(np.float32), y.astype(np.int32)


def float_model() -> keras.Model:
    """A tiny CNN, the same each time."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(inputs)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def prepared(x: np.ndarray) -> keras.Model:
    """The model to train, every quantizer with a learned step."""
    return qi.prepare_qat(float_model(), "w4a8", x, method="lsq", progress=False)


def optimizer_of() -> keras.optimizers.Optimizer:
    """Slow enough that a last digit's difference stays one: learned steps are small numbers."""
    return keras.optimizers.SGD(0.005, momentum=0.9)


def compiled(model: keras.Model) -> keras.Model:
    """Compiled without XLA, which can't reduce over TensorFlow's replicas."""
    model.compile(optimizer_of(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    return model


def fitted(model: keras.Model, x: np.ndarray, y: np.ndarray) -> list[float]:
    """Trains; the loss of each epoch."""
    history = model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0)
    return [float(loss) for loss in history.history["loss"]]


def steps_of(model: keras.Model) -> list[Any]:
    """The variables of learned steps, of weights and of activations."""
    return [variable for variable in model.trainable_variables if variable.path.endswith("step")]


def values_of(model: keras.Model) -> dict[str, list[float]]:
    """Every trained value, by a name that doesn't count on through a process."""
    found = enumerate(model.trainable_variables)
    return {f"{i} {v.path.rpartition('/')[2]}": np.ravel(keras.ops.convert_to_numpy(v)).tolist() for i, v in found}


def outcome(model: keras.Model, losses: list[float], replicas: Callable[[Any], list[np.ndarray]]) -> dict[str, Any]:
    """What the test compares."""
    per_step = [replicas(step) for step in steps_of(model)]
    return {
        "losses": losses,
        "values": values_of(model),
        "replicas": [len(found) for found in per_step],
        "equal": [all(np.array_equal(found[0], other) for other in found) for found in per_step],
    }


def one_device(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The same training without any distribution, and where it started."""
    model = compiled(prepared(x))
    start = values_of(model)
    losses = fitted(model, x, y)
    return outcome(model, losses, lambda step: [keras.ops.convert_to_numpy(step)]) | {"start": start}


def mirrored() -> dict[str, Any]:
    """`fit` under MirroredStrategy on two logical devices."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    x, y = dataset()
    alone = one_device(x, y)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = compiled(prepared(x))
    losses = fitted(model, x, y)
    together = outcome(model, losses, lambda step: [np.asarray(part) for part in step.value.values])
    converted = qi.convert(model)
    same = np.array_equal(converted.predict(x, verbose=0), model.predict(x, verbose=0))
    return {"alone": alone, "together": together, "converted": bool(same)}


def worker() -> dict[str, Any]:
    """A loop of our own under MultiWorkerMirroredStrategy: this process sees its half of each batch."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = strategy.cluster_resolver.task_id
    x, y = dataset()
    with strategy.scope():
        model = prepared(x)
        start = values_of(model)
        optimizer = optimizer_of()
        optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")

    @tf.function
    def step(images: Any, labels: Any) -> Any:
        def replica(images: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(images, training=True)) / BATCH
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss

        return strategy.reduce("sum", strategy.run(replica, (images, labels)), axis=None)

    losses = []
    for _ in range(EPOCHS):
        batches = np.arange(SAMPLES).reshape(-1, 2, BATCH // 2)[:, index]
        losses.append(float(np.mean([float(step(x[rows], y[rows])) for rows in batches])))
    found = outcome(model, losses, lambda variable: [np.asarray(keras.ops.convert_to_numpy(variable))])
    told = keras_fit(strategy, x, y)
    return {"together": found, "start": start, "keras_fit": told} | ({"alone": one_device(x, y)} if index == 0 else {})


def keras_fit(strategy: Any, x: np.ndarray, y: np.ndarray) -> str:
    """What Keras' own `fit` says of the float model, with nothing of ours in it, in two processes."""
    with strategy.scope():
        model = compiled(float_model())
    try:
        fitted(model, x, y)
    except Exception as error:  # whichever it is tells that the loop above is needed
        return f"{type(error).__name__}: {error}"
    return ""


def jax() -> dict[str, Any]:
    """`fit` under keras.distribution.DataParallel."""
    x, y = dataset()
    alone = one_device(x, y)
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    model = compiled(prepared(x))
    losses = fitted(model, x, y)
    together = outcome(model, losses, lambda step: [np.asarray(part.data) for part in step.value.addressable_shards])
    return {"alone": alone, "together": together}


if __name__ == "__main__":
    print("RESULT " + json.dumps({"mirrored": mirrored, "worker": worker, "jax": jax}[sys.argv[1]]()))
