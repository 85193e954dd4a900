"""From inferable quantizers to the trainable ones that start there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.errors import ConfigError
from qi.quantizers import (
    ActivationPOTInferableQuantizer,
    ActivationSymmetricInferableQuantizer,
    ActivationUniformInferableQuantizer,
    BaseInferableQuantizer,
    WeightsPOTInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer,
)
from qi.quantizers.trainables import TrainingMethods, trainable_quantizer

W = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
A = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
THREE: dict[str, Any] = {"per_channel": True, "channel_axis": 1, "input_rank": 2}
WEIGHTS: dict[str, BaseInferableQuantizer] = {
    "symmetric": WeightsSymmetricInferableQuantizer(4, [0.5, 0.9, 1.7], narrow_range=True, **THREE),
    "per tensor": WeightsSymmetricInferableQuantizer(3, 1.1),
    "unsigned": WeightsSymmetricInferableQuantizer(3, 1.1, signed=False),
    "one bit": WeightsSymmetricInferableQuantizer(1, 0.7),
    "groups": WeightsSymmetricInferableQuantizer(
        4, [[0.5, 0.6, 0.7], [0.8, 0.9, 1.0]], group_size=3, group_axis=0, **THREE
    ),
    "power of two": WeightsPOTInferableQuantizer(4, [0.5, 1.0, 2.0], **THREE),
    "uniform": WeightsUniformInferableQuantizer(4, [-0.5, -1.0, 0.0], [1.5, 0.2, 2.0], **THREE),
}
ACTIVATIONS: dict[str, BaseInferableQuantizer] = {
    "symmetric": ActivationSymmetricInferableQuantizer(8, 1.7, signed=True),
    "unsigned": ActivationSymmetricInferableQuantizer(8, 1.7, signed=False),
    "power of two": ActivationPOTInferableQuantizer(4, 2.0, signed=True),
    "uniform": ActivationUniformInferableQuantizer(4, -0.7, 1.9),
    "from 0": ActivationUniformInferableQuantizer(4, 0.0, 1.9),
}
# The classes that each method gives for: symmetric, power of two and uniform weights; activations likewise, and from 0.
CLASSES = {
    "adaround": ["AdaRound", "AdaRound", "AdaRound", "LSQ", "TQT", "LSQ", "LSQ"],
    "lsq": ["LSQ", "TQT", "LSQ", "LSQ", "TQT", "LSQ", "LSQ"],
    "lsq_plus": ["LSQ", "TQT", "LSQPlus", "LSQ", "TQT", "LSQPlus", "LSQPlus"],
    "ste": ["STE", "STE", "STE", "STE", "STE", "STE", "STE"],
    "ste_learned": ["LearnedRange", "TQT", "LearnedRange", "LearnedRange", "TQT", "LearnedRange", "LearnedRange"],
    "pact": ["STE", "STE", "STE", "LearnedRange", "TQT", "LearnedRange", "PACT"],
    "tqt": ["", "TQT", "", "", "TQT", "", ""],
    "dorefa": ["DoReFaWeights", "", "", "DoReFaActivation", "", "DoReFaActivation", "DoReFaActivation"],
    "noise": ["AdditiveNoise", "", "AdditiveNoise", "AdditiveNoise", "", "AdditiveNoise", "AdditiveNoise"],
    "stochastic": ["Stochastic"] * 7,
}
KINDS = [
    *(WEIGHTS[name] for name in ("symmetric", "power of two", "uniform")),
    *(ACTIVATIONS[name] for name in ("symmetric", "power of two", "uniform", "from 0")),
]


def of(inferable: BaseInferableQuantizer, method: str = "lsq", x: Any = None, **options: Any) -> Any:
    shape = (1,) if x is None else x.shape
    return trainable_quantizer(inferable, shape, TrainingMethods(method), **options)


@pytest.mark.parametrize("method", CLASSES)
def test_each_method_or_the_nearest_that_makes_sense(method: str) -> None:
    for inferable, wanted in zip(KINDS, CLASSES[method], strict=True):
        x = W if inferable in WEIGHTS.values() else None
        if wanted:
            assert type(of(inferable, method, x)).__name__ == f"{wanted}Quantizer"
        else:
            with pytest.raises(ConfigError, match=f"defined for .*; received {method!r}; do choose one of .*'ste'"):
                of(inferable, method, x)


@pytest.mark.parametrize("method", ["lsq", "ste", "lsq_plus", "ste_learned", "stochastic"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_start_where_the_inferable_quantizer_is(name: str, method: str) -> None:
    inferable = WEIGHTS[name]
    trainable = of(inferable, method, W).initialize(W)
    back = trainable.convert2inferable()
    assert type(back) is type(inferable)
    assert (back.grid, back.channel_axis, back.group_size) == (
        inferable.grid,
        inferable.channel_axis,
        inferable.group_size,
    )
    np.testing.assert_array_equal(trainable(W), back(W))
    np.testing.assert_allclose(trainable(W), inferable(W), rtol=1e-6, atol=1e-7)
    if method in ("lsq", "ste"):  # which keep the scale itself
        np.testing.assert_array_equal(trainable(W), inferable(W))


PAIRS = [
    (name, method)
    for name in ACTIVATIONS
    for method in ("lsq", "ste", "ste_learned", "noise", "pact")
    if (name, method) != ("power of two", "noise")  # which has no power-of-two class
]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_activations_start_where_the_inferable_quantizer_is(name: str, method: str) -> None:
    inferable = ACTIVATIONS[name]
    trainable = of(inferable, method)
    trainable.bind({item.name: item.value for item in trainable.declare((1,))})
    np.testing.assert_allclose(trainable(A), inferable(A), rtol=1e-6, atol=1e-7)
    assert trainable.convert2inferable().grid == inferable.grid


def test_one_range_stays_in_the_configuration_and_many_do_not() -> None:
    one = of(WEIGHTS["per tensor"], x=W).quantization_config.weights_quantization_params
    assert one["threshold"] == pytest.approx(1.1)
    assert "threshold" not in of(WEIGHTS["symmetric"], x=W).quantization_config.weights_quantization_params
    both = of(ACTIVATIONS["uniform"]).quantization_config.activation_quantization_params
    assert (both["min_range"], both["max_range"]) == pytest.approx((-0.7, 1.9), abs=0.1)  # 0 has a code of its own


def test_estimators_and_their_options_reach_the_quantizer() -> None:
    methods = TrainingMethods("ste", "lsq", "dsq", {"alpha": 0.3})
    for inferable, shape, name in ((WEIGHTS["uniform"], W.shape, "STE"), (ACTIVATIONS["uniform"], (1,), "LSQ")):
        quantizer = trainable_quantizer(inferable, shape, methods)
        assert type(quantizer).__name__ == f"{name}Quantizer"
        assert (quantizer.estimator, quantizer.estimator_options) == ("dsq", {"alpha": 0.3})


@pytest.mark.parametrize("method", CLASSES)
def test_fixed_ranges_stay_whatever_the_method(method: str) -> None:
    for rests in (False, True):
        quantizer = of(ACTIVATIONS["from 0"], method, fixed=True, rests=rests)
        assert type(quantizer).__name__ == "STEQuantizer"
        assert quantizer.rests_in_training is rests
        assert not any(item.trainable for item in quantizer.declare((1,)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lsqq",), r"received 'lsqq'\. Did you mean 'lsq'"),
        (("inferable",), "received 'inferable'"),
        ((3,), "received 3"),
        (("lsq", "pakt"), "Did you mean 'pact'"),
        (("lsq", None, "eggs"), "Did you mean 'ewgs'"),
        (("lsq", None, "dsq", {"alpha": 1.0}), "expected alpha from 1e-06 to 0.999; received alpha=1.0"),
        (("lsq", None, "dsq", {"beta": 1.0}), "received beta=1.0"),
    ],
)
def test_unknown_methods_and_estimators_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingMethods(*arguments)
