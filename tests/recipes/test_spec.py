from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.errors import ConfigError
from qi.observers import SELECTIONS
from qi.recipes import GRANULARITIES, METHODS, RangeOptions, TensorSpec

specs = st.builds(
    lambda bits, method, granularity, size, range_, options: TensorSpec(
        bits=bits,
        method=method,
        granularity=granularity,
        group_size=size if granularity == "per_group" else None,
        range=range_,
        range_options=options,
    ),
    st.integers(1, 16),
    st.sampled_from(METHODS),
    st.sampled_from(GRANULARITIES),
    st.integers(2, 4096),
    st.sampled_from(SELECTIONS.names()),
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.floats(-1e9, 1e9), max_size=3),
)


@given(specs)
def test_every_spec_survives_json_pickle_and_copy(spec):
    assert TensorSpec.from_config(json.loads(json.dumps(spec.to_config(), allow_nan=False))) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert copy.deepcopy(spec) == spec
    assert hash(copy.deepcopy(spec)) == hash(spec)


def test_numpy_integers_are_integers():
    spec = TensorSpec(bits=np.int64(8), granularity="per_group", group_size=np.uint8(32))
    assert type(spec.bits) is int
    assert type(spec.group_size) is int


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 0}, "bits to be an integer from 1 to 16; received bits=0"),
        ({"bits": 17}, "received bits=17"),
        ({"bits": 8.0}, r"received bits=8\.0"),
        ({"bits": True}, "received bits=True"),
        ({"bits": "8"}, "received bits='8'"),
        ({"bits": 8, "method": "symetric"}, "received method='symetric'. Did you mean 'symmetric'"),
        ({"bits": 8, "method": None}, "received method=None"),
        ({"bits": 8, "granularity": "channel"}, "expected granularity to be one of per_tensor"),
        ({"bits": 8, "granularity": ["per_tensor"]}, "expected granularity"),
        ({"bits": 8, "granularity": "per_group"}, "group_size to be an integer from 2 to 2147483647; .*=None"),
        ({"bits": 8, "granularity": "per_group", "group_size": 1}, "received group_size=1"),
        ({"bits": 8, "granularity": "per_group", "group_size": 2**31}, "received group_size=2147483648"),
        ({"bits": 8, "group_size": 32}, "expected no group_size with granularity='per_tensor'.*=32"),
        ({"bits": 8, "range": "max"}, "received range='max'. Did you mean 'minmax'"),
        ({"bits": 8, "range_options": 3}, "range_options"),
        ({"bits": 8, "range_options": {"percentile": "99"}}, "'percentile': '99'"),
        ({"bits": 8, "range_options": {"percentile": True}}, "'percentile': True"),
        ({"bits": 8, "range_options": {"percentile": float("nan")}}, "finite"),
        ({"bits": 8, "range_options": {1: 2.0}}, "names"),
        ({"bits": 8, "range_options": {"a b": 2.0}}, "names"),
    ],
)
def test_illegal_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        TensorSpec(**values)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "uniform"}, "with bits"),
        ({"bits": 8, "bit": 8}, "received 'bit'"),
        (8, "expected a mapping"),
    ],
)
def test_configs_are_checked(config, message):
    with pytest.raises(ConfigError, match=message):
        TensorSpec.from_config(config)


def test_options_cannot_be_changed_from_outside():
    options = {"percentile": 99.9}
    spec = TensorSpec(bits=8, range="percentile", range_options=options)
    options["percentile"] = 1.0
    assert spec.range_options["percentile"] == 99.9
    with pytest.raises(TypeError):
        spec.range_options["percentile"] = 1.0
    assert RangeOptions({"b": 1, "a": 2}) == {"a": 2.0, "b": 1.0}


def test_text_names_what_was_chosen():
    spec = TensorSpec(bits=1, method="uniform", range="percentile", range_options={"percentile": 99.9})
    assert str(spec) == "1 bit, uniform, per tensor, range percentile percentile=99.9"
    assert str(TensorSpec(bits=3, method="power_of_two", granularity="per_channel")) == (
        "3 bits, power of two, per channel, range minmax"
    )
