"""Running a traced model on two sizes of a batch: shapes, constants, and which axis holds the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from qi.errors import InputError
from qi.torch.tracer import placed

__all__ = ["BATCHES", "Form", "Found", "run_twice"]

BATCHES = (2, 3)
"""The sizes of batches that a model is run on: what differs between the runs depends on the batch."""

_READS = ("item", "tolist", "numpy")  # plain values that depend on data


@dataclass(frozen=True)
class Form:
    """Shape and type of a tensor that depends on the model's inputs."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Found:
    """What a node gave in each of the runs.

    Attributes:
        results: a `Form` where it depends on the model's inputs (nested as the node nests tensors), else the value itself:
            tensors and plain numbers.
        depends: whether it does.
    """

    results: tuple[Any, ...]
    depends: bool


class _Run(fx.Interpreter):
    """An interpreter that is fed at some nodes, and keeps what each gives: all of constants, of others the form."""

    def __init__(self, module: fx.GraphModule, feed: Mapping[fx.Node, torch.Tensor]) -> None:
        super().__init__(module)
        self.feed = feed
        self.found: dict[fx.Node, tuple[Any, bool]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """What a node gives."""
        if n in self.feed:
            result, depends = self.feed[n], True
        elif n.op == "placeholder" or "qi_packed" in n.meta:  # what holds several inputs, which are fed themselves
            result, depends = (n.args[0] if n.op == "placeholder" and n.args else None), False
        else:
            result = super().run_node(n)
            depends = any(self.found[node][1] for node in n.all_input_nodes)
            depends = depends and (_holds_tensors(result) or (n.op == "call_method" and n.target in _READS))
        self.found[n] = (_form_of(result) if depends else result, depends)
        return result


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_tensors(item) for item in value)
    if isinstance(value, dict):
        return any(_holds_tensors(item) for item in value.values())
    return isinstance(value, torch.Tensor)


def _form_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return Form(tuple(value.shape), str(value.dtype).removeprefix("torch."))
    if isinstance(value, (tuple, list)):
        return tuple(_form_of(item) for item in value)
    if isinstance(value, dict):
        return {key: _form_of(item) for key, item in value.items()}
    return value


def run_twice(module: fx.GraphModule, inputs: Sequence[tuple[fx.Node, torch.Tensor]]) -> dict[fx.Node, Found]:
    """Runs a traced model in inference on its first sample, two and three times over.

    Args:
        module: it keeps its modes, and nothing in it changes.
        inputs: the nodes to feed, and what with: samples in front.

    Returns:
        what each node gave, by node.

    Raises:
        InputError: the model fails on one of the batches, as it does where a size of the batch is written down in it.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    runs = []
    try:
        for size in BATCHES:
            feed = {node: x[:1].expand(size, *x.shape[1:]).contiguous() for node, x in inputs}
            runs.append(_Run(module, feed))
            with torch.no_grad():
                runs[-1].run()
    except Exception as error:  # of the user's code
        sizes = " and ".join(map(str, BATCHES))
        raise InputError(
            f"expected a model that runs on batches of {sizes} samples; it fails: {placed(error)}; do take the "
            "size of the batch from the input, as in x.flatten(1) or x.reshape(x.shape[0], -1)"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    first, second = (run.found for run in runs)
    return {node: Found((first[node][0], second[node][0]), first[node][1]) for node in first}
