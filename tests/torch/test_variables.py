from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch

from qi.errors import InputError, UnsupportedError
from qi.torch.variables import (
    aliases_of,
    call_with,
    class_names,
    duplicate,
    exchanged,
    free_path,
    parameter_at,
    parameters_of,
    places_of,
    to_numpy,
    to_tensor,
    with_values,
)


class Tied(torch.nn.Module):
    """An embedding whose weight the last layer shares."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(5, 4)
        self.inner = torch.nn.Sequential(torch.nn.Linear(4, 4))
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.inner(self.table(x)))


def test_a_shared_parameter_is_found_once_and_its_other_paths_lead_to_it():
    module = Tied()
    assert list(parameters_of(module)) == ["table.weight", "inner.0.weight", "inner.0.bias"]
    assert aliases_of(module)["head.weight"] == aliases_of(module)["table.weight"] == "table.weight"


def test_places_name_the_modules_from_the_outermost():
    module = Tied()
    place = places_of(module)["inner.0.weight"]
    assert place.parameter is module.inner[0].weight
    assert place.owners == ((module, "inner.0.weight"), (module.inner, "0.weight"), (module.inner[0], "weight"))


def test_a_lazy_module_has_to_be_called_first():
    module = torch.nn.LazyLinear(2)
    with pytest.raises(InputError, match=r"LazyLinear at \['weight', 'bias'\] are lazy; do call it once"):
        parameters_of(module)
    module(torch.ones(1, 3))
    assert parameters_of(module)["weight"].shape == (2, 3)


def test_class_names_lead_to_the_ancestors():
    assert class_names(torch.nn.LSTM(2, 2))[:3] == ["LSTM", "RNNBase", "Module"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.float32, torch.int64])
def test_arrays_have_the_tensors_dtype_and_memory_of_their_own(dtype):
    tensor = torch.arange(4).to(dtype)
    array = to_numpy(tensor)
    assert str(array.dtype) == str(dtype).removeprefix("torch.")
    array[0] = 9
    assert tensor[0] == 0
    back = to_tensor(array, tensor)
    assert (back.dtype, back.tolist()) == (dtype, [9, 1, 2, 3])


def test_bfloat16_becomes_float32_and_gradients_are_left_behind():
    array = to_numpy(torch.nn.Parameter(torch.tensor([0.5, 3.0], dtype=torch.bfloat16)))
    assert array.dtype == np.float32
    assert array.tolist() == [0.5, 3.0]


def test_a_call_has_the_given_values_wherever_a_parameter_is_shared():
    module, x = Tied(), torch.arange(5)
    value = torch.rand(5, 4)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.table.weight.copy_(value)
    before = module.table.weight.detach().clone()
    assert torch.equal(call_with(module, {"table.weight": value}, (x,), {}), other(x))
    assert isinstance(module.head.weight, torch.nn.Parameter)
    assert torch.equal(parameter_at(module, "head.weight"), before)


@pytest.mark.parametrize("make", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent_modules_run_with_the_values_and_forget_them(make):
    module, x = make(3, 4, num_layers=2), torch.rand(2, 1, 3)
    kept = list(module._flat_weights)
    with torch.no_grad():
        zeros = call_with(module, {"weight_ih_l0": torch.zeros_like(module.weight_ih_l0)}, (x,), {})[0]
        assert not torch.equal(zeros, module(x)[0])
    assert all(now is before for now, before in zip(module._flat_weights, kept, strict=True))


def test_a_call_that_fails_leaves_the_module_alone():
    module = torch.nn.LSTM(3, 4)
    with pytest.raises(ValueError, match="dtype"):
        call_with(module, {"weight_ih_l0": torch.zeros(16, 3, dtype=torch.float64)}, (torch.rand(2, 1, 3),), {})
    assert module._flat_weights[0] is module.weight_ih_l0


def test_a_copy_leaves_the_history_of_what_was_computed():
    module = Tied()
    module.seen = [module(torch.arange(3))]
    with pytest.raises(RuntimeError):
        copy.deepcopy(module)
    made = duplicate(module)
    assert torch.equal(made.seen[0], module.seen[0])
    assert not made.seen[0].requires_grad
    assert made.head.weight is made.table.weight is not module.table.weight
    module.lock = threading.Lock()
    with pytest.raises(UnsupportedError, match=r"can be copied.*lock.*__deepcopy__"):
        duplicate(module)


def test_modules_are_exchanged_wherever_they_are_held():
    module = Tied()
    old, new = module.inner[0], torch.nn.Identity()
    module.first, module.kept = [{"a": (old, 1)}], [2, (3,)]
    kept = module.kept
    assert exchanged(module, {id(old): new}) is module
    assert module.inner[0] is module.first[0]["a"][0] is new
    assert module.kept is kept
    assert exchanged(old, {id(old): new}) is new


def test_methods_with_other_values():
    class Table(torch.nn.Embedding):
        def scores(self, x, factor):
            return factor * x @ self.weight.T

    table = Table(5, 4)
    scores = with_values(table, table.scores, lambda: {"weight": torch.ones(5, 4)})
    assert scores(torch.ones(1, 4), factor=2).tolist() == [[8.0] * 5]
    assert isinstance(table.weight, torch.nn.Parameter)


def test_a_path_that_is_taken_gets_a_number() -> None:
    assert free_path("a.b", {"a", "b"}) == "a.b"
    assert free_path("a.b", {"a.b", "a.b_2"}) == "a.b_3"
