"""Scaling of channels between layers: the float function stays, weights and activations become easier to quantize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qi.algorithms import Reader, equalize, joint_awq_factors, smoothing_factors
from qi.errors import InputError
from qi.keras.calibrate import Calibration
from qi.keras.caps import ChannelCap
from qi.keras.inputs import weight_key
from qi.keras.links import Link, Taker
from qi.keras.plan import value_name
from qi.keras.rounding import WeightSite, problem_of
from qi.keras.variables import to_numpy, weights_of
from qi.observers import Moments
from qi.observers.channels import rescaled
from qi.recipes import Step

__all__ = ["asked_step", "equalize_links", "rescale_statistics", "scale_link", "smooth_links"]


def asked_step(site: WeightSite | None, name: str) -> Step | None:
    """The step of an algorithm that the recipe names for a weight, if it does."""
    return next((step for step in site.spec.algorithms if step.name == name), None) if site is not None else None


def equalize_links(links: list[Link], sites: Mapping[str, WeightSite]) -> list[Link]:
    """Equalizes the ranges of weights across links (`qi.algorithms.equalize`): those of which both sides ask for it.

    Returns:
        the links whose channels were scaled.
    """
    chosen = [link for link in links if not link.normalizes and _all_ask(link, sites)]
    by_options: dict[Step, list[Link]] = {}
    for link in chosen:
        step = asked_step(_site_of(link.takers[0], sites), "equalize")
        if step is not None:
            by_options.setdefault(step, []).append(link)
    for step, together in by_options.items():
        _equalize(together, sites, step.options)
    return chosen


def _equalize(chosen: list[Link], sites: Mapping[str, WeightSite], options: Mapping[str, Any]) -> None:
    """Equalizes links together, with one set of options."""
    ops = {id(call.op): call for link in chosen for call in (link.giver, *(t.call for t in link.takers))}
    places = {key: place for place, key in enumerate(ops)}
    takes = {id(taker.call.op): (link, taker) for link in chosen for taker in link.takers}
    gives = {id(link.giver.op): link for link in chosen}
    magnitudes = [_magnitudes(sites, ops[key], takes.get(key), gives.get(key)) for key in ops]
    joints = [([places[id(link.giver.op)]], [places[id(t.call.op)] for t in link.takers]) for link in chosen]
    for link, factors in zip(chosen, equalize(magnitudes, joints, **options), strict=True):
        scale_link(link, 1 / factors)


def _all_ask(link: Link, sites: Mapping[str, WeightSite]) -> bool:
    names = [weight_key(link.giver.path, "kernel"), *(_key(taker) for taker in link.takers)]
    return all(asked_step(sites.get(name), "equalize") is not None for name in names)


def _key(taker: Taker) -> str:
    return weight_key(taker.call.path, taker.linear.weight)


def _site_of(taker: Taker, sites: Mapping[str, WeightSite]) -> WeightSite | None:
    return sites.get(_key(taker))


def _magnitudes(
    sites: Mapping[str, WeightSite], call: Any, taken: tuple[Link, Taker] | None, given: Link | None
) -> np.ndarray:
    """The greatest magnitudes ``[channels in, channels out]`` of a layer's weight."""
    if taken is None:
        site = sites[weight_key(call.path, "kernel")]
        linear, channels, count = site.linear, None, 1
    else:
        linear, channels, count = taken[1].linear, taken[1].channels, taken[0].channels
    if linear is None:
        raise InputError(f"expected a weight that multiplies its input; received {call.path!r}")
    matrix = np.abs(linear.view.matrix(to_numpy(weights_of(call.op)[linear.weight])).astype(np.float64))
    groups, features, outputs = matrix.shape
    index = np.zeros((groups, features), int) if channels is None else channels
    out = np.arange(groups * outputs).reshape(groups, 1, outputs)
    found = np.zeros((count, groups * outputs))
    np.maximum.at(found, (np.broadcast_to(index[:, :, None], matrix.shape), np.broadcast_to(out, matrix.shape)), matrix)
    if given is not None and given.channels != found.shape[1]:
        raise InputError(f"expected {given.channels} outputs of {call.path!r}; received {found.shape[1]}")
    return found


def smooth_links(links: list[Link], sites: Mapping[str, WeightSite], inputs: Mapping[str, Moments]) -> list[Link]:
    """Moves ranges between activations and weights (`qi.algorithms.smoothing_factors`, `joint_awq_factors`), as the recipe asks.

    Args:
        links: of the graph.
        sites: by key, with the weights as they are now.
        inputs: moments of what each layer takes, as it is now; changed with the links.

    Returns:
        the links whose channels were scaled.
    """
    done = []
    for link in links:
        for name, factors_of in (("smooth", _smoothing), ("awq", _awq)):
            steps = [asked_step(_site_of(taker, sites), name) for taker in link.takers]
            if steps and all(step is not None for step in steps):
                known = [inputs.get(_key(taker)) for taker in link.takers]
                moments = [one for one in known if one is not None and one.count]
                if len(moments) != len(link.takers):
                    raise InputError(
                        f"expected moments of the inputs of {_key(link.takers[0])!r} for {name!r}; received none; do give data, "
                        "or statistics of qi.calibrate"
                    )
                options = dict(steps[0].options) if steps[0] is not None else {}
                scale_link(link, 1 / factors_of(link, sites, moments, options))
                done.append(link)
    return list({id(link): link for link in done}.values())


def _per_channel(link: Link, taker: Taker, values: np.ndarray) -> np.ndarray:
    """The greatest of what the features ``[G, K]`` of each channel have."""
    found = np.zeros(link.channels)
    np.maximum.at(found, taker.channels.ravel(), np.asarray(values, np.float64).ravel())
    return found


def _weights(taker: Taker) -> np.ndarray:
    return taker.linear.view.matrix(to_numpy(weights_of(taker.call.op)[taker.linear.weight])).astype(np.float64)


def _smoothing(link: Link, sites: Mapping[str, WeightSite], moments: list[Moments], options: Any) -> np.ndarray:
    seen = [_per_channel(link, t, m.absmax * _applied(link, t)) for t, m in zip(link.takers, moments, strict=True)]
    held = [_per_channel(link, taker, np.abs(_weights(taker)).max(axis=2)) for taker in link.takers]
    return smoothing_factors(np.max(seen, axis=0), np.max(held, axis=0), **options)


def _applied(link: Link, taker: Taker) -> np.ndarray:
    """The factors by which the taker's features differ from those of its moments."""
    return link.factors[taker.channels]


def _awq(link: Link, sites: Mapping[str, WeightSite], moments: list[Moments], options: Any) -> np.ndarray:
    """One search for all that take the link."""
    readers = [_reader(link, taker, sites[_key(taker)], seen) for taker, seen in zip(link.takers, moments, strict=True)]
    return joint_awq_factors(readers, **options)


def _reader(link: Link, taker: Taker, site: WeightSite, seen: Moments) -> Reader:
    """A layer as it is now, with moments of what it takes now."""

    def rounded(scaled: np.ndarray) -> np.ndarray:
        problem = problem_of(site, None, taker.linear.view.tensor(scaled).astype(np.float32))
        return problem.values(problem.nearest())

    now = seen.scaled(_applied(link, taker))
    return Reader(_weights(taker), now.second, now.absmean, taker.channels, rounded)


def scale_link(link: Link, factors: np.ndarray) -> None:
    """Multiplies the channels of a link by positive factors ``[C]``: in what gives it, in caps; what takes it undoes them."""
    _scale_giver(link, factors)
    for call in link.caps:
        if isinstance(call.op, ChannelCap):
            call.op.caps.assign(to_numpy(call.op.caps) * factors)
    for taker in link.takers:
        variable = weights_of(taker.call.op)[taker.linear.weight]
        matrix = _weights(taker) / factors[taker.channels][:, :, None]
        variable.assign(taker.linear.view.tensor(matrix).astype(to_numpy(variable).dtype))
    link.factors = link.factors * factors


def _scale_giver(link: Link, factors: np.ndarray) -> None:
    op, variables = link.giver.op, weights_of(link.giver.op)
    if link.normalizes:
        names = [name for name in ("gamma", "beta", "scale") if name in variables]
        for name in names:
            array = to_numpy(variables[name])
            variables[name].assign((array * factors.reshape(array.shape)).astype(array.dtype))
        return
    kernel = to_numpy(variables["kernel"]).astype(np.float64)
    outputs = 2 if "Depthwise" in link.giver.kind else 1  # channels and multiplier
    shape = kernel.shape[-outputs:]
    variables["kernel"].assign((kernel * factors.reshape(shape)).astype(to_numpy(variables["kernel"]).dtype))
    if getattr(op, "bias", None) is not None:
        bias = to_numpy(variables["bias"])
        variables["bias"].assign((bias * factors).astype(bias.dtype))


def rescale_statistics(links: list[Link], calibration: Calibration) -> None:
    """What was seen of a float graph, as it would be now that channels of its links are scaled.

    Args:
        links: that were scaled since.
        calibration: changed: ranges of tensors, and moments of inputs.

    Raises:
        InputError: statistics that know no single channels.
    """
    for link in links:
        if np.all(link.factors == 1):
            continue
        for value in link.values:
            name = value_name(value)
            if name not in calibration.statistics:
                continue
            if name not in calibration.channels:
                raise InputError(
                    f"expected statistics of the channels of {name!r}, which an algorithm scales; received none; do calibrate "
                    "again, or give data"
                )
            bins = calibration.statistics[name].histogram.bins
            calibration.statistics[name] = rescaled(calibration.channels[name], link.factors, bins=bins)
        for taker in link.takers:
            key = _key(taker)
            if key in calibration.inputs:
                calibration.inputs[key] = calibration.inputs[key].scaled(_applied(link, taker))
