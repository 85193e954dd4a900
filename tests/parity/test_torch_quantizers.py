"""Every registered quantizer on torch tensors: numpy's and Keras' codes bit for bit, and the whole contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qi.core.affine import dequantize, quantize
from qi.quantizers import BaseTrainableQuantizer, quantizer_classes
from qi.testing import CLAUSES, check_quantizer
from tests.examples import awkward, cases

ALL = cases()
TRAINABLE = {
    cls.__name__: cls
    for name, cls in quantizer_classes().items()
    if name.startswith("qi>") and issubclass(cls, BaseTrainableQuantizer)
}
DTYPES = ("float16", "bfloat16", "float64")


def assert_same_bits(found, wanted, what):
    """dtype, shape, values, NaN and the sign of 0."""
    found = found.detach().numpy()
    np.testing.assert_array_equal(found, wanted, err_msg=str(what), strict=True)
    if wanted.dtype.kind == "f":
        number = ~np.isnan(wanted)
        assert np.array_equal(np.signbit(found[number]), np.signbit(wanted[number])), what


def parameters(case, shape):
    scale, zero_point = case.quantizer().qparams(shape).expanded(shape)
    return scale, zero_point.astype(np.float32)


def test_codes_are_numpys_and_keras():
    import keras

    for case in ALL:
        x, grid = awkward(case), case.quantizer().grid
        scale, zero_point = parameters(case, x.shape)
        wanted = quantize(x, scale, zero_point, grid)
        found = quantize(torch.tensor(x), torch.tensor(scale), torch.tensor(zero_point), grid)
        assert_same_bits(found, wanted, case)
        assert_same_bits(quantize(torch.tensor(x), scale, zero_point, grid), wanted, case)  # parameters as numpy arrays
        of_keras = quantize(*map(keras.ops.convert_to_tensor, (x, scale, zero_point)), grid)
        assert np.array_equal(np.asarray(of_keras), found.numpy()), case
        real = dequantize(found, torch.tensor(scale), torch.tensor(zero_point), grid)
        assert_same_bits(real, dequantize(wanted, scale, zero_point, grid), case)
        fake = case.quantizer()(torch.tensor(x))
        number = ~np.isnan(x)
        assert np.array_equal(fake.numpy()[number], real.numpy()[number]), case


def test_views_slices_and_nothing_at_all():
    for case in ALL:
        x, q = awkward(case), case.quantizer()
        wanted = q(x)
        spread = torch.empty(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]
        spread.copy_(torch.tensor(x))
        turned = torch.tensor(np.swapaxes(x, 0, -1).copy()).transpose(0, -1)
        for view in (spread, turned):
            assert not view.is_contiguous()
            assert_same_bits(q(view), wanted, case)
        if case.layout == "tensor":
            assert q(torch.empty(0, 3)).shape == (0, 3)
            assert_same_bits(q(torch.tensor(x[0, 0])), np.asarray(q(x[:1, :1])[0, 0]), case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_dtypes_are_computed_in_float32(dtype):
    kind = getattr(torch, dtype)
    for case in ALL:
        q, x = case.quantizer(), torch.tensor(awkward(case)).to(kind)
        found, wanted = q(x), q(x.float()).to(kind)
        assert found.dtype == kind, case
        assert torch.equal(found.nan_to_num(7), wanted.nan_to_num(7)), case


def test_gradients_are_1_within_the_range_at_its_ends_too():
    for case in ALL:
        q, x = case.quantizer(), torch.tensor(awkward(case)).nan_to_num(0.0).clamp(-1e6, 1e6).requires_grad_()
        q(x).sum().backward()
        u = x.detach().numpy() / parameters(case, tuple(x.shape))[0]
        zero_point = parameters(case, tuple(x.shape))[1]
        lo, hi = (q.grid.qmin, q.grid.qmax) if hasattr(q.grid, "qmin") else (q.grid.values[0], q.grid.values[-1])
        zero_point = zero_point if hasattr(q.grid, "qmin") else 0
        inside = (u >= lo - zero_point) & (u <= hi - zero_point)
        np.testing.assert_allclose(x.grad.numpy(), inside, rtol=1e-6, err_msg=str(case))


@pytest.mark.parametrize("layout", ["tensor", "channel", "axis 0", "group"])
def test_a_quantizer_that_saw_other_devices_and_modes_is_as_new(layout):
    from torch._subclasses.fake_tensor import FakeTensorMode

    for case in (case for case in ALL if case.layout == layout and case.bits == 4):
        q, x = case.quantizer(), awkward(case)
        with FakeTensorMode():
            assert q(torch.empty(x.shape)).shape == x.shape
        with torch.device("meta"):
            assert q(torch.empty(x.shape)).device.type == "meta"
        assert q(torch.empty(x.shape, device="meta")).device.type == "meta"
        with torch.inference_mode():
            assert_same_bits(q(torch.tensor(x)), q(x), case)
        learning = torch.tensor(x).nan_to_num(0.0).requires_grad_()
        q(learning).sum().backward()
        assert_same_bits(q(torch.tensor(x)), q(x), case)


def test_transforms_and_export():
    for case in (case for case in ALL if case.bits == 4 and case.layout in ("tensor", "channel")):
        q, x = case.quantizer(), torch.tensor(awkward(case))
        plain = case.layout == "tensor"
        rows = torch.func.vmap(q)(x) if plain else torch.func.vmap(q)(x[None])[0]
        assert_same_bits(rows, q(x).numpy(), case)
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), Quantize(q))
    exported = torch.export.export(module, (torch.ones(2, 4),))
    assert torch.equal(exported.module()(x[:2].nan_to_num(0.0)), module(x[:2].nan_to_num(0.0)))


class Quantize(torch.nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x):
        return self.quantizer(x)


@pytest.mark.parametrize("clause", CLAUSES.names())
@pytest.mark.parametrize("name", TRAINABLE)
def test_every_trainable_quantizer_keeps_the_contract(name, clause):
    summary = check_quantizer(TRAINABLE[name], bits=(4,), clauses=[clause], on="torch")
    assert summary.checks[clause] > 0 or (clause == "positive" and not TRAINABLE[name].learned_range)


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("name", TRAINABLE)
def test_the_fewest_and_the_most_bits(name, bits):
    check_quantizer(TRAINABLE[name], bits=(bits,), clauses=["gradients", "finite"], on="torch")


@pytest.mark.parametrize("estimator", ["ste", "ewgs", "dsq"])
def test_estimators(estimator):
    check_quantizer(
        TRAINABLE["LSQQuantizer"], bits=(3,), clauses=["gradients", "finite"], on="torch", estimator=estimator
    )
