"""The three pieces of a training step where torch's own operators leave time or memory on the table.

In:  the tensors of GPT-2's dropout, attention and head.
Out: the same results (dropout: the same distribution), with gradients.

On a CPU torch draws dropout masks one number at a time, makes whole block_size² matrices for attention with dropout,
and takes long for attention in bfloat16; :class:`Dropout` and :func:`attention` do better. On every device the logits
of a large vocabulary are the largest tensors of a step; :func:`linear_cross_entropy` never has more than an eighth of
them. All are plain torch operations, and their draws begin from torch's own generator, so that seeds and exact resumes
hold. benchmarks/README.md has what each saves.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hfgpt.model.sizes import CHUNKS, LOGITS, NARROW_BLOCK, QUERIES

ATTENTION = "hfgpt"  # the name of :func:`attention` among Transformers' attention implementations


def suits(tensor: Tensor) -> bool:
    """Whether the CPU's own ways serve: torch.compile generates better ones."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def keep_mask(shape: torch.Size, p: float) -> Tensor:
    """A mask of `shape`, uint8: each element 0 with probability p, to within 2⁻¹⁷, else 1.

    64 random bits decide four elements. As uint8 a mask is made four times as fast as in bool.
    """
    elements = math.prod(shape)
    bits = random_bits((elements + 3) // 4).view(torch.int16)[:elements]
    return torch.ge(bits, round(p * 2**16) - 2**15, out=torch.empty(elements, dtype=torch.uint8)).view(shape)


def random_bits(count: int) -> Tensor:
    """(count,) int64 in which every bit is random, from one draw of torch's generator.

    The generator makes one number after another, in one thread. Its draw seeds SplitMix64 (Steele, Lea, Flood 2014,
    "Fast splittable pseudorandom number generators"), whose numbers do not need each other: all threads make them.
    """
    seed = torch.empty((), dtype=torch.int64).random_(-(2**63), None)
    bits = torch.arange(1, count + 1).mul_(_signed(0x9E3779B97F4A7C15)).add_(seed)
    high = torch.empty_like(bits)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
        torch.bitwise_right_shift(bits, shift, out=high).bitwise_and_(2 ** (64 - shift) - 1)  # torch shifts the sign in
        bits.bitwise_xor_(high)
        if factor is not None:
            bits.mul_(_signed(factor))
    return bits


def _signed(number: int) -> int:
    """The same 64 bits as torch's int64 has them."""
    return number - 2**64 if number >= 2**63 else number


class Dropout(nn.Dropout):
    """torch's nn.Dropout, with a faster mask on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape in, the same out."""
        if self.training and 0 < self.p < 1 and suits(input):
            return _Dropout.apply(input, self.p)
        return F.dropout(input, self.p, self.training)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:
        mask = keep_mask(input.shape, p)
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - p)
        return mask.to(input.dtype).mul_(input).mul_(ctx.scale)  # to multiply two types takes longer than to convert

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return mask.to(gradients[0].dtype).mul_(gradients[0]).mul_(ctx.scale), None


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as Transformers calls it: torch's fused kernels, except on a CPU with dropout or in bfloat16.

    Those of a CPU have no dropout, and in bfloat16, at the lengths that are trained on a CPU, they take two to four
    times as long as the products that they consist of.

    Args:
        module: the attention layer.
        query, key, value: (batch, n_head, time, head width).
        attention_mask: None for causal attention over the whole block; or (batch, 1, time, time), True where a query
            may look, which must not be ahead.
        dropout: share of the attention weights that is dropped.
        kwargs: as Transformers has them.

    Returns:
        (batch, time, n_head, head width), and no weights.
    """
    narrow = query.dtype == torch.bfloat16
    slow = 0 < dropout < 1 or (dropout == 0 and narrow and query.shape[2] <= NARROW_BLOCK)
    if not (slow and query.shape == key.shape and suits(query)):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **kwargs)
    dtype = torch.bfloat16 if narrow else torch.float32
    out = _CausalAttention.apply(query, key, value, attention_mask, dropout, kwargs.get("scaling"), dtype)
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, attention)

AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _CausalAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale, causal) with dropout, times v; in one number type, a few queries at a time.

    Queries i to j see keys up to j only, so nearly half of the products and of the weights are never made.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, may_look: Tensor | None, p: float, scale: float | None,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        batch, heads, time, width = query.shape
        scale = width**-0.5 if scale is None else scale
        q, k, v = (tensor.to(dtype).reshape(batch * heads, time, width) for tensor in (query, key, value))
        v = v / (1 - p) if p else v
        out = torch.empty_like(q)
        nothing = torch.zeros((), dtype=dtype)  # baddbmm wants a summand; with beta=0 it is not read
        ahead = torch.full((QUERIES, QUERIES), -math.inf, dtype=dtype).triu_(1)
        kept = []
        for start in range(0, time, QUERIES):
            end = min(start + QUERIES, time)
            scores = torch.baddbmm(nothing, q[:, start:end], k[:, :end].mT, beta=0, alpha=scale)
            scores[:, :, start:].add_(ahead[: end - start, : end - start])
            if may_look is not None:
                scores.view(batch, heads, end - start, end).masked_fill_(~may_look[:, :, start:end, :end], -math.inf)
            weights = scores.softmax(-1)
            kept.append(weights)
            if p:
                kept.append(keep_mask(weights.shape, p))
                weights = scores.copy_(kept[-1]).mul_(weights)
            out[:, start:end] = torch.bmm(weights, v[:, :end])  # with out= it would go one matrix at a time
            del scores, weights  # before there are new ones
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.p, ctx.scale, ctx.dtype = p, scale, query.dtype
        return out.view(query.shape).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *kept = ctx.saved_tensors
        time, shape = q.shape[1], gradients[0].shape
        gradient = gradients[0].to(q.dtype).reshape(q.shape)
        # Σ over keys of weight · its gradient, which the softmax takes off, is out · its gradient (FlashAttention).
        taken_off = (gradient * out).sum(-1, keepdim=True)
        dq = torch.empty_like(q)
        dk = dv = torch.empty(0)  # none yet
        masks = kept[1::2] if ctx.p else [None] * len(kept)
        groups = [*zip(range(0, time, QUERIES), kept[:: 2 if ctx.p else 1], masks, strict=True)]
        for start, weights, mask in reversed(groups):  # the last one sees all keys
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
            del work, dropped  # before there are new ones
        dq.mul_(ctx.scale)
        dk.mul_(ctx.scale)
        dv.div_(1 - ctx.p)
        return *(d.to(ctx.dtype).view(shape) for d in (dq, dk, dv)), None, None, None, None


def _plus(total: Tensor, part: Tensor) -> Tensor:
    """(heads, keys, width) float32 with a part for the first keys added; the first part is for all keys."""
    if not len(total):
        return part.float()
    total[:, : part.shape[1]].add_(part)
    return total


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """Cross entropy of the logits `hidden @ weight.T`, summed, in nats, float32; the logits made a chunk at a time.

    The gradient is computed with the loss, while a chunk's logits are there, as Liger's fused kernel does it.

    Args:
        hidden: (tokens, n_embd).
        weight: (vocabulary, n_embd).
        targets: (tokens,) token ids.
        ignored: the target that has no loss.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, ignored, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignored: int, with_gradient: bool
    ) -> Tensor:  # fmt: skip
        device = hidden.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        tokens, vocabulary = len(hidden), len(weight)
        chunks = min(CHUNKS, -(-tokens * vocabulary // LOGITS))
        rows = -(-tokens // chunks)
        loss = hidden.new_zeros((), dtype=torch.float32)
        d_hidden = torch.empty_like(hidden) if with_gradient else None
        d_weight: Tensor | None = None
        with torch.autocast(device, enabled=False):
            head = weight.to(narrow)
            for start in range(0, tokens, rows):
                inputs = hidden[start : start + rows].to(narrow)
                nll, d_logits = _nll(inputs @ head.T, targets[start : start + rows], ignored, with_gradient)
                loss += nll
                if d_hidden is not None and d_logits is not None:
                    d_hidden[start : start + rows] = d_logits @ head
                    share = d_logits.T @ inputs
                    d_weight = share.to(weight.dtype) if d_weight is None else d_weight.add_(share)
                    del d_logits, share  # before there are new ones
        if d_hidden is not None:
            ctx.save_for_backward(d_hidden, d_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden.mul_(gradients[0]), d_weight.mul_(gradients[0]), None, None, None


def _nll(logits: Tensor, targets: Tensor, ignored: int, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Of (rows, vocabulary) logits: the summed loss, and its gradient; both in the logits' own memory where it can."""
    narrow, trained = logits.dtype, (targets != ignored).unsqueeze(1)
    places = torch.where(trained, targets.unsqueeze(1), 0)
    logits = logits.float()
    logits.sub_(logits.amax(1, keepdim=True))
    chosen = logits.gather(1, places)
    odds = logits.exp_()
    total = odds.sum(1, keepdim=True)
    nll = (total.log() - chosen).mul(trained).sum()
    if not with_gradient:
        return nll, None
    # softmax - one-hot, and nothing where there is no loss
    gradient = odds.mul_(trained / total)
    return nll, gradient.scatter_add_(1, places, -trained.to(gradient.dtype)).to(narrow)
