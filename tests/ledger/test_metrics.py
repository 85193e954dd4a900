from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from qi.errors import InputError
from qi.ledger.metrics import METRICS, accuracy, mae, mse, top5, top_1_agreement

SCORES = np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.4, 0.5, 0.1]])


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, 2, 0],
        np.array([[1], [0], [2], [0]]),
        np.eye(3)[[1, 0, 2, 0]],
    ],
    ids=["numbers", "column", "one-hot"],
)
def test_accuracy_takes_labels_in_three_forms(labels):
    assert accuracy(labels, SCORES) == 0.75


def test_accuracy_of_two_classes_with_one_score():
    assert accuracy([1, 0, 1], [[0.9], [0.2], [0.4]]) == pytest.approx(2 / 3)
    assert accuracy([[1], [0], [1]], [0.9, 0.2, 0.6]) == 1.0


def test_accuracy_of_images_counts_pixels():
    scores = np.zeros((2, 2, 2, 3))
    scores[..., 1] = 1
    labels = np.ones((2, 2, 2), int)
    labels[0, 0, 0] = 2
    assert accuracy(labels, scores) == 7 / 8


def test_half_precision_predictions():
    assert accuracy([1, 0, 2, 0], SCORES.astype(ml_dtypes.bfloat16)) == 0.75
    assert mse(np.ones(2), np.array([1, 3], ml_dtypes.bfloat16)) == 2.0


def test_top5():
    scores = np.arange(7.0)[None].repeat(3, axis=0)
    assert top5([6, 2, 1], scores) == pytest.approx(2 / 3)
    assert top5(np.eye(7)[[6, 2, 0]], scores) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="at least five classes"):
        top5([1, 0, 2, 0], SCORES)


def test_errors_are_computed_in_double_precision_and_never_broadcast():
    assert mse(np.zeros(2, np.uint8), np.array([3, 4], np.int8)) == 12.5
    assert mae(np.array([250], np.uint8), np.array([255], np.uint8)) == 5.0
    assert mse([0.0, 2.0], [[0.0], [2.0]]) == 0.0
    assert mae([[1.0], [2.0]], [2.0, 3.0]) == 1.0
    with pytest.raises(InputError, match=r"y_true of shape \(3,\) and predictions of shape \(2, 1\)"):
        mse([1.0, 2.0, 3.0], [[1.0], [2.0]])


@pytest.mark.parametrize("name", METRICS.names())
@pytest.mark.parametrize(
    "prediction",
    [[np.ones((4, 6)), np.ones((4, 7))], {"a": np.ones((4, 6))}, np.array([["a"] * 6] * 4), np.array([None] * 4)],
    ids=["list", "dict", "text", "objects"],
)
def test_what_is_no_array_of_numbers_is_refused(name, prediction):
    with pytest.raises(InputError, match="do: pass a function"):
        METRICS.get(name)([0, 1, 2, 3], prediction)


@pytest.mark.parametrize("function", [accuracy, top5, mse])
def test_shapes_that_do_not_go_together_are_refused(function):
    with pytest.raises(InputError, match="do: pass a function"):
        function(np.zeros((4, 2, 2)), np.ones((4, 6)))


def test_agreement_needs_scores_of_several_classes():
    assert top_1_agreement(SCORES, SCORES[:, ::-1]) == 0.5
    assert top_1_agreement(SCORES, SCORES * 2) == 1.0
    assert top_1_agreement(SCORES[:, :1], SCORES[:, :1]) is None
    assert top_1_agreement(SCORES[0], SCORES[0]) is None
    assert top_1_agreement({"a": SCORES}, {"a": SCORES}) is None
    assert top_1_agreement([SCORES, SCORES[:, :2]], [SCORES, SCORES[:, :2]]) is None
    assert top_1_agreement(SCORES, SCORES[:, :2]) is None


def test_nan_predictions_give_nan_errors():
    assert math.isnan(mse([1.0], [math.nan]))
