"""The training loop.

In:  a resolved Config.
Out: the run folder: the exported model (best by validation loss), checkpoints, metrics.jsonl, loss.png, a model card.

Accelerate handles devices, processes, mixed precision, accumulation's no-sync, clipping and trackers; the rest is here.
The optimizer step is the clock: step t is the t-th update, made on the t-th global batch with ``learning_rate(t)``.
Nothing else decides what a step does. So a resume needs only the step, the weights, the optimizer's averages and the
random generators.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from hfgpt.base.language import _, about_card
from hfgpt.base.units import seconds_of
from hfgpt.config import Config
from hfgpt.model.schedule import learning_rate
from hfgpt.train.collective import in_time
from hfgpt.train.evaluate import evaluate, evaluation_due, patience_is_over
from hfgpt.train.failures import explained, explained_start, watched
from hfgpt.train.folder import recover
from hfgpt.train.horizon import Horizon
from hfgpt.train.memory import fit
from hfgpt.train.meter import Meter, Pace, Trace
from hfgpt.train.report import finish, introduce
from hfgpt.train.resume import reserve, save
from hfgpt.train.run import Run
from hfgpt.train.start import start
from hfgpt.train.step import StepResult, global_loss, must_look, order_buckets, settle, to_device, train_step
from hfgpt.train.stop import TIME_IS_UP, Stop, describe


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    branch_from: Path | None = None,
    profile: bool = False,
    began: float | None = None,
    timed: Callable[[Config, Pace], None] | None = None,
) -> int:
    """Run a recipe to its end, or to a graceful stop; return the exit code (0, or 128 + signal).

    Args:
        config: resolved.
        resume: continue from the newest valid checkpoint, or begin if there is not one yet.
        overwrite: replace the run in out_dir.
        branch_from: begin from this checkpoint of another run.
        profile: record a trace of a few steps.
        began: when the process started, by time.monotonic, for `max_time` and `time_budget`; None: now.
        timed: called at the end with the recipe and the time that it took to start and for a step, if they say how fast
            this machine's CPU is: one process, eager, undisturbed by other work.

    Raises:
        InputError: the recipe, the data or the folder cannot be used; nothing was written.
        RunError: the run failed; the last checkpoint is kept.
    """
    began = time.monotonic() if began is None else began
    with explained_start():
        run = start(config, resume=resume, overwrite=overwrite, branch_from=branch_from)
    try:
        with about_card(run.device.type == "cuda"), explained(run), watched(run):
            fit(run)
            order_buckets(run)
            introduce(run)
            meter = Meter(run)
            started = time.monotonic()
            deadline = began + seconds_of(config.max_time) if config.max_time else None
            with Stop(deadline, run.device) as stop:
                reason = loop(run, meter, Horizon(run, meter, began), Trace(run, profile), stop)
            if timed and (pace := meter.pace(started - began)):
                timed(run.config, pace)
            run.writer.wait()
            run.meet()
            if not config.eval_only:
                finish(run, reason)
    finally:
        leave(run, failed=sys.exc_info()[0] is not None)
    return 0 if reason in (0, TIME_IS_UP) else 128 + reason


def loop(run: Run, meter: Meter, horizon: Horizon, trace: Trace, stop: Stop) -> int:
    """Run the steps, with evaluations and checkpoints between them; return why it stopped early, or 0."""
    progress, batches = run.progress, run.corpus.batches
    running = list[StepResult]()  # steps that were launched, whose outcome has not been checked
    first = progress.step + 1
    run.model.train()
    run.display.begin(progress.step)
    while True:
        if reason := stop_reason(run, meter, stop):
            break
        if evaluation_due(run):
            settle(run, running, keep=0)
            with meter.evaluating():
                complete = evaluate(run, meter, stop)
            if not complete:
                continue  # a signal came
        trace.look()
        if run.config.eval_only or is_at_end(run) or patience_is_over(run):
            trace.close()
            return 0
        with explained(run, position=batches.state_dict()):
            began, cpu = time.perf_counter(), time.process_time()
            batch = to_device(batches.micro_batches(progress.step, *run.share), run.device, run.least_sequences)
            ready = time.perf_counter()
            rate = learning_rate(progress.step + 1, run.config)
            targets = run.config.batch_sizes.at(progress.step) * run.config.block_size
            with in_time():
                result = train_step(run, batch, targets, rate)
        progress.step += 1
        running.append(result)
        logged = progress.step == 1 or is_at_end(run) or progress.step % run.config.log_interval == 0
        # Keep an accelerator busy: the outcome of its last step is read while the next one runs.
        settle(run, running, keep=0 if logged or must_look(run) or evaluation_due(run) else 1)
        meter.add(targets, ready - began, time.perf_counter() - ready, time.process_time() - cpu)
        run.writer.look()
        if progress.step == first:
            reserve(run)
        if logged:
            with in_time():
                log(run, meter, result)
        else:
            run.display.advance(progress.step)
        horizon.look(stop.asks(progress.step))
        if checkpoint_due(run):
            settle(run, running, keep=0)
            progress.seconds = meter.seconds()
            save(run)
    settle(run, running, keep=0)
    trace.close()
    stop_early(run, meter, stop, reason)
    return reason


def checkpoint_due(run: Run) -> bool:
    """Whether to save now, because checkpoint_interval is over and no evaluation is about to save."""
    interval, step = run.config.checkpoint_interval, run.progress.step
    return interval is not None and step % interval == 0 and not evaluation_due(run)


def is_at_end(run: Run) -> bool:
    """Whether the last step is done."""
    return run.progress.step >= run.config.max_iters


def stop_reason(run: Run, meter: Meter, stop: Stop) -> int:
    """Return why to stop early, or 0; after its last step a run is evaluated, whatever the time."""
    reason = stop.requested(run.progress.step, needed=meter.evaluation_seconds)
    return 0 if reason == TIME_IS_UP and is_at_end(run) else reason


def stop_early(run: Run, meter: Meter, stop: Stop, reason: int) -> None:
    """Write a checkpoint; if there is time, also evaluate, and export the model if it is the best."""
    progress = run.progress
    run.display.say(_("{reason}: stopping after step {step}", reason=describe(reason), step=progress.step))
    if run.config.eval_only or not progress.step:  # a resume can do it again
        return
    if reason == TIME_IS_UP and progress.evaluated_step != progress.step and evaluate(run, meter, stop, last=True):
        return
    progress.seconds = meter.seconds()
    save(run)


def log(run: Run, meter: Meter, result: StepResult) -> None:
    """Record a step: the loss of its global batch, and the speed since the last record."""
    progress, batches = run.progress, run.corpus.batches
    figures = {
        "train_loss": global_loss(run, result),
        "learning_rate": learning_rate(progress.step, run.config),
        "grad_norm": result.grad_norm,
        **meter.figures(),
    }
    progress.seconds = figures["seconds"]
    figures |= batches.figures(progress.step)
    if run.accelerator.scaler is not None and not math.isfinite(result.grad_norm):
        del figures["grad_norm"]  # an overflow reflects how large the scale was, not the state of the run
    run.record(**figures)
    run.display.advance(progress.step, figures)


def leave(run: Run, failed: bool) -> None:
    """Close everything. Destroying the process group needs all its members, so a process that failed exits at once.

    The group's own object must hold the last reference: it waits for gloo's thread without the GIL, which that thread
    may need. DDP's reducer would wait for it while holding the GIL, and so for ever (PyTorch #56297).
    """
    run.display.close()
    run.writer.close()
    if run.lock is not None:
        if failed and recover(run.folder):
            run.display.say(_("{folder}: the run that was to be replaced has been restored", folder=run.folder))
        run.lock.release()
    if failed and run.accelerator.num_processes > 1:
        for tracker in run.accelerator.trackers:
            tracker.finish()
        return
    group = dist.group.WORLD if dist.is_initialized() else None
    run.model = run.plain
    run.accelerator.free_memory()  # before the group goes: DeepSpeed's engine asks it for its rank
    run.accelerator.end_training()
    del group
