"""Loading what the extra `fast` compiles, before it is needed."""

from __future__ import annotations

from qi.core import IntGrid, compiled
from qi.engine.types import QuantizationType
from qi.errors import ConfigError

__all__ = ["load_fast"]


def load_fast(quantization_type: QuantizationType | str = "int8") -> None:
    """Loads the compiled functions of one type of code now.

    Without it they are loaded as soon as a process has worked on as many values as make up for it: an array of 2**26, or
    smaller ones of 2**28 together. Loading takes about half a second; the first time on a machine a second for each
    function, which numba compiles and keeps in ``NUMBA_CACHE_DIR``, or beside the package. From there on arrays of 2**16
    values and more take a third to half the time, and `num_threads` pays. The codes are the same, bit for bit.

    Args:
        quantization_type: An integer type.

    Raises:
        ConfigError: It is no integer type.
        MissingDependencyError: numba isn't installed; do install the extra `fast`.

    Example:
        >>> load_fast("uint8")
    """
    try:
        kind = QuantizationType(quantization_type)
    except (ValueError, TypeError):
        kind = QuantizationType.NONE
    if not kind.integer:
        raise ConfigError(f"expected an integer type, such as 'int8'; received quantization_type={quantization_type!r}")
    compiled.load(IntGrid(kind.bits, signed=kind.signed))
