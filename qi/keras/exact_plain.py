"""Back from a runtime's arithmetic to fake quantization: the wrappers and holders that an exact graph was made of."""

from __future__ import annotations

from typing import Any

import keras

from qi.keras.exact import ExactDecode, ExactGrid, ExactPool, ExactSums
from qi.keras.exact_islands import ExactNorm, ExactShares
from qi.keras.exact_kernels import ExactBilinear, ExactRealBilinear, ExactRows, ExactSoftmax, ExactTable
from qi.keras.exact_softmax import ExactFixedSoftmax
from qi.keras.graph import Call, Graph, Value

__all__ = ["exact_target", "plain"]

_BESIDE = (
    ExactBilinear,
    ExactFixedSoftmax,
    ExactNorm,
    ExactRealBilinear,
    ExactShares,
    ExactSoftmax,
    ExactTable,
)  # these stand beside the layers that they compute the codes of


def exact_target(graph: Graph) -> str | None:
    """The target whose arithmetic a model has; None for plain fake quantization."""
    found = (call.op for call in graph.calls)
    return next(
        (
            op.target if isinstance(op, ExactGrid) else "litert"
            for op in found
            if isinstance(op, (ExactGrid, ExactRows))
        ),
        None,
    )


def plain(graph: Graph) -> Graph:
    """The graph of wrappers and holders that an exact one was made of; others as they are.

    Args:
        graph: flat; changed in place.
    """
    if exact_target(graph) is None:
        return graph
    stands: dict[int, Value] = {}
    calls: list[Call] = []
    for call in graph.calls:
        inputs = [stands.get(id(value), value) for value in call.inputs]
        if isinstance(call.op, (ExactDecode, *_BESIDE)):
            stands[id(call.outputs[0])] = inputs[0]
        elif isinstance(call.op, (ExactSums, ExactPool, ExactRows)):
            op = call.op.layer if isinstance(call.op, ExactPool) else call.op.wrapper
            stands[id(call.outputs[0])] = _append(calls, op, call, inputs[:1])
        elif isinstance(call.op, ExactGrid):
            stands[id(call.outputs[0])] = _held(calls, call, inputs)
        else:
            call.inputs = inputs
            calls.append(call)
    graph.calls = calls
    graph.outputs = keras.tree.map_structure(lambda value: stands.get(id(value), value), graph.outputs)
    return graph


def _append(calls: list[Call], op: Any, call: Call, inputs: list[Value], arguments: Any = None) -> Value:
    result = Value(call.outputs[0].shape, "float32")
    above, slash, _ = call.path.rpartition("/")
    path, count = f"{above}{slash}{op.name}", call.site.partition("@")[2]
    made = Call(op, path, f"{path}@{count}" if count else path, list(inputs), [result])
    if arguments is not None:
        made.arguments = arguments
    result.producer = made
    calls.append(made)
    return result


def _held(calls: list[Call], call: Call, inputs: list[Value]) -> Value:
    """The operation, the activation and the holder behind one step."""
    _, attrs = call.arguments([None] * len(call.inputs))
    step, value, names = attrs["step"], inputs[0], list(attrs["layers"])
    if attrs["kept"]:
        pass
    elif step in ("add", "mul"):
        kinds = keras.layers
        kind = kinds.Multiply if step == "mul" else kinds.Subtract if attrs.get("sign") == -1 else kinds.Add
        value = _append(calls, kind(name=names[0]), call, [inputs[0], inputs[3]], lambda t: ((list(t),), {}))
    elif step == "matmul":
        value = _append(
            calls, _matmul(inputs[0], inputs[3], names[0]), call, [inputs[0], inputs[3]], lambda t: (tuple(t), {})
        )
    elif step == "mean":
        cls = keras.layers.GlobalAveragePooling2D if len(inputs[0].shape) == 4 else keras.layers.GlobalAveragePooling1D
        value = _append(calls, cls(keepdims=attrs["keepdims"], name=names[0]), call, inputs[:1])
    if attrs["activation"] != "none":
        top = 6.0 if attrs["activation"] == "relu6" else None
        value = _append(calls, keras.layers.ReLU(max_value=top, name=names[-1]), call, [value])
    return _append(calls, call.op.holder, call, [value])


def _matmul(a: Value, b: Value, name: str) -> Any:
    """The operation behind ``keras.ops.matmul``."""
    tensors = [keras.KerasTensor(value.shape, value.dtype) for value in (a, b)]
    operation = keras.ops.matmul(*tensors)._keras_history.operation
    operation.name = name
    return operation
