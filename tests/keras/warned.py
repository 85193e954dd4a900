"""What QI warns of, recorded; ``pytest.warns`` would also let through again what the settings ignore of frameworks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from qi import QuantizationWarning

__all__ = ["warned"]


@contextmanager
def warned() -> Iterator[list[warnings.WarningMessage]]:
    """Records every QuantizationWarning of a with block; any other warning is treated as the settings say."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", QuantizationWarning)
        yield found
