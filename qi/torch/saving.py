"""Saving and loading of quantized torch modules: tensors and a JSON record, no code and no objects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qi.errors import ConfigError, FileFormatError, InputError
from qi.torch import stored
from qi.torch.packed import key_of
from qi.torch.prepare import check_module
from qi.torch.structure import check_record, parameters_as_record, rebuild, record_of, wanted
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = ["load_model", "save_model"]


def save_model(module: torch.nn.Module, path: str | os.PathLike[str]) -> Path:
    """Saves a quantized module: the file is complete, or what was there before stays.

    The file holds the ``state_dict``, frozen weights as packed codes, and which quantizers are where, as JSON text. It holds no
    code: `load_model` needs the float module. Weights that modules share are written once.

    Args:
        module: what `qi.torch.quantize_model`, `prepare_qat` (in the middle of training too) or `convert` returned, or a module
            of your own in which modules are wrapped.
        path: ends in ``.safetensors`` (the record is its metadata "qi"), or in ``.pt`` or ``.pth``, which
            ``torch.load(path, weights_only=True)`` reads as ``{"qi": text, "state_dict": tensors by name}``. Its folder must
            exist.

    Returns:
        the path.

    Raises:
        ConfigError: no module.
        UnsupportedError: one without quantizers, with holders of your own, or with a state that isn't made of tensors.
        InputError: another suffix, tensors on the meta device, frozen weights that were changed.
        MissingDependencyError: ``.safetensors`` without safetensors.
        OSError: the file can't be written; an older one is left as it was.

    Example:
        >>> import tempfile, torch, qi
        >>> module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> x = torch.randn(64, 4)
        >>> qmodule, _ = qi.torch.quantize_model(module, "w4a8", x, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_model(qmodule, f"{folder}/module.pt")
        ...     again = load_model(path, torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()))
        >>> torch.equal(again(x), qmodule(x))
        True
    """
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"expected a torch module; received {module!r} of type {type(module).__name__}")
    module = getattr(module, "_orig_mod", module)  # what torch.compile made it of
    stored.check_suffix(path)
    _check_place(module)
    return stored.write(path, record_of(module), module.state_dict())


def load_model(path: str | os.PathLike[str], module: torch.nn.Module, *, example: Any = None) -> torch.nn.Module:
    """Loads what `save_model` wrote: the same outputs bit for bit, and training can go on.

    Args:
        path: the file; its suffix tells the format.
        module: the float module that was quantized, or another of the same class and arguments, as it comes from its
            constructor: its weights don't matter. It is only read. What is loaded is on its device.
        example: samples to follow the forward with, as `qi.torch.quantize_model` takes its data; needed where tensors of zeros of
            the shapes that the file notes won't do, or arguments were given that aren't tensors.

    Returns:
        the module as it was saved, in the mode it was in.

    Raises:
        ConfigError: no module.
        UnsupportedError: an already quantized module.
        InputError: no such file, another suffix, or a module that differs from that of the file: what differs is named.
        FileFormatError: the file is damaged, truncated, foreign, of a later version, or has a quantizer that isn't registered.
        MissingDependencyError: ``.safetensors`` without safetensors.

    Example:
        See `save_model`.
    """
    stored.check_suffix(path)
    check_module(module)
    _check_place(module)
    record, state = stored.read(path)
    check_record(record)
    made = rebuild(record, module, example)
    _check_state(made, record, state)
    try:
        made.load_state_dict(dict(state))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise FileFormatError(
            f"expected a state that fits its module; received {os.fspath(path)!r}: {lines[-1]}"
        ) from error
    return made


def _check_place(module: torch.nn.Module) -> None:
    """Raises InputError where tensors have no values."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise InputError(
                f"expected a module with values; received a {type(module).__name__} with {name!r} on the meta device; "
                "do module.to_empty(device='cpu')"
            )


def _check_state(made: torch.nn.Module, record: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
    """Raises InputError where names, shapes or types of the module aren't those of the state."""
    head = f"{wanted(record)}; received one "
    here, there = parameters_as_record(made), record["parameters"]
    for name in [name for name in here if name in there and here[name] != there[name]]:
        raise InputError(f"{head}whose {name!r} is {_kind(here[name])}, not {_kind(there[name])}")
    own, loose = made.state_dict(), _zero_points(made)
    missing = [name for name in own if name not in state and name not in loose]
    more = [name for name in state if name not in own and name not in loose]
    if missing or more:
        found = [f"with {missing[0]!r}" if missing else "", f"without {more[0]!r}" if more else ""]
        raise InputError(head + " and ".join(filter(None, found)))
    for name in [name for name in own if name in state]:
        kinds = [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in (own[name], state[name])]
        if kinds[0] != kinds[1]:
            raise InputError(f"{head}whose {name!r} is {_kind(kinds[0])}, not {_kind(kinds[1])}")


def _kind(kind: list[Any]) -> str:
    return f"{kind[0]} of shape {tuple(kind[1])}"


def _zero_points(made: torch.nn.Module) -> set[str]:
    """The names of the zero points of frozen weights, which states leave out where they are 0."""
    found = set()
    for path, inner in made.named_modules(remove_duplicate=False):
        if isinstance(inner, PytorchQuantizationWrapper) and inner.frozen:
            for weight in inner.paths:
                found.add(f"{path}." * bool(path) + f"weight_quantizers.{key_of(weight)}.zero_point")
    return found
