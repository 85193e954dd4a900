"""Seconds of processor time that a small CNN takes on each backend of Keras: quantized, trained for an epoch, predicting.

Run: python -m tests.benchmarks.backends [--backends tensorflow jax torch] [--images 1024]

Each backend has a process of its own, with one thread. Every action is done twice on models built anew: the first time a
process compiles what it runs, the second time it has some of that at hand.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

BACKENDS = ("tensorflow", "jax", "torch")
ACTIONS = {
    "quantize": '`quantize_model(model, "w8a8", x)`',
    "prepare": '`prepare_qat(model, "w4a8", x)`',
    "epoch": "an epoch of `fit`, 32 images a step",
    "float epoch": "the same of the float model",
    "predict": "`predict` of the quantized model",
    "float predict": "the same of the float model",
}
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


def seconds(action: Callable[[], object]) -> float:
    """Of this process, on all of its threads."""
    start = time.process_time()
    action()
    return time.process_time() - start


def measured(count: int) -> list[dict[str, float]]:
    """Seconds by action, of the first time and of the second, on the backend of this process."""
    import keras

    import qi
    from tests.keras import models

    warnings.simplefilter("ignore", qi.QuantizationWarning)
    x = np.random.default_rng(0).normal(0.2, 1.0, (count, 8, 8, 3)).astype(np.float32)
    rounds = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        model = models.build("residual")
        y = np.tanh(x.reshape(count, -1)[:, : model.output_shape[-1]])
        made: dict[str, keras.Model] = {}

        def quantize(model: keras.Model = model, made: dict[str, keras.Model] = made) -> None:
            made["quantized"] = qi.quantize_model(model, "w8a8", x, progress=False)[0]

        def prepare(model: keras.Model = model, made: dict[str, keras.Model] = made) -> None:
            made["trained"] = qi.prepare_qat(model, "w4a8", x, progress=False)

        found = {"quantize": seconds(quantize), "prepare": seconds(prepare)}
        for prefix, trained, predicting in (("", made["trained"], made["quantized"]), ("float ", model, model)):
            found[f"{prefix}predict"] = seconds(lambda model=predicting: model.predict(x, batch_size=32, verbose=0))
            trained.compile(keras.optimizers.SGD(1e-3), "mse")
            found[f"{prefix}epoch"] = seconds(lambda model=trained, y=y: model.fit(x, y, batch_size=32, verbose=0))
        rounds.append(found)
    return rounds


def on(backend: str, count: int) -> list[dict[str, float]]:
    """What `measured` gives in a process of that backend."""
    command = [sys.executable, "-m", "tests.benchmarks.backends", "--one", "--images", str(count)]
    environment = os.environ | ENVIRONMENT | {"KERAS_BACKEND": backend}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.images)))
        return
    found = {backend: on(backend, options.images) for backend in options.backends}
    print("| seconds, first / again | " + " | ".join(found) + " |")
    print("| --- |" + " --- |" * len(found))
    for action, text in ACTIONS.items():
        cells = [" / ".join(f"{times[action]:.1f}" for times in rounds) for rounds in found.values()]
        print(f"| {text} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
