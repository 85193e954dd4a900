"""What quantizing one weight alone costs the model: the losses that a search for bit widths adds up.

By running the model ("task"), by predicting the output of the layer from moments ("output"), or by a prediction that is
weighted by how much the model minds ("hessian").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from qi.algorithms.run import calls
from qi.algorithms.sensitivity import relative_errors, weighted_losses
from qi.keras.calibrate import run
from qi.keras.data import batches
from qi.keras.inputs import Watch
from qi.keras.linear import linear_views
from qi.keras.prepare import Prepared
from qi.keras.running import fixed_batch
from qi.keras.searched import Searched
from qi.observers import Moments

__all__ = [
    "divergence",
    "hessian_losses",
    "input_moments",
    "output_errors",
    "perturbed_values",
    "quantized_values",
    "some_samples",
]

_MOST = 1e6  # a relative error; one that leaves nothing of the output is 1
_STEP = 0.03  # of a weight's size: far above float32's rounding, and small enough for the loss to be a square


def some_samples(ready: Prepared, data: Any, samples: int, batch_size: int) -> Iterator[tuple[list[np.ndarray], int]]:
    """The first batches of the data, up to a number of samples (whole batches where the model demands their size)."""
    fixed = fixed_batch([value.shape for value in ready.graph.flat_inputs()])
    left = samples
    for inputs, count in batches(data, ready.graph, batch_size):
        taken = count if fixed else min(count, left)
        yield [array if array is None else array[:taken] for array in inputs], taken
        left -= taken
        if left <= 0:
            return


def quantized_values(weight: Searched) -> list[Callable[[], np.ndarray]]:
    """The weight on the grid of each candidate, for `measured_losses`."""
    return [partial(weight.values, place) for place in range(len(weight.quantizers))]


def perturbed_values(weight: Searched, count: int = 2, seed: int = 0) -> list[Callable[[], np.ndarray]]:
    """The weight with small errors of random signs, for `measured_losses`: the same at each call.

    The mean of the losses is the trace of the weight's Hessian, up to a factor.

    Args:
        weight: which is to be perturbed.
        count: how often, with other signs.
        seed: of the signs.
    """
    step = _STEP * float(np.sqrt(np.mean(np.square(weight.array, dtype=np.float64))))

    def make(number: int) -> np.ndarray:
        signs = np.random.default_rng([seed, number]).choice(np.array([-step, step]), weight.array.shape)
        return np.asarray(weight.array + signs)

    return [partial(make, number) for number in range(count)]


def hessian_losses(
    weights: Sequence[Searched],
    measured: Sequence[np.ndarray],
    inputs: Mapping[str, Moments],
    *,
    jobs: int | None = 1,
) -> list[np.ndarray]:
    """Predicted losses: the error of each candidate, times how much the model minds small errors there.

    Args:
        weights: the searched ones.
        measured: of each weight the losses with `perturbed_values`.
        inputs: as of `output_errors`.
        jobs: likewise.
    """
    losses = []
    for weight, found, errors in zip(weights, measured, output_errors(weights, inputs, jobs=jobs), strict=True):
        moved = [make() for make in perturbed_values(weight, len(found))]
        caused = float(np.minimum(relative_errors(*_compared(weight, inputs, moved)), _MOST).sum())
        losses.append(weighted_losses(errors, float(np.maximum(found, 0.0).sum()), caused))
    return losses


def input_moments(ready: Prepared, data: Iterable[tuple[list[np.ndarray], int]]) -> dict[str, Moments]:
    """Moments of the inputs of all layers that multiply by a weight, by `qi.keras.inputs.weight_key`.

    Args:
        ready: its graph is run.
        data: (flat inputs, number of samples), batch by batch.
    """
    watch = Watch.of(ready.graph)
    values = watch.values
    if values:
        arrays_of = run(ready.graph, ready.tensors, values)
        for inputs, _ in data:
            watch.update(values, arrays_of(inputs))
    return watch.inputs


def output_errors(
    weights: Sequence[Searched], inputs: Mapping[str, Moments], *, jobs: int | None = 1
) -> list[np.ndarray]:
    """The predicted relative error of the layer's output, for each weight and each of its candidates.

    Args:
        weights: the searched ones.
        inputs: moments by `qi.keras.inputs.weight_key`; weights that have none, as those of tables, are compared themselves.
        jobs: how many weights at once, see `qi.algorithms.run.calls`.
    """
    candidates = [[weight.values(place) for place in range(len(weight.quantizers))] for weight in weights]
    pairs = zip(weights, candidates, strict=True)
    found = calls(relative_errors, [_compared(weight, inputs, own) for weight, own in pairs], jobs=jobs)
    # Where the inputs seen leave nothing of the output, any error is infinitely larger; losses are finite.
    return [np.minimum(errors, _MOST) for errors in found]


def _compared(
    weight: Searched, inputs: Mapping[str, Moments], candidates: Sequence[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None]:
    """A weight and its candidates as matrices, with the second moments of its inputs where there are any."""
    moments = inputs.get(weight.label)
    linear = next((view for view in linear_views(weight.call) if view.weight == weight.own), None)
    if linear is None or moments is None or not moments.count:
        flat = [values.reshape(1, -1, 1) for values in (weight.array, *candidates)]
        return flat[0], flat[1:], None
    return linear.view.matrix(weight.array), [linear.view.matrix(values) for values in candidates], moments.second


def divergence(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """How far the outputs of a changed model are from those of the float model, 0 where they are equal.

    Of probabilities (not negative, of sum 1 along the last axis) the mean Kullback-Leibler divergence in nats, of anything
    else the mean squared difference over the variance; the sum over the outputs.
    """
    return float(sum(_diverged(one, other) for one, other in zip(before, after, strict=True)))


def _diverged(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    if one.ndim > 1 and one.shape[-1] > 1 and one.min() >= 0 and np.allclose(one.sum(-1), 1, atol=1e-3):
        tiny = 1e-7  # what float32 loses beside 1
        return float(np.mean(np.sum(one * (np.log(one + tiny) - np.log(other + tiny)), axis=-1)))
    spread = float(np.var(one)) or float(np.mean(one**2)) or 1.0
    return float(np.mean((one - other) ** 2)) / spread
