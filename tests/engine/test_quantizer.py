"""What tests/seeds and tests/integration/test_engine_regressions.py don't ask: memory, `out`, layers, changes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from qi.core import PerGroup, sweep
from qi.core.affine import dequantize, quantize
from qi.engine.config import QuantizationConfig
from qi.engine.quantizer import Quantizer
from qi.errors import ConfigError, InputError, NotCalibratedError, QuantizationWarning, UnsupportedError

X = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
KINDS = ["int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"]
DTYPES = [
    np.dtype(d) for d in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ">f4", np.int32, np.uint8, bool)
]


def make(**fields) -> Quantizer:
    return Quantizer(QuantizationConfig(**fields))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_channel", [False, True])
def test_any_dtype_order_and_stride(dtype: np.dtype, per_channel: bool) -> None:
    values = (8 * X).astype(dtype)
    expected = make(per_channel=per_channel).quantize(values.astype(np.float32))
    wide = np.zeros((6, 10, 4), dtype)
    wide[:, ::2] = values
    fixed = values.copy()
    fixed.flags.writeable = False
    for x in (values, np.asfortranarray(values), wide[:, ::2], values[::-1, :, ::-1][::-1, :, ::-1], fixed):
        before = x.tobytes()
        quantizer = make(per_channel=per_channel)
        codes = quantizer.quantize(x)
        np.testing.assert_array_equal(codes, expected)
        assert x.tobytes() == before
        np.testing.assert_array_equal(quantizer.quantize_dequantize(x), quantizer.dequantize(codes))


@given(
    st.sampled_from(KINDS),
    st.booleans(),
    st.sampled_from([None, 0, -1]),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3), elements=st.floats(width=32)),
)
def test_codes_are_those_of_core(kind: str, symmetric: bool, axis: int | None, x: np.ndarray) -> None:
    quantizer = make(quantization_type=kind, symmetric=symmetric, per_channel=axis is not None)
    codes = quantizer.quantize(x, channel_dim=axis)
    (params,) = quantizer._last.values()
    how = (*params.expanded(x.shape), params.grid)
    np.testing.assert_array_equal(codes, quantize(x, *how))
    numbers = quantizer.dequantize(codes)
    np.testing.assert_array_equal(numbers, dequantize(codes, *how))
    assert np.isfinite(numbers).all()
    tensor = quantizer.quantize(x, channel_dim=axis, return_tensor=True)
    np.testing.assert_array_equal(tensor.codes, codes)
    np.testing.assert_array_equal(quantizer.dequantize(tensor), numbers)
    assert tensor.nan_count == np.isnan(x).sum()


@pytest.mark.parametrize("kind", [*KINDS, "float16", "none"])
def test_out(kind: str) -> None:
    quantizer = make(quantization_type=kind)
    codes = quantizer.quantize(X)
    out = np.empty(X.shape, codes.dtype, order="F")
    assert quantizer.quantize(X, out=out) is out
    np.testing.assert_array_equal(out, codes)
    numbers = np.empty(X.shape, np.float32)
    assert quantizer.dequantize(codes, out=numbers) is numbers
    np.testing.assert_array_equal(numbers, quantizer.dequantize(codes))
    fixed = np.empty(X.shape, codes.dtype)
    fixed.flags.writeable = False
    for bad in (np.empty(3, codes.dtype), np.empty(X.shape, np.int64), fixed, [1]):
        with pytest.raises(InputError, match="expected out"):
            quantizer.quantize(X, out=bad)
        with pytest.raises(InputError, match="expected out"):
            quantizer.dequantize(codes, out=bad)


def test_out_of_a_tensor_stays_the_callers() -> None:
    out = np.empty(X.shape, np.int8)
    tensor = make().quantize(X, out=out, return_tensor=True)
    expected = tensor.codes.copy()
    out[...] = 0
    np.testing.assert_array_equal(tensor.codes, expected)


def test_no_tensor_without_codes() -> None:
    for kind in ("none", "float16"):
        with pytest.raises(ConfigError, match=f"return_tensor=True; received quantization_type='{kind}'"):
            make(quantization_type=kind).quantize(X, return_tensor=True)
    with pytest.raises(ConfigError):
        make(skip_layers=["a"]).quantize(X, layer_name="a", return_tensor=True)


def test_threads_of_one_call_give_the_same() -> None:
    x = np.tile(X.ravel(), 2000)
    quantizer = make()
    codes = quantizer.quantize(x, num_threads=4)
    np.testing.assert_array_equal(codes, quantizer.quantize(x))
    np.testing.assert_array_equal(quantizer.dequantize(codes, num_threads=4), quantizer.dequantize(codes))
    for bad in (0, -1, 1.5):
        with pytest.raises(InputError, match="expected num_threads"):
            quantizer.quantize(x, num_threads=bad)


def test_nothing_to_dequantize_with() -> None:
    with pytest.raises(NotCalibratedError, match="or pass a QuantizedTensor"):
        make().dequantize(np.int8([1]))
    quantizer = make(enable_mixed_precision=True, mixed_precision_layers=["wide"])
    quantizer.quantize(X)
    with pytest.raises(NotCalibratedError):
        quantizer.dequantize(np.int16([1]), layer_name="wide")  # int8's scale would be wrong
    quantizer.quantize(X, layer_name="wide")
    assert quantizer.dequantize(np.int8([1])) == np.float32(quantizer.scale)


def test_layers_share_what_they_are_not_told_apart_by() -> None:
    quantizer = make()
    codes = quantizer.quantize(X, layer_name="a")
    first = quantizer.dequantize(codes)
    quantizer.quantize(9 * X, layer_name="b")
    np.testing.assert_array_equal(quantizer.dequantize(codes, layer_name="a"), first)
    np.testing.assert_allclose(quantizer.dequantize(codes), 9 * first, rtol=1e-6)
    np.testing.assert_array_equal(quantizer.dequantize(codes, layer_name="new"), quantizer.dequantize(codes))


def test_no_more_layers_are_remembered_than_can_be_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("qi.engine.quantizer", "qi.engine.parameters"):
        monkeypatch.setattr(f"{module}.MAX_LAYERS", 6)
    quantizer = make()
    for name in "abcdefghaij":
        quantizer.quantize(np.float32([1.0]), layer_name=name)
    assert set(quantizer._last) == {*"ghaijf", None}
    make().load_parameters(quantizer.export_parameters())


def test_channels_elsewhere_once_calibrated() -> None:
    quantizer = make(per_channel=True)
    quantizer.calibrate([X[0]])
    codes = quantizer.quantize(X[0])
    np.testing.assert_array_equal(quantizer.quantize(X[0].T, channel_dim=1), codes.T)
    np.testing.assert_array_equal(quantizer.dequantize(codes.T, channel_dim=1), quantizer.dequantize(codes).T)
    for bad in (1, 5, -3):
        with pytest.raises(InputError, match="expected"):
            quantizer.quantize(X[0], channel_dim=bad)
    with pytest.raises(InputError, match="expected"):
        quantizer.quantize(X[0, :4])


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_channel_dimension_without_channels_warns_where_it_was_given(calibrated: bool) -> None:
    quantizer = make()
    if calibrated:
        quantizer.calibrate([X])
    for call in (quantizer.quantize, quantizer.quantize_dequantize, quantizer.calibrate):
        with pytest.warns(QuantizationWarning, match="channel_dim=1 has no effect") as caught:
            call(X, channel_dim=1)
        assert caught[0].filename == __file__


def test_a_channel_dimension_that_reading_has_no_use_for_warns() -> None:
    x = X[0]
    quantizer, channels = make(), make(per_channel=True)
    codes, tensor = quantizer.quantize(x), channels.quantize(x, return_tensor=True)
    for use in (lambda: quantizer.dequantize(codes, 1), lambda: channels.dequantize(tensor, channel_dim=1)):
        with pytest.warns(QuantizationWarning, match="channel_dim=1 has no effect: the parameters are Per") as caught:
            use()
        assert caught[0].filename == __file__
    np.testing.assert_array_equal(channels.dequantize(tensor, channel_dim=-2), tensor.dequantize())


USES = [
    lambda q, **own: q.quantize(np.empty((0, 2)), **own),
    lambda q, **own: q.quantize_dequantize(np.empty((0, 2)), **own),
    lambda q, **own: q.dequantize(np.empty((0, 2), np.int8), **own),
    lambda q, **own: q.quantize(X[0], layer_name="skip", **own),
    lambda q, **own: q.quantize_dequantize(X[0], layer_name="skip", **own),
    lambda q, **own: q.dequantize(X[0], layer_name="skip", **own),
    lambda q, **own: q.quantize(X[0], layer_name="half", **own),
    lambda q, **own: q.quantize_dequantize(X[0], layer_name="half", **own),
    lambda q, **own: q.dequantize(X[0], layer_name="half", **own),
    lambda q, **own: q.dequantize(q.quantize(X[0], return_tensor=True), **own),
]


@pytest.mark.parametrize("use", range(len(USES)))
def test_arguments_are_checked_where_they_change_nothing(use: int) -> None:
    layers = {"enable_mixed_precision": True, "custom_quantization_config": {"half": {"type": "float16"}}}
    quantizer = make(skip_layers=["skip"], **layers)
    quantizer.quantize(X)
    USES[use](quantizer, num_threads=2)
    for bad in (0, -1, 1.5, True, "2", None):
        with pytest.raises(InputError, match="expected num_threads"):
            USES[use](quantizer, num_threads=bad)
    for bad in (2, -3, "0"):
        with pytest.raises(InputError, match="expected channel_dim to be an integer from -2 to 1"):
            USES[use](quantizer, channel_dim=bad)


def test_kept_results_ask_for_the_same_arguments() -> None:
    quantizer = make()
    codes = quantizer.quantize(X)
    quantizer.dequantize(codes)
    with pytest.raises(InputError, match="expected num_threads"):
        quantizer.dequantize(codes, num_threads=0)


def test_a_layer_whose_settings_are_off_reads_what_others_do() -> None:
    quantizer = make(mixed_precision_layers=["wide"], custom_quantization_config={"own": {"bits": 4}})
    for name in ("wide", "own"):
        codes = quantizer.quantize(X)
        np.testing.assert_array_equal(quantizer.dequantize(codes, layer_name=name), quantizer.dequantize(codes))
        quantizer.quantize(3 * X, layer_name=name)
        assert quantizer.scale == pytest.approx(3 * np.abs(X).max() / 127)


def test_groups() -> None:
    quantizer = make(quantization_type="int4", granularity=PerGroup(0, 4, 1))
    x = X[:, :, 0]
    codes = quantizer.quantize(x)
    assert np.abs(quantizer.dequantize(codes) - x).max() < 0.25
    with pytest.raises(InputError, match="expected scales of shape"):
        quantizer.dequantize(codes[:4])
    with pytest.warns(QuantizationWarning, match=r"isn't per channel, but PerGroup\(axis=0"):
        quantizer.quantize(x, channel_dim=1)


def test_changes_forget_what_went_before() -> None:
    for change in (
        lambda q: q.update_config(QuantizationConfig(num_bits=4)),
        lambda q: q.calibrate([X]),
        lambda q: q.load_parameters({"global_scale": 2.0}),
    ):
        quantizer = make()
        codes = quantizer.quantize(np.float32([1.0, 2.0]), layer_name="a") // 16
        quantizer.dequantize(codes)
        change(quantizer)
        assert (len(quantizer._value_cache), "a" in quantizer._last) == (0, False)


def test_update_config_resizes_the_cache() -> None:
    quantizer = make(cache_size=0)
    codes = quantizer.quantize(X)
    quantizer.dequantize(codes)
    assert len(quantizer._value_cache) == 0
    quantizer.update_config(QuantizationConfig(cache_size=2))
    quantizer.quantize(X)
    for row in codes:
        quantizer.dequantize(row)
    assert len(quantizer._value_cache) == 2
    quantizer.update_config(QuantizationConfig(enable_cache=False))
    assert quantizer._cache.entries == 0


def test_a_calibration_that_fails_changes_nothing() -> None:
    quantizer = make(error_on_nan=True)
    quantizer.calibrate([X])
    codes = quantizer.quantize(X)
    state, last = quantizer._state, dict(quantizer._last)
    for bad, error in (
        ([np.float32([np.nan])], ValueError),
        ([X, "x"], TypeError),
        (None, TypeError),
        (5, TypeError),
        ([X, np.array([1j])], TypeError),
        ([[1.0, 2.0]], TypeError),
    ):
        with pytest.raises(error):
            quantizer.calibrate(bad)
    assert (quantizer._state, quantizer._last) == (state, last)
    assert quantizer.dequantize(codes).shape == X.shape


def test_calibration_takes_an_array_or_any_iterable() -> None:
    quantizers = [make() for _ in range(3)]
    for quantizer, data in zip(quantizers, ([X], X, (x for x in X)), strict=True):
        quantizer.calibrate(data)
    assert len({quantizer.scale for quantizer in quantizers}) == 1


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_calibration_keeps_the_modes_symmetry(mode: str, symmetric: bool) -> None:
    quantizer = make(quantization_mode=mode, symmetric=symmetric)
    positive = np.abs(X)
    quantizer.quantize(positive)
    before = (quantizer.scale, quantizer.zero_point)
    quantizer.calibrate([positive])
    assert (quantizer.scale, quantizer.zero_point) == before
    quantizer.update_config(QuantizationConfig(quantization_mode=mode))
    assert (quantizer.scale, quantizer.zero_point) == before


def test_compute_tells_what_quantize_will_use() -> None:
    for fields in ({}, {"symmetric": False}, {"use_percentile": True}, {"outlier_threshold": 1.0}):
        for requantize in (False, True):
            own = {**fields, "enable_requantization": requantize, "requantization_threshold": 0.001}
            quantizer = make(**own)
            quantizer.quantize(X)
            assert make(**own).compute_scale_and_zero_point(X) == (quantizer.scale, quantizer.zero_point)
    assert make(quantization_type="float16").compute_scale_and_zero_point(X) == (1.0, 0.0)


def test_skipped_layers_are_counted() -> None:
    quantizer = make(skip_layers=["a"])
    quantizer.dequantize(quantizer.quantize(X, layer_name="a"), layer_name="a")
    quantizer.quantize_dequantize(X, layer_name="a")
    stats = quantizer.get_stats()
    assert [stats[key] for key in ("quantize_calls", "dequantize_calls", "total_values")] == [2, 2, 4 * X.size]


def test_codes_that_are_none_are_refused() -> None:
    quantizer = make(quantization_type="uint4")
    quantizer.quantize(X)
    for bad, error in (
        (np.uint8([16]), InputError),
        (np.float32([1]), UnsupportedError),
        ([1, 2], UnsupportedError),
        (np.array([1j]), UnsupportedError),
    ):
        with pytest.raises(error):
            quantizer.dequantize(bad)
    assert quantizer.dequantize(np.array([15], np.int64)).shape == (1,)
    assert quantizer.get_stats()["dequantize_calls"] == 1


@pytest.mark.parametrize("settings", [{"buffer_size": 7}, {"buffer_size": 1000}, {"optimize_memory": False}])
@pytest.mark.parametrize("sharing", ["per_tensor", "per_channel", PerGroup(0, 3)])
def test_the_size_of_pieces_changes_nothing_but_memory(settings: dict[str, Any], sharing: Any) -> None:
    x = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    expected = Quantizer(QuantizationConfig(granularity=sharing)).quantize(x)
    quantizer = Quantizer(QuantizationConfig(granularity=sharing, **settings))
    np.testing.assert_array_equal(quantizer.quantize(x), expected)


def test_without_pieces_scratch_is_as_large_as_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "BLOCK", 1 << 13)
    x = np.ones(65_000, np.float32)  # too few for compiled functions, which need no scratch
    peaks = []
    for optimize in (True, False):
        quantizer = Quantizer(QuantizationConfig(optimize_memory=optimize, enable_cache=False))
        quantizer.calibrate([x[:10]])
        out = np.empty(x.shape, np.int8)
        tracemalloc.start()
        try:
            quantizer.quantize(x, out=out)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[0] < 0.75 * x.nbytes < x.nbytes <= peaks[1]


@pytest.mark.parametrize("own", [{"skip_layers": ["layer"]}, {"quantization_type": "none"}])
def test_what_is_an_error_is_one_where_nothing_is_quantized_too(own):
    quantizer = Quantizer(QuantizationConfig(error_on_nan=True, error_on_inf=True, **own))
    for call in (quantizer.quantize, quantizer.quantize_dequantize):
        with pytest.raises(ValueError, match="expected no NaN"):
            call(np.float32([1, np.nan]), layer_name="layer")
        with pytest.raises(ValueError, match="expected no infinit"):
            call(np.float32([1, np.inf]), layer_name="layer")
        np.testing.assert_array_equal(call(np.float32([1, 2]), layer_name="layer"), [1, 2])


def test_tensors_of_few_bits_take_no_more_memory_than_they_hold():
    x = np.random.default_rng(0).standard_normal((1500, 1000)).astype(np.float32)
    quantizer = Quantizer(QuantizationConfig(quantization_type="int4", per_channel=True))
    made = []
    for action, size in (
        (lambda: made.append(quantizer.quantize(x, channel_dim=1, return_tensor=True)), x.size // 2),
        (lambda: quantizer.dequantize(made[0]), x.nbytes),
        (lambda: quantizer.quantize_dequantize(x, channel_dim=1), x.nbytes),
    ):
        tracemalloc.start()
        action()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < size + 2**20


def test_counters_go_on_with_another_quantizer() -> None:
    first = Quantizer()
    first.quantize(np.ones(3, np.float32))
    second = Quantizer(QuantizationConfig(quantization_type="int16"), statistics=first._statistics)
    second.quantize(np.ones(2, np.float32))
    assert (second.get_stats()["quantize_calls"], first.get_stats()["total_values"]) == (2, 5)


def test_the_memory_of_kept_results_is_known() -> None:
    quantizer = Quantizer()
    codes = quantizer.quantize(np.linspace(-1, 1, 1000, dtype=np.float32))
    assert quantizer.cache_bytes == 0
    quantizer.dequantize(codes)
    assert 5000 <= quantizer.cache_bytes < 8000
    quantizer.clear_cache()
    assert quantizer.cache_bytes == 0
