"""The parts of a diagnosis: findings with their evidence, and the chapter's remedies with what to type.

In:  the facts of a run, and new values for some fields of its recipe.
Out: remedies in the chapter's order (6.2, 6.3, 6.4, 3.1, 3.3), whose overrides can be appended to the command.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from hfgpt.base.language import N_, _, listed
from hfgpt.base.units import duration, is_number, rounded, seconds_of, shown
from hfgpt.config import Config
from hfgpt.runs.facts import REPEATS, Facts, smaller_model

Kind = Literal[
    "diverged", "learning_rate_too_high", "overfitting", "data_starved", "learning_rate_too_low", "underfitting",
    "clipping_always", "input_bound", "interrupted", "healthy",
]  # fmt: skip

TITLES: dict[Kind, str] = {
    "diverged": N_("diverged"),
    "learning_rate_too_high": N_("learning rate too high"),
    "overfitting": N_("overfitting"),
    "data_starved": N_("too little text"),
    "learning_rate_too_low": N_("learning rate too low"),
    "underfitting": N_("underfitting"),
    "clipping_always": N_("gradients always clipped"),
    "input_bound": N_("waiting for data"),
    "interrupted": N_("stopped before its end"),
    "healthy": N_("healthy"),
}


@dataclass(frozen=True)
class Remedy:
    """One thing to try."""

    what: str  # what to do and why, with the old and the new values if there is a recipe
    chapter: str  # the section it comes from
    override: str | None = None  # what to append to the command; None if no parameter changes
    # for each number it changes: raised (1) or lowered (-1)
    directions: dict[str, int] = field(default_factory=dict)
    expected: str = ""  # the figure by which to judge it; "" if another remedy of the finding names it

    def expecting(self, expected: str) -> Self:
        return replace(self, expected=expected)

    @property
    def section(self) -> str:
        """The chapter's section, in the current language."""
        parts = [part.partition(", strategy ") for part in self.chapter.split("; ")]
        return _("; ").join(
            _("{section}, strategy {number}", section=section, number=strategy)
            if strategy
            else _("{section}", section=section)
            for section, _word, strategy in parts
        )

    def contradicts(self, other: Self) -> bool:
        """Whether the two move one parameter in opposite directions."""
        return any(other.directions.get(key) == -direction for key, direction in self.directions.items())


@dataclass(frozen=True)
class Finding:
    """Something that happened in a run, in sentences, and what to do about it."""

    kind: Kind
    since_step: int
    evidence: str
    remedies: list[Remedy] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The kind, in the current language."""
        return _(TITLES[self.kind])


def change(what: str, section: str, config: Config | None, **new: Any) -> Remedy:
    """Return a remedy that sets fields and those that depend on them; without a recipe it has no values."""
    if config is None or not new:
        return Remedy(what, section)
    values = listed(f"{key} {shown(getattr(config, key))} → {value}" for key, value in new.items())
    numbers = {key: value for key, value in new.items() if is_number(value) and is_number(getattr(config, key))}
    return Remedy(
        _("{what}: {values}", what=what, values=values),
        section,
        " ".join(_typed(*item) for item in {**new, **following(config, new)}.items()),
        {key: 1 if value > getattr(config, key) else -1 for key, value in numbers.items()},
    )


def following(config: Config, new: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that follow the changed ones: the schedule the length, other rates the rate, and the tasks the
    evaluations.
    """
    fields: dict[str, Any] = {}
    if "max_iters" in new and config.lr_decay_iters:
        decay = max(1, round(config.lr_decay_iters * new["max_iters"] / config.max_iters))
        if config.lr_schedule != "constant":
            fields["lr_decay_iters"] = decay
        if 2 * (config.warmup_iters or 0) >= decay:
            fields["warmup_iters"] = decay // 20
    if "eval_interval" in new and config.eval_tasks_interval and config.eval_tasks_interval % new["eval_interval"]:
        fields["eval_tasks_interval"] = -(-config.eval_tasks_interval // new["eval_interval"]) * new["eval_interval"]
    if "learning_rate" in new:
        factor = new["learning_rate"] / config.learning_rate
        if config.min_lr:
            fields["min_lr"] = rounded(config.min_lr * factor)
        if config.optimizer == "muon":
            fields["muon_learning_rate"] = rounded(config.muon_learning_rate * factor)
    return fields


def _typed(key: str, value: Any) -> str:
    """Format a field's value for the command line."""
    if isinstance(value, bool):
        return f"--{key}" if value else f"--no_{key}"
    return f"--{key}={value}"


# ------------------------------------------------------------------------------------------------------------ remedies

FAR = 8.0  # factor above or below the rule of thumb's learning rate
MOST_DROPOUT = 0.5  # with more a model hardly learns
PATIENCE = 3  # early stopping's patience in evaluations, by default


def set_rate(facts: Facts, rate: float) -> Remedy:
    """Set another peak learning rate."""
    raises = facts.peak_rate is not None and rate > facts.peak_rate
    what = _("a higher learning rate") if raises else _("a lower learning rate")
    remedy = change(what, "6.4, strategy 4; 3.1" if raises else "3.1", facts.config, learning_rate=rounded(rate))
    return remedy.expecting(_lower(facts)) if raises else remedy


def _lower(facts: Facts) -> str:
    return _("a validation loss below {loss:.2f}, where this run ended", loss=facts.end)


def longer(facts: Facts) -> Remedy:
    c = facts.config
    return change(_("train longer"), "6.4, strategy 3", c, **(_length(c, 2 * c.max_iters) if c else {}))


def _length(config: Config, steps: int) -> dict[str, Any]:
    """Return the field that gives a run so many steps: its time, where the time decides."""
    if config.time_budget is None:
        return {"max_iters": steps}
    return {"time_budget": f"{round(seconds_of(config.time_budget) * steps / config.max_iters)}s"}


SOONER = 1.5  # times the best evaluation's step: the length of a run that ends before it learns the text by heart


def sooner(facts: Facts) -> Remedy | None:
    """End a little after the best evaluation, with the learning rate down by then; None if the run is hardly longer.

    The best evaluation of a run that overfits comes while the learning rate is still high. A run of just that length
    ends higher, since it learns less while the rate falls; half as many steps more make up for it.
    """
    c, best = facts.config, facts.eval_steps[facts.best]
    what = _("fewer steps, so that the learning rate has come down before the text is learnt by heart")
    more = SOONER
    if c is not None and c.lr_schedule == "constant":  # then nothing happens after the best evaluation that helps
        what, more = _("fewer steps, so that the run ends before the text is learnt by heart"), 1.0
    expected = _("at the end about {loss:.2f}, the lowest of this run", loss=facts.lowest)
    if c is None:
        return change(what, "6.3, strategy 5", c).expecting(expected)
    steps = round(more * best / c.eval_interval) * c.eval_interval or round(more * best)
    if not 0 < steps < 0.9 * c.max_iters:
        return None
    return change(what, "6.3, strategy 5", c, **_length(c, steps)).expecting(expected)


def calmer(facts: Facts, strongly: bool) -> list[Remedy]:
    """Against oscillation and divergence: half the rate (or the rule of thumb, if far above it), clipping, warm-up.

    Args:
        strongly: use a tenth of the rate instead of half.
    """
    c, rate = facts.config, facts.peak_rate or facts.rule_of_thumb
    lower = min(rate / (10 if strongly else 2), facts.rule_of_thumb if rate > FAR * facts.rule_of_thumb else rate)
    if facts.val:
        expected = _("no leap, and a validation loss below {loss:.2f}, the lowest of this run", loss=facts.lowest)
    else:
        lowest = min(facts.losses, default=0.0)
        expected = _("no leap, and a loss below {loss:.2f}, the lowest of this run", loss=lowest)
    remedies = [set_rate(facts, lower).expecting(expected)]
    if c is None or not 0 < c.grad_clip <= 1:
        remedies.append(change(_("clip the gradients"), "3.3", c, grad_clip=1.0))
    longest = (c.max_iters // 10 if c.time_budget is None else min(2000, c.max_iters // 10)) if c else 0
    if c is None or (c.warmup_iters or 0) < longest:
        # Until a time_budget is over, the folder's recipe has another length, which the value would not fit.
        fits = c is not None and (c.time_budget is None or facts.finished)
        remedies.append(change(_("a longer warm-up"), "4.1", c, **({"warmup_iters": longest} if fits else {})))
    if c is not None and c.dtype == "float16":
        remedies.append(change(_("numbers of a wider range"), "6.1, strategy 5", c, dtype="float32"))
    return remedies


def fit_better(facts: Facts) -> list[Remedy]:
    """Against underfitting, in the order of 6.4, but first a longer run if the loss still falls.

    The rate is raised to at most three times the rule of thumb.
    """
    c = facts.config
    falls = len(facts.val) > 1 and facts.val[-1] < 0.99 * facts.val[-2] and not facts.stopped_early
    remedies = [longer(facts).expecting(_lower(facts))] if falls else []
    if c is None or not c.pretrained:
        bigger = {"n_layer": 2 * c.n_layer, "n_head": 2 * c.n_head, "n_embd": 2 * c.n_embd} if c else {}
        remedies.append(change(_("a larger model"), "6.4, strategy 1", c, **bigger).expecting(_lower(facts)))
    weaker = {key: rounded(getattr(c, key) / 2) for key in ("dropout", "weight_decay") if c and getattr(c, key) > 0}
    if c is None or weaker:
        remedies.append(change(_("less regularisation"), "6.4, strategy 2", c, **weaker))
    if not falls and not facts.stopped_early:
        remedies.append(longer(facts))
    rate, usual = facts.peak_rate or facts.rule_of_thumb, facts.rule_of_thumb
    if rate <= usual:
        remedies.append(set_rate(facts, usual if rate < usual / 3 else 3 * rate))
    what = _("check the data: read some of it as the model does, and see how much there is")
    return [*remedies, Remedy(what, "6.4, strategy 5")]


def generalise(facts: Facts) -> list[Remedy]:
    """Against overfitting, in the order of 6.3; but regularisation comes last if the text had hardly been repeated at
    the best evaluation, since it makes a model learn more slowly, which pays only over many epochs.
    """
    c = facts.config
    dropout = {"dropout": min(MOST_DROPOUT, rounded((c.dropout or 0.1) + 0.1))} if c else {}
    decay = {"weight_decay": rounded(2 * c.weight_decay) or 0.1} if c else {}
    stop = {"early_stopping_patience": PATIENCE} if c else {}
    stops = c is not None and c.early_stopping_patience is not None
    ended = facts.ended_by(PATIENCE)  # a plateau before the best evaluation would have ended the run there
    keeps = ended is None or ended > facts.eval_steps[facts.best]
    low, end, seen = facts.lowest, facts.val[-1], facts.epochs_at(facts.eval_steps[facts.best])
    repeated = seen is None or seen >= REPEATS
    if repeated:
        expected = _("at the end about {low:.2f}, the lowest of this run, not {end:.2f}", low=low, end=end)
    else:
        expected = _(
            "a trade-off: an end nearer to {low:.2f} than {end:.2f}, but no lower lowest loss; the model learns more "
            "slowly, and the text had been seen {times:.1f} times only",
            low=low, end=end, times=seen,
        )  # fmt: skip
    regularise = [change(_("more weight decay"), "6.3, strategy 2", c, **decay), smaller(facts)]
    if c is None or c.dropout < MOST_DROPOUT:
        regularise.insert(0, change(_("more dropout"), "6.3, strategy 1", c, **dropout))
    regularise[0] = regularise[0].expecting(expected)
    remedies = [
        *(regularise if repeated else [sooner(facts)]),
        more_text(facts),
        *([sooner(facts)] if repeated else regularise),
        None
        if stops or not keeps
        else change(_("stop when the validation loss no longer falls"), "6.3, strategy 5", c, **stop),
    ]
    return [remedy for remedy in remedies if remedy is not None]


def smaller(facts: Facts) -> Remedy:
    """Reduce the model's depth and width to two thirds."""
    c = facts.config
    return change(_("a smaller model"), "6.3, strategy 3", c, **(smaller_model(c) if c else {}))


def more_text(facts: Facts) -> Remedy:
    """Use more data."""
    what = _("more text, which helps most: a larger file, a folder of files, or a Hub dataset")
    expected = _("a lowest validation loss below {loss:.2f}", loss=facts.lowest)
    return Remedy(what, "6.3, strategy 4", f"--dataset={_('PATH_OR_HUB_ID')}").expecting(expected)


def unclip(facts: Facts, norms: Sequence[float]) -> list[Remedy]:
    """Against gradients that are always clipped; `norms` are those after the warm-up."""
    c, limit = facts.config, rounded(2 * statistics.median(norms))
    assert c is not None, "without a recipe grad_clip is not known"
    more = 2 * c.gradient_accumulation_steps
    share = sum(norm > limit for norm in norms) / len(norms)
    expected = _("about {share:.0%} of the steps are clipped", share=share)
    return [
        change(_("clip only the outliers"), "3.3", c, grad_clip=limit).expecting(expected),
        set_rate(facts, c.learning_rate / 2),
        change(_("a larger batch, whose gradients are steadier"), "1.3", c, gradient_accumulation_steps=more),
    ]


def feed(facts: Facts, computing: float) -> list[Remedy]:
    """Against waiting for data (6.2); `computing` is the rest of a step, in seconds."""
    c, remedies = facts.config, []
    if c is None or c.streaming:
        remedies.append(change(_("prepare the data once instead of streaming it"), "6.2", c, streaming=False))
    larger = {"batch_size": 2 * c.batch_size} if c else {}
    remedies += [
        Remedy(_("keep the corpus and its cache on a fast local disk"), "6.2"),
        change(_("fewer, larger steps"), "6.2, strategy 2", c, **larger),
    ]
    expected = _("a step of about {time}, without the waiting", time=duration(computing))
    return [remedies[0].expecting(expected), *remedies[1:]]
