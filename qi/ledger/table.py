"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["table"]

_GAP = "  "


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lay cells out in columns.

    Args:
        header: The columns' titles.
        rows: The cells, as many in each row as there are titles.
        left: How many columns, from the first, are aligned to the left; the others are aligned to the right.

    Example:
        >>> print(table(("layer", "bits"), [("head", "8"), ("backbone", "16")]))
        layer     bits
        head         8
        backbone    16
    """
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        _GAP.join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
