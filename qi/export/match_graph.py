"""Which calls of a Keras model are which operations of a file, and which values are which tensors.

Products are found by their weights, and checked by what lies before them; from them both graphs are walked, forwards and
backwards, over operations of the same kind with the same operands, until nothing more is found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qi.export.match_weights import least_likeness, likeness
from qi.export.vendor import Constant, VendorGraph, VendorNode, VendorTensor

__all__ = ["CallView", "Matching", "match"]

_CLOSE = 1e-4  # likenesses that differ by less say nothing
_WEIGHTED = ("linear", "embedding")


@dataclass(eq=False)
class CallView:
    """What matching has to know of a call in the Keras graph.

    Attributes:
        call: a `qi.keras.graph.Call`: its inputs and outputs are values.
        kind: as of `VendorNode`; "move" for what merely moves values, "" for what no single operation stands for.
        path: of the main weight in the layer.
        weight: its values.
        axes: its axes of channels.
    """

    call: Any
    kind: str
    path: str = ""
    weight: np.ndarray | None = None
    axes: tuple[int, ...] = ()


@dataclass(eq=False)
class Matching:
    """What was found.

    Attributes:
        nodes: the operation of each call, by ``id(call)``.
        places: the tensor of each value, by ``id(value)``; values that are only moved are left out.
        reasons: why a call with weights has none in the file, by ``id(call)``.
        absorbed: values that the file doesn't have, as an operation takes over the clamp behind it, by ``id(value)``.
    """

    nodes: dict[int, VendorNode] = field(default_factory=dict)
    places: dict[int, VendorTensor] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    absorbed: set[int] = field(default_factory=set)


def match(views: list[CallView], file: VendorGraph, inputs: list[Any], outputs: list[Any]) -> Matching:
    """Matches the calls of a Keras graph with a file.

    Args:
        views: in the order of the graph.
        file: to be matched.
        inputs: the graph's input values; their names count.
        outputs: its output values.
    """
    walk = _Walk(views, file, inputs, outputs)
    walk.by_content()
    walk.by_position()
    walk.borders()
    walk.spread()
    return walk.found


def shaped_like(weight: Constant, shape: tuple[int, ...]) -> Constant | None:
    """A file's weight in the shape of a variable: same order of axes, some joined, parted or of size 1; None if it can't be."""
    if weight.data.size != int(np.prod(shape)):
        return None
    if weight.data.shape == shape or not weight.quantized:
        return weight.changed(lambda a: a) if weight.data.shape == shape else weight.changed(lambda a: a.reshape(shape))
    full = weight.data.shape
    spread = [np.broadcast_to(a, full).reshape(shape) for a in (weight.scale, weight.zero_point) if a is not None]
    return Constant(weight.name, weight.data.reshape(shape), spread[0], spread[1], weight.bits)


class _Walk:
    def __init__(self, views: list[CallView], file: VendorGraph, inputs: list[Any], outputs: list[Any]) -> None:
        self.views, self.file, self.inputs, self.outputs = views, file, inputs, outputs
        self.found = Matching()
        self._view = {id(view.call): view for view in views}
        self._taken: set[int] = set()
        self._users: dict[int, list[CallView]] = {}
        for view in views:
            for value in {id(v): v for v in view.call.inputs}.values():
                self._users.setdefault(id(value), []).append(view)

    # The Keras side -----------------------------------------------------------------------------------------------------

    def root(self, value: Any) -> Any:
        """The value that a value merely moves."""
        while value.producer is not None and self._kind(value.producer) == "move" and value.producer.inputs:
            value = value.producer.inputs[0]
        return value

    def _kind(self, call: Any) -> str:
        view = self._view.get(id(call))
        return view.kind if view is not None else ""

    # Weights ------------------------------------------------------------------------------------------------------------

    def by_content(self) -> None:
        """Pairs calls and nodes whose weights are alike, those first that are most alike; where several are, by their places."""
        pairs: list[tuple[float, int, int]] = []
        weighted = [(i, view) for i, view in enumerate(self.views) if view.weight is not None]
        for i, view in weighted:
            best = 0.0
            for j, node in enumerate(self.file.nodes):
                score = self._score(view, node)
                best = max(best, score)
                if view.weight is not None and score >= least_likeness(view.weight.size):
                    pairs.append((score, i, j))
            self.found.reasons[id(view.call)] = f"no weight of the file is like it (likeness {best:.2f} at most)"
        options: dict[int, list[tuple[float, int]]] = {}
        for score, i, j in pairs:
            options.setdefault(i, []).append((score, j))
        for single in (True, False):  # what can be only one first: it tells where the others lie
            for score, i, j in sorted(pairs, key=lambda pair: (-round(pair[0], 4), pair[1], pair[2])):
                view = self.views[i]
                if id(view.call) in self.found.nodes or id(self.file.nodes[j]) in self._taken:
                    continue
                rivals = [k for s, k in options[i] if s >= score - _CLOSE and id(self.file.nodes[k]) not in self._taken]
                if single == (len(rivals) == 1):
                    self._pair(view, max((self.file.nodes[k] for k in rivals), key=lambda n, v=view: self._agreement(v, n)))  # type: ignore[misc]

    @staticmethod
    def _score(view: CallView, node: VendorNode) -> float:
        if node.kind != view.kind or node.weight is None or view.weight is None:
            return 0.0
        given = shaped_like(node.weight, view.weight.shape)
        if given is None:
            return 0.0
        real = given.real() if given.quantized else given.data
        return likeness(view.weight, np.nan_to_num(real, posinf=0.0, neginf=0.0), view.axes)

    def _pair(self, view: CallView, node: VendorNode) -> None:
        self.found.nodes[id(view.call)] = node
        self.found.reasons.pop(id(view.call), None)
        self._taken.add(id(node))

    def _agreement(self, view: CallView, node: VendorNode) -> int:
        """How many of the matched products around a call lie around a node too."""
        own = [self._before(view), self._after(view)]
        given = [self._nodes_before(node), self._nodes_after(node)]
        partner = {i: id(n) for i, n in self.found.nodes.items()}
        return sum(len({partner[i] for i in a if i in partner} & b) for a, b in zip(own, given, strict=True))

    def by_position(self) -> None:
        """Parts pairs that lie elsewhere: the matched products before both must be each other's partners."""
        for view in self.views:
            node = self.found.nodes.get(id(view.call))
            if node is None or view.weight is None:
                continue
            partner = {i: id(n) for i, n in self.found.nodes.items()}
            if {partner[i] for i in self._before(view)} != self._nodes_before(node):
                del self.found.nodes[id(view.call)]
                self._taken.discard(id(node))
                self.found.reasons[id(view.call)] = f"the file has a weight like it ({_name(node)}), but elsewhere in its graph"

    def _before(self, view: CallView) -> set[int]:
        """The nearest matched products that lead to a call, by id."""
        return _reached(
            view.call.inputs,
            lambda value: [] if value.producer is None else [value.producer],
            lambda call: call.inputs,
            lambda call: id(call) in self.found.nodes,
        )

    def _after(self, view: CallView) -> set[int]:
        return _reached(
            view.call.outputs,
            lambda value: [user.call for user in self._users.get(id(value), [])],
            lambda call: call.outputs,
            lambda call: id(call) in self.found.nodes,
        )

    def _nodes_before(self, node: VendorNode) -> set[int]:
        producer = self.file.producer
        return _reached(
            node.inputs,
            lambda tensor: [found] if (found := producer(tensor)) is not None else [],
            lambda n: n.inputs,
            lambda n: id(n) in self._taken,
        )

    def _nodes_after(self, node: VendorNode) -> set[int]:
        return _reached(
            node.outputs, self.file.users, lambda n: n.outputs, lambda n: id(n) in self._taken
        )

    # Values -------------------------------------------------------------------------------------------------------------

    def borders(self) -> None:
        """What goes in and comes out, by name, or by being the only one; then what matched products take and give."""
        for view in self.views:
            node = self.found.nodes.get(id(view.call))
            if node is not None:
                self._place(view.call.inputs[0], node.inputs[0] if node.inputs else None)
                self._give(view, node)
        for values, tensors in ((self.inputs, self.file.inputs), (self.outputs, self.file.outputs)):
            named = dict(tensors)
            for value in values:
                tensor = named.get(value.name)
                if tensor is None and len(values) == len(tensors) == 1:
                    tensor = tensors[0][1]
                self._place(value, tensor)

    def _place(self, value: Any, tensor: VendorTensor | None) -> bool:
        root = self.root(value)
        if tensor is None or id(root) in self.found.places or id(root) in self.found.absorbed:
            return False
        self.found.places[id(root)] = self.file.root(tensor)
        return True

    def _give(self, view: CallView, node: VendorNode) -> bool:
        """Places what a matched call gives: before or behind its clamp, as the file has that or not."""
        value, tensor = view.call.outputs[0], node.outputs[0]
        behind = self._users.get(id(value), [])
        clamp = behind[0] if len(behind) == 1 and behind[0].kind == "relu" and all(v is not value for v in self.outputs) else None
        if clamp is None or any(user.kind == "relu" for user in self.file.users(tensor)):
            placed = [self._place(*pair) for pair in zip(view.call.outputs, node.outputs, strict=False)]
            return any(placed)
        self.found.absorbed.add(id(value))
        self.found.places.pop(id(value), None)
        return self._place(clamp.call.outputs[0], tensor)

    def spread(self) -> None:
        """Walks both graphs from what is placed, until nothing more is found."""
        changed = True
        while changed:
            changed = False
            for view in self.views:
                if view.kind in ("", "move", *_WEIGHTED) or id(view.call) in self.found.nodes:
                    continue
                node = self._forwards(view) or self._backwards(view)
                if node is not None:
                    self.found.nodes[id(view.call)] = node
                    self._taken.add(id(node))
                    self._give(view, node)
                    self._take(view, node)
                    changed = True

    def _forwards(self, view: CallView) -> VendorNode | None:
        """The node of a call's kind that takes the tensors of its inputs."""
        places = [self.found.places.get(id(self.root(value))) for value in view.call.inputs]
        if not places or any(place is None for place in places):
            return None
        wanted = sorted(id(place) for place in places)
        candidates = self.file.users(places[0]) if places[0] is not None else []
        fitting = [n for n in candidates if self._free(n, view.kind) and sorted(map(id, self._operands(n))) == wanted]
        return next(iter(fitting), None)

    def _backwards(self, view: CallView) -> VendorNode | None:
        """The node of a call's kind that gives the tensor of its output, where the inputs don't speak against it."""
        place = self.found.places.get(id(self.root(view.call.outputs[0])))
        node = self.file.producer(place) if place is not None else None
        if node is None or not self._free(node, view.kind) or len(node.inputs) != len(view.call.inputs):
            return None
        operands = {id(t) for t in self._operands(node)}
        places = [self.found.places.get(id(self.root(value))) for value in view.call.inputs]
        return node if all(p is None or id(p) in operands for p in places) else None

    def _take(self, view: CallView, node: VendorNode) -> None:
        """Places the one input of a call that isn't placed yet."""
        values = [v for v in view.call.inputs if id(self.root(v)) not in self.found.places]
        known = {id(self.found.places[id(self.root(v))]) for v in view.call.inputs if id(self.root(v)) in self.found.places}
        left = [t for t in node.inputs if id(self.file.root(t)) not in known]
        if len(values) == len(left) == 1:
            self._place(values[0], left[0])

    def _free(self, node: VendorNode, kind: str) -> bool:
        return node.kind == kind and id(node) not in self._taken

    def _operands(self, node: VendorNode) -> list[VendorTensor]:
        return [self.file.root(tensor) for tensor in node.inputs]


def _name(node: VendorNode) -> str:
    return repr(node.weight.name) if node.weight is not None else node.kind


def _reached(
    start: list[Any], across: Callable[[Any], list[Any]], onward: Callable[[Any], list[Any]], stop: Callable[[Any], bool]
) -> set[int]:
    """The nearest operations that fulfil `stop`, from some tensors on.

    Args:
        start: tensors.
        across: the operations at a tensor.
        onward: the tensors on the other side of an operation.
        stop: where to stop.
    """
    found: set[int] = set()
    seen: set[int] = set()
    todo = list(start)
    while todo:
        for operation in across(todo.pop()):
            if id(operation) in seen:
                continue
            seen.add(id(operation))
            if stop(operation):
                found.add(id(operation))
            else:
                todo += onward(operation)
    return found
