from __future__ import annotations

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qi.engine.config import QuantizationConfig
from qi.engine.inputs import array_of, codes_of, float32_of, half, hash_array, no_tensor, refuse, untouched
from qi.engine.quantizer import Quantizer
from qi.engine.tensors import DynamicRangeCalibrator, QuantizationAwareTraining
from qi.errors import ConfigError, InputError, UnsupportedError

REAL = ["float16", "float32", "float64", ">f4", "longdouble", "int8", "uint64", "bool", ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_arrays_of_real_numbers_are_taken_as_they_are(dtype) -> None:
    x = np.ones((2, 3), dtype)
    assert array_of(x, validate=True) is x
    assert array_of(x[0, 0], validate=True).shape == ()


@pytest.mark.parametrize(
    "bad",
    [
        np.array([1j]),
        np.array(["a"]),
        np.array([b"a"]),
        np.array([object()]),
        np.array([None]),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, "M8[s]"),
        np.zeros(2, "m8[s]"),
        np.zeros(2, "V4"),
    ],
    ids=lambda x: x.dtype.name,
)
@pytest.mark.parametrize("validate", [True, False])
def test_other_arrays_are_refused(bad, validate: bool) -> None:
    with pytest.raises(UnsupportedError, match="expected an array of real numbers; received dtype="):
        array_of(bad, validate=validate)


def test_lists_need_validate_false() -> None:
    with pytest.raises(UnsupportedError, match=r"do: np.asarray\(data\), or validate=False"):
        array_of([1.0], validate=True)
    assert array_of([[1, 2]], validate=False).tolist() == [[1, 2]]
    with pytest.raises(InputError, match="expected rows of one length; received list of different ones"):
        array_of([[1, 2], [3]], validate=False)


def test_subclasses_become_plain_arrays() -> None:
    class Own(np.ndarray):
        pass

    assert type(array_of(np.zeros(2).view(Own), validate=True)) is np.ndarray


@pytest.mark.parametrize("mask", [True, [True, False], np.ma.nomask], ids=str)
def test_masked_arrays_are_refused(mask: Any) -> None:
    config, masked = QuantizationConfig(), np.ma.masked_array(np.float32([1, 200]), mask)
    calibrator, training, quantizer = DynamicRangeCalibrator(), QuantizationAwareTraining(), Quantizer()
    plain = quantizer.quantize(np.float32([1, 2]), return_tensor=True)
    uses = [lambda: array_of(masked, validate=False), lambda: codes_of(masked.astype(np.int8), config)]
    uses += [lambda: hash_array(masked), lambda: quantizer.calibrate([masked]), lambda: quantizer.quantize(masked)]
    uses += [lambda: quantizer._dequantize_per_channel(masked.astype(np.int8))]
    uses += [lambda: calibrator.collect("a", masked), lambda: training.fake_quantize(masked, "a")]
    uses += [lambda: quantizer.quantize_tensor(masked, config), lambda: quantizer.quantization_error(masked, plain)]
    for use in uses:
        with pytest.raises(UnsupportedError, match=r"expected an array without a mask; .* do: data\.filled\(value\)"):
            use()


def test_codes() -> None:
    config = QuantizationConfig("int4")
    same = np.int8([1, -8])
    assert codes_of(same, config).tolist() == [1, -8]
    assert codes_of(np.array([7, 0], np.uint64), config).dtype == np.int8
    eight = QuantizationConfig()
    assert codes_of(same, eight) is same
    for bad, text in ((8, "-8 to 7; received 8 to 8"), (-9, "received -9 to -9"), (2**63 - 1, "received")):
        with pytest.raises(InputError, match=text):
            codes_of(np.array([bad]), config)
    assert codes_of(np.empty(0, np.int64), config).size == 0


@pytest.mark.parametrize("bad", [[1], np.float32([1]), np.array([True]), None, "abc", 5], ids=str)
def test_codes_are_arrays_of_integers(bad) -> None:
    with pytest.raises(UnsupportedError, match="expected an array of integer codes; received"):
        codes_of(bad, QuantizationConfig())


def test_refuse() -> None:
    refuse(5, 5, QuantizationConfig())
    with pytest.raises(InputError, match=r"expected no NaN \(error_on_nan=True\); received 5"):
        refuse(5, 0, QuantizationConfig(error_on_nan=True))
    with pytest.raises(InputError, match=r"expected no infinity, .* received 3"):
        refuse(0, 3, QuantizationConfig(error_on_inf=True))
    refuse(0, 3, QuantizationConfig(error_on_nan=True))


def test_half() -> None:
    x = np.array([1.0, 65504, 65505, -1e300, np.inf, np.nan, 1e-9])
    found, beyond, nans = half(x, QuantizationConfig("float16"), None)
    np.testing.assert_array_equal(found, np.float16([1, 65504, 65504, -65504, 65504, np.nan, 0]))
    assert (beyond, nans) == (3, 1)
    out = np.empty(7, np.float16)
    assert half(x, QuantizationConfig("float16"), out)[0] is out
    out[:] = 5
    with pytest.raises(InputError, match=r"nor a number beyond float16 \(error_on_inf=True\); received 3"):
        half(x, QuantizationConfig("float16", error_on_inf=True), out)
    with pytest.raises(InputError, match="expected no NaN"):
        half(x, QuantizationConfig("float16", error_on_nan=True), out)
    assert (out == 5).all()
    assert half(np.array([70000, 3]), QuantizationConfig("float16"), None)[0].tolist() == [65504, 3]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "int64", "uint16", "bool", "bfloat16"])
def test_half_goes_by_pieces(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr("qi.engine.inputs._PIECE", 10)
    wide = (np.random.default_rng(0).normal(size=(6, 7, 8)) * 1e5).astype(np.float32)
    with np.errstate(all="ignore"):
        x = wide.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)[:, ::2, ::-1]
    single = x.astype(np.float32)
    found, beyond, _ = half(x, QuantizationConfig("float16"), None)
    np.testing.assert_array_equal(found, np.clip(single, -65504, 65504).astype(np.float16))
    assert beyond == (np.abs(x.astype(np.float64)) > 65504).sum()
    numbers, _, _ = half(x, QuantizationConfig("float16"), None, "float32")
    np.testing.assert_array_equal(numbers, found.astype(np.float32))


def test_half_of_an_array_without_dimensions() -> None:
    for found in (
        half(np.array(2.0), QuantizationConfig("float16"), None)[0],
        Quantizer(QuantizationConfig("float16")).quantize(np.float32(2)),
        Quantizer(QuantizationConfig("float16")).quantize_dequantize(np.array(2.0)),
    ):
        assert type(found) is np.ndarray
        assert (found.shape, found.tolist()) == ((), 2.0)


def test_half_takes_less_than_a_mebibyte() -> None:
    x, quantizer = np.ones(2_000_000), Quantizer(QuantizationConfig("float16"))
    out, numbers = np.empty(x.shape, np.float16), np.empty(x.shape, np.float32)
    tracemalloc.start()
    try:
        quantizer.quantize(x, out=out)
        quantizer.dequantize(out, out=numbers)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert numbers[-1] == 1


def test_untouched() -> None:
    x, out = np.float32([1, 2]), np.zeros(2, np.float32)
    assert untouched(x, None) is x
    assert untouched(x, out) is out
    assert out.tolist() == [1, 2]
    fixed = np.zeros(2, np.float32)
    fixed.flags.writeable = False
    for bad in (np.zeros(3, np.float32), np.zeros(2), [0, 0], fixed):
        with pytest.raises(InputError, match="expected out"):
            untouched(x, bad)


def test_float32_of() -> None:
    assert float32_of(np.array([1e300, -1e300, 1])).tolist() == [np.inf, -np.inf, 1]
    x = np.float32([1])
    assert float32_of(x) is not x


def test_no_tensor() -> None:
    assert isinstance(no_tensor("none"), ConfigError)


def test_a_hash_is_of_all_the_content() -> None:
    big = np.arange(100_000)
    hashes = {hash_array(big)}
    for i in (0, 1, 4711, 99_999):
        other = big.copy()
        other[i] += 1
        hashes.add(hash_array(other))
    assert len(hashes) == 5
    square = np.arange(16).reshape(4, 4)
    assert hash_array(square.T) == hash_array(square.T.copy()) != hash_array(square)
    assert hash_array(square[::2, ::-1]) == hash_array(square[::2, ::-1].copy())
    others = [np.array(1), np.empty((0, 3)), np.empty((3, 0)), np.zeros(2, "M8[s]"), np.zeros(2, [("a", "f4")])]
    assert len({hash_array(x) for x in others}) == 5
    assert len(hash_array(big)) == 32
