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
from qi.errors import ConfigError, UnsupportedError

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
        "quantization_type": "int8",
        "quantization_mode": "calibrated",
        "num_bits": 8,
        "symmetric": True,
        "is_calibrated": True,
        "calibrated_min": X.min(1).tolist(),
        "calibrated_max": X.max(1).tolist(),
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
    assert (params["channel_dim"], params["per_channel_scales"]) == (None, {})
    Quantizer().load_parameters(params)


def test_groups_cannot_be_exported() -> None:
    quantizer = Quantizer(QuantizationConfig(granularity=PerGroup(1, 2, 0)))
    quantizer.quantize(X)
    with pytest.raises(ConfigError, match="received groups; do: keep the QuantizedTensor"):
        quantizer.export_parameters()


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
BAD += [{"calibrated_min": value} for value in (None, 1.0, [1.0], ["a", 1, 2], [NAN, 0, 0], [9.0] * 3, [-1e39, 0, 0])]
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
