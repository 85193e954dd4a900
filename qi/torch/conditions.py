"""Conditions that a forward asks while it is traced: those about ranks, types and widths have one answer for a model."""

from __future__ import annotations

import operator

from torch import fx

from qi.torch.kinds import kind_of

__all__ = ["UnansweredError", "is_settled"]

_SETTLED = frozenset("dim ndim ndimension dtype device layout is_cuda is_floating_point is_complex".split())
_COMPARED = (operator.eq, operator.ne)


class UnansweredError(Exception):
    """A trace came to a condition whose answer the sample inputs tell; it is in `node`."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(f"expected the answer to {node.name!r}")
        self.node = node


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
