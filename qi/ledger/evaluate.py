"""A user's own metric, of the float model beside the quantized one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np

from qi.errors import ConfigError, InputError
from qi.ledger.batches import Batches, collect, pairs, sample_count
from qi.ledger.evaluation import Evaluation
from qi.ledger.metrics import METRICS, Metric, top_1_agreement

__all__ = ["Predict", "evaluate_models"]

Predict: TypeAlias = Callable[[Any, Any], Any]
"""A function (model, x) -> predictions."""


def evaluate_models(
    float_model: Any,
    quantized_model: Any,
    metric: str | Callable[..., float],
    data: Any = None,
    y: Any = None,
    *,
    predict: Predict | None = None,
    batches: Batches | None = None,
    of: Literal["predictions", "model"] = "predictions",
    name: str | None = None,
) -> Evaluation:
    """Measure a float model and a quantized one with one metric.

    Args:
        float_model: The model to compare with.
        quantized_model: The model to judge.
        metric: "accuracy", "top5", "mse" or "mae"; or a function ``(y_true, y_pred) -> float``; or, with
            ``of="model"``, a function ``(model) -> float``. Predictions with several outputs reach a function
            as the model gives them (a list or dict of arrays).
        data: The inputs of all samples, with `y`; or a pair ``(x, y)``; or an iterable of ``(x, y)`` batches.
            Sample weights (a third item) don't enter the metric.
        y: The true values: an array with one entry per sample, or a list or dict of them.
        predict: A function ``(model, x) -> predictions``; by default ``model(x)``.
        batches: A function that turns data of another kind into batches.
        of: What the metric takes: "predictions" or "model".
        name: What to call the metric; by default its own name.

    Raises:
        ConfigError: If the metric is unknown or illegal.
        InputError: If there are no data, if x and y differ in length, or if the metric returns no number.

    Example:
        >>> x, y = np.array([[1.0], [2.0]]), np.array([[2.0], [4.0]])
        >>> evaluate_models(lambda x: 2 * x, lambda x: 2 * x + 1, "mae", x, y).difference
        1.0
    """
    if of not in ("predictions", "model"):
        raise ConfigError(f"expected of to be 'predictions' or 'model'; received of={of!r}")
    function = METRICS.get(metric) if isinstance(metric, str) else metric
    if not callable(function):
        raise ConfigError(f"expected metric to be a name ({', '.join(METRICS)}) or a function; received {metric!r}")
    own_name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
    title = name or str(own_name)
    if of == "model":
        has_data = data is not None or y is not None
        return _of_models(title, function, metric, (float_model, quantized_model), has_data)
    call = predict or (lambda model, x: model(x))
    truth, first, second = collect(pairs(data, y, batches), lambda x: (call(float_model, x), call(quantized_model, x)))
    return Evaluation(
        metric=title,
        float_value=_number(title, _fresh(function)(truth, first)),
        quantized_value=_number(title, _fresh(function)(truth, second)),
        samples=sample_count(truth, "y"),
        agreement=top_1_agreement(first, second),
    )


def _fresh(function: Any) -> Any:
    """A metric without what it saw before: Keras' metric objects accumulate."""
    if hasattr(function, "reset_state"):
        function.reset_state()
    return function


def _of_models(
    title: str,
    function: Metric | Callable[..., float],
    metric: object,
    models: tuple[Any, Any],
    has_data: bool,
) -> Evaluation:
    if isinstance(metric, str) or has_data:
        raise ConfigError(
            "expected a function (model) -> float and no data with of='model'; "
            f"received metric={metric!r}{' and data' if has_data else ''}; do: of='predictions'"
        )
    one_argument: Callable[[Any], float] = function  # type: ignore[assignment]  # what of='model' promises
    values = [_number(title, one_argument(model)) for model in models]
    return Evaluation(metric=title, float_value=values[0], quantized_value=values[1])


def _number(title: str, value: Any) -> float:
    """The one number that a metric returned, whatever framework's scalar it is."""
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        array = np.empty(0)
    if array.size != 1 or array.dtype.kind in "OSUMmc":
        raise InputError(f"expected the metric {title} to return one number; received {value!r}")
    return float(array.reshape(()))
