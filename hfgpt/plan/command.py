"""A recipe planned: everything that can be said of a run before it starts, as tables or as data.

In:  the words after ``python scripts/plan.py``: a recipe, overrides, and the options of :data:`OPTIONS`.
Out: tables for a person, or with --json the same figures by name.

Without --probe and --simulate nothing is measured and torch is not loaded.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgpt.base.errors import InputError
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.plan import advise, estimate
from hfgpt.plan.advise import Recommendation
from hfgpt.plan.estimate import Measured, Memory, Target, Time
from hfgpt.plan.survey import Survey, survey


@dataclass(frozen=True)
class Options:
    """What plan.py was asked, checked. Sizes in bytes, times in seconds."""

    json: bool = False
    probe: bool = False
    simulate: bool = False
    vram: int | None = None
    gpu: str | None = None
    time_budget: int | None = None
    data: str | None = None
    write: Path | None = None
    price_per_hour: float | None = None
    processes: int = 1


# ------------------------------------------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class Plan:
    """All that is known of a recipe before it runs.

    `simulated` and `measured` are the peak memory of a simulated step and of a probed one; `designed` says whether the
    recommendation is made for a time or a text.
    """

    found: Survey
    on: Target
    memory: Memory
    simulated: int | None
    measured: int | None
    time: Time
    recommendation: Recommendation
    designed: bool


def make(config: Config, options: Options) -> Plan:
    """Plan a recipe.

    Raises:
        InputError: the recipe's data, model or device cannot be used, or contradicts the options.
    """
    if options.data:
        config = config.model_copy(update={"dataset": options.data, "dataset_config": None, "streaming": False})
    found = survey(config)
    on = estimate.target(found.config, options.gpu, options.vram, options.processes)
    memory = advise.memory(found, on)
    measured = _probe(found, options.processes) if options.probe else None
    time = estimate.time(found, on, measured)
    if measured:  # from here on, other shapes are taken to reach what this one does
        note = f"measured by a probe{_beside_other_work()}"
        on = dataclasses.replace(on, peak=measured.peak or on.peak, utilisation=time.mfu, note=note)
    design = advise.design(found, on, options.time_budget) if options.time_budget or options.data else None
    return Plan(
        found=found,
        on=on,
        memory=memory,
        simulated=_simulate(found, on) if options.simulate else None,
        measured=measured.peak_bytes if measured else None,
        time=time,
        recommendation=advise.recommend(*((design.found, on, design.reasons) if design else (found, on))),
        designed=design is not None,
    )


def _probe(found: Survey, processes: int) -> Measured:
    from hfgpt.base import threads

    threads.configure(found.config.cpu_threads)  # before torch is loaded
    from hfgpt.plan import probe

    return probe.probe(found, processes)


def _beside_other_work() -> str:
    """A warning where more than this process was busy in the last minute: what was measured is then its time too."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = os.cpu_count() or 1  # torch has bound this process to its own by now
    return (
        f"; this machine is busy (load {load:.1f} on {cores} cores), alone it is faster" if load > cores + 0.5 else ""
    )


def _simulate(found: Survey, on: Target) -> int:
    from hfgpt.plan import simulate

    size = found.config.micro_batch(on.processes)
    steps = found.config.global_batch // on.processes // size
    own = {"batch_size": size, "gradient_accumulation_steps": steps, "init_from": "scratch"}
    return simulate.peak(found.config.model_copy(update=own), found.vocab_size, on.kind, on.dtype).bytes


def write(plan: Plan, path: Path, recipe: str | None) -> Config:
    """Write the recommended recipe, with its reasons and what it is expected to take.

    Raises:
        InputError: nothing fits, the file exists, or it cannot be written.
    """
    advice = plan.recommendation
    if not advice.fit.fits:
        raise InputError(
            f"write = {str(path)!r}: nothing that fits {plan.on.memory_bytes / 2**30:.4g} GiB was found → give more "
            "memory, or start from a smaller recipe"
        )
    config = advice.found.config
    if config.out_dir == f"out/{Path(recipe).stem if recipe else 'run'}":
        config = config.model_copy(update={"out_dir": None})
    seconds = estimate.time(advice.found, plan.on).total_seconds
    count = sizes.parameters(config, advice.found.vocab_size).total
    head = (
        f"{path.stem}: planned from {recipe or 'the defaults'} for {plan.on.name}\n\n"
        f"  accelerate launch scripts/train.py {path}\n\n"
        f"{count:,} parameters; about {seconds / 60:,.1f} min; memory of a process about "
        f"{advice.fit.memory.needed / 2**30:.2f} GiB. Estimated, not measured."
    )
    return advise.write_recipe(path, config, advice.reasons, head)


# ------------------------------------------------------------------------------------------------------ as data


def as_json(plan: Plan, options: Options) -> dict[str, Any]:
    """The plan's figures by name; bytes, seconds, FLOP/s."""
    found, on, memory = plan.found, plan.on, plan.memory
    rules = estimate.rules_of_thumb(found.config)
    parameters = sizes.parameters(found.config, found.vocab_size)
    return {
        "vocabulary": {"size": found.vocab_size, "source": found.vocabulary},
        "parameters": {
            **dataclasses.asdict(parameters),
            "total": parameters.total,
            "rule_of_thumb": rules.parameters,
        },
        "tokens": {
            **dataclasses.asdict(estimate.tokens(found)),
            "corpus": found.train_tokens,
            "corpus_is_approximate": found.approximate,
            "compute_optimal": estimate.COMPUTE_OPTIMAL * parameters.total,
        },
        "device": dataclasses.asdict(on),
        "memory": {
            **_memory_json(memory),
            "device_bytes": on.memory_bytes,
            "fits": memory.needed <= on.memory_bytes,
            "simulated_peak_bytes": plan.simulated,
            "measured_peak_bytes": plan.measured,
            "rule_of_thumb_bytes": rules.memory_bytes,
        },
        "time": {**dataclasses.asdict(plan.time), "rule_of_thumb_seconds_per_step": rules.seconds_per_step},
        "cost": dataclasses.asdict(estimate.cost(plan.time, on, options.price_per_hour)),
        "recommendation": _recommendation_json(plan),
        "remedies": [
            {
                "name": remedy.name,
                "change": remedy.change,
                "peak_bytes": remedy.memory.peak if remedy.memory else None,
                "chapter": remedy.chapter,
                "price": remedy.price,
            }
            for remedy in advise.remedies(found, on)
        ],
    }


def _memory_json(memory: Memory) -> dict[str, Any]:
    figures = dataclasses.asdict(memory)
    binding = figures.pop("binding")
    return {f"{key}_bytes": value for key, value in figures.items()} | {
        "needed_bytes": memory.needed,
        "binding": binding,
    }


def _recommendation_json(plan: Plan) -> dict[str, Any]:
    advice, before = plan.recommendation, plan.found.config
    after, time = advice.found.config.model_dump(), estimate.time(advice.found, plan.on)
    chapter = advise.chapter_batch(plan.on.memory_bytes)
    return {
        "batch_size": advice.fit.batch_size,
        "gradient_accumulation_steps": advice.fit.gradient_accumulation_steps,
        "fits": advice.fit.fits,
        "peak_bytes": advice.fit.memory.peak,
        "needed_bytes": advice.fit.memory.needed,
        "changes": {key: value for key, value in after.items() if value != getattr(before, key)},
        "reasons": advice.reasons,
        "remedies_needed": advice.needs,
        "chapter": dict(zip(("batch_size", "gradient_accumulation_steps"), chapter, strict=True)),
        "seconds_per_step": time.seconds_per_step,
        "total_seconds": time.total_seconds,
    }
