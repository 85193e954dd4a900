"""The metrics that reports know by name: functions of the true and the predicted values (numpy)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qi.errors import InputError
from qi.registry import Registry
from qi.typing import Array

__all__ = ["METRICS", "Metric", "accuracy", "mae", "mse", "top5", "top_1_agreement"]

Metric: TypeAlias = Callable[[Any, Any], float]
"""A function of the true values and a model's predictions that returns one number."""

METRICS: Registry[Metric] = Registry("metric")
"""The metrics known by name."""

_FIVE = 5


@METRICS.register("accuracy")
def accuracy(y_true: Array, y_pred: Array) -> float:
    """Share of predictions whose class is the true one.

    Args:
        y_true: Class numbers of shape ``[...]`` or ``[..., 1]``, or one-hot rows of the shape of `y_pred`.
        y_pred: Scores (probabilities or logits) of shape ``[..., classes]``. With a single column, or of the
            shape of `y_true`, they are probabilities of the second of two classes: above 0.5 counts as 1.

    Returns:
        A number in [0, 1].

    Raises:
        InputError: If the shapes don't go together.

    Example:
        >>> accuracy([2, 0], [[0.1, 0.2, 0.7], [0.1, 0.8, 0.1]])
        0.5
    """
    truth, scores = _array("accuracy", y_true), _array("accuracy", y_pred)
    if scores.ndim < 2 or scores.shape[-1] == 1:
        truth, scores = _same_shape("accuracy", truth, scores)
        return float(np.mean((scores > 0.5) == (truth > 0.5)))
    return float(np.mean(np.argmax(scores, axis=-1) == _classes("accuracy", truth, scores)))


@METRICS.register("top5")
def top5(y_true: Array, y_pred: Array) -> float:
    """Share of predictions with the true class among the five highest scores.

    Args:
        y_true: Class numbers of shape ``[...]`` or ``[..., 1]``, or one-hot rows of the shape of `y_pred`.
        y_pred: Scores of shape ``[..., classes]``, with at least five classes.

    Returns:
        A number in [0, 1].

    Raises:
        InputError: If the shapes don't go together, or there are fewer than five classes.

    Example:
        >>> top5([0, 5], [[6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1]])
        0.5
    """
    truth, scores = _array("top5", y_true), _array("top5", y_pred)
    if scores.ndim < 2 or scores.shape[-1] < _FIVE:
        raise InputError(f"expected predictions of at least five classes for top5; received shape {scores.shape}")
    classes = _classes("top5", truth, scores)
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :_FIVE]
    return float(np.mean((best == classes[..., None]).any(axis=-1)))


@METRICS.register("mse")
def mse(y_true: Array, y_pred: Array) -> float:
    """Mean squared error, of two arrays of one shape (a last axis of size 1 may be missing).

    Raises:
        InputError: If the shapes differ.

    Example:
        >>> mse([1.0, 2.0], [1.0, 4.0])
        2.0
    """
    truth, prediction = _same_shape("mse", _array("mse", y_true), _array("mse", y_pred))
    return float(np.mean(np.square(prediction.astype(np.float64) - truth.astype(np.float64))))


@METRICS.register("mae")
def mae(y_true: Array, y_pred: Array) -> float:
    """Mean absolute error, of two arrays of one shape (a last axis of size 1 may be missing).

    Raises:
        InputError: If the shapes differ.

    Example:
        >>> mae([1.0, 2.0], [1.0, 4.0])
        1.0
    """
    truth, prediction = _same_shape("mae", _array("mae", y_true), _array("mae", y_pred))
    return float(np.mean(np.abs(prediction.astype(np.float64) - truth.astype(np.float64))))


def top_1_agreement(a: Array, b: Array) -> float | None:
    """Share of samples for which two models' scores, of shape ``[samples, classes]``, name the same class.

    Returns:
        A number in [0, 1], or None where the predictions aren't such scores.

    Example:
        >>> top_1_agreement([[0.9, 0.1], [0.4, 0.6]], [[0.8, 0.2], [0.7, 0.3]])
        0.5
    """
    if isinstance(a, dict) or isinstance(b, dict):
        return None
    try:
        first, second = np.asarray(a), np.asarray(b)
    except ValueError:  # several outputs of different shapes
        return None
    if first.ndim != 2 or first.shape != second.shape or first.shape[0] == 0 or first.shape[1] < 2:
        return None
    return float(np.mean(np.argmax(first, axis=1) == np.argmax(second, axis=1)))


def _array(metric: str, values: Array) -> NDArray[Any]:
    """One array of numbers: the metrics known by name take nothing else."""
    if not isinstance(values, dict):
        try:
            array: NDArray[Any] = np.asarray(values)
        except ValueError:  # several outputs of different shapes
            pass
        else:
            if array.dtype.kind not in "OSUTMmc":
                return array
    raise InputError(
        f"expected one array of numbers for {metric}; received {type(values).__name__}; "
        "do: pass a function (y_true, y_pred) -> float as the metric"
    )


def _classes(metric: str, truth: NDArray[Any], scores: NDArray[Any]) -> NDArray[Any]:
    """The true class numbers, of the shape of `scores` without its last axis."""
    if truth.shape == scores.shape[:-1]:
        return truth
    if truth.shape == (*scores.shape[:-1], 1):
        return truth[..., 0]
    if truth.shape == scores.shape:
        classes: NDArray[Any] = np.argmax(truth, axis=-1)
        return classes
    raise _mismatch(metric, truth, scores)


def _same_shape(metric: str, truth: NDArray[Any], prediction: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both arrays with one shape, never broadcast: [n] and [n, 1] would silently give [n, n]."""
    if truth.shape != prediction.shape:
        if truth.shape == (*prediction.shape, 1):
            truth = truth[..., 0]
        elif prediction.shape == (*truth.shape, 1):
            prediction = prediction[..., 0]
        else:
            raise _mismatch(metric, truth, prediction)
    return truth, prediction


def _mismatch(metric: str, truth: NDArray[Any], prediction: NDArray[Any]) -> InputError:
    return InputError(
        f"expected shapes that go together for {metric}; received y_true of shape {truth.shape} "
        f"and predictions of shape {prediction.shape}; "
        "do: pass a function (y_true, y_pred) -> float as the metric"
    )
