"""Shapes and constants by two runs."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from qi.errors import InputError
from qi.torch.lower_run import BATCHES, Form, run_twice


class Model(nn.Module):
    """With constants, sizes, parts, and something that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.places = nn.BatchNorm1d(4), nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 2]."""
        return (self.norm(x) + self.places * 2).view(x.size(0), 2, 2).chunk(2, 1)[0].flatten(1)


def traced(model: nn.Module) -> tuple[fx.GraphModule, fx.Node]:
    module = fx.symbolic_trace(model)
    return module, next(iter(module.graph.nodes))


def test_what_depends_on_inputs_is_told_by_its_form() -> None:
    module, x = traced(Model())
    found = {str(node): told for node, told in run_twice(module, [(x, torch.zeros(7, 4))]).items()}
    assert [form.shape for form in found["view"].results] == [(size, 2, 2) for size in BATCHES]
    assert found["norm"].results[0] == Form((2, 4), "float32")
    assert found["chunk"].results[1] == (Form((3, 1, 2), "float32"),) * 2
    assert not found["mul"].depends
    assert torch.equal(found["mul"].results[1], torch.full((4,), 2.0))
    assert (found["size"].results, found["size"].depends) == (BATCHES, False)


def test_nothing_in_the_model_changes() -> None:
    module, x = traced(Model().train())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    run_twice(module, [(x, torch.ones(1, 4))])
    assert module.training
    assert module.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_batch_that_is_written_down_is_told_of() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(1, -1, 4).reshape(2, 2, 2)

    module, x = traced(Fixed().train())
    with pytest.raises(
        InputError, match=r"batches of 2 and 3 samples; it fails: .*; do take the size of the batch"
    ) as caught:
        run_twice(module, [(x, torch.ones(2, 4))])
    assert "\n" not in str(caught.value)
    assert module.training
