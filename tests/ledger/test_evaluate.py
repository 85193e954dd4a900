from __future__ import annotations

import numpy as np
import pytest

from qi.errors import ConfigError, InputError
from qi.ledger import evaluate_models

X = np.eye(4)
Y = np.arange(4)


def exact(x):
    return np.asarray(x)


def swapped(x):
    return np.asarray(x)[:, [1, 0, 2, 3]]


def test_a_metric_by_name():
    result = evaluate_models(exact, swapped, "accuracy", X, Y)
    assert (result.metric, result.float_value, result.quantized_value, result.samples) == ("accuracy", 1.0, 0.5, 4)
    assert (result.difference, result.agreement) == (-0.5, 0.5)


def test_batches_count_like_one_array():
    whole = evaluate_models(exact, swapped, "mse", X, X)
    parts = evaluate_models(exact, swapped, "mse", [(X[:1], X[:1]), (X[1:], X[1:])])
    assert parts == whole


def test_a_function_gets_everything_in_numpy_arrays():
    def share_of_ones(y_true, y_pred):
        assert isinstance(y_true, np.ndarray)
        assert isinstance(y_pred, np.ndarray)
        return np.float32(y_pred.mean())

    result = evaluate_models(exact, swapped, share_of_ones, X.tolist(), Y.tolist())
    assert (result.metric, result.float_value) == ("share_of_ones", 0.25)
    assert type(result.float_value) is float


def test_nested_lists_reach_a_model_as_one_array():
    def model(x):
        return x.reshape(len(x), -1)  # a list has no such method

    for given in (X.tolist(), [[1.0, 0.0], [0.0, 1.0]], [["a"], ["b"]]):
        assert evaluate_models(model, model, lambda y, p: len(p), given, list(range(len(given)))).samples == len(given)
    with pytest.raises(InputError, match=r"x to be an array.*received lists of several lengths"):
        evaluate_models(model, model, "accuracy", [[1.0], [1.0, 2.0]], [0, 1])


def test_batches_are_read_once_for_both_models():
    source = ((X[i : i + 2], Y[i : i + 2]) for i in (0, 2))
    seen = []
    result = evaluate_models(
        lambda x: seen.append(id(x)) or x, lambda x: seen.append(id(x)) or x, "accuracy", source
    )  # fmt: skip
    assert (result.samples, result.agreement) == (4, 1.0)
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert len(seen) == 4


def test_several_outputs_reach_a_function_as_they_are():
    def model(x):
        return {"a": x, "b": [x, 2 * x]}

    result = evaluate_models(model, model, lambda y, p: float(p["b"][1].max()), X, Y, name="top")
    assert (result.metric, result.float_value, result.agreement) == ("top", 2.0, None)


def test_predict_and_batches_are_the_callers():
    seen = []

    def predict(model, x):
        seen.append(model)
        return np.asarray(x) * model

    result = evaluate_models(
        1.0, 3.0, "mae", "data set", predict=predict, batches=lambda data: [(X, X)] if data == "data set" else []
    )  # fmt: skip
    assert seen == [1.0, 3.0]
    assert (result.float_value, result.quantized_value) == (0.0, 0.5)


def test_a_metric_of_the_model():
    result = evaluate_models([1, 2], [1], len, of="model")
    assert (result.metric, result.float_value, result.quantized_value, result.samples) == ("len", 2.0, 1.0, None)
    with pytest.raises(ConfigError, match=r"received metric=.* and data"):
        evaluate_models([1], [1], len, X, Y, of="model")
    with pytest.raises(ConfigError, match="metric='accuracy'"):
        evaluate_models([1], [1], "accuracy", of="model")


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (("acuracy", X, Y), {}, ConfigError, "Did you mean 'accuracy'"),
        ((3, X, Y), {}, ConfigError, "received 3"),
        (("accuracy", X, Y), {"of": "weights"}, ConfigError, "of='weights'"),
        (("accuracy",), {}, InputError, "received None"),
        (("accuracy", X, Y[:3]), {}, InputError, "received 4 and 3"),
        (("accuracy", X[:0], Y[:0]), {}, InputError, "empty data"),
        ((lambda y, p: p, X, Y), {}, InputError, "to return one number"),
        ((lambda y, p: "good", X, Y), {"name": "words"}, InputError, "metric words to return one number"),
        ((lambda y, p: None, X, Y), {}, InputError, "to return one number"),
        ((lambda y, p: [[1], [1, 2]], X, Y), {}, InputError, "to return one number"),
    ],
)
def test_errors(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        evaluate_models(exact, exact, *arguments, **keywords)


def test_a_metric_that_accumulates_starts_anew_for_each_model() -> None:
    class Mean:
        total = count = 0.0

        def reset_state(self) -> None:
            self.total = self.count = 0.0

        def __call__(self, y: np.ndarray, predicted: np.ndarray) -> float:
            self.total, self.count = self.total + float(np.abs(y - predicted).sum()), self.count + len(y)
            return self.total / self.count

    x, y = np.ones(4), np.ones(4)
    found = evaluate_models(lambda x: x, lambda x: x + 1, Mean(), x, y)
    assert (found.float_value, found.quantized_value) == (0.0, 1.0)
