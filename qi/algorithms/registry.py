"""The algorithms by name, as recipes know them: when they run, what they need, which options they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

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
        summary: the first line of its documentation.
    """

    name: str
    stage: str
    needs: str
    function: Callable[..., Any]
    options: Mapping[str, Any]
    summary: str


ALGORITHMS: Registry[Algorithm] = Registry("algorithm")


def algorithm(name: str, *, stage: str, needs: str) -> Callable[[F], F]:
    """Decorator that makes a function's keyword-only parameters the options of an algorithm of that name.

    Raises:
        ConfigError: an unknown stage or need, or a name that is taken.
    """
    for what, given, known in (("stage", stage, STAGES), ("needs", needs, NEEDS)):
        if given not in known:
            raise ConfigError(f"expected {what} among {known}; received {what}={given!r}")

    def register(function: F) -> F:
        parameters = inspect.signature(function).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        if name in ALGORITHMS and _is_again(ALGORITHMS.get(name).function, function):
            return function  # its module was run under another name, as test collectors do
        ALGORITHMS.register(name)(Algorithm(name, stage, needs, function, options, summary))
        return function

    return register


def _is_again(known: Callable[..., Any], function: Callable[..., Any]) -> bool:
    return known.__qualname__ == function.__qualname__ and known.__code__.co_filename == function.__code__.co_filename


def check_algorithm(name: str, options: Mapping[str, Any]) -> Algorithm:
    """The algorithm of a name, whose options these may be.

    Raises:
        ConfigError: an unknown name or option, or an option of another type than its default.

    Example:
        >>> check_algorithm("gptq", {"damping": 0.1}).stage
        'rounding'
    """
    found = ALGORITHMS.get(name)
    for option, value in options.items():
        if option not in found.options:
            known = ", ".join(found.options) or "none"
            raise ConfigError(
                f"expected options of {name!r} among {known}; received {option}={value!r}."
                f"{suggest(str(option), found.options)}"
            )
        default = found.options[option]
        number = isinstance(default, float) and isinstance(value, int | float) and not isinstance(value, bool)
        if not number and type(value) is not type(default):
            raise ConfigError(
                f"expected {option} of {name!r} to be of type {type(default).__name__}; received {option}={value!r}"
            )
    return found
