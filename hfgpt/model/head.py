"""The model's output head and loss, without all logits in memory at once.

In:  the hidden states after the last layer norm, the head's weight, the targets.
Out: the summed cross entropy, with gradients.

The logits of a large vocabulary are the largest tensors of a step. They are computed a chunk at a time, for large
logits at most an eighth at once. torch 2.13 has its own linear_cross_entropy, which is not used for three reasons. It
ignores autocast, so its products run in float32; it breaks the compiled graph; and it takes 1.2 to 4 times as long at
the same memory (2 CPU threads). benchmarks/head.py compares the two, and will show when this changes.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgpt.model.sizes import CHUNKS, LOGITS


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignored: int, z_loss: float = 0.0) -> Tensor:
    """Return the summed cross entropy of the logits `hidden @ weight.T`, in nats, float32, computed in chunks.

    The gradient is computed with the loss, while a chunk's logits are in memory, as in Liger's fused kernel.

    Args:
        hidden: (tokens, n_embd).
        weight: (vocabulary, n_embd).
        targets: (tokens,) token ids.
        ignored: the target without a loss.
        z_loss: weight of log(Σ exp(logits))², which keeps the logits from drifting (Chowdhery et al. 2022, "PaLM", 5).
            It affects only the gradients: the value stays the cross entropy, so that losses are comparable.
    """
    loss: Tensor = cast(Any, _LinearCrossEntropy).apply(
        hidden, weight, targets, ignored, torch.is_grad_enabled(), z_loss
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignored: int, with_gradient: bool, z_loss: float
    ) -> Tensor:
        device = hidden.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        tokens, vocabulary = len(hidden), len(weight)
        chunks = min(CHUNKS, -(-tokens * vocabulary // LOGITS))
        rows = -(-tokens // chunks)
        loss = hidden.new_zeros((), dtype=torch.float32)
        wide = torch.promote_types(weight.dtype, torch.float32)  # FSDP2 hands over a narrow weight: sum no chunks in it
        d_hidden = torch.empty_like(hidden) if with_gradient else None
        d_weight: Tensor | None = None
        with torch.autocast(device, enabled=False):
            head = weight.to(narrow)
            if added := rows_to_add(weight):
                head = F.pad(head, (0, 0, 0, added))
            for start in range(0, tokens, rows):
                inputs = hidden[start : start + rows].to(narrow)
                nll, d_logits = _nll(
                    inputs @ head.T, vocabulary, targets[start : start + rows], ignored, with_gradient, z_loss
                )
                loss += nll
                if d_hidden is not None and d_logits is not None:
                    d_hidden[start : start + rows] = d_logits @ head
                    d_logits = d_logits[:, :vocabulary]
                    if d_weight is None:
                        d_weight = (d_logits.T @ inputs).to(wide)
                    elif torch.compiler.is_compiling():
                        torch.ops.hfgpt.add_product(d_weight, d_logits, inputs)
                    else:
                        d_weight.add_(d_logits.T @ inputs)
                    del d_logits  # free them before allocating new ones
        if d_hidden is not None:
            assert d_weight is not None
            ctx.save_for_backward(d_hidden, d_weight.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden.mul_(gradients[0]), d_weight.mul_(gradients[0]), None, None, None, None


def rows_to_add(weight: Tensor) -> int:
    """Return how many zero rows pad the head's weight: on a card, up to a multiple of 64.

    Without them, a row of GPT-2's 50,257 logits is not a multiple of the 16 bytes that fast matrix products need.
    """
    return -len(weight) % 64 if weight.device.type == "cuda" else 0


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += leftᵀ · right.

    A custom operator is opaque to the compiler. Otherwise it computes the products of all chunks before adding them: at
    GPT-2's vocabulary that takes 0.5 GB more.
    """
    total.add_(left.T @ right)


# Not torch.library.custom_op, which searches all loaded modules for the source: 40 ms at every start.
_OPERATORS = torch.library.Library("hfgpt", "FRAGMENT")
if not hasattr(torch.ops.hfgpt, "add_product"):  # a process that imports this module again has it already
    _SIGNATURE = "add_product(Tensor(a!) total, Tensor left, Tensor right) -> ()"
    _OPERATORS.define(_SIGNATURE, tags=torch.Tag.pt2_compliant_tag)
    _OPERATORS.impl("add_product", _add_product, "CompositeExplicitAutograd")  # all devices, and tensors without data


def _nll(
    logits: Tensor, vocabulary: int, targets: Tensor, ignored: int, with_gradient: bool, z_loss: float
) -> tuple[Tensor, Tensor | None]:
    """Return the summed loss of (rows, vocabulary) logits and its gradient, computed in place in float32 logits.

    Columns beyond the vocabulary are ignored.
    """
    narrow, trained = logits.dtype, (targets != ignored).unsqueeze(1)
    places = torch.where(trained, targets.unsqueeze(1), 0)
    logits = logits.float()
    if logits.shape[1] > vocabulary:
        logits[:, vocabulary:] = -math.inf
    largest = logits.amax(1, keepdim=True)
    logits.sub_(largest)
    chosen = logits.gather(1, places)
    odds = logits.exp_()
    total = odds.sum(1, keepdim=True)
    nll = (total.log() - chosen).mul(trained).sum()
    if not with_gradient:
        return nll, None
    # Gradient: softmax - one-hot, 0 for ignored targets. The z-loss adds softmax times twice the logarithm.
    share = trained / total
    if z_loss:
        share = share * (1 + 2 * z_loss * (total.log() + largest))
    gradient = odds.mul_(share)
    return nll, gradient.scatter_add_(1, places, -trained.to(gradient.dtype)).to(narrow)
