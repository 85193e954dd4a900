"""Compares LiteRT with the twin on graphs of one operation, code by code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from qi.errors import UnsupportedError
from qi.exporters import litert
from qi.ir import twin
from qi.ir.graph import QGraph
from qi.ir.routing import route
from tests.parity.operations import samples

__all__ = ["differences", "survey"]


def differences(
    graph: QGraph, target: str, *, threads: int = 1, integer_only: bool = True, batch: int = 5
) -> np.ndarray:
    """Steps between LiteRT's codes and the twin's, for every code that the graph gives.

    Args:
        graph: as `tests.parity.operations` makes it.
        target: "litert" or "reference".
        threads: for the runtime.
        integer_only: no islands where there are integer kernels.
        batch: samples.
    """
    routed = route(graph, target, integer_only=integer_only, packed=True)
    data, inputs = litert.write(routed), samples(graph, batch=batch)
    expected = twin.run(routed, inputs)
    reference = target == "reference"
    found = litert.run(data, inputs, threads=threads, reference=reference, tensors=[t.name for t in routed.outputs])
    return np.concatenate([np.abs(found[n].astype(np.int64) - expected[n]).ravel() for n in expected])


def survey(named: Iterable[tuple[str, QGraph]], target: str) -> tuple[Counter[str], list[str]]:
    """(cases, codes, and refused cases; a line for each case that differs)."""
    counts: Counter[str] = Counter()
    differing = []
    for name, graph in named:
        try:
            steps = differences(graph, target)
        except UnsupportedError:
            counts["refused"] += 1
            continue
        counts.update(cases=1, codes=steps.size)
        if steps.any():
            differing.append(f"{name}: {np.count_nonzero(steps)} of {steps.size}, up to {steps.max()}; {graph.ops[-1]}")
    return counts, differing
