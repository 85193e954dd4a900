"""The demo's data and trained model, read from the installed package: no download, no framework."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from qi.errors import FileFormatError

__all__ = ["DemoData", "demo_model_path", "load_demo_data"]

_CLASS_NAMES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_LICENCE = "Fashion-MNIST, Copyright (c) 2017 Zalando SE, MIT licence (text in qi/demo/README.md)"


@dataclass(frozen=True, eq=False)
class DemoData:
    """500 training and 2,000 test images of Fashion-MNIST, every class equally often, scaled for the model.

    Attributes:
        x_calib: float32 in [0, 1], `(500, 28, 28, 1)`: to calibrate with; the model was trained on them too.
        y_calib: int64 class indices, `(500,)`.
        x_test: float32 in [0, 1], `(2000, 28, 28, 1)`: never seen in training.
        y_test: int64 class indices, `(2000,)`.
        class_names: the ten names, by class index.
        licence: one line: what the data are, whose, under which licence.
    """

    x_calib: np.ndarray
    y_calib: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] = _CLASS_NAMES
    licence: str = _LICENCE


def _asset(name: str) -> Path:
    path = Path(str(resources.files("qi.demo") / name))
    if not path.is_file():
        raise FileFormatError(
            f"expected the file {name} that the package ships; received no such file at {path}; "
            "do: pip install --force-reinstall quantizers-infrastructure (unzipped)"
        )
    return path


def _images(codes: np.ndarray) -> np.ndarray:
    return codes[..., None].astype(np.float32) / np.float32(255.0)


def load_demo_data() -> DemoData:
    """Returns the data set that the package ships, scaled as the demo's model expects it.

    Raises:
        FileFormatError: the installed file is missing or damaged.

    Example:
        >>> data = load_demo_data()
        >>> data.x_test.shape, str(data.x_test.dtype), data.class_names[data.y_test[0]]
        ((2000, 28, 28, 1), 'float32', 'ankle boot')
    """
    path = _asset("data.npz")
    try:
        # opened here: numpy leaves a file that it opened itself open when the archive is damaged
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return DemoData(
                x_calib=_images(stored["x_calib"]),
                y_calib=stored["y_calib"].astype(np.int64),
                x_test=_images(stored["x_test"]),
                y_test=stored["y_test"].astype(np.int64),
            )
    except (KeyError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise FileFormatError(
            f"expected the demo's data in {path}; received a damaged file ({error}); "
            "do: pip install --force-reinstall quantizers-infrastructure"
        ) from error


def demo_model_path() -> Path:
    """Returns the path of the trained float32 model: `keras.models.load_model` alone loads it.

    It takes `(n, 28, 28, 1)` float32 images in [0, 1] and returns the probabilities of the ten classes.

    Raises:
        FileFormatError: the installed file is missing.

    Example:
        >>> demo_model_path().name
        'model.keras'
    """
    return _asset("model.keras")
