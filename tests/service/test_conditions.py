from __future__ import annotations

import pytest

from qi.service.conditions import check_revision, etag, revisions_of
from qi.service.store import RevisionError


@pytest.mark.parametrize(
    ("header", "revisions"),
    [
        (None, None),
        ("*", None),
        (" * ", None),
        ('"12"', {12}),
        ('"999", "1"', {999, 1}),
        (' "3" ,"4",, "x", ', {3, 4}),
        ('W/"3", "4"', {4}),
        ("12", set()),
        ('"x"', set()),
        ("", set()),
        ('"\u0663"', set()),
        ('"' + "9" * 400 + '"', set()),
    ],
)
def test_tags(header: str | None, revisions: set[int] | None) -> None:
    assert revisions_of(header) == revisions


def test_an_instance_has_one_of_them() -> None:
    check_revision("a", 12, None)
    check_revision("a", 12, revisions_of(etag(12)["ETag"]))
    check_revision("a", 12, {11, 12})
    with pytest.raises(
        RevisionError, match="expected instance a at a revision that If-Match names; received revision 12"
    ):
        check_revision("a", 12, {11})
