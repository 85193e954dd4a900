"""A quantizer of every registered class, built from the names of its constructor's parameters."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np

from qi.core import IntGrid
from qi.quantizers import INFERABLE, BaseInferableQuantizer, quantizer_classes

# Only the package's own: tests of registration leave theirs behind.
CLASSES = {name: cls for name, cls in quantizer_classes(INFERABLE).items() if name.startswith("qi>")}
CHANNELS = 4
# Powers of two suit every class; the others are what most classes see.
POWERS = [0.25, 2.0, 1.0, 8.0]
PLAIN = [0.3, 1.9, 1.1, 7.7]


@dataclass(frozen=True)
class Case:
    """One way to build a quantizer."""

    cls: type[BaseInferableQuantizer]
    bits: int
    layout: str = "tensor"  # "channel" (the last axis), "axis 0" or "group"
    signed: bool = True

    def __str__(self) -> str:
        return f"{self.cls.__name__}-{self.bits}-{self.layout}-{'signed' if self.signed else 'unsigned'}"

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for those parameters of the constructor that this project gives a meaning to."""
        names = inspect.signature(self.cls).parameters
        several = self.layout in ("channel", "axis 0")
        thresholds = POWERS if "POT" in self.cls.__name__ else PLAIN
        values: dict[str, Any] = {
            "num_bits": self.bits,
            "threshold": thresholds if several else thresholds[1],
            "min_range": [-0.31, 0.0, -2.3, -7.0] if several else -1.1,
            "max_range": [0.9, 1.7, 0.0, 1.0] if several else 2.3,
            "signed": self.signed,
            "lut_values": lut_values(self.bits, self.signed),
            "lut_values_bitwidth": max(8, self.bits),
        }
        if self.layout != "tensor":
            values |= {"per_channel": True, "channel_axis": 0 if self.layout == "axis 0" else -1}
        if self.layout == "group":
            values |= {"group_size": 4, "group_axis": 0}
        unknown = [name for name, p in names.items() if p.default is p.empty and name not in values]
        assert not unknown, f"{self.cls.__name__} has parameters that tests/examples.py doesn't know: {unknown}"
        return {name: value for name, value in values.items() if name in names}

    def quantizer(self) -> BaseInferableQuantizer:
        """A new quantizer; that of groups has different scales from group to group."""
        built = self.cls(**self.arguments())
        if self.layout != "group":
            return built
        qparams = built.qparams(self.shape())
        return built.with_qparams(qparams.scale * np.float32([[1], [2], [0.5]]), qparams.zero_point)

    def shape(self) -> tuple[int, ...]:
        """A shape that it quantizes; in groups the last one is partial."""
        shapes = {"axis 0": (CHANNELS, 5, 8), "group": (11, CHANNELS)}
        return shapes.get(self.layout, (40, CHANNELS))


def lut_values(bits: int, signed: bool) -> list[int]:
    """An uneven table of at most 2**bits and 16 entries, with 0 among them."""
    table = [0, 3, -5, 9, 20, -22, 41, -50, 64, -70, 90, -100, 105, -111, 120, -128][: 2**bits]
    return table if signed else sorted({abs(value) for value in table})


def cases(bits: tuple[int, ...] = (1, 2, 4, 8, 16)) -> list[Case]:
    """Every class with every number of bits, and every layout and sign that it has."""
    found = []
    for cls in CLASSES.values():
        names = inspect.signature(cls).parameters
        layouts = ["tensor"]
        layouts += ["channel", "axis 0"] if "per_channel" in names else []
        layouts += ["group"] if "group_size" in names else []
        signs = (True, False) if "signed" in names else (True,)
        found += [Case(cls, b, layout, signed) for b in bits for layout in layouts for signed in signs]
    return found


def ends(quantizer: BaseInferableQuantizer) -> tuple[int, int]:
    """The lowest and highest number of steps: the codes, or the entries of a table."""
    grid = quantizer.grid
    return (grid.qmin, grid.qmax) if isinstance(grid, IntGrid) else (grid.values[0], grid.values[-1])


def awkward(case: Case) -> np.ndarray:
    """Float32 of `case.shape()`: codes, ties and their neighbours, values beyond the ends, and what is no number."""
    rng = np.random.default_rng(7)
    quantizer, shape = case.quantizer(), case.shape()
    scale, zero_point = (a.astype(np.float64) for a in quantizer.qparams(shape).expanded(shape))
    lo, hi = ends(quantizer)
    steps = rng.integers(lo - 2, hi + 3, shape) - zero_point + rng.choice([0.0, 0.5, 0.3], shape)
    exact = (steps * scale).astype(np.float32)
    x = np.nextafter(exact, rng.choice(np.float32([-np.inf, np.inf]), shape))
    x = np.where(rng.random(shape) < 0.6, exact, x)
    special = np.float32([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38, np.nan, np.inf, -np.inf])
    where = rng.random(shape) < 0.2
    x[where] = rng.choice(special, int(where.sum()))
    return x
