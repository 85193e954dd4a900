"""Quantizers of a Keras graph's activations: `qi.recipes.dormant` with the weights of Keras' layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from qi.keras.graph import Graph
from qi.keras.variables import to_numpy
from qi.observers import TensorStatistics
from qi.quantizers import BaseInferableQuantizer
from qi.recipes import dormant
from qi.recipes.plan import ActivationPlan

__all__ = ["activation_quantizers", "largest_weight"]


def activation_quantizers(
    graph: Graph, plan: ActivationPlan, seen: Mapping[str, TensorStatistics | None]
) -> dict[int, BaseInferableQuantizer]:
    """`qi.recipes.dormant.activation_quantizers` of a Keras graph."""
    return dormant.activation_quantizers(graph, plan, seen, largest_weight)


def largest_weight(op: Any) -> float:
    """The largest magnitude in the matrices of an operation; 0 where it has none."""
    weights = [w for w in op.weights if len(w.shape) > 1] if isinstance(op, keras.layers.Layer) else []
    return max((float(np.abs(to_numpy(w)).max(initial=0.0)) for w in weights), default=0.0)
