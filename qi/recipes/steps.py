"""The algorithms that a recipe names for weights, with their options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qi.algorithms import ALGORITHMS, STAGES, check_algorithm
from qi.errors import ConfigError
from qi.recipes.checks import FrozenOptions

__all__ = ["Step", "as_steps", "check_scales"]


@dataclass(frozen=True)
class Step:
    """One algorithm by name, with options where they aren't its defaults.

    Args:
        name: a name from `qi.algorithms.ALGORITHMS`.
        options: by name.

    Raises:
        ConfigError: an unknown algorithm or option, or a value that an option may not have.

    Example:
        >>> print(Step("gptq", {"damping": 0.1}))
        gptq damping=0.1
        >>> Step("gptq").stage
        'rounding'
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=FrozenOptions)

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping):
            raise ConfigError(f"expected options of {self.name!r} by name; received options={self.options!r}")
        checked = check_algorithm(self.name, self.options).checked(self.options)
        object.__setattr__(self, "options", FrozenOptions(checked))

    @property
    def stage(self) -> str:
        """When it runs: one of `qi.algorithms.STAGES`."""
        return check_algorithm(self.name, {}).stage

    @property
    def needs(self) -> str:
        """What it needs: one of `qi.algorithms.NEEDS`."""
        return check_algorithm(self.name, {}).needs

    def to_config(self) -> str | dict[str, Any]:
        """The name, or a mapping of it and the options, as JSON holds it."""
        return {"name": self.name, **self.options} if self.options else self.name

    def __str__(self) -> str:
        return self.name + "".join(f" {name}={value}" for name, value in self.options.items())


def as_steps(given: object) -> tuple[Step, ...]:
    """Steps from names, mappings with a "name", or steps, in the order in which they run.

    Raises:
        ConfigError: something else, an algorithm named twice, two that round, or ranges for a table of values.

    Example:
        >>> [step.name for step in as_steps(["bias_correction", {"name": "gptq", "damping": 0.1}])]
        ['gptq', 'bias_correction']
    """
    items = (given,) if isinstance(given, str | Step | Mapping) else given
    if not isinstance(items, Iterable):
        raise ConfigError(f"expected names of algorithms; received algorithms={given!r}; do: algorithms=('gptq',)")
    steps = sorted((_as_step(item) for item in items), key=lambda step: STAGES.index(step.stage))
    names = [step.name for step in steps]
    twice = next((name for name in names if names.count(name) > 1), None)
    rounding = [step.name for step in steps if step.stage == "rounding"]
    if twice or len(rounding) > 1:
        raise ConfigError(
            f"expected each algorithm once, and one that rounds; received algorithms={names}; do leave out "
            f"{twice or rounding[-1]!r}"
        )
    tables = [step.name for step in steps if ALGORITHMS.get(step.name).index_bits is not None]
    ranges = [step.name for step in steps if step.stage == "range"]
    if tables and len(ranges) > 1:  # it makes its values anew
        raise ConfigError(
            f"expected no other algorithm for ranges beside {tables[-1]}, which makes a table of values; received "
            f"algorithms={names}; do leave out {next(name for name in ranges if name != tables[-1])!r}"
        )
    return tuple(steps)


def check_scales(steps: Iterable[Step], bits: int, method: str, granularity: str) -> None:
    """Refuses algorithms whose scales, or tables, a spec of those bits, method and granularity can't hold.

    Raises:
        ConfigError: scales are fitted where they have to be powers of two; a table of values is made for groups, or for more
            bits than it can have.

    Example:
        >>> check_scales(as_steps("gptq"), 4, "power_of_two", "per_channel")
    """
    for step in steps:
        found = ALGORITHMS.get(step.name)
        options = {**found.options, **step.options}
        keeps = options[found.fits_scales] if isinstance(found.fits_scales, str) else not found.fits_scales
        if method == "power_of_two" and not keeps:
            instead = f"{found.fits_scales}=True, or " if isinstance(found.fits_scales, str) else ""
            raise ConfigError(
                f"expected algorithms that keep scales powers of two with method='power_of_two'; received {step.name!r}, which "
                f"fits them; do use {instead}method='symmetric'"
            )
        if found.index_bits is not None:
            _check_table(step, options, found.index_bits, bits)
            if granularity == "per_group":
                raise ConfigError(
                    f"expected one scale a tensor or channel for a table of values; received granularity='per_group' with "
                    f"{step.name!r}; do use 'per_channel'"
                )


def _check_table(step: Step, options: Mapping[str, Any], index_bits: tuple[int, int], bits: int) -> None:
    """Refuses a table whose indices, or entries, the bits of a spec don't allow."""
    index, (least, most) = options.get("bits") or bits, index_bits
    if not least <= index <= min(most, bits):
        raise ConfigError(
            f"expected {least} to {min(most, bits)} bits for {step.name!r} with bits={bits} (an index has {least} to {most}); "
            f"received {str(step)!r}; do {'raise' if index < least else 'lower'} the bits"
        )
    if options.get("lut_bits", index) < index:
        raise ConfigError(
            f"expected lut_bits of {step.name!r} not below the bits of an index, {index}; received "
            f"lut_bits={options['lut_bits']}; do raise it"
        )


def _as_step(item: object) -> Step:
    if isinstance(item, Step):
        return item
    if isinstance(item, str):
        return Step(item)
    if isinstance(item, Mapping) and isinstance(item.get("name"), str):
        return Step(item["name"], {key: value for key, value in item.items() if key != "name"})
    raise ConfigError(f"expected the name of an algorithm, or a mapping with one; received {item!r}")
