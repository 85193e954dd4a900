"""What an export gave: the report with its proof."""

from __future__ import annotations

from dataclasses import dataclass, field

from qi.exporters.proof import Proof
from qi.ir.dynamic import KIND as DYNAMIC
from qi.ledger.numbers import format_bytes, format_ratio, format_share
from qi.ledger.table import table
from qi.typing import Json

__all__ = ["ExportReport", "rows_of", "told_difference"]


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
        weights_only: whether nothing but weights is in integers.
        notes: what to know when using the file.
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
    weights_only: bool = False
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the runtime gave what the twin gives, bit for bit."""
        return self.proof.exact

    @property
    def equal(self) -> bool:
        """The same, where outputs that are real numbers may differ by float rounding (`Proof.equal`)."""
        return self.proof.equal

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
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        rows = rows_of(self.proof)
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.operations.items()))
        rows.append(("integer operations", kinds or "none"))
        rows.append(("float operations", self._told_real()))
        ratio = format_ratio(self.file_bytes / self.float_file_bytes)
        rows.append(("size", f"{format_bytes(self.float_file_bytes)} -> {format_bytes(self.file_bytes)}, {ratio}"))
        if self.latency is not None and self.float_latency is not None:
            times = f"{self.float_latency * 1e6:.0f} us -> {self.latency * 1e6:.0f} us"
            rows.append(("one sample, one thread", f"{times}, {format_ratio(self.latency / self.float_latency)}"))
        rows += [("note", text) for text in self.notes]
        lines = [f"Export: {self.path} for {self.target}", *(f"  warning: {text}" for text in self.warnings), ""]
        body = table(("", ""), rows, left=2)
        return "\n".join([*lines, *(f"  {line}" for line in body.splitlines() if line.strip())])

    def _told_real(self) -> str:
        """The operations in real numbers; where all are, there is no use in a list."""
        if not self.weights_only:
            return ", ".join(self.float_operations) or "none"
        rounding = sum(name.startswith(f"{DYNAMIC} ") for name in self.float_operations)
        rows = f"; {rounding} of them round their inputs to 8 bits as they come" if rounding else ""
        return f"all of it: only weights are in integers{rows}"


def told_difference(proof: Proof) -> str:
    """How many outputs differ, and by how much: codes in steps, real numbers by the largest magnitude of their output."""
    return f"{proof.share_apart:.3%} of the outputs differ, by at most {_amount(proof)}"


def _amount(proof: Proof) -> str:
    steps = max((output.max_lsb for output in proof.outputs if output.relative is None), default=0.0)
    told = [f"{steps:.3g} steps"] if steps else []
    if any(output.apart for output in proof.outputs if output.relative is not None):
        told.append(f"{proof.relative:.2g} of an output's largest value")
    return " or ".join(told)


def _verdict(proof: Proof) -> str:
    if proof.exact:
        return "equal, bit for bit"
    if not proof.equal:
        return f"{format_share(proof.share_apart)} of outputs differ, by at most {_amount(proof)}"
    if not proof.share_apart:
        return f"equal within float rounding (largest difference {proof.relative:.2g} of the output's largest value)"
    return (
        f"equal within rounding: {format_share(proof.share_apart)} of outputs are up to {_amount(proof)} apart, as inputs of "
        "some products are rounded to 8 bits as they come and the last bit of a real number moves some"
    )


def rows_of(proof: Proof) -> list[tuple[str, str]]:
    """What to print of a proof: (what, how it is)."""
    compared = f"{proof.samples} samples ({proof.source})"
    rows = [("file against twin", f"{_verdict(proof)}, on {compared}")]
    if proof.first is not None:
        rows.append(("first difference", f"{proof.first.name}, {format_share(proof.first.share)}"))
    return rows
