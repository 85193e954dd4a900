"""Integer graphs: a model as fused integer operations, and the twin that computes them as a runtime does."""

from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.kinds import TARGETS
from qi.ir.twin import run
from qi.ir.validate import validate

__all__ = ["TARGETS", "Op", "QGraph", "Tensor", "run", "validate"]
