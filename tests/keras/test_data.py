"""Calibration data in every form that Keras takes, one batch in memory, and clear errors for the rest."""

from __future__ import annotations

import weakref
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from qi.errors import ConfigError, InputError
from qi.keras.data import batches, count_batches, elements
from qi.keras.graph import Graph, flatten_model

X = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
Y = np.arange(10)
WEIGHT = np.ones(10)


def graph_of(inputs: Any) -> Graph:
    flat = keras.tree.flatten(inputs)
    return flatten_model(keras.Model(inputs, [layers.ReLU()(tensor) for tensor in flat]))


@pytest.fixture(scope="module")
def one() -> Graph:
    return graph_of(keras.Input((6,), name="a"))


@pytest.fixture(scope="module")
def two() -> Graph:
    return graph_of([keras.Input((6,), name="a"), keras.Input((2,), name="b")])


@pytest.fixture(scope="module")
def named() -> Graph:
    return graph_of({"left": keras.Input((6,), name="left"), "right": keras.Input((6,), name="right")})


def seen(data: Any, graph: Graph, batch_size: int = 4) -> list[np.ndarray]:
    """All inputs that the model would get, each put together again."""
    parts = list(batches(data, graph, batch_size))
    assert all(len(array) == count > 0 for flat, count in parts for array in flat)
    return [np.concatenate(arrays) for arrays in zip(*(flat for flat, _ in parts), strict=True)]


class Indexed(keras.utils.PyDataset):
    def __init__(self, items: list[Any]) -> None:
        super().__init__()
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


Pair = namedtuple("Pair", "image label")
ONE_INPUT = {
    "array": lambda: X,
    "float64": lambda: X.astype(np.float64),
    "tensor": lambda: tf.constant(X),
    "(x,)": lambda: (X,),
    "(x, y)": lambda: (X, Y),
    "(x, y, weight)": lambda: (X, Y, WEIGHT),
    "named tuple": lambda: Pair(X, Y),
    "list of one": lambda: [X],
    "dict by input name": lambda: {"a": X, "other": Y},
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices(X).batch(4),
    "tf.data (x, y)": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(4),
    "tf.data (x, y, weight)": lambda: tf.data.Dataset.from_tensor_slices((X, Y, WEIGHT)).batch(4),
    "tf.data of dicts": lambda: tf.data.Dataset.from_tensor_slices(({"a": X}, Y)).batch(4),
    "PyDataset": lambda: Indexed([X[:4], X[4:]]),
    "PyDataset (x, y)": lambda: Indexed([(X[:4], Y[:4]), (X[4:], Y[4:])]),
    "generator": lambda: (X[i : i + 4] for i in (0, 4, 8)),
    "generator (x, y)": lambda: ((X[i : i + 4], Y[i : i + 4]) for i in (0, 4, 8)),
    "generator of named tuples": lambda: (Pair(X[i : i + 4], Y[i : i + 4]) for i in (0, 4, 8)),
    "generator of lists": lambda: ([X[i : i + 4]] for i in (0, 4, 8)),
    "with an empty batch": lambda: iter([X[:4], X[:0], X[4:]]),
}


@pytest.mark.parametrize("make", ONE_INPUT.values(), ids=ONE_INPUT)
def test_one_input(make: Any, one: Graph) -> None:
    (found,) = seen(make(), one)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, X)


B = X[:, :2] * 3
TWO_INPUTS = {
    "list": lambda: [X, B],
    "dict by input name": lambda: {"b": B, "a": X},
    "([a, b], y)": lambda: ([X, B], Y),
    "tf.data of dicts": lambda: tf.data.Dataset.from_tensor_slices(({"b": B, "a": X}, Y)).batch(3),
    "tf.data of tuples in tuples": lambda: tf.data.Dataset.from_tensor_slices(((X, B), Y)).batch(3),
    "PyDataset": lambda: Indexed([([X[:5], B[:5]], Y[:5]), ([X[5:], B[5:]], Y[5:])]),
    "generator of dicts": lambda: ({"a": X[i : i + 5], "b": B[i : i + 5]} for i in (0, 5)),
}


@pytest.mark.parametrize("make", TWO_INPUTS.values(), ids=TWO_INPUTS)
def test_two_inputs(make: Any, two: Graph) -> None:
    first, second = seen(make(), two)
    np.testing.assert_array_equal(first, X)
    np.testing.assert_array_equal(second, B)


def test_dict_model_takes_its_keys_in_any_order_and_leaves_others(named: Graph) -> None:
    found = seen({"right": -X, "left": X, "target": Y}, named)
    np.testing.assert_array_equal(found[0], X)
    np.testing.assert_array_equal(found[1], -X)


def test_npz_file_is_a_dict_of_arrays(tmp_path: Path, two: Graph) -> None:
    np.savez(tmp_path / "x.npz", a=X, b=B)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(seen(archive, two)[1], B)
        assert count_batches(archive, 4) == 3


def test_torch_loader_gives_x_and_y_in_a_list(one: Graph) -> None:
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y)), batch_size=4)
    np.testing.assert_array_equal(seen(loader, one)[0], X)


def test_arrays_are_cut_by_batch_size_and_iterables_are_not(one: Graph) -> None:
    assert [count for _, count in batches(X, one, 4)] == [4, 4, 2]
    assert [count for _, count in batches(X, one, 100)] == [10]
    assert [count for _, count in batches(iter([X[:7], X[7:]]), one, 4)] == [7, 3]


def test_a_size_that_is_not_fixed_may_change_from_batch_to_batch() -> None:
    graph = graph_of(keras.Input((None, 3)))
    parts = batches(iter([np.ones((2, 5, 3)), np.ones((4, 7, 3))]), graph, 1)
    assert [(flat[0].shape, count) for flat, count in parts] == [((2, 5, 3), 2), ((4, 7, 3), 4)]


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "bool"])
def test_dtypes_are_left_as_they_are(dtype: str, one: Graph) -> None:
    assert seen(np.ones((3, 6), dtype), one)[0].dtype == dtype


WORDS = ["ant", "bee", "cat", "dog", "ant"]


@pytest.mark.parametrize("make", [np.array, lambda x: np.array(x, object), tf.constant])
def test_text_is_for_inputs_of_text(make: Any, one: Graph) -> None:
    word = keras.Input((), dtype="string", name="word")
    graph = flatten_model(keras.Model(word, layers.StringLookup(vocabulary=["ant", "bee"])(word)))
    (found,) = seen(make(WORDS), graph)
    assert [w.decode() if isinstance(w, bytes) else w for w in found] == WORDS
    with pytest.raises(InputError, match="expected text for input 'word'; received dtype=float32"):
        seen(X[:, 0], graph)
    with pytest.raises(InputError, match="expected numbers for input 'a'; received dtype="):
        seen(make([[w] * 6 for w in WORDS]), one)


def test_elements_come_with_their_labels_once() -> None:
    pairs = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    for data in (pairs, iter(pairs), Indexed(pairs), tf.data.Dataset.from_tensor_slices((X, Y)).batch(5)):
        found = list(elements(data))
        np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), X)
        np.testing.assert_array_equal(np.concatenate([y for _, y in found]), Y)
    for endless in (tf.data.Dataset.from_tensors(X).repeat(), Endless()):
        with pytest.raises(InputError, match="expected data that end"):
            elements(endless)


def test_no_batch_outlives_the_next(one: Graph) -> None:
    alive: set[int] = set()
    most = 0

    def make(index: int) -> np.ndarray:
        nonlocal most
        array = np.full((4, 6), index, np.float32)
        alive.add(index)
        weakref.finalize(array, alive.discard, index)
        most = max(most, len(alive))
        return array

    def source() -> Iterator[Any]:
        for index in range(8):
            yield make(index), index

    for flat, _ in batches(source(), one, 4):
        del flat
    assert most == 1
    assert not alive


def test_progress_is_known_where_the_data_have_a_length() -> None:
    assert count_batches(X, 4) == 3
    assert count_batches(([X, B], Y), 4) == 3
    assert count_batches({"a": X}, 5) == 2
    assert count_batches(tf.data.Dataset.from_tensor_slices(X).batch(4), 99) == 3
    assert count_batches(Indexed([X, X]), 99) == 2
    assert count_batches((x for x in [X]), 4) is None
    assert count_batches(np.float32(1), 4) is None


class Endless(keras.utils.PyDataset):
    @property
    def num_batches(self) -> None:
        return None

    def __getitem__(self, index: int) -> Any:
        return X


class Unsized(keras.utils.PyDataset):
    def __getitem__(self, index: int) -> Any:
        return X


def with_bad_value(value: float) -> np.ndarray:
    bad = X.astype(np.float64)
    bad[7, 2] = value
    return bad


BAD = {
    "nothing": (lambda: None, "received None; this recipe quantizes activations"),
    "no samples": (lambda: X[:0], "received no samples"),
    "no batches": (lambda: iter([]), "received no samples"),
    "empty batches": (lambda: iter([X[:0], X[:0]]), "received no samples"),
    "empty tuple": (lambda: (), "received no samples"),
    "a number": (lambda: np.float32(3), "received a single number"),
    "an object": (lambda: 3, "received int"),
    "a path": (lambda: "samples.npz", "received str"),
    "plain numbers": (lambda: X.tolist(), "list of .'float', 'float'.*do make them numpy arrays"),
    "columns": (lambda: X[:, :5], r"expected shape \('n', 6\) for input 'a'; received \(5, 5\) in batch 0"),
    "rank": (lambda: X[None], r"received \(1, 10, 6\)"),
    "later batch": (lambda: iter([X, X[:, :5]]), "in batch 1"),
    "single samples": (lambda: iter(X), r"single samples of shape \(6,\); do batch them"),
    "unbatched tf.data": (lambda: tf.data.Dataset.from_tensor_slices((X, Y)), "do batch them"),
    "NaN": (lambda: with_bad_value(np.nan), "received NaN or infinity in batch 1"),
    "infinity": (lambda: with_bad_value(-np.inf), "received NaN or infinity in batch 1"),
    "beyond float32": (lambda: with_bad_value(1e300), "received NaN or infinity in batch 1"),
    "text": (lambda: X.astype(str), "expected numbers for input 'a'; received dtype=<U"),
    "objects": (lambda: X.astype(object), "received dtype=object"),
    "complex": (lambda: X.astype(complex), "received dtype=complex"),
    "too many inputs": (lambda: [X, X], r"expected 1 inputs \(\['a'\]\); received 2"),
    "unknown name": (lambda: {"image": X}, r"expected inputs named \['a'\]; received \['image'\]"),
    "endless tf.data": (lambda: tf.data.Dataset.from_tensors(X).repeat(), "endless"),
    "endless PyDataset": (Endless, "Endless, a PyDataset of no length"),
    "unsized PyDataset": (Unsized, "Unsized, a PyDataset of no length"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_data_are_refused(make: Any, message: str, one: Graph) -> None:
    with pytest.raises(InputError, match=message):
        list(batches(make(), one, 5))


def test_lengths_must_agree(two: Graph) -> None:
    with pytest.raises(InputError, match=r"expected inputs of one length; received lengths \[9, 10\]"):
        list(batches([X, B[:9]], two, 4))
    with pytest.raises(InputError, match=r"received lengths \[9, 10\] in batch 0"):
        list(batches(iter([{"a": X, "b": B[:9]}]), two, 4))


def test_an_input_must_not_be_missing(two: Graph, named: Graph) -> None:
    with pytest.raises(InputError, match=r"expected 2 inputs \(\['a', 'b'\]\); received 1"):
        list(batches(X, two, 4))
    with pytest.raises(InputError, match=r"expected inputs by the keys \['left', 'right'\]; received \['left', 'up'\]"):
        list(batches({"left": X, "up": X}, named, 4))


@pytest.mark.parametrize("size", [0, -1, 2.5, "4", True, None])
def test_batch_size_is_a_positive_integer(size: Any, one: Graph) -> None:
    with pytest.raises(ConfigError, match="expected batch_size to be an integer of at least 1"):
        list(batches(X, one, size))


def test_a_list_for_a_model_that_takes_a_mapping_is_refused() -> None:
    b, a = keras.Input((2,), name="b"), keras.Input((2,), name="a")
    graph = flatten_model(keras.Model({"b": b, "a": a}, keras.layers.Add()([b, a])))
    x = np.zeros((4, 2), "float32")
    with pytest.raises(InputError, match="mapping with the keys"):
        list(batches([x, x], graph, 4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X[:0], "expected samples to compare on; received no samples; do pass some$"),
        (None, "expected samples to compare on; received None$"),
        (with_bad_value(np.nan), "expected finite samples to compare on for input 'a'"),
    ],
)
def test_data_are_called_what_they_are_for(data: Any, message: str, one: Graph) -> None:
    with pytest.raises(InputError, match=message):
        list(batches(data, one, 5, "samples to compare on"))
