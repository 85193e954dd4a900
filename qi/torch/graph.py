"""A traced module as calls and values: what plans of activations, folds and exporters walk.

The `torch.fx.GraphModule` is the model; calls and values are views on its nodes, made anew by `Graph.of` after a change.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from qi.torch.follow import follow
from qi.torch.kinds import from_torch, kind_of, torch_class

__all__ = ["Call", "Graph", "Value", "trace"]

_NUMBERS = frozenset(
    "shape dtype device layout itemsize requires_grad is_cuda size dim ndim numel nelement len item is_floating_point is_complex "
    "assert get_device stride".split()
)
_INTEGERS = frozenset(
    "argmax argmin argsort long int short eq ne lt gt le ge logical_and logical_or logical_not isnan bool".split()
)
_MAKES = frozenset("full zeros ones arange eye linspace tensor empty rand randn randint as_tensor full_like".split())
_GIVE_TUPLES = (torch.nn.RNNBase, torch.nn.LSTMCell, torch.nn.MultiheadAttention)


@dataclass(eq=False)
class Value:
    """What a node gives.

    Attributes:
        node: that gives it.
        name: the input's, with keys and positions for inputs within dicts, lists and tuples ("batch.ids"); else the site of the
            call that gives it, with "#1", "#2"... for further outputs.
        producer: the call that gives it; None for inputs.
        shape: with the sample inputs' batch size; None where the module was traced without.
        dtype: "float32", "int64"...; "tuple", "int" and others for what is no tensor; "" where unknown.
    """

    node: fx.Node
    name: str
    producer: Call | None
    shape: tuple[int, ...] | None = None
    dtype: str = ""

    @property
    def is_float(self) -> bool:
        """Whether it is a tensor of real numbers; those of unknown type count as such."""
        return not self.dtype or "float" in self.dtype


@dataclass(eq=False)
class Call:
    """A call of a module, a function or a method; or a parameter or buffer that a forward uses directly.

    Attributes:
        node: the call itself.
        op: the module; the function; the name of the method; the parameter.
        path: the module's; for others "<path of the module whose forward calls it>.<kind>", with "_1", "_2"... for further ones.
        kind: the class' name of a module; the plain name of functions and methods: "add" stands for ``+``, `torch.add` and
            ``x.add``; "Parameter" and "Buffer".
        inputs: the tensors it takes, as often as it takes them, in the order of its arguments.
        outputs: one value; of a call that gives several tensors, one for each that is taken out of it.
        index: how many calls of the same module come before.
        fused: what was folded into it: "BatchNorm2d features.1".
    """

    node: fx.Node
    op: torch.nn.Module | Callable[..., Any] | torch.Tensor | str
    path: str
    kind: str
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    index: int = 0
    fused: list[str] = field(default_factory=list)

    @property
    def place(self) -> tuple[str, str]:
        """(path, kind) that rules speak of: those of the attention that the call was taken out of; else its own."""
        place: tuple[str, str] = self.node.meta.get("qi_split") or (self.path, self.kind)
        return place

    @property
    def site(self) -> str:
        """The path, with ":1", ":2"... for further calls of the same module."""
        return f"{self.path}:{self.index}" if self.index else self.path

    @property
    def builtin_kind(self) -> str:
        """The kind for what PyTorch itself brings, subclasses that change no computation included; "" for others."""
        if isinstance(self.op, torch.nn.Module):
            return torch_class(self.op)
        if isinstance(self.op, (str, torch.Tensor)):
            return self.kind
        return self.kind if from_torch(self.op) else ""


class Graph:
    """Calls and values of a traced module.

    Attributes:
        module: the traced module, which is the model.
        calls: those that give tensors, in order; arithmetic on shapes isn't among them.
        inputs: the tensors that it takes.
        outputs: the tensors that it gives.
    """

    def __init__(self, module: fx.GraphModule, calls: list[Call], inputs: list[Value], outputs: list[Value]) -> None:
        self.module, self.calls, self.inputs, self.outputs = module, calls, inputs, outputs

    @classmethod
    def of(cls, module: fx.GraphModule) -> Graph:
        """The calls and values of a traced module as it is now."""
        return _Reader(module).read()

    def flat_inputs(self) -> list[Value]:
        """The inputs, those within dicts and tuples too."""
        return list(self.inputs)

    def flat_outputs(self) -> list[Value]:
        """The outputs, in order."""
        return list(self.outputs)

    def consumers(self) -> dict[int, list[Call]]:
        """The calls that take a value, by its ``id``; one that takes it twice is there twice."""
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            for value in call.inputs:
                found.setdefault(id(value), []).append(call)
        return found

    def calls_of(self) -> dict[int, list[Call]]:
        """All calls of each module, by its ``id``."""
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            if isinstance(call.op, torch.nn.Module):
                found.setdefault(id(call.op), []).append(call)
        return found

    def op_of(self, call: Call) -> Any:
        """What a call calls now: modules may have been exchanged under their path."""
        return self.module.get_submodule(str(call.node.target)) if call.node.op == "call_module" else call.op

    def insert_after(self, value: Value, module: torch.nn.Module, name: str, recompile: bool = True) -> Value:
        """Puts a module behind a value: all that take the value, the model's outputs too, take the module's result.

        Args:
            value: of this graph.
            module: takes and gives one tensor.
            name: its path in the model.
            recompile: whether the model can be called right after; whoever inserts many calls ``graph.module.recompile()`` once.

        Returns:
            the new value.
        """
        self.module.add_submodule(name, module)
        nodes = self.module.graph
        at = value.node
        if at.op == "placeholder":
            at = [node for node in nodes.nodes if node.op == "placeholder"][-1]
        with nodes.inserting_after(at):
            node = nodes.call_module(name, (value.node,))
        node.meta = {key: value.node.meta[key] for key in ("qi_shape", "qi_dtype") if key in value.node.meta}
        value.node.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
        call = Call(node, module, name, type(module).__name__, [value])
        new = Value(node, name, call, value.shape, value.dtype)
        call.outputs = [new]
        for other in self.calls:
            other.inputs = [new if taken is value else taken for taken in other.inputs]
        self.outputs = [new if given is value else given for given in self.outputs]
        self.calls.insert(0 if value.producer is None else self.calls.index(value.producer) + 1, call)
        if recompile:
            self.module.recompile()
        return new


def trace(
    module: torch.nn.Module, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
) -> tuple[Graph | None, str]:
    """The graph of a module in eval mode, or None and why its forward can't be followed.

    Args:
        module: stays as it is; what is traced is a copy.
        args: sample inputs, for the shapes; what else is among them (numbers, None) is fixed in the graph. None: every argument
            without a default is a tensor.
        kwargs: further sample inputs.

    >>> graph, why = trace(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()), (torch.ones(2, 4),))
    >>> [(call.path, call.kind, call.outputs[0].shape) for call in graph.calls]
    [('0', 'Linear', (2, 3)), ('1', 'ReLU', (2, 3))]
    """
    traced, why = follow(module, args, kwargs)
    return (None, why) if traced is None else (Graph.of(traced), "")


class _Reader:
    """Reads calls and values off the nodes."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.values: dict[fx.Node, Value] = {}
        self.numbers: set[fx.Node] = set()  # nodes that give no tensor: shapes, truth values, tuples of inputs
        self.several: dict[fx.Node, Call] = {}  # nodes that give, or are, tuples of tensors
        self.counts: dict[str, int] = {}
        self.targets = {str(node.target) for node in module.graph.nodes if node.op in ("call_module", "get_attr")}
        self.calls: list[Call] = []
        self.inputs: list[Value] = []

    def read(self) -> Graph:
        """The graph."""
        outputs: list[Value] = []
        for node in self.module.graph.nodes:
            if node.op == "output":
                outputs = [self.values[given] for given in _nodes(node.args[0]) if given in self.values]
            elif node.op == "placeholder" or "qi_input" in node.meta:
                self._input(node)
            elif node.op == "call_function" and node.target is operator.getitem and node.args[0] in self.several:
                self._taken(node)
            elif self._is_number(node):
                self.numbers.add(node)
            else:
                self._call(node)
        return Graph(self.module, self.calls, self.inputs, outputs)

    def _input(self, node: fx.Node) -> None:
        if node.meta.get("qi_packed"):
            self.numbers.add(node)
            return
        value = _value(node, node.meta.get("qi_input", str(node.target)), None)
        self.values[node] = value
        self.inputs.append(value)

    def _is_number(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return False
        if "qi_dtype" in node.meta:
            return node.meta["qi_shape"] is None and node.meta["qi_dtype"] != "tuple"
        taken = node.all_input_nodes
        if node.op == "call_module":
            return False
        kind = kind_of(node)
        alone = bool(taken) and all(other in self.numbers for other in taken)  # arithmetic on shapes
        return kind in _NUMBERS or (alone and kind not in _MAKES)

    def _call(self, node: fx.Node) -> None:
        op, path, kind = self._named(node)
        index = self.counts.get(path, 0)
        if node.op in ("call_function", "call_method"):  # further ones of the same forward have paths of their own
            plain = path
            further = 0
            while path in self.counts or path in self.targets:
                further += 1
                path = f"{plain}_{further}"
            index = 0
        self.counts[path] = index + 1
        inputs = [self.values[taken] for taken in _nodes((node.args, node.kwargs)) if taken in self.values]
        call = Call(node, op, path, kind, inputs, index=index, fused=node.meta.setdefault("qi_fused", []))
        self.calls.append(call)
        if self._gives_several(node):
            self.several[node] = call
            if not node.users or any(user.target is not operator.getitem for user in node.users):
                self._output(call, node, "tuple")
        else:
            self._output(call, node)

    def _gives_several(self, node: fx.Node) -> bool:
        if "qi_dtype" in node.meta:
            return bool(node.meta["qi_dtype"] == "tuple")
        if node.op == "call_module":
            return isinstance(self.module.get_submodule(str(node.target)), _GIVE_TUPLES)
        return kind_of(node) in ("chunk", "split", "unbind", "tensor_split", "topk", "split_with_sizes")

    def _taken(self, node: fx.Node) -> None:
        """What is taken out of a tuple by its index."""
        call = self.several[node.args[0]]
        if node.meta.get("qi_dtype") == "tuple" or (
            "qi_dtype" not in node.meta
            and call.builtin_kind == "LSTM"
            and node.args[0] is call.node
            and node.args[1] == 1
        ):
            self.several[node] = call
            if any(user.target is not operator.getitem for user in node.users):
                self._output(call, node, "tuple")
        else:
            self._output(call, node)

    def _output(self, call: Call, node: fx.Node, dtype: str | None = None) -> None:
        name = call.site + (f"#{len(call.outputs)}" if call.outputs else "")
        value = _value(node, name, call)
        if dtype is not None:
            value.dtype = dtype
        elif not value.dtype and call.kind in _INTEGERS:
            value.dtype = "int64"
        call.outputs.append(value)
        self.values[node] = value

    def _named(self, node: fx.Node) -> tuple[Any, str, str]:
        """(op, path, kind) of a call."""
        target = str(node.target)
        if node.op == "call_module":
            module = self.module.get_submodule(target)
            return module, target, type(module).__name__
        if node.op == "get_attr":
            held = operator.attrgetter(target)(self.module)
            kind = "Parameter" if isinstance(held, torch.nn.Parameter) else "Buffer"
            return held, target, kind
        kind = kind_of(node)
        within = [path for path, *_ in (node.meta.get("nn_module_stack") or {}).values()]
        return node.target, ".".join(part for part in (*within[-1:], kind) if part), kind


def _value(node: fx.Node, name: str, producer: Call | None) -> Value:
    return Value(node, name, producer, node.meta.get("qi_shape"), node.meta.get("qi_dtype", ""))


def _nodes(argument: Any) -> Iterator[fx.Node]:
    """The nodes in an argument, in order, as often as they stand there."""
    if isinstance(argument, fx.Node):
        yield argument
    elif isinstance(argument, dict):
        for held in argument.values():
            yield from _nodes(held)
    elif isinstance(argument, (tuple, list)):
        for held in argument:
            yield from _nodes(held)
    elif isinstance(argument, slice):
        yield from _nodes((argument.start, argument.stop, argument.step))
