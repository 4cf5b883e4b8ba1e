"""Micro-batches that fit in memory, and other ways to save memory (chapter 1.3, 6.1).

In:  a Survey of the recipe and the Target that it runs on.
Out: :class:`Fit`, the largest micro-batch that fits; :class:`Remedy`, what each of the chapter's remedies saves here;
     :class:`Recommendation`, a recipe that fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hfgpt.base.language import N_, _
from hfgpt.base.units import divisors
from hfgpt.config import Config
from hfgpt.plan import memory as memories
from hfgpt.plan.chapter import CHAPTER_BATCHES
from hfgpt.plan.memory import Memory
from hfgpt.plan.survey import Survey
from hfgpt.plan.target import Target
from hfgpt.runs.facts import smaller_model

GIB = 2**30


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch that fits, with the accumulation that keeps the global batch.

    `memory` is that of one process; if not even one sequence fits, `fits` is false and `memory` is for one.
    """

    batch_size: int
    gradient_accumulation_steps: int
    memory: Memory
    fits: bool


def fit(survey: Survey, target: Target) -> Fit:
    """Find the largest micro-batch whose step fits the device; it divides each process's share of the global batch.

    On a CPU it is at most the recipe's, since a larger one is not faster there.
    """
    total = survey.config.global_batch
    share = total // target.processes
    largest = survey.config.micro_batch(target.processes) if target.kind == "cpu" else share
    for size in divisors(share, largest):
        needed = memory(with_batch(survey, size), target)
        if needed.needed <= target.memory_bytes or size == 1:
            return Fit(size, total // size, needed, needed.needed <= target.memory_bytes)
    raise AssertionError("a share holds at least one sequence")


def with_batch(survey: Survey, size: int) -> Survey:
    """Split the global batch into micro-batches of another size, which must divide it."""
    total = survey.config.global_batch
    return change(survey, batch_size=size, gradient_accumulation_steps=total // size)


def change(survey: Survey, **values: Any) -> Survey:
    """Return the survey of the recipe with other values for the model, batch or schedule."""
    size = values.get("vocab_size") or survey.vocab_size
    return replace(survey, config=survey.config.model_copy(update=values), vocab_size=size)


def memory(survey: Survey, target: Target) -> Memory:
    """Return the memory of a step in one process of a target."""
    per_process = survey.config.of_process(target.processes)
    return memories.estimate(per_process, survey.vocab_size, target.kind, target.dtype, target.processes)


@dataclass(frozen=True)
class Remedy:
    """A way to save memory (chapter 6.1) and its effect on this recipe."""

    name: str  # what is done
    change: dict[str, Any]  # the values to set; empty if the remedy does not apply here
    memory: Memory | None  # of one process, with the change; None if there is no change
    chapter: str  # the saving that the chapter states
    price: str  # what it costs
    applied: bool = False  # whether the recipe already has it


def remedies(survey: Survey, target: Target) -> list[Remedy]:
    """Return the remedies of the chapter's decision tree (6.1), in order, each alone, and activation checkpointing."""
    config = survey.config
    rows = [
        (N_("smaller batch"), _halved_batch(config), N_("about 50%"), N_("fewer sequences a step: noisier gradients")),
        (N_("accumulate"), _accumulated(config), "75%", N_("slower if the device was not full; the same steps")),
        (N_("shorter block"), _halved(config, "block_size"), N_("about 60%"), N_("the model sees less context")),
        (N_("smaller model"), smaller_model(config), N_("about 60%"), N_("a less able model")),
        (N_("16-bit arithmetic"), narrower(target), "50%", N_("hardly any; the weights stay in float32")),
        (N_("smaller vocabulary"), _smaller_vocabulary(config), N_("for words only"), N_("longer token sequences")),
        (
            N_("activation checkpointing"),
            {} if config.activation_checkpointing else {"activation_checkpointing": True},
            N_("not mentioned"),
            N_("about a third more time"),
        ),
    ]
    applied = {
        "16-bit arithmetic": target.dtype != "float32",
        "activation checkpointing": config.activation_checkpointing,
    }
    out = []
    for name, values, chapter, price in rows:
        changed = replace(target, dtype=values.get("dtype", target.dtype))
        after = memory(change(survey, **values), changed) if values else None
        out.append(Remedy(name, values, after, chapter, price, applied.get(name, False)))
    return out


def _halved(config: Config, key: str) -> dict[str, Any]:
    value = getattr(config, key)
    return {key: value // 2} if value > 1 else {}


def _halved_batch(config: Config) -> dict[str, Any]:
    return _halved(config, "batch_size") if config.batch_size % 2 == 0 else {}


def _accumulated(config: Config) -> dict[str, Any]:
    """A quarter of the micro-batch (or nearest divisor), with accumulation to match (chapter 1.3: 64 → 16)."""
    sizes = sorted(divisors(config.batch_size, config.batch_size - 1))
    if not sizes:
        return {}
    size = min(sizes, key=lambda size: abs(size - config.batch_size / 4))
    return {"batch_size": size, "gradient_accumulation_steps": config.global_batch // size}


def narrower(target: Target) -> dict[str, Any]:
    """16-bit arithmetic, if it is fast on the device and the recipe does not use it yet."""
    return {"dtype": target.narrow} if target.dtype == "float32" and target.narrow else {}


def _smaller_vocabulary(config: Config) -> dict[str, Any]:
    return {"vocab_size": max(257, config.vocab_size // 2)} if config.vocab_size and not config.pretrained else {}


@dataclass(frozen=True)
class Recommendation:
    """A recipe that fits."""

    survey: Survey  # of the recommended recipe, with the largest micro-batch that fits
    fit: Fit  # that batch
    needs: list[str]  # the remedies without which no batch fits, in order of application
    reasons: dict[str, str]  # the reason for each recommended value


def recommend(survey: Survey, target: Target, reasons: dict[str, str] | None = None) -> Recommendation:
    """Recommend the recipe with the largest micro-batch that fits; if nothing fits, apply remedies first.

    The least costly remedies come first; one that saves less than a tenth is skipped.

    Args:
        survey: the recipe.
        target: the device.
        reasons: the reasons for its values, if they were recommended.
    """
    reasons, needs = dict(reasons or {}), list[str]()
    best = fit(survey, target)
    for name in ("16-bit arithmetic", "activation checkpointing", "shorter block", "smaller model"):
        while not best.fits:
            values = next(remedy.change for remedy in remedies(survey, target) if remedy.name == name)
            smaller, narrower = change(survey, **values), replace(target, dtype=values.get("dtype", target.dtype))
            then = fit(smaller, narrower)
            if not values or then.memory.needed > 0.9 * best.memory.needed:
                break
            survey, target, best = smaller, narrower, then
            needs.append(name)
            reasons |= dict.fromkeys(values, _("to fit the memory (chapter 6.1)"))
    survey = with_batch(survey, best.batch_size)
    if best.fits and "batch_size" not in reasons:
        limit, sequences = f"{target.memory_bytes / GIB:.4g} GiB", f"{survey.config.global_batch:,}"
        reasons["batch_size"] = _("fits {memory}; {n} sequences a step", memory=limit, n=sequences)
        reasons["gradient_accumulation_steps"] = _("{n} sequences a step", n=sequences)
    return Recommendation(survey, best, needs, reasons)


def fits_by_memory(survey: Survey, target: Target) -> Iterator[tuple[int, tuple[int, int], Fit]]:
    """Return each row of the chapter's table: memory in GiB, the chapter's batch, and what fits for this recipe."""
    for gib, size, steps in CHAPTER_BATCHES:
        yield gib, (size, steps), fit(survey, replace(target, memory_bytes=gib * GIB))
