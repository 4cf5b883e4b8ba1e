"""A recipe planned: everything that can be said of a run before it starts, as tables or as data.

In:  the words after ``python scripts/plan.py``: a recipe, overrides, and the options of :data:`OPTIONS`.
Out: tables for a person, or with --json the same figures by name.

Without --probe and --simulate nothing is measured and torch is not loaded.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgpt import config as configs
from hfgpt.base.errors import ConfigError, Fault, InputError
from hfgpt.base.units import seconds_of
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.plan import advise, estimate
from hfgpt.plan.advise import Recommendation
from hfgpt.plan.estimate import Measured, Memory, Target, Time
from hfgpt.plan.survey import Survey, survey

FLAGS = ("json", "probe", "simulate")

VALUED = ("vram", "gpu", "time_budget", "data", "write", "price_per_hour", "processes", "explain", "lang")


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
    explain: str | None = None
    lang: str = "en"


def split_options(words: Sequence[str]) -> tuple[Options, list[str]]:
    """plan.py's own options, checked, and the words that are left: the recipe and overrides.

    Raises:
        ConfigError: every option whose value cannot be used.
    """
    given: dict[str, Any] = {}
    faults, rest, queue = list[Fault](), list[str](), list(words)
    while queue:
        word = queue.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if not word.startswith("--") or key not in FLAGS + VALUED:
            rest.append(word)
        elif key in FLAGS and not equals:
            given[key] = True
        elif key in FLAGS or not (text if equals else queue and not queue[0].startswith("--")):
            faults.append(Fault(key, text or None, "takes no value" if key in FLAGS else "needs a value"))
        else:
            try:
                given[key] = _READ.get(key, str)(text if equals else queue.pop(0))
            except ValueError as error:
                faults.append(Fault(key, text or None, str(error)))
    if faults:
        raise ConfigError(faults)
    return Options(**given), rest


def read_bytes(text: str) -> int:
    """'8GB', '8G', '8' (all 8 GiB, as cards are sold) or '8192MB' → bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([GMT])i?B?)?", text.strip(), flags=re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise ValueError("must be a size such as 8GB or 8192MB")
    return int(float(match[1]) * {"M": 2**20, "G": 2**30, "T": 2**40}[(match[2] or "G").upper()])


def _read_seconds(text: str) -> int:
    if not (seconds := seconds_of(text)):
        raise ValueError("must be a time such as 1h, 90m or 1h30m")
    return seconds


def _read_price(text: str) -> float:
    match = re.fullmatch(r"\d+(\.\d+)?", text)
    if not match:
        raise ValueError("must be a number, in any currency, for one device an hour")
    return float(text)


def _read_processes(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError("must be an integer of at least 1")
    return int(text)


def _read_field(text: str) -> str:
    name = text.replace("-", "_")
    if name not in Config.model_fields:
        close = difflib.get_close_matches(name, Config.model_fields, n=1)
        raise ValueError(f"is not a parameter; did you mean {close[0]!r}?" if close else "is not a parameter")
    return name


def _read_language(text: str) -> str:
    if text not in ("en", "zh"):
        raise ValueError("must be 'en' or 'zh'")
    return text


_READ: dict[str, Any] = {
    "vram": read_bytes,
    "time_budget": _read_seconds,
    "price_per_hour": _read_price,
    "processes": _read_processes,
    "explain": _read_field,
    "lang": _read_language,
    "write": Path,
}


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


def run(words: Sequence[str]) -> str:
    """What plan.py prints for these words.

    Raises:
        InputError: anything in them that cannot be used.
    """
    options, rest = split_options(words)
    recipe, _, overrides = configs.split_command(rest, ())
    config = configs.load(recipe, overrides)
    if options.explain:
        return _explain(config, options.explain, options)
    plan = make(config, options)
    written = write(plan, options.write, recipe) if options.write else None
    if options.json:
        figures = as_json(plan, options)
        figures["written"] = str(options.write) if written else None
        return json.dumps(figures, indent=2, ensure_ascii=False)
    from hfgpt.plan import tables as plan_tables

    return plan_tables.render(plan, recipe, options)


def _explain(config: Config, name: str, options: Options) -> str:
    from hfgpt.plan import guide

    def device(changed: Config) -> Target:
        return estimate.target(changed, options.gpu, options.vram, options.processes)

    if options.json:
        return json.dumps(guide.as_json(config, name, device), indent=2, ensure_ascii=False)
    return guide.explain(config, name, device, options.lang)
