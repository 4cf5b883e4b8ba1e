"""Train a model from a recipe."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfgpt import config as configs
from hfgpt.base import shell, threads
from hfgpt.base.command import Arguments, Reader, typed
from hfgpt.base.errors import InputError
from hfgpt.base.files import expanded
from hfgpt.base.hardware import process_began
from hfgpt.base.language import _
from hfgpt.base.terminal import say
from hfgpt.base.threads import launch
from hfgpt.base.units import duration
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.train import origin

if TYPE_CHECKING:  # at run time it would load torch before the threads are set
    from hfgpt.train.meter import Pace


def main(words: list[str]) -> int:
    """Train, or print the resolved recipe."""
    parser = Reader(
        "train",
        _("Train a GPT-2-style model from a recipe."),
        [
            ("recipes/standard.yaml", _("train the recipe; the run folder is out/standard")),
            ("recipes/standard.yaml --max_iters=1000 --no_compile", _("the same with other values")),
            ("out/standard --resume", _("resume a run from its folder")),
            ("--resume=hf://user/run", _("resume a run that another machine pushed, in out/run")),
            ("out/standard --branch_from=out/standard/checkpoint-600", _("a new run that continues from a checkpoint")),
        ],
        configs.help_text,
        parameters=configs.PARAMETERS,
        called=configs.CALLED,
    )
    parser.argument(
        "recipe",
        _("RECIPE"),
        _("a YAML file, the name of a recipe that comes with hfgpt, or a run folder, whose own recipe is then read"),
        required=False,
    )
    parser.flag(
        "resume",
        _(
            "resume from the newest valid checkpoint, or begin if there is not one yet; with a run on the Hub, "
            "download it first if it is ahead of the folder"
        ),
        "hf://USER/RUN[@REVISION]",
        origin.hub_run,
    )
    parser.option(
        "branch_from",
        "RUN/checkpoint-N",
        _("begin a new run, in its own folder, that continues from a checkpoint of another run"),
        origin.branch,
    )
    parser.flag("overwrite", _("replace the run that out_dir holds"))
    parser.flag("profile", _("record a few steps, for Perfetto or TensorBoard, and print the ten largest operations"))
    parser.flag("print_config", _("print the resolved recipe and stop"))
    arguments = parser.read(words)
    recipe, overrides = find_recipe(arguments)
    config = configs.load(recipe, overrides, arguments.faults, changes_of(arguments, recipe))
    if arguments.print_config:
        print(configs.to_yaml(config))
        return 0
    if launch().rank == 0:
        for remark in configs.remarks(recipe, arguments.overrides, config):
            say(_("note: {note}", note=remark), sys.stderr)
        if not (arguments.resume or arguments.branch_from) and (told := expectation(config)):
            say(_("note: {note}", note=told), sys.stderr)
    threads.configure(config.cpu_threads)  # before torch is loaded
    with shell.uncollected():
        from hfgpt.train.loop import train
    return train(
        config,
        resume=bool(arguments.resume),
        overwrite=arguments.overwrite,
        branch_from=arguments.branch_from,
        profile=arguments.profile,
        began=process_began(),
        timed=learn,
    )


def learn(config: Config, pace: "Pace") -> None:
    """Let the next forecasts know how long a step and the start took on this machine.

    A start that tokenised a text, or loaded a checkpoint, was longer than others will be: the shortest counts.
    """
    from hfgpt.plan import speed, step_time

    step_time.learn(config, pace.vocab_size, pace.dtype, pace.step_seconds)
    known = speed.this_machine().start
    speed.learn(start=min(pace.start_seconds, known or pace.start_seconds))


LONG, SMALL = 3600, 2e14  # seconds of a run that is announced; operations below which no time is spent on the law


def expectation(config: Config) -> str:
    """Return how long a run will take on a CPU, as plan says it, if that is more than an hour; otherwise ""."""
    work = sizes.flops_per_token(config, vocab_size=0) * config.tokens_by(config.max_iters)
    if work < SMALL or config.time_budget or config.max_time or config.eval_only:
        return ""
    from hfgpt.plan import timing
    from hfgpt.plan.survey import survey_of
    from hfgpt.plan.target import find_target

    try:
        survey = survey_of(config)
        target = find_target(survey.config, processes=launch().world_size)
    except InputError:  # training says what is wrong
        return ""
    time = timing.time(survey, target) if target.kind == "cpu" else None
    if time is None or time.total_seconds < LONG:
        return ""
    takes = _(
        "on this machine ({device}) the run takes about {time}, {low} to {high}",
        device=target.name,
        time=duration(time.total_seconds),
        low=duration(time.low_seconds),
        high=duration(time.high_seconds),
    )
    if survey.text is None:  # plan chooses recipes for a text that it can read
        return takes
    data = [] if config.dataset == configs.EMBEDDED_DATASET else ["--data", config.dataset]
    plain = configs.build({}, "run")
    data += [f"--{key}={value}" for key in ("text_column", "dataset_config", "dataset_split")
             if (value := getattr(config, key)) != getattr(plain, key)]  # fmt: skip
    command = typed("plan", "--time-budget", "5m", *data, "--write", "mine.yaml")
    return _("{takes}; a recipe for five minutes: {command}", takes=takes, command=command)


def changes_of(arguments: Arguments, recipe: str | None) -> dict[str, Any]:
    """Return how a branch from its parent run's recipe differs from it: it begins with the one at its checkpoint."""
    checkpoint: Path | None = arguments.branch_from
    if checkpoint is None or recipe is None:
        return {}
    run = configs.run_folder(recipe)
    return origin.changes_since(checkpoint) if run and run.resolve() == checkpoint.resolve().parent else {}


def find_recipe(arguments: Arguments) -> tuple[str | None, list[str]]:
    """Return the recipe and its overrides; a run on the Hub and a branch's parent run supply theirs.

    Raises:
        InputError: the run on the Hub cannot be downloaded.
    """
    recipe, overrides = arguments.recipe, arguments.overrides
    typed = next((word.partition("=")[2] for word in overrides if word.startswith("--out_dir=")), None)
    if arguments.branch_from and recipe is None:
        recipe = str(arguments.branch_from.parent)
    if isinstance(arguments.resume, origin.HubRun):
        folder = expanded(typed or f"out/{arguments.resume.name}")
        if not arguments.faults:
            origin.bring(arguments.resume, folder)
        return recipe or str(folder), [*overrides, *([] if typed else [f"--out_dir={folder}"])]
    if arguments.branch_from and typed is None:
        overrides = [*overrides, f"--out_dir={origin.branch_folder(arguments.branch_from)}"]
    return recipe, overrides
