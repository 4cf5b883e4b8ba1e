"""Out of memory: a micro-batch that fits, found before the first step; and what to change where it happens later.

In:  a :class:`~hfgpt.train.run.Run` that is ready to train.
Out: the same run with a smaller micro-batch and more accumulation, where its own did not fit. The global batch, the
     order of the data, the weights, the optimizer and the random generators are what they were.

Accelerate's `find_executable_batch_size` decides in each process for itself, while the others wait in a collective.
Here every process tries without one, and only then do they agree.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch
from accelerate.utils import DistributedType
from accelerate.utils.memory import should_reduce_batch_size

from hfgpt.base.errors import RunError
from hfgpt.train.collective import gather
from hfgpt.train.run import Run

# Elsewhere (FSDP, DeepSpeed) a forward pass is a collective: a process that fails in it would leave the others waiting.
REPLICATED = {DistributedType.NO, *(kind for kind in DistributedType if kind.name.startswith("MULTI_"))}


def fit(run: Run) -> None:
    """Lower the micro-batch to the largest divisor of a process's share that fits in memory. Collective.

    Raises:
        RunError: not even one sequence fits.
    """
    mode, replicated = run.config.fit, run.accelerator.distributed_type in REPLICATED
    if mode == "never" or not replicated or (mode == "auto" and run.device.type == "cpu"):
        return
    asked = run.micro_batch
    while not everywhere(run, try_step(run, run.micro_batch)):
        if run.micro_batch == 1:
            raise RunError(f"step {run.progress.step}: out of memory with one sequence\n    → {advice(run)}")
        run.micro_batch = next(smaller(run))
    if run.micro_batch < asked:
        run.display.warn(f"micro-batches of {asked} do not fit in memory: taking {run.micro_batch}, for the same steps")
        run.accelerator.gradient_accumulation_steps = share(run) // run.micro_batch


def share(run: Run) -> int:
    """Sequences of a step that are this process's."""
    return run.config.global_batch // run.accelerator.num_processes


def smaller(run: Run) -> Iterator[int]:
    """The micro-batches that are left to try, from the largest on."""
    return (size for size in range(run.micro_batch - 1, 0, -1) if share(run) % size == 0)


def try_step(run: Run, size: int) -> bool:
    """Whether forward, backward and update of `size` sequences fit on this device. Leaves no trace.

    The update has gradients and a rate of zero, so that the optimizer makes its averages and changes no weight
    (`torch.distributed.checkpoint` makes them the same way); those that a checkpoint brought are left alone.
    """
    optimizer, device = run.optimizer.optimizer, run.device
    tokens = torch.zeros((size, run.config.block_size), dtype=torch.long, device=device)
    generators = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
    run.model.train()
    try:
        with generators, run.accelerator.no_sync(run.model):
            run.accelerator.backward(run.model(input_ids=tokens, targets=tokens))
        if not optimizer.state:
            idle_update(optimizer)
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


def idle_update(optimizer: torch.optim.Optimizer) -> None:
    """An update that changes nothing, whose averages are taken away again."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.zero_()
    try:
        optimizer.step()
    finally:
        optimizer.state.clear()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def everywhere(run: Run, fits: bool) -> bool:
    """Whether it fits on every process. Collective."""
    return bool(gather(run.device, fits).min())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)
    )


def advice(run: Run) -> str:
    """What to set so that the same steps take less memory."""
    size = next(smaller(run), None)
    if size is not None:
        return (
            f"--batch_size={size} --gradient_accumulation_steps={run.config.global_batch // size}: the same steps in "
            f"micro-batches of {size} instead of {run.micro_batch}"
        )
    if not run.config.activation_checkpointing:
        return "--activation_checkpointing: the same steps in less memory, and about a third more time"
    return "a smaller block_size, n_layer or n_embd (a new run), or a device with more memory"
