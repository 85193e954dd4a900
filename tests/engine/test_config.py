from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.core import IntGrid, PerChannel, PerGroup, PerTensor
from qi.engine.config import LAYER_KEYS, QuantizationConfig
from qi.engine.types import Granularity, QuantizationMode, QuantizationType
from qi.errors import ConfigError

FLAGS = [f.name for f in dataclasses.fields(QuantizationConfig) if isinstance(f.default, bool)]
names = st.text(min_size=1, max_size=5)
sharings = st.sampled_from([None, "per_tensor", "per_channel", PerTensor(), PerChannel(-1), PerGroup(0, 32, 1)])
layers = st.dictionaries(
    names,
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["int8", "INT16", "uint8", "float16", "none"]),
            "mode": st.sampled_from(QuantizationMode),
            "symmetric": st.booleans(),
        },
    ),
    max_size=3,
)


@st.composite
def configs(draw) -> QuantizationConfig:
    kind = draw(st.sampled_from(QuantizationType))
    mode = draw(st.sampled_from([mode for mode in QuantizationMode if mode != "dynamic_per_channel"]))
    flags = {name: draw(st.booleans()) for name in FLAGS if name != "per_channel"}
    return QuantizationConfig(
        kind,
        mode,
        num_bits=draw(st.none() | st.integers(2, kind.bits)),
        granularity=draw(sharings),
        cache_size=draw(st.integers(0, 1000)),
        min_percentile=draw(st.floats(0, 40)),
        outlier_threshold=draw(st.none() | st.floats(0.1, 10)),
        skip_layers=draw(st.lists(names, max_size=3)),
        custom_quantization_config=draw(layers),
        **flags,
    )


@given(configs())
def test_a_configuration_survives_json_copies_and_pickling(config: QuantizationConfig) -> None:
    plain = config.to_dict()
    again = QuantizationConfig.from_dict(json.loads(json.dumps(plain)))
    assert again == config
    assert hash(again) == hash(config)
    assert again.to_dict() == plain
    assert pickle.loads(pickle.dumps(config)) == copy.copy(config) == config
    assert copy.deepcopy(config) is config


@given(configs())
def test_a_plain_configuration_shares_nothing(config: QuantizationConfig) -> None:
    expected = json.dumps(config.to_dict())
    plain = config.to_dict()
    plain["skip_layers"].append("x")
    for own in plain["custom_quantization_config"].values():
        own["type"] = "int8"
    plain["custom_quantization_config"]["y"] = {}
    assert json.dumps(config.to_dict()) == expected


def test_what_was_given_may_change_afterwards() -> None:
    skip, custom = ["a"], {"b": {"bits": 4}}
    config = QuantizationConfig(skip_layers=skip, custom_quantization_config=custom)
    skip.append("c")
    custom["b"]["bits"] = 99
    assert config.to_dict()["skip_layers"] == ["a"]
    assert config.to_dict()["custom_quantization_config"] == {"b": {"bits": 4}}
    with pytest.raises(TypeError):
        config.custom_quantization_config["b"]["bits"] = 5  # type: ignore[index]


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_booleans(name: str) -> None:
    for bad in ("false", 1, None, np.array(True)):
        with pytest.raises(ConfigError, match=f"expected {name} to be True or False"):
            QuantizationConfig(**{name: bad})
    if name != "per_channel":
        assert getattr(QuantizationConfig(**{name: np.True_}), name) is True


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"num_bits": 12}, "expected num_bits from 2 to 8 for INT8; received num_bits=12"),
        ({"quantization_type": "int4", "num_bits": 8}, "from 2 to 4 for INT4"),
        ({"cache_size": 1 << 40}, "expected cache_size from 0 to 1048576"),
        ({"cache_size": 2.0}, "expected cache_size"),
        ({"min_percentile": -1}, "expected min_percentile to be a number from 0 to 100"),
        ({"max_percentile": 100.1}, "expected max_percentile"),
        ({"max_percentile": float("nan")}, "expected max_percentile"),
        (
            {"min_percentile": 50, "max_percentile": 50},
            "expected min_percentile below max_percentile; received 50 and 50",
        ),
        ({"outlier_threshold": 0}, "expected outlier_threshold to be positive"),
        ({"outlier_threshold": -1}, "expected outlier_threshold"),
        ({"requantization_threshold": float("inf")}, "expected requantization_threshold to be a number from 0;"),
        ({"requantization_threshold": 10**400}, "expected requantization_threshold"),
        ({"eps": "small"}, "expected eps"),
        ({"skip_layers": "head"}, "expected skip_layers to be a list of names"),
        ({"skip_layers": [1]}, "expected skip_layers to hold names"),
        ({"mixed_precision_layers": {"a": 1}}, "expected mixed_precision_layers"),
        ({"custom_quantization_config": ["a"]}, "expected custom_quantization_config to map names to dicts"),
        ({"custom_quantization_config": {"a": 4}}, "expected custom_quantization_config"),
        ({"custom_quantization_config": {"a": {"bit": 4}}}, "received 'bit'. Did you mean 'bits'?"),
        ({"custom_quantization_config": {"a": {"bits": 99}}}, "expected num_bits"),
        (
            {"custom_quantization_config": {"a": {"bits": None}}},
            "expected a value for 'bits' of layer 'a'; received None",
        ),
        ({"custom_quantization_config": {"a": {"type": "int8", "bits": 12}}}, "expected num_bits"),
        ({"custom_quantization_config": {"a": {"symmetric": 1}}}, "expected symmetric"),
        ({"granularity": "per_row"}, "expected Granularity"),
        ({"granularity": "per_tensor", "per_channel": True}, "expected per_channel and granularity to agree"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(fields, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        QuantizationConfig(**fields)
    assert text in str(caught.value)


@pytest.mark.parametrize("bad", [None, [], "x", {"num_bit": 8}, {1: 2}, {"granularity": {"PerRow": {}}}], ids=str)
def test_from_dict_refuses(bad) -> None:
    with pytest.raises(ConfigError, match="expected"):
        QuantizationConfig.from_dict(bad)
    assert QuantizationConfig.from_dict({}) == QuantizationConfig()


def test_channels_may_be_asked_for_in_four_ways() -> None:
    ways = [{"per_channel": True}, {"granularity": "PER_CHANNEL"}, {"granularity": Granularity.PerChannel}]
    ways.append({"quantization_mode": "dynamic_per_channel"})
    for fields in ways:
        config = QuantizationConfig(**fields)
        assert (config.per_channel, config.granularity) == (True, "per_channel")
        assert (config.sharing(), config.sharing(2)) == (PerChannel(0), PerChannel(2))
    groups = QuantizationConfig(granularity=PerGroup(0, 32, 1))
    assert groups.sharing(1) == groups.granularity
    assert QuantizationConfig().sharing(1) == PerTensor()


@pytest.mark.parametrize(("mode", "expected"), [("symmetric", True), ("asymmetric", False), ("dynamic", None)])
def test_two_modes_decide_the_symmetry(mode: str, expected: bool | None) -> None:
    for symmetric in (True, False):
        config = QuantizationConfig(quantization_mode=mode, symmetric=symmetric)
        assert config.is_symmetric is (symmetric if expected is None else expected)
        assert config.mode == ("symmetric" if config.is_symmetric else "asymmetric")


def test_grids() -> None:
    assert QuantizationConfig("uint4").grid == IntGrid(4, signed=False)
    assert QuantizationConfig("int16", num_bits=12).grid == IntGrid(12)
    for kind in ("none", "float16"):
        with pytest.raises(ConfigError, match="expected an integer type"):
            _ = QuantizationConfig(kind).grid


def test_layers_have_configurations_of_their_own() -> None:
    custom = {"a": {"bits": 4}, "b": {"type": "uint8", "per_channel": True}, "c": {"bits": np.int64(12)}}
    off = QuantizationConfig(custom_quantization_config=custom)
    assert off.for_layer("a") is off
    for config in (off.replace(enable_mixed_precision=True), off.replace(quantization_type="mixed")):
        assert config.for_layer(None) is config
        assert config.for_layer("z") is config
        assert [config.for_layer(n).quantization_type for n in "abc"] == ["int8", "uint8", "int16"]
        assert [config.for_layer(n).bits for n in "abc"] == [4, 8, 12]
        assert [config.for_layer(n).per_channel for n in "abc"] == [False, True, False]
    assert set(LAYER_KEYS) == {"type", "bits", "mode", "symmetric", "per_channel"}


def test_replace() -> None:
    config = QuantizationConfig("int4", per_channel=True)
    assert config.replace(quantization_type="int16").bits == 16
    assert config.replace(quantization_mode="static").per_channel is True
    assert config.replace(per_channel=False).granularity == "per_tensor"
    assert config.replace(granularity="per_tensor").per_channel is False
    groups = QuantizationConfig(granularity=PerGroup(0, 32, 1))
    assert groups.replace(quantization_mode="static").granularity == groups.granularity
    assert groups.replace(per_channel=False).granularity == "per_tensor"
    with pytest.raises(TypeError):
        config.replace(nonsense=1)


def test_names_of_a_set_have_an_order() -> None:
    assert QuantizationConfig(skip_layers={"b", "a", "c"}).skip_layers == ("a", "b", "c")
