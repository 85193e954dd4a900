from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.core import PerChannel, PerGroup
from qi.engine.config import QuantizationConfig
from qi.engine.parameters import MAX_LAYERS
from qi.engine.quantizer import Quantizer
from qi.errors import ConfigError, NotCalibratedError, UnsupportedError

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
KINDS = st.sampled_from(["int8", "uint8", "int16", "int4", "uint16"])


def filled() -> Quantizer:
    """A quantizer with something everywhere."""
    layers = {"wide": {"type": "int16"}}
    config = QuantizationConfig(enable_mixed_precision=True, custom_quantization_config=layers, per_channel=True)
    quantizer = Quantizer(config)
    quantizer.calibrate([X])
    quantizer.quantize(X, layer_name="a")
    quantizer.quantize(X, layer_name="wide")
    return quantizer


def everything(quantizer: Quantizer) -> tuple[Any, ...]:
    """All that loading could change."""
    state = quantizer._state
    last = dict(quantizer._last)
    return state, last, quantizer.export_parameters(), quantizer.get_stats(), dict(quantizer._value_cache)


@given(KINDS, st.booleans(), st.sampled_from([None, 0, 1, -1]), st.booleans(), st.booleans())
def test_parameters_survive_json(kind: str, symmetric: bool, axis: int | None, fixed: bool, layers: bool) -> None:
    config = QuantizationConfig(
        kind,
        symmetric=symmetric,
        per_channel=axis is not None,
        enable_mixed_precision=layers,
        mixed_precision_layers=["wide"],
    )
    first = Quantizer(config)
    codes = first.quantize(X, channel_dim=axis)
    named = first.quantize(2 * X, channel_dim=axis, layer_name="wide")
    if fixed:
        first.calibrate([X, X / 2], channel_dim=axis)
    plain = json.loads(json.dumps(first.export_parameters()))
    second = Quantizer(config)
    second.load_parameters(plain)
    np.testing.assert_array_equal(second.dequantize(codes), first.dequantize(codes))
    np.testing.assert_array_equal(
        second.dequantize(named, layer_name="wide"), first.dequantize(named, layer_name="wide")
    )
    assert json.loads(json.dumps(second.export_parameters())) == plain
    if fixed:
        np.testing.assert_array_equal(second.quantize(3 * X), first.quantize(3 * X))


def test_all_keys_have_plain_values() -> None:
    params = filled().export_parameters()
    assert params == {
        "global_scale": pytest.approx(np.abs(X).max() / 127),
        "global_zero_point": 0.0,
        "per_channel_scales": {i: pytest.approx(np.abs(X[i]).max() / 127) for i in range(3)},
        "per_channel_zero_points": {0: 0.0, 1: 0.0, 2: 0.0},
        "channel_dim": 0,
        "has_parameters": True,
        "quantization_type": "int8",
        "quantization_mode": "calibrated",
        "num_bits": 8,
        "symmetric": True,
        "is_calibrated": True,
        "calibration": {"min": X.min(1).tolist(), "max": X.max(1).tolist(), "channel_dim": 0},
        "qmin": -128,
        "qmax": 127,
        "layers": params["layers"],
    }
    assert list(params["layers"]) == ["a", "wide"]
    assert params["layers"]["wide"]["scale"] == pytest.approx((np.abs(X).max(1) / 32767).tolist())


@pytest.mark.parametrize("kind", ["float16", "none"])
def test_types_without_codes(kind: str) -> None:
    params = Quantizer(QuantizationConfig(kind)).export_parameters()
    assert (params["qmin"], params["qmax"], params["global_scale"]) == (None, None, 1.0)
    other = Quantizer()
    other.load_parameters(json.loads(json.dumps(params)))
    assert other.config.quantization_type == kind


def test_an_empty_array_leaves_parameters_that_can_be_loaded() -> None:
    quantizer = Quantizer(QuantizationConfig(per_channel=True))
    quantizer.quantize(np.empty((0, 3), np.float32))
    params = quantizer.export_parameters()
    assert (params["channel_dim"], params["per_channel_scales"]) == (0, {})
    other = Quantizer()
    other.load_parameters(params)
    assert other.dequantize(np.empty((0, 3), np.int8)).shape == (0, 3)


def test_groups_cannot_be_exported() -> None:
    quantizer = Quantizer(QuantizationConfig(granularity=PerGroup(1, 2, 0)))
    quantizer.quantize(X)
    with pytest.raises(ConfigError, match="received groups; do: keep the QuantizedTensor"):
        quantizer.export_parameters()
    layers = {"enable_mixed_precision": True, "mixed_precision_layers": ["wide"]}
    quantizer.update_config(QuantizationConfig(granularity=PerGroup(1, 2, 0), **layers))
    quantizer.quantize(X, layer_name="wide")
    with pytest.raises(ConfigError, match="received groups"):
        quantizer.export_parameters()


def reloaded(quantizer: Quantizer, config: QuantizationConfig | None = None) -> Quantizer:
    """Another quantizer with what the first exports."""
    plain = json.loads(json.dumps(quantizer.export_parameters()))
    other = Quantizer(quantizer.config if config is None else config)
    other.load_parameters(plain)
    assert json.loads(json.dumps(other.export_parameters())) == plain
    return other


CODES = np.arange(12, dtype=np.int8).reshape(3, 4)
OWN = {
    "fixed": {"mode": "calibrated"},
    "wide": {"type": "int16", "mode": "static"},
    "odd": {"type": "uint8", "mode": "calibrated", "symmetric": False},
    "free": {"bits": 6},
}


@pytest.mark.parametrize("before", ["calibrated", "loaded"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("mode", ["dynamic", "static", "symmetric"])
def test_layers_of_other_modes_keep_what_was_fixed(mode: str, per_channel: bool, before: str) -> None:
    fields = {"per_channel": per_channel, "enable_mixed_precision": True, "custom_quantization_config": OWN}
    quantizer = Quantizer(QuantizationConfig(**fields))
    if before == "calibrated":
        quantizer.calibrate([X])
    else:  # scales that no range gives again
        channels = {"per_channel_scales": [0.3, 0.7, 1.3]} if per_channel else {}
        quantizer.load_parameters({"global_scale": 0.3, "global_zero_point": 5, **channels})
    quantizer.update_config(QuantizationConfig("uint8", mode, **fields))
    quantizer.quantize(X, layer_name="free")
    other = reloaded(quantizer)
    assert (other.scale, other.zero_point) == (quantizer.scale, quantizer.zero_point)
    for name in OWN:
        found, expected = (one.dequantize(CODES, layer_name=name) for one in (other, quantizer))
        np.testing.assert_array_equal(found, expected)
    if mode == "dynamic":
        for one in (quantizer, other):
            with pytest.raises(NotCalibratedError):
                one.dequantize(CODES)
        quantizer.quantize(X)
        assert reloaded(quantizer).scale == quantizer.scale


@pytest.mark.parametrize("fields", [{}, {"quantization_mode": "symmetric"}, {"per_channel": True}], ids=str)
def test_what_is_not_known_stays_so(fields: dict[str, Any]) -> None:
    other = reloaded(Quantizer(QuantizationConfig(**fields)))
    assert (other.scale, other._is_calibrated) == (1.0, False)
    with pytest.raises(NotCalibratedError, match="expected parameters to read codes with; received none"):
        other.dequantize(CODES)


def test_channels_that_a_call_read_elsewhere_are_where_they_were_calibrated() -> None:
    quantizer = Quantizer(QuantizationConfig(per_channel=True))
    quantizer.calibrate([X])
    quantizer.quantize(X.T, channel_dim=1)
    np.testing.assert_array_equal(reloaded(quantizer).dequantize(CODES), quantizer.dequantize(CODES))


@pytest.mark.parametrize("calibrated", [False, True])
def test_channels_of_a_configuration_without(calibrated: bool) -> None:
    quantizer = Quantizer()
    if calibrated:
        quantizer.calibrate([X])
    codes = quantizer._quantize_per_channel(X)
    np.testing.assert_array_equal(reloaded(quantizer).dequantize(codes), quantizer.dequantize(codes))


def test_layers_with_codes_under_a_type_without() -> None:
    config = QuantizationConfig("float16", enable_mixed_precision=True, mixed_precision_layers=["wide"])
    quantizer = Quantizer(config)
    codes = quantizer.quantize(X, layer_name="wide")
    other = reloaded(quantizer)
    np.testing.assert_array_equal(
        other.dequantize(codes, layer_name="wide"), quantizer.dequantize(codes, layer_name="wide")
    )


def test_parameters_as_the_first_exporter_wrote_them() -> None:
    plain = {
        "global_scale": 0.5,
        "global_zero_point": 0.0,
        "per_channel_scales": {"0": 0.5, "1": 0.25},
        "per_channel_zero_points": {"0": 0.0, "1": 3.0},
        "quantization_type": "INT8",
        "quantization_mode": "DYNAMIC",
        "is_calibrated": False,
        "qmin": -128,
        "qmax": 127,
    }
    quantizer = Quantizer()
    quantizer.load_parameters(plain)
    assert quantizer.dequantize(np.int8([[2], [4]])).tolist() == [[1.0], [0.25]]
    assert not quantizer._is_calibrated


def test_loaded_parameters_that_are_as_large_as_may_be() -> None:
    quantizer = Quantizer()
    quantizer.load_parameters({"global_scale": 3e38, "quantization_mode": "static"})
    assert reloaded(quantizer).scale == quantizer.scale


def test_the_least_that_can_be_loaded() -> None:
    quantizer = Quantizer()
    quantizer.load_parameters({"global_scale": 2})
    assert quantizer.dequantize(np.int8([100])).tolist() == [200.0]
    quantizer.load_parameters({"global_scale": 1, "per_channel_scales": [0.5, 2.0]})
    assert quantizer.dequantize(np.int8([[1], [1]])).tolist() == [[0.5], [2.0]]
    assert quantizer.config.sharing() == PerChannel(0)
    quantizer.load_parameters({"global_scale": 1.0, "quantization_type": "UINT8", "quantization_mode": "STATIC"})
    assert quantizer.quantize(np.float32([300.0])).tolist() == [255]


NAN, INF, HUGE = float("nan"), float("inf"), 10**400
BAD: list[dict[str, Any]] = [
    {"global_scale": value} for value in (None, "1", True, [], [1.0], {}, 0, -1.0, NAN, INF, HUGE, 1e-46, 1e300, 1j)
]
BAD += [{"global_zero_point": value} for value in ("0", None, 0.5, NAN, INF, HUGE, 128, -129, [0], False)]
BAD += [
    {"per_channel_scales": value} for value in ("abc", 5, [1, "2", 3], [[1.0]], {"0": 1.0}, {"a": 1, "b": 2, "c": 3})
]
BAD += [{"per_channel_scales": {"0": 1.0, "1": value, "2": 1.0}} for value in (None, NAN, 0, -1, HUGE, {}, "x")]
BAD += [{"per_channel_scales": {0: 1.0, 2: 1.0, 3: 1.0}}, {"per_channel_scales": {0.5: 1.0, 1: 1.0, 2: 1.0}}]
BAD += [{"per_channel_zero_points": value} for value in ([0, 0], {"0": 0}, [0, 0, 0.5], [0, 0, 999], [0, 0, NAN])]
BAD += [{"per_channel_scales": {}}, {"per_channel_scales": dict.fromkeys(range((1 << 20) + 1), 1.0)}]
BAD += [{"channel_dim": value} for value in ("0", 0.5, True, 64, HUGE, [0])]
BAD += [{"quantization_type": value} for value in ("int7", 8, ["int8"], {})]
BAD += [{"quantization_mode": "sometimes"}, {"num_bits": 1}, {"num_bits": "8"}, {"num_bits": 8.0}, {"symmetric": 1}]
BAD += [{"qmin": 0}, {"qmax": 255}, {"qmin": "x"}, {"qmax": NAN}, {"is_calibrated": None}, {"is_calibrated": "yes"}]
RANGE = {"min": [0.0] * 3, "max": [1.0] * 3, "channel_dim": 0}
LOADED = {"scale": [1.0] * 3, "zero_point": [0] * 3, "num_bits": 8, "signed": True, "symmetric": True}
BAD += [{"calibration": value} for value in ([], "x", {}, RANGE, {**RANGE, "extra": 1}, {**RANGE, "scale": [1.0] * 3})]
BAD += [
    {"quantization_mode": "dynamic", "calibration": {**RANGE, **change}}
    for change in (
        *(
            {"min": value}
            for value in (None, 1.0, [1.0], ["a", 1, 2], [NAN, 0, 0], [9.0] * 3, [INF, 0, 0], [HUGE, 0, 0])
        ),
        *({"channel_dim": value} for value in (None, "0", 0.5, True, 64, [0])),
        *({**LOADED, key: None} for key in LOADED),
        *(
            {**LOADED, **own}
            for own in ({"num_bits": HUGE}, {"signed": 1}, {"scale": [1.0]}, {"zero_point": [0, 0, 300]})
        ),
    )
]
BAD += [{"is_calibrated": False}, {"calibration": None, "has_parameters": False}, {"has_parameters": False}]
BAD += [{"has_parameters": value} for value in (None, 1, "true")] + [{"quantization_type": "float16", "num_bits": 16}]
BAD += [{"layers": value} for value in ([], "x", {"a": 1}, {"a": {}}, {"a": {"scale": "x"}}, {1: {"scale": 1.0}})]
BAD += [{"layers": {"a": {"scale": 1.0, "channel_dim": 0}}}, {"layers": {"a": {"scale": [1.0], "channel_dim": None}}}]
BAD += [{"layers": {"wide": {"scale": 1.0, "zero_point": 99999}}}, {"layers": {"a": {"scale": {"a": {"a": []}}}}}]
BAD += [{"layers": {str(i): {"scale": 1.0} for i in range(MAX_LAYERS + 1)}}, {"extra": 1}, {5: 5}, {"global_scal": 1}]


@pytest.mark.parametrize("change", BAD, ids=lambda change: str(change)[:60])
def test_bad_parameters_are_refused_whole(change: dict[str, Any]) -> None:
    quantizer = filled()
    before = everything(quantizer)
    params = {**quantizer.export_parameters(), **change}
    with pytest.raises(ConfigError, match="expected") as caught:
        quantizer.load_parameters(params)
    assert len(str(caught.value)) < 500
    assert everything(quantizer) == before


@pytest.mark.parametrize("bad", [None, [], "x", 5, [("global_scale", 1.0)]], ids=str)
def test_what_is_no_dict_is_refused(bad: Any) -> None:
    with pytest.raises(UnsupportedError, match="expected a dict from export_import_parameters; received"):
        Quantizer().load_parameters(bad)
    with pytest.raises(ConfigError, match="expected the key 'global_scale'"):
        Quantizer().load_parameters({})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(filled().export_parameters())), json_values)
def test_junk_is_loaded_whole_or_not_at_all(key: str, value: Any) -> None:
    quantizer = filled()
    before = everything(quantizer)
    try:
        quantizer.load_parameters({**quantizer.export_parameters(), key: value})
    except (ConfigError, UnsupportedError):
        assert everything(quantizer) == before
    else:
        quantizer.load_parameters(json.loads(json.dumps(quantizer.export_parameters())))


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"per_channel_scales": 0}, "expected per_channel_scales to map indices to numbers; received int"),
        ({"per_channel_scales": ""}, "expected per_channel_scales to map"),
        ({"per_channel_zero_points": False}, "expected per_channel_zero_points to map"),
        ({"symmetric": True, "global_zero_point": 5}, "expected zero points of 0 with symmetric=true; received"),
    ],
)
def test_what_only_looks_empty_or_contradicts_itself_is_refused(own, told):
    quantizer = Quantizer(QuantizationConfig())
    before = quantizer.export_import_parameters()
    with pytest.raises(ConfigError, match=told):
        quantizer.load_parameters({"global_scale": 0.5} | own)
    assert quantizer.export_import_parameters() == before
