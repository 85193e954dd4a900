"""What makes a module a quantized one, as a JSON record; and the same made again of a float module."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from qi.errors import ConfigError, FileFormatError, InputError, UnsupportedError
from qi.quantizers import quantizer_from_dict
from qi.registry import suggest
from qi.torch.bound import BoundQuantizer
from qi.torch.data import Samples
from qi.torch.dispatcher import PytorchNodeQuantizationDispatcher
from qi.torch.graph import Graph
from qi.torch.holder import PytorchActivationQuantizationHolder
from qi.torch.prepare import follow_module
from qi.torch.variables import duplicate, exchanged
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = ["check_record", "parameters_as_record", "rebuild", "record_of", "wanted"]

_GRAPH, _PLACE = "graph", "in place"
_KEYS: dict[str, Any] = {
    "class": str, "form": str, "training": bool, "other_modes": list, "inputs": (list, type(None)), "calls": list,
    "wrappers": dict, "holders": dict, "resting": list, "switches": dict, "parameters": dict,
}  # fmt: skip
_MOST_EXAMPLE = 2**32  # bytes of the tensors that a record asks for


def record_of(module: torch.nn.Module) -> dict[str, Any]:
    """The record of a quantized module: wrappers and holders with their quantizers, modes, and what the module has to be.

    Raises:
        UnsupportedError: nothing in it is quantized, or it has holders that no graph calls.
    """
    form = _GRAPH if _is_traced(module) else _PLACE
    wrappers = {path: m for path, m in module.named_modules() if isinstance(m, PytorchQuantizationWrapper)}
    holders = {path: m for path, m in module.named_modules() if isinstance(m, PytorchActivationQuantizationHolder)}
    if not wrappers and not holders:
        raise UnsupportedError(
            f"expected a quantized module; received a {type(module).__name__} without quantizers; "
            "do torch.save(module.state_dict(), path)"
        )
    if holders and form == _PLACE:
        raise UnsupportedError(
            f"expected holders that qi.torch.quantize_model or prepare_qat inserted; received {next(iter(holders))!r} in a "
            f"{type(module).__name__} of your own; do torch.save(module.state_dict(), path), and load it into one built likewise"
        )
    graph = Graph.of(module) if form == _GRAPH else None
    behind = _values_of(graph) if graph is not None else {}
    return {
        "class": "" if type(module).__name__ == "GraphModule" else type(module).__name__,
        "form": form,
        "training": module.training,
        "other_modes": [path for path, inner in module.named_modules() if inner.training != module.training],
        "inputs": None if graph is None else _inputs_of(graph.module),
        "calls": [] if graph is None else _calls_of(graph),
        "wrappers": {path: wrapper.get_config() for path, wrapper in wrappers.items()},
        "holders": {
            path: {"values": behind.get(path, []), "quantizer": holder.quantizer.to_dict()}
            for path, holder in holders.items()
        },
        "resting": [path for path, parameter in _all_parameters(module) if not parameter.requires_grad],
        "switches": {
            path: {"enabled": inner.enabled, "fixed": inner.fixed}
            for path, inner in module.named_modules()
            if isinstance(inner, BoundQuantizer) and (inner.fixed or not inner.enabled)
        },
        "parameters": parameters_as_record(module),
    }


def check_record(record: Mapping[str, Any]) -> None:
    """Refuses what `record_of` doesn't give.

    Raises:
        FileFormatError: a key is missing or of another type.
    """
    for key, kind in _KEYS.items():
        if not isinstance(record.get(key), kind):
            raise FileFormatError(f"expected a module's record with {key!r}; received {record.get(key)!r}")
    inputs, calls, named = (
        record["inputs"] or [],
        record["calls"],
        (*record["holders"].values(), *record["switches"].values()),
    )
    right = record["form"] in (_GRAPH, _PLACE)
    right &= all(isinstance(path, str) for key in ("other_modes", "resting") for path in record[key])
    right &= all(isinstance(call, list) and len(call) > 1 and all(isinstance(s, str) for s in call) for call in calls)
    right &= all(isinstance(held, dict) for held in (*named, *record["wrappers"].values()))
    right &= all(isinstance(held.get("values"), list) for held in record["holders"].values())
    right &= all(_is_input(entry) for entry in inputs)
    right &= all(isinstance(p, list) and list(map(type, p)) == [str, list] for p in record["parameters"].values())
    if not right:
        raise FileFormatError("expected a module's record; received one with entries of other types")


def _is_input(entry: Any) -> bool:
    if (
        not isinstance(entry, list)
        or len(entry) != 3
        or not isinstance(entry[0], list)
        or not isinstance(entry[1], list)
    ):
        return False
    keys, shape, dtype = entry
    sizes = all(type(size) is int and size >= 0 for size in shape)
    steps = (
        bool(keys)
        and isinstance(keys[0], str)
        and all(isinstance(k, str) or (type(k) is int and 0 <= k < 1000) for k in keys)
    )
    return sizes and steps and isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)


def rebuild(record: Mapping[str, Any], module: torch.nn.Module, example: Any = None) -> torch.nn.Module:
    """A copy of a float module with the quantizers of a record; their values, and the weights, are still to be loaded.

    Args:
        record: of `record_of`.
        module: stays as it is.
        example: samples to follow its forward with; tensors of zeros as the record describes them by default.

    Raises:
        InputError: the module isn't like the one that the record is of: what differs is named.
        FileFormatError: a quantizer that isn't registered, or a damaged record.
    """
    given = {str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.is_floating_point()}
    needed = {dtype for dtype, _ in record["parameters"].values()}
    if needed and given and given != needed:
        raise InputError(
            f"expected a module of {sorted(needed)} as the file is of; received {sorted(given)}; "
            "do move it with module.to(dtype) first"
        )
    if record["form"] == _GRAPH:
        graph = _followed(record, module, example)
        _same_calls(record, _calls_of(graph), example)
        made = graph.module
        _put_wrappers(made, record)
        _put_holders(Graph.of(made), record)
    else:
        made = _put_wrappers(duplicate(module), record)
    _settle(made, record)
    return made


def wanted(record: Mapping[str, Any]) -> str:
    """How errors begin that tell of another module."""
    return "expected the module that the file was made of" + (f", a {record['class']}" if record["class"] else "")


# What a module is -------------------------------------------------------------------------------------------------------


def _is_traced(module: torch.nn.Module) -> bool:
    """Whether it is a graph that `quantize_model` followed, rather than one of the user's that is quantized in place."""
    return isinstance(module, fx.GraphModule) and any("qi_fused" in node.meta for node in module.graph.nodes)


def _calls_of(graph: Graph) -> list[list[str]]:
    """Site, kind and what was folded into it of each call; without holders, and what stands in for one that is disabled."""
    found = []
    for call in graph.calls:
        op = graph.op_of(call)
        op = op.module if isinstance(op, PytorchQuantizationWrapper) else op
        if not isinstance(op, (PytorchActivationQuantizationHolder, torch.nn.Identity)):
            kind = type(op).__name__ if isinstance(op, torch.nn.Module) else call.kind
            found.append([call.site, kind, *call.fused])
    return found


def _values_of(graph: Graph) -> dict[str, list[str]]:
    """The names of the values that each holder sits behind."""
    found: dict[str, list[str]] = {}
    for call in graph.calls:
        if isinstance(call.op, PytorchActivationQuantizationHolder):
            found.setdefault(call.path, []).append(call.inputs[0].name)
    return found


def _inputs_of(module: fx.GraphModule) -> list[list[Any]] | None:
    """[keys, shape, dtype] of each input tensor: the argument's name, then the keys within it; None where no shape is known."""
    found: list[list[Any]] = []
    for node in module.graph.nodes:
        if (node.op != "placeholder" or node.meta.get("qi_packed")) and "qi_input" not in node.meta:
            continue
        if node.meta.get("qi_shape") is None:
            return None
        found.append([_keys_of(node), list(map(int, node.meta["qi_shape"])), node.meta["qi_dtype"]])
    return found


def _keys_of(node: fx.Node) -> list[Any]:
    keys: list[Any] = []
    while node.op != "placeholder":
        keys.append(node.args[1])
        node = node.args[0]
    return [str(node.target), *reversed(keys)]


def parameters_as_record(module: torch.nn.Module) -> dict[str, list[Any]]:
    """[dtype, shape] of each floating-point parameter by its path, but for those of quantizers.

    A state dict tells neither of frozen weights, which are codes there.
    """
    own = {id(p) for m in module.modules() if isinstance(m, BoundQuantizer) for p in m.parameters()}
    named = ((path, p) for path, p in _all_parameters(module) if p.is_floating_point() and id(p) not in own)
    return {path: [str(p.dtype).removeprefix("torch."), list(p.shape)] for path, p in named}


# The same again ---------------------------------------------------------------------------------------------------------


def _followed(record: Mapping[str, Any], module: torch.nn.Module, example: Any) -> Graph:
    """The folded graph of a copy of the module."""
    why = ""
    for samples in _examples(record, module, example):
        graph, why, _ = follow_module(module, samples)
        if graph is not None:
            return graph
    raise InputError(
        f"{wanted(record)}, with a forward that can be followed; received a {type(module).__name__}: {why}"
        + ("; do give example=, a few samples" if example is None else "")
    )


def _examples(record: Mapping[str, Any], module: torch.nn.Module, example: Any) -> Iterator[Samples | None]:
    """What to follow the forward with, one after the other until it can be."""
    if example is not None:
        yield Samples(example, module, what="an example")
    elif not record["inputs"]:
        yield None
    else:
        size = sum(math.prod(shape) * getattr(torch, dtype).itemsize for _, shape, dtype in record["inputs"])
        if size > _MOST_EXAMPLE:
            raise FileFormatError(f"expected inputs of at most {_MOST_EXAMPLE} bytes; received a record of {size}")
        for make in (torch.zeros, torch.ones):  # positions and tokens may be 0, lengths may not
            yield Samples([_arguments(record["inputs"], module, make)], module, what="an example")


def _arguments(inputs: list[Any], module: torch.nn.Module, make: Any) -> Any:
    """A batch as `Samples` takes it: by names, or by position where the forward takes ``*args``."""
    found: dict[Any, Any] = {}
    for keys, shape, dtype in inputs:
        place = found
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = make(shape, dtype=getattr(torch, dtype))
    given = {name: _nested(held) for name, held in found.items()}
    parameters = inspect.signature(module.forward).parameters
    if all(name in parameters for name in given) or not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return given
    ordered: list[Any] = []
    further = itertools.count()
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            while (key := f"{name}_{next(further)}") in given:
                ordered.append(given[key])
            break
        ordered.append(given.get(name, parameter.default))
    return [ordered]


def _nested(held: Any) -> Any:
    """Lists in the place of dicts whose keys are positions."""
    if not isinstance(held, dict):
        return held
    if not all(isinstance(key, int) for key in held):
        return {key: _nested(part) for key, part in held.items()}
    return [_nested(held[index]) if index in held else None for index in range(max(held) + 1)]


def _same_calls(record: Mapping[str, Any], found: list[list[str]], example: Any) -> None:
    """Raises InputError where the module computes otherwise than the one that the record is of."""
    for there, here in itertools.zip_longest(record["calls"], found):
        if there != here:
            raise InputError(
                f"{wanted(record)}; received one of another structure: "
                f"where that has {_shown(there)}, this has {_shown(here)}"
                + ("; do give example= where arguments decide what it computes" if example is None else "")
            )


def _shown(call: list[str] | None) -> str:
    if call is None:
        return "nothing more"
    site, kind, *fused = call
    return f"{site!r} ({kind}{''.join(f' + {name}' for name in fused)})"


def _put_wrappers(made: torch.nn.Module, record: Mapping[str, Any]) -> torch.nn.Module:
    """Wraps the modules at the paths of the record, in all places where they are."""
    for path, config in record["wrappers"].items():
        try:
            old = made.get_submodule(path)
        except AttributeError as error:
            paths = [name for name, _ in made.named_modules()]
            raise InputError(
                f"{wanted(record)}; received one without the module {path!r}." + suggest(path, paths)
            ) from error
        new = _wrapped(old, config, f"{wanted(record)}; received another at {path!r}")
        made = exchanged(made, {id(old): new})
    return made


def _wrapped(module: torch.nn.Module, config: Mapping[str, Any], problem: str) -> PytorchQuantizationWrapper:
    if not isinstance(config.get("dispatcher"), Mapping):
        raise FileFormatError(f"expected a wrapper's record; received {config!r}")
    dispatcher = PytorchNodeQuantizationDispatcher.from_config(config["dispatcher"])
    try:
        wrapper = PytorchQuantizationWrapper(module, dispatcher)
        # A copy's weights: those that were tied while they trained may have been frozen on grids of their own.
        return wrapper.freeze() if config.get("frozen") else wrapper
    except (ConfigError, InputError) as error:
        raise InputError(f"{problem}: {error}") from error


def _put_holders(graph: Graph, record: Mapping[str, Any]) -> None:
    values = {value.name: value for value in graph.flat_inputs()}
    values |= {value.name: value for call in graph.calls for value in call.outputs}
    taken = {path for path, _ in graph.module.named_modules()}
    device = next((p.device for p in graph.module.parameters()), None)
    for path, held in record["holders"].items():
        missing = [name for name in held["values"] if name not in values]
        if missing:
            raise InputError(f"{wanted(record)}; received one without the value {missing[0]!r}")
        if path in taken:
            raise FileFormatError(f"expected a free path for a holder; received {path!r}, which the module has itself")
        holder = PytorchActivationQuantizationHolder(quantizer_from_dict(held.get("quantizer"))).to(device)
        if not held["values"]:
            graph.module.add_submodule(path, holder)
        for name in held["values"]:
            graph.insert_after(values[name], holder, path, recompile=False)
    graph.module.recompile()


def _settle(made: torch.nn.Module, record: Mapping[str, Any]) -> None:
    """Modes, what rests, and the switches of quantizers."""
    made.train(record["training"])
    for path in record["other_modes"]:
        inner = _at(made, path)
        if inner is not None:
            inner.training = not record["training"]
    resting = set(record["resting"])
    for path, parameter in _all_parameters(made):
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(path not in resting)
    for path, switch in record["switches"].items():
        bound = _at(made, path)
        if isinstance(bound, BoundQuantizer):
            bound.configure(enabled=bool(switch.get("enabled", True)), fixed=bool(switch.get("fixed", False)))


def _all_parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Shared ones at each of their paths: what was shared may be apart once it is frozen."""
    return module.named_parameters(remove_duplicate=False)


def _at(module: torch.nn.Module, path: str) -> Any:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
