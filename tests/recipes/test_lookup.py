from __future__ import annotations

import pytest

from qi.errors import ConfigError
from qi.recipes import Rule, decode_name, get_recipe, save

RECIPE = decode_name("w8a8").with_rules(Rule("head", weights="float"))


def test_everything_that_names_a_recipe(tmp_path):
    path = save(RECIPE, tmp_path / "mine.JSON")
    assert get_recipe(RECIPE) is RECIPE
    assert get_recipe("w8a8") == decode_name("w8a8")
    assert get_recipe(path) == RECIPE
    assert get_recipe(str(path)) == RECIPE
    assert get_recipe(RECIPE.to_config()) == RECIPE
    assert get_recipe({"base": "w8a8", "rules": [{"match": "head", "weights": "float"}]}) == RECIPE


@pytest.mark.parametrize("value", [None, 8, ["w8a8"], b"w8a8"])
def test_other_things_are_refused(value):
    with pytest.raises(ConfigError, match="expected a recipe: a name such as 'w8a8'"):
        get_recipe(value)
