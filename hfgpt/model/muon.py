"""Muon: steps of a chosen spectral norm for the matrices inside the blocks.

In:  the matrices of GPT-2's blocks, and AdamW for the rest of the model.
Out: one torch optimizer for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hfgpt.model.sizes import ELEMENTS, ITERATIONS

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of X, X³ and X⁵: Jordan's, steepest at 0 among those that stay near 1


def block_matrices(model: nn.Module) -> list[dict[str, Any]]:
    """The trained matrices inside GPT-2's blocks, in groups of one shape.

    They are the Conv1D weights, (inputs, outputs). c_attn has query, key and value side by side: 'parts' says of how
    many matrices each weight of a group consists.
    """
    groups: dict[tuple[torch.Size, int], list[nn.Parameter]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D) and module.weight.requires_grad:
            parts = 3 if name.endswith("c_attn") else 1
            groups.setdefault((module.weight.shape, parts), []).append(module.weight)
    return [{"params": params, "parts": parts} for (_, parts), params in groups.items()]


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies in it; else float32, of which a CPU takes a fifteenth of the time."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type in ("cuda", "xpu") else torch.float32


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, rows, columns) → the same shape in `dtype`, all singular values moved to between about 0.7 and 1.2.

    Five steps of a Newton-Schulz iteration, which multiplies matrices only (Jordan et al. 2024, "Muon: An optimizer for
    hidden layers in neural networks"). Singular values below about 1e-3 of the matrix's norm stay smaller.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).to(dtype)  # no singular value is above the norm
    if dtype == torch.float32 and x.shape[-1] > 2 * x.shape[-2]:
        x = _iterated(x @ x.mT) @ x
    else:
        for _ in range(ITERATIONS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _iterated(gram: Tensor) -> Tensor:
    """(batch, rows, rows) Gram matrices X Xᵀ → the Q for which Q X is the end of the iteration from X.

    Each step is X ← (a + b X Xᵀ + c (X Xᵀ)²) X, so X Xᵀ says all that the factors depend on. That saves the products
    with the wide X: 4 in 9 of the arithmetic for an MLP's. It squares the singular values: in float32 the error is
    about 2e-4, in bfloat16 it would be the whole. (A card that takes float32 here is older than TF32.)
    """
    a, b, c = COEFFICIENTS
    product: Tensor | None = None
    for step in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if step < ITERATIONS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of the blocks and AdamW for everything else, in one optimizer.

    A step of a matrix W of (inputs, outputs), with the gradient g and one average m beside it (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon):

        m ← momentum · m + (1 - momentum) · g
        u = orthogonalise(momentum · m + (1 - momentum) · g)
        W ← W - lr · weight_decay · W - lr · √max(1, outputs / inputs) · u

    The learning rate thus is about the spectral norm of a step (twice that for c_fc), whatever the gradient is. It has
    a scale of its own, about 0.02 at every width, many times AdamW's.

    It is torch.optim.Muon's update (adjust_lr_fn "original") where that would have each matrix as nn.Linear has it:
    torch's own takes no other parameters, scales a Conv1D's weight by inputs / outputs, takes query, key and value for
    one matrix, and computes in bfloat16 on every device.

    Args:
        matrices: groups of weights of one shape, with lr, weight_decay, momentum, and parts: of how many matrices,
            side by side, each weight consists.
        adamw: the optimizer of the other parameters.
        dtype: in which the matrices are orthogonalised.
    """

    def __init__(self, matrices: list[dict[str, Any]], adamw: torch.optim.AdamW, dtype: torch.dtype) -> None:
        super().__init__([*adamw.param_groups, *matrices], {})
        self._adamw, self._dtype = adamw, dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns the closure's loss."""
        # Loading a state puts other objects in the place of these.
        self._adamw.state = self.state
        self._adamw.param_groups = [group for group in self.param_groups if "parts" not in group]
        loss: float | None = self._adamw.step(closure)
        for group in self.param_groups:
            if "parts" in group:
                for some in _in_turn([p for p in group["params"] if p.grad is not None]):
                    self._update(some, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Muon's step for weights of one shape, all at once."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients: list[Any] = [weight.grad for weight in weights]
        averages, parts = [self.state[weight]["momentum_buffer"] for weight in weights], group["parts"]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        stacked = torch.stack(torch._foreach_lerp(gradients, averages, group["momentum"]))
        # (weights, inputs, parts · outputs) → (weights · parts, inputs, outputs), and back
        matrices = stacked.reshape(len(weights), stacked.shape[1], parts, -1).movedim(2, 1).flatten(0, 1)
        del stacked
        inputs, outputs = matrices.shape[1:]
        updates = orthogonalise(matrices, self._dtype).view(-1, parts, inputs, outputs).movedim(1, 2).flatten(2)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, updates.unbind(), alpha=-group["lr"] * max(1.0, outputs / inputs) ** 0.5)


def _in_turn(weights: list[Tensor]) -> Iterator[list[Tensor]]:
    """Weights of one shape in lists of at most ELEMENTS numbers, or of one."""
    most = max(1, ELEMENTS // weights[0].numel()) if weights else 1
    return (weights[start : start + most] for start in range(0, len(weights), most))
