"""How errors call a layer."""

from __future__ import annotations

__all__ = ["told"]

_RAW = "_raw"


def told(name: str) -> str:
    """A layer's name as its user knows it, quoted.

    Where a layer gives an output of the model, the output keeps the name, and the layer's own ends with "_raw" once the
    model is quantized.

    Example:
        >>> print(told("stem/conv"), told("lstm_raw"))
        'stem/conv' 'lstm' ('lstm_raw' once quantized)
    """
    own = name.removesuffix(_RAW)
    return repr(name) if own in ("", name) else f"{own!r} ({name!r} once quantized)"
