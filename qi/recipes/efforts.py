"""The algorithms of a recipe as a whole: chosen by one word, and refused where they can't run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from qi.errors import ConfigError, InputError, UnsupportedError
from qi.recipes.lookup import RecipeLike, get_recipe
from qi.recipes.recipe import Recipe
from qi.recipes.rules import Rule
from qi.recipes.spec import TensorSpec
from qi.recipes.steps import as_steps
from qi.registry import suggest

__all__ = ["EFFORTS", "check_many_times", "check_no_algorithms", "check_repeatable", "with_effort"]

EFFORTS = {
    "fast": "to nearest, in seconds",
    "balanced": "ranges for GPTQ, GPTQ, and bias correction, from moments of the layers' inputs, in tens of seconds",
    "best": "what balanced does, and from there reconstruction by gradients, in minutes; reads the data many times",
}
"""The efforts, with what they do and take, for networks of some hundred thousand weights."""

_FULL_BITS = 8
# Measured best on the whole: `python -m tests.benchmarks.low_bits`.
_RANGE = {"name": "output_range", "rounding": "gptq"}
_ALGORITHMS = {
    "balanced": (_RANGE, "gptq", "bias_correction"),
    "best": (_RANGE, "gptq", "bias_correction", "reconstruct"),
}
_POWERS = {
    "balanced": ("gptq", "bias_correction"),
    "best": ("gptq", "bias_correction", "reconstruct"),
}  # scales stay powers of two


def with_effort(recipe: RecipeLike, effort: str) -> Recipe:
    """The recipe with the algorithms of an effort for all weights that it names none for.

    "balanced" leaves weights of 8 bits and more as they are: rounding to nearest loses nothing there.

    Args:
        recipe: as of `get_recipe`.
        effort: "fast", "balanced" or "best" (`EFFORTS`).

    Raises:
        ConfigError: an unknown effort, besides what `get_recipe` raises.

    Example:
        >>> print(with_effort("w4a8", "balanced").weights)
        4 bits, symmetric, per channel, range mse norm=3, output_range rounding=gptq, gptq, bias_correction
        >>> with_effort("w8a8", "balanced").weights.algorithms
        ()
    """
    if not isinstance(effort, str) or effort not in EFFORTS:
        raise ConfigError(
            f"expected effort to be one of {', '.join(EFFORTS)}; received effort={effort!r}.{suggest(str(effort), EFFORTS)}"
        )
    given = get_recipe(recipe)

    def worked(spec: TensorSpec) -> TensorSpec:
        if spec.algorithms or effort == "fast" or (effort == "balanced" and spec.bits >= _FULL_BITS):
            return spec
        chosen = _POWERS if spec.method == "power_of_two" else _ALGORITHMS
        return replace(spec, algorithms=as_steps(chosen[effort]))

    def ruled(rule: Rule) -> Rule:
        return replace(rule, weights=worked(rule.weights)) if isinstance(rule.weights, TensorSpec) else rule

    weights = None if given.weights is None else worked(given.weights)
    return replace(given, weights=weights, rules=tuple(ruled(rule) for rule in given.rules))


def check_no_algorithms(recipe: RecipeLike, what: str) -> None:
    """Refuses a recipe that names algorithms where none can run.

    Raises:
        UnsupportedError: it does.
    """
    names = sorted({step.name for spec in get_recipe(recipe).all_weights() for step in spec.algorithms})
    if names:
        raise UnsupportedError(
            f"expected a recipe without algorithms for {what}; received one with {', '.join(names)}; do leave them out"
        )


def check_many_times(data: Any) -> None:
    """Refuses data that can be read once where they are read several times.

    Raises:
        InputError: an iterator.
    """
    if isinstance(data, Iterator):
        raise InputError(
            f"expected samples that can be read again; received a {type(data).__name__}, which can be read once; do pass arrays, "
            "a tf.data.Dataset or a PyDataset"
        )


def check_repeatable(recipe: RecipeLike, data: Any) -> None:
    """Refuses data that can be read once where an algorithm reads them again after calibration, or none where it needs some.

    Raises:
        InputError: they can't be read again, or there are none.
    """
    names = {step.name for spec in get_recipe(recipe).all_weights() for step in spec.algorithms if step.needs == "data"}
    if not names:
        return
    if data is None:
        raise InputError(f"expected samples for {', '.join(sorted(names))}; received none; do pass data")
    check_many_times(data)
