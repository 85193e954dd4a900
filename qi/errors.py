"""Every error and warning class of QI.

Each error is also one of Python's own (`ValueError`, `TypeError`, ...), so code that knows nothing of QI can
still catch it. Messages read "expected ...; received x=...; do ...": what was wanted, what came, the way out.
"""

from __future__ import annotations


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
