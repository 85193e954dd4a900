"""Lowering of products of matrices: of activations with each other, and of activations with kernels by an equation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qi.core import PerChannel, QParams
from qi.ir.graph import Tensor
from qi.keras.attention import BandSoftmax
from qi.keras.lowering import Site, lowering
from qi.keras.variables import to_numpy

__all__: list[str] = []

Sizes = dict[str, int | None]

# Equations --------------------------------------------------------------------------------------------------------------------


def _labels(site: Site, equation: str, ranks: Sequence[int]) -> tuple[str, str, str]:
    """The labels of both operands and of the result; letters of their own in the place of an ellipsis.

    Raises:
        UnsupportedError: other than two operands, or a label that one of them has twice.
    """
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2 or not right:
        raise site.refuse(f"with equation {equation!r}", "use one of two operands and a result")
    hidden = max((r - len(term) + 3 for term, r in zip(terms, ranks, strict=True) if "..." in term), default=0)
    spare = [letter for letter in "ZYXWVUTSRQPONMLKJIHGFEDCBA" if letter not in equation][:hidden]
    a, b, y = (term.replace("...", "".join(spare)) for term in (*terms, right))
    fits = all(len(set(term)) == len(term) for term in (a, b, y)) and [len(a), len(b)] == list(ranks)
    if not fits or set(y) - set(a) - set(b):
        raise site.refuse(f"with equation {equation!r}", "use plain labels, each once in an operand")
    return a, b, y


def _sized(*operands: tuple[str, Sequence[int | None]]) -> Sizes:
    return {label: size for labels, shape in operands for label, size in zip(labels, shape, strict=True)}


def _product(sizes: Sizes, labels: str) -> int | None:
    total = 1
    for label in labels:
        size = sizes[label]
        if size is None:
            return None
        total *= size
    return total


def _arranged(site: Site, x: Tensor, have: str, want: str, name: str) -> Tensor:
    """A tensor with its axes in another order."""
    if have == want:
        return x
    perm = [have.index(label) for label in want]
    return site.emit("transpose", [x], tuple(x.shape[i] for i in perm), suffix=name, perm=perm)


def _shaped(site: Site, x: Tensor, shape: Sequence[int | None], name: str) -> Tensor:
    return x if tuple(x.shape) == tuple(shape) else site.reshape(x, shape, name)


def _check_batch(site: Site, *labels: str) -> None:
    if len({term[:1] for term in labels}) != 1:
        raise site.refuse("which joins samples of a batch or moves the batch", "leave the batch in front")


def _contracted(site: Site, a: Tensor, b: Tensor, labels: tuple[str, str, str]) -> Tensor:
    """The sum of products of two activations: [batch, rows, sums] times [batch, sums, columns]."""
    la, lb, ly = labels
    _check_batch(site, la, lb, ly)
    sizes = _sized((la, a.shape), (lb, b.shape))
    batch = "".join(label for label in ly if label in la and label in lb)
    rows = "".join(label for label in ly if label not in lb)
    columns = "".join(label for label in ly if label not in la)
    sums = "".join(label for label in la if label in lb and label not in ly)
    if set(la) - set(batch + rows + sums) or set(lb) - set(batch + columns + sums):
        raise site.refuse("which sums over one operand alone", "use keras.ops.sum")
    front = tuple(sizes[label] for label in batch)
    turned = lb == batch + columns + sums  # a flag of the product, where no axes have to move
    b = _arranged(site, b, lb, batch + (columns + sums if turned else sums + columns), "b_turned")
    ends = [_product(sizes, term) for term in (columns, sums)]
    b = _shaped(site, b, (*front, *(ends if turned else ends[::-1])), "b_matrices")
    a = _arranged(site, a, la, batch + rows + sums, "a_turned")
    a = _shaped(site, a, (*front, _product(sizes, rows), _product(sizes, sums)), "a_matrices")
    y = site.emit(
        "batch_matmul", [a, b], (*a.shape[:-1], ends[0]), suffix="product", transpose_a=False, transpose_b=turned
    )
    made = batch + rows + columns
    if made == ly:
        return _shaped(site, y, site.shape, "apart")
    return _arranged(site, _shaped(site, y, tuple(sizes[label] for label in made), "apart"), made, ly, "turned")


@lowering("Einsum")
def _einsum(site: Site) -> Tensor:
    if len(site.inputs) != 2:
        raise site.refuse(f"of {len(site.inputs)} tensors", "use two at a time")
    a, b = site.inputs
    return _contracted(site, a, b, _labels(site, site.layer.subscripts, [len(a.shape), len(b.shape)]))


@lowering("Dot")
def _dot(site: Site) -> Tensor:
    if site.layer.normalize:
        raise site.refuse("with normalize=True", "normalize its inputs by an operation of its own")
    a, b = site.inputs
    axes = site.layer.axes if isinstance(site.layer.axes, (list, tuple)) else [site.layer.axes] * 2
    i, j = axes[0] % len(a.shape), axes[1] % len(b.shape)
    if 0 in (i, j):
        raise site.refuse("along the batch")
    la, lb = "BCDEFGHI"[: len(a.shape)], "B" + "STUVWXYZ"[: len(b.shape) - 1]
    lb = lb[:j] + la[i] + lb[j + 1 :]
    return _shaped(site, _contracted(site, a, b, (la, lb, (la + lb[1:]).replace(la[i], ""))), site.shape, "row")


@lowering("Matmul")
def _matmul(site: Site) -> Tensor:
    args, kwargs = site.arguments
    a, b = (*args, *kwargs.values())
    if isinstance(a, Tensor) and not isinstance(b, Tensor) and np.ndim(to_numpy(b)) == 2:
        return site.emit("dense", [a, site.constant("matrix", to_numpy(b).astype(np.float32))], activation="none")
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or len(a.shape) != len(b.shape) or len(a.shape) < 3:
        raise site.refuse(
            "of matrices that aren't in stacks of one rank", "give both as many axes, with the batch in front"
        )
    return site.emit("batch_matmul", [a, b], transpose_a=False, transpose_b=False)


@lowering("BandSoftmax")
def _band_softmax(site: Site) -> Tensor:
    """What a query doesn't see gets a score that leaves it no probability: in real numbers, as no grid holds such a score."""
    layer: BandSoftmax = site.layer
    if layer.masks:
        raise site.refuse(
            f"under {layer.masks[0]}, which differs from sample to sample",
            "give sequences of one length, without masks",
        )
    queries, keys = site.sizes(site.x)[-2:]
    unseen = np.where(to_numpy(layer.seen(queries, keys)), np.float32(0), np.float32(-1e9))
    mask = site.constant("mask", unseen.reshape((1,) * (len(site.shape) - 2) + unseen.shape))
    masked = site.emit("add", [site.x, mask], suffix="masked", activation="none")
    return site.emit("softmax", [masked], axis=len(site.shape) - 1)


@lowering("HiddenMask", "Unmasked", "MaskedAs")
def _hidden_mask(site: Site) -> Tensor:
    raise site.refuse(
        "around attention under a hidden mask, which differs from sample to sample",
        "give Embedding mask_zero=False, leave Masking out, and hand in sequences of one length",
    )


# Kernels ----------------------------------------------------------------------------------------------------------------------


def _matrix(site: Site, labels: str, sums: str, columns: str) -> Tensor:
    """A kernel as [sums, columns], with a scale for each column.

    Raises:
        UnsupportedError: scales that differ between numbers that are added.
    """
    kernel = site.weight("kernel")
    order = [labels.index(label) for label in sums + columns]
    codes = np.asarray(kernel.data).transpose(order)
    shape = codes.shape[: len(sums)], codes.shape[len(sums) :]
    matrix, qparams = codes.reshape(int(np.prod(shape[0])), -1), kernel.qparams
    if qparams is not None and qparams.scale.size > 1:
        if not isinstance(qparams.granularity, PerChannel) or labels[qparams.granularity.axis] in sums:
            raise site.refuse(
                f"whose kernel has scales {qparams.granularity}", "quantize it with one scale for each output"
            )
        behind = order[len(sums) :]
        outer = (a.transpose(order).reshape([a.shape[i] for i in behind]) for a in (qparams.scale, qparams.zero_point))
        scale, zero = (np.broadcast_to(a, shape[1]).reshape(1, -1) for a in outer)
        qparams = QParams(scale, zero, qparams.grid, PerChannel(1))
    return Tensor(kernel.name, matrix.shape, kernel.dtype, qparams, matrix)


def _column_bias(labels: str, columns: str, sizes: Sizes, bias: np.ndarray) -> np.ndarray | None:
    """A bias as one number for each column; None where it differs along other axes of the result.

    Args:
        labels: of the result, whose last axes the bias broadcasts to.
        columns: those that the kernel gives.
        sizes: by label.
        bias: of the layer.
    """
    full = bias.reshape((1,) * (len(labels) - bias.ndim) + bias.shape)
    others = [i for i, label in enumerate(labels) if label not in columns]
    if any(full.shape[i] > 1 for i in others):
        return None
    moved = full.transpose([*others, *(labels.index(label) for label in columns)])
    wanted = [sizes[label] or 1 for label in columns]
    return np.broadcast_to(moved.reshape(moved.shape[len(others) :]), wanted).reshape(-1)


@lowering("EinsumDense")
def _einsum_dense(site: Site) -> Tensor:
    """A product of [.., sums] with [sums, columns], with the axes moved before and behind where the equation says so."""
    x, shape = site.x, tuple(site.layer.kernel.shape)
    lx, lk, ly = _labels(site, site.layer.equation, [len(site.x.shape), len(shape)])
    _check_batch(site, lx, ly)
    sizes = _sized((lk, shape), (lx, x.shape))
    sums = "".join(label for label in lk if label in lx)
    columns = "".join(label for label in ly if label in lk)
    free = "".join(label for label in lx if label not in lk)
    if set(sums) & set(ly) or set(free) - set(ly) or set(lk) - set(sums + columns):
        raise site.refuse(
            f"with equation {site.layer.equation!r}", "use one whose labels are summed or come out, not both"
        )
    front = tuple(sizes[label] for label in free)
    x = _shaped(site, _arranged(site, x, lx, free + sums, "turned"), (*front, _product(sizes, sums)), "flat")
    inputs = [x, _matrix(site, lk, sums, columns)]
    bias = _column_bias(ly, columns, sizes, site.array("bias")) if site.has("bias") else None
    if bias is not None:
        inputs.append(site.constant("bias", bias))
    y = site.emit("dense", inputs, (*front, inputs[1].shape[1]), suffix="linear", activation="none")
    y = _shaped(site, y, tuple(sizes[label] for label in free + columns), "apart")
    y = _arranged(site, y, free + columns, ly, "back")
    if site.has("bias") and bias is None:
        y = site.emit("add", [y, site.constant("bias", site.array("bias"))], suffix="biased", activation="none")
    return site.activate(y)
