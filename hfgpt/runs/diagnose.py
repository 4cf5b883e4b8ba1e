"""What happened in a run, said from its record: what is wrong, since when, how it shows, and what to change.

In:  the records of a run (:mod:`hfgpt.runs.metrics`), finished or in progress, and its recipe where there is one.
Out: findings, each with its evidence and with the chapter's remedies in their order (6.2, 6.3, 6.4, 3.1, 3.3), as new
     values for this recipe and the override to type; or the one finding `healthy`.

The limits below were set on curves from real runs: tests/fixtures/curves holds them, and the script that made them.
Evaluated losses are taken over the same blocks each time, so that in a healthy run they fall and hardly ever rise;
what a single batch's loss says is smoothed first. Imports neither torch nor transformers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from hfgpt.config import Config
from hfgpt.runs.metrics import Record, Run, series, smooth

Kind = Literal[
    "diverged", "learning_rate_too_high", "overfitting", "data_starved", "learning_rate_too_low", "underfitting",
    "clipping_always", "input_bound", "healthy",
]  # fmt: skip

HIGH = 0.6  # of the loss of chance: about what counting pairs of letters reaches in English (2.5 nats of 4.2)

RISE = 0.05  # nats: an evaluated loss that rises by more does not do so by chance

SPIKE = 1.0  # nats above the smoothed curve

MEMORISED = 2.0  # a validation loss of so many times the train loss: the text is being learnt by heart

REPEATS = 4.0  # epochs up to which repeated text is about as good as new (Muennighoff and others, 2023)

CLIPPED, CLIPPED_BY = 0.95, 3.0  # share of the steps, and the median norm over grad_clip (2 in nanoGPT's own CPU run)

WAITING = 0.3  # share of a step spent waiting for data

FAR = 8.0  # times the learning rate of the rule of thumb, or that part of it

PATIENCE = 3  # evaluations that early stopping waits, where the recipe does not say


@dataclass(frozen=True)
class Remedy:
    """One thing to try: what and why, where the chapter says so, and what to add to the command (None: not a flag)."""

    what: str
    chapter: str
    override: str | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that happened in a run."""

    kind: Kind
    since_step: int
    evidence: str
    remedies: list[Remedy] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------ what the record says


class Facts:
    """A record's series, and the numbers that several rules need. NaN and infinity are in `lost_at` alone."""

    def __init__(self, records: Sequence[Record], config: Config | None) -> None:
        self.records, self.config = records, config
        self.steps, self.losses = _finite(records, "train_loss")
        self.smoothed = smooth(self.losses)
        self.eval_steps, self.val = _finite(records, "val_loss")
        self.train_eval = dict(zip(*_finite(records, "train_eval_loss"), strict=True))
        self.last_step = int(records[-1]["step"]) if records else 0

    @cached_property
    def lost_at(self) -> int | None:
        """Since when a loss, or two gradients in a row, are no numbers to the end of the record; None where they are.

        What a run came back from is no divergence: an update left out, or an overflow that float16's scaling expects.
        """
        since = [_lost_since(self.records, key, least) for key, least in LOST_IN_A_ROW.items()]
        return min((step for step in since if step is not None), default=None)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end; unknown counts as yes."""
        return self.config is None or self.last_step >= self.config.max_iters or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether early stopping ended the run, as the recipe says that it would."""
        patience = self.config.early_stopping_patience if self.config else None
        return patience is not None and len(self.val) - 1 - self.best >= patience

    @property
    def past_warmup(self) -> int:
        """The first step at the full learning rate; a tenth of the run where the recipe is not known."""
        return (self.config.warmup_iters or 0) if self.config else self.last_step // 10

    @property
    def best(self) -> int:
        """The index of the evaluation with the lowest validation loss."""
        return self.val.index(min(self.val))

    @property
    def end(self) -> float:
        """The loss at the end: validation's if it was evaluated since training began, else the smoothed train's."""
        trained = self.val if self.val and self.eval_steps[-1] > 0 else self.smoothed or self.val
        return trained[-1] if trained else math.nan

    @property
    def train_end(self) -> float:
        """The last train loss."""
        return self.train_at(self.last_step)

    def train_at(self, step: float) -> float:
        """The train loss last evaluated by a step; the smoothed one of the batches where it never was."""
        before = [loss for at, loss in self.train_eval.items() if at <= step]
        if before:
            return before[-1]
        batches = [loss for at, loss in zip(self.steps, self.smoothed, strict=True) if at <= step]
        return (batches or self.smoothed or [math.nan])[-1]

    @property
    def start(self) -> float | None:
        """The loss before training: of step 0 or 1; None where the record begins later."""
        first = [r for r in self.records[:2] if r["step"] <= 1]
        values = [r[key] for r in first for key in ("val_loss", "train_loss") if math.isfinite(r.get(key, math.nan))]
        return values[0] if values else None

    @cached_property
    def chance(self) -> float | None:
        """The loss of a guess among the characters or tokens that occur; None where it cannot be known.

        That is the loss of a new model. A pretrained one begins below it, and so do fine-tuned runs without a recipe,
        which their small learning rate tells. The 256 spare byte tokens of tokenizer 'char' hardly ever occur.
        """
        if self.start is None or (self.config is not None and self.config.pretrained):
            return None
        if self.config is None and self.peak_rate is not None and self.peak_rate <= 1e-4 and self.start < 5.2:
            return None
        if self.config is not None and self.config.tokenizer == "char":
            symbols = math.exp(min(self.start, 20.0))
            return math.log(max(symbols - 256, 60)) if symbols > 290 else self.start
        return self.start

    @property
    def high(self) -> bool:
        """Whether the loss at the end says that little more than the frequencies of letters was learnt."""
        return self.chance is not None and self.end > HIGH * self.chance

    @property
    def peak_rate(self) -> float | None:
        """The highest learning rate of the run."""
        if self.config is not None:
            return self.config.learning_rate
        return max(_finite(self.records, "learning_rate")[1], default=None)

    @property
    def rule_of_thumb(self) -> float:
        """The chapter's learning rate for a model of this size (3.1); a small one's where the size is not known."""
        if self.config is None:
            return 1e-3
        if self.config.pretrained:
            return 1e-4
        size = 12 * self.config.n_layer * self.config.n_embd**2
        return 1e-3 if size < 50e6 else 6e-4 if size <= 500e6 else 3e-4

    @cached_property
    def step_seconds(self) -> float | None:
        """How long a step takes, without evaluations: the median over the record."""
        if self.config is not None and (speeds := _finite(self.records, "tokens_per_second")[1]):
            return self.config.tokens_per_iter / statistics.median(speeds)
        steps, seconds = _finite(self.records, "seconds")
        gaps = [(b - a) / (t - s) for s, t, a, b in zip(steps, steps[1:], seconds, seconds[1:], strict=False)]
        return statistics.median(gaps) if gaps else None


LOST_IN_A_ROW = {"train_loss": 1, "val_loss": 1, "grad_norm": 2}


def _lost_since(records: Sequence[Record], key: str, least: int) -> int | None:
    """The first step of the values at a series' end that are no numbers, where there are at least so many."""
    steps, values = series(records, key)
    lost = 0
    while lost < len(values) and not math.isfinite(values[-1 - lost]):
        lost += 1
    return int(steps[-lost]) if lost >= least else None


def _finite(records: Sequence[Record], key: str) -> tuple[list[float], list[float]]:
    steps, values = series(records, key)
    kept = [i for i, value in enumerate(values) if math.isfinite(value)]
    return [steps[i] for i in kept], [values[i] for i in kept]


# ------------------------------------------------------------------------------------------------------ the rules


def diagnose(records: Sequence[Record], config: Config | None = None) -> list[Finding]:
    """Say what happened in a run.

    Args:
        records: as :func:`hfgpt.runs.metrics.read_run` gives them.
        config: the run's recipe; without one, remedies have no values, and what only it can tell is not judged.

    Returns:
        The findings, the gravest first; `healthy` alone where there is nothing to say against the run.
    """
    facts = Facts(records, config)
    found = [finding for rule in RULES if (finding := rule(facts)) is not None]
    kinds = {finding.kind for finding in found}
    if "diverged" in kinds:  # explains everything else
        found = [finding for finding in found if finding.kind == "diverged"]
    elif "learning_rate_too_high" in kinds and facts.high:  # so does a rate at which nothing is learnt
        found = [finding for finding in found if finding.kind in ("learning_rate_too_high", "input_bound")]
    return found or [_healthy(facts)]


def diverged(facts: Facts) -> Finding | None:
    """Losses or gradients are no numbers, or the loss stays far above where it began (3.1, 3.3)."""
    if facts.lost_at is not None:
        what = f"loss or gradient is not a number since step {facts.lost_at:,}"
        last = facts.losses[-1:]
        return Finding("diverged", facts.lost_at, what + (f"; the last finite loss was {last[0]:.3g}" if last else ""),
                       _calmer(facts, strongly=True))  # fmt: skip
    start = facts.start
    if start is None or not facts.losses:
        return None
    limit = 1.5 * start
    if statistics.median(facts.losses[-3:]) <= limit:
        return None
    calm = max((step for step, loss in zip(facts.steps, facts.losses, strict=True) if loss <= limit), default=0)
    evidence = f"the train loss began at {start:.2f} and is {statistics.median(facts.losses[-3:]):.3g} at the end"
    return Finding("diverged", int(calm), evidence, _calmer(facts, strongly=True))


def learning_rate_too_high(facts: Facts) -> Finding | None:
    """The loss leaps above its start, spikes, or rises on the train split itself; or stays high at a rate far above
    the rule of thumb (3.1: oscillation)."""
    signs = [sign for test in (_leap, _spikes, _train_rises, _high_rate) if (sign := test(facts)) is not None]
    if not signs:
        return None
    evidence = "; ".join(text for _, text in signs)
    return Finding("learning_rate_too_high", min(step for step, _ in signs), evidence, _calmer(facts, strongly=False))


Sign = tuple[int, str]


def _leap(facts: Facts) -> Sign | None:
    if facts.start is None or facts.chance is None:
        return None
    above = [(int(s), loss) for s, loss in zip(facts.steps, facts.losses, strict=True) if loss > facts.start + 0.25]
    if len(above) < 2:
        return None
    step, top = max(above, key=lambda pair: pair[1])
    return above[0][0], f"the train loss leapt from {facts.start:.2f} at the start to {top:.3g} at step {step:,}"


def _leaps(facts: Facts) -> list[tuple[int, float]]:
    """Steps, after the warm-up, whose loss stands far above the curve, and that loss."""
    return [
        (int(step), loss)
        for step, loss, usual in zip(facts.steps, facts.losses, facts.smoothed, strict=True)
        if loss > usual + SPIKE and step > max(facts.past_warmup, facts.last_step // 10)
    ]


def _spikes(facts: Facts) -> Sign | None:
    spikes = _leaps(facts)
    if len(spikes) < 2:
        return None
    step, loss = max(spikes, key=lambda spike: spike[1])
    text = f"after the warm-up the train loss leapt {len(spikes)} times by more than {SPIKE:g}, to {loss:.3g} at step"
    return spikes[0][0], f"{text} {step:,}"


def _train_rises(facts: Facts) -> Sign | None:
    steps, losses = list(facts.train_eval), list(facts.train_eval.values())
    lowest, rise, since = math.inf, 0.0, 0
    for step, loss in zip(steps, losses, strict=True):
        if loss < lowest:
            lowest, low_step = loss, step
        elif loss - lowest > rise:
            rise, since = loss - lowest, int(low_step)
    if rise < RISE:
        return None
    return since, f"the evaluated train loss rose by {rise:.2f} after step {since:,}, where it should only fall"


def _high_rate(facts: Facts) -> Sign | None:
    rate, begun = facts.peak_rate, facts.last_step > 2 * facts.past_warmup
    if rate is None or rate < FAR * facts.rule_of_thumb or not facts.high or not begun:
        return None
    return facts.past_warmup, (
        f"the loss stays at {facts.end:.2f} (a guess costs {facts.chance:.2f}) at a learning rate of {rate:g}, "
        f"{rate / facts.rule_of_thumb:.0f} times the rule of thumb of {facts.rule_of_thumb:g} (3.1)"
    )


def learning_rate_too_low(facts: Facts) -> Finding | None:
    """The loss falls smoothly but far too slowly, at a rate far below the rule of thumb (3.1)."""
    rate, config = facts.peak_rate, facts.config
    enough = config is None or facts.finished or facts.last_step >= config.max_iters / 4
    if rate is None or rate > facts.rule_of_thumb / FAR * 1.25 or not facts.high or not enough:
        return None
    evidence = (
        f"after {facts.last_step:,} steps the loss has fallen from {facts.start:.2f} to {facts.end:.2f} only, at a "
        f"learning rate of {rate:g}; the rule of thumb is {facts.rule_of_thumb:g} (3.1)"
    )
    return Finding("learning_rate_too_low", 0, evidence, [_set_rate(facts, facts.rule_of_thumb), _longer(facts)])


def underfitting(facts: Facts) -> Finding | None:
    """Train and validation loss are both high at the end of the run (6.4)."""
    if not facts.finished or not facts.high or facts.end > 1.1 * facts.train_end:
        return None
    evidence = (
        f"the run ends with train {facts.train_end:.2f} and validation {facts.end:.2f}, both high: a guess costs "
        f"{facts.chance:.2f}, and counting pairs of letters reaches about {HIGH:.0%} of that"
    )
    return Finding("underfitting", facts.last_step, evidence, _fit_better(facts))


def overfitting(facts: Facts) -> Finding | None:
    """Validation loss rises while train loss still falls, or is far above it and gains nothing (6.3)."""
    if not facts.val or facts.eval_steps[-1] == 0:
        return None
    low, best_step = facts.val[facts.best], facts.eval_steps[facts.best]
    later = facts.val[facts.best + 1 :]
    rises = bool(later) and facts.val[-1] > low * 1.01 + 0.02 and (len(later) > 1 or facts.val[-1] > low + 2 * RISE)
    learns = facts.train_end < facts.train_at(best_step) - 0.02
    gap = facts.val[-1] > 1.6 * facts.train_end and facts.val[-1] > facts.train_end + 0.4
    gains = len(facts.val) > 2 and best_step > 2 / 3 * facts.last_step
    if not (rises and learns) and (not gap or gains):
        return None
    text = f"the run ends with train {facts.train_end:.2f} and validation {facts.val[-1]:.2f}"
    if later:
        text = (
            f"validation loss was best at step {best_step:,.0f} ({low:.2f}) and is {facts.val[-1]:.2f} at step "
            f"{facts.eval_steps[-1]:,.0f}, while train loss fell from {facts.train_at(best_step):.2f} to "
            f"{facts.train_end:.2f}{_saved(facts)}"
        )
    return Finding("overfitting", int(best_step), text, _generalise(facts))


def _saved(facts: Facts) -> str:
    """What early stopping would have saved."""
    patience = (facts.config.early_stopping_patience if facts.config else None) or PATIENCE
    stop = facts.best + patience
    if stop >= len(facts.eval_steps) - 1:
        return ""
    steps = facts.eval_steps[-1] - facts.eval_steps[stop]
    seconds = f", about {_duration(steps * facts.step_seconds)}" if facts.step_seconds else ""
    return (
        f"; early stopping with patience {patience} would have saved {steps:,.0f} of {facts.last_step:,} steps "
        f"({steps / facts.last_step:.0%}{seconds}) and kept the same best model"
    )


def data_starved(facts: Facts) -> Finding | None:
    """The text is too little for this model and this long a run: it is being learnt by heart (6.3, strategy 4)."""
    fits = overfitting(facts)
    if fits is None:
        return None
    ratio = facts.val[-1] / max(facts.train_end, 1e-9)
    steps, epochs = _finite(facts.records, "epoch")
    seen = next((epoch for step, epoch in zip(steps, epochs, strict=True) if step >= fits.since_step), 0.0)
    if seen < REPEATS and ratio < MEMORISED:
        return None
    parts = [f"the validation loss is {ratio:.1f} times the train loss: the text is being learnt by heart"]
    if epochs:
        parts.append(
            f"at step {fits.since_step:,}, where overfitting begins, each token had been seen {seen:.1f} times, and "
            f"{epochs[-1]:.1f} times at the end; repeats beyond about {REPEATS:g} teach little"
        )
    remedies = [_more_data(), _smaller(facts), _shorter(facts, fits.since_step)]
    return Finding("data_starved", fits.since_step, "; ".join(parts), remedies)


def clipping_always(facts: Facts) -> Finding | None:
    """Nearly every gradient is scaled down, and by much: grad_clip, not the learning rate, decides the steps (3.3)."""
    clip = facts.config.grad_clip if facts.config else 0.0
    steps, norms = _finite(facts.records, "grad_norm")
    after = [(step, norm) for step, norm in zip(steps, norms, strict=True) if step > facts.past_warmup]
    if not clip or len(after) < 20:
        return None
    share, median = sum(norm > clip for _, norm in after) / len(after), statistics.median(norm for _, norm in after)
    if share < CLIPPED or median < CLIPPED_BY * clip:
        return None
    evidence = (
        f"after the warm-up {share:.0%} of the recorded steps were clipped: half of the gradients have a norm above "
        f"{median:.3g}, and grad_clip is {clip:g}"
    )
    return Finding("clipping_always", int(after[0][0]), evidence, _unclip(facts, median))


def input_bound(facts: Facts) -> Finding | None:
    """A large part of each step goes by in waiting for data (6.2)."""
    steps, waits = _finite(facts.records, "data_seconds")
    if len(waits) < 3 or not facts.step_seconds:
        return None
    share = statistics.median(waits[1:]) / facts.step_seconds
    if share < WAITING:
        return None
    evidence = (
        f"{share:.0%} of a step ({statistics.median(waits[1:]) * 1000:.1f} of {facts.step_seconds * 1000:.1f} ms) is "
        f"spent waiting for data"
    )
    return Finding("input_bound", int(steps[0]), evidence, _feed(facts))


def _healthy(facts: Facts) -> Finding:
    begin = facts.start if facts.start is not None else (facts.losses or facts.val or [math.nan])[0]
    so_far = "" if facts.finished else " so far"
    evidence = (
        f"the loss went from {begin:.2f} to {facts.end:.2f} in {facts.last_step:,} steps; no sign of trouble{so_far}"
    )
    return Finding("healthy", 0, evidence)


RULES: tuple[Callable[[Facts], Finding | None], ...] = (
    diverged,
    learning_rate_too_high,
    overfitting,
    data_starved,
    learning_rate_too_low,
    underfitting,
    clipping_always,
    input_bound,
)


# ---------------------------------------------------------------------------------------------------- the remedies


def _change(what: str, chapter: str, config: Config | None, **new: Any) -> Remedy:
    """A remedy that sets fields. With a recipe: from which value to which, and what else must follow."""
    if config is None:
        return Remedy(what, chapter)
    follow: dict[str, Any] = {}
    if "max_iters" in new and config.lr_decay_iters:
        follow["lr_decay_iters"] = max(1, round(config.lr_decay_iters * new["max_iters"] / config.max_iters))
        if 2 * (config.warmup_iters or 0) >= follow["lr_decay_iters"]:
            follow["warmup_iters"] = follow["lr_decay_iters"] // 20
    if "learning_rate" in new and config.min_lr:
        follow["min_lr"] = _round(config.min_lr * new["learning_rate"] / config.learning_rate)
    if "learning_rate" in new and config.optimizer == "muon":
        follow["muon_learning_rate"] = _round(config.muon_learning_rate * new["learning_rate"] / config.learning_rate)
    told = ", ".join(f"{key} {getattr(config, key)} → {value}" for key, value in new.items())
    return Remedy(f"{what}: {told}", chapter, " ".join(_typed(*item) for item in {**new, **follow}.items()))


def _typed(key: str, value: Any) -> str:
    """A field's value as it is typed on the command line."""
    if isinstance(value, bool):
        return f"--{key}" if value else f"--no_{key}"
    return f"--{key}={value}"


def _round(value: float) -> float:
    return float(f"{value:.2g}")


def _set_rate(facts: Facts, rate: float) -> Remedy:
    raises = facts.peak_rate is not None and rate > facts.peak_rate
    what = "a higher learning rate" if raises else "a lower learning rate"
    return _change(what, "6.4, strategy 4; 3.1" if raises else "3.1", facts.config, learning_rate=_round(rate))


def _longer(facts: Facts) -> Remedy:
    c = facts.config
    return _change("train longer", "6.4, strategy 3", c, **({"max_iters": 2 * c.max_iters} if c else {}))


def _shorter(facts: Facts, best_step: int) -> Remedy:
    return _change("fewer steps, up to where it was best", "6.3, strategy 5", facts.config,
                   max_iters=max(best_step, 1))  # fmt: skip


def _calmer(facts: Facts, strongly: bool) -> list[Remedy]:
    """The chapter's answers to oscillation and divergence: half the rate (far too high: the rule of thumb), clipping,
    a longer warm-up."""
    c, rate = facts.config, facts.peak_rate or facts.rule_of_thumb
    lower = min(rate / (10 if strongly else 2), facts.rule_of_thumb if rate > FAR * facts.rule_of_thumb else rate)
    remedies = [_set_rate(facts, lower)]
    if c is None or not 0 < c.grad_clip <= 1:
        remedies.append(_change("clip the gradients", "3.3", c, grad_clip=1.0))
    if c is None or (c.warmup_iters or 0) < c.max_iters // 10:
        remedies.append(_change("a longer warm-up", "4.1", c, **({"warmup_iters": c.max_iters // 10} if c else {})))
    if c is not None and c.dtype == "float16":
        remedies.append(_change("numbers of a wider range", "6.1, strategy 5", c, dtype="float32"))
    return remedies


def _fit_better(facts: Facts) -> list[Remedy]:
    """6.4, in its order; a rate is raised only up to three times the rule of thumb."""
    c = facts.config
    remedies = []
    if c is None or not c.pretrained:
        bigger = {"n_layer": 2 * c.n_layer, "n_head": 2 * c.n_head, "n_embd": 2 * c.n_embd} if c else {}
        remedies.append(_change("a larger model", "6.4, strategy 1", c, **bigger))
    weaker = {key: _round(getattr(c, key) / 2) for key in ("dropout", "weight_decay") if c and getattr(c, key) > 0}
    if c is None or weaker:
        remedies.append(_change("less regularisation", "6.4, strategy 2", c, **weaker))
    remedies.append(_longer(facts))
    rate, usual = facts.peak_rate or facts.rule_of_thumb, facts.rule_of_thumb
    if rate <= usual:
        remedies.append(_set_rate(facts, usual if rate < usual / 3 else 3 * rate))
    remedies.append(
        Remedy("check the data: read some of it as the model does, and how much there is", "6.4, strategy 5")
    )
    return remedies


def _generalise(facts: Facts) -> list[Remedy]:
    """6.3, in its order."""
    c = facts.config
    stop = {"early_stopping_patience": PATIENCE} if c else {}
    return [
        _change("more dropout", "6.3, strategy 1", c,
                **({"dropout": min(0.5, _round((c.dropout or 0.1) + 0.1))} if c else {})),
        _change("more weight decay", "6.3, strategy 2", c,
                **({"weight_decay": _round(2 * c.weight_decay) or 0.1} if c else {})),
        _smaller(facts),
        _more_data(),
        _change("stop when validation loss no longer falls", "6.3, strategy 5", c, **stop),
    ]  # fmt: skip


def _smaller(facts: Facts) -> Remedy:
    """The chapter's step from 6 layers of 384 to 4 of 256: two thirds of both; heads keep their width if they can."""
    c = facts.config
    if c is None or c.pretrained:
        return Remedy("a smaller model", "6.3, strategy 3")
    layers, heads = max(1, round(c.n_layer * 2 / 3)), max(1, round(c.n_head * 2 / 3))
    head = c.n_embd // c.n_head if heads < c.n_head else max(1, round(c.n_embd / c.n_head * 2 / 3))
    return _change("a smaller model", "6.3, strategy 3", c, n_layer=layers, n_head=heads, n_embd=heads * head)


def _more_data() -> Remedy:
    return Remedy("more text, which helps most: a larger file, a folder of files or a Hub dataset", "6.3, strategy 4",
                  "--dataset=PATH_OR_HUB_ID")  # fmt: skip


def _unclip(facts: Facts, median: float) -> list[Remedy]:
    c = facts.config
    assert c is not None, "without a recipe grad_clip is not known"
    more = 2 * c.gradient_accumulation_steps
    return [
        _change("clip only the outliers", "3.3", c, grad_clip=_round(2 * median)),
        _set_rate(facts, c.learning_rate / 2),
        _change("a larger batch, whose gradients are steadier", "1.3", c, gradient_accumulation_steps=more),
    ]


def _feed(facts: Facts) -> list[Remedy]:
    c, remedies = facts.config, []
    if c is None or c.streaming:
        remedies.append(_change("prepare the data once instead of streaming it", "6.2", c, streaming=False))
    remedies += [
        Remedy("keep the corpus and its cache on a fast local disk", "6.2"),
        _change("fewer, larger steps", "6.2, strategy 2", c, **({"batch_size": 2 * c.batch_size} if c else {})),
    ]
    return remedies


# ----------------------------------------------------------------------------------------------------------- notes


def notes(records: Sequence[Record], config: Config | None = None) -> list[str]:
    """What is worth knowing of a run and no alarm: whether it still falls, clipping, a slow start, time evaluating."""
    facts = Facts(records, config)
    every = (_still_falling, _one_spike, _clipping, _slow_start, _evaluating)
    return [note for make in every if (note := make(facts))]


def _still_falling(facts: Facts) -> str | None:
    evaluated = [(step, loss) for step, loss in zip(facts.eval_steps, facts.val, strict=True) if step > 0]
    if len(evaluated) < 4:
        return None
    before = [loss for step, loss in evaluated if step <= 0.8 * facts.last_step]
    if not before:
        return None
    fall = (before[-1] - evaluated[-1][1]) / before[-1]
    if fall < 0.01:
        return "validation loss has levelled out in the last fifth of the run" if fall > -0.01 else None
    more = _longer(facts).override if facts.finished else None
    return f"validation loss still falls ({fall:.1%} in the last fifth of the run)" + (
        f"; a longer run would go lower: {more}" if more else ""
    )


def _one_spike(facts: Facts) -> str | None:
    spikes = _leaps(facts)
    if len(spikes) != 1:
        return None
    return f"the train loss leapt once, to {spikes[0][1]:.3g} at step {spikes[0][0]:,}, and came back"


def _clipping(facts: Facts) -> str | None:
    clip = facts.config.grad_clip if facts.config else 0.0
    norms = _finite(facts.records, "grad_norm")[1]
    if not clip or len(norms) < 10:
        return None
    share = sum(norm > clip for norm in norms) / len(norms)
    return f"gradient clipping was active in {share:.0%} of the recorded steps" if share else (
        f"gradient clipping was never active: the largest norm is {max(norms):.2g}, grad_clip {clip:g}"
    )  # fmt: skip


def _slow_start(facts: Facts) -> str | None:
    """The time of the first recorded step beyond a usual one's: compilation, kernels being chosen, caches filled."""
    first = next((r for r in facts.records if r["step"] <= 1 and "train_loss" in r), None)
    if first is None or not facts.step_seconds:
        return None
    speed = first.get("tokens_per_second")
    took = facts.config.tokens_per_iter / speed if speed and facts.config else first.get("seconds", 0.0)
    extra = took - facts.step_seconds
    if extra < 2 or took < 5 * facts.step_seconds:
        return None
    worth = round(extra / facts.step_seconds)
    return (
        f"slow start: the first step took {_duration(took)}, as long as {worth:,} usual ones"
        + (" (compilation; 6.2, strategy 1: it pays in longer runs)" if facts.config and facts.config.compile else "")
    )  # fmt: skip


def _evaluating(facts: Facts) -> str | None:
    steps, seconds = _finite(facts.records, "seconds")
    if facts.config is None or not facts.step_seconds or len(steps) < 3:
        return None
    total = seconds[-1] - seconds[0]
    spent = total - (steps[-1] - steps[0]) * facts.step_seconds
    if total <= 0 or spent < 0.3 * total or spent < 10:
        return None
    remedy = _change(
        "evaluate less often", "6.2, strategy 3", facts.config, eval_interval=2 * facts.config.eval_interval
    )
    return (
        f"evaluations, samples and checkpoints took {spent / total:.0%} of the time; {remedy.what} ({remedy.override})"
    )


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7200 else f"{seconds / 3600:.1f} h"


# ---------------------------------------------------------------------------------------------------------- telling


def report(findings: Sequence[Finding]) -> str:
    """The findings as text: what, since when, the evidence, and the remedies in order with what to type."""
    lines = []
    for finding in findings:
        since = f", since step {finding.since_step:,}" if finding.kind != "healthy" and finding.since_step else ""
        lines += [f"{finding.kind.replace('_', ' ')}{since}", f"  {finding.evidence}"]
        for number, remedy in enumerate(finding.remedies, 1):
            lines.append(f"  {number}. {remedy.what}  (chapter {remedy.chapter})")
            if remedy.override:
                lines.append(f"       {remedy.override}")
    return "\n".join(lines)


def summary(records: Sequence[Record], config: Config | None = None) -> str:
    """What the training script says at its end, and diagnose.py at any time: the findings, then the notes."""
    told = notes(records, config)
    return "\n".join([report(diagnose(records, config)), *(f"note: {note}" for note in told)])


def as_json(run: Run) -> dict[str, Any]:
    """A run's diagnosis as plain data: `run`, `last_step`, `findings` and `notes`."""
    findings = [asdict(finding) for finding in diagnose(run.records, run.config)]
    return {
        "run": run.name,
        "last_step": int(run.records[-1]["step"]),
        "findings": findings,
        "notes": notes(run.records, run.config),
    }
