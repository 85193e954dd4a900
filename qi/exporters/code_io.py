"""Files that take and give codes: which inputs and outputs have none."""

from __future__ import annotations

from qi.errors import ConfigError
from qi.ir.graph import QGraph, Tensor
from qi.ir.routing import input_quantizers

__all__ = ["check_codes"]


def check_codes(graph: QGraph) -> list[str]:
    """What is to be told of the inputs and outputs that stay real numbers in a file that takes and gives codes.

    Args:
        graph: routed. Inputs and outputs that are integers, such as the numbers of words, are as they are in any file.

    Returns:
        a text that names them, or none.

    Raises:
        ConfigError: there are no codes at all.
    """
    quantizers = input_quantizers(graph)
    real = {
        "inputs": [t.name for t in graph.inputs if _is_real(t) and id(t) not in quantizers],
        "outputs": [t.name for t in graph.outputs if _is_real(t)],
    }
    if not quantizers and not any(t.quantized for t in (*graph.inputs, *graph.outputs)):
        raise ConfigError(
            "expected integer_io=True for a model whose inputs or outputs have codes; received one whose inputs and outputs have "
            "no codes; do leave integer_io out, or quantize activations as well, as the recipe 'w8a8' does"
        )
    told = " and ".join(f"{kind} {', '.join(map(repr, names))}" for kind, names in real.items() if names)
    return [f"integer_io=True leaves {told} in real numbers, which have no codes"] if told else []


def _is_real(tensor: Tensor) -> bool:
    return tensor.dtype.startswith("float") and not tensor.quantized
