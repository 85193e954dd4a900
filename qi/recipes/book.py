"""Deciding tensor by tensor what a recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from qi.recipes.rules import FLOAT, Choice, Rule
from qi.recipes.spec import TensorSpec
from qi.registry import suggest

if TYPE_CHECKING:
    from qi.recipes.recipe import Recipe

__all__ = ["Decision", "RuleBook"]


class Decision(NamedTuple):
    """What a recipe asks for one tensor.

    Attributes:
        spec: How to quantize it, or None to leave it in float.
        reason: Why it stays in float; empty when it is quantized.
    """

    spec: TensorSpec | None
    reason: str


class RuleBook:
    """The decisions of one recipe for one model, and which rules took part in them.

    Args:
        recipe: The recipe to apply.

    Example:
        >>> from qi.recipes import Rule, get_recipe
        >>> book = get_recipe("w8").with_rules(Rule("hed", weights="float")).resolve()
        >>> spec, reason = book.weights_for("head", "Dense", "kernel")
        >>> spec.bits, reason
        (8, '')
        >>> book.activations_for("head", "Dense").reason
        'the recipe w8 quantizes no activations'
        >>> book.unused_rules()
        ("match='hed': matches no layer. Did you mean 'head'?",)
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._layers: dict[str, str] = {}
        self._folded: dict[str, tuple[str, str]] = {}
        self._covering: set[int] = set()
        self._deciding: set[int] = set()

    def weights_for(
        self, path: str, layer_type: str, attribute: str, within: Sequence[tuple[str, str, str]] = ()
    ) -> Decision:
        """Decide on one weight.

        Args:
            path: The layer's path, "backbone/conv1".
            layer_type: The name of its class, "Conv2D".
            attribute: The weight's path within the layer, "kernel" or "query/kernel".
            within: The same of layers inside it that hold the weight, which rules may speak of as well.
        """
        return self._decide("weights", [(path, layer_type, attribute), *within])

    def activations_for(self, path: str, layer_type: str) -> Decision:
        """Decide on the outputs of one layer (or on an input of the model, whose layer is the `InputLayer`).

        Args:
            path: The layer's path.
            layer_type: The name of its class.
        """
        return self._decide("activations", [(path, layer_type, None)])

    def activations_within(self, path: str, layer_type: str, outer: tuple[str, str]) -> Decision | None:
        """Decide on what a part of a layer gives to other parts of it; None where no rule speaks of the part.

        Args:
            path: The part's path, "lstm/lstm_cell".
            layer_type: The name of its class.
            outer: The (path, class) of the layer: a rule that matches that as well doesn't speak of the part.
        """
        self._layers[path] = layer_type
        for index, rule in enumerate(self.recipe.rules):
            if not rule.covers(path, layer_type) or rule.covers(*outer):
                continue
            self._covering.add(index)
            if rule.activations is not None and rule.matches(path, layer_type):
                self._deciding.add(index)
                if isinstance(rule.activations, TensorSpec):
                    return Decision(rule.activations, "")
                return Decision(None, f"left in float by rule {rule}")
        return None

    def folded(self, path: str, layer_type: str, into: str) -> None:
        """Note a layer about which nothing is to be decided, since another one has taken it in.

        Args:
            path: The layer's path.
            layer_type: The name of its class.
            into: The path of the layer that has taken it in.
        """
        self._folded[path] = (layer_type, into)

    def unused_rules(self) -> tuple[str, ...]:
        """Return a line for every rule that decided nothing so far, with the likely cause."""
        return tuple(
            f"{rule}: {self._why_unused(index, rule)}"
            for index, rule in enumerate(self.recipe.rules)
            if index not in self._deciding
        )

    def _decide(self, slot: str, names: Sequence[tuple[str, str, str | None]]) -> Decision:
        rules = self.recipe.rules
        for path, layer_type, _ in names:
            self._layers[path] = layer_type
            self._covering.update(index for index, rule in enumerate(rules) if rule.covers(path, layer_type))
        choice: Choice = None
        for index, rule in enumerate(rules):
            if any(rule.matches(*name) for name in names):
                choice = getattr(rule, slot)
                if choice is not None:
                    self._deciding.add(index)
                if choice == FLOAT:
                    return Decision(None, f"left in float by rule {rule}")
                break
        spec = choice if isinstance(choice, TensorSpec) else getattr(self.recipe, slot)
        if spec is None:
            return Decision(None, f"the recipe {self.recipe.name} quantizes no {slot}")
        return Decision(spec, "")

    def _why_unused(self, index: int, rule: Rule) -> str:
        if index in self._covering:
            if rule.weight is not None:
                return "matches layers, but none of their weights, or an earlier rule came first"
            return "matches layers, but an earlier rule came first or they have nothing that it speaks of"
        folded = [(path, into) for path, (kind, into) in self._folded.items() if rule.covers(path, kind)]
        if folded:
            (path, into), more = folded[0], f" and {len(folded) - 1} more" if len(folded) > 1 else ""
            return f"matches only what was folded into other layers: {path!r} into {into!r}{more}; do name those layers"
        path_fits = rule.match is None or any(fnmatchcase(path, rule.match) for path in self._layers)
        if rule.layer_type is not None and path_fits:
            return f"matches no layer.{suggest(rule.layer_type, set(self._layers.values()))}"
        return f"matches no layer.{suggest(rule.match or '', self._layers)}"
