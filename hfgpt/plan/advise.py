"""What to change in a recipe: to fit a memory, a time, a corpus; and the recipe file that says so.

In:  a Survey of the recipe and the Target it runs on (hfgpt/plan/survey.py, hfgpt/plan/estimate.py).
Out: a batch that fits, what each of the chapter's remedies (6.1) would save here, a model and a length for the time and
     the text at hand (1.1, 1.3, 2.1, 2.3, 3.1), and a commented recipe.

The chapter's rules are stated as the chapter has them; beside each stands what is computed for this recipe.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.plan import estimate
from hfgpt.plan.estimate import Memory, Target
from hfgpt.plan.survey import Survey
from hfgpt.runs import rules_of_thumb

GIB = 2**30


# ------------------------------------------------------------------------------------------------------ memory


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch that fits, with the accumulation that keeps the global batch.

    `memory` is one process's; where not even one sequence fits, `fits` is false and it is that one's.
    """

    batch_size: int
    gradient_accumulation_steps: int
    memory: Memory
    fits: bool


def fit(found: Survey, on: Target) -> Fit:
    """The largest micro-batch whose step fits the device, dividing each process's share of the global batch.

    On a CPU no larger than the recipe's: a larger one is not faster there.
    """
    total = found.config.global_batch
    share = total // on.processes
    largest = found.config.micro_batch(on.processes) if on.kind == "cpu" else share
    for size in (size for size in range(largest, 0, -1) if share % size == 0):
        needed = memory(with_batch(found, size), on)
        if needed.needed <= on.memory_bytes or size == 1:
            return Fit(size, total // size, needed, needed.needed <= on.memory_bytes)
    raise AssertionError("a share holds at least one sequence")


def with_batch(found: Survey, size: int) -> Survey:
    """The same global batch in micro-batches of another size, which divides it."""
    total = found.config.global_batch
    return change(found, batch_size=size, gradient_accumulation_steps=total // size)


def change(found: Survey, **values: Any) -> Survey:
    """The survey of the recipe with other values of the model, batch or schedule."""
    size = values.get("vocab_size") or found.vocab_size
    return replace(found, config=found.config.model_copy(update=values), vocab_size=size)


def memory(found: Survey, on: Target) -> Memory:
    """Memory of a step in one process of a target."""
    config = found.config
    size = config.micro_batch(on.processes)
    steps = config.global_batch // on.processes // size
    own = config.model_copy(update={"batch_size": size, "gradient_accumulation_steps": steps})
    return estimate.memory(own, found.vocab_size, on.kind, on.dtype)


@dataclass(frozen=True)
class Remedy:
    """One thing to do about memory (chapter 6.1) and what it does to this recipe.

    Attributes:
        name: what is done.
        change: the values to set; empty where the remedy is not to be had here.
        memory: of one process, with the change; None without one.
        chapter: what the chapter says it saves.
        price: what it costs.
    """

    name: str
    change: dict[str, Any]
    memory: Memory | None
    chapter: str
    price: str


def remedies(found: Survey, on: Target) -> list[Remedy]:
    """The chapter's remedies in the order of its decision tree (6.1), each by itself, and activation checkpointing."""
    config = found.config
    rows = [
        ("smaller batch", _halved_batch(config), "about 50%", "fewer sequences a step: noisier gradients"),
        ("accumulate", _accumulated(config), "75%", "slower where the card was not full; the same steps"),
        ("shorter block", _halved(config, "block_size"), "about 60%", "the model sees less context"),
        ("smaller model", _smaller_model(config), "about 60%", "a less able model"),
        ("16-bit arithmetic", _narrow(on), "50%", "hardly any; float32 masters stay"),
        ("smaller vocabulary", _smaller_vocabulary(config), "for words only", "longer token sequences"),
        (
            "activation checkpointing",
            {} if config.activation_checkpointing else {"activation_checkpointing": True},
            "not mentioned",
            "about a third more time",
        ),
    ]
    out = []
    for name, values, chapter, price in rows:
        target = replace(on, dtype=values.get("dtype", on.dtype))
        after = memory(change(found, **values), target) if values else None
        out.append(Remedy(name, values, after, chapter, price))
    return out


def _halved(config: Config, key: str) -> dict[str, Any]:
    value = getattr(config, key)
    return {key: value // 2} if value > 1 else {}


def _halved_batch(config: Config) -> dict[str, Any]:
    return _halved(config, "batch_size") if config.batch_size % 2 == 0 else {}


def _accumulated(config: Config) -> dict[str, Any]:
    """A quarter of the micro-batch, or its nearest divisor, with as much more accumulation (chapter 1.3: 64 → 16)."""
    sizes = [size for size in range(1, config.batch_size) if config.batch_size % size == 0]
    if not sizes:
        return {}
    size = min(sizes, key=lambda size: abs(size - config.batch_size / 4))
    return {"batch_size": size, "gradient_accumulation_steps": config.global_batch // size}


def _smaller_model(config: Config) -> dict[str, Any]:
    """Two thirds of the layers and of the width (chapter 6.1: 6 → 4, 384 → 256)."""
    return rules_of_thumb.smaller_model(config)


def _narrow(on: Target) -> dict[str, Any]:
    return {"dtype": on.narrow} if on.dtype == "float32" and on.narrow else {}


def _smaller_vocabulary(config: Config) -> dict[str, Any]:
    return {"vocab_size": max(257, config.vocab_size // 2)} if config.vocab_size and not config.pretrained else {}


@dataclass(frozen=True)
class Recommendation:
    """A recipe that fits.

    Attributes:
        found: its survey, in the largest micro-batch that fits.
        fit: that batch.
        needs: the remedies without which no batch fits, in the order they were taken.
        reasons: why each recommended value is what it is.
    """

    found: Survey
    fit: Fit
    needs: list[str]
    reasons: dict[str, str]


def recommend(found: Survey, on: Target, reasons: dict[str, str] | None = None) -> Recommendation:
    """The recipe in the largest micro-batch that fits; with remedies taken first, where none does.

    Those remedies that lose least come first, and one that saves less than a tenth is passed over.

    Args:
        found: the recipe.
        on: the device.
        reasons: why its values are what they are, where they were recommended.
    """
    reasons, needs = dict(reasons or {}), list[str]()
    best = fit(found, on)
    for name in ("16-bit arithmetic", "activation checkpointing", "shorter block", "smaller model"):
        while not best.fits:
            values = next(remedy.change for remedy in remedies(found, on) if remedy.name == name)
            smaller, narrower = change(found, **values), replace(on, dtype=values.get("dtype", on.dtype))
            then = fit(smaller, narrower)
            if not values or then.memory.needed > 0.9 * best.memory.needed:
                break
            found, on, best = smaller, narrower, then
            needs.append(name)
            reasons |= dict.fromkeys(values, "to fit the memory (chapter 6.1)")
    found = with_batch(found, best.batch_size)
    if best.fits:
        sequences = f"{found.config.global_batch} sequences a step"
        why = f", {reasons['batch_size']}" if "batch_size" in reasons else ""
        reasons["batch_size"] = f"fits {on.memory_bytes / GIB:.4g} GiB; {sequences}{why}"
        reasons["gradient_accumulation_steps"] = sequences
    return Recommendation(found, best, needs, reasons)


# The chapter's table (1.3): memory in GiB, batch_size, gradient_accumulation_steps. 64 sequences a step each.
CHAPTER_BATCHES = ((4, 8, 8), (8, 16, 4), (16, 32, 2), (24, 64, 1))


def chapter_batch(memory_bytes: int) -> tuple[int, int]:
    """batch_size and gradient_accumulation_steps that the chapter recommends for a card of this memory (1.3)."""
    suitable = [row for row in CHAPTER_BATCHES if row[0] * GIB <= memory_bytes] or [CHAPTER_BATCHES[0]]
    return suitable[-1][1:]


def fits_by_memory(found: Survey, on: Target) -> Iterator[tuple[int, tuple[int, int], Fit]]:
    """For each row of the chapter's table: memory in GiB, the chapter's batch, and what fits of this recipe."""
    for gib, size, steps in CHAPTER_BATCHES:
        yield gib, (size, steps), fit(found, replace(on, memory_bytes=gib * GIB))


# ------------------------------------------------------------------------------------------------------ time and data

# n_layer, n_head, n_embd of the chapter's four recipes (7.1 to 7.4), and GPT-2 medium's.
SHAPES = ((2, 2, 128), (4, 4, 256), (6, 6, 384), (12, 12, 768), (24, 16, 1024))

# More passes over a text than this teach it by heart. The standard recipe makes 19 over the embedded corpus; repeated
# data helps nearly as new data does for 4, and hardly after 16 (Muennighoff et al. 2023, "Scaling data-constrained
# language models").
MOST_EPOCHS = 20

MOST_EPOCHS_PRETRAINED = 4  # a pretrained model learns a small text by heart sooner

LEAST_STEPS = 500  # the chapter's quick experiment


@dataclass(frozen=True)
class Design:
    """A recipe made for a time and a text: its survey, and why each value is what it is."""

    found: Survey
    reasons: dict[str, str]


def layers_for(corpus_bytes: int | None) -> int:
    """n_layer by the size of the text, as the chapter has it (2.1); 24 where the size is not known.

    The chapter says 6 below 10 MB, 12 from 10 to 100 MB, 24 above 1 GB; between the last two it is silent, and 12 is
    taken.
    """
    if corpus_bytes is None or corpus_bytes > 1e9:
        return 24
    return 6 if corpus_bytes < 10e6 else 12


def learning_rate_for(parameters: int, pretrained: bool) -> float:
    """The chapter's learning rates (3.1): by the number of parameters from scratch, 1e-4 for a pretrained model."""
    return rules_of_thumb.learning_rate(parameters, pretrained)


def design(found: Survey, on: Target, budget: float | None) -> Design:
    """Layers, heads, width, learning rate and length for the text at hand and, where given, a time.

    The largest of the chapter's shapes that the text deserves (2.1), that has no more parameters than it will see
    tokens, and that can see its compute-optimal tokens (20 a parameter), or MOST_EPOCHS of the text if those are
    fewer, in the time.

    Args:
        found: the recipe, whose block_size, batch and evaluation stay.
        on: the device; its memory binds the micro-batch.
        budget: seconds for the whole run; None: as long as it takes.

    Raises:
        InputError: not even the smallest model makes a useful number of steps in the time.
    """
    found, reasons = _modest_batch(found, on)
    deepest = layers_for(found.corpus_bytes)
    shapes = [found.config] if found.config.pretrained else [
        found.config.model_copy(update=dict(zip(("n_layer", "n_head", "n_embd"), shape, strict=True)))
        for shape in SHAPES
        if shape[0] <= deepest
    ]  # fmt: skip
    for config in reversed(shapes):
        candidate, fits = no_larger_batch(replace(found, config=config), on)
        steps, wanted, affordable = _steps(candidate, on, budget)
        count = sizes.parameters(config, found.vocab_size).total
        if fits and affordable >= wanted and (count <= most_tokens(candidate) or config.pretrained):
            break
    if steps < LEAST_STEPS // 5:
        raise InputError(
            f"time-budget: {max(0, steps)} steps of this batch are all that the smallest model makes in the time on "
            f"{on.name} → give more time, or a smaller batch_size, block_size or eval_iters"
        )
    done = _complete(candidate, on, steps, budget)
    return replace(done, reasons=done.reasons | reasons)


def _modest_batch(found: Survey, on: Target) -> tuple[Survey, dict[str, str]]:
    """Fewer sequences a step where LEAST_STEPS of them would be more than MOST_EPOCHS of a small text."""
    config = found.config
    most = most_tokens(found)
    if config.tokens_per_iter * LEAST_STEPS <= most:
        return found, {}
    sequences = max(1, int(most / (LEAST_STEPS * config.block_size * on.processes))) * on.processes
    reason = f"so that {LEAST_STEPS} steps do not see this small text too often"
    smaller = change(found, batch_size=sequences // on.processes, gradient_accumulation_steps=on.processes)
    return smaller, {"batch_size": reason}


def no_larger_batch(found: Survey, on: Target) -> tuple[Survey, bool]:
    """The recipe in the largest micro-batch that fits, but no larger than it says; and whether any fits."""
    best = fit(found, on)
    own = found.config.micro_batch(on.processes)
    return (with_batch(found, min(own, best.batch_size)) if best.fits else found), best.fits


def _steps(found: Survey, on: Target, budget: float | None) -> tuple[int, int, int]:
    """(steps to make, steps that the model and the text want, steps that the time allows)."""
    per_iter, most = found.config.tokens_per_iter, most_tokens(found)
    optimal: float = estimate.COMPUTE_OPTIMAL * sizes.parameters(found.config, found.vocab_size).total
    if found.config.pretrained:
        optimal = math.inf if math.isfinite(most) else 0  # what it knows already is not to be learnt again
    wanted = max(LEAST_STEPS, math.ceil(min(optimal, most) / per_iter))
    if budget is None:
        return wanted, wanted, wanted
    time = estimate.time(found, on)
    once = time.evaluation_seconds / estimate.evaluations(found.config)
    left = budget - min(11 * once, 0.2 * budget)  # ten evaluations and the first, or a fifth of the time
    affordable = int(left / time.seconds_per_step)
    longest = max(wanted, math.ceil(most / per_iter)) if math.isfinite(most) else affordable
    return min(affordable, longest), wanted, affordable


def most_tokens(found: Survey) -> float:
    """The most that is worth training on a text, counting each pass; infinite where its size is not known."""
    if found.train_tokens is None:
        return math.inf
    return (MOST_EPOCHS_PRETRAINED if found.config.pretrained else MOST_EPOCHS) * found.train_tokens


def _complete(found: Survey, on: Target, steps: int, budget: float | None) -> Design:
    """Fill in what follows from shape and steps, with the reasons."""
    config, reasons = found.config, dict[str, str]()
    count = sizes.parameters(config, found.vocab_size).total
    rate = learning_rate_for(count, config.pretrained)
    values: dict[str, Any] = {
        "learning_rate": rate,
        "min_lr": rate / 10,
        "max_iters": steps,
        "warmup_iters": configs.default_warmup(steps),
        "lr_decay_iters": steps * 4 // 5 if config.lr_schedule == "hold_cosine" else steps,
        "eval_interval": max(1, steps // 10),
    }
    once = estimate.time(found, on).evaluation_seconds / estimate.evaluations(config)
    if budget is not None and 11 * once > 0.2 * budget:
        values["eval_iters"] = max(1, int(config.eval_iters * 0.2 * budget / (11 * once)))
        reasons["eval_iters"] = "so that evaluating takes a fifth of the time at most"
    found = change(found, **values)
    tokens = estimate.tokens(found)
    epochs = f", {tokens.epochs:.3g} epochs" if tokens.epochs else ""
    size = "of unknown size" if found.corpus_bytes is None else f"{found.corpus_bytes / 1e6:,.1f} MB of text"
    if not config.pretrained:
        shape = (
            f"{count / 1e6:,.1f}M parameters; chapter 2.1: at most {layers_for(found.corpus_bytes)} layers for {size}"
        )
        reasons["n_layer"] = shape
        reasons["n_head"] = "channels of a head: 64, as in GPT-2 (chapter 2.2)"
        reasons["n_embd"] = "goes with n_layer in the chapter's recipes (2.3)"
    reasons["learning_rate"] = f"chapter 3.1, for {count / 1e6:,.1f}M parameters" + (
        " that are trained already" if config.pretrained else " from scratch"
    )
    within = "" if budget is None else f", {estimate.time(found, on).total_seconds / 60:,.1f} of {budget / 60:,.1f} min"
    reasons["max_iters"] = f"{tokens.total / 1e6:,.1f}M tokens, {tokens.per_parameter:.3g} a parameter{epochs}{within}"
    reasons["eval_interval"] = "ten evaluations"
    return Design(found, reasons)


# ------------------------------------------------------------------------------------------------------ the recipe file


def recipe_text(config: Config, reasons: Mapping[str, str], head: str) -> str:
    """A commented recipe that loads to this config: what differs from the defaults, and what has a reason.

    Args:
        config: resolved; out_dir is None where it follows from the recipe's name.
        reasons: why a value is what it is, by key.
        head: the comment that the file begins with.
    """
    plain = configs.build({}, "run")
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    for group, title in configs.GROUPS.items():
        entries = []
        for key in Config.model_fields:
            value = getattr(config, key)
            default = (getattr(plain, key), Config.model_fields[key].default)
            if configs.group_of(key) != group or (value in default and key not in reasons):
                continue
            unit = f" ({configs.unit_of(key)})" if configs.unit_of(key) else ""
            comment = f"{Config.model_fields[key].description}{unit}"
            comment += f". Here: {reasons[key]}" if key in reasons else ""
            entries += textwrap.wrap(comment, 110, initial_indent="# ", subsequent_indent="#   ")
            entries.append(f"{key}: {configs.yaml_scalar(value)}")
        if entries:
            lines += ["", f"# -- {title}", *entries]
    return "\n".join(lines) + "\n"


def write_recipe(path: Path, config: Config, reasons: Mapping[str, str], head: str) -> Config:
    """Write a recipe file and return the config that it loads to.

    Raises:
        InputError: there is such a file already, or it cannot be written.
    """
    if path.exists():
        raise InputError(f"write = {str(path)!r}: exists already → choose another name, or remove it first")
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(recipe_text(config, reasons, head), encoding="utf-8")
        written = configs.build(configs.read_recipe(temporary), path.stem)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"write = {str(path)!r}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return written
