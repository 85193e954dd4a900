from __future__ import annotations

import json

import pytest

from qi.core import PerChannel, PerTensor
from qi.engine.types import BitWidth, Granularity, QuantizationMode, QuantizationType
from qi.errors import ConfigError

ENUMS = [QuantizationType, QuantizationMode, BitWidth, Granularity]
each_enum = pytest.mark.parametrize("enum", ENUMS)


@each_enum
def test_members_are_their_lower_case_values(enum) -> None:
    for member in enum:
        assert member == member.value == member.value.lower() == str(member)
        assert json.loads(json.dumps({member: member})) == {member.value: member.value}
        assert hash(member) == hash(member.value)


@each_enum
def test_members_are_found_in_any_case(enum) -> None:
    for name, member in enum.__members__.items():
        for spelled in (name, name.lower(), name.upper(), member.value, member.value.title(), member):
            assert enum(spelled) is member


@each_enum
@pytest.mark.parametrize("bad", ["int8 ", "", "__class__", 8, None, ["int8"], {}], ids=str)
def test_others_are_refused_with_the_choices(enum, bad) -> None:
    with pytest.raises(ConfigError, match=rf"expected {enum.__name__} to be one of \[.*\]; received "):
        enum(bad)


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'dynamic'"):
        QuantizationMode("dynamik")


@pytest.mark.parametrize("kind", [kind for kind in QuantizationType if kind.integer])
def test_integer_types_know_bits_and_sign(kind: QuantizationType) -> None:
    digits = "8" if kind == "mixed" else kind.value.lstrip("uint")
    assert (kind.bits, kind.signed) == (int(digits), not kind.value.startswith("u"))


def test_types_without_codes() -> None:
    without = [kind for kind in QuantizationType if not kind.integer]
    assert [(kind, kind.bits) for kind in without] == [("float16", 16), ("none", 32)]


def test_dynamic_modes() -> None:
    dynamic = [mode.value for mode in QuantizationMode if mode.dynamic]
    assert dynamic == ["dynamic", "dynamic_per_batch", "dynamic_per_channel"]


def test_widths_are_signed_grids() -> None:
    assert [(w.levels(), w.qmin(), w.qmax(), w.grid.signed) for w in BitWidth] == [
        (256, -128, 127, True),
        (16, -8, 7, True),
        (4, -2, 1, True),
    ]


def test_granularities_of_core() -> None:
    assert [g.core for g in Granularity] == [PerTensor(), PerChannel(0)]
