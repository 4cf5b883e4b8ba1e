"""The recipes feasible for a time, a text and a device: shapes on a grid, with length, rates and expected loss.

In:  a Survey (the text, and what the recipe fixes beside its shape), a Target, and seconds.
Out: :class:`Candidate` s.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any

from hfgpt.base.errors import InputError
from hfgpt.base.language import _
from hfgpt.base.units import rounded, seconds_of, size
from hfgpt.config import Config
from hfgpt.config.rules import default_warmup
from hfgpt.model import loss_law
from hfgpt.model.laws import laws
from hfgpt.plan import batches, chapter, loss, timing
from hfgpt.plan.survey import Survey
from hfgpt.plan.target import Target, find_target
from hfgpt.plan.timing import Measured, Time
from hfgpt.runs.facts import usual_learning_rate
from hfgpt.runs.horizon import lengthened

HEAD = 32  # channels per head in small models; 64 from a width of 512 on, as in GPT-2
LEAST_STEPS = 50  # fewest steps of a run
USED = 0.95  # share of the time that is planned; the rest absorbs the forecast's error
SEEN = 2  # most parameters per token seen

# The grids, of the same keys. A CPU's cover the shapes that the laws were fitted on, and a little beyond.
CPU_GRID: dict[str, tuple[Any, ...]] = {
    "n_layer": (1, 2, 3, 4, 6),
    "n_embd": (64, 96, 128, 192, 256, 320),
    "block_size": (32, 64, 128),
    "batch_size": (8, 16, 32),
    "optimizer": ("muon", "adamw"),
}
CARD_GRID: dict[str, tuple[Any, ...]] = {
    "n_layer": (4, 6, 8, 12, 24, 36),
    "n_embd": (128, 256, 384, 512, 768, 1024, 1280),
    "block_size": (128, 256, 512, 1024),
    "batch_size": (16, 32, 64, 128, 512),
    "optimizer": ("muon", "adamw"),
}
DROPOUTS = (0.0, 0.1, 0.2)
LENGTHS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)  # shares of the steps that the time allows: a small text may need fewer


@dataclass(frozen=True)
class Candidate:
    """One recipe that fits the time, and its expected final loss."""

    survey: Survey
    loss: float
    seconds: float
    measured: Measured | None = None  # measured by its trial
    busy: bool = False  # whether other work ran on the machine during its trial

    @property
    def config(self) -> Config:
        return self.survey.config


def own_target(target: Target, config: Config) -> Target:
    """The target with the precision that `dtype: auto` takes for this width."""
    if target.kind == "cpu":
        own = find_target(config, processes=target.processes)
        return replace(own, memory_bytes=target.memory_bytes, speed=target.speed)  # a single measurement per choice
    return replace(target, utilisation=0.4 * min(1.0, config.n_embd / 768))


def _grids(target: Target) -> tuple[dict[str, tuple[Any, ...]], ...]:
    """Return the device's grids: a short text wants a small model on a card too."""
    return (CPU_GRID,) if target.kind == "cpu" else (CARD_GRID, CPU_GRID)


def candidates(survey: Survey, target: Target, budget: float | None) -> Iterator[Candidate]:
    """Return every recipe of the grid that time and memory allow, with its expected loss."""
    for shape, suited in _shapes(survey, target):
        shaped, fits = no_larger_batch(shape, suited)
        if fits:
            yield from _lengths(shaped, suited, budget)


def _shapes(survey: Survey, target: Target) -> Iterator[tuple[Survey, Target]]:
    """Return the shapes of the grid for which the text is long enough, each with the target at its precision."""
    targets: dict[int, Target] = {}
    for values in chain.from_iterable(product(*grid.values()) for grid in _grids(target)):
        config = _shaped(survey, dict(zip(CPU_GRID, values, strict=True)), target.processes)
        if config is None:
            continue
        if config.n_embd not in targets:
            targets[config.n_embd] = own_target(target, config)
        yield replace(survey, config=config), targets[config.n_embd]


def too_large(survey: Survey, target: Target) -> InputError | None:
    """Return the error of a memory that is too small for every shape of the grid that suits the text."""
    fits = [batches.fit(shape, suited) for shape, suited in _shapes(survey, target)]
    if not fits or any(fit.fits for fit in fits):
        return None
    least = min(fit.memory.needed for fit in fits)
    return out_of_memory(target, _("the smallest model"), least, _("take a device with more memory"))


def too_many_entries(survey: Survey, target: Target) -> InputError | None:
    """Return the error of a vocabulary with which every shape of the grid has too many parameters for the text."""
    tokens = survey.train_tokens
    if tokens is None or any(
        chapter.count(shape) <= _largest_for(tokens) for shape, _target in _shapes(survey, target)
    ):
        return None
    return InputError(
        "tokenizer = {tokenizer!r}: with its {entries:,} tokens even the smallest model has too many parameters for a "
        "text of {tokens:,} → take a smaller vocabulary (tokenizer: char, or bpe with vocab_size), or give more text",
        tokenizer=survey.config.tokenizer,
        entries=survey.vocab_size,
        tokens=tokens,
    )


def out_of_memory(target: Target, model: str, needed: int, advice: str) -> InputError:
    """Return the error of a model, by name, that does not fit; `needed` in bytes."""
    return InputError(
        "{device} has {memory} of memory, and {model} needs {needed} → {advice}",
        model=model,
        needed=size(needed),
        device=target.name,
        memory=size(target.memory_bytes),
        advice=advice,
    )


def too_short(survey: Survey, target: Target) -> InputError | None:
    """Return the error of a text that is too short for every shape of the grid."""
    block, batch = min(CPU_GRID["block_size"]), min(CPU_GRID["batch_size"])
    train, val = _least(block, max(batch, target.processes))
    tokens, val_tokens = survey.train_tokens, survey.val_tokens
    if tokens is None or val_tokens is None or (tokens >= train and val_tokens >= val):
        return None
    return InputError(
        "{name!r}: {tokens:,} tokens to train on and {val_tokens:,} to validate on are too few: the smallest run takes "
        "{train:,} and {val:,} → give more text",
        name=survey.config.dataset,
        tokens=tokens,
        val_tokens=val_tokens,
        train=train,
        val=val,
    )


def _least(block: int, sequences: int) -> tuple[int, int]:
    """Return the fewest tokens of the training and of the validation split: a batch of blocks, and two blocks."""
    return block * sequences, 2 * block


def _shaped(survey: Survey, values: dict[str, Any], processes: int) -> Config | None:
    """Return the recipe with a shape of the grid; None if the text is too short for it."""
    values["n_head"] = max(1, values["n_embd"] // (HEAD if values["n_embd"] < 512 else 64))
    sequences = max(values["batch_size"], processes) // processes * processes
    train, val = _least(values["block_size"], sequences)
    if (survey.train_tokens or train) < train or (survey.val_tokens or val) < val:
        return None
    fixed = {
        "batch_size": sequences // processes,
        "gradient_accumulation_steps": processes,
        "beta2": 0.99,
        "muon_momentum": 0.9 if values["batch_size"] <= 64 else 0.95,
        "min_lr": 0.0,
        "dropout": 0.0,
        "eval_iters": 20,
        "early_stopping_patience": None,
        "activation_checkpointing": False,
    }
    return survey.config.model_copy(update=values | fixed | UNPLANNED)


# Values of the recipe at hand that a chosen length and a chosen interval would contradict.
UNPLANNED: dict[str, Any] = {
    "lr_schedule": "cosine",
    "time_budget": None,
    "batch_warmup_iters": 0,
    "eval_tasks_interval": None,
}


def _lengths(survey: Survey, target: Target, budget: float | None) -> Iterator[Candidate]:
    """Return a shape at the lengths to consider: the longest, and shorter ones if the text is seen too often."""
    most = affordable(survey, target, budget)
    if most < LEAST_STEPS or chapter.count(survey) > _largest(survey, most * survey.config.tokens_per_iter):
        return
    per_step = survey.config.tokens_per_iter
    if survey.train_tokens is not None:  # more passes hardly help, and no run behind the laws made many more
        most = min(most, max(LEAST_STEPS, int(chapter.MOST_EPOCHS * survey.train_tokens / per_step)))
    for share in LENGTHS:
        steps = int(most * share)
        often = survey.train_tokens is not None and steps * per_step > 2 * survey.train_tokens
        if steps < LEAST_STEPS or (share < 1 and not often):
            return
        for dropout in _dropouts(survey.config, steps * per_step / (survey.train_tokens or math.inf)):
            planned = with_length(batches.change(survey, dropout=dropout), steps)
            time = timing.time(planned, target)
            if budget is not None and time.total_seconds > budget:  # the length was computed for steps without dropout
                fewer = _steps_in(budget, time)
                if fewer < LEAST_STEPS:
                    continue
                planned = with_length(planned, fewer)
                time = timing.time(planned, target)
            yield Candidate(planned, expected(planned), time.total_seconds)


def _dropouts(config: Config, epochs: float) -> tuple[float, ...]:
    """Return the dropouts to consider. Where no law of ours judges them, a text seen often gets the chapter's."""
    if loss_law.covered(config):
        return DROPOUTS if epochs > 2 else DROPOUTS[:1]
    return (0.1,) if epochs > 4 else (0.0,)


def _largest(survey: Survey, seen: int) -> float:
    """Return the most parameters to consider: the laws do not cover larger models with so few tokens."""
    if survey.train_tokens is None:
        return SEEN * seen
    return min(SEEN * seen, _largest_for(survey.train_tokens))


def _largest_for(tokens: int) -> float:
    return max(SMALL, OWN * tokens / math.sqrt(max(1.0, tokens / 1e6)))


# Parameters allowed for any text, and per token of a text up to a million; beyond, they grow as its square root (as in
# the literature: 277M for the 90M characters of enwik8, Dai et al. 2019, arXiv 1901.02860).
SMALL, OWN = 1e6, 20


def affordable(survey: Survey, target: Target, budget: float | None, measured: Measured | None = None) -> int:
    """Return the steps that fit the time after evaluations, start and saving; without a time, 20 tokens a parameter."""
    config = survey.config
    if budget is None:
        wanted = chapter.COMPUTE_OPTIMAL * chapter.count(survey)
        return max(LEAST_STEPS, math.ceil(wanted / config.tokens_per_iter))
    steps = _affordable(with_length(survey, LEAST_STEPS), target, budget, measured)
    if steps > LEAST_STEPS and target.own_memory:  # a longer run may be compiled, which makes its steps faster
        steps = _affordable(with_length(survey, steps), target, budget, measured)
    return steps


def by_the_clock(survey: Survey, target: Target, measured: Measured | None = None) -> Survey:
    """Return a recipe with a `time_budget` at the length that its time allows, and any other as it is."""
    budget = survey.config.time_budget
    for _evaluations in range(3 if budget else 0):  # their number follows from the length
        steps = _affordable(survey, target, seconds_of(budget or ""), measured)
        survey = replace(survey, config=lengthened(survey.config, [max(1, steps)]))
    return survey


def _affordable(survey: Survey, target: Target, budget: float, measured: Measured | None) -> int:
    return _steps_in(budget, timing.time(survey, target, measured))


def _steps_in(budget: float, time: Time) -> int:
    fixed = time.start_seconds + time.saving_seconds + time.evaluation_seconds
    return int((USED * budget - fixed) / time.seconds_per_step)


def with_length(survey: Survey, steps: int) -> Survey:
    """Return the recipe at a length, which determines schedule, rates and evaluations."""
    config = survey.config.model_copy(update={"max_iters": steps})
    rates = rates_for(config, survey.train_tokens)
    config = config.model_copy(
        update={
            **rates,
            "warmup_iters": max(1, default_warmup(steps)),
            "lr_decay_iters": steps,
            "eval_interval": max(1, math.ceil(steps / EVALUATIONS)),
            "log_interval": max(1, min(10, steps // 20)),
        }
    )
    return replace(survey, config=config)


EVALUATIONS = 3  # evaluations of a run, besides the one before it


def large(config: Config) -> bool:
    """Whether a model is larger than those for which the laws say a rate."""
    return chapter.rules_of_thumb(config).parameters > 20e6


def rates_for(config: Config, train_tokens: int | None) -> dict[str, float]:
    """Return both peak learning rates of a run of this shape and length, on a text of so many tokens if known.

    They follow the laws within the fitted range; large models use the chapter's (3.1).
    """
    law = laws().loss
    if large(config):
        count = chapter.rules_of_thumb(config).parameters
        return {"learning_rate": usual_learning_rate(count), "muon_learning_rate": 0.02}
    best = loss_law.best_rate(law, config)
    if config.optimizer == "muon":
        unseen = config.tokens_by(config.max_iters)  # as if no token were repeated
        embeddings = loss_law.best_embedding_rate(law, config, train_tokens or unseen)
        return {
            "muon_learning_rate": rounded(min(0.08, max(0.015, best))),
            "learning_rate": rounded(min(6e-3, max(1e-3, embeddings))),
        }
    return {"learning_rate": rounded(min(6e-3, max(1e-3, best)))}


def expected(survey: Survey) -> float:
    """Return the loss by which recipes are compared: our law's, or else the published one's.

    The published one is of web text in GPT-2's tokens, not of this text: only differences count.
    """
    own = by_our_law(survey)
    return loss.published(survey.config, survey.vocab_size, survey.train_tokens) if own is None else own


def by_our_law(survey: Survey) -> float | None:
    """Return the loss that our law predicts; None if it does not cover the recipe, or the text is not known."""
    config = survey.config
    if not loss_law.covered(config) or survey.statistics is None or survey.train_tokens is None:
        return None
    return loss_law.predict(laws().loss, config, survey.vocab_size, survey.train_tokens, survey.statistics)


def no_larger_batch(survey: Survey, target: Target) -> tuple[Survey, bool]:
    """Return the recipe with the largest micro-batch that fits, up to its own; and whether any fits."""
    best = batches.fit(survey, target)
    limit = survey.config.micro_batch(target.processes)
    return (batches.with_batch(survey, min(limit, best.batch_size)) if best.fits else survey), best.fits


def differs(one: Config, other: Config) -> bool:
    """Whether two recipes differ in shape or optimizer, not merely in length."""
    return any(getattr(one, key) != getattr(other, key) for key in CPU_GRID)
