"""GPT-2's forward pass for generation: the next token's logits, with the keys and values of the text so far kept.

In:  a GPT2LMHeadModel, then token ids, a few or one at a time.
Out: the logits of the last position.

Transformers' own forward pass does the same arithmetic (tests/test_decoder.py holds the two together) but spends more
time in Python, on a small model, than on the arithmetic. Here a token costs the operations and nothing else, the cache
is as long as the block and never copied, and there is no dropout to switch off.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel


class Decoder:
    """Reads text and says what comes next.

    Args:
        model: any mode, dtype and device; its weights are used as they are.
        batch: texts side by side.
    """

    def __init__(self, model: GPT2LMHeadModel, batch: int = 1) -> None:
        shape, body = model.config, model.transformer
        self._heads, self._block = shape.n_head, shape.n_positions
        self._embedding, self._positions = body.wte.weight, body.wpe.weight
        self._norm, self._head = body.ln_f, model.lm_head.weight
        self._layers = [
            (block.ln_1, block.attn.c_attn, block.attn.c_proj, block.ln_2, block.mlp.c_fc, block.mlp.act,
             block.mlp.c_proj, _scale(block.attn, shape.n_embd // shape.n_head))
            for block in body.h
        ]  # fmt: skip
        head_width = shape.n_embd // shape.n_head
        size = (shape.n_layer, 2, batch, shape.n_head, shape.n_positions, head_width)
        self._cache = torch.empty(size, dtype=self._embedding.dtype, device=self._embedding.device)
        self._length = 0

    @property
    def full(self) -> bool:
        """Whether the block has no room for another token; :meth:`forget` makes room."""
        return self._length >= self._block

    def forget(self) -> None:
        """Start a new text."""
        self._length = 0

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        """Read on, and say what comes next.

        Args:
            ids: (batch, time) the tokens that follow what was read; several at the start of a text, then one at a time.

        Returns:
            (batch, vocabulary) logits of the token after the last one.
        """
        batch, time = ids.shape
        start, end = self._length, self._length + time
        if end > self._block or (start and time > 1):
            raise ValueError(f"{time} tokens after {start} do not go into a block of {self._block}")
        self._length = end
        width = self._embedding.shape[1]
        x = (F.embedding(ids, self._embedding) + self._positions[start:end]).view(batch * time, width)
        for layer, cache in zip(self._layers, self._cache, strict=True):
            norm_1, qkv, projection, norm_2, widen, activation, narrow, scale = layer
            heads = qkv(norm_1(x)).view(batch, time, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            cache[:, :, :, start:end] = heads[1:]
            keys, values = cache[:, :, :, :end]
            mixed = F.scaled_dot_product_attention(heads[0], keys, values, is_causal=time > 1, scale=scale)
            x = x + projection(mixed.transpose(1, 2).reshape(batch * time, width))
            x = x + narrow(activation(widen(norm_2(x))))
        return F.linear(self._norm(x.view(batch, time, width)[:, -1]), self._head)


def _scale(attention: Any, head_width: int) -> float:
    """What the scores are multiplied with, by the options that a pretrained model may have."""
    scale = head_width**-0.5 if attention.scale_attn_weights else 1.0
    return scale / (attention.layer_idx + 1) if attention.scale_attn_by_inverse_layer_idx else scale
