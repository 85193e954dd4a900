"""Quantizers within a layer: on the outputs of the layers that it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import keras

from qi.dispatch import resolve_path
from qi.errors import ConfigError
from qi.keras.bound import Bound, bind_quantizer
from qi.keras.hooks import Hook
from qi.keras.variables import layers_within
from qi.quantizers import BaseInferableQuantizer, BaseQuantizer
from qi.typing import Json

__all__ = ["InnerQuantizers", "distinct", "unfuse"]

_RUNNING: ContextVar[dict[int, Any] | None] = ContextVar("running", default=None)
"""What is given for training to the layers that run now, by the ``id`` of the quantizers within them."""


def distinct(tensors: Sequence[Any]) -> list[Any]:
    """Each tensor once, in order: a recurrent cell gives its state as output too."""
    return list({id(tensor): tensor for tensor in tensors}.values())


def unfuse(layer: keras.layers.Layer, cells: Sequence[keras.layers.Layer]) -> None:
    """Has recurrent layers within a layer call these cells, which fused loops of GPUs, and of JAX and torch, don't."""
    for part in layer._flatten_layers():
        if hasattr(part, "use_cudnn") and any(getattr(part, "cell", None) is cell for cell in cells):
            part.use_cudnn = False


class InnerQuantizers:
    """The quantizers of activations within one layer, by the path of the inner layer that gives them.

    The ``call`` of each of these is hooked for good; the hook does nothing but while the wrapper of the layer runs it.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[Bound | None]] = {}

    def bind(
        self,
        owner: keras.layers.Layer,
        layer: keras.layers.Layer,
        quantizers: Mapping[str, Sequence[BaseQuantizer | None]],
    ) -> None:
        """Makes the quantizers' variables in `owner`, and hooks the layers within `layer`.

        Raises:
            ConfigError: a path that the layer doesn't have; the message lists those it has.
        """
        inside = layers_within(layer)
        for wanted, several in quantizers.items():
            path = resolve_path(wanted, inside, f"a layer within {layer.name!r}")
            self._found[path] = [
                None
                if q is None
                else bind_quantizer(owner, q, (1,), prefix=f"{path.replace('/', '_')}_output_{i}_", reshape=())
                for i, q in enumerate(several)
            ]
            child = inside[path]
            child.call = Hook(child, partial(self._around, path, child.call))
        unfuse(layer, [inside[path] for path in self._found])

    @contextmanager
    def running(self, training: Any) -> Iterator[None]:
        """Has the hooks quantize."""
        if not self._found:
            yield
            return
        token = _RUNNING.set((_RUNNING.get() or {}) | {id(self): training})
        try:
            yield
        finally:
            _RUNNING.reset(token)

    def _around(self, path: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outputs, running = call(*args, **kwargs), _RUNNING.get()
        if running is None or id(self) not in running:
            return outputs
        bounds, tensors = self._found[path], distinct(keras.tree.flatten(outputs))
        if len(tensors) != len(bounds):
            raise ConfigError(
                f"expected one activation quantizer for each of the {len(tensors)} outputs of {path!r}; received {len(bounds)}"
            )
        training = running[id(self)]
        done = {id(x): x if b is None else b(x, training) for x, b in zip(tensors, bounds, strict=True)}
        return keras.tree.map_structure(lambda x: done[id(x)], outputs)

    @property
    def bounds(self) -> dict[str, Bound]:
        """The quantizers with their variables, as "cell/output_0"..."""
        return {
            f"{path}/output_{i}": bound
            for path, found in self._found.items()
            for i, bound in enumerate(found)
            if bound is not None
        }

    @property
    def variables(self) -> list[keras.Variable]:
        """All that the quantizers read and change."""
        return [variable for bound in self.bounds.values() for variable in bound.state.values()]

    def current(self) -> dict[str, list[BaseInferableQuantizer | None]]:
        """The inferable quantizers with their parameters of now; None for those that are disabled."""
        on = {
            p: [b.current() if b and b.quantizer.enabled else None for b in found] for p, found in self._found.items()
        }
        return {path: quantizers for path, quantizers in on.items() if any(q is not None for q in quantizers)}

    def records(self) -> dict[str, list[Json | None]]:
        """What a configuration holds of them."""
        return {
            path: [None if b is None else b.quantizer.to_dict() for b in found] for path, found in self._found.items()
        }
