"""Finding the trainable quantizers of a model."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import qi
from qi.keras.sites import quantizer_sites
from qi.keras.variables import to_numpy
from tests.keras.tiny_qat import X, float_model, qat_model


def test_weights_and_activations_in_the_order_of_the_layers() -> None:
    model = qat_model()
    assert [(site.layer, site.tensor, site.of_weights) for site in quantizer_sites(model)] == [
        ("x_quant", "output", False),
        ("first", "kernel", True),
        ("relu_quant", "output", False),
        ("last_raw", "kernel", True),
        ("last", "output", False),
    ]
    assert [site.layer for site in quantizer_sites(model, activations=False)] == ["first", "last_raw"]
    assert [site.layer for site in quantizer_sites(model, weights=False)] == ["x_quant", "relu_quant", "last"]


def test_the_source_is_what_is_quantized() -> None:
    plain, squashed = (quantizer_sites(qat_model("w4", method=method))[0] for method in ("lsq", "dorefa"))
    kernel = to_numpy(float_model().get_layer("first").kernel)
    assert plain.source is not None
    assert squashed.source is not None
    np.testing.assert_array_equal(plain.source(), kernel)
    assert 0 < np.abs(squashed.source() - kernel).max() < 0.2


def test_inferable_quantizers_are_none_of_them() -> None:
    half = qat_model()
    inputs = keras.Input((4,))
    fixed = qi.KerasActivationQuantizationHolder(qi.ActivationPOTInferableQuantizer(2, 2.0))
    model = keras.Model(inputs, half(fixed(inputs)))
    assert len(quantizer_sites(model)) == 5
    with pytest.raises(qi.ConfigError, match="trainable quantizers of weights; received"):
        quantizer_sites(keras.Model(inputs, fixed(inputs)), activations=False)


def test_an_unbuilt_holder() -> None:
    model = keras.Sequential(
        [qi.KerasActivationQuantizationHolder(qi.ActivationPOTInferableQuantizer(2, 2.0), name="h")]
    )
    with pytest.raises(qi.InputError, match="layer 'h' isn't; do call the model on a batch first"):
        quantizer_sites(model)
    model(X)
