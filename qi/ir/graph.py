"""QGraph: a model as integer operations, with scale and zero point on every tensor that holds codes.

Two readings of one graph: an operation all of whose tensors are quantized is done in integers, as the target runtime does it;
any other is done in real numbers, on what the codes of its inputs stand for. Shapes are NHWC, as in Keras; the size of the
batch is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qi.core import IntGrid, QParams
from qi.errors import ConfigError
from qi.typing import Json

__all__ = ["Op", "QGraph", "Tensor", "take_name"]


def take_name(name: str, taken: set[str]) -> str:
    """The name, or the first of name_1, name_2... that isn't taken; taken from now on."""
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


@dataclass(eq=False)
class Tensor:
    """One tensor.

    Attributes:
        name: unique in its graph.
        shape: None where a size is open (the batch).
        dtype: of the real numbers, indices or truth values it stands for, such as "float32"; codes are told by `qparams`.
        qparams: how its codes are to be read; None where it holds plain values.
        data: of a constant: its codes, or its values where `qparams` is None.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    qparams: QParams | None = None
    data: np.ndarray | None = None

    @property
    def quantized(self) -> bool:
        """Whether it holds codes."""
        return self.qparams is not None

    @property
    def constant(self) -> bool:
        """Whether it is known beforehand."""
        return self.data is not None

    @property
    def scale(self) -> np.float32:
        """The one scale of an activation.

        Raises:
            ConfigError: no scale, or one for each channel.
        """
        return np.float32(self._one("scale"))

    @property
    def zero_point(self) -> int:
        """The one zero point of an activation."""
        return int(self._one("zero_point"))

    def scales(self) -> np.ndarray:
        """All its scales, [channels] or [1].

        Raises:
            ConfigError: it holds plain values.
        """
        if self.qparams is None:
            raise ConfigError(f"expected {self.name!r} to hold codes")
        return self.qparams.scale.reshape(-1)

    def _one(self, name: str) -> Any:
        array = getattr(self.qparams, name, None)
        if array is None or array.size != 1:
            raise ConfigError(f"expected {self.name!r} to have one {name}; received {array}")
        return array.reshape(())

    @property
    def grid(self) -> IntGrid:
        """The codes it may hold.

        Raises:
            ConfigError: it holds plain values, or a look-up table's.
        """
        grid = self.qparams.grid if self.qparams is not None else None
        if not isinstance(grid, IntGrid):
            raise ConfigError(f"expected {self.name!r} to hold integers of a grid; received {grid}")
        return grid

    def values(self) -> np.ndarray:
        """What a constant stands for, in its dtype.

        Raises:
            ConfigError: it is no constant.
        """
        if self.data is None:
            raise ConfigError(f"expected {self.name!r} to be a constant")
        if self.qparams is None:
            return self.data
        scale, zero_point = self.qparams.expanded(self.data.shape)
        real = (self.data.astype(np.float32) - zero_point.astype(np.float32)) * scale
        return np.asarray(real, self.dtype)

    def __str__(self) -> str:
        shape = "x".join("?" if n is None else str(n) for n in self.shape) or "scalar"
        if self.qparams is None:
            return f"{self.name}: {self.dtype}[{shape}]"
        grid, scale = self.qparams.grid, self.qparams.scale
        bits = f"int{grid.bits}" if isinstance(grid, IntGrid) else "lut"
        how = f"s={scale.reshape(()):.6g} z={self.zero_point}" if scale.size == 1 else f"{scale.size} scales"
        return f"{self.name}: {bits}[{shape}] ({how})"


@dataclass(eq=False)
class Op:
    """One operation.

    Attributes:
        kind: a name of `qi.ir.ops`, such as "conv2d".
        inputs: activations first, then weights; the registry says how many.
        outputs: one, save where the kind says otherwise.
        attrs: plain JSON values; the registry says which.
        source: path of the layer it came from.
    """

    kind: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    attrs: Json = field(default_factory=dict)
    source: str = ""

    @property
    def x(self) -> Tensor:
        """Its first input."""
        return self.inputs[0]

    @property
    def y(self) -> Tensor:
        """Its first output."""
        return self.outputs[0]

    @property
    def quantized(self) -> bool:
        """Whether it is done in integers: it takes or gives real numbers, all of them as codes."""
        reals = [t.quantized for t in (*self.inputs, *self.outputs) if t.dtype.startswith("float")]
        return bool(reals) and all(reals)

    def __str__(self) -> str:
        attrs = "".join(f" {key}={value}" for key, value in self.attrs.items() if value not in (None, "none"))
        inputs = ", ".join(t.name if not t.constant else f"[{t}]" for t in self.inputs)
        return f"{', '.join(map(str, self.outputs))} = {self.kind}({inputs}){attrs}"


@dataclass(eq=False)
class QGraph:
    """Operations in the order of their running.

    Attributes:
        name: the model's.
        inputs: the tensors to feed.
        outputs: the tensors that are asked for.
        ops: each takes constants, inputs and outputs of those before it.
        input_structure: names of the inputs as the model nests them: a name, or lists and objects of names.
        output_structure: the outputs' likewise.
        target: the runtime it was routed for; "" before that.
        merged: names of tensors that were reshaped on and so left out -> those that hold the same numbers.
    """

    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    ops: list[Op]
    input_structure: Any = None
    output_structure: Any = None
    target: str = ""
    merged: dict[str, str] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """Every tensor once: inputs first, then in the order of the operations."""
        found: dict[int, Tensor] = {id(t): t for t in self.inputs}
        for op in self.ops:
            for tensor in (*op.inputs, *op.outputs):
                found.setdefault(id(tensor), tensor)
        for tensor in self.outputs:
            found.setdefault(id(tensor), tensor)
        return list(found.values())

    def consumers(self) -> dict[int, list[Op]]:
        """The operations that take each tensor, by ``id(tensor)``."""
        table: dict[int, list[Op]] = {}
        for op in self.ops:
            for tensor in op.inputs:
                table.setdefault(id(tensor), []).append(op)
        return table

    def producers(self) -> dict[int, Op]:
        """The operation that gives each tensor, by ``id(tensor)``."""
        return {id(tensor): op for op in self.ops for tensor in op.outputs}

    def substitute(self, old: Tensor, new: Tensor) -> None:
        """Makes whatever takes `old`, the graph's outputs included, take `new`."""
        for op in self.ops:
            op.inputs = [new if tensor is old else tensor for tensor in op.inputs]
        self.outputs = [new if tensor is old else tensor for tensor in self.outputs]

    def copy(self) -> QGraph:
        """A graph of its own operations and tensors; the arrays of constants are shared."""
        made = {id(t): replace(t) for t in self.tensors()}
        ops = [
            Op(op.kind, [made[id(t)] for t in op.inputs], [made[id(t)] for t in op.outputs], dict(op.attrs), op.source)
            for op in self.ops
        ]
        inputs, outputs = ([made[id(t)] for t in tensors] for tensors in (self.inputs, self.outputs))
        return replace(self, inputs=inputs, outputs=outputs, ops=ops, merged=dict(self.merged))

    def unique(self, name: str) -> str:
        """The name, or the first of name_1, name_2... that no tensor has."""
        return take_name(name, {tensor.name for tensor in self.tensors()})

    def __str__(self) -> str:
        lines = [f"QGraph {self.name}" + (f" for {self.target}" if self.target else "")]
        lines += [f"  {tensor} = input" for tensor in self.inputs]
        lines += [f"  {op}" for op in self.ops]
        lines.append(f"  return {', '.join(tensor.name for tensor in self.outputs)}")
        return "\n".join(lines)
