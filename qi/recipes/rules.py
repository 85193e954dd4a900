"""Rules: exceptions to a recipe, for the layers that they match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

from qi.errors import ConfigError
from qi.observers import WEIGHT_SELECTIONS
from qi.recipes.checks import check_keys
from qi.recipes.spec import TensorSpec

__all__ = ["FLOAT", "Choice", "Rule", "check_choice"]

FLOAT: Literal["float"] = "float"
"""In a rule: leave the tensor in float."""

Choice: TypeAlias = TensorSpec | Literal["float"] | None
"""What a rule says of a tensor: how to quantize it, "float", or None for the recipe's default."""


@dataclass(frozen=True)
class Rule:
    """An exception to a recipe's defaults, for the layers that it matches.

    Patterns are globs (``*``, ``?``, ``[abc]``), case-sensitive; ``*`` also crosses the ``/`` between nested
    models. A layer must satisfy every pattern that is given. Where a layer holds others (an RNN its cell, a wrapper
    its layer), rules for weights may name either: "rnn" with "lstm_cell/kernel", or "rnn/lstm_cell" and "LSTMCell".

    Args:
        match: Pattern for the layer's path: "head", "backbone/conv*", "*/query".
        layer_type: Pattern for the name of the layer's class: "Dense", "*Conv2D".
        weight: Pattern for the weight's path within the layer: "kernel", "query/kernel". Such a rule speaks
            of these weights alone.
        weights: A `TensorSpec`, "float", or None for the recipe's default.
        activations: Likewise, for the layer's outputs. What the cell of a recurrent layer hands from step to step is
            quantized only where a rule speaks of the cell, not of its layer as well: "*/lstm_cell" or "LSTMCell";
            "*/lstm_cell:1" is its second state.

    Raises:
        ConfigError: If neither `match` nor `layer_type` is given, if the rule decides nothing, or a value is
            illegal.

    Example:
        >>> print(Rule("head*", weights="float"))
        match='head*'
        >>> rule = Rule(layer_type="Dense", weight="kernel", weights=TensorSpec(bits=4))
        >>> rule.matches("backbone/fc", "Dense", "kernel"), rule.matches("backbone/fc", "Dense", "bias")
        (True, False)
    """

    match: str | None = None
    _: KW_ONLY
    layer_type: str | None = None
    weight: str | None = None
    weights: Choice = None
    activations: Choice = None

    def __post_init__(self) -> None:
        for name in ("match", "layer_type", "weight"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"expected {name} to be a pattern as 'conv*'; received {name}={value!r}")
        if self.match is None and self.layer_type is None:
            raise ConfigError("expected match or layer_type; received neither; do: match='*' for every layer")
        check_choice("weights", self.weights)
        check_choice("activations", self.activations)
        if self.weights is None and self.activations is None:
            raise ConfigError(
                f"expected the rule {self} to set weights or activations; received neither; "
                "do: a TensorSpec or 'float' for one of them"
            )
        if self.weight is not None and self.activations is not None:
            raise ConfigError(
                f"expected the rule {self}, which speaks of weights, to leave activations alone; received "
                f"activations={self.activations!r}; do: a second rule without weight="
            )

    def covers(self, path: str, layer_type: str) -> bool:
        """Say whether the rule's patterns fit a layer, whatever the weight."""
        return (self.match is None or fnmatchcase(path, self.match)) and (
            self.layer_type is None or fnmatchcase(layer_type, self.layer_type)
        )

    def matches(self, path: str, layer_type: str, attribute: str | None = None) -> bool:
        """Say whether the rule speaks of a weight of a layer, or (`attribute` None) of its outputs."""
        if not self.covers(path, layer_type):
            return False
        return self.weight is None or (attribute is not None and fnmatchcase(attribute, self.weight))

    def to_config(self) -> dict[str, Any]:
        """Return what the rule sets as a dict that JSON can hold."""
        values = {name: getattr(self, name) for name in _RULE_KEYS}
        return {
            name: value.to_config() if isinstance(value, TensorSpec) else value
            for name, value in values.items()
            if value is not None
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rule:
        """Build the rule that `to_config` described.

        Raises:
            ConfigError: If a key is unknown or a value illegal.
        """
        values = check_keys("Rule", config, allowed=_RULE_KEYS)
        for slot in ("weights", "activations"):
            if isinstance(values.get(slot), Mapping):
                values[slot] = TensorSpec.from_config(values[slot])
        return cls(**values)

    def __str__(self) -> str:
        patterns = {"match": self.match, "layer_type": self.layer_type, "weight": self.weight}
        return ", ".join(f"{name}={value!r}" for name, value in patterns.items() if value is not None)


_RULE_KEYS = ("match", "layer_type", "weight", "weights", "activations")


def check_choice(slot: str, choice: object) -> None:
    """Refuse what a slot ("weights" or "activations") of a rule or recipe can't hold.

    Raises:
        ConfigError: If `choice` is no `TensorSpec`, "float" or None, or a spec that makes no sense in this
            slot.
    """
    if choice is None or choice == FLOAT:
        return
    if not isinstance(choice, TensorSpec):
        raise ConfigError(f"expected {slot} to be a TensorSpec, 'float' or None; received {slot}={choice!r}")
    if slot == "activations" and choice.granularity != "per_tensor":
        raise ConfigError(
            "expected one scale per tensor for activations, as integer kernels need; received "
            f"granularity={choice.granularity!r}; do: granularity='per_tensor'"
        )
    if slot == "activations" and choice.algorithms:
        raise ConfigError(
            f"expected algorithms for weights alone; received algorithms={[step.name for step in choice.algorithms]} for "
            "activations; do move them to the weights"
        )
    if slot == "weights" and choice.range not in WEIGHT_SELECTIONS:
        raise ConfigError(
            f"expected a range for weights among {', '.join(WEIGHT_SELECTIONS)}; received range={choice.range!r}, which "
            "needs a stream of data; do: range='minmax'"
        )
    if slot == "weights" and choice.bits == 1 and choice.method != "uniform":
        raise ConfigError(
            "expected at least 2 bits for weights symmetric about 0 (1 bit would leave only 0); received "
            f"bits=1, method={choice.method!r}; do: method='uniform' or bits=2"
        )
