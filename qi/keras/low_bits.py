"""The algorithms of a recipe on a prepared model: scaling before calibration ends, then rounding, then correction."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from qi.keras.calibrate import Calibration
from qi.keras.inputs import Watch
from qi.keras.prepare import Prepared
from qi.keras.rounding import Rounded, WeightSite, round_weights, weight_sites
from qi.keras.variables import to_numpy, weights_of
from qi.quantizers import BaseInferableQuantizer

__all__ = ["LowBits"]


class LowBits:
    """What a recipe's algorithms do with one model.

    Args:
        ready: the model; it is told what calibration has to see.

    Attributes:
        quantizers: of the weights that an algorithm rounded, by (``id`` of the layer, path of the weight).
        floats: likewise, their values before.
        told: lines for the report's warnings.
        settings: for the report.
    """

    def __init__(self, ready: Prepared) -> None:
        self.ready = ready
        self.quantizers: dict[tuple[int, str], BaseInferableQuantizer] = {}
        self.floats: dict[tuple[int, str], np.ndarray] = {}
        self.told: list[str] = []
        self.settings: dict[str, Any] = {}
        asked = any(spec.algorithms for spec in ready.book.recipe.all_weights())
        self.sites = self._workable(weight_sites(ready)) if asked else []
        if self.sites:
            keys = [site.key for site in self.sites if any(step.needs == "moments" for step in site.spec.algorithms)]
            ready.watch = Watch.of(ready.graph, keys)

    def _workable(self, sites: Iterable[WeightSite]) -> list[WeightSite]:
        """The sites that algorithms can work on; of the others it is told why they are rounded to nearest."""
        found = []
        for site in sites:
            names = [step.name for step in site.spec.algorithms]
            if not names:
                continue
            why = f"shares weights with {site.tied}" if site.tied else ""
            if site.linear is None and any(step.needs == "moments" for step in site.spec.algorithms):
                why = why or "doesn't multiply the layer's input"
            if why:
                self.told.append(f"{site.key!r} is rounded to nearest, without {', '.join(names)}: it {why}")
            else:
                found.append(site)
        return found

    def scale(self, calibration: Calibration) -> None:
        """Scales channels, and what is known of them."""

    def round(
        self, calibration: Calibration, *, jobs: int | None, resume: str | os.PathLike[str] | None, progress: bool
    ) -> None:
        """Puts weights on their grids, in the layers themselves, and corrects what that shifts."""
        if not self.sites:
            return
        rounded = round_weights(
            self.sites, calibration.inputs, jobs=jobs, resume=resume, origin=self.ready.graph.name, progress=progress
        )
        for one in rounded.values():
            self._assign(one.site, one.site.weight, one.values)
            self.quantizers[id(one.site.op), one.site.weight] = one.quantizer
            self.floats[id(one.site.op), one.site.weight] = one.site.array
        self._tell(rounded)

    def _assign(self, site: WeightSite, path: str, values: np.ndarray) -> None:
        variable = weights_of(site.op)[path]
        variable.assign(values.astype(to_numpy(variable).dtype))

    def _tell(self, rounded: dict[str, Rounded]) -> None:
        known = [one.solved for one in rounded.values() if np.isfinite(one.solved.nearest)]
        if known:
            nearest, error = sum(s.nearest for s in known), sum(s.error for s in known)
            if nearest:
                self.settings["output_error_of_nearest"] = round(error / nearest, 4)
