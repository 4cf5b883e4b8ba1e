"""The figures of a plan by name, for --json and the programs that read it.

In:  a Plan (hfgpt/plan/command.py).
Out: dictionaries, lists and numbers.
"""

import dataclasses
from typing import Any

from hfgpt.model import schedule, sizes
from hfgpt.plan import batches, chapter, timing
from hfgpt.plan.batches import Way
from hfgpt.plan.command import Options, Plan
from hfgpt.plan.memory import Memory


def as_json(plan: Plan, options: Options) -> dict[str, Any]:
    """Return the plan's figures by name, in bytes, seconds, FLOP/s and nats."""
    survey, target, memory = plan.survey, plan.target, plan.memory
    rules = chapter.rules_of_thumb(survey.config)
    parameters = sizes.parameters(survey.config, survey.vocab_size)
    return {
        "vocabulary": {"size": survey.vocab_size, "source": survey.vocabulary},
        "parameters": {**dataclasses.asdict(parameters), "total": parameters.total, "rule_of_thumb": rules.parameters},
        "tokens": {
            **dataclasses.asdict(chapter.tokens(survey)),
            "corpus": survey.train_tokens,
            "corpus_is_approximate": survey.approximate,
            "compute_optimal": chapter.COMPUTE_OPTIMAL * parameters.total,
        },
        "device": dataclasses.asdict(target),
        "memory": {
            **_memory_json(memory),
            "device_bytes": target.memory_bytes,
            "fits": plan.fits,
            "simulated_peak_bytes": plan.simulated,
            "measured_peak_bytes": plan.measured,
            "rule_of_thumb_bytes": rules.memory_bytes,
        },
        "time": {
            **dataclasses.asdict(plan.time),
            "measured": plan.time.measured,
            "rule_of_thumb_seconds_per_step": rules.seconds_per_step,
        },
        "cost": dataclasses.asdict(timing.cost(plan.time, target, options.price_per_hour)),
        "loss": dataclasses.asdict(plan.forecast) if plan.forecast else None,
        "schedule": schedule.points(survey.config),
        "recommendation": _recommendation_json(plan),
        "remedies": [
            {**_way_json(remedy), "peak_bytes": remedy.memory.peak if remedy.memory else None}
            for remedy in batches.remedies(survey, target)
        ],
        "faster": [
            {**_way_json(way), "seconds": way.seconds, "memory_bytes": way.memory.peak if way.memory else None}
            for way in batches.ways(survey, target, plan.time.total_seconds)
        ],
    }


def _way_json(way: Way) -> dict[str, Any]:
    return {key: getattr(way, key) for key in ("name", "change", "applied", "chapter", "price")}


def _memory_json(memory: Memory) -> dict[str, Any]:
    figures = dataclasses.asdict(memory)
    binding = figures.pop("binding")
    return {f"{key}_bytes": value for key, value in figures.items()} | {
        "needed_bytes": memory.needed,
        "needed_low_bytes": memory.needed_low,
        "needed_high_bytes": memory.needed_high,
        "binding": binding,
    }


def _recommendation_json(plan: Plan) -> dict[str, Any]:
    advice, before, choice = plan.recommendation, plan.before, plan.choice
    after = advice.survey.config.model_dump()
    time = timing.time(advice.survey, plan.target, choice.measured if choice else None)
    by_chapter = chapter.chapter_batch(plan.target.memory_bytes)
    return {
        "batch_size": advice.fit.batch_size,
        "gradient_accumulation_steps": advice.fit.gradient_accumulation_steps,
        "fits": advice.fit.fits,
        "peak_bytes": advice.fit.memory.peak,
        "needed_bytes": advice.fit.memory.needed,
        "changes": {key: value for key, value in after.items() if value != getattr(before, key)},
        "reasons": advice.reasons,
        "remedies_needed": advice.needs,
        "chapter": dict(zip(("batch_size", "gradient_accumulation_steps"), by_chapter, strict=True)),
        "seconds_per_step": time.seconds_per_step,
        "total_seconds": time.total_seconds,
        "low_seconds": time.low_seconds,
        "high_seconds": time.high_seconds,
        "loss": dataclasses.asdict(choice.forecast) if choice and choice.forecast else None,
        "second_best": choice.second_best if choice else None,
        "trial_seconds": choice.trial_seconds if choice else 0.0,
    }
