"""Muon: steps of a chosen spectral norm for the matrices inside the blocks.

In:  the matrices of GPT-2's blocks, and AdamW for the rest of the model.
Out: one torch optimizer for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
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

    With several processes each orthogonalises some of the matrices whole and sends them to the others: under DDP, where
    all would compute the same, and under FSDP2, whose shards are gathered first. Every process then has the averages of
    what it holds, so that checkpoints do not know of this.

    As torch's fused AdamW, it leaves an update out where `found_inf`, a flag on the device, says so.

    Args:
        matrices: groups of weights of one shape, with lr, weight_decay, momentum, and parts: of how many matrices,
            side by side, each weight consists.
        adamw: the optimizer of the other parameters.
        dtype: in which the matrices are orthogonalised.
    """

    def __init__(self, matrices: list[dict[str, Any]], adamw: torch.optim.AdamW, dtype: torch.dtype) -> None:
        super().__init__([*adamw.param_groups, *matrices], {})
        self._adamw, self._dtype = adamw, dtype
        self._step_supports_amp_scaling = True  # a GradScaler then leaves its flag in found_inf, and does not read it
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns the closure's loss."""
        # Loading a state puts other objects in the place of these.
        self._adamw.state = self.state
        assert getattr(self, "grad_scale", None) is None, "gradients are unscaled before they are clipped"
        found_inf = getattr(self, "found_inf", None)  # a GradScaler removes both
        self._adamw.found_inf = found_inf  # type: ignore[attr-defined]
        self._adamw.param_groups = [group for group in self.param_groups if "parts" not in group]
        loss: float | None = self._adamw.step(closure)
        for group in self.param_groups:
            if "parts" in group:
                for some in _in_turn([p for p in group["params"] if p.grad is not None]):
                    self._update(some, group, None if found_inf is None else found_inf > 0)
        return loss

    def _update(self, weights: list[nn.Parameter], group: dict[str, Any], left_out: Tensor | None) -> None:
        """Muon's step for weights of one shape, all at once; of a sharded weight, for this process's shard.

        Args:
            weights: with gradients.
            group: theirs.
            left_out: true if nothing may change.
        """
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        own: list[Any] = [_local(weight) for weight in weights]
        gradients = [_local(weight.grad) for weight in weights]
        averages = [_local(self.state[weight]["momentum_buffer"]) for weight in weights]
        if left_out is not None:  # the average is then mixed with itself
            gradients = [torch.where(left_out, m, g) for m, g in zip(averages, gradients, strict=True)]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        directions = _whole(weights, list(torch._foreach_lerp(gradients, averages, group["momentum"])))
        inputs, outputs = weights[0].shape[0], weights[0].shape[1] // group["parts"]
        updates = _shards(weights, _together(directions, group["parts"], self._dtype))
        kept = 1 - group["lr"] * group["weight_decay"]
        if left_out is None:
            torch._foreach_mul_(own, kept)
        else:
            updates = [update.masked_fill(left_out, 0.0) for update in updates]
            torch._foreach_mul_(own, torch.where(left_out, 1.0, kept))
        torch._foreach_add_(own, updates, alpha=-group["lr"] * max(1.0, outputs / inputs) ** 0.5)


def _in_turn(weights: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Weights of one shape in lists of at most ELEMENTS numbers for each process, or of one weight."""
    most = max(1, ELEMENTS // weights[0].numel()) * _processes() if weights else 1
    return (weights[start : start + most] for start in range(0, len(weights), most))


# ------------------------------------------------------------------------------------------- whole and in shards


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _local(tensor: Any) -> Tensor:
    """What this process has of a tensor: its shard under FSDP2, else all of it."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local


def _whole(weights: list[nn.Parameter], parts: list[Tensor]) -> list[Tensor]:
    """Tensors that are sharded as the weights are, gathered. Collective under FSDP2."""
    if not isinstance(weights[0], DTensor):
        return parts
    spread = [
        DTensor.from_local(part, w.device_mesh, w.placements, run_check=False, shape=w.shape, stride=w.stride())
        for part, w in zip(parts, cast(list[DTensor], weights), strict=True)
    ]
    return [tensor.full_tensor() for tensor in spread]


def _shards(weights: list[nn.Parameter], whole: list[Tensor]) -> list[Tensor]:
    """The inverse, which needs no communication."""
    if not isinstance(weights[0], DTensor):
        return whole
    everywhere = [Replicate()] * weights[0].device_mesh.ndim
    return [
        DTensor.from_local(update, w.device_mesh, everywhere, run_check=False).redistribute(placements=w.placements)
        .to_local()
        for update, w in zip(whole, cast(list[DTensor], weights), strict=True)
    ]  # fmt: skip


def _together(directions: list[Tensor], parts: int, dtype: torch.dtype) -> list[Tensor]:
    """Directions of one shape, orthogonalised: each process takes some of them whole; then all exchange theirs."""
    processes = _processes()
    if processes == 1:
        return list(_orthogonal(directions, parts, dtype).unbind())
    count, mine = len(directions), directions[dist.get_rank() :: processes]
    share = directions[0].new_zeros((-(-count // processes), *directions[0].shape), dtype=dtype)
    directions.clear()
    if mine:
        own = _orthogonal(mine, parts, dtype)
        share[: len(own)] = own
    shares = share.new_empty((processes, *share.shape))
    dist.all_gather_single(shares.flatten(0, 1), share)
    return [shares[number % processes, number // processes] for number in range(count)]


def _orthogonal(directions: list[Tensor], parts: int, dtype: torch.dtype) -> Tensor:
    """Directions of (inputs, parts · outputs) each → (directions, inputs, parts · outputs), every part by itself.

    The list is emptied: the copy takes its place in memory.
    """
    count, stacked = len(directions), torch.stack(directions)
    directions.clear()
    matrices = stacked.reshape(count, stacked.shape[1], parts, -1).movedim(2, 1).flatten(0, 1)
    del stacked
    inputs, outputs = matrices.shape[1:]
    return orthogonalise(matrices, dtype).view(-1, parts, inputs, outputs).movedim(1, 2).flatten(2)
