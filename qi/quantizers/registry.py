"""The vocabulary of quantizers and their registry: by target, method and training method; by name in saved files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from qi.errors import ConfigError, FileFormatError
from qi.registry import suggest

if TYPE_CHECKING:
    from qi.quantizers.base import BaseQuantizer

__all__ = [
    "INFERABLE",
    "QuantizationMethod",
    "QuantizationTarget",
    "get_inferable_quantizer_class",
    "get_quantizer_class",
    "mark_quantizer",
    "quantizer_classes",
    "quantizer_from_dict",
    "training_methods",
]

INFERABLE = "inferable"


class QuantizationTarget(Enum):
    """What a quantizer is made for."""

    WEIGHTS = "weights"
    ACTIVATION = "activation"


class QuantizationMethod(Enum):
    """How a range becomes a grid."""

    SYMMETRIC = "symmetric"
    POWER_OF_TWO = "power_of_two"
    UNIFORM = "uniform"
    LUT_SYM = "lut_symmetric"
    LUT_SYM_QUANTIZER = "lut_symmetric"
    LUT_POT = "lut_power_of_two"
    LUT_POT_QUANTIZER = "lut_power_of_two"


_Key = tuple[str, QuantizationTarget, QuantizationMethod]
_BY_ROLE: dict[_Key, type[BaseQuantizer]] = {}
_BY_NAME: dict[str, type[BaseQuantizer]] = {}
_C = TypeVar("_C", bound="type[BaseQuantizer]")


def mark_quantizer(
    quantization_target: QuantizationTarget | Sequence[QuantizationTarget],
    quantization_method: Sequence[QuantizationMethod],
    identifier: str = INFERABLE,
    package: str | None = None,
) -> Callable[[_C], _C]:
    """Class decorator that registers a quantizer for look-up and for saved files.

    Args:
        quantization_target: weights, activations, or both in a list.
        quantization_method: the methods it implements.
        identifier: "inferable", or the name of a training method.
        package: prefix in saved files (``package>Name``); the class' top-level module by default.

    Raises:
        ConfigError: another class holds the same role or the same saved name.

    Example:
        >>> from qi.quantizers import WeightsSymmetricInferableQuantizer
        >>> WeightsSymmetricInferableQuantizer.registered_name
        'qi>WeightsSymmetricInferableQuantizer'
    """
    given: Any = quantization_target
    targets: tuple[QuantizationTarget, ...] = tuple(given) if isinstance(given, Sequence) else (given,)
    if not targets or not all(isinstance(target, QuantizationTarget) for target in targets):
        raise ConfigError(f"expected a QuantizationTarget; received quantization_target={quantization_target!r}")
    methods = tuple(quantization_method)
    roles = [(identifier, target, method) for target in targets for method in methods]
    if not methods or not all(isinstance(m, QuantizationMethod) for m in methods):
        raise ConfigError(
            f"expected a list of QuantizationMethod; received quantization_method={quantization_method!r}"
        )

    def mark(cls: _C) -> _C:
        name = f"{package or cls.__module__.partition('.')[0]}>{cls.__name__}"
        taken = {_BY_ROLE.get(role) for role in roles} | {_BY_NAME.get(name)}
        for other in taken - {None}:
            if other.__qualname__ != cls.__qualname__ or other.__module__ != cls.__module__:  # type: ignore[union-attr]
                raise ConfigError(
                    f"expected a free role; {other.__name__} already is the {identifier!r} quantizer "  # type: ignore[union-attr]
                    f"for {' and '.join(t.value for t in targets)} and {[m.value for m in methods]}; "
                    f"do give {cls.__name__} another identifier"
                )
        if len(targets) == 1:  # an object of a class for both targets learns its own from its configuration
            cls.quantization_target = targets[0]
        cls.quantization_targets, cls.quantization_method = targets, methods
        cls.identifier, cls.registered_name = identifier, name
        _BY_NAME[name] = cls
        _BY_ROLE.update(dict.fromkeys(roles, cls))
        return cls

    return mark


def get_quantizer_class(
    target: QuantizationTarget, method: QuantizationMethod, identifier: str = INFERABLE
) -> type[BaseQuantizer]:
    """The one class registered for a role.

    Raises:
        ConfigError: no class has that role; the message lists those that exist.
    """
    try:
        return _BY_ROLE[identifier, target, method]
    except (KeyError, TypeError):
        known = sorted(f"({i}, {t.value}, {m.value})" for i, t, m in _BY_ROLE)
        raise ConfigError(
            f"expected a registered quantizer; received target={target}, method={method}, identifier={identifier!r}; "
            f"do choose one of {', '.join(known)}"
        ) from None


def get_inferable_quantizer_class(
    quantization_target: QuantizationTarget, quantization_method: QuantizationMethod
) -> type[BaseQuantizer]:
    """The inferable quantizer class of a target and method.

    Example:
        >>> get_inferable_quantizer_class(QuantizationTarget.WEIGHTS, QuantizationMethod.UNIFORM).__name__
        'WeightsUniformInferableQuantizer'
    """
    return get_quantizer_class(quantization_target, quantization_method)


def quantizer_classes(identifier: str | None = None) -> dict[str, type[BaseQuantizer]]:
    """All registered classes by saved name, or those of one identifier ("inferable", or a training method)."""
    return {name: cls for name, cls in sorted(_BY_NAME.items()) if identifier in (None, cls.identifier)}


def training_methods() -> tuple[str, ...]:
    """The identifiers of all registered trainable quantizers.

    Example:
        >>> "lsq" in training_methods()
        True
    """
    return tuple(sorted({identifier for identifier, _, _ in _BY_ROLE} - {INFERABLE}))


def quantizer_from_dict(data: Mapping[str, Any]) -> BaseQuantizer:
    """A quantizer from what `to_dict` gave.

    Raises:
        FileFormatError: an unknown class, with the line that mends it, or a malformed record.
    """
    name = data.get("quantizer") if isinstance(data, Mapping) else None
    if not isinstance(name, str) or not isinstance(data.get("config"), Mapping):
        raise FileFormatError(f"expected a quantizer record with 'quantizer' and 'config'; received {data!r}")
    if name not in _BY_NAME:
        raise FileFormatError(
            f"expected a registered quantizer; received {name!r}; do import the module that defines it first."
            + suggest(name, _BY_NAME)
        )
    return _BY_NAME[name].from_config(dict(data["config"]))
