from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi import QuantizationReport, Recipe, Rule, TensorSpec, quantize_model
from qi.keras.attention import BandSoftmax, split_attention
from qi.keras.graph import Call, Graph, flatten_model
from qi.keras.prepare import prepare
from qi.keras.separable import weight_in_rules
from qi.keras.traits import known_range, role_of
from qi.keras.variables import to_numpy
from qi.keras.verify import check_copies
from qi.recipes import FLOAT
from qi.recipes.plan import Role
from tests.keras.models import execute, samples, settle

QUERIES, KEYS = (6, 8), (5, 8)
W8A8 = TensorSpec(bits=8, method="uniform")


def model_of(make: Any) -> keras.Model:
    """A model of one attention, of two sequences; `make` gives its output from them."""
    x, y = keras.Input(QUERIES, name="x"), keras.Input(KEYS, name="y")
    return settle(keras.Model([x, y], [make(x, y), layers.Identity(name="other")(y)], name="attending"))


def attending(layer: Any, **options: Any) -> keras.Model:
    return model_of(lambda x, y: layer(x, x, **options))


def split(model: keras.Model) -> tuple[Graph, dict[str, str]]:
    graph = flatten_model(model)
    return graph, split_attention(graph)


def head(**options: Any) -> Any:
    return layers.MultiHeadAttention(2, 3, name="mha", **options)


def parts(graph: Graph) -> dict[str, Call]:
    return {call.path.removeprefix("mha/"): call for call in graph.calls}


MAKES: dict[str, Any] = {
    "itself": lambda x, y: head()(x, x),
    "another": lambda x, y: head(value_dim=5, output_shape=7, dropout=0.1)(x, value=y),
    "three": lambda x, y: head(use_bias=False)(x, y, keras.ops.negative(y)),
    "gate": lambda x, y: head(use_gate=True)(x, y),
    "causal": lambda x, y: head()(x, x, use_causal_mask=True),
    "causal dropout": lambda x, y: head(dropout=0.5)(y, x, use_causal_mask=True),
    "window": lambda x, y: head(sliding_window=2)(x, y),
    "causal window": lambda x, y: head(sliding_window=2)(x, x, use_causal_mask=True),
    "shape": lambda x, y: head(output_shape=(2, 4))(x, y),
    "groups": lambda x, y: layers.GroupQueryAttention(4, 6, 2, use_gate=True, name="mha")(x, y),
    "no groups": lambda x, y: layers.GroupQueryAttention(4, 2, 2, name="mha")(x, x, use_causal_mask=True),
    "plain": lambda x, y: layers.Attention(dropout=0.2, name="mha")([x, y]),
    "plain three": lambda x, y: layers.Attention(name="mha")([x, y, keras.ops.negative(y)], use_causal_mask=True),
}


@pytest.mark.parametrize("name", MAKES)
def test_the_function_stays(name: str) -> None:
    model = model_of(MAKES[name])
    graph, kept = split(model)
    assert kept == {}
    assert not any(call.path == "mha" for call in graph.calls)
    x = samples(model, 4)
    expected, _ = model(x)
    np.testing.assert_allclose(execute(graph, x)[0], np.asarray(expected), rtol=1e-5, atol=2e-6)
    for call in graph.calls:
        specs = [keras.KerasTensor(value.shape, value.dtype) for value in call.inputs]
        args, kwargs = call.arguments(specs)
        spec = keras.tree.flatten(call.op.compute_output_spec(*args, **kwargs))[0]
        assert (tuple(spec.shape), str(spec.dtype)) == (call.outputs[0].shape, call.outputs[0].dtype), call.path


def test_the_parts_of_plain_attention() -> None:
    found = parts(split(model_of(MAKES["another"]))[0])
    assert {path: call.kind for path, call in found.items() if path != "other"} == {
        **dict.fromkeys(("query", "key", "value", "attention_output"), "Dense"),
        **dict.fromkeys(("query_split", "key_split", "value_split", "context_joined"), "Reshape"),
        **dict.fromkeys(("query_heads", "key_heads", "value_heads", "context_heads"), "Permute"),
        **dict.fromkeys(("scores", "context"), "Matmul"),
        "softmax": "Softmax",
        "dropout": "Dropout",
    }
    assert found["scores"].outputs[0].shape == (None, 2, 6, 5)
    assert found["context"].outputs[0].shape == (None, 2, 6, 5)
    assert found["dropout"].op.rate == 0.1
    assert {id(call.split_from) for path, call in found.items() if path != "other"} == {id(found["query"].split_from)}


def test_the_query_has_the_factor_in_its_weights() -> None:
    model = model_of(MAKES["itself"])
    given = model.get_layer("mha")
    before = [w.copy() for w in model.get_weights()]
    query = parts(split(model)[0])["query"].op
    kernel, bias = (np.asarray(w) for w in (given.query_dense.kernel, given.query_dense.bias))
    np.testing.assert_allclose(np.asarray(query.kernel), kernel.reshape(8, 6) / np.sqrt(3), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(query.bias), bias.reshape(6) / np.sqrt(3), rtol=1e-6)
    for weight, same in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize("dtype", ["mixed_float16", "float64"])
def test_types_stay(dtype: str) -> None:
    model = attending(head(dtype=dtype), use_causal_mask=True)
    graph, _ = split(model)
    x = samples(model, 2)
    found, expected = execute(graph, x)[0], np.asarray(model(x)[0])
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)


def test_open_lengths_are_fine() -> None:
    x = keras.Input((None, 8))
    model = settle(keras.Model(x, head()(x, x, use_causal_mask=True)))
    graph, _ = split(model)
    for length in (3, 7):
        given = np.random.default_rng(0).normal(size=(2, length, 8)).astype("float32")
        np.testing.assert_allclose(execute(graph, given), np.asarray(model(given)), rtol=1e-5, atol=1e-6)


def test_what_trains_stays() -> None:
    options: dict[str, Any] = {
        "kernel_regularizer": keras.regularizers.L1(0.2),
        "bias_regularizer": keras.regularizers.L1(0.3),
        "kernel_constraint": "non_neg",
        "seed": 7,
    }
    model = attending(head(dropout=0.4, **options))
    model(samples(model, 2))
    given, found = model.get_layer("mha"), parts(split(model)[0])
    dense = [found[name].op for name in ("query", "key", "value", "attention_output")]
    for layer in dense[1:]:
        assert type(layer.kernel_constraint).__name__ == "NonNeg"
    whole = sum(float(loss) for loss in given.losses)
    own = sum(float(loss) for layer in dense for loss in layer.losses)
    kernel, bias = (to_numpy(w) for w in (given.query_dense.kernel, given.query_dense.bias))
    less = (1 - 1 / np.sqrt(3)) * (0.2 * np.abs(kernel).sum() + 0.3 * np.abs(bias).sum())
    np.testing.assert_allclose(own, whole - less, rtol=1e-5)
    assert found["dropout"].op.seed == 7
    frozen = parts(split(attending(head(trainable=False)))[0])
    assert not any(frozen[name].op.trainable for name in ("query", "attention_output"))


def test_a_shared_layer_is_split_once_for_all_its_calls() -> None:
    mha = head()
    model = model_of(lambda x, y: mha(mha(x, x), y, use_causal_mask=True))
    graph, _ = split(model)
    by_site = {call.site: call for call in graph.calls}
    assert by_site["mha/query"].op is by_site["mha/query@2"].op
    assert by_site["mha/softmax"].op is not by_site["mha/softmax@2"].op  # one of them has a mask
    x = samples(model, 3)
    np.testing.assert_allclose(execute(graph, x)[0], np.asarray(model(x)[0]), rtol=1e-5, atol=1e-6)


WHOLE: dict[str, tuple[Any, str]] = {
    "mask": (
        lambda x, y: head()(x, y, attention_mask=keras.ops.ones((1, 6, 5), "bool")),
        "it is called with attention_mask",
    ),
    "scores": (lambda x, y: head()(x, y, return_attention_scores=True)[0], "return_attention_scores=True"),
    "training": (lambda x, y: head()(x, y, training=True), "called with training=True"),
    "images": (lambda x, y: keras.ops.squeeze(head()(x[:, None], y[:, None]), 1), "inputs of rank 4"),
    "groups": (
        lambda x, y: layers.GroupQueryAttention(4, 4, 2, name="mha")(x, x, use_causal_mask=True),
        "heads share keys under a mask",
    ),
    "concat": (lambda x, y: layers.Attention(score_mode="concat", name="mha")([x, y]), "aren't plain products"),
    "scale": (lambda x, y: layers.Attention(use_scale=True, name="mha")([x, y]), "aren't plain products"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_stays_whole_and_why(name: str) -> None:
    make, why = WHOLE[name]
    model = model_of(make)
    graph, kept = split(model)
    assert list(kept) == ["mha"]
    assert why in kept["mha"]
    assert any(call.path == "mha" for call in graph.calls)


@pytest.mark.filterwarnings("ignore:.*saturate")
def test_padding_masks_leave_plain_attention_whole_and_the_report_says_so() -> None:
    ids = keras.Input((6,), dtype="int32", name="ids")
    x = layers.Embedding(12, 8, mask_zero=True, name="tokens")(ids)
    y = layers.Dense(8, name="in")(x)
    model = settle(keras.Model(ids, layers.Dense(2, name="out")(layers.Attention(name="mha")([y, y]))))
    _, report = quantize_model(model, "w8a8", samples(model, 64), progress=False)
    for path in ("in/kernel", "out/kernel"):
        assert [row.status for row in report.find(path)] == ["quantized"]
    (row,) = report.find("mha/scores")
    assert (row.kind, row.status) == ("activation", "float")
    assert row.reason == "attention is kept whole: its inputs carry a mask, which differs from sample to sample"


@pytest.mark.parametrize(
    ("handed_on", "whole"),
    [(layers.Dropout(0.1), True), (lambda x: x + np.ones((6, 8), "float32"), False)],
    ids=["layer", "function"],
)
def test_masks_go_through_layers_and_end_at_functions(handed_on: Any, whole: bool) -> None:
    ids = keras.Input((6,), dtype="int32", name="ids")
    x = handed_on(layers.Embedding(12, 8, mask_zero=True)(ids))
    assert bool(split(keras.Model(ids, layers.Attention(name="mha")([x, x])))[1]) is whole
    graph, kept = split(keras.Model(ids, head()(x, x)))
    assert kept == {}
    assert ("mha/query_mask" in {call.path for call in graph.calls}) is whole


def test_classes_of_users_may_make_masks() -> None:
    class Own(layers.Layer):
        def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
            return keras.ops.convert_to_tensor([[True] * 4 + [False] * 2])

        def call(self, x: Any) -> Any:
            return keras.ops.copy(x)

    x = keras.Input((6, 8))
    y = Own()(x)
    model = settle(keras.Model(x, head()(y, y)))
    graph, kept = split(model)
    assert kept == {}
    given = samples(model, 3)
    np.testing.assert_allclose(execute(graph, given), np.asarray(model(given)), rtol=1e-5, atol=2e-6)
    assert not np.allclose(execute(graph, given), np.asarray(head_without_masks(model)(given)), atol=1e-3)


def head_without_masks(model: keras.Model) -> keras.Model:
    """The attention of a model, on the model's inputs."""
    x = keras.Input((6, 8))
    return keras.Model(x, model.get_layer("mha")(x, x))


def test_low_rank_additions_leave_it_whole() -> None:
    layer = head()
    model = attending(layer)
    layer.query_dense.enable_lora(1)
    assert "low-rank additions" in split(model)[1]["mha"]


def test_classes_of_users_do_what_their_call_says() -> None:
    class Loud(layers.MultiHeadAttention):
        def call(self, query: Any, value: Any, key: Any = None) -> Any:
            return 2 * super().call(query, value, key)

    model = attending(Loud(2, 3, name="mha"))
    graph, kept = split(model)
    assert kept == {}
    assert {"mha/query", "mha/multiply"} <= {call.path for call in graph.calls}, "followed, its own factor too"


def test_rules_know_the_weights_by_their_given_names() -> None:
    found = parts(split(model_of(MAKES["itself"]))[0])
    assert weight_in_rules(found["query"], "kernel") == ("mha", "MultiHeadAttention", "query/kernel")
    assert weight_in_rules(found["attention_output"], "bias") == ("mha", "MultiHeadAttention", "attention_output/bias")


@pytest.mark.parametrize("name", ["another", "gate", "causal", "groups"])
def test_copies_are_checked_against_the_whole_layer(name: str) -> None:
    model = model_of(MAKES[name])
    ready = prepare(model, "w8a8")
    x = keras.tree.flatten(samples(model, 4))
    check_copies(ready.given, ready.graph, x)
    value = next(call for call in ready.graph.calls if call.path == "mha/value").op
    value.kernel.assign(np.asarray(value.kernel) * 1.5)
    with pytest.raises(qi.InputError, match="layer 'mha' of class"):
        check_copies(ready.given, ready.graph, x)


# The softmax under a mask -----------------------------------------------------------------------------------------------


def test_a_band_softmax_sees_a_band() -> None:
    scores = np.random.default_rng(0).normal(0, 30, (2, 3, 4, 5)).astype("float32")
    for before, after in ((None, 0), (1, 0), (1, 1), (None, None), (0, 2)):
        found = np.asarray(BandSoftmax(before, after)(scores))
        i, j = np.arange(4)[:, None], np.arange(5)[None, :]
        seen = (j - i <= (99 if after is None else after)) & (i - j <= (99 if before is None else before))
        e = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True, where=seen, initial=-1e9)), 0)
        np.testing.assert_allclose(found, e / e.sum(-1, keepdims=True), rtol=1e-5, atol=1e-7)
        assert not found[..., ~seen].any()


def test_all_keys_are_seen_from_far_behind() -> None:
    found = np.asarray(BandSoftmax(masks=["value_mask"])(np.zeros((1, 7, 2), "float32"), np.ones((1, 2), "bool")))
    np.testing.assert_array_equal(found, np.full((1, 7, 2), 0.5))


def masked_model(dropout: float, which: str, **options: Any) -> keras.Model:
    """Self-attention under a mask that is an input of the model."""
    x = keras.Input(QUERIES, name="x")
    sizes = {"attention_mask": (6, 6), "value_mask": (6,), "per_head": (2, 6, 6)}
    mask = keras.Input(sizes[which], dtype="bool", name="m")
    name = "attention_mask" if which == "per_head" else which
    y = head(dropout=dropout)(x, x, **{name: mask}, **options)
    return settle(keras.Model([x, mask], layers.Dense(3, name="out")(y), name="attending"))


def masks_for(model: keras.Model, count: int = 32) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    mask = rng.random((count, *model.inputs[1].shape[1:])) < 0.6
    mask[0] = False  # sees nothing at all
    return [rng.normal(size=(count, *QUERIES)).astype("float32"), mask]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("which", ["attention_mask", "value_mask", "per_head"])
def test_masks_become_part_of_the_softmax(which: str, dropout: float, causal: bool) -> None:
    model = masked_model(dropout, which, use_causal_mask=causal)
    graph, kept = split(model)
    assert kept == {}
    x = masks_for(model)
    np.testing.assert_allclose(execute(graph, x), np.asarray(model(x)), rtol=1e-5, atol=2e-6)


def test_masked_attention_is_quantized_within_trained_and_reloaded(tmp_path: Path) -> None:
    model = masked_model(0.0, "attention_mask")
    x = masks_for(model, 64)
    qmodel, report = quantize_model(model, "w8a8", x, progress=False)
    rows = {row.layer.removeprefix("mha/"): row for row in report.activations if row.layer.startswith("mha/")}
    assert {rows[part].status for part in ("scores", "softmax", "context")} == {"quantized"}
    assert rows["softmax"].total_sqnr_db > 30
    qmodel.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), qmodel.predict(x, verbose=0))
    qat = qi.prepare_qat(model, "w8a8", x, progress=False)
    qat.compile("adam", "mse")
    qat.fit(x, np.zeros((64, 6, 3), "float32"), epochs=1, verbose=0)
    np.testing.assert_array_equal(qi.convert(qat).predict(x, verbose=0), qat.predict(x, verbose=0))
    with pytest.raises(qi.UnsupportedError, match=r"under attention_mask, which differs from sample to sample"):
        qi.emulate(qmodel, x, progress=False)


def test_a_query_that_sees_nothing_gets_nothing() -> None:
    found = np.asarray(BandSoftmax(0, 0)(np.ones((1, 3, 2), "float32")))
    np.testing.assert_array_equal(found, [[[1, 0], [0, 1], [0, 0]]])


def test_a_band_softmax_has_the_grid_of_every_softmax() -> None:
    call = parts(split(model_of(MAKES["causal"]))[0])["softmax"]
    assert isinstance(call.op, BandSoftmax)
    assert role_of(call) is Role.FIXED
    assert known_range(call) == (0.0, 1.0)


# Quantized models -------------------------------------------------------------------------------------------------------


def quantized(model: keras.Model, activations: Any, *rules: Rule) -> tuple[keras.Model, QuantizationReport]:
    base = Recipe("r", weights=TensorSpec(bits=8, granularity="per_channel"), activations=activations, rules=rules)
    return quantize_model(model, base, samples(model, 64) if activations else None, progress=False)


def test_every_tensor_in_between_has_its_grid_and_row() -> None:
    model = attending(head())
    qmodel, report = quantized(model, W8A8)
    rows = {row.layer.removeprefix("mha/"): row for row in report.activations if row.layer.startswith("mha/")}
    assert {row.status for row in rows.values()} == {"quantized"}
    assert (rows["softmax"].range_lo, rows["softmax"].scale_min) == (0.0, 1 / 256)
    assert rows["key_heads"].scale_min == rows["key_split"].scale_min == rows["key"].scale_min
    second = {name: row.method for name, row in rows.items() if name in ("query", "key", "value", "scores")}
    assert second == {"query": "uniform", "key": "symmetric", "value": "symmetric", "scores": "uniform"}
    macs = {row.layer: row.macs for row in report.weights if row.name == "kernel"}
    assert macs == {
        **dict.fromkeys(("mha/query", "mha/key", "mha/value"), 6 * 8 * 6),
        "mha/attention_output": 6 * 6 * 8,
    }
    x = samples(model, 64)
    error = np.abs(qmodel.predict(x, verbose=0)[0] - model.predict(x, verbose=0)[0]).max()
    assert error < 0.1 * np.abs(model.predict(x, verbose=0)[0]).max()


def test_weights_are_quantized_without_activations_too() -> None:
    _, report = quantized(attending(head()), None)
    kernels = [row for row in report.weights if row.name == "kernel"]
    assert {(row.layer, row.granularity) for row in kernels} == {
        (f"mha/{part}", "per channel (axis 1)") for part in ("query", "key", "value", "attention_output")
    }


def test_a_rule_about_the_given_layer_decides_all_parts() -> None:
    report = quantized(attending(head()), W8A8, Rule("mha", weights=FLOAT, activations=FLOAT))[1]
    assert {row.status for row in report.find("mha/*")} == {"float"}
    assert report.unused_rules == ()


def test_a_rule_names_one_kernel_by_its_given_path() -> None:
    four = TensorSpec(bits=4, granularity="per_channel")
    report = quantized(attending(head()), W8A8, Rule("mha", weight="key/kernel", weights=four))[1]
    assert {row.layer: row.bits for row in report.weights if row.name == "kernel"} == {
        "mha/query": 8,
        "mha/key": 4,
        "mha/value": 8,
        "mha/attention_output": 8,
    }
    assert report.unused_rules == ()


def test_it_saves_trains_and_converts_bit_equal(tmp_path: Path) -> None:
    model = attending(head(dropout=0.1), use_causal_mask=True)
    x = samples(model, 32)
    qat = qi.prepare_qat(model, "w4a8", x, progress=False)
    qat.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    before = [w.copy() for w in qat.get_weights()]
    y = [np.zeros_like(out) for out in model.predict(x, verbose=0)]
    qat.fit(x, y, epochs=2, batch_size=16, verbose=0)
    assert sum(not np.array_equal(a, b) for a, b in zip(before, qat.get_weights(), strict=True)) > 8
    trained = qat.predict(x, verbose=0)
    converted = qi.convert(qat)
    for name, made in (("qat", qat), ("converted", converted)):
        made.save(tmp_path / f"{name}.keras")
        for found in (made, keras.models.load_model(tmp_path / f"{name}.keras")):
            for a, b in zip(found.predict(x, verbose=0), trained, strict=True):
                np.testing.assert_array_equal(a, b)


def test_quantized_models_reload_bit_equal(tmp_path: Path) -> None:
    model = model_of(MAKES["causal window"])
    qmodel, _ = quantized(model, W8A8)
    qmodel.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x = samples(model, 8)
    for a, b in zip(again.predict(x, verbose=0), qmodel.predict(x, verbose=0), strict=True):
        np.testing.assert_array_equal(a, b)
