"""A lowered model beside the Keras model that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

import qi
from qi.ir import QGraph, run
from qi.keras.lower import lower
from tests.keras.models import samples, settle

__all__ = ["agrees", "branches", "close", "in_integers", "kinds", "refusal", "weights_only"]


def weights_only(model: keras.Model) -> tuple[keras.Model, QGraph]:
    """The model with quantized weights and real activations, and its graph: nothing but real numbers is computed."""
    settle(model)
    qmodel, _ = qi.quantize_model(model, "w8", progress=False)
    return qmodel, lower(qmodel)


def in_integers(model: keras.Model) -> tuple[keras.Model, QGraph, Any]:
    """The model with quantized weights and activations, its graph, and samples."""
    x = samples(settle(model), 64)
    qmodel, _ = qi.quantize_model(model, "w8a8", x, progress=False)
    return qmodel, lower(qmodel), x


def agrees(qmodel: keras.Model, graph: QGraph, x: Any = None, tolerance: float = 1e-5) -> None:
    """Checks that the graph computes in real numbers what the model does, and that tensors have the shapes they claim."""
    x = samples(qmodel, 3) if x is None else x
    expected = keras.tree.flatten(qmodel(x, training=False))
    found = run(graph, keras.tree.flatten(x), "litert", every=True)
    for tensor in graph.tensors():
        if tensor.name in found:
            assert found[tensor.name].shape == (3, *tensor.shape[1:]), tensor
    wrong = {}
    for tensor, array in zip(graph.outputs, expected, strict=True):
        reach = float(np.abs(array).max())
        assert reach > 0, tensor
        error = float(np.abs(np.asarray(array) - found[tensor.name]).max()) / reach
        if not error <= tolerance:
            wrong[tensor.name] = error
    assert wrong == {}


def close(qmodel: keras.Model, x: Any, target: str = "litert", tolerance: float = 0.05) -> None:
    """Checks that what a target computes in integers is near to what the model does."""
    expected, found = (np.asarray(y) for y in (qmodel(x, training=False), qi.emulate(qmodel, x, target)))
    reach = float(np.abs(expected).max())
    assert reach > 0
    assert float(np.abs(expected - found).max()) <= tolerance * reach


def branches(inputs: Any, made: Mapping[str, Any]) -> None:
    """Checks many layers at once: each a branch of one model with an output of its own."""
    model = keras.Model(inputs, {name: made[name] for name in sorted(made)}, name="branches")
    qmodel, graph = weights_only(model)
    agrees(qmodel, graph)
    assert sorted(graph.output_structure) == sorted(made)


def kinds(graph: QGraph) -> list[str]:
    """The kinds of a graph's operations."""
    return [op.kind for op in graph.ops]


def refusal(inputs: Any, outputs: Any) -> str:
    """The text with which a model is refused."""
    model = settle(keras.Model(inputs, outputs, name="refused"))
    qmodel, _ = qi.quantize_model(model, "w8", progress=False)
    try:
        lower(qmodel)
    except qi.UnsupportedError as error:
        return str(error)
    return ""
