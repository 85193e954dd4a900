"""ONNX Runtime and the twin give the same codes on random operations."""

from __future__ import annotations

import pytest

from tests.parity.onnx_agreement import TOLERATED, behind_convolutions, differences, exact, survey
from tests.parity.operations import CASES, case, cases

IMAGES = (
    "add",
    "sub",
    "prelu",
    "mean",
    "max",
    "moves",
    "relu",
    "avg_pool2d",
    "max_pool2d",
    "resize_bilinear",
    "conv2d_transpose",
)


def test_random_operations() -> None:
    counts, differing = survey(cases(104))
    assert not differing
    assert counts["cases"] == 104


@pytest.mark.parametrize("kind", IMAGES)
def test_channels_first_between_convolutions(kind: str) -> None:
    seeds = [seed for seed in range(8) if len(case(kind, seed).inputs[0].shape) == 4]
    assert seeds
    for seed in seeds:
        graph = behind_convolutions(case(kind, seed), seed)
        steps = differences(graph)
        assert not steps.any() or (not exact(graph) and steps.max() <= 1 and steps.mean() <= TOLERATED)


@pytest.mark.parametrize("kind", CASES.names())
def test_two_threads(kind: str) -> None:
    steps = differences(case(kind, 1), threads=2)
    assert (steps == differences(case(kind, 1))).all()


@pytest.mark.parametrize("kind", ["conv2d_int4", "depthwise_conv2d_int4", "dense_int4", "dense_int2"])
def test_packed_weights(kind: str) -> None:
    """They are dequantized, and the sums are whole numbers in float32."""
    for seed in range(12):
        assert not differences(case(kind, seed), packed=True).any()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_is_open(batch: int) -> None:
    for kind in ("moves", "dense", "mean", "conv2d_transpose", "batch_matmul", "embedding"):
        assert not differences(case(kind, 5), batch=batch).any()


def test_functions_are_tables_where_integers_alone_are_wanted() -> None:
    for seed in range(8):
        assert not differences(case("unary", seed), integer_only=True).any()
