"""Which attributes of a layer are quantized, along which axis their channels lie, and why others aren't: a table, open to users.

A `Slot` names one weight of a layer type. `channel_axis` is the axis with one scale an index (the output channels);
`input_axis` is the axis that groups run along. Layers that are made of others need no row: the row of whichever layer
holds a weight counts. A row of the outer layer that names it ("proj/kernel") comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    """The slots of a layer type; the first is its main weight, the one a bare quantizer is bound to.

    `floats` says why other weights stay in float, as (pattern of the path, reason).
    """

    layer_type: str
    slots: tuple[Slot, ...]
    floats: tuple[tuple[str, str], ...] = ()

    def slot(self, path: str) -> Slot | None:
        """The slot at `path`, if the policy names it."""
        return next((slot for slot in self.slots if fnmatchcase(path, slot.path)), None)

    def why_float(self, path: str) -> str:
        """Why the weight at `path` stays in float; "" where the policy doesn't say that it does."""
        return next((why for pattern, why in self.floats if fnmatchcase(path, pattern)), "")


_POLICIES: dict[str, LayerPolicy] = {}


def register_policy(
    layer_type: str, slots: Sequence[Slot] = (), *, floats: Mapping[str, str] | None = None, replace: bool = False
) -> LayerPolicy:
    """Says how a layer type is quantized; subclasses follow the nearest ancestor that has a policy.

    Weights that neither argument names stay in float; those that a subclass adds go by their shape, as those of layers
    without a policy do: the last axis is that of the channels.

    Args:
        layer_type: the class' name.
        slots: its weights, the main one first.
        floats: why others stay in float, by the pattern of their paths; reports say so.
        replace: allows a second registration.

    Raises:
        ConfigError: the type already has a policy, or neither a slot nor a reason is given.

    Example:
        >>> policy = register_policy("MyDense", [Slot("kernel")], replace=True)
        >>> policy_for(["MyDense", "Layer"]).slots[0].channel_axis
        -1
    """
    if not slots and not floats:
        raise ConfigError(f"expected at least one slot for {layer_type}, or a reason in floats; received none")
    if layer_type in _POLICIES and not replace:
        raise ConfigError(f"expected a layer type without a policy; received {layer_type!r}; do pass replace=True")
    _POLICIES[layer_type] = LayerPolicy(layer_type, tuple(slots), tuple((floats or {}).items()))
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
_GATES = ("kernel", "recurrent_kernel")
for _name in ("LSTMCell", "GRUCell", "SimpleRNNCell", "ConvLSTMCell"):
    register_policy(_name, [Slot(_path) for _path in _GATES])
for _name, _cell in (("LSTM", "lstm_cell"), ("GRU", "gru_cell"), ("SimpleRNN", "simple_rnn_cell")):
    register_policy(_name, [Slot(f"{_cell}/{_path}") for _path in _GATES])
# [window, 1, frequencies]
register_policy("STFTSpectrogram", [Slot("real_kernel", input_axis=0), Slot("imag_kernel", input_axis=0)])
register_policy("PReLU", floats={"alpha": "slopes of an activation, by which kernels multiply as real numbers"})
_NORMALIZED = "normalizations are computed in float"
for _name in ("BatchNormalization", "LayerNormalization", "GroupNormalization"):
    register_policy(_name, floats=dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), _NORMALIZED))
register_policy("RMSNormalization", floats={"scale": _NORMALIZED})
register_policy("Normalization", floats=dict.fromkeys(("mean", "variance"), _NORMALIZED))
register_policy("SpectralNormalization", floats={"vector_u": "no results are made of it: training alone uses it"})
