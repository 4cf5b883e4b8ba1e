"""What `train` says before a run begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfgpt import config as configs
from hfgpt.base import language
from hfgpt.commands import train


def test_hours_on_a_cpu_are_announced_with_a_way_to_less() -> None:
    with language.using("en"):
        told = train.expectation(configs.load("standard", ["--device=cpu"]))
    assert "the run takes about" in told
    assert told.endswith("--time-budget 5m --write mine.yaml")


def test_the_note_offers_a_recipe_for_a_text_that_plan_can_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"body": "' + "to be or not to be " * 3000 + '"}\n', encoding="utf-8")
    with language.using("en"):
        elsewhere = train.expectation(configs.load("standard", ["--device=cpu", "--dataset=nobody/nowhere"]))
        local = ["--device=cpu", f"--dataset={path}", "--text_column=body"]
        here = train.expectation(configs.load("standard", local))
    assert "plan" not in elsewhere
    assert here.endswith(f"--time-budget 5m --data {path} --text_column=body --write mine.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ["--max_iters=2", "--warmup_iters=0", "--lr_decay_iters=2"],
        ["--max_time=5m"],
        ["--time_budget=5m"],
        ["--eval_only"],
        ["--dataset=none.txt"],
    ],
)
def test_other_runs_begin_without_a_word(words: list[str]) -> None:
    assert train.expectation(configs.load("standard", ["--device=cpu", *words])) == ""
