"""Recipes by name: ``w8a8``, ``w4_g32``, ``w4a8_pt_minmax``.

A name reads ``w<bits>[a<bits>][_pt|_pc|_g<size>][_<range>][_<algorithm>]...``:

* ``w<bits>``: weights of 2 to 16 bits, symmetric about 0;
* ``a<bits>``: activations of 1 to 16 bits, one scale per tensor, asymmetric up to 8 bits and symmetric above; left
  out, activations stay in float;
* ``_pc``: one scale per output channel of a weight (so it is when nothing is said); ``_pt``: one per tensor;
  ``_g<size>``: one per group of so many consecutive weights of a channel;
* ``_<range>``: how ranges are chosen. "minmax" and "mse" hold for weights and activations; "ema", "percentile",
  "entropy" and whatever else `qi.observers.SELECTIONS` knows describe a stream of data and hold for activations alone;
* ``_<algorithm>``: what is done with the weights beyond rounding to nearest (`qi.algorithms.ALGORITHMS`), as in
  ``w4a8_gptq`` or ``w4a8_equalize_gptq_bias_correction``.

When no range is named, weights take "minmax" from 8 bits on and "mse" with the third power of the error (``norm=3``)
below, activations take "mse".
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

from qi.algorithms import ALGORITHMS
from qi.errors import ConfigError
from qi.observers import SELECTIONS
from qi.recipes.recipe import Recipe
from qi.recipes.spec import TensorSpec
from qi.recipes.steps import as_steps
from qi.registry import suggest

__all__ = ["RECIPE_NAMES", "decode_name"]

RECIPE_NAMES = {
    "w8a8": "weights and activations of 8 bits: integer arithmetic on every common processor",
    "w8": "weights of 8 bits, activations in float: a quarter of the size, hardly any error",
    "w4a8": "weights of 4 bits, activations of 8: an eighth of the size",
    "w4_g32": "weights of 4 bits, one scale per 32 of them, activations in float",
    "w8a16": "weights of 8 bits, activations of 16: for what 8 bits lose too much of",
}
"""The names that help texts show; `decode_name` knows many more."""

_HOW = (
    "Names are built as w<bits>[a<bits>][_pt|_pc|_g<size>][_<range>], such as w8a8, w4_g32 or w4a8_mse, "
    f"with a range among {', '.join(SELECTIONS)}, and algorithms after it"
)
_NAME = re.compile(
    r"w(?P<weights>[1-9][0-9]?)(?:a(?P<activations>[1-9][0-9]?))?"
    r"(?:_(?P<granularity>pt|pc|g[1-9][0-9]{0,8}))?"
    r"(?P<words>(?:_[a-z]{3,})*)"
)
_GRANULARITY = {None: "per_channel", "pc": "per_channel", "pt": "per_tensor"}
_RANGES_FOR_WEIGHTS = ("minmax", "mse")
_FULL_BITS = 8
# Between squared error (2), which clips a lot, and the extremes (infinity), which waste levels: measured best on average.
_LOW_BITS_NORM = 3.0


def decode_name(name: str) -> Recipe:
    """Build the recipe that a name stands for (this module's text says how names are built).

    Args:
        name: The name; capital and small letters are the same.

    Raises:
        ConfigError: If the name can't be read; the message suggests near names and says how they are built.

    Example:
        >>> recipe = decode_name("w4a8")
        >>> print(recipe.weights)
        4 bits, symmetric, per channel, range mse norm=3
        >>> print(recipe.activations)
        8 bits, uniform, per tensor, range mse
        >>> print(decode_name("w8_g64"))
        w8_g64: weights 8 bits, symmetric, per group of 64, range minmax; activations float
    """
    parts = _NAME.fullmatch(name.lower())
    if parts is None:
        near = suggest(name, _nearby_names())
        raise ConfigError(f"expected the name of a recipe; received {name!r}.{near} {_HOW}")
    try:
        range_, algorithms = _words(parts["words"])
        activations = _activations(parts["activations"], range_)
        weights = _weights(parts["weights"], parts["granularity"], range_, alone=activations is None)
        weights = replace(weights, algorithms=as_steps(algorithms))
        return Recipe(name.lower(), weights=weights, activations=activations)
    except ConfigError as error:
        raise ConfigError(f"recipe {name!r}: {str(error).rstrip('.')}. {_HOW}".replace("?. ", "? ")) from error


def _words(text: str) -> tuple[str | None, tuple[str, ...]]:
    """The range, if one is named, and the algorithms: names of either may hold underscores."""
    words = text.strip("_").split("_") if text else []
    found: list[str] = []
    while words:
        known = [n for n in range(len(words), 0, -1) if "_".join(words[:n]) in (*SELECTIONS, *ALGORITHMS)]
        if not known:
            raise _unknown(words, first=not found)
        length = known[0]
        found.append("_".join(words[:length]))
        words = words[length:]
    if not found or found[0] in ALGORITHMS:
        return None, tuple(found)
    return found[0], tuple(found[1:])


def _unknown(words: list[str], *, first: bool) -> ConfigError:
    """The error for words that begin no name, with what they are near to, together or alone."""
    together = ["_".join(words[:n]) for n in range(len(words), 0, -1)]
    near = next((found for text in together if (found := suggest(text, [*SELECTIONS, *ALGORITHMS]))), "")
    ranges = f"range to be one of {', '.join(SELECTIONS)}, or " if first else ""
    return ConfigError(
        f"expected {ranges}algorithms among {', '.join(ALGORITHMS)}; received {'range=' if first else ''}{words[0]!r}."
        f"{near}"
    )


def _weights(bits: str, granularity: str | None, range_: str | None, *, alone: bool) -> TensorSpec:
    options: dict[str, float] = {}
    if range_ in _RANGES_FOR_WEIGHTS:
        chosen = str(range_)
    elif range_ is not None and alone:
        raise ConfigError(
            f"expected a range for weights (minmax, mse), for there are no activations; received {range_!r}"
        )
    else:
        chosen = "minmax" if int(bits) >= _FULL_BITS else "mse"
        options = {} if int(bits) >= _FULL_BITS else {"norm": _LOW_BITS_NORM}
    if granularity in _GRANULARITY:
        return TensorSpec(bits=int(bits), granularity=_GRANULARITY[granularity], range=chosen, range_options=options)
    group_size = int(str(granularity)[1:])
    return TensorSpec(
        bits=int(bits), granularity="per_group", group_size=group_size, range=chosen, range_options=options
    )


def _activations(bits: str | None, range_: str | None) -> TensorSpec | None:
    if bits is None:
        return None
    return TensorSpec(
        bits=int(bits), method="uniform" if int(bits) <= _FULL_BITS else "symmetric", range=range_ or "mse"
    )


def _nearby_names() -> list[str]:
    """Names to suggest from: the usual bits with every suffix."""
    bits = ["".join(pair) for pair in product(("w2", "w3", "w4", "w6", "w8", "w16"), ("", "a4", "a8", "a16"))]
    suffixes = ("pt", "pc", "g32", "g64", "g128", *SELECTIONS, *ALGORITHMS)
    return [*bits, *map("_".join, product(bits, suffixes))]
