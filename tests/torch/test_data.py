"""Samples in all their containers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from qi.errors import ConfigError, InputError
from qi.torch.data import Batch, Samples, predict

X, Y = torch.arange(20.0).reshape(10, 2), torch.arange(10)


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 1)

    def forward(self, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.fc(a + b) * scale


ONE, TWO = torch.nn.Linear(2, 1), Two()


def loader(*tensors: torch.Tensor) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size=4)


@pytest.mark.parametrize(
    "data",
    [
        X,
        X.numpy(),
        X.numpy().astype("float64"),
        (X, Y),
        (X.numpy(), Y, Y),
        loader(X),
        loader(X, Y),
        TensorDataset(X, Y),
        ((X[i : i + 4], Y[i : i + 4]) for i in range(0, 10, 4)),
        (X[i : i + 4] for i in range(0, 10, 4)),
        [X],
        {"input": X},
    ],
    ids=range(12),
)
def test_one_input(data: Any) -> None:
    samples = Samples(data, ONE, 4)
    assert samples.first.count == 4, "looking uses nothing up"
    found = list(samples)
    assert [batch.count for batch in found] == [4, 4, 2]
    given = [batch.kwargs["input"] if batch.kwargs else batch.args[0] for batch in found]
    assert torch.equal(torch.cat(given), X)
    assert all(tensor.dtype is torch.float32 for tensor in given)


@pytest.mark.parametrize(
    "data",
    [
        [X, X],
        ([X, X], Y),
        loader(X, X, Y),
        [([X[:4], X[:4]], Y[:4]), ((X[4:], X[4:]), Y[4:])],
        [{"a": X[:4], "b": X[:4]}, {"b": X[4:], "a": X[4:]}],
        {"a": X, "b": X},
        {"a": X.numpy(), "b": X, "scale": torch.ones(10, 1)},
    ],
    ids=range(7),
)
def test_several_inputs(data: Any) -> None:
    found = list(Samples(data, TWO, 4))
    assert sum(batch.count for batch in found) == 10
    results = torch.cat([TWO(*batch.args, **batch.kwargs) for batch in found])
    assert torch.allclose(results, TWO(X, X))


def test_a_generator_is_read_once() -> None:
    drawn = []

    def batches() -> Iterator[torch.Tensor]:
        for i in range(3):
            drawn.append(i)
            yield X

    samples = Samples(batches(), ONE)
    assert samples.length is None
    assert samples.first.count == 10
    assert drawn == [0]
    assert len(list(samples)) == 3
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "received None; do pass"),
        ("text", "received str"),
        (3, "received int"),
        (torch.tensor(3.0), "received a single number"),
        ([X, X[:3]], r"received lengths \[3, 10\]"),
        (X.clone().fill_(torch.nan), "received NaN or infinity in batch 0"),
        (np.array([["a", "b"]]), "received dtype=<U1"),
        ([], "received no samples"),
        (iter([]), "received no samples"),
        ([[3, 4]], "expected batches of tensors"),
        ({}, "received dict of"),
    ],
    ids=range(11),
)
def test_what_is_no_data(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _ = Samples(data, ONE).first


def test_too_few_inputs_a_batch() -> None:
    with pytest.raises(InputError, match="expected 2 inputs a batch; received 1"):
        list(Samples(loader(X), TWO))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "4", None])
def test_illegal_batch_sizes(size: Any) -> None:
    with pytest.raises(ConfigError, match="expected batch_size"):
        Samples(X, ONE, size)


def test_the_first_samples_of_a_batch() -> None:
    batch = Batch((X, 3), {"y": Y}, 10).head(4)
    assert (batch.count, len(batch.args[0]), batch.args[1], len(batch.kwargs["y"])) == (4, 4, 3, 4)


def test_predictions_are_arrays_and_leave_the_mode() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout(0.5)).train()
    module[0].eval()
    found = predict(module, X.numpy(), 4)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, module[0](X).detach().numpy(), rtol=1e-6)
    assert [inner.training for inner in module.modules()] == [True, False, True]


def test_a_dict_that_is_the_one_argument() -> None:
    class Batched(torch.nn.Module):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return batch["x"]

    module = Batched()
    for data in ({"x": X}, ({"x": X}, Y), [({"x": X}, Y)]):
        first = Samples(data, module).first
        assert (first.kwargs, first.count) == ({}, 10)
        assert torch.equal(module(*first.args), X)
    assert Samples({"batch": {"x": X}}, module).first.kwargs
