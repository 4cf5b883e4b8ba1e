"""Records of other programs: the Trainer's ``trainer_state.json``, and what nanoGPT's train.py printed.

In:  their files.
Out: records by our names (:mod:`hfgpt.runs.metrics`), and nanoGPT's settings as a recipe.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfgpt import config as configs
from hfgpt.base.errors import ConfigError, InputError
from hfgpt.base.language import _
from hfgpt.config import Config
from hfgpt.runs.metrics import UNREADABLE, Record, merge, read_text, whole_step

# The Trainer's names, and ours. Its train loss is the mean over the logged interval.
TRAINER_NAMES = {
    "loss": "train_loss",
    "eval_loss": "val_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
}


def read_trainer_state(path: Path) -> list[Record]:
    """The logged steps of a ``trainer_state.json``.

    Raises:
        InputError: the file is not one.
    """
    try:
        lines = [
            {"step": whole_step(line["step"])}
            | {ours: float(line[key]) for key, ours in TRAINER_NAMES.items() if key in line}
            for line in json.loads(read_text(path))["log_history"]
        ]
    except UNREADABLE:
        raise InputError(
            _("{path}: not a trainer_state.json; it has no list 'log_history' of logged steps", path=path)
        ) from None
    return merge(line for line in lines if len(line) > 1)


STEP, NUMBER = r"(\d{1,15})", r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"

# A collector of logs may have put the time before each line.
NANOGPT_EVALUATION = re.compile(rf"\bstep {STEP}: train loss {NUMBER}, val loss {NUMBER}")

NANOGPT_STEP = re.compile(rf"\biter {STEP}: loss {NUMBER}, time {NUMBER}ms(?:, mfu {NUMBER}%)?")

NANOGPT_SETTING = re.compile(r"^(?:Overriding: )?([a-z_0-9]{1,40}) = ([^#\n]{1,200})", re.MULTILINE)


def read_nanogpt(path: Path) -> tuple[list[Record], Config | None]:
    """The steps and evaluations that nanoGPT printed, and its settings as far as they mean something here."""
    text = read_text(path)
    evaluations = [
        {"step": int(step), "train_eval_loss": float(train), "val_loss": float(val)}
        for step, train, val in NANOGPT_EVALUATION.findall(text)
    ]
    return merge([*evaluations, *_steps(text)]), _settings(text)


def _steps(text: str) -> Iterator[Record]:
    """nanoGPT prints the time of one step, which includes the evaluation before it; the steps between two printed
    ones are taken to be as quick as the quicker of the two."""
    seconds, last_step, last_took = 0.0, -1, math.inf
    for step_text, loss, milliseconds, mfu in NANOGPT_STEP.findall(text):
        step, took = int(step_text), float(milliseconds) / 1000
        seconds += took + max(step - last_step - 1, 0) * min(took, last_took)
        last_step, last_took = step, took
        record: Record = {"step": step, "train_loss": float(loss), "seconds": seconds}
        if mfu and float(mfu) >= 0:  # it prints -100% until it has measured
            record["mfu"] = float(mfu) / 100
        yield record


def _settings(text: str) -> Config | None:
    """nanoGPT prints its config file and overrides; what it leaves out has its defaults, which are mostly ours."""
    values: dict[str, Any] = {}
    for key, value in NANOGPT_SETTING.findall(text):
        if key in Config.model_fields or key in configs.RENAMED:
            try:
                values[key] = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue  # an expression, such as 5 * 8
    try:
        return configs.build({"max_iters": 600_000, **values}, "nanogpt") if values else None
    except ConfigError:
        return None  # a value that means nothing here: the log is diagnosed without its recipe
