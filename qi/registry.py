"""A registry: names to objects, with errors that help.

Every place of QI that can be extended by adding one file (quantizers, range selections, layer policies, ...)
is a `Registry`; the contract tests iterate over them, so what is registered is tested on arrival.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from qi.errors import ConfigError

T = TypeVar("T")
Registered = TypeVar("Registered")

_MAX_SUGGESTIONS = 3
_MAX_NAME = 100  # a longer one is near to none, and comparing takes time and memory


def suggest(name: str, options: Iterable[str]) -> str:
    """Return a "did you mean" clause for an unknown name.

    Args:
        name: The name that was not found.
        options: The names that exist.

    Returns:
        A sentence with a leading space that names the nearest options, at most three; "" when none is near.

    Example:
        >>> suggest("w8a9", ["w8a8", "percentile"])
        " Did you mean 'w8a8'?"
        >>> suggest("zzz", ["w8a8", "percentile"])
        ''
    """
    by_folded = {option.lower(): option for option in sorted(options)}
    near = difflib.get_close_matches(name[:_MAX_NAME].lower(), list(by_folded), n=_MAX_SUGGESTIONS)
    if not near:
        return ""
    return f" Did you mean {' or '.join(repr(by_folded[folded]) for folded in near)}?"


class Registry(Generic[T]):
    """A mapping from names to objects that refuses duplicates and suggests names for unknown ones.

    Args:
        kind: What the registry holds, in the singular, as errors should call it ("range selection").

    Example:
        >>> roundings = Registry("rounding")
        >>> @roundings.register("floor")
        ... def round_down(x):
        ...     return x // 1
        >>> roundings.get("floor")(2.5)
        2.0
        >>> roundings.names()
        ('floor',)
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Return a decorator that files its argument under `name` and hands it back unchanged.

        Args:
            name: The name to register under; not empty.

        Raises:
            ConfigError: If the name is empty or already taken.
        """
        if not name:
            raise ConfigError(f"expected a name for a {self.kind}; received name={name!r}")
        self._refuse_taken(name)

        def add(entry: Registered) -> Registered:
            self._refuse_taken(name)  # the decorator may be kept and used twice
            self._entries[name] = entry  # type: ignore[assignment]  # a decorator must hand back the very type it got
            return entry

        return add

    def _refuse_taken(self, name: str) -> None:
        if name in self._entries:
            raise ConfigError(
                f"expected a new name for a {self.kind}; received name={name!r}, which is taken by "
                f"{self._entries[name]!r}; choose another name"
            )

    def get(self, name: str) -> T:
        """Return the object registered under `name`.

        Raises:
            ConfigError: If there is none; the message suggests the nearest names and lists all.
        """
        try:
            return self._entries[name]
        except (KeyError, TypeError):  # TypeError: an unhashable name
            raise ConfigError(
                f"expected the name of a {self.kind}; received {name!r}.{suggest(str(name), self._entries)} "
                f"Known: {', '.join(self.names()) or 'none'}"
            ) from None

    def names(self) -> tuple[str, ...]:
        """Return the registered names in alphabetical order."""
        return tuple(sorted(self._entries))

    def items(self) -> tuple[tuple[str, T], ...]:
        """Return the registered (name, object) pairs in the order of `names()`."""
        return tuple((name, self._entries[name]) for name in self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}, {len(self)} entries)"
