"""The plan of a recipe: everything known about a run before it starts.

In:  a resolved Config, and the options of the command line (hfgpt/commands/plan.py).
Out: a :class:`Plan`; a recipe file with the reason beside each value.

Without --probe and --simulate nothing is measured and torch is not loaded.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from hfgpt import config as configs
from hfgpt.base import hardware, threads
from hfgpt.base.command import typed
from hfgpt.base.errors import InputError
from hfgpt.base.files import expanded, replace_file
from hfgpt.base.language import _, about_card, strerror
from hfgpt.base.terminal import wrap
from hfgpt.base.units import duration, size
from hfgpt.config import EMBEDDED_DATASET, Config
from hfgpt.model import sizes
from hfgpt.model.loss_law import Forecast
from hfgpt.plan import batches, dial, grid, loss, timing
from hfgpt.plan.batches import Recommendation
from hfgpt.plan.dial import Choice
from hfgpt.plan.memory import Memory
from hfgpt.plan.survey import Survey, survey_of
from hfgpt.plan.target import Target, find_target
from hfgpt.plan.timing import Measured, Time


@dataclass(frozen=True)
class Options:
    """The checked options of plan.py. Sizes in bytes, times in seconds; the recipe's changes as typed."""

    json: bool = False
    probe: bool = False
    simulate: bool = False
    no_trials: bool = False
    vram: int | None = None
    gpu: str | None = None
    time_budget: int | None = None
    data: str | None = None
    size: int | None = None
    write: Path | None = None
    overwrite: bool = False
    price_per_hour: float | None = None
    processes: int = 1
    overrides: Sequence[str] = ()

    @property
    def chooses(self) -> bool:
        """Whether the whole recipe is chosen, rather than planned as given."""
        return bool(self.time_budget or self.data or self.size)


# ------------------------------------------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class Plan:
    """Everything known about a recipe before it runs."""

    before: Config  # the recipe as given
    survey: Survey  # the recipe (the chosen one, if a time or a text was given), its vocabulary and its text
    target: Target  # what it runs on
    memory: Memory  # of a step in one process
    # the peak memory of a simulated step and of a probed one, if requested
    simulated: int | None
    measured: int | None
    time: Time  # how long it takes
    forecast: Forecast | None  # its expected loss; None if no law covers it
    recommendation: Recommendation  # the recommendation that fits memory, or time and text
    choice: Choice | None  # how it was chosen, if for a time or a text

    @property
    def fits(self) -> bool:
        return self.memory.needed <= self.target.memory_bytes


def make(config: Config, options: Options) -> Plan:
    """Plan a recipe.

    Raises:
        InputError: the recipe's data, model or device is unusable or contradicts the options, or `data` is not found.
    """
    if options.size:
        _check_size(config, options)
    if options.data:
        config = config.model_copy(update={"dataset": options.data, "dataset_config": None, "streaming": False})
    survey = survey_of(config, options.size)
    if options.data and survey.text is None:
        raise InputError(
            "data = {name!r}: no such file or folder here\n    → a recipe is chosen for a text that can be looked "
            "at; give its size if it is elsewhere (--size=20MB), or plan a dataset on the Hub with --dataset={name}",
            name=options.data,
        )
    if survey.config.pretrained or not options.chooses:  # otherwise block_size suits the text
        check_text(survey)
    target = find_target(survey.config, options.gpu, options.vram, options.processes)
    if options.probe and (options.gpu or (target.kind == "accelerator" and not hardware.local_accelerator())):
        raise InputError(
            "probe: it measures this machine's own device → leave out --probe, or what names another device (--gpu, "
            "--vram, --device)"
        )
    with about_card(target.own_memory):
        return _make(survey, target, options)


def _check_size(config: Config, options: Options) -> None:
    if options.data and expanded(options.data).exists():
        raise InputError("size: {name!r} is here, and its own size counts → leave out --size", name=options.data)
    if options.write and not options.data and config.dataset == EMBEDDED_DATASET:
        raise InputError("size: a recipe needs the name that its text will have → add it, as in --data=novel.txt")


def check_text(survey: Survey) -> None:
    """Refuse a text that is too short to train on, as training does.

    Raises:
        InputError: names the split that is too short.
    """
    config, text = survey.config, survey.text
    tokens, val = survey.train_tokens, survey.val_tokens
    if text is None or survey.approximate or tokens is None or val is None or config.streaming:
        return
    if min(tokens, val) > config.block_size:
        return
    from hfgpt.data.blocks import check_length  # it loads numpy

    advice = _("give more text") if text.has_validation else _("give more text, or change val_fraction")
    check_length(config, range(tokens), range(val), advice)


def _make(survey: Survey, target: Target, options: Options) -> Plan:
    before, choice = survey.config, None
    if options.chooses:
        here = target.speed is not None and not options.size
        trials = here and not options.no_trials and options.time_budget is not None
        choice = dial.choose(survey, target, options.time_budget, trials=trials)
        survey, target = choice.survey, choice.target
    measured = _probe(survey, options.processes) if options.probe else choice.measured if choice else None
    if choice is None:
        survey = grid.by_the_clock(survey, target, measured)
    return Plan(
        before=before,
        survey=survey,
        target=target,
        memory=batches.memory(survey, target),
        simulated=_simulate(survey, target) if options.simulate else None,
        measured=measured.peak_bytes if measured else None,
        time=timing.time(survey, target, measured),
        forecast=choice.forecast if choice else loss.forecast(survey),
        recommendation=batches.recommend(survey, target, choice.reasons if choice else None),
        choice=choice,
    )


def _probe(survey: Survey, processes: int) -> Measured:
    threads.configure(survey.config.cpu_threads)  # before torch is loaded
    first, began = "torch" not in sys.modules, time.perf_counter()
    from hfgpt.plan import probe

    return probe.probe(survey, processes, time.perf_counter() - began if first else None)


def _simulate(survey: Survey, target: Target) -> int:
    from hfgpt.plan import simulate

    per_process = survey.config.of_process(target.processes).model_copy(update={"init_from": "scratch"})
    return simulate.peak(per_process, survey.vocab_size, target.kind, target.dtype).bytes


def write(plan: Plan, path: Path, recipe: str | None, overwrite: bool = False) -> Config:
    """Write the recommended recipe, with its reasons and its expected cost.

    Raises:
        InputError: nothing fits, the file exists, or it cannot be written.
    """
    advice = plan.recommendation
    if not advice.fit.fits:
        memory = f"{plan.target.memory_bytes / 2**30:.4g} GiB"
        raise InputError(
            "write = {path!r}: no variant of the recipe fits {memory} → give more memory, or start from a smaller "
            "recipe",
            path=str(path),
            memory=memory,
        )
    config = advice.survey.config
    if config.out_dir == f"out/{Path(recipe).stem if recipe else 'run'}":
        config = config.model_copy(update={"out_dir": None})
    time = timing.time(advice.survey, plan.target, plan.choice.measured if plan.choice else None)
    head = [
        _("{name}: planned for {device}", name=path.stem, device=plan.target.name),
        "",
        f"  {typed('train', path)}",
        "",
        _(
            "{count} parameters; about {time} ({low} to {high}); memory of a process about {memory}.",
            count=f"{sizes.parameters(config, advice.survey.vocab_size).total:,}",
            time=duration(time.total_seconds),
            low=duration(time.low_seconds),
            high=duration(time.high_seconds),
            memory=size(advice.fit.memory.needed),
        ),
    ]
    if plan.forecast:
        head.append(plan.forecast.sentence())
    return write_recipe(path, config, advice.reasons, "\n".join(head), overwrite=overwrite)


# ----------------------------------------------------------------------------------------------- a recipe with reasons


def recipe_text(config: Config, reasons: Mapping[str, str], head: str) -> str:
    """Return a commented recipe that loads as this config: values that differ from the defaults or have a reason.

    Args:
        config: resolved; out_dir is None if it follows from the recipe's name.
        reasons: the reason for a value, by key.
        head: the comment at the top of the file.
    """
    plain, derived = configs.build({}, "run"), configs.derivable(config)
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    for group, title in configs.GROUPS.items():
        entries = []
        for key in Config.model_fields:
            value = getattr(config, key)
            usual = value in (getattr(plain, key), Config.model_fields[key].default)
            if key in configs.DERIVED:  # from this recipe's other values, which are not those of an empty one
                usual = key in derived or value is None
            if configs.group_of(key) != group or (usual and key not in reasons):
                continue
            comment = _(str(Config.model_fields[key].description))
            if unit := configs.unit_of(key):
                comment = _("{meaning} ({unit})", meaning=comment, unit=unit)
            if key in reasons:
                comment = _("{meaning}. Here: {reason}", meaning=comment, reason=reasons[key])
            first, *more = wrap(comment, 108)
            entries += [f"# {first}", *(f"#   {line}" for line in more)]
            entries.append(f"{key}: {configs.yaml_scalar(value)}")
        if entries:
            lines += ["", f"# -- {_(title)}", *entries]
    return "\n".join(lines) + "\n"


def write_recipe(
    path: Path, config: Config, reasons: Mapping[str, str], head: str, *, overwrite: bool = False
) -> Config:
    """Write a recipe file and return the config that it loads as.

    Raises:
        InputError: the file exists already, without `overwrite`, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise InputError("write = {path!r}: exists already → choose another name, or add --overwrite", path=str(path))
    try:
        text = recipe_text(config, reasons, head)
        text.encode()
        written = configs.build(yaml.safe_load(text), path.stem)  # what training would refuse is not written
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
    except (OSError, UnicodeError) as error:
        reason = strerror(error) if isinstance(error, OSError) else _("its name is not UTF-8")
        raise InputError("write = {path!r}: cannot be written: {reason}", path=str(path), reason=reason) from None
    return written
