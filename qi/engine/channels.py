"""The channel dimension that a call may name: checked wherever it is given, and a warning where it has no effect."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from qi.core import Granularity, PerChannel, PerTensor, QParams
from qi.engine.config import QuantizationConfig
from qi.errors import InputError, QuantizationWarning

__all__ = ["check_channel_dim", "check_read_channel_dim", "sharing_of", "warn_without_effect"]


def check_channel_dim(channel_dim: Any, rank: int) -> None:
    """Raises InputError unless it is None or a dimension of an array of so many."""
    if channel_dim is None:
        return
    whole = isinstance(channel_dim, int | np.integer) and not isinstance(channel_dim, bool)
    if not whole or not -rank <= channel_dim < rank:
        allowed = f"an integer from {-rank} to {rank - 1}" if rank else "None"
        raise InputError(
            f"expected channel_dim to be {allowed} for an array of rank {rank}; received channel_dim={channel_dim!r}"
        )


def check_read_channel_dim(channel_dim: int | None, rank: int, params: QParams, stacklevel: int) -> None:
    """As `check_channel_dim`, where codes are read: warns if their channels, if any, lie elsewhere."""
    check_channel_dim(channel_dim, rank)
    axis = params.granularity.axis if isinstance(params.granularity, PerChannel) else None
    if channel_dim is not None and (axis is None or axis % rank != channel_dim % rank):
        warn_without_effect(channel_dim, f"the parameters are {params.granularity}", stacklevel + 1)


def warn_without_effect(channel_dim: int, why: str, stacklevel: int) -> None:
    """Warns the caller so many calls above."""
    warnings.warn(f"channel_dim={channel_dim} has no effect: {why}", QuantizationWarning, stacklevel=stacklevel + 1)


def sharing_of(config: QuantizationConfig, channel_dim: int | None, rank: int, stacklevel: int) -> Granularity:
    """Which elements of an array share a scale; warns if the channel dimension has no say in it."""
    if channel_dim is not None and not isinstance(config.sharing(), PerChannel):
        why = f"the configuration isn't per channel, but {config.granularity!s}"
        warn_without_effect(channel_dim, why, stacklevel + 1)
    sharing = config.sharing(channel_dim)
    return PerTensor() if rank == 0 and isinstance(sharing, PerChannel) else sharing
