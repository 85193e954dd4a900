from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qi.core import IntGrid, PerChannel, PerGroup, PerTensor, QParams
from qi.engine.config import QuantizationConfig
from qi.engine.ranges import see
from qi.engine.state import Fixed, State, calibrated, fitted
from qi.errors import ConfigError, InputError, NotCalibratedError

INT8 = QuantizationConfig(quantization_mode="calibrated")
X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def test_calibration_joins_ranges() -> None:
    fixed = calibrated([X, 5 * X[0], np.empty(0)], PerTensor(), INT8)
    lo, hi = min(X.min(), 5 * X[0].min()), max(X.max(), 5 * X[0].max())
    assert (fixed.lo, fixed.hi, fixed.axis) == (lo, hi, None)
    by_channel = calibrated([X, 2 * X[:, :1]], PerChannel(0), INT8)
    assert by_channel.lo.tolist() == np.minimum(X.min(1), 2 * X[:, 0]).tolist()


@pytest.mark.parametrize(
    ("arrays", "sharing", "config", "error", "text"),
    [
        ([], PerTensor(), INT8, InputError, "at least one number"),
        ([np.empty(0)], PerTensor(), INT8, InputError, "at least one number"),
        ([np.float32([np.nan, np.inf])], PerTensor(), INT8, InputError, "only NaN and infinities"),
        ([np.float32([np.nan, 1])], PerTensor(), INT8.replace(error_on_nan=True), InputError, "expected no NaN"),
        ([X, X[:2]], PerChannel(0), INT8, InputError, r"equally many channels along 0; received \[2, 3\]"),
        ([X[0, 0]], PerChannel(0), INT8, InputError, "channel_axis"),
        ([X], PerGroup(1, 2, 0), INT8, ConfigError, "received groups"),
        ([X], PerTensor(), QuantizationConfig("float16"), ConfigError, "expected an integer type to calibrate"),
    ],
    ids=str,
)
def test_calibration_refuses(arrays, sharing, config, error, text: str) -> None:
    with pytest.raises(error, match=text):
        calibrated([np.asarray(x) for x in arrays], sharing, config)


def test_fixed_parameters_for_every_grid_and_rank() -> None:
    fixed = calibrated([X], PerChannel(1), INT8)
    for rank, shape in ((2, (1, 4)), (3, (1, 4, 1))):
        params = fixed.params_for(INT8, rank)
        assert params.scale.shape == shape
        assert fixed.params_for(INT8, rank) is params
    np.testing.assert_allclose(fixed.params_for(INT8, 2).scale.ravel(), np.abs(X).max(0) / 127, rtol=1e-6)
    wide = fixed.params_for(INT8.replace(quantization_type="int16"), 2)
    np.testing.assert_allclose(wide.scale.ravel(), np.abs(X).max(0) / 32767, rtol=1e-6)
    assert fixed.params_for(INT8, 3, channel_dim=2).scale.shape == (1, 1, 4)
    with pytest.raises(InputError, match="expected an array with a dimension 1, its channels; received one of rank 1"):
        fixed.params_for(INT8, 1)


def test_loaded_parameters_stay_as_they_are_for_their_own_grid() -> None:
    params = QParams(0.3, 5, IntGrid(8))
    fixed = Fixed.loaded(params, None, INT8)
    assert fixed.params_for(INT8, 2) is params
    wide = fixed.params_for(INT8.replace(quantization_type="int16"), 2)
    assert wide.scale == pytest.approx(0.3 * 133 / 32767)


def test_fitted() -> None:
    single = QParams(0.5, 0, IntGrid(8))
    assert fitted(single, 3, 1) is single
    vector = QParams([0.5, 0.25], [1, 2], IntGrid(8), PerChannel(0))
    assert fitted(vector, 3).scale.shape == (2, 1, 1)
    assert fitted(vector, 2, -1).zero_point.tolist() == [[1, 2]]
    square = fitted(vector, 2)
    assert fitted(square, 2) is fitted(square, 2, 0) is square
    for axis in (2, -3):
        with pytest.raises(InputError):
            fitted(vector, 2, axis)


def test_states_are_new_and_numbered() -> None:
    state = State.of(QuantizationConfig(mixed_precision_layers=["a"], enable_mixed_precision=True))
    assert (state.revision, list(state.layers)) == (0, ["a"])
    assert state.config_of("a").quantization_type == "int16"
    assert state.config_of("b") is state.config_of(None) is state.config
    fixed = calibrated([X], PerTensor(), INT8)
    after = state.with_fixed(fixed, INT8)
    assert (after.revision, after.config, after.fixed) == (1, INT8, fixed)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.config = INT8  # type: ignore[misc]


def test_layers_whose_settings_are_off_are_layers_like_any() -> None:
    layers = {"mixed_precision_layers": ["a"], "custom_quantization_config": {"b": {"bits": 4}}}
    assert State.of(QuantizationConfig(**layers)).layers == {}
    assert set(State.of(QuantizationConfig(**layers, enable_mixed_precision=True)).layers) == {"a", "b"}


def test_what_codes_without_a_layer_are_read_with() -> None:
    latest, fixed = QParams(0.5, 0, IntGrid(8)), calibrated([X], PerTensor(), INT8)
    dynamic = INT8.replace(quantization_mode="dynamic")
    for config, found in ((INT8, fixed.params_for(INT8, 0)), (dynamic, latest)):
        assert State.of(config, fixed).current({None: latest, "a": latest}) == found
    assert State.of(INT8).current({None: latest}) is latest
    assert State.of(dynamic, fixed).current({"a": latest}) is None


def test_a_range_stays_while_channels_are_shared_alike() -> None:
    whole = State.of(INT8, calibrated([X], PerTensor(), INT8))
    channels = State.of(INT8.replace(per_channel=True), calibrated([X], PerChannel(0), INT8))
    for state, kept, dropped in (
        (whole, INT8.replace(quantization_type="int16"), INT8.replace(per_channel=True)),
        (channels, INT8.replace(per_channel=True, symmetric=False), INT8),
    ):
        assert state.with_config(kept).fixed is state.fixed
        assert state.with_config(dropped).fixed is None
        assert state.with_config(QuantizationConfig("none", per_channel=kept.per_channel)).fixed is None


@pytest.mark.parametrize("mode", ["static", "calibrated", "symmetric", "asymmetric", "dynamic"])
def test_modes_that_want_fixed_parameters(mode: str) -> None:
    config = INT8.replace(quantization_mode=mode)
    state = State.of(config)
    if mode in ("static", "calibrated"):
        with pytest.raises(NotCalibratedError, match=f"quantization_mode='{mode}'"):
            state.fixed_params(config, 2)
    else:
        assert state.fixed_params(config, 2) is None
    after = state.with_fixed(calibrated([X], PerTensor(), config), config)
    assert (after.fixed_params(config, 2) is None) is (mode == "dynamic")


def test_what_is_seen_is_what_is_fixed() -> None:
    seen = see(X, PerTensor(), INT8)
    fixed = Fixed.calibrated([seen, seen], PerTensor())
    assert (fixed.lo, fixed.hi) == (X.min(), X.max())
