"""The body of few passes against the generic one: the same bits forward, the same gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qi.core.eager import eager_body
from qi.core.grid import IntGrid
from qi.core.namespace import namespace_of
from qi.core.training import train_quantize

UNSIGNED = IntGrid(4, signed=False)
CASES: dict[str, tuple[Any, Any, IntGrid]] = {
    "one": (0.37, None, IntGrid(3)),
    "one of no axes": (np.float32(0.37).reshape(()), np.float32(3), UNSIGNED),
    "channels": ([[0.1, 0.37, 2.0]], None, IntGrid(4, narrow=True)),
    "zero point": ([[0.21]], [[5.0]], UNSIGNED),
    "zero points": ([[0.1, 0.37, 2.0]], [[0.0, 7.0, 15.0]], UNSIGNED),
}


def samples() -> torch.Tensor:
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 3
    values[:2] = torch.tensor([[0.0, -0.0, -0.1], [torch.inf, -torch.inf, torch.nan]])
    return values


def results(case: str, residual: bool, watched: str) -> list[torch.Tensor]:
    scale, zero_point, grid = CASES[case]
    given = [samples(), *(torch.tensor(np.asarray(a, np.float32)) for a in (scale, zero_point) if a is not None)]
    for name, tensor in zip("xsz", given, strict=False):
        tensor.requires_grad_(name in watched)
    x, s, *z = given
    y = train_quantize(x, s, z[0] if z else None, grid, residual=residual)
    if watched:
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        weights[1] = 0  # the infinite pull infinitely
        y.backward(weights)
    return [y.detach(), *(tensor.grad for tensor in given if tensor.requires_grad)]


@pytest.mark.parametrize("watched", ["", "x", "s", "xs", "xsz"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_as_the_generic_body(case: str, residual: bool, watched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(case, residual, watched)
    monkeypatch.setattr(type(namespace_of(torch.ones(1))), "asked", lambda self, *args: None)
    wanted = results(case, residual, watched)
    assert len(found) == len(wanted)
    np.testing.assert_array_equal(found[0].numpy().view("int32"), wanted[0].numpy().view("int32"))
    for mine, other in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_nothing_given_is_changed() -> None:
    x = samples()
    before = x.clone()
    forward = eager_body(IntGrid(3), True, (True, True))
    _, gradient, saved = forward(x, torch.tensor(0.37))
    gradient(torch.ones_like(x), *saved)
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)


def test_the_generic_body_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(namespace_of(torch.ones(1))), "clip", None)
    x = torch.ones(3, requires_grad=True)
    train_quantize(x, torch.tensor(0.5), None, IntGrid(3)).sum().backward()
    assert x.grad.tolist() == [1.0] * 3


def test_a_tensor_that_changes_before_the_backward_pass_is_an_error() -> None:
    x = torch.ones(3, requires_grad=True) * 1.0
    y = train_quantize(x, torch.tensor(0.5), None, IntGrid(3))
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
