"""Packed codes of frozen wrappers: in state dicts they stand in place of the float weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qi.core import IntGrid, QParams, QTensor, pack, packed_nbytes, unpack
from qi.core.grid import code_bits
from qi.errors import InputError, QiError
from qi.torch.variables import aliases_of, parameter_at, to_numpy, to_tensor

if TYPE_CHECKING:
    from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = ["fill", "frozen_tensor", "key_of", "pack_codes", "unpack_codes"]


def key_of(path: str) -> str:
    """The name of a parameter's quantizer among a wrapper's modules, whose names hold no dots."""
    return path.replace(".", "/")


def fill(module: torch.nn.Module, values: Mapping[str, np.ndarray]) -> None:
    """Gives parameters these values, in their dtype, and ends their training."""
    with torch.no_grad():
        for path, value in values.items():
            parameter = parameter_at(module, path)
            parameter.copy_(to_tensor(value, parameter))
            parameter.requires_grad_(False)
            parameter.grad = None


def frozen_tensor(wrapper: PytorchQuantizationWrapper, path: str) -> QTensor:
    """The codes of a frozen weight, which its value stands for.

    Raises:
        InputError: it stands for none: it was changed.
    """
    parameter = parameter_at(wrapper.module, path).detach()
    tensor = wrapper.bounds[path].qparams().quantize(to_numpy(parameter))
    if not torch.equal(to_tensor(tensor.dequantize(dtype="float32"), parameter), parameter):
        raise InputError(
            f"expected frozen weight {path!r} of {type(wrapper.module).__name__} on its grid; it was changed after freeze(); "
            "do call freeze() again"
        )
    return tensor


def pack_codes(
    wrapper: PytorchQuantizationWrapper, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any]
) -> None:
    """A hook on ``state_dict``: replaces the floats of frozen weights by their packed codes, and omits zero points of 0."""
    if not wrapper.frozen:
        return
    aliases = aliases_by_path(wrapper.module)
    for path in wrapper.paths:
        tensor, own = frozen_tensor(wrapper, path), f"{prefix}weight_quantizers.{key_of(path)}."
        for alias in aliases[path]:
            floats = state_dict.pop(f"{prefix}module.{alias}")
        codes = torch.from_numpy(pack(tensor.codes, tensor.bits))
        state_dict[f"{own}codes"] = codes.to(floats.device)
        if not tensor.qparams.zero_point.any():
            state_dict.pop(f"{own}zero_point", None)


def aliases_by_path(module: torch.nn.Module) -> dict[str, list[str]]:
    """All paths of each parameter by the first of them."""
    found: dict[str, list[str]] = {}
    for alias, path in aliases_of(module).items():
        found.setdefault(path, []).append(alias)
    return found


def unpack_codes(
    wrapper: PytorchQuantizationWrapper,
    state_dict: dict[str, Any],
    prefix: str,
    missing_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Puts the floats that packed codes stand for in the place that ``load_state_dict`` looks for them.

    What doesn't fit is told by adding to `missing_keys` and `error_msgs`, as torch's own loading does.
    """
    aliases = aliases_by_path(wrapper.module)
    for path in wrapper.paths:
        own, weight = f"{prefix}weight_quantizers.{key_of(path)}.", f"{prefix}module.{path}"
        codes, problem = state_dict.pop(f"{own}codes", None), ""
        value = parameter_at(wrapper.module, path).detach()
        if wrapper.frozen and f"{own}scale" in state_dict:
            state_dict.setdefault(f"{own}zero_point", torch.zeros_like(state_dict[f"{own}scale"]))
        if not wrapper.frozen:
            if codes is None:
                continue
            problem = "expected floats; received codes of a frozen wrapper; do call freeze() before load_state_dict()"
        elif codes is not None:
            try:
                value = _decode(wrapper, path, codes, state_dict, own)
            except QiError as error:
                problem = str(error)
        elif weight in state_dict:
            problem = "expected codes; received floats, as of a wrapper that isn't frozen; do load them before freeze()"
        else:
            missing_keys.append(f"{own}codes")
        if problem:
            error_msgs.append(f"weight {path!r} of {type(wrapper.module).__name__}: {problem}")
        for alias in aliases[path]:
            state_dict[f"{prefix}module.{alias}"] = value


def _decode(
    wrapper: PytorchQuantizationWrapper, path: str, codes: Any, state_dict: Mapping[str, Any], own: str
) -> torch.Tensor:
    """The floats for codes, in the weight's dtype."""
    bound, parameter = wrapper.bounds[path], parameter_at(wrapper.module, path)
    grid, shape = bound.quantizer.grid, tuple(parameter.shape)
    bits, count = code_bits(grid), int(np.prod(shape))
    if not isinstance(codes, torch.Tensor) or codes.dtype != torch.uint8 or codes.numel() != packed_nbytes(count, bits):
        given = f"{codes.numel()} of {codes.dtype}" if isinstance(codes, torch.Tensor) else repr(codes)
        raise InputError(
            f"expected {packed_nbytes(count, bits)} bytes with {bits}-bit codes of shape {shape}; received {given}"
        )
    scale, zero_point = (
        to_numpy(state_dict.get(f"{own}{name}", bound.variables[name])) for name in ("scale", "zero_point")
    )
    qparams = QParams(scale, zero_point, grid, bound.quantizer.granularity(len(shape)))
    signed = isinstance(grid, IntGrid) and grid.signed
    tensor = QTensor(unpack(to_numpy(codes), bits, shape, signed=signed), qparams)
    return to_tensor(tensor.dequantize(), parameter)
