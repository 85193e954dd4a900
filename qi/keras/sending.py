"""A float graph made again in another process: what is sent there, and how it is checked."""

from __future__ import annotations

import hashlib
import tempfile
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from qi.errors import UnsupportedError
from qi.keras.graph import Graph, follow_model
from qi.keras.prepare import prepare
from qi.keras.searched import Searched, searched_weights
from qi.keras.variables import is_builtin
from qi.recipes import Recipe, TensorSpec

__all__ = ["Source", "not_rebuilt"]


@dataclass(frozen=True, eq=False)
class Source:
    """What another process makes the same graph of: the model as a file, and how to prepare it.

    Attributes:
        model: the given one; it stays here.
        recipe: that it is prepared with.
        specs: the candidates of its weights.
        archive: uint8, its `.keras` file; None before `packed`, and where workers share this process' memory.
        custom: classes and functions of users by their registered names.
        backend: of Keras.
        threads: of one operation of TensorFlow, 0 for its default: as many here as there, for sums are split among them.
        key: tells sources apart.
        digest: of the searched weights.
    """

    model: keras.Model | None
    recipe: Recipe
    specs: tuple[TensorSpec, ...]
    archive: np.ndarray | None = None
    custom: Mapping[str, Any] | None = None
    backend: str = ""
    threads: int = 0
    key: str = ""
    digest: str = ""

    def packed(self, weights: Sequence[Searched], *, here: bool) -> Source:
        """What is sent to workers, without the model itself.

        Args:
            weights: the searched ones, to check what is rebuilt.
            here: whether workers are threads of this process.

        Raises:
            UnsupportedError: the model can't be saved.
        """
        key = uuid.uuid4().hex
        if here or self.model is None:
            return replace(self, model=None, key=key)
        backend, threads = keras.backend.backend(), 0
        if backend == "tensorflow":
            import tensorflow as tf

            threads = int(tf.config.threading.get_intra_op_parallelism_threads())
        archive, custom = _archive(self.model), _custom_objects(self.model)
        return replace(
            self, model=None, archive=archive, custom=custom, backend=backend, threads=threads, key=key,
            digest=_digest(weights),
        )  # fmt: skip

    def rebuilt(self) -> tuple[Graph, list[Searched]]:
        """The graph and its searched weights, from the file.

        Raises:
            UnsupportedError: the model can't be rebuilt here, or is another one then.
        """
        if keras.backend.backend() != self.backend or self.archive is None:
            raise UnsupportedError(
                f"expected workers with Keras' backend {self.backend!r}; received {keras.backend.backend()!r}; do set "
                "KERAS_BACKEND in the environment"
            )
        _set_threads(self.threads)
        try:
            model = _loaded(self.archive, self.custom)
            graph, why = follow_model(model)
        except Exception as error:  # layers are code of users: they may raise anything
            raise not_rebuilt(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        if graph is None:
            raise not_rebuilt(why)
        ready = prepare(model, self.recipe, graph=graph)
        weights, _ = searched_weights(ready, self.specs)
        if _digest(weights) != self.digest:
            raise not_rebuilt("its weights are others")
        return ready.graph, weights


def _archive(model: keras.Model) -> np.ndarray:
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # what Keras says of saving: nobody keeps the file
        path = Path(folder) / "model.keras"
        try:
            keras.saving.save_model(model, path)
        except OSError:
            raise
        except Exception as error:  # layers are code of users: they may raise anything
            raise not_rebuilt(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        return np.frombuffer(path.read_bytes(), np.uint8)


def _loaded(archive: np.ndarray, custom: Mapping[str, Any] | None) -> keras.Model:
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.keras"
        path.write_bytes(archive.tobytes())
        return keras.saving.load_model(path, custom_objects=dict(custom or {}), compile=False)


def _custom_objects(model: keras.Model) -> dict[str, Any]:
    """Classes and functions of users that Keras looks for when it loads the model."""
    known = {name: made for name, made in keras.saving.get_custom_objects().items() if _of_users(made)}
    parts = [model, *model._flatten_layers(include_self=False, recursive=True)]
    classes = {type(part) for part in parts if not is_builtin(part) and _of_users(type(part))}
    return known | {keras.saving.get_registered_name(kind): kind for kind in classes}


def _of_users(made: Any) -> bool:
    return str(getattr(made, "__module__", "")).partition(".")[0] not in ("keras", "qi")


def _digest(weights: Sequence[Searched]) -> str:
    found = hashlib.sha256()
    for weight in weights:
        found.update(f"{weight.label} {weight.array.shape} {weight.array.dtype}\n".encode())
        found.update(np.ascontiguousarray(weight.array).tobytes())
    return found.hexdigest()


def _set_threads(threads: int) -> None:
    if threads and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if tf.config.threading.get_intra_op_parallelism_threads() != threads:
            with suppress(RuntimeError):  # it runs already: sums may differ in the last bit
                tf.config.threading.set_intra_op_parallelism_threads(threads)


def not_rebuilt(why: str) -> UnsupportedError:
    """The error of a model that is another one there, or none."""
    return UnsupportedError(
        f"expected a model that other processes can rebuild from its file; received one that can't be: {why}; do give its "
        "layers a get_config and register them with keras.saving.register_keras_serializable, set jobs=1, or use "
        "joblib.parallel_config('threading')"
    )
