"""What became of a model: rows, totals, the user's own metric. Data, no rendering."""

from __future__ import annotations

from qi.ledger.evaluate import evaluate_models
from qi.ledger.evaluation import Evaluation
from qi.ledger.formats import RENDERERS
from qi.ledger.metrics import METRICS
from qi.ledger.report import QuantizationReport
from qi.ledger.rows import Row
from qi.ledger.totals import Totals

__all__ = ["METRICS", "RENDERERS", "Evaluation", "QuantizationReport", "Row", "Totals", "evaluate_models"]
