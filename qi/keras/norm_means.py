"""Means of what layers take, from the batch normalizations ahead of them: for correction without data."""

from __future__ import annotations

import numpy as np

from qi.algorithms import clipped_normal
from qi.keras.clamps import limit_of
from qi.keras.fold import activation_name
from qi.keras.inputs import weight_key
from qi.keras.links import Link
from qi.keras.prepare import Prepared
from qi.keras.variables import to_numpy, weights_of

__all__ = ["folded_norm", "norm_means"]

# Means pass these: what they give has the mean of what they take.
_PASSES = frozenset(
    "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D Identity AveragePooling1D AveragePooling2D AveragePooling3D "
    "GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D UpSampling1D UpSampling2D UpSampling3D Flatten "
    "ActivityRegularization".split()
)


def norm_means(ready: Prepared, links: list[Link]) -> dict[str, np.ndarray]:
    """The expected inputs ``[G, K]`` of layers behind a folded batch normalization, by `qi.keras.inputs.weight_key`.

    The normalization says that a channel has the mean beta and the deviation gamma; taken as normal, a ReLU or ReLU6 gives it a
    mean in closed form. Zeros around an image are left out of account.

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019 (arXiv:1906.04721),
    section 4.2.1.

    Args:
        ready: the model, whose given graph holds the normalizations.
        links: of its graph, with the factors that they were scaled by.
    """
    found: dict[str, np.ndarray] = {}
    for link in links:
        known, ends = folded_norm(link, ready), _ends(link)
        if known is None or ends is None:
            continue
        mean = clipped_normal(*known, *ends)[0] * link.factors
        for taker in link.takers:
            found[weight_key(taker.call.path, taker.linear.weight)] = mean[taker.channels]
    return found


def folded_norm(link: Link, ready: Prepared) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and deviation ``[C]`` by which a normalization that was folded into a link's giver says it is; None without one."""
    folded = {name.partition(" ")[2] for name in link.giver.fused if name.startswith("BatchNormalization ")}
    for call in ready.given.calls:
        if call.path in folded:
            own = {name: to_numpy(variable).astype(np.float64) for name, variable in weights_of(call.op).items()}
            mean = own.get("beta", np.zeros(link.channels))
            std = np.abs(own.get("gamma", np.ones(link.channels)))
            if mean.shape == std.shape == (link.channels,):
                return mean, std
    return None


def _ends(link: Link) -> tuple[float, float] | None:
    """Between what numbers a link's values are cut off before any scaling; None where something else happens to them."""
    lo = 0.0 if activation_name(link.giver.op) == "relu" else -np.inf
    hi = np.inf
    for call in link.between:
        limit = limit_of(call)
        if limit is not None:
            lo, hi = 0.0, min(hi, limit)
        elif call.builtin_kind not in _PASSES and not (
            call.builtin_kind == "Activation" and activation_name(call.op) == "linear"
        ):
            return None
    return lo, hi
