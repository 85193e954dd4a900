"""The report of a quantization: what became of every weight and activation, and what it comes to."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from qi.errors import ConfigError, FileFormatError, InputError
from qi.files import write_atomically
from qi.ledger.batches import Batches
from qi.ledger.evaluate import Predict, evaluate_models
from qi.ledger.evaluation import Evaluation
from qi.ledger.formats import find_renderer
from qi.ledger.io import fields_of, read_document, to_document
from qi.ledger.plain import plain_text
from qi.ledger.rows import KINDS, Row
from qi.ledger.totals import Totals

__all__ = ["QuantizationReport"]

_ALIKE = 3  # so many reasons may differ in the names they quote alone; more are told as one
_QUOTED = re.compile(r"'[^']*'")


class _Models(NamedTuple):
    float_model: Any
    quantized_model: Any
    predict: Predict | None
    batches: Batches | None


@dataclass(kw_only=True, repr=False)
class QuantizationReport:
    """What became of every weight and activation of a model.

    ``print(report)`` shows a table, ``report.save("report.html")`` a page for people, and
    ``report.evaluate(metric, x, y)`` the user's own metric, float beside quantized.

    Args:
        recipe: The recipe's name.
        rows: A `Row` for every weight and activation, in the model's order.
        model: The model's name.
        description: The recipe in words.
        unused_rules: A line for every rule of the recipe that decided nothing.
        warnings: What deserves a look.
        settings: How it was done (samples seen, ...): text and numbers by name.
        evaluations: What metrics said so far.
        float_file_bytes: Size of the float model's file on disk, once there is one.
        quantized_file_bytes: Size of the quantized model's file.

    Raises:
        ConfigError: If an argument is of the wrong kind.

    Example:
        >>> report = QuantizationReport(recipe="w8", rows=[
        ...     Row(kind="weight", layer="fc", layer_type="Dense", name="kernel", status="quantized",
        ...         bits=8, method="symmetric", size_before=4000, size_after=1040, sqnr_db=42.0),
        ...     Row(kind="weight", layer="fc", layer_type="Dense", name="bias", status="float",
        ...         reason="a bias", size_before=40)])
        >>> report.totals.size_ratio, [row.path for row in report.unquantized]
        (0.26732673267326734, ['fc/bias'])
    """

    recipe: str
    rows: tuple[Row, ...]
    model: str = ""
    description: str = ""
    unused_rules: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)
    settings: dict[str, str | float | bool | None] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    float_file_bytes: int | None = None
    quantized_file_bytes: int | None = None
    _models: _Models | None = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        self.rows = _every("rows", self.rows, Row)
        self.unused_rules = _every("unused_rules", self.unused_rules, str)
        self.warnings = list(_every("warnings", self.warnings, str))
        self.evaluations = list(_every("evaluations", self.evaluations, Evaluation))
        for name in ("recipe", "model", "description"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"expected {name} to be text; received {name}={getattr(self, name)!r}")
        for name in ("float_file_bytes", "quantized_file_bytes"):
            size = getattr(self, name)
            if size is not None and (not isinstance(size, int) or size < 0):
                raise ConfigError(f"expected {name} to be a number of bytes; received {name}={size!r}")
        self.settings = dict(self.settings)
        _every("settings", self.settings, str)
        _every("settings", self.settings.values(), (str, int, float, bool, type(None)))

    @property
    def totals(self) -> Totals:
        """The sums over the rows."""
        return Totals.of(self.rows)

    @property
    def weights(self) -> tuple[Row, ...]:
        """The rows of weights."""
        return tuple(row for row in self.rows if row.kind == "weight")

    @property
    def activations(self) -> tuple[Row, ...]:
        """The rows of activations."""
        return tuple(row for row in self.rows if row.kind == "activation")

    @property
    def unquantized(self) -> tuple[Row, ...]:
        """The rows of what stayed in float; each says why."""
        return tuple(row for row in self.rows if not row.quantized)

    @property
    def file_ratio(self) -> float | None:
        """Size of the quantized model's file over the float model's; None until both are known."""
        if not self.float_file_bytes or self.quantized_file_bytes is None:
            return None
        return self.quantized_file_bytes / self.float_file_bytes

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """The warnings, with one for every unused rule."""
        return (*self.warnings, *(f"unused rule {line}" for line in self.unused_rules))

    def unquantized_by_reason(self) -> dict[str, tuple[Row, ...]]:
        """Return what stayed in float, grouped by the reason; the groups with most bytes first.

        Reasons that differ in the names they quote alone are one, with dots for the names, where there are more than three.
        """
        kinds: dict[str, set[str]] = {}
        for row in self.unquantized:
            kinds.setdefault(_QUOTED.sub("'...'", row.reason), set()).add(row.reason)
        groups: dict[str, list[Row]] = {}
        for row in self.unquantized:
            kind = _QUOTED.sub("'...'", row.reason)
            groups.setdefault(kind if len(kinds[kind]) > _ALIKE else row.reason, []).append(row)
        size = {reason: sum(row.size_before or 0 for row in rows) for reason, rows in groups.items()}
        return {reason: tuple(groups[reason]) for reason in sorted(groups, key=lambda reason: -size[reason])}

    def worst(self, n: int = 10, kind: str | None = None) -> tuple[Row, ...]:
        """Return the quantized rows with the lowest signal-to-noise ratio, the lowest first.

        Args:
            n: How many at most.
            kind: "weight" or "activation"; None for both.

        Raises:
            ConfigError: If `kind` is unknown.
        """
        if kind is not None and kind not in KINDS:
            raise ConfigError(f"expected kind to be one of {', '.join(KINDS)} or None; received kind={kind!r}")
        measured = [
            (row.sqnr_db, index)
            for index, row in enumerate(self.rows)
            if kind in (None, row.kind) and row.quantized and row.sqnr_db is not None and not math.isnan(row.sqnr_db)
        ]
        return tuple(self.rows[index] for _, index in sorted(measured)[:n])

    def find(self, pattern: str) -> tuple[Row, ...]:
        """Return the rows whose layer ("a/conv1") or path ("a/conv1/kernel") fits a glob pattern."""
        return tuple(row for row in self.rows if fnmatchcase(row.layer, pattern) or fnmatchcase(row.path, pattern))

    def attach(
        self,
        *,
        float_model: Any,
        quantized_model: Any,
        predict: Predict | None = None,
        batches: Batches | None = None,
    ) -> QuantizationReport:
        """Hold on to the two models, so that `evaluate` can use them; they are never saved.

        Args:
            float_model: The model before.
            quantized_model: The model after.
            predict: A function ``(model, x) -> predictions``; by default ``model(x)``.
            batches: A function that turns data that are no arrays into ``(x, y)`` batches.

        Returns:
            The report itself.
        """
        self._models = _Models(float_model, quantized_model, predict, batches)
        return self

    def evaluate(
        self,
        metric: str | Callable[..., float],
        data: Any = None,
        y: Any = None,
        *,
        of: Literal["predictions", "model"] = "predictions",
        name: str | None = None,
    ) -> Evaluation:
        """Measure the float and the quantized model with one metric, and keep the result in `evaluations`.

        Args:
            metric: "accuracy", "top5", "mse" or "mae"; or a function ``(y_true, y_pred) -> float``; or, with
                ``of="model"``, a function ``(model) -> float``.
            data: The inputs, with `y`; or a pair ``(x, y)``; or a data set of ``(x, y)`` batches.
            y: The true values.
            of: What the metric takes: "predictions" or "model".
            name: What to call the metric; by default its own name.

        Raises:
            ConfigError: If the metric is unknown or illegal.
            InputError: If no models are attached (a report read from a file has none), if there are no data,
                if lengths differ, or if the metric returns no number.
        """
        if self._models is None:
            raise InputError(
                "expected a report with its models; received one without (as read from a file); "
                "do: report.attach(float_model=..., quantized_model=...)"
            )
        models = self._models
        result = evaluate_models(
            models.float_model,
            models.quantized_model,
            metric,
            data,
            y,
            predict=models.predict,
            batches=models.batches,
            of=of,
            name=name,
        )
        if result not in self.evaluations:  # a notebook cell run twice
            self.evaluations.append(result)
        return result

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report to a file; a failure leaves an old file as it was.

        Args:
            path: Its suffix says the format: ".json" (which `load` reads), ".html", ".md", ".txt",
                ".png".

        Returns:
            The path written to.

        Raises:
            ConfigError: If the format is unknown.
            MissingDependencyError: If the format needs a package that isn't installed.
            OSError: If the file can't be written.
        """
        return write_atomically(path, find_renderer(Path(path).suffix)(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dict for strict JSON: non-finite numbers are text in it."""
        return to_document(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Build the report that `to_dict` described; it has no models attached.

        Raises:
            FileFormatError: If the document is of another type or version, or a part of it can't be read.
        """
        try:
            return cls(**fields_of(document))
        except ConfigError as error:
            raise FileFormatError(f"expected a legal report; received another: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a report that was saved as JSON; it has no models attached.

        Raises:
            FileFormatError: If the file is too large, no JSON or no report; the message names it.
            OSError: If it can't be opened.
        """
        try:
            return cls.from_dict(read_document(path))
        except FileFormatError as error:
            raise FileFormatError(f"{os.fspath(path)}: {error}") from error

    def __str__(self) -> str:
        return plain_text(self)

    def __repr__(self) -> str:
        totals = self.totals
        return (
            f"QuantizationReport(recipe={self.recipe!r}, model={self.model!r}, "
            f"weights={totals.weights_quantized}/{totals.weights}, "
            f"activations={totals.activations_quantized}/{totals.activations})"
        )


def _every(name: str, values: Any, kind: Any) -> tuple[Any, ...]:
    items = None if isinstance(values, str) or not isinstance(values, Iterable) else tuple(values)
    if items is None or not all(isinstance(item, kind) for item in items):
        wanted = kind.__name__ if isinstance(kind, type) else "text, a number or None"
        raise ConfigError(f"expected {name} to hold {wanted} objects; received {name}={values!r}")
    return items
