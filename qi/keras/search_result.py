"""What a search for bit widths found: a recipe, the front it lies on, as text, picture and files."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qi.errors import InputError
from qi.files import write_atomically
from qi.ledger.numbers import format_number
from qi.ledger.table import table
from qi.optional import require
from qi.recipes import Recipe, save

__all__ = ["SearchPoint", "SearchResult", "WeightChoice"]

_INK, _MUTED, _LINE, _FRONT, _CHOSEN, _UNIFORM = "#22282f", "#6b7580", "#e6e9ed", "#3d7ab5", "#c2413b", "#d99a2b"
_MAX_NAMED = 60
_LONGEST = 34


@dataclass(frozen=True, eq=False)
class SearchPoint:
    """One choice of bits for all weights.

    Attributes:
        costs: by the name of a budget, of the whole model.
        loss: the sum of the losses of its weights.
        bound: no choice with the same budgets has a smaller loss; None where that wasn't asked, as of uniform bits.
        candidates: the candidate of each weight, by the weight's path.
        recipe: for `qi.quantize_model`.
    """

    costs: Mapping[str, float]
    loss: float
    bound: float | None
    candidates: Mapping[str, str]
    recipe: Recipe

    @property
    def gap(self) -> float | None:
        """How far the loss may be above the least, as a share of it: 0 where the choice is proven to be the best."""
        if self.bound is None:
            return None
        return max(self.loss - self.bound, 0.0) / abs(self.loss) if self.loss else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as a dict that JSON can hold."""
        return {
            "costs": dict(self.costs),
            "loss": self.loss,
            "bound": self.bound,
            "candidates": dict(self.candidates),
            "recipe": self.recipe.to_config(),
        }


@dataclass(frozen=True, eq=False)
class WeightChoice:
    """What was found of one weight.

    Attributes:
        path: of the weight, as in the report of `qi.quantize_model`.
        size: how many numbers it holds.
        macs: multiply-accumulates with it for one sample.
        candidate: the name of the chosen one.
        bits: of that.
        nbytes: with that, scales included.
        losses: of each candidate by name.
    """

    path: str
    size: int
    macs: int
    candidate: str
    bits: int
    nbytes: int
    losses: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The best choice within the budgets, and the front of those with other values of the first budget.

    Attributes:
        model: its name.
        metric: what the losses are.
        budgets: the most that each cost may be.
        chosen: the choice.
        front: points of rising cost (of the first budget) and falling loss.
        uniform: every searched weight with the same candidate, by the candidate's name: for comparison.
        weights: the searched weights in the order of the graph.
        seconds: how long the search took.
    """

    model: str
    metric: str
    budgets: Mapping[str, float]
    chosen: SearchPoint
    front: tuple[SearchPoint, ...]
    uniform: Mapping[str, SearchPoint]
    weights: tuple[WeightChoice, ...]
    seconds: float

    @property
    def recipe(self) -> Recipe:
        """The chosen recipe, for `qi.quantize_model` and `qi.recipes.save`."""
        return self.chosen.recipe

    def table(self) -> str:
        """The choice for every weight, then the front beside uniform bits, as plain text."""
        rows = [
            (w.path, f"{w.size:,}", w.candidate, f"{w.nbytes:,}", format_number(w.losses[w.candidate], 3))
            for w in self.weights
        ]
        costs = tuple(self.chosen.costs)
        points = [
            *((f"all {name}", point) for name, point in self.uniform.items()),
            *(("front", p) for p in self.front),
        ]
        points.append(("chosen", self.chosen))
        points.sort(key=lambda pair: pair[1].costs[next(iter(self.budgets))])
        lines = [(name, *(_cost(p.costs[c]) for c in costs), format_number(p.loss, 4), _gap(p)) for name, p in points]
        return "\n".join(
            [
                f"{self.model}: {', '.join(f'{name} <= {_cost(value)}' for name, value in self.budgets.items())}; losses: "
                f"{self.metric}; {self.seconds:.1f} s",
                "",
                table(("weight", "numbers", "as", "bytes", "loss"), rows),
                "",
                table(("point", *costs, "loss", "gap"), lines),
            ]
        )

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Everything as a dict that JSON can hold."""
        return {
            "_type": "qi.SearchResult",
            "_version": 1,
            "_data": {
                "model": self.model,
                "metric": self.metric,
                "budgets": dict(self.budgets),
                "seconds": self.seconds,
                "chosen": self.chosen.to_dict(),
                "front": [point.to_dict() for point in self.front],
                "uniform": {name: point.to_dict() for name, point in self.uniform.items()},
                "weights": [{**vars(weight), "losses": dict(weight.losses)} for weight in self.weights],
            },
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes everything down.

        Args:
            path: a name that ends in ".json" gets all numbers and recipes; any other is a folder, made if need be, that gets
                that as "search.json", the chosen recipe as "recipe.json", and those of the front as "front_01.json"... in the
                order of their cost.

        Returns:
            the path.

        Raises:
            OSError: it can't be written.
        """
        target = Path(path)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if target.suffix.lower() == ".json":
            return write_atomically(target, text)
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / "search.json", text)
        save(self.recipe, target / "recipe.json")
        for place, point in enumerate(self.front, start=1):
            save(point.recipe, target / f"front_{place:02}.json")
        return target

    def plot(self, path: str | os.PathLike[str], dpi: int = 160) -> Path:
        """Draws the front beside uniform bits, and the bits of every weight.

        Args:
            path: a name that ends in ".png" or ".svg".
            dpi: dots an inch.

        Returns:
            the path.

        Raises:
            InputError: a name with another ending.
            MissingDependencyError: matplotlib isn't installed.
            OSError: it can't be written.
        """
        kind = Path(path).suffix.lower().removeprefix(".")
        if kind not in ("png", "svg"):
            raise InputError(f"expected a file name ending in .png or .svg; received {os.fspath(path)!r}")
        figure_module = require("matplotlib.figure", extra="report", feature="the plot of a search")
        named = len(self.weights) <= _MAX_NAMED
        height = max(3.6, 1.1 + 0.19 * len(self.weights)) if named else 4.5
        figure = figure_module.Figure(figsize=(11.0, height), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.25, 1.0])
        self._draw_front(left)
        self._draw_bits(right, named)
        target = io.BytesIO()
        metadata = {"Software": None} if kind == "png" else {"Date": None}
        figure.savefig(target, format=kind, dpi=dpi, metadata=metadata)
        return write_atomically(path, target.getvalue())

    def _draw_front(self, ax: Any) -> None:
        name = next(iter(self.budgets))
        _tidy(ax, f"loss against {name}", "each point proven to be the best for its budget, up to its gap")
        costs, losses = ([p.costs[name] for p in self.front], [p.loss for p in self.front])
        ax.plot(costs, losses, "-o", color=_FRONT, markersize=4, linewidth=1.3, label="front")
        ax.plot(
            costs,
            [p.loss if p.bound is None else p.bound for p in self.front],
            ":",
            color=_MUTED,
            linewidth=1.0,
            label="proven bound",
            zorder=1,
        )
        same = list(self.uniform.values())
        ax.scatter(
            [p.costs[name] for p in same], [p.loss for p in same], marker="s", s=26, color=_UNIFORM, label="uniform"
        )
        for label, point in self.uniform.items():
            ax.annotate(
                label,
                (point.costs[name], point.loss),
                xytext=(6, 4),
                textcoords="offset points",
                fontsize=8,
                color=_INK,
            )
        ax.scatter(
            [self.chosen.costs[name]], [self.chosen.loss], s=80, marker="*", color=_CHOSEN, label="chosen", zorder=4
        )
        ax.axvline(self.budgets[name], color=_CHOSEN, linewidth=0.8, linestyle="--", zorder=0)
        if min([*losses, *(p.loss for p in same), self.chosen.loss]) > 0:
            ax.set_yscale("log")
        ax.set_xlabel(name, fontsize=8.5, color=_MUTED)
        ax.set_ylabel(f"predicted loss ({self.metric})", fontsize=8.5, color=_MUTED)
        ax.legend(frameon=False, fontsize=8, labelcolor=_INK)

    def _draw_bits(self, ax: Any, named: bool) -> None:
        _tidy(ax, "bits of every weight", "in the order of the graph, the first at the top")
        ax.grid(visible=False, axis="y")
        places = range(len(self.weights))
        bits = [weight.bits for weight in self.weights]
        ax.barh(places, bits, height=0.7 if named else 1.0, color=_FRONT)
        ax.set_ylim(len(self.weights) - 0.4, -0.6)
        ax.set_xticks(sorted(set(bits)))
        names = [weight.path for weight in self.weights] if named else []
        short = [name if len(name) <= _LONGEST else f"...{name[-_LONGEST:]}" for name in names]
        ax.set_yticks(list(places)[: len(short)], short, fontsize=7.5, color=_INK)
        if named:
            for place, weight in zip(places, self.weights, strict=True):
                ax.text(weight.bits - 0.1, place, weight.candidate, ha="right", va="center", fontsize=7, color="white")


def _tidy(ax: Any, title: str, note: str) -> None:
    """Gives axes a title and a note, and takes away what only makes noise."""
    ax.set_title(title, loc="left", fontsize=9.5, color=_INK, fontweight="bold", pad=18)
    ax.annotate(
        note, (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points", fontsize=8, color=_MUTED
    )
    ax.set_axisbelow(True)
    ax.grid(axis="both", color=_LINE, linewidth=0.8)
    ax.tick_params(which="both", length=0, labelsize=8.5, labelcolor=_MUTED)
    for side in ("top", "right", "left", "bottom"):
        ax.spines[side].set_visible(False)


def _cost(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3f}"


def _gap(point: SearchPoint) -> str:
    return "" if point.gap is None else f"{100 * point.gap:.2g} %"
