"""The trainable quantizers of a model, and what they quantize."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from qi.errors import ConfigError, InputError
from qi.keras.bound import Bound
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.quantizers import QuantizationTarget

__all__ = ["QuantizerSite", "quantizer_sites"]


@dataclass(frozen=True, eq=False)
class QuantizerSite:
    """Where a trainable quantizer is in a model.

    Attributes:
        layer: name of the wrapper or holder.
        tensor: path of the weight, "output" for a holder, "output_0"... for the outputs of a wrapped layer.
        bound: the quantizer with its variables.
        source: gives the weight that it quantizes; None for activations.
    """

    layer: str
    tensor: str
    bound: Bound
    source: Callable[[], np.ndarray] | None = None

    @property
    def of_weights(self) -> bool:
        """Whether it quantizes a weight."""
        return self.bound.quantizer.quantization_target is QuantizationTarget.WEIGHTS


def quantizer_sites(model: keras.Model, *, weights: bool = True, activations: bool = True) -> list[QuantizerSite]:
    """The trainable quantizers of a model, nested and subclassed ones included.

    Raises:
        InputError: a wrapper or a holder isn't built yet.
        ConfigError: there are none.
    """
    found: list[QuantizerSite] = []
    for layer in model._flatten_layers():
        if not isinstance(layer, (KerasActivationQuantizationHolder, KerasQuantizationWrapper)):
            continue
        if not layer.built:
            raise InputError(f"expected a built model; layer {layer.name!r} isn't; do call the model on a batch first")
        if isinstance(layer, KerasActivationQuantizationHolder):
            found.append(QuantizerSite(layer.name, "output", layer.bound))
            continue
        for path, bound in layer.bounds.items():
            weight = bound.quantizer.quantization_target is QuantizationTarget.WEIGHTS
            source = (lambda layer=layer, path=path: layer.get_source(path)) if weight else None
            found.append(QuantizerSite(layer.name, path, bound, source))
    found = [s for s in found if s.bound.trains and (weights if s.of_weights else activations)]
    if not found:
        kinds = " or ".join(kind for kind, on in (("weights", weights), ("activations", activations)) if on)
        raise ConfigError(
            f"expected a model with trainable quantizers of {kinds}; received {model.name!r}, which has none; "
            "do train what prepare_qat returned"
        )
    return found
