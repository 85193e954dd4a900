"""Equalization: channels of consecutive layers rescaled so that one scale per tensor fits all of them.

``W2 f(W1 x + b1) = (W2 S) f'(S^-1 (W1 x + b1))`` with a positive factor per channel, where f' is

* f itself for whatever is positively homogeneous: identity, ReLU, leaky ReLU, PReLU with its slopes; also averages,
  maxima and sums of channels that share their factors (pooling, residual additions);
* for ReLU6 the function ``clip(x, 0, 6 / s)`` with a cap per channel: ReLU6 with its one cap is another function as soon
  as a factor isn't 1, and a ReLU in its place is one where a value exceeds 6.

It doesn't hold for sigmoid, tanh, swish, GELU and hard-swish. Exact means up to rounding of floats; with factors that are
powers of two, bit for bit.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019 (arXiv:1906.04721).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qi.algorithms.factors import LIMIT, POWER_OF_TWO, bounded_factors, checked
from qi.algorithms.options import Count, Number, Options
from qi.algorithms.registry import algorithm
from qi.errors import ConfigError, InputError
from qi.typing import Array

__all__ = ["Joint", "absorb_high_bias", "equalization_factors", "equalize", "equalize_chain"]

_EQUALIZE = Options(limit=LIMIT, steps=Count(1), tolerance=Number(least=0), power_of_two=POWER_OF_TWO)
_ABSORB = Options(n_std=Number(least=0))

Joint = tuple[Sequence[int], Sequence[int]]
"""The layers that make some channels and those that read them, by number."""


def equalization_factors(
    first_ranges: Array, second_ranges: Array, *, limit: float = 1000.0, power_of_two: bool = False
) -> np.ndarray:
    """The factor of each channel that gives it the same range in the layer that makes it and in the one that reads it.

    ``s = sqrt(first / second)``: the first layer's output channels (and biases) are divided by s, the second's input
    channels multiplied, and both ranges are ``sqrt(first * second)`` then, unless the limit was reached.

    Args:
        first_ranges: Greatest magnitude of the weights of each output channel of the first layer, ``[C]``, from 0 on.
        second_ranges: The same of each input channel of the second.
        limit: Of the factors and their inverses.
        power_of_two: Whether factors are powers of two: the ranges then agree to within a factor of 2.

    Returns:
        float64 ``[C]``; 1 for a dead channel, whose range is 0 on either side.

    Raises:
        InputError: If the ranges don't fit each other, or one is negative or not finite.
        ConfigError: If the limit is below 1.

    Example:
        >>> equalization_factors([8.0, 1.0, 0.0], [2.0, 4.0, 1.0]).tolist()
        [2.0, 0.5, 1.0]
    """
    first = checked("first_ranges", first_ranges, least=0.0)
    second = checked("second_ranges", second_ranges, first.shape, least=0.0)
    dead = (first == 0) | (second == 0)
    ratio = np.sqrt(np.where(dead, 1.0, first)) / np.sqrt(np.where(dead, 1.0, second))
    return bounded_factors(ratio, limit=limit, power_of_two=power_of_two)


@algorithm("equalize", stage="scaling", needs="weights", options=_EQUALIZE)
def equalize(
    magnitudes: Sequence[Array],
    joints: Sequence[Joint],
    *,
    limit: float = 1000.0,
    steps: int = 20,
    tolerance: float = 0.01,
    power_of_two: bool = False,
) -> list[np.ndarray]:
    """Equalize the channels between layers until their ranges agree at every joint.

    A joint is a tensor between layers. In a chain it has one layer on each side; where branches are added, the layers
    that make the terms share its factors, as do all that read it. The range of a channel is the greatest on that side.
    Joints are equalized one after another and again, as each changes the ranges of its neighbors.

    Args:
        magnitudes: Of each layer, the greatest magnitudes of its weights ``[inputs, outputs]`` over what else its kernel
            has (height and width), 0 where an input has no part in an output (depthwise and grouped convolutions).
        joints: (layers whose outputs are the joint's channels, layers whose inputs they are).
        limit: Of the factors and their inverses.
        steps: Rounds over all joints at most. Any number of rounds gives factors that change nothing in float.
        tolerance: Ends the rounds when no factor changes by more than this share. By default the two ranges of a channel end
            up within a few percent of each other even along a chain of 50 layers.
        power_of_two: Whether the factors found are rounded to powers of two.

    Returns:
        Of each joint, the factors ``[channels]``, float64: outputs (and biases) of its makers are to be divided by them,
        inputs of its readers multiplied.

    Raises:
        InputError: If magnitudes are negative or not finite, or the layers of a joint don't have the same channels.
        ConfigError: If a joint lacks a side or names a layer that isn't there or a side of one twice, or an option is
            out of range.

    Example:
        >>> first, second = np.array([[8.0, 1.0]]), np.array([[2.0], [4.0]])
        >>> equalize([first, second], [([0], [1])])[0].tolist()
        [2.0, 0.5]
    """
    _EQUALIZE.check(limit=limit, steps=steps, tolerance=tolerance, power_of_two=power_of_two)
    current = [_matrix(i, values) for i, values in enumerate(magnitudes)]
    factors = [np.ones(channels) for channels in _channels(current, joints)]
    for _ in range(steps):
        change = 0.0
        for index, (makers, readers) in enumerate(joints):
            first = np.max([current[layer].max(axis=0) for layer in makers], axis=0)
            second = np.max([current[layer].max(axis=1) for layer in readers], axis=0)
            wanted = factors[index] * equalization_factors(first, second, limit=limit)
            step = bounded_factors(wanted, limit=limit) / factors[index]
            factors[index] = factors[index] * step
            change = max(change, float(np.abs(step - 1.0).max(initial=0.0)))
            for layer in makers:
                current[layer] = current[layer] / step
            for layer in readers:
                current[layer] = current[layer] * step[:, None]
        if change <= tolerance:
            break
    return [bounded_factors(found, limit=limit, power_of_two=power_of_two) for found in factors]


def equalize_chain(
    magnitudes: Sequence[Array],
    *,
    limit: float = 1000.0,
    steps: int = 20,
    tolerance: float = 0.01,
    power_of_two: bool = False,
) -> list[np.ndarray]:
    """Equalize layers of which each reads what the one before makes; see `equalize`.

    Example:
        >>> depthwise = np.diag([1.0, 16.0])
        >>> found = equalize_chain([np.ones((1, 2)), depthwise, np.ones((2, 1))])
        >>> [np.round(factors, 1).tolist() for factors in found]
        [[1.0, 0.4], [1.0, 2.5]]
    """
    joints = [([layer], [layer + 1]) for layer in range(len(magnitudes) - 1)]
    return equalize(magnitudes, joints, limit=limit, steps=steps, tolerance=tolerance, power_of_two=power_of_two)


@algorithm("absorb", stage="scaling", needs="weights", options=_ABSORB)
def absorb_high_bias(
    bias: Array, mean: Array, std: Array, next_weight_sums: Array, *, n_std: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Move what is always there of a ReLU's input into the bias of the next layer.

    ``c = max(0, mean - n_std * std)`` is taken off each channel before the ReLU, and ``c @ next_weight_sums`` added
    behind the next layer. As ``relu(x - c) = relu(x) - c`` for ``x >= c``, the function stays the same for inputs
    whose pre-activations stay at or above c: with 3 deviations and normal ones all but 0.135 %. The range of the
    activations shrinks by c.

    Two more conditions: a zero-padded next convolution reads 0 at its border, where the sum of all its weights doesn't
    belong, so the function changes there; and a cap (ReLU6) has to be lowered by c in that channel.

    Args:
        bias: Of the layer before the ReLU, ``[C]``.
        mean: Of its outputs, ``[C]``: batch normalization's beta, or measured.
        std: Their standard deviation, ``[C]``, from 0 on: batch normalization's abs(gamma), or measured.
        next_weight_sums: Of the next layer, the sum of its weights over all but input and output channel, ``[C, N]``
            (0 where an input has no part in an output).
        n_std: Deviations below the mean that are left alone, from 0 on.

    Returns:
        (the bias ``[C]`` without what is absorbed, what the next layer's bias grows by ``[N]``), float64.

    Raises:
        InputError: If shapes don't fit each other or values aren't finite.
        ConfigError: If `n_std` is negative.

    Example:
        >>> bias, delta = absorb_high_bias([5.0, 0.0], [5.0, 0.0], [1.0, 1.0], [[2.0], [3.0]])
        >>> bias.tolist(), delta.tolist()
        ([3.0, 0.0], [4.0])
    """
    _ABSORB.check(n_std=n_std)
    before = checked("bias", bias)
    middle, spread = checked("mean", mean, before.shape), checked("std", std, before.shape, least=0.0)
    sums = np.asarray(next_weight_sums, np.float64)
    if sums.ndim != 2 or len(sums) != len(before) or not np.isfinite(sums).all():
        raise InputError(f"expected finite next_weight_sums of shape ({len(before)}, N); received shape {sums.shape}")
    absorbed = np.maximum(middle - n_std * spread, 0.0)
    return before - absorbed, absorbed @ sums


def _matrix(index: int, values: Array) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.ndim != 2 or 0 in found.shape or not np.isfinite(found).all() or (found < 0).any():
        raise InputError(
            f"expected magnitudes [inputs, outputs] of layer {index}, finite and from 0 on; received shape {found.shape}"
        )
    return found


def _channels(layers: Sequence[np.ndarray], joints: Sequence[Joint]) -> list[int]:
    """How many channels each joint has."""
    taken: set[tuple[int, int]] = set()
    found = []
    for makers, readers in joints:
        sides = [(layer, 1) for layer in makers] + [(layer, 0) for layer in readers]
        known = all(0 <= layer < len(layers) for layer, _ in sides) and makers and readers
        if not known or len({*sides}) < len(sides) or taken & {*sides}:
            raise ConfigError(
                f"expected joints of layers 0 to {len(layers) - 1}, each with makers and readers of its own; received "
                f"{(list(makers), list(readers))}"
            )
        taken |= {*sides}
        lengths = {layers[layer].shape[side] for layer, side in sides}
        if len(lengths) > 1:
            raise InputError(f"expected as many channels on each side of a joint; received {sorted(lengths)}")
        found.append(lengths.pop())
    return found
