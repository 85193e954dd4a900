"""What an imported file does and the model doesn't: sentences for the report, with names."""

from __future__ import annotations

from collections.abc import Sequence

from qi.exporters.match_graph import CallView, Matching, parts_of
from qi.exporters.vendor import VendorGraph, VendorNode

__all__ = ["findings", "named"]


def named(names: Sequence[str], what: str) -> list[str]:
    """The sentence "2 layers do this ('a', 'b')", or none of no names."""
    return [f"{len(names)} {what} ({', '.join(map(repr, names))})"] if names else []


def findings(views: list[CallView], found: Matching, file: VendorGraph) -> list[str]:
    """All that tells of other answers to expect.

    Args:
        views: the calls of the model.
        found: of them in the file.
        file: that was matched.
    """
    matched = {id(node): view.call.path for view in views if (node := found.nodes.get(id(view.call)))}
    weights = [n.weight for n in file.nodes if id(n) not in matched and n.weight is not None]
    lost = [weight.name for weight in weights if weight.quantized]
    told = named(lost, "quantized weights of the file are like none of the model's, and aren't imported")
    told += _parts(views, found, file)
    nodes = [(found.nodes[id(view.call)], view.call.path) for view in views if id(view.call) in found.nodes]
    for applies, what in (
        (
            _has_codes,
            "layers add or multiply constants, which the file rounded in its own way: the model may answer otherwise",
        ),
        (
            lambda node: node.real and file.stated(node.inputs[0]) is not None,
            "layers take codes and are done in real numbers, which our own files do in steps of their own: numbers behind them "
            "may differ by a step",
        ),
        (
            lambda node: node.dynamic,
            "layers take what the file rounds to codes as it comes, row by row, which only its runtime does: the model may "
            "answer otherwise",
        ),
        (
            lambda node: node.plain,
            "layers have weights that the file makes real numbers of, and nothing else is rounded there: do emulate and export "
            "the model with dynamic=False",
        ),
        (
            lambda node: node.parted,
            "layers have a bias before which the file rounds to codes, which no layer does: results may differ",
        ),
    ):
        told += named([path for node, path in nodes if applies(node)], what)
    return told


def _has_codes(node: VendorNode) -> bool:
    """Whether a constant has more than one number, of codes; one number alone comes out at any scale."""
    return node.kind != "norm" and any(c.quantized and c.data.size > 1 for c in node.constants)


def _parts(views: list[CallView], found: Matching, file: VendorGraph) -> list[str]:
    """Of operations on codes that are no call of the model: LayerNormalization in parts, say."""
    placed = {id(tensor) for tensor in found.places.values()}
    where: dict[str, set[str]] = {}
    parts = parts_of(views, found, file)
    for node in found.left:
        given = {file.settled(tensor) for tensor in node.outputs}
        known = node.weight is not None or given == {None} or any(id(tensor) in placed for tensor in node.outputs)
        if not known and {file.stated(tensor) for tensor in node.inputs} != given:
            where.setdefault(parts.get(id(node), ""), set()).add(node.kind)
    told = []
    for path, kinds in where.items():
        layer = f"layer {path!r}, which the file takes apart" if path else "no layer of the model"
        told.append(
            f"operations of the file ({', '.join(sorted(kinds))}) belong to {layer}: their codes aren't imported, and the model "
            "may answer otherwise"
        )
    return told
