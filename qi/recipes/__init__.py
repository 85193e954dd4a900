"""What of a model is quantized, and how: recipes by name, by rules and as JSON."""

from __future__ import annotations

from qi.recipes.book import Decision, RuleBook
from qi.recipes.decoder import RECIPE_NAMES, decode_name
from qi.recipes.efforts import EFFORTS, with_effort
from qi.recipes.io import from_json, load, save, to_json
from qi.recipes.lookup import RecipeLike, get_recipe
from qi.recipes.recipe import Recipe
from qi.recipes.rules import FLOAT, Rule
from qi.recipes.spec import GRANULARITIES, METHODS, RangeOptions, TensorSpec
from qi.recipes.steps import Step

__all__ = [
    "EFFORTS",
    "FLOAT",
    "GRANULARITIES",
    "METHODS",
    "RECIPE_NAMES",
    "Decision",
    "RangeOptions",
    "Recipe",
    "RecipeLike",
    "Rule",
    "RuleBook",
    "Step",
    "TensorSpec",
    "decode_name",
    "from_json",
    "get_recipe",
    "load",
    "save",
    "to_json",
    "with_effort",
]
