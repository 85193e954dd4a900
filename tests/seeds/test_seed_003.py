"""Seed 003, the quantizers infrastructure: what it says of quantizers, configurations, dispatcher and wrapper.

The docstring of each test is the line that it checks, word for word; the last test finds it in the seed. Two of its
examples can't run as they stand: its import names a package that this one isn't part of, so `import qi` stands for it; and
`KerasQuantizationWrapper(layer=..., dispatcher)` is no Python, so the dispatcher is passed by keyword or both by position.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from tensorflow import keras

import qi

X = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
W = np.random.default_rng(1).uniform(-3, 3, (7, 7, 3, 6)).astype(np.float32)


@pytest.fixture
def w_quantizer():
    return qi.WeightsSymmetricInferableQuantizer(num_bits=8, threshold=2, signed=True, per_channel=True)


@pytest.fixture
def dispatcher(w_quantizer):
    return qi.KerasNodeQuantizationDispatcher(w_quantizer)


@pytest.fixture
def model():
    inputs = keras.layers.Input(shape=(32, 32, 3))
    x = keras.layers.Conv2D(6, 7, use_bias=False)(inputs)
    model = keras.Model(inputs=inputs, outputs=x)
    model.layers[1].kernel.assign(W)
    return model


def numbers(tensor) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


# --- quantizer ---


def test_emulates_inference(w_quantizer) -> None:
    """can be used for emulating inference-time qunatization (inferable-quantizers)"""
    tensor = w_quantizer.qparams(W.shape).quantize(W)  # what inference stores and reads
    assert tensor.codes.dtype == np.int8
    np.testing.assert_array_equal(w_quantizer(W), tensor.dequantize())


def test_fake_quantization(w_quantizer) -> None:
    """
    conversion of floating point values to quantized values represented in floating point (fake-quantization).
    """
    result = w_quantizer(np.linspace(-3, 3, 4096, dtype=np.float32).reshape(-1, 1))
    assert result.dtype == np.float32
    assert np.unique(result).tolist() == (np.arange(-128, 128) / 64).tolist()


def test_separately_for_weights_and_activations(w_quantizer) -> None:
    """
    Quantizer instance should be defined per layer, separately for weights quantization and activations quantization.
    """
    with pytest.raises(qi.ConfigError, match=r"expected a quantizer of activation for output 0; received Weights"):
        qi.KerasNodeQuantizationDispatcher(activation_quantizers=[w_quantizer])
    a_quantizer = qi.ActivationUniformInferableQuantizer(8, min_range=0, max_range=6)
    with pytest.raises(
        qi.ConfigError, match=r"expected a quantizer of weights for weight 'kernel'; received Activation"
    ):
        qi.KerasNodeQuantizationDispatcher({"kernel": a_quantizer})


def test_the_base_of_inferable_quantizers(w_quantizer) -> None:
    """`BaseInferableQuantizer` - Type of quantizers that use for emulating inference-time quantization"""
    assert isinstance(w_quantizer, qi.BaseInferableQuantizer)
    names = [name for name in qi.__all__ if name.endswith("InferableQuantizer") and not name.startswith("Base")]
    assert len(names) == 9
    assert all(issubclass(getattr(qi, name), qi.BaseInferableQuantizer) for name in names)


def test_the_interval(w_quantizer) -> None:
    """generate signed 8-bits symmetric quantizer for numbers in the interval [-2,2)"""
    assert w_quantizer(np.float32([[-99, -2, 0, 2, 99]])).tolist() == [[-2, -2, 0, 2 - 2 / 128, 2 - 2 / 128]]
    assert w_quantizer.grid == qi.IntGrid(8, signed=True)


def test_the_quantizers_call() -> None:
    """
    w_quantizer = qi.WeightsSymmetricInferableQuantizer(num_bits=8,
                                                    threshold=2,
                                                    signed=True,
                                                    per_channel=True)
    """
    w_quantizer = qi.WeightsSymmetricInferableQuantizer(num_bits=8, threshold=2, signed=True, per_channel=True)
    scale = w_quantizer.qparams(W.shape).scale
    assert scale.shape == (1, 1, 1, 6)  # one threshold serves every channel
    assert np.all(scale == 2 / 128)


def test_explicit_parameters(w_quantizer) -> None:
    """
    For inferable quantizers we don't use the `BaseQuantizerConfig` object, instead we use explicit parameters per quantizer
    """
    assert (
        w_quantizer.get_config().items() >= {"num_bits": 8, "threshold": 2, "signed": True, "per_channel": True}.items()
    )
    assert "quantization_config" not in inspect.signature(qi.WeightsSymmetricInferableQuantizer).parameters


def test_the_base_of_trainable_quantizers() -> None:
    """
    `BaseTrainableQuantizer` - Type of quantizers that use for quantization optimization during training. This type of
    quntizers contains learnable parameters
    """
    config = qi.TrainableQuantizerWeightsConfig(qi.QuantizationMethod.SYMMETRIC, 8)
    quantizer = qi.get_quantizer_class(qi.QuantizationTarget.WEIGHTS, qi.QuantizationMethod.SYMMETRIC, "lsq")(config)
    assert isinstance(quantizer, qi.BaseTrainableQuantizer)
    assert [item.name for item in quantizer.declare(W.shape, W) if item.trainable] == ["step"]
    inferable = quantizer.initialize(W).convert2inferable()
    assert isinstance(inferable, qi.WeightsSymmetricInferableQuantizer)
    np.testing.assert_array_equal(quantizer(W), inferable(W))


# --- configuration ---


def test_stored_in_a_configuration() -> None:
    """Quantizer configuration or quantizer parameters can be stored in `BaseQuantizerConfig` object."""
    for config in (
        qi.TrainableQuantizerWeightsConfig(qi.QuantizationMethod.UNIFORM, 4, {"min_range": -1.0, "max_range": 2.0}),
        qi.TrainableQuantizerActivationConfig(qi.QuantizationMethod.SYMMETRIC, 4, {"threshold": 2.0}),
    ):
        assert isinstance(config, qi.BaseQuantizerConfig)
        assert qi.BaseQuantizerConfig.from_dict(config.to_dict()) == config


def test_the_configuration_of_weights(w_quantizer) -> None:
    """
    `TrainableQuantizerWeightsConfig` - contain the configuration of weight quantization for trainable quantizer.
    """
    config = qi.TrainableQuantizerWeightsConfig(qi.QuantizationMethod.SYMMETRIC, 8, {"threshold": 2.0})
    np.testing.assert_array_equal(qi.STEQuantizer(config).initialize(W)(W), w_quantizer(W))
    with pytest.raises(qi.ConfigError, match="expected an activation quantizer"):
        qi.KerasActivationQuantizationHolder(qi.STEQuantizer(config))


def test_the_configuration_of_activations() -> None:
    """
    `TrainableQuantizerActivationConfig` - contain the configuration of activation quantization for trainable quantizer
    """
    config = qi.TrainableQuantizerActivationConfig(qi.QuantizationMethod.UNIFORM, 8, {"min_range": 0, "max_range": 6})
    wanted = qi.ActivationUniformInferableQuantizer(8, min_range=0.0, max_range=6.0)(X)
    np.testing.assert_array_equal(numbers(qi.KerasActivationQuantizationHolder(qi.STEQuantizer(config))(X)), wanted)
    with pytest.raises(qi.ConfigError, match="expected a quantizer of weights"):
        qi.KerasNodeQuantizationDispatcher({"kernel": qi.STEQuantizer(config)})


def test_the_configurations_call(model) -> None:
    """
    q_config = qi.TrainableQuantizerWeightsConfig(weights_quantization_method=QuantizationMethod.POWER_OF_TWO,
                                              weights_n_bits=9,
                                              weights_quantization_params={},
                                              enable_weights_quantization=True,
                                              weights_channels_axis=-1,
                                              weights_per_channel_threshold=True,
                                              min_threshold=0)
    """
    q_config = qi.TrainableQuantizerWeightsConfig(
        weights_quantization_method=qi.QuantizationMethod.POWER_OF_TWO,
        weights_n_bits=9,
        weights_quantization_params={},
        enable_weights_quantization=True,
        weights_channels_axis=-1,
        weights_per_channel_threshold=True,
        min_threshold=0,
    )
    assert list(inspect.signature(qi.TrainableQuantizerWeightsConfig).parameters) == list(q_config.to_dict())[1:]
    for cls in (qi.TQTQuantizer, qi.STEQuantizer):
        wrapper = qi.KerasQuantizationWrapper(model.layers[1], qi.KerasNodeQuantizationDispatcher(cls(q_config)))
        wrapper.build()
        inferable = wrapper.convert2inferable().quantizers["kernel"]
        assert isinstance(inferable, qi.WeightsPOTInferableQuantizer)
        assert inferable.num_bits == 9
        wanted = 2.0 ** np.ceil(np.log2(np.abs(W).max(axis=(0, 1, 2))))
        assert np.ravel(inferable.threshold).tolist() == wanted.tolist()  # one a channel, of the weight's own values


# --- dispatcher ---


def test_contains_the_quantizers_of_a_layer(w_quantizer) -> None:
    """
    `NodeQuantizationDispatcher` instance contains a list of relevant quantizers for node (layer) in the model:
    """
    dispatcher = qi.NodeQuantizationDispatcher({"kernel": w_quantizer})
    assert list(dispatcher.weight_quantizers.values()) == [w_quantizer]
    assert dispatcher.activation_quantizers == []
    assert issubclass(qi.KerasNodeQuantizationDispatcher, qi.NodeQuantizationDispatcher)


def test_weights_quantizer_per_attribute(w_quantizer) -> None:
    """weights quantizer per attribute (kernel, bias, ...)"""
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    bias_quantizer = qi.WeightsPOTInferableQuantizer(num_bits=4, threshold=1.0)
    wrapper = qi.KerasQuantizationWrapper(
        layer, qi.KerasNodeQuantizationDispatcher({"kernel": w_quantizer, "bias": bias_quantizer})
    )
    layer.bias.assign([0.3, -0.6])
    wrapper.build()
    found = wrapper.get_quantized_weights()
    np.testing.assert_array_equal(found["kernel"], w_quantizer(numbers(layer.kernel)))
    assert found["bias"].tolist() == [0.25, -0.625]


def test_activation_quantizer_per_output() -> None:
    """activation quantizer per layer's output"""
    quantizers = [qi.ActivationPOTInferableQuantizer(bits, 1.0) for bits in (2, 3, 4)]
    layer = keras.layers.LSTM(3, return_state=True)
    wrapper = qi.KerasQuantizationWrapper(layer, qi.KerasNodeQuantizationDispatcher(activation_quantizers=quantizers))
    for quantizer, output, plain in zip(quantizers, wrapper(X[:, 0]), layer(X[:, 0]), strict=True):
        np.testing.assert_array_equal(numbers(output), quantizer(numbers(plain)))


def test_the_dispatchers_call(w_quantizer) -> None:
    """dispatcher = qi.KerasNodeQuantizationDispatcher(w_quantizer)"""
    dispatcher = qi.KerasNodeQuantizationDispatcher(w_quantizer)
    layer = keras.layers.Conv2D(6, 7)
    layer.build((None, 32, 32, 3))
    assert list(dispatcher.bind_layer(layer)) == ["kernel"]  # a bare quantizer goes to the main weight


# --- wrapper ---


def test_the_layers_replacement(model, dispatcher, w_quantizer) -> None:
    """
    Quantization wrapper instance is used as a layer's replacement which emulates the layer's operation only with
    quantization.
    """
    wrapper = qi.KerasQuantizationWrapper(layer=model.layers[1], dispatcher=dispatcher)
    inputs = keras.layers.Input(shape=(32, 32, 3))
    replaced = keras.Model(inputs, wrapper(inputs))
    found = replaced.predict(X, verbose=0)
    np.testing.assert_array_equal(numbers(model.layers[1].kernel), W)
    model.layers[1].kernel.assign(w_quantizer(W))
    np.testing.assert_array_equal(found, model.predict(X, verbose=0))


def test_layer_and_dispatcher(model, dispatcher, w_quantizer) -> None:
    """
    The quantization wrapper receives the layer to wrap, and a dispatcher for mapping the relevant quantizer per attribute.
    """
    wrapper = qi.KerasQuantizationWrapper(model.layers[1], dispatcher)
    wrapper.build()
    assert list(inspect.signature(qi.KerasQuantizationWrapper).parameters)[:2] == ["layer", "dispatcher"]
    assert wrapper.layer is model.layers[1]
    assert list(wrapper.quantizers) == ["kernel"]
    np.testing.assert_array_equal(wrapper.get_quantized_weights()["kernel"], w_quantizer(W))


def test_wraps_keras_layers(dispatcher) -> None:
    """`KerasQuantizationWrapper` - used to wrap Keras layer"""
    for layer in (keras.layers.Dense(2), keras.layers.Conv2D(2, 3), keras.layers.DepthwiseConv2D(3)):
        wrapper = qi.KerasQuantizationWrapper(layer, dispatcher)
        assert isinstance(wrapper, keras.layers.Layer)
        assert wrapper(X).shape == layer(X).shape
    with pytest.raises(qi.ConfigError, match="expected a Keras layer"):
        qi.KerasQuantizationWrapper(np.tanh, dispatcher)


def test_wraps_torch_modules(w_quantizer) -> None:
    """`PytorchQuantizationWrapper` - used to wrap torch nn module"""
    import torch

    dispatcher = qi.PytorchNodeQuantizationDispatcher(w_quantizer)
    for module in (torch.nn.Linear(3, 2), torch.nn.Conv2d(3, 6, 7), torch.nn.ConvTranspose2d(3, 6, 7)):
        wrapper = qi.PytorchQuantizationWrapper(module, dispatcher)
        assert isinstance(wrapper, torch.nn.Module)
        x = torch.ones(2, 3) if isinstance(module, torch.nn.Linear) else torch.tensor(X.transpose(0, 3, 1, 2))
        assert wrapper(x).shape == module(x).shape
        (found,) = wrapper.get_quantized_weights().values()
        axis = 1 if isinstance(module, torch.nn.ConvTranspose2d) else 0  # of the outputs
        np.testing.assert_array_equal(found, w_quantizer.with_axes(axis)(module.weight.detach().numpy()))
    with pytest.raises(qi.ConfigError, match="expected a torch module"):
        qi.PytorchQuantizationWrapper(np.tanh, dispatcher)


def test_the_wrappers_call(model, dispatcher) -> None:
    """qi.KerasQuantizationWrapper(layer=model.layers[1], dispatcher)"""
    with pytest.raises(SyntaxError):
        compile(inspect.cleandoc(str(test_the_wrappers_call.__doc__)), "seed", "eval")
    by_keyword = qi.KerasQuantizationWrapper(layer=model.layers[1], dispatcher=dispatcher)
    by_position = qi.KerasQuantizationWrapper(model.layers[1], dispatcher)
    np.testing.assert_array_equal(numbers(by_keyword(X)), numbers(by_position(X)))


def test_every_quotation_stands_in_the_seed(shared_dir: Path) -> None:
    text = (shared_dir / "seeds" / "003_quantizers_infrastructure.md").read_text(encoding="utf-8")
    seed = " ".join(text.split())
    tests = {name: test for name, test in globals().items() if name.startswith("test_") and test.__doc__}
    assert len(tests) == 21
    assert [name for name, test in tests.items() if " ".join(test.__doc__.split()) not in seed] == []
