"""The side of the framework that a model belongs to."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
import torch

from qi.errors import InputError, UnsupportedError
from qi.exporters.fronts import front_of
from tests.exporters.exported import data, quantized
from tests.torch.lowered import hold


def test_models_of_keras() -> None:
    front = front_of(quantized())
    assert front.lower().name == front.lower_both()[0].name
    np.testing.assert_array_equal(front.inputs(data())[0], data())


def test_models_of_torch() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    front = front_of(torch.nn.Sequential(hold(1.0)), x)
    fused, plain = front.lower_both()
    assert str(front.lower()) == str(fused)
    assert [op.kind for op in plain.ops] == ["quantize"]
    assert front.inputs(x)[0].dtype == np.float32


def test_whatever_else_is_refused_as_ever() -> None:
    with pytest.raises((UnsupportedError, InputError)):
        front_of(3).lower()
    with pytest.raises(UnsupportedError, match="in which nothing is quantized"):
        front_of(torch.nn.Linear(2, 2)).lower()


def test_modules_that_are_of_keras_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Keras' torch backend its layers are torch modules."""

    class Both(torch.nn.Module):
        pass

    monkeypatch.setattr(keras, "Layer", Both)
    with pytest.raises(InputError, match="a Keras model"):
        front_of(Both()).lower()


def test_keras_is_not_needed_for_torch() -> None:
    code = (
        "import sys, torch, qi\n"
        "from qi.torch import PytorchActivationQuantizationHolder as Holder\n"
        "from qi.exporters.fronts import front_of\n"
        "model = torch.nn.Sequential(Holder(qi.ActivationSymmetricInferableQuantizer(8, 1.0, signed=True)))\n"
        "assert front_of(model, torch.zeros(1, 2)).lower().ops\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
