"""What an export gave: the report with its proof."""

from __future__ import annotations

from dataclasses import dataclass, field

from qi.exporters.proof import Proof
from qi.ledger.numbers import format_bytes, format_ratio, format_share
from qi.ledger.table import table
from qi.typing import Json

__all__ = ["ExportReport", "rows_of"]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what running it showed.

    Attributes:
        path: of the file.
        target: the runtime.
        proof: the file beside the twin.
        operations: how many there are of each kind, integer ones.
        float_operations: the operations that are done in real numbers, as "kind (layer)".
        file_bytes: of the file.
        float_file_bytes: of the same model exported without quantization.
        latency: seconds of one run of one sample, the fastest of several; None where it wasn't measured.
        float_latency: those of the float file in the same run.
        warnings: what deserves a look.
    """

    path: str
    target: str
    proof: Proof
    operations: dict[str, int]
    float_operations: tuple[str, ...]
    file_bytes: int
    float_file_bytes: int
    latency: float | None = None
    float_latency: float | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def exact(self) -> bool:
        """Whether the runtime gave what the twin gives, bit for bit."""
        return self.proof.exact

    @property
    def size_ratio(self) -> float:
        """How many times smaller the file is than the float one."""
        return self.float_file_bytes / self.file_bytes

    @property
    def speedup(self) -> float | None:
        """How many times faster it ran than the float file."""
        if not self.latency or not self.float_latency:
            return None
        return self.float_latency / self.latency

    def to_dict(self) -> Json:
        """A record of plain JSON values."""
        return {
            "path": self.path,
            "target": self.target,
            **self.proof.to_dict(),
            "operations": self.operations,
            "float_operations": list(self.float_operations),
            "file_bytes": self.file_bytes,
            "float_file_bytes": self.float_file_bytes,
            "latency": self.latency,
            "float_latency": self.float_latency,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        rows = rows_of(self.proof)
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.operations.items()))
        rows.append(("integer operations", kinds or "none"))
        rows.append(("float operations", ", ".join(self.float_operations) or "none"))
        ratio = format_ratio(self.file_bytes / self.float_file_bytes)
        rows.append(("size", f"{format_bytes(self.float_file_bytes)} -> {format_bytes(self.file_bytes)}, {ratio}"))
        if self.latency is not None and self.float_latency is not None:
            times = f"{self.float_latency * 1e6:.0f} us -> {self.latency * 1e6:.0f} us"
            rows.append(("one sample, one thread", f"{times}, {format_ratio(self.latency / self.float_latency)}"))
        lines = [f"Export: {self.path} for {self.target}", *(f"  warning: {text}" for text in self.warnings), ""]
        body = table(("", ""), rows, left=2)
        return "\n".join([*lines, *(f"  {line}" for line in body.splitlines() if line.strip())])


def rows_of(proof: Proof) -> list[tuple[str, str]]:
    """What to print of a proof: (what, how it is)."""
    compared = f"{proof.samples} samples ({proof.source})"
    verdict = f"equal, bit for bit, on {compared}"
    if not proof.exact:
        verdict = f"{format_share(proof.share)} of outputs differ, by at most {proof.max_lsb:.3g} steps, on {compared}"
    rows = [("file against twin", verdict)]
    if proof.first is not None:
        rows.append(("first difference", f"{proof.first.name}, {format_share(proof.first.share)}"))
    return rows
