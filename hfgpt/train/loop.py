"""The training loop.

In:  a resolved Config.
Out: the run folder: the exported model (best by validation loss), checkpoints, metrics.jsonl, loss.png, a model card.

Accelerate does devices, processes, mixed precision, accumulation's no-sync, clipping and trackers; what is left is
here. The optimizer step is the clock: step t is the t-th update, made on the t-th global batch with
``learning_rate(t)``. Nothing else decides what a step does, so a resume needs the step, the weights, the optimizer's
averages and the random generators, and no more.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from hfgpt.base import cards
from hfgpt.base import machine as hardware
from hfgpt.base.errors import RunError
from hfgpt.base.units import duration, seconds_of
from hfgpt.config import Config
from hfgpt.data import corpus as data
from hfgpt.inference import evaluation
from hfgpt.inference import sampling as sample
from hfgpt.model import optim, schedule
from hfgpt.model.gpt2 import parameter_count
from hfgpt.runs import card, diagnose, metrics
from hfgpt.train import checkpoint, fit
from hfgpt.train.collective import gather
from hfgpt.train.run import Run, export_model, save, start
from hfgpt.train.stop import Stop, describe, exit_code

SAMPLE_TOKENS = 120  # of the short text at each evaluation

NORMS_AVERAGED = 50  # steps over which the gradient norm is averaged for the spike guard


class StepResult(NamedTuple):
    """What one optimizer step did."""

    nll: Tensor  # summed over this process's targets, in nats
    targets: int  # of the global batch
    grad_norm: float  # before clipping
    applied: bool  # whether the weights changed


def train(config: Config, *, resume: bool = False, overwrite: bool = False) -> int:
    """Run a recipe to its end, or to a polite stop; returns the exit code (0, or 128 + signal).

    Raises:
        InputError: the recipe, the data or the folder cannot be used; nothing was written.
        RunError: the run failed; the last checkpoint stays.
    """
    run = begin(config, resume, overwrite)
    try:
        fit.fit(run)
        introduce(run)
        with Stop(seconds_of(config.max_time) if config.max_time else None, run.device) as stop:
            reason = loop(run, Meter(run), stop)
        if not config.eval_only:
            finish(run, reason)
    except BrokenPipeError:  # who read the output has gone, which is no fault of the disk
        raise
    except OSError as error:
        raise RunError(f"step {run.progress.step}: writing failed: {error}\n{how_to_resume(run)}") from error
    except RuntimeError as error:
        if (message := explain(run, error)) is None:
            raise
        raise RunError(message) from error
    finally:
        leave(run, failed=sys.exc_info()[0] is not None)
    return exit_code(reason) if reason else 0


def loop(run: Run, meter: Meter, stop: Stop) -> int:
    """The steps, with evaluation and checkpoints between them; returns why it stopped early, or 0."""
    config, progress = run.config, run.progress
    run.model.train()
    run.display.begin(progress.step)
    while True:
        if evaluation_due(run):
            evaluate(run, meter)
        if config.eval_only or progress.step >= config.max_iters or patience_is_over(run):
            return 0
        with meter.data():
            run.drawn = progress.step, run.corpus.batches.state_dict()
            batches = to_device(run.corpus.batches.micro_batches(progress.step, *share(run)), run.device)
        with meter.step():
            result = train_step(run, batches, config.tokens_per_iter, schedule.learning_rate(progress.step + 1, config))
        progress.step += 1
        check_update(run, result)
        if progress.step in (1, config.max_iters) or progress.step % config.log_interval == 0:
            log(run, meter, result)
        else:
            run.display.advance(progress.step)
        if reason := stop.requested():
            run.display.say(f"{describe(reason)}: stopping after step {progress.step}")
            meter.stamp()
            save(run)
            return reason


def train_step(run: Run, batches: list[dict[str, Tensor]], targets: int, learning_rate: float) -> StepResult:
    """One update from this process's micro-batches of the global batch.

    The loss is the mean over the targets of the whole global batch, however they fall to micro-batches and processes:
    the sum over them, divided once. Accelerate divides by the number of micro-batches and DDP by the number of
    processes, which the scale takes back.

    Args:
        run: model, optimizer and Accelerate.
        batches: inputs and targets of this process, one entry a micro-batch.
        targets: how many targets the global batch trains, over all processes.
        learning_rate: AdamW's in this step.
    """
    accelerator, optimizer = run.accelerator, run.optimizer
    scale = accelerator.gradient_accumulation_steps * accelerator.num_processes / targets
    optim.set_learning_rate(optimizer, learning_rate)
    nll, norm, applied = torch.zeros((), device=run.device), math.nan, False
    for batch in batches:
        with accelerator.accumulate(run.model):
            loss = run.model(**batch)
            accelerator.backward(loss * scale)
            nll += loss.detach()
            if accelerator.sync_gradients:
                norm = float(accelerator.clip_grad_norm_(run.model.parameters(), run.config.grad_clip or math.inf))
                if may_step(run, norm):
                    optimizer.step()
                    applied = not accelerator.optimizer_step_was_skipped
            optimizer.zero_grad()
    return StepResult(nll, targets, norm, applied)


def to_device(blocks: Iterable[NDArray[Any]], device: torch.device) -> list[dict[str, Tensor]]:
    """(sequences, block_size + 1) blocks → inputs, and targets one token later, on this process's device."""
    out = []
    for block in blocks:
        tokens = torch.from_numpy(block)
        if device.type == "cuda":  # the copy then goes on while the host prepares the step
            tokens = tokens.pin_memory()
        tokens = tokens.to(device, non_blocking=True)
        out.append({"input_ids": tokens[:, :-1], "targets": tokens[:, 1:]})
    return out


def share(run: Run) -> tuple[int, int, int]:
    """(process, processes, micro-batch): which part of the global batch is this process's."""
    return run.accelerator.process_index, run.accelerator.num_processes, run.micro_batch


def may_step(run: Run, norm: float) -> bool:
    """Whether gradients of this norm may change the weights; the same answer on every process."""
    scaler = run.accelerator.scaler
    if not math.isfinite(norm):  # loss scaling leaves an overflow out by itself, and learns from it
        return scaler is not None
    spike = norm > spike_limit(run)
    if spike and scaler is not None:
        scaler.update()  # ends what unscaling the gradients began
    return not spike


def spike_limit(run: Run) -> float:
    """The gradient norm above which an update is left out; infinite without a guard, and at the first step."""
    guard, average = run.config.spike_guard, run.progress.average_norm
    return guard * average if guard and average else math.inf


def check_update(run: Run, result: StepResult) -> None:
    """Count updates that were left out; raise when loss or gradients have stayed infinite or NaN for too long.

    Raises:
        RunError: at `max_bad_steps` in a row; the weights are those of the last good step.
    """
    progress, config, norm = run.progress, run.config, result.grad_norm
    if math.isfinite(norm):
        limit = spike_limit(run)
        if not result.applied:
            progress.spikes += 1
            run.display.warn(f"step {progress.step}: gradient norm {norm:.4g}, above {limit:.4g}: update left out")
        # A spike moves the average by no more than the limit, so that one passes and a lasting rise is followed.
        average = norm if progress.average_norm is None else progress.average_norm
        progress.average_norm = average + (min(norm, limit) - average) / NORMS_AVERAGED
        progress.bad_steps = 0
        return
    if run.accelerator.scaler is not None and run.accelerator.scaler.get_scale() >= 1:
        progress.overflows += 1
        return
    progress.bad_steps += 1
    run.display.warn(f"step {progress.step}: gradient norm {norm}: update left out")
    if progress.bad_steps >= config.max_bad_steps:
        loss = global_loss(run, result)
        record(run, train_loss=loss, learning_rate=schedule.learning_rate(progress.step, config), grad_norm=norm)
        raise diverged(run, f"loss or gradients (gradient norm {norm}, loss {loss})")


def diverged(run: Run, what: str) -> RunError:
    """What is not finite, the last good checkpoint, and the chapter's remedy."""
    step, config = run.progress.step, run.config
    lower = f"--learning_rate={config.learning_rate / 2:g}"
    lower += f" --muon_learning_rate={config.muon_learning_rate / 2:g}" if config.optimizer == "muon" else ""
    return RunError(
        f"step {step}: not finite: {what}, learning rate {schedule.learning_rate(step, config):.3g}; "
        f"{last_checkpoint(run)}\n"
        f"    → a lower learning rate ({lower}; chapter 3.1), a longer "
        f"warm-up, or dtype float32\n{how_to_resume(run)}"
    )


# --------------------------------------------------------------------------------------------- evaluating, recording


def evaluation_due(run: Run) -> bool:
    """At the start, every eval_interval and at the last step, once each, also where a stop came in between."""
    step, config = run.progress.step, run.config
    return (step % config.eval_interval == 0 or step == config.max_iters) and run.progress.evaluated_step != step


def evaluate(run: Run, meter: Meter) -> None:
    """Losses over the fixed blocks of both splits, a sample; the best model is exported and a checkpoint written."""
    progress, config = run.progress, run.config
    figures = losses(run)
    progress.evaluated_step = progress.step
    better = math.isfinite(figures["val_loss"]) and figures["val_loss"] < (progress.best_val_loss or math.inf)
    if better:
        progress.best_val_loss, progress.best_step = figures["val_loss"], progress.step
        progress.evaluations_without_improvement = 0
    else:
        progress.evaluations_without_improvement += 1
    announce(run, figures, better)
    if config.eval_only:
        return
    meter.stamp()
    record(run, seconds=progress.seconds, **figures)
    if not math.isfinite(figures["val_loss"]):  # such weights are neither the best nor worth resuming from
        raise diverged(run, f"validation loss {figures['val_loss']}")
    if better:
        export_model(run)
        if run.pusher is not None:
            card.write(run.folder, config.license)
            run.pusher.submit()
    last = progress.step == config.max_iters or patience_is_over(run)
    if progress.step and (better or last or config.always_save_checkpoint):
        save(run)
    meter.stamp()


def losses(run: Run) -> dict[str, float]:
    """Token-weighted loss of both splits; perplexity and bits per character of the validation split."""
    rank, world, micro_batch = share(run)
    block_size, eval_iters = run.config.block_size, run.config.eval_iters
    figures = dict[str, float]()
    for name, stream in (("train_eval", run.corpus.train), ("val", run.corpus.val)):
        blocks = data.evaluation_blocks(stream, block_size, eval_iters)
        sums = evaluation.evaluate_blocks(run.model, stream, block_size, blocks, micro_batch, run.device, rank, world)
        nll, tokens = total(run, *sums)
        figures[f"{name}_loss"] = nll / tokens
    measured = evaluation.figures(nll, int(tokens), run.val_characters)
    figures["val_perplexity"] = measured["perplexity"]
    figures["val_bits_per_character"] = measured["bits_per_character"]
    return figures


def total(run: Run, *values: float) -> list[float]:
    """Sums over the processes, in float64."""
    return gather(run.device, *values).sum(0).tolist()


def global_loss(run: Run, result: StepResult) -> float:
    """The loss of the step's global batch. Collective."""
    return total(run, float(result.nll))[0] / result.targets


def announce(run: Run, figures: dict[str, float], better: bool) -> None:
    """Tell the evaluation's figures and show a short sample."""
    note = "  (best so far)" if better and run.progress.step else ""
    run.display.say(
        f"step {run.progress.step}/{run.config.max_iters}  train {figures['train_eval_loss']:.4f}  "
        f"val {figures['val_loss']:.4f}  perplexity {figures['val_perplexity']:.4g}  "
        f"bits per character {figures['val_bits_per_character']:.3f}{note}"
    )
    sound = math.isfinite(figures["val_loss"])  # else there is nothing to draw from
    if run.main and run.config.sample_prompt and run.progress.step and not run.sharded and sound:
        text = sample_text(run, SAMPLE_TOKENS)
        run.display.sample(text)
        if not run.config.eval_only:
            metrics.write_sample(run.folder / metrics.SAMPLES, run.progress.step, text)


def sample_text(run: Run, tokens: int) -> str:
    """A text sampled from the model as it is; the run's random generators are not touched."""
    drawing = sample.Sampling(max_new_tokens=tokens)
    prompt = run.config.sample_prompt
    return prompt + "".join(sample.generate(run.plain.gpt2, run.corpus.tokenizer, prompt, drawing))


def log(run: Run, meter: Meter, result: StepResult) -> None:
    """Record a step: the loss of its global batch, and the speed since the last record."""
    figures = {
        "train_loss": global_loss(run, result),
        "learning_rate": schedule.learning_rate(run.progress.step, run.config),
        "grad_norm": result.grad_norm,
        **meter.figures(),
    }
    if isinstance(run.corpus.batches, data.Batches):  # a stream does not know its length
        figures["epoch"] = run.progress.step * run.config.global_batch / run.corpus.batches.n_blocks
    if run.accelerator.scaler is not None and not math.isfinite(result.grad_norm):
        del figures["grad_norm"]  # an overflow says how large the scale was, and nothing of the run
    record(run, **figures)
    run.display.advance(run.progress.step, figures)


def record(run: Run, **figures: float) -> None:
    """One line in metrics.jsonl, mirrored by the tracker."""
    if run.main:
        run.metrics.write(run.progress.step, **figures)
        run.accelerator.log(figures, step=run.progress.step)


class Meter:
    """Times the steps: speed and memory since the last record, and the seconds of the whole run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._began = time.monotonic() - run.progress.seconds
        self._peak: float | None = None  # not known before the second record
        self._records = 0
        self._flops = flops_per_token(run)
        self._reset()

    def _reset(self) -> None:
        self._steps, self._step_seconds, self._data_seconds = 0, 0.0, 0.0

    def data(self) -> Timer:
        """Time what is done inside as waiting for data."""
        return Timer(self, "_data_seconds")

    def step(self) -> Timer:
        """Time what is done inside as one step."""
        self._steps += 1
        return Timer(self, "_step_seconds")

    def stamp(self) -> None:
        """Bring the run's seconds up to now."""
        self._run.progress.seconds = time.monotonic() - self._began

    def figures(self) -> dict[str, float]:
        """Speed, memory and time since the last call.

        The first record has no `mfu`: it is of a step that also warms up, and measuring a CPU's peak, which takes a
        part of a second, would keep it waiting.
        """
        self.stamp()
        seconds = self._step_seconds + self._data_seconds
        rate = self._steps * self._run.config.tokens_per_iter / seconds
        out = {
            "tokens_per_second": rate,
            "memory_bytes": memory_bytes(self._run.device),
            "data_seconds": self._data_seconds / self._steps,
            "seconds": self._run.progress.seconds,
        }
        self._records += 1
        if self._records == 2:
            self._peak = peak_flops(self._run)
        if self._peak:
            out["mfu"] = rate * self._flops / (self._peak * self._run.accelerator.num_processes)
        self._reset()
        return out


class Timer:
    """Adds the time spent inside it to one of a Meter's sums."""

    def __init__(self, meter: Meter, name: str) -> None:
        self._meter, self._name = meter, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        total = getattr(self._meter, self._name) + time.perf_counter() - self._start
        setattr(self._meter, self._name, total)


def flops_per_token(run: Run) -> float:
    """Forward and backward arithmetic of a token (PaLM, appendix B, as nanoGPT counts it): 6N + 12·L·C·T."""
    shape = run.plain.gpt2.config
    weights = parameter_count(run.plain) - shape.n_positions * shape.n_embd
    return 6 * weights + 12 * shape.n_layer * shape.n_embd * shape.n_positions


def peak_flops(run: Run) -> float | None:
    """The FLOP/s one process could reach: the card's by its table, a CPU's by measurement; None if not known."""
    mixed = run.accelerator.mixed_precision
    if run.device.type == "cuda":
        dtype = {"no": "tf32", "bf16": "bfloat16", "fp16": "float16"}[mixed]
        return cards.peak_flops(torch.cuda.get_device_name(run.device), dtype)
    if run.device.type == "cpu":
        return hardware.measured_cpu_peak("bfloat16" if mixed == "bf16" else "float32")
    return None


def memory_bytes(device: torch.device) -> int:
    """Peak memory so far: what torch allocated on a card; the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ------------------------------------------------------------------------------------------------- beginning and end


def introduce(run: Run) -> None:
    """Say what is about to happen."""
    config, corpus = run.config, run.corpus
    run.display.say(
        f"{config.run_dir}: {parameter_count(run.plain):,} parameters, "
        f"vocabulary {run.plain.gpt2.config.vocab_size:,}, "
        f"{len(corpus.train):,} training and {len(corpus.val):,} validation tokens\n"
        f"{config.max_iters:,} steps of {config.tokens_per_iter:,} tokens on {run.accelerator.num_processes} x "
        f"{where(run)}, micro-batch {run.micro_batch}"
    )
    if run.progress.step:
        run.display.say(f"going on after step {run.progress.step}")


def where(run: Run) -> str:
    """The device of a process, the precision and, on a CPU, the threads."""
    precision = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[run.accelerator.mixed_precision]
    threads = f", {torch.get_num_threads()} threads" if run.device.type == "cpu" else ""
    return f"{run.device.type} ({precision}{threads})"


def leave(run: Run, failed: bool) -> None:
    """Close what is open. To leave the process group takes all of its members, so one that failed just goes.

    The group's last owner must be its own object: that one waits for gloo's thread without the interpreter's lock,
    which the thread may want for what it still holds. DDP's reducer would wait for it with the lock, and for ever
    (PyTorch #56297).
    """
    run.display.close()
    if failed and run.accelerator.num_processes > 1:
        for tracker in run.accelerator.trackers:
            tracker.finish()
        return
    group = dist.group.WORLD if dist.is_initialized() else None
    run.accelerator.end_training()
    run.model = run.plain
    run.accelerator.free_memory()
    del group


def patience_is_over(run: Run) -> bool:
    """Whether early stopping ends the run."""
    patience = run.config.early_stopping_patience
    return patience is not None and run.progress.evaluations_without_improvement >= patience


def finish(run: Run, reason: int) -> None:
    """After the last step: the curve, the model card, what the record says, and what to type next."""
    run.display.close()
    if reason:
        run.display.say(how_to_resume(run))
    run.accelerator.wait_for_everyone()
    if reason or not run.main:
        return
    from hfgpt.runs import plots  # matplotlib is for the end: the first step does not wait for it

    config, folder, records = run.config, run.folder, metrics.read(run.metrics.path)
    _, val = metrics.series(records, "val_loss")
    plots.loss_curve(folder)
    card.write(folder, config.license)
    steps = f"after {run.progress.step} steps, {duration(run.progress.seconds)}"
    if patience_is_over(run):
        steps += f" (no better validation loss in {config.early_stopping_patience} evaluations)"
    run.display.say(
        f"\nvalidation loss {val[0]:.4f} before, {val[-1]:.4f} {steps}; "
        f"best {run.progress.best_val_loss:.4f} at step {run.progress.best_step}"
    )
    run.display.say("\n" + diagnose.summary(records, config))
    if config.sample_prompt and not run.sharded:
        run.display.say("\nsampled:")
        run.display.sample(sample_text(run, 3 * SAMPLE_TOKENS))
    if run.pusher is not None:
        run.display.say("\nwaiting for the last push to the Hub")
        run.pusher.submit()  # with the curve and the whole record
        run.pusher.close()
    run.display.say(
        f"\nmodel, curve and record are in {folder}/  (loss.png, README.md, metrics.jsonl)\n"
        f'next: python scripts/sample.py {folder} --prompt "ROMEO:"'
    )


def begin(config: Config, resume: bool, overwrite: bool) -> Run:
    """:func:`~hfgpt.train.run.start`, with what the machine is to blame for told in words."""
    try:
        return start(config, resume=resume, overwrite=overwrite)
    except RuntimeError as error:
        if fit.is_out_of_memory(error):
            raise RunError(
                "the start: out of memory, the model alone does not fit on the device\n    → a smaller n_layer or "
                "n_embd, or shards of it on several devices (accelerate_configs/fsdp2.yaml)"
            ) from error
        if reason := lost_process(error):
            raise RunError(f"the start: {reason}") from error
        raise


def lost_process(error: RuntimeError) -> str:
    """What to tell where a collective failed for want of a member; "" if the error is another."""
    if not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
        return ""
    return (
        f"another process of this run has ended or cannot be reached ({str(error).strip().splitlines()[0]})\n"
        "    → what that process said is above, or on its own machine"
    )


def explain(run: Run, error: RuntimeError) -> str | None:
    """What to tell of an error that the machine is to blame for; None if it is another."""
    step = run.progress.step
    if fit.is_out_of_memory(error):
        return (
            f"step {step + 1}: out of memory; {rescue(run)}\n    → {fit.advice(run)}\n"
            f"      (or --fit=always, which finds that by itself)\n{how_to_resume(run)}"
        )
    if reason := lost_process(error):
        return f"step {step + 1}: {reason}\n{how_to_resume(run)}"
    return None


def rescue(run: Run) -> str:
    """Keep the steps since the last checkpoint, where this process can by itself; says what there is.

    With several processes the others wait in a collective, or have failed too; their last checkpoint stands.
    """
    alone, progress = run.accelerator.num_processes == 1, run.progress
    if alone and progress.step and not run.config.eval_only:
        run.optimizer.zero_grad()
        drawn, state = run.drawn
        if drawn == progress.step:  # the batches of the step that failed come again
            run.corpus.batches.load_state_dict(state)
        save(run)
    return last_checkpoint(run)


def last_checkpoint(run: Run) -> str:
    """In words: where a resume would go on."""
    saved = next(iter(checkpoint.steps(run.folder)), None)
    return f"checkpoint-{saved} is the last one" if saved else "there is no checkpoint yet"


def how_to_resume(run: Run) -> str:
    """The line to type."""
    return f"to go on: accelerate launch scripts/train.py {run.folder / 'recipe.yaml'} --resume"
