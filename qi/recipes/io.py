"""Recipes as JSON: ``{"_type": "qi.Recipe", "_version": 1, "_data": {...}}``.

``_data`` is what `Recipe.to_config` returns. A file written by hand may say ``"base": "w8a8"`` in place of
"weights" and "activations" (and "name"). Reading never runs code; unknown keys, types, versions are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qi.errors import ConfigError, FileFormatError, QiError
from qi.files import read_limited, write_atomically
from qi.recipes.checks import check_keys
from qi.recipes.decoder import decode_name
from qi.recipes.recipe import Recipe
from qi.recipes.rules import Rule

__all__ = ["MAX_FILE_BYTES", "from_json", "from_mapping", "load", "save", "to_json"]

MAX_FILE_BYTES = 1 << 20
"""The largest recipe file that is read."""

_TYPE = "qi.Recipe"
_VERSION = 1


def to_json(recipe: Recipe) -> str:
    """Return a recipe as JSON text that `from_json` reads.

    Example:
        >>> from_json(to_json(decode_name("w8a8"))) == decode_name("w8a8")
        True
    """
    document = {"_type": _TYPE, "_version": _VERSION, "_data": recipe.to_config()}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Recipe:
    """Read a recipe from JSON text.

    Raises:
        FileFormatError: If the text is no JSON, or of a type or version that isn't known.
        ConfigError: If what it says is no legal recipe.
    """
    try:
        document = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"expected a recipe as JSON; received other text: {error}") from error
    if not isinstance(document, dict) or "_type" not in document:
        shape = f'{{"_type": "{_TYPE}", "_version": {_VERSION}, "_data": {{...}}}}'
        raise FileFormatError(f"expected a recipe of the form {shape}; received {_shorten(document)}")
    return from_mapping(document)


def from_mapping(mapping: Mapping[str, Any]) -> Recipe:
    """Build a recipe from a mapping: the whole JSON document, or its ``_data`` alone.

    Raises:
        FileFormatError: If a document is of a type or version that isn't known.
        ConfigError: If what it says is no legal recipe.

    Example:
        >>> print(from_mapping({"base": "w8", "rules": [{"match": "head", "weights": "float"}]}))
        w8: weights 8 bits, symmetric, per channel, range minmax; activations float; 1 rule
    """
    data = _unwrap(mapping) if "_type" in mapping else mapping
    if "base" not in data:
        return Recipe.from_config(data)
    values = check_keys("Recipe with a base", data, allowed=("base", "name", "rules"))
    base = values["base"]
    if not isinstance(base, str):
        raise ConfigError(f"expected the base of a recipe to be a recipe's name; received base={base!r}")
    rules = values.get("rules", ())
    if not isinstance(rules, list | tuple):
        raise ConfigError(f"expected the rules of a Recipe to be a list; received rules={rules!r}")
    return decode_name(base).with_rules(*map(Rule.from_config, rules), name=values.get("name"))


def save(recipe: Recipe, path: str | os.PathLike[str]) -> Path:
    """Write a recipe to a JSON file; a failure leaves an old file as it was.

    Raises:
        OSError: If the file can't be written.
    """
    return write_atomically(path, to_json(recipe))


def load(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a JSON file of at most 1 MiB.

    Raises:
        FileFormatError: If the file is too large, no JSON, or of a type or version that isn't known.
        ConfigError: If what it says is no legal recipe.
        OSError: If it can't be opened.
    """
    content = read_limited(path, MAX_FILE_BYTES)
    try:
        return from_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FileFormatError(f"expected a recipe as UTF-8 text; {os.fspath(path)} isn't: {error}") from error
    except QiError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def _unwrap(document: Mapping[str, Any]) -> Mapping[str, Any]:
    kind, version = document["_type"], document.get("_version")
    if kind != _TYPE:
        raise FileFormatError(f"expected a file of type {_TYPE!r}; received _type={_shorten(kind)}")
    if version != _VERSION or isinstance(version, bool):
        raise FileFormatError(
            f"expected _version={_VERSION}; received _version={_shorten(version)}; "
            "do: install the version of QI that wrote it"
        )
    unknown = set(document) - {"_type", "_version", "_data"}
    data = document.get("_data")
    if unknown or not isinstance(data, Mapping):
        raise FileFormatError(
            f"expected _type, _version and the mapping _data; received {', '.join(map(repr, document))} "
            f"with _data={_shorten(data)}"
        )
    return data


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise FileFormatError(f"a key is there twice among {_shorten([key for key, _ in pairs])}")
    return values


def _refuse_constant(name: str) -> None:
    raise FileFormatError(f"{name} is no JSON number")


def _shorten(value: object, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
