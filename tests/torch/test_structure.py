"""The record of a quantized module, and the same made again of a float one."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

import qi
from qi.errors import FileFormatError, InputError, UnsupportedError
from qi.torch import PytorchActivationQuantizationHolder, PytorchNodeQuantizationDispatcher, PytorchQuantizationWrapper
from qi.torch.structure import check_record, rebuild, record_of
from tests.torch.nets import Residual, branching, residual

W4 = qi.WeightsSymmetricInferableQuantizer(4, 1.0, per_channel=True)
A8 = qi.ActivationUniformInferableQuantizer(8, -1.0, 1.0)


def quantized(module: nn.Module, data: Any, recipe: str = "w8a8") -> nn.Module:
    return qi.torch.quantize_model(module, recipe, data, progress=False)[0]


def stored(record: dict[str, Any]) -> dict[str, Any]:
    """What a file gives back."""
    return json.loads(json.dumps(record, allow_nan=False))


def test_the_record_of_a_graph():
    net, x = residual()
    record = record_of(quantized(net, x))
    assert record["form"] == "graph"
    assert record["inputs"] == [[["x"], [64, 1, 8, 6], "float32"]]
    assert record["calls"][0] == ["c1", "Conv2d", "BatchNorm2d b1"]
    assert set(record["wrappers"]) == {"c1", "dw", "pw", "fc"}
    assert all(wrapper["frozen"] for wrapper in record["wrappers"].values())
    assert record["holders"]["x_quant"]["values"] == ["x"]
    assert record["parameters"]["c1.module.weight"] == ["float32", [8, 1, 3, 3]]
    assert not record["training"]


def test_a_graph_is_made_again():
    net, x = residual()
    record = record_of(quantized(net, x))
    made = rebuild(stored(record), Residual())
    assert record_of(made) == record
    assert type(made).__name__ == "Residual"


def test_a_module_in_place_is_made_again():
    net, x = branching()
    with pytest.warns(qi.QuantizationWarning, match="in place"):
        qmodule = quantized(net, x)
    record = record_of(qmodule)
    assert (record["form"], record["calls"], record["inputs"]) == ("in place", [], None)
    made = rebuild(stored(record), type(net)())
    assert record_of(made) == record
    assert isinstance(made, type(net))


def test_a_copy_has_the_same_record():
    net, x = residual()
    qmodule = quantized(net, x)
    assert record_of(copy.deepcopy(qmodule)) == record_of(qmodule) | {"class": ""}  # torch names no class of copies


def test_modes_what_rests_and_switches_are_kept():
    net, x = residual()
    net.pw.requires_grad_(False)
    qat = qi.torch.prepare_qat(net, "w4a8", x, progress=False)
    qat.get_submodule("dw").eval()
    qat.get_submodule("fc").bounds["weight"].configure(fixed=True)
    qat.get_submodule("x_quant").bound.configure(enabled=False)
    record = stored(record_of(qat))
    made = rebuild(record, Residual())
    assert record_of(made) == record
    assert made.training
    assert not made.get_submodule("dw").training
    assert not made.get_submodule("pw").module.weight.requires_grad
    assert made.get_submodule("c1").module.weight.requires_grad
    assert made.get_submodule("fc").bounds["weight"].fixed
    assert not made.get_submodule("x_quant").bound.enabled


class Inputs(nn.Module):
    """Takes tensors in all the ways there are."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, pair, *, named, flag=None):
        y = self.fc(pair[0]) + self.fc(pair[1]["inner"]) + self.fc(named)
        return y if flag is None else -y


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, first, *rest):
        y = self.fc(first)
        for x in rest:
            y = y + self.fc(x)
        return y


def test_inputs_within_others_and_by_name():
    x = torch.randn(40, 4)
    qmodule = quantized(Inputs().eval(), [{"pair": [x, {"inner": x}], "named": x}])
    record = record_of(qmodule)
    assert [keys for keys, _, _ in record["inputs"]] == [["pair", 0], ["pair", 1, "inner"], ["named"]]
    assert record_of(rebuild(stored(record), Inputs())) == record


def test_any_number_of_inputs():
    x = torch.randn(40, 4)
    record = record_of(quantized(Several().eval(), [[[x, x, x]]]))
    assert [keys for keys, _, _ in record["inputs"]] == [["first"], ["rest_0"], ["rest_1"]]
    assert record_of(rebuild(stored(record), Several())) == record


class Scaled(nn.Module):
    """What it computes depends on an argument that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x, scale=None):
        y = self.fc(x)
        return y if scale is None else y * scale


class FromOne(nn.Module):
    """Zeros won't do as its input."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 3)

    def forward(self, ids):
        return self.emb(ids - 1)


def test_arguments_that_decide_what_is_computed_need_an_example():
    x = torch.randn(40, 4)
    record = record_of(quantized(Scaled().eval(), [{"x": x, "scale": x[:, :1]}]))
    assert record_of(rebuild(record, Scaled())) == record
    unknown = changed(record, inputs=record["inputs"][:1])
    with pytest.raises(InputError, match=r"has 'mul' \(mul\), this has nothing more; do give example="):
        rebuild(unknown, Scaled())
    assert record_of(rebuild(unknown, Scaled(), [{"x": x[:7], "scale": x[:7, :1]}]))["calls"] == record["calls"]


def test_inputs_that_can_not_be_zero():
    record = record_of(quantized(FromOne().eval(), torch.randint(1, 5, (40, 3))))
    assert record["form"] == "graph"
    assert record_of(rebuild(record, FromOne())) == record


def test_a_module_traced_without_samples():
    record = record_of(quantized(nn.Sequential(nn.Linear(4, 3)), None, "w8"))
    assert record["inputs"] is None
    assert record_of(rebuild(record, nn.Sequential(nn.Linear(4, 3)))) == record


def test_one_module_by_itself():
    with pytest.warns(qi.QuantizationWarning, match="nothing to follow"):
        qmodule = quantized(nn.Linear(4, 3), torch.randn(40, 4))
    record = record_of(qmodule)
    assert list(record["wrappers"]) == [""]
    assert record_of(rebuild(record, nn.Linear(4, 3))) == record


def test_a_module_at_two_places_stays_one():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

        def forward(self, x):
            return self.b(torch.relu(self.a(x))) if x.shape[0] else x

    own = Shared()
    own.a = own.b = PytorchQuantizationWrapper(own.a, PytorchNodeQuantizationDispatcher({"weight": W4}))
    made = rebuild(record_of(own), Shared())
    assert isinstance(made.a, PytorchQuantizationWrapper)
    assert made.a is made.b


def test_what_has_no_record():
    with pytest.raises(UnsupportedError, match=r"without quantizers; do torch.save\(module.state_dict\(\), path\)"):
        record_of(nn.Linear(2, 2))
    with pytest.raises(UnsupportedError, match="received '1' in a Sequential of your own"):
        record_of(nn.Sequential(nn.Linear(2, 2), PytorchActivationQuantizationHolder(A8)))


def test_another_module_is_named():
    net, x = residual()
    record = record_of(quantized(net, x))

    class Longer(Residual):
        def forward(self, x):
            return torch.relu(super().forward(x))

    class Other(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.b1 = nn.Identity()

    with pytest.raises(
        InputError, match=r"of another structure: where that has nothing more, this has 'relu_2' \(relu\)"
    ):
        rebuild(record, Longer())
    with pytest.raises(InputError, match=r"has 'c1' \(Conv2d \+ BatchNorm2d b1\), this has 'c1' \(Conv2d\)"):
        rebuild(record, Other())
    with pytest.raises(InputError, match="a Residual, with a forward that can be followed; received a Branching"):
        rebuild(record, branching()[0])
    with pytest.raises(InputError, match=r"of \['float32'\] as the file is of; received \['bfloat16'\]; do move"):
        rebuild(record, Residual().to(torch.bfloat16))


def test_another_module_in_place_is_named():
    own = nn.Sequential(PytorchQuantizationWrapper(nn.Linear(4, 3), PytorchNodeQuantizationDispatcher({"weight": W4})))
    with pytest.raises(InputError, match="without the module '0'"):
        rebuild(record_of(own), nn.Sequential())
    with pytest.raises(InputError, match=r"another at '0': .*'weight'"):
        rebuild(record_of(own), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))


def changed(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return stored(record) | changes


def test_records_with_other_entries():
    net, x = residual()
    record = record_of(quantized(net, x))
    check_record(record)
    entries = {
        "form": "else", "training": 1, "calls": [["c1"]], "inputs": [[["x"], [-1], "float32"]], "wrappers": {"c1": 3},
        "holders": {"x_quant": {}}, "resting": [3], "switches": {"x": 3}, "class": 3, "parameters": {"x": 3},
        "other_modes": [[]],
    }  # fmt: skip
    for key, value in entries.items():
        with pytest.raises(FileFormatError, match="module's record"):
            check_record(changed(record, **{key: value}))
    for wrong in (
        [],
        [[], [1], "float32"],
        [["x"], [True], "float32"],
        [["x"], [1], "load"],
        [["x", 10**9], [1], "float32"],
    ):
        with pytest.raises(FileFormatError, match="other types"):
            check_record(changed(record, inputs=[wrong]))


def test_records_that_name_what_is_not_there():
    net, x = residual()
    record = record_of(quantized(net, x))
    holder = record["holders"]["x_quant"]
    with pytest.raises(InputError, match="without the value 'y'"):
        rebuild(changed(record, holders={"x_quant": holder | {"values": ["y"]}}), Residual())
    with pytest.raises(FileFormatError, match="received 'c1', which the module has itself"):
        rebuild(changed(record, holders={"c1": holder}), Residual())
    unknown = holder | {"quantizer": {"quantizer": "Mine", "config": {}}}
    with pytest.raises(FileFormatError, match="received 'Mine'; do import the module that defines it"):
        rebuild(changed(record, holders={"x_quant": unknown}), Residual())
    with pytest.raises(FileFormatError, match=r"wrapper's record; received \{\}"):
        rebuild(changed(record, wrappers={"c1": {}}), Residual())
    with pytest.raises(FileFormatError, match="at most 4294967296 bytes"):
        rebuild(changed(record, inputs=[[["x"], [10**6, 10**6], "float32"]]), Residual())


class Listed(nn.Module):
    """Keeps its modules in a list of Python's beside the one of torch's, and calls those."""

    def __init__(self) -> None:
        super().__init__()
        self.owned = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.called = list(self.owned)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.called:
            x = layer(x)
        return x if x.sum() < 1e9 else -x


@pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")
def test_modules_in_lists_are_wrapped_there_too() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    model, _ = qi.torch.quantize_model(Listed(), "w4a8", x, progress=False)
    made = rebuild(record_of(model), Listed())
    assert all(isinstance(layer, PytorchQuantizationWrapper) for layer in made.called)
    made.load_state_dict(model.state_dict())
    assert torch.equal(made.eval()(x), model(x))
