"""Networks as people write them in Keras 3: from Functional ones to classes with layers, losses and training steps of their own.

Each builder makes data whose classes follow a simple rule, trains for seconds, and gives a `Family`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

__all__ = ["OWN", "Family", "textures"]

CLASSES = 10


class Family(NamedTuple):
    """A float network and its data: inputs in the network's own structure.

    `labels` belong to `test`, in the (first) output's scores along the last axis; None where the outputs name no class.
    """

    model: keras.Model
    calibration: Any
    test: Any
    labels: np.ndarray | None


def textures(count: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gratings of any direction, width, phase and contrast on ten grounds, with noise; the colour of the ground is the class.

    Returns:
        images in [-1, 1], (count, size, size, 3) float32, and their classes, 0..9.
    """
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, CLASSES, count)
    bounds = ((0, np.pi), (1.5, 6.0), (0, 2 * np.pi), (0.1, 0.4))
    angle, waves, phase, contrast = (rng.uniform(low, high, (count, 1, 1)) for low, high in bounds)
    rows, columns = np.meshgrid(*2 * [np.linspace(0, 1, size)], indexing="ij")
    wave = contrast * np.sin(2 * np.pi * waves * (np.cos(angle) * rows + np.sin(angle) * columns) + phase)
    height = 1 - 2 * (np.arange(CLASSES) + 0.5) / CLASSES  # ten points around a sphere, each far from the others
    turn, radius = np.arange(CLASSES) * np.pi * (3 - 5**0.5), np.sqrt(1 - height**2)
    ground = 0.55 * np.stack([radius * np.cos(turn), radius * np.sin(turn), height], axis=-1)[kind]
    images = ground[:, None, None] + wave[..., None] * rng.uniform(0.4, 1.0, (count, 1, 1, 3))
    images += rng.normal(0, 0.05, (count, 1, 1, 3)) + rng.normal(0, 0.05, images.shape)
    return np.clip(images, -1, 1).astype("float32"), kind


def _part(x: Any, start: int, stop: int | None = None) -> Any:
    return keras.tree.map_structure(lambda array: array[start:stop], x)


def _trained(model: keras.Model, x: Any, y: np.ndarray, loss: Any, *, epochs: int = 3, classes: bool = True) -> Family:
    """Trains on all samples but the last 256, which are for tests."""
    model.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=False)
    model.fit(_part(x, 0, -256), y[:-256], batch_size=64, epochs=epochs, verbose=0)
    return Family(model, _part(x, 0, 64), _part(x, -256), y[-256:] if classes else None)


def _cross_entropy() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@keras.saving.register_keras_serializable("families")
class TransformerBlock(layers.Layer):
    """Attention and a feed-forward part, each behind a normalization and beside a shortcut."""

    def __init__(self, width: int, heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        self.norm1, self.norm2 = layers.LayerNormalization(epsilon=1e-6), layers.LayerNormalization(epsilon=1e-6)
        self.attention = layers.MultiHeadAttention(heads, width // heads, dropout=0.1)
        self.up, self.down = layers.Dense(2 * width, activation="gelu"), layers.Dense(width)
        self.dropout = layers.Dropout(0.1)

    def call(self, x: Any, attention_mask: Any = None) -> Any:
        y = self.norm1(x)
        x = x + self.attention(y, y, attention_mask=attention_mask)
        return x + self.dropout(self.down(self.up(self.norm2(x))))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "heads": self.heads}


@keras.saving.register_keras_serializable("families")
class PatchEmbedding(layers.Layer):
    """Patches of an image, projected, with a trained vector for each place."""

    def __init__(self, patch: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.patch, self.width = patch, width
        self.project = layers.Conv2D(width, patch, strides=patch)

    def build(self, shape: Any) -> None:
        self.project.build(shape)
        self.count = (shape[1] // self.patch) * (shape[2] // self.patch)
        self.places = self.add_weight(shape=(1, self.count, self.width), initializer="random_normal", name="places")

    def call(self, images: Any) -> Any:
        return ops.reshape(self.project(images), (-1, self.count, self.width)) + self.places

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "patch": self.patch, "width": self.width}


@keras.saving.register_keras_serializable("families")
class TokenAndPlace(layers.Layer):
    """Rows of two tables: of a token, and of its place."""

    def __init__(self, tokens: int, places: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sizes = (tokens, places, width)
        self.tokens, self.places = layers.Embedding(tokens, width), layers.Embedding(places, width)

    def call(self, ids: Any) -> Any:
        return self.tokens(ids) + self.places(ops.arange(ops.shape(ids)[-1]))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **dict(zip(("tokens", "places", "width"), self.sizes, strict=True))}


@keras.saving.register_keras_serializable("families")
class CachedAttention(layers.Layer):
    """Causal attention of one new token to all before it, whose keys and values are handed in and out."""

    def __init__(self, width: int, heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        self.query, self.key, self.value, self.out = (layers.Dense(width) for _ in range(4))

    def call(self, x: Any, keys: Any, values: Any, place: Any) -> Any:
        split = lambda y: ops.reshape(y, (-1, 1, self.heads, self.width // self.heads))
        length = keys.shape[1]
        here = ops.cast(ops.one_hot(place, length), keys.dtype)[:, :, None, None]
        keys = keys * (1 - here) + split(self.key(x)) * here
        values = values * (1 - here) + split(self.value(x)) * here
        scores = ops.einsum("bqhd,bthd->bhqt", split(self.query(x)), keys) * (self.width // self.heads) ** -0.5
        past = ops.less_equal(ops.arange(length)[None, :], place[:, None])
        weights = ops.softmax(ops.where(past[:, None, None, :], scores, -1e9), axis=-1)
        mixed = ops.reshape(ops.einsum("bhqt,bthd->bqhd", weights, values), (-1, self.width))
        return self.out(mixed), keys, values

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "heads": self.heads}


@keras.saving.register_keras_serializable("families")
class Sampling(layers.Layer):
    """A draw from a normal distribution in training, its mean otherwise."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        mean, log_variance = inputs
        if not training:
            return mean
        return mean + ops.exp(0.5 * log_variance) * keras.random.normal(ops.shape(mean), seed=self.seed_generator)


@keras.saving.register_keras_serializable("families")
class VAE(keras.Model):
    """Two Functional models, a sampling layer between them, and a training step of its own (on TensorFlow)."""

    def __init__(self, latent: int = 8, filters: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.latent, self.filters = latent, filters
        image = keras.Input((16, 16, 3))
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(image)
        x = layers.Flatten()(layers.Conv2D(2 * filters, 3, strides=2, padding="same", activation="relu")(x))
        self.encoder = keras.Model(image, [layers.Dense(latent)(x), layers.Dense(latent)(x)], name="encoder")
        code = keras.Input((latent,))
        x = layers.Reshape((4, 4, filters))(layers.Dense(16 * filters, activation="relu")(code))
        for width in (2 * filters, filters):
            x = layers.Conv2DTranspose(width, 3, strides=2, padding="same", activation="relu")(x)
        self.decoder = keras.Model(code, layers.Conv2D(3, 3, padding="same", activation="tanh")(x), name="decoder")
        self.sampling = Sampling()
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker]

    def call(self, images: Any, training: bool | None = None) -> Any:
        return self.decoder(self.sampling(self.encoder(images), training=training))

    def train_step(self, data: Any) -> dict[str, Any]:
        import tensorflow as tf

        images = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            mean, log_variance = self.encoder(images, training=True)
            made = self.decoder(self.sampling([mean, log_variance], training=True), training=True)
            divergence = -0.5 * ops.mean(1 + log_variance - ops.square(mean) - ops.exp(log_variance))
            loss = 10 * ops.mean(ops.square(images - made)) + 0.01 * divergence
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights, strict=True)
        )
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "latent": self.latent, "filters": self.filters}


@keras.saving.register_keras_serializable("families")
class TwoTower(keras.Model):
    """Users and items in one space; whether they fit is their product. Takes a dict."""

    def __init__(self, users: int, items: int, width: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sizes = (users, items, width)
        tower = lambda count: keras.Sequential(
            [layers.Embedding(count, width), layers.Dense(2 * width, activation="relu"), layers.Dense(width)]
        )
        self.user_tower, self.item_tower = tower(users), tower(items)
        self.score = layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        product = self.user_tower(inputs["user"]) * self.item_tower(inputs["item"])
        return ops.sigmoid(self.score(product))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **dict(zip(("users", "items", "width"), self.sizes, strict=True))}


def vit(scale: int = 1) -> Family:
    """A vision transformer: 16 patches, two blocks."""
    x, y = textures(1280, 32)
    width = 32 * scale
    image = keras.Input((32, 32, 3))
    h = PatchEmbedding(8, width)(image)
    for _ in range(2):
        h = TransformerBlock(width, 4)(h)
    h = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(h))
    return _trained(keras.Model(image, layers.Dense(CLASSES)(h), name="vit"), x, y, _cross_entropy())


def bert(scale: int = 1) -> Family:
    """An encoder of padded sequences: the class is the most frequent kind of token; attention passes over padding."""
    rng, width = np.random.default_rng(0), 32 * scale
    y = rng.integers(0, 4, 1536)
    ids = np.where(rng.random((1536, 16)) < 0.5, 1 + 4 * rng.integers(0, 8, (1536, 16)) + y[:, None], 0)
    ids = np.where(ids > 0, ids, rng.integers(1, 33, ids.shape))
    ids[np.arange(16) >= rng.integers(8, 17, (1536, 1))] = 0
    tokens = keras.Input((16,), dtype="int32", name="token_ids")
    kinds = keras.Input((16,), dtype="int32", name="segment_ids")
    h = TokenAndPlace(33, 16, width)(tokens) + layers.Embedding(2, width, name="segments")(kinds)
    mask = ops.not_equal(tokens, 0)[:, None, :]
    for _ in range(2):
        h = TransformerBlock(width, 4)(h, attention_mask=mask)
    pooled = layers.Dense(width, activation="tanh", name="pooler")(layers.LayerNormalization(epsilon=1e-6)(h)[:, 0])
    model = keras.Model(
        {"token_ids": tokens, "segment_ids": kinds}, layers.Dense(4, name="logits")(pooled), name="bert"
    )
    x = {
        "token_ids": ids.astype("int32"),
        "segment_ids": (np.arange(16) >= 8).astype("int32") * np.ones_like(ids, "int32"),
    }
    return _trained(model, x, y, _cross_entropy(), epochs=4)


def gpt(scale: int = 1, tokens: int = 16, length: int = 12, heads: int = 4) -> Family:
    """One step of a decoder: token, place and the caches of two blocks in, scores and the caches out."""
    width = 32 * scale
    token, place = (keras.Input((), dtype="int32", name=name) for name in ("token", "place"))
    caches = {
        f"{kind}{i}": keras.Input((length, heads, width // heads), name=f"{kind}{i}") for i in (1, 2) for kind in "kv"
    }
    h = layers.Embedding(tokens, width, name="tokens")(token) + layers.Embedding(length, width, name="places")(place)
    outputs = {}
    for i in (1, 2):
        found, k, v = CachedAttention(width, heads)(
            layers.LayerNormalization()(h), caches[f"k{i}"], caches[f"v{i}"], place
        )
        h = h + found
        h = h + layers.Dense(width)(layers.Dense(2 * width, activation="gelu")(layers.LayerNormalization()(h)))
        outputs |= {f"k{i}": k, f"v{i}": v}
    scores = layers.Dense(tokens, name="scores")(layers.LayerNormalization()(h))
    model = keras.Model({"token": token, "place": place, **caches}, {"a_scores": scores, **outputs}, name="gpt")

    rng = np.random.default_rng(0)
    texts = rng.integers(0, tokens, (64, 1)) + np.arange(length + 1) * rng.integers(1, 4, (64, 1))
    texts = (texts % tokens).astype("int32")  # counting by one, two or three: the cache tells by how many
    steps = _decode(model, texts)
    model.compile(
        keras.optimizers.Adam(3e-3), {"a_scores": _cross_entropy()} | dict.fromkeys(outputs), jit_compile=False
    )
    for _ in range(2):  # the caches follow what has been learned
        model.fit(steps, {"a_scores": texts[:, 1:].T.reshape(-1)}, batch_size=64, epochs=10, verbose=0)
        steps = _decode(model, texts)
    later = _part(steps, 64 * 4)
    return Family(model, _part(steps, 0, None), later, texts[:, 5:].T.reshape(-1))


def _decode(model: keras.Model, texts: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of every step over texts, step after step, with the caches that the model made itself."""
    shapes = {name: tensor.shape[1:] for name, tensor in model.input.items()}
    caches = {name: np.zeros((len(texts), *shape), "float32") for name, shape in shapes.items() if len(shape) > 1}
    steps = []
    for place in range(texts.shape[1] - 1):
        steps.append({"token": texts[:, place], "place": np.full(len(texts), place, "int32"), **caches})
        found = model.predict(steps[-1], verbose=0)
        caches = {name: found[name] for name in caches}
    return {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}


def unet(scale: int = 1) -> Family:
    """A class for every pixel: down twice and up twice, with the finer maps joined again."""
    images, _ = textures(640, 32)
    labels = (images.mean(-1) > 0.1).astype("int32") + (images[..., 0] > 0.4)
    block = lambda x, filters: layers.ReLU()(
        layers.BatchNormalization(momentum=0.8)(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x))
    )
    image = keras.Input((32, 32, 3))
    a = block(image, 8 * scale)
    b = block(layers.MaxPooling2D()(a), 16 * scale)
    h = block(layers.MaxPooling2D()(b), 32 * scale)
    for filters, finer in ((16 * scale, b), (8 * scale, a)):
        h = layers.Conv2DTranspose(filters, 2, strides=2, activation="relu")(h)
        h = block(layers.Concatenate()([h, finer]), filters)
    return _trained(keras.Model(image, layers.Conv2D(3, 1)(h), name="unet"), images, labels, _cross_entropy(), epochs=4)


def audio(scale: int = 1) -> Family:
    """Tones in noise, by their pitch: strided, separable and dilated convolutions over samples."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, 1280)
    turns = 2 * np.pi * (20.0 * 1.3 ** y[:, None]) * np.linspace(0, 1, 1024) + rng.uniform(0, 6, (1280, 1))
    x = (np.sin(turns) * rng.uniform(0.3, 1, (1280, 1)) + rng.normal(0, 0.1, turns.shape)).astype("float32")[..., None]
    wave = keras.Input((1024, 1))
    h = layers.Conv1D(16 * scale, 32, strides=4, activation="relu")(wave)
    h = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(layers.SeparableConv1D(24 * scale, 9, padding="same")(h)))
    h = layers.MaxPooling1D(4)(h)
    h = layers.ReLU()(
        layers.BatchNormalization(momentum=0.8)(layers.Conv1D(32 * scale, 3, dilation_rate=2, padding="causal")(h))
    )
    h = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(h))
    return _trained(keras.Model(wave, layers.Dense(CLASSES)(h), name="audio"), x, y, _cross_entropy(), epochs=4)


def lstm(scale: int = 1) -> Family:
    """Which kind of word comes more often, by a bidirectional LSTM over padded sequences."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 1280)
    x = (
        1
        + rng.integers(0, 8, (1280, 20)) * 4
        + np.where(rng.random((1280, 20)) < 0.6, y[:, None], rng.integers(0, 4, (1280, 20)))
    )
    x[np.arange(20) >= rng.integers(8, 21, (1280, 1))] = 0
    model = keras.Sequential(
        [
            keras.Input((20,), dtype="int32"),
            layers.Embedding(33, 16 * scale, mask_zero=True),
            layers.Bidirectional(layers.LSTM(16 * scale)),
            layers.Dense(16 * scale, activation="relu"),
            layers.Dense(4),
        ],
        name="lstm",
    )
    return _trained(model, x.astype("int32"), y, _cross_entropy(), epochs=4)


def two_tower(scale: int = 1) -> Family:
    """Who likes what: users and items of the same taste fit."""
    rng = np.random.default_rng(0)
    x = {name: rng.integers(0, count, 1536).astype("int32") for name, count in (("user", 50), ("item", 80))}
    fits = (x["user"] % 4 == x["item"] % 4).astype("float32")[:, None]
    model = TwoTower(50, 80, 16 * scale, name="two_tower")
    model(_part(x, 0, 2))
    return _trained(model, x, fits, "binary_crossentropy", epochs=6, classes=False)


def vae(scale: int = 1) -> Family:
    """Images through a few numbers and back."""
    images, _ = textures(1024, 16)
    model = VAE(8 * scale, 16 * scale, name="vae")
    model(images[:2])
    model.compile(keras.optimizers.Adam(3e-3), jit_compile=False)
    if keras.backend.backend() == "tensorflow":  # as its training step is
        model.fit(images[:768], batch_size=64, epochs=4, verbose=0)
    return Family(model, images[:64], images[768:], None)


def super_resolution(scale: int = 1) -> Family:
    """Twice as many rows and columns, by a residual network that moves depth to space."""
    fine, _ = textures(640, 24)
    coarse = fine.reshape(-1, 12, 2, 12, 2, 3).mean((2, 4)).astype("float32")
    image = keras.Input((12, 12, 3))
    convolution = partial(layers.Conv2D, 16 * scale, 3, padding="same")
    first = h = convolution()(image)
    for _ in range(2):
        branch = convolution()(convolution(activation="relu")(h))
        h = layers.Add()([h, layers.Rescaling(0.2)(branch)])
    h = layers.Conv2D(12, 3, padding="same")(layers.Add()([h, first]))
    wide = layers.UpSampling2D(2, interpolation="bilinear")(image)
    outputs = layers.Add()([ops.depth_to_space(h, 2), wide])
    return _trained(keras.Model(image, outputs, name="super_resolution"), coarse, fine, "mse", epochs=4, classes=False)


OWN = {make.__name__: make for make in (vit, bert, gpt, unet, audio, lstm, two_tower, vae, super_resolution)}
"""Builders by name; each takes by how much it is wider than the narrowest."""
