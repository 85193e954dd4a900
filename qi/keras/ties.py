"""Weights that several layers hold: they stay one variable in copies, and are quantized once.

A table that a layer of scores reads too, one cell in two recurrent layers, a layer held by two others: Keras trains one
variable for all of them. A layer's copy has variables of its own, so ties are made anew between copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from qi.keras.variables import sub_layers, weights_of
from qi.ledger import Row
from qi.quantizers import BaseInferableQuantizer

__all__ = ["Once", "holders", "tie_again", "tied_paths"]


def holders(ops: Sequence[Any]) -> dict[int, list[tuple[int, str]]]:
    """Who holds each float variable that several operations hold, by its ``id``: (place in `ops`, path) each."""
    found: dict[int, list[tuple[int, str]]] = {}
    for place, op in enumerate(ops):
        if isinstance(op, keras.layers.Layer):
            for path, variable in weights_of(op).items():
                if "float" in variable.dtype:
                    found.setdefault(id(variable), []).append((place, path))
    return {key: held for key, held in found.items() if len({place for place, _ in held}) > 1}


def tie_again(given: Sequence[Any], copies: Sequence[Any]) -> list[set[int]]:
    """Makes variables and layers that several of the given operations share shared by their copies.

    Args:
        given: operations, each once.
        copies: of the same structure, changed in place.

    Returns:
        groups of places, each of operations that share with each other and of which a copy couldn't be tied.
    """
    ties = holders(given)
    if not ties:
        return []
    shared: dict[int, Any] = {}  # what stands for a shared object of the given operations, by its id
    groups = _groups(ties)
    for group in groups:
        if any(_is_no_copy(given[place], copies[place]) for place in group):
            continue
        for place in sorted(group):
            shared.setdefault(id(given[place]), copies[place])
            _tie_layers(given[place], copies[place], shared)
            _tie_variables(given[place], copies[place], ties, shared)
    made = {frozenset(held) for held in holders(copies).values()}
    lost = {place for held in ties.values() if frozenset(held) not in made for place, _ in held}
    return [group for group in groups if group & lost]


def tied_paths(ops: Mapping[str, Any]) -> dict[str, str]:
    """Which other operations hold a weight of one, in words, by the path of that; of those that share none, nothing."""
    names = list(ops)
    found: dict[str, dict[str, None]] = {}
    for held in holders(list(ops.values())).values():
        places = {place for place, _ in held}
        for place in places:
            found.setdefault(names[place], {}).update(dict.fromkeys(names[other] for other in sorted(places - {place})))
    return {name: ", ".join(map(repr, others)) for name, others in found.items()}


class Once:
    """Has weights that several layers hold quantized once: the first layer decides, and tells of the others.

    Args:
        ops: the layers of a model in the order in which they are wrapped, by path.
        trains: whether quantizers train: then shared weights stay in float, for those of two layers would soon disagree.
    """

    def __init__(self, ops: Mapping[str, Any], *, trains: bool) -> None:
        self._names = list(ops)
        found = {key: self._apart(held) for key, held in holders(list(ops.values())).items()}
        self._ties = {key: held for key, held in found.items() if len({place for place, _ in held}) > 1}
        self._trains = trains
        self._done: dict[int, BaseInferableQuantizer | None] = {}

    def _apart(self, held: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """The holders without those that hold a weight only because another one is within them."""
        names = [self._names[place] for place, _ in held]
        return [
            item for item, name in zip(held, names, strict=True) if not any(n.startswith(f"{name}/") for n in names)
        ]

    def settle(
        self, layer: Any, path: str, quantizers: dict[str, BaseInferableQuantizer], reasons: dict[str, str]
    ) -> set[str]:
        """Changes in place what is found for a layer's weights; gives the paths of those that have a row already."""
        known = set()
        for name, variable in weights_of(layer).items():
            if id(variable) not in self._ties or not (name in quantizers or name in reasons):
                continue
            if id(variable) in self._done:
                known.add(name)
                quantizers.pop(name, None)
                first = self._done[id(variable)]
                if first is not None:
                    quantizers[name] = first
                continue
            if self._trains and quantizers.pop(name, None) is not None:
                reasons[name] = f"one variable with {self._others(variable, path)}: their quantizers would train apart"
            self._done[id(variable)] = quantizers.get(name)
        return known

    def noted(self, layer: Any, path: str, rows: list[Row]) -> list[Row]:
        """The rows of a layer's weights, with the other layers that hold them beside its class."""
        variables = weights_of(layer)
        others = {row.name: self._others(variables[row.name], path) for row in rows}
        return [
            replace(r, layer_type=f"{r.layer_type}, shared with {others[r.name]}") if others[r.name] else r
            for r in rows
        ]

    def _others(self, variable: Any, path: str) -> str:
        held = dict.fromkeys(self._names[place] for place, _ in self._ties.get(id(variable), ()))
        return ", ".join(repr(name) for name in held if name != path)


def _is_no_copy(given: Any, copy: Any) -> bool:
    return not {id(variable) for variable in given.variables}.isdisjoint(id(variable) for variable in copy.variables)


def _groups(ties: Mapping[int, list[tuple[int, str]]]) -> list[set[int]]:
    groups: list[set[int]] = []
    for held in ties.values():
        joined = {place for place, _ in held}
        for group in [group for group in groups if group & joined]:
            groups.remove(group)
            joined |= group
        groups.append(joined)
    return groups


def _tie_layers(given: Any, copy: Any, shared: dict[int, Any]) -> None:
    """Puts layers that stand for shared ones into a copy; those that it holds first stand for theirs from now on."""
    for (_, layer), (_, own) in zip(sub_layers(given), sub_layers(copy), strict=False):
        if shared.setdefault(id(layer), own) is own:
            _tie_layers(layer, own, shared)
        else:
            _replace(copy, own, shared[id(layer)])


def _tie_variables(given: Any, copy: Any, ties: Mapping[int, Any], shared: dict[int, Any]) -> None:
    theirs = weights_of(copy)
    for path, variable in weights_of(given).items():
        if id(variable) not in ties or path not in theirs:
            continue
        own, stands = theirs[path], shared.setdefault(id(variable), theirs[path])
        if stands is not own:
            for layer in copy._flatten_layers():
                _replace(layer, own, stands)


def _replace(owner: Any, old: Any, new: Any) -> None:
    """Puts one object in the place of another wherever a layer holds it itself."""
    state = vars(owner)
    for name, value in list(state.items()):
        if value is old:
            state[name] = new
        elif isinstance(value, dict):
            for key in [key for key, item in value.items() if item is old]:
                dict.__setitem__(value, key, new)
        elif isinstance(value, list):
            for index in [index for index, item in enumerate(value) if item is old]:
                list.__setitem__(value, index, new)
