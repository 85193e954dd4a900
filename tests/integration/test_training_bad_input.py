"""What prepare_qat, convert, wrappers and holders refuse of trainable quantizers, and what they say."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi import (
    ConfigError,
    InputError,
    KerasActivationQuantizationHolder,
    KerasNodeQuantizationDispatcher,
    KerasQuantizationWrapper,
    UnsupportedError,
    convert,
    quantize_model,
)
from qi.quantizers import LSQQuantizer, QuantizationMethod, TrainableQuantizerActivationConfig
from tests.keras.test_qat import FOLDS, prepared, quantized, small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lsqq"}, r"expected a training method of .*received 'lsqq'. Did you mean 'lsq'"),
        ({"method": "inferable"}, "expected a training method"),
        ({"activation_method": "pakt"}, "Did you mean 'pact'"),
        ({"estimator": "stee"}, "gradient estimator"),
        ({"estimator": "ste", "estimator_options": {"delta": 0.1}}, "delta"),
        (
            {"estimator": "ewgs", "estimator_options": {"delta": -1.0}},
            "expected delta from 0 to 1; received delta=-1.0",
        ),
        (
            {"batch_norm": "frozen"},
            r"expected batch_norm to be one of \('folded', 'trained'\); received batch_norm='frozen'",
        ),
        ({"recipe": "w17a8"}, "w17a8"),
        ({"recipe": "w0"}, "w0"),
        ({"recipe": "w8b8"}, "w8b8"),
    ],
)
def test_illegal_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(small(), **{"recipe": "w4a8", "data": np.ones((4, 4), "float32")} | options)


def test_exact_names_a_runtime() -> None:
    with pytest.raises(ConfigError, match=r"expected exact to be None or one of .*received exact='tflite'"):
        prepared(small(), "w4", exact="tflite")


def test_data_is_needed_for_activations_and_checked() -> None:
    with pytest.raises(InputError, match="data"):
        prepared(small(), "w4a8")
    with pytest.raises(InputError, match="NaN"):
        prepared(small(), "w4a8", np.full((4, 4), np.nan, "float32"))


def test_nothing_is_prepared_or_converted_twice() -> None:
    model, x = small(), np.ones((4, 4), "float32")
    qat = prepared(model, "w4a8", x)
    converted = convert(qat)
    for done in (qat, converted, quantized(model, "w4a8", x)):
        with pytest.raises(UnsupportedError, match="expected a float model; received 'small', in which"):
            prepared(done, "w4a8", x)
    with pytest.raises(UnsupportedError, match="expected a float model"):
        quantize_model(qat, "w4a8", x, progress=False)
    for done in (converted, model, quantized(model, "w4a8", x)):
        with pytest.raises(ConfigError, match="expected a model with trainable quantizers; received 'small'"):
            convert(done)


def test_a_wrapped_layer_is_refused() -> None:
    inner = layers.Dense(3)
    wrapper = KerasQuantizationWrapper(inner, KerasNodeQuantizationDispatcher(FOLDS))
    with pytest.raises(ConfigError, match="isn't wrapped yet"):
        KerasQuantizationWrapper(wrapper, KerasNodeQuantizationDispatcher(FOLDS))
    model = keras.Sequential([keras.Input((4,)), wrapper])
    with pytest.raises(UnsupportedError, match="expected a float model"):
        prepared(model, "w4")


def test_quantizers_go_where_they_belong() -> None:
    activation = LSQQuantizer(TrainableQuantizerActivationConfig(QuantizationMethod.UNIFORM, 8))
    with pytest.raises(ConfigError, match="weight"):
        KerasNodeQuantizationDispatcher({"kernel": activation})
    with pytest.raises(ConfigError, match="activation"):
        KerasNodeQuantizationDispatcher(None, FOLDS)
    with pytest.raises(ConfigError, match="expected an activation quantizer"):
        KerasActivationQuantizationHolder(FOLDS)


def test_a_diverged_model_is_not_converted() -> None:
    qat = prepared(small(), "w4")
    wrapper = qat.get_layer("hidden")
    wrapper.layer.kernel.assign(np.full((4, 6), np.nan))
    with pytest.raises(InputError, match="expected finite weights; received NaN in 'kernel' of layer 'hidden'"):
        convert(qat)
    qat = prepared(small(), "w4")
    (learned,) = [v for v in qat.get_layer("hidden").trainable_variables if v.name.endswith("step")]
    learned.assign(np.full(learned.shape, np.inf))
    with pytest.raises(InputError, match="training diverged"):
        convert(qat)
