"""Lowering of recurrent layers, and of two that run in both directions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from qi.ir.graph import Tensor
from qi.ir.recurrent import ACTIVATIONS
from qi.keras.fold import activation_name
from qi.keras.lowering import Site, lowering
from qi.keras.variables import weights_of

__all__: list[str] = []

_LAYERS = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN, keras.layers.RNN)
_KINDS = {
    keras.layers.LSTMCell: "lstm",
    keras.layers.GRUCell: "gru",
    keras.layers.SimpleRNNCell: "simple_rnn",
}


@lowering("LSTM", "GRU", "SimpleRNN", "RNN")
def _recurrent(site: Site) -> Tensor:
    _check_call(site)
    return _states(site, site.layer, "")


@lowering("Bidirectional")
def _bidirectional(site: Site) -> Any:
    """The layers' results in the order of the steps, joined."""
    layer = site.layer
    _check_call(site)
    ahead, behind = (_states(site, part, part.name) for part in (layer.forward_layer, layer.backward_layer))
    if layer.return_sequences:
        behind = _reversed(site, behind, "in_order")
    if layer.merge_mode is None:
        return [ahead, behind]
    if layer.merge_mode == "concat":
        return site.emit("concat", [ahead, behind], axis=len(site.shape) - 1)
    if layer.merge_mode == "mul":
        return site.emit("mul", [ahead, behind], activation="none")
    total = site.emit("add", [ahead, behind], suffix="sum", activation="none")
    if layer.merge_mode == "sum":
        return total
    return site.emit("mul", [total, site.constant("half", np.float32(0.5).reshape(1))], activation="none")


def _check_call(site: Site) -> None:
    if len(site.inputs) > 1:
        raise site.refuse("with an initial state", "call it on its sequence alone")
    if site.layer.stateful:
        raise site.refuse("which is stateful", "make it with stateful=False, and give it whole sequences")
    if site.layer.return_state:
        raise site.refuse("with return_state=True", "take the last step of what return_sequences=True gives")


def _states(site: Site, layer: Any, suffix: str) -> Tensor:
    """The states of one layer in the order in which it runs: of all steps or of the last.

    Cells that are stacked are as many layers, one after the other.
    """
    if type(layer) not in _LAYERS:
        raise site.refuse(f"of a {type(layer).__name__}", "use LSTM, GRU or SimpleRNN")
    cells = _cells(layer.cell)
    x = _reversed(site, site.x, "backwards") if layer.go_backwards else site.x
    for cell in cells:
        last = cell is cells[-1]
        name = suffix if last else "/".join(filter(None, (suffix, cell.name)))
        x = _run(site, cell, x, bool(layer.return_sequences) or not last, name)
    return x


def _cells(cell: Any) -> list[Any]:
    """Those of a stack, however deep; else the one."""
    stacked = type(cell) is keras.layers.StackedRNNCells
    return [one for part in cell.cells for one in _cells(part)] if stacked else [cell]


def _run(site: Site, cell: Any, x: Tensor, sequences: bool, suffix: str) -> Tensor:
    kind = _KINDS.get(type(cell))
    if kind is None:
        raise site.refuse(f"of a {type(cell).__name__}", "use LSTMCell, GRUCell or SimpleRNNCell")
    attrs: dict[str, Any] = {"sequences": sequences, "activation": _activation(site, cell, "activation")}
    if kind != "simple_rnn":
        attrs["recurrent_activation"] = _activation(site, cell, "recurrent_activation")
    if kind == "gru":
        attrs["reset_after"] = bool(cell.reset_after)
    paths = {id(variable): path for path, variable in weights_of(site.layer).items()}
    kernels = [cell.kernel, cell.recurrent_kernel, *([cell.bias] if cell.use_bias else [])]
    weights = [site.weight(paths[id(variable)]) for variable in kernels]
    shape = (x.shape[0], *([x.shape[1]] if sequences else []), int(cell.units))
    return site.emit(kind, [x, *weights], shape, suffix=suffix, **attrs)


def _activation(site: Site, cell: Any, key: str) -> str:
    name = activation_name(SimpleNamespace(activation=getattr(cell, key)))
    if name not in ACTIVATIONS:
        raise site.refuse(f"whose {key} is {name!r}", f"use one of {', '.join(ACTIVATIONS)}")
    return name


def _reversed(site: Site, x: Tensor, suffix: str) -> Tensor:
    return site.emit("reverse", [x], x.shape, suffix=suffix, dtype=x.dtype, axis=1)


@lowering("Flip")
def _flip(site: Site) -> Tensor:
    axis = site.layer.axis
    axes = [a % len(site.shape) for a in ([axis] if isinstance(axis, int) else list(axis or [0]))]
    if len(axes) != 1 or axes == [0]:
        raise site.refuse(f"along {axis}", "flip one axis at a time, and not the batch")
    return site.emit("reverse", [site.x], dtype=site.x.dtype, axis=axes[0])
