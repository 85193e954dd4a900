"""Calibration data: numpy arrays, tf.data, PyDataset, generators, to checked batches of model inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from qi.errors import InputError
from qi.keras.graph import Graph, Value, is_graph_model
from qi.keras.trace import know_shapes
from qi.keras.variables import to_numpy
from qi.ledger.batches import check_batch_size

__all__ = ["CALIBRATION", "batches", "count_batches", "elements", "tell_shapes"]

CALIBRATION = "calibration data"


def batches(
    data: Any, graph: Graph, batch_size: int, what: str = CALIBRATION
) -> Iterator[tuple[list[np.ndarray], int]]:
    """Batches of the model's inputs; no batch is held on to once the next one is asked for.

    Args:
        data: a numpy array (or list or dict of arrays for several inputs), a tuple (x, y[, sample_weight]), or an iterable
            of batches in Keras' convention: tf.data.Dataset, keras.utils.PyDataset, generator, DataLoader. Elements that
            are tuples are (x, y[, sample_weight]); only x is used. A generator has to end.
        graph: whose inputs are fed.
        batch_size: for arrays; iterables bring their own batches.
        what: the data are, for errors.

    Yields:
        (flat list of numpy inputs, number of samples); never an empty batch.

    Raises:
        InputError: no data, wrong shapes, lengths that differ, NaN or infinity, unbatched elements, or endless data.
        ConfigError: an illegal batch size.
    """
    index = samples = 0
    for x in _elements(data, check_batch_size(batch_size), what):
        flat = _checked_inputs(x, graph, index, what)
        index, count = index + 1, len(flat[0])
        samples += count
        if count:
            yield flat, count
        del x, flat
    if not samples:
        few = "at least a few dozen" if what == CALIBRATION else "some"
        raise InputError(f"expected {what}; received no samples; do pass {few}")


def count_batches(data: Any, batch_size: int) -> int | None:
    """How many batches `batches` will give, for a progress bar; None where it isn't known beforehand."""
    data = _plain(data)
    leaves = keras.tree.flatten(data) if _is_structure(data) else [data]
    if leaves and all(_is_array(leaf) and len(leaf.shape) for leaf in leaves):
        return -(-len(leaves[0]) // check_batch_size(batch_size))
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def tell_shapes(model: Any, data: Any) -> None:
    """Of a built model whose shapes Keras didn't keep, has `qi.keras.trace` take those of its data's first batch.

    Data that looking would use up, as a generator, are left alone.
    """
    kept = not isinstance(model, keras.Model) or is_graph_model(model) or getattr(model, "_build_shapes_dict", None)
    if kept or not model.built or data is None or isinstance(data, Iterator):
        return
    first = next(iter(_elements(data, 1, CALIBRATION)), None)
    arrays = keras.tree.flatten(first)
    if arrays and all(_is_array(array) and len(array.shape) for array in arrays):
        know_shapes(model, keras.tree.map_structure(lambda array: (None, *map(int, array.shape[1:])), first))


def _elements(data: Any, batch_size: int, what: str) -> Iterator[Any]:
    """The x of one batch after the other; `map` holds on to none of them."""
    if data is None:
        needs = "; this recipe quantizes activations and needs samples" if what == CALIBRATION else ""
        raise InputError(f"expected {what}; received None{needs}")
    data = _plain(data)
    if _is_array(data) or _is_structure(data):
        return _slices(data, batch_size)
    if isinstance(data, (str, bytes)) or not isinstance(data, (keras.utils.PyDataset, Iterable)):
        raise InputError(
            f"expected arrays, a tf.data.Dataset, a PyDataset or an iterable of batches; received {type(data).__name__}"
        )
    return map(_inputs_of, elements(data))


def elements(data: Any) -> Iterator[Any]:
    """The elements of a data set, once: what is one batch to Keras, with its labels if it has any.

    Args:
        data: tf.data.Dataset, keras.utils.PyDataset, DataLoader, or any other iterable, which is taken to end.

    Raises:
        InputError: a data set that says it has no end.
    """
    if isinstance(data, keras.utils.PyDataset):
        return map(data.__getitem__, range(_length(data)))
    # tf.data says -1 of a dataset without an end.
    if callable(cardinality := getattr(data, "cardinality", None)) and int(cardinality()) == -1:
        raise InputError("expected data that end; received an endless dataset; do call take(n) on it")
    if any(cls.__module__.startswith("torch.utils.data") for cls in type(data).__mro__):
        return map(_as_tuple, data)
    return iter(data)


def _slices(data: Any, batch_size: int) -> Iterator[Any]:
    arrays = keras.tree.flatten(data)
    _check_complete(arrays)
    if not arrays or not all(map(_is_array, arrays)):
        kinds = [type(array).__name__ for array in arrays][:4]
        raise InputError(f"expected arrays; received {type(data).__name__} of {kinds}; do make them numpy arrays")
    if not all(len(array.shape) for array in arrays):
        raise InputError("expected arrays of samples; received a single number")
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise InputError(f"expected inputs of one length; received lengths {sorted(lengths)}")
    part = lambda start: keras.tree.map_structure(lambda array: array[start : start + batch_size], data)
    return map(part, range(0, lengths.pop(), batch_size))


def _length(data: keras.utils.PyDataset) -> int:
    try:
        length = data.num_batches
    except NotImplementedError:
        length = None
    if length is None:
        raise InputError(
            f"expected data that end; received {type(data).__name__}, a PyDataset of no length; do give it __len__"
        )
    return int(length)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_structure(data: Any) -> bool:
    """Whether it holds an array for each input; the x of a tuple (x, y) may be a tuple itself."""
    return isinstance(data, (list, dict)) or (isinstance(data, tuple) and bool(data))


def _inputs_of(element: Any) -> Any:
    """The x of (x, y[, sample_weight]); anything but a tuple is x itself."""
    return element[0] if isinstance(element, tuple) and element else element


def _plain(data: Any) -> Any:
    """The x of the data as a whole; any mapping, such as an open ``.npz`` file, as a dict."""
    data = _inputs_of(data)
    return dict(data) if isinstance(data, Mapping) else data


def _as_tuple(element: Any) -> Any:
    """What torch's loader collates to a list is (x, y), as Keras takes it."""
    return tuple(element) if isinstance(element, list) else element


def _checked_inputs(x: Any, graph: Graph, batch: int, what: str) -> list[np.ndarray]:
    """One batch in the order of the model's inputs."""
    flat = _flat_inputs(x, graph)
    for array, value in zip(flat, graph.flat_inputs(), strict=True):
        _check_shape(array, value.shape, value.name, batch)
        _check_content(array, value, batch, what)
    lengths = {len(array) for array in flat}
    if len(lengths) != 1:
        raise InputError(f"expected inputs of one length; received lengths {sorted(lengths)} in batch {batch}")
    return flat


def _flat_inputs(x: Any, graph: Graph) -> list[np.ndarray]:
    values = graph.flat_inputs()
    names = [value.name for value in values]
    if isinstance(x, Mapping) and isinstance(graph.inputs, Mapping):
        missing = sorted(set(graph.inputs) - set(x))
        if missing:
            raise InputError(f"expected inputs by the keys {sorted(graph.inputs)}; received {sorted(x)}")
        flat = keras.tree.flatten({key: x[key] for key in graph.inputs})
    elif isinstance(x, Mapping):
        if not set(names) <= set(x):
            raise InputError(f"expected inputs named {names}; received {sorted(x)}")
        flat = [x[name] for name in names]
    elif isinstance(graph.inputs, Mapping) and len(names) > 1:
        raise InputError(f"expected a mapping with the keys {sorted(graph.inputs)}; received {type(x).__name__}")
    else:
        flat = keras.tree.flatten(x)
    if len(flat) != len(values):
        raise InputError(
            f"expected {len(values)} inputs ({names}); received {len(flat)}; do give several as a list or dict, for a tuple is "
            "(inputs, true values)"
        )
    _check_complete(flat)
    return [array if isinstance(array, np.ndarray) else to_numpy(array) for array in flat]


def _check_complete(arrays: list[Any]) -> None:
    if any(array is None for array in arrays):
        raise InputError(
            "expected an array for each input; received None for one of them; do give optional inputs values as well, for "
            "ranges come from these"
        )


def _check_shape(array: np.ndarray, shape: tuple[int | None, ...], name: str, batch: int) -> None:
    if array.ndim == len(shape) - 1 and all(s in (None, a) for a, s in zip(array.shape, shape[1:], strict=True)):
        raise InputError(
            f"expected batches for input {name!r}; received single samples of shape {array.shape}; do batch them"
        )
    fits = array.ndim == len(shape) and all(s in (None, a) for a, s in zip(array.shape[1:], shape[1:], strict=True))
    if not fits:
        raise InputError(
            f"expected shape {('n', *shape[1:])} for input {name!r}; received {array.shape} in batch {batch}"
        )


def _check_content(array: np.ndarray, value: Value, batch: int, what: str) -> None:
    name, text = value.name, value.dtype == "string"
    if text and array.dtype.kind not in "OSU":
        raise InputError(f"expected text for input {name!r}; received dtype={array.dtype} in batch {batch}")
    if not text and array.dtype.kind not in "fiub" and "float" not in array.dtype.name:
        raise InputError(f"expected numbers for input {name!r}; received dtype={array.dtype} in batch {batch}")
    with np.errstate(over="ignore"):  # what float32 can't hold counts as infinite
        finite = "float" not in array.dtype.name or np.isfinite(array.astype(np.float32, copy=False)).all()
    if not finite:
        raise InputError(f"expected finite {what} for input {name!r}; received NaN or infinity in batch {batch}")
