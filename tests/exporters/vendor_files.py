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

__all__ = ["images", "onnx_quantized", "quiet", "small_cnn", "tflite"]


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
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, prepared, result = (folder / f"{name}.onnx" for name in ("float", "prepared", "quantized"))
    source.write_bytes(data)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter([{"image": samples[i : i + 1]} for i in range(len(samples))])

        def get_next(self) -> Any:
            return next(self.rows, None)

    with quiet():
        quant_pre_process(str(source), str(prepared))
        if dynamic:
            quantization.quantize_dynamic(str(prepared), str(result))
        else:
            quantization.quantize_static(str(prepared), str(result), Reader(), **options)
    return result.read_bytes()
