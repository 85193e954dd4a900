"""The table of lowerings: how a call of a Keras layer or operation becomes operations of `qi.ir`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from qi.core import IntGrid, LutGrid, QParams, QTensor
from qi.errors import UnsupportedError
from qi.ir.graph import Op, QGraph, Tensor, take_name
from qi.ir.kinds import TARGETS
from qi.ir.lowered import changed_qparams
from qi.ir.told import told
from qi.keras.fold import activation_name
from qi.keras.graph import Call
from qi.keras.variables import to_numpy, weights_of
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.registry import Registry

__all__ = ["LOWERINGS", "WAY_OUT", "Site", "lowering", "real_dtype"]

_TAKES_INDICES = (
    "Embedding",
    "ReversibleEmbedding",
    "Take",
    "Cast",
    "OneHot",
    "Where",
    "Sequential",
    "Pipeline",
    "TimeDistributed",
)

WAY_OUT = "train with another layer in its place, or use the model in Keras alone"
"""Where nothing better is known."""

LOWERINGS: Registry[Callable[[Site], Any]] = Registry("lowering")


def real_dtype(dtype: str) -> str:
    """The type of a tensor: real numbers are float32 in a graph, whatever the model computes in."""
    return "float32" if "float" in dtype else dtype


def lowering(*kinds: str) -> Callable[[Callable[[Site], Any]], Callable[[Site], Any]]:
    """Registers how calls of Keras classes are lowered, by class name.

    The function takes the `Site` and gives the output's tensor, or a list of them.
    """

    def add(function: Callable[[Site], Any]) -> Callable[[Site], Any]:
        for kind in kinds:
            LOWERINGS.register(kind)(function)
        return function

    return add


def _entries(tensor: QTensor) -> QTensor:
    """Codes that are indices of a table as the table's entries, which are integers of a grid: they stand for the same values."""
    params = tensor.qparams
    if not isinstance(params.grid, LutGrid):
        return tensor
    codes = np.asarray(params.grid.values)[tensor.codes]
    grid = IntGrid(params.grid.bits, params.grid.signed)
    return QTensor(codes.astype(grid.storage_dtype), replace(params, grid=grid))


class Site:
    """One call that is being lowered: its layer, its inputs, and the graph that grows.

    Attributes:
        layer: the layer or operation, out of its wrapper.
        call: in the Keras graph.
        graph: gets the operations.
        inputs: tensors, in argument order.
    """

    def __init__(self, call: Call, graph: QGraph, inputs: list[Tensor], names: set[str]) -> None:
        wrapper = call.op if isinstance(call.op, KerasQuantizationWrapper) else None
        self.layer: Any = wrapper.layer if wrapper is not None else call.op
        self.call, self.graph, self.inputs = call, graph, inputs
        self._quantized: dict[str, QTensor] = wrapper.get_quantized_tensors() if wrapper is not None else {}
        self._names = names
        self._shape: tuple[int | None, ...] | None = None

    @property
    def x(self) -> Tensor:
        """The first input."""
        return self.inputs[0]

    @property
    def kind(self) -> str:
        """Class name of the layer or operation, if it is one of Keras' own, or of ours."""
        own = type(self.layer).__module__.partition(".")[0] in ("keras", "qi")
        return type(self.layer).__name__ if own else ""

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the (first) output."""
        return self.call.outputs[0].shape if self._shape is None else self._shape

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """(args, kwargs) of the call, with the inputs' tensors in their places."""
        if self._shape is not None:
            return [*self.inputs], {}
        args, kwargs = self.call.arguments(self.inputs)
        return list(args), dict(kwargs)

    def within(self, layer: Any, x: Tensor, shape: Iterable[int | None]) -> Site:
        """The call of a layer that this one holds.

        Args:
            layer: it; its weights are quantized as those of this one are.
            x: all that it takes.
            shape: of what it gives.
        """
        inner = copy(self)
        inner.layer, inner.inputs, inner._shape = layer, [x], tuple(shape)
        paths = {id(variable): path for path, variable in weights_of(self.layer).items()}
        found = {path: paths.get(id(variable)) for path, variable in weights_of(layer).items()}
        inner._quantized = {path: self._quantized[of] for path, of in found.items() if of in self._quantized}
        return inner

    def cut(
        self, x: Tensor, begin: list[int], end: list[int | None], strides: list[int], suffix: str = "", **options: Any
    ) -> Tensor:
        """A slice, an entry an axis; x itself where that is all of it."""
        shape = tuple(
            n if n is None else len(range(*slice(b, e, s).indices(n)))
            for n, b, e, s in zip(x.shape, begin, end, strides, strict=True)
        )
        if shape == x.shape:
            return x
        return self.emit("slice", [x], shape, suffix=suffix, begin=begin, end=end, strides=strides, **options)

    def refuse(self, what: str, way_out: str = WAY_OUT) -> UnsupportedError:
        """The error for something that can't be lowered."""
        return UnsupportedError(
            f"expected layers that integer graphs for {', '.join(sorted(TARGETS))} hold; received {told(self.call.path)} of "
            f"class {type(self.layer).__name__}, {what}; do {way_out}"
        )

    def has(self, path: str) -> bool:
        """Whether the layer has a weight of that path."""
        return path in weights_of(self.layer)

    def array(self, path: str) -> np.ndarray:
        """A weight that stays in float, as float32."""
        return to_numpy(weights_of(self.layer)[path]).astype(np.float32)

    def weight(self, path: str, change: Callable[[np.ndarray], np.ndarray] = lambda array: array) -> Tensor:
        """A weight as a constant: codes where it is quantized.

        Args:
            path: within the layer.
            change: of its axes; applied to codes and scales alike, so it may neither join nor part scales.
        """
        name = self.name(path)
        if path not in self._quantized:
            array = change(self.array(path))
            return Tensor(name, array.shape, data=array)
        tensor = _entries(self._quantized[path])
        qparams = tensor.qparams
        codes = change(tensor.codes)
        if qparams.scale.size > 1:
            qparams = changed_qparams(qparams, change, codes.shape, tensor.codes.shape)
        else:
            qparams = QParams(qparams.scale.reshape(()), qparams.zero_point.reshape(()), qparams.grid)
        return Tensor(name, codes.shape, "float32", qparams, codes)

    def constant(self, name: str, array: Any) -> Tensor:
        """A constant of real numbers (float32) or indices."""
        array = np.asarray(array)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        return Tensor(self.name(name), array.shape, str(array.dtype), data=array)

    def name(self, suffix: str = "") -> str:
        """A name for a tensor that nothing else has: that of the call's site, with a suffix."""
        return take_name(f"{self.call.site}/{suffix}" if suffix else self.call.site, self._names)

    def emit(
        self, kind: str, inputs: list[Tensor], gives: Any = None, /, *, suffix: str = "", dtype: str = "", **attrs: Any
    ) -> Tensor:
        """Adds an operation.

        Args:
            kind: of `qi.ir.kinds`.
            inputs: its tensors.
            gives: the shape of its output; by default that of the call.
            suffix: of the output's name.
            dtype: of the output; by default that of the call.
            attrs: the operation's.

        Returns:
            its output.
        """
        shape = tuple(self.shape if gives is None else gives)
        value = Tensor(self.name(suffix), shape, real_dtype(dtype or self.call.outputs[0].dtype))
        self.graph.ops.append(Op(kind, inputs, [value], attrs, self.call.path))
        return value

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """Adds a change of type, where there is any."""
        to = real_dtype(dtype)
        return x if x.dtype == to else self.emit("cast", [x], x.shape, suffix="cast", dtype=to, to=to)

    def cast_inputs(self) -> None:
        """Makes integers real numbers where the call gives real numbers, as Keras does; indices stay."""
        if self.call.outputs[0].is_float and self.kind not in _TAKES_INDICES:
            self.inputs = [self.cast(x, "float32") for x in self.inputs]

    def activate(self, x: Tensor, function: Any = None) -> Tensor:
        """Adds the layer's activation function, or that of a layer given."""
        from qi.keras.lower_activations import activate

        layer = self.layer if function is None else function
        return activate(self, x, activation_name(layer))

    def reshape(self, x: Tensor, shape: Any, suffix: str = "reshape") -> Tensor:
        """Adds a reshape of everything but the batch."""
        shape = tuple(shape)
        if sum(n is None for n in shape[1:]):
            raise self.refuse(f"whose sizes {shape} are open", "give the model an Input of fixed sizes")
        return self.emit("reshape", [x], shape, suffix=suffix, dtype=x.dtype, shape=list(shape))

    def sizes(self, tensor: Tensor) -> tuple[int, ...]:
        """The sizes of a tensor without its batch.

        Raises:
            UnsupportedError: one of them is open.
        """
        if any(n is None for n in tensor.shape[1:]):
            raise self.refuse(f"whose input has open sizes {tensor.shape}", "give the model an Input of fixed sizes")
        return tuple(int(n) for n in tensor.shape[1:] if n is not None)
