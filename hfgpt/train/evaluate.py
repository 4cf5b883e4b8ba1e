"""Evaluations of a run: when they are due, what they measure, and what their figures trigger.

In:  a Run at a step.
Out: figures in the record and on the screen; a sample; the best model, exported; a checkpoint.
"""

import math

from hfgpt.base.errors import InputError
from hfgpt.base.language import _
from hfgpt.config import EMBEDDED_DATASET, Config
from hfgpt.config.fields import SAMPLE_TOKENS
from hfgpt.data import ngrams
from hfgpt.data.blocks import TokenStream, evaluation_blocks
from hfgpt.data.encoding import CharacterCounter
from hfgpt.data.prepare import Corpus
from hfgpt.data.tokenizer import vocabulary_size
from hfgpt.inference import figures as language
from hfgpt.inference import sampling
from hfgpt.model import loss_law
from hfgpt.model.schedule import learning_rate
from hfgpt.runs import card, horizon, laws, metrics
from hfgpt.train.collective import in_time, total
from hfgpt.train.failures import diverged
from hfgpt.train.meter import Meter
from hfgpt.train.resume import export_model, save
from hfgpt.train.run import Run
from hfgpt.train.stop import Stop
from hfgpt.train.tasks import accuracies, harness_figures

PASSES_BETWEEN_LOOKS = 8  # between two checks for a signal, when several processes evaluate


def evaluation_due(run: Run) -> bool:
    """Whether to evaluate: at the start, every eval_interval and at the last step, once each even after a stop."""
    step, config = run.progress.step, run.config
    if config.eval_only:
        return True
    return (step % config.eval_interval == 0 or step >= config.max_iters) and run.progress.evaluated_step != step


def patience_is_over(run: Run) -> bool:
    """Whether early stopping ends the run."""
    patience = run.config.early_stopping_patience
    return patience is not None and run.progress.evaluations_without_improvement >= patience


def evaluate(run: Run, meter: Meter, stop: Stop, last: bool = False) -> bool:
    """Measure the losses on fixed blocks of both splits, show a sample, export the best model and write a checkpoint.

    Args:
        meter: measures the seconds of the run.
        stop: a signal cuts the evaluation short.
        last: this is the last evaluation, so a checkpoint is always written.

    Returns: False if a signal came; then nothing was recorded, exported or saved, and a resume evaluates again.

    Raises:
        RunError: the validation loss is not finite; nothing was exported or saved.
    """
    progress, config = run.progress, run.config
    is_regular = evaluation_due(run)
    figures = losses(run, stop)
    if figures is None:
        return False
    progress.evaluated_step, at_end = progress.step, progress.step >= config.max_iters
    better = math.isfinite(figures["val_loss"]) and figures["val_loss"] < (progress.best_val_loss or math.inf)
    if better:
        progress.best_val_loss, progress.best_step = figures["val_loss"], progress.step
        progress.evaluations_without_improvement = 0
    elif is_regular:  # where a run was interrupted must not decide when it ends
        progress.evaluations_without_improvement += 1
    tasks_given = run.tasks or run.harness.names
    if tasks_given and (config.eval_only or last or progress.step % (config.eval_tasks_interval or 1) == 0 or at_end):
        figures |= accuracies(run) | harness_figures(run)
    announce(run, figures, better)
    if config.eval_only:
        return True
    first, run.begins_text = run.begins_text or progress.step == 0, False
    if first and run.main:
        figures |= of_the_text(run)
    progress.seconds = meter.seconds()
    run.record(seconds=progress.seconds, **figures)
    if not math.isfinite(figures["val_loss"]):  # such weights are neither the best nor worth resuming from
        raise diverged(run, _("validation loss {loss}", loss=figures["val_loss"]), progress.step)
    # After a rise the law, which knows no learning by heart, would promise a fall.
    if run.main and better and not at_end and (expected := forecast(run)) is not None:
        run.display.say("    " + _("validation loss expected at the end: {loss}", loss=expected))
    run.meet()  # the main process has written a sample
    last = last or at_end or patience_is_over(run)
    with run.writer.together():
        if better:
            export_model(run, then=lambda: push(run))
        if progress.step and (better or last or config.always_save_checkpoint):
            save(run)
    return True


def of_the_text(run: Run) -> dict[str, float]:
    """Count the text's n-grams: all that the law of the loss asks for, if it covers the run; else single and pairs."""
    config, corpus = run.config, run.corpus
    covered = loss_law.covered(config) and run.progress.step == 0
    covered = covered and corpus.train_tokens is not None and not corpus.validation_sets
    if covered and config.dataset == EMBEDDED_DATASET and config.val_fraction == loss_law.HELD_OUT:
        orders = loss_law.EMBEDDED_STATISTICS.orders
    else:
        orders = ngrams.of_splits(corpus.train, corpus.val, ngrams.ORDERS if covered else 2)
    figures = {metrics.NGRAM_LOSS.format(order): loss for order, loss in enumerate(orders, 1)}
    if covered and figures and corpus.train_tokens:
        figures |= {"train_tokens": corpus.train_tokens, "vocab_size": vocabulary_size(corpus.tokenizer)}
    return figures


def forecast(run: Run) -> laws.Prediction | None:
    """Return the validation loss that the record predicts for the last step; None if it cannot tell yet."""
    records, config = metrics.read(run.metrics.path), run.config
    if horizon.undecided(config, records):
        return None
    steps, losses = metrics.series(records, "val_loss")
    return laws.end_of_run(
        steps,
        losses,
        lambda step: learning_rate(step, config),
        config.warmup_iters or 0,
        config.max_iters,
        laws.beforehand(records, config),
    )


def push(run: Run) -> None:
    """Hand the exported model and its card to the pusher, if the run has one."""
    if run.pusher is not None:
        card.write(run.folder, run.config.license)
        run.pusher.submit()


def losses(run: Run, stop: Stop) -> dict[str, float] | None:
    """Return the token-weighted loss of both splits, and of each corpus of a mix. Collective.

    Perplexity and bits per character are those of the whole validation split. Return None if a signal came meanwhile.
    """
    figures = dict[str, float]()
    sets = {f"val_loss/{name}": stream for name, stream in run.corpus.validation_sets.items()}
    for name, stream in {"train_eval_loss": run.corpus.train, **sets, "val_loss": run.corpus.val}.items():
        sums = split_sums(run, stream, stop)
        if sums is None:
            return None
        nll, tokens = total(run.device, *sums)
        figures[name] = nll / tokens
    measured = language.figures(nll, int(tokens), run.val_characters)
    figures["val_perplexity"] = measured["perplexity"]
    figures["val_bits_per_character"] = measured["bits_per_character"]
    return figures


def split_sums(run: Run, stream: TokenStream, stop: Stop) -> tuple[float, int] | None:
    """Sum this process's (negative log-likelihood in nats, targets) over the evaluation blocks; None if a signal came.

    The processes check for a signal together: after every pass, or every few passes if that takes communication.
    """
    rank, world, micro_batch = run.share
    block_size = run.config.block_size
    blocks = evaluation_blocks(stream, block_size, run.config.eval_iters)
    nll, tokens, passes = 0.0, 0, 0
    for first in range(0, len(blocks), world * micro_batch):
        if passes % (1 if world == 1 else PASSES_BETWEEN_LOOKS) == 0 and stop.signalled():
            return None
        part = blocks[first : first + world * micro_batch]
        with in_time():  # with sharded weights a forward pass is a collective
            sums = language.evaluate_blocks(run.model, stream, block_size, part, micro_batch, run.device, rank, world)
        nll, tokens, passes = nll + sums[0], tokens + sums[1], passes + 1
    return nll, tokens


def count_characters(config: Config, corpus: Corpus) -> int:
    """Count the characters that the evaluated validation targets decode to.

    Raises:
        InputError: all targets are document separators, which contain no text.
    """
    blocks = evaluation_blocks(corpus.val, config.block_size, config.eval_iters)
    count = CharacterCounter(corpus.tokenizer)(corpus.val.blocks(blocks, config.block_size)[:, 1:])
    if not count:
        raise InputError(
            "dataset = {name!r}: the tokens for validation hold no text → give other data, or their own tokenizer",
            name=config.dataset,
        )
    return count


def announce(run: Run, figures: dict[str, float], better: bool) -> None:
    """Print the evaluation's figures and a short sample."""
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
    for name, value in figures.items():
        if "/" in name:  # a corpus of a mix, or a task
            run.display.say(f"    {name} {value:.4f}")
    finite = math.isfinite(figures["val_loss"])  # otherwise there is nothing to sample from
    if run.main and run.config.sample_prompt and step and not run.sharded and finite:
        text = sample_text(run, SAMPLE_TOKENS)
        run.display.sample(text)
        if not run.config.eval_only:
            metrics.write_sample(run.folder / metrics.SAMPLES, step, text)


def sample_text(run: Run, tokens: int) -> str:
    """Sample a text of `tokens` tokens from the current model, without touching the run's random generators."""
    drawing = sampling.Sampling(max_new_tokens=tokens)
    prompt = run.config.sample_prompt
    return prompt + "".join(sampling.generate(run.plain.gpt2, run.corpus.tokenizer, prompt, drawing))
