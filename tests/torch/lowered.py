"""Quantized torch models of one's own making, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import qi
from qi.exporters.deploy import written
from qi.exporters.formats import FORMATS
from qi.exporters.manifest import Options
from qi.exporters.proof import Proof, prove
from qi.ir import QGraph, run
from qi.ir.lowered import in_real_numbers
from qi.ir.routing import route
from qi.ir.twin import real_values
from qi.torch import (
    PytorchActivationQuantizationHolder,
    PytorchNodeQuantizationDispatcher,
    PytorchQuantizationWrapper,
)
from qi.torch.lower import lower


def hold(limit: float, *, signed: bool = True, bits: int = 8) -> PytorchActivationQuantizationHolder:
    """A holder from -limit (or 0) to the limit."""
    quantizer = qi.ActivationUniformInferableQuantizer(bits, -limit if signed else 0.0, limit)
    return PytorchActivationQuantizationHolder(quantizer)


def wrap(module: nn.Module, bits: int = 8, **more: Any) -> PytorchQuantizationWrapper:
    """A frozen wrapper with a scale for each channel of the weights."""
    weight = module.weight.detach().numpy()
    axis = 1 if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d)) else 0
    limits = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis)).tolist()
    how = {"threshold": limits, "per_channel": True, "channel_axis": axis, "narrow_range": True} | more
    quantizer = qi.WeightsSymmetricInferableQuantizer(bits, **how)
    return PytorchQuantizationWrapper(module, PytorchNodeQuantizationDispatcher(quantizer)).freeze()


class Held(nn.Module):
    """A module, or a function of this module and of tensors, behind a holder.

    Args:
        function: takes this module first; or a module, which doesn't.
        parts: modules that it finds here.
    """

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.held, self.function = hold(4.0), function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> Any:
        """What the function gives."""
        return self.float_forward(self.held(x))

    def float_forward(self, x: torch.Tensor) -> Any:
        """The same, without the holder."""
        return self.function(x) if isinstance(self.function, nn.Module) else self.function(self, x)


def images(count: int = 8, channels: int = 3, height: int = 7, width: int = 5) -> torch.Tensor:
    """Images whose axes can't be mistaken for each other."""
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def compare(function: Callable[..., Any], x: torch.Tensor, **parts: nn.Module) -> QGraph:
    """Checks that a graph computes in real numbers what torch does; gives the graph."""
    model = Held(function, **parts).eval()
    graph = in_real_numbers(lower(model, x, fused=False))
    found = run(route(graph, "litert"), [x.numpy()])[graph.outputs[0].name]
    with torch.no_grad():
        expected = model.float_forward(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    return graph


def kinds(graph: QGraph) -> list[str]:
    """The kinds of its operations."""
    return [op.kind for op in graph.ops]


def proof(model: nn.Module, suffix: str, *x: torch.Tensor) -> Proof:
    """A file's runtime beside the twin."""
    kind = FORMATS[suffix]
    routed = route(lower(model, x), kind.target)
    return prove(written(routed, kind, Options()), routed, kind, [a.numpy() for a in x])


def equal_codes(model: nn.Module, x: torch.Tensor, target: str = "litert") -> tuple[float, float]:
    """(the share of the model's codes that the twin has too, the largest distance in steps)."""
    graph = lower(model, x)
    (y,) = graph.outputs
    found = real_values(y, run(route(graph, target), [x.numpy()])[y.name])
    with torch.no_grad():
        steps = np.abs(model(x).numpy() - found) / y.scale
    return float(np.mean(steps < 0.5)), float(steps.max())
