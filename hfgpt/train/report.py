"""The messages of a run at its beginning and at its end.

In:  a Run before its first step, and after its last.
Out: lines on the screen; at the end also the curve and the model card.
"""

import torch

from hfgpt import config as configs
from hfgpt.base.command import typed
from hfgpt.base.files import replace_file
from hfgpt.base.language import _, plural
from hfgpt.base.units import duration, seconds_of
from hfgpt.config import EMBEDDED_DATASET
from hfgpt.config.fields import SAMPLE_TOKENS
from hfgpt.config.yaml_text import corpora
from hfgpt.model.gpt2 import parameter_count
from hfgpt.runs import card, diagnose, history, metrics
from hfgpt.train.evaluate import patience_is_over, sample_text
from hfgpt.train.failures import how_to_resume
from hfgpt.train.run import Run


def introduce(run: Run) -> None:
    """Print what is about to happen."""
    config, corpus = run.config, run.corpus
    run.display.say(
        _(
            "{folder}: {parameters:,} parameters, vocabulary {vocabulary:,}, {train:,} training and {val:,} "
            "validation tokens",
            folder=config.run_dir,
            parameters=parameter_count(run.plain),
            vocabulary=run.plain.gpt2.config.vocab_size,
            train=len(corpus.train),
            val=len(corpus.val),
        )
    )
    if len(corpora(config.dataset)) > 1 and corpus.train_tokens is not None:
        run.display.say(
            _(
                "the mix has these tokens until its first corpus has been read once; its corpora have {n:,} training "
                "tokens in all",
                n=corpus.train_tokens,
            )
        )
    what = {
        "tokens": config.tokens_per_iter,
        "processes": run.accelerator.num_processes,
        "device": device_name(run),
        "micro_batch": run.micro_batch,
    }
    if config.time_budget:
        line = _(
            "steps of {tokens:,} tokens for {time} on {processes} x {device}, micro-batch {micro_batch}",
            time=duration(seconds_of(config.time_budget)),
            **what,
        )
    else:
        line = _(
            "{steps:,} steps of {tokens:,} tokens on {processes} x {device}, micro-batch {micro_batch}",
            steps=config.max_iters,
            **what,
        )
    run.display.say(line)
    if run.progress.step >= config.max_iters and not (config.eval_only or config.time_budget):
        run.display.say(
            _(
                "training is complete: {step:,} of {steps:,} steps are done → to continue, add {option}",
                step=run.progress.step,
                steps=config.max_iters,
                option=f"--max_iters={2 * config.max_iters}",
            )
        )
    elif run.progress.step:
        run.display.say(_("going on after step {step}", step=run.progress.step))


def device_name(run: Run) -> str:
    """Describe the device of a process, the precision and, on a CPU, the threads."""
    if run.device.type == "cpu":
        return plural(
            "cpu ({dtype}, {n} thread)", "cpu ({dtype}, {n} threads)", torch.get_num_threads(), dtype=run.dtype
        )
    return f"{run.device.type} ({run.dtype})"


def finish(run: Run, reason: int) -> None:
    """After the last step: draw the curve, write the model card, print a diagnosis and next steps. Collective."""
    run.display.close()
    if reason:
        run.display.say(how_to_resume(run))
    run.meet()
    if reason:
        if run.config.push_to_hub:  # the checkpoint that another machine resumes from
            wait_for_push(run)
            run.meet()
        return
    if not run.main:
        return
    from hfgpt.runs import plots  # matplotlib is only needed at the end: do not delay the first step

    config, folder, records = run.config, run.folder, metrics.read(run.metrics.path)
    if config.time_budget:  # the recipe as trained, with the length that was decided
        replace_file(folder / "recipe.yaml", configs.to_yaml(config, in_folder=True))
    plots.loss_curve(folder)
    card.write(folder, config.license)
    run.display.say("\n" + outcome(run, *metrics.series(records, "val_loss")))
    run.display.say("\n" + diagnose.summary(records, config, history.surroundings(folder)))
    if config.sample_prompt and not run.sharded:
        run.display.say("\n" + _("sampled:"))
        run.display.sample(sample_text(run, 3 * SAMPLE_TOKENS))
    if run.pusher is not None:
        run.pusher.submit()  # with the curve and the whole record
        wait_for_push(run)
    run.display.say(
        "\n" + _("model, curve and record are in {folder}/  (loss.png, README.md, metrics.jsonl)", folder=folder)
    )
    opening = "ROMEO:" if run.config.dataset == EMBEDDED_DATASET else run.config.sample_prompt.strip()
    command = typed("sample", folder, *(["--prompt", opening] if opening else []))
    run.display.say(_("next: {command}", command=command))


def wait_for_push(run: Run) -> None:
    """Let the main process finish its push, and say so if it failed."""
    if run.pusher is None:
        return
    run.display.say("\n" + _("waiting for the last push to the Hub"))
    run.pusher.close()
    if run.pusher.problem is not None:
        checkpoints = ["--include_checkpoints"] if run.pusher.checkpoints else []
        command = typed("push", run.folder, run.config.repository, *checkpoints)
        run.display.warn(
            _(
                "the Hub does not have the end of the run: {reason}\n    → {command}",
                reason=run.pusher.problem,
                command=command,
            )
        )


def outcome(run: Run, steps: list[float], val: list[float]) -> str:
    """Summarise the validation loss: at the start, at the end and at its best.

    Args:
        steps, val: those of every evaluation in the record.
    """
    progress, patience = run.progress, run.config.early_stopping_patience
    figures = {
        "before": val[0],
        "last": val[-1],
        "steps": progress.step,
        "time": duration(progress.seconds),
        "best": progress.best_val_loss,
        "best_step": progress.best_step,
    }
    if patience_is_over(run):
        line = _(
            "validation loss {before:.4f} before, {last:.4f} after {steps} steps, {time} (no better validation loss in "
            "{patience} evaluations); best {best:.4f} at step {best_step}",
            patience=patience,
            **figures,
        )
    else:
        line = _(
            "validation loss {before:.4f} before, {last:.4f} after {steps} steps, {time}; best {best:.4f} at step "
            "{best_step}",
            **figures,
        )
    if steps[0]:
        line += "\n" + _("  'before' is step {step}, the first evaluation on this text", step=int(steps[0]))
    return line
