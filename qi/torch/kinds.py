"""What nodes of a traced module are called: one name for all that do the same."""

from __future__ import annotations

import builtins
import operator
from typing import Any

import torch
from torch import fx

__all__ = ["CONTAINERS", "from_torch", "kind_of", "torch_class"]

_SYNONYMS = {
    "concat": "cat", "concatenate": "cat", "subtract": "sub", "multiply": "mul", "divide": "div", "truediv": "div",
    "true_divide": "div", "swapaxes": "transpose", "swapdims": "transpose", "absolute": "abs", "negative": "neg", "mm": "matmul",
    "bmm": "matmul", "clip": "clamp", "special_softmax": "softmax", "special_expit": "sigmoid", "data": "detach",
    "ger": "outer",
    "moveaxis": "movedim",
    "and_": "logical_and", "or_": "logical_or", "float_power": "pow",
}  # fmt: skip
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.imatmul)
_CLASSES = {"Module": "", "NonDynamicallyQuantizableLinear": "Linear"}
_OF_TORCH = ("torch", "operator", "builtins", "math")
CONTAINERS = frozenset("Module Sequential ModuleList ModuleDict ParameterList ParameterDict".split())
"""Classes of `torch.nn` that compute nothing themselves."""

_HARMLESS = frozenset(
    "__init__ extra_repr __repr__ reset_parameters _reset_parameters _get_name __getstate__ __deepcopy__".split()
)


def torch_class(module: torch.nn.Module) -> str:
    """The name of the class of `torch.nn` that decides what a module computes; "" for a class of the user's own.

    A subclass that changes nothing but how it is made is what it comes from.
    """
    for cls in type(module).__mro__:
        if cls.__module__.startswith("torch.nn.") and not cls.__module__.startswith("torch.nn.utils"):
            return _CLASSES.get(cls.__name__, cls.__name__)
        if any(callable(found) for name, found in vars(cls).items() if name not in _HARMLESS):
            return ""
    return ""


def kind_of(node: fx.Node) -> str:
    """The plain name of a function or method: that without in-place marks, one for all that do the same.

    What reads an attribute is called by it ("shape", "T"); ``x.T`` and ``x.mT`` are transpositions.
    """
    target = node.target
    if target is builtins.getattr:
        name = str(node.args[1])
        return "transpose" if name in ("T", "mT", "H", "mH") else name
    name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    if target in _IN_PLACE:
        name = name[1:]
    name = name if name in _SYNONYMS else name.strip("_")
    return _SYNONYMS.get(name, name) or "function"


def from_torch(function: Any) -> bool:
    """Whether a function comes from PyTorch or from Python itself."""
    module = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
    return str(module).lstrip("_").partition(".")[0] in _OF_TORCH or function is builtins.getattr
