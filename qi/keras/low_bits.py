"""The algorithms of a recipe on a prepared model: scaling before calibration ends, then rounding, then correction."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from qi.algorithms import ALGORITHMS
from qi.errors import ConfigError
from qi.keras.absorb import absorb_links
from qi.keras.calibrate import Calibration
from qi.keras.clamps import ends_after
from qi.keras.correction import corrected
from qi.keras.empirical import correct_biases, output_means, samples_of, why_not
from qi.keras.graph import build_tensors
from qi.keras.inputs import Watch
from qi.keras.links import Link, find_links, scalable_values
from qi.keras.norm_means import norm_means
from qi.keras.prepare import Prepared
from qi.keras.reconstruct import reconstruct
from qi.keras.rounding import Rounded, WeightSite, round_weights, weight_sites
from qi.keras.scaling import equalize_links, rescale_statistics, smooth_links
from qi.keras.student import Weight
from qi.keras.tables import table_moments, with_tables
from qi.keras.variables import to_numpy, weights_of
from qi.ledger import Row
from qi.observers import Moments
from qi.quantizers import BaseInferableQuantizer

__all__ = ["LowBits"]

_EMPIRICAL = "empirical_bias_correction"
_FROM_NORMS = "analytic_bias_correction"
_LOOKED_UP = "is looked up, and the nearest codes are best for rows that go into more than linear layers"


@dataclass(frozen=True, eq=False)
class Trained:
    """What training made of a weight: its quantizer, and values that lie on the quantizer's grid exactly."""

    site: WeightSite
    quantizer: BaseInferableQuantizer
    values: np.ndarray


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
        self._notes: dict[str, dict[str, Any]] = {}
        self._left: dict[str, set[str]] = {}
        self._links: list[Link] = []  # with the factors that they were scaled by
        asked = any(spec.algorithms for spec in ready.book.recipe.all_weights())
        sites, self._tables = with_tables(ready.graph, weight_sites(ready)) if asked else ([], {})
        self.sites = self._workable(sites)
        if self.sites:
            keys = [site.key for site in self.sites if any(step.needs == "moments" for step in site.spec.algorithms)]
            # Ranges of activations alone need to be known channel by channel.
            scales = bool(ready.watched) and any(site.steps("scaling") for site in self.sites)
            ready.watch = Watch.of(ready.graph, keys, scalable_values(ready.graph) if scales else ())
            self._tell_too_large()

    def _tell_too_large(self) -> None:
        large = set(self.ready.watch.too_large)
        for site in self.sites:
            if site.key in large:
                self.told.append(
                    f"{site.key!r} is rounded to nearest: moments of its inputs would take too much memory"
                )
        self.sites = [site for site in self.sites if site.key not in large]

    def _tell_too_few(self, inputs: Mapping[str, Moments]) -> None:
        """Tells of weights with more input features than rows were seen: what the moments say of them is partly chance."""
        few = {}
        for site in self.sites:
            seen = inputs.get(site.key)
            asking = any(name for name, _ in site.steps("range", "rounding") if ALGORITHMS.get(name).needs == "moments")
            if asking and seen is not None and seen.features is not None and 0 < seen.count < seen.features:
                few[site.key] = seen
        if few:
            key, seen = min(few.items(), key=lambda item: item[1].count / (item[1].features or 1))
            weights = f"{len(few)} weight{'s' if len(few) > 1 else ''}"
            self.told.append(
                f"the data are too few for moments of {weights}, whose inputs have more features than rows were seen "
                f"({key!r}: {seen.features} features, {seen.count} rows), so that rounding may fit the samples alone; do "
                "calibrate with more"
            )

    def _workable(self, sites: Iterable[WeightSite]) -> list[WeightSite]:
        """The sites that algorithms can work on; of the others it is told why they are rounded to nearest."""
        found = []
        for site in sites:
            names = [step.name for step in site.spec.algorithms]
            if not names:
                continue
            why = f"shares weights with {site.tied}" if site.tied else ""
            if site.linear is None and any(step.needs == "moments" for step in site.spec.algorithms):
                why = why or (_LOOKED_UP if site.weight == "embeddings" else "doesn't multiply the layer's input")
            if why:
                self.told.append(f"{site.key!r} is rounded to nearest, without {', '.join(names)}: it {why}")
            else:
                found.append(site)
        return found

    def scale(self, calibration: Calibration) -> None:
        """Scales channels where the recipe asks for it, and what is known of them: the float function stays."""
        if not any(site.steps("scaling") for site in self.sites):
            return
        links = self._links = find_links(self.ready.graph)
        sites = {site.key: site for site in self.sites}
        done = equalize_links(links, sites) + smooth_links(links, sites, calibration.inputs)
        scaled = list({id(link): link for link in done}.values())
        rescale_statistics(scaled, calibration)
        self._absorb(links, sites, calibration)
        self.ready.tensors = build_tensors(self.ready.graph)
        arrays = {
            (id(site.op), path): variable for site in self.sites for path, variable in weights_of(site.op).items()
        }
        self.sites = [replace(site, array=to_numpy(arrays[id(site.op), site.weight])) for site in self.sites]
        self.settings["scaled_links"] = len(scaled)

    def _absorb(self, links: list[Link], sites: dict[str, WeightSite], calibration: Calibration) -> None:
        """Absorbs high biases where the recipe asks for it."""
        if any(name == "absorb" for site in self.sites for name, _ in site.steps("scaling")):
            absorbed, told = absorb_links(links, sites, self.ready, calibration)
            self.told += told
            self.settings["absorbed_links"] = len(absorbed)
            if not (absorbed or told):
                self.told.append(
                    "absorb changed nothing: no layer with a high bias is followed by ReLU and such layers alone"
                )

    def round(
        self,
        calibration: Calibration,
        activations: dict[int, BaseInferableQuantizer],
        data: Any,
        *,
        jobs: int | None,
        resume: str | os.PathLike[str] | None,
        progress: bool,
    ) -> dict[int, BaseInferableQuantizer]:
        """Puts weights on their grids, in the layers themselves, trains them where the recipe says so, and corrects biases.

        Args:
            calibration: with the moments that were asked for.
            activations: the quantizers of activations by ``id(group)``.
            data: for algorithms that need samples; None elsewhere.
            jobs: see `qi.quantize_model`.
            resume: likewise.
            progress: likewise.

        Returns:
            the quantizers of activations, some of them trained.
        """
        if not self.sites:
            return activations
        means, samples = self._means(data)
        self._tell_too_few(calibration.inputs)
        for site in self.sites:
            if site.key in self._tables:
                calibration.inputs[site.key] = table_moments(site, self._tables[site.key])
        origin = self.ready.graph.name
        rounded = round_weights(
            self.sites, calibration.inputs, jobs=jobs, resume=resume, origin=origin, progress=progress
        )
        self._tell(rounded)
        found = {key: self._corrected(before, calibration.inputs.get(key)) for key, before in rounded.items()}
        biases = {(id(one.site.op), path): bias for one, path, bias in found.values() if bias is not None}
        kept = [one for one, _, _ in found.values()]
        trained, activations, offsets = self._trained(kept, biases, activations, data, resume, progress)
        for one in [one for one in kept if (id(one.site.op), one.site.weight) not in trained] + [*trained.values()]:
            self._keep(one)
        calls = self.ready.graph.calls_of()  # normalizations among them: their offsets train as well
        for (op, path), values in (biases | offsets).items():
            self._assign(calls[op][0].op, path, values)
        self._note(rounded, trained)
        if means:
            with self._on_grids():
                correct_biases(self.ready, means, activations, samples)
        return activations

    def _means(self, data: Any) -> tuple[dict[int, np.ndarray], list[np.ndarray]]:
        """What the outputs of layers have to be on average, by ``id(op)``, where the recipe has their biases see to that."""
        found: dict[int, Any] = {}
        most = 0
        for site in self.sites:
            options = dict(site.steps("correction")).get(_EMPIRICAL)
            if options is None:
                continue
            if why := why_not(self.ready.graph, site.op):
                self.told.append(f"{site.key!r} is left without {_EMPIRICAL}: its layer {why}")
                self._left.setdefault(site.key, set()).add(_EMPIRICAL)
                continue
            found[id(site.op)] = site.op
            most = max(most, options.get("samples", ALGORITHMS.get(_EMPIRICAL).options["samples"]))
        if not found:
            return {}, []
        samples = samples_of(self.ready.graph, data, most)
        self.settings["bias_correction_samples"] = len(samples[0])
        return output_means(self.ready, list(found.values()), samples), samples

    @contextmanager
    def _on_grids(self) -> Iterator[None]:
        """Has weights that no algorithm rounded lie on their grids for a while, as they will."""
        others = [site for site in weight_sites(self.ready) if (id(site.op), site.weight) not in self.quantizers]
        try:
            for site in others:
                self._assign(site.op, site.weight, site.quantizer(site.array))
            yield
        finally:
            for site in others:
                self._assign(site.op, site.weight, site.array)

    def _trained(
        self,
        rounded: Iterable[Rounded],
        biases: Mapping[Weight, np.ndarray],
        activations: dict[int, BaseInferableQuantizer],
        data: Any,
        resume: str | os.PathLike[str] | None,
        progress: bool,
    ) -> tuple[dict[Weight, Trained], dict[int, BaseInferableQuantizer], dict[Weight, np.ndarray]]:
        """The weights whose recipe names an algorithm of stage "training", the activations' quantizers, and biases, after it."""
        asking = {(id(site.op), site.weight): site for site in self.sites if site.steps("training")}
        if not asking:
            return {}, activations, {}
        start = {key: site.quantizer for key, site in asking.items()}
        # All else is as it will be: the copy that learns makes up for that as well.
        begin = {
            (id(site.op), site.weight): np.asarray(site.quantizer(site.array))
            for site in weight_sites(self.ready)
            if (id(site.op), site.weight) not in asking
        }
        for one in rounded:
            key = id(one.site.op), one.site.weight
            begin[key] = one.values
            if key in asking:
                start[key] = one.quantizer
        name, options = _one_way(list(asking.values()))
        settings = ALGORITHMS.get(name).function(**options)
        kept = None if resume is None else f"{os.fspath(resume)}.training"
        found = reconstruct(
            self.ready, start, activations, data, resume=kept, begin=begin | dict(biases), progress=progress, **settings
        )
        self.told += [f"{place!r} wasn't trained: {why}" for place, why in found.fixed.items()]
        before, after = (sum(pair[i] for pair in found.losses.values()) for i in (0, 1))
        self.settings |= {"reconstruction_loss_before": before, "reconstruction_loss_after": after}
        trained = {key: Trained(asking[key], *pair) for key, pair in found.weights.items()}
        return trained, activations | found.activations, found.floats

    def _keep(self, one: Rounded | Trained) -> None:
        """Has a layer hold what a weight became."""
        self._assign(one.site.op, one.site.weight, one.values)
        self.quantizers[id(one.site.op), one.site.weight] = one.quantizer
        self.floats[id(one.site.op), one.site.weight] = one.site.array

    def noted(self, rows: list[Row]) -> list[Row]:
        """Rows of the report, with what was done with each weight."""
        return [replace(row, **self._notes[row.path]) if row.path in self._notes else row for row in rows]

    def _note(self, rounded: dict[str, Rounded], trained: Collection[tuple[int, str]]) -> None:
        for site in self.sites:
            one = rounded.get(site.key)
            done = (id(site.op), site.weight) in trained
            left = self._left.get(site.key, set())
            skipped = set() if done else {step.name for step in site.spec.algorithms if step.stage == "training"}
            names = [step.name for step in site.spec.algorithms if step.name not in left | skipped]
            error = one.solved.error / one.solved.nearest if one is not None and one.solved.nearest else np.nan
            self._notes[site.key] = {"algorithms": ", ".join(names)} | (
                {"output_error": float(error)} if np.isfinite(error) else {}
            )

    def _corrected(self, rounded: Rounded, moments: Moments | None) -> tuple[Rounded, str, np.ndarray | None]:
        """A weight after the corrections that the recipe names; path and values of a bias that takes what they shift, or None."""
        site = rounded.site
        if moments is None and not _asks_norms(site):
            return rounded, "", None
        ends = ends_after(self.ready.graph, site.op) if "bias_correction" in dict(site.steps("correction")) else None
        found = corrected(rounded, moments, self._norm_means.get(site.key), ends=ends)
        for name, why in found.left.items():
            self.told.append(f"{site.key!r} is left without {name}: it {why}")
            self._left.setdefault(site.key, set()).add(name)
        if found.shift is None or site.linear is None or site.linear.bias is None:
            return found.rounded, "", None
        before = to_numpy(weights_of(site.op)[site.linear.bias])
        return found.rounded, site.linear.bias, before + found.shift.reshape(before.shape)

    @cached_property
    def _norm_means(self) -> dict[str, np.ndarray]:
        """What layers take on average, as normalizations tell it; nothing where no weight asks for it."""
        if not any(map(_asks_norms, self.sites)):
            return {}
        return norm_means(self.ready, self._links or find_links(self.ready.graph))

    def _assign(self, op: Any, path: str, values: np.ndarray) -> None:
        variable = weights_of(op)[path]
        variable.assign(values.astype(to_numpy(variable).dtype))

    def _tell(self, rounded: dict[str, Rounded]) -> None:
        known = [one.solved for one in rounded.values() if np.isfinite(one.solved.nearest)]
        if known:
            nearest, error = sum(s.nearest for s in known), sum(s.error for s in known)
            if nearest:
                self.settings["output_error_of_nearest"] = round(error / nearest, 4)


def _asks_norms(site: WeightSite) -> bool:
    return any(name == _FROM_NORMS for name, _ in site.steps("correction"))


def _one_way(sites: Sequence[WeightSite]) -> tuple[str, Mapping[str, Any]]:
    """The algorithm of stage "training" that weights name, with its options: they train together.

    Raises:
        ConfigError: they name several, or different options.
    """
    ways = [site.steps("training") for site in sites]
    different = next((way for way in ways if way != ways[0]), None)
    if different is not None or len(ways[0]) > 1:
        raise ConfigError(
            "expected one algorithm that trains, with the same options for all weights that name one; received "
            f"{ways[0]} for {sites[0].key!r}" + (f" and {different} elsewhere" if different is not None else "")
        )
    return ways[0][0]
