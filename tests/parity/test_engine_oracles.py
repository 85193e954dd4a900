"""The engine beside others: arithmetic in float64 written here, TensorFlow, ONNX Runtime, torch.

Codes are equal, with these exceptions, each with its cause, which a test below shows:

* the oracle in float64 divides exactly; the engine in float32, so codes may differ where ``x / scale`` lies within one
  rounding of a tie;
* TensorFlow's ``fake_quant`` and torch multiply by the reciprocal of the scale instead of dividing by the scale: next to
  ties codes differ by one. torch also adds the zero point before it rounds, so that ties of odd zero points differ;
* TensorFlow nudges the range it is given: it is asked with the range that the engine's parameters cover, which it keeps.

ONNX Runtime divides and rounds half to even as the engine does: there is no exception.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from qi.core import QTensor, range_of
from qi.engine import QuantizationConfig, Quantizer

few = settings(max_examples=60)
KINDS = ["int8", "uint8", "int16", "uint16", "int4", "uint4"]
EIGHT = ["int8", "uint8"]

numbers = st.floats(-1e4, 1e4, width=32).filter(lambda v: v == 0 or abs(v) > 1e-30)  # frameworks may flush subnormals
matrices = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=numbers)


def quantized(x: np.ndarray, kind: str, symmetric: bool, axis: int | None = None) -> QTensor:
    config = QuantizationConfig(kind, symmetric=symmetric, per_channel=axis is not None)
    return Quantizer(config).quantize(x, channel_dim=axis, return_tensor=True)


def near_ties(x: np.ndarray, scale: np.ndarray, ulps: float = 4) -> np.ndarray:
    """Where ``x / scale`` is so near half an integer that a rounding decides."""
    u = x.astype(np.float64) / scale.astype(np.float64)
    return np.abs(u - np.floor(u) - 0.5) <= ulps * 2.0**-24 * np.maximum(np.abs(u), 1)


# --- float64 ---


def oracle(x: np.ndarray, kind: str, symmetric: bool) -> tuple[np.ndarray, np.ndarray, float, int]:
    """(codes, numbers, scale, zero point) by the definition, in float64."""
    bits = int("".join(c for c in kind if c.isdigit()))
    qmin, qmax = (0, 2**bits - 1) if kind[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    lo, hi = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    if symmetric:
        scale, zero = max(-lo, hi) / (2 ** (bits - 1) - 1), (qmin + qmax + 1) // 2
    else:
        scale = (hi - lo) / (qmax - qmin)
        # Exactly: ties are ties, and go up.
        ratio = -Fraction(lo) * (qmax - qmin) / (Fraction(hi) - Fraction(lo)) if scale else Fraction(0)
        zero = qmin + math.floor(ratio + Fraction(1, 2))
    scale = float(np.float32(scale or 1.0))
    codes = np.clip(np.rint(x.astype(np.float64) / scale) + zero, qmin, qmax)
    return codes, (codes - zero) * scale, scale, zero


@given(matrices, st.sampled_from(KINDS), st.booleans())
def test_float64(x: np.ndarray, kind: str, symmetric: bool) -> None:
    codes, numbers, scale, zero = oracle(x, kind, symmetric)
    found = quantized(x, kind, symmetric)
    assert found.qparams.scale.item() == pytest.approx(scale, rel=2.0**-23)
    assume(found.qparams.scale.item() == scale)  # a tie of roundings in the scale itself; rare
    assert found.qparams.zero_point.item() == zero
    same = found.codes == codes
    assert (same | near_ties(x, np.float32(scale))).all()
    np.testing.assert_allclose(found.dequantize()[same], numbers[same], rtol=2.0**-23)
    assert np.abs(found.codes - codes).max() <= 1


@few
@given(matrices, st.sampled_from(KINDS), st.booleans(), st.sampled_from([0, 1]))
def test_channels_are_tensors_by_themselves(x: np.ndarray, kind: str, symmetric: bool, axis: int) -> None:
    found = quantized(x, kind, symmetric, axis)
    for i in range(x.shape[axis]):
        alone = quantized(x.take(i, axis), kind, symmetric)
        np.testing.assert_array_equal(found.codes.take(i, axis), alone.codes)
        np.testing.assert_array_equal(found.dequantize().take(i, axis), alone.dequantize())


@given(matrices, st.sampled_from(KINDS), st.booleans())
def test_order_zero_and_repetition(x: np.ndarray, kind: str, symmetric: bool) -> None:
    x = np.append(x.ravel(), np.float32(0))
    found = quantized(x, kind, symmetric)
    back = found.dequantize()
    order = np.argsort(x)
    assert (np.diff(back[order]) >= 0).all()
    assert back[-1] == 0
    assert (np.abs(back - x) <= found.qparams.scale * 0.5 + 2e-7 * np.abs(x)).all()
    np.testing.assert_array_equal(found.qparams.quantize(back).codes, found.codes)


# --- ONNX Runtime ---


@pytest.fixture(scope="module")
def onnx_session() -> Any:
    """A function that makes a session of one node, and keeps it."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    sessions: dict[Any, Any] = {}

    def session(op: str, kind: str, axis: int | None) -> Any:
        key = op, kind, axis
        if key not in sessions:
            codes, real = getattr(TensorProto, kind.upper()), TensorProto.FLOAT
            first, last = (real, codes) if op == "QuantizeLinear" else (codes, real)
            rank = None if axis is None else ["n"]
            node = helper.make_node(op, ["x", "s", "z"], ["y"], **({} if axis is None else {"axis": axis}))
            inputs = [("x", first, ["a", "b"]), ("s", real, rank or []), ("z", codes, rank or [])]
            graph = helper.make_graph(
                [node],
                "one",
                [helper.make_tensor_value_info(*i) for i in inputs],
                [helper.make_tensor_value_info("y", last, ["a", "b"])],
            )
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
            onnx.checker.check_model(model)
            sessions[key] = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return sessions[key]

    return session


@few
@given(matrices, st.sampled_from(["int8", "uint8", "int16", "uint16"]), st.booleans(), st.sampled_from([None, 0, 1]))
def test_onnx_runtime(onnx_session: Any, x: np.ndarray, kind: str, symmetric: bool, axis: int | None) -> None:
    found = quantized(x, kind, symmetric, axis)
    shape = () if axis is None else (-1,)
    how = {"s": found.qparams.scale.reshape(shape), "z": found.qparams.zero_point.reshape(shape).astype(kind)}
    (codes,) = onnx_session("QuantizeLinear", kind, axis).run(None, {"x": x, **how})
    np.testing.assert_array_equal(codes, found.codes)
    (back,) = onnx_session("DequantizeLinear", kind, axis).run(None, {"x": codes, **how})
    np.testing.assert_array_equal(back, found.dequantize())


# --- torch ---

# torch.ao replaces them; they are what people compare with until they go.
deprecated = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")


@deprecated
@few
@given(matrices, st.sampled_from(EIGHT), st.booleans(), st.sampled_from([None, 0, 1]))
def test_torch(x: np.ndarray, kind: str, symmetric: bool, axis: int | None) -> None:
    import torch

    found = quantized(x, kind, symmetric, axis)
    scale, zero = found.qparams.scale, found.qparams.zero_point
    dtype = torch.qint8 if kind == "int8" else torch.quint8
    if axis is None:
        theirs = torch.quantize_per_tensor(torch.tensor(x), scale.item(), zero.item(), dtype)
    else:
        how = torch.tensor(scale.ravel()), torch.tensor(zero.ravel())
        theirs = torch.quantize_per_channel(torch.tensor(x), *how, axis, dtype)
    codes = theirs.int_repr().numpy()
    unlike = codes != found.codes
    assert (near_ties(x, scale, 1024) | ~unlike).all()  # ulps of x/s + z, whose magnitude is up to 255
    assert (np.abs(codes.astype(int) - found.codes) <= unlike).all()
    np.testing.assert_allclose(
        theirs.dequantize().numpy()[~unlike], found.dequantize()[~unlike], rtol=2.0**-22, atol=1e-37
    )


@deprecated
def test_torch_rounds_after_it_has_added_the_zero_point() -> None:
    import torch

    x, scale, odd = np.float32([0.5, 1.5, 2.5]), 1.0, 3
    theirs = torch.quantize_per_tensor(torch.tensor(x), scale, odd, torch.qint8).int_repr().numpy()
    quantizer = Quantizer()
    quantizer.load_parameters({"global_scale": scale, "global_zero_point": odd, "quantization_mode": "static"})
    assert (theirs.tolist(), quantizer.quantize(x).tolist()) == ([4, 4, 6], [3, 5, 5])


# --- TensorFlow ---


@few
@given(matrices, st.booleans(), st.sampled_from([None, 1]))
def test_tensorflow(x: np.ndarray, symmetric: bool, axis: int | None) -> None:
    import tensorflow as tf

    found = quantized(x, "uint8", symmetric, axis)
    lo, hi = (
        end.astype(np.float32) for end in range_of(found.qparams.scale, found.qparams.zero_point, found.qparams.grid)
    )
    assume((hi - lo > 1e-20).all())
    if axis is None:
        theirs = tf.quantization.fake_quant_with_min_max_vars(x, lo.item(), hi.item()).numpy()
    else:
        theirs = tf.quantization.fake_quant_with_min_max_vars_per_channel(x, lo.ravel(), hi.ravel()).numpy()
    scale, back = found.qparams.scale, found.dequantize()
    unlike = np.abs(theirs - back) > 1e-5 * 255 * scale  # TensorFlow's scale is a difference of rounded ends
    assert (near_ties(x, scale, 4096) | ~unlike).all()
    assert (np.abs(theirs - back) <= 1.01 * scale).all()


def test_tensorflow_multiplies_by_the_reciprocal() -> None:
    import tensorflow as tf

    scale = np.float32(0.1)
    x = (np.arange(-100, 100, dtype=np.float32) + np.float32(0.5)) * scale
    lo, hi = np.float32(-128 * scale), np.float32(127 * scale)
    theirs = tf.quantization.fake_quant_with_min_max_vars(x, lo, hi).numpy()
    quantizer = Quantizer()
    quantizer.load_parameters({"global_scale": float(scale), "quantization_mode": "static"})
    ours = quantizer.quantize_dequantize(x)
    steps = np.abs(theirs - ours) / scale
    assert set(np.unique(np.rint(steps))) <= {0.0, 1.0}
    assert 0 < np.count_nonzero(steps > 0.5) < 200
    between = (np.arange(-100, 100, dtype=np.float32) + np.float32(0.25)) * scale
    theirs = tf.quantization.fake_quant_with_min_max_vars(between, lo, hi).numpy()
    np.testing.assert_allclose(theirs, quantizer.quantize_dequantize(between), atol=1e-5)
