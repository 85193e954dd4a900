"""The float models as LiteRT and ONNX files, through Keras' own export; run in the environment of the peer keras."""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import tensorflow as tf
from cell import Cell


def write(cell: Cell) -> None:
    """Both files, with the model's own outputs."""
    model = keras.models.load_model(cell.file(".keras"), compile=False)
    images = cell.data["x_calib"][:64]
    cell.file(".tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    lite = tf.lite.Interpreter(model_path=str(cell.file(".tflite")))
    lite.resize_tensor_input(lite.get_input_details()[0]["index"], images.shape)
    lite.allocate_tensors()
    lite.set_tensor(lite.get_input_details()[0]["index"], images)
    lite.invoke()
    cell.check_float(lite.get_tensor(lite.get_output_details()[0]["index"]))
    model.predict(images, verbose=0)  # before any call, Keras refuses to export
    model.export(str(cell.file(".onnx")), format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(str(cell.file(".onnx")))
    cell.check_float(np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--model", required=True)
    given = parser.parse_args()
    write(Cell(given.inputs, given.model, 32, {}))
