"""The parameters that the page offers, and the plan for their values.

In:  a recipe, and the values on the page.
Out: an :class:`Answer`: the plan and the command, or the rules that the values break.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from hfgpt import config as configs
from hfgpt.base import hardware
from hfgpt.base.command import typed as typed_command
from hfgpt.base.errors import ConfigError, Fault, InputError
from hfgpt.config import Config
from hfgpt.plan import command as plan


@dataclass(frozen=True)
class Knob:
    """A parameter on the page: a slider from low to high, a choice, a flag, or an optional number."""

    key: str
    low: float = 0
    high: float = 0
    step: float = 1
    choices: tuple[str, ...] = ()

    @property
    def slides(self) -> bool:
        return self.high > 0


KNOBS = {
    "batch": (Knob("batch_size", 1, 128), Knob("block_size", 16, 2048, 16), Knob("gradient_accumulation_steps", 1, 64)),
    "model": (
        Knob("n_layer", 1, 48),
        Knob("n_head", 1, 32),
        Knob("n_embd", 32, 2048, 8),
        Knob("dropout", 0, 0.9, 0.05),
    ),
    "text": (Knob("tokenizer", choices=("auto", "char", "bpe", "gpt2")), Knob("vocab_size")),
    "optimizer": (
        Knob("optimizer", choices=("adamw", "muon")),
        Knob("learning_rate", 1e-5, 1e-2, 1e-5),
        Knob("muon_learning_rate", 1e-3, 0.1, 1e-3),
        Knob("weight_decay", 0, 1, 0.01),
        Knob("grad_clip", 0, 5, 0.1),
    ),
    "schedule": (
        Knob("max_iters", 100, 20_000, 100),
        Knob("lr_schedule", choices=get_args(Config.model_fields["lr_schedule"].annotation)),
        Knob("warmup_iters"),
        Knob("lr_decay_iters"),
        Knob("min_lr"),
    ),
    "system": (Knob("dtype", choices=("auto", "float32", "bfloat16", "float16")), Knob("activation_checkpointing")),
}

ALL = tuple(knob for knobs in KNOBS.values() for knob in knobs)
SHAPE = ("n_layer", "n_head", "n_embd")  # fixed by a pretrained model

# The default recipe: the chapter's on an accelerator, one that takes seconds on a CPU.
SUITED = {True: "recipes/standard.yaml", False: "recipes/fast_cpu.yaml"}


@dataclass(frozen=True)
class Answer:
    """The result for the values on the page: a plan, the rules that they break, or a message that says why not."""

    plan: plan.Plan | None
    command: str
    config: Config | None = None
    faults: list[Fault] = field(default_factory=list)
    message: str = ""


def suited_recipe() -> str:
    """Return a recipe that this machine trains in a reasonable time."""
    return SUITED[hardware.local_accelerator() is not None]


def settings(recipe: str | None) -> dict[str, Any]:
    """Return the knobs' values as given in a recipe; None if a default follows from other values, as lr_decay_iters
    follows max_iters if the recipe sets both to the same value.

    Raises:
        InputError: the recipe cannot be used.
    """
    configs.load(recipe)
    values = configs.read_recipe(recipe) if recipe else {}
    values = {knob.key: values.get(knob.key, Config.model_fields[knob.key].default) for knob in ALL}
    return values | ({"lr_decay_iters": None} if values["lr_decay_iters"] == values["max_iters"] else {})


def answer(recipe: str | None, typed: Mapping[str, Any], card: str | None) -> Answer:
    """Plan a recipe with the knobs' values.

    Args:
        recipe: its path; None: the defaults.
        typed: values of knobs; those equal to the recipe's are not overrides. A cleared field is None or "".
        card: from the table of cards; None: this machine.
    """
    try:
        values, before = configs.read_recipe(recipe) if recipe else {}, settings(recipe)
    except InputError as error:
        return Answer(None, "", message=str(error))
    changed = {key: new for key, value in typed.items() if (new := _tidy(value)) != before[key]}
    if card and values.get("device") == "cpu":
        changed["device"] = "auto"  # a chosen card overrides the recipe's CPU
    words = [_override(key, value) for key, value in changed.items()]
    command = typed_command("train", *([recipe] if recipe else []), *words)
    try:
        config = configs.build(configs.merge(values, changed), Path(recipe).stem if recipe else "run")
        return Answer(plan.make(config, plan.Options(gpu=card)), command, config)
    except ConfigError as error:
        return Answer(None, command, faults=error.faults)
    except InputError as error:
        return Answer(None, command, message=str(error))


def _tidy(value: Any) -> Any:
    """Clean a value from the browser: 0.30000000000000004 becomes 0.3, an empty field None."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return None if value == "" else value


def _override(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{key}" if value else f"--no_{key}"
    return f"--{key}={'none' if value is None else f'{value:g}' if isinstance(value, float) else value}"
