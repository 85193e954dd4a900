from __future__ import annotations

import pytest

from qi.errors import ConfigError
from qi.recipes.checks import check_keys


def test_a_good_mapping_comes_back_as_a_dict_of_its_own():
    given = {"match": "a"}
    checked = check_keys("Rule", given, allowed=("match", "weights"), required=("match",))
    assert checked == given
    assert checked is not given


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([("match", "a")], "expected a mapping for a Rule"),
        ("match", "expected a mapping for a Rule"),
        ({"mach": "a"}, "received 'mach'. Did you mean 'match'"),
        ({1: "a"}, "received 1"),
        ({"weights": "float"}, "expected a Rule with match"),
    ],
)
def test_other_things_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        check_keys("Rule", config, allowed=("match", "weights"), required=("match",))
