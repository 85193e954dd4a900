"""Trained models in LiteRT and in the twin: the same codes on every image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qi.exporters import litert
from qi.ir import twin
from qi.ir.graph import QGraph
from qi.ir.routing import route
from tests.benchmarks.common import MODELS, load_data, load_float

pytestmark = pytest.mark.slow
IMAGES = 256


@pytest.fixture(scope="module")
def images(shared_dir: Path) -> np.ndarray:
    if not (shared_dir / "bench").is_dir():
        pytest.skip("no trained models in the reference data")
    return load_data().x_test[:IMAGES]


@pytest.fixture(scope="module", params=MODELS)
def graph(request: pytest.FixtureRequest, images: np.ndarray) -> QGraph:
    import qi
    from qi.keras.lower import lower

    del images
    qmodel, _ = qi.quantize_model(load_float(request.param), "w8a8", load_data().x_calib[:128], progress=False)
    return lower(qmodel)


@pytest.mark.parametrize("target", ["litert", "reference"])
def test_every_code_of_every_output(graph: QGraph, images: np.ndarray, target: str) -> None:
    routed = route(graph, target)
    x = images if target == "litert" else images[:32]
    data, expected = litert.write(routed), twin.run(routed, [x])
    for threads in (1, 2):
        found = litert.run(data, [x], threads=threads, reference=target == "reference", tensors=list(expected))
        for name, codes in expected.items():
            assert np.array_equal(found[name], codes), (name, threads)


def test_every_tensor_inside(graph: QGraph, images: np.ndarray) -> None:
    routed = route(graph, "litert")
    inside = [t.name for op in routed.ops for t in op.outputs if t.quantized]
    expected = twin.run(routed, [images[:8]], every=True)
    found = litert.run(litert.write(routed), [images[:8]], tensors=inside)
    assert [name for name in inside if not np.array_equal(found[name], expected[name])] == []


def test_integers_all_the_way(graph: QGraph) -> None:
    kinds = {op.kind for op in route(graph, "litert", integer_only=True).ops if not op.quantized}
    assert kinds == {"quantize"}
