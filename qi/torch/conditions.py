"""Conditions that a forward asks while it is traced: those about ranks, types and widths have one answer for a model."""

from __future__ import annotations

import dis
import operator
from types import FrameType

import torch
from torch import fx

from qi.torch.kinds import kind_of

__all__ = ["UnansweredError", "expect_answer", "expect_asserted", "is_settled", "is_shape"]

_SETTLED = frozenset("dim ndim ndimension dtype device layout is_cuda is_floating_point is_complex".split())
_COMPARED = (operator.eq, operator.ne)
_SIZES = frozenset("shape size dim ndim ndimension".split())


class UnansweredError(Exception):
    """A trace came to a condition whose answer the sample inputs tell; it is in `node`."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(f"expected the answer to {node.name!r}")
        self.node = node


def is_shape(node: fx.Node) -> bool:
    """Whether a node gives the sizes of a tensor, or a slice of them."""
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target is operator.getitem:
        return isinstance(node.args[1], slice) and isinstance(node.args[0], fx.Node) and is_shape(node.args[0])
    kind = kind_of(node)
    return kind == "shape" or (kind == "size" and len(node.args) == 1 and not node.kwargs)


def is_settled(node: fx.Node) -> bool:
    """Whether a condition has the same answer for all that the model is called with.

    Those about the rank or the type of a tensor have it, and whether a size is equal to another, but for that of the first axis,
    which counts samples. Conditions on what tensors hold, and on how large a size is, may turn out differently.
    """
    return _settled(node, compared=False)


def _settled(node: fx.Node, compared: bool) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    kind = kind_of(node)
    if kind in _SETTLED:
        return True
    if kind == "size" and len(node.args) == 2:
        return compared and node.args[1] != 0
    if (
        node.target is operator.getitem
        and isinstance(node.args[0], fx.Node)
        and kind_of(node.args[0]) in ("shape", "size")
    ):
        place = node.args[1]
        return compared and (place.start not in (None, 0) if isinstance(place, slice) else place != 0)
    taken = node.all_input_nodes
    return bool(taken) and all(_settled(other, compared or node.target in _COMPARED) for other in taken)


def expect_answer(node: fx.Node, answer: bool) -> None:
    """Lets a graph refuse inputs of other sizes, for which a condition has another answer than the one that it was traced with.

    Conditions on types and devices aren't watched: both change where a model is moved.

    Args:
        node: the condition; the graph gets a call of ``torch._assert`` behind it.
        answer: as the sample inputs gave it.
    """
    if not _asks_sizes(node):
        return
    text = (
        f"expected inputs of sizes for which {node.name!r} is {answer}, as for the samples that the graph was made with; the "
        "forward does otherwise for these; do give samples of the sizes that are needed"
    )
    held = node if answer else node.graph.call_function(operator.not_, (node,))
    node.graph.call_function(torch._assert, (held, text))


def expect_asserted(node: fx.Node, frame: FrameType) -> bool:
    """Whether a forward asserts a condition on sizes; if so, the graph does as well.

    Args:
        node: the condition.
        frame: of the forward, where it asks.
    """
    if not _asks_sizes(node) or not _asserts(frame):
        return False
    node.graph.call_function(torch._assert, (node, f"the forward asserts {node.name!r} ({frame.f_code.co_name})"))
    return True


def _asserts(frame: FrameType) -> bool:
    """Whether the instruction that a frame is at jumps over, or to, the raising of an AssertionError."""
    steps = [step for step in dis.get_instructions(frame.f_code) if step.opname not in ("TO_BOOL", "NOT_TAKEN")]
    following = [index for index, step in enumerate(steps) if step.offset >= frame.f_lasti]
    if not following or "JUMP" not in steps[following[0]].opname:
        return False
    jump, then = steps[following[0]], steps[following[0] + 1]
    if "IF_FALSE" in jump.opname:
        then = next((step for step in steps if step.offset == jump.argval), jump)
    return then.opname == "LOAD_ASSERTION_ERROR" or then.argval is AssertionError


def _asks_sizes(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    return kind_of(node) in _SIZES or any(map(_asks_sizes, node.all_input_nodes))
