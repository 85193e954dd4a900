"""Where a quantized model's integer graph comes from: the side of the framework that the model belongs to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from qi.ir import QGraph

__all__ = ["Front", "front_of"]


@dataclass(frozen=True)
class Front:
    """What exporters ask of a framework's side, for one model.

    Attributes:
        lower: gives the integer graph.
        lower_both: gives it, and the one with operations on real numbers and quantizers between them.
        inputs: makes samples one array for each of the model's inputs.
    """

    lower: Callable[[], QGraph]
    lower_both: Callable[[], tuple[QGraph, QGraph]]
    inputs: Callable[[Any], list[np.ndarray]]


def front_of(model: Any, samples: Any = None) -> Front:
    """The side of a model's framework; no framework is imported for that, as whoever has a model has imported its own.

    Args:
        model: quantized, of Keras or torch; anything else is refused by Keras' side.
        samples: of what it takes; torch models that were traced without need some.
    """
    if _is_torch(model):
        from qi.torch.lower import lower as lower_torch, lower_both as lower_both_torch
        from qi.torch.lower_inputs import model_inputs as torch_inputs

        return Front(
            partial(lower_torch, model, samples),
            partial(lower_both_torch, model, samples),
            partial(torch_inputs, model),
        )
    from qi.keras.emulate import model_inputs
    from qi.keras.lower import lower, lower_both

    return Front(partial(lower, model), partial(lower_both, model), partial(model_inputs, model))


def _is_torch(model: Any) -> bool:
    """Whether a model is a torch module and none of Keras', which are modules on Keras' torch backend."""
    torch, keras = (sys.modules.get(name) for name in ("torch", "keras"))
    module = getattr(getattr(torch, "nn", None), "Module", ())  # a folder may be called torch
    if not isinstance(model, module):
        return False
    return keras is None or not isinstance(model, keras.Layer)
