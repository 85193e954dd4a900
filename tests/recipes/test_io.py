from __future__ import annotations

import json

import pytest

from qi.errors import ConfigError, FileFormatError
from qi.recipes import Recipe, Rule, TensorSpec, decode_name, from_json, load, save, to_json
from qi.recipes.io import MAX_FILE_BYTES, from_mapping

RECIPE = decode_name("w4a8").with_rules(
    Rule("tête*", weights="float", activations="float"),
    Rule(layer_type="Dense", weight="kernel", weights=TensorSpec(bits=8, range_options={"steps": 3})),
)


def document(**changes):
    return {**json.loads(to_json(RECIPE)), **changes}


def test_text_and_file_round_trip(tmp_path):
    assert from_json(to_json(RECIPE)) == RECIPE
    path = tmp_path / "recipe.json"
    assert save(RECIPE, path) == path
    assert load(path) == RECIPE
    assert load(str(path)) == RECIPE


def test_the_format_is_pinned():
    recipe = Recipe("r", TensorSpec(bits=8), None, (Rule("a", weights="float"),))
    weights = {"bits": 8, "method": "symmetric", "granularity": "per_tensor", "range": "minmax"}
    rules = [{"match": "a", "weights": "float"}]
    assert json.loads(to_json(recipe)) == {
        "_type": "qi.Recipe",
        "_version": 1,
        "_data": {"name": "r", "weights": weights, "activations": None, "rules": rules},
    }


def test_a_base_is_a_recipe_by_name():
    mapping = {"base": "w8a8", "rules": [{"match": "head", "weights": "float"}]}
    expected = decode_name("w8a8").with_rules(Rule("head", weights="float"))
    assert from_mapping(mapping) == expected
    assert from_json(json.dumps({"_type": "qi.Recipe", "_version": 1, "_data": mapping})) == expected
    assert from_mapping({"base": "w8", "name": "mine"}).name == "mine"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", FileFormatError, "as JSON"),
        ("{", FileFormatError, "as JSON"),
        ("[" * 100_000, FileFormatError, "as JSON"),
        ('{"a": ' + "9" * 6000 + "}", FileFormatError, "as JSON"),
        ("[]", FileFormatError, "of the form"),
        ('"w8a8"', FileFormatError, "of the form"),
        ('{"name": "w8"}', FileFormatError, "of the form"),
        ('{"_type": "qi.Recipe", "_type": "qi.Recipe"}', FileFormatError, "twice"),
        (json.dumps(document(_type="os.system")), FileFormatError, "_type='os.system'"),
        (json.dumps(document(_type=["qi.Recipe"])), FileFormatError, "_type="),
        (json.dumps(document(_version=2)), FileFormatError, "_version=2; do: install"),
        (json.dumps(document(_version=True)), FileFormatError, "_version=True"),
        (json.dumps(document(_version=None)), FileFormatError, "_version=None"),
        (json.dumps(document(_extra=1)), FileFormatError, "'_extra'"),
        (json.dumps(document(_data=[])), FileFormatError, r"_data=\[\]"),
        (json.dumps(document(_data={"name": "r", "code": "x"})), ConfigError, "'code'"),
        (json.dumps(document(_data={"base": "w8", "weights": None})), ConfigError, "'weights'"),
        (json.dumps(document(_data={"base": "w8", "rules": "a"})), ConfigError, "to be a list"),
        (json.dumps(document(_data={"base": 8})), ConfigError, "base=8"),
        (json.dumps(document(_data={"base": "w99x"})), ConfigError, "'w99x'"),
        (
            json.dumps(document(_data={"name": "r", "weights": {"bits": float("nan")}})),
            FileFormatError,
            "NaN",
        ),
    ],
)
def test_junk_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        from_json(text)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text("{")
    with pytest.raises(FileFormatError, match=r"bad\.json: expected a recipe as JSON"):
        load(path)
    path.write_text(json.dumps(document(_data={"name": "r", "weights": {"bits": 99}})))
    with pytest.raises(ConfigError, match=r"bad\.json: .*bits=99"):
        load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FileFormatError, match=r"UTF-8 text; .*bad\.json"):
        load(path)
    path.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(FileFormatError, match=r"bad\.json is larger"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.json")
