"""High-bias absorption between layers: what is always there of a ReLU's input goes into the bias of the layers behind it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from qi.algorithms import ALGORITHMS, absorb_high_bias
from qi.keras.calibrate import Calibration
from qi.keras.caps import ChannelCap
from qi.keras.fold import activation_name
from qi.keras.graph import Call
from qi.keras.inputs import weight_key
from qi.keras.links import Link, Taker
from qi.keras.norm_means import folded_norm
from qi.keras.plan import value_name
from qi.keras.prepare import Prepared
from qi.keras.rounding import WeightSite
from qi.keras.scaling import asked_step
from qi.keras.variables import to_numpy, weights_of
from qi.observers.channels import rescaled

__all__ = ["absorb_links"]

# f(x - c) = f(x) - c, channel by channel. Zeros that are put around a tensor don't shift with it.
_SHIFTS = frozenset(
    "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D Identity Cropping1D Cropping2D Cropping3D MaxPooling1D "
    "MaxPooling2D MaxPooling3D GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D "
    "GlobalMaxPooling2D GlobalMaxPooling3D UpSampling1D UpSampling2D UpSampling3D Flatten ActivityRegularization".split()
)
_AVERAGES = ("AveragePooling1D", "AveragePooling2D", "AveragePooling3D")  # which may count zeros around a tensor
_NAME = "absorb"


def absorb_links(
    links: list[Link], sites: Mapping[str, WeightSite], ready: Prepared, calibration: Calibration
) -> tuple[list[Link], list[str]]:
    """Absorbs high biases (`qi.algorithms.absorb_high_bias`) across the links whose takers all ask for it.

    Mean and deviation of a channel ahead of its ReLU are those of the batch normalization that was folded into the layer
    (beta and the magnitude of gamma), or what calibration saw. The float function stays as it is wherever the input of the ReLU
    isn't below what is absorbed.

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019 (arXiv:1906.04721),
    section 4.1.3.

    Args:
        links: of the graph, with the factors that they were scaled by.
        sites: by key.
        ready: with the graph whose biases and caps are changed, and the one as given.
        calibration: what was seen of tensors and moments of inputs, with the factors taken up already; changed.

    Returns:
        (the links that were changed, lines that say where nothing could be absorbed, and why).
    """
    done, told = [], []
    for link in links:
        steps = [asked_step(sites.get(_key(taker)), _NAME) for taker in link.takers]
        if link.normalizes or any(step is None for step in steps):
            continue
        start = _first_rectified(link)
        why = "no ReLU follows" if start is None else _why_not(link, calibration)
        found = _moments(link, ready, calibration) if not why else None
        if not why and found is None:
            why = "no normalization was folded into it, and no statistics of its channels are known"
        if why or found is None or start is None:
            told.append(f"nothing of {link.giver.path!r} is absorbed: {why}")
            continue
        n_std = next(dict(step.options) for step in steps if step is not None).get(
            "n_std", ALGORITHMS.get(_NAME).options["n_std"]
        )
        amount = _amount(link, *found, n_std)
        if amount.any():
            _move(link, amount)
            _tell(link, amount, start, calibration)
            done.append(link)
    return done, told


def _key(taker: Taker) -> str:
    return weight_key(taker.call.path, taker.linear.weight)


def _rectifies(call: Call) -> bool:
    return (
        call.builtin_kind in ("ReLU", "Relu")
        or (call.builtin_kind == "Activation" and activation_name(call.op) == "relu")
    ) and not getattr(call.op, "negative_slope", 0)


def _first_rectified(link: Link) -> int | None:
    """How many calls the link goes through until it is the output of a ReLU; None where it never is."""
    if activation_name(link.giver.op) == "relu":
        return 0
    return next((place + 1 for place, call in enumerate(link.between) if _rectifies(call)), None)


def _why_not(link: Link, calibration: Calibration) -> str:
    """Why a link can't be moved."""
    if "bias" not in weights_of(link.giver.op):
        return "it has no bias"
    for call in link.between:
        averages = call.builtin_kind in _AVERAGES and call.op.padding == "valid"
        if not (_rectifies(call) or isinstance(call.op, ChannelCap) or call.builtin_kind in _SHIFTS or averages):
            return f"{call.path!r} behind it doesn't pass a shift"
    for taker in link.takers:
        op: Any = taker.call.op
        window = getattr(op, "kernel_size", 1)
        if (prod(window) if isinstance(window, tuple) else window) > 1 and op.padding != "valid":
            return f"{taker.call.path!r} behind it pads with zeros"
        if taker.linear.bias is None:
            return f"{taker.call.path!r} behind it has no bias"
    names = [value_name(value) for value in link.values]
    if any(name in calibration.statistics and name not in calibration.channels for name in names):
        return "the statistics know no single channels"
    return ""


def _moments(link: Link, ready: Prepared, calibration: Calibration) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and deviation of each channel of what the giver gives, with the link's factors."""
    known = folded_norm(link, ready)
    if known is not None:
        return known[0] * link.factors, known[1] * link.factors
    seen = calibration.channels.get(value_name(link.values[0]))
    if seen is None or not seen.count or seen.channels != link.channels:
        return None
    count = np.maximum(seen.histogram.counts.sum(axis=1), 1)
    mean = seen.histogram.sum / count
    variance = np.maximum(seen.histogram.sum_squares / count - mean**2, 0.0)
    return mean * link.factors, np.sqrt(variance) * link.factors


def _amount(link: Link, mean: np.ndarray, std: np.ndarray, n_std: float) -> np.ndarray:
    """What is taken off each channel, never more than a cap leaves of it."""
    moved, _ = absorb_high_bias(np.zeros(link.channels), mean, std, np.zeros((link.channels, 1)), n_std=n_std)
    amount = -moved
    for call in link.caps:
        if isinstance(call.op, ChannelCap):
            amount = np.minimum(amount, to_numpy(call.op.caps))
    return np.asarray(np.maximum(amount, 0.0))


def _move(link: Link, amount: np.ndarray) -> None:
    """Takes an amount ``[C]`` off the giver's bias and the caps, and adds what it made to the takers' biases."""
    _add(link.giver.op, "bias", -amount)
    for call in link.caps:
        if isinstance(call.op, ChannelCap):
            call.op.caps.assign(to_numpy(call.op.caps) - amount)
    for taker in link.takers:
        weight = to_numpy(weights_of(taker.call.op)[taker.linear.weight]).astype(np.float64)
        made = amount[taker.channels][:, None, :] @ taker.linear.view.matrix(weight)
        _add(taker.call.op, str(taker.linear.bias), made.ravel())


def _add(op: Any, path: str, change: np.ndarray) -> None:
    variable = weights_of(op)[path]
    before = to_numpy(variable)
    variable.assign((before.astype(np.float64) + change.reshape(before.shape)).astype(before.dtype))


def _tell(link: Link, amount: np.ndarray, start: int, calibration: Calibration) -> None:
    """What was seen, as it would be now."""
    for place, value in enumerate(link.values):
        name = value_name(value)
        if name in calibration.statistics:
            calibration.statistics[name] = rescaled(
                calibration.channels[name], link.factors, shifts=amount, rectified=place >= start
            )
    for taker in link.takers:
        key = _key(taker)
        if key in calibration.inputs:
            calibration.inputs[key] = calibration.inputs[key].shifted(amount[taker.channels])
