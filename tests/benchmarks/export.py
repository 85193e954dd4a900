"""Exported files on both reference models: exactness on 5,000 images, accuracy, size and time beside other people's converters.

Run: python -m tests.benchmarks.export [exact] [peers] [architectures] [training]

The converter of TensorFlow, AI Edge Quantizer (where it's installed: pip install ai-edge-quantizer) and ONNX Runtime's
quantize_static get 256 of the same calibration images; times are of one image in one thread, interleaved, as ratios to ours.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

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


def converter_peer(model: keras.Model, samples: np.ndarray) -> bytes:
    """TensorFlow's own full-integer conversion."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(_one_at_a_time(model))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([samples[i : i + 1]] for i in range(min(256, len(samples))))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return bytes(converter.convert())


def edge_peer(model: keras.Model, samples: np.ndarray) -> bytes:
    """AI Edge Quantizer's static 8 bits of TensorFlow's float conversion."""
    import tensorflow as tf
    from ai_edge_quantizer import quantizer, recipe

    plain = bytes(tf.lite.TFLiteConverter.from_keras_model(_one_at_a_time(model)).convert())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.tflite"
        path.write_bytes(plain)
        peer = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
        (signature,) = Interpreter(model_content=plain).get_signature_list().values()
        name = signature["inputs"][0]
        shown = [{name: samples[i : i + 1]} for i in range(min(256, len(samples)))]
        return bytes(peer.quantize(peer.calibrate({"serving_default": shown})).quantized_model)


def _one_at_a_time(model: keras.Model) -> keras.Model:
    """The model with a batch of one: attention takes twice the operations otherwise."""
    inputs = keras.Input(batch_shape=(1, *model.input_shape[1:]))
    return keras.Model(inputs, model(inputs))


def onnx_peer(plain: bytes, samples: np.ndarray, name: str) -> bytes:
    """ONNX Runtime's static quantization of our float file."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{name: samples[i : i + 32]} for i in range(0, min(256, len(samples)), 32)])

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


def one_call(kind: Any, content: bytes, sample: np.ndarray) -> Callable[[], object]:
    """Runs a file on one sample, in one thread; in LiteRT also files that take codes."""
    if kind.suffix != ".tflite":
        return partial(kind.session(content, threads=1), [sample])
    interpreter = Interpreter(model_content=content, num_threads=1)
    details = interpreter.get_input_details()[0]
    interpreter.resize_tensor_input(details["index"], sample.shape)
    interpreter.allocate_tensors()
    if details["dtype"] != np.float32:
        scale, zero_point = details["quantization"]
        sample = np.clip(np.rint(sample / scale) + zero_point, -128, 127)
    sample, output = sample.astype(details["dtype"]), interpreter.get_output_details()[0]["index"]

    def call() -> object:
        interpreter.set_tensor(details["index"], sample)
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return call


def beside_peers(name: str, model: keras.Model, samples: np.ndarray, rounds: int, recipe: str = "w8a8") -> None:
    """Size against the float file, time of one sample as a ratio to ours, and whether file and twin agree."""
    from qi.keras.emulate import float_graph

    qmodel, _ = qi.quantize_model(model, recipe, samples, progress=False)
    for suffix, kind in runtimes().items():
        graph = route(qi.lower(qmodel), kind.target)
        write = lambda g, kind=kind: kind.write(g, Options(), b"")
        start = time.perf_counter()
        files = {"ours": write(graph)}
        told = [f"written in {time.perf_counter() - start:.2f} s"]
        files["float"] = write(route(float_graph(qmodel), kind.target))
        input_name = graph.inputs[0].name
        makers: dict[str, Any] = {"quantize_static": partial(onnx_peer, files["float"], samples, input_name)}
        if suffix == ".tflite":
            makers = {
                "TFLiteConverter": partial(converter_peer, model, samples),
                "AI Edge Quantizer": partial(edge_peer, model, samples),
            }
        for peer, make in makers.items():
            try:
                files[peer] = make()
            except Exception as error:  # whatever other people's tools raise
                told.append(f"{peer} failed ({type(error).__name__})")
        calls = {key: one_call(kind, content, samples[:1]) for key, content in files.items()}
        seconds = interleaved(calls, rounds)
        shown = samples[:256]
        expected, found = twin_outputs(graph, shown), file_outputs(kind, files["ours"], shown, 2)
        steps = np.abs(found - expected) / (graph.outputs[0].scale.max() if graph.outputs[0].quantized else 1)
        told.append(f"{np.count_nonzero(steps)} of {steps.size} outputs differ, by {steps.max():.2g} steps at most")
        for key in files:
            if key != "ours":
                ratio = len(files["float"]) / len(files["ours" if key == "float" else key])
                told.append(f"{key}: {ratio:.2f}x smaller" if key != "float" else f"ours: {ratio:.2f}x smaller")
                told.append(f"time {key} / ours {seconds[key] / seconds['ours']:.2f}")
        print(f"{name} {recipe}{suffix}: {'; '.join(told)}", flush=True)
    keras.backend.clear_session()


def peers(data: Data) -> None:
    """Both reference models beside other people's converters."""
    for name in MODELS:
        beside_peers(name, load_float(name), data.x_calib, ROUNDS)


def architectures(data: Data) -> None:
    """Models with weights by chance, for size, speed and exactness alone."""
    del data
    for name, (build, rounds) in ARCHITECTURES.items():
        keras.utils.set_random_seed(0)
        model = build()
        samples = np.random.default_rng(0).normal(size=(64, *model.input_shape[1:])).astype(np.float32)
        settle(model, samples)
        for recipe in ("w8a8", "w4a8") if "MLP" in name else ("w8a8",):
            beside_peers(name, model, samples, rounds, recipe)


def settle(model: keras.Model, samples: np.ndarray) -> None:
    """Gives normalizations the statistics of the samples, as training would have."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            before = keras.Model(model.inputs, layer.input).predict(samples, verbose=0)
            axes = tuple(range(before.ndim - 1))
            layer.moving_mean.assign(before.mean(axes))
            layer.moving_variance.assign(before.var(axes) + 1e-3)


def mlp() -> keras.Model:
    """Dense 256-512-512-10."""
    layers = keras.layers
    dense = [layers.Dense(512, activation="relu"), layers.Dense(512, activation="relu"), layers.Dense(10)]
    return keras.Sequential([keras.Input((256,)), *dense])


def transformer(tokens: int = 64, width: int = 128, heads: int = 4, blocks: int = 2) -> keras.Model:
    """Encoder blocks with normalization first."""
    layers = keras.layers
    x = inputs = keras.Input((tokens, width))
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(heads, width // heads)(y, y)])
        y = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(width)(y)])
    outputs = layers.Dense(10)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x)))
    return keras.Model(inputs, outputs)


def mobilenet(size: int) -> keras.Model:
    """keras.applications' MobileNetV2."""
    return keras.applications.MobileNetV2((size, size, 3), weights=None, classifier_activation=None)


ARCHITECTURES = {
    "MLP 256-512-512-10": (mlp, 2000),
    "MobileNetV2(96)": (partial(mobilenet, 96), 100),
    "MobileNetV2(224)": (partial(mobilenet, 224), 20),
    "transformer 2 x 64 x 128": (transformer, 200),
}


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


TABLES = {"exact": exactness, "peers": peers, "architectures": architectures, "training": training}

if __name__ == "__main__":
    warnings.simplefilter("ignore", qi.QuantizationWarning)
    images = load_data()
    for table in sys.argv[1:] or TABLES:
        TABLES[table](images)
