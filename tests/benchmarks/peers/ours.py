"""QI on the same terms, run by the interpreter that runs the benchmark."""

from __future__ import annotations

import warnings

import keras
import numpy as np
from cell import Cell, main

import qi
from qi.recipes import Recipe, Rule, TensorSpec, get_recipe


def run(cell: Cell) -> np.ndarray:
    """The scores of the quantized model; options other than recipe and algorithms are `quantize_model`'s."""
    warnings.simplefilter("ignore", qi.QuantizationWarning)
    model = keras.models.load_model(cell.file(".keras"), compile=False)
    options = dict(cell.options)
    recipe = get_recipe(options.pop("recipe").format(bits=cell.bits))
    if algorithms := options.pop("algorithms", ()):
        weights = TensorSpec.from_config({**recipe.weights.to_config(), "algorithms": algorithms})
        recipe = Recipe(recipe.name, weights=weights, activations=recipe.activations)
    if cell.bits != 8:
        eight = get_recipe("w8a8").weights
        recipe = recipe.with_rules(*(Rule(name, weights=eight) for name in cell.ends))
    with cell.timed():
        quantized, _ = qi.quantize_model(model, recipe, cell.data["x_calib"], progress=False, **options)
    return quantized.predict(cell.data["x_test"], batch_size=250, verbose=0)


if __name__ == "__main__":
    main(run)
