"""From the inferable quantizers that calibration gives to the trainable ones that start where those are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qi.core.estimators import check_estimator
from qi.errors import ConfigError
from qi.quantizers import (
    BaseInferableQuantizer,
    BaseQuantizer,
    BaseTrainableQuantizer,
    QuantizationMethod,
    QuantizationTarget,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    get_quantizer_class,
    quantizer_classes,
    training_methods,
)
from qi.registry import suggest
from qi.typing import Shape

__all__ = ["TrainingMethods", "trainable_quantizer", "trainable_within"]

_WEIGHTS, _ACTIVATION = QuantizationTarget.WEIGHTS, QuantizationTarget.ACTIVATION
_POT, _UNIFORM = QuantizationMethod.POWER_OF_TWO, QuantizationMethod.UNIFORM

_SYMMETRIC = QuantizationMethod.SYMMETRIC

# What takes the place of a method where it makes no sense: it is defined for activations, say, or has no power-of-two form.
_INSTEAD = {
    **{
        (name, target, _POT): "tqt" for name in ("lsq", "lsq_plus", "ste_learned") for target in (_WEIGHTS, _ACTIVATION)
    },
    **{("lsq_plus", target, _SYMMETRIC): "lsq" for target in (_WEIGHTS, _ACTIVATION)},
    **{("pact", _WEIGHTS, method): "ste" for method in (_SYMMETRIC, _UNIFORM, _POT)},
    ("pact", _ACTIVATION, _SYMMETRIC): "ste_learned",
    ("pact", _ACTIVATION, _POT): "tqt",
    ("adaround", _ACTIVATION, _SYMMETRIC): "lsq",  # activations have no values to choose a rounding for
    ("adaround", _ACTIVATION, _UNIFORM): "lsq",
    ("adaround", _ACTIVATION, _POT): "tqt",
}


@dataclass(frozen=True)
class TrainingMethods:
    """How quantizers train.

    Args:
        weights: a training method: "lsq", "ste"... (`qi.training_methods` lists them).
        activations: another one for activations; None takes the same.
        estimator: the gradient estimator of both.
        estimator_options: its options.

    Raises:
        ConfigError: an unknown method or estimator.
    """

    weights: str = "lsq"
    activations: str | None = None
    estimator: str = "clipped_ste"
    estimator_options: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.weights, self.activations or self.weights):
            if name not in training_methods():
                raise ConfigError(
                    f"expected a training method of {training_methods()}; received {name!r}."
                    + suggest(str(name), training_methods())
                )
        check_estimator(self.estimator, dict(self.estimator_options))

    def of(self, inferable: BaseInferableQuantizer) -> str:
        """The method for the tensor that an inferable quantizer is for, or the one that takes its place there."""
        target, method = inferable.quantization_target, inferable.quantization_method[0]
        name = self.weights if target is _WEIGHTS else self.activations or self.weights
        if name == "pact" and target is _ACTIVATION and method is _UNIFORM and float(np.min(inferable.min_range)) < 0:
            return "ste_learned"  # PACT would cut off what is below 0
        return _INSTEAD.get((name, target, method), name)


def trainable_quantizer(
    inferable: BaseInferableQuantizer,
    shape: Shape,
    methods: TrainingMethods,
    *,
    fixed: bool = False,
    rests: bool = False,
) -> BaseTrainableQuantizer:
    """The trainable quantizer that starts as `inferable`.

    Args:
        inferable: gives bits, method, axes and the first range.
        shape: of the tensor.
        methods: how it trains.
        fixed: whether its range is given by the operation before it (softmax, say) and may not change.
        rests: whether it quantizes outside of training only; for fixed ones.

    Raises:
        ConfigError: no quantizer trains by that method for this target and quantization method.
    """
    method = inferable.quantization_method[0]
    cls: Any = _class_of(inferable.quantization_target, method, "ste" if fixed else methods.of(inferable))
    config: Any
    if inferable.quantization_target is _WEIGHTS:
        groups = (
            {"group_size": inferable.group_size, "group_axis": inferable.group_axis} if inferable.group_size else {}
        )
        config = TrainableQuantizerWeightsConfig(
            method, inferable.num_bits, groups, True, inferable.channel_axis, inferable.per_channel
        )
    else:
        config = TrainableQuantizerActivationConfig(method, inferable.num_bits)
    quantizer: BaseTrainableQuantizer = cls(
        config,
        estimator=methods.estimator,
        estimator_options=dict(methods.estimator_options),
        **({"rests_in_training": True} if rests else {}),
    )
    return quantizer.with_initial(inferable, shape)


def trainable_within(
    inferable: BaseInferableQuantizer, methods: TrainingMethods, *, fixed: bool
) -> BaseTrainableQuantizer:
    """The trainable quantizer of what a part of a layer gives; see `trainable_quantizer`.

    Methods that add noise give way to "ste": no generator can change its state within the loop of a recurrent layer.
    """
    made = trainable_quantizer(inferable, (1,), methods, fixed=fixed)
    if not made.needs_noise:
        return made
    return trainable_quantizer(inferable, (1,), replace(methods, activations="ste"), fixed=fixed)


def _class_of(target: QuantizationTarget, method: QuantizationMethod, name: str) -> type[BaseQuantizer]:
    """The class of a training method, or a ConfigError that says which methods there are for this target."""
    roles = [cls for known in training_methods() for cls in quantizer_classes(known).values()]
    fitting = {
        cls.identifier for cls in roles if target in cls.quantization_targets and method in cls.quantization_method
    }
    if name not in fitting:
        raise ConfigError(
            f"expected a training method that is defined for {target.value} with method {method.value!r}; received {name!r}; "
            f"do choose one of {sorted(fitting)} there"
        )
    return get_quantizer_class(target, method, name)
