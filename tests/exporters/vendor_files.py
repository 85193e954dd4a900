"""A small model, and quantized files of it that other tools made."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from tests.keras.models import settle

__all__ = [
    "float_onnx",
    "images",
    "onnx_quantized",
    "perceptron",
    "quiet",
    "samples_for",
    "small_cnn",
    "swish_net",
    "tflite",
    "transformer",
]


def small_cnn(seed: int = 0) -> keras.Model:
    """Batch normalization, a residual sum, concatenation, all pools, depthwise and 1x1 convolutions, Dense."""
    image = x = layers.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="c1", use_bias=False)(x)
    x = layers.ReLU(name="r1")(layers.BatchNormalization(name="b1")(x))
    y = layers.BatchNormalization(name="b2")(layers.Conv2D(8, 3, padding="same", name="c2")(x))
    x = layers.ReLU(name="r2")(layers.Add(name="add")([x, y]))
    x = layers.MaxPooling2D(name="mp")(x)
    d = layers.DepthwiseConv2D(3, padding="same", name="dw", use_bias=False)(x)
    d = layers.ReLU(6.0, name="r3")(layers.BatchNormalization(name="b3")(d))
    p = layers.Conv2D(12, 1, name="pw", activation="relu")(d)
    x = layers.AveragePooling2D(2, name="ap")(layers.Concatenate(name="cat")([x, p]))
    x = layers.Conv2D(16, 3, name="c3", activation="relu")(x)
    x = layers.Dense(24, activation="relu", name="d1")(layers.GlobalAveragePooling2D(name="gap")(x))
    x = layers.Softmax(name="soft")(layers.Dense(10, name="logits")(x))
    model: keras.Model = settle(keras.Model(image, x, name="small"), seed)
    return model


def swish_net() -> keras.Model:
    """Swishes of all kinds around depthwise and 1x1 convolutions, and a residual sum."""
    image = x = layers.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = layers.Activation("swish", name="s0")(layers.BatchNormalization(name="b0")(x))
    y = layers.Conv2D(16, 1, name="expand", activation="swish")(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw")(y)
    y = layers.Activation("swish", name="s1")(layers.BatchNormalization(name="b1")(y))
    x = layers.Add(name="add")([x, layers.Conv2D(8, 1, name="project")(y)])
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    model: keras.Model = settle(keras.Model(image, layers.Dense(10, name="logits")(x), name="swish_net"))
    return model


def perceptron() -> keras.Model:
    """Three products."""
    x = layers.Input((64,), name="x")
    y = layers.Dense(64, activation="tanh", name="b")(layers.Dense(96, activation="relu", name="a")(x))
    model: keras.Model = settle(keras.Model(x, layers.Dense(10, name="logits")(y), name="mlp"))
    return model


def transformer() -> keras.Model:
    """One block: normalization before attention and before two products with GELU, residual sums."""
    tokens = x = layers.Input((16, 64), name="x")
    h = layers.LayerNormalization(name="ln1")(x)
    x = layers.Add(name="add1")([x, layers.MultiHeadAttention(4, 16, name="mha")(h, h)])
    h = layers.Dense(128, activation="gelu", name="up")(layers.LayerNormalization(name="ln2")(x))
    x = layers.Add(name="add2")([x, layers.Dense(64, name="down")(h)])
    x = layers.GlobalAveragePooling1D(name="gap")(x)
    model: keras.Model = settle(keras.Model(tokens, layers.Dense(10, name="logits")(x), name="block"))
    return model


def samples_for(model: keras.Model, count: int = 64, seed: int = 1) -> np.ndarray:
    """Inputs of a model."""
    return np.random.default_rng(seed).normal(0.2, 1.0, (count, *model.input_shape[1:])).astype(np.float32)


def float_onnx(model: keras.Model) -> bytes:
    """A float ONNX file of a model, of our own writing."""
    import qi
    from qi.exporters import onnx_file
    from qi.ir.routing import route
    from qi.keras.emulate import float_graph

    quantized, _ = qi.quantize_model(model, "w8a8", samples_for(model), progress=False)
    return onnx_file.write(route(float_graph(quantized), "onnxruntime"))


def images(count: int = 64, seed: int = 1) -> np.ndarray:
    """Samples for `small_cnn`."""
    return np.random.default_rng(seed).normal(0.2, 1.0, (count, 16, 16, 3)).astype(np.float32)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lets a tool speak to nobody."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def tflite(model: keras.Model, samples: Any, *, full: bool = True, integer_io: bool = False) -> bytes:
    """What TensorFlow's converter makes of a model: all in integers, or only large weights.

    Args:
        model: of float layers.
        samples: an array, or a dict of them by the inputs' names.
        full: whether activations are quantized, too.
        integer_io: whether codes go in and come out.
    """
    import tensorflow as tf

    with quiet():
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if full:
            several = isinstance(samples, dict)
            count = len(next(iter(samples.values()))) if several else len(samples)
            converter.representative_dataset = lambda: (
                {name: a[i : i + 1] for name, a in samples.items()} if several else [samples[i : i + 1]]
                for i in range(count)
            )
        if integer_io:
            converter.inference_input_type = converter.inference_output_type = tf.int8
        return bytes(converter.convert())


def onnx_quantized(data: bytes, samples: np.ndarray, folder: Path, *, dynamic: bool = False, **options: Any) -> bytes:
    """What ONNX Runtime's quantizer makes of a float ONNX file with one input.

    Args:
        data: the file.
        samples: for calibration.
        folder: to work in.
        dynamic: only weights, and activations at run time.
        options: of `quantize_static`.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, prepared, result = (folder / f"{name}.onnx" for name in ("float", "prepared", "quantized"))
    source.write_bytes(data)
    name = onnx.load_from_string(data).graph.input[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter([{name: samples[i : i + 1]} for i in range(len(samples))])

        def get_next(self) -> Any:
            return next(self.rows, None)

    with quiet():
        quant_pre_process(str(source), str(prepared))
        if dynamic:
            quantization.quantize_dynamic(str(prepared), str(result))
        else:
            quantization.quantize_static(str(prepared), str(result), Reader(), **options)
    return result.read_bytes()
