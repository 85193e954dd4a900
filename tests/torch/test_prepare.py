"""What happens to a module before any quantizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qi.errors import ConfigError, InputError, UnsupportedError
from qi.recipes import FLOAT, Rule, get_recipe
from qi.torch.data import Samples
from qi.torch.prepare import check_module, follow_module, gather, largest_weight, prepare
from qi.torch.quantize import quantize_model
from tests.torch.nets import branching, residual, transformer


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_compiled_modules_are_refused() -> None:
    for module in (torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), torch.compile(nn.Linear(2, 2))):
        with pytest.raises(UnsupportedError, match="isn't compiled"):
            quantize_model(module, "w8a8", torch.ones(4, 2), progress=False)


def test_followed_modules_are_folded_and_taken_apart() -> None:
    model, x = residual()
    graph, why, kept = follow_module(model, Samples(x, model))
    assert graph is not None, why
    assert not kept
    assert "BatchNorm2d" not in {call.kind for call in graph.calls}
    assert torch.allclose(graph.module(x), model(x), atol=1e-5)
    assert any(isinstance(inner, nn.BatchNorm2d) for inner in model.modules()), "the given one stays"
    model, x = transformer()
    graph, why, _ = follow_module(model, Samples(x, model))
    assert graph is not None, why
    assert {"softmax", "matmul"} <= {call.kind for call in graph.calls}


def test_what_cant_be_followed_says_why() -> None:
    model, x = branching()
    graph, why, _ = follow_module(model, Samples(x, model))
    assert graph is None
    assert "control flow" in why
    graph, why, _ = follow_module(nn.Linear(2, 2), None)
    assert graph is None
    assert "one Linear" in why


def test_the_plan_needs_samples_where_ranges_do() -> None:
    model, _ = residual()
    graph, _, kept = follow_module(model, None)
    with pytest.raises(InputError, match="this recipe quantizes activations and needs samples"):
        prepare(graph, kept, "w8a8", None)
    assert prepare(graph, kept, "w8", None).plan.groups == []


def test_statistics_of_each_group() -> None:
    model, x = residual()
    samples = Samples(x, model, 16)
    graph, _, kept = follow_module(model, samples)
    ready = prepare(graph, kept, "w8a8", samples)
    assert ready.types["c1"] == "Conv2d + BatchNorm2d"
    gather(ready, progress=False)
    assert ready.seen == 64
    assert set(ready.statistics) == {group.key for group in ready.plan.groups}
    assert ready.statistics["x"].hi == float(x.max())


def test_rules_may_name_what_was_folded() -> None:
    model, x = residual()
    samples = Samples(x, model)
    graph, _, kept = follow_module(model, samples)
    recipe = get_recipe("w8a8").with_rules(Rule("b1", weights=FLOAT))
    (line,) = prepare(graph, kept, recipe, samples).book.unused_rules()
    assert "'b1' into 'c1'" in line


def test_illegal_modules() -> None:
    with pytest.raises(ConfigError, match="expected a torch module; received 3"):
        check_module(3)
    model, x = residual()
    check_module(model)
    done, _ = quantize_model(model, "w8a8", x, progress=False)
    with pytest.raises(UnsupportedError, match="expected a float module; received a"):
        check_module(done)
    with torch.no_grad():
        model.fc.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"received NaN or infinity in 'fc.weight' of Residual"):
        check_module(model)
    with pytest.raises(InputError, match="lazy"):
        check_module(nn.LazyLinear(3))


def test_the_largest_weight() -> None:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -3.0], [0.5, 2.0]]))
        module.bias.fill_(9.0)
    assert largest_weight(module) == 3.0
    assert largest_weight(module.weight) == 3.0
    assert largest_weight(torch.relu) == largest_weight("add") == 0.0
