"""Keras' own `model.quantize`: int8, int4 and GPTQ. Only Dense, EinsumDense and Embedding know it."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
from cell import BATCH, Cell, Limit, main
from keras.src.quantizers.gptq import GPTQ

BLOCK = 128  # of GPTQ: one that goes on in a second block stores its scales twice, and fails


class Images:
    """Stands before the model: GPTQ takes rows of integer tokens as its data, here the numbers of images."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = keras.ops.convert_to_tensor(images)

    def __call__(self, numbers: Any) -> Any:
        return keras.ops.take(self.images, numbers[0], axis=0)


class Fed(keras.layers.Layer):
    """A block that calls `call` of its layer, where GPTQ listens: Keras itself calls a layer in quantization elsewhere."""

    def __init__(self, inner: keras.layers.Layer) -> None:
        super().__init__()
        self.inner, self.built = inner, True

    def call(self, x: Any) -> Any:
        """What the layer gives."""
        return self.inner.call(x)


def gptq(cell: Cell, model: keras.Model) -> keras.quantizers.GPTQConfig:
    """Keras' GPTQ with everything that it asks for: what lies before the last layer runs as it is, the last is its block."""
    last = model.layers[-1]
    if not isinstance(last, keras.layers.Dense):
        raise Limit("the model does not end in a Dense layer")
    images, features = cell.data["x_calib"], int(last.kernel.shape[0])
    if features > BLOCK:
        cell.remarks.append(f"in groups of {BLOCK}: per channel, GPTQ raises ValueError above {BLOCK} inputs")
    return keras.quantizers.GPTQConfig(
        dataset=[np.arange(len(images))],
        tokenizer=lambda numbers: numbers,
        weight_bits=cell.bits,
        num_samples=len(images) // BATCH,
        sequence_length=BATCH,
        group_size=BLOCK if features > BLOCK else -1,
        quantization_layer_structure={
            "pre_block_layers": [Images(images), keras.Model(model.input, last.input)],
            "sequential_blocks": [Fed(last) if cell.options["mode"] == "gptq fed" else last],
        },
    )


def quantize(cell: Cell, model: keras.Model) -> None:
    """By the mode that is asked for; notes how many inputs GPTQ saw."""
    if cell.options["mode"] == "int":
        modes = {8: "int8", 4: "int4"}
        if cell.bits not in modes:
            raise Limit(f"no mode of {cell.bits} bits: keras {keras.__version__} has int8 and int4")
        model.quantize(modes[cell.bits])
        return
    seen, update = 0, GPTQ.update_hessian_with_batch

    def counted(self: GPTQ, rows: Any) -> None:
        nonlocal seen
        seen += int(np.prod(rows.shape[:-1]))
        update(self, rows)

    GPTQ.update_hessian_with_batch = counted
    model.quantize(config=gptq(cell, model))
    cell.remarks.append(f"GPTQ's Hessian saw {seen} inputs" + ("" if seen else ": this is rounding to nearest"))


def run(cell: Cell) -> np.ndarray:
    """The scores after `quantize`, and how many of the parameters it left in float."""
    model = keras.models.load_model(cell.file(".keras"), compile=False)
    kernels = {layer.name: int(np.prod(layer.kernel.shape)) for layer in model.layers if hasattr(layer, "kernel")}
    with cell.timed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize(cell, model)
    done = [layer.name for layer in model.layers if getattr(layer, "quantization_mode", None) and layer.name in kernels]
    left = 100 * (1 - sum(kernels[name] for name in done) / sum(kernels.values()))
    cell.partial = len(done) < len(kernels)
    cell.remarks.append(
        f"{len(kernels) - len(done)} of {len(kernels)} kernels ({left:.1f} % of their weights) stay in float; "
        f"the last has {cell.bits} bits"
    )
    return model.predict(cell.data["x_test"], batch_size=250, verbose=0)


if __name__ == "__main__":
    main(run)
