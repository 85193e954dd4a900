"""Deploy to ONNX Runtime: the same model, another file, another arithmetic, and again equal to the last bit.

    python tutorials/08_deploy_onnx.py

It needs the packages of the file and of its runtime: pip install 'quantizers-infrastructure[onnx]'. An ONNX file holds
operations in float between QuantizeLinear and DequantizeLinear; ONNX Runtime turns each such group into one integer
kernel, if it likes the pattern. QI writes what it likes, and looks afterwards whether it did.
"""

import os
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import qi
from qi.demo import demo_model_path, load_demo_data

FAST = os.environ.get("QI_FAST") == "1"  # fewer samples, for a quick look

data = load_demo_data()
x_test, y_test = data.x_test[:: 4 if FAST else 1], data.y_test[:: 4 if FAST else 1]
model = qi.load_model(demo_model_path())
quantized, _ = qi.quantize_model(model, "w8a8", data.x_calib, progress=False)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.onnx"

    # --- 1. The file and its proof --------------------------------------------------------------------------
    report = qi.export(quantized, path, samples=x_test)
    print(report)
    assert report.exact
    assert report.float_operations == ()

    # --- 2. What is in it -----------------------------------------------------------------------------------
    # Names and layout of the Keras model at the border, channels last, any batch size. Within, ONNX has its own layout.
    written = onnx.load(path)
    operations = Counter(node.op_type for node in written.graph.node)
    print(f"\nopset {written.opset_import[0].version}: {dict(operations.most_common(6))} ...")
    codes = [t for t in written.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    print(f"{len(codes)} tensors of int8 codes, {sum(len(t.raw_data) for t in codes)} bytes of {path.stat().st_size}\n")
    assert operations["Conv"] == 10

    # --- 3. What ONNX Runtime makes of it: no float kernel is left ------------------------------------------
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kernels = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    print("kernels that run:", ", ".join(f"{count} {kind}" for kind, count in sorted(kernels.items())), "\n")
    assert kernels["QLinearConv"] == 10
    assert not {"Conv", "FusedConv", "Gemm", "MatMul"} & set(kernels)
    (deployed,) = session.run(["classes"], {"image": x_test})
    session = None  # Windows deletes no file that is open

    # --- 4. Equal to its twin -------------------------------------------------------------------------------
    # Each runtime has a twin of its own: both sum the same integers, but they add two tensors, or average one, by other
    # formulas. On a model as this they may agree all the same; to rely on it, one has to look.
    twin = qi.emulate(quantized, x_test, "onnxruntime", progress=False)
    other = qi.emulate(quantized, x_test, "litert", progress=False)
    for name, expected in (("onnxruntime", twin), ("litert", other)):
        differing = np.count_nonzero(deployed != expected)
        print(f"ONNX Runtime against the twin for {name:12}: {differing} of {deployed.size} outputs differ")
    assert np.array_equal(deployed, twin)
    accuracy = float(np.mean(deployed.argmax(-1) == y_test))
    print(f"accuracy of the file: {100 * accuracy:.2f} %\n")

    # --- 5. Weights in 4 bits: size has a price here --------------------------------------------------------
    # ONNX Runtime has no integer kernels for packed weights: it unpacks them at every run and computes in float32. That
    # costs time, so QI stores them in bytes, unless it's told that size is what counts. It costs no exactness: sums of
    # real numbers would depend on their order, so the file has them of whole ones, and scales them afterwards.
    sizes = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qi.QuantizationWarning)  # of what 4 bits cost: tutorial 03 is about that
        four, _ = qi.quantize_model(model, "w4a8", data.x_calib, progress=False)
    for packed in (False, True):
        again = qi.export(four, path, samples=x_test[:200], packed=packed, latency=False)
        sizes[packed] = again.file_bytes
        assert again.exact
    print(f"4-bit weights: {sizes[False]} bytes as int8, {sizes[True]} bytes packed")
    assert sizes[True] < 0.8 * sizes[False]

    # --- 6. What can't be deployed is refused, by name, before anything is written --------------------------
    path.unlink()
    try:
        qi.export(model, path)  # the float model, by mistake
    except qi.UnsupportedError as error:
        print(f"\nrefused: {error}")
    else:
        raise AssertionError("a float model should be refused")
    assert not path.exists()
