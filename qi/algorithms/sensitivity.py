"""How much a layer's output changes when its weight is quantized, and how much the model minds: losses for bit allocation.

Both are predictions from a weight, its candidates and the moments of its inputs: nothing runs a model.

Sources: Lin et al., Fixed Point Quantization of Deep Convolutional Networks, 2016 (arXiv:1511.06393), for adding up
1/SQNR over layers; Dong et al., HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks, 2020
(arXiv:1911.03852), for weighting errors by a measured curvature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qi.errors import InputError
from qi.typing import Array

__all__ = ["output_power", "relative_error", "relative_errors", "weighted_losses"]


def output_power(matrix: Array, second: np.ndarray | None = None) -> float:
    """The mean squared output of ``x[g] @ matrix[g]``, summed over all outputs.

    Args:
        matrix: float ``[G, K, N]``.
        second: float64 ``[G, K, K]``, ``E[x x^T]``; None takes inputs that are independent and of power 1.

    Raises:
        InputError: shapes that don't fit each other.

    Example:
        >>> output_power(np.array([[[3.0], [4.0]]]))
        25.0
    """
    given = np.asarray(matrix, np.float64)
    if given.ndim != 3 or (second is not None and second.shape != (given.shape[0], given.shape[1], given.shape[1])):
        received = f"{given.shape}" + ("" if second is None else f" and {second.shape}")
        raise InputError(f"expected a matrix [G, K, N] and moments [G, K, K]; received {received}")
    product = given if second is None else second @ given
    return max(float(np.sum(given * product)), 0.0)  # below 0 by rounding alone


def relative_error(matrix: Array, values: Array, second: np.ndarray | None = None) -> float:
    """The power of the output's error over that of the output, 1/SQNR, with `values` in place of the weights.

    Args:
        matrix: float ``[G, K, N]``: the weight.
        values: of the same shape: what stands for it.
        second: as of `output_power`.

    Returns:
        a number from 0 on; 0 where output and error are both 0, and infinity where the output alone is.

    Raises:
        InputError: shapes that don't fit each other, or values that aren't finite.

    Example:
        >>> relative_error(np.array([[[3.0], [4.0]]]), np.array([[[3.0], [3.0]]]))
        0.04
    """
    exact, changed = np.asarray(matrix, np.float64), np.asarray(values, np.float64)
    if exact.shape != changed.shape:
        raise InputError(f"expected values of the weight's shape {exact.shape}; received {changed.shape}")
    error, power = output_power(exact - changed, second), output_power(exact, second)
    if not np.isfinite([error, power]).all():
        raise InputError("expected finite weights and moments; received NaN or infinity; do repair the model")
    if power == 0:
        return float("inf") if error else 0.0
    return error / power


def relative_errors(matrix: Array, candidates: Sequence[Array], second: np.ndarray | None = None) -> np.ndarray:
    """`relative_error` of each of several candidates, float64.

    Example:
        >>> relative_errors(np.ones((1, 2, 1)), [np.ones((1, 2, 1)), np.zeros((1, 2, 1))]).tolist()
        [0.0, 1.0]
    """
    return np.array([relative_error(matrix, values, second) for values in candidates])


def weighted_losses(errors: Array, measured: float, probe: float) -> np.ndarray:
    """Losses of a layer's candidates: the errors times the layer's curvature.

    Near the float weights the loss has no slope, so it grows as the square of a perturbation, with the output error: how
    fast is measured once a layer, by one small perturbation of random signs (which sees the Hessian's trace), or a few.

    Args:
        errors: of each candidate, relative (`relative_error`).
        measured: the loss with the layer perturbed.
        probe: the relative error of that perturbation.

    Returns:
        float64, one a candidate; zeros where the perturbation changed nothing.

    Raises:
        InputError: a negative or non-finite number, or a loss without a perturbation.

    Example:
        >>> weighted_losses([0.01, 0.04], measured=0.2, probe=0.02).tolist()
        [0.1, 0.4]
    """
    given = np.asarray(errors, np.float64)
    numbers = np.append(given, [measured, probe])
    if not np.isfinite(numbers).all() or numbers.min() < 0 or (probe == 0 and measured > 0):
        raise InputError(
            f"expected finite errors, a loss and the error that caused it; received errors={given.tolist()}, "
            f"measured={measured}, probe={probe}"
        )
    return given * (measured / probe) if probe else np.zeros_like(given)
