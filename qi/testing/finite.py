"""Clauses on numbers that hurt: everything stays finite, and scales stay positive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qi.quantizers import BaseTrainableQuantizer
from qi.testing.cases import CHANNELS, ROWS, Case, awkward, fitting
from qi.testing.engines import gradients_of
from qi.testing.forward import converted, points, uniform_noise
from qi.testing.registry import CLAUSES, expect, expect_same

__all__ = ["finite", "positive"]

_CONSTANTS = (0.0, -0.0, 5.0, -5.0, 1e-30, -1e-40, 3e38, -3e38)
_EXTREMES = (-1.0, 0.0, -0.0, 1e-45, 1e30, 3e38, -3e38)


def _check_finite(
    clause: str, where: Any, quantizer: BaseTrainableQuantizer, variables: Mapping[str, np.ndarray], x: np.ndarray
) -> None:
    upstream = np.ones(x.shape, np.float32)
    for_x, for_variables, result = gradients_of((quantizer, variables, x, uniform_noise(x)), upstream)
    named = {"the result": result, "the gradient of the tensor": for_x}
    for what, values in (named | {f"the gradient of {name!r}": g for name, g in for_variables.items()}).items():
        bad = ~np.isfinite(values)
        if np.any(bad) and values.shape == x.shape:
            what += f" for x={x[bad].flat[0]!r}"
        expect(not np.any(bad), clause, where, f"expected finite numbers; received {values[bad][:1]} in {what}")


@CLAUSES.register("finite")
def finite(cases: Sequence[Case]) -> int:
    """Results and gradients are finite at ties and clip edges, for huge values and for constant tensors."""
    count = 0
    for case, quantizer, variables, x in points(cases):
        _check_finite("finite", case, quantizer, variables, x)
        count += 1
    for case in cases:
        for value in _CONSTANTS:
            x = np.full((ROWS, CHANNELS), value, np.float32)
            quantizer, variables = case.start(x)
            _check_finite("finite", f"{case} on a tensor of {value!r} only", quantizer, variables, x)
            count += 1
    return count


@CLAUSES.register("positive")
def positive(cases: Sequence[Case]) -> int:
    """The scale is positive and finite, and conversion exact, whatever finite numbers the variables become."""
    count = 0
    for case in cases:
        quantizer, first = case.start()
        names = case.trainable()
        for changed in [*((name,) for name in names), names][: len(names) + (len(names) > 1)]:
            for value in _EXTREMES:
                variables = first | {name: np.full_like(first[name], value) for name in changed}
                where = f"{case} with {' = '.join(changed)} = {value!r}"
                _check_scale(where, case, quantizer, variables)
                count += 1
    return count


def _check_scale(
    where: str, case: Case, quantizer: BaseTrainableQuantizer, variables: Mapping[str, np.ndarray]
) -> None:
    with np.errstate(over="ignore"):
        scale, zero_point = quantizer.scale_zero_point(variables)
    good = np.isfinite(scale) & (np.asarray(scale) > 0)
    expect(
        np.all(good), "positive", where, f"expected a positive and finite scale; received {np.asarray(scale).flat[0]!r}"
    )
    zero = np.zeros(1) if zero_point is None else np.asarray(zero_point)
    legal = (zero == np.rint(zero)) & (quantizer.grid.qmin <= zero) & (zero <= quantizer.grid.qmax)
    expect(
        np.all(legal),
        "positive",
        where,
        f"expected a zero point on the grid; received {zero.flat[int(np.argmin(legal))]!r}",
    )
    with np.errstate(over="ignore"):  # what is far beyond the range of the extremes saturates
        numbers = awkward(scale, zero_point, quantizer.grid.qmin, quantizer.grid.qmax)
    for x in fitting(np.clip(numbers, np.float32(-3e38), np.float32(3e38)), variables):
        with np.errstate(over="ignore"):
            inferable = converted(case, quantizer, variables)
            wanted, found = inferable(quantizer.transform(x, variables)), quantizer(x)
        _check_finite("positive", where, quantizer, variables, x)
        expect_same(found, wanted, "positive", where, "the forward pass of convert2inferable()")
