"""The messages of a run that fails, and how to resume it.

In:  the error, and the run that it ended.
Out: a RunError whose message names the step, the cause, the last checkpoint and the command to type.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hfgpt.base.command import typed
from hfgpt.base.errors import RunError, first_line
from hfgpt.base.language import _, os_error_text
from hfgpt.base.units import duration
from hfgpt.model.schedule import learning_rate
from hfgpt.train import checkpoint
from hfgpt.train.collective import SHARE, Waiting
from hfgpt.train.memory import advice, is_out_of_memory
from hfgpt.train.resume import save
from hfgpt.train.run import Run


@contextmanager
def explained(run: Run, position: dict[str, Any] | None = None) -> Iterator[None]:
    """Turn an error that the machine caused into a RunError.

    Args:
        position: the state of the data before the current step drew its batches, so that a resume draws them again.

    Raises:
        RunError: a full disk, no memory, a lost process.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of the output has closed it, which is not a disk error
        raise
    except OSError as error:
        if not run.folder.is_dir():
            message = _(
                "step {step}: {folder} has gone: it was moved or deleted, or its disk is not mounted any more\n"
                "    → bring it back, or name its new place in what follows",
                step=run.progress.step,
                folder=run.folder,
            )
            raise failed(run, message) from error
        reason = os_error_text(error)
        raise failed(run, _("step {step}: writing failed: {error}", step=run.progress.step, error=reason)) from error
    except RuntimeError as error:
        step = run.progress.step + 1
        if is_out_of_memory(error):
            message = _(
                "step {step}: out of memory; {saved}\n    → {advice}",
                step=step,
                saved=rescue(run, position),
                advice=advice(run),
            )
            by_itself = "\n      " + _("(or --fit=always, which finds that by itself)") if run.replicated else ""
            raise failed(run, message + by_itself) from error
        if reason := lost_process(error):
            raise failed(run, _("step {step}: {reason}", step=step, reason=reason)) from error
        raise


@contextmanager
def explained_start() -> Iterator[None]:
    """Like :func:`explained`, for errors before the run exists.

    Raises:
        RunError: the model does not fit on the device, or a process was lost.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise RunError(
                "the start: out of memory, the model alone does not fit on the device\n    → a smaller n_layer or "
                "n_embd, or shards of it on several devices (accelerate_configs/fsdp2.yaml)"
            ) from error
        if reason := lost_process(error):
            raise RunError("the start: {reason}", reason=reason) from error
        raise


def failed(run: Run, what: str) -> RunError:
    """Return an error that says what happened, and the command that resumes the run."""
    return RunError(f"{what}\n{how_to_resume(run)}")


def diverged(run: Run, what: str, step: int) -> RunError:
    """Return the error of a diverged run: what is not finite, since which step, the last checkpoint, the remedy."""
    config = run.config
    lower = f"--learning_rate={config.learning_rate / 2:g}"
    lower += f" --muon_learning_rate={config.muon_learning_rate / 2:g}" if config.optimizer == "muon" else ""
    message = _(
        "step {step}: not finite: {what}, learning rate {rate:.3g}; {saved}\n"
        "    → a lower learning rate ({lower}; chapter 3.1), a longer warm-up, or dtype float32",
        step=step,
        what=what,
        rate=learning_rate(step, config),
        saved=last_checkpoint(run.folder),
        lower=lower,
    )
    return failed(run, message)


def lost_process(error: RuntimeError) -> str:
    """Return the message for a collective that failed because another process ended; "" for any other error."""
    if not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
        return ""
    return _(
        "another process of this run has ended or cannot be reached ({error})\n"
        "    → see what that process said, above or on its own machine",
        error=first_line(error),
    )


@contextmanager
def watched(run: Run) -> Iterator[None]:
    """Watch the waits for other processes if NCCL would abort this one without a message; otherwise do nothing."""
    watch = Waiting(run.patience.total_seconds(), lambda: run.display.warn(waits_in_vain(run)))
    with watch if aborts(run) else nullcontext():
        yield


def aborts(run: Run) -> bool:
    """Whether the backend aborts a process that waits for too long, in place of an error: NCCL does."""
    return run.device.type == "cuda" and run.accelerator.num_processes > 1


def waits_in_vain(run: Run) -> str:
    """Return the message shortly before NCCL's watchdog aborts the process."""
    message = _(
        "step {step}: waits for another process of this run since {time}, and NCCL is about to end this one\n"
        "    → the other one has ended, hangs, or cannot be reached: see what it said; a longer process_timeout "
        "(now {timeout}) gives it more time",
        step=run.progress.step + 1,
        time=duration(run.patience.total_seconds() * SHARE),
        timeout=run.config.process_timeout,
    )
    return str(failed(run, message))


def rescue(run: Run, position: dict[str, Any] | None) -> str:
    """Save the steps since the last checkpoint, if this process can do so alone; return which checkpoint there is.

    With several processes the others wait in a collective or have failed too, so the last checkpoint has to do.
    """
    if run.accelerator.num_processes == 1 and run.progress.step and not run.config.eval_only:
        run.optimizer.zero_grad()
        if position is not None:
            run.corpus.batches.load_state_dict(position)
        save(run)
        run.writer.wait()
    return last_checkpoint(run.folder)


def last_checkpoint(folder: Path) -> str:
    """Describe where a resume would continue."""
    saved = next(iter(checkpoint.steps(folder)), None)
    if saved is None:
        return _("there is no checkpoint yet")
    return _("checkpoint-{step} is the last one", step=saved)


def how_to_resume(run: Run) -> str:
    """Return the command to type, quoted for a shell."""
    command = typed("train", run.folder / "recipe.yaml", "--resume")
    return _("to continue: {command}", command=command)
