"""Clauses on Keras models: a wrapper or holder with the quantizer trains, is saved, goes on, and converts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qi.quantizers import QuantizationTarget
from qi.testing.cases import Case
from qi.testing.engines import as_numpy, keras_here, model_gradients, ways_to_train
from qi.testing.registry import CLAUSES, expect, expect_close, expect_same

__all__ = ["INPUTS", "OUTPUTS", "STEPS", "chosen", "mixed", "modes", "problem", "saving", "training"]

INPUTS, OUTPUTS, _BATCH = 6, 3, 64
STEPS = 30


def problem() -> tuple[np.ndarray, np.ndarray]:
    """Inputs and the outputs of a linear function of them."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(_BATCH, INPUTS)).astype(np.float32)
    return x, x @ rng.uniform(-0.5, 0.5, (INPUTS, OUTPUTS)).astype(np.float32)


def chosen(cases: Sequence[Case]) -> list[Case]:
    """Each target, method and main layout once, with the middle number of bits: a model holds them side by side."""
    bits = sorted({case.bits for case in cases})
    bits = [b for b in bits if b >= 3] or bits
    middle = bits[(len(bits) - 1) // 2]
    return [case for case in cases if case.bits == middle and case.layout in ("tensor", "channel")]


def _model(cases: Sequence[Case], policy: str = "float32") -> Any:
    """A model with one branch a case; in float32, their outputs are concatenated."""
    keras, _ = keras_here()
    from qi.keras import KerasActivationQuantizationHolder, KerasNodeQuantizationDispatcher, KerasQuantizationWrapper

    inputs, outputs = keras.Input((INPUTS,)), []
    for i, case in enumerate(cases):
        kernel = np.random.default_rng(i).uniform(-0.8, 0.8, (INPUTS, OUTPUTS))
        dense = keras.layers.Dense(OUTPUTS, name=f"dense_{i}", dtype=policy)
        dense.build((None, INPUTS))
        dense.kernel.assign(kernel)
        if case.target is QuantizationTarget.WEIGHTS:
            dispatcher = KerasNodeQuantizationDispatcher(case.quantizer())
            outputs.append(KerasQuantizationWrapper(dense, dispatcher, name=f"branch_{i}")(inputs))
        else:
            outputs.append(dense(KerasActivationQuantizationHolder(case.quantizer(), name=f"branch_{i}")(inputs)))
    joined = policy == "float32" and len(outputs) > 1
    return keras.Model(inputs, keras.layers.Concatenate()(outputs) if joined else outputs)


def _compiled(cases: Sequence[Case], rate: float = 0.02, **how: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """The model, its inputs and the outputs it should have."""
    keras, _ = keras_here()
    model, (x, y) = _model(cases), problem()
    model.compile(keras.optimizers.Adam(rate), "mse", **{"jit_compile": False} | how)
    return model, x, np.tile(y, len(cases))


def _losses(model: Any, cases: Sequence[Case], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The mean squared error of each branch."""
    errors = as_numpy(model(x)) - y
    return np.asarray(np.mean(errors.reshape(len(x), len(cases), OUTPUTS) ** 2, axis=(0, 2)))


@CLAUSES.register("training")
def training(cases: Sequence[Case]) -> int:
    """The loss of a toy problem falls by a fifth in 30 steps of Adam."""
    cases = chosen(cases)
    model, x, y = _compiled(cases)
    before = _losses(model, cases, x, y)
    for _ in range(STEPS):
        model.train_on_batch(x, y)
    for case, first, last in zip(cases, before, _losses(model, cases, x, y), strict=True):
        expect(
            last < 0.8 * first, "training", case, f"expected the loss to fall; received {first:.4g}, then {last:.4g}"
        )
    return len(cases)


def _state(model: Any) -> dict[str, np.ndarray]:
    """Every variable of a model and its optimizer by path."""
    variables = [*model.variables, *model.optimizer.variables]
    return {f"{i} {variable.path}": as_numpy(variable) for i, variable in enumerate(variables)}


@CLAUSES.register("saving")
def saving(cases: Sequence[Case]) -> int:
    """Saved after a few steps of Adam and reloaded, a model trains on as the original does, bit for bit, and converts."""
    keras, _ = keras_here()
    cases = chosen(cases)
    model, x, y = _compiled(cases)
    for _ in range(3):
        model.train_on_batch(x, y)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        again = keras.models.load_model(path)
    where = ", ".join(map(str, cases))
    for step in range(3):
        for (name, value), other in zip(_state(model).items(), _state(again).values(), strict=True):
            expect_same(other, value, "saving", where, f"{name!r} of the original {step} steps after reloading")
        model.train_on_batch(x, y)
        again.train_on_batch(x, y)
    for i, case in enumerate(cases):
        layer = model.get_layer(f"branch_{i}")
        found, wanted = as_numpy(layer.convert2inferable()(x)), as_numpy(layer(x))
        expect_same(found, wanted, "saving", case, "the layer's result of the converted layer")
    return len(cases)


@CLAUSES.register("modes")
def modes(cases: Sequence[Case]) -> int:
    """Three training steps, in every way that the backend runs them, agree to rounding."""
    cases = list({(case.target, case.method): case for case in chosen(cases)}.values())  # the last layout: per channel
    random = any(case.quantizer().needs_noise for case in cases)
    found = []
    for how in ways_to_train():
        model, x, y = _compiled(cases, **how)
        for _ in range(3):
            loss = float(model.train_on_batch(x, y))
        expect(np.isfinite(loss), "modes", how, f"expected a finite loss; received {loss}")
        found.append({v.path: as_numpy(v) for v in model.trainable_variables})
    for other in found[1:]:
        for (path, value), wanted in zip(other.items(), found[0].values(), strict=True):
            # Random numbers aren't the same in every mode: there, that steps were made is all.
            slack = 0.2 if random else 1e-3
            expect_close(value, wanted, "modes", ", ".join(map(str, cases)), f"{path} as trained eagerly", slack=slack)
    return len(cases) * len(found)


@CLAUSES.register("mixed")
def mixed(cases: Sequence[Case]) -> int:
    """With the policy mixed_float16, results are float16, variables float32, gradients there and finite."""
    ops = keras_here()[0].ops
    for case in cases:
        quantizer, variables = case.start()
        half = ops.convert_to_tensor(case.values(), "float16")
        wanted = ops.cast(quantizer.apply(ops.cast(half, "float32"), variables), "float16")
        found = as_numpy(quantizer.apply(half, variables))
        expect_same(found, as_numpy(wanted), "mixed", case, "the float32 result in float16")
    cases = chosen(cases)
    model, (x, y) = _model(cases, "mixed_float16"), problem()
    loss = lambda results: sum(ops.mean(ops.square(ops.subtract(ops.cast(result, "float32"), y))) for result in results)
    results, gradients = model_gradients(model, x, loss)
    for case, result in zip(cases, map(as_numpy, results), strict=True):
        expect(result.dtype == "float16", "mixed", case, f"expected a float16 result; received {result.dtype}")
        expect(np.all(np.isfinite(result)), "mixed", case, "expected finite results")
    where = ", ".join(map(str, cases))
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        expect(
            variable.dtype == "float32",
            "mixed",
            where,
            f"expected {variable.path} in float32; received {variable.dtype}",
        )
        expect(gradient is not None, "mixed", where, f"expected a gradient of {variable.path}; received None")
        finite = gradient is not None and np.all(np.isfinite(gradient))
        expect(finite, "mixed", where, f"expected finite gradients of {variable.path}")
    return len(cases)
