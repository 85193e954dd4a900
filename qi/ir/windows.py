"""The windows that pooling operations look through."""

from __future__ import annotations

import numpy as np

from qi.ir.graph import Op

__all__ = ["window_counts", "windows"]


def windows(op: Op, x: np.ndarray, fill: float) -> np.ndarray:
    """Views of x, [batch, height, width, pool height, pool width, channels], with `fill` for what lies outside.

    Args:
        op: with attributes ``pool``, ``strides`` and ``pads`` (top, bottom, left, right).
        x: [batch, height, width, channels].
        fill: what lies outside.
    """
    top, bottom, left, right = op.attrs["pads"]
    if any(op.attrs["pads"]):
        x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    (ph, pw), (sh, sw) = op.attrs["pool"], op.attrs["strides"]
    view = np.lib.stride_tricks.sliding_window_view(x, (ph, pw), axis=(1, 2))[:, ::sh, ::sw]
    return view.transpose(0, 1, 2, 4, 5, 3)


def window_counts(op: Op, shape: tuple[int, ...]) -> np.ndarray:
    """How many elements of x each window holds, [height, width].

    Args:
        op: as in `windows`.
        shape: of x.
    """
    inside = np.ones((1, shape[1], shape[2], 1), np.int32)
    return np.asarray(windows(op, inside, 0).sum(axis=(3, 4))[0, :, :, 0])
