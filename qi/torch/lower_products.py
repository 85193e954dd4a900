"""Lowering of products of activations, and of attention written as one function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qi.ir.graph import Tensor
from qi.ir.softmax import UNSEEN
from qi.torch.lower_merges import HIDDEN
from qi.torch.lowering import Laid, Site, lowering

__all__: list[str] = []


def _turned(x: Laid) -> bool:
    """Whether the tensor has torch's last two axes the other way round."""
    rank = len(x.shape)
    return x.flat is None and x.order == (*range(rank - 2), rank - 1, rank - 2)


def _product(site: Site, a: Laid, b: Laid, shape: tuple[int | None, ...], suffix: str = "") -> Tensor:
    """The matrix product of the last two axes; operands that lie turned round are taken so."""
    if len(a.shape) != len(b.shape) or len(a.shape) < 3 or a.shape[:-2] != b.shape[:-2]:
        raise site.refuse(
            f"of stacks of matrices {a.shape} and {b.shape}",
            "give both as many axes of equal sizes, with the batch in front",
        )
    turned = _turned(b)
    given = [site.plain(a), b.tensor if turned else site.plain(b)]
    return site.emit("batch_matmul", given, shape, suffix=suffix, transpose_a=False, transpose_b=turned)


@lowering("matmul")
def _matmul(site: Site) -> Laid:
    a, b = site.args[0], site.option("other", 1, site.kwargs.get("mat2"))
    if not isinstance(a, Laid) or not isinstance(b, Laid) or a.constant:
        raise site.refuse("of a constant with an activation", "put the activation first")
    if not b.constant:
        return site.gives(_product(site, site.cast(a, "float32"), site.cast(b, "float32"), site.shape))
    if len(b.shape) != 2:
        raise site.refuse(f"with a constant of shape {b.shape}", "use a matrix")
    matrix = site.constant("matrix", np.asarray(b.tensor.values()))
    return site.gives(site.emit("dense", [site.plain(a), matrix], site.shape, activation="none"))


@lowering("scaled_dot_product_attention")
def _attention(site: Site) -> Laid:
    """As scores, shares and their mix: in real numbers, for no quantizers stand between them."""
    query, key, value = (site.option(name, i) for i, name in enumerate(("query", "key", "value")))
    mask, dropout = site.option("attn_mask", 3), site.option("dropout_p", 4, 0.0)
    if dropout:
        raise site.refuse(f"with dropout_p={dropout}", "give it dropout_p=0 in inference")
    if site.kwargs.get("enable_gqa", False):
        raise site.refuse("with enable_gqa=True", "repeat keys and values before it")
    scale = site.option("scale", 6)
    factor = 1 / math.sqrt(int(query.shape[-1] or 1)) if scale is None else float(scale)
    turned = Laid(site.plain(key), (*key.shape[:-2], key.shape[-1], key.shape[-2]), _last_turned(len(key.shape)))
    scores_shape = (*query.shape[:-1], key.shape[-2])
    scores = _product(site, query, turned, scores_shape, "products")
    one = site.constant("scale", np.full((1,) * len(scores_shape), factor, np.float32))
    scores = site.emit("mul", [scores, one], scores_shape, suffix="scores", activation="none")
    masks = (
        [("shows" if isinstance(mask, Laid) and mask.tensor.dtype == "bool" else "adds", mask)]
        if mask is not None
        else []
    )
    shares = _shares(site, scores, masks, causal=bool(site.option("is_causal", 5, False)))
    mix = Laid(shares, scores_shape, tuple(range(len(scores_shape))))
    return site.gives(_product(site, mix, value, site.shape))


def _last_turned(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


def _shares(site: Site, scores: Tensor, masks: Sequence[tuple[str, Any]], causal: bool) -> Tensor:
    """The softmax of scores, after large negative numbers are added where a query doesn't see a key."""
    shape = scores.shape
    hidden: Any = np.zeros([int(n or 0) for n in shape[-2:]], np.float32)
    if causal:
        hidden = np.where(np.tril(np.ones_like(hidden)) > 0, np.float32(0), HIDDEN)
    for how, mask in masks:
        if not isinstance(mask, Laid) or mask.tensor.data is None:
            raise site.refuse(
                "with a mask that differs from sample to sample", "give sequences of one length, without masks"
            )
        values = np.asarray(mask.tensor.values())
        seen = {"hides": values == 0, "shows": values != 0}.get(how)
        hidden = np.maximum(hidden + (np.where(seen, np.float32(0), HIDDEN) if seen is not None else values), HIDDEN)
    if (hidden <= UNSEEN).all(-1).any():
        raise site.refuse("with a query that sees no key", "let it see itself")
    if hidden.any():
        spread = hidden.reshape((1,) * (len(shape) - hidden.ndim) + hidden.shape).astype(np.float32)
        added = site.constant("mask", spread)
        scores = site.emit("add", [scores, added], shape, suffix="masked", activation="none")
    return site.emit("softmax", [scores], shape, suffix="shares", axis=len(shape) - 1)


@lowering("BandSoftmax")
def _band_softmax(site: Site) -> Laid:
    """What a query doesn't see gets a score that leaves it no share: in real numbers, as no grid holds such a score."""
    scores, *masks = site.args
    named = list(zip(site.module.masks, masks, strict=True))
    return site.gives(_shares(site, site.plain(scores), named, site.module.causal))
