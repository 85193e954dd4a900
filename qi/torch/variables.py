"""Parameters of torch modules: finding them by path, reading them, and calling modules with other values for some."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qi.errors import InputError, UnsupportedError

__all__ = [
    "Place",
    "aliases_of",
    "call_with",
    "class_names",
    "duplicate",
    "exchanged",
    "free_path",
    "parameter_at",
    "parameters_of",
    "places_of",
    "to_numpy",
    "to_tensor",
    "with_values",
]


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter of a module, and whose it is.

    `owners` are the modules that hold it, from the outermost to the one it belongs to, each with the parameter's dotted path
    below it.
    """

    parameter: torch.nn.Parameter
    owners: tuple[tuple[torch.nn.Module, str], ...]


def class_names(module: torch.nn.Module) -> list[str]:
    """Names along the method resolution order, nearest first: what policies and rules match."""
    return [cls.__name__ for cls in type(module).__mro__]


def duplicate(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of a module. Tensors that an earlier call left on it, with a history of gradients, are copied without that.

    ``torch.nn.utils.weight_norm`` holds the weight that it computes so, and many a forward keeps features for later.

    Raises:
        UnsupportedError: it holds what can't be copied.
    """
    memo: dict[int, Any] = {}
    for inner in module.modules():
        for held in torch.utils._pytree.tree_leaves(vars(inner)):
            if isinstance(held, torch.Tensor) and not held.is_leaf:
                memo[id(held)] = held.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnsupportedError(
            f"expected a module that can be copied; copy.deepcopy of {type(module).__name__} fails with: {text}; do take what "
            "it holds apart from modules and tensors (locks, files, generators) out of it, or give it a __deepcopy__"
        ) from error


def exchanged(root: torch.nn.Module, new: Mapping[int, torch.nn.Module]) -> torch.nn.Module:
    """Puts modules in all places of others, by the ``id`` of those: in lists, tuples and dicts that modules hold as well.

    Returns:
        the root, or what takes its place.
    """
    for owner in list(root.modules()):
        for name, child in list(owner._modules.items()):
            if id(child) in new:
                setattr(owner, name, new[id(child)])
        for name, held in list(vars(owner).items()):
            if not name.startswith("_") and type(held) in (list, tuple, dict):
                object.__setattr__(owner, name, _with(held, new))
    return new.get(id(root), root)


def _with(held: Any, new: Mapping[int, torch.nn.Module]) -> Any:
    """A list, tuple or dict as it is where nothing in it is exchanged."""
    if type(held) not in (list, tuple, dict):
        return new.get(id(held), held)
    parts = held.values() if type(held) is dict else held
    now = [_with(part, new) for part in parts]
    if all(a is b for a, b in zip(parts, now, strict=True)):
        return held
    return dict(zip(held, now, strict=True)) if type(held) is dict else type(held)(now)


def free_path(path: str, taken: Container[str]) -> str:
    """The path, or with the least number behind it that none of those taken has."""
    count, free = 1, path
    while free in taken:
        count += 1
        free = f"{path}_{count}"
    return free


def parameters_of(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """All parameters by dotted path ("weight", "self_attn.in_proj_weight"); one that is shared within, by its first path.

    Raises:
        InputError: a lazy module, whose parameters don't exist before its first call.
    """
    found = dict(module.named_parameters())
    lazy = [path for path, parameter in found.items() if torch.nn.parameter.is_lazy(parameter)]
    if lazy:
        raise InputError(
            f"expected a module whose parameters exist; those of {type(module).__name__} at {lazy} are lazy; do call it once"
        )
    return found


def aliases_of(module: torch.nn.Module) -> dict[str, str]:
    """Every path of every parameter, and the one that `parameters_of` has it by."""
    first: dict[int, str] = {}
    return {
        path: first.setdefault(id(parameter), path)
        for path, parameter in module.named_parameters(remove_duplicate=False)
    }


def places_of(module: torch.nn.Module) -> dict[str, Place]:
    """The parameters by the paths of `parameters_of`, with the modules that hold them."""
    found = {}
    for path, parameter in parameters_of(module).items():
        parts, owner, owners = path.split("."), module, []
        for i in range(len(parts)):
            owners.append((owner, ".".join(parts[i:])))
            owner = owner.get_submodule(parts[i]) if i + 1 < len(parts) else owner
        found[path] = Place(parameter, tuple(owners))
    return found


def parameter_at(module: torch.nn.Module, path: str) -> torch.Tensor:
    """The parameter at a dotted path; within ``torch.func.functional_call``, the tensor that stands in for it."""
    owner, _, name = path.rpartition(".")
    tensor: torch.Tensor = getattr(module.get_submodule(owner), name)
    return tensor


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor's values as a numpy array of its own: in the tensor's dtype, float32 for bfloat16 and the like."""
    tensor = torch.as_tensor(tensor).detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()
    return np.array(tensor.resolve_conj().resolve_neg().numpy())


def to_tensor(values: Any, like: torch.Tensor) -> torch.Tensor:
    """Values as a tensor with the dtype and on the device of another."""
    return torch.tensor(np.asarray(values)).to(device=like.device, dtype=like.dtype)


class _Calls(torch.nn.Module):
    """Calls a method of a module, whatever its name: what functional_call calls is the forward."""

    def __init__(self, module: torch.nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(*args, **kwargs)


def with_values(
    module: torch.nn.Module, method: Callable[..., Any], values: Callable[[], Mapping[str, torch.Tensor]]
) -> Callable[..., Any]:
    """A bound method of a module as a function that finds other values for some parameters, asked for at each call."""

    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        return call_with(_Calls(module, method), {f"module.{path}": t for path, t in values().items()}, args, kwargs)

    return called


def call_with(
    module: torch.nn.Module, values: Mapping[str, torch.Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What a module gives with other values for some of its parameters, by path; those stay as they are.

    A parameter that several modules within share has the value in all of them.
    """
    try:
        return torch.func.functional_call(module, dict(values), args, dict(kwargs))
    finally:
        # Recurrent modules keep a list of what they last ran with.
        for inner in module.modules():
            if isinstance(inner, torch.nn.RNNBase):
                inner._update_flat_weights()
