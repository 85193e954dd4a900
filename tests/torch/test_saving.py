"""Saving and loading: the same bits, training that goes on, and modules that don't fit named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qi
from qi.errors import ConfigError, FileFormatError, InputError, UnsupportedError
from qi.torch import load_model, save_model, stored
from tests.torch.nets import Branching, Residual, Transformer, branching, residual, transformer

SUFFIXES = (".pt", ".safetensors")
CASES = {
    "residual": (residual, Residual),
    "transformer": (transformer, Transformer),
    "in place": (branching, Branching),
}

pytestmark = pytest.mark.filterwarnings("ignore::qi.QuantizationWarning")


def quantized(case: str, recipe: str = "w4a8") -> tuple[nn.Module, torch.Tensor]:
    net, x = CASES[case][0]()
    return qi.torch.quantize_model(net, recipe, x, progress=False)[0], x


def trained(case: str, steps: int = 2) -> tuple[nn.Module, torch.Tensor]:
    net, x = CASES[case][0]()
    qat = qi.torch.prepare_qat(net, "w4a8", x, progress=False)
    advance(qat, x, steps)
    return qat, x


def advance(module: nn.Module, x: torch.Tensor, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    torch.manual_seed(5)  # of dropouts
    for _ in range(steps):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()


def other(case: str) -> nn.Module:
    """The same architecture with other weights."""
    torch.manual_seed(99)
    return CASES[case][1]()


def same(a: nn.Module, b: nn.Module, x: torch.Tensor) -> bool:
    found = []
    for module in (a, b):
        torch.manual_seed(3)
        with torch.no_grad():
            found.append(module(x))
    return torch.equal(*found)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", CASES)
def test_quantized_modules_come_back_bit_for_bit(tmp_path, case, suffix):
    qmodule, x = quantized(case)
    fresh = other(case)
    before = copy.deepcopy(fresh.state_dict())
    again = load_model(save_model(qmodule, tmp_path / f"module{suffix}"), fresh)
    assert same(again, qmodule, x)
    assert not again.training
    assert not any(p.requires_grad for path, p in again.named_parameters() if path.endswith("fc.module.weight"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())
    states = again.state_dict(), qmodule.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", CASES)
def test_training_goes_on(tmp_path, case, suffix):
    qat, x = trained(case)
    again = load_model(save_model(qat, tmp_path / f"module{suffix}"), other(case))
    assert again.training
    advance(qat, x)
    advance(again, x)
    assert same(again, qat, x)
    assert same(qi.torch.convert(again), qi.torch.convert(qat), x)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", CASES)
def test_converted_modules(tmp_path, case, suffix):
    qat, x = trained(case)
    converted = qi.torch.convert(qat)
    assert same(load_model(save_model(converted, tmp_path / f"module{suffix}"), other(case)), converted, x)


@pytest.mark.parametrize("case", CASES)
def test_plain_state_dicts(tmp_path, case):
    qmodule, x = quantized(case)
    again = load_model(save_model(qmodule, tmp_path / "module.pt"), other(case))
    advance_to, _ = trained(case)
    later = qi.torch.convert(advance_to)
    again.load_state_dict(torch.load(save_model(later, tmp_path / "later.pt"), weights_only=True)["state_dict"])
    assert same(again, later, x)
    again.load_state_dict(qmodule.state_dict())
    assert same(again, qmodule, x)


def test_methods_of_training(tmp_path):
    net, x = residual()
    for method, of_activations in {
        "ste": None,
        "lsq_plus": None,
        "ste_learned": "pact",
        "dorefa": None,
        "noise": None,
    }.items():
        qat = qi.torch.prepare_qat(net, "w4a4", x, method=method, activation_method=of_activations, progress=False)
        advance(qat, x)
        assert same(load_model(save_model(qat, tmp_path / "module.pt"), other("residual")).eval(), qat.eval(), x), (
            method
        )


def test_disabled_quantizers(tmp_path):
    net, x = residual()
    qat = qi.torch.prepare_qat(net, "w4a8", x, progress=False)
    holder = qat.get_submodule("x_quant")
    holder.bound.configure(enabled=False)
    assert same(load_model(save_model(qat, tmp_path / "module.pt"), other("residual")), qat, x)
    converted = qi.torch.convert(qat)
    assert same(load_model(save_model(converted, tmp_path / "module.pt"), other("residual")), converted, x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.out = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, ids):
        return self.out(torch.tanh(self.emb(ids)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tied_weights_are_written_once(tmp_path, suffix):
    ids = torch.randint(0, 64, (40, 5))
    qmodule = qi.torch.quantize_model(Tied(), "w8a8", ids, progress=False)[0]
    path = save_model(qmodule, tmp_path / f"module{suffix}")
    untied = Tied()
    untied.out.weight = nn.Parameter(untied.emb.weight.detach().clone())
    large = save_model(
        qi.torch.quantize_model(nn.Sequential(untied.emb, untied.out), "w8", progress=False)[0],
        tmp_path / f"two{suffix}",
    )
    _, state = stored.read(path)
    assert len({tensor.data_ptr() for name, tensor in state.items() if name.endswith("codes")}) == 1
    assert large.stat().st_size < path.stat().st_size + 64 * 32
    loaded = load_model(path, Tied())
    assert same(loaded, qmodule, ids)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    qat = qi.torch.prepare_qat(Tied(), "w4a8", ids, progress=False)
    advance(qat, ids)
    again = load_model(save_model(qat, tmp_path / f"qat{suffix}"), Tied())
    assert again.get_submodule("emb").module.weight is again.get_submodule("out").module.weight
    converted = qi.torch.convert(qat)  # each on a grid of its own
    assert same(load_model(save_model(converted, tmp_path / f"converted{suffix}"), Tied()), converted, ids)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_modules_of_bfloat16(tmp_path, suffix):
    net, x = residual()
    x = x.to(torch.bfloat16)
    qmodule = qi.torch.quantize_model(net.to(torch.bfloat16), "w8a8", x, progress=False)[0]
    path = save_model(qmodule, tmp_path / f"module{suffix}")
    assert same(load_model(path, other("residual").to(torch.bfloat16)), qmodule, x)
    with pytest.raises(InputError, match=r"of \['bfloat16'\] as the file is of; received \['float32'\]"):
        load_model(path, other("residual"))


def test_modules_of_several_types(tmp_path):
    net, _ = quantized("in place")
    mixed = other("in place")
    mixed.head.bias.data = mixed.head.bias.data.double()
    path = save_model(net, tmp_path / "module.pt")
    with pytest.raises(InputError, match=r"of \['float32'\] as the file is of; received \['float32', 'float64'\]"):
        load_model(path, mixed)
    saved = other("in place")
    saved.rnn = qi.PytorchQuantizationWrapper(saved.rnn, qi.PytorchNodeQuantizationDispatcher())
    saved.extra.data = saved.extra.data.double()
    with pytest.raises(InputError, match=r"whose 'extra' is float32 of shape \(3, 3\), not float64 of shape"):
        load_model(save_model(saved, path), mixed)


def test_weights_of_as_many_codes_but_another_shape(tmp_path):
    def build(*sizes: int) -> nn.Module:
        own = nn.Sequential(nn.Linear(*sizes, bias=False))
        quantizer = qi.WeightsSymmetricInferableQuantizer(4, 1.0)
        own[0] = qi.PytorchQuantizationWrapper(
            own[0], qi.PytorchNodeQuantizationDispatcher({"weight": quantizer})
        ).freeze()
        return own

    path = save_model(build(6, 4), tmp_path / "module.pt")
    with pytest.raises(
        InputError, match=r"'0.module.weight' is float32 of shape \(6, 4\), not float32 of shape \(4, 6\)"
    ):
        load_model(path, nn.Sequential(nn.Linear(4, 6, bias=False)))


def test_wrappers_in_a_module_of_your_own(tmp_path):
    def build() -> Any:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

    own, x = build(), torch.randn(5, 4)
    quantizer = qi.WeightsSymmetricInferableQuantizer(4, 1.0, per_channel=True)
    own[2] = qi.PytorchQuantizationWrapper(own[2], qi.PytorchNodeQuantizationDispatcher({"weight": quantizer}))
    assert same(load_model(save_model(own, tmp_path / "module.pt"), build()), own, x)


def test_compiled_modules_are_saved_as_what_they_were_made_of(tmp_path):
    qmodule, x = quantized("residual")
    compiled = torch.compile(qmodule, backend="eager")
    assert same(load_model(save_model(compiled, tmp_path / "module.pt"), other("residual")), qmodule, x)


class Constants(nn.Module):
    """Holds tensors that no state dict has, and makes some."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 3), torch.full((3,), factor)
        self.register_buffer("shift", torch.ones(3), persistent=False)

    def forward(self, x):
        return self.fc(x) * self.scale + self.shift - torch.tensor([0.5, 0.25, 0.0])


def test_tensors_that_no_state_has(tmp_path):
    x = torch.randn(40, 4)
    qmodule = qi.torch.quantize_model(Constants(), "w8a8", x, progress=False)[0]
    assert same(load_model(save_model(qmodule, tmp_path / "module.pt"), Constants()), qmodule, x)


def test_what_can_not_be_saved(tmp_path):
    path = tmp_path / "module.pt"
    with pytest.raises(ConfigError, match="expected a torch module; received 3 of type int"):
        save_model(3, path)
    with pytest.raises(UnsupportedError, match="without quantizers"):
        save_model(Residual(), path)
    qmodule, _ = quantized("residual")
    with pytest.raises(InputError, match="ending in one of"):
        save_model(qmodule, tmp_path / "module.keras")
    with pytest.raises(InputError, match="on the meta device"):
        save_model(qmodule.to("meta"), path)
    assert not path.exists()


class Extra(Tied):
    """Its state is more than tensors."""

    def get_extra_state(self):
        return {"date": "today"}

    def set_extra_state(self, state):
        pass


def test_a_state_that_is_more_than_tensors(tmp_path):
    own = Extra()
    quantizer = qi.WeightsSymmetricInferableQuantizer(4, 1.0, per_channel=True)
    own.out = qi.PytorchQuantizationWrapper(
        nn.Linear(32, 4), qi.PytorchNodeQuantizationDispatcher({"weight": quantizer})
    )
    with pytest.raises(UnsupportedError, match="'_extra_state', a dict"):
        save_model(own, tmp_path / "module.pt")


def test_modules_that_can_not_be_loaded_into(tmp_path):
    qmodule, _ = quantized("residual")
    path = save_model(qmodule, tmp_path / "module.pt")
    with pytest.raises(ConfigError, match="expected a torch module"):
        load_model(path, Residual)
    with pytest.raises(UnsupportedError, match="do start from the float module"):
        load_model(path, qmodule)
    with pytest.raises(InputError, match=r"on the meta device; do module.to_empty"):
        load_model(path, Residual().to("meta"))
    with pytest.raises(InputError, match="doesn't exist"):
        load_model(tmp_path / "nothing.pt", Residual())


class Sized(nn.Module):
    def __init__(self, width: int = 8, bias: bool = True, norm: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, width, bias=bias), nn.Linear(width, 2)
        self.norm = nn.LayerNorm(2, elementwise_affine=norm)

    def forward(self, x):
        return self.norm(self.b(torch.relu(self.a(x))))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_modules_of_other_sizes_are_named(tmp_path, suffix):
    qmodule = qi.torch.quantize_model(Sized(), "w8a8", torch.randn(40, 4), progress=False)[0]
    path = save_model(qmodule, tmp_path / f"module{suffix}")
    with pytest.raises(
        InputError,
        match=r"of, a Sized; received one whose 'a.module.weight' is float32 of shape \(9, 4\), not .* \(8, 4\)",
    ):
        load_model(path, Sized(9))
    with pytest.raises(InputError, match=r"received one without 'a.module.bias'"):
        load_model(path, Sized(bias=False))
    with pytest.raises(InputError, match=r"received one with 'norm.weight'$"):
        load_model(path, Sized(norm=True))
    with pytest.raises(InputError, match=r"that has 'a' \(Linear\), this has 'c1'"):
        load_model(path, Residual(), example=torch.randn(2, 1, 8, 6))
    with pytest.raises(
        InputError, match=r"with a forward that can be followed; received a Residual: .*do give example="
    ):
        load_model(path, Residual())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_tensor_that_is_not_there(tmp_path, suffix):
    qmodule, _ = quantized("residual")
    path = save_model(qmodule, tmp_path / f"module{suffix}")
    record, state = stored.read(path)
    for name in ("fc.module.bias", "fc.weight_quantizers.weight.codes", "fc.weight_quantizers.weight.scale"):
        stored.write(path, record, {key: tensor for key, tensor in state.items() if key != name})
        with pytest.raises(InputError, match=name):
            load_model(path, other("residual"))


def test_codes_of_another_length(tmp_path):
    qmodule, _ = quantized("residual")
    path = save_model(qmodule, tmp_path / "module.pt")
    record, state = stored.read(path)
    name = "fc.weight_quantizers.weight.codes"
    stored.write(path, record, state | {name: state[name][:-1]})
    with pytest.raises(InputError, match=name):
        load_model(path, other("residual"))


def test_scales_that_are_none(tmp_path):
    qmodule, _ = quantized("residual")
    path = save_model(qmodule, tmp_path / "module.pt")
    record, state = stored.read(path)
    name = "fc.weight_quantizers.weight.scale"
    stored.write(path, record, state | {name: torch.full_like(state[name], torch.nan)})
    with pytest.raises(FileFormatError, match=r"module.pt.*'weight' of Linear: expected"):
        load_model(path, other("residual"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_older_file_survives_a_failure(tmp_path, suffix):
    qmodule, _ = quantized("residual")
    path = save_model(qmodule, tmp_path / f"module{suffix}")
    before = path.read_bytes()
    with torch.no_grad():
        qmodule.get_submodule("fc").module.weight += 0.001
    with pytest.raises(InputError, match="changed after freeze"):
        save_model(qmodule, path)
    assert path.read_bytes() == before
    assert [item.name for item in Path(tmp_path).iterdir()] == [path.name]
