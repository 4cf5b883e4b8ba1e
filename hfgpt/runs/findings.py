"""What a diagnosis consists of: findings with their evidence, and remedies with what to type.

In:  a recipe, and new values for some of its fields.
Out: remedies whose override can be added to the command as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hfgpt.base.language import N_, _
from hfgpt.config import Config

Kind = Literal[
    "diverged", "learning_rate_too_high", "overfitting", "data_starved", "learning_rate_too_low", "underfitting",
    "clipping_always", "input_bound", "healthy",
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
    "healthy": N_("healthy"),
}


@dataclass(frozen=True)
class Remedy:
    """One thing to try.

    Attributes:
        what: what to do and why, with the old and the new values if there is a recipe.
        chapter: the section that says so.
        override: what to add to the command; None if it is not a matter of parameters.
        directions: for each number that it changes, whether it raises (1) or lowers (-1) it.
    """

    what: str
    chapter: str
    override: str | None = None
    directions: dict[str, int] = field(default_factory=dict)

    def contradicts(self, other: Remedy) -> bool:
        """Whether the two move one parameter in opposite directions."""
        return any(other.directions.get(key) == -direction for key, direction in self.directions.items())


@dataclass(frozen=True)
class Finding:
    """One thing that happened in a run, in sentences, and what to do about it."""

    kind: Kind
    since_step: int
    evidence: str
    remedies: list[Remedy] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The kind, in the language in use."""
        return _(TITLES[self.kind])


def change(what: str, section: str, config: Config | None, **new: Any) -> Remedy:
    """A remedy that sets fields, and what must follow them; without a recipe it has no values."""
    if config is None or not new:
        return Remedy(what, section)
    values = ", ".join(f"{key} {getattr(config, key)} → {value}" for key, value in new.items())
    numbers = {key: value for key, value in new.items() if _is_number(value) and _is_number(getattr(config, key))}
    return Remedy(
        _("{what}: {values}", what=what, values=values),
        section,
        " ".join(_typed(*item) for item in {**new, **following(config, new)}.items()),
        {key: 1 if value > getattr(config, key) else -1 for key, value in numbers.items()},
    )


def following(config: Config, new: dict[str, Any]) -> dict[str, Any]:
    """The fields that keep their proportion to those that change: the schedule to the length, rates to the rate."""
    fields: dict[str, Any] = {}
    if "max_iters" in new and config.lr_decay_iters:
        fields["lr_decay_iters"] = max(1, round(config.lr_decay_iters * new["max_iters"] / config.max_iters))
        if 2 * (config.warmup_iters or 0) >= fields["lr_decay_iters"]:
            fields["warmup_iters"] = fields["lr_decay_iters"] // 20
    if "learning_rate" in new:
        factor = new["learning_rate"] / config.learning_rate
        if config.min_lr:
            fields["min_lr"] = rounded(config.min_lr * factor)
        if config.optimizer == "muon":
            fields["muon_learning_rate"] = rounded(config.muon_learning_rate * factor)
    return fields


def rounded(value: float) -> float:
    """Two digits of a value: more would pretend to be measured."""
    return float(f"{value:.2g}")


def _typed(key: str, value: Any) -> str:
    """A field's value as it is typed on the command line."""
    if isinstance(value, bool):
        return f"--{key}" if value else f"--no_{key}"
    return f"--{key}={value}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
