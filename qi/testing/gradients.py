"""Clause on gradients: they are those of the written formula."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qi.testing.cases import Case
from qi.testing.engines import gradients_of
from qi.testing.forward import uniform_noise
from qi.testing.registry import CLAUSES, expect, expect_close
from qi.testing.surrogate import expected_gradients

__all__ = ["gradients"]


def _apart(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """X with no element near a tie, a code or the clip's edge."""
    u = x.astype(np.float64) / scale
    part = np.mod(u, 1.0)
    return np.asarray((np.floor(u) + 0.1 + 0.3 * part + 0.45 * (part > 0.5)) * scale, np.float32)


@CLAUSES.register("gradients")
def gradients(cases: Sequence[Case]) -> int:
    """Gradients of the tensor and of every variable equal finite differences of the surrogate in float64."""
    for case in cases:
        quantizer, first = case.start()
        variables = case.moved(first, seed=4)
        scale = np.broadcast_to(quantizer.scale_zero_point(variables)[0], case.values().shape)
        x = _apart(2 * case.values(5), scale)  # so that some are clipped
        upstream = np.random.default_rng(6).normal(size=x.shape).astype(np.float32)
        noise = uniform_noise(x)
        for_x, for_variables, _ = gradients_of((quantizer, variables, x, noise), upstream)
        wanted_x, wanted = expected_gradients(quantizer, variables, x, upstream, noise)
        expect_close(for_x, wanted_x, "gradients", case, "the gradient of the tensor", slack=1e-5)
        for name in case.trainable():
            problem = f"expected {name!r}, which trains, to have a gradient; received zeros"
            expect(np.any(for_variables[name]), "gradients", case, problem)
            reach = float(np.max(np.abs(wanted[name]), initial=0.0))
            expect_close(
                for_variables[name],
                wanted[name],
                "gradients",
                case,
                f"the gradient of {name!r}",
                slack=1e-5 + 1e-4 * reach,
            )
    return len(cases)
