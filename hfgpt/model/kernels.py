"""Dropout and attention for CPUs, where torch's own operators are slow.

In:  the inputs of GPT-2's dropout and attention.
Out: the same results (dropout: the same distribution), with gradients.

On a CPU torch draws dropout masks one number at a time, builds whole block_size² matrices for attention with dropout,
and is slow at attention in bfloat16. These kernels are plain torch operations seeded from torch's own generator, so
seeds and exact resumes still work. benchmarks/README.md lists the savings.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hfgpt.model.sizes import NARROW_BLOCK, QUERIES

ATTENTION = "hfgpt"  # name of :func:`attention` in Transformers' registry


def suits(tensor: Tensor) -> bool:
    """Whether to use these kernels: on a CPU, unless torch.compile generates better ones."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def keep_mask(shape: torch.Size, p: float) -> Tensor:
    """Return a uint8 mask of `shape`: each element is 0 with probability p, to within 2⁻¹⁷, otherwise 1.

    64 random bits determine four elements. A uint8 mask is generated four times as fast as a bool mask.
    """
    elements = math.prod(shape)
    bits = random_bits((elements + 3) // 4).view(torch.int16)[:elements]
    return torch.ge(bits, round(p * 2**16) - 2**15, out=torch.empty(elements, dtype=torch.uint8)).view(shape)


def random_bits(count: int) -> Tensor:
    """Return (count,) int64 of random bits, from one draw of torch's generator.

    torch's generator is sequential and single-threaded. Its draw seeds SplitMix64 (Steele, Lea, Flood 2014, "Fast
    splittable pseudorandom number generators"), whose numbers are independent of each other, so all threads compute
    them.
    """
    seed = torch.empty((), dtype=torch.int64).random_(-(2**63), None)
    bits = torch.arange(1, count + 1).mul_(_signed(0x9E3779B97F4A7C15)).add_(seed)
    high = torch.empty_like(bits)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
        torch.bitwise_right_shift(bits, shift, out=high).bitwise_and_(2 ** (64 - shift) - 1)  # clears the sign bits
        bits.bitwise_xor_(high)
        if factor is not None:
            bits.mul_(_signed(factor))
    return bits


def _signed(number: int) -> int:
    """Return the same 64 bits as a signed integer, as torch's int64 requires."""
    return number - 2**64 if number >= 2**63 else number


class Dropout(nn.Dropout):
    """nn.Dropout with a faster mask on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply dropout; the shape stays the same."""
        if self.training and 0 < self.p < 1 and suits(input):
            dropped: Tensor = cast(Any, _Dropout).apply(input, self.p)
            return dropped
        return F.dropout(input, self.p, self.training)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:
        mask = keep_mask(input.shape, p)
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - p)
        return mask.to(input.dtype).mul_(input).mul_(ctx.scale)  # faster than multiplying mixed types

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return mask.to(gradients[0].dtype).mul_(gradients[0]).mul_(ctx.scale), None


def takes_block_masks(device: torch.device, width: int, dropout: float) -> bool:
    """Whether :func:`attention` accepts a BlockMask, for which torch.compile generates FlexAttention's kernel.

    The kernel does not support dropout, and needs a head width of at least 16. Above 128 its backward pass takes more
    shared memory than cards of 100 KiB have, such as an RTX 3090 or 5090, and does not compile there (PyTorch #180278,
    #198224).
    """
    return torch.compiler.is_compiling() and device.type == "cuda" and 16 <= width <= 128 and not dropout


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | BlockMask | None,
    dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention with Transformers' signature: torch's fused kernels, except on a CPU with dropout or in bfloat16.

    The fused CPU kernels do not support dropout. In bfloat16, at lengths typical of CPU training, they take two to four
    times as long as the separate matrix products.

    Args:
        query, key, value: (batch, n_head, time, head width).
        attention_mask: None for causal attention over the whole block; or (batch, 1, time, time), True where a query
            may attend, never ahead; or the same as a BlockMask, if :func:`takes_block_masks` allows it.
        dropout: share of the attention weights to drop.

    Returns: (batch, time, n_head, head width), and None for the weights.
    """
    if isinstance(attention_mask, BlockMask):
        blocks = flex_attention(query, key, value, block_mask=attention_mask, scale=kwargs.get("scaling"))
        return blocks.transpose(1, 2), None
    narrow = query.dtype == torch.bfloat16
    slow = 0 < dropout < 1 or (dropout == 0 and narrow and query.shape[2] <= NARROW_BLOCK)
    if not (slow and query.shape == key.shape and suits(query)):
        fused: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **kwargs)[0]
        return fused, None
    dtype = torch.bfloat16 if narrow else torch.float32
    with torch.autocast("cpu", enabled=False):
        out: Tensor = cast(Any, _CausalAttention).apply(
            query, key, value, attention_mask, dropout, kwargs.get("scaling"), dtype
        )
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, attention)

AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _CausalAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale, causal) with dropout, times v; in one data type, a few queries at a time.

    Queries i to j see only keys up to j, so nearly half of the products and weights are never computed.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, may_look: Tensor | None, p: float, scale: float | None,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        batch, heads, time, width = query.shape
        scale = width**-0.5 if scale is None else scale
        q, k, v = (tensor.to(dtype).reshape(batch * heads, time, width) for tensor in (query, key, value))
        v = v / (1 - p) if p else v
        out = torch.empty_like(q)
        unread = torch.zeros((), dtype=dtype)  # required by baddbmm, but not read with beta=0
        ahead = torch.full((QUERIES, QUERIES), -math.inf, dtype=dtype).triu_(1)
        kept = []
        for start in range(0, time, QUERIES):
            end = min(start + QUERIES, time)
            scores = torch.baddbmm(unread, q[:, start:end], k[:, :end].mT, beta=0, alpha=scale)
            scores[:, :, start:].add_(ahead[: end - start, : end - start])
            if may_look is not None:
                scores.view(batch, heads, end - start, end).masked_fill_(~may_look[:, :, start:end, :end], -math.inf)
            weights = scores.softmax(-1)
            kept.append(weights)
            if p:
                kept.append(keep_mask(weights.shape, p))
                weights = scores.copy_(kept[-1]).mul_(weights)
            out[:, start:end] = torch.bmm(weights, v[:, :end])  # with out=, torch multiplies one matrix at a time
            del scores, weights  # free them before allocating new ones
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.p, ctx.scale, ctx.dtype = p, scale, query.dtype
        return out.view(query.shape).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *kept = ctx.saved_tensors
        time, shape = q.shape[1], gradients[0].shape
        gradient = gradients[0].to(q.dtype).reshape(q.shape)
        # The softmax gradient subtracts Σ over keys of weight · its gradient, which equals out · its gradient
        # (FlashAttention).
        taken_off = (gradient * out).sum(-1, keepdim=True)
        dq = torch.empty_like(q)
        dk = dv = torch.empty(0)  # the sums are still empty
        masks = kept[1::2] if ctx.p else [None] * len(kept)
        groups = [*zip(range(0, time, QUERIES), kept[:: 2 if ctx.p else 1], masks, strict=True)]
        for start, weights, mask in reversed(groups):  # the last group sees all keys
            end = min(start + QUERIES, time)
            g = gradient[:, start:end]
            keeps = None if mask is None else mask.to(q.dtype)
            dropped = weights if keeps is None else weights * keeps
            dv = _plus(dv, dropped.mT @ g)
            work = torch.bmm(g, v[:, :end].mT, out=None if mask is None else dropped)
            if keeps is not None:
                work.mul_(keeps)
            work.sub_(taken_off[:, start:end]).mul_(weights)
            dq[:, start:end] = torch.bmm(work, k[:, :end])
            dk = _plus(dk, work.mT @ q[:, start:end])
            del work, dropped  # free them before allocating new ones
        dq.mul_(ctx.scale)
        dk.mul_(ctx.scale)
        dv.div_(1 - ctx.p)
        return *(d.to(ctx.dtype).view(shape) for d in (dq, dk, dv)), None, None, None, None


def _plus(total: Tensor, part: Tensor) -> Tensor:
    """Add a part for the first keys to (heads, keys, width) float32; the first part must cover all keys."""
    if not len(total):
        return part.float()
    total[:, : part.shape[1]].add_(part)
    return total
