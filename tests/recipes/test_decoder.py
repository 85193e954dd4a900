from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from qi.errors import ConfigError
from qi.observers import SELECTIONS
from qi.recipes import RECIPE_NAMES, TensorSpec, decode_name

GRANULARITY = {"": "per_channel", "_pc": "per_channel", "_pt": "per_tensor"}


@given(
    st.integers(2, 16),
    st.none() | st.integers(1, 16),
    st.sampled_from(["", "_pt", "_pc"]) | st.integers(2, 9999).map(lambda size: f"_g{size}"),
    st.sampled_from(["", *SELECTIONS]),
)
def test_every_part_of_a_name_is_what_it_says(bits, activation_bits, granularity, range_):
    if activation_bits is None and range_ not in ("", "minmax", "mse"):
        range_ = ""
    suffix = f"_{range_}" if range_ else ""
    name = f"w{bits}{'' if activation_bits is None else f'a{activation_bits}'}{granularity}{suffix}"
    recipe = decode_name(name)
    assert recipe == decode_name(name.upper())
    assert recipe.name == name
    assert recipe.rules == ()
    weights = recipe.weights
    assert (weights.bits, weights.method) == (bits, "symmetric")
    assert weights.granularity == GRANULARITY.get(granularity, "per_group")
    assert weights.group_size == (int(granularity[2:]) if granularity.startswith("_g") else None)
    default = "minmax" if bits >= 8 else "mse"
    assert weights.range == (range_ if range_ in ("minmax", "mse") else default)
    if activation_bits is None:
        assert recipe.activations is None
    else:
        method = "uniform" if activation_bits <= 8 else "symmetric"
        assert recipe.activations == TensorSpec(bits=activation_bits, method=method, range=range_ or "mse")


@pytest.mark.parametrize("name", sorted(RECIPE_NAMES))
def test_the_names_that_help_shows_exist(name):
    assert decode_name(name).name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("w8a9x", "expected the name of a recipe; received 'w8a9x'. Did you mean .*'w8a8'"),
        ("w8-a8", "Did you mean 'w8a8'"),
        ("a8", "Names are built as w<bits>"),
        ("", "received ''"),
        ("w08", "received 'w08'"),
        ("w8a", "received 'w8a'"),
        ("w8a8_", "received 'w8a8_'"),
        (" w8", "received ' w8'"),
        ("w8\n", "received"),
        ("w８", "received"),
        ("w8a8_mse_pt", "received 'w8a8_mse_pt'"),
        ("w8_g0", "received 'w8_g0'"),
        ("w17", "recipe 'w17': expected bits .*bits=17.* Names are built as"),
        ("w8a17", "bits=17"),
        ("w1", "at least 2 bits"),
        ("w4_g1", "group_size=1"),
        ("w4_g" + "9" * 5000, "expected the name of a recipe"),
        ("w8_entropy", "recipe 'w8_entropy': expected a range for weights"),
        ("w8_ema", "there are no activations"),
        ("w8a8_entropi", "recipe 'w8a8_entropi': .*range='entropi'. Did you mean 'entropy'"),
    ],
)
def test_unknown_names_get_help(name, message):
    with pytest.raises(ConfigError, match=message):
        decode_name(name)
