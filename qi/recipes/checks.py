"""Checks on configuration mappings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qi.errors import ConfigError
from qi.registry import suggest

__all__ = ["FrozenOptions", "check_keys"]


def check_keys(kind: str, config: object, *, allowed: Iterable[str], required: Iterable[str] = ()) -> dict[str, Any]:
    """Return a mapping as a dict after a look at its keys.

    Args:
        kind: What the mapping describes, as errors should call it.
        config: The mapping to check.
        allowed: Every key that may be there.
        required: Those that must.

    Raises:
        ConfigError: If `config` is no mapping, or a key is unknown or missing.

    Example:
        >>> check_keys("Rule", {"match": "head"}, allowed=("match", "weights"))
        {'match': 'head'}
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"expected a mapping for a {kind}; received {config!r}")
    names = tuple(allowed)
    for key in config:
        if key not in names:
            raise ConfigError(
                f"expected the keys of a {kind} to be among {', '.join(names)}; received {key!r}."
                f"{suggest(str(key), names)}"
            )
    missing = [key for key in required if key not in config]
    if missing:
        raise ConfigError(f"expected a {kind} with {', '.join(missing)}; received {dict(config)!r}")
    return dict(config)


class FrozenOptions(Mapping[str, Any]):
    """An immutable, hashable mapping of option names to numbers, booleans and texts.

    Example:
        >>> FrozenOptions({"b": 1, "a": "x"})
        {'a': 'x', 'b': 1}
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = {name: values[name] for name in sorted(values)} if values else {}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)
