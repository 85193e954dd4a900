"""From a module to its graph: copied, followed, freed of operations in place, and checked against the module itself."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import fx
from torch.nn.parameter import UninitializedParameter

from qi.errors import UnsupportedError
from qi.torch.conditions import UnansweredError
from qi.torch.dropouts import drops_out, restore_dropout
from qi.torch.pure import drop_in_place, keep_detached
from qi.torch.tracer import GraphTracer, Tracer, bind, made_in_graphs, named, placed
from qi.torch.transformers import open_transformers
from qi.torch.variables import duplicate

__all__ = ["LARGE", "follow", "same_in_training", "set_shapes"]

LARGE = 1e4  # beyond any score, and what exp makes 0: a mask
_CLOSE = 1e-3  # of the largest number: another order of sums is far below, another computation far above


def follow(
    module: torch.nn.Module, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
) -> tuple[fx.GraphModule | None, str]:
    """The traced copy of a module, in eval mode, or None and why its forward can't be followed.

    Args:
        module: stays as it is; what is traced is a copy.
        args: sample inputs, for the shapes; what else is among them (numbers, None) is fixed in the graph. None: every argument
            without a default is a tensor.
        kwargs: further sample inputs.
    """
    if args is not None and not isinstance(args, tuple):
        args = (args,)
    try:
        copied = duplicate(module).eval()
    except UnsupportedError as error:
        return None, f"it can't be copied: {placed(error)}"
    sampled = args is not None or bool(kwargs)
    wanted = None
    if sampled:
        try:
            wanted = _run(copied, args or (), kwargs or {})  # lazy modules get their shapes here
        except Exception as error:  # whatever the user's code raises
            return None, f"its forward fails on the sample inputs: {placed(error)}"
    problem = _refused(copied)
    if problem:
        return None, problem
    opened = open_transformers(copied)
    traced, problem = _traced(opened, args, kwargs)
    if traced is None:
        return None, problem
    if sampled:
        problem = _checked(traced, wanted, named(bind(opened.forward, args, kwargs)))
        if problem:
            return None, problem
    return traced, ""


def _refused(module: torch.nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a ScriptModule, compiled already: do give the module that it was made of"
    if hasattr(module, "_orig_mod"):
        return "it is compiled by torch.compile: do give the module itself, and compile the result"
    if any(isinstance(held, UninitializedParameter) for held in module.parameters()):
        return "its lazy modules have no shapes yet: do trace with sample inputs"
    if module._forward_hooks or module._forward_pre_hooks:
        return (
            "it has forward hooks of its own, which a traced graph would lose: do remove them, or wrap it into a module"
        )
    return ""


def _nodes(module: torch.nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any] | None) -> fx.Graph:
    bound = bind(module.forward, args, kwargs)
    answers: list[int] = []
    while True:
        try:
            with made_in_graphs(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)  # unlike the runs: a random constant in the graph shall show
                return Tracer(bound, answers).trace(module)
        except UnansweredError as asked:  # from here the inputs tell, and the trace begins anew
            answers.append(_answer(module, asked.node, named(bound)))


def _answer(module: torch.nn.Module, node: fx.Node, given: dict[str, Any]) -> int:
    """What a condition or a number of an unfinished graph is for the arguments of a call.

    Raises:
        ValueError: the arguments aren't at hand.
    """
    if any(held is Tracer.INPUT for held in given.values()):
        raise ValueError("the answer to a condition on shapes isn't known: do trace with sample inputs")
    node.graph.output(node)
    unfinished = fx.GraphModule(module, node.graph)
    inputs = [given[str(other.target)] for other in node.graph.nodes if other.op == "placeholder"]
    training = module.training
    module.eval()  # statistics stay as they are
    with _calm():
        answer = fx.Interpreter(unfinished).run(*copy.deepcopy(inputs))
    module.train(training)
    return answer if isinstance(answer, int) else bool(answer)


def _traced(
    module: torch.nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any] | None
) -> tuple[fx.GraphModule | None, str]:
    try:
        nodes = _nodes(module, args, kwargs)
        nodes._tracer_cls = GraphTracer
        traced = fx.GraphModule(module, nodes, type(module).__name__)
    except Exception as error:  # whatever the user's code raises when it meets what stands for tensors
        return None, f"its forward can't be followed: {placed(error)}"
    if drops_out(nodes):
        # In training a forward may do what can't be followed: what it does in eval mode can.
        with suppress(Exception):
            restore_dropout(traced, _nodes(module.train(), args, kwargs))
        module.eval()
    traced.eval()
    problem = drop_in_place(traced)
    if problem:
        return None, problem
    traced.graph.eliminate_dead_code()
    keep_detached(traced)
    return traced, ""


@contextmanager
def _calm() -> Iterator[None]:
    """Without gradients, on the plain path of attention, and with the random numbers of the process left alone."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _run(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with _calm():
        return module(*copy.deepcopy(args), **copy.deepcopy(kwargs))


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape and type of all that it gives."""

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, torch.Tensor):
            n.meta["qi_shape"], n.meta["qi_dtype"] = tuple(found.shape), str(found.dtype).removeprefix("torch.")
            if found.is_floating_point() and found.numel():
                n.meta["qi_large"] = bool(found.abs().max() >= LARGE)
        else:
            held = isinstance(found, tuple) and any(isinstance(part, (torch.Tensor, tuple)) for part in found)
            n.meta["qi_shape"], n.meta["qi_dtype"] = None, "tuple" if held else type(found).__name__
            if isinstance(found, (int, float)):
                n.meta["qi_number"] = found
        return found


def set_shapes(module: fx.GraphModule, inputs: list[Any]) -> Any:
    """Runs a traced module on inputs, one for each placeholder, and notes all shapes; gives its result."""
    with _calm():
        return _Shapes(module).run(*copy.deepcopy(inputs))


def _checked(module: fx.GraphModule, wanted: Any, given: dict[str, Any]) -> str:
    """Notes all shapes; says where the graph doesn't compute what the module does."""
    inputs = [given[str(node.target)] for node in module.graph.nodes if node.op == "placeholder"]
    try:
        found = set_shapes(module, inputs)
    except Exception as error:  # of the user's code
        return f"its graph fails on the sample inputs: {placed(error)}"
    if not _same_classes(wanted, found):
        return "what it gives is of a class that a graph can't make"
    pairs = list(zip(_tensors(wanted), _tensors(found), strict=False))
    same = len(_tensors(wanted)) == len(_tensors(found)) and all(_alike(a, b) for a, b in pairs)
    return "" if same else "its graph gives other numbers than its forward, which does what a graph can't show"


def _tensors(held: Any) -> list[torch.Tensor]:
    if isinstance(held, torch.Tensor):
        return [held]
    if isinstance(held, dict):
        held = list(held.values())
    if is_dataclass(held) and not isinstance(held, type):
        held = [getattr(held, part.name) for part in fields(held)]
    return [tensor for part in held for tensor in _tensors(part)] if isinstance(held, (list, tuple)) else []


def _same_classes(a: Any, b: Any) -> bool:
    """Whether dicts are of the same class: a graph makes plain ones of those that have attributes, say."""
    if isinstance(a, dict):
        plain = type(a) in (dict, OrderedDict) and isinstance(b, dict)
        return (plain or type(a) is type(b)) and all(_same_classes(a[key], b.get(key)) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return all(map(_same_classes, a, b))
    return True


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    finite = a[a.isfinite()].abs()
    close = _CLOSE * float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=close, equal_nan=True)


def same_in_training(
    module: torch.nn.Module, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
) -> bool:
    """Whether the forward of a module calls the same in training as in eval mode: what modules themselves do aside.

    A graph follows the eval mode: ``if self.training`` is lost on it. ``F.dropout(x, training=self.training)`` isn't.
    """
    opened = open_transformers(duplicate(module))
    try:
        traced = fx.GraphModule(opened, _nodes(opened.eval(), args, kwargs))
        return restore_dropout(traced, _nodes(opened.train(), args, kwargs))
    except Exception:  # of the user's code, in one of both modes
        return False
