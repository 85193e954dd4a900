"""Clauses on the forward pass: what was trained is what is deployed, on every engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qi.quantizers import BaseInferableQuantizer, BaseTrainableQuantizer
from qi.testing.cases import Case, awkward, fitting
from qi.testing.engines import engines_here, evaluate
from qi.testing.registry import CLAUSES, expect, expect_close, expect_same

__all__ = ["engines", "forward", "points", "uniform_noise"]

Point = tuple[Case, BaseTrainableQuantizer, dict[str, np.ndarray], np.ndarray]


def uniform_noise(x: Any, seed: int = 3) -> np.ndarray:
    """Uniform numbers in [0, 1) of x's shape, the same at every call."""
    return np.random.default_rng(seed).random(tuple(x.shape), dtype=np.float32)


def points(cases: Sequence[Case]) -> Iterator[Point]:
    """(case, quantizer, variables, awkward x): with the first variables, and as training might leave them."""
    for case in cases:
        quantizer, first = case.start()
        for variables in (first, case.moved(first)):
            scale, zero_point = quantizer.scale_zero_point(variables)
            numbers = awkward(scale, zero_point, quantizer.grid.qmin, quantizer.grid.qmax)
            for x in fitting(numbers, variables):
                yield case, quantizer, variables, x


def converted(case: Case, quantizer: BaseTrainableQuantizer, variables: Mapping[str, Any]) -> BaseInferableQuantizer:
    """What the quantizer converts to with these variables."""
    quantizer.bind(variables)
    inferable: Any = quantizer.convert2inferable()
    expect(
        isinstance(inferable, BaseInferableQuantizer) and inferable.quantization_target is case.target,
        "forward",
        case,
        f"expected convert2inferable() to give an inferable quantizer of {case.target.value}; received {inferable!r}",
    )
    return inferable  # type: ignore[no-any-return]


@CLAUSES.register("forward")
def forward(cases: Sequence[Case]) -> int:
    """The forward pass outside of training equals the converted quantizer's on ``transform(x)``, bit for bit."""
    found = list(points(cases))
    for case, quantizer, variables, x in found:
        inferable = converted(case, quantizer, variables)
        wanted = inferable(quantizer.transform(x, variables))
        expect_same(quantizer(x), wanted, "forward", case, "the forward pass of convert2inferable()")
        if quantizer.rounding == "nearest" and not quantizer.needs_noise:
            training = quantizer.apply(x, variables, training=True)
            expect_same(training, wanted, "forward", case, "the forward pass of convert2inferable() in training, too")
    return len(found)


@CLAUSES.register("engines")
def engines(cases: Sequence[Case]) -> int:
    """The framework, eager and however it compiles, gives numpy's bits, in training and outside of it."""
    found = list(points(cases))
    names = engines_here()
    for engine in names:
        results = evaluate(engine, [(q, v, x, uniform_noise(x)) for _, q, v, x in found])
        for (case, quantizer, variables, x), (inference, training, transformed) in zip(found, results, strict=True):
            own = quantizer.transform(x, variables)
            where = f"{case} on {engine}"
            # A transform with tanh, say, differs in last bits between engines; what is made of its result does not.
            limit = 1e-5 * float(np.max(np.abs(own)))
            expect_close(transformed, own, "engines", where, "the transform of numpy", slack=limit)
            wanted = converted(case, quantizer, variables)(transformed)
            expect_same(inference, wanted, "engines", where, "numpy's result")
            if np.array_equal(transformed, own):
                wanted = quantizer.apply(x, variables, training=True, noise=uniform_noise)
                expect_same(training, wanted, "engines", where, "numpy's result in training")
    return len(found) * len(names)
