"""Normalizations of codes: LiteRT's kernels for real numbers give the twin's very bits."""

from __future__ import annotations

import numpy as np
import pytest

from qi.exporters import litert
from qi.ir import run
from qi.ir.routing import route
from tests.ir.test_norms import norm, samples


@pytest.mark.parametrize(("weights", "width"), [(0, 48), (1, 32), (2, 48), (2, 7)])
def test_litert_gives_the_same_bits(weights: int, width: int) -> None:
    routed = route(norm(weights=weights, width=width), "litert")
    x = samples(512, width)
    found = litert.run(litert.write(routed), [x])["y"]
    y = routed.outputs[0]
    np.testing.assert_array_equal(np.rint(found / y.scale).astype(int), run(routed, [x])["y"] - y.zero_point)
