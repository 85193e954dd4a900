"""Conditions of requests: the tag of an instance is its revision, and ``If-Match`` names those that it may have."""

from __future__ import annotations

import re
from collections.abc import Collection

from qi.service.store import RevisionError

__all__ = ["check_revision", "etag", "revisions_of"]

# Strong tags alone: what W/"7" says isn't enough to change something by.
_TAG = re.compile(r'(?:^|,)[ \t]*"([0-9]{1,18})"[ \t]*(?=,|$)')


def etag(revision: int) -> dict[str, str]:
    """The header that tells an instance's revision."""
    return {"ETag": f'"{revision}"'}


def revisions_of(if_match: str | None) -> frozenset[int] | None:
    """The revisions of which a client wants an instance to have one: an ``If-Match`` header; None: any.

    Tags that are none of ours are those of no revision.

    Example:
        >>> sorted(revisions_of('"7", "x", "9"')), revisions_of("*"), revisions_of("7")
        ([7, 9], None, frozenset())
    """
    if if_match is None or if_match.strip() == "*":
        return None
    return frozenset(map(int, _TAG.findall(if_match)))


def check_revision(id: str, revision: int, wanted: Collection[int] | None) -> None:
    """Raises RevisionError unless the revision of an instance is a wanted one.

    Args:
        id: The instance.
        revision: What it has.
        wanted: See `revisions_of`.
    """
    if wanted is not None and revision not in wanted:
        raise RevisionError(
            f"expected instance {id} at a revision that If-Match names; received revision {revision}; do: read it again"
        )
