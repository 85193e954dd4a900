"""Which calls of a Keras model are which operations of a file, and which values are which tensors.

Products are found by their weights, and checked by what lies before them; from them both graphs are walked, forwards and
backwards, over operations of the same kind with the same operands, until nothing more is found.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qi.exporters.match_weights import gains, least_likeness, likeness
from qi.exporters.vendor import TRANSPARENT, Constant, VendorGraph, VendorNode, VendorTensor

__all__ = ["CallView", "Matching", "match", "parts_of", "shaped_like"]

_SAME = 0.05  # how far factors that stand for the same may lie apart
_CLOSE = 1e-4  # likenesses that differ by less say nothing
_WEIGHTED = ("linear", "embedding")
_UNORDERED = ("add", "mul", "maximum", "minimum")
_LINEAR = ("relu", "leaky_relu", "max", "average", "slice", "resize")  # of one operand, which a factor passes through


@dataclass(eq=False)
class CallView:
    """What matching has to know of a call in the Keras graph.

    Attributes:
        call: a `qi.keras.graph.Call`: its inputs and outputs are values.
        kind: as of `VendorNode`; "move" for what merely moves values, "" for what no single operation stands for.
        path: of the main weight in the layer.
        weight: its values.
        axes: its axes of channels.
        bias: what the layer adds.
    """

    call: Any
    kind: str
    path: str = ""
    weight: np.ndarray | None = None
    axes: tuple[int, ...] = ()
    bias: np.ndarray | None = None


@dataclass(eq=False)
class Matching:
    """What was found.

    Attributes:
        nodes: the operation of each call, by ``id(call)``.
        places: the tensor of each value, by ``id(value)``; values that are only moved are left out.
        reasons: why a call with weights has none in the file, by ``id(call)``.
        absorbed: values that the file doesn't have, as an operation takes over the clamp behind it, by ``id(value)``.
        roots: the value that a value merely moves, by ``id(value)``; itself where it does more.
        gains: by what a call's weight differs from the file's, by ``id(call)``: 1/sqrt(d) of attention, say, which the file
            has as a step of its own. Absent where it doesn't.
        factors: by what a value differs from its tensor for that reason, by ``id(value)``; absent where it doesn't.
        left: operations of the file that are no call of the model.
        folded: results of calls that the file made part of what follows, by ``id(value)``: the sum with a constant, say, which is
            in the next bias there.
    """

    nodes: dict[int, VendorNode] = field(default_factory=dict)
    places: dict[int, VendorTensor] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    absorbed: set[int] = field(default_factory=set)
    roots: dict[int, Any] = field(default_factory=dict)
    gains: dict[int, np.ndarray] = field(default_factory=dict)
    factors: dict[int, float] = field(default_factory=dict)
    left: list[VendorNode] = field(default_factory=list)
    folded: set[int] = field(default_factory=set)

    def place(self, value: Any) -> VendorTensor | None:
        """The tensor of a value, or of what it merely moves."""
        return self.places.get(id(self.roots.get(id(value), value)))

    def factor(self, value: Any) -> float:
        """What its tensor has to be multiplied by to be a value."""
        return self.factors.get(id(self.roots.get(id(value), value)), 1.0)


def match(views: list[CallView], file: VendorGraph, inputs: list[Any], outputs: list[Any]) -> Matching:
    """Matches the calls of a Keras graph with a file.

    Args:
        views: in the order of the graph.
        file: to be matched.
        inputs: the graph's input values; their names count.
        outputs: its output values.
    """
    walk = _Walk(views, file, inputs, outputs)
    walk.ends(inputs, file.inputs)
    walk.by_content()
    walk.by_position()
    walk.around_products()
    walk.ends(outputs, file.outputs)
    walk.spread()
    return walk.found


def shaped_like(weight: Constant, shape: tuple[int, ...]) -> Constant | None:
    """A file's weight in the shape of a variable: same order of axes, some joined, parted or of size 1; None if it can't be."""
    if weight.data.size != int(np.prod(shape)):
        return None
    if weight.data.shape == shape:
        return weight
    full = weight.data.shape
    return weight.changed(lambda a: np.broadcast_to(a, full).reshape(shape))


def parts_of(views: list[CallView], found: Matching, file: VendorGraph) -> dict[int, str]:
    """Paths of the layers that operations of a file are parts of, by ``id(node)``: they lie between what a layer takes and gives.

    Args:
        views: of the calls.
        found: of them.
        file: that was matched.
    """
    parts: dict[int, str] = {}
    for view in views:
        ends = [found.place(value) for value in view.call.inputs]
        place = found.place(view.call.outputs[0]) if view.call.outputs else None
        if id(view.call) in found.nodes or view.kind == "move" or place is None or None in ends:
            continue
        stops, todo = {id(end) for end in ends}, [place]
        between: list[VendorNode] = []
        while todo:
            tensor = todo.pop()
            node = file.producer(tensor)
            if id(tensor) in stops or node is None or node in between:
                continue
            between.append(node)
            todo += node.inputs
        parts.update((id(node), view.call.path) for node in between if id(node) not in parts)
    return parts


class _Walk:
    def __init__(self, views: list[CallView], file: VendorGraph, inputs: list[Any], outputs: list[Any]) -> None:
        self.views, self.file, self.inputs, self.outputs = views, file, inputs, outputs
        self.found = Matching()
        self._taken: set[int] = set()
        self._users: dict[int, list[CallView]] = {}
        for view in views:
            for value in {id(v): v for v in view.call.inputs}.values():
                self._users.setdefault(id(value), []).append(view)
            if view.kind == "move" and view.call.inputs:
                roots = self.found.roots
                source = roots.get(id(view.call.inputs[0]), view.call.inputs[0])
                roots.update((id(value), source) for value in view.call.outputs)

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
                if not single or len(rivals) == 1:
                    near = [self._agreement(view, self.file.nodes[k]) for k in rivals]
                    self._pair(view, self.file.nodes[rivals[int(np.argmax(near))]])

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
        """How many of the matched products and inputs around a call lie around a node too."""
        partner = self._partners()
        own = [self._before(view, partner), self._after(view, partner)]
        given = [self._nodes_before(node, partner), self._nodes_after(node, partner)]
        return sum(len({partner[i] for i in a} & b) for a, b in zip(own, given, strict=True))

    def by_position(self) -> None:
        """Parts pairs that lie elsewhere: the matched products and inputs before both must be each other's partners."""
        for view in self.views:
            node = self.found.nodes.get(id(view.call))
            if node is None or view.weight is None:
                continue
            partner = self._partners()
            if {partner[i] for i in self._before(view, partner)} != self._nodes_before(node, partner):
                del self.found.nodes[id(view.call)]
                self._taken.discard(id(node))
                self.found.reasons[id(view.call)] = (
                    f"the file has a weight like it ({_name(node)}), but elsewhere in its graph"
                )

    def _partners(self) -> dict[int, int]:
        """By ``id``: the node of each matched call, the tensor of each matched input."""
        inputs = {id(v): id(self.found.places[id(v)]) for v in self.inputs if id(v) in self.found.places}
        return inputs | {call: id(node) for call, node in self.found.nodes.items()}

    @staticmethod
    def _before(view: CallView, partner: dict[int, int]) -> set[int]:
        """The nearest matched products and inputs that lead to a call, by id."""
        across = lambda value: [value if value.producer is None else value.producer]
        return _reached(view.call.inputs, across, _inputs_of, partner)

    def _after(self, view: CallView, partner: dict[int, int]) -> set[int]:
        across = lambda value: [user.call for user in self._users.get(id(value), [])]
        return _reached(view.call.outputs, across, lambda call: call.outputs, partner)

    def _nodes_before(self, node: VendorNode, partner: dict[int, int]) -> set[int]:
        across = lambda tensor: [self.file.producer(tensor) or tensor]
        return _reached(node.inputs, across, _inputs_of, set(partner.values()))

    def _nodes_after(self, node: VendorNode, partner: dict[int, int]) -> set[int]:
        return _reached(node.outputs, self.file.users, lambda n: n.outputs, set(partner.values()))

    # Values -------------------------------------------------------------------------------------------------------------

    def ends(self, values: list[Any], tensors: list[tuple[str, VendorTensor]]) -> None:
        """Places inputs or outputs by their names, or where there is but one."""
        named = {name.partition(":")[0].removeprefix("serving_default_"): tensor for name, tensor in tensors} | dict(
            tensors
        )
        for value in values:
            only = tensors[0][1] if len(values) == len(tensors) == 1 else None
            self._place(value, named.get(value.name, only))

    def around_products(self) -> None:
        """Places what matched products take and give."""
        for view in self.views:
            node = self.found.nodes.get(id(view.call))
            if node is None:
                continue
            taken, given = self._factors(view, node)
            if taken is not None:
                self._place(view.call.inputs[0], node.inputs[0] if node.inputs else None, taken)
            if given is not None:
                self._give(view, node, given)

    def _factors(self, view: CallView, node: VendorNode) -> tuple[float | None, float | None]:
        """By what a product's operand and result in the model differ from the file's; None where that can't be told.

        Where the weight is the file's times something, the file has that as a step of its own: behind the product, if the bias
        is the file's times the same; before it, if the bias is just the file's.
        """
        given = (
            shaped_like(node.weight, view.weight.shape) if node.weight is not None and view.weight is not None else None
        )
        found = None
        if given is not None and view.weight is not None and given.quantized:
            found = gains(view.weight, given.real(), view.axes, given.bits)
        if found is None:
            return 1.0, 1.0
        self.found.gains[id(view.call)] = found
        if found.size > 1 or node.bias is None or view.bias is None or not view.bias.any():
            return None, None
        gain, bias = float(found.reshape(())), node.bias.real().reshape(-1)
        added = gains(view.bias, bias, (), 8) if bias.shape == view.bias.shape and bias.any() else found
        if added is None:
            return 1 / gain, 1.0
        same = (
            bias.any()
            and abs(float(added.reshape(-1)[0]) / gain - 1) < _SAME
            and likeness(view.bias, bias, ()) > 1 - _SAME
        )
        return (1.0, gain) if same else (None, None)

    def _place(self, value: Any, tensor: VendorTensor | None, factor: float = 1.0) -> bool:
        root = self.found.roots.get(id(value), value)
        if tensor is None or id(root) in self.found.places or id(root) in self.found.absorbed:
            return False
        self.found.places[id(root)] = self.file.root(tensor)
        if factor != 1.0:
            self.found.factors[id(root)] = factor
        return True

    def _give(self, view: CallView, node: VendorNode, factor: float) -> bool:
        """Places what a matched call gives: before or behind its clamp, as the file has that or not."""
        value, tensor = view.call.outputs[0], node.outputs[0]
        behind = self._users.get(id(value), [])
        clamp = (
            behind[0]
            if len(behind) == 1 and behind[0].kind == "relu" and all(v is not value for v in self.outputs)
            else None
        )
        if clamp is None or any(user.kind == "relu" for user in self.file.users(tensor)):
            placed = [self._place(*pair, factor) for pair in zip(view.call.outputs, node.outputs, strict=False)]
            return any(placed)
        self.found.absorbed.add(id(value))
        self.found.places.pop(id(value), None)
        return self._place(clamp.call.outputs[0], tensor, factor)

    def spread(self) -> None:
        """Walks both graphs from what is placed, until nothing more is found."""
        changed = True
        while changed:
            changed = False
            for view in self.views:
                if view.kind in ("", "move", *_WEIGHTED) or id(view.call) in self.found.nodes:
                    continue
                scaled = [v for v in view.call.inputs if self.found.factor(v) != 1.0]
                if scaled and view.kind != "matmul" and not (view.kind in _LINEAR and len(view.call.inputs) == 1):
                    continue  # the file does this with other numbers
                node = self._forwards(view) or self._backwards(view)
                if node is not None:
                    self.found.nodes[id(view.call)] = node
                    self._taken.add(id(node))
                    self._give(
                        view, node, float(np.prod([self.found.factor(v) for v in view.call.inputs])) if scaled else 1.0
                    )
                    self._take(view, node)
                    changed = True
        self._part_folded()
        self.found.left = [n for n in self.file.nodes if n.kind not in TRANSPARENT and id(n) not in self._taken]

    def _part_folded(self) -> None:
        """Takes tensors from values that can't be theirs: what gives these is no operation of the file, nor moves its input."""
        for view in self.views:
            if view.kind == "move" or id(view.call) in self.found.nodes:
                continue
            before = [self.found.place(value) for value in view.call.inputs]
            for value in view.call.outputs:
                place = self.found.places.get(id(value))
                if place is not None and any(place is tensor for tensor in before):
                    del self.found.places[id(value)]
                    self.found.folded.add(id(value))

    def _forwards(self, view: CallView) -> VendorNode | None:
        """The node of a call's kind that takes the tensors of its inputs."""
        places = [self.found.place(value) for value in view.call.inputs]
        order: Callable[[Any], list[int]] = sorted if view.kind in _UNORDERED else list
        wanted = order(id(place) for place in places)
        for node in self.file.users(places[0]) if places and places[0] is not None else []:
            if self._free(node, view.kind) and order(map(id, self._operands(node))) == wanted:
                return node
        return None

    def _backwards(self, view: CallView) -> VendorNode | None:
        """The node of a call's kind that gives the tensor of its output, where the inputs don't speak against it."""
        place = self.found.place(view.call.outputs[0])
        node = self.file.producer(place) if place is not None else None
        if node is None or not self._free(node, view.kind) or len(node.inputs) != len(view.call.inputs):
            return None
        operands = {id(t) for t in self._operands(node)}
        places = [self.found.place(value) for value in view.call.inputs]
        return node if all(p is None or id(p) in operands for p in places) else None

    def _take(self, view: CallView, node: VendorNode) -> None:
        """Places the one input of a call that isn't placed yet."""
        values = [v for v in view.call.inputs if self.found.place(v) is None]
        known = {id(self.found.place(v)) for v in view.call.inputs}
        left = [t for t in node.inputs if id(self.file.root(t)) not in known]
        if len(values) == len(left) == 1:
            self._place(values[0], left[0])

    def _free(self, node: VendorNode, kind: str) -> bool:
        return node.kind == kind and id(node) not in self._taken

    def _operands(self, node: VendorNode) -> list[VendorTensor]:
        return [self.file.root(tensor) for tensor in node.inputs]


def _name(node: VendorNode) -> str:
    return repr(node.weight.name) if node.weight is not None else node.kind


def _inputs_of(operation: Any) -> list[Any]:
    """What an operation takes; nothing where an input of the graph stands for one."""
    return list(getattr(operation, "inputs", ()))


def _reached(
    start: list[Any],
    across: Callable[[Any], list[Any]],
    onward: Callable[[Any], list[Any]],
    stops: Container[int],
) -> set[int]:
    """The nearest operations among `stops`, from some tensors on, by id.

    Args:
        start: tensors.
        across: the operations at a tensor.
        onward: the tensors on the other side of an operation.
        stops: ids of those to stop at.
    """
    found: set[int] = set()
    seen: set[int] = set()
    todo = list(start)
    while todo:
        for operation in across(todo.pop()):
            if id(operation) in seen:
                continue
            seen.add(id(operation))
            if id(operation) in stops:
                found.add(id(operation))
            else:
                todo += onward(operation)
    return found
