"""quantize_model from end to end: what comes out, what the report says of it, and what becomes of the given model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi import (
    InputError,
    KerasActivationQuantizationHolder,
    KerasQuantizationWrapper,
    QuantizationReport,
    Recipe,
    Rule,
    TensorSpec,
    UnsupportedError,
    calibrate,
    load_model,
    quantize_model,
    save_model,
)
from qi.core import sqnr_db
from qi.keras.graph import flatten_model
from tests.keras.models import MODELS, ON_BACKENDS, build, samples, settle
from tests.keras.warned import warned

ACTIVATIONS = TensorSpec(bits=8, method="uniform", range="minmax")


def quantized(model: keras.Model, recipe: Any = "w8a8", data: Any = None, **options: Any) -> tuple[Any, Any]:
    return quantize_model(model, recipe, data, **{"progress": False} | options)


def flat(outputs: Any) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(array) for array in keras.tree.flatten(outputs)]


def snapshot(model: keras.Model) -> tuple[str, list[np.ndarray], dict[int, int], list[np.ndarray]]:
    """Everything of a model that must not change: configuration, variables, calls of its layers, compiled state."""
    nodes = {id(layer): len(layer._inbound_nodes) for layer in model._flatten_layers()}
    optimizer = [v.numpy() for v in model.optimizer.variables] if model.compiled else []
    return json.dumps(model.get_config(), default=str), [v.numpy() for v in model.variables], nodes, optimizer


def assert_unchanged(before: Any, after: Any) -> None:
    assert before[0] == after[0]
    assert before[2] == after[2]
    for first, second in ((before[1], after[1]), (before[3], after[3])):
        for old, new in zip(first, second, strict=True):
            np.testing.assert_array_equal(old, new)


# Every structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.backend) if n in ON_BACKENDS else n for n in MODELS]
)
def test_every_structure(name: str, tmp_path: Path) -> None:
    model = build(name)
    data = samples(model, 48)
    outputs, before = model(data, training=False), snapshot(model)
    qmodel, report = quantized(model, "w8a8_minmax", data)
    assert_unchanged(before, snapshot(model))

    found = qmodel(data, training=False)
    keras.tree.assert_same_structure(outputs, found)
    for exact, other in zip(flat(outputs), flat(found), strict=True):
        assert (exact.shape, exact.dtype) == (other.shape, other.dtype)
        assert sqnr_db(exact, other) > 20
    assert qmodel.name == model.name
    names = getattr(model, "output_names", ["head"])  # a Sequential model has none
    assert qmodel.output_names == names or len(set(names)) < len(names)
    assert [t.name for t in qmodel.inputs] == [t.name for t in flatten_model(model).flat_inputs()]

    check_grids(qmodel, data, bits=8)
    check_report(model, qmodel, report, tmp_path)


def check_grids(qmodel: keras.Model, data: Any, bits: int) -> None:
    """At most 2**bits values in a channel of a quantized weight and in a quantized activation."""
    wrappers = [layer for layer in qmodel.layers if isinstance(layer, KerasQuantizationWrapper)]
    for wrapper in wrappers:
        assert wrapper.frozen
        for path, weight in wrapper.get_quantized_weights().items():
            axis = wrapper.quantizers[path].granularity(weight.ndim).axis
            for channel in np.moveaxis(weight, axis, 0):
                assert len(np.unique(channel)) <= 2**bits
    holders = [layer for layer in qmodel.layers if isinstance(layer, KerasActivationQuantizationHolder)]
    probe = keras.Model(qmodel.input, [node.output_tensors[0] for layer in holders for node in layer._inbound_nodes])
    for values in flat(probe(data, training=False)):
        assert len(np.unique(values)) <= 256


def check_report(model: keras.Model, qmodel: keras.Model, report: QuantizationReport, folder: Path) -> None:
    """A row for every weight that is left after folding, and for what every quantizer and float layer gives."""
    kept = [
        v for v in qmodel.variables if "seed_generator" not in v.path and v.path.rpartition("/")[2] not in PARAMETERS
    ]
    assert len(report.weights) == len(kept)
    assert sum(row.size_before or 0 for row in report.weights) == sum(v.numpy().nbytes for v in kept)
    paths = [row.path for row in report.rows]
    assert len(paths) == len(set(paths))
    assert all(row.quantized or row.reason for row in report.rows)
    assert (report.model, report.recipe, report.settings) == (model.name, "w8a8_minmax", {"calibration_samples": 48})
    assert report.description.startswith("w8a8_minmax: weights 8 bits, symmetric, per channel")
    again = QuantizationReport.load(report.save(folder / "report.json"))
    assert again == report
    assert str(again) == str(report)


QUANTIZED = (
    "kernel",
    "embeddings",
    "pointwise_kernel",
    "depthwise_kernel",
    "lstm_cell_kernel",
    "lstm_cell_recurrent_kernel",
)
PARAMETERS = {f"{kind}{name}" for name in ("scale", "zero_point") for kind in ("", *(f"{w}_" for w in QUANTIZED))}


def test_names_are_those_of_the_layers() -> None:
    model = build("nested")
    qmodel, report = quantized(model, "w8a8_minmax", samples(model, 48))
    assert {row.layer for row in report.weights} == {"backbone/conv", "backbone/deep/conv", "conv", "head"}
    assert [type(layer).__name__ for layer in qmodel.layers if layer.name == "head"] == [
        "KerasActivationQuantizationHolder"
    ]


# The given model -------------------------------------------------------------------------------------------------------


def test_a_compiled_model_keeps_its_optimizer_and_trains_on() -> None:
    def trained() -> keras.Model:
        model = build("sequential")
        model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], jit_compile=False)
        model.fit(samples(model, 16), np.zeros((16, 4)), batch_size=8, shuffle=False, verbose=0)
        return model

    model, control = trained(), trained()
    before = snapshot(model)
    qmodel, _ = quantized(model, "w8a8_minmax", samples(model, 48))
    assert_unchanged(before, snapshot(model))
    assert model.compiled
    assert not qmodel.compiled
    for each in (model, control):
        each.fit(samples(model, 16), np.zeros((16, 4)), batch_size=8, shuffle=False, verbose=0)
    for old, new in zip(control.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_two_models_share_no_variable() -> None:
    model = build("unknown")
    qmodel, _ = quantized(model, "w8a8_minmax", samples(model, 48))
    assert not {id(v) for v in model.variables} & {id(v) for v in qmodel.variables}


def test_what_has_no_weights_and_no_copy_is_told_and_left_alone() -> None:
    inputs = keras.Input((4,), name="x")
    shift = layers.Lambda(lambda x: x + 1, name="shift")
    model = settle(keras.Model(inputs, layers.Dense(2, name="head")(shift(inputs))))
    dense = model.get_layer("head")
    before = [(len(op._inbound_nodes), len(op._outbound_nodes)) for op in model.operations]
    for _ in range(2):
        with warned() as found:
            qmodel, report = quantized(model, "w8")
        assert [str(item.message) for item in found] == report.warnings
        assert "1 layers can't be copied: 'shift' is shared with the given model: expected" in report.warnings[0]
    assert [(len(op._inbound_nodes), len(op._outbound_nodes)) for op in model.operations] == before
    assert qmodel.get_layer("head").layer is not dense
    x = samples(model, 4)
    np.testing.assert_allclose(qmodel(x), model(x), atol=0.05)


def relu(x: Any) -> Any:
    return 2 * x


# Strict, rules, warnings -----------------------------------------------------------------------------------------------


def test_strict_lists_every_matrix_that_stays_float() -> None:
    inputs = keras.Input((5, 4), name="x")
    model = settle(keras.Model(inputs, layers.Dense(2, name="head")(layers.PReLU(name="slopes")(inputs))))
    with pytest.raises(UnsupportedError, match="expected every weight matrix to be quantized") as caught:
        quantized(model, "w8", strict=True)
    text = str(caught.value)
    assert "slopes/alpha (5, 4): slopes of an activation" in text
    assert "head" not in text
    _, report = quantized(build("residual"), "w8", strict=True)
    assert {row.name for row in report.unquantized if row.kind == "weight"} == {"bias"}
    rules = (Rule("slopes", weights="float"),)
    with warned() as found:
        quantized(model, Recipe("w8", weights=TensorSpec(bits=8), rules=rules), strict=True)
    assert found == []


def test_unquantized_says_why() -> None:
    model = build("unfoldable")
    _, report = quantized(model, "w8a8_minmax", samples(model, 48))
    reasons = {row.path: row.reason for row in report.unquantized}
    assert reasons["on_input/gamma"] == (
        "batch normalization is kept: it follows the model's input, into which it can't be folded"
    )
    assert "follows the activation 'relu' of 'conv'" in reasons["after_relu/moving_mean"]
    assert reasons["conv/bias"].startswith("bias: float32 here")


def test_rules_by_path_and_type() -> None:
    model = build("residual")
    rules = (
        Rule("stem_conv", weights="float", activations="float"),
        Rule(layer_type="Dense", weights=TensorSpec(bits=4, method="uniform", granularity="per_channel")),
        Rule("a_*", weights=TensorSpec(bits=2, method="power_of_two")),
    )
    recipe = Recipe("mixed", weights=TensorSpec(bits=8), activations=ACTIVATIONS, rules=rules)
    with warned():  # of what 2 bits do
        qmodel, report = quantized(model, recipe, samples(model, 48), strict=True)
    rows = {row.path: row for row in report.rows}
    assert rows["stem_conv/kernel"].reason == "left in float by rule match='stem_conv'"
    assert (rows["logits/kernel"].bits, rows["logits/kernel"].method) == (4, "uniform")
    assert (rows["a_conv/kernel"].bits, rows["a_conv/kernel"].method) == (2, "power_of_two")
    assert (rows["b_conv/kernel"].bits, rows["b_conv/kernel"].granularity) == (8, "per tensor")
    assert not report.unused_rules
    kernel = qmodel.get_layer("a_conv").get_quantized_weights()["kernel"]
    assert np.log2(np.abs(kernel[kernel != 0])) % 1 == pytest.approx(0)


def test_recipes_come_from_files_and_mappings(tmp_path: Path) -> None:
    model = build("sequential")
    mapping = {"base": "w4", "rules": [{"match": "head", "weights": "float"}]}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"_type": "qi.Recipe", "_version": 1, "_data": mapping}))
    first, second = quantized(model, mapping)[1], quantized(model, path)[1]
    assert first.rows == second.rows
    assert "head/kernel" in {row.path for row in first.unquantized}


def test_unused_rules_are_warned_of() -> None:
    recipe = Recipe("w8", weights=TensorSpec(bits=8), rules=(Rule("logit", weights="float"),))
    with warned() as found:
        _, report = quantized(build("residual"), recipe)
    assert [str(item.message) for item in found] == list(report.all_warnings)
    assert report.unused_rules == ("match='logit': matches no layer. Did you mean 'logits'?",)
    assert found[0].filename == __file__  # the caller's line


@pytest.mark.parametrize("recipe", ["w8a8", "w8"])
def test_a_rule_about_what_was_folded_is_told_so(recipe: str) -> None:
    model = build("residual")
    rules = [{"match": "stem_bn", "weights": "float", "activations": "float"}, {"match": "?_bn", "weights": "float"}]
    data = samples(model, 64) if recipe == "w8a8" else None
    with warned():
        report = quantized(model, {"base": recipe, "rules": rules}, data)[1]
    assert report.unused_rules == (
        "match='stem_bn': matches only what was folded into other layers: 'stem_bn' into 'stem_conv'; do name those layers",
        "match='?_bn': matches only what was folded into other layers: 'a_bn' into 'a_conv' and 2 more; do name those layers",
    )


def test_a_dead_activation_drowns_in_nothing() -> None:
    model = keras.Sequential([keras.Input((8,), name="x"), layers.Dense(4, name="d"), layers.ReLU(name="dead")])
    settle(model)
    model.get_layer("d").bias.assign(np.full(4, -100.0))
    _, report = quantized(model, "w8a8_minmax", np.ones((40, 8), np.float32))
    assert report.warnings == []


# Evaluation ------------------------------------------------------------------------------------------------------------


def test_report_evaluates_the_users_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("residual")
    data = samples(model, 64)
    labels = np.argmax(model.predict(data, verbose=0), axis=-1)
    qmodel, report = quantized(model, "w8a8_minmax", data)
    calls, predict = [], keras.Model.predict
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "predict", lambda m, x, **options: calls.append(m) or predict(m, x, **options))
        found = report.evaluate("accuracy", data, labels)
    assert calls == [model, qmodel]  # in batches, whatever the number of samples
    expected = np.mean(np.argmax(qmodel.predict(data, verbose=0), axis=-1) == labels)
    assert (found.float_value, found.quantized_value, found.samples) == (1.0, expected, 64)
    import tensorflow as tf

    batched = tf.data.Dataset.from_tensor_slices((data, labels)).batch(24)
    assert report.evaluate("accuracy", batched).quantized_value == expected

    class Pairs(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return data[32 * index : 32 * index + 32], labels[32 * index : 32 * index + 32]

    for given in (Pairs(), ((data[i : i + 24], labels[i : i + 24]) for i in (0, 24, 48))):
        found = report.evaluate("accuracy", given)
        assert (found.quantized_value, found.samples) == (expected, 64)
    with pytest.raises(InputError, match="endless dataset"):
        report.evaluate("accuracy", batched.repeat())
    with pytest.raises(InputError, match=r"of shape \[\(None, 8, 8, 3\)\]; received 'x' of shape \(64, 8, 8\)"):
        report.evaluate("accuracy", data[..., 0], labels)
    count = report.evaluate(lambda m: m.count_params(), of="model", name="size")
    assert count.float_value == model.count_params()
    assert len(report.evaluations) == 2  # the same figure is kept once


# Progress --------------------------------------------------------------------------------------------------------------


def test_progress_is_shown_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    model = build("sequential")
    data = samples(model, 48)
    quantize_model(model, "w8a8_minmax", data, batch_size=16, progress=False)
    calibrate(model, data, progress=False)
    assert capsys.readouterr().out == ""
    quantize_model(model, "w8a8_minmax", data, batch_size=16)
    assert "3/3" in capsys.readouterr().out
    quantize_model(model, "w8")
    assert capsys.readouterr().out == ""


# Numbers: policies, compilation, training ------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("recipe", ["w8a8_minmax", "w4_g32"])
def test_other_dtype_policies(policy: str, recipe: str, tmp_path: Path) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        model = build("mobile")
    finally:
        keras.config.set_dtype_policy("float32")
    data = samples(model, 48)
    qmodel, report = quantized(model, recipe, data)
    exact, found = (np.asarray(m(data, training=False)).astype(np.float64) for m in (model, qmodel))
    assert qmodel.output.dtype == model.output.dtype
    assert sqnr_db(exact, found) > (20 if recipe == "w8a8_minmax" else 10)
    assert not [row for row in report.weights if not row.quantized and row.name != "bias"]
    again = load_model(save_model(qmodel, tmp_path / "model.keras"))
    assert again.output.dtype == model.output.dtype
    np.testing.assert_array_equal(np.asarray(again(data, training=False)).astype(np.float64), found)


def test_compiled_by_xla_or_not_it_predicts_the_same() -> None:
    model = build("mobile")
    data = samples(model, 48)
    qmodel, _ = quantized(model, "w8a8_minmax", data)
    eager = keras.ops.convert_to_numpy(qmodel(data, training=False))
    for jit in (False, True):
        qmodel.compile(jit_compile=jit)
        found = qmodel.predict(data, verbose=0)
        # Sums may come out another way in the last bit, which a rounding to 8 bits nearly always hides.
        assert np.mean(found == eager) > 0.98
        np.testing.assert_allclose(found, eager, atol=2 / 256)


def test_losses_by_output_name() -> None:
    model = build("dict_io")
    data = samples(model, 48)
    truth = {"kind": np.zeros(48, np.int64), "size": np.ones((48, 1), np.float32)}
    losses = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    qmodel, _ = quantized(model, "w8a8_minmax", data)
    results = []
    for each in (model, qmodel):
        each.compile("sgd", losses, metrics={"kind": ["accuracy"]}, jit_compile=False)
        results.append(each.evaluate(data, truth, verbose=0, return_dict=True))
    assert set(results[0]) == set(results[1]) >= {"loss", "kind_loss", "size_loss", "kind_accuracy"}
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], rel=0.05)


def test_fine_tuning_moves_biases_and_leaves_kernels_on_their_grids(tmp_path: Path) -> None:
    model = build("residual")
    data = samples(model, 48)
    qmodel, _ = quantized(model, "w4a8", data)
    trainable = [variable.path for variable in qmodel.trainable_variables]
    assert len(trainable) == 5
    assert all("bias" in path for path in trainable)
    before = {layer.name: layer.get_quantized_weights() for layer in wrappers(qmodel)}
    qmodel.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    target = model.predict(data, verbose=0)
    history = qmodel.fit(data, target, epochs=6, batch_size=16, verbose=0).history["loss"]
    assert history[-1] < history[0]
    for layer in wrappers(qmodel):
        for path, kernel in layer.get_quantized_weights().items():
            np.testing.assert_array_equal(kernel, before[layer.name][path])
    again = load_model(save_model(qmodel, tmp_path / "tuned.keras"))
    np.testing.assert_array_equal(again.predict(data, verbose=0), qmodel.predict(data, verbose=0))


def wrappers(model: keras.Model) -> list[KerasQuantizationWrapper]:
    return [layer for layer in model.layers if isinstance(layer, KerasQuantizationWrapper)]


def test_dropout_and_noise_are_still_there_in_training() -> None:
    model = keras.Sequential([keras.Input((50,)), layers.Dropout(0.5, seed=1), layers.Dense(4)])
    settle(model)
    data = np.ones((40, 50), np.float32)
    qmodel, _ = quantized(model, "w8")
    np.testing.assert_array_equal(np.ptp(np.asarray(qmodel(data, training=False)), axis=0), 0)
    assert np.ptp(np.asarray(qmodel(data, training=True)), axis=0).min() > 0
