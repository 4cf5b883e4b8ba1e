"""The parameters that the page offers, and what a plan says about their values.

In:  a recipe, and the values on the page.
Out: an :class:`Answer`: the plan and the command, or the rules that the values break.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from hfgpt import config as configs
from hfgpt.base import machine
from hfgpt.base.command import typed as typed_command
from hfgpt.base.errors import ConfigError, Fault, InputError
from hfgpt.config import Config
from hfgpt.plan import command as plan


@dataclass(frozen=True)
class Knob:
    """A parameter on the page: a slider from low to high, or a choice, a flag, a number that may stay empty."""

    key: str
    low: float = 0
    high: float = 0
    step: float = 1
    choices: tuple[str, ...] = ()

    @property
    def slides(self) -> bool:
        """Whether it is a slider."""
        return self.high > 0


KNOBS = {
    "batch": (
        Knob("batch_size", 1, 128),
        Knob("block_size", 16, 2048, 16),
        Knob("gradient_accumulation_steps", 1, 64),
    ),
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
    "system": (
        Knob("dtype", choices=("auto", "float32", "bfloat16", "float16")),
        Knob("activation_checkpointing"),
    ),
}

ALL = tuple(knob for knobs in KNOBS.values() for knob in knobs)

SHAPE = ("n_layer", "n_head", "n_embd")  # what a pretrained model brings itself

# What to start from where the user names nothing: the chapter's recipe on an accelerator, seconds on a CPU.
SUITED = {True: "recipes/standard.yaml", False: "recipes/fast_cpu.yaml"}


@dataclass(frozen=True)
class Answer:
    """What is known about the values on the page: a plan, or the rules they break or a message that says why not."""

    plan: plan.Plan | None
    command: str
    config: Config | None = None
    faults: list[Fault] = field(default_factory=list)
    message: str = ""


def suited_recipe() -> str:
    """A recipe that this machine trains in a time that one waits for."""
    return SUITED[machine.local_accelerator() is not None]


def settings(recipe: str | None) -> dict[str, Any]:
    """The knobs' values in a recipe, as it gives them; None where a default follows from other values.

    Raises:
        InputError: the recipe cannot be used.
    """
    configs.load(recipe)
    values = configs.read_recipe(recipe) if recipe else {}
    return {knob.key: values.get(knob.key, Config.model_fields[knob.key].default) for knob in ALL}


def answer(recipe: str | None, typed: Mapping[str, Any], card: str | None) -> Answer:
    """Plan a recipe with the knobs' values.

    Args:
        recipe: its path; None: the defaults.
        typed: values of knobs; what equals the recipe's is not an override. A cleared field is None or "".
        card: of the table of cards; None: this machine.
    """
    try:
        values, before = configs.read_recipe(recipe) if recipe else {}, settings(recipe)
    except InputError as error:
        return Answer(None, "", message=str(error))
    changed = {key: new for key, value in typed.items() if (new := _tidy(value)) != before[key]}
    if card and values.get("device") == "cpu":
        changed["device"] = "auto"  # a card was chosen, so the recipe's CPU is not meant
    words = [_override(key, value) for key, value in changed.items()]
    command = typed_command("train", *([recipe] if recipe else []), *words)
    try:
        config = configs.build({**values, **changed}, Path(recipe).stem if recipe else "run")
        return Answer(plan.make(config, plan.Options(gpu=card)), command, config)
    except ConfigError as error:
        return Answer(None, command, faults=error.faults)
    except InputError as error:
        return Answer(None, command, message=str(error))


def _tidy(value: Any) -> Any:
    """A value from the browser: 0.30000000000000004 as 0.3, an empty field as None."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return None if value == "" else value


def _override(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{key}" if value else f"--no_{key}"
    return f"--{key}={'none' if value is None else f'{value:g}' if isinstance(value, float) else value}"
