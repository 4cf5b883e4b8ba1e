"""Micro-batches that fit in memory, and other ways to save memory or time (chapter 1.3, 6.1, 6.2).

In:  a Survey of the recipe and the Target that it runs on.
Out: :class:`Fit`, the largest micro-batch that fits; :class:`Way`, what each of the chapter's ways saves here;
     :class:`Recommendation`, a recipe that fits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hfgpt.base.language import N_, _
from hfgpt.base.units import divisors
from hfgpt.config import Config
from hfgpt.plan import memory as memories
from hfgpt.plan import timing
from hfgpt.plan.chapter import CHAPTER_BATCHES
from hfgpt.plan.memory import Memory
from hfgpt.plan.survey import Survey
from hfgpt.plan.target import Target, find_target
from hfgpt.runs.facts import smaller_model

GIB = 2**30
NARROWER, CHECKPOINTING = N_("16-bit arithmetic"), N_("activation checkpointing")


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
    compiled = timing.compiles(survey.config, target)
    return memories.estimate(per_process, survey.vocab_size, target.kind, target.dtype, target.processes, compiled)


@dataclass(frozen=True)
class Way:
    """A way to save memory (chapter 6.1) or time (6.2), and its effect on this recipe."""

    name: str  # what is done
    change: dict[str, Any]  # the values to set; empty if the way does not apply here
    chapter: str  # the gain that the chapter states; "" if it does not mention this way
    price: str  # what it costs
    memory: Memory | None = None  # of one process, with the change; None if nothing changes
    seconds: float | None = None  # the whole run with the change, if it is to save time
    applied: bool = False  # whether the recipe already has it


def remedies(survey: Survey, target: Target) -> list[Way]:
    """Return the ways of the chapter's decision tree (6.1), in order, each alone, and activation checkpointing."""
    config = survey.config
    shared = config.batch_size % 2 == 0 and config.global_batch // 2 % target.processes == 0
    halved = {"batch_size": config.batch_size // 2} if shared else {}
    shorter = {"block_size": config.block_size // 2} if config.block_size > 1 else {}
    fewer = {"vocab_size": max(257, config.vocab_size // 2)} if config.vocab_size and not config.pretrained else {}
    checkpointing = {} if config.activation_checkpointing else {"activation_checkpointing": True}
    rows: list[tuple[str, dict[str, Any], str, str]] = [
        (N_("smaller batch"), halved, N_("about 50%"), N_("fewer sequences a step: noisier gradients")),
        (N_("accumulate"), _accumulated(config), "75%", N_("slower if the device was not full; the same steps")),
        (N_("shorter block"), shorter, N_("about 60%"), N_("the model sees less context")),
        (N_("smaller model"), smaller_model(config), N_("about 60%"), N_("a less able model")),
        (NARROWER, narrower(target), "50%", N_("hardly any; the weights stay in float32")),
        (N_("smaller vocabulary"), fewer, N_("for words only"), N_("longer token sequences")),
        (CHECKPOINTING, checkpointing, N_("not mentioned"), N_("about a third more time")),
    ]
    applied = {NARROWER: target.dtype != "float32", CHECKPOINTING: config.activation_checkpointing}
    out = []
    for name, values, chapter, price in rows:
        changed = replace(target, dtype=values.get("dtype", target.dtype))
        after = memory(change(survey, **values), changed) if values else None
        out.append(Way(name, values, chapter, price, after, applied=applied.get(name, False)))
    return out


def ways(survey: Survey, target: Target, total: float) -> list[Way]:
    """Return the chapter's ways to a faster run in its order (6.2), each by itself, and two that it does not mention.

    With a larger batch_size the run sees the same number of tokens in fewer steps. The run with and without a change is
    priced alike; the ratio is applied to `total`, the run's seconds, which may be measured.
    """
    config = survey.config
    scale = total / timing.time(survey, _target_of(target, survey, {})).total_seconds
    # Not priced on a CPU, where compilation takes longer than it saves in a short run.
    compiled = {"compile": True} if target.kind == "accelerator" and not timing.compiles(config, target) else {}
    rows: list[tuple[str, dict[str, Any], str, str]] = [
        (N_("compile"), compiled, N_("1.5 to 2 times"), N_("a minute or two at the start")),
        (N_("larger batch_size"), _larger(config), N_("about 1.5 times"), N_("more memory; fewer, smoother steps")),
        (N_("evaluate less often"), {"eval_interval": config.eval_interval * 2}, N_("less time evaluating"),
         N_("the best model is found less exactly")),
        (N_("record less often"), {"log_interval": config.log_interval * 10}, N_("less time printing"),
         N_("a coarser curve")),
        (N_("smaller model"), smaller_model(config), N_("a quick test of an idea"), N_("a less able model")),
        (N_("evaluate on less"), {"eval_iters": config.eval_iters // 4} if config.eval_iters >= 8 else {}, "",
         N_("a noisier validation loss")),
        (NARROWER, narrower(target), "", N_("hardly any; the weights stay in float32")),
    ]  # fmt: skip
    applied = {"compile": timing.compiles(config, target), NARROWER: target.dtype != "float32"}
    out = []
    for name, values, chapter, price in rows:
        way = Way(name, values, chapter, price, applied=applied.get(name, False))
        if values:
            changed = change(survey, **values)
            own = _target_of(target, changed, values)
            seconds = timing.time(changed, own).total_seconds * scale
            way = replace(way, memory=memory(changed, own), seconds=seconds)
        out.append(way)
    return out


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


def _target_of(target: Target, survey: Survey, change: dict[str, Any]) -> Target:
    """Return the device for the changed recipe, whose width and dtype decide the arithmetic."""
    if target.kind == "cpu":
        return find_target(survey.config, processes=target.processes)
    if "dtype" in change:
        return find_target(survey.config, target.name, target.memory_bytes, target.processes)
    return target


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
        reasons: the reasons for its values, if they were recommended.
    """
    reasons, needs = dict(reasons or {}), list[str]()
    best = fit(survey, target)
    for name in (NARROWER, CHECKPOINTING, "shorter block", "smaller model"):
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
