"""What a sweep holds equal: every recipe that it writes for it loads, and a report claims it only where it holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfgpt import config as configs
from hfgpt.base import hardware
from hfgpt.base.errors import InputError
from hfgpt.config import Config
from hfgpt.sweep import reading, training, trials
from hfgpt.sweep.definition import Sweep, equalised

ROOT = Path(__file__).parents[2]
BASE = {"batch_size": 4, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8, "max_iters": 100, "eval_interval": 20}
SCHEDULES = ("cosine", "hold_cosine", "wsd", "constant")

# Replaces the training script: it records 100 steps a second.
STAND_IN = """
import sys
from hfgpt import config
from hfgpt.base import shell
from hfgpt.runs.metrics import MetricsWriter

def main(words):
    c = config.load(words[0])
    if c.batch_size == 8:
        raise ValueError("no such luck")
    c.run_dir.mkdir(parents=True, exist_ok=True)
    (c.run_dir / "recipe.yaml").write_text(config.to_yaml(c))
    writer = MetricsWriter(c.run_dir / "metrics.jsonl")
    if c.batch_size == 16 and c.max_iters == 20:
        return
    for step in range(c.max_iters + 1):
        evaluated = {} if step % c.eval_interval else {"val_loss": 1.0}
        writer.write(step, train_loss=1.0, seconds=step / 100, tokens_per_second=c.tokens_per_iter * 100, **evaluated)

shell.run(main)
"""


@pytest.fixture
def define(tmp_path: Path) -> Callable[..., Sweep]:
    """define({"lr_schedule": "wsd"}, "--batch_size=4,8", equal="tokens") → the sweep, in `tmp_path`/sweep."""

    def make(values: dict[str, Any], *words: str, **options: str) -> Sweep:
        recipe = tmp_path / "small.yaml"
        recipe.write_text(yaml.safe_dump(BASE | values))
        return reading.define(str(recipe), words, {"out_dir": str(tmp_path / "sweep"), **options})

    return make


@pytest.fixture
def reload(tmp_path: Path) -> Callable[[Config], Config]:
    """reload(config) → the config that a training reads from the recipe written of it."""

    def load(config: Config) -> Config:
        training.write_recipe(tmp_path / "written.yaml", config)
        return configs.load(tmp_path / "written.yaml")

    return load


def of_schedule(schedule: str) -> dict[str, Any]:
    return {"lr_schedule": schedule, "eval_interval": 25, "eval_tasks_interval": 50, "eval_tasks": "questions.jsonl"}


# ------------------------------------------------------------------------------------------------- the step measured


@pytest.mark.parametrize("more", [{}, {"warmup_iters": 90, "lr_decay_iters": 95}, {"batch_warmup_iters": 50},
                                  {"time_budget": "3h"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_recipe_that_measures_a_step_loads(
    reload: Callable[[Config], Config], schedule: str, more: dict[str, Any], tmp_path: Path
) -> None:
    config = configs.build(BASE | of_schedule(schedule) | more, "trial")
    probe = reload(training.probe_of(config, tmp_path))
    assert (probe.max_iters, probe.time_budget, probe.max_time) == (training.PROBE_STEPS, None, None)


@pytest.mark.parametrize(("card", "time", "compiled"), [("NVIDIA L4", "1h", True), ("NVIDIA L4", "2m", False),
                                                      (None, "1h", False)], ids=str)  # fmt: skip
def test_a_step_is_measured_compiled_where_the_trial_will_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, card: str | None, time: str, compiled: bool
) -> None:
    """`compile: auto` would run twenty steps eager, so that a compiled trial would get the time of another step."""
    monkeypatch.setattr(hardware, "local_accelerator", lambda: card)
    monkeypatch.setattr(sys, "platform", "linux")
    config = configs.build(BASE | {"max_time": time, "device": "auto", "compile": "auto"}, "trial")
    assert training.probe_of(config, tmp_path).compile is compiled
    eager = config.model_copy(update={"compile": False})
    assert training.probe_of(eager, tmp_path).compile is False


def test_the_share_of_a_trial_whose_length_the_clock_decides() -> None:
    config = configs.build(BASE | {"time_budget": "1m"}, "trial")
    assert training.share(config, []) == 0
    assert training.share(config, [{"step": 5, "train_loss": 3.0}]) == 0, "not known yet"
    lasting = [{"step": 8, "horizon": 4000.0}, {"step": 1000, "train_loss": 2.0}]
    assert training.share(config, lasting) == 0.25


def test_the_recipe_that_measures_a_step_needs_and_tells_nothing_else(
    reload: Callable[[Config], Config], tmp_path: Path
) -> None:
    """A probe must not fail for files that no step reads, nor be shown to others as the trial."""
    own = {"val_datasets": "a.txt, b.txt", "eval_tasks": "q.jsonl", "report_to": "wandb", "push_to_hub": True}
    probe = reload(training.probe_of(configs.build(BASE | own, "trial"), tmp_path))
    assert (probe.val_datasets, probe.eval_tasks, probe.report_to, probe.push_to_hub) == (None, None, "none", False)


def test_a_step_that_cannot_be_measured_fails_its_trials_with_the_reason(
    define: Callable[..., Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    """At its recipe's own length such a trial would get another time than the others, and the report claims the same.

    Batches of 8 raise, of 16 record no step while they are measured, and of 32 are refused by their recipe.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "executable", python)
    made, told = define({}, "--batch_size=4,8,16,32", "--max_time=2s", equal="time"), list[str]()
    script = tmp_path / "train.py"
    script.write_text(STAND_IN)
    written = training.write_recipe

    def damaged(path: Path, config: Config) -> None:
        written(path, config.model_copy(update={"warmup_iters": 99}) if config.batch_size == 32 else config)

    monkeypatch.setattr(training, "write_recipe", damaged)
    trials.run(made, [str(script)], told.append)
    rows = json.loads((made.folder / "report.json").read_text())["runs"]
    assert [(row["outcome"], row["steps"]) for row in rows[:3]] == [
        ("finished", 200),
        ("failed: exit code 1: ValueError: no such luck", 0),
        ("failed: no step was recorded", 0),
    ]
    assert "The recipe cannot be used: warmup_iters = 99: must be less than max_iters (20)" in rows[3]["outcome"]
    assert [path.name for path in (made.folder / "trials").iterdir()] == ["batch_size-4"]
    assert "batch_size=16: failed: no step was recorded" in told


# -------------------------------------------------------------------------------------------------- the lengths


@pytest.mark.parametrize(
    "more",
    [{}, {"warmup_iters": 0}, {"warmup_iters": 90, "lr_decay_iters": 95}, {"batch_warmup_iters": 50},
     {"batch_warmup_iters": 99, "eval_tasks_interval": None}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_recipe_of_equal_tokens_loads_and_has_them(
    define: Callable[..., Sweep], reload: Callable[[Config], Config], schedule: str, more: dict[str, Any]
) -> None:
    made = define(of_schedule(schedule) | more, "--batch_size=1,3,4,5,6,7,16,50,150,1000", equal="tokens")
    base = made.config(made.trials[2])
    for trial in made.trials:
        config = equalised(made, trial, None)
        assert reload(config) == config
        if config.max_iters > 2:  # the shortest run that there is
            difference = config.tokens_by(config.max_iters) - base.tokens_by(base.max_iters)
            assert abs(difference) <= config.tokens_per_iter
            share = config.batch_warmup_iters / config.max_iters
            assert share == pytest.approx(base.batch_warmup_iters / 100, abs=1 / config.max_iters)
        if config.eval_tasks_interval:
            assert config.eval_tasks_interval == 2 * config.eval_interval


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seconds", [0.003, 0.07, 0.9, 2.1, 40])
def test_every_recipe_of_equal_time_loads(
    define: Callable[..., Sweep], reload: Callable[[Config], Config], schedule: str, seconds: float
) -> None:
    values = of_schedule(schedule) | {"max_time": "10s", "batch_warmup_iters": 60}
    made = define(values, "--batch_size=3,4", equal="time")
    for trial in made.trials:
        config = equalised(made, trial, seconds)
        assert reload(config) == config


def test_a_schedule_without_a_warmup_does_not_get_one(define: Callable[..., Sweep]) -> None:
    made = define({"warmup_iters": 0}, "--batch_size=2,8", equal="tokens")
    assert [equalised(made, trial, None).warmup_iters for trial in made.trials] == [0, 0]


# ------------------------------------------------------------------------------------------------------ the claims


@pytest.mark.parametrize(
    ("words", "equal", "said"),
    [
        (["--batch_size=4,8", "--time_budget=3m"], "tokens", r"time_budget = '3m': decides .* equal = 'tokens' does"),
        (["--batch_size=4,8", "--time_budget=3m", "--max_time=5m"], "time", "→ leave one of the two out"),
        (["--time_budget=3m,5m"], "tokens", "time_budget = '3m'"),
        (["--max_iters=50,100", "--max_time=5m"], "time", "equal = 'time': decides max_iters, which is swept here"),
        (["--max_time=5m,6m"], "time", "equal = 'time': decides max_time, which is swept here"),
        (["--max_time=5m,6m"], "tokens", "max_time = '5m': would end a trial before its last step"),
        (["--n_head=1,2"], "tokens", "n_head = 3: must divide n_embd"),
    ],
)
def test_what_would_undo_it_is_refused(define: Callable[..., Sweep], words: list[str], equal: str, said: str) -> None:
    values = {"n_head": 3} if "n_head" in words[0] else {}
    with pytest.raises(InputError, match=said):
        define(values, *words, equal=equal)


@pytest.mark.parametrize(
    ("values", "words", "claimed"),
    [
        ({}, ["--batch_size=4,16"], "the number of optimizer steps"),
        ({}, ["--max_iters=50,100"], ""),
        ({"time_budget": "3m"}, ["--batch_size=4,16"], ""),
        ({"n_head": 3}, ["--n_head=1,2"], "the number of optimizer steps"),
    ],
)
def test_a_report_claims_equal_steps_only_of_equal_steps(
    define: Callable[..., Sweep], values: dict[str, Any], words: list[str], claimed: str
) -> None:
    from hfgpt.sweep import report

    assert report.comparison(define(values, *words), {}).equal == claimed


# ----------------------------------------------------------------------------------------------- lists in one value


def test_a_list_of_files_is_one_value(define: Callable[..., Sweep]) -> None:
    words = ["--val_datasets=a.txt,b.txt", "--eval_tasks", "q.jsonl,r.jsonl", "--batch_size=8,16"]
    made = define({}, *words)
    assert [trial.values for trial in made.trials] == [{"batch_size": 8}, {"batch_size": 16}]
    assert {made.config(trial).val_datasets for trial in made.trials} == {"a.txt,b.txt"}
    assert {made.config(trial).eval_tasks for trial in made.trials} == {"q.jsonl,r.jsonl"}


def test_a_mix_of_corpora_is_one_value_and_may_be_swept(define: Callable[..., Sweep]) -> None:
    mix = "[{name: a.txt, weight: 3}, {name: b.txt, weight: 1}]"
    made = define({}, f"--dataset={mix}", "--batch_size=8,16")
    assert len(made.trials) == 2
    assert configs.build({"dataset": mix}, "mix").dataset == made.config(made.trials[0]).dataset
    swept = define({}, f"--dataset={mix},c.txt,{mix.replace('3', '2')}")
    assert [trial.values["dataset"] for trial in swept.trials] == [mix, "c.txt", mix.replace("3", "2")]
