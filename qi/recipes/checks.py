"""Checks on configuration mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qi.errors import ConfigError
from qi.registry import suggest

__all__ = ["check_keys"]


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
