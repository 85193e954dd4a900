"""What of a routed graph is still done in real numbers, and why: what `integer_only` promises to tell."""

from __future__ import annotations

from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.kinds import KINDS
from qi.ir.linear import LINEAR
from qi.ir.told import told

__all__ = ["real_operations", "told_real"]

_WEIGHTS = "weights that aren't codes"
_GIVEN = "given real numbers"
_GIVES = "a result that isn't made codes"
_KIND = "no integer kernel for it"
_KERNEL = "no integer kernel for it with these scales, bits or constants"
_OF_CODES = "_of_codes"  # ends the name of what takes codes for the sake of its sums, as `qi.ir.norms` has it


def real_operations(graph: QGraph) -> list[tuple[Op, str]]:
    """(operation, why) for each that computes with real numbers; what only moves them doesn't.

    Borders don't count: a "quantize" of what comes in, a "dequantize" of what goes out or enters an operation that is named here
    itself. Where codes become other codes through real numbers, that "quantize" does.

    Args:
        graph: routed.
    """
    producers = graph.producers()
    found = []
    for op in graph.ops:
        if op.kind == "quantize":
            before = producers.get(id(op.x))
            if before is not None and before.kind == "dequantize":
                found.append((op, _KERNEL))
        elif op.kind != "dequantize" and _computes(op):
            found.append((op, _why(graph, producers, op)))
    return found


def told_real(graph: QGraph) -> str:
    """What `real_operations` finds, as text by reason: "" if there is nothing."""
    groups: dict[str, dict[str, None]] = {}
    for op, why in real_operations(graph):
        name = str(op.attrs["function"]) if op.kind == "unary" else op.kind.removesuffix(_OF_CODES)
        groups.setdefault(why, {})[f"{name} in layer {told(op.source)}"] = None
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in groups.items())


def _computes(op: Op) -> bool:
    """Whether an operation computes with real numbers."""
    reals = any(_real(t) for t in (*op.inputs, *op.outputs))
    return reals and not op.quantized and not KINDS.get(op.kind).moves


def _real(tensor: Tensor) -> bool:
    return tensor.dtype.startswith("float") and not tensor.quantized


def _why(graph: QGraph, producers: dict[int, Op], op: Op) -> str:
    taken = [producers.get(id(t)) for t in op.inputs if not t.constant and _real(t)]
    if any(before is None or before.kind != "dequantize" for before in taken):
        return _GIVEN
    if graph.target not in KINDS.get(op.kind).kernels:
        return _KIND
    if op.kind in LINEAR and any(t.constant and _real(t) for t in op.inputs[:2]):
        return _WEIGHTS
    consumers, outputs = graph.consumers(), {id(t) for t in graph.outputs}
    given = [t for t in op.outputs if _real(t)]
    if any(id(t) in outputs or any(user.kind != "quantize" for user in consumers.get(id(t), [])) for t in given):
        return _GIVES
    return _KERNEL
