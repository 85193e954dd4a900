"""emulate: structures, codes, targets, samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qi.errors import ConfigError, InputError
from qi.torch.emulate import emulate
from qi.torch.graph import trace
from tests.torch.lowered import Held, hold, wrap

X = torch.randn(70, 6, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Two inputs, and outputs of a dict."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = hold(3.1), hold(2.2), wrap(nn.Linear(6, 3))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        """Codes, and their mean."""
        z = self.b(self.fc(self.a(x)))
        return {"z": z, "parts": (z.mean(1, keepdim=True), y)}


@pytest.mark.parametrize("target", ["litert", "onnxruntime", "reference"])
def test_the_models_own_structure(target: str) -> None:
    model = Two().eval()
    with torch.no_grad():
        found, near = emulate(model, (X, X), target), model(X, X)
    assert found.keys() == near.keys()
    np.testing.assert_allclose(found["z"], near["z"].numpy(), atol=0.02)
    mean, y = found["parts"]
    np.testing.assert_allclose(mean, near["parts"][0].numpy(), atol=0.02)
    np.testing.assert_array_equal(y, X.numpy())


def test_codes() -> None:
    model = Held(lambda m, x: x)
    signed, unsigned = (emulate(model, X, target, raw=True) for target in ("litert", "onnxruntime"))
    assert (signed.dtype, unsigned.dtype) == (np.int8, np.uint8)
    np.testing.assert_array_equal(signed.astype(int) + 128, unsigned)


def test_batches_make_no_difference() -> None:
    model = Two().eval()
    whole, parts = (emulate(model, {"x": X, "y": X.numpy()}, batch_size=size)["z"] for size in (70, 16))
    np.testing.assert_array_equal(whole, parts)


def test_what_it_is_given_is_checked() -> None:
    model = Held(lambda m, x: x)
    with pytest.raises(ConfigError, match="target='tflite'"):
        emulate(model, X, "tflite")
    with pytest.raises(ConfigError, match="batch_size=0"):
        emulate(model, X, batch_size=0)
    with pytest.raises(InputError, match="for the inputs"):
        emulate(trace(model, (X,))[0].module, (X, X))
