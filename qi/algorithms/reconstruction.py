"""Reconstruction by gradients, as recipes name it: its options. The work itself needs a framework: `qi.keras.reconstruct`."""

from __future__ import annotations

from typing import Any

from qi.algorithms.options import Choice, Count, Number, Options
from qi.algorithms.registry import algorithm

__all__ = ["brecq", "reconstruct"]

_TRAINING = {
    "steps": Count(0),
    "learning_rate": Number(least=0),
    "batch_size": Count(1),
    "drop": Number(least=0, most=1),
    "seed": Count(0),
}
_BLOCKWISE = Options(**_TRAINING)
_OPTIONS = Options(scope=Choice(("network", "block", "layer")), rounding=Choice(("lsq", "adaround")), **_TRAINING)


@algorithm("reconstruct", stage="training", needs="data", options=_OPTIONS)
def reconstruct(
    *,
    scope: str = "network",
    rounding: str = "lsq",
    steps: int = 0,
    learning_rate: float = 0.0,
    batch_size: int = 32,
    drop: float = 0.5,
    seed: int = 0,
) -> dict[str, Any]:
    """Trains quantized weights, scales and biases on unlabelled samples to give what the float model gives.

    Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, 2020 (arXiv:2004.10568); Li et al., BRECQ,
    2021 (arXiv:2102.05426); Wei et al., QDrop, 2022 (arXiv:2203.05740); Esser et al., Learned Step Size Quantization, 2019
    (arXiv:1902.08153).

    Args:
        scope: "network" trains all at once against the model's outputs and those of its blocks, "block" and "layer" one segment
            after the other.
        rounding: "lsq" trains weights and scales, "adaround" which way each weight is rounded.
        steps: of gradient descent for each segment; 0: more for fewer bits.
        learning_rate: of Adam, at the first step; 0: higher for fewer bits.
        batch_size: samples a step.
        drop: the share of a segment's inputs that are float values, from 0 to 1.
        seed: of the order of samples.

    Returns:
        the arguments of `qi.keras.reconstruct.reconstruct`.

    Raises:
        ConfigError: an option outside its range.

    Example:
        >>> reconstruct(steps=100)["steps"], reconstruct()["steps"]
        (100, None)
    """
    found = _OPTIONS.check(
        scope=scope,
        rounding=rounding,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        drop=drop,
        seed=seed,
    )
    return found | {"steps": steps or None, "learning_rate": learning_rate or None}


@algorithm("brecq", stage="training", needs="data", options=_BLOCKWISE)
def brecq(
    *, steps: int = 0, learning_rate: float = 0.0, batch_size: int = 32, drop: float = 0.5, seed: int = 0
) -> dict[str, Any]:
    """Learns which way weights are rounded block after block, each fed with what the quantized blocks before it give.

    Source: Li et al., BRECQ, 2021 (arXiv:2102.05426); Wei et al., QDrop, 2022 (arXiv:2203.05740).

    Args:
        steps: as of `reconstruct`, like the others.
        learning_rate: likewise.
        batch_size: likewise.
        drop: likewise.
        seed: likewise.

    Returns:
        the arguments of `qi.keras.reconstruct.reconstruct`.

    Raises:
        ConfigError: an option outside its range.

    Example:
        >>> brecq()["scope"], brecq()["rounding"]
        ('block', 'adaround')
    """
    return reconstruct(
        scope="block",
        rounding="adaround",
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        drop=drop,
        seed=seed,
    )
