"""What values the options of algorithms may have: said once, checked in recipes and in direct calls alike."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qi.errors import ConfigError
from qi.registry import suggest

__all__ = ["Choice", "Count", "Flag", "Number", "Option", "Options"]


class Option(ABC):
    """What one option may be; called with a name and a value, it gives the value as a plain Python object."""

    @property
    @abstractmethod
    def expected(self) -> str:
        """In words, as "an integer from 1 on"."""

    @abstractmethod
    def _plain(self, value: Any) -> Any:
        """The value as Python's own type; None where it isn't legal."""

    def __call__(self, name: str, value: Any, of: str = "") -> Any:
        """The value, as bool, int, float or str; `of` ends the name in errors, as " of 'gptq'".

        Raises:
            ConfigError: it is none of those that the option may have.
        """
        plain = self._plain(value)
        if plain is None:
            raise ConfigError(
                f"expected {name}{of} to be {self.expected}; received {name}={value!r}; do give such a value, or leave it out"
                f"{self._hint(value)}"
            )
        return plain

    def _hint(self, value: Any) -> str:
        return ""


@dataclass(frozen=True)
class Count(Option):
    """An integer from `least` to `most`, or 0 where that has a meaning of its own.

    Example:
        >>> Count(1)("block", 128)
        128
    """

    least: int
    most: int | None = None
    or_zero: bool = False

    @property
    def expected(self) -> str:
        """In words."""
        bounds = f"from {self.least} on" if self.most is None else f"from {self.least} to {self.most}"
        return f"an integer {bounds}" + (", or 0" if self.or_zero else "")

    def _plain(self, value: Any) -> int | None:
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            return None
        legal = value >= self.least and (self.most is None or value <= self.most)
        return int(value) if legal or (self.or_zero and value == 0) else None


@dataclass(frozen=True)
class Number(Option):
    """A finite number; ends of the range belong to it but for `above` and `below`.

    Example:
        >>> Number(above=0)("damping", 1)
        1.0
    """

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None

    @property
    def expected(self) -> str:
        """In words."""
        ends = (("above", self.above), ("of at least", self.least), ("below", self.below), ("of at most", self.most))
        return "a finite number " + " and ".join(f"{word} {end:g}" for word, end in ends if end is not None)

    def _plain(self, value: Any) -> float | None:
        if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
            return None
        try:
            number = float(value)
        except OverflowError:  # an integer beyond floats
            return None
        legal = (
            math.isfinite(number)
            and (self.above is None or number > self.above)
            and (self.least is None or number >= self.least)
            and (self.below is None or number < self.below)
            and (self.most is None or number <= self.most)
        )
        return number if legal else None


@dataclass(frozen=True)
class Flag(Option):
    """True or False."""

    @property
    def expected(self) -> str:
        """In words."""
        return "True or False"

    def _plain(self, value: Any) -> bool | None:
        return bool(value) if isinstance(value, bool | np.bool_) else None


@dataclass(frozen=True)
class Choice(Option):
    """One of several names."""

    names: tuple[str, ...]

    @property
    def expected(self) -> str:
        """In words."""
        return f"one of {', '.join(map(repr, self.names))}"

    def _plain(self, value: Any) -> str | None:
        return str(value) if isinstance(value, str) and value in self.names else None

    def _hint(self, value: Any) -> str:
        near = suggest(value, self.names) if isinstance(value, str) else ""
        return near and f".{near}"


class Options(Mapping[str, Option]):
    """The options of an algorithm by name.

    Example:
        >>> Options(damping=Number(above=0), block=Count(1)).check(damping=1)
        {'damping': 1.0}
    """

    def __init__(self, **options: Option) -> None:
        self._options = options

    def __getitem__(self, name: str) -> Option:
        return self._options[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def check(self, **values: Any) -> dict[str, Any]:
        """The values as plain Python objects.

        Raises:
            ConfigError: an unknown option, or a value that one may not have.
        """
        for name in values:
            if name not in self._options:
                known = ", ".join(self._options) or "none"
                raise ConfigError(
                    f"expected options among {known}; received {name}={values[name]!r}.{suggest(name, self._options)}"
                )
        return {name: self._options[name](name, value) for name, value in values.items()}
