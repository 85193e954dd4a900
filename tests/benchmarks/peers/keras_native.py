"""Keras' own `model.quantize`: int8, int4 and GPTQ. Only Dense, EinsumDense and Embedding know it."""

from __future__ import annotations

import warnings

import keras
import numpy as np
from cell import Cell, Limit, main


def config(cell: Cell) -> object:
    """What `quantize` is to be asked for."""
    if cell.options["mode"] == "gptq":
        return keras.quantizers.GPTQConfig(
            dataset=list(cell.batches()), tokenizer=lambda x: x, weight_bits=cell.bits, group_size=-1
        )
    modes = {8: "int8", 4: "int4"}
    if cell.bits not in modes:
        raise Limit(f"no mode of {cell.bits} bits: keras {keras.__version__} has int8 and int4")
    return modes[cell.bits]


def run(cell: Cell) -> np.ndarray:
    """The scores after `quantize`, and how many of the parameters it left in float."""
    model = keras.models.load_model(cell.file(".keras"), compile=False)
    kernels = {layer.name: int(np.prod(layer.kernel.shape)) for layer in model.layers if hasattr(layer, "kernel")}
    with cell.timed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = config(cell)
        model.quantize(wanted) if isinstance(wanted, str) else model.quantize(config=wanted)
    done = [layer.name for layer in model.layers if getattr(layer, "quantization_mode", None) and layer.name in kernels]
    left = 100 * (1 - sum(kernels[name] for name in done) / sum(kernels.values()))
    cell.partial = len(done) < len(kernels)
    cell.remarks.append(
        f"{len(kernels) - len(done)} of {len(kernels)} kernels ({left:.1f} % of their weights) stay in float"
    )
    return model.predict(cell.data["x_test"], batch_size=250, verbose=0)


if __name__ == "__main__":
    main(run)
