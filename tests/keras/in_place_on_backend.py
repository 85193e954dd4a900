"""Run by test_in_place_quantize.py on each backend: a model is quantized in place, trained, converted, saved and read again."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np

import qi
from tests.keras.loops import Branches, built, x


def main(folder: Path) -> None:
    data = x()
    model = built(Branches(), data)
    wanted = model.predict(data, verbose=0)
    quantized, _ = qi.quantize_model(model, "w8a8", data, progress=False)
    result = quantized.predict(data, verbose=0)
    noise = float(np.sum((wanted - result) ** 2) / np.sum(wanted**2))
    assert noise < 1e-2, noise
    training = qi.prepare_qat(model, "w4a8", data, progress=False)
    training.compile("adam", "mse")
    training.fit(data, wanted, epochs=2, verbose=0)
    trained = training.predict(data, verbose=0)
    for name, made, expected in (
        ("ptq", quantized, result), ("qat", training, trained), ("converted", qi.convert(training), trained),
    ):  # fmt: skip
        assert np.array_equal(made.predict(data, verbose=0), expected), name
        made.save(folder / f"{name}.keras")
        read = keras.models.load_model(folder / f"{name}.keras")
        assert np.array_equal(read.predict(data, verbose=0), expected), name
    assert np.array_equal(model.predict(data, verbose=0), wanted)
    np.save(folder / "expected.npy", result)
    print("in place on", keras.backend.backend())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
