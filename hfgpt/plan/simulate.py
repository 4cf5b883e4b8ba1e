"""The peak memory of a training step, found by running the step on tensors without data.

In:  a Config, the size of its vocabulary, the kind of device and the precision.
Out: the peak bytes of live tensors, and the operation that reaches it.

The step is the real one: the model of hfgpt/model/gpt2.py, its backward pass, clipping, the optimizer of
hfgpt/model/optim.py. It runs under torch's FakeTensorMode, which tracks every tensor's size and computes nothing, so
that a step of GPT-2 124M takes seconds on a laptop. hfgpt/plan/memory.py has the closed form, without torch; tests keep
the two consistent.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hfgpt.config import Config
from hfgpt.model import gpt2 as model
from hfgpt.model import head, kernels, optim
from hfgpt.model.sizes import Kind


@dataclass(frozen=True)
class Peak:
    """The peak memory of a step's live tensors, and when it is reached."""

    # weights, gradients, optimizer state, activations and everything else torch allocates for tensors; not the device's
    # context, nor what a kernel allocates inside itself
    bytes: int
    phase: str  # 'forward', 'backward' or 'optimizer'
    operation: str  # the operation that reached it, by its name in torch


def peak(config: Config, vocab_size: int, kind: Kind, dtype: str) -> Peak:
    """Simulate two optimizer steps of `config.batch_size` sequences per micro-batch; return the second one's peak.

    The first step has no optimizer state in its backward pass, so it does not count. Two micro-batches stand for any
    larger number: the second adds to the first one's gradients.

    Args:
        config: a model from scratch (a pretrained one's shape filled in by survey.survey_of).
        vocab_size: rows of the token embedding.
        kind: whose operations are run: the CPU's own, or an accelerator's in their place.
        dtype: 'float32', or 'bfloat16' or 'float16' for mixed precision over float32 weights.
    """
    live, micro_batches = LiveBytes(), min(2, config.gradient_accumulation_steps)
    with FakeTensorMode(), live, operations_of(kind):
        net = model.build(config, vocab_size, eos_token_id=0)
        optimizer = optim.build(net, config, torch.device("cpu" if kind == "cpu" else "cuda"))
        for parameter in net.parameters():
            live.enter(parameter)
        for _ in range(2):
            live.begin()
            shape = (config.batch_size, config.block_size + 1)
            for tokens in [torch.zeros(shape, dtype=torch.int64) for _ in range(micro_batches)]:
                live.phase = "forward"
                with torch.autocast("cpu", dtype=getattr(torch, dtype), enabled=dtype != "float32"):
                    loss = net(tokens[:, :-1], tokens[:, 1:])
                live.phase = "backward"
                (loss / config.tokens_per_iter).backward()
            live.phase = "optimizer"
            torch.nn.utils.clip_grad_norm_(net.parameters(), config.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
    return Peak(live.peak, live.peak_phase, live.peak_operation)


class LiveBytes(TorchDispatchMode):
    """Counts the live tensor memory by watching every operation's results.

    A storage is counted with the first tensor that uses it, until torch frees it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self.phase = self.peak_phase = self.peak_operation = ""
        self._known: dict[int, int] = {}

    def begin(self) -> None:
        """Reset the peak."""
        self.peak = 0

    def enter(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known[storage._cdata] = storage.nbytes()
            self.bytes += storage.nbytes()
            weakref.finalize(storage, self._leave, storage._cdata)

    def _leave(self, key: int) -> None:
        self.bytes -= self._known.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.add.Tensor and self.phase == "backward" and _accumulates_in_place(*args[:2]):
            func = torch.ops.aten.add_.Tensor
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.enter(leaf)
        if self.bytes > self.peak:
            self.peak, self.peak_phase, self.peak_operation = self.bytes, self.phase, func.name().removeprefix("aten::")
        return result


# Owners of an otherwise unused fake tensor's storage: the tensor, and the meta tensor inside it.
_SOLE_OWNER = 2


def _accumulates_in_place(left: Tensor, right: object) -> bool:
    """Whether autograd, summing two gradients, would write into the first one.

    It does if nothing else uses that memory. A fake tensor always looks used, since it wraps another one, so the engine
    allocates a sum that a real run does not.
    """
    return (
        not torch.is_grad_enabled()
        and isinstance(right, Tensor)
        and left.shape == right.shape
        and torch._C._storage_Use_Count(left.untyped_storage()._cdata) == _SOLE_OWNER
    )


@contextlib.contextmanager
def operations_of(kind: Kind) -> Iterator[None]:
    """Run, on an accelerator, the operations that the same calls reach there; on a CPU, its own.

    Fake tensors of a device that torch was not built for do not exist, so the tensors say CPU and these calls are
    made directly: dropout keeps one byte per element, attention is fused even with dropout, layer norm under autocast
    runs in float32, and the head is padded. (A TorchFunctionMode would be left by `backward`, and with it
    checkpointing's second forward pass.)
    """
    if kind == "cpu":
        yield
        return
    layer_norm = F.layer_norm
    substitutes: dict[str, Callable[..., Tensor]] = {
        "dropout": _dropout,
        "scaled_dot_product_attention": _attention,
        "layer_norm": lambda input, *args, **kwargs: layer_norm(input.float(), *args, **kwargs),
    }
    originals, suits, rows_to_add = {name: getattr(F, name) for name in substitutes}, kernels.suits, head.rows_to_add
    try:
        kernels.suits = lambda tensor: False
        head.rows_to_add = lambda weight: -len(weight) % 64
        for name, substitute in substitutes.items():
            setattr(F, name, substitute)
        yield
    finally:
        kernels.suits, head.rows_to_add = suits, rows_to_add
        for name, original in originals.items():
            setattr(F, name, original)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, **_: Any,
) -> Tensor:  # fmt: skip
    """Flash attention in 16 bits; memory-efficient attention in float32 or with a mask, which the former lacks."""
    aten = torch.ops.aten
    if query.dtype != torch.float32 and attn_mask is None:
        result: tuple[Tensor, ...] = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)
    else:
        bias = None if attn_mask is None else torch.zeros_like(attn_mask, dtype=query.dtype)
        result = aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, dropout_p, is_causal)
    return result[0]
