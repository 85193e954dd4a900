"""Reports as strict JSON: ``{"_type": "qi.QuantizationReport", "_version": 1, "_data": {...}}``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qi.errors import FileFormatError
from qi.files import read_limited
from qi.ledger.evaluation import Evaluation
from qi.ledger.formats import RENDERERS
from qi.ledger.numbers import decode_number, encode_number
from qi.ledger.rows import Row

if TYPE_CHECKING:
    from qi.ledger.report import QuantizationReport

__all__ = ["MAX_FILE_BYTES", "fields_of", "read_document", "to_document", "to_json"]

MAX_FILE_BYTES = 1 << 26
"""The largest report that is read: 64 MiB, enough for a hundred thousand rows."""

_TYPE = "qi.QuantizationReport"
_VERSION = 1
_PLAIN = ("recipe", "model", "description", "float_file_bytes", "quantized_file_bytes")
_LISTS = ("warnings", "unused_rules")
_KEYS = {*_PLAIN, *_LISTS, "settings", "evaluations", "rows"}


def to_document(report: QuantizationReport) -> dict[str, Any]:
    """Return a report as a dict for strict JSON: non-finite numbers become "inf", "-inf" and "nan".

    The totals are there for other readers; reading computes them anew.
    """
    totals = report.totals
    data = {
        **{name: getattr(report, name) for name in _PLAIN},
        **{name: list(getattr(report, name)) for name in _LISTS},
        "settings": {
            name: encode_number(value) if isinstance(value, float) else value for name, value in report.settings.items()
        },
        "totals": {
            **asdict(totals),
            **{name: getattr(totals, name) for name in ("byte_share", "mac_share", "size_ratio")},
        },
        "evaluations": [evaluation.to_dict() for evaluation in report.evaluations],
        "rows": [row.to_dict() for row in report.rows],
    }
    return {"_type": _TYPE, "_version": _VERSION, "_data": data}


def fields_of(document: object) -> dict[str, Any]:
    """Return the arguments of the `QuantizationReport` that `to_document` described.

    Raises:
        FileFormatError: If the document is of another type or version, or a part of it can't be read.
    """
    if not isinstance(document, Mapping) or document.get("_type") != _TYPE:
        raise FileFormatError(f"expected a document with _type={_TYPE!r}; received another")
    version = document.get("_version")
    if version != _VERSION:
        raise FileFormatError(
            f"expected _version={_VERSION}; received _version={version!r}; do: install the version of QI that wrote it"
        )
    data = document.get("_data")
    if not isinstance(data, Mapping) or not {"recipe", "rows"} <= set(data) <= {*_KEYS, "totals"}:
        keys = sorted(map(str, data)) if isinstance(data, Mapping) else data
        raise FileFormatError(f"expected _data with keys among {sorted(_KEYS)}; received {keys!r}")
    fields = {name: value for name, value in data.items() if name in _KEYS}
    try:
        fields["rows"] = tuple(map(Row.from_dict, fields["rows"]))
        fields["evaluations"] = list(map(Evaluation.from_dict, fields.get("evaluations", ())))
        fields["settings"] = {name: _setting(value) for name, value in fields.get("settings", {}).items()}
    except (
        TypeError,
        AttributeError,
    ) as error:  # a number where a list should be, a list where a dict should be
        raise FileFormatError(f"expected lists of rows and evaluations; received others: {error}") from error
    return fields


@RENDERERS.register(".json")
def to_json(report: QuantizationReport) -> str:
    """Return a report as strict JSON text."""
    return json.dumps(to_document(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_document(path: str | os.PathLike[str]) -> Any:
    """Return what a JSON file of at most `MAX_FILE_BYTES` holds.

    Raises:
        FileFormatError: If the file is too large or no strict JSON.
        OSError: If it can't be opened.
    """
    content = read_limited(path, MAX_FILE_BYTES)
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"expected a report as JSON; received other text: {error}") from error


def _setting(value: Any) -> Any:
    return decode_number(value) if value in ("inf", "-inf", "nan") else value


def _refuse_constant(name: str) -> None:
    raise FileFormatError(f"{name} is no JSON number")
