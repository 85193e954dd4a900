"""Finding a recipe from whatever a user calls it by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from qi.errors import ConfigError
from qi.recipes import io
from qi.recipes.decoder import decode_name
from qi.recipes.recipe import Recipe

__all__ = ["RecipeLike", "get_recipe"]

RecipeLike: TypeAlias = Recipe | str | os.PathLike[str] | Mapping[str, Any]
"""What `get_recipe` understands."""


def get_recipe(recipe: RecipeLike) -> Recipe:
    """Return the recipe that a name, a file or a mapping stands for.

    Args:
        recipe: A `Recipe`; a name such as "w8a8" (see `qi.recipes.decoder`); a path, as `Path` or as text
            that ends in ".json"; or a mapping such as ``{"base": "w8", "rules": [{"match": "head", "weights":
            "float"}]}``.

    Raises:
        ConfigError: If the name is unknown (the nearest are suggested) or the recipe illegal.
        FileFormatError: If the file is no recipe, or of a version that isn't known.
        OSError: If the file can't be opened.

    Example:
        >>> get_recipe("w4a8").weights.bits
        4
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, os.PathLike) or (isinstance(recipe, str) and recipe.lower().endswith(".json")):
        return io.load(recipe)
    if isinstance(recipe, str):
        return decode_name(recipe)
    if isinstance(recipe, Mapping):
        return io.from_mapping(recipe)
    raise ConfigError(
        "expected a recipe: a name such as 'w8a8', a Recipe, a mapping or the path of a .json file; "
        f"received {recipe!r}"
    )
