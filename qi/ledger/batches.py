"""Samples, true values and predictions, batch by batch, whatever container they come in.

A tensor, a list or tuple of tensors and a dict of tensors are told apart by whether an item has a shape, so
no framework is needed: a list of plain numbers is one array.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from qi.errors import ConfigError, InputError

__all__ = ["Batches", "check_batch_size", "collect", "pairs", "sample_count"]

Batches: TypeAlias = Callable[[Any], Iterable[Any]]
"""A function that turns a data set into (x, y) or (x, y, sample_weight) batches."""


def check_batch_size(batch_size: Any) -> int:
    """The batch size, checked.

    Raises:
        ConfigError: no integer of at least 1.
    """
    try:
        size = operator.index(batch_size)
    except TypeError:
        size = 0
    if size < 1 or isinstance(batch_size, bool):
        raise ConfigError(f"expected batch_size to be an integer of at least 1; received batch_size={batch_size!r}")
    return size


def pairs(data: Any, y: Any = None, batches: Batches | None = None) -> Iterator[tuple[Any, Any]]:
    """Iterate over the (x, y) batches of whatever kind of data; sample weights are left out.

    Args:
        data: The inputs of all samples, with `y`; or a tuple ``(x, y)``; or an iterable of such tuples.
        y: The true values of all samples.
        batches: A function that turns data of another kind into batches.

    Raises:
        InputError: If there are no data, no true values, or an item is no (x, y).

    Example:
        >>> [(x.shape, y) for x, y in pairs((np.ones((2, 3)), [0, 1]))]
        [((2, 3), [0, 1])]
    """
    if data is None:
        raise InputError("expected data to evaluate on; received None; do: pass x and y, or (x, y) batches")
    if y is not None:
        yield data, y
        return
    if isinstance(data, tuple):
        yield _pair(data)
        return
    if hasattr(data, "shape") or isinstance(data, Mapping):
        raise InputError("expected the true values with the inputs; received y=None; do: pass y=...")
    source = data if batches is None else batches(data)
    if not isinstance(source, Iterable):
        raise InputError(f"expected arrays or (x, y) batches; received data of type {type(data).__name__}")
    for item in source:
        yield _pair(item)


def collect(batches: Iterable[tuple[Any, Any]], predict: Callable[[Any], tuple[Any, Any]]) -> tuple[Any, Any, Any]:
    """Run two models over all batches.

    Args:
        batches: The (x, y) batches.
        predict: A function of x that returns both models' predictions.

    Returns:
        The true values and both models' predictions, as numpy arrays of all samples (or lists or dicts of
        them).

    Raises:
        InputError: If there are no samples, or lengths differ.
    """
    parts: list[tuple[Any, Any, Any]] = []
    for x, y in batches:
        samples = sample_count(y, "y")
        inputs = sample_count(x, "x")
        if inputs != samples:
            raise InputError(f"expected as many inputs as true values; received {inputs} and {samples}")
        if samples == 0:
            continue
        first, second = (_arrays(prediction) for prediction in predict(_written_out(x)))
        for prediction in (first, second):
            received = sample_count(prediction, "predictions")
            if received != samples:
                raise InputError(f"expected a prediction for each of {samples} samples; received {received}")
        parts.append((_arrays(y), first, second))
    if not parts:
        raise InputError("expected at least one sample to evaluate on; received empty data")
    truth, float_predictions, quantized_predictions = (_joined(list(column)) for column in zip(*parts, strict=True))
    return truth, float_predictions, quantized_predictions


def sample_count(values: Any, name: str) -> int:
    """Return the length of the first axis, which every part of `values` must share.

    Args:
        values: An array, or a list, tuple or dict of arrays.
        name: What errors should call it.

    Raises:
        InputError: If the lengths differ, or a part has no axis.

    Example:
        >>> sample_count({"a": np.ones((4, 2)), "b": np.ones(4)}, "x")
        4
    """
    lengths = set()
    for leaf in _leaves(values):
        shape = _shape(leaf, name)
        if not shape:
            raise InputError(f"expected {name} with one entry per sample; received a {type(leaf).__name__}")
        lengths.add(int(shape[0]))
    if len(lengths) != 1:
        raise InputError(f"expected the parts of {name} to be of one length; received {sorted(lengths)}")
    return lengths.pop()


def _shape(leaf: Any, name: str) -> tuple[int, ...]:
    try:
        return np.shape(leaf)
    except ValueError as error:
        raise InputError(
            f"expected {name} to be an array, or lists of one length; received lists of several lengths; do pad them"
        ) from error


def _pair(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) not in (2, 3):
        count = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        raise InputError(f"expected (x, y) or (x, y, sample_weight); received a {type(item).__name__}{count}")
    return item[0], item[1]


def _has_parts(values: Any) -> bool:
    """Whether a list or tuple holds tensors, rather than being one written out in numbers."""
    return isinstance(values, list | tuple) and any(
        isinstance(item, Mapping) or (hasattr(item, "shape") and np.ndim(item) > 0) for item in values
    )


def _leaves(values: Any) -> Iterator[Any]:
    if isinstance(values, Mapping):
        values = list(values.values())
    elif not _has_parts(values):
        yield values
        return
    for item in values:
        yield from _leaves(item)


def _written_out(x: Any) -> Any:
    """Inputs as a model takes them: numbers in nested lists are one array, not one input each."""
    if not isinstance(x, list | tuple) or _has_parts(x):
        return x
    return np.asarray(x)


def _arrays(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _arrays(item) for name, item in values.items()}
    return [_arrays(item) for item in values] if _has_parts(values) else np.asarray(values)


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, dict):
        return {name: _joined([part[name] for part in parts]) for name in first}
    if isinstance(first, list):
        return [_joined(list(items)) for items in zip(*parts, strict=True)]
    return np.concatenate(parts)
