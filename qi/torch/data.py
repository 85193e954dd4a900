"""Samples for torch modules: tensors, arrays, data sets and loaders, to checked batches of arguments."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from qi.errors import InputError
from qi.ledger.batches import check_batch_size

__all__ = ["Batch", "Samples", "predict", "quiet"]


@dataclass(frozen=True)
class Batch:
    """What a module is called with: `count` samples of positional and keyword arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    count: int = 0

    def head(self, count: int) -> Batch:
        """The first samples."""
        cut = lambda leaf: leaf[:count] if isinstance(leaf, torch.Tensor) and len(leaf) == self.count else leaf
        args, kwargs = pytree.tree_map(cut, (self.args, self.kwargs))
        return Batch(args, kwargs, min(count, self.count))


class Samples:
    """Data as batches of a module's arguments, on its device.

    Args:
        data: a tensor or numpy array; a list of these for several arguments, a dict for keyword arguments; a tuple
            (x, y[, ...]) with any of them as x; a `torch.utils.data.Dataset`; or an iterable of batches (a DataLoader, a
            generator). Of a batch that is a list or a tuple, as many items are taken as the module needs arguments; its first
            item alone where that is a list, tuple or dict itself. A dict none of whose keys is an argument's name is the argument
            of a module that takes one.
        module: that takes them. Arrays of float64 become what its parameters are.
        batch_size: for whatever isn't an iterable of batches.
        what: the data are, for errors.

    Raises:
        InputError: no data, none of the kinds above, or inputs of several lengths; while they are read: batches without
            samples, NaN or infinity.
        ConfigError: an illegal batch size.
    """

    def __init__(
        self, data: Any, module: torch.nn.Module, batch_size: int = 64, what: str = "calibration data"
    ) -> None:
        self._module, self._size, self._what = module, check_batch_size(batch_size), what
        self._like = next((p for p in module.parameters() if p.is_floating_point()), None)
        self._needed = _arguments_of(module)
        if data is None:
            raise InputError(f"expected {what}; received None; do pass some samples")
        self._source, self.length = self._batches(data)
        self._first: Batch | None = None

    @property
    def first(self) -> Batch:
        """The first batch; reading it uses nothing up."""
        if self._first is None:
            self._source = iter(self._source)
            item = next(self._source, None)
            if item is None:
                raise InputError(f"expected {self._what}; received no samples; do pass at least a few dozen")
            self._first = self._checked(item, 0)
            self._source = itertools.chain([item], self._source)
        return self._first

    def __iter__(self) -> Iterator[Batch]:
        """All batches, once."""
        for index, item in enumerate(self._source):
            yield self._checked(item, index)

    def _batches(self, data: Any) -> tuple[Iterable[Any], int | None]:
        if isinstance(data, tuple) and data:
            data = data[0]
        if isinstance(data, Mapping) or _is_array(data) or (isinstance(data, (list, tuple)) and _all_arrays(data)):
            return self._slices(data)
        if isinstance(data, torch.utils.data.Dataset) and not isinstance(data, torch.utils.data.IterableDataset):
            data = torch.utils.data.DataLoader(data, batch_size=self._size)
        if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
            raise InputError(
                f"expected tensors, arrays, a Dataset or an iterable of batches as {self._what}; received {type(data).__name__}"
            )
        try:
            length = len(data)  # type: ignore[arg-type]  # not all have one
        except (TypeError, NotImplementedError):
            length = None
        return (self._taken(item) for item in data), length

    def _slices(self, data: Any) -> tuple[Iterable[Any], int]:
        leaves, structure = pytree.tree_flatten(dict(data) if isinstance(data, Mapping) else data)
        if not leaves or not all(map(_is_array, leaves)):
            kinds = [type(leaf).__name__ for leaf in leaves][:4]
            raise InputError(f"expected tensors or arrays; received {type(data).__name__} of {kinds}")
        if not all(len(leaf.shape) for leaf in leaves):
            raise InputError("expected arrays of samples; received a single number")
        lengths = sorted({len(leaf) for leaf in leaves})
        if len(lengths) != 1:
            raise InputError(f"expected inputs of one length; received lengths {lengths}")
        starts = range(0, lengths[0], self._size)
        part = lambda at: pytree.tree_unflatten([leaf[at : at + self._size] for leaf in leaves], structure)
        return map(part, starts), len(starts)

    def _taken(self, item: Any) -> Any:
        """The inputs of a batch, without labels."""
        if isinstance(item, Mapping) or not isinstance(item, (list, tuple)) or not item:
            return item
        if isinstance(item[0], (list, tuple, Mapping)):
            return item[0]
        if len(item) < self._needed:
            raise InputError(f"expected {self._needed} inputs a batch; received {len(item)}; do give them by a dict")
        return list(item[: max(1, self._needed)])

    def _checked(self, item: Any, index: int) -> Batch:
        leaves, structure = pytree.tree_flatten(dict(item) if isinstance(item, Mapping) else item)
        tensors = [self._tensor(leaf, index) for leaf in leaves]
        counts = {len(tensor) for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.ndim}
        if not counts:
            raise InputError(f"expected batches of tensors; received {type(item).__name__} in batch {index}")
        found = pytree.tree_unflatten(tensors, structure)
        if isinstance(found, dict) and self._names(found):
            return Batch((), found, max(counts))
        return Batch(tuple(found) if isinstance(found, (list, tuple)) else (found,), {}, max(counts))

    def _names(self, given: dict[Any, Any]) -> bool:
        """Whether the keys of a dict may be names of arguments; those of a module with one argument needn't."""
        try:
            parameters = inspect.signature(self._module.forward).parameters
        except (TypeError, ValueError):
            return True
        free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return free or self._needed != 1 or any(key in parameters for key in given)

    def _tensor(self, leaf: Any, index: int) -> Any:
        if not _is_array(leaf):
            return leaf
        if not isinstance(leaf, torch.Tensor):
            array = np.asarray(leaf)
            if array.dtype.kind not in "fiub":
                raise InputError(f"expected numbers as {self._what}; received dtype={array.dtype} in batch {index}")
            leaf = torch.tensor(array)
        leaf = leaf.detach()
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            raise InputError(f"expected finite {self._what}; received NaN or infinity in batch {index}")
        if self._like is None:
            return leaf
        dtype = self._like.dtype if leaf.dtype is torch.float64 else leaf.dtype
        return leaf.to(device=self._like.device, dtype=dtype)


@contextmanager
def quiet(module: torch.nn.Module) -> Iterator[None]:
    """In eval mode, without gradients; the modes of all modules come back after."""
    modes = {inner: inner.training for inner in module.modules()}
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for inner, mode in modes.items():
            inner.training = mode


def predict(module: torch.nn.Module, x: Any, batch_size: int = 256) -> Any:
    """A module's outputs for all samples as numpy arrays, in eval mode, without gradients.

    Args:
        module: any; its mode stays.
        x: as `Samples` takes it.
        batch_size: samples at a time.
    """
    parts, structure = [], None
    with quiet(module):
        for batch in Samples(x, module, batch_size, "samples"):
            leaves, structure = pytree.tree_flatten(module(*batch.args, **batch.kwargs))
            parts.append([leaf.detach().cpu() for leaf in leaves])
    if structure is None:
        raise InputError("expected samples; received none")
    joined = [torch.cat(column).float().numpy() for column in zip(*parts, strict=True)]
    return pytree.tree_unflatten(joined, structure)


def _arguments_of(module: torch.nn.Module) -> int:
    """How many positional arguments its forward needs."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    return sum(p.kind in kinds and p.default is p.empty for p in parameters)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _all_arrays(data: Any) -> bool:
    return bool(data) and all(map(_is_array, data))
