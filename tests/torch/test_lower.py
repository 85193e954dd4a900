"""From a quantized torch model to the integer graph: what every call has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

import qi
from qi.core import IntGrid
from qi.errors import InputError, UnsupportedError
from qi.ir import QGraph, run, validate
from qi.ir.routing import route
from qi.torch import PytorchActivationQuantizationHolder, PytorchNodeQuantizationDispatcher, PytorchQuantizationWrapper
from qi.torch.lower import lower, lower_both
from tests.torch.lowered import Held, equal_codes, hold, images, kinds, proof, wrap

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Depthwise convolutions, a shortcut, and all that is fused."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.x, self.a, self.b = hold(3.1), hold(2.3, signed=False), hold(1.9, signed=False)
        self.c, self.d, self.e = hold(1.7), hold(2.9), hold(2.2)
        self.stem = wrap(nn.Conv2d(3, 8, 3, stride=2, padding=1))
        self.depthwise = wrap(nn.Conv2d(8, 8, 3, padding=1, groups=8))
        self.pointwise, self.head = wrap(nn.Conv2d(8, 8, 1)), wrap(nn.Linear(8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of five classes."""
        x = self.a(torch.relu(self.stem(self.x(x))))
        y = self.b(nn.functional.relu6(self.depthwise(x)))
        x = self.d(x + self.c(self.pointwise(y)))
        return self.e(self.head(self.d(x.mean((2, 3)))))


@pytest.fixture(scope="module")
def net() -> Net:
    return Net().eval()


def test_all_is_fused_into_integer_operations(net: Net) -> None:
    graph = lower(net, images(1, 3, 12, 9))
    validate(graph)
    assert kinds(graph) == ["quantize", "transpose", "conv2d", "depthwise_conv2d", "conv2d", "add", "mean", "dense"]
    assert all(op.quantized for op in graph.ops[1:])
    assert [op.attrs.get("activation") for op in graph.ops[2:4]] == ["relu", "relu6"]
    assert [op.source for op in graph.ops[2:5]] == ["stem", "depthwise", "pointwise"]
    assert (graph.inputs[0].name, graph.inputs[0].shape, graph.outputs[0].name) == ("x", (None, 3, 12, 9), "e")
    assert (graph.input_structure, graph.output_structure) == (["x"], "e")


@pytest.mark.parametrize("suffix", ["litert", "onnx"])
def test_runtimes_give_what_the_twin_gives(suffix: str, net: Net) -> None:
    assert proof(net, suffix, images(16, 3, 12, 9)).exact


def test_the_model_has_nearly_all_codes_of_the_twin(net: Net) -> None:
    share, most = equal_codes(net, images(64, 3, 12, 9))
    assert share > 0.95
    assert most < 1.5


def test_both_readings_of_one_model(net: Net) -> None:
    fused, plain = lower_both(net, images(1))
    assert str(fused) == str(lower(net, images(1)))
    assert kinds(plain).count("quantize") == 7
    assert fused.output_structure == "e"


def test_the_model_is_only_read(net: Net) -> None:
    model = Net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lower(model, images())
    assert all(part.training for part in (model, model.x, model.stem.module))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_numbers_are_float32_whatever_the_model_computes_in(net: Net) -> None:
    graph = lower(Net().bfloat16(), images().bfloat16())
    assert {t.dtype for t in graph.tensors()} == {"float32", "int32"}
    weights = next(op for op in graph.ops if op.kind == "conv2d").inputs[1]
    expected = next(op for op in lower(net, images()).ops if op.kind == "conv2d").inputs[1]
    np.testing.assert_array_equal(weights.data, expected.data)


# Quantizers -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_signed(bits: int, signed: bool) -> None:
    graph = lower(nn.Sequential(hold(2.0, signed=signed, bits=bits)), X)
    y = graph.outputs[0]
    assert y.grid == IntGrid(bits)
    assert (y.zero_point == -(1 << (bits - 1))) is not signed
    found = run(route(graph, "reference"), [X.numpy()])[y.name]
    np.testing.assert_allclose(
        (found - y.zero_point) * y.scale, hold(2.0, signed=signed, bits=bits)(X).numpy(), atol=1e-6
    )


def test_outputs_of_wrappers_are_quantized() -> None:
    weights = qi.WeightsSymmetricInferableQuantizer(8, 1.0, per_channel=False, narrow_range=True)
    outputs = qi.ActivationSymmetricInferableQuantizer(8, 2.0, signed=True)
    wrapper = PytorchQuantizationWrapper(nn.Linear(4, 3), PytorchNodeQuantizationDispatcher(weights, outputs))
    graph = lower(nn.Sequential(hold(2.0), wrapper), X)
    assert kinds(graph) == ["quantize", "dense"]
    assert graph.outputs[0].scale == np.float32(2 / 128)


def test_a_quantizer_that_is_switched_off_does_nothing() -> None:
    model = nn.Sequential(hold(1.0), hold(2.0))
    model[1].bound.enabled = False
    graph = lower(model, X)
    assert [float(op.y.scale) for op in graph.ops] == [pytest.approx(2 / 255)]


def test_a_module_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held, self.fc = hold(3.0), wrap(nn.Linear(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.held(self.fc(self.held(self.fc(self.held(x)))))

    graph = lower(Twice(), X)
    assert kinds(graph) == ["quantize", "dense", "dense"]
    assert [op.source for op in graph.ops[1:]] == ["fc", "fc"]


# Outputs ----------------------------------------------------------------------------------------------------------------------


def outputs_of(function: Callable[..., Any]) -> QGraph:
    return lower(Held(function).eval(), X)


def test_outputs_as_the_model_nests_them() -> None:
    graph = outputs_of(lambda m, x: {"a": x, "b": [x * 2, (x.relu(),)]})
    names = [tensor.name for tensor in graph.outputs]
    assert graph.output_structure == {"a": names[0], "b": [names[1], [names[2]]]}
    assert len(set(names)) == 3


def test_an_output_that_is_given_twice_has_two_names() -> None:
    graph = outputs_of(lambda m, x: (x, x))
    first, second = graph.outputs
    assert first.name != second.name
    found = run(route(graph, "litert"), [X.numpy()])
    np.testing.assert_array_equal(found[first.name], found[second.name])


def test_an_input_that_is_an_output() -> None:
    class Passed(Held):
        def forward(self, x: torch.Tensor) -> Any:
            return x, self.held(x)

    graph = lower(Passed(lambda m, x: x), X)
    np.testing.assert_array_equal(run(route(graph, "litert"), [X.numpy()])[graph.outputs[0].name], X.numpy())


def test_parts_of_a_split_as_outputs() -> None:
    assert len(outputs_of(lambda m, x: x.chunk(2, 1)).outputs) == 2


def test_what_nothing_takes_is_left_out() -> None:
    assert kinds(outputs_of(lambda m, x: x.unbind(1)[2])) == ["quantize", "slice", "reshape"]


# Refusals ---------------------------------------------------------------------------------------------------------------------


@fx.wrap
def mine(x: torch.Tensor) -> torch.Tensor:
    """Somebody's own function."""
    return x + 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda m, x: mine(x), "'mine' of class mine, which is no function of torch's own; do make it of torch's"),
        (
            lambda m, x: torch.cumsum(x, 1),
            "'cumsum' of class cumsum, which has no lowering; do train with another module",
        ),
        (lambda m, x: (x, x.argmax(1)), "which has no lowering; do leave it to who takes the model's output"),
        (
            lambda m, x: x + torch.arange(x.size(0) * 4).view(-1, 4),
            "constants that don't depend on the size of the batch",
        ),
        (lambda m, x: (x, m.p.weight.detach()), "outputs that are tensors made of the model's inputs; received"),
        (lambda m, x: (x, 3), "received int"),
    ],
)
def test_what_no_graph_holds_is_refused(function: Any, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        lower(Held(function, p=nn.Linear(2, 2)).eval(), X)


def test_a_recurrent_layer_is_refused() -> None:
    with pytest.raises(
        UnsupportedError, match="'lstm' of class LSTM, which has no lowering; do use convolutions or attention"
    ):
        lower(Held(lambda m, x: m.lstm(x.unsqueeze(1))[0], lstm=nn.LSTM(4, 3, batch_first=True)).eval(), X)


def test_float_models_and_those_that_train_are_refused() -> None:
    float_model = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(UnsupportedError, match="in which nothing is quantized; do give what quantize_model or convert"):
        lower(float_model, X)
    config = qi.TrainableQuantizerActivationConfig(qi.QuantizationMethod.SYMMETRIC, 8, {"threshold": 2.0})
    trainable = qi.LSQQuantizer(config)
    with pytest.raises(
        UnsupportedError, match="done with training; received one in which '0' still trains; do call qi"
    ):
        lower(nn.Sequential(PytorchActivationQuantizationHolder(trainable)), X)


def test_quantizers_that_can_not_be_are_told_of() -> None:
    model = nn.Sequential(hold(1.0))
    model[0].bound.scale.fill_(float("nan"))
    with pytest.raises(InputError):
        lower(model, X)
