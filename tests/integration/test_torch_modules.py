"""Wrapped torch modules under compilers, autocast, export and in several processes."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qi.quantizers import (
    ActivationUniformInferableQuantizer,
    DoReFaWeightsQuantizer,
    LSQQuantizer,
    QuantizationMethod,
    STEQuantizer,
    StochasticQuantizer,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    WeightsLUTSymmetricInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
)
from qi.torch import PytorchNodeQuantizationDispatcher, PytorchQuantizationWrapper
from tests.integration import torch_distributed

# Of torch's own tracing.
pytestmark = pytest.mark.filterwarnings(
    "ignore:<class 'torch.autograd.function.Function'> should not be instantiated:DeprecationWarning"
)
nn = torch.nn
SYMMETRIC = QuantizationMethod.SYMMETRIC
A8 = ActivationUniformInferableQuantizer(8, -3.0, 3.0)
WEIGHTS = TrainableQuantizerWeightsConfig(SYMMETRIC, 4, weights_per_channel_threshold=True)
OUTPUTS = TrainableQuantizerActivationConfig(SYMMETRIC, 8, {"threshold": 3.0})
QUANTIZERS = {
    "inferable": (WeightsSymmetricInferableQuantizer(4, 0.5, per_channel=True), A8),
    "table": (WeightsLUTSymmetricInferableQuantizer(2, [-64, 0, 32, 100], 0.7), A8),
    "ste": (STEQuantizer(WEIGHTS), STEQuantizer(OUTPUTS)),
    "lsq": (LSQQuantizer(WEIGHTS), LSQQuantizer(OUTPUTS)),
    "dorefa": (DoReFaWeightsQuantizer(TrainableQuantizerWeightsConfig(SYMMETRIC, 4)), A8),
}
each_quantizer = pytest.mark.parametrize("name", QUANTIZERS)
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def wrapped(name: str, module=None) -> PytorchQuantizationWrapper:
    torch.manual_seed(0)
    weights, outputs = QUANTIZERS[name]
    dispatcher = PytorchNodeQuantizationDispatcher({"weight": weights}, outputs)
    return PytorchQuantizationWrapper(module or nn.Linear(8, 4), dispatcher)


def transformer() -> nn.Module:
    """A layer that reads the weights of wrapped parts besides calling them."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    layer.linear1 = wrapped("lsq", layer.linear1)
    layer.self_attn = PytorchQuantizationWrapper(
        layer.self_attn, PytorchNodeQuantizationDispatcher({"in_proj_weight": LSQQuantizer(WEIGHTS)})
    )
    return layer


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(module, x) -> dict[str, torch.Tensor]:
    module.zero_grad()
    module(x).square().sum().backward()
    return {path: p.grad.clone() for path, p in module.named_parameters() if p.grad is not None}


@each_quantizer
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_it_gives_the_same_bits_and_gradients(name, backend):
    wrapper = wrapped(name)
    compiled = torch.compile(wrapper, backend=backend, fullgraph=True)
    assert torch.equal(compiled(X), wrapper(X))
    expected, found = gradients(wrapper, X), gradients(compiled, X)
    assert {path.removeprefix("_orig_mod.") for path in found} == set(expected)
    for path, value in found.items():
        torch.testing.assert_close(value, expected[path.removeprefix("_orig_mod.")])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_it_draws_noise_at_every_call(backend):
    quantizer = PytorchNodeQuantizationDispatcher({"weight": StochasticQuantizer(WEIGHTS)})
    wrapper = PytorchQuantizationWrapper(nn.Linear(8, 4), quantizer)
    compiled = torch.compile(wrapper, backend=backend, fullgraph=True)
    assert not torch.equal(compiled(X), compiled(X))
    wrapper.eval()
    assert torch.equal(compiled(X), wrapper(X))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # which inductor itself uses
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor wants a compiler of C++ on the machine")
def test_machine_code_gives_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    wrapper = wrapped("inferable").eval()
    with torch.no_grad(), torch._inductor.config.patch(compile_threads=1, cpp_cache_precompile_headers=False):
        assert torch.equal(torch.compile(wrapper)(X), wrapper(X))


def test_modules_around_wrappers_compile_and_export():
    layer, x = transformer(), X.reshape(1, 4, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    with torch.no_grad():
        layer.eval()
        torch.testing.assert_close(compiled(x), layer(x))
        torch.testing.assert_close(torch.export.export(layer, (x,), strict=False).module()(x), layer(x))


@pytest.mark.filterwarnings("ignore:The tensor attributes self.module._flat_weights:UserWarning")  # of torch.nn.LSTM
def test_recurrent_modules_compile_and_export():
    dispatcher = PytorchNodeQuantizationDispatcher({"weight_ih_l0": LSQQuantizer(WEIGHTS)})
    wrapper, x = PytorchQuantizationWrapper(nn.LSTM(8, 4), dispatcher), X.reshape(2, 2, 8)
    assert torch.equal(torch.compile(wrapper, backend="aot_eager")(x)[0], wrapper(x)[0])
    frozen = wrapper.convert2inferable().freeze()
    exported = torch.export.export(frozen, (x,), strict=False).module()
    assert torch.equal(exported(x)[0], frozen(x)[0])


@each_quantizer
@pytest.mark.parametrize("strict", [False, True])
def test_exported_it_gives_the_same_bits(name, strict):
    wrapper = wrapped(name).eval()
    inferable = wrapper.convert2inferable() if wrapper.trains else wrapper
    for module in (wrapper, inferable.freeze()):
        again = torch.export.export(module, (X,), strict=strict).module()
        assert torch.equal(again(X), module(X))
        assert torch.equal(again(2 * X), module(2 * X))


def test_other_batches_run_in_an_exported_program():
    wrapper = wrapped("inferable").freeze()
    sizes = (({0: torch.export.Dim("batch")},),)  # forward takes any arguments
    program = torch.export.export(wrapper, (X,), dynamic_shapes=sizes, strict=False)
    x = torch.randn(7, 8)
    assert torch.equal(program.module()(x), wrapper(x))


@each_quantizer
def test_under_autocast_quantizers_stay_in_float32(name):
    wrapper = wrapped(name)
    expected = wrapper.quantized_weight("weight").detach().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(wrapper.quantized_weight("weight"), expected)
        y = wrapper(X)
        loss = y.float().square().sum()
    assert y.dtype == torch.bfloat16
    plain = nn.functional.linear(X.bfloat16(), expected.bfloat16(), wrapper.module.bias.bfloat16())
    assert torch.equal(y, wrapper.output_quantizers[0](plain))
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in wrapper.parameters())


def test_it_trains_below_the_loss_it_began_with():
    torch.manual_seed(0)
    model = nn.Sequential(wrapped("lsq", nn.Linear(8, 16)), nn.ReLU(), wrapped("lsq", nn.Linear(16, 1)))
    x = torch.randn(64, 8)
    y = x[:, :1] * x[:, 1:2].sign()
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.02), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    trained = copy.deepcopy(model).eval()
    frozen = nn.Sequential(*(m.convert2inferable().freeze() if hasattr(m, "freeze") else m for m in trained))
    assert torch.equal(frozen(x), trained(x))


@pytest.mark.slow
def test_two_processes_average_the_gradients_of_their_halves(tmp_path):
    script, root = Path(torch_distributed.__file__), Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        answers = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], answers
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in answers)
    assert first == second
    halves = [torch_distributed.gradients(torch_distributed.model(), x) for x in torch_distributed.batches()]
    assert set(first) == set(halves[0])
    for name, value in first.items():
        one, other = (np.asarray(half[name], np.float32) for half in halves)
        np.testing.assert_allclose(np.asarray(value, np.float32), (one + other) / 2, rtol=1e-6, atol=1e-8)
