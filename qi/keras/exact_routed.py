"""What a runtime will do with a model, by the values of its Keras graph; and what no Keras model can do exactly as it does."""

from __future__ import annotations

import keras
import numpy as np

from qi.errors import ConfigError, UnsupportedError
from qi.ir.dynamic import KIND as DYNAMIC
from qi.ir.graph import Op
from qi.ir.kinds import KINDS, kernel_of
from qi.ir.litert import packed_bits
from qi.ir.recurrent import RECURRENT
from qi.ir.routing import route
from qi.ir.told import told
from qi.keras.exact_steps import EXACT_TARGETS
from qi.keras.graph import Graph, Value
from qi.keras.lower import lower_graph

__all__ = ["NEARLY", "Routed", "check_exact", "is_dynamic", "product_kind", "table_of"]

NEARLY = frozenset(
    (
        "softmax softmax_of_codes layer_norm layer_norm_of_codes rms_norm rms_norm_of_codes unary add sub mul div maximum "
        "minimum relu prelu cast resize_bilinear compare select"
    ).split()
)
"""Kinds of operations that targets also do in real numbers, element by element or along an axis: Keras does them likewise, and
the last bit of a real number moves its code by one step, seldom."""

_AS_THEY_ARE = ("quantize", "dequantize", "maximum", "minimum")  # the last two on codes of one grid: as in real numbers
_ELEMENTWISE = frozenset("unary relu prelu add sub mul".split())
_APPROXIMATE = _ELEMENTWISE | {"softmax", "resize_bilinear"}
_LITERT_BITS = 8


def check_exact(exact: str | None) -> None:
    """Refuses what is no target.

    Raises:
        ConfigError: an unknown one.
        UnsupportedError: the backend can't do 64-bit sums.
    """
    if exact is None:
        return
    if exact not in EXACT_TARGETS:
        raise ConfigError(f"expected exact to be None or one of {EXACT_TARGETS}; received exact={exact!r}")
    if keras.backend.backend() == "jax":
        import jax

        if exact == "onnxruntime":  # found in whole networks, never in single layers
            raise UnsupportedError(
                "expected the TensorFlow or torch backend for exact='onnxruntime'; received JAX, whose compiler rounds a few "
                "results otherwise; do set KERAS_BACKEND, or leave out exact='onnxruntime' (qi.emulate gives what the file gives)"
            )
        if not jax.config.jax_enable_x64:
            raise UnsupportedError(
                f"expected 64-bit numbers for exact={exact!r}; JAX has them off; do set jax_enable_x64 before anything else"
            )


class Routed:
    """The operations that a target will do, and which of them the exact model does just so.

    Args:
        graph: flat, of wrappers and holders; only read.
        target: one of `EXACT_TARGETS`.
        trains: whether quantizers train: then their tables aren't known yet.

    Raises:
        UnsupportedError: a layer that no integer graph can hold.
    """

    def __init__(self, graph: Graph, target: str, trains: bool) -> None:
        lowered, tensors = lower_graph(graph)
        self.target, self.trains = target, trains
        self.graph = route(lowered, target)
        self._names = {key: tensor.name for key, tensor in tensors.items()}
        self._made = {tensor.name: op for op in self.graph.ops for tensor in op.outputs}
        self._covered: set[int] = set()

    def op_of(self, value: Value) -> Op | None:
        """The operation that gives a value, reshapes and transposes aside; None where fusing left the value out."""
        name = self._names.get(id(value), "")
        while name in self.graph.merged and name not in self._made:
            name = self.graph.merged[name]
        op = self._made.get(name)
        while op is not None and op.kind in ("reshape", "transpose"):
            op = self._made.get(op.x.name)
        return op

    def island(self, last: Op) -> list[Op]:
        """The operations on real numbers that a "quantize" ends, from the "dequantize" on; none where there are several ways."""
        found = [last]
        while last.kind != "dequantize":
            before = [self._made[t.name] for t in last.inputs if not t.constant and t.name in self._made]
            if len(before) != 1:
                return []
            last = before[0]
            found.insert(0, last)
        return found

    def cover(self, op: Op | None) -> None:
        """Notes that the exact model does an operation as the target does."""
        if op is not None:
            self._covered.add(id(op))

    def check(self) -> None:
        """Refuses a model of which some operation would be another than the target's.

        Raises:
            UnsupportedError: it is named.
        """
        for op in self.graph.ops:
            self._check_bits(op)
            kind = KINDS.get(op.kind)
            rescaled = op.kind == "quantize" and op.x.quantized and self.target != "onnxruntime"
            if id(op) in self._covered or ((kind.moves or op.kind in _AS_THEY_ARE) and not rescaled):
                continue
            if not op.quantized and not op.y.dtype.startswith("float"):
                continue
            if op.quantized and not (self.trains and op.kind in _APPROXIMATE):
                raise self._refusal(
                    op,
                    "for which exact models have no formula",
                    "leave its activations in float by a rule of the recipe",
                )
            if not op.quantized and op.kind not in NEARLY:
                if op.kind in RECURRENT:  # they compute in real numbers whatever the recipe says
                    raise self._refusal(op, "(recurrent layers have no exact form)", "")
                raise self._refusal(
                    op,
                    "which it does in real numbers, adding them up in an order of its own",
                    "give its weights and activations 8 bits by the recipe, as 'w8a8' does",
                )

    def _check_bits(self, op: Op) -> None:
        wide = [t for t in op.outputs if t.quantized and t.grid.bits > _LITERT_BITS]
        if wide and self.target != "onnxruntime":
            raise self._refusal(op, f"with activations of {wide[0].grid.bits} bits", "give them 8 bits by the recipe")

    def _refusal(self, op: Op, what: str, way_out: str) -> UnsupportedError:
        return UnsupportedError(
            f"expected layers that Keras can compute as {self.target!r} does; received {told(op.source)}, a {op.kind!r} {what}; "
            f"do {way_out + ', or ' if way_out else ''}leave out exact={self.target!r} (the model can be exported without it, "
            "and qi.emulate gives what the file gives)"
        )


def product_kind(op: Op, target: str) -> str:
    """How a target multiplies the sums of a linear operation with their factor: a name of the step "sums"."""
    if target == "reference":
        return "once" if op.kind == "dense" else "twice"
    bits = packed_bits(op) if target == "litert" and op.kind == "dense" else 8
    return "float" if bits == 8 or int(op.inputs[1].shape[0] or 0) % (8 // bits) == 0 else "up"


def table_of(op: Op, target: str) -> np.ndarray | None:
    """The codes that an operation on codes gives for each of the 256, [256, what constants tell apart]; None for others."""
    varying = [t for t in op.inputs if not t.constant]
    if op.kind not in _ELEMENTWISE or len(varying) != 1 or not op.quantized:
        return None
    codes = np.arange(-128, 128, dtype=np.int32).reshape(256, *[1] * (len(varying[0].shape) - 1))
    arrays = [codes if t is varying[0] else np.asarray(t.data, np.int32) for t in op.inputs]
    return np.asarray(kernel_of(op, target)(op, *arrays))


def is_dynamic(op: Op | None) -> bool:
    """Whether an operation makes its activations codes row by row."""
    return op is not None and op.kind == DYNAMIC
