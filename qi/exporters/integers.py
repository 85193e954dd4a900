"""Export of plain integers for other hardware: a folder with all that a kernel writer needs, and nothing that needs a library.

The arithmetic is that of LiteRT's reference kernels, as microcontrollers run them;
`qi.emulate(..., "reference", integer_only=True)` tells what kernels must give.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qi.errors import ConfigError, FileFormatError
from qi.exporters.folders import check_folder, write_folder
from qi.exporters.integers_header import header
from qi.exporters.integers_record import FORMAT, record_of
from qi.exporters.integers_text import readme
from qi.exporters.proof import Proof, made_samples
from qi.exporters.report import ExportReport
from qi.files import read_limited
from qi.ir import QGraph, run
from qi.ir.routing import route
from qi.ledger.numbers import format_bytes, format_ratio
from qi.ledger.table import table
from qi.typing import Json

__all__ = ["FILES", "IntegersReport", "export_integers", "written_files"]

FILES = frozenset({"README.md", "arrays.npz", "check.npz", "graph.json", "model.h"})
"""What an export holds."""

_CHECKED = 16  # samples at most
_ELEMENTS = 2**20  # of them together
_LARGEST_RECORD = 2**28


@dataclass(frozen=True)
class IntegersReport(ExportReport):
    """What was written. No runtime runs these files, so nothing was compared: `proof` has no samples.

    Attributes:
        file_bytes: of the constants, as `model.h` compiles to; `float_file_bytes` are those of the same constants in float32.
        samples: how many `check.npz` holds, to prove kernels with.
        samples_from: where they come from.
    """

    samples: int = 0
    samples_from: str = ""

    @property
    def exact(self) -> bool:
        """True: the numbers are those that the twin computes with. Whether your kernels are exact, `check.npz` tells."""
        return True

    def to_dict(self) -> Json:
        """A record of plain JSON values; "exact" is None, for nothing was run."""
        return super().to_dict() | {"exact": None, "samples": self.samples, "samples_from": self.samples_from}

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.operations.items()))
        sizes = f"{format_bytes(self.float_file_bytes)} -> {format_bytes(self.file_bytes)}"
        ratio = f", {format_ratio(self.file_bytes / self.float_file_bytes)}" if self.float_file_bytes else ""
        rows = [
            ("to check kernels with", f"{self.samples} samples ({self.samples_from}) in check.npz"),
            ("integer operations", kinds or "none"),
            ("float operations", ", ".join(self.float_operations) or "none"),
            ("constants", f"{sizes}{ratio}"),
        ]
        body = table(("", ""), rows, left=2)
        head = [f"Export: integers in {self.path}", *(f"  warning: {text}" for text in self.warnings), ""]
        lines = [*head, *(f"  {line}" for line in body.splitlines() if line.strip())]
        return "\n".join(lines)


def export_integers(
    graph: QGraph,
    path: str | os.PathLike[str],
    *,
    samples: Sequence[np.ndarray] | None = None,
    packed: bool = False,
    unfit: Mapping[str, object] | None = None,
) -> IntegersReport:
    """Writes a folder of integers: graph.json, arrays.npz, model.h, README.md and check.npz; whole or not at all.

    Operations without a way in integers stay, marked as real, between codes; README.md tells how each is computed.

    Args:
        graph: from `qi.lower`.
        path: of the folder: a new one, an empty one, or a former export, which is replaced. What it lies in must exist.
        samples: real inputs, an array for each; the first 16 (fewer of a large model) are run by the twin for check.npz. By
            default seeded ones over the calibrated range.
        packed: whether model.h packs weights of 4 and 2 bits.
        unfit: options of other formats; to be refused where one is set.

    Returns:
        the report; float operations are listed in it.

    Raises:
        ConfigError: something that isn't a former export is there, or an option of another format.
        UnsupportedError: open sizes, codes of more than 8 bits, an operation without documented arithmetic.
        OSError: the folder can't be written; one that was there survives.
    """
    for option, value in (unfit or {}).items():
        if value:
            raise ConfigError(
                f"expected {option} for files that a runtime reads; received {option}={value!r} for integers"
            )
    target = check_folder(path, set(FILES), _is_export)
    routed = route(graph, "reference", integer_only=True, packed=True)
    source = "seeded, over the calibrated range" if samples is None else "given"
    fed = _first(routed, made_samples(routed, _CHECKED) if samples is None else samples)
    files, record = written_files(routed, fed, source=source, packed=packed)
    write_folder(target, files)
    entries, tensors = record["operations"], record["tensors"]
    integers = Counter(str(entry["kind"]) for entry in entries if entry["domain"] == "integers")
    real = tuple(
        f"{entry['kind']} ({entry['layer']})"
        for entry in entries
        if entry["domain"] == "real" and tensors[entry["outputs"][0]]["type"] == "float32"
    )
    sizes = _constant_bytes(record, files, packed), 4 * sum(t.data.size for t in routed.tensors() if t.data is not None)
    proof = Proof(0, "none: no runtime runs these files", ())
    return IntegersReport(
        str(path),
        "reference",
        proof,
        dict(integers),
        real,
        *sizes,
        samples=len(fed[0]) if fed else 0,
        samples_from=source,
    )


def written_files(
    graph: QGraph, samples: Sequence[np.ndarray], *, source: str = "given", packed: bool = False
) -> tuple[dict[str, bytes], Json]:
    """(The files by name, the record in graph.json): the same bytes for the same arguments.

    Args:
        graph: routed for "reference".
        samples: real inputs, an array for each.
        source: where they come from.
        packed: as in `export_integers`.
    """
    record, arrays = record_of(graph)
    checks = run(graph, samples, every=True)
    stored = {name: checks[entry["name"]] for name, entry in record["tensors"].items() if entry["name"] in checks}
    checked = {name: array.astype(record["tensors"][name]["type"]) for name, array in stored.items()}
    told = readme(record, samples=f"{len(samples[0])} samples ({source})", packed=packed)
    files = {
        "graph.json": _readable(record).encode(),
        "arrays.npz": _archive(arrays),
        "model.h": header(record, arrays, packed=packed).encode(),
        "README.md": told.encode(),
        "check.npz": _archive(checked),
    }
    return files, record


def _readable(record: Json) -> str:
    """JSON with a line for each entry, each tensor and each operation."""

    def text(value: object) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def block(entries: list[str], ends: str) -> str:
        return "\n  ".join([ends[0], ",\n  ".join(entries)]) + f"\n {ends[1]}"

    whole = {key: text(value) for key, value in record.items()}
    whole["tensors"] = block([f"{text(name)}: {text(entry)}" for name, entry in record["tensors"].items()], "{}")
    whole["operations"] = block([text(entry) for entry in record["operations"]], "[]")
    return "{\n " + ",\n ".join(f"{text(key)}: {value}" for key, value in whole.items()) + "\n}\n"


def _archive(arrays: Mapping[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **dict(arrays))
    return file.getvalue()


def _first(graph: QGraph, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """As many as make a file of moderate size."""
    elements = sum(math.prod(n or 1 for n in t.shape) for t in graph.tensors() if not t.constant)
    count = min(max(_ELEMENTS // max(elements, 1), 1), _CHECKED)
    return [np.asarray(array)[:count] for array in samples]


def _is_export(folder: Path) -> bool:
    """Whether a folder's graph.json is one of ours."""
    try:
        record = json.loads(read_limited(folder / "graph.json", _LARGEST_RECORD))
    except (OSError, ValueError, RecursionError, FileFormatError):
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def _constant_bytes(record: Json, files: Mapping[str, bytes], packed: bool) -> int:
    total = 0
    with np.load(io.BytesIO(files["arrays.npz"]), allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            bits = record["tensors"].get(name, {}).get("codes", {}).get("bits", 8) if packed else 8
            total += -(-array.size * bits // 8) if bits in (2, 4) else array.nbytes
    return total
