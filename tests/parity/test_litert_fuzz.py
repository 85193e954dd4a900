"""LiteRT's kernels and the twin give the same codes on random operations, with both sets of kernels."""

from __future__ import annotations

import pytest

from tests.parity.agreement import differences, survey
from tests.parity.operations import CASES, case, cases

TARGETS = ("litert", "reference")
ISLANDS = [kind for kind in ("batch_matmul", "softmax", "layer_norm") if kind in CASES]


@pytest.mark.parametrize("target", TARGETS)
def test_random_operations(target: str) -> None:
    counts, differing = survey(cases(104), target)
    assert not differing
    assert counts["cases"] >= 98  # average pools with odd pads have no form in LiteRT


@pytest.mark.parametrize("kind", ["conv2d", "add", "mean", "dense_int4", "batch_matmul"])
def test_two_threads(kind: str) -> None:
    for seed in range(3):
        assert not differences(case(kind, seed), "litert", threads=2).any()


@pytest.mark.parametrize("kind", ISLANDS)
def test_float_islands(kind: str) -> None:
    """What is done in real numbers may differ by one step on 0.3 % of the codes."""
    steps = [differences(case(kind, seed), "litert", integer_only=False) for seed in range(8)]
    assert max(step.max() for step in steps) <= 1
    assert sum(step.sum() for step in steps) <= 0.003 * sum(step.size for step in steps)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_is_open(batch: int) -> None:
    for kind in ("moves", "dense", "mean", "conv2d_transpose"):
        assert not differences(case(kind, 5), "litert", batch=batch).any()
