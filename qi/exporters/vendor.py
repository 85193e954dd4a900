"""A quantized file of anybody's as a small neutral graph: what `qi.exporters.import_ranges` matches with a Keras model.

Readers (`read_litert`, `read_onnx`) turn a file into it. Dequantization is no operation here: real numbers and the codes they
come from are one tensor. A step to codes is a node "quantize", and what a node does besides its main business (a fused ReLU) is
a node of its own. Kinds are named by what they compute; those that only move values are "move".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qi.core import IntGrid, QParams
from qi.errors import ConfigError, FileFormatError

__all__ = [
    "TRANSPARENT",
    "Constant",
    "VendorGraph",
    "VendorNode",
    "VendorTensor",
    "activation_params",
    "along",
    "attach_biases",
]

TRANSPARENT = ("move", "quantize")
"""Kinds whose result holds the values of their input."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant of a file.

    Attributes:
        name: in the file.
        data: codes where there are scales, else values.
        scale: float32, of the rank of the data, 1 along axes that share it; None for values.
        zero_point: integers of the scale's shape.
        bits: of a code.
    """

    name: str
    data: np.ndarray
    scale: np.ndarray | None = None
    zero_point: np.ndarray | None = None
    bits: int = 8

    @property
    def quantized(self) -> bool:
        """Whether it holds codes."""
        return self.scale is not None

    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> Constant:
        """With other axes, for codes and scales alike."""
        scale, zero_point = (None if a is None else change(a) for a in (self.scale, self.zero_point))
        return Constant(self.name, change(self.data), scale, zero_point, self.bits)

    def upright(self) -> Constant:
        """With positive scales, and the same numbers: codes run the other way where a scale is negative.

        Some tools give a block the scale ``extreme / -8``, so that its extreme is a code in any case; and blocks of zeros none.
        """
        if self.scale is None or self.zero_point is None or (self.scale > 0).all():
            return self
        ends = -1 if self.data.dtype.kind == "i" else (1 << self.bits) - 1  # the least and the greatest code together
        zeros = np.where(self.scale < 0, ends - self.zero_point, self.zero_point)
        codes = np.where(self.scale < 0, ends - self.data.astype(np.int64), self.data)
        codes = np.where(self.scale == 0, zeros, codes).astype(self.data.dtype)
        scale = np.where(self.scale == 0, np.float32(1), np.abs(self.scale))
        return Constant(self.name, codes, scale, zeros, self.bits)

    def real(self) -> np.ndarray:
        """What it stands for, in float32."""
        if self.scale is None or self.zero_point is None:
            return self.data.astype(np.float32)
        exact = (self.data.astype(np.float64) - self.zero_point) * self.scale.astype(np.float64)
        return np.asarray(exact, np.float32)


@dataclass(eq=False)
class VendorTensor:
    """A tensor that is computed; `qparams` says how its codes are to be read, where it has codes."""

    name: str
    qparams: QParams | None = None


@dataclass(eq=False)
class VendorNode:
    """An operation.

    Attributes:
        kind: such as "linear" (convolutions, products with constant weights), "add", "average", "relu", "move", "quantize".
        inputs: those that are computed; constants are left out, but for weights.
        outputs: what it gives.
        weight: of "linear" and "embedding", with its axes as Keras has them.
        bias: of "linear".
        constants: other constant inputs.
        parted: whether the file rounds to codes before it adds the bias.
        dynamic: whether the runtime rounds what a product takes to codes as it comes, in a way that no twin does.
        plain: whether it doesn't, where the twin would if it wasn't told.
        real: whether the runtime does it in real numbers, where it is steps on codes in our own files.
    """

    kind: str
    inputs: list[VendorTensor]
    outputs: list[VendorTensor]
    weight: Constant | None = None
    bias: Constant | None = None
    constants: list[Constant] = field(default_factory=list)
    parted: bool = False
    dynamic: bool = False
    plain: bool = False
    real: bool = False


class VendorGraph:
    """What a file computes.

    Args:
        inputs: (name, tensor) of what is fed.
        outputs: (name, tensor) of what comes out.
        nodes: in the order of their running.

    Attributes:
        changed: whether it is a file of ours that something changed since.
    """

    def __init__(
        self,
        inputs: Sequence[tuple[str, VendorTensor]],
        outputs: Sequence[tuple[str, VendorTensor]],
        nodes: list[VendorNode],
    ) -> None:
        self.changed = False
        self.inputs, self.outputs, self.nodes = list(inputs), list(outputs), nodes
        self._producers = {id(tensor): node for node in nodes for tensor in node.outputs}
        self._consumers: dict[int, list[VendorNode]] = {}
        for node in nodes:
            for tensor in {id(t): t for t in node.inputs}.values():
                self._consumers.setdefault(id(tensor), []).append(node)

    def producer(self, tensor: VendorTensor) -> VendorNode | None:
        """The node that gives a tensor; None for what is fed."""
        return self._producers.get(id(tensor))

    def root(self, tensor: VendorTensor) -> VendorTensor:
        """The tensor whose values these are, moved or rounded."""
        return self._back(tensor, TRANSPARENT, lambda t: False)

    def stated(self, tensor: VendorTensor) -> QParams | None:
        """Scale and zero point of a tensor as a node takes it; None where it takes real numbers that were never rounded."""
        return self._back(tensor, ("move",), lambda t: t.qparams is not None).qparams

    def settled(self, tensor: VendorTensor) -> QParams | None:
        """Scale and zero point of a tensor as it is given: its own, or those that all who take it round it to first."""
        if tensor.qparams is not None:
            return tensor.qparams
        found = self._taken_as(tensor)
        alike = bool(found) and all(qparams == found[0] for qparams in found)
        return found[0] if alike else None

    def users(self, tensor: VendorTensor) -> list[VendorNode]:
        """The nodes that take a tensor, moved or rounded."""
        found: dict[int, VendorNode] = {}
        for taken in self._spread(tensor, TRANSPARENT):
            for node in self._consumers.get(id(taken), []):
                if node.kind not in TRANSPARENT:
                    found[id(node)] = node
        return list(found.values())

    def gives(self, tensor: VendorTensor) -> bool:
        """Whether a tensor, moved or rounded, comes out of the file."""
        spread = {id(t) for t in self._spread(tensor, TRANSPARENT)}
        return any(id(output) in spread for _, output in self.outputs)

    def _back(self, tensor: VendorTensor, through: Sequence[str], stop: Callable[[VendorTensor], bool]) -> VendorTensor:
        seen: set[int] = set()
        while not stop(tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            node = self.producer(tensor)
            if node is None or node.kind not in through or not node.inputs:
                break
            tensor = node.inputs[0]
        return tensor

    def _spread(self, tensor: VendorTensor, through: Sequence[str]) -> list[VendorTensor]:
        found, todo = {id(tensor): tensor}, [tensor]
        while todo:
            for node in self._consumers.get(id(todo.pop()), []):
                for output in node.outputs if node.kind in through else ():
                    if id(output) not in found:
                        found[id(output)] = output
                        todo.append(output)
        return list(found.values())

    def _taken_as(self, tensor: VendorTensor) -> list[QParams | None]:
        """For each use of a tensor of real numbers, what it is rounded to."""
        found: list[QParams | None] = []
        for moved in self._spread(tensor, ("move",)):
            if any(moved is output for _, output in self.outputs):
                found.append(moved.qparams)
            for node in self._consumers.get(id(moved), []):
                if node.kind != "move":
                    found.append(node.outputs[0].qparams if node.kind == "quantize" else moved.qparams)
        return found


def activation_params(name: str, scale: Any, zero_point: Any, bits: int, signed: bool) -> QParams | None:
    """Scale and zero point of an activation; None where it has several.

    Raises:
        FileFormatError: a scale that is no positive number, or a zero point that is no code.
    """
    scale, zero_point = np.asarray(scale, np.float32).reshape(-1), np.asarray(zero_point).reshape(-1)
    if scale.size != 1 or zero_point.size > 1:
        return None
    try:
        return QParams(
            scale.reshape(()),
            zero_point.reshape(()) if zero_point.size else np.asarray(0),
            IntGrid(bits, signed=signed),
        )
    except ConfigError as error:
        raise FileFormatError(f"expected {name!r} to have a scale and a zero point; {error}") from error


def along(name: str, array: Any, rank: int, axis: int, size: int) -> np.ndarray:
    """One number, or one for each channel, in a shape that broadcasts against a constant.

    Args:
        name: of the constant, for errors.
        array: the numbers.
        rank: of the constant.
        axis: of its channels.
        size: how many there are.

    Raises:
        FileFormatError: their count fits neither.
    """
    flat: np.ndarray = np.asarray(array).reshape(-1)
    if flat.size == 1:
        return flat.reshape((1,) * rank)
    if not -rank <= axis < rank or flat.size != size:
        raise FileFormatError(
            f"expected one scale for {name!r}, or one for each of its {size} channels; received {flat.size}"
        )
    return flat.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def attach_biases(graph: VendorGraph) -> VendorGraph:
    """The same graph, where products that are followed by the addition of a constant have it as their bias."""
    for node in list(graph.nodes):
        if node.kind != "linear" or node.bias is not None or node.weight is None:
            continue
        users = graph.users(node.outputs[0])
        if len(users) != 1 or users[0].kind != "add" or len(users[0].inputs) != 1 or graph.gives(node.outputs[0]):
            continue
        adds, count = users[0], node.weight.data.shape[-1]
        if len(adds.constants) == 1 and adds.constants[0].data.size == count:
            node.parted = graph.settled(node.outputs[0]) is not None
            node.bias, node.outputs = adds.constants[0], adds.outputs
            graph.nodes.remove(adds)
    return VendorGraph(graph.inputs, graph.outputs, graph.nodes)
