"""Modules that can't be followed, quantized where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qi.errors import InputError, QuantizationWarning
from qi.recipes import FLOAT, Rule, get_recipe
from qi.torch import PytorchQuantizationWrapper, convert, prepare_qat, quantize_model
from qi.torch.data import Samples
from qi.torch.in_place import parts_of, prepare_in_place
from tests.torch.nets import Branching, branching, sqnr

pytestmark = pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")


def quantized(model: nn.Module, recipe: Any = "w8a8", data: Any = None) -> tuple[Any, Any]:
    return quantize_model(model, recipe, data, progress=False)


def test_the_copy_keeps_its_class_and_the_given_one_stays() -> None:
    model, x = branching()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(QuantizationWarning, match=r"quantized in place.*control flow"):
        result, report = quantized(model, "w8a8", x)
    assert type(result) is Branching
    assert result is not model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(inner._forward_hooks for inner in model.modules())
    assert sqnr(model(x), result(x)) > 25
    assert isinstance(result.rnn, PytorchQuantizationWrapper)
    rows = {row.path: row for row in report.rows}
    assert rows["rnn/weight_ih_l0"].quantized
    assert rows["rnn/output"].total_sqnr_db > 25
    assert rows["head/output"].quantized
    assert rows["drop/output"].reason == "it only moves values, and leaves them as they come"
    assert rows["/extra"].reason.startswith("the module holds it itself") if "/extra" in rows else rows["extra"].reason


def test_parts_are_the_modules_of_torch_and_leaves_of_the_users() -> None:
    class Leaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    shared = nn.Linear(3, 3)
    model = nn.ModuleDict(
        {"a": nn.Sequential(shared, Leaf()), "b": shared, "c": nn.ModuleList([nn.MultiheadAttention(4, 2)])}
    )
    assert list(parts_of(model)) == ["a.0", "a.1", "c.0"]
    assert list(parts_of(nn.Linear(2, 2))) == [""]


def test_shared_modules_get_one_wrapper() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x)) if x.sum() < 1e9 else x

    result, _ = quantized(Twice(), "w8a8", torch.randn(64, 4))
    assert result.a is result.b
    assert isinstance(result.a, PytorchQuantizationWrapper)


def test_a_module_by_itself() -> None:
    torch.manual_seed(0)
    model, x = nn.LSTM(4, 3, batch_first=True), torch.randn(40, 5, 4)
    result, report = quantized(model, "w8a8", x)
    assert isinstance(result, PytorchQuantizationWrapper)
    y, (h, _) = result(x)
    assert sqnr(model(x)[0], y) > 30
    assert sqnr(model(x)[1][0], h) > 30
    assert [row.status for row in report.activations] == ["quantized"] * 3


def test_what_never_runs_stays_in_float() -> None:
    class Rare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.often, self.rare = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rare(x) if x.sum() > 1e9 else self.often(x)

    result, report = quantized(Rare(), "w8a8", torch.randn(64, 4))
    rows = {row.path: row for row in report.rows}
    assert rows["rare/weight"].quantized
    assert rows["rare/output"].reason == "the forward never ran it on the calibration data"
    assert result(torch.full((2, 4), 1e9)).shape == (2, 4)


def test_rules_and_fixed_ranges() -> None:
    class Odds(Branching):
        def __init__(self) -> None:
            super().__init__()
            self.odds = nn.Softmax(-1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.odds(super().forward(x))

    torch.manual_seed(0)
    recipe = get_recipe("w8a8").with_rules(Rule("head", activations=FLOAT), Rule("rnn", weights=FLOAT))
    _, report = quantized(Odds(), recipe, torch.randn(48, 5, 6))
    rows = {row.path: row for row in report.rows}
    assert (rows["odds/output"].range_lo, rows["odds/output"].range_hi) == (0.0, 255 / 256)
    assert "by rule" in rows["head/output"].reason
    assert "by rule" in rows["rnn/weight_hh_l0"].reason
    assert rows["head/weight"].quantized


def test_data_are_needed_and_have_to_fit() -> None:
    model, _ = branching()
    with pytest.raises(InputError, match="this recipe quantizes activations and needs samples"):
        prepare_in_place(model, "w8a8", None, progress=False)
    with pytest.raises(InputError, match="it fails with"):
        prepare_in_place(model, "w8a8", Samples(torch.ones(4, 5, 7), model), progress=False)
    assert prepare_in_place(model, "w8", None, progress=False).seen == 0


class Listed(nn.Module):
    """Finds its modules in a list of its own, asks for their class, changes what it is given; can't be followed."""

    def __init__(self, asks: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.asks = nn.Linear(4, 4), nn.Linear(4, 4), asks
        self.steps = [self.a, self.b]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        if x.sum() > 1e9:
            return x
        for step in self.steps:
            x = step(x) if not self.asks or isinstance(step, nn.Linear) else x
        return x


def test_modules_in_lists_are_quantized_and_data_stay() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    before = x.clone()
    result, _ = quantized(Listed(), "w8a8", x)
    assert torch.equal(x, before)
    assert result.steps[0] is result.a
    assert isinstance(result.b, PytorchQuantizationWrapper)
    qat = prepare_qat(Listed(), "w4a4", x, progress=False)
    qat(x.clone()).sum().backward()
    assert qat.a.bounds["weight"].step.grad is not None
    made = convert(qat)
    assert made.steps[1] is made.b
    assert made.b.frozen
    assert torch.equal(made(x.clone()), qat.eval()(x.clone()))


def test_who_asks_for_a_class_is_told() -> None:
    x = torch.randn(64, 4)
    told = r"'a' isn't run any more now that a wrapper stands in its place"
    with pytest.warns(QuantizationWarning, match=told):
        quantized(Listed(asks=True), "w8a8", x)
    with pytest.warns(QuantizationWarning, match=told):
        prepare_qat(Listed(asks=True), "w8a8", x, progress=False)


def test_further_methods_compute_with_quantized_weights() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(9, 4))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.weight[ids]

        def scores(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = Table()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.table(ids)
            return self.table.scores(x if x.sum() < 1e9 else -x)

    torch.manual_seed(0)
    ids = torch.randint(0, 9, (64, 3))
    qat = prepare_qat(Model(), "w4a8", ids, progress=False)
    assert torch.equal(convert(qat)(ids), qat.eval()(ids))
