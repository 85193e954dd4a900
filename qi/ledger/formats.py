"""The formats that a report can be saved in: a registry of renderers by file suffix.

The ledger itself brings ".json" and ".txt". Packages that render come as plug-ins: importing one of
`PLUG_INS` registers what it has, which happens when a suffix is asked for that nobody has registered yet.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from qi.registry import Registry

if TYPE_CHECKING:
    from qi.ledger.report import QuantizationReport

__all__ = ["PLUG_INS", "RENDERERS", "Renderer", "find_renderer"]

Renderer: TypeAlias = "Callable[[QuantizationReport], str | bytes]"
"""A function that returns a report as the content of a file."""

RENDERERS: Registry[Renderer] = Registry("report format")
"""Renderers by file suffix, with its dot, in small letters."""

PLUG_INS = ["qi.report"]
"""Modules that register more formats when they are imported."""


def find_renderer(suffix: str) -> Renderer:
    """Return the renderer of a file suffix.

    Args:
        suffix: ".json", ".txt", ".md", ".html", ".png", ...; capital and small letters are the same.

    Raises:
        ConfigError: If no renderer is registered for it, after every plug-in was imported.
    """
    name = suffix.lower()
    if name not in RENDERERS:
        for plug_in in PLUG_INS:
            importlib.import_module(plug_in)
    return RENDERERS.get(name)
