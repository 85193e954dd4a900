"""Lowering of what compares numbers, and of what is chosen by that: truth values stay so until they choose or become numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.ir.elementwise import COMPARISONS
from qi.ir.graph import Tensor
from qi.keras.lowering import Site, lowering, real_dtype
from qi.keras.variables import to_numpy

__all__: list[str] = []

_WHOLE = ("int32", "int64")  # no runtime compares others


def _operands(site: Site) -> list[Any]:
    args, kwargs = site.arguments
    return [*args, *kwargs.values()]


def _common(site: Site, operands: list[Any]) -> list[Tensor]:
    """Tensors of one type: whole numbers where all are."""
    arrays = [a if isinstance(a, Tensor) else to_numpy(a) for a in operands]
    real = any("float" in str(a.dtype) for a in arrays)
    given = [a.dtype for a in arrays if isinstance(a, Tensor)]
    dtype = "float32" if real else next((d for d in given if d in _WHOLE and all(d == e for e in given)), "int32")
    return [
        site.cast(a, dtype) if isinstance(a, Tensor) else site.constant("constant", a.astype(dtype)) for a in arrays
    ]


def _compared(function: str) -> Any:
    def run(site: Site) -> Tensor:
        return site.emit("compare", _common(site, _operands(site)), dtype="bool", function=function)

    return run


for _function in COMPARISONS:
    lowering(_function.title().replace("_", ""))(_compared(_function))


@lowering("Where")
def _where(site: Site) -> Tensor:
    operands = _operands(site)
    if len(operands) != 3 or any(a is None for a in operands):
        raise site.refuse("which gives places", "give it a value for either case")
    condition, *cases = operands
    if not isinstance(condition, Tensor):
        condition = Tensor(site.name("condition"), np.shape(to_numpy(condition)), "bool", data=to_numpy(condition) != 0)
    condition = condition if condition.dtype == "bool" else site.cast(condition, "bool")
    dtype = real_dtype(site.call.outputs[0].dtype)
    if dtype not in ("float32", *_WHOLE):
        raise site.refuse(f"of {dtype}", "let it choose among real numbers, and cast what it gives")
    chosen = [
        site.cast(a, dtype) if isinstance(a, Tensor) else site.constant("case", to_numpy(a).astype(dtype))
        for a in cases
    ]
    return site.emit("select", [condition, *chosen])


@lowering("OneHot")
def _one_hot(site: Site) -> Tensor:
    """Whether an index is 0, 1, 2...: one that is out of bounds is none of them, as in Keras."""
    layer, rank = site.layer, len(site.shape)
    axis = int(layer.axis) % rank
    if site.x.dtype.startswith("float"):
        raise site.refuse(f"with indices of dtype {site.x.dtype}", "give the model an Input of dtype 'int32'")
    (ids,) = _common(site, [site.x])
    ids = site.reshape(ids, (*ids.shape[:axis], 1, *ids.shape[axis:]), "ids")
    numbers = np.arange(int(layer.num_classes), dtype=ids.dtype).reshape([-1 if i == axis else 1 for i in range(rank)])
    hot = site.emit("compare", [ids, site.constant("numbers", numbers)], suffix="hot", dtype="bool", function="equal")
    return site.cast(hot, site.call.outputs[0].dtype)
