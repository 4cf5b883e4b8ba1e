"""The blind test of the forecasts: what it draws, and what its report says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import forecast
import loss_runs

from hfgpt import config


def test_cases_depend_on_seed_and_number_alone() -> None:
    cases = [forecast.draw(3, number, list(forecast.TEXTS)) for number in range(20)]
    assert cases == [forecast.draw(3, number, list(forecast.TEXTS)) for number in range(20)]
    assert cases != [forecast.draw(4, number, list(forecast.TEXTS)) for number in range(20)]
    for case in cases:
        if "recipe" in case:
            config.build(case["recipe"], "run")
        else:
            assert case["budget"] in forecast.BUDGETS


def test_a_case_s_text_is_a_stretch_of_its_own(tmp_path: Path) -> None:
    case = {"number": 0, "text": "shakespeare", "characters": 20_000, "from": 0.5}
    written = forecast.write_text(case, tmp_path).read_text(encoding="utf-8")
    assert len(written) == 20_000
    assert written in loss_runs.text("shakespeare", "")


def test_the_drawn_runs_of_the_table_can_be_trained() -> None:
    for number in range(200):
        row = loss_runs.draw(number)
        assert loss_runs.recipe(row).max_iters == row["max_iters"]
        assert loss_runs.draw(number) == row


def line(number: int, seconds: float, took: float, low: float, val: float, **case: Any) -> list[dict[str, Any]]:
    said = {"seconds": seconds, "probed_seconds": seconds, "loss": {"loss": low + 0.05, "low": low, "high": low + 0.1,
                                                                    "overfits": False}}  # fmt: skip
    result = {"seconds": took, "val_loss": val, "best_val_loss": val, "overfitted": False, "load": 0.5}
    return [{"number": number, "case": case, "said": said}, {"number": number, "result": result}]


def test_the_report_counts_hits_and_misses() -> None:
    lines = [
        *line(0, 10.0, 10.0, 1.9, 1.95, recipe={}),
        *line(2, 10.0, 20.0, 1.9, 2.5, recipe={}),
        *line(1, 10.0, 29.0, 1.9, 1.95, budget=30),
        *line(3, 10.0, 33.0, 1.9, 1.95, budget=30),
    ]
    text = forecast.report(lines)
    assert "| time, no probe | 2 | median error 25%, within 15%: 50%, most 50% |" in text
    assert "used 103% at the median; exceeded in 1, at most 110%; below 85% in 0" in text
    assert "inside its 95% interval in 3; width 0.10 nats" in text
    assert forecast.report([]).count("\n") == 1
