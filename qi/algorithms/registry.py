"""The algorithms by name, as recipes know them: when they run, what they need, which options they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from qi.algorithms.options import Options
from qi.errors import ConfigError
from qi.registry import Registry, suggest

__all__ = ["ALGORITHMS", "NEEDS", "STAGES", "Algorithm", "algorithm", "check_algorithm"]

STAGES = ("scaling", "range", "rounding", "training", "correction")
"""In the order in which they run: the float graph is rewritten exactly, scales are chosen, weights put on the grid, all of
them trained together, what is left corrected."""

NEEDS = ("weights", "moments", "data")
"""Nothing but weights; moments of the layers' inputs as `qi.calibrate` keeps them; samples."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class Algorithm:
    """What a recipe may name.

    Attributes:
        name: in recipes.
        stage: one of `STAGES`.
        needs: one of `NEEDS`.
        function: of stages "range" and "rounding", ``function(problem, **options) -> Solution``.
        options: the defaults of its options by name.
        legal: what values they may have; the function checks its own by the same.
        summary: the first line of its documentation.
        fits_scales: whether the scales that it gives may be any numbers, whatever those given are; or the name of the option
            which has it keep to powers of two.
        index_bits: of the indices of a table that it makes, (least, most); None where it makes none.
    """

    name: str
    stage: str
    needs: str
    function: Callable[..., Any]
    options: Mapping[str, Any]
    legal: Options
    summary: str
    fits_scales: bool | str = False
    index_bits: tuple[int, int] | None = None

    def checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """These options as plain Python objects.

        Raises:
            ConfigError: an unknown option, or a value that one may not have.

        Example:
            >>> ALGORITHMS.get("gptq").checked({"damping": 1})
            {'damping': 1.0}
        """
        for option, value in options.items():
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise ConfigError(
                    f"expected options of {self.name!r} among {known}; received {option}={value!r}."
                    f"{suggest(str(option), self.options)}"
                )
        return {name: self.legal[name](name, value, f" of {self.name!r}") for name, value in options.items()}


ALGORITHMS: Registry[Algorithm] = Registry("algorithm")


def algorithm(
    name: str,
    *,
    stage: str,
    needs: str,
    options: Options | None = None,
    fits_scales: bool | str = False,
    index_bits: tuple[int, int] | None = None,
) -> Callable[[F], F]:
    """Decorator that makes a function's keyword-only parameters the options of an algorithm of that name.

    Args:
        name: in recipes.
        stage: one of `STAGES`.
        needs: one of `NEEDS`.
        options: what values they may have. The function has to call ``options.check`` before anything else, so that recipes
            and direct calls refuse the same.
        fits_scales: as of `Algorithm`.
        index_bits: likewise.

    Raises:
        ConfigError: an unknown stage or need, a name that is taken, other options than the function has, or a default that
            they don't allow.
    """
    for what, given, known in (("stage", stage, STAGES), ("needs", needs, NEEDS)):
        if given not in known:
            raise ConfigError(f"expected {what} among {known}; received {what}={given!r}")
    legal = options or Options()

    def register(function: F) -> F:
        if name in ALGORITHMS and _is_again(ALGORITHMS.get(name).function, function):
            return function  # its module was run under another name, as test collectors do
        parameters = inspect.signature(function).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        if set(defaults) != set(legal):
            raise ConfigError(f"expected options for {sorted(defaults)} of {name!r}; received {sorted(legal)}")
        legal.check(**defaults)
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        found = Algorithm(name, stage, needs, function, defaults, legal, summary, fits_scales, index_bits)
        ALGORITHMS.register(name)(found)
        return function

    return register


def _is_again(known: Callable[..., Any], function: Callable[..., Any]) -> bool:
    return known.__qualname__ == function.__qualname__ and known.__code__.co_filename == function.__code__.co_filename


def check_algorithm(name: str, options: Mapping[str, Any]) -> Algorithm:
    """The algorithm of a name, whose options these may be.

    Raises:
        ConfigError: an unknown name or option, or a value that an option may not have.

    Example:
        >>> check_algorithm("gptq", {"damping": 0.1}).stage
        'rounding'
    """
    found = ALGORITHMS.get(name)
    found.checked(options)
    return found
