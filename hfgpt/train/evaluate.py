"""Evaluations of a run: when, on what, and what follows from their figures.

In:  a Run at a step.
Out: figures in the record and on the screen, a sample; the best model exported, and a checkpoint.
"""

from __future__ import annotations

import math

from hfgpt.base.language import _
from hfgpt.config import Config
from hfgpt.data import corpus as data
from hfgpt.inference import evaluation, sampling
from hfgpt.runs import card, metrics
from hfgpt.train.collective import total
from hfgpt.train.failures import diverged
from hfgpt.train.meter import Meter
from hfgpt.train.resume import export_model, save
from hfgpt.train.run import Run

SAMPLE_TOKENS = 120  # of the short text at each evaluation


def evaluation_due(run: Run) -> bool:
    """At the start, every eval_interval and at the last step, once each, also if a stop came in between."""
    step, config = run.progress.step, run.config
    return (step % config.eval_interval == 0 or step == config.max_iters) and run.progress.evaluated_step != step


def patience_is_over(run: Run) -> bool:
    """Whether early stopping ends the run."""
    patience = run.config.early_stopping_patience
    return patience is not None and run.progress.evaluations_without_improvement >= patience


def evaluate(run: Run, meter: Meter) -> None:
    """Losses over the fixed blocks of both splits, a sample; the best model is exported and a checkpoint written.

    Raises:
        RunError: the validation loss is not finite; nothing was exported or saved.
    """
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
    progress.seconds = meter.seconds()
    run.record(seconds=progress.seconds, **figures)
    if not math.isfinite(figures["val_loss"]):  # such weights are neither the best nor worth resuming from
        raise diverged(run, _("validation loss {loss}", loss=figures["val_loss"]))
    if better:
        export_model(run)
        if run.pusher is not None:
            card.write(run.folder, config.license)
            run.pusher.submit()
    last = progress.step == config.max_iters or patience_is_over(run)
    if progress.step and (better or last or config.always_save_checkpoint):
        save(run)


def losses(run: Run) -> dict[str, float]:
    """Token-weighted loss of both splits; perplexity and bits per character of the validation split. Collective."""
    rank, world, micro_batch = run.share
    block_size, eval_iters = run.config.block_size, run.config.eval_iters
    figures = dict[str, float]()
    for name, stream in (("train_eval", run.corpus.train), ("val", run.corpus.val)):
        blocks = data.evaluation_blocks(stream, block_size, eval_iters)
        sums = evaluation.evaluate_blocks(run.model, stream, block_size, blocks, micro_batch, run.device, rank, world)
        nll, tokens = total(run.device, *sums)
        figures[f"{name}_loss"] = nll / tokens
    measured = evaluation.figures(nll, int(tokens), run.val_characters)
    figures["val_perplexity"] = measured["perplexity"]
    figures["val_bits_per_character"] = measured["bits_per_character"]
    return figures


def count_characters(config: Config, corpus: data.Corpus) -> int:
    """The characters that the evaluated validation targets stand for."""
    blocks = data.evaluation_blocks(corpus.val, config.block_size, config.eval_iters)
    return data.CharacterCounter(corpus.tokenizer)(corpus.val.blocks(blocks, config.block_size)[:, 1:])


def announce(run: Run, figures: dict[str, float], better: bool) -> None:
    """Say the evaluation's figures and show a short sample."""
    step = run.progress.step
    line = _(
        "step {step}/{steps}  train {train:.4f}  val {val:.4f}  perplexity {perplexity:.4g}  "
        "bits per character {bits:.3f}",
        step=step,
        steps=run.config.max_iters,
        train=figures["train_eval_loss"],
        val=figures["val_loss"],
        perplexity=figures["val_perplexity"],
        bits=figures["val_bits_per_character"],
    )
    run.display.say(line + ("  " + _("(best so far)") if better and step else ""))
    finite = math.isfinite(figures["val_loss"])  # else there is nothing to draw from
    if run.main and run.config.sample_prompt and step and not run.sharded and finite:
        text = sample_text(run, SAMPLE_TOKENS)
        run.display.sample(text)
        if not run.config.eval_only:
            metrics.write_sample(run.folder / metrics.SAMPLES, step, text)


def sample_text(run: Run, tokens: int) -> str:
    """A text of so many tokens from the model as it is; the run's random generators are not touched."""
    drawing = sampling.Sampling(max_new_tokens=tokens)
    prompt = run.config.sample_prompt
    return prompt + "".join(sampling.generate(run.plain.gpt2, run.corpus.tokenizer, prompt, drawing))
