"""QuantizationLogger: scales, ranges, bits and clipped shares of every epoch, in a table and for TensorBoard."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

from qi.core import range_of
from qi.errors import ConfigError, MissingDependencyError
from qi.keras.bound import Bound
from qi.keras.sites import QuantizerSite, quantizer_sites
from qi.keras.variables import to_numpy
from qi.ledger.numbers import format_number, format_share
from qi.ledger.table import table
from qi.quantizers.base import flag

__all__ = ["QuantizationLogger", "QuantizerRow"]

_HEADER = ("epoch", "layer", "tensor", "bits", "scale", "range", "clipped")
_BUCKETS = 30


@dataclass(frozen=True)
class QuantizerRow:
    """One quantizer at the end of one epoch.

    Attributes:
        epoch: counted from 0.
        layer: name of the wrapper or holder.
        tensor: path of the weight, "output" for a holder, "output_0"... for the outputs of a wrapped layer.
        bits: of its codes.
        scale: mean of its scales.
        scale_range: the least and the greatest of them.
        low: the least number that it gives.
        high: the greatest number that it gives.
        clipped: share of the values that lie more than half a step beyond the range, from 0 to 1; None for activations
            without data.
        enabled: whether it quantized in that epoch; False before `qi.StartQuantization` starts it.
    """

    epoch: int
    layer: str
    tensor: str
    bits: int
    scale: float
    scale_range: tuple[float, float]
    low: float
    high: float
    clipped: float | None
    enabled: bool = True

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of the table's columns."""
        low, high = (format_number(value) for value in (self.low, self.high))
        bits = str(self.bits) if self.enabled else f"{self.bits} (off)"
        scale, clipped = format_number(self.scale), format_share(self.clipped)
        return str(self.epoch), self.layer, self.tensor, bits, scale, f"{low} .. {high}", clipped


class QuantizationLogger(keras.callbacks.Callback):
    """Records at the end of every epoch what each trainable quantizer does.

    Args:
        data: a batch of inputs, as the model takes it; each epoch it is run through the model, to count how many activations
            are clipped. Of weights these are always counted.
        log_dir: folder for TensorBoard: scalars of bits, ends of the range and share of clipped values, and the scales as a
            scalar (their mean) and, where there are several, as a histogram. It needs TensorFlow, under any backend.
        verbose: whether each epoch's table is written to the standard output.

    Attributes:
        rows: a `QuantizerRow` for each epoch and quantizer; those of further calls of `fit` are added.

    Raises:
        ConfigError: illegal arguments; in `fit`: a model without trainable quantizers.
        MissingDependencyError: ``log_dir`` without TensorFlow.

    Example:
        >>> logger = QuantizationLogger()
        >>> # model.fit(x, y, callbacks=[logger])
        >>> logger.table()
        'epoch  layer  tensor  bits  scale  range  clipped'
    """

    def __init__(
        self, data: Any = None, log_dir: str | os.PathLike[str] | None = None, *, verbose: bool = False
    ) -> None:
        super().__init__()
        if log_dir is not None and not isinstance(log_dir, (str, os.PathLike)):
            raise ConfigError(f"expected log_dir to be a path or None; received log_dir={log_dir!r}")
        self.data, self.verbose = data, flag("verbose", verbose)
        self.log_dir = None if log_dir is None else os.fspath(log_dir)
        self.rows: list[QuantizerRow] = []
        if self.log_dir is not None:
            _tensorflow()
        self._writer: Any = None
        self._sites: list[QuantizerSite] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Finds the quantizers.

        Raises:
            ConfigError: there are none.
        """
        self._sites = quantizer_sites(self.model)
        if self.log_dir is not None:
            self._writer = _tensorflow().summary.create_file_writer(self.log_dir)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds an epoch's rows."""
        shares = self._activation_shares()
        for site in self._sites:
            bound = site.bound
            share = shares.get(id(bound)) if site.source is None else _clipped(bound, site.source())
            scale, low, high = _parameters(bound, bound.shape)
            row = QuantizerRow(
                epoch=epoch,
                layer=site.layer,
                tensor=site.tensor,
                bits=bound.quantizer.num_bits,
                scale=float(scale.mean()),
                scale_range=(float(scale.min()), float(scale.max())),
                low=float(low.min()),
                high=float(high.max()),
                clipped=None if share is None or share[1] == 0 else share[0] / share[1],
                enabled=bound.enabled,
            )
            self.rows.append(row)
            if self._writer is not None:
                self._write(row, scale)
        if self._writer is not None:
            self._writer.flush()
        if self.verbose:
            sys.stdout.write(f"\n{self.table(epoch)}\n")

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def table(self, epoch: int | None = None) -> str:
        """The rows as text.

        Args:
            epoch: one epoch's rows; None for those of the last one.
        """
        chosen = self.rows[-1].epoch if epoch is None and self.rows else epoch
        return table(_HEADER, [row.cells() for row in self.rows if row.epoch == chosen], left=3)

    def _activation_shares(self) -> dict[int, tuple[int, int]]:
        """How many values are clipped of how many, by ``id`` of the quantizer's place, on the batch of data."""
        counts: dict[int, tuple[int, int]] = {}
        if self.data is None:
            return counts

        def count(bound: Bound, x: Any) -> None:
            clipped, size = _clipped(bound, to_numpy(bound.transformed(x)))
            before = counts.get(id(bound), (0, 0))  # where it is called several times
            counts[id(bound)] = before[0] + clipped, before[1] + size

        with _probes([site.bound for site in self._sites if site.source is None], count):
            self.model(keras.tree.map_structure(keras.ops.convert_to_tensor, self.data), training=False)
        return counts

    def _write(self, row: QuantizerRow, scale: np.ndarray) -> None:
        values = {"bits": row.bits, "scale": row.scale, "low": row.low, "high": row.high}
        values |= {} if row.clipped is None else {"clipped": row.clipped}
        with self._writer.as_default(step=row.epoch):
            for name, value in values.items():
                _summary(f"{name}/{row.layer}/{row.tensor}", np.float32(value), "scalars")
            if scale.size > 1:
                counts, ends = np.histogram(scale, bins=_BUCKETS)
                buckets = np.stack([ends[:-1], ends[1:], counts], axis=1).astype(np.float64)
                _summary(f"scales/{row.layer}/{row.tensor}", buckets, "histograms")


def _tensorflow() -> Any:
    try:
        return importlib.import_module("tensorflow")
    except ModuleNotFoundError as error:  # on JAX or torch it may be missing
        message = "log_dir needs tensorflow; do: pip install tensorflow, or leave log_dir out"
        raise MissingDependencyError(message, name="tensorflow") from error


def _summary(tag: str, value: Any, plugin: str) -> None:
    """What ``tf.summary.scalar`` and ``histogram`` write; these need the package tensorboard even to write."""
    tf = _tensorflow()
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin),
        data_class=1 if plugin == "scalars" else 2,
    )
    tf.summary.write(tag, value, metadata=metadata)


@contextmanager
def _probes(bounds: list[Bound], count: Any) -> Iterator[None]:
    for bound in bounds:
        bound.probe = partial(count, bound)
    try:
        yield
    finally:
        for bound in bounds:
            bound.probe = None


def _parameters(bound: Bound, shape: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales and both ends of the range now, float64 in the shape of the parameters."""
    qparams = bound.current().qparams(tuple(shape))
    low, high = range_of(qparams.scale, qparams.zero_point, qparams.grid)
    return qparams.scale.astype(np.float64), low, high


def _clipped(bound: Bound, x: np.ndarray) -> tuple[int, int]:
    """How many values lie more than half a step beyond the range, and how many there are."""
    x = x.astype(np.float32, copy=False)
    granularity = bound.current().granularity(x.ndim)
    scale, low, high = (granularity.expand(a, x.shape) for a in _parameters(bound, x.shape))
    return int(np.count_nonzero((x < low - scale / 2) | (x > high + scale / 2))), x.size
