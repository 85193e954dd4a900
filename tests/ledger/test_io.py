from __future__ import annotations

import json

import pytest

from qi.errors import FileFormatError
from qi.ledger import QuantizationReport, io
from qi.ledger.io import fields_of, read_document, to_document, to_json


def changed(document, **changes):
    return {**document, "_data": {**document["_data"], **changes}}


def test_the_format_is_pinned(report):
    document = json.loads(to_json(report))
    data = document["_data"]
    assert (document["_type"], document["_version"]) == ("qi.QuantizationReport", 1)
    assert set(data) == {
        "recipe", "model", "description", "float_file_bytes", "quantized_file_bytes", "warnings", "unused_rules",
        "settings", "totals", "evaluations", "rows",
    }  # fmt: skip
    assert data["totals"]["byte_share"] == 0.45
    assert data["totals"]["weights"] == 3
    assert data["rows"][0]["sqnr_db"] == data["settings"]["worst"] == "inf"


def test_strict_json_round_trip(report):
    document = json.loads(to_json(report), parse_constant=lambda name: pytest.fail(f"{name} is no strict JSON"))
    assert QuantizationReport(**fields_of(document)) == report


@pytest.mark.parametrize(
    "make",
    [
        lambda document: [],
        lambda document: {},
        lambda document: {**document, "_type": "other"},
        lambda document: {**document, "_version": 2},
        lambda document: {**document, "_data": []},
        lambda document: {**document, "_data": {"recipe": "w8"}},
        lambda document: changed(document, code="x"),
        lambda document: changed(document, rows=3),
        lambda document: changed(document, rows=[3]),
        lambda document: changed(document, evaluations={"a": 1}),
        lambda document: changed(document, evaluations=7),
        lambda document: changed(document, settings=[1]),
        lambda document: changed(document, warnings="abc"),
        lambda document: changed(document, recipe=3),
        lambda document: changed(document, float_file_bytes="many"),
    ],
)
def test_junk_is_refused(report, make):
    with pytest.raises(FileFormatError):
        QuantizationReport.from_dict(make(to_document(report)))


def test_files_that_are_no_strict_json_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    for content in (b"", b"{", b'{"a": NaN}', b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="as JSON"):
            read_document(path)
    monkeypatch.setattr(io, "MAX_FILE_BYTES", 3)
    path.write_bytes(b"[10]")
    with pytest.raises(FileFormatError, match="is larger"):
        read_document(path)
