"""Calibration data: numpy arrays, tf.data, PyDataset, generators, to checked batches of model inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from qi.errors import InputError
from qi.keras.graph import Graph
from qi.keras.variables import to_numpy

__all__ = ["batches"]


def batches(data: Any, graph: Graph, batch_size: int) -> Iterator[tuple[list[np.ndarray], int]]:
    """Batches of the model's inputs.

    Args:
        data: a numpy array (or list or dict of arrays for several inputs), a tuple (x, y[, sample_weight]), or an iterable
            of batches in Keras' convention: tf.data.Dataset, keras.utils.PyDataset, generator, DataLoader. Elements that
            are tuples are (x, y[, sample_weight]); only x is used.
        graph: whose inputs are fed.
        batch_size: for arrays; iterables bring their own batches.

    Yields:
        (flat list of numpy inputs, number of samples).

    Raises:
        InputError: no data, wrong shapes, lengths that differ, NaN or infinity, or unbatched elements.
    """
    count = 0
    for x in _elements(data, batch_size):
        flat = _flat_inputs(x, graph)
        for array, value in zip(flat, graph.flat_inputs(), strict=True):
            _check(array, value.shape, value.name, count)
        sizes = {len(array) for array in flat}
        if len(sizes) != 1:
            raise InputError(
                f"expected inputs of one length in a batch; received lengths {sorted(sizes)} in batch {count}"
            )
        count += 1
        if flat[0].shape[0]:
            yield flat, flat[0].shape[0]
    if not count:
        raise InputError("expected calibration data; received none; do pass at least a few dozen samples")


def _elements(data: Any, batch_size: int) -> Iterator[Any]:
    if data is None:
        raise InputError(
            "expected calibration data; received None; this recipe quantizes activations and needs samples"
        )
    if isinstance(data, tuple) and not hasattr(data, "_fields"):
        data = data[0]
    if _is_array(data) or isinstance(data, (list, Mapping)):
        arrays = keras.tree.flatten(data)
        if not arrays or not all(_is_array(array) for array in arrays):
            raise InputError(
                f"expected arrays; received {type(data).__name__} of {[type(a).__name__ for a in arrays][:4]}"
            )
        lengths = {len(array) for array in arrays}
        if len(lengths) != 1:
            raise InputError(f"expected inputs of one length; received lengths {sorted(lengths)}")
        for start in range(0, len(arrays[0]), batch_size):
            yield keras.tree.map_structure(lambda a, s=start: a[s : s + batch_size], data)
    elif isinstance(data, keras.utils.PyDataset):
        for index in range(_length(data)):
            yield _first(data[index])
    elif isinstance(data, Iterable):
        for element in data:
            yield _first(element)
    else:
        raise InputError(
            f"expected arrays, a tf.data.Dataset, a PyDataset or an iterable of batches; received {type(data).__name__}"
        )


def _length(data: keras.utils.PyDataset) -> int:
    length = data.num_batches
    if length is None:
        raise InputError("expected a PyDataset of finite length; received num_batches=None")
    return int(length)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _first(element: Any) -> Any:
    return element[0] if isinstance(element, tuple) else element


def _flat_inputs(x: Any, graph: Graph) -> list[np.ndarray]:
    values = graph.flat_inputs()
    if isinstance(x, Mapping) and not isinstance(graph.inputs, Mapping):
        missing = [value.name for value in values if value.name not in x]
        if missing:
            raise InputError(f"expected inputs named {[v.name for v in values]}; received {sorted(x)}")
        flat = [x[value.name] for value in values]
    else:
        flat = keras.tree.flatten(x)
    if len(flat) != len(values):
        raise InputError(f"expected {len(values)} inputs ({[v.name for v in values]}); received {len(flat)}")
    return [to_numpy(array) if not isinstance(array, np.ndarray) else array for array in flat]


def _check(array: np.ndarray, shape: tuple[int | None, ...], name: str, batch: int) -> None:
    if array.ndim == len(shape) - 1 and all(s in (None, a) for a, s in zip(array.shape, shape[1:], strict=True)):
        raise InputError(
            f"expected batches for input {name!r}; received single samples of shape {array.shape}; do batch them"
        )
    fits = array.ndim == len(shape) and all(s in (None, a) for a, s in zip(array.shape[1:], shape[1:], strict=True))
    if not fits:
        raise InputError(
            f"expected shape {('n', *shape[1:])} for input {name!r}; received {array.shape} in batch {batch}"
        )
    if array.dtype.kind not in "fiub" and "float" not in array.dtype.name:
        raise InputError(f"expected numbers for input {name!r}; received dtype={array.dtype} in batch {batch}")
    if "float" in array.dtype.name and not np.isfinite(array.astype(np.float32, copy=False)).all():
        raise InputError(
            f"expected finite calibration data for input {name!r}; received NaN or infinity in batch {batch}"
        )
