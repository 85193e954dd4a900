"""The guard behind copies: each must compute what the layer of the given model computes.

A configuration holds what its author put there. State that it lacks is gone in a copy, as it would be in a saved file, and
nothing else would tell. So each operation of the given model and its copy are run on the same inputs, once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from qi.errors import InputError
from qi.keras.graph import Call, Graph
from qi.keras.variables import to_numpy

__all__ = ["check_copies"]

_SAMPLES = 4
# Tried for sizes that a model leaves open, one or two of them, or more: deep networks need more than a few pixels.
_OPEN_SIZES, _SMALL_SIZES = (96, 24), (24, 8)
# The least SQNR in dB. A plain copy gives the very same numbers; folding and taking apart change their rounding.
_PLAIN, _PLAIN_NARROW, _REWRITTEN, _REWRITTEN_NARROW = 60.0, 30.0, 40.0, 10.0
_NARROW = ("float16", "bfloat16", "float8")


class _NotRunError(Exception):
    """The given model itself can't run on these inputs."""


@dataclass(eq=False)
class _Pair:
    """Calls of the given model, the later ones of normalizations that were folded, and what stands for them."""

    given: list[Call]
    copies: list[Call] = field(default_factory=list)

    def limit(self) -> float:
        """The least SQNR that is due to rounding."""
        calls = [*self.given, *self.copies]
        dtypes = {value.dtype for call in calls for value in [*call.inputs, *call.outputs]}
        dtypes |= {getattr(call.op, name, "") for call in calls for name in ("compute_dtype", "variable_dtype")}
        narrow = any(dtype.startswith(_NARROW) for dtype in dtypes)
        if len(self.given) == len(self.copies) == 1:
            return _PLAIN_NARROW if narrow else _PLAIN
        return _REWRITTEN_NARROW if narrow else _REWRITTEN


def check_copies(given: Graph, graph: Graph, sample: list[np.ndarray]) -> None:
    """Compares every operation of a model with its copy.

    Args:
        given: of the given model.
        graph: the same after folding, of copies.
        sample: flat inputs. Where there are none, small random ones are made, of zeros and ones for integers; a model that
            can't run on those (or takes text) isn't checked.

    Raises:
        InputError: a copy computes something else. Operations that give random numbers are left out.
    """
    if sample:
        fixed = any(value.shape[0] is not None for value in given.flat_inputs())
        tries = [sample if fixed else [array[:_SAMPLES] for array in sample]]
    else:
        most = max(value.shape[1:].count(None) for value in given.flat_inputs())
        tries = [_generated(given, size) for size in (_OPEN_SIZES if most <= 2 else _SMALL_SIZES)]
    for inputs in tries:
        try:
            _compare(given, graph, inputs)
            break
        except _NotRunError:
            continue


def _generated(graph: Graph, size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = []
    for value in graph.flat_inputs():
        shape = (value.shape[0] or 2, *(n or size for n in value.shape[1:]))
        # Whatever integers stand for, there are nearly always at least two of it.
        arrays.append(rng.normal(0.3, 1.0, shape) if value.is_float else rng.integers(0, 2, shape))
    return arrays


def _compare(given: Graph, graph: Graph, inputs: list[np.ndarray]) -> None:
    pairs = _pairs(given, graph)
    freed = _last_uses(given, pairs)
    tensors: dict[int, Any] = {}
    for value, array in zip(given.flat_inputs(), inputs, strict=True):
        if value.dtype == "string":
            raise _NotRunError
        tensors[id(value)] = keras.ops.convert_to_tensor(array, dtype=value.dtype)
    for call in given.calls:
        try:
            results = _run([call], [tensors[id(value)] for value in call.inputs])
        except Exception as error:  # of users' code, or of Keras on inputs that it wasn't made for
            raise _NotRunError from error
        if any(0 in result.shape for result in results):
            raise _NotRunError
        tensors.update((id(value), result) for value, result in zip(call.outputs, results, strict=True))
        if id(call) in pairs:
            taken = [tensors[id(value)] for value in pairs[id(call)].given[0].inputs]
            _check(pairs[id(call)], taken, results, len(inputs[0]))
        for key in freed.get(id(call), ()):
            tensors.pop(key, None)


def _pairs(given: Graph, graph: Graph) -> dict[int, _Pair]:
    """What stands for what, by the ``id`` of the last call in the given model."""
    sites = {call.site: call for call in given.calls}
    consumers = given.consumers()
    pairs: dict[int, _Pair] = {}
    for call in graph.calls:
        root = _whole(call)
        chain = [sites[root.site]]
        for _ in root.fused:
            chain.append(consumers[id(chain[-1].outputs[0])][0])
        pairs.setdefault(id(chain[-1]), _Pair(chain)).copies.append(call)
    return pairs


def _whole(call: Call) -> Call:
    """The call that one was a part of; itself where it was none."""
    while call.split_from is not None:
        call = call.split_from
    return call


def _last_uses(given: Graph, pairs: dict[int, _Pair]) -> dict[int, list[int]]:
    """The ids of the values that nothing needs any more, by the ``id`` of the call after which that is so."""
    last: dict[int, int] = {}
    for call in given.calls:
        taken = [*call.inputs, *call.outputs, *(pairs[id(call)].given[0].inputs if id(call) in pairs else [])]
        last.update((id(value), id(call)) for value in taken)
    freed: dict[int, list[int]] = {}
    for value, call_id in last.items():
        freed.setdefault(call_id, []).append(value)
    return freed


def _run(calls: list[Call], tensors: list[Any], times: int = 1) -> list[Any]:
    """The outputs of calls one after the other, of the last time.

    What they do to variables is forgotten, seeds of random numbers included.

    Args:
        calls: each takes what those before it give, or what the first, or the one that all were parts of, takes.
        tensors: the inputs of that.
        times: how often to run them.
    """
    inner: dict[int, Any] = {id(value): tensor for value, tensor in zip(_whole(calls[0]).inputs, tensors, strict=True)}
    results: list[Any] = []
    with keras.StatelessScope():
        for call in calls * times:
            args, kwargs = call.arguments([inner[id(value)] for value in call.inputs])
            results = keras.tree.flatten(call.op(*args, **kwargs))
            inner.update((id(value), result) for value, result in zip(call.outputs, results, strict=True))
    return results


def _check(pair: _Pair, tensors: list[Any], expected: list[Any], samples: int) -> None:
    try:
        found = _agreement(expected, _run(pair.copies, tensors), _offset(pair))
        told = f"computes something else when rebuilt from its configuration (SQNR {found:.1f} dB on {samples} samples)"
    except Exception as error:  # of users' code
        found, told = -np.inf, f"fails when rebuilt from its configuration ({type(error).__name__}: {error})"
    limit = pair.limit()
    if found >= limit:
        return
    if _agreement(expected, _run(pair.given, tensors, times=2), 0.0) < limit:
        return  # random numbers, or a state of its own: no two calls give the same
    raise InputError(
        f"expected layers that their configuration can rebuild; layer {pair.given[0].path!r} of class "
        f"{pair.given[0].kind} {told}; "
        "do put its state into get_config or its weights, and register its functions with "
        "keras.saving.register_keras_serializable"
    )


def _offset(pair: _Pair) -> float:
    """The power of what a folded normalization subtracts: beside that, its own result may be rounding error alone."""
    if len(pair.given) == 1:
        return 0.0
    value = pair.given[-1].inputs[0]
    zeros = keras.ops.zeros([n or 1 for n in value.shape], value.dtype)
    return float(np.mean(np.square(to_numpy(_run(pair.given[-1:], [zeros])[0]).astype(np.float64))))


def _agreement(expected: list[Any], found: list[Any], offset: float) -> float:
    """The least SQNR in dB of any output, where both are finite; -inf for outputs of other shapes."""
    if [tuple(a.shape) for a in expected] != [tuple(b.shape) for b in found]:
        return -np.inf
    return min((_sqnr(to_numpy(a), to_numpy(b), offset) for a, b in zip(expected, found, strict=True)), default=np.inf)


def _sqnr(expected: np.ndarray, found: np.ndarray, offset: float) -> float:
    if expected.dtype.kind in "OSU":
        return np.inf  # text
    kind = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(kind), found.astype(kind)
    known = np.isfinite(a)
    both = known & np.isfinite(b)
    if 2 * np.count_nonzero(both) < np.count_nonzero(known):
        return -np.inf
    noise = float(np.sum(np.abs(a[both] - b[both]) ** 2))
    signal = max(float(np.sum(np.abs(a[both]) ** 2)), offset * np.count_nonzero(both))
    return np.inf if noise == 0 else float(10 * np.log10(max(signal, np.finfo(float).tiny) / noise))
