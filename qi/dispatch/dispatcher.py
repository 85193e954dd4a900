"""NodeQuantizationDispatcher: which quantizer goes to which attribute and output of a layer.

It owns binding: resolving attribute paths, filling in the channel axis from the layer's policy, checking targets and the
number of outputs, and serialization. A wrapper only executes what is bound here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from qi.dispatch.policy import LayerPolicy, Slot
from qi.errors import ConfigError, FileFormatError
from qi.quantizers import BaseQuantizer, QuantizationTarget, quantizer_from_dict
from qi.registry import suggest
from qi.typing import Json, Shape

__all__ = ["MAIN", "NodeQuantizationDispatcher", "resolve_path"]

MAIN = "*"  # stands for the main weight of whatever layer the dispatcher is later given
_VERSION = 1


def resolve_path(path: str, candidates: Iterable[str], what: str = "one weight", separator: str = "/") -> str:
    """The one candidate that is `path` or ends with ``/path`` (with whatever separates the parts of paths in place of "/").

    Raises:
        ConfigError: none or several do; the message lists the candidates.

    Example:
        >>> resolve_path("recurrent_kernel", ["lstm_cell/kernel", "lstm_cell/recurrent_kernel"])
        'lstm_cell/recurrent_kernel'
    """
    names = list(candidates)
    if path in names:
        return path
    found = [name for name in names if name.endswith(separator + path)]
    if len(found) == 1:
        return found[0]
    problem = "is ambiguous" if found else "doesn't exist"
    raise ConfigError(
        f"expected the path of {what}; received {path!r}, which {problem}; "
        f"do choose one of {found or names}" + ("" if found else suggest(path, names))
    )


def _check(quantizer: Any, target: QuantizationTarget, where: str) -> BaseQuantizer:
    if not isinstance(quantizer, BaseQuantizer):
        raise ConfigError(
            f"expected a quantizer for {where}; received {quantizer!r} of type {type(quantizer).__name__}"
        )
    if quantizer.quantization_target is not target:
        raise ConfigError(
            f"expected a quantizer of {target.value} for {where}; received {type(quantizer).__name__}, "
            f"which is for {quantizer.quantization_target.value}"
        )
    return quantizer


def _sequence(given: Any, of: str) -> Sequence[Any]:
    several = [given] if isinstance(given, BaseQuantizer) else given
    if not isinstance(several, Sequence) or isinstance(several, str):
        raise ConfigError(f"expected activation quantizers, one for each output{of}; received {given!r}")
    return several


class NodeQuantizationDispatcher:
    """The quantizers of one layer: weights by attribute path, activations by output.

    Args:
        weight_quantizers: a mapping from attribute path ("kernel", "query/kernel"; a unique ending is enough) to quantizer;
            or one bare quantizer: of weights, for the main weight of the layer it is later given, or of activations,
            for the layer's output.
        activation_quantizers: one quantizer, or a sequence with one for each output of the layer.
        inner_quantizers: of layers that the layer calls within (a recurrent layer its cell, a layer of yours those that it is
            made of), by path: quantizers of activations, one for each of that layer's outputs, None for one in float.

    Raises:
        ConfigError: something is no quantizer, or a quantizer for activations is given for a weight or the reverse.

    Example:
        >>> from qi.quantizers import WeightsPOTInferableQuantizer
        >>> dispatcher = NodeQuantizationDispatcher(WeightsPOTInferableQuantizer(num_bits=4, threshold=1))
        >>> dispatcher.num_weight_quantizers, dispatcher.num_act_quantizers
        (1, 0)
    """

    separator: ClassVar[str] = "/"

    def __init__(
        self,
        weight_quantizers: Mapping[str, BaseQuantizer] | BaseQuantizer | None = None,
        activation_quantizers: Sequence[BaseQuantizer] | BaseQuantizer | None = None,
        inner_quantizers: Mapping[str, Sequence[BaseQuantizer | None] | BaseQuantizer] | None = None,
    ) -> None:
        if isinstance(weight_quantizers, BaseQuantizer):
            if weight_quantizers.quantization_target is QuantizationTarget.ACTIVATION:
                if activation_quantizers is not None:
                    raise ConfigError(
                        f"expected a quantizer of weights first; received {type(weight_quantizers).__name__} "
                        "and activation_quantizers besides"
                    )
                weight_quantizers, activation_quantizers = None, weight_quantizers
            else:
                weight_quantizers = {MAIN: weight_quantizers}
        self.weight_quantizers: dict[str, BaseQuantizer] = {}
        self.activation_quantizers: list[BaseQuantizer] = []
        self.inner_quantizers: dict[str, list[BaseQuantizer | None]] = {}
        self.set_weight_quantizers({} if weight_quantizers is None else weight_quantizers)
        self.set_activation_quantizers([] if activation_quantizers is None else activation_quantizers)
        self.set_inner_quantizers({} if inner_quantizers is None else inner_quantizers)

    def set_weight_quantizers(self, weight_quantizers: Mapping[str, BaseQuantizer]) -> None:
        """Replaces all weight quantizers."""
        if not isinstance(weight_quantizers, Mapping):
            raise ConfigError(f"expected a mapping from attribute path to quantizer; received {weight_quantizers!r}")
        checked = {
            self._path(path): _check(q, QuantizationTarget.WEIGHTS, f"weight {path!r}")
            for path, q in weight_quantizers.items()
        }
        self.weight_quantizers = checked

    def add_weight_quantizer(self, param_name: str, quantizer: BaseQuantizer) -> None:
        """Adds or replaces the quantizer of one weight."""
        where = self._path(param_name)
        self.weight_quantizers[where] = _check(quantizer, QuantizationTarget.WEIGHTS, f"weight {where!r}")

    def set_activation_quantizers(self, activation_quantizers: Sequence[BaseQuantizer] | BaseQuantizer) -> None:
        """Replaces all activation quantizers."""
        self.activation_quantizers = [
            _check(q, QuantizationTarget.ACTIVATION, f"output {i}")
            for i, q in enumerate(_sequence(activation_quantizers, ""))
        ]

    def set_inner_quantizers(
        self, inner_quantizers: Mapping[str, Sequence[BaseQuantizer | None] | BaseQuantizer]
    ) -> None:
        """Replaces all quantizers of activations within the layer."""
        if not isinstance(inner_quantizers, Mapping):
            raise ConfigError(
                f"expected a mapping from the path of an inner layer to quantizers; received {inner_quantizers!r}"
            )
        self.inner_quantizers = {
            self._path(path): [
                None if q is None else _check(q, QuantizationTarget.ACTIVATION, f"output {i} of {path!r}")
                for i, q in enumerate(_sequence(given, f" of {path!r}"))
            ]
            for path, given in inner_quantizers.items()
        }

    @staticmethod
    def _path(path: Any) -> str:
        if not isinstance(path, str) or not path:
            raise ConfigError(f"expected an attribute path such as 'kernel'; received {path!r}")
        return path

    @property
    def is_weights_quantization(self) -> bool:
        """Whether any weight is quantized."""
        return bool(self.weight_quantizers)

    @property
    def is_activation_quantization(self) -> bool:
        """Whether any output is quantized."""
        return bool(self.activation_quantizers)

    @property
    def is_inner_quantization(self) -> bool:
        """Whether anything within the layer is quantized."""
        return any(self.inner_quantizers.values())

    @property
    def num_weight_quantizers(self) -> int:
        """How many weights are quantized."""
        return len(self.weight_quantizers)

    @property
    def num_act_quantizers(self) -> int:
        """How many outputs are quantized."""
        return len(self.activation_quantizers)

    def bind(
        self,
        shapes: Mapping[str, Shape],
        policy: LayerPolicy | None,
        layer: str,
        slots: Mapping[str, Slot] | None = None,
    ) -> dict[str, BaseQuantizer]:
        """Binds the weight quantizers to a built layer's weights.

        Args:
            shapes: shape of every weight by its path.
            policy: the layer's policy, for the main weight and the axes; None where it has none.
            layer: the layer's name, for messages.
            slots: the slot of each weight that has one by its path, where they are known better than from the policy.

        Returns:
            the quantizer of each path, with its axes filled in.

        Raises:
            ConfigError: a path doesn't exist or is ambiguous, two quantizers meet on one weight, a bare quantizer is given
                to a layer without a main weight, or a quantizer doesn't fit its weight's shape.
        """
        bound: dict[str, BaseQuantizer] = {}
        for path, quantizer in self.weight_quantizers.items():
            wanted = path
            if path == MAIN:
                wanted = policy.slots[0].path if policy and policy.slots else self._only(shapes, layer)
            found = resolve_path(wanted, shapes, separator=self.separator)
            if found in bound:
                raise ConfigError(f"expected one quantizer a weight; received two for {found!r} of {layer!r}")
            slot = slots.get(found) if slots is not None else policy.slot(found) if policy else None
            axes = (slot.channel_axis, slot.input_axis) if slot else (-1, None)
            bound[found] = quantizer.with_axes(*axes)
            try:
                bound[found].check_shape(shapes[found])
            except ValueError as error:
                raise ConfigError(f"weight {found!r} of layer {layer!r}: {error}") from error
        return bound

    @staticmethod
    def _only(shapes: Mapping[str, Shape], layer: str) -> str:
        kernels = [path for path, shape in shapes.items() if len(shape) > 1]
        if len(kernels) != 1:
            raise ConfigError(
                f"expected attribute paths for layer {layer!r}, which has no single main weight; received a bare "
                f"quantizer; do name one of {list(shapes)}"
            )
        return kernels[0]

    def check_outputs(self, count: int, layer: str) -> None:
        """Raises ConfigError unless there is one activation quantizer for each of `count` outputs, or none."""
        if self.activation_quantizers and len(self.activation_quantizers) != count:
            raise ConfigError(
                f"expected one activation quantizer for each of the {count} outputs of layer {layer!r}; "
                f"received {len(self.activation_quantizers)}"
            )

    def get_config(self) -> Json:
        """A versioned JSON record of all quantizers."""
        record = {
            "version": _VERSION,
            "weight_quantizers": {path: q.to_dict() for path, q in self.weight_quantizers.items()},
            "activation_quantizers": [q.to_dict() for q in self.activation_quantizers],
        }
        inner = {path: [q and q.to_dict() for q in found] for path, found in self.inner_quantizers.items()}
        return record | ({"inner_quantizers": inner} if inner else {})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NodeQuantizationDispatcher:
        """A dispatcher from `get_config`'s record.

        Raises:
            FileFormatError: a version or a record this release can't read.
        """
        version = config.get("version") if isinstance(config, Mapping) else None
        if version != _VERSION:
            raise FileFormatError(f"expected dispatcher version {_VERSION}; received version={version!r}")
        weights, activations = config.get("weight_quantizers"), config.get("activation_quantizers")
        inner = config.get("inner_quantizers", {})
        if not isinstance(weights, Mapping) or not isinstance(activations, Sequence) or not isinstance(inner, Mapping):
            raise FileFormatError(
                "expected a dispatcher record with 'weight_quantizers' and 'activation_quantizers'; "
                f"received {sorted(config)}"
            )
        return cls(
            {path: quantizer_from_dict(q) for path, q in weights.items()},
            [quantizer_from_dict(q) for q in activations],
            {path: [q if q is None else quantizer_from_dict(q) for q in found] for path, found in inner.items()},
        )

    def __repr__(self) -> str:
        weights = {path: type(q).__name__ for path, q in self.weight_quantizers.items()}
        inner = {path: [q and type(q).__name__ for q in found] for path, found in self.inner_quantizers.items()}
        activations = [type(q).__name__ for q in self.activation_quantizers]
        return f"{type(self).__name__}({weights}, {activations}{f', {inner}' if inner else ''})"
