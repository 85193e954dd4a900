"""The transformers of `torch.nn`, written so that a trace can follow them: under the same names, on the same parameters.

PyTorch's own choose between fast paths by looking at numbers and shapes. These here compute what PyTorch's do in training;
what differs in eval mode is that keys that are padded aren't set to 0 in the output of an encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qi.torch.kinds import torch_class

__all__ = ["Decoder", "DecoderLayer", "Encoder", "EncoderLayer", "Transformer", "open_transformers"]

Mask = Any


def open_transformers(module: nn.Module) -> nn.Module:
    """A module with every transformer of `torch.nn` in it replaced; it is changed in place, or replaced if it is one itself."""
    made: dict[int, nn.Module] = {}
    return _opened(module, made)


def _opened(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    if id(module) not in made:
        made[id(module)] = module
        if not isinstance(module, torch.jit.ScriptModule):
            for name, child in list(module._modules.items()):
                if child is not None:
                    module._modules[name] = _opened(child, made)
        hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        cls = None if hooked else _CLASSES.get(torch_class(module))
        if cls is not None:
            made[id(module)] = cls(module)
    return made[id(module)]


class _Same(nn.Module):
    """Takes over the submodules of another, and what it holds besides."""

    def __init__(self, given: nn.Module) -> None:
        super().__init__()
        for name, child in given._modules.items():
            self.add_module(name, child)
        self.training = given.training

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """The two linear layers of a block."""
        own: Any = self
        return own.linear2(own.dropout(own.activation(own.linear1(x))))


class EncoderLayer(_Same):
    """`torch.nn.TransformerEncoderLayer`."""

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.norm_first = given.norm_first
        self.activation = given.activation

    def forward(
        self, src: torch.Tensor, src_mask: Mask = None, src_key_padding_mask: Mask = None, is_causal: bool = False
    ) -> torch.Tensor:
        """That of PyTorch; `is_causal` only says what `src_mask` is."""
        own: Any = self
        given = {"key_padding_mask": src_key_padding_mask, "need_weights": False, "attn_mask": src_mask}

        def attend(x: torch.Tensor) -> torch.Tensor:
            return own.dropout1(own.self_attn(x, x, x, **given)[0])

        if self.norm_first:
            src = src + attend(own.norm1(src))
            return src + own.dropout2(self.feed_forward(own.norm2(src)))
        src = own.norm1(src + attend(src))
        return own.norm2(src + own.dropout2(self.feed_forward(src)))


class Encoder(_Same):
    """`torch.nn.TransformerEncoder`."""

    def forward(
        self, src: torch.Tensor, mask: Mask = None, src_key_padding_mask: Mask = None, is_causal: bool | None = None
    ) -> torch.Tensor:
        """That of PyTorch; `is_causal` only says what `mask` is."""
        own: Any = self
        for layer in own.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        return src if own._modules.get("norm") is None else own.norm(src)


class DecoderLayer(_Same):
    """`torch.nn.TransformerDecoderLayer`."""

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.norm_first = given.norm_first
        self.activation = given.activation

    def forward(
        self,
        tgt: torch.Tensor,
        memory: torch.Tensor,
        tgt_mask: Mask = None,
        memory_mask: Mask = None,
        tgt_key_padding_mask: Mask = None,
        memory_key_padding_mask: Mask = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> torch.Tensor:
        """That of PyTorch; `tgt_is_causal` and `memory_is_causal` only say what the masks are."""
        own: Any = self
        of_self = {"key_padding_mask": tgt_key_padding_mask, "need_weights": False, "attn_mask": tgt_mask}
        of_memory = {"key_padding_mask": memory_key_padding_mask, "need_weights": False, "attn_mask": memory_mask}

        def attend(x: torch.Tensor) -> torch.Tensor:
            return own.dropout1(own.self_attn(x, x, x, **of_self)[0])

        def look(x: torch.Tensor) -> torch.Tensor:
            return own.dropout2(own.multihead_attn(x, memory, memory, **of_memory)[0])

        if self.norm_first:
            tgt = tgt + attend(own.norm1(tgt))
            tgt = tgt + look(own.norm2(tgt))
            return tgt + own.dropout3(self.feed_forward(own.norm3(tgt)))
        tgt = own.norm1(tgt + attend(tgt))
        tgt = own.norm2(tgt + look(tgt))
        return own.norm3(tgt + own.dropout3(self.feed_forward(tgt)))


class Decoder(_Same):
    """`torch.nn.TransformerDecoder`."""

    def forward(
        self,
        tgt: torch.Tensor,
        memory: torch.Tensor,
        tgt_mask: Mask = None,
        memory_mask: Mask = None,
        tgt_key_padding_mask: Mask = None,
        memory_key_padding_mask: Mask = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> torch.Tensor:
        """That of PyTorch; `tgt_is_causal` and `memory_is_causal` only say what the masks are."""
        own: Any = self
        for layer in own.layers:
            tgt = layer(tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        return tgt if own._modules.get("norm") is None else own.norm(tgt)


class Transformer(_Same):
    """`torch.nn.Transformer`."""

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.batch_first = given.batch_first

    def forward(
        self,
        src: torch.Tensor,
        tgt: torch.Tensor,
        src_mask: Mask = None,
        tgt_mask: Mask = None,
        memory_mask: Mask = None,
        src_key_padding_mask: Mask = None,
        tgt_key_padding_mask: Mask = None,
        memory_key_padding_mask: Mask = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> torch.Tensor:
        """That of PyTorch; the last three only say what the masks are."""
        own: Any = self
        memory = own.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask)
        return own.decoder(tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)


_CLASSES: dict[str, Any] = {
    "TransformerEncoderLayer": EncoderLayer,
    "TransformerEncoder": Encoder,
    "TransformerDecoderLayer": DecoderLayer,
    "TransformerDecoder": Decoder,
    "Transformer": Transformer,
}
