"""Type aliases shared by every layer."""

from __future__ import annotations

from typing import Any, TypeAlias

Array: TypeAlias = Any
"""An array of any supported namespace: numpy, a Keras tensor (TensorFlow, JAX, torch), or a torch tensor."""

Shape: TypeAlias = tuple[int, ...]
"""A fully known shape."""

Json: TypeAlias = dict[str, Any]
"""A JSON object: names to numbers, strings, booleans, None, and lists and objects of these."""
