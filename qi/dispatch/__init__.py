"""Binding of quantizers to the attributes and outputs of layers."""

from qi.dispatch.dispatcher import MAIN, NodeQuantizationDispatcher, resolve_path
from qi.dispatch.policy import LayerPolicy, Slot, policy_for, policy_names, register_policy

__all__ = [
    "MAIN",
    "LayerPolicy",
    "NodeQuantizationDispatcher",
    "Slot",
    "policy_for",
    "policy_names",
    "register_policy",
    "resolve_path",
]
