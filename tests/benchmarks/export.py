"""Exported files on both reference models: exactness on 5,000 images, accuracy, size and time beside other people's converters.

Run: python -m tests.benchmarks.export [exact] [peers] [training]

The converters of TensorFlow and ONNX Runtime get the same 1,024 calibration images; times are of one image in one thread,
interleaved, as ratios to ours.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

import qi
from qi.exporters.manifest import Options
from qi.ir import QGraph, run
from qi.ir.routing import route
from qi.ir.twin import real_values
from tests.benchmarks.common import MODELS, Data, interleaved, load_data, load_float

BATCH, ROUNDS = 250, 300


def runtimes() -> dict[str, Any]:
    """How files are run, by suffix."""
    from qi.exporters.formats import FORMATS

    return {found.suffix: found for found in FORMATS.values()}


def twin_outputs(graph: QGraph, x: np.ndarray) -> np.ndarray:
    """What the twin gives, in real numbers."""
    name = graph.outputs[0].name
    parts = [run(graph, [x[i : i + BATCH]])[name] for i in range(0, len(x), BATCH)]
    return real_values(graph.outputs[0], np.concatenate(parts))


def file_outputs(kind: Any, data: bytes, x: np.ndarray, threads: int) -> np.ndarray:
    """What the runtime gives."""
    parts = [next(iter(kind.run(data, [x[i : i + BATCH]], threads=threads).values())) for i in range(0, len(x), BATCH)]
    return np.concatenate(parts)


def exactness(data: Data) -> None:
    """The twin, the file and an exact model's predict on every test image; accuracy of each."""
    for name in MODELS:
        model = load_float(name)
        for suffix, kind in runtimes().items():
            qmodel, _ = qi.quantize_model(model, "w8a8", data.x_calib, exact=kind.target, progress=False)
            graph = route(qi.lower(qmodel), kind.target)
            start = time.perf_counter()
            content = kind.write(graph, Options(), b"")
            seconds = time.perf_counter() - start
            expected = twin_outputs(graph, data.x_test)
            predicted = qmodel.predict(data.x_test, batch_size=BATCH, verbose=0)
            told = [f"predict against twin {np.count_nonzero(predicted != expected)}"]
            for threads in (1, 2):
                found = file_outputs(kind, content, data.x_test, threads)
                told.append(f"file with {threads} threads {np.count_nonzero(found != expected)}")
                accuracy = np.mean(found.argmax(-1) == data.y_test) * 100
            same = np.mean(predicted.argmax(-1) == found.argmax(-1)) * 100
            print(
                f"{name}{suffix}: of {expected.size} outputs differ: {', '.join(told)}; top-1 {accuracy:.2f}, equal to predict's "
                f"image by image {same:.2f} %; written in {seconds:.2f} s",
                flush=True,
            )
        keras.backend.clear_session()


def litert_peer(model: keras.Model, data: Data) -> bytes:
    """TensorFlow's own full-integer conversion."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([data.x_calib[i : i + 1]] for i in range(256))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return bytes(converter.convert())


def onnx_peer(plain: bytes, data: Data, name: str) -> bytes:
    """ONNX Runtime's static quantization of our float file."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{name: data.x_calib[i : i + 32]} for i in range(0, 256, 32)])

        def get_next(self) -> Any:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(plain)
        quantize_static(
            str(source), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return target.read_bytes()


def peers(data: Data) -> None:
    """Size against the float file, and time of one image as a ratio to ours."""
    from qi.keras.emulate import float_graph

    for name in MODELS:
        model = load_float(name)
        qmodel, _ = qi.quantize_model(model, "w8a8", data.x_calib, progress=False)
        for suffix, kind in runtimes().items():
            graph = route(qi.lower(qmodel), kind.target)
            plain_graph = route(float_graph(qmodel), kind.target)
            write = lambda g, kind=kind: kind.write(g, Options(), b"")
            files = {"ours": write(graph), "float": write(plain_graph)}
            files["peer"] = (
                litert_peer(model, data)
                if suffix == ".tflite"
                else onnx_peer(files["float"], data, graph.inputs[0].name)
            )
            sessions = {key: kind.session(content, threads=1) for key, content in files.items()}
            seconds = interleaved(
                {key: partial(session, [data.x_test[:1]]) for key, session in sessions.items()}, ROUNDS
            )
            sizes = {key: len(files["float"]) / len(content) for key, content in files.items()}
            accuracy = {
                key: np.mean(file_outputs(kind, files[key], data.x_test, 2).argmax(-1) == data.y_test) * 100
                for key in ("ours", "peer")
            }
            print(
                f"{name}{suffix}: size float/int8 {sizes['ours']:.2f}, peer {sizes['peer']:.2f}; time float/ours "
                f"{seconds['float'] / seconds['ours']:.2f}, peer/ours {seconds['peer'] / seconds['ours']:.2f}; top-1 ours "
                f"{accuracy['ours']:.2f}, peer {accuracy['peer']:.2f}",
                flush=True,
            )
        keras.backend.clear_session()


def training(data: Data) -> None:
    """Rows of predict equal to the file's after training with the runtime's arithmetic, and without it."""
    labels = load_float(MODELS[0]).predict(data.x_calib, verbose=0).argmax(-1)
    kind = runtimes()[".tflite"]
    for exact in ("litert", None):
        keras.utils.set_random_seed(0)
        qat = qi.prepare_qat(load_float(MODELS[0]), "w4a8", data.x_calib, exact=exact, progress=False)
        qat.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy")
        qat.fit(data.x_calib, labels, epochs=1, batch_size=64, verbose=0)
        qmodel = qi.convert(qat)
        content = kind.write(route(qi.lower(qmodel), "litert"), Options(), b"")
        found = file_outputs(kind, content, data.x_test, 2)
        rows = np.all(qmodel.predict(data.x_test, batch_size=BATCH, verbose=0) == found, axis=-1)
        print(
            f"{MODELS[0]}, w4a8 trained with exact={exact!r}: {rows.mean():.2%} of rows equal to the file's", flush=True
        )


TABLES = {"exact": exactness, "peers": peers, "training": training}

if __name__ == "__main__":
    warnings.simplefilter("ignore", qi.QuantizationWarning)
    images = load_data()
    for table in sys.argv[1:] or TABLES:
        TABLES[table](images)
