"""The threshold whose quantized distribution loses the least information: KL divergence on a histogram.

Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017. With the magnitudes' histogram ``h[0..n)`` and L
levels, every i from L to n is a candidate threshold ``i * width``:

* P is ``h[0..i)`` with everything beyond added to its last bin (saturation), divided by its sum;
* Q is ``h[0..i)`` *without* what lies beyond, merged into L runs of equal length, each run's sum spread
  evenly over those of its bins where P isn't 0, divided by its sum;
* the i of least ``KL(P || Q) = sum P * log(P / Q)`` wins.

Three known traps. Exact zeros are left out: every threshold quantizes them exactly, and after a ReLU they
would drown the rest. A Q of 0 where P isn't, which happens when a whole last run is empty but for saturated
values, makes that candidate infinitely bad instead of being smoothed away. A candidate with fewer than L bins
that aren't empty, as data of few distinct values have, is skipped: its Q would be P, as if nothing was lost.
Running sums give all candidates at once.
"""

from __future__ import annotations

import numpy as np

from qi.core.grid import Grid, IntGrid
from qi.observers.histogram import Histogram

__all__ = ["entropy_threshold", "kl_divergences"]

# Entries of the candidates-times-levels tables computed at once: a few MiB.
_TABLE = 1 << 18


def entropy_threshold(histogram: Histogram, channel: int, grid: Grid, *, symmetric: bool = True) -> float:
    """The threshold on the magnitudes of one channel; 0 for a channel without values or of zeros only.

    Args:
        histogram: What was seen.
        channel: Its index; 0 per tensor.
        grid: Its levels above 0 are L when `symmetric`; else those that the longer side of the range gets.
        symmetric: Whether codes are spent evenly on both sides of 0.

    Returns:
        The upper end of the best candidate's last bin, at most the greatest magnitude; that magnitude itself
        when the histogram is too coarse for the grid.
    """
    _, _, lo, hi, width = histogram.row(channel)
    if lo > hi:
        return 0.0
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    positive = symmetric and not grid.signed  # then negative values are all quantized to 0
    absmax = hi if positive else max(-lo, hi)
    counts = _magnitude_counts(histogram, channel, positive=positive)
    if symmetric:
        levels = grid.qmax + 1 if isinstance(grid, IntGrid) else sum(v >= 0 for v in grid.values)
    else:
        levels = round(grid.levels * absmax / (hi - lo)) if hi > lo else 0
    levels = max(levels, 2)
    counts = counts[: int(absmax / width) + 1]
    if np.count_nonzero(counts) <= levels:
        return absmax
    best = levels + int(np.argmin(kl_divergences(counts.astype(np.float64), levels)))
    return min(best * width, absmax)


def kl_divergences(counts: np.ndarray, levels: int) -> np.ndarray:
    """``KL(P || Q)`` for every candidate number of bins.

    Args:
        counts: float64 ``[n]``, how many magnitudes lie in each bin: whole numbers.
        levels: L, at most n.

    Returns:
        float64 ``[n - levels + 1]``: entry j is that of the first ``levels + j`` bins, inf for one that is
        skipped.
    """
    n = len(counts)
    rows = max(1, _TABLE // levels)
    starts = range(levels, n + 1, rows)
    return np.concatenate([_kl(counts, np.arange(i, min(i + rows, n + 1)), levels) for i in starts])


def _kl(counts: np.ndarray, candidates: np.ndarray, levels: int) -> np.ndarray:
    """The divergences of some candidates (numbers of bins)."""
    total = counts.sum()
    inside = np.concatenate(([0.0], np.cumsum(counts)))
    filled = np.concatenate(([0.0], np.cumsum(counts > 0)))
    plogp = np.concatenate(([0.0], np.cumsum(counts * _log(counts))))

    last, kept = counts[candidates - 1], inside[candidates]
    beyond = total - kept
    # Run r of L covers the bins from r*i//L up to (r+1)*i//L.
    bounds = candidates[:, None] * np.arange(levels + 1) // levels
    q_runs = np.diff(inside[bounds], axis=1)
    used_bins = np.diff(filled[bounds], axis=1)
    used_bins[:, -1] += (last == 0) & (beyond > 0)
    log_q = np.log(np.maximum(q_runs, 1) / np.maximum(used_bins, 1))

    # sum p log p of the unnormalised P: running sums, but for the last bin, which also holds what lies
    # beyond.
    p_part = plogp[candidates] - last * _log(last) + (last + beyond) * _log(last + beyond)
    q_part = np.sum(q_runs * log_q, axis=1) + beyond * log_q[:, -1]
    divergence = (p_part - q_part) / total - np.log(total) + _log(kept)
    skipped = (filled[candidates] < levels) | ((q_runs[:, -1] == 0) & (beyond > 0))
    return np.where(skipped, np.inf, divergence)


def _log(counts: np.ndarray) -> np.ndarray:
    """The logarithm of whole numbers, 0 for 0: such terms have the factor 0."""
    return np.asarray(np.log(np.maximum(counts, 1)))


def _magnitude_counts(histogram: Histogram, channel: int, *, positive: bool) -> np.ndarray:
    """Values other than 0 by the bin of their magnitude: int64 ``[bins / 2]``."""
    counts, zeros, *_ = histogram.row(channel)
    middle = len(counts) // 2
    magnitudes = counts[middle:]
    magnitudes[0] -= zeros
    if not positive:
        magnitudes[1:] += counts[middle - 1 : 0 : -1]
    return magnitudes
