"""A quantized copy of a prepared graph that learns from a float copy of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from qi.core import IntGrid
from qi.keras.blocks import Block, cut_graph, several_blocks
from qi.keras.bound import Bound
from qi.keras.dispatcher import KerasNodeQuantizationDispatcher
from qi.keras.graph import Graph, Value
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.layers import copy_operations
from qi.keras.prepare import Prepared
from qi.keras.running import fixed_batch
from qi.keras.ties import tied_paths
from qi.keras.traits import is_softmax
from qi.keras.variables import to_numpy, weights_of
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.quantizers import AdaRoundQuantizer, BaseInferableQuantizer, BaseQuantizer
from qi.quantizers.trainables import TrainingMethods, trainable_quantizer
from qi.recipes.plan import Group
from qi.typing import Shape

__all__ = ["ROUNDINGS", "Student", "Weight", "elements", "paths"]

ROUNDINGS = ("lsq", "adaround")
_OFFSETS = ("bias", "beta")
_WITHIN = 0.75  # what blocks' outputs weigh together, beside those of the network

Weight = tuple[int, str]
"""``id`` of an operation of the prepared graph, and the path of one of its weights."""


def paths(op: Any) -> dict[str, keras.Variable]:
    """The weights of an operation by path; none where it is no layer."""
    return weights_of(op) if isinstance(op, keras.layers.Layer) else {}


def elements(values: Iterable[Value]) -> int:
    """How many numbers values hold for one sample."""
    return sum(int(np.prod([size or 1 for size in value.shape[1:]])) for value in values)


class Student:
    """Two copies of a prepared graph: a quantized one, cut into blocks, and a float one.

    Args:
        ready: only read.
        weights: quantizers by ``(id(op), path)``.
        activations: quantizers by ``id(group)``.
        rounding: "lsq" or "adaround".
        scope: as of `qi.keras.blocks.cut_graph`.
        begin: values of weights of the quantized copy to begin with, where they aren't those of the graph.
        room: for how many elements of a sample's values there is memory: what blocks give is a target of "network" as far as it
            fits, the smallest first.

    Attributes:
        graph: the quantized graph.
        teacher: the float one.
        blocks: of the quantized graph.
        twins: the float value of each value of the quantized graph, by ``id``.
        fixed: why layers and groups don't train, by path and name.
    """

    def __init__(
        self,
        ready: Prepared,
        weights: Mapping[Weight, BaseInferableQuantizer],
        activations: Mapping[int, BaseInferableQuantizer],
        *,
        rounding: str,
        scope: str,
        room: int = 2**62,
        begin: Mapping[Weight, np.ndarray] | None = None,
    ) -> None:
        self.scope, self.fixed = scope, {}  # type: tuple[str, dict[str, str]]
        self._ready, self._given, self._ranges = ready, dict(weights), dict(activations)
        self._methods = TrainingMethods(rounding, "lsq")
        self.teacher, self.graph = _copied(ready.graph), _copied(ready.graph)
        self._calls = {id(own): other for own, other in zip(self.graph.calls, self.teacher.calls, strict=True)}
        self.twins = {id(a): b for a, b in zip(_values(self.graph), _values(self.teacher), strict=True)}
        self._originals = {id(a): b for a, b in zip(_values(self.graph), _values(ready.graph), strict=True)}
        self._wrappers: dict[int, Any] = {}
        self._sources: dict[int, Any] = {}
        self._groups: dict[int, tuple[Group, KerasActivationQuantizationHolder]] = {}
        self._last = {id(value) for value in self.graph.flat_outputs()}
        self._begin(begin or {})
        self._quantize()
        weighted = {id(op) for key, op in self._wrappers.items() if any(key == known for known, _ in self._given)}
        self.blocks = self._cut(weighted, room)
        self._choose()

    # The two copies -----------------------------------------------------------------------------------------------------

    def _begin(self, values: Mapping[Weight, np.ndarray]) -> None:
        ops = dict(zip(self._ready.graph.calls_of(), self.graph.calls_of().values(), strict=True))
        for (key, path), array in values.items():
            op = ops[key][0].op
            if id(op) != key:  # what couldn't be copied is the given model's own
                variable = paths(op)[path]
                variable.assign(array.reshape(variable.shape))

    def _quantize(self) -> None:
        """Wraps layers and puts holders after values."""
        inner = self._ready.within()
        several = zip(self._ready.graph.calls_of().items(), list(self.graph.calls_of().values()), strict=True)
        for (key, _), calls in several:
            op, path = calls[0].op, calls[0].path
            found = {name: q for (owner, name), q in self._given.items() if owner == key}
            within = inner.get(path, {})
            self._sources[key] = op
            if not found and not within:
                continue
            shapes = {name: tuple(weight.shape) for name, weight in paths(op).items()}
            trained = {name: self._trainable(q, shapes[name]) for name, q in found.items()}
            dispatcher = KerasNodeQuantizationDispatcher(trained, None, within)
            self._wrappers[key] = wrapper = KerasQuantizationWrapper(op, dispatcher, name=op.name)
            wrapper.build(None)
            for call in calls:
                call.op = wrapper
        for value in _values(self.graph):
            self._hold(value)

    def _trainable(self, quantizer: BaseInferableQuantizer, shape: Shape, fixed: bool = False) -> BaseQuantizer:
        """The quantizer that trains; tables stay, and the weight trains on them."""
        if not isinstance(quantizer.grid, IntGrid):
            return quantizer
        return trainable_quantizer(quantizer, shape, self._methods, fixed=fixed)

    def _hold(self, value: Value) -> None:
        """Quantizes a value as the plan says; a softmax at the end rests, since its logarithm is taken."""
        group = self._ready.plan.quantized.get(id(self._originals[id(value)]))
        if group is None or id(group) not in self._ranges or (group.fixed is not None and id(value) in self._last):
            return
        if id(group) not in self._groups:
            made = self._trainable(self._ranges[id(group)], (1,), group.fixed is not None)
            name = f"{self.graph.name}_quantizer_{len(self._groups)}"
            self._groups[id(group)] = group, KerasActivationQuantizationHolder(made, name=name)
        held = self.graph.insert_after(value, self._groups[id(group)][1], group.key)
        self.twins[id(held)] = self.twins[id(value)]
        self._originals[id(held)] = self._originals[id(value)]
        if id(value) in self._last:
            self._last.add(id(held))

    # Blocks -------------------------------------------------------------------------------------------------------------

    def _cut(self, weighted: set[int], room: int) -> list[Block]:
        batch = fixed_batch([value.shape for value in self.graph.flat_inputs()])

        def passes(value: Value) -> bool:
            original = self._originals[id(value)]
            tensor = self._ready.tensors[id(original)]
            whole = bool(original.shape) and original.shape[0] == batch and not original.optional
            return whole and getattr(tensor, "_keras_mask", None) is None

        heads = lambda call: id(call.op) in weighted
        blocks = cut_graph(self.graph, self.scope, heads, passes)
        if self.scope != "network":
            return blocks
        known = {id(value): value for value in blocks[0].outputs}
        room -= elements(blocks[0].inputs) + elements(known.values())
        inner = [v for block in cut_graph(self.graph, "block", heads, passes)[:-1] for v in block.outputs if v.is_float]
        for value in sorted(inner, key=lambda value: elements([value])):
            room -= elements([value])
            if room >= 0:
                known[id(value)] = value
        return [Block(self.graph.name, blocks[0].calls, blocks[0].inputs, list(known.values()))]

    def twin(self, block: Block) -> Block:
        """The same block of the float graph."""
        calls = [self._calls[id(call)] for call in block.calls if id(call) in self._calls]
        inputs, outputs = ([self.twins[id(value)] for value in several] for several in (block.inputs, block.outputs))
        return Block(block.name, calls, inputs, outputs)

    def is_softmax(self, value: Value) -> bool:
        """Whether an output of the graph is a softmax."""
        producer = self._originals[id(value)].producer
        return id(value) in self._last and producer is not None and is_softmax(producer)

    def weight_of(self, value: Value) -> float:
        """What the error of an output of a block weighs."""
        if self.scope != "network" or id(value) in self._last:
            return 1.0
        return _WITHIN / sum(id(other) not in self._last for other in self.blocks[0].outputs)

    # What trains --------------------------------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Lets weights, offsets and scales train, and nothing else."""
        several = several_blocks(self.blocks)
        calls_of = self._ready.graph.calls_of()
        tied = tied_paths({calls[0].path: calls[0].op for calls in calls_of.values()})
        self._offsets: dict[Weight, keras.Variable] = {}
        self._free: set[int] = set()
        for key, calls in calls_of.items():
            path, source = calls[0].path, self._sources[key]
            owner = self._wrappers.get(key, source)
            if not isinstance(owner, keras.layers.Layer) or not owner.weights:
                continue
            if path in self._ready.notes:
                self.fixed[path] = self._ready.notes[path]
                continue  # its variables are those of the given model
            if path in tied:
                self.fixed[path] = f"its weights are those of {tied[path]} too"
            elif id(owner) in several:
                self.fixed[path] = "it is called in several blocks"
            self._release(key, source, owner, path not in self.fixed)
        for group, holder in self._groups.values():
            holder.build(None)
            if id(holder) in several:
                self.fixed[group.key] = "its values lie in several blocks"
            holder.trainable = group.key not in self.fixed and group.fixed is None

    def _release(self, key: int, source: Any, owner: Any, free: bool) -> None:
        """Lets what there is to learn in a layer train, if it is free to."""
        wrapper = self._wrappers.get(key)
        bounds = wrapper.bounds if wrapper is not None else {}
        learned = {id(v) for bound in bounds.values() for v in bound.variables.values() if v.trainable}
        owner.trainable = True  # whatever the given model says: nothing in it is trained
        if free:
            self._free.add(key)
            for path, variable in paths(source).items():
                quantized = (key, path) in self._given
                if not quantized and path.rpartition("/")[2] in _OFFSETS and "float" in variable.dtype:
                    self._offsets[key, path] = variable
                elif quantized and not isinstance(bounds[path].quantizer, AdaRoundQuantizer):
                    learned.add(id(variable))
            learned |= {id(variable) for (known, _), variable in self._offsets.items() if known == key}
        for variable in owner.weights:
            variable.trainable = free and id(variable) in learned

    def _rounded(self, block: Block) -> list[tuple[AdaRoundQuantizer, Bound]]:
        """The quantizers of a block that learn how to round."""
        inside = {id(call.op) for call in block.calls}
        wrappers = [wrapper for key, wrapper in self._wrappers.items() if key in self._free and id(wrapper) in inside]
        bounds = [bound for wrapper in wrappers for bound in wrapper.bounds.values()]
        return [(bound.quantizer, bound) for bound in bounds if isinstance(bound.quantizer, AdaRoundQuantizer)]

    @contextmanager
    def soft(self, block: Block) -> Iterator[None]:
        """Within it, weights of a block whose rounding is learned are rounded softly."""
        found = self._rounded(block)
        try:
            for quantizer, _ in found:
                quantizer.soft = True
            yield
        finally:
            for quantizer, _ in found:
                quantizer.soft = False

    def rounded_up(self, block: Block) -> list[Any]:
        """How far each weight of a block is rounded up, tensor by tensor, where that is learned."""
        found = self._rounded(block)
        return [quantizer.rounded_up({"rounding": bound.variables["rounding"].value}) for quantizer, bound in found]

    # What it is -----------------------------------------------------------------------------------------------------------

    def describe(self) -> tuple[Any, ...]:
        """Blocks and quantizers, in words that are the same for the same ones."""
        given = [*self._given.values(), *self._ranges.values()]
        blocks = [(block.name, [call.path for call in block.calls]) for block in self.blocks]
        return self.scope, blocks, [(type(quantizer).__name__, quantizer.get_config()) for quantizer in given]

    def arrays(self) -> list[np.ndarray]:
        """All weights of both copies."""
        ops = [calls[0].op for calls in self.teacher.calls_of().values()] + list(self._sources.values())
        return [to_numpy(variable) for op in ops for variable in paths(op).values()]

    # What came of it ----------------------------------------------------------------------------------------------------

    def weights(self) -> dict[Weight, tuple[BaseInferableQuantizer, np.ndarray]]:
        """Quantizers and values on their grids."""
        found: dict[Weight, tuple[BaseInferableQuantizer, np.ndarray]] = {}
        for (key, path), given in self._given.items():
            wrapper = self._wrappers[key]
            bound = wrapper.bounds[path]
            quantizer = bound.current() if key in self._free and bound.trains else given
            found[key, path] = quantizer, wrapper.get_quantized_tensors()[path].dequantize()
        return found

    def floats(self) -> dict[Weight, np.ndarray]:
        """The offsets that trained."""
        return {key: to_numpy(variable).copy() for key, variable in self._offsets.items()}

    def activations(self) -> dict[int, BaseInferableQuantizer]:
        """The quantizers of groups."""
        trained = {key: holder.bound.current() for key, (_, holder) in self._groups.items() if holder.trainable}
        return self._ranges | trained


def _copied(graph: Graph) -> Graph:
    """The graph with operations of its own."""
    copy = graph.copy()
    several = list(copy.calls_of().values())
    made = copy_operations([(calls[0].op, calls[0].op.name) for calls in several])
    for calls, (op, _) in zip(several, made, strict=True):
        for call in calls:
            call.op = op
    return copy


def _values(graph: Graph) -> list[Value]:
    """The inputs and what the calls give, in order."""
    return [*graph.flat_inputs(), *(value for call in list(graph.calls) for value in call.outputs)]
