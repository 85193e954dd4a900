"""Running traced modules under observation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qi.core import sqnr_db
from qi.errors import InputError
from qi.quantizers import ActivationUniformInferableQuantizer
from qi.torch.calibrate import collect, errors_of, sample_of, values_of, watch
from qi.torch.data import Batch, Samples, quiet
from qi.torch.graph import Graph, trace
from tests.torch.nets import residual


def followed() -> tuple[Graph, torch.nn.Module, torch.Tensor]:
    model, x = residual()
    graph, why = trace(model, (x,))
    assert graph is not None, why
    return graph, model, x


def test_statistics_are_those_of_all_samples() -> None:
    graph, model, x = followed()
    values = [*graph.flat_inputs(), *graph.flat_outputs()]
    found, count = collect(graph, values, Samples(x, model, 10), progress=False)
    assert count == 64
    assert set(found) == {"x", "fc"}
    y = model(x).detach()
    assert (found["x"].lo, found["x"].hi) == (float(x.min()), float(x.max()))
    np.testing.assert_allclose([found["fc"].lo, found["fc"].hi], [float(y.min()), float(y.max())], rtol=1e-5)
    assert found["x"].count == x.numel()


def test_values_are_kept_as_far_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, model, x = followed()
    nodes = {value.name: value.node for value in [*graph.flat_inputs(), *graph.flat_outputs()]}
    found = values_of(graph, nodes, Batch((x,), {}, 64))
    np.testing.assert_array_equal(found["x"], x.numpy())
    np.testing.assert_allclose(found["fc"], model(x).detach().numpy(), atol=1e-6)
    monkeypatch.setattr("qi.torch.calibrate._MEASURED_ELEMENTS", x.numel())
    assert set(values_of(graph, nodes, Batch((x,), {}, 64))) == {"x"}


def test_modes_and_gradients_come_back() -> None:
    graph, _, x = followed()
    graph.module.train()
    watch(graph, Batch((x,)), {})
    assert graph.module.training
    with quiet(graph.module):
        assert not graph.module.training
        assert not graph.module(x).requires_grad
    assert graph.module.c1.training


def test_data_that_dont_fit() -> None:
    graph, model, _ = followed()
    with pytest.raises(InputError, match="expected samples that the module can be run on; it fails with"):
        collect(graph, [], Samples(torch.ones(3, 2, 8, 6), model), progress=False)


def test_errors_are_own_and_total() -> None:
    exact, found = np.linspace(0, 1, 50, dtype=np.float32), np.linspace(0, 1.1, 50, dtype=np.float32)
    quantizer = ActivationUniformInferableQuantizer(4, 0.0, 1.0)
    errors = errors_of({"a": exact, "b": exact, "c": exact[:0]}, {"a": found, "c": exact[:0]}, {"a": quantizer})
    assert errors == {"a": (sqnr_db(exact, quantizer(exact)), sqnr_db(exact, found))}


def test_arguments_that_are_no_tensors_are_fixed() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return self.fc(x) * scale

    model, x = Scaled(), torch.randn(8, 3)
    graph, why = trace(model, (x,), {"scale": 2.0})
    assert graph is not None, why
    samples = Samples([{"x": x, "scale": 2.0}], model)
    found, _ = collect(graph, graph.flat_outputs(), samples, progress=False)
    (seen,) = found.values()
    assert seen.hi == float(model(x, 2.0).detach().max())


def test_values_of_two_runs_hold_the_same_random_numbers() -> None:
    class Noisy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.randn_like(x)

    x = torch.ones(4, 3)
    graph, _ = trace(Noisy(), (x,))
    assert graph is not None
    before = torch.get_rng_state()
    first, second = (values_of(graph, {"y": graph.outputs[0].node}, Batch((x,), {}, 4))["y"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_errors_are_measured_on_a_part_where_a_part_will_do() -> None:
    first = Batch((torch.ones(64, 2),), {}, 64)
    seen = []
    assert sample_of(first, seen.append).count == 16
    assert seen[0].count == 16

    def fails(part: Batch) -> None:
        raise InputError("edges lead to nodes that were cut off")

    assert sample_of(first, fails) is first
