"""What a torch model takes, as one tensor for each of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from qi.errors import InputError, UnsupportedError
from qi.torch.graph import Graph, Value, trace
from qi.torch.holder import PytorchActivationQuantizationHolder
from qi.torch.lowering import real_dtype
from qi.torch.variables import to_numpy
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = ["graph_of", "model_inputs", "sample_inputs"]


def graph_of(model: Any, example: Any = None) -> Graph:
    """The calls and values of a quantized model: of a traced one as it is, of another by tracing it.

    Args:
        model: a module.
        example: what it takes, where it isn't traced yet.

    Raises:
        UnsupportedError: something else, a float model, or one that can't be traced.
    """
    if not isinstance(model, torch.nn.Module):
        raise UnsupportedError(f"expected a quantized torch.nn.Module; received {type(model).__name__}")
    if isinstance(model, fx.GraphModule):
        return Graph.of(model)
    ours = (PytorchQuantizationWrapper, PytorchActivationQuantizationHolder)
    if not any(isinstance(part, ours) for part in model.modules()):
        raise UnsupportedError(
            f"expected a quantized model; received a {type(model).__name__} in which nothing is quantized; do give what "
            "quantize_model or convert returns"
        )
    if isinstance(model, ours):
        model = torch.nn.Sequential(model)  # a trace would enter it
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] = {}
    if isinstance(example, Mapping):
        args, kwargs = (), {str(key): _tensors(held) for key, held in example.items()}
    elif example is not None:
        args = tuple(_tensors(held) for held in (example if isinstance(example, (tuple, list)) else [example]))
    graph, reason = trace(model, args, kwargs)
    if graph is None:
        raise UnsupportedError(
            f"expected a model whose forward torch.fx can trace, as files hold one graph; received a {type(model).__name__}, "
            f"which was quantized in place: {reason}; do write that part without branches on values, or use the model in torch "
            "alone"
        )
    return graph


def _tensors(value: Any) -> Any:
    """The first sample, with tensors in the place of arrays."""
    if isinstance(value, Mapping):
        return {str(key): _tensors(held) for key, held in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_tensors(held) for held in value)
    tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    return tensor[:1] if isinstance(tensor, torch.Tensor) and tensor.ndim else tensor


def sample_inputs(graph: Graph, example: Any) -> list[torch.Tensor]:
    """A tensor for each input of a traced model.

    Args:
        graph: of the model.
        example: a tensor or array, a tuple or list with what each argument takes, or a dict of it by names; None: zeros, as the
            model was traced with.

    Raises:
        InputError: it doesn't fit, or none is given for a model that was traced without.
    """
    if example is None:
        return [_zeros(value) for value in graph.inputs]
    found = dict(_named(example, graph))
    names = [value.name for value in graph.inputs]
    if sorted(found) != sorted(names):
        raise InputError(f"expected tensors for the inputs {names}; received {sorted(found) or type(example).__name__}")
    tensors = [_typed(found[value.name], value) for value in graph.inputs]
    sizes = {tuple(tensor.shape[:1]) for tensor in tensors}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        told = {name: tuple(tensor.shape) for name, tensor in zip(names, tensors, strict=True)}
        raise InputError(
            f"expected as many samples for each input, one at least, along the first axis; received {told}"
        )
    return tensors


def _zeros(value: Value) -> torch.Tensor:
    if value.shape is None or not value.shape or not hasattr(torch, value.dtype or "?"):
        raise InputError(
            f"expected an example of what the model takes, as it was traced without; received none for {value.name!r}; do give "
            "samples, or example_inputs"
        )
    return torch.zeros((1, *value.shape[1:]), dtype=getattr(torch, value.dtype))


def _named(example: Any, graph: Graph) -> Iterator[tuple[str, Any]]:
    """The tensors of an example by the names of inputs: "x", or "batch.ids" for what an argument holds."""
    tops = list(dict.fromkeys(value.name.partition(".")[0] for value in graph.inputs))
    nested = len(tops) == 1 and all("." in value.name for value in graph.inputs)
    if isinstance(example, Mapping) and not (nested and set(example) != set(tops)):
        for key, held in example.items():
            yield from _leaves(str(key), held)
    elif isinstance(example, (tuple, list)) and not (nested and len(example) != 1):
        for index, held in enumerate(example):
            yield from _leaves(tops[index] if index < len(tops) else str(index), held)
    else:
        yield from _leaves(tops[0], example)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Mapping, tuple, list)):
        held = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in held:
            yield from _leaves(f"{name}.{key}", part)
    elif value is not None:
        yield name, value


def _typed(value: Any, of: Value) -> torch.Tensor:
    """A tensor of the type that the model was traced with."""
    try:
        tensor = value.detach().cpu() if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))
    except TypeError as error:
        raise InputError(f"expected a tensor or an array for {of.name!r}; received {type(value).__name__}") from error
    if hasattr(torch, of.dtype or "?"):
        return tensor.to(getattr(torch, of.dtype))
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def model_inputs(model: Any, x: Any) -> list[np.ndarray]:
    """Samples as one array for each of a model's inputs, in the type that a file takes.

    Args:
        model: quantized.
        x: as for `sample_inputs`.

    Raises:
        InputError: samples that don't fit the model.
    """
    arrays = [to_numpy(tensor) for tensor in sample_inputs(graph_of(model, x), x)]
    return [array.astype(real_dtype(str(array.dtype)), copy=False) for array in arrays]
