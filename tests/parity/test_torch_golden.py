"""The golden vectors of the Keras side, fed as torch tensors: the same bits as on numpy and Keras."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import qi.quantizers
from qi.core import IntGrid
from qi.core.training import train_quantize


@pytest.fixture(scope="module")
def golden(checkout):
    """(records, inputs, outputs) of mct-quantizers 1.7.0."""
    folder = checkout / "tests" / "golden"
    records = json.loads((folder / "mct_keras_index.json").read_text(encoding="utf-8"))["cases"]
    arrays = [dict(np.load(folder / f"mct_keras_{name}.npz", allow_pickle=False)) for name in ("inputs", "outputs")]
    return records, *arrays


def built(record):
    return getattr(qi.quantizers, record["cls"])(**record["params"])


def test_torch_gives_the_bits_of_numpy_and_keras_on_every_golden_input(golden):
    import keras

    records, inputs, _ = golden
    assert len(records) == 170
    for record in records:
        x, q = inputs[record["input"]], built(record)
        found, wanted = q(torch.tensor(x)).numpy(), q(x)
        np.testing.assert_array_equal(found, wanted, err_msg=record["id"], strict=True)
        number = ~np.isnan(wanted)
        assert np.array_equal(np.signbit(found[number]), np.signbit(wanted[number])), record["id"]
        of_keras = np.asarray(built(record)(keras.ops.convert_to_tensor(x)))
        np.testing.assert_array_equal(found, of_keras, err_msg=record["id"])


def test_the_recorded_outputs_are_torchs_but_for_the_stated_ties(golden):
    """Differences are those of tests/golden/README.md: one step at a tie, and NaN through a table."""
    records, inputs, outputs = golden
    same = different = 0
    for record in (record for record in records if "exception" not in record):
        x, theirs, q = inputs[record["input"]], outputs[record["output"]], built(record)
        ours = q(torch.tensor(x)).numpy()
        equal = np.isclose(ours, theirs, rtol=1e-6, atol=0, equal_nan=True) | np.isnan(x)
        step = np.broadcast_to(q.qparams(x.shape).scale, x.shape).astype(np.float64)
        apart = np.abs(ours.astype(np.float64) - theirs)
        noise = 1e-6 * np.maximum(np.abs(ours), np.abs(theirs))
        assert np.all((np.abs(apart - step) <= noise)[~equal]), record["id"]
        same, different = same + int(equal.sum()), different + int((~equal).sum())
    assert different > 0
    assert same > 20 * different


def test_golden_gradients():
    x = torch.tensor([-9, -1.26, -0.25, 0.0, 0.24, 0.75, 1.25, 9], requires_grad=True)
    scale, zero_point = torch.tensor(0.5, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    y = train_quantize(x, scale, zero_point, IntGrid(3, signed=False))
    y.sum().backward()
    assert y.tolist() == [-1.5, -1.5, 0.0, 0.0, 0.0, 1.0, 1.0, 2.0]
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
    np.testing.assert_allclose(float(scale.grad), -3 + 4 - 0.48 + 0.5 - 0.48 + 0.5 - 0.5, rtol=1e-5)
    assert float(zero_point.grad) == -1
