from __future__ import annotations

import pytest

from qi.cli.exits import RefusedError, exit_code, message_of
from qi.errors import ConfigError, FileFormatError, MissingDependencyError, UnsupportedError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (FileFormatError("x"), 2),
        (UnsupportedError("x"), 2),
        (FileNotFoundError(2, "No such file", "r.json"), 2),
        (RefusedError("x"), 3),
        (MissingDependencyError("x"), 1),
        (OSError(28, "No space left on device"), 1),
        (PermissionError(13, "Permission denied"), 1),
        (MemoryError("x"), 1),
        (ZeroDivisionError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_error_has_its_code(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_a_message_is_one_line_of_bearable_length() -> None:
    assert message_of(ConfigError("expected\n  a;   received b")) == "expected a; received b"
    text = message_of(ConfigError("x" * 5000))
    assert len(text) < 1100
    assert text.endswith("(QI_DEBUG=1 shows all)")


def test_a_fault_of_ours_says_how_to_find_it() -> None:
    assert message_of(ZeroDivisionError("division by zero")) == (
        "ZeroDivisionError: division by zero; do set QI_DEBUG=1 to see where it comes from"
    )


def test_the_system_speaks_without_its_numbers() -> None:
    assert message_of(OSError(28, "No space left on device", "a.keras")) == "No space left on device: a.keras"
    assert message_of(OSError(28, "No space left on device")) == "No space left on device"
    assert "smaller --batch-size" in message_of(MemoryError("Unable to allocate 9 TiB"))
