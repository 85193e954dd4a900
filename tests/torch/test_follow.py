"""From modules to traced copies: the given module stays, the copy computes the same, and refusals say why."""

from __future__ import annotations

import threading
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional

from qi.torch.follow import follow, same_in_training, set_shapes


class Run(nn.Module):
    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *given, **named):
        return self.run(self, *given, **named)


def followed(module, *args, **kwargs):
    traced, why = follow(module, args, kwargs)
    assert traced is not None, why
    return traced


def test_what_is_traced_is_a_copy_in_eval_mode():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    module.weight = module[0].weight
    before = {name: held.clone() for name, held in module.state_dict().items()}
    traced = followed(module, torch.randn(4, 3))
    assert not any(part.training for part in traced.modules())
    assert module.training
    assert all(torch.equal(held, before[name]) for name, held in module.state_dict().items())
    assert traced.get_submodule("0").weight is not module[0].weight


def test_random_numbers_of_the_process_are_left_alone():
    before = torch.get_rng_state()
    assert "other numbers" in follow(Run(lambda m, x: x + torch.rand(3)), (torch.ones(3),))[1]
    followed(Run(lambda m, x: x + torch.rand(x.shape[0]) * 0), torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.backends.mha.get_fastpath_enabled()


def test_lazy_modules_get_their_shapes():
    traced = followed(nn.Sequential(nn.LazyLinear(3), nn.ReLU()), torch.ones(2, 5))
    assert traced.get_submodule("0").weight.shape == (3, 5)


def test_a_single_tensor_is_taken_for_the_one_argument():
    traced, why = follow(nn.ReLU(), torch.ones(2))
    assert traced is not None, why


def counts(m, x):
    m.n += 1
    return x * m.n


def hidden_state(m, x):
    m.seen = float(x.detach().sum()) if isinstance(x, torch.Tensor) and type(x) is torch.Tensor else 0.0
    return x + m.seen


@pytest.mark.parametrize(
    ("module", "args", "reason"),
    [
        (Run(lambda m, x: x if x.sum() > 0 else -x), (torch.ones(2),), "control flow (test_follow.py, line"),
        (Run(lambda m, x: torch.ones(int(x[0]))), (torch.ones(2),), "can't be followed"),
        (Run(lambda m, x: list(x)), (torch.ones(2),), "Proxy object cannot be iterated"),
        (Run(hidden_state), (torch.ones(2),), "other numbers"),
        (Run(lambda m, x: x @ x), (torch.ones(2, 3),), "fails on the sample inputs: mat1 and mat2"),
        (Run(lambda m, x: x, lock=threading.Lock()), (torch.ones(2),), "can't be copied"),
        (nn.Linear(2, 2), (), "fails on the sample inputs"),
        (nn.LazyLinear(2), None, "lazy modules have no shapes"),
    ],
)
def test_reasons(module, args, reason):
    traced, why = follow(module, args)
    assert traced is None
    assert reason in why
    assert "\n" not in why


def test_hooks_of_the_model_itself_would_be_lost():
    module = nn.Sequential(nn.ReLU())
    module.register_forward_hook(lambda *given: given[-1] * 2)
    assert "hooks of its own" in follow(module)[1]
    outer = nn.Sequential(module)  # of a module within they are followed
    assert torch.equal(followed(outer, torch.ones(2))(torch.ones(2)), torch.full((2,), 2.0))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_compiled_modules_are_refused():
    assert "ScriptModule" in follow(torch.jit.trace(nn.ReLU(), torch.ones(1)))[1]
    assert "torch.compile" in follow(torch.compile(nn.ReLU()))[1]


def test_shapes_are_noted_by_running():
    traced, _ = follow(Run(lambda m, x: x.view(x.shape[0], -1)), (torch.ones(2, 3, 4),))
    notes = {node.name: (node.meta.get("qi_shape"), node.meta.get("qi_dtype")) for node in traced.graph.nodes}
    assert notes["view"] == ((2, 12), "float32")
    assert next(node for node in traced.graph.nodes if node.name == "getitem").meta["qi_number"] == 2
    set_shapes(traced, [torch.ones(5, 3, 4)])
    assert next(node for node in traced.graph.nodes if node.name == "view").meta["qi_shape"] == (5, 12)


def branches_in_training(m, x):
    x = functional.dropout(x, 0.5, m.training)
    return x if m.training and x.sum() > 0 else -x


def test_what_cant_be_followed_in_training_is_followed_in_eval_mode():
    traced = followed(Run(branches_in_training), torch.ones(2))
    assert not traced.training
    assert traced(torch.ones(2)).tolist() == [-1, -1]


def asks_in_training(m, x):
    y = m.norm(x)
    if y.dim() != 2:
        y = y * 2
    return functional.dropout(y, 0.5, m.training)


def test_statistics_stay_while_conditions_are_answered():
    module = Run(asks_in_training, norm=nn.BatchNorm1d(3))
    traced = followed(module, torch.randn(4, 3))
    assert traced.norm.running_mean.tolist() == [0, 0, 0]
    assert traced.norm.num_batches_tracked == 0
    assert [type(part).__name__ for part in traced.children()] == ["BatchNorm1d", "Dropout"]


@pytest.mark.parametrize(
    ("run", "same"),
    [
        (lambda m, x: m.drop(x), True),
        (lambda m, x: functional.dropout(x, 0.5, m.training), True),
        (lambda m, x: functional.dropout(x, 0.5 if m.training else 0.0), False),
        (lambda m, x: x * 2 if m.training else x, False),
        (lambda m, x: x if x.sum() > 0 else -x, False),
    ],
)
def test_same_in_training(run, same):
    module = Run(run, drop=nn.Dropout())
    assert same_in_training(module, (torch.ones(2),)) is same
    assert module.training


class Named(dict):
    """As libraries give it: a dict whose keys are attributes."""

    @property
    def y(self):
        return self["y"]


def test_dicts_of_a_class_of_their_own_are_refused():
    assert "of a class" in follow(Run(lambda m, x: [Named(y=x * 2)]), (torch.ones(2),))[1]
    given = followed(Run(lambda m, x: OrderedDict(y=x * 2, z=(x,))), torch.ones(2))(torch.ones(2))
    assert list(given) == ["y", "z"]
