"""Models whose call can't be followed: quantized, calibrated, trained and converted where their layers are."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.errors import ConfigError, InputError, QuantizationWarning, StrictError, UnsupportedError
from qi.keras.graph import follow_model
from qi.keras.in_place import wrappers_of
from qi.keras.variables import to_numpy
from qi.recipes import FLOAT, Rule, TensorSpec, get_recipe
from tests.keras.loops import Branches, Tied, built, x

pytestmark = pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return built(Branches(), x())


def quantized(model: keras.Model, recipe: Any = "w8a8", data: Any = None, **options: Any) -> tuple[keras.Model, Any]:
    return qi.quantize_model(model, recipe, data, progress=False, **options)


def sqnr(exact: Any, found: Any) -> float:
    exact, found = to_numpy(exact), to_numpy(found)
    return float(10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2)))


def test_only_what_cannot_be_followed_is_quantized_in_place(model: keras.Model) -> None:
    assert "whose call uses ['branches" in follow_model(model)[1]
    functional = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    assert follow_model(functional)[1] == ""


def test_every_weight_and_output_has_a_row(model: keras.Model) -> None:
    result, report = quantized(model, "w8a8", x())
    rows = {(row.layer, row.name): row for row in report.rows}
    kernels = ["first", "blocks/0", "blocks/1", "mix/inner", "rare", "head"]
    assert all(rows[layer, "kernel"].bits == 8 for layer in kernels)
    assert rows["mix", "extra"].bits == 8
    assert rows[report.model, "temperature"].reason.startswith("the model holds it itself")
    outputs = {layer: row.reason for (layer, name), row in rows.items() if name == "output"}
    assert {layer for layer, reason in outputs.items() if not reason} == {
        "first", "blocks/0", "blocks/1", "mix", "mix/inner", "head", "odds",
    }  # fmt: skip
    assert outputs["drop"] == "it only moves values, and leaves them as they come"
    assert outputs["rare"] == "the call never ran it on the calibration data"
    assert all(30 < rows[layer, "output"].sqnr_db < 70 for layer in ("first", "blocks/0", "head"))
    assert rows["head", "output"].total_sqnr_db < rows["head", "output"].sqnr_db
    assert rows["odds", "output"].range_hi == pytest.approx(255 / 256)  # the grid that softmax has everywhere
    assert any("quantized in place" in line for line in report.warnings)
    assert sqnr(model(x()), result(x())) > 25


def test_what_lies_within_and_between_layers_has_rows() -> None:
    ids = np.random.default_rng(0).integers(0, 6, (64, 6)).astype("int32")
    tied = built(Tied(), ids)
    recipe = get_recipe("w8a8").with_rules(Rule(layer_type="GRUCell", activations=TensorSpec(bits=8)))
    result, report = quantized(tied, recipe, ids)
    rows = {(row.layer, row.name): row for row in report.rows if row.kind == "activation"}
    assert all(rows[f"attention/{part}", "output"].bits == 8 for part in ("query", "key", "value"))
    assert rows["attention", "scores"].reason == "attention is kept whole: the call of the model isn't followed"
    assert rows["memory/gru_cell", "output"].bits == 8
    assert "gates stay in float" in rows["memory", "gates"].reason
    assert "between layers isn't known" in rows[tied.name, "between"].reason
    plain, report = quantized(tied, "w8a8", ids)
    assert "a rule for its cell" in next(row for row in report.rows if row.name == "states").reason
    assert sqnr(tied(ids), result(ids)) > 20
    assert not np.array_equal(to_numpy(plain(ids)), to_numpy(result(ids)))


def test_rules_speak_of_weights_that_the_model_holds_itself() -> None:
    own = built(Branches(), x())
    own.temperature.assign(1.0)
    recipe = get_recipe("w8a8").with_rules(Rule(own.name, weights=FLOAT))
    _, report = quantized(own, recipe, x())
    assert "left in float by rule" in next(row for row in report.rows if row.name == "temperature").reason


def test_the_given_model_is_left_alone(model: keras.Model) -> None:
    before = [to_numpy(v).copy() for v in model.variables]
    result, _ = quantized(model, "w4a8", x())
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)
    assert type(model) is Branches
    assert not {id(v) for v in result.variables} & {id(v) for v in model.variables}


def test_weights_alone_need_no_data(model: keras.Model) -> None:
    result, report = quantized(model, "w8")
    assert {row.name for row in report.rows if row.quantized} == {"kernel", "extra"}
    assert sqnr(model(x()), result(x())) > 35


def test_more_bits_are_nearer(model: keras.Model) -> None:
    found = [sqnr(model(x()), quantized(model, recipe, x())[0](x())) for recipe in ("w4a8", "w8a8", "w8a16")]
    assert found == sorted(found)
    assert found[-1] > found[0] + 10


def test_rules_speak_of_paths_and_classes(model: keras.Model) -> None:
    given = get_recipe("w8a8")
    rules = (Rule("blocks/*", weights=replace(given.weights, bits=4)), Rule(layer_type="Softmax", activations=FLOAT))
    _, report = quantized(model, replace(given, rules=rules), x())
    found = {(row.layer, row.name): row for row in report.rows}
    assert (found["blocks/0", "kernel"].bits, found["first", "kernel"].bits) == (4, 8)
    assert "by rule" in found["odds", "output"].reason
    assert not report.unused_rules


def test_tokens_attention_and_a_tied_table(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 11, (64, 6)).astype("int32")
    model = built(Tied(), ids)
    result, report = quantized(model, "w8a8", ids)
    rows = {(row.layer, row.name): row for row in report.rows}
    assert rows["table", "embeddings"].bits == 8
    assert rows["attention", "query/kernel"].bits == 8
    assert rows["memory", "gru_cell/kernel"].bits == 8 if ("memory", "gru_cell/kernel") in rows else True
    assert sqnr(model(ids), result(ids)) > 20
    # The product with the table's own variable takes the quantized one.
    assert (
        wrappers_of(result)["table"].get_quantized_weights()["embeddings"].tolist()
        == to_numpy(result.table.embeddings).tolist()
    )
    result.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(
        keras.models.load_model(tmp_path / "m.keras").predict(ids, verbose=0), result.predict(ids, verbose=0)
    )


def test_statistics_serve_later(model: keras.Model, tmp_path: Path) -> None:
    seen = qi.calibrate(model, x(), progress=False)
    assert seen.samples == 96
    direct, _ = quantized(model, "w8a8", x())
    later, _ = quantized(model, "w8a8", statistics=seen)
    np.testing.assert_array_equal(later.predict(x(), verbose=0), direct.predict(x(), verbose=0))
    with pytest.raises(ConfigError, match="expected statistics of this very model"):
        quantized(built(Branches(), x(), seed=5), "w8a8", statistics=seen)


def test_training_keeps_the_train_step_and_learns() -> None:
    class Counting(Branches):
        steps_done = 0

        def train_step(self, *args: Any, **kwargs: Any) -> Any:
            Counting.steps_done += 1
            return super().train_step(*args, **kwargs)

    keras.saving.register_keras_serializable(package="tests.loops")(Counting)
    keras.utils.set_random_seed(0)  # dropout takes its seed when it is made
    data = x(256)
    model = built(Counting(), data)
    wanted = model.predict(data, verbose=0)
    training = qi.prepare_qat(model, "w2a8", data, progress=False)
    keras.utils.set_random_seed(0)
    training.compile(keras.optimizers.Adam(3e-3), "mse", run_eagerly=False)
    before = training.evaluate(data, wanted, verbose=0)
    training.fit(data, wanted, epochs=12, batch_size=32, verbose=0)
    assert Counting.steps_done
    assert training.evaluate(data, wanted, verbose=0) < 0.7 * before
    result = qi.convert(training)
    np.testing.assert_array_equal(result.predict(data, verbose=0), training.predict(data, verbose=0))
    assert all(wrapper.frozen for wrapper in wrappers_of(result).values())
    with pytest.raises(ConfigError, match="converted already"):
        qi.convert(result)


def test_a_train_step_alone_is_enough() -> None:
    class Trainer(keras.Model):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.dense = layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.dense(x)

        def train_step(self, *args: Any, **kwargs: Any) -> Any:
            return super().train_step(*args, **kwargs) | {"mine": ops.ones(())}

    keras.saving.register_keras_serializable(package="tests.loops")(Trainer)
    model = Trainer()
    model(x(2))
    training = qi.prepare_qat(model, "w8a8", x(), progress=False)
    training.compile("sgd", "mse")
    assert "mine" in training.fit(x(), x()[:, :2], verbose=0).history
    assert type(quantized(model, "w8a8", x())[0]).__name__ == "Functional"  # inference alone needs no class


def test_no_graph_no_file(model: keras.Model, tmp_path: Path) -> None:
    result, _ = quantized(model, "w8a8", x())
    with pytest.raises(
        UnsupportedError, match="which is quantized in place, layer by layer; do rebuild the float model"
    ):
        qi.export(result, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", [qi.quantize_model, qi.prepare_qat])
def test_exact_arithmetic_is_refused(model: keras.Model, verb: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"expected exact=None .* received exact='litert'"):
        verb(model, "w8a8", x(), exact="litert", progress=False)


def test_a_quantized_one_is_refused(model: keras.Model) -> None:
    result, _ = quantized(model, "w8a8", x())
    with pytest.raises(UnsupportedError, match="quantized"):
        quantized(result, "w8a8", x())


def test_strict_refuses_what_stays_in_float() -> None:
    class Own(keras.Model):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.dense = layers.Dense(3)
            self.w = self.add_weight(shape=(3, 3), name="w")

        def call(self, x: Any) -> Any:
            return self.dense(x) @ self.w

    keras.saving.register_keras_serializable(package="tests.loops")(Own)
    model = Own()
    model(x(2))
    with pytest.raises(StrictError, match=r"own.*/w"):
        quantized(model, "w8", strict=True)


def test_a_class_without_a_configuration_is_refused() -> None:
    class Secret(keras.Model):
        def __init__(self, function: Any) -> None:
            super().__init__()
            self.function, self.dense = function, layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.dense(x) * self.function(float(to_numpy(x)[0, 0]))

    model = Secret(abs)
    model.dense.build((None, 5))
    model(x(2))
    with pytest.raises((InputError, UnsupportedError), match=r"do implement get_config|isn't known|do call it once"):
        quantized(model, "w8")


def test_data_are_checked(model: keras.Model) -> None:
    with pytest.raises(InputError, match=r"expected shape \('n', 5\)"):
        quantized(model, "w8a8", x(size=4))
    with pytest.raises(InputError, match="received None"):
        quantized(model, "w8a8")


def test_it_warns(model: keras.Model) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", QuantizationWarning)
        quantized(model, "w8")
    told = [str(warning.message) for warning in caught if warning.category is QuantizationWarning]
    assert any(line.startswith("quantized in place, layer by layer, which no file for a runtime") for line in told)


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_on(backend: str, tmp_path: Path, checkout: Path) -> None:
    pytest.importorskip(backend)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("in_place_on_backend.py")), str(tmp_path)],
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f"in place on {backend}" in done.stdout
