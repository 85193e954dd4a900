"""Numbers as strict JSON and as text for people."""

from __future__ import annotations

import math
from typing import Any

from qi.errors import FileFormatError

__all__ = [
    "decode_number",
    "encode_number",
    "format_bytes",
    "format_count",
    "format_db",
    "format_number",
    "format_ratio",
    "format_relative",
    "format_share",
]

_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_MISSING = "-"
_KILO = 1000


def encode_number(value: float | None) -> float | str | None:
    """Return a number as strict JSON can hold it: "inf", "-inf" and "nan" become text.

    Example:
        >>> encode_number(1.5), encode_number(float("inf")), encode_number(None)
        (1.5, 'inf', None)
    """
    if value is None or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def decode_number(value: Any) -> float | None:
    """Return the number that `encode_number` wrote.

    Raises:
        FileFormatError: If it is neither a number nor one of these texts.

    Example:
        >>> decode_number("-inf")
        -inf
    """
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    raise FileFormatError(f"expected a number, 'inf', '-inf' or 'nan'; received {value!r}")


def format_bytes(count: float | None) -> str:
    """Return a size in decimal units, with three digits.

    Example:
        >>> format_bytes(512), format_bytes(312_400), format_bytes(45_600_000), format_bytes(None)
        ('512 B', '312 kB', '45.6 MB', '-')
    """
    return _MISSING if count is None else _with_unit(count, ("B", "kB", "MB", "GB", "TB"))


def format_count(count: float | None) -> str:
    """Return a number of operations, with three digits.

    Example:
        >>> format_count(950), format_count(12_500_000)
        ('950', '12.5 M')
    """
    return _MISSING if count is None else _with_unit(count, ("", "k", "M", "G", "T"))


def format_db(value: float | None) -> str:
    """Return a ratio in dB, without its unit.

    Example:
        >>> format_db(41.234), format_db(float("inf")), format_db(None)
        ('41.2', 'exact', '-')
    """
    if value is None or math.isnan(value):
        return _MISSING
    return f"{value:.1f}" if math.isfinite(value) else ("exact" if value > 0 else "lost")


def format_share(value: float | None) -> str:
    """Return a share in percent; what isn't all or nothing never reads as 100 % or 0 %.

    Example:
        >>> format_share(1.0), format_share(0.99999), format_share(0.00001), format_share(None)
        ('100 %', '99.9 %', '<0.1 %', '-')
    """
    if value is None or math.isnan(value):
        return _MISSING
    if value in (0.0, 1.0):
        return f"{value:.0%}".replace("%", " %")
    if 0 < value < 0.001:
        return "<0.1 %"
    return f"{min(math.floor(1000 * value + 0.5) / 10, 99.9):.1f} %"


def format_ratio(value: float | None) -> str:
    """Return a ratio of sizes.

    Example:
        >>> format_ratio(0.2567)
        '0.26x'
    """
    return _MISSING if value is None else f"{value:.2f}x"


def format_relative(value: float | None) -> str:
    """Return a number as percent of what it is compared with, which it may exceed.

    Example:
        >>> format_relative(0.3125), format_relative(1.5), format_relative(0.0001), format_relative(None)
        ('31.2 %', '150.0 %', '<0.1 %', '-')
    """
    if value is None or math.isnan(value):
        return _MISSING
    return "<0.1 %" if 0 < value < 0.001 else f"{100 * value:.1f} %"


def format_number(value: float | None, digits: int = 4) -> str:
    """Return a number with a few significant digits.

    Example:
        >>> format_number(0.0078125), format_number(-3.0), format_number(None)
        ('0.007812', '-3', '-')
    """
    return _MISSING if value is None else f"{value:.{digits}g}"


def _with_unit(count: float, units: tuple[str, ...]) -> str:
    unit = 0
    while abs(count) >= 999.5 and unit < len(units) - 1:  # 999.5 would read as 1000
        count, unit = count / _KILO, unit + 1
    digits = 0 if unit == 0 or abs(count) >= 99.95 else (1 if abs(count) >= 9.995 else 2)
    return f"{count:.{digits}f} {units[unit]}".rstrip()
