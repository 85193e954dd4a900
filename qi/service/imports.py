"""Parameters that clients send, looked at before and after the engine takes them over."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from qi.errors import InputError
from qi.service.formats import Limits
from qi.service.models import MAX_LAYER_NAME, is_layer_name

__all__ = ["check_kinds", "check_parameters"]


def check_parameters(parameters: Mapping[str, Any], limits: Limits) -> None:
    """Looks at what the engine takes as it is: names of layers, and how many channels there are.

    Args:
        parameters: What a client sent.
        limits: What they may have.

    Raises:
        InputError: Names of layers are none that requests can have, or there are too many channels, or none.
    """
    layers = parameters.get("layers")
    layers = layers if isinstance(layers, Mapping) else {}
    for name in layers:
        if not is_layer_name(name):
            raise InputError(
                f"expected names of layers of at most {MAX_LAYER_NAME} characters, without NUL; received another"
            )
    for own in (parameters, parameters.get("calibration"), *layers.values()):
        lists: list[Any] = []
        if isinstance(own, Mapping):
            lists = [value for value in own.values() if isinstance(value, list)]
        if own is parameters:
            lists += [value for name, value in own.items() if name.startswith("per_") and isinstance(value, Mapping)]
        elif not all(lists):
            raise InputError("expected at least one channel; received an empty list")
        if any(len(values) > limits.max_channels for values in lists):
            raise InputError(f"expected at most {limits.max_channels} channels; received more")


_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("global_scale", "global_zero_point"), lambda value: _is_number(value)),
    **dict.fromkeys(
        ("channel_dim", "num_bits", "qmin", "qmax"),
        lambda value: value is None or (_is_number(value) and value % 1 == 0),
    ),
    **dict.fromkeys(("per_channel_scales", "per_channel_zero_points"), lambda value: _is_numbers(value)),
    **dict.fromkeys(("has_parameters", "is_calibrated"), lambda value: isinstance(value, bool)),
    "symmetric": lambda value: isinstance(value, bool | None),
    "layers": lambda value: all(isinstance(own, Mapping) for own in value.values()),
}


def check_kinds(parameters: Mapping[str, Any]) -> None:
    """Looks at what the engine has no use for where the type has no codes.

    Args:
        parameters: What it took.

    Raises:
        InputError: Something is of another kind than documented.
    """
    for name, value in parameters.items():
        if not _KINDS.get(name, lambda value: True)(value):
            raise InputError(f"expected {name} as it is exported; received {reprlib.repr(value)}")
    if parameters["global_scale"] <= 0:
        raise InputError(f"expected global_scale to be positive; received {parameters['global_scale']}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_numbers(value: Any) -> bool:
    values = value.values() if isinstance(value, Mapping) else value
    return value is None or (isinstance(value, Mapping | list) and all(map(_is_number, values)))
