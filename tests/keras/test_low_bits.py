"""Tests for qi.keras.low_bits: the algorithms of a recipe on a whole model, from data or from stored statistics."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
import qi.algorithms.run as running
from qi.algorithms.reconstruction import reconstruct as options_of
from qi.core import IntGrid
from qi.errors import ConfigError, FileFormatError, InputError, NotCalibratedError
from qi.keras.reconstruct import reconstruct
from qi.keras.variables import to_numpy
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.observers import save_statistics
from qi.recipes import Recipe, Rule, TensorSpec, get_recipe
from tests.keras.linked import convolutions, images, transformer, uneven

ROUTES = ["equalize", "smooth", "awq", "gptq", "gptq_bias_correction", "output_range", "kmeans_norm_correction"]


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return convolutions()


@pytest.fixture(scope="module")
def stored(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "seen.npz"
    save_statistics(path, qi.calibrate(model, images(), progress=False))
    return path


def quantized(model: keras.Model, recipe: Any, *data: Any, **options: Any) -> tuple[keras.Model, Any]:
    return qi.quantize_model(model, recipe, *data, progress=False, **options)


def arrays(model: keras.Model) -> dict[str, np.ndarray]:
    """All that a model holds, by path."""
    return {variable.path: to_numpy(variable) for variable in model.variables}


def same(one: keras.Model, other: keras.Model) -> None:
    a, b = list(arrays(one).values()), list(arrays(other).values())
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("algorithms", ROUTES)
def test_stored_statistics_give_what_data_give(model: keras.Model, stored: Path, algorithms: str) -> None:
    """Weights, biases, caps and ranges, bit for bit: channels that are scaled have their ranges from channels either way."""
    recipe = f"w4a8_pt_{algorithms}" if algorithms in ("equalize", "smooth", "awq") else f"w4a8_{algorithms}"
    one, first = quantized(model, recipe, images())
    other, second = quantized(model, recipe, statistics=stored)
    same(one, other)
    rows = [[(r.layer, r.name, r.bits, r.scale_min, r.scale_max) for r in report.rows] for report in (first, second)]
    assert rows[0] == rows[1]
    if algorithms in ("equalize", "smooth", "awq"):
        assert first.settings["scaled_links"] > 0


@pytest.mark.parametrize("algorithm", ["equalize", "smooth", "gptq", "bias_correction", "output_range"])
def test_statistics_without_moments(model: keras.Model, algorithm: str) -> None:
    seen = qi.calibrate(model, images(), moments=False, progress=False)
    assert not seen.inputs
    with pytest.raises(InputError, match=r"calibrate|give data"):
        quantized(model, f"w4a8_pt_{algorithm}", statistics=seen)


def test_report_compares_with_the_float_weights(model: keras.Model) -> None:
    """Values lie on their grids already when layers are wrapped; the rows' errors are those of rounding all the same."""
    _, plain = quantized(model, "w4a8", images())
    _, report = quantized(model, "w4a8_gptq_bias_correction", images())
    before = {row.path: row.sqnr_db for row in plain.rows if row.kind == "weight" and row.status == "quantized"}
    found = {row.path: row for row in report.rows if row.kind == "weight" and row.status == "quantized"}
    assert list(found) == list(before)
    for path, row in found.items():
        assert 0 < row.sqnr_db <= before[path] + 1e-6  # nearest is the best for the weights themselves
        assert row.algorithms == "gptq, bias_correction"
        assert row.output_error <= 1
    assert min(row.output_error for row in found.values()) < 0.95


def test_models_reload_bit_equal(model: keras.Model, tmp_path: Path) -> None:
    found, _ = quantized(model, "w3a8_gptq_bias_correction", images())
    found.save(tmp_path / "model.keras")
    again = qi.load_model(tmp_path / "model.keras")
    same(found, again)
    np.testing.assert_array_equal(np.asarray(found(images(8))), np.asarray(again(images(8))))


def test_outputs_are_nearer(model: keras.Model) -> None:
    x = images(128)
    expected = np.asarray(model(x))
    errors = []
    for recipe in ("w3", "w3_gptq_bias_correction"):
        found, _ = quantized(model, recipe, x)
        errors.append(float(np.square(np.asarray(found(x)) - expected).mean()))
    assert errors[1] < errors[0]


def test_stopped_and_taken_up(model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, recipe, x = tmp_path / "progress.npz", "w4a8_output_range_gptq_bias_correction", images()
    whole, _ = quantized(model, recipe, x)
    before = [np.array(weight) for weight in model.get_weights()]
    solve, calls = running.solve, []

    def stopping(task: running.Task) -> running.Solved:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return solve(task)

    monkeypatch.setattr(running, "solve", stopping)
    with pytest.raises(KeyboardInterrupt):
        quantized(model, recipe, x, resume=path)
    found, _ = quantized(model, recipe, x, resume=path)
    assert len(calls) == 3 + 3  # five weights; two were done
    same(found, whole)
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    with pytest.raises(ConfigError, match="this model, recipe and statistics"):
        quantized(model, recipe, 2 * x, resume=path)
    with pytest.raises(ConfigError, match="this model, recipe and statistics"):
        quantized(model, "w3a8_output_range_gptq_bias_correction", x, resume=path)
    path.write_bytes(b"PK")
    with pytest.raises(FileFormatError, match="damaged"):
        quantized(model, recipe, x, resume=path)


@pytest.mark.parametrize("jobs", [0, "two", 1.5])
def test_bad_jobs(model: keras.Model, jobs: Any) -> None:
    with pytest.raises(ConfigError, match="jobs"):
        quantized(model, "w4a8_gptq", images(), jobs=jobs)


@pytest.mark.parametrize("kind", ["tflite", "onnx"])
def test_tables_are_exported_as_their_entries(model: keras.Model, tmp_path: Path, kind: str) -> None:
    """Entries are integers of 8 bits: files hold these, and agree with the model in every output."""
    found, _ = quantized(model, "w4a8_kmeans_gptq", images())
    graph = qi.lower(found)
    weights = [op.inputs[1] for op in graph.ops if op.kind in ("conv2d", "depthwise_conv2d", "dense")]
    assert len(weights) == 5
    assert all(isinstance(tensor.grid, IntGrid) for tensor in weights)
    wrappers = [layer for layer in found.layers if isinstance(layer, KerasQuantizationWrapper)]
    held = [layer.get_quantized_weights()["kernel"] for layer in wrappers]
    assert len(held) == 5
    assert {np.sort(array, None).tobytes() for array in held} == {
        np.sort(np.asarray(tensor.values(), "float32"), None).tobytes() for tensor in weights
    }
    path = tmp_path / f"model.{kind}"
    qi.export(found, path)
    assert qi.verify(path, found, images(16)).exact


def test_exact_models_refuse_tables(model: keras.Model) -> None:
    with pytest.raises(qi.UnsupportedError, match="conv2d"):
        quantized(model, "w4a8_kmeans", images(), exact="litert")


# What isn't to be worked on ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")
def test_weights_that_no_algorithm_can_take_are_told() -> None:
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Flatten(name="flat")(layers.Embedding(9, 3, name="table")(inputs))
    one, two = layers.Dense(12, use_bias=False, name="one"), layers.Dense(12, use_bias=False, name="two")
    x = layers.Dense(2, use_bias=False, name="head")(two(layers.ReLU()(one(x))))
    net = uneven(keras.Model(inputs, x))
    vars(two)["_kernel"] = one._kernel
    two._trainable_variables[0] = one._kernel
    data = np.random.default_rng(0).integers(0, 9, (40, 4)).astype("int32")
    _, report = quantized(net, "w4a8_gptq_bias_correction", data)
    told = " ".join(report.all_warnings)
    assert "'one/kernel' is rounded to nearest" in told
    assert "shares weights with 'two'" in told
    assert "'head/kernel' is left without bias_correction: it has no bias" in told


@pytest.mark.parametrize(("count", "few"), [(8, 2), (20, 1), (64, 0)])
def test_too_few_data_for_moments_are_told(count: int, few: int) -> None:
    """Fewer rows than features leave the moments without full rank; of a convolution, each place is a row."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Flatten()(layers.Conv2D(2, 3, name="conv")(inputs))
    net = keras.Model(inputs, layers.Dense(3, name="head")(layers.Dense(12, name="wide", activation="relu")(x)))
    data = np.random.default_rng(0).normal(size=(count, 6, 6, 2)).astype("float32")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, report = quantized(uneven(net), "w4a8_gptq", data)
    told = [line for line in report.all_warnings if "too few for moments" in line]
    assert len(told) == (few > 0)
    if few:
        assert f"of {few} weight{'s' * (few > 1)}, whose" in told[0]
        assert f"('wide/kernel': 32 features, {count} rows)" in told[0]
    assert any("too few for moments" in str(one.message) for one in caught) == (few > 0)


def test_layers_called_twice() -> None:
    shared, inputs = layers.Dense(4, name="shared"), keras.Input((4,))
    net = uneven(keras.Model(inputs, layers.Dense(2)(layers.ReLU()(shared(layers.ReLU()(shared(inputs)))))))
    x = images(64, (4,))
    found, report = quantized(net, "w4a8_equalize_gptq_bias_correction", x)
    assert report.settings["scaled_links"] == 0
    assert np.isfinite(np.asarray(found(x))).all()


def test_rules_choose() -> None:
    model = convolutions("relu")
    recipe = get_recipe("w8a8").with_rules(Rule("head", weights=get_recipe("w3_gptq").weights))
    _, report = quantized(model, recipe, images())
    assert {row.layer: row.algorithms for row in report.rows if row.name == "kernel"}["head"] == "gptq"
    assert not any(row.algorithms for row in report.rows if row.layer != "head")


@pytest.mark.parametrize("recipe", ["w8a8_pt_smooth_bias_correction", "w6a8_awq_gptq"])
def test_transformers(recipe: str) -> None:
    model, x = transformer(), images(64, (6, 8))
    found, report = quantized(model, recipe, x)
    assert report.settings["scaled_links"] >= 2
    y, expected = np.asarray(found(x)), np.asarray(model(x))
    assert np.square(y - expected).mean() < 0.1 * np.square(expected - expected.mean(axis=0)).mean()


def test_equalization_needs_no_data() -> None:
    """Of weights alone: nothing is to be seen."""
    found, report = quantized(convolutions("relu"), "w8_pt_equalize")
    assert report.settings["scaled_links"] == 4
    assert np.isfinite(np.asarray(found(images(4)))).all()


# Bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")
def test_few_samples(model: keras.Model) -> None:
    """Fewer rows than features: less is gained, nothing breaks."""
    for recipe in ("w4a8_output_range_gptq_bias_correction", "w4a8_pt_equalize_smooth_gptq_norm_correction"):
        found, _ = quantized(model, recipe, images(2))
        assert all(np.isfinite(array).all() for array in arrays(found).values() if array.dtype.kind == "f")


@pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")
def test_data_that_never_reach_a_layer() -> None:
    """All inputs 0: moments of zeros, biases as they are."""
    model = convolutions("relu")
    found, _ = quantized(model, "w4a8_equalize_gptq_bias_correction", np.zeros((40, 8, 8, 3), "float32"))
    assert all(np.isfinite(array).all() for array in arrays(found).values() if array.dtype.kind == "f")


def test_nan() -> None:
    model = convolutions("relu")
    x = images()
    x[3, 0, 0, 0] = np.nan
    with pytest.raises((InputError, NotCalibratedError)):
        quantized(model, "w4a8_gptq", x)
    kernel, *rest = model.get_layer("a").get_weights()
    kernel[0, 0, 0, 0] = np.nan
    model.get_layer("a").set_weights([kernel, *rest])
    with pytest.raises(InputError, match="NaN"):
        quantized(model, "w4a8_gptq", images())


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("w4a8_gtpq", "Did you mean 'gptq'"),
        ("w4a8_equalize_gtpq", "Did you mean 'gptq'"),
        ("w16a8_kmeans", "lower the bits"),
        ("w4a8_gptq_gptq", "gptq"),
        (lambda: Recipe("x", weights=TensorSpec(bits=4, algorithms=({"name": "gptq", "damp": 1.0},))), "damping"),
        (lambda: Recipe("x", weights=TensorSpec(bits=4, method="power_of_two", algorithms=("hqq",))), "powers of two"),
        (lambda: TensorSpec(bits=4, granularity="per_group", group_size=8, algorithms=("kmeans",)), "per_channel"),
        (lambda: Recipe("x", activations=TensorSpec(bits=8, algorithms=("gptq",))), "algorithms"),
    ],
)
def test_bad_recipes(recipe: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        quantized(convolutions("relu"), recipe() if callable(recipe) else recipe, images())


@pytest.mark.parametrize("method", ["power_of_two", "uniform"])
def test_other_methods(model: keras.Model, method: str) -> None:
    weights = TensorSpec(bits=4, method=method, granularity="per_channel", algorithms=("equalize", "gptq"))
    recipe = Recipe("mine", weights=weights, activations=get_recipe("w8a8").activations)
    found, report = quantized(model, recipe, images())
    for row in report.rows:
        if row.kind == "weight" and row.status == "quantized" and method == "power_of_two":
            assert np.frexp(row.scale_min)[0] == np.frexp(row.scale_max)[0] == 0.5
    assert np.isfinite(np.asarray(found(images(4)))).all()


def test_options_of_training_are_arguments_of_it() -> None:
    assert set(options_of()) <= set(inspect.signature(reconstruct).parameters)


@pytest.mark.filterwarnings("ignore::qi.QuantizationWarning")
def test_training_begins_where_the_algorithms_before_it_end_and_goes_with_the_other_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes out is what training found, offsets of other layers among it."""
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu", name="first")(inputs)
    x = layers.LayerNormalization(name="norm")(layers.Dense(8, activation="relu", name="second")(x))
    model = uneven(keras.Model(inputs, layers.Dense(3, name="third")(x)))
    rows = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    few = TensorSpec(bits=3, algorithms=("gptq", "bias_correction", {"name": "reconstruct", "steps": 30}))  # type: ignore[arg-type]
    other = TensorSpec(bits=4, algorithms=("gptq", "bias_correction"))  # type: ignore[arg-type]
    rules = [Rule("first", weights=other), Rule("third", weights=TensorSpec(bits=8))]
    recipe = get_recipe("w3a8")
    seen: list[Any] = []

    def spied(ready: Any, weights: Any, *given: Any, begin: Any, **named: Any) -> Any:
        paths = {id(calls[0].op): calls[0].path for calls in ready.graph.calls_of().values()}
        found = reconstruct(ready, weights, *given, begin=begin, **named)
        seen.append({kind: {(paths[op], path): values for (op, path), values in part.items()}
                     for kind, part in (("begin", begin), ("floats", found.floats), ("start", weights))})  # fmt: skip
        return found

    monkeypatch.setattr("qi.keras.low_bits.reconstruct", spied)
    given = Recipe("mine", weights=few, activations=recipe.activations, rules=tuple(rules))
    q, report = quantized(model, given, rows)
    (told,) = seen
    assert set(told["start"]) == {("second", "kernel")}
    kernels = {(name, "kernel") for name in ("first", "second", "third")}
    assert set(told["begin"]) == kernels | {("first", "bias"), ("second", "bias")}
    assert set(told["floats"]) == {("first", "bias"), ("second", "bias"), ("norm", "beta"), ("third", "bias")}
    held = {row.path: row for row in report.rows}
    assert held["first/kernel"].algorithms == "gptq, bias_correction"
    values = {name.replace("_raw", ""): array for name, array in arrays(q).items()}
    for (layer, path), trained in told["floats"].items():
        np.testing.assert_array_equal(values[f"{layer}/{path}"], trained.reshape(values[f"{layer}/{path}"].shape))
        assert (trained != to_numpy(getattr(model.get_layer(layer), path))).any()
    settings = report.settings
    assert settings["reconstruction_loss_after"] < settings["reconstruction_loss_before"]
