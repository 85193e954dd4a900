"""A small network of real data: scikit-learn's handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from qi.core import IntGrid
from qi.core.affine import fake_quantize
from qi.core.scaling import asymmetric_params, symmetric_scale


@dataclass
class Net:
    """Dense layers with ReLU between them."""

    x: np.ndarray
    weights: list[np.ndarray]
    biases: list[np.ndarray]

    def inputs(self, layer):
        """Of a layer, with the first at 0."""
        x = self.x
        for weight, bias in zip(self.weights[:layer], self.biases[:layer], strict=True):
            x = np.maximum(x @ weight + bias, 0.0)
        return x

    def outputs(self, weights=None, biases=None):
        weights, biases = weights or self.weights, biases or self.biases
        x = self.x
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = x @ weight + bias
            x = np.maximum(x, 0.0) if i < len(weights) - 1 else x
        return x


@cache
def _trained():
    from sklearn.datasets import load_digits
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x = x / 16
    net = MLPClassifier((48, 32), max_iter=40, random_state=0)
    with pytest.warns(ConvergenceWarning):
        net.fit(x, y)
    return x, net.coefs_, net.intercepts_


def digits(spread=0.0, seed=0):
    """The network; with a spread, its hidden channels are scaled as folded batch normalization scales them.

    The factors are powers of two with a normal logarithm: the function stays the same bit for bit.
    """
    x, weights, biases = _trained()
    weights, biases = [w.copy() for w in weights], [b.copy() for b in biases]
    generator = np.random.default_rng(seed)
    for i in range(len(weights) - 1):
        factors = np.exp2(np.round(spread * generator.normal(size=len(biases[i]))))
        weights[i], biases[i] = weights[i] / factors, biases[i] / factors
        weights[i + 1] = weights[i + 1] * factors[:, None]
    return Net(x, weights, biases)


def rounded(weight, bits=4, axis=None):
    """Weights rounded to nearest on a symmetric grid, per tensor or with scales along the other axes than `axis`."""
    weight, grid = np.asarray(weight, np.float32), IntGrid(bits)
    absmax = np.abs(weight).max(axis=axis, keepdims=True)
    scale = symmetric_scale(np.maximum(absmax, 1e-30), grid)
    return np.asarray(fake_quantize(weight, scale, np.zeros_like(scale, np.int32), grid), np.float64)


def rounded_activations(x, bits=8):
    """Activations rounded on an asymmetric grid of their extremes, per tensor."""
    grid = IntGrid(bits)
    scale, zero_point = asymmetric_params(min(x.min(), 0.0), max(x.max(), 0.0), grid)
    return np.asarray(fake_quantize(np.asarray(x, np.float32), scale, zero_point, grid), np.float64)


def squared(a, b):
    return float(np.sum((a - b) ** 2))
