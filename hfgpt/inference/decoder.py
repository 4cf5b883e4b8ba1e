"""GPT-2's forward pass for generation: the next token's logits, with a key-value cache.

In:  a GPT2LMHeadModel, then token ids, one or several at a time.
Out: the logits of the last position.

Transformers' own forward pass does the same arithmetic (tests/inference/test_decoder.py compares the two), but on a
small model it spends more time in Python than on the arithmetic. This one runs only the operations, never copies its
block-long cache, and has no dropout to turn off. On a CPU, reading large weights takes most of a token's time, so all
threads read them together (:func:`affine`).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from hfgpt.base import hardware


class Affine(NamedTuple):
    """x @ weight + bias, in Conv1D's layout: weight (inputs, outputs), bias (outputs,)."""

    weight: Tensor
    bias: Tensor
    parts: int  # number of parts in a product with a few rows, see :func:`_parts`


class Norm(NamedTuple):
    """A layer norm over the last dimension."""

    weight: Tensor
    bias: Tensor
    epsilon: float


class Layer(NamedTuple):
    """A block's weights, without its modules."""

    norm_1: Norm
    qkv: Affine
    projection: Affine
    norm_2: Norm
    widen: Affine
    activation: nn.Module
    narrow: Affine
    scale: float  # scale of the attention scores
    cache: Tensor  # (2, batch, block, n_head, head width): keys and values


class Decoder:
    """Reads text and returns the logits of the next token.

    Args:
        model: in any mode, dtype and device; its weights are used directly.
        batch: number of texts in parallel.
    """

    def __init__(self, model: GPT2LMHeadModel, batch: int = 1) -> None:
        shape, body = model.config, model.transformer
        head_width = shape.n_embd // shape.n_head
        self._heads, self._block = (shape.n_head, head_width), int(shape.n_positions)
        self._embedding, self._positions = body.wte.weight, body.wpe.weight
        self._norm, self._head = _norm(body.ln_f), model.lm_head.weight
        parts = 1 if hardware.intel_cpu() else torch.get_num_threads()
        self._head_parts = _parts(self._head, parts)
        size = (2, batch, shape.n_positions, *self._heads)
        self._layers = [
            Layer(
                _norm(block.ln_1),
                _affine(block.attn.c_attn, parts),
                _affine(block.attn.c_proj, parts),
                _norm(block.ln_2),
                _affine(block.mlp.c_fc, parts),
                block.mlp.act,
                _affine(block.mlp.c_proj, parts),
                _scale(block.attn, head_width),
                torch.empty(size, dtype=self._embedding.dtype, device=self._embedding.device),
            )
            for block in body.h
        ]
        self._length = 0

    @property
    def full(self) -> bool:
        """Whether the block is full; :meth:`forget` empties it."""
        return self._length >= self._block

    def forget(self) -> None:
        """Start a new text."""
        self._length = 0

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        """Read more tokens, and return the logits of the next one.

        Args:
            ids: (batch, time) the next tokens to read; several at the start of a text, then one at a time.

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
        for layer in self._layers:
            qkv = affine(layer_norm(x, layer.norm_1), layer.qkv).view(batch, time, 3, *self._heads)
            layer.cache[:, :, start:end] = qkv[:, :, 1:].permute(2, 0, 1, 3, 4)
            keys, values = layer.cache[:, :, :end].transpose(2, 3).unbind(0)
            mixed = F.scaled_dot_product_attention(
                qkv[:, :, 0].transpose(1, 2), keys, values, is_causal=time > 1, scale=layer.scale
            )
            x = x + affine(mixed.transpose(1, 2).reshape(batch * time, width), layer.projection)
            x = x + affine(layer.activation(affine(layer_norm(x, layer.norm_2), layer.widen)), layer.narrow)
        return logits(layer_norm(x.view(batch, time, width)[:, -1], self._norm), self._head, self._head_parts)


def layer_norm(x: Tensor, norm: Norm) -> Tensor:
    """(rows, width) → (rows, width)."""
    return torch.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.epsilon)


# A matrix of at least LARGE numbers is read from memory each time. For up to FEW rows, torch's product does not use the
# full memory bandwidth, except on Intel's processors. Multiplying each thread's part takes half to four fifths of the
# time.
LARGE, FEW = 2**18, 16


def affine(x: Tensor, by: Affine) -> Tensor:
    """(rows, inputs) → (rows, outputs)."""
    weight, bias, parts = by
    rows = x.shape[0]
    if parts == 1 or rows > FEW:
        return torch.addmm(bias, x, weight)
    sums = torch.bmm(x.view(rows, parts, -1).transpose(0, 1), weight.view(parts, -1, weight.shape[1]))
    return sums.sum(0).add_(bias)


def logits(x: Tensor, head: Tensor, parts: int) -> Tensor:
    """(rows, width) states and a (vocabulary, width) head, in `parts` for a few rows → (rows, vocabulary)."""
    rows = x.shape[0]
    if parts == 1 or rows > FEW:
        return F.linear(x, head)
    whole = len(head) // parts * parts
    scores = torch.bmm(head[:whole].view(parts, -1, head.shape[1]), x.T.expand(parts, -1, -1))
    scores = scores.permute(2, 0, 1).reshape(rows, whole)
    return scores if whole == len(head) else torch.cat([scores, F.linear(x, head[whole:])], 1)


def _parts(matrix: Tensor, most: int) -> int:
    """Return the number of parts, `most` or 1, for a matrix's product with a few rows."""
    return most if matrix.numel() >= LARGE and matrix.device.type == "cpu" and matrix.is_contiguous() else 1


def _affine(module: Any, most: int) -> Affine:
    parts = _parts(module.weight, most)
    return Affine(module.weight, module.bias, parts if module.weight.shape[0] % parts == 0 else 1)


def _norm(module: nn.LayerNorm) -> Norm:
    return Norm(module.weight, module.bias, module.eps)


def _scale(attention: Any, head_width: int) -> float:
    """Return the scale of the attention scores, by options that a pretrained model may set."""
    scale = head_width**-0.5 if attention.scale_attn_weights else 1.0
    return scale / (attention.layer_idx + 1) if attention.scale_attn_by_inverse_layer_idx else scale
