from __future__ import annotations

import inspect

import pytest

from qi import errors

BUILTIN_BASE = {
    "ConfigError": ValueError,
    "InputError": ValueError,
    "UnsupportedError": TypeError,
    "StrictError": TypeError,
    "NotCalibratedError": RuntimeError,
    "FileFormatError": ValueError,
    "ContractError": AssertionError,
    "MissingDependencyError": ImportError,
}


@pytest.mark.parametrize(("name", "base"), BUILTIN_BASE.items())
def test_each_error_is_caught_as_ours_and_as_pythons_own(name: str, base: type[Exception]) -> None:
    error = getattr(errors, name)
    assert issubclass(error, errors.QiError)
    assert issubclass(error, base)
    with pytest.raises(base, match="received bits=99"):
        raise error("expected bits in 1..16; received bits=99")


def test_the_table_above_names_every_error_class() -> None:
    classes = {name for name, _ in inspect.getmembers(errors, inspect.isclass)}
    assert classes == {*BUILTIN_BASE, "QiError", "QuantizationWarning"}


def test_the_warning_can_be_filtered_as_a_user_warning() -> None:
    assert issubclass(errors.QuantizationWarning, UserWarning)
    assert not issubclass(errors.QuantizationWarning, errors.QiError)


def test_a_warning_points_at_the_first_line_outside_of_the_package() -> None:
    inside: dict[str, object] = {"__name__": "qi.somewhere", "warn": errors.warn}
    exec("def inner():\n    warn('odd')\ndef outer():\n    inner()\n", inside)
    with pytest.warns(errors.QuantizationWarning, match="odd") as found:
        inside["outer"]()  # type: ignore[operator]
    here = inspect.currentframe()
    assert here is not None
    assert (found[0].filename, found[0].lineno) == (__file__, here.f_lineno - 3)
