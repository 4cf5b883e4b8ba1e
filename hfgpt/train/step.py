"""One optimizer step, and how a bad one is handled.

In:  a Run, this process's micro-batches of the global batch, and the step's learning rate.
Out: updated weights, and a :class:`StepResult`.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from accelerate.utils import DistributedType
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor

from hfgpt.base.language import _
from hfgpt.model import optim, schedule
from hfgpt.model.gpt2 import IGNORED
from hfgpt.train.collective import in_time, total
from hfgpt.train.failures import diverged
from hfgpt.train.run import Run

NORMS_AVERAGED = 50  # steps over which the spike guard averages the gradient norm


class Figure:
    """A number that is still being computed: reading it waits for the work that produces it, but for nothing later.

    float() of a tensor on a card is a copy, which queues behind all work launched since. So the copy is launched here,
    at once, into pinned memory.
    """

    def __init__(self, value: Tensor) -> None:
        self._value, self._made = value.detach(), None
        if value.device.type == "cuda":
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value.detach(), non_blocking=True)
            self._made = torch.cuda.Event()
            self._made.record()

    def __float__(self) -> float:
        if self._made is not None:
            self._made.synchronize()
        return float(self._value)


class StepResult(NamedTuple):
    """The outcome of one optimizer step. On an accelerator the figures are asynchronous: reading one waits."""

    step: int  # the step's number
    nll: Tensor  # summed over this process's targets, in nats
    targets: int  # targets of the global batch
    norm: Figure | float  # norm of the gradients, before clipping

    @property
    def grad_norm(self) -> float:
        """The gradient norm before clipping."""
        return float(self.norm)


def train_step(run: Run, batches: list[dict[str, Tensor]], targets: int, learning_rate: float) -> StepResult:
    """Update the weights from this process's micro-batches of the global batch.

    The host does not wait for the device, unless it must know the gradient norm before the update (:func:`must_look`).
    So it prepares the next step while this one runs; non-finite gradients are skipped on the device.

    The loss is the mean over the targets of the whole global batch, however they are split over micro-batches and
    processes: their sum, divided once. Accelerate divides by the number of micro-batches and DDP by the number of
    processes; the scale undoes both.

    Args:
        batches: inputs and targets of this process, one entry per micro-batch.
        targets: the number of targets in the global batch, over all processes.
        learning_rate: AdamW's learning rate in this step.
    """
    accelerator, optimizer = run.accelerator, run.optimizer
    accelerator.gradient_accumulation_steps, accelerator.step = len(batches), 0  # so it knows the last micro-batch
    scale = len(batches) * accelerator.num_processes / targets
    optim.set_learning_rate(optimizer, learning_rate)
    result = StepResult(run.progress.step + 1, torch.zeros((), device=run.device), targets, math.nan)
    for batch in batches:
        with accelerator.accumulate(run.model):
            loss = run.model(**batch)
            accelerator.backward(loss * scale)
            result.nll.add_(loss.detach())
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(run.model.parameters(), run.config.grad_clip or math.inf)
                result = update(run, result, norm)
            optimizer.zero_grad()
    return result


def order_buckets(run: Run) -> None:
    """Have DDP group the gradients as in every later step, before the first one. Collective.

    It reduces those of its first backward pass in one bucket, and then forms buckets in the order of their arrival.
    From three processes on, a sum's last bits depend on its place in a bucket: after a resume, the first step would not
    equal that of an undisturbed run. Nothing else changes; the gradients are dropped.
    """
    if run.accelerator.num_processes == 1 or not run.replicated or run.config.eval_only:
        return
    devices = [] if run.device.type == "cpu" else [run.device]
    tokens = torch.zeros((run.micro_batch, run.config.block_size + 1), dtype=torch.long, device=run.device)
    run.model.train()
    with in_time(), torch.random.fork_rng(devices, device_type=run.device.type):
        torch.autograd.backward(run.model(input_ids=tokens[:, :-1], targets=tokens[:, 1:]))
    run.optimizer.zero_grad()


def update(run: Run, result: StepResult, norm: Tensor | float) -> StepResult:
    """Update the weights, unless the gradients are not finite or too large."""
    if must_look(run):
        deepspeed = run.accelerator.distributed_type == DistributedType.DEEPSPEED
        if deepspeed and not math.isfinite(global_loss(run, result)):
            norm = math.nan  # DeepSpeed says -1, or the norm of the step before
        result = result._replace(norm=float(norm))
        if may_step(run, result.grad_norm):
            run.optimizer.step()
        return result
    norm = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)  # of FSDP2's shards
    if run.accelerator.scaler is None:  # loss scaling sets a flag of its own
        run.optimizer.optimizer.found_inf = left_out(run, norm).float()
    run.optimizer.step()
    return result._replace(norm=Figure(norm))


def must_look(run: Run) -> bool:
    """Whether the host must know the gradient norm before the update; a CPU does not run ahead anyway.

    A fused AdamW and Muon skip an update by a flag on the device, the one that loss scaling sets. DeepSpeed does not
    know that flag. The spike guard cannot set loss scaling's own flag, and computes in float64, which "mps" lacks.
    """
    heeds = getattr(getattr(run.optimizer, "optimizer", None), "_step_supports_amp_scaling", False)
    guards = run.config.spike_guard is not None and (run.accelerator.scaler is not None or run.device.type == "mps")
    return run.device.type == "cpu" or guards or not heeds


def left_out(run: Run, norm: Tensor) -> Tensor:
    """Whether to skip an update with this gradient norm: the decision of :func:`check_update`, on the device.

    Both keep the average in float64, so that they decide alike.
    """
    finite, guard = torch.isfinite(norm), run.config.spike_guard
    if guard is None:
        return ~finite
    if run.average_norm is None:
        before = math.nan if run.progress.average_norm is None else run.progress.average_norm
        run.average_norm = torch.full_like(norm, before, dtype=torch.float64)
    norm, average = norm.double(), run.average_norm
    limit = torch.where(average > 0, guard * average, math.inf)
    previous = torch.where(average.isnan(), norm, average)
    run.average_norm = torch.where(finite, previous + (torch.minimum(norm, limit) - previous) / NORMS_AVERAGED, average)
    return ~finite | (norm > limit)


def to_device(blocks: Iterable[NDArray[Any]], device: torch.device, least: int = 1) -> list[dict[str, Tensor]]:
    """Turn (sequences, block_size + 1) blocks into inputs, and targets one token later, on this process's device.

    A micro-batch of fewer than `least` sequences is filled with sequences without targets: an empty one, so that its
    process takes part in the collectives.
    """
    batches = []
    for block in blocks:
        tokens = torch.from_numpy(block)
        if (missing := least - len(tokens)) > 0:
            tokens = torch.cat([tokens, tokens.new_full((missing, block.shape[1]), IGNORED)])
        if device.type == "cuda":  # the copy then runs while the host prepares the step
            tokens = tokens.pin_memory()
        tokens = tokens.to(device, non_blocking=True)
        inputs = tokens.clamp(min=0) if missing > 0 else tokens
        batches.append({"input_ids": inputs[:, :-1], "targets": tokens[:, 1:]})
    return batches


def global_loss(run: Run, result: StepResult) -> float:
    """Return the loss of the step's global batch, in nats per token. Collective."""
    return total(run.device, float(result.nll))[0] / result.targets


def may_step(run: Run, norm: float) -> bool:
    """Whether to apply an update with this gradient norm; the same answer on every process."""
    scaler = run.accelerator.scaler
    if not math.isfinite(norm):  # loss scaling skips an overflow by itself, and adapts its scale
        return scaler is not None
    spike = norm > spike_limit(run)
    if spike and scaler is not None:
        scaler.update()  # completes what unscaling the gradients began
    return not spike


def spike_limit(run: Run) -> float:
    """Return the gradient norm above which an update is skipped; infinite without a guard, and at the first step."""
    guard, average = run.config.spike_guard, run.progress.average_norm
    return guard * average if guard and average else math.inf


def settle(run: Run, results: list[StepResult], keep: int) -> None:
    """Check and remove the updates in `results`, oldest first; the newest `keep` stay in flight.

    A step on an accelerator has only been launched: here the host waits for it, and so for the other processes.

    Raises:
        RunError: see :func:`check_update`.
    """
    with in_time():
        while len(results) > keep:
            check_update(run, results.pop(0))


def check_update(run: Run, result: StepResult) -> None:
    """Count skipped updates; raise once loss or gradients have stayed infinite or NaN for too long.

    Raises:
        RunError: at `max_bad_steps` in a row; the weights are those of the last good step.
    """
    progress, config, norm = run.progress, run.config, result.grad_norm
    if math.isfinite(norm):
        limit = spike_limit(run)
        if norm > limit:
            progress.spikes += 1
            run.display.warn(
                _(
                    "step {step}: gradient norm {norm:.4g}, above {limit:.4g}: update left out",
                    step=result.step,
                    norm=norm,
                    limit=limit,
                )
            )
        # A spike moves the average by at most the limit: a single one is ignored, and a lasting rise is followed.
        average = norm if progress.average_norm is None else progress.average_norm
        progress.average_norm = average + (min(norm, limit) - average) / NORMS_AVERAGED
        progress.bad_steps = 0
        return
    if run.accelerator.scaler is not None and run.accelerator.scaler.get_scale() >= 1:
        progress.overflows += 1
        return
    progress.bad_steps += 1
    run.display.warn(_("step {step}: gradient norm {norm}: update left out", step=result.step, norm=norm))
    if progress.bad_steps >= config.max_bad_steps:
        loss = global_loss(run, result)
        rate = schedule.learning_rate(result.step, config)
        run.record(result.step, train_loss=loss, learning_rate=rate, grad_norm=norm)
        trouble = _("loss or gradients (gradient norm {norm}, loss {loss})", norm=norm, loss=loss)
        raise diverged(run, trouble, result.step)
