"""Muon: updates of a chosen spectral norm for the matrices inside the blocks.

In:  the matrices of GPT-2's blocks, and AdamW for the rest of the model.
Out: one torch optimizer for both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from transformers.pytorch_utils import Conv1D

from hfgpt.model.sizes import ELEMENTS, ITERATIONS

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of X, X³ and X⁵: Jordan's coefficients, the steepest at 0 that stay near 1


def block_matrices(model: nn.Module) -> list[dict[str, Any]]:
    """Return the trained matrices inside GPT-2's blocks, grouped by shape.

    They are the Conv1D weights, (inputs, outputs). c_attn holds query, key and value side by side: 'parts' is the
    number of matrices in each weight of a group.
    """
    groups: dict[tuple[torch.Size, int], list[nn.Parameter]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D) and module.weight.requires_grad:
            parts = 3 if name.endswith("c_attn") else 1
            groups.setdefault((module.weight.shape, parts), []).append(module.weight)
    return [{"params": params, "parts": parts} for (_, parts), params in groups.items()]


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 if the device multiplies in it; otherwise float32, fifteen times as fast on such a CPU."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type in ("cuda", "xpu") else torch.float32


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, rows, columns) → the same shape in `dtype`, with all singular values moved to between about 0.7 and 1.2.

    Five steps of a Newton-Schulz iteration, which needs only matrix products (Jordan et al. 2024, "Muon: An optimizer
    for hidden layers in neural networks"). Singular values below about 1e-3 of the matrix's norm stay smaller.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).to(dtype)  # bounds every singular value by 1
    if dtype == torch.float32 and x.shape[-1] > 2 * x.shape[-2]:
        x = _iterated(x @ x.mT) @ x
    else:
        for _ in range(ITERATIONS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _iterated(gram: Tensor) -> Tensor:
    """(batch, rows, rows) Gram matrices X Xᵀ → Q, where Q X is the result of the iteration from X.

    Each step is X ← (a + b X Xᵀ + c (X Xᵀ)²) X, so the factors depend only on X Xᵀ. That saves the products with the
    wide X: 4 in 9 of the arithmetic for an MLP. It squares the singular values: the error is about 2e-4 in float32, and
    would be total in bfloat16. (A card that uses float32 here is older than TF32.)
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

    A step of a matrix W of (inputs, outputs), with the gradient g and a momentum m (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon):

        m ← momentum · m + (1 - momentum) · g
        u = orthogonalise(momentum · m + (1 - momentum) · g)
        W ← W - lr · weight_decay · W - lr · √max(1, outputs / inputs) · u

    The learning rate is thus about the spectral norm of a step (twice that for c_fc), whatever the gradient. It has its
    own scale, about 0.02 at every width, many times AdamW's.

    It equals torch.optim.Muon's update (adjust_lr_fn "original") of each matrix in nn.Linear's layout. torch's own
    accepts no other parameters, scales a Conv1D's weight by inputs / outputs, treats query, key and value as one
    matrix, and computes in bfloat16 on every device.

    With several processes, each orthogonalises some of the whole matrices and sends them to the others: under DDP,
    where all would otherwise compute the same, and under FSDP2, whose shards are gathered first. Every process keeps
    the momentum of the weights it holds, so checkpoints are unaffected.

    Like torch's fused AdamW, it skips an update if `found_inf`, a flag on the device, is set.

    Args:
        matrices: groups of weights of one shape, with lr, weight_decay, momentum, and parts, the number of matrices
            side by side in each weight.
        adamw: the optimizer of the other parameters.
        dtype: the data type in which matrices are orthogonalised.
    """

    def __init__(self, matrices: list[dict[str, Any]], adamw: torch.optim.AdamW, dtype: torch.dtype) -> None:
        super().__init__([*adamw.param_groups, *matrices], {})
        self._adamw, self._dtype = adamw, dtype
        self._step_supports_amp_scaling = True  # a GradScaler then sets found_inf, without reading it
        self._alone = False
        self.found_inf: Tensor | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it, a step takes its usual memory but waits for no other process; its updates mean nothing."""
        self._alone = True
        try:
            yield
        finally:
            self._alone = False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; return the closure's loss."""
        # load_state_dict replaces these objects.
        self._adamw.state = self.state
        assert getattr(self, "grad_scale", None) is None, "gradients are unscaled before they are clipped"
        found_inf = getattr(self, "found_inf", None)  # a GradScaler deletes both attributes
        self._adamw.found_inf = found_inf  # type: ignore[attr-defined]
        self._adamw.param_groups = [group for group in self.param_groups if "parts" not in group]
        loss: float | None = self._adamw.step(closure)
        for group in self.param_groups:
            if "parts" in group:
                for weights in _in_turn([p for p in group["params"] if p.grad is not None]):
                    self._update(weights, group, None if found_inf is None else found_inf > 0)
        return loss

    def _update(self, weights: list[nn.Parameter], group: dict[str, Any], left_out: Tensor | None) -> None:
        """Apply Muon's step to weights of one shape at once; to this process's shards, if they are sharded."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        local_weights: list[Any] = [_local(weight) for weight in weights]
        gradients = [_local(weight.grad) for weight in weights]
        averages = [_local(self.state[weight]["momentum_buffer"]) for weight in weights]
        if left_out is not None:  # the momentum is then averaged with itself
            gradients = [torch.where(left_out, m, g) for m, g in zip(averages, gradients, strict=True)]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        directions = _whole(weights, list(torch._foreach_lerp(gradients, averages, group["momentum"])))
        inputs, outputs = weights[0].shape[0], weights[0].shape[1] // group["parts"]
        updates = _shards(weights, _together(directions, group["parts"], self._dtype, alone=self._alone))
        kept = 1 - group["lr"] * group["weight_decay"]
        if left_out is None:
            torch._foreach_mul_(local_weights, kept)
        else:
            updates = [update.masked_fill(left_out, 0.0) for update in updates]
            torch._foreach_mul_(local_weights, torch.where(left_out, 1.0, kept))
        torch._foreach_add_(local_weights, updates, alpha=-group["lr"] * max(1.0, outputs / inputs) ** 0.5)


def _in_turn(weights: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Split weights of one shape into lists of at most ELEMENTS numbers for each process, but at least one weight."""
    most = max(1, ELEMENTS // weights[0].numel()) * _processes() if weights else 1
    return (weights[start : start + most] for start in range(0, len(weights), most))


# ------------------------------------------------------------------------------------------- whole and in shards


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _local(tensor: Any) -> Tensor:
    """Return this process's shard of a tensor under FSDP2, otherwise the tensor."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local


def _whole(weights: list[nn.Parameter], parts: list[Tensor]) -> list[Tensor]:
    """Gather tensors that are sharded like the weights. A collective under FSDP2."""
    if not isinstance(weights[0], DTensor):
        return parts
    spread = [
        DTensor.from_local(part, w.device_mesh, w.placements, run_check=False, shape=w.shape, stride=w.stride())
        for part, w in zip(parts, cast(list[DTensor], weights), strict=True)
    ]
    return [tensor.full_tensor() for tensor in spread]


def _shards(weights: list[nn.Parameter], whole: list[Tensor]) -> list[Tensor]:
    """Shard whole tensors like the weights, without communication."""
    if not isinstance(weights[0], DTensor):
        return whole
    everywhere = [Replicate()] * weights[0].device_mesh.ndim
    return [
        DTensor.from_local(update, w.device_mesh, everywhere, run_check=False).redistribute(placements=w.placements)
        .to_local()
        for update, w in zip(whole, cast(list[DTensor], weights), strict=True)
    ]  # fmt: skip


def _together(directions: list[Tensor], parts: int, dtype: torch.dtype, *, alone: bool) -> list[Tensor]:
    """Orthogonalise directions of one shape: each process computes some of them, then all gather the results.

    `alone` leaves out the gathering, but not its memory: all results are zeros.
    """
    processes = _processes()
    if processes == 1:
        return list(_orthogonal(directions, parts, dtype).unbind())
    count, local_directions = len(directions), directions[dist.get_rank() :: processes]
    share = directions[0].new_zeros((-(-count // processes), *directions[0].shape), dtype=dtype)
    directions.clear()
    if local_directions:
        orthogonal = _orthogonal(local_directions, parts, dtype)
        share[: len(orthogonal)] = orthogonal
    shares = share.new_empty((processes, *share.shape))
    if alone:
        shares.zero_()
    else:
        dist.all_gather_single(shares.flatten(0, 1), share)
    return [shares[number % processes, number // processes] for number in range(count)]


def _orthogonal(directions: list[Tensor], parts: int, dtype: torch.dtype) -> Tensor:
    """Orthogonalise each part of (inputs, parts · outputs) directions → (directions, inputs, parts · outputs).

    The list is emptied to free its memory for the copy.
    """
    count, stacked = len(directions), torch.stack(directions)
    directions.clear()
    matrices = stacked.reshape(count, stacked.shape[1], parts, -1).movedim(2, 1).flatten(0, 1)
    del stacked
    inputs, outputs = matrices.shape[1:]
    return orthogonalise(matrices, dtype).view(-1, parts, inputs, outputs).movedim(1, 2).flatten(2)
