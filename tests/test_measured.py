"""The pages' measurements are those of the tables in benchmarks/results, which support the claims."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from conftest import ROOT

from hfgpt.runs import reference, statistics

sys.path.append(str(ROOT / "benchmarks"))

import rate_transfer

BOTH = ("en", "zh")
SECOND = {"en": "s", "zh": "秒"}
# What the Chinese page calls the rows whose names have words.
ROWS = {
    "the recipe as it is": "原配方",
    "the same, for as many tokens": "同上，词元数相同",
    "n_inner: 192 (twice n_embd)": "n_inner: 192（n_embd 的两倍）",
}


def table(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/sweep-{name}.json").read_text())
    return found


def page(language: str, name: str) -> str:
    return (ROOT / f"docs/{language}/{name}.md").read_text("utf-8")


def test_equal_settings_have_a_winner_in_at_most_one_pair_of_twenty() -> None:
    """Judged with the current statistics, from losses of real trainings; no seed is used twice."""
    data = table("aa")
    losses, seeds = list(data["losses"].values()), data["seeds"]
    groups = [losses[begin : begin + seeds] for begin in range(0, len(losses) - seeds + 1, seeds)]
    pairs = list(zip(groups[::2], groups[1::2], strict=False))
    winners = sum(
        statistics.rank({"A": dict(enumerate(a)), "B": dict(enumerate(b))}).winner is not None for a, b in pairs
    )
    assert len(pairs) >= 40
    assert winners <= 0.05 * len(pairs)
    for language, said in zip(BOTH, (f"in {winners} of {len(pairs)}", f"{len(pairs)} 对里"), strict=True):
        assert said in page(language, "comparing")


def test_a_learning_rate_holds_over_four_times_the_width() -> None:
    mean = rate_transfer.means(rate_transfer.read())
    with_rule, without = (rate_transfer.apart(mean, rule) for rule in ("muP", "none"))
    assert with_rule < 1.5 < without
    for language in BOTH:
        text = page(language, "experiments")
        best = [f"{rate_transfer.best_rate(mean['muP', width]):.4f}" for width in rate_transfer.WIDTHS]
        assert all(rate in text for rate in best)
        assert f"{with_rule:.1f}" in text
        assert f"{without:.1f}" in text


@pytest.mark.parametrize("language", BOTH)
def test_muons_rate_holds_too(language: str) -> None:
    mean = rate_transfer.means(rate_transfer.read())
    with_rule, without = (rate_transfer.apart(mean, rule) for rule in ("Muon muP", "Muon"))
    assert with_rule < 1.5 < without
    text = page(language, "experiments")
    for rule in ("Muon", "Muon muP"):
        assert all(f"{rate_transfer.best_rate(mean[rule, width]):.4f}" in text for width in rate_transfer.WIDTHS)
    assert f"{without:.1f}" in text


@pytest.mark.parametrize("language", BOTH)
def test_the_study_says_what_was_measured(language: str) -> None:
    data, text = table("optimizer"), page(language, "experiments")
    by_seed = {name: {int(seed): loss for seed, loss in own.items()} for name, own in data["losses"].items()}
    ranking = statistics.rank(by_seed)
    assert ranking.winner == "Muon"
    for name, summary in ranking.settings.items():
        assert summary.count == 5
        [row] = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert all(f"{value:.4f}" in row for value in (summary.mean, summary.low, summary.high, summary.spread))
    behind = ranking.behind["AdamW"]
    assert behind is not None
    assert behind.paired
    assert all(f"{value:.3f}" in text for value in (behind.mean, behind.low, behind.high))
    assert all(f"{loss:.3f}" in text for loss in data["rates"].values())


@pytest.mark.parametrize("language", BOTH)
def test_what_the_options_did(language: str) -> None:
    text = page(language, "comparing")
    rows = table("options")["rows"]
    assert len(rows) > 10
    for name, row in rows.items():
        shown = ROWS.get(name, name) if language == "zh" else name
        [line] = [line for line in text.splitlines() if line.startswith(f"| {shown} |")]
        assert f"{row['mean']:.4f}" in line
        if row["behind"]:
            assert f"{row['behind']['mean']:+.4f}" in line
            assert ("**" in line) == row["behind"]["distinct"], "what the seeds can tell is bold"


@pytest.mark.parametrize("language", BOTH)
def test_the_reference_curves_of_the_page(language: str) -> None:
    text = page(language, "comparing")
    for entry in reference._entries():
        [line] = [line for line in text.splitlines() if line.startswith(f"| {entry['recipe']} |")]
        step, losses = [*entry["val_loss"].items()][-1]
        summary = statistics.summarise(losses)
        assert f"{int(step):,}" in line
        assert f"{summary.mean:.4f}" in line
        assert f"{entry['step_seconds'] * int(step):,.0f} {SECOND[language]}" in line
