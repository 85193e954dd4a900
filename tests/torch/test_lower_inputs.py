"""What a model takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qi.errors import InputError, UnsupportedError
from qi.torch.graph import Graph, trace
from qi.torch.lower_inputs import graph_of, model_inputs, sample_inputs
from tests.torch.lowered import hold


class Two(nn.Module):
    """Takes two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.held = hold(1.0)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Their sum."""
        return self.held(x) + ids


class Nested(nn.Module):
    """Takes a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.held = hold(1.0)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """A sum."""
        return self.held(batch["x"]) + batch["y"]


X, IDS = torch.randn(5, 3), torch.ones(5, 3, dtype=torch.int64)


def graph(model: nn.Module, *args: Any) -> Graph:
    found, why = trace(model, args or None)
    assert found is not None, why
    return found


@pytest.mark.parametrize("given", [(X, IDS), [X.numpy(), IDS.numpy()], {"ids": IDS, "x": X.numpy().astype(float)}])
def test_inputs_in_their_order_and_types(given: Any) -> None:
    x, ids = sample_inputs(graph(Two(), X, IDS), given)
    torch.testing.assert_close(x, X)
    assert (x.dtype, ids.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("given", [{"x": X, "y": X + 1}, ({"x": X, "y": X + 1},), {"batch": {"x": X, "y": X + 1}}])
def test_inputs_within_a_dict(given: Any) -> None:
    found = sample_inputs(graph(Nested(), {"x": X, "y": X}), given)
    torch.testing.assert_close(found, [X, X + 1])


def test_the_sizes_of_the_trace_serve_where_no_example_is_given() -> None:
    x, ids = sample_inputs(graph(Two(), X, IDS), None)
    assert (x.shape, ids.shape, ids.dtype) == ((1, 3), (1, 3), torch.int64)
    with pytest.raises(InputError, match="traced without; received none for 'x'; do give samples"):
        sample_inputs(graph(Two()), None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (X, r"for the inputs \['x', 'ids'\]; received \['x'\]"),
        ((X, IDS, X), "received .*'2'"),
        ({"x": X, "other": IDS}, "received .*'other'"),
        ((X, IDS[:2]), "as many samples for each input"),
        ((X[:0], IDS[:0]), "one at least"),
        ((X, "text"), "a tensor or an array for 'ids'; received str"),
    ],
)
def test_what_does_not_fit_is_refused(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        sample_inputs(graph(Two(), X, IDS), given)


def test_samples_for_files() -> None:
    found = model_inputs(Two(), (X.double(), IDS))
    assert [array.dtype for array in found] == [np.float32, np.int64]
    np.testing.assert_array_equal(found[0], X.numpy())
    assert model_inputs(nn.Sequential(hold(1.0)), X.bfloat16())[0].dtype == np.float32


def test_models_that_can_not_be_followed_say_why() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = hold(1.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.held(x) if x.sum() > 0 else x

    with pytest.raises(
        UnsupportedError, match=r"received a Branching, which was quantized in place: .*; do write that part"
    ):
        graph_of(Branching(), X)
    with pytest.raises(
        UnsupportedError, match="received a Linear in which nothing is quantized; do give what quantize_model"
    ):
        graph_of(nn.Linear(2, 2))
    with pytest.raises(UnsupportedError, match=r"quantized torch.nn.Module; received int"):
        graph_of(3)
