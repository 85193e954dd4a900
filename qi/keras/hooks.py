"""Hooks: what runs in place of a layer's ``call``, wherever and however often the layer is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras

__all__ = ["Hook", "observed"]


class Hook:
    """In place of the ``call`` of a layer: `around`, which may run the original one."""

    def __init__(self, layer: keras.layers.Layer, around: Callable[..., Any]) -> None:
        self.original = layer.call
        self._around = around
        self._signature = inspect.signature(self.original)
        functools.update_wrapper(self, self.original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls `around`."""
        if not args:  # the wrapper takes the first one by its place
            first = next(iter(self._signature.parameters), "")
            if first in kwargs:
                args = (kwargs.pop(first),)
        return self._around(*args, **kwargs)


@contextmanager
def observed(
    parts: Mapping[str, keras.layers.Layer], see: Callable[[str, list[Any], list[Any]], None]
) -> Iterator[None]:
    """Hands the flat arguments and outputs of every call of a part to `see`, with the part's path."""
    hooks: dict[str, Hook] = {}
    for path, layer in parts.items():
        hooks[path] = hook = Hook(layer, functools.partial(_seen, path, layer.call, see))
        layer.call = hook
    try:
        yield
    finally:
        for path, layer in reversed(list(parts.items())):  # a layer under two paths has two hooks, one in the other
            layer.call = hooks[path].original


def _seen(path: str, call: Callable[..., Any], see: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
    outputs = call(*args, **kwargs)
    see(path, keras.tree.flatten((args, kwargs)), keras.tree.flatten(outputs))
    return outputs
