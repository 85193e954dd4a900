"""Which attributes of a layer are quantized, and along which axis their channels lie: a table, open to users.

A `Slot` names one weight of a layer type. `channel_axis` is the axis with one scale an index (the output channels);
`input_axis` is the axis that groups run along.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qi.errors import ConfigError

__all__ = ["LayerPolicy", "Slot", "policy_for", "policy_names", "register_policy"]


@dataclass(frozen=True)
class Slot:
    """One quantizable weight.

    Args:
        path: attribute path relative to the layer, such as "kernel" or "query/kernel"; "*" stands for the name of a sub-layer
            that its user chose, as in "*/lstm_cell/kernel".
        channel_axis: axis of the channels.
        input_axis: axis along which groups run; None where groups make no sense.
    """

    path: str
    channel_axis: int = -1
    input_axis: int | None = -2


@dataclass(frozen=True)
class LayerPolicy:
    """The slots of a layer type; the first is its main weight, the one a bare quantizer is bound to."""

    layer_type: str
    slots: tuple[Slot, ...]

    def slot(self, path: str) -> Slot | None:
        """The slot at `path`, if the policy names it."""
        return next((slot for slot in self.slots if fnmatchcase(path, slot.path)), None)


_POLICIES: dict[str, LayerPolicy] = {}


def register_policy(layer_type: str, slots: Sequence[Slot], *, replace: bool = False) -> LayerPolicy:
    """Says how a layer type is quantized; subclasses follow the nearest ancestor that has a policy.

    Args:
        layer_type: the class' name.
        slots: its weights, the main one first.
        replace: allows a second registration.

    Raises:
        ConfigError: the type already has a policy, or no slot is given.

    Example:
        >>> policy = register_policy("MyDense", [Slot("kernel")], replace=True)
        >>> policy_for(["MyDense", "Layer"]).slots[0].channel_axis
        -1
    """
    if not slots:
        raise ConfigError(f"expected at least one slot for {layer_type}; received none")
    if layer_type in _POLICIES and not replace:
        raise ConfigError(f"expected a layer type without a policy; received {layer_type!r}; do pass replace=True")
    _POLICIES[layer_type] = LayerPolicy(layer_type, tuple(slots))
    return _POLICIES[layer_type]


def policy_for(class_names: Iterable[str]) -> LayerPolicy | None:
    """The policy of the first name that has one (a class' names along its method resolution order), or None."""
    return next((_POLICIES[name] for name in class_names if name in _POLICIES), None)


def policy_names() -> tuple[str, ...]:
    """Layer types with a policy."""
    return tuple(sorted(_POLICIES))


for _name in ("Dense", "Conv1D", "Conv2D", "Conv3D"):
    register_policy(_name, [Slot("kernel")])
for _name in ("DepthwiseConv1D", "DepthwiseConv2D"):
    # [*window, channels, multiplier]: each input channel has its own filters.
    register_policy(_name, [Slot("kernel", channel_axis=-2, input_axis=None)])
for _name in ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"):
    # [*window, outputs, inputs]
    register_policy(_name, [Slot("kernel", channel_axis=-2, input_axis=-1)])
for _name in ("SeparableConv1D", "SeparableConv2D"):
    register_policy(_name, [Slot("pointwise_kernel"), Slot("depthwise_kernel", channel_axis=-2, input_axis=None)])
register_policy("EinsumDense", [Slot("kernel", input_axis=0)])
# One scale a row, as look-up kernels read rows.
register_policy("Embedding", [Slot("embeddings", channel_axis=0, input_axis=1)])
register_policy("ReversibleEmbedding", [Slot("embeddings", channel_axis=0, input_axis=1)])
# The kernels of all gates side by side, for inputs and for states.
_RECURRENT = [
    f"{cell}_cell/{kernel}" for cell in ("lstm", "gru", "simple_rnn") for kernel in ("kernel", "recurrent_kernel")
]
for _name, _first in (("LSTM", 0), ("GRU", 2), ("SimpleRNN", 4)):
    register_policy(_name, [Slot(_path) for _path in _RECURRENT[_first : _first + 2]])
register_policy("Bidirectional", [Slot(f"*/{_path}") for _path in _RECURRENT])
