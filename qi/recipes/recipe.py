"""Recipes: what of a model is quantized, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qi.errors import ConfigError
from qi.recipes.book import RuleBook
from qi.recipes.checks import check_keys
from qi.recipes.rules import FLOAT, Rule, check_choice
from qi.recipes.spec import TensorSpec

__all__ = ["Recipe"]

_RECIPE_KEYS = ("name", "weights", "activations", "rules")


@dataclass(frozen=True)
class Recipe:
    """What of a model is quantized, and how: two defaults and the exceptions to them.

    Args:
        name: What reports call it.
        weights: How weights are quantized where no rule says otherwise; None leaves them in float.
        activations: Likewise, for the layers' inputs and outputs.
        rules: The exceptions. For each weight, and for each layer's outputs, the first rule that matches
            decides; where it says nothing of them, the defaults hold.

    Raises:
        ConfigError: If a value is illegal.

    Example:
        >>> recipe = Recipe("mine", weights=TensorSpec(bits=8, granularity="per_channel"))
        >>> recipe = recipe.with_rules(Rule("head", weights="float"))
        >>> recipe.resolve().weights_for("head", "Dense", "kernel")
        Decision(spec=None, reason="left in float by rule match='head'")
    """

    name: str
    weights: TensorSpec | None = None
    activations: TensorSpec | None = None
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"expected a name for the recipe; received name={name!r}")
        for slot in ("weights", "activations"):
            if getattr(self, slot) == FLOAT:  # what a rule calls "float" is None here; both are understood
                object.__setattr__(self, slot, None)
            check_choice(slot, getattr(self, slot))
        object.__setattr__(self, "rules", _checked_rules(self.rules))

    def with_rules(self, *rules: Rule, name: str | None = None) -> Recipe:
        """Return a recipe with more rules, which come before those that are there already.

        Args:
            *rules: The new rules, the one that should win first.
            name: A new name; None keeps the old one.
        """
        return replace(self, rules=(*rules, *self.rules), name=self.name if name is None else name)

    def resolve(self) -> RuleBook:
        """Return a fresh `RuleBook`, which decides tensor by tensor and keeps track of the rules it used."""
        return RuleBook(self)

    def all_weights(self) -> tuple[TensorSpec, ...]:
        """How weights are quantized, by default and by rules."""
        given = (self.weights, *(rule.weights for rule in self.rules))
        return tuple(spec for spec in given if isinstance(spec, TensorSpec))

    def to_config(self) -> dict[str, Any]:
        """Return the recipe as a dict that JSON can hold."""
        return {
            "name": self.name,
            "weights": None if self.weights is None else self.weights.to_config(),
            "activations": None if self.activations is None else self.activations.to_config(),
            "rules": [rule.to_config() for rule in self.rules],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Recipe:
        """Build the recipe that `to_config` described.

        Raises:
            ConfigError: If a key is unknown or missing, or a value illegal.
        """
        values = check_keys("Recipe", config, allowed=_RECIPE_KEYS, required=("name",))
        for slot in ("weights", "activations"):
            if isinstance(values.get(slot), Mapping):
                values[slot] = TensorSpec.from_config(values[slot])
        rules = values.pop("rules", ())
        if not isinstance(rules, list | tuple):
            raise ConfigError(f"expected the rules of a Recipe to be a list; received rules={rules!r}")
        return cls(**values, rules=tuple(Rule.from_config(rule) for rule in rules))

    def __str__(self) -> str:
        weights = "float" if self.weights is None else self.weights
        activations = "float" if self.activations is None else self.activations
        count = f"; {len(self.rules)} rule{'s' if len(self.rules) > 1 else ''}" if self.rules else ""
        return f"{self.name}: weights {weights}; activations {activations}{count}"


def _checked_rules(rules: object) -> tuple[Rule, ...]:
    given = tuple(rules) if isinstance(rules, Iterable) else None
    if given is None or not all(isinstance(rule, Rule) for rule in given):
        raise ConfigError(f"expected rules to be a sequence of Rule objects; received rules={rules!r}")
    return given
