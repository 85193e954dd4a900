"""From a quantized torch model to `qi.ir.QGraph`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

import qi.torch.lower_activations
import qi.torch.lower_linear
import qi.torch.lower_merges
import qi.torch.lower_norms
import qi.torch.lower_pools
import qi.torch.lower_products
import qi.torch.lower_shapes  # noqa: F401 - the modules register what they lower
from qi.errors import ConfigError, InputError, UnsupportedError
from qi.ir.graph import Op, QGraph, Tensor, take_name
from qi.ir.lowered import part_outputs, signed_qparams
from qi.ir.passes import fuse
from qi.torch.graph import Call, Graph
from qi.torch.holder import PytorchActivationQuantizationHolder
from qi.torch.lower_inputs import graph_of, sample_inputs
from qi.torch.lower_run import BATCHES, Form, Found, run_twice
from qi.torch.lowering import LOWERINGS, WAY_OUT, Laid, Shape, Site, plain_order, real_dtype
from qi.torch.variables import to_numpy
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = ["lower", "lower_both"]

_INSTEAD = {
    **dict.fromkeys(
        ("LogSoftmax", "log_softmax", "argmax", "argmin", "topk", "sort", "softmin"),
        "leave it to who takes the model's output",
    ),
    **dict.fromkeys(("SELU", "CELU", "Mish", "selu", "celu", "mish"), "use ReLU, GELU, SiLU or Hardswish"),
    **dict.fromkeys(("Conv3d", "ConvTranspose3d", "MaxPool3d", "AvgPool3d"), "use two dimensions"),
    "where": "add a constant mask of large negative numbers to the scores in its place",
    **dict.fromkeys(("sum",), "use mean, and a product with the count"),
    **dict.fromkeys(("norm", "normalize", "var", "std"), "use LayerNorm or RMSNorm"),
    **dict.fromkeys(
        ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"), "use convolutions or attention along the sequence"
    ),
    "MultiheadAttention": "give it batch_first=True and no masks, so that quantize_model can write it out",
    "einsum": "use matmul",
}
"""What serves in the place of classes and functions without a lowering."""


def lower(model: torch.nn.Module, example_inputs: Any = None, *, fused: bool = True) -> QGraph:
    """The integer graph that a quantized model stands for.

    Args:
        model: from `qi.torch.quantize_model` or `qi.torch.convert`, or one of your own with inferable wrappers and holders that
            torch.fx can trace. It is only read.
        example_inputs: what the model takes: a tensor or array, a tuple of them for several arguments, or a dict by their names.
            Sizes and types alone count. By default as the model was traced with.
        fused: whether to fuse; else operations are on real numbers, with a "quantize" wherever a quantizer sits.

    Returns:
        a valid graph, for any target. It takes and gives tensors as the model does (images with channels first); within,
        channels lie last.

    Raises:
        UnsupportedError: a float model, one that still trains or that can't be traced, or a module or function that no integer
            graph can hold; it is named.
        InputError: no example where one is needed, one that the model can't take, or weights off their grid.

    Example:
        >>> import torch, qi
        >>> from qi.torch import PytorchActivationQuantizationHolder as Holder, PytorchQuantizationWrapper as Wrapper
        >>> linear = torch.nn.Linear(8, 4)
        >>> weights = qi.WeightsSymmetricInferableQuantizer(8, 1.0, per_channel=False, narrow_range=True)
        >>> wrapper = Wrapper(linear, qi.torch.PytorchNodeQuantizationDispatcher(weights))
        >>> holders = [Holder(qi.ActivationSymmetricInferableQuantizer(8, t, signed=True)) for t in (4.0, 8.0)]
        >>> [op.kind for op in lower(torch.nn.Sequential(holders[0], wrapper, holders[1]), torch.zeros(1, 8)).ops]
        ['quantize', 'dense']
    """
    graph = graph_of(model, example_inputs)
    _check_quantized(graph)
    inputs = sample_inputs(graph, example_inputs)
    feed = [(value.node, tensor) for value, tensor in zip(graph.inputs, inputs, strict=True)]
    return _Lowering(graph, run_twice(graph.module, feed)).run(fused)


def lower_both(model: torch.nn.Module, example_inputs: Any = None) -> tuple[QGraph, QGraph]:
    """(`lower` of a model, the same with ``fused=False``) for the work of one."""
    plain = lower(model, example_inputs, fused=False)
    fused = fuse(plain.copy())
    names = {before.name: after.name for before, after in zip(plain.outputs, fused.outputs, strict=True)}
    fused.output_structure = _renamed(plain.output_structure, names)
    return fused, plain


def _renamed(structure: Any, names: dict[str, str]) -> Any:
    if isinstance(structure, str):
        return names[structure]
    if isinstance(structure, dict):
        return {key: _renamed(value, names) for key, value in structure.items()}
    return [_renamed(value, names) for value in structure]


def _check_quantized(graph: Graph) -> None:
    ops = [(call.path, graph.op_of(call)) for call in graph.calls]
    ours = [op for op in ops if isinstance(op[1], (PytorchQuantizationWrapper, PytorchActivationQuantizationHolder))]
    if not ours:
        raise UnsupportedError(
            "expected a quantized model; received one in which nothing is quantized; do give what quantize_model or convert "
            "returns"
        )
    for path, op in ours:
        if op.trains if isinstance(op, PytorchQuantizationWrapper) else op.bound.trains:
            raise UnsupportedError(
                f"expected a model that is done with training; received one in which {path!r} still trains; do call "
                "qi.torch.convert first"
            )


class _Lowering:
    """The work on one model: nodes become tensors in the order of their running."""

    def __init__(self, graph: Graph, found: dict[fx.Node, Found]) -> None:
        self.traced, self.found = graph, found
        self.calls = {call.node: call for call in graph.calls}
        self.values: dict[fx.Node, Any] = {}
        self.names: set[str] = set()
        self.result = QGraph(type(graph.module).__name__, [], [], [])

    def run(self, fused: bool) -> QGraph:
        """The integer graph."""
        for value in self.traced.inputs:
            shape, dtype = self._told(value.node, value.name)
            tensor = Tensor(take_name(value.name, self.names), shape, real_dtype(dtype))
            self.result.inputs.append(tensor)
            self.values[value.node] = Laid(tensor, shape, plain_order(len(shape)))
        for node in self.traced.module.graph.nodes:
            if node.op == "output":
                self._outputs(node)
            elif node not in self.values and node in self.found:
                self.values[node] = self._value(node)
        _prune(self.result)
        before = [tensor.name for tensor in self.result.outputs]
        part_outputs(self.result, self.names)
        if fused:
            fuse(self.result)
        names = dict(zip(before, (tensor.name for tensor in self.result.outputs), strict=True))
        self.result.output_structure = _renamed(self.result.output_structure, names)
        return self.result

    # Nodes ----------------------------------------------------------------------------------------------------------------

    def _value(self, node: fx.Node) -> Any:
        found = self.found[node]
        if not found.depends:
            return found.results[0]
        if node.target is operator.getitem and isinstance(self.values.get(node.args[0]), (list, dict)):
            return self.values[node.args[0]][node.args[1]]
        if node not in self.calls:
            raise UnsupportedError(
                f"expected calls that give tensors; received {str(node)!r}, which reads numbers out of one; do leave them to who "
                "takes the model's output"
            )
        call = self.calls[node]
        try:
            return self._lowered(call)
        except ConfigError as error:
            raise InputError(f"expected quantizers that can be; received module {call.path!r}: {error}") from error

    def _lowered(self, call: Call) -> Any:
        call.op = self.traced.op_of(call)
        site = Site(call, self.result, self.names, self._arguments(call), self._forms(call))
        if isinstance(call.op, PytorchActivationQuantizationHolder):
            return _held(site, call.op.bound, site.x)
        if site.kind not in LOWERINGS.names():
            raise site.refuse(*_unknown(site))
        outputs = LOWERINGS.get(site.kind)(site)
        if not isinstance(call.op, PytorchQuantizationWrapper) or not call.op.activation_quantizers:
            return outputs
        if isinstance(outputs, list):
            return [_held(site, bound, y) for bound, y in zip(call.op.activation_quantizers, outputs, strict=True)]
        return _held(site, call.op.activation_quantizers[0], outputs)

    def _arguments(self, call: Call) -> tuple[Any, Any]:
        """(args, kwargs) of a call, tensors as `Laid`, all else as it was when the model ran."""
        args, kwargs = (fx.map_arg(given, self._given) for given in (call.node.args, call.node.kwargs))
        return args, kwargs

    def _given(self, node: fx.Node) -> Any:
        value = self.values.get(node)
        return self._constant(node, value) if isinstance(value, torch.Tensor) else value

    def _constant(self, node: fx.Node, value: torch.Tensor) -> Laid:
        """A constant; one that has a row for each sample, with that row alone."""
        first, second = (to_numpy(result) for result in self.found[node].results)
        rows = first.shape != second.shape
        if rows:
            first, second = first[:1], second[:1]
        repeats = rows and all((np.asarray(to_numpy(r)) == first).all() for r in self.found[node].results)
        if (rows and not repeats) or not np.array_equal(first, second, equal_nan=True):
            raise UnsupportedError(
                f"expected constants that don't depend on the size of the batch; received {str(node)!r}; do make it of the "
                "model's inputs, or for one sample"
            )
        if first.dtype.kind == "f":
            first = first.astype(np.float32)
        tensor = Tensor(take_name(str(node), self.names), first.shape, real_dtype(str(first.dtype)), data=first)
        shape = (None, *first.shape[1:]) if rows else first.shape
        laid = Laid(tensor, shape, plain_order(len(shape)))
        op = self.traced.op_of(self.calls[node]) if node in self.calls else None
        if not isinstance(op, PytorchActivationQuantizationHolder):
            return laid
        self.calls[node].op = op
        return _held(Site(self.calls[node], self.result, self.names, ((), {}), [(shape, "float32")]), op.bound, laid)

    def _forms(self, call: Call) -> list[tuple[Shape, str]]:
        """(shape, type) of each tensor that a call gives."""
        results = self.found[call.node].results
        if all(isinstance(result, Form) for result in results):
            return [self._told(call.node, call.path)]
        return [_joint(call.path, forms) for forms in zip(*map(_leaves, results), strict=True)]

    def _told(self, node: fx.Node, path: str) -> tuple[Shape, str]:
        return _joint(path, self.found[node].results)

    def _outputs(self, node: fx.Node) -> None:
        def told(value: Any) -> Any:
            if isinstance(value, dict):
                return {str(key): told(held) for key, held in value.items()}
            if isinstance(value, (list, tuple)):
                return [told(held) for held in value]
            laid = self._given(value) if isinstance(value, fx.Node) else value
            if isinstance(laid, list):
                return [self._output(item) for item in laid]
            return self._output(laid)

        self.result.output_structure = told(node.args[0])
        self.result.input_structure = [tensor.name for tensor in self.result.inputs]

    def _output(self, laid: Any) -> str:
        if not isinstance(laid, Laid) or laid.constant:
            raise UnsupportedError(
                f"expected outputs that are tensors made of the model's inputs; received {type(laid).__name__}; do give none but "
                "these"
            )
        name = laid.tensor.name
        call = Call(self.traced.outputs[0].node, "", name, "output")
        form = (laid.shape, laid.tensor.dtype)
        tensor = Site(call, self.result, self.names, ((), {}), [form]).plain(laid)
        if any(tensor is other for other in self.result.outputs):
            same = Tensor(take_name(name, self.names), tensor.shape, tensor.dtype)
            self.result.ops.append(Op("reshape", [tensor], [same], {"shape": list(tensor.shape)}, name))
            tensor = same
        self.result.outputs.append(tensor)
        return tensor.name


def _prune(graph: QGraph) -> None:
    """Leaves out what nothing takes, such as parts that were cut but aren't used."""
    used = {id(tensor) for tensor in graph.outputs}
    for op in reversed(list(graph.ops)):
        if any(id(tensor) in used for tensor in op.outputs):
            used.update(id(tensor) for tensor in op.inputs)
        else:
            graph.ops.remove(op)


def _leaves(value: Any) -> list[Form]:
    if isinstance(value, Form):
        return [value]
    held = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [form for item in held for form in _leaves(item)]


def _joint(path: str, forms: Sequence[Form]) -> tuple[Shape, str]:
    """The shape of a tensor by what both runs gave, with None for the batch.

    Raises:
        UnsupportedError: there isn't one axis that has the batch's size.
    """
    shapes = [form.shape for form in forms]
    sizes = list(zip(*shapes, strict=True)) if len(shapes[0]) == len(shapes[1]) else []
    differing = [axis for axis, pair in enumerate(sizes) if pair[0] != pair[1]]
    if len(differing) != 1 or sizes[differing[0]] != BATCHES:
        raise UnsupportedError(
            f"expected tensors with the samples of the batch along an axis of their own; received {path!r}, which gives shapes "
            f"{shapes[0]} and {shapes[1]} for {BATCHES[0]} and {BATCHES[1]} samples; do leave the batch in front, and apart from "
            "other axes"
        )
    return tuple(None if axis == differing[0] else n for axis, n in enumerate(shapes[0])), forms[0].dtype


def _unknown(site: Site) -> tuple[str, str]:
    """What is to say of a call without a lowering, and what to do about it."""
    if site.kind:
        return "which has no lowering", _INSTEAD.get(site.kind, WAY_OUT)
    if site.module is not None:
        return "which is no module of torch's own and wasn't followed", "make it of torch's modules and functions"
    return "which is no function of torch's own", "make it of torch's modules and functions"


def _held(site: Site, bound: Any, x: Laid) -> Laid:
    """A "quantize" for what an activation quantizer does."""
    quantizer = bound.current()
    if not (bound.enabled and quantizer.enabled):
        return x
    qparams = quantizer.qparams((1,))
    if qparams.scale.size != 1:
        raise site.refuse("whose activation has several scales", "give it one")
    qparams = signed_qparams(qparams)
    if x.tensor.data is not None:
        values = np.asarray(x.tensor.values(), np.float32)
        codes = np.array(qparams.quantize(values).codes)  # values that were quantized before give the same codes again
        return site.like(x, Tensor(site.name("codes"), codes.shape, "float32", qparams, codes))
    value = Tensor(site.name(), x.tensor.shape, "float32", qparams)
    site.graph.ops.append(Op("quantize", [x.tensor], [value], {}, site.call.path))
    return site.like(x, value)
