"""Ways to make a run faster (chapter 6.2), each computed for the recipe.

In:  a Survey of the recipe and the Target that it runs on.
Out: :class:`Way`: the values to set, the resulting time and memory, what the chapter says about it, what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hfgpt.base.language import N_
from hfgpt.config import Config
from hfgpt.plan import batches, timing
from hfgpt.plan.survey import Survey
from hfgpt.plan.target import Target, find_target
from hfgpt.runs.facts import smaller_model


@dataclass(frozen=True)
class Way:
    """One way to a faster run."""

    name: str  # what is done
    change: dict[str, Any]  # the values to set; empty if the way does not apply here
    seconds: float | None  # the whole run with the change; None if there is no change
    memory_bytes: int | None  # peak of a step with the change; None if there is no change
    chapter: str  # the gain that the chapter states; "" if it does not mention this way
    price: str  # what it costs
    applied: bool = False  # whether the recipe already has it


def ways(survey: Survey, target: Target, total: float) -> list[Way]:
    """Return the chapter's ways in its order (6.2), each by itself, and two that it does not mention.

    With a larger batch_size the run sees the same number of tokens in fewer steps. The run with and without a change is
    priced alike; the ratio is applied to `total`, the run's seconds, which may be measured.
    """
    config = survey.config
    scale = total / timing.time(survey, _target(target, survey, {})).total_seconds
    rows = [
        (N_("compile"), _compiled(config, target), N_("1.5 to 2 times"), N_("a minute or two at the start")),
        (N_("larger batch_size"), _larger(config), N_("about 1.5 times"), N_("more memory; fewer, smoother steps")),
        (N_("evaluate less often"), {"eval_interval": config.eval_interval * 2}, N_("less time evaluating"),
         N_("the best model is found less exactly")),
        (N_("record less often"), {"log_interval": config.log_interval * 10}, N_("less time printing"),
         N_("a coarser curve")),
        (N_("smaller model"), smaller_model(config), N_("a quick test of an idea"), N_("a less able model")),
        (N_("evaluate on less"), {"eval_iters": config.eval_iters // 4} if config.eval_iters >= 8 else {}, "",
         N_("a noisier validation loss")),
        (N_("16-bit arithmetic"), batches.narrower(target), "", N_("hardly any; the weights stay in float32")),
    ]  # fmt: skip
    applied = {"compile": timing.compiles(config, target), "16-bit arithmetic": target.dtype != "float32"}
    return [replace(_way(survey, target, scale, *row), applied=applied.get(row[0], False)) for row in rows]


def _way(
    survey: Survey, target: Target, scale: float, name: str, change: dict[str, Any], chapter: str, price: str
) -> Way:
    if not change:
        return Way(name, change, None, None, chapter, price)
    changed = batches.change(survey, **change)
    changed_target = _target(target, changed, change)
    seconds = timing.time(changed, changed_target).total_seconds * scale
    return Way(name, change, seconds, batches.memory(changed, changed_target).peak, chapter, price)


def _target(target: Target, survey: Survey, change: dict[str, Any]) -> Target:
    """Return the device for the changed recipe, whose width and dtype decide the arithmetic."""
    if target.kind == "cpu":
        return find_target(survey.config, processes=target.processes)
    if "dtype" in change:
        return find_target(survey.config, target.name, target.memory_bytes, target.processes)
    return target


def _compiled(config: Config, target: Target) -> dict[str, Any]:
    """Not priced on a CPU, where compilation takes longer than it saves in a short run."""
    return {"compile": True} if target.kind == "accelerator" and not timing.compiles(config, target) else {}


def _larger(config: Config) -> dict[str, Any]:
    """Double the micro-batch, with half the accumulation or, without accumulation, half the steps."""
    steps = config.gradient_accumulation_steps
    if steps % 2 == 0:
        return {"batch_size": config.batch_size * 2, "gradient_accumulation_steps": steps // 2}
    half = max(1, config.max_iters // 2)
    schedule = {
        "lr_decay_iters": max(1, (config.lr_decay_iters or half) // 2),
        "warmup_iters": (config.warmup_iters or 0) // 2,
    }
    return {"batch_size": config.batch_size * 2, "max_iters": half, **schedule}
