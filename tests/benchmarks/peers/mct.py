"""MCT 2.6.1 (TensorFlow 2.15, Keras 2) on a twin of the Keras 3 model: plain and gradient-based post-training quantization."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import model_compression_toolkit as mct
import numpy as np
import tensorflow as tf
from cell import Cell, main
from mct_quantizers import QuantizationMethod
from model_compression_toolkit.core.common.network_editors import NodeNameFilter
from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0 import tpc as imx500

KERNEL = "kernel_attr"


def layer_of(entry: dict[str, Any]) -> Any:
    """A Keras 2 layer of the Keras 3 config of one."""
    config = {key: value for key, value in entry["config"].items() if not isinstance(value, dict) and key != "dtype"}
    if entry["class_name"] == "InputLayer":
        return tf.keras.layers.InputLayer(input_shape=config["batch_shape"][1:], name=config["name"])
    kind = getattr(tf.keras.layers, entry["class_name"])
    known = {*inspect.signature(kind.__init__).parameters, "name"}
    return kind(**{key: value for key, value in config.items() if key in known})


def twin(cell: Cell) -> Any:
    """The Keras 2 model with the same layers and weights, checked to give the same outputs."""
    config = cell.about["config"]
    tensors: dict[str, Any] = {}
    layers = {}
    for entry in config["layers"]:
        layer = layers[entry["name"]] = layer_of(entry)
        if not entry["inbound_nodes"]:
            tensors[entry["name"]] = layer.output
            continue
        given = entry["inbound_nodes"][0]["args"][0]
        sources = [one["config"]["keras_history"][0] for one in (given if isinstance(given, list) else [given])]
        inputs = [tensors[source] for source in sources]
        tensors[entry["name"]] = layer(inputs if len(inputs) > 1 else inputs[0])
    ends = [tensors[np.ravel(config[key]).tolist()[0]] for key in ("input_layers", "output_layers")]
    model = tf.keras.Model(*ends)
    with np.load(cell.file(".npz")) as weights:
        for name, layer in layers.items():
            layer.set_weights([weights[f"{name}/{index}"] for index in range(len(layer.weights))])
    cell.check_float(model.predict(cell.data["x_calib"][:64], verbose=0))
    return model


def platform(cell: Cell) -> Any:
    """The toolkit's default platform (IMX500 1.0), with `bits` and 8 as the choices for kernels."""
    eight, _, rest = imx500.get_op_quantization_configs()
    method = getattr(QuantizationMethod, cell.options.get("activations", "POWER_OF_TWO"))
    eight, rest = (one.clone_and_edit(activation_quantization_method=method) for one in (eight, rest))
    changed = {"weights_n_bits": cell.bits}
    if "weights" in cell.options:
        changed |= {
            "weights_quantization_method": getattr(QuantizationMethod, cell.options["weights"]),
            "lut_values_bitwidth": 8,
        }
    few = eight.clone_and_edit(attr_to_edit={KERNEL: changed})
    choices = [few] if cell.bits == 8 else [few, eight]
    return imx500.generate_tpc(
        default_config=rest, base_config=few, mixed_precision_cfg_list=choices, name=f"w{cell.bits}a8"
    )


def node_of(cell: Cell, name: str) -> str:
    """What the toolkit calls a layer: one that takes in the batch normalization after it is renamed."""
    layers = cell.about["config"]["layers"]
    after = [
        one for one in layers if one["class_name"] == "BatchNormalization" and f'["{name}", 0, 0]' in json.dumps(one)
    ]
    return f"{name}_bn" if after else name


def settings(cell: Cell) -> Any:
    """The core configuration: the ends at 8 bits."""
    chosen = mct.core.BitWidthConfig()
    if cell.bits != 8:
        for name in cell.ends:
            chosen.set_manual_weights_bit_width(NodeNameFilter(node_of(cell, name)), 8, "kernel")
    return mct.core.CoreConfig(bit_width_config=chosen)


def run(cell: Cell) -> np.ndarray:
    """The scores of the quantized Keras 2 model."""
    model = twin(cell)
    size = cell.options.get("batch", 32)

    def images() -> Iterator[list[np.ndarray]]:
        return ([batch] for batch in cell.batches(size))

    common = {"core_config": settings(cell), "target_platform_capabilities": platform(cell)}
    with cell.timed():
        if "gradient" in cell.options:
            config = mct.gptq.get_keras_gptq_config(**cell.options["gradient"])
            quantized, _ = mct.gptq.keras_gradient_post_training_quantization(model, images, config, **common)
        else:
            quantized, _ = mct.ptq.keras_post_training_quantization(model, images, **common)
    wrapped = [one for layer in quantized.layers for one in getattr(layer, "weights_quantizers", {}).values()]
    cell.check_kernels([one.num_bits for one in wrapped])
    return quantized.predict(cell.data["x_test"], batch_size=250, verbose=0)


if __name__ == "__main__":
    main(run)
