"""Which parameters of torch modules are quantized, and along which axes: rows of `qi.dispatch.policy` named "torch.<class>"."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from qi.dispatch import LayerPolicy, Slot, policy_for, register_policy
from qi.torch.variables import Place, class_names, places_of

__all__ = ["SlotChoice", "module_policy", "slots_of"]

_NORMALIZED = "normalizations are computed in float"
_BIAS = "bias: float32 here, int32 at input scale x weight scale in an integer file"
_RECURRENT_BIAS = "bias: float32, as what recurrent modules add it to"
_OUTPUTS_FIRST = {"channel_axis": 0, "input_axis": 1}


def _register(name: str, paths: tuple[str, ...] = (), floats: dict[str, str] | None = None, **axes: Any) -> None:
    slots = [Slot(path, **(axes or _OUTPUTS_FIRST)) for path in paths]
    register_policy(f"torch.{name}", slots, floats=floats, replace=True)


for _name in ("Linear", "Conv1d", "Conv2d", "Conv3d", "Bilinear"):
    _register(_name, ("weight",), {"bias": _BIAS})
for _name in ("Embedding", "EmbeddingBag"):  # one scale a row, as look-up kernels read rows
    _register(_name, ("weight",))
for _name in ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"):  # [inputs, outputs, *window]
    _register(_name, ("weight",), {"bias": _BIAS}, channel_axis=1, input_axis=0)
# The weights of all gates, one below the other, for inputs and for states; `weight_hr` projects the state.
for _name in ("RNNBase", "RNNCellBase"):
    _register(_name, ("weight_ih*", "weight_hh*", "weight_hr*"), {"bias_*": _RECURRENT_BIAS})
_register(
    "MultiheadAttention",
    ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    {"in_proj_bias": _BIAS, "bias_k": "appended to the keys as it is", "bias_v": "appended to the values as it is"},
)
for _name in ("_NormBase", "LayerNorm", "GroupNorm", "RMSNorm"):
    _register(_name, floats={"weight": _NORMALIZED, "bias": _NORMALIZED})
_register("PReLU", floats={"weight": "slopes of an activation, by which kernels multiply as real numbers"})
_register("ParametrizationList", floats={"*": "a parametrization makes the weight of it at every call"})
_register("PytorchQuantizationWrapper", floats={"*": "the wrapper that holds it decides"})
_register("BoundQuantizer", floats={"*": "a quantizer's own parameter"})


@dataclass(frozen=True, eq=False)
class SlotChoice:
    """The slot of a parameter; where it has none, `why` it stays in float."""

    place: Place
    slot: Slot | None
    why: str = ""


def module_policy(module: torch.nn.Module) -> LayerPolicy | None:
    """The policy of a module's class or its nearest ancestor: what is registered under "torch.<class name>"."""
    return policy_for(f"torch.{name}" for name in class_names(module))


def slots_of(module: torch.nn.Module) -> dict[str, SlotChoice]:
    """The slot of every parameter by dotted path, or why it has none.

    Of the modules that hold a parameter the outermost counts whose policy names it. What no policy names goes by its shape:
    the first axis is that of the channels, the second that of the inputs, and whatever has one axis only is no matrix.

    Raises:
        InputError: a lazy module before its first call.

    Example:
        >>> choice = slots_of(torch.nn.Linear(3, 2))["weight"]
        >>> choice.slot.channel_axis, choice.slot.input_axis
        (0, 1)
    """
    return {path: _choice(path, place) for path, place in places_of(module).items()}


def _choice(path: str, place: Place) -> SlotChoice:
    parameter = place.parameter
    if not parameter.is_floating_point():
        return SlotChoice(place, None, f"{str(parameter.dtype).removeprefix('torch.')}: no real numbers")
    for module, below in place.owners:
        policy = module_policy(module)
        slot, why = (policy.slot(below), policy.why_float(below)) if policy is not None else (None, "")
        if slot is not None:
            return SlotChoice(place, replace(_placed(module, slot, tuple(parameter.shape)), path=path))
        if why:
            return SlotChoice(place, None, why)
    owner, name = place.owners[-1]
    policy, shape = module_policy(owner), tuple(parameter.shape)
    if policy is not None and policy.layer_type == f"torch.{type(owner).__name__}":
        return SlotChoice(place, None, f"the policy of {type(owner).__name__} doesn't quantize it")
    bias = name == "bias" or name.startswith("bias_") or name.endswith("_bias")
    if not bias and sum(size != 1 for size in shape) > 1:
        return SlotChoice(place, Slot(path, channel_axis=0, input_axis=1))
    numbers = "a bias" if bias else "one number" if parameter.numel() == 1 else "one number for each channel"
    return SlotChoice(place, None, f"{numbers}, which {type(owner).__name__} uses in float")


def _placed(module: torch.nn.Module, slot: Slot, shape: tuple[int, ...]) -> Slot:
    """The slot with the axes of this very module: where each input channel has its own filters, there are no groups."""
    if getattr(module, "groups", 1) == 1 or len(shape) < 3 or shape[1] != 1:
        return slot
    return replace(slot, channel_axis=0, input_axis=None)  # also of ConvTranspose: one filter a channel
