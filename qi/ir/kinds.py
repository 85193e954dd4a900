"""The kinds of operations a graph may hold, and the kernels that compute them.

A kind is registered with what it takes, the attributes it has and its meaning in real numbers; a kernel computes it on codes as
one runtime does. Adding a kind is one decorated function, adding a runtime one module of kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from qi.errors import ConfigError, UnsupportedError
from qi.ir.graph import Op
from qi.registry import Registry

__all__ = ["KINDS", "TARGETS", "Kernel", "Kind", "kernel", "kernel_of", "real_kind"]

Kernel: TypeAlias = Callable[..., Any]
"""Takes the operation and its inputs' arrays (codes as int32); gives the output's array, or a list where there are several."""

TARGETS = {
    "litert": "LiteRT with its XNNPACK delegate, as the interpreter runs by default",
    "onnxruntime": "ONNX Runtime on a CPU",
    "reference": "LiteRT's reference kernels, as on microcontrollers",
}


@dataclass(frozen=True)
class Kind:
    """What a kind of operation is.

    Attributes:
        name: how graphs and files call it.
        arity: the least and the most inputs.
        attrs: the attributes it must have.
        real: computes it on real numbers.
        moves: whether it only moves values around, so the same function serves codes; `real` then takes what to fill gaps with as
            ``fill``, where it makes any.
        kernels: integer ones by target.
    """

    name: str
    arity: tuple[int, int]
    attrs: frozenset[str]
    real: Kernel
    moves: bool = False
    kernels: dict[str, Kernel] = field(default_factory=dict)


KINDS: Registry[Kind] = Registry("kind of operation")


def real_kind(
    name: str, inputs: int | tuple[int, int] = 1, attrs: str = "", *, moves: bool = False
) -> Callable[[Kernel], Kernel]:
    """Registers a kind by its function on real numbers.

    Args:
        name: of the kind.
        inputs: how many it takes, or the least and the most.
        attrs: its attributes' names, separated by spaces.
        moves: whether it only moves values around.
    """
    arity = (inputs, inputs) if isinstance(inputs, int) else inputs

    def add(function: Kernel) -> Kernel:
        KINDS.register(name)(Kind(name, arity, frozenset(attrs.split()), function, moves))
        return function

    return add


def kernel(name: str, *targets: str) -> Callable[[Kernel], Kernel]:
    """Registers how some targets compute a kind on codes.

    Raises:
        ConfigError: an unknown target, or one that has a kernel for the kind already.
    """

    def add(function: Kernel) -> Kernel:
        kernels = KINDS.get(name).kernels
        for target in targets:
            if target not in TARGETS or target in kernels:
                raise ConfigError(
                    f"expected a target of {sorted(TARGETS)} without a kernel for {name!r}; received {target!r}"
                )
            kernels[target] = function
        return function

    return add


def kernel_of(op: Op, target: str) -> Kernel:
    """The integer kernel of an operation.

    Raises:
        UnsupportedError: the target has none for its kind.
    """
    kind = KINDS.get(op.kind)
    if kind.moves:
        return _moved(kind)
    if target not in kind.kernels:
        raise UnsupportedError(
            f"expected an operation that {target!r} does in integers; received {op.kind!r} of layer {op.source!r}; "
            "do leave its activations in float by a rule of the recipe"
        )
    return kind.kernels[target]


def _moved(kind: Kind) -> Kernel:
    def run(op: Op, *arrays: np.ndarray) -> Any:
        return kind.real(op, *arrays, fill=op.y.zero_point)

    return run
