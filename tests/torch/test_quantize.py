"""Post-training quantization of torch modules."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qi.errors import ConfigError, InputError, QuantizationWarning, StrictError
from qi.ledger import QuantizationReport
from qi.recipes import FLOAT, Rule, TensorSpec, get_recipe
from qi.torch import PytorchActivationQuantizationHolder, PytorchQuantizationWrapper, quantize_model
from tests.torch.nets import residual, sqnr, transformer


def quantized(
    model: nn.Module, recipe: Any = "w8a8", data: Any = None, **options: Any
) -> tuple[Any, QuantizationReport]:
    return quantize_model(model, recipe, data, **{"progress": False} | options)


def test_a_network_is_quantized_and_the_given_one_stays() -> None:
    model, x = residual()
    before = copy.deepcopy(model.state_dict())
    model.train()
    result, report = quantized(model, "w8a8", x)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    assert not result.training
    assert sqnr(model(x), result(x)) > 30
    assert {row.path for row in report.unquantized} == {"c1/bias", "dw/bias", "pw/bias", "fc/bias"}
    assert not report.warnings
    assert report.totals.size_ratio < 0.4
    assert report.quantized_file_bytes < report.float_file_bytes


def test_quantizers_sit_where_kernels_end() -> None:
    model, x = residual()
    result, report = quantized(model, "w8a8", x)
    outputs = {row.layer for row in report.activations}
    assert {"x", "relu", "relu_1", "add", "pool", "flatten", "fc"} <= outputs
    assert not {"c1", "pw"} & outputs, "a clamp follows: their kernels take it into themselves"
    holders = [path for path, inner in result.named_modules() if isinstance(inner, PytorchActivationQuantizationHolder)]
    assert len(holders) == 6, "the pool and flatten only move values"
    wrapped = {path for path, inner in result.named_modules() if isinstance(inner, PytorchQuantizationWrapper)}
    assert wrapped == {"c1", "dw", "pw", "fc"}


def test_every_value_lies_on_its_grid() -> None:
    model, x = residual()
    result, _ = quantized(model, "w8a8", x)
    y = result(x)
    bound = result.get_submodule("fc_quant").bound
    assert torch.equal(bound(y), y)
    codes = np.unique(np.rint(y.detach().numpy() / float(bound.current().qparams((1,)).scale.ravel()[0])))
    assert len(codes) <= 256
    for wrapper in [inner for inner in result.modules() if isinstance(inner, PytorchQuantizationWrapper)]:
        (tensor,) = wrapper.get_quantized_tensors().values()
        np.testing.assert_array_equal(tensor.dequantize(), wrapper.module.weight.detach().numpy())
        assert tensor.codes.min() >= -127


def test_rows_tell_errors_and_multiplications() -> None:
    model, x = residual()
    _, report = quantized(model, "w8a8", x)
    rows = {row.path: row for row in report.rows}
    assert rows["c1/weight"].macs == 8 * 6 * 8 * 9
    assert rows["dw/weight"].macs == 8 * 6 * 8 * 9
    assert rows["fc/weight"].macs == 8 * 4 * 3 * 5
    assert all(
        rows[f"{name}/output"].total_sqnr_db <= rows[f"{name}/output"].sqnr_db + 1 for name in ("relu", "add", "fc")
    )
    order = [row.path for row in report.rows]
    assert order.index("x/input") < order.index("c1/weight") < order.index("relu/output") < order.index("fc/weight")


def test_transformers_are_quantized_within_attention() -> None:
    model, ids = transformer()
    result, report = quantized(model, "w8a8", ids)
    assert sqnr(model(ids), result(ids)) > 25
    rows = {row.path: row for row in report.rows}
    softmax = next(row for path, row in rows.items() if path.endswith("softmax/output"))
    assert (softmax.range_lo, softmax.range_hi) == (0.0, 255 / 256)
    assert rows["emb/weight"].quantized
    assert rows["emb/weight"].granularity == "per channel (axis 0)"
    assert not rows["ids/input"].quantized


@pytest.mark.parametrize("recipe", ["w8", "w4_g32", "w2"])
def test_weights_alone_need_no_data(recipe: str) -> None:
    model, x = residual()
    result, report = quantized(model, recipe)
    assert not any(isinstance(inner, PytorchActivationQuantizationHolder) for inner in result.modules())
    assert all(row.reason == f"the recipe {report.recipe} quantizes no activations" for row in report.activations)
    bits = {row.bits for row in report.weights if row.quantized}
    assert bits == {int(recipe[1])}
    assert result(x).shape == model(x).shape


def test_rules_speak_of_paths_and_classes() -> None:
    model, x = residual()
    rules = (
        Rule("fc", weights=FLOAT, activations=FLOAT),
        Rule(layer_type="Conv2d", weights=TensorSpec(bits=4, granularity="per_channel")),
        Rule("nothing", weights=FLOAT),
    )
    recipe = get_recipe("w8a8").with_rules(*rules)
    with pytest.warns(QuantizationWarning, match="'nothing'"):
        _, report = quantized(model, recipe, x)
    rows = {row.path: row for row in report.rows}
    assert rows["c1/weight"].bits == rows["pw/weight"].bits == 4
    assert "by rule" in rows["fc/weight"].reason
    assert "by rule" in rows["fc/output"].reason
    assert len(report.unused_rules) == 1


def test_strictness() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.mix = nn.Linear(4, 4), nn.PReLU()
            self.table = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.mix(self.fc(x))
            return y @ self.table.T if y.sum() < 1e9 else y

    torch.manual_seed(0)
    model, x = Own(), torch.randn(32, 4)
    with pytest.warns(QuantizationWarning, match="quantized in place"):
        quantized(model, "w8a8", x)
    with pytest.raises(StrictError, match=r"/table \(3, 4\): the module holds it itself"):
        quantized(model, "w8a8", x, strict=True)
    recipe = get_recipe("w8a8").with_rules(Rule(layer_type="Own", weights=FLOAT))
    with pytest.warns(QuantizationWarning, match="quantized in place"):
        quantized(model, recipe, x, strict=True)


def test_tied_parameters_are_quantized_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
            self.head.weight = self.emb.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.emb(ids))

    torch.manual_seed(0)
    model, ids = Tied(), torch.randint(0, 9, (40, 5))
    result, report = quantized(model, "w8a8", ids)
    assert [row.path for row in report.weights] == ["emb/weight"]
    assert result.emb.module.weight is result.head.module.weight
    assert sqnr(model(ids), result(ids)) > 30
    first, second = (wrapper.get_quantized_tensors()["weight"] for wrapper in (result.emb, result.head))
    np.testing.assert_array_equal(first.codes, second.codes)


def test_the_users_metric() -> None:
    model, x = residual()
    _, report = quantized(model, "w8a8", x)
    labels = model(x).argmax(1).numpy()
    found = report.evaluate("accuracy", x.numpy(), labels)
    assert found.float_value == 100.0 or found.float_value == 1.0
    assert found.quantized_value >= 0.9 * found.float_value


def test_what_calibration_saw_at_zero_keeps_a_range() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    result, _ = quantized(model, "w8a8", torch.randn(64, 4))
    scale = float(result.get_submodule("1_quant").bound.current().qparams((1,)).scale.ravel()[0])
    assert scale < 0.2, "a range of nothing has scale 1, in which biases would drown"


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (nn.Sequential(nn.Linear(4, 2)), None, InputError, "this recipe quantizes activations and needs samples"),
        (nn.Sequential(nn.Linear(4, 2)), torch.ones(8, 3), (InputError, RuntimeError), "fail|can be run"),
        ("model", None, ConfigError, "expected a torch module"),
        (nn.Sequential(nn.Linear(4, 2)), torch.full((8, 4), torch.inf), InputError, "NaN or infinity"),
    ],
    ids=["no data", "another shape", "no module", "infinite"],
)
def test_bad_input(model: Any, data: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        quantized(model, "w8a8", data)


@pytest.mark.filterwarnings("ignore:quantized in place")
@pytest.mark.parametrize("follows", [True, False])
def test_samples_that_belong_together(follows: bool) -> None:
    class Neighbours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
            y = self.fc(x)
            y = y.index_add(0, edges[0], y[edges[1]])
            return y if follows or y.sum() < 1e9 else -y

    torch.manual_seed(0)
    x, edges = torch.randn(64, 4), torch.randint(32, 64, (2, 50))
    model = Neighbours()
    result, report = quantized(model, "w8a8", [(x, edges)])
    assert sqnr(model(x, edges), result(x, edges)) > 25
    assert all(row.total_sqnr_db > 25 for row in report.rows if row.total_sqnr_db is not None)
    assert any(row.total_sqnr_db is not None for row in report.rows)


@pytest.mark.parametrize("follows", [True, False])
def test_tied_parameters_stay_float_where_a_rule_keeps_the_first_so(follows: bool) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
            self.head.weight = self.emb.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            y = self.head(self.emb(ids))
            return y if follows or y.sum() < 1e9 else -y

    torch.manual_seed(0)
    model, ids = Tied(), torch.randint(0, 9, (40, 5))
    recipe = get_recipe("w8a8").with_rules(Rule("emb", weights=FLOAT))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizationWarning)
        result, report = quantized(model, recipe, ids)
    (row,) = report.weights
    assert (row.path, row.status) == ("emb/weight", "float")
    tables = [parameter for name, parameter in result.named_parameters() if name.endswith("weight")]
    assert all(torch.equal(table, model.emb.weight) for table in tables), "no row would say that it was quantized"
