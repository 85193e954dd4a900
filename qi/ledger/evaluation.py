"""What a metric says of the float model and of the quantized one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from qi.errors import FileFormatError
from qi.ledger.numbers import decode_number, encode_number, format_number, format_share
from qi.ledger.table import table

__all__ = ["EVALUATION_HEADER", "Evaluation"]

EVALUATION_HEADER = ("metric", "float", "quantized", "difference", "agreement", "samples")
"""What the cells of an evaluation are."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a metric says of the float model and of the quantized one.

    Attributes:
        metric: The metric's name.
        float_value: Its value for the float model.
        quantized_value: Its value for the quantized model.
        samples: How many samples it was measured on; None where the metric took the model itself.
        agreement: Share of samples for which both models name the same class, where predictions are scores of
            shape ``[samples, classes]``.

    Example:
        >>> print(Evaluation(metric="accuracy", float_value=0.82, quantized_value=0.815, samples=5000))
        metric     float   quantized   difference   agreement   samples
        accuracy    0.82       0.815       -0.005           -      5000
    """

    metric: str
    float_value: float
    quantized_value: float
    samples: int | None = None
    agreement: float | None = None

    @property
    def difference(self) -> float:
        """The quantized model's value less the float model's."""
        return self.quantized_value - self.float_value

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict for strict JSON."""
        return {
            name: encode_number(value) if isinstance(value, float) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Build the evaluation that `to_dict` described.

        Raises:
            FileFormatError: If a key is unknown or missing, or a value no number.
        """
        known = {field.name for field in fields(cls)}
        required = {"metric", "float_value", "quantized_value"}
        if not isinstance(values, Mapping) or not required <= set(values) <= known:
            raise FileFormatError(f"expected an evaluation with keys among {sorted(known)}; received {values!r}")
        given: dict[str, Any] = {
            name: value if name == "metric" else decode_number(value) for name, value in values.items()
        }
        return cls(**given)

    def cells(self) -> tuple[str, ...]:
        """Return the fields as text: name, float, quantized, difference, agreement, samples."""
        samples = "-" if self.samples is None else str(self.samples)
        values = (self.float_value, self.quantized_value, self.difference)
        return (self.metric, *map(format_number, values), format_share(self.agreement), samples)

    def __str__(self) -> str:
        return table(EVALUATION_HEADER, [self.cells()])
