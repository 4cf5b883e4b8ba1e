"""Memory: refuse a model that cannot fit, and lower a micro-batch that does not fit, before the first step.

In:  a config and its Accelerator; later a :class:`~hfgpt.train.run.Run` that is ready to train.
Out: an error that names what would fit; or the run with a smaller micro-batch and more accumulation. The global batch,
     the order of the data, the weights, the optimizer and the random generators stay as they were.

Accelerate's `find_executable_batch_size` decides in each process alone, while the others wait in a collective. Here
every process tries without a collective; they agree afterwards.
"""

import gc
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, is_compiled_module
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from hfgpt.base import hardware
from hfgpt.base.command import typed
from hfgpt.base.errors import InputError, RunError
from hfgpt.base.language import _
from hfgpt.base.units import divisors
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.model.muon import Muon
from hfgpt.train.collective import gather
from hfgpt.train.run import Run

STATE = 16  # bytes per parameter: weight, gradient and AdamW's two averages, in float32


# ------------------------------------------------------------------------------------------------ before the model


def check_size(config: Config, accelerator: Accelerator) -> None:
    """Refuse a model that cannot take a single step, before a corpus is prepared or the system kills the process.

    This counts less than a run takes: the blocks alone, without embeddings, activations and libraries. So it refuses
        nothing that might train; a model that is only slightly too large fails at the first step.

    Raises:
        InputError: the blocks take more memory than there is; says how much, and which n_embd would fit.
    """
    if config.pretrained:  # a pretrained model's shape is not known yet
        return
    total, owner = memory_for_state(accelerator)
    each = 4 if config.eval_only else STATE
    need = each * _block_parameters(config, config.n_embd)
    if total is None or need <= total:
        return
    head = config.n_head
    widths = range(head, config.n_embd, head)
    fitting = bisect_right(widths, total, key=lambda width: each * _block_parameters(config, width))
    if fitting:
        advice = _("n_embd = {width} at most with this n_layer", width=widths[fitting - 1])
    else:
        advice = _("a smaller n_layer and n_embd")
    parts = _("weights") if config.eval_only else _("weights, gradients and optimizer")
    raise InputError(
        "n_layer = {n_layer}, n_embd = {n_embd}: {parameters:,} parameters; their {parts} take {need:,.1f} GiB, "
        "and {owner} {total:,.1f} GiB\n    → {advice}; {command} says what a recipe takes",
        command=typed("plan"),
        n_layer=config.n_layer,
        n_embd=config.n_embd,
        parameters=need // each,
        parts=parts,
        need=need / 2**30,
        owner=owner,
        total=total / 2**30,
        advice=advice,
    )


def _block_parameters(config: Config, width: int) -> int:
    """Return the parameters of the Transformer blocks at this n_embd."""
    counted = sizes.parameters(config.model_copy(update={"n_embd": width}), vocab_size=0)
    return counted.attention + counted.mlp + counted.norms


def memory_for_state(accelerator: Accelerator) -> tuple[int | None, str]:
    """Return the bytes available to one copy of weights, gradients and averages, and whose they are; None if unknown.

    Replicas on a CPU share the machine's memory; shards (FSDP) use that of all their devices together.
    """
    kind, device, processes = accelerator.distributed_type, accelerator.device, accelerator.num_processes
    sharded = kind == DistributedType.FSDP
    if kind == DistributedType.DEEPSPEED or (sharded and accelerator.state.fsdp_plugin.cpu_offload):
        return None, ""  # the state may be in host memory, or on disk
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device).total_memory
        return (card * processes, _("{n} cards have", n=processes)) if sharded else (card, _("the card has"))
    if device.type not in ("cpu", "mps"):
        return None, ""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    memory = hardware.cpu_memory_bytes()
    if sharded:
        owner = _("this machine has") if local == processes else _("these machines have")
        return memory * processes // local, owner
    owner = _("each of {n} processes here has", n=local) if local > 1 else _("this machine has")
    return memory // local, owner


# ------------------------------------------------------------------------------------------- before the first step


def fit(run: Run) -> None:
    """Lower the micro-batch to the largest divisor of a process's share that fits in memory. Collective.

    A compiled model takes a minute to compile for each size. So if the requested size does not fit, smaller ones are
    tried with the eager model first, which takes more memory; then the compiled one confirms what was found. Where
    nothing can be tried, a line says so.

    Raises:
        RunError: not even one sequence fits.
    """
    mode = run.config.fit
    if mode == "never" or (mode == "auto" and run.device.type == "cpu"):
        return
    if not run.replicated:  # a process that fails in a forward pass would leave the others waiting
        run.display.say(
            _(
                "fit = {mode!r}: not tried under {engine}, where a process that runs out of memory leaves the others "
                "waiting → should memory run out: {advice}",
                mode=mode,
                engine={DistributedType.FSDP: "FSDP2"}.get(run.accelerator.distributed_type, "DeepSpeed"),
                advice=advice(run),
            )
        )
        return
    requested, models = run.micro_batch, [run.model]
    while models:
        if everywhere(run, try_step(run, models[-1], run.micro_batch)):
            models.pop()
            continue
        if run.micro_batch == requested and is_compiled_module(run.model):
            models.append(run.plain)
        if run.micro_batch == 1:
            raise RunError(
                "step {step}: out of memory with one sequence\n    → {advice}",
                step=run.progress.step,
                advice=advice(run),
            )
        run.micro_batch = next(smaller(run))
    if run.micro_batch < requested:
        run.display.warn(
            _(
                "micro-batches of {asked} do not fit in memory: taking {taken}, for the same steps",
                asked=requested,
                taken=run.micro_batch,
            )
        )


def smaller(run: Run) -> Iterator[int]:
    """Return the smaller micro-batches to try, largest first."""
    share = run.config.global_batch // run.accelerator.num_processes
    return divisors(share, run.micro_batch - 1)


def try_step(run: Run, model: nn.Module, size: int) -> bool:
    """Whether a run's most demanding step with micro-batches of `size` fits on this device; changes nothing.

    Args:
        run: prepared. model: the run's, in its wrappers or without them.
        size: sequences.
    """
    optimizer, device, accelerator = run.optimizer.optimizer, run.device, run.accelerator
    tokens = torch.zeros((size, run.config.block_size + 1), dtype=torch.long, device=device)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]  # same strides as in a step: others would trigger a recompilation
    generators = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
    share = run.config.global_batch // accelerator.num_processes
    run.model.train()
    try:
        # Skip the all-reduce: a process that fails must not leave the others waiting in one.
        with generators, accelerator.no_sync(run.model):
            rehearse(
                lambda: accelerator.backward(model(input_ids=inputs, targets=targets)),
                optimizer,
                micro_batches=min(2, share // size),
                buckets=accelerator.num_processes > 1,
            )
        return True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        optimizer.zero_grad()
        if device.type != "cpu":
            gc.collect()
            torch.accelerator.empty_cache()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)


def rehearse(
    forward_and_backward: Callable[[], None],
    optimizer: torch.optim.Optimizer,
    *,
    micro_batches: int,
    buckets: bool = False,
) -> None:
    """Use as much memory as a run's most demanding step; weights and optimizer stay as they are.

    The first step has no averages yet, and its first micro-batch no gradients: neither is the most demanding. So an
    update with zero gradients and a zero rate first creates the averages, as `torch.distributed.checkpoint` does
    (averages from a checkpoint stay). With accumulation, a second backward pass then adds to the first one's gradients.

    Args:
        forward_and_backward: one micro-batch.
        micro_batches: 1, or 2 if the run accumulates: the second stands for all later ones.
        buckets: whether DDP holds the gradients. Without accumulation, each is then moved into its preallocated bucket
            as soon as it is computed.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fresh = not optimizer.state
    moved = buckets and micro_batches == 1
    hooks = [p.register_post_accumulate_grad_hook(_drop_gradient) for p in parameters if moved and p.requires_grad]
    try:
        if fresh:
            idle_update(optimizer, parameters)
        for _each in range(micro_batches):
            forward_and_backward()
    finally:
        for hook in hooks:
            hook.remove()
        if fresh:
            optimizer.state.clear()


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def idle_update(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Make a fresh optimizer create its averages, without changing a weight, and without the other processes."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        with optimizer.alone() if isinstance(optimizer, Muon) else nullcontext():
            optimizer.step()
    finally:
        optimizer.zero_grad()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def everywhere(run: Run, fits: bool) -> bool:
    """Whether `fits` holds on every process. Collective."""
    return bool(gather(run.device, fits).min())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that a device or the host ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    said = str(error)  # also by CUDA itself and by Triton, which load kernels and pin memory beside torch's allocator
    known = "out of memory" in said.lower() or "CUBLAS_STATUS_ALLOC_FAILED" in said
    return isinstance(error, RuntimeError) and (known or should_reduce_batch_size(error))


def advice(run: Run) -> str:
    """Return which settings make the same steps take less memory."""
    size = next(smaller(run), None)
    if size is not None:
        return _(
            "--batch_size={size} --gradient_accumulation_steps={steps}: the same steps in micro-batches of {size} "
            "instead of {old}",
            size=size,
            steps=run.config.global_batch // size,
            old=run.micro_batch,
        )
    if not run.config.activation_checkpointing:
        return _("--activation_checkpointing: the same steps in less memory, and about a third more time")
    return _("a smaller block_size, n_layer or n_embd (a new run), or a device with more memory")
