"""What a wrapper takes: the arguments of its layer, told apart."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["signature_around"]

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def signature_around(layer: Any) -> inspect.Signature:
    """The signature by which Keras sorts the arguments of a wrapper's call.

    Keras takes what is left to ``*args`` and ``**kwargs`` for one argument each, in which tensors and other values may not
    mix. So every argument of the layer has a name here, too. Only masks go by other names: they belong to the layer, which
    finds those that its inputs carry by itself.

    Args:
        layer: to be wrapped.
    """
    given = list(inspect.signature(layer.call).parameters.values())
    names = {parameter.name for parameter in given}
    masks = {"mask"} | {f"{name}_mask" for name in names}
    found = []
    for parameter in given:
        name = f"{parameter.name}_" if parameter.name in masks else parameter.name
        default = parameter.empty if parameter.kind in _VARIADIC else None
        found.append(parameter.replace(name=name, default=default, annotation=parameter.empty))
    rest = found.pop() if found and found[-1].kind is inspect.Parameter.VAR_KEYWORD else None
    if "training" not in names:
        found.append(inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=None))
    return inspect.Signature([*found, rest or inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])
