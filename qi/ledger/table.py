"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["fitting_columns", "table"]

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
    widths = _widths(lines)
    return "\n".join(
        _GAP.join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def fitting_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], droppable: Sequence[str], width: int, gap: int = 2
) -> tuple[int, ...]:
    """Return the columns that fit into a width.

    Args:
        header: The columns' titles.
        rows: The cells.
        droppable: The titles of columns that may go, the first to go first.
        width: The characters there are in a line.
        gap: Those between two columns.

    Returns:
        The positions of the columns that stay; too wide still, if nothing more may go.

    Example:
        >>> fitting_columns(("layer", "type", "bits"), [("head", "Dense", "8")], ["type", "bits"], width=12)
        (0, 2)
    """
    widths = _widths([header, *rows])
    kept = list(range(len(header)))
    for title in droppable:
        if sum(widths[column] for column in kept) + gap * (len(kept) - 1) <= width:
            break
        kept.remove(header.index(title))
    return tuple(kept)


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]
