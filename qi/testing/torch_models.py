"""Clauses on torch modules: what `qi.testing.models` says of Keras models, for torch without Keras."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qi.quantizers import QuantizationTarget
from qi.testing.cases import Case
from qi.testing.engines import as_numpy, torch_here
from qi.testing.models import INPUTS, OUTPUTS, STEPS, chosen, problem
from qi.testing.registry import ON_TORCH, expect, expect_close, expect_same

__all__ = ["mixed", "modes", "saving", "training"]


def _branch(case: Case, seed: int) -> Any:
    """A module: a matrix product whose weight or whose input the case's quantizer quantizes."""
    torch = torch_here()
    kernel = np.random.default_rng(seed).uniform(-0.8, 0.8, (INPUTS, OUTPUTS)).astype(np.float32)
    quantizer, variables = case.start(kernel)

    class Branch(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.kernel = torch.nn.Parameter(torch.tensor(kernel))
            self.values = torch.nn.ParameterDict(
                {
                    name: torch.nn.Parameter(torch.tensor(value), requires_grad=name in case.trainable())
                    for name, value in variables.items()
                }
            )

        def quantized(self, x: Any) -> Any:
            values = {name: self.values[name] for name in variables}
            return quantizer.apply(x, values, training=self.training, noise=torch.rand_like)

        def forward(self, x: Any) -> Any:
            if case.target is QuantizationTarget.WEIGHTS:
                return x @ self.quantized(self.kernel)
            return self.quantized(x) @ self.kernel

    return Branch()


def _model(cases: Sequence[Case]) -> tuple[Any, Any]:
    """A list of one branch a case, and an optimizer for it."""
    torch = torch_here()
    model = torch.nn.ModuleList([_branch(case, seed) for seed, case in enumerate(cases)])
    return model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)


def _tensors() -> tuple[Any, Any]:
    x, y = map(torch_here().tensor, problem())
    return x, y


def _errors(model: Any, x: Any, y: Any) -> list[Any]:
    """The mean squared error of each branch."""
    return [((branch(x) - y) ** 2).mean() for branch in model]


def _numbers(model: Any) -> list[float]:
    """The same outside of training."""
    return [float(error.detach()) for error in _errors(model.eval(), *_tensors())]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from a seed, and the generator as it was afterwards."""
    torch = torch_here()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _step(model: Any, optimizer: Any, seed: int, errors: Callable[..., Any] = _errors) -> float:
    """One training step; the loss before it."""
    with _seeded(seed):
        optimizer.zero_grad()
        loss = sum(errors(model, *_tensors())) / len(model)
        loss.backward()
    optimizer.step()
    return float(loss.detach())


@ON_TORCH.register("training")
def training(cases: Sequence[Case]) -> int:
    """The loss of a toy problem falls by a fifth in 30 steps of Adam."""
    cases = chosen(cases)
    model, optimizer = _model(cases)
    before = _numbers(model)
    for seed in range(STEPS):
        _step(model.train(), optimizer, seed)
    for case, first, last in zip(cases, before, _numbers(model), strict=True):
        problem = f"expected the loss to fall; received {first:.4g}, then {last:.4g}"
        expect(last < 0.8 * first, "training", case, problem)
    return len(cases)


def _state(model: Any) -> dict[str, np.ndarray]:
    return {name: as_numpy(value).copy() for name, value in model.state_dict().items()}


@ON_TORCH.register("saving")
def saving(cases: Sequence[Case]) -> int:
    """Reloaded from a file of weights alone, a model trains on as the original does, bit for bit, and converts."""
    torch, cases = torch_here(), chosen(cases)
    model, optimizer = _model(cases)
    for seed in range(3):
        _step(model, optimizer, seed)
    again, other = _model(cases)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save([model.state_dict(), optimizer.state_dict()], path)
        states = torch.load(path, weights_only=True)
    again.load_state_dict(states[0])
    other.load_state_dict(states[1])
    where = ", ".join(map(str, cases))
    for seed in range(3):
        for (name, value), found in zip(_state(model).items(), _state(again).values(), strict=True):
            expect_same(found, value, "saving", where, f"{name!r} of the original {seed} steps after reloading")
        _step(model, optimizer, seed)
        _step(again, other, seed)
    for case, branch in zip(cases, again.eval(), strict=True):
        x = branch.kernel if case.target is QuantizationTarget.WEIGHTS else _tensors()[0]
        quantizer = case.quantizer()
        quantizer.bind(dict(branch.values))
        wanted = as_numpy(branch.quantized(x))
        found = as_numpy(quantizer.convert2inferable()(quantizer.transform(x, quantizer.variables)))
        expect_same(found, wanted, "saving", case, "the module's result of the converted quantizer")
    return len(cases)


@ON_TORCH.register("modes")
def modes(cases: Sequence[Case]) -> int:
    """The gradients of three training steps, eager and traced by torch.compile, agree to rounding."""
    torch = torch_here()
    cases = list({(case.target, case.method): case for case in chosen(cases)}.values())
    random, where = any(case.quantizer().needs_noise for case in cases), ", ".join(map(str, cases))
    torch.compiler.reset()
    traced_errors = torch.compile(_errors, backend="aot_eager", fullgraph=True)
    (model, optimizer), (traced, other) = _model(cases), _model(cases)
    for seed in range(3):
        traced.load_state_dict(model.state_dict())  # a code that flips by rounding would lead the two apart
        with warnings.catch_warnings():  # torch.compile makes an example of a class that isn't to be instantiated
            warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
            losses = _step(model, optimizer, seed), _step(traced, other, seed, traced_errors)
        expect(bool(np.isfinite(losses).all()), "modes", where, f"expected finite losses; received {losses}")
        if random:  # its numbers aren't the same once traced: that steps were made is all
            continue
        found = dict(traced.named_parameters())
        for name, value in model.named_parameters():
            if value.grad is not None:
                what = f"the gradient of {name} as made eagerly"
                expect_close(as_numpy(found[name].grad), as_numpy(value.grad), "modes", where, what, slack=1e-5)
    return 2 * len(cases)


@ON_TORCH.register("mixed")
def mixed(cases: Sequence[Case]) -> int:
    """bfloat16 and float16 give the float32 result in that dtype; under autocast, gradients are there and finite."""
    torch = torch_here()
    for case in cases:
        quantizer, variables = case.start()
        held = {name: torch.tensor(value) for name, value in variables.items()}
        for kind in (torch.bfloat16, torch.float16):
            half = torch.tensor(case.values()).to(kind)
            found, wanted = quantizer.apply(half, held), quantizer.apply(half.float(), held).to(kind)
            expect(found.dtype == kind, "mixed", case, f"expected a result in {kind}; received {found.dtype}")
            expect_same(as_numpy(found), as_numpy(wanted), "mixed", case, f"the float32 result in {kind}")
    cases = chosen(cases)
    model, _ = _model(cases)
    with _seeded(0), torch.autocast("cpu", torch.bfloat16):
        sum(_errors(model, *_tensors())).backward()
    for case, branch in zip(cases, model, strict=True):
        for name, value in branch.named_parameters():
            if value.requires_grad:
                good = value.grad is not None and value.grad.dtype == torch.float32
                good = good and bool(torch.isfinite(value.grad).all())
                problem = f"expected a finite float32 gradient of {name}; received {value.grad}"
                expect(good, "mixed", case, problem)
    return len(cases)
