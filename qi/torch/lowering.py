"""The table of lowerings: how a call of a torch module, function or method becomes operations of `qi.ir`.

Images are [batch, channels, height, width] in torch and [batch, height, width, channels] in runtimes. A tensor says how its axes
lie (`Laid`), and is turned round only where an operation wants it otherwise; what moves codes is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qi.core import QParams, QTensor
from qi.errors import UnsupportedError
from qi.ir.graph import Op, QGraph, Tensor, take_name
from qi.ir.kinds import TARGETS
from qi.ir.lowered import changed_qparams
from qi.registry import Registry
from qi.torch.graph import Call
from qi.torch.kinds import torch_class
from qi.torch.variables import to_numpy
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = ["LOWERINGS", "WAY_OUT", "Laid", "Site", "channels_last", "lowering", "plain_order", "real_dtype"]

Shape = tuple[int | None, ...]

WAY_OUT = "train with another module in its place, or use the model in torch alone"
"""Where nothing better is known."""

LOWERINGS: Registry[Callable[[Site], Any]] = Registry("lowering")


def real_dtype(dtype: str) -> str:
    """The type of a tensor: real numbers are float32 in a graph, whatever the model computes in."""
    return "float32" if "float" in dtype else dtype


def lowering(*kinds: str) -> Callable[[Callable[[Site], Any]], Callable[[Site], Any]]:
    """Registers how calls are lowered, by the module's class name, or the plain name of the function or method.

    The function takes the `Site` and gives the output, or a list of them.
    """

    def add(function: Callable[[Site], Any]) -> Callable[[Site], Any]:
        for kind in kinds:
            LOWERINGS.register(kind)(function)
        return function

    return add


def plain_order(rank: int) -> tuple[int, ...]:
    """The axes as torch has them."""
    return tuple(range(rank))


def channels_last(rank: int) -> tuple[int, ...]:
    """Torch's axes with the channels (1) behind the others."""
    return (0, *range(2, rank), 1) if rank > 2 else plain_order(rank)


@dataclass(frozen=True, eq=False)
class Laid:
    """A tensor of the integer graph, and how it holds one of torch's.

    Attributes:
        tensor: of the graph.
        shape: torch's; None for the batch, which may lie anywhere.
        order: axis i of the tensor is torch's axis ``order[i]``.
        flat: [channels, height, width] of the image that torch flattened, where the tensor holds it flattened channels last.
    """

    tensor: Tensor
    shape: Shape
    order: tuple[int, ...]
    flat: tuple[int, ...] | None = None

    @property
    def constant(self) -> bool:
        """Whether it is known beforehand."""
        return self.tensor.constant

    @property
    def batch(self) -> int:
        """Torch's axis of the samples; the tensor has it in front."""
        return self.order[0]

    @property
    def plain(self) -> bool:
        """Whether the tensor is as torch has it."""
        return self.flat is None and self.order == plain_order(len(self.shape))

    def axis(self, axis: int) -> int:
        """Where the tensor has an axis of torch's."""
        return self.order.index(axis % len(self.shape))


def _class_of(module: torch.nn.Module) -> str:
    """The class that says what a module computes: torch's, or one of ours."""
    return type(module).__name__ if type(module).__module__.startswith("qi.") else torch_class(module)


class Site:
    """One call that is being lowered: its module, its arguments, and the graph that grows.

    Attributes:
        call: in the traced graph.
        module: the module, out of its wrapper; None for functions and methods.
        kind: class name of torch's own modules, plain name of its functions and methods; "" for anything else.
        args: positional arguments, with a `Laid` for each tensor.
        kwargs: those by name.
        shape: of the (first) output, as torch has it.
        dtype: of the output.
        graph: gets the operations.
    """

    def __init__(
        self,
        call: Call,
        graph: QGraph,
        names: set[str],
        arguments: tuple[Any, Any],
        outputs: Sequence[tuple[Shape, str]],
    ) -> None:
        wrapper = call.op if isinstance(call.op, PytorchQuantizationWrapper) else None
        op = wrapper.module if wrapper is not None else call.op
        self.call, self.graph = call, graph
        self.module: Any = op if isinstance(op, torch.nn.Module) else None
        self.kind = _class_of(op) if isinstance(op, torch.nn.Module) else call.builtin_kind
        self.args, self.kwargs = list(arguments[0]), dict(arguments[1])
        self.outputs = list(outputs)
        self._quantized: dict[str, QTensor] = wrapper.get_quantized_tensors() if wrapper is not None else {}
        self._names = names

    # What is given --------------------------------------------------------------------------------------------------------

    @property
    def x(self) -> Laid:
        """The first argument."""
        found = self.args[0] if self.args else next(iter(self.kwargs.values()), None)
        if not isinstance(found, Laid):
            raise self.refuse(f"of {type(found).__name__}", "give it one tensor")
        return found

    @property
    def shape(self) -> Shape:
        """The shape of the (first) output, as torch has it."""
        return self.outputs[0][0]

    @property
    def dtype(self) -> str:
        """The type of the (first) output."""
        return self.outputs[0][1]

    @property
    def tensors(self) -> list[Laid]:
        """The tensors among the arguments, those in lists too."""
        found: list[Laid] = []
        for argument in (*self.args, *self.kwargs.values()):
            held = argument if isinstance(argument, (list, tuple)) else [argument]
            found += [item for item in held if isinstance(item, Laid)]
        return found

    def option(self, name: str, index: int, default: Any = None) -> Any:
        """An option: the module's attribute, or the function's argument.

        Args:
            name: of both.
            index: the argument's place; the tensor itself is 0.
            default: where it isn't given.
        """
        if self.module is not None:
            return getattr(self.module, name, default)
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[index] if len(self.args) > index else default

    def numbers(self, name: str, index: int = 1) -> list[int]:
        """Sizes or axes, given as one list or one by one."""
        found = self.kwargs.get(name, self.args[index:])
        found = list(found) if isinstance(found, (list, tuple)) else [found]
        return [int(n) for n in (found[0] if found and isinstance(found[0], (list, tuple)) else found)]

    def refuse(self, what: str, way_out: str = WAY_OUT) -> UnsupportedError:
        """The error for something that can't be lowered."""
        cls = type(self.module).__name__ if self.module is not None else self.call.kind
        return UnsupportedError(
            f"expected modules that integer graphs for {', '.join(sorted(TARGETS))} hold; received {self.call.path!r} of class "
            f"{cls}, {what}; do {way_out}"
        )

    # Parameters -----------------------------------------------------------------------------------------------------------

    def has(self, path: str) -> bool:
        """Whether the module has a parameter (or a buffer) of that name."""
        return isinstance(getattr(self.module, path, None), torch.Tensor)

    def array(self, path: str) -> np.ndarray:
        """A parameter or buffer that stays in float, as float32."""
        return to_numpy(getattr(self.module, path)).astype(np.float32)

    def weight(self, path: str, change: Callable[[np.ndarray], np.ndarray] = lambda array: array) -> Tensor:
        """A parameter as a constant: codes where it is quantized.

        Args:
            path: within the module.
            change: of its axes; applied to codes and scales alike, so it may neither join nor part scales.
        """
        name = self.name(path)
        if path not in self._quantized:
            array = change(self.array(path))
            return Tensor(name, array.shape, data=array)
        tensor = self._quantized[path]
        qparams, codes = tensor.qparams, change(tensor.codes)
        if qparams.scale.size > 1:
            qparams = changed_qparams(qparams, change, codes.shape, tensor.codes.shape)
        else:
            qparams = QParams(qparams.scale.reshape(()), qparams.zero_point.reshape(()), qparams.grid)
        return Tensor(name, codes.shape, "float32", qparams, codes)

    def granularity(self, path: str) -> Any:
        """How many scales a parameter has; None where it isn't quantized."""
        return self._quantized[path].qparams.granularity if path in self._quantized else None

    def bias(self, path: str = "bias") -> list[Tensor]:
        """The bias, if the module has one."""
        return [self.weight(path)] if self.has(path) else []

    def constant(self, name: str, array: Any) -> Tensor:
        """A constant of real numbers (float32) or integers."""
        array = np.asarray(array)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        return Tensor(self.name(name), array.shape, str(array.dtype), data=array)

    # The graph ------------------------------------------------------------------------------------------------------------

    def name(self, suffix: str = "") -> str:
        """A name for a tensor that nothing else has: that of the call's site, with a suffix."""
        return take_name(f"{self.call.site}/{suffix}" if suffix else self.call.site, self._names)

    def emit(
        self,
        kind: str,
        inputs: list[Tensor],
        gives: Sequence[int | None],
        /,
        *,
        suffix: str = "",
        dtype: str = "",
        **attrs: Any,
    ) -> Tensor:
        """Adds an operation.

        Args:
            kind: of `qi.ir.kinds`.
            inputs: its tensors.
            gives: the shape of its output, as its axes lie.
            suffix: of the output's name.
            dtype: of the output; by default that of the call.
            attrs: the operation's.

        Returns:
            its output.
        """
        value = Tensor(self.name(suffix), tuple(gives), real_dtype(dtype or self.dtype))
        self.graph.ops.append(Op(kind, inputs, [value], attrs, self.call.path))
        return value

    def gives(self, tensor: Tensor, order: Sequence[int] | None = None, shape: Shape | None = None) -> Laid:
        """The output of the call, or one like it, in this order of axes (default: as torch has them).

        An order that isn't any of those which operations ask for is turned into torch's.
        """
        shape = self.shape if shape is None else shape
        rank = len(shape)
        laid = Laid(tensor, shape, plain_order(rank) if order is None else tuple(order))
        if not laid.constant and shape[laid.batch] is not None:
            raise self.refuse("which joins the batch with another axis, or moves it", "leave the batch in front")
        turned = (*range(rank - 2), rank - 1, rank - 2)
        if laid.batch or laid.plain or laid.order in (channels_last(rank), turned):
            return laid
        return Laid(self.plain(laid), shape, plain_order(rank))

    def like(self, x: Laid, tensor: Tensor) -> Laid:
        """A result that lies as x does."""
        return Laid(tensor, x.shape, x.order, x.flat)

    def plain(self, x: Laid) -> Tensor:
        """A tensor as torch has it."""
        if x.flat is not None:
            channels, *sizes = x.flat
            image = (x.shape[0], channels, *sizes)
            order = channels_last(len(image))
            held = self.reshape(x.tensor, [image[axis] for axis in order], "image")
            return self.reshape(self.plain(Laid(held, image, order)), x.shape, "flat")
        return self.laid(x, plain_order(len(x.shape)))

    def unflat(self, x: Laid) -> Laid:
        """The tensor, as torch has it if it holds a flattened image."""
        return x if x.flat is None else Laid(self.plain(x), x.shape, plain_order(len(x.shape)))

    def last(self, x: Laid) -> Tensor:
        """A tensor with its channels behind its places."""
        return self.laid(x, channels_last(len(x.shape)))

    def laid(self, x: Laid, order: Sequence[int]) -> Tensor:
        """A tensor with its axes in an order, turned round once for all that ask."""
        if x.flat is not None:
            return self.plain(x)
        if x.order == tuple(order):
            return x.tensor
        perm = [x.order.index(axis) for axis in order]
        if perm[0] and x.tensor.data is None:
            raise self.refuse("which takes samples along another axis than the first", "leave the batch in front")
        if x.tensor.data is not None:
            return self._turned_constant(x.tensor, perm)
        for op in self.graph.ops:
            if op.kind == "transpose" and op.x is x.tensor and op.attrs["perm"] == perm:
                return op.y
        shape = [x.tensor.shape[axis] for axis in perm]
        moved = [axis for axis in perm if x.tensor.shape[axis] != 1]
        if moved == sorted(moved):  # only sizes of 1 change their places
            return self.reshape(x.tensor, shape, "turned")
        return self.emit("transpose", [x.tensor], shape, suffix="turned", dtype=x.tensor.dtype, perm=perm)

    def _turned_constant(self, x: Tensor, perm: list[int]) -> Tensor:
        data = np.asarray(x.data).transpose(perm)
        return Tensor(self.name("turned"), data.shape, x.dtype, x.qparams, data)

    def reshape(self, x: Tensor, shape: Sequence[int | None], suffix: str = "reshape") -> Tensor:
        """A tensor of another shape, the batch apart."""
        shape = tuple(shape)
        if tuple(x.shape) == shape:
            return x
        if x.data is None and shape[:1] != (None,):
            raise self.refuse("which joins the batch with another axis, or moves it", "leave the batch in front")
        if x.data is not None:
            data = np.asarray(x.data).reshape([1 if n is None else n for n in shape])
            return Tensor(self.name(suffix), data.shape, x.dtype, x.qparams, data)
        return self.emit("reshape", [x], shape, suffix=suffix, dtype=x.dtype, shape=list(shape))

    def cast(self, x: Laid, dtype: str) -> Laid:
        """A tensor of another type, where it isn't of that."""
        to = real_dtype(dtype)
        if x.tensor.dtype == to:
            return x
        if x.tensor.data is not None:
            return self.like(x, self.constant("cast", np.asarray(x.tensor.data).astype(to)))
        return self.like(x, self.emit("cast", [x.tensor], x.tensor.shape, suffix="cast", dtype=to, to=to))

    def ends_with(self, x: Laid, count: int) -> Laid:
        """The tensor with torch's last axes at its end, in their order; the others may lie as they do."""
        rank = len(x.shape)
        x = self.unflat(x)
        if x.order[rank - count :] == tuple(range(rank - count, rank)):
            return x
        return Laid(self.plain(x), x.shape, plain_order(rank))

    def sizes(self, x: Laid) -> list[int]:
        """Torch's sizes of a tensor behind its batch."""
        if x.shape[0] is not None:
            raise self.refuse("which takes samples along another axis than the first", "leave the batch in front")
        return [int(n) for n in x.shape[1:] if n is not None]
