"""A small model around every public layer of Keras, by the layer's name; or why there is none.

`LAYERS` holds the builders, `REASONS` the classes without one; `USERS` has layers as users write them. A layer stands
between others, so that tensors cross to it and from it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tests.keras.models import samples, settle

__all__ = ["AUGMENTING", "LAYERS", "REASONS", "USERS", "build", "data_for", "public_layers"]

Make = Callable[[], keras.Model]
SEQUENCE, IMAGE, VOLUME, FLAT = (6, 4), (6, 6, 3), (5, 5, 5, 2), (6,)


def public_layers() -> dict[str, type]:
    """The classes of ``keras.layers``; one with several names is there once, under its own."""
    classes = [item for name, item in vars(layers).items() if inspect.isclass(item) and not name.startswith("_")]
    return {cls.__name__: cls for cls in classes}


def between(layer: Any, shape: tuple[int, ...]) -> keras.Model:
    """Dense, the layer, Dense."""
    inputs = keras.Input(shape, name="x")
    return closed(inputs, layer(layers.Dense(shape[-1], activation="relu", name="before")(inputs)))


def first(layer: Any, shape: tuple[int, ...], dtype: str = "float32") -> keras.Model:
    """The layer on the input."""
    inputs = keras.Input(shape, dtype=dtype, name="x")
    return closed(inputs, layer(inputs))


def closed(inputs: Any, x: Any) -> keras.Model:
    """The rest of a model: Dense on what a layer gives."""
    x = layers.Flatten(name="flat")(x) if len(x.shape) > 2 else x
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def merged(layer: Any, shape: tuple[int, ...] = FLAT) -> keras.Model:
    """The layer on two branches."""
    inputs = keras.Input(shape, name="x")
    return closed(inputs, layer([layers.Dense(shape[-1], name=name)(inputs) for name in ("left", "right")]))


def attending(layer: Any, *, apart: bool = False, masked: bool = False) -> keras.Model:
    """The layer on a query and values, as one argument or `apart`; `masked` ones hide steps of 0."""
    inputs = keras.Input(SEQUENCE, name="x")
    x = layers.Masking(name="masking")(inputs) if masked else inputs
    query, value = (layers.Dense(4, name=f"to_{name}")(x) for name in ("query", "value"))
    return pooled(inputs, layer(query, value) if apart else layer([query, value]))


def pooled(inputs: Any, x: Any) -> keras.Model:
    """The rest of a model: the mean of a sequence, which heeds masks, and Dense."""
    return closed(inputs, layers.GlobalAveragePooling1D(name="pool")(x))


def masking() -> keras.Model:
    """A mask, and a layer that heeds it."""
    inputs = keras.Input(SEQUENCE, name="x")
    return pooled(inputs, layers.Masking()(inputs))


def adapted() -> keras.Model:
    """A normalization that has seen data."""
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(1.0, 2.0, (64, *FLAT)).astype("float32"))
    return first(layer, FLAT)


def build(name: str) -> keras.Model:
    """The model of that name, among `LAYERS` and `USERS`, with settled weights."""
    keras.utils.set_random_seed(0)
    keras.backend.clear_session()
    model = (LAYERS | USERS)[name]()
    if name == "Normalization":
        return model  # its weights are its statistics
    kernels = [v for v in model.variables if v.path.endswith(("real_kernel", "imag_kernel"))]
    waves = [ops.convert_to_numpy(kernel) for kernel in kernels]  # a transform, and nothing else
    settle(model)
    for kernel, wave in zip(kernels, waves, strict=True):
        kernel.assign(wave)
    return model


def data_for(name: str, model: keras.Model) -> np.ndarray:
    """Samples for the model of that name: images of bytes where that is what the layer expects, steps of 0 for masks."""
    x: np.ndarray = samples(model, 32)
    if name in AUGMENTING:
        return np.random.default_rng(1).integers(0, 256, x.shape).astype("float32")
    if "mask" in name.lower():
        x[:8, -2:] = 0
    return x


L = layers
LAYERS: dict[str, Make] = {
    "Activation": lambda: between(L.Activation("tanh"), FLAT),
    "ActivityRegularization": lambda: between(L.ActivityRegularization(1e-3), FLAT),
    "Add": lambda: merged(L.Add()),
    "AdditiveAttention": lambda: attending(L.AdditiveAttention()),
    "AlphaDropout": lambda: between(L.AlphaDropout(0.1), FLAT),
    "Attention": lambda: attending(L.Attention(use_scale=True)),
    "Average": lambda: merged(L.Average()),
    "BatchNormalization": lambda: between(L.BatchNormalization(), FLAT),
    "Bidirectional": lambda: between(L.Bidirectional(L.LSTM(3)), SEQUENCE),
    "CategoryEncoding": lambda: first(L.CategoryEncoding(10), (4,), "int32"),
    "CenterCrop": lambda: between(L.CenterCrop(4, 4), IMAGE),
    "Concatenate": lambda: merged(L.Concatenate()),
    "Dense": lambda: between(L.Dense(5), FLAT),
    "Discretization": lambda: between(L.Discretization([0.5, 1.0, 2.0], output_mode="one_hot"), FLAT),
    "Dot": lambda: merged(L.Dot(axes=-1), SEQUENCE),
    "Dropout": lambda: between(L.Dropout(0.1), FLAT),
    "ELU": lambda: between(L.ELU(), FLAT),
    "EinsumDense": lambda: between(L.EinsumDense("abc,cd->abd", (6, 5), bias_axes="d"), SEQUENCE),
    "Embedding": lambda: first(L.Embedding(10, 4), (5,), "int32"),
    "Flatten": lambda: between(L.Flatten(), SEQUENCE),
    "GRU": lambda: between(L.GRU(3), SEQUENCE),
    "GRUCell": lambda: between(L.RNN(L.GRUCell(3)), SEQUENCE),
    "GaussianDropout": lambda: between(L.GaussianDropout(0.1), FLAT),
    "GaussianNoise": lambda: between(L.GaussianNoise(0.1), FLAT),
    "GroupNormalization": lambda: between(L.GroupNormalization(3), IMAGE),
    "GroupedQueryAttention": lambda: attending(L.GroupQueryAttention(2, 4, 2), apart=True),
    "Hashing": lambda: first(L.Hashing(8, output_mode="one_hot"), (1,), "int32"),
    "Identity": lambda: between(L.Identity(), FLAT),
    "InputLayer": lambda: first(L.Dense(5), FLAT),
    "IntegerLookup": lambda: first(L.IntegerLookup(vocabulary=[*range(8)], output_mode="multi_hot"), (4,), "int32"),
    "LSTM": lambda: between(L.LSTM(3), SEQUENCE),
    "LSTMCell": lambda: between(L.RNN(L.LSTMCell(3)), SEQUENCE),
    "Lambda": lambda: between(L.Lambda(ops.tanh), FLAT),
    "LayerNormalization": lambda: between(L.LayerNormalization(), SEQUENCE),
    "LeakyReLU": lambda: between(L.LeakyReLU(0.1), FLAT),
    "Masking": masking,
    "Maximum": lambda: merged(L.Maximum()),
    "MelSpectrogram": lambda: first(L.MelSpectrogram(16, 8, 16, num_mel_bins=4, max_freq=8000), (64,)),
    "Minimum": lambda: merged(L.Minimum()),
    "MultiHeadAttention": lambda: attending(L.MultiHeadAttention(2, 3), apart=True),
    "Multiply": lambda: merged(L.Multiply()),
    "Normalization": adapted,
    "PReLU": lambda: between(L.PReLU(), SEQUENCE),
    "Permute": lambda: between(L.Permute((2, 1)), SEQUENCE),
    "Pipeline": lambda: between(L.Pipeline([L.Rescaling(0.5), L.Dense(4)]), FLAT),
    "RMSNormalization": lambda: between(L.RMSNormalization(), SEQUENCE),
    "RNN": lambda: between(L.RNN([L.LSTMCell(3), L.LSTMCell(2)]), SEQUENCE),
    "ReLU": lambda: between(L.ReLU(), FLAT),
    "RepeatVector": lambda: between(L.RepeatVector(3), FLAT),
    "Rescaling": lambda: between(L.Rescaling(0.5, 0.1), FLAT),
    "Reshape": lambda: between(L.Reshape((3, 2)), FLAT),
    "Resizing": lambda: between(L.Resizing(4, 4), IMAGE),
    "ReversibleEmbedding": lambda: first(L.ReversibleEmbedding(10, 4), (5,), "int32"),
    "STFTSpectrogram": lambda: first(L.STFTSpectrogram("magnitude", 16, 8, 16), (64, 1)),
    "SimpleRNN": lambda: between(L.SimpleRNN(3), SEQUENCE),
    "SimpleRNNCell": lambda: between(L.RNN(L.SimpleRNNCell(3)), SEQUENCE),
    "Softmax": lambda: between(L.Softmax(), FLAT),
    "SpectralNormalization": lambda: between(L.SpectralNormalization(L.Conv1D(3, 2)), SEQUENCE),
    "StackedRNNCells": lambda: between(L.RNN(L.StackedRNNCells([L.LSTMCell(3), L.GRUCell(2)])), SEQUENCE),
    "Subtract": lambda: merged(L.Subtract()),
    "TimeDistributed": lambda: between(L.TimeDistributed(L.DepthwiseConv1D(3)), (3, *SEQUENCE)),
    "UnitNormalization": lambda: between(L.UnitNormalization(), SEQUENCE),
}

_BY_RANK: dict[str, Callable[[Any], Any]] = {
    "Conv{}D": lambda cls: cls(3, 3),
    "Conv{}DTranspose": lambda cls: cls(3, 3, strides=2),
    "ConvLSTM{}D": lambda cls: cls(2, 3),
    "DepthwiseConv{}D": lambda cls: cls(3),
    "SeparableConv{}D": lambda cls: cls(3, 3),
    "AveragePooling{}D": lambda cls: cls(2),
    "MaxPooling{}D": lambda cls: cls(2),
    "AdaptiveAveragePooling{}D": lambda cls: cls(2),
    "AdaptiveMaxPooling{}D": lambda cls: cls(2),
    "GlobalAveragePooling{}D": lambda cls: cls(),
    "GlobalMaxPooling{}D": lambda cls: cls(),
    "SpatialDropout{}D": lambda cls: cls(0.1),
    "UpSampling{}D": lambda cls: cls(2),
    "ZeroPadding{}D": lambda cls: cls(1),
    "Cropping{}D": lambda cls: cls(1),
}


def _around(cls: Any, make: Callable[[Any], Any], shape: tuple[int, ...]) -> Make:
    return lambda: between(make(cls), shape)


for _rank, _shape in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME)):
    for _pattern, _make in _BY_RANK.items():
        _cls = getattr(layers, _pattern.format(_rank), None)
        if _cls is not None:
            _steps = (3, *_shape) if "LSTM" in _pattern else _shape
            LAYERS[_cls.__name__] = _around(_cls, _make, _steps)

_IMAGES = (8, 8, 3)
AUGMENTING: dict[str, dict[str, Any]] = {
    "AugMix": {},
    "AutoContrast": {},
    "ContrastLimitedAdaptiveHistogramEqualization": {"tile_grid_size": (2, 2)},
    "RandAugment": {},
    "RandomBrightness": {"factor": 0.1},
    "RandomColorDegeneration": {"factor": 0.1},
    "RandomColorJitter": {"brightness_factor": 0.1},
    "RandomContrast": {"factor": 0.1},
    "RandomCrop": {"height": 8, "width": 8},
    "RandomElasticTransform": {"factor": 0.1},
    "RandomErasing": {"factor": 0.1},
    "RandomFlip": {},
    "RandomGaussianBlur": {"factor": 0.1},
    "RandomGrayscale": {"factor": 0.1},
    "RandomHue": {"factor": 0.1},
    "RandomInvert": {"factor": 0.1},
    "RandomPerspective": {"factor": 0.1},
    "RandomPosterization": {"factor": 4},
    "RandomRotation": {"factor": 0.1},
    "RandomSaturation": {"factor": 0.1},
    "RandomSharpness": {"factor": 0.1},
    "RandomShear": {"x_factor": (0.0, 0.1), "y_factor": (0.0, 0.1)},  # others Keras can't read back
    "RandomTranslation": {"height_factor": 0.1, "width_factor": 0.1},
    "RandomZoom": {"height_factor": 0.1},
    "Solarization": {"addition_factor": 0.1},
}


def _augmented(name: str) -> Make:
    return lambda: first(getattr(layers, name)(**AUGMENTING[name]), _IMAGES)


LAYERS |= {name: _augmented(name) for name in AUGMENTING}

_OTHERS = "runs a module of another framework, which has its own tools"
_STRINGS = "takes strings"
REASONS: dict[str, str] = {
    "Layer": "is the class of all others",
    "Wrapper": "is the class of TimeDistributed and its like",
    "InputSpec": "is no layer",
    "TFSMLayer": _OTHERS,
    "FlaxLayer": _OTHERS,
    "JaxLayer": _OTHERS,
    "TorchModuleWrapper": _OTHERS,
    "StringLookup": _STRINGS,
    "TextVectorization": _STRINGS,
    "HashedCrossing": _STRINGS,
    "CutMix": "mixes images and labels of a batch, in training alone",
    "MixUp": "mixes images and labels of a batch, in training alone",
    "Equalization": "gives its symbolic input, so that no Functional model can hold it",
    "MaxNumBoundingBoxes": "pads lists of boxes, which no network is made of",
}


# Layers of users ------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="zoo")
class Bilinear(layers.Layer):
    """A matrix, a table and a gain of its own."""

    def build(self, shape: Any) -> None:
        self.matrix = self.add_weight(name="matrix", shape=(shape[-1], 5))
        self.table = self.add_weight(name="table", shape=(1, shape[1], 5))
        self.gain = self.add_weight(name="gain", shape=(5,))

    def call(self, x: Any) -> Any:
        return (ops.matmul(x, self.matrix) + self.table) * self.gain


@keras.saving.register_keras_serializable(package="zoo")
class Gated(layers.Layer):
    """Made of other layers and a scale of its own, so that its call is one operation."""

    def __init__(self, units: int = 4, **options: Any) -> None:
        super().__init__(**options)
        self.units = units
        self.value = layers.Dense(units)
        self.gates = [layers.Dense(units, activation="sigmoid"), layers.EinsumDense("abc,dc->abd", (None, units))]

    def build(self, shape: Any) -> None:
        for layer in (self.value, *self.gates):
            layer.build(shape)
        self.scale = self.add_weight(name="scale", shape=())

    def call(self, x: Any) -> Any:
        return self.value(x) * self.gates[0](x) + self.gates[1](x) * self.scale

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"units": self.units}


@keras.saving.register_keras_serializable(package="zoo")
class Normed(layers.Dense):
    """A known layer with a matrix more."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.detour = self.add_weight(name="detour", shape=(shape[-1], self.units))

    def call(self, x: Any) -> Any:
        return super().call(x) + ops.tanh(ops.matmul(x, self.detour))


@keras.saving.register_keras_serializable(package="zoo")
class Accumulating(layers.Layer):
    """A cell of a user's."""

    def __init__(self, units: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.units = self.state_size = units
        self.mix = layers.Dense(units, activation="tanh", name="mix")

    def build(self, shape: Any) -> None:
        self.mix.build(shape)
        self.across = self.add_weight(name="across", shape=(self.units, self.units))

    def call(self, x: Any, states: Any) -> Any:
        state = self.mix(x) + ops.matmul(states[0], self.across)
        return state, [state]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"units": self.units}


def _shared_cell() -> keras.Model:
    cell = layers.GRUCell(4, name="cell")
    return between(keras.Sequential([L.RNN(cell, return_sequences=True), L.RNN(cell)], name="twice"), SEQUENCE)


USERS: dict[str, Make] = {
    "own weights": lambda: between(Bilinear(), SEQUENCE),
    "made of layers": lambda: between(Gated(), SEQUENCE),
    "a subclass": lambda: between(Normed(5), FLAT),
    "a subclass within": lambda: between(L.TimeDistributed(Normed(5)), SEQUENCE),
    "a cell": lambda: between(L.RNN(Accumulating(3)), SEQUENCE),
    "a cell both ways": lambda: between(L.Bidirectional(L.RNN(Accumulating(3))), SEQUENCE),
    "a cell in two layers": _shared_cell,
    "ConvLSTM both ways": lambda: between(L.Bidirectional(L.ConvLSTM1D(2, 3)), (3, *SEQUENCE)),
    "layers at each step": lambda: between(
        L.TimeDistributed(keras.Sequential([L.Conv1D(3, 2), L.Dense(2)])), (3, *SEQUENCE)
    ),
    "a masked attention": lambda: attending(L.MultiHeadAttention(2, 3), apart=True, masked=True),
}
