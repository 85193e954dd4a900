"""Parameters of the latest arrays. They are kept in the store, so that every process reads codes as the one that made them.

`recall` and `keep` wait for the store; the rest computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from qi.core import PerChannel, QParams
from qi.engine import QuantizationConfig, Quantizer
from qi.engine.state import fitted
from qi.service.instances import Instance
from qi.service.store import Latest

__all__ = ["Kept", "Recalled", "exported", "keep", "kept", "params_of", "recall", "told"]

_MAX_SEQUENCES = 1 << 12  # layers


@dataclass(frozen=True)
class Kept:
    """Parameters to keep.

    Attributes:
        layers: The layers that they are the latest of; "" is any.
        text: They, as JSON.
        local: Whether the instance's own quantizer has them, too.
    """

    layers: tuple[str, ...]
    text: str
    local: bool


@dataclass(frozen=True)
class Recalled:
    """Parameters that were kept.

    Attributes:
        layer: Of which layer; "" is any.
        latest: They.
    """

    layer: str
    latest: Latest


def told(params: QParams | None) -> dict[str, Any]:
    """Scale, zero point and channel dimension as plain values."""
    if params is None:
        return {"scale": None, "zero_point": None, "channel_dim": None}
    if isinstance(params.granularity, PerChannel):
        return {
            "scale": params.scale.ravel().tolist(),
            "zero_point": params.zero_point.ravel().astype(float).tolist(),
            "channel_dim": params.granularity.axis,
        }
    return {"scale": float(params.scale.flat[0]), "zero_point": float(params.zero_point.flat[0]), "channel_dim": None}


def kept(instance: Instance, params: QParams, layer: str | None, *, local: bool) -> Kept:
    """What to keep of the parameters of an array."""
    layers: tuple[str, ...] = () if layer in _own_layers(instance.config) else ("",)
    layers += () if layer is None else (layer,)
    return Kept(layers, orjson.dumps(told(params)).decode(), local)


def keep(instance: Instance, kept: Kept) -> None:
    """Keeps parameters in the store, unless the instance has changed meanwhile."""
    sequence = instance.store.remember(instance.record, kept.layers, kept.text)
    if len(instance.sequences) > _MAX_SEQUENCES:
        instance.sequences.clear()  # the store still knows
    for layer in kept.layers:
        instance.sequences[layer] = sequence if kept.local else -1


def recall(instance: Instance, layer: str | None) -> Recalled | None:
    """The latest parameters of a layer, or of any if it had none; layers with a configuration of their own stay apart."""
    name = layer or ""
    latest = instance.store.recall(instance.record, name)
    if latest is None and name and layer not in _own_layers(instance.config):
        name = ""
        latest = instance.store.recall(instance.record, name)
    return None if latest is None else Recalled(name, latest)


def params_of(
    recalled: Recalled, instance: Instance, config: QuantizationConfig, rank: int, channel_dim: int | None
) -> QParams | None:
    """Recalled parameters for an array of so many dimensions; None if the instance's quantizer has the same itself."""
    if instance.sequences.get(recalled.layer) == recalled.latest.sequence:
        return None  # so that results can be kept
    plain = orjson.loads(recalled.latest.parameters)
    scale, zero_point = np.asarray(plain["scale"]), np.asarray(plain["zero_point"])
    if plain["channel_dim"] is None:
        return QParams(scale, zero_point, config.grid)
    return fitted(QParams(scale, zero_point, config.grid, PerChannel(plain["channel_dim"])), rank, channel_dim)


def exported(instance: Instance, latest: Mapping[str, Latest]) -> dict[str, Any]:
    """The parameters of an instance as plain values.

    Args:
        instance: The instance.
        latest: What the store has of the latest arrays of all processes.
    """
    plain = instance.quantizer.export_parameters()
    if latest:
        found = {layer: orjson.loads(one.parameters) for layer, one in latest.items()}
        plain["layers"] |= {layer: params for layer, params in found.items() if layer}
        if "" in found:
            plain |= _as_exported(found[""])
        copy = Quantizer(instance.config)
        copy.load_parameters(plain)
        plain = copy.export_parameters()
    for name in ("per_channel_scales", "per_channel_zero_points"):
        plain[name] = {str(index): value for index, value in plain[name].items()}
    return plain


def _own_layers(config: QuantizationConfig) -> set[str | None]:
    """Layers that have a configuration of their own."""
    return {*config.custom_quantization_config, *config.mixed_precision_layers}


def _as_exported(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of one array by the keys of an export."""
    if params["channel_dim"] is None:
        own = {"global_scale": params["scale"], "global_zero_point": params["zero_point"], "has_parameters": True}
        return {**own, "per_channel_scales": {}, "per_channel_zero_points": {}, "channel_dim": None}
    return {
        "global_scale": params["scale"][0],
        "global_zero_point": params["zero_point"][0],
        "per_channel_scales": params["scale"],
        "per_channel_zero_points": params["zero_point"],
        "channel_dim": params["channel_dim"],
        "has_parameters": True,
    }
