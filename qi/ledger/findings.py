"""What a user should hear of a quantized model: sentences from the rows of its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qi.errors import StrictError
from qi.ledger.rows import Row
from qi.observers import TensorStatistics

__all__ = ["check_strict", "range_findings", "unasked"]

_FEW_SAMPLES = 32
_SATURATED = 0.02
_FULL_BITS = 8  # with fewer, rounding weights to nearest may cost much
_DESTROYED_DB = 10.0  # below this the error has more than 30 % of the signal's amplitude


def range_findings(
    rows: Sequence[Row],
    samples: int,
    seen: Mapping[str, TensorStatistics],
    *,
    model: str = "",
    efforts: bool = False,
) -> list[str]:
    """Sentences on calibration, ranges and errors.

    Args:
        rows: of the report.
        samples: how many calibration has seen; 0 where it isn't known.
        seen: statistics by the name of what shares a scale.
        model: which model it is about, with its recipe; empty if that goes without saying.
        efforts: whether algorithms can work on the model's weights.
    """
    found = []
    if seen and 0 < samples < _FEW_SAMPLES:
        found.append(f"only {samples} calibration samples; ranges need at least {_FEW_SAMPLES}, better some hundreds")
    clipped = [row for row in rows if (row.clipped_share or 0) > _SATURATED]
    if clipped:
        worst = max(clipped, key=lambda row: row.clipped_share or 0)
        found.append(
            f"{len(clipped)} activation ranges saturate: {worst.layer} clips {100 * (worst.clipped_share or 0):.1f} % of its "
            "values; do use range minmax or more bits there"
        )
    # A signal of zeros has no ratio (-inf), and nothing that an error could destroy.
    ratios = {row.layer: row.total_sqnr_db for row in rows if row.total_sqnr_db is not None}
    lost = {layer: ratio for layer, ratio in ratios.items() if -math.inf < ratio < _DESTROYED_DB}
    if lost:
        layer = min(lost, key=lambda layer: lost[layer])
        found.append(
            f"{len(lost)} activations drown in error{model and f' in {model}'} (total SQNR below {_DESTROYED_DB:g} dB): {layer} "
            f"has {lost[layer]:.1f} dB; do {_remedy(rows, efforts)}"
        )
    broken = {name: statistics.nonfinite for name, statistics in seen.items() if statistics.nonfinite}
    if broken:
        worst_name = max(broken, key=lambda name: broken[name])
        found.append(
            f"{len(broken)} activations hold NaN or infinities in the float model, which their ranges leave out: "
            f"{broken[worst_name]} values of {worst_name}; do look at the range of data and weights"
        )
    return found


def _remedy(rows: Sequence[Row], efforts: bool) -> str:
    """What to do first about activations that drown in error."""
    few = [row for row in rows if row.kind == "weight" and row.quantized and (row.bits or 0) < _FULL_BITS]
    if efforts and few and not any(row.algorithms for row in few):
        bits = min(row.bits or 0 for row in few)
        return (
            f"round the weights of {bits} bits better with effort='balanced' first; if that isn't enough, use more bits, or "
            "leave the first of the activations in float by a rule"
        )
    return "use more bits, or leave the first of them in float by a rule"


def unasked(row: Row, wanted: bool) -> bool:
    """Whether a weight stays in float though it is a matrix and no rule wants it so; `wanted`: the recipe quantizes weights."""
    rows = math.prod(size or 1 for size in row.shape[:-1]) if row.shape is not None and len(row.shape) > 1 else 1
    matrix = rows > 1 and row.name.rpartition("/")[2] != "bias"
    return matrix and "not real numbers" not in row.reason and "by rule" not in row.reason and wanted


def check_strict(refused: Sequence[Row], strict: bool) -> None:
    """Refuses weight matrices that stay in float though no rule says so, where that is asked for.

    Raises:
        StrictError: there are some; all are listed.
    """
    if strict and refused:
        lines = "\n".join(f"  {row.layer}/{row.name} {row.shape}: {row.reason}" for row in refused)
        raise StrictError(
            f"expected every weight matrix to be quantized (strict=True); received {len(refused)} that stay in "
            f"float:\n{lines}\ndo leave them in float by a rule, or pass strict=False"
        )
