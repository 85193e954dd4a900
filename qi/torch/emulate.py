"""emulate: what a runtime will answer of a torch model, computed here, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qi.errors import ConfigError
from qi.ir import run
from qi.ir.kinds import TARGETS
from qi.ir.lowered import shown
from qi.ir.routing import route
from qi.ledger.batches import check_batch_size
from qi.torch.lower import lower
from qi.torch.lower_inputs import model_inputs

__all__ = ["emulate"]


def emulate(
    qmodel: torch.nn.Module,
    x: Any,
    target: str = "litert",
    *,
    raw: bool = False,
    integer_only: bool = False,
    packed: bool = False,
    dynamic: bool = True,
    batch_size: int = 64,
) -> Any:
    """What a runtime answers once a quantized model is deployed there, by that runtime's own integer arithmetic.

    The model itself emulates quantization with real numbers between the quantizers; kernels of runtimes sum integers and round
    once more, which moves some results by a step. This computes what they compute.

    Args:
        qmodel: as for `qi.torch.lower`.
        x: samples: a tensor or array, a tuple of them for several arguments, or a dict by their names.
        target: "litert" (LiteRT with XNNPACK), "onnxruntime", or "reference" (LiteRT's reference kernels, as on
            microcontrollers).
        raw: the codes themselves (int8; uint8 for ONNX Runtime) in place of what they stand for. Outputs that stay in float are
            given as they are.
        integer_only: no float islands where there is a way in integers; this and the next two as of `qi.export`.
        packed: whether weights below 8 bits are packed everywhere, which other kernels of LiteRT may compute.
        dynamic: whether products whose weights alone are quantized round their activations row by row, where the target has a
            kernel for that.
        batch_size: samples that are computed at a time.

    Returns:
        numpy arrays of float32 (codes with `raw`) as the model nests its outputs, in tuples and dicts.

    Raises:
        ConfigError: an unknown target, or an impossible batch size.
        UnsupportedError: a float model, one that still trains, or a module that can't be lowered.
        InputError: samples that don't fit the model.

    Example:
        >>> import torch, qi
        >>> from qi.torch import PytorchActivationQuantizationHolder as Holder
        >>> model = torch.nn.Sequential(Holder(qi.ActivationSymmetricInferableQuantizer(8, 1.0, signed=True)))
        >>> emulate(model, torch.tensor([[0.5, 2.0]])).tolist(), emulate(model, torch.tensor([[0.5, 2.0]]), raw=True).tolist()
        ([[0.5, 0.9921875]], [[64, 127]])
    """
    if not isinstance(target, str) or target not in TARGETS:
        raise ConfigError(f"expected target to be one of {sorted(TARGETS)}; received target={target!r}")
    size = check_batch_size(batch_size)
    graph = route(lower(qmodel, x), target, integer_only=integer_only, packed=packed, dynamic=dynamic)
    arrays = model_inputs(qmodel, x)
    parts: dict[str, list[np.ndarray]] = {tensor.name: [] for tensor in graph.outputs}
    for start in range(0, len(arrays[0]), size):
        found = run(graph, [array[start : start + size] for array in arrays])
        for tensor in graph.outputs:
            parts[tensor.name].append(shown(tensor, found[tensor.name], target, raw))
    return _nested(graph.output_structure, {name: np.concatenate(pieces) for name, pieces in parts.items()})


def _nested(structure: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The arrays in the place of their names."""
    if isinstance(structure, str):
        return arrays[structure]
    if isinstance(structure, dict):
        return {key: _nested(held, arrays) for key, held in structure.items()}
    return tuple(_nested(held, arrays) for held in structure)
