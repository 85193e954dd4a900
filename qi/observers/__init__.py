"""What was seen of a tensor (statistics), and which range to quantize it with (selections)."""

from qi.observers.calibrated import CalibratedStatistics
from qi.observers.channels import rescaled
from qi.observers.io import load_statistics, save_statistics
from qi.observers.moments import Moments
from qi.observers.presets import (
    EmaObserver,
    EntropyObserver,
    MinMaxObserver,
    MSEObserver,
    Observer,
    PercentileObserver,
)
from qi.observers.selection import SELECTIONS, clipped_share, select_range
from qi.observers.statistics import EmaMinMax, Histogram, MinMax, Statistic, TensorStatistics
from qi.observers.weights import WEIGHT_SELECTIONS, select_weight_threshold

__all__ = [
    "SELECTIONS",
    "WEIGHT_SELECTIONS",
    "CalibratedStatistics",
    "EmaMinMax",
    "EmaObserver",
    "EntropyObserver",
    "Histogram",
    "MSEObserver",
    "MinMax",
    "MinMaxObserver",
    "Moments",
    "Observer",
    "PercentileObserver",
    "Statistic",
    "TensorStatistics",
    "clipped_share",
    "load_statistics",
    "rescaled",
    "save_statistics",
    "select_range",
    "select_weight_threshold",
]
