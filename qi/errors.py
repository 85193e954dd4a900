"""Every error and warning class of QI.

Each error is also one of Python's own (`ValueError`, `TypeError`, ...), so code that knows nothing of QI can
still catch it. Messages read "expected ...; received x=...; do ...": what was wanted, what came, the way out.
"""

from __future__ import annotations

import sys
import warnings


class QiError(Exception):
    """Base of every error that QI raises on purpose.

    Example:
        >>> try:
        ...     raise ConfigError("expected bits in 1..16; received bits=99")
        ... except QiError as error:
        ...     print(type(error).__name__, isinstance(error, ValueError))
        ConfigError True
    """


class ConfigError(QiError, ValueError):
    """A parameter, recipe or configuration is illegal: nothing has been computed yet."""


class InputError(QiError, ValueError):
    """Data handed to QI (an array, a data set, a weight) has the wrong shape, type or values."""


class UnsupportedError(QiError, TypeError):
    """A kind of object (layer, model, array) that QI can't handle was handed to it."""


class StrictError(UnsupportedError):
    """With ``strict=True``, something would have stayed in float that nobody asked to leave there."""


class NotCalibratedError(QiError, RuntimeError):
    """A range was asked for before any data was seen."""


class FileFormatError(QiError, ValueError):
    """A file can't be read: truncated, damaged, or of a format or version that QI doesn't know."""


class ContractError(QiError, AssertionError):
    """A quantizer breaks the contract that `qi.testing.check_quantizer` checks."""


class MissingDependencyError(QiError, ImportError):
    """An optional dependency isn't installed; the message names the pip line that installs it."""


class QuantizationWarning(UserWarning):
    """The result is usable, but something about it deserves a look."""


def warn(text: str) -> None:
    """Gives a `QuantizationWarning` that points at the line that called QI, however deep within QI it is given.

    Example:
        >>> with warnings.catch_warnings(record=True) as found:
        ...     warnings.simplefilter("always")
        ...     warn("half of the values are clipped")
        >>> str(found[0].message)
        'half of the values are clipped'
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, QuantizationWarning, stacklevel=level)
