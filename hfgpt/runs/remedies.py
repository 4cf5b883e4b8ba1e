"""The chapter's remedies, in its order, with new values for a recipe.

In:  the facts of a run.
Out: remedies for one kind of trouble each (6.2, 6.3, 6.4, 3.1, 3.3).
"""

from __future__ import annotations

from hfgpt.base.language import _
from hfgpt.runs import rules_of_thumb
from hfgpt.runs.facts import Facts
from hfgpt.runs.findings import Remedy, change, rounded

FAR = 8.0  # times the learning rate of the rule of thumb, or that part of it

PATIENCE = 3  # evaluations that early stopping waits, if the recipe does not say


def set_rate(facts: Facts, rate: float) -> Remedy:
    """Another peak learning rate."""
    raises = facts.peak_rate is not None and rate > facts.peak_rate
    what = _("a higher learning rate") if raises else _("a lower learning rate")
    return change(what, "6.4, strategy 4; 3.1" if raises else "3.1", facts.config, learning_rate=rounded(rate))


def longer(facts: Facts) -> Remedy:
    """Twice the steps."""
    c = facts.config
    return change(_("train longer"), "6.4, strategy 3", c, **({"max_iters": 2 * c.max_iters} if c else {}))


def shorter(facts: Facts, best_step: int) -> Remedy:
    """The steps up to the best evaluation."""
    what = _("fewer steps, up to the best evaluation")
    return change(what, "6.3, strategy 5", facts.config, max_iters=max(best_step, 1))


def calmer(facts: Facts, strongly: bool) -> list[Remedy]:
    """Against oscillation and divergence: half the rate (or the rule of thumb, if it is far above), clipping, warm-up.

    Args:
        facts: the run's.
        strongly: a tenth of the rate instead of half of it.
    """
    c, rate = facts.config, facts.peak_rate or facts.rule_of_thumb
    lower = min(rate / (10 if strongly else 2), facts.rule_of_thumb if rate > FAR * facts.rule_of_thumb else rate)
    remedies = [set_rate(facts, lower)]
    if c is None or not 0 < c.grad_clip <= 1:
        remedies.append(change(_("clip the gradients"), "3.3", c, grad_clip=1.0))
    if c is None or (c.warmup_iters or 0) < c.max_iters // 10:
        warmup = {"warmup_iters": c.max_iters // 10} if c else {}
        remedies.append(change(_("a longer warm-up"), "4.1", c, **warmup))
    if c is not None and c.dtype == "float16":
        remedies.append(change(_("numbers of a wider range"), "6.1, strategy 5", c, dtype="float32"))
    return remedies


def fit_better(facts: Facts) -> list[Remedy]:
    """Against underfitting (6.4), in its order; the rate is raised to at most three times the rule of thumb."""
    c = facts.config
    remedies = []
    if c is None or not c.pretrained:
        bigger = {"n_layer": 2 * c.n_layer, "n_head": 2 * c.n_head, "n_embd": 2 * c.n_embd} if c else {}
        remedies.append(change(_("a larger model"), "6.4, strategy 1", c, **bigger))
    weaker = {key: rounded(getattr(c, key) / 2) for key in ("dropout", "weight_decay") if c and getattr(c, key) > 0}
    if c is None or weaker:
        remedies.append(change(_("less regularisation"), "6.4, strategy 2", c, **weaker))
    remedies.append(longer(facts))
    rate, usual = facts.peak_rate or facts.rule_of_thumb, facts.rule_of_thumb
    if rate <= usual:
        remedies.append(set_rate(facts, usual if rate < usual / 3 else 3 * rate))
    what = _("check the data: read some of it as the model does, and see how much there is")
    return [*remedies, Remedy(what, "6.4, strategy 5")]


def generalise(facts: Facts) -> list[Remedy]:
    """Against overfitting (6.3), in its order."""
    c = facts.config
    dropout = {"dropout": min(0.5, rounded((c.dropout or 0.1) + 0.1))} if c else {}
    decay = {"weight_decay": rounded(2 * c.weight_decay) or 0.1} if c else {}
    stop = {"early_stopping_patience": PATIENCE} if c else {}
    return [
        change(_("more dropout"), "6.3, strategy 1", c, **dropout),
        change(_("more weight decay"), "6.3, strategy 2", c, **decay),
        smaller(facts),
        more_text(),
        change(_("stop when the validation loss no longer falls"), "6.3, strategy 5", c, **stop),
    ]


def smaller(facts: Facts) -> Remedy:
    """Two thirds of the model's depth and width."""
    c = facts.config
    return change(_("a smaller model"), "6.3, strategy 3", c, **(rules_of_thumb.smaller_model(c) if c else {}))


def more_text() -> Remedy:
    """More data."""
    what = _("more text, which helps most: a larger file, a folder of files, or a Hub dataset")
    return Remedy(what, "6.3, strategy 4", "--dataset=PATH_OR_HUB_ID")


def unclip(facts: Facts, median: float) -> list[Remedy]:
    """Against gradients that are always clipped, whose median norm is given."""
    c = facts.config
    assert c is not None, "without a recipe grad_clip is not known"
    more = 2 * c.gradient_accumulation_steps
    return [
        change(_("clip only the outliers"), "3.3", c, grad_clip=rounded(2 * median)),
        set_rate(facts, c.learning_rate / 2),
        change(_("a larger batch, whose gradients are steadier"), "1.3", c, gradient_accumulation_steps=more),
    ]


def feed(facts: Facts) -> list[Remedy]:
    """Against waiting for data (6.2)."""
    c, remedies = facts.config, []
    if c is None or c.streaming:
        remedies.append(change(_("prepare the data once instead of streaming it"), "6.2", c, streaming=False))
    larger = {"batch_size": 2 * c.batch_size} if c else {}
    return [
        *remedies,
        Remedy(_("keep the corpus and its cache on a fast local disk"), "6.2"),
        change(_("fewer, larger steps"), "6.2, strategy 2", c, **larger),
    ]
