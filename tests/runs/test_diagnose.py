"""The diagnosis of curves of real runs, healthy or made to fail in a known way; and its remedies."""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hfgpt import config
from hfgpt.base.lock import FolderLock
from hfgpt.config import Config
from hfgpt.runs import diagnose
from hfgpt.runs.facts import Surroundings
from hfgpt.runs.history import read_run
from hfgpt.runs.metrics import Record

ROOT = Path(__file__).parents[2]
CURVES = ROOT / "tests" / "fixtures" / "curves"
MADE = sorted(path.parent.name for path in CURVES.glob("*/metrics.jsonl"))
HEALTHY = [name for name in MADE if name.startswith("healthy.")]
SICK = [name for name in MADE if not name.startswith("healthy.")]
MAKE = runpy.run_path(str(CURVES / "make.py"))


def kinds(records: list[Record], recipe: Config | None = None) -> list[str]:
    return [finding.kind for finding in diagnose.diagnose(records, recipe)]


def falling(end: float = 1.5, steps: int = 200, **more: float) -> list[Record]:
    """Return a healthy run's record: from chance among 65 characters down to `end`, evaluated every 20 steps."""
    records: list[Record] = []
    for step in range(steps + 1):
        loss = end + (4.17 - end) * math.exp(-step / 30)
        record: Record = {"step": step}
        if step:
            record |= {"train_loss": loss, "grad_norm": 0.5, "learning_rate": 1e-3, **more}
        if step % 20 == 0:
            record |= {"train_eval_loss": loss, "val_loss": loss + 0.02}
        records.append(record)
    return records


def recipe(**values: object) -> Config:
    shape = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 64, "dropout": 0.2}
    return config.build({**shape, "max_iters": 200, **values}, "test")


# ------------------------------------------------------------------------------------------------ real curves


def test_there_are_enough_curves() -> None:
    assert len(HEALTHY) >= 20
    assert {name.split(".")[0] for name in SICK} == {
        "overfitting", "underfitting", "learning_rate_too_low", "learning_rate_too_high", "diverged", "clipping_always",
    }  # fmt: skip


def test_the_curves_are_those_of_the_script_that_makes_them(tmp_path: Path) -> None:
    for name in MADE:
        values = {key: value for key, value in {**MAKE["BASE"], **MAKE["CURVES"][name]}.items() if key != "slice"}
        assert yaml.safe_load((CURVES / name / "recipe.yaml").read_text()) == values, name
    assert len(MAKE["write_slice"](10_000, tmp_path).read_text()) == 10_000


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_gets_no_alarm_at_its_end_nor_underway(name: str) -> None:
    run = read_run(CURVES / name)
    assert kinds(run.records, run.config) == ["healthy"]
    assert kinds(run.records, None) == ["healthy"], "without its recipe"
    for length in range(1, len(run.records), 5):
        assert kinds(run.records[:length], run.config) == ["healthy"], f"after {length} records"


@pytest.mark.parametrize("name", SICK)
def test_a_run_made_to_go_wrong_is_recognised(name: str) -> None:
    run = read_run(CURVES / name)
    assert name.split(".")[0] in kinds(run.records, run.config)


@pytest.mark.parametrize("name", MADE)
def test_every_override_can_be_typed_as_it_is(name: str) -> None:
    run = read_run(CURVES / name)
    for finding in diagnose.diagnose(run.records, run.config):
        for remedy in finding.remedies:
            if remedy.override:
                changed = config.load(CURVES / name / "recipe.yaml", remedy.override.split())
                assert changed != run.config


@pytest.mark.parametrize(
    ("log", "kind"), [("nanogpt_issue_97.log", "overfitting"), ("nanogpt_issue_215.log", "diverged")]
)
def test_cases_that_users_of_nanogpt_published(log: str, kind: str) -> None:
    assert kind in kinds(read_run(CURVES / log).records)


# ------------------------------------------------------------------------------------- each kind, at its limits


def test_the_chapters_own_examples() -> None:
    def ends(train: float, val: float) -> list[str]:
        return kinds(
            [
                {"step": 0, "train_eval_loss": 4.17, "val_loss": 4.17},
                {"step": 5000, "train_eval_loss": train, "val_loss": val},
            ]
        )

    assert ends(0.5, 2.0) == ["overfitting", "data_starved"], "6.3"
    assert ends(2.5, 2.6) == ["underfitting"], "6.4"
    assert ends(0.8, 0.9) == ["healthy"], "3.2"
    assert ends(0.5, 1.2) == ["overfitting", "data_starved"], "3.2"


def test_overfitting_says_since_when_and_what_early_stopping_saves() -> None:
    records = falling(1.0, 400)
    for record in records:
        if "val_loss" in record and record["step"] > 100:
            record["val_loss"] = 1.3 + (record["step"] - 100) / 500
    for record in records:
        if "train_eval_loss" in record:
            record["train_eval_loss"] -= 0.001 * record["step"]
    finding = diagnose.diagnose(records, recipe(max_iters=400, eval_interval=20))[0]
    assert (finding.kind, finding.since_step) == ("overfitting", 100)
    assert "saved 240 of 400 steps (60%)" in finding.evidence
    assert [remedy.chapter for remedy in finding.remedies] == [f"6.3, strategy {i}" for i in (1, 2, 3, 4, 5, 5)]
    assert [remedy.override for remedy in finding.remedies] == [
        "--dropout=0.3",
        "--weight_decay=0.2",
        "--n_layer=4 --n_head=4 --n_embd=256",
        "--dataset=PATH_OR_HUB_ID",
        "--max_iters=160 --lr_decay_iters=160",
        "--early_stopping_patience=3",
    ], "the chapter's own steps, from its own recipe"
    low = min(record["val_loss"] for record in records if "val_loss" in record)
    assert finding.remedies[0].expected == f"at the end about {low:.2f}, the lowest of this run, not 1.90"
    assert "fewer steps" in finding.remedies[4].what


@pytest.mark.parametrize(("epochs", "first"), [(3.0, "fewer steps"), (5.0, "more dropout")])
def test_dropout_is_a_trade_off_where_the_text_was_hardly_repeated(epochs: float, first: str) -> None:
    records = falling(1.0, 400)
    for record in records:
        record["epoch"] = epochs * record["step"] / 100
        if "val_loss" in record and record["step"] > 100:
            record["val_loss"] = 1.3 + (record["step"] - 100) / 500
    finding = diagnose.diagnose(records, recipe(max_iters=400, eval_interval=20))[0]
    assert (finding.kind, finding.since_step) == ("overfitting", 100)
    assert first in finding.remedies[0].what
    dropout = next(remedy for remedy in finding.remedies if "dropout" in (remedy.override or ""))
    assert ("trade-off" in dropout.expected) == (epochs < 4)


@pytest.mark.parametrize(("dropout", "advised"), [(0.0, "0.2"), (0.45, "0.5"), (0.5, None), (0.6, None)])
def test_dropout_is_raised_to_half_at_most(dropout: float, advised: str | None) -> None:
    records = falling(1.0, 400)
    for record in records:
        if "val_loss" in record and record["step"] > 100:
            record["val_loss"] = 1.3 + (record["step"] - 100) / 500
    finding = diagnose.diagnose(records, recipe(max_iters=400, eval_interval=20, dropout=dropout))[0]
    assert finding.kind == "overfitting"
    overrides = [remedy.override for remedy in finding.remedies if "dropout" in remedy.what]
    assert overrides == ([f"--dropout={advised}"] if advised else [])
    assert "the lowest of this run" in finding.remedies[0].expected


@pytest.mark.parametrize("name", SICK)
def test_the_first_advice_names_the_figure_to_expect(name: str) -> None:
    run = read_run(CURVES / name)
    findings = diagnose.diagnose(run.records, run.config)
    assert all(re.search(r"\d", finding.remedies[0].expected) for finding in findings)
    assert findings[0].remedies[0].expected in diagnose.report(findings)


def test_a_run_that_hardly_overfits_is_not_shortened() -> None:
    """Its best evaluation comes late, when the learning rate is down."""
    run = read_run(CURVES / "overfitting.30k")
    assert run.config is not None
    finding = diagnose.diagnose(run.records, run.config)[0]
    assert finding.kind == "overfitting"
    assert finding.since_step > 0.6 * run.config.max_iters
    assert not any("max_iters" in (remedy.override or "") for remedy in finding.remedies)


def test_a_rise_of_validation_loss_by_chance_is_no_overfitting() -> None:
    records = falling(1.5)
    records[-1]["val_loss"] += 0.03
    assert kinds(records, recipe()) == ["healthy"]


def test_a_wide_gap_is_named_while_the_validation_loss_still_gains() -> None:
    records = falling(1.5)
    for record in records:
        if "val_loss" in record:
            record["val_loss"] = record["train_eval_loss"] * 1.7
    (finding,) = diagnose.diagnose(records, recipe())
    assert finding.kind == "healthy"
    assert "far above the train loss (2.56 and 1.50)" in finding.evidence
    assert "Nothing is wrong" not in finding.evidence


def test_a_longer_run_is_not_foreseen_where_the_text_is_learned_by_heart() -> None:
    run = read_run(CURVES / "healthy.seed_0")
    longer = "more steps would end at"
    assert any(longer in note for note in diagnose.notes(run.records, run.config))
    memorised = [
        record | ({"train_eval_loss": record["val_loss"] / 1.7} if "val_loss" in record else {})
        for record in run.records
    ]
    assert kinds(memorised, run.config) == ["healthy"]
    assert not any(longer in note for note in diagnose.notes(memorised, run.config))
    repeated = [
        record
        | {"epoch": record["step"] / 200}
        | ({"train_eval_loss": record["val_loss"] - 0.5} if "val_loss" in record else {})
        for record in run.records
    ]
    assert kinds(repeated, run.config) == ["healthy"]
    notes = diagnose.notes(repeated, run.config)
    assert not any(longer in note for note in notes)
    assert any("it sees the text 5 times, and the validation loss is 0.50 above" in note for note in notes)


@pytest.mark.parametrize(("norm", "said"), [(1.5, "harmless: half of the norms are below 1.5"), (9.0, "100% of the")])
def test_gradients_that_are_clipped_a_little_are_no_reason_to_worry(norm: float, said: str) -> None:
    records = falling(1.5)
    for record in records:
        if "train_loss" in record:
            record["grad_norm"] = norm
    (note,) = [note for note in diagnose.notes(records, recipe()) if "clipping" in note]
    assert said in note
    assert ("harmless" in note) == (kinds(records, recipe()) == ["healthy"])


def test_underfitting_takes_the_chapters_steps() -> None:
    finding = diagnose.diagnose(falling(2.7), recipe())[0]
    assert (finding.kind, finding.since_step) == ("underfitting", 200)
    assert [remedy.override for remedy in finding.remedies] == [
        "--n_layer=12 --n_head=12 --n_embd=768",
        "--dropout=0.1 --weight_decay=0.05",
        "--max_iters=400 --lr_decay_iters=400",
        "--learning_rate=0.0018 --min_lr=0.00018",
        None,
    ]


@pytest.mark.parametrize(("pairs", "kind"), [(1.4, "underfitting"), (1.9, "healthy")])
def test_a_run_is_measured_against_counting_pairs_in_its_own_text(pairs: float, kind: str) -> None:
    """A Chinese text's ratio to a random guess is not that of English letters."""
    records = falling(1.5)
    records[0]["ngram_loss_2"] = pairs
    (finding,) = diagnose.diagnose(records, recipe())
    assert finding.kind == kind
    assert ("which token follows which reaches 1.40" in finding.evidence) == (kind == "underfitting")


def test_underfitting_is_first_answered_by_a_longer_run_while_the_loss_still_falls() -> None:
    finding = diagnose.diagnose(falling(2.0, 40), recipe(max_iters=40))[0]
    assert finding.kind == "underfitting"
    assert finding.remedies[0].override == "--max_iters=80 --lr_decay_iters=80"
    assert len([remedy for remedy in finding.remedies if "max_iters" in (remedy.override or "")]) == 1


def test_a_text_that_was_seen_many_times_is_not_called_sound() -> None:
    records = [record | {"epoch": record["step"] / 10} for record in falling(1.5)]
    for record in records:
        if "val_loss" in record:
            record["val_loss"] = record["train_eval_loss"] + 0.5
    (finding,) = diagnose.diagnose(records, recipe())
    assert finding.kind == "healthy"
    assert "begins to learn the text by heart" in finding.evidence


def test_a_run_underway_is_not_yet_underfitting() -> None:
    assert kinds(falling(2.7)[:100], recipe()) == ["healthy"]


def test_a_pretrained_model_is_not_judged_by_chance() -> None:
    assert kinds(falling(3.2), recipe(init_from="gpt2", tokenizer="gpt2")) == ["healthy"]


def test_the_spare_bytes_of_the_character_tokenizer_are_no_chance_to_beat() -> None:
    records = falling(2.9)
    records[0]["val_loss"] = math.log(330)
    assert "underfitting" in kinds(records, recipe(tokenizer="char"))
    assert "underfitting" not in kinds(records, recipe(tokenizer="bpe", vocab_size=330))


@pytest.mark.parametrize("start", [5.70, 5.90])
def test_a_random_guess_is_among_the_characters_of_the_text(start: float) -> None:
    """Their number was recorded; the loss of a new model tells it roughly."""
    records = falling(2.9)
    records[0] |= {"val_loss": start, "vocab_size": 74 + 256}
    assert "costs 4.30" in diagnose.diagnose(records, recipe(tokenizer="char"))[0].evidence


@pytest.mark.parametrize("key", ["train_loss", "val_loss", "grad_norm"])
def test_a_number_that_is_none_means_divergence_and_nothing_else(key: str) -> None:
    records = falling()
    for record in records[140:]:
        if key in record:
            record[key] = math.nan
    finding = diagnose.diagnose(records, recipe())[0]
    assert (finding.kind, finding.since_step) == ("diverged", 140)
    assert finding.remedies[0].override == "--learning_rate=6e-05 --min_lr=6e-06"


def test_a_lower_rate_is_lower_for_muon_too() -> None:
    records = [*falling(), {"step": 201, "train_loss": math.nan}]
    for optimizer in ("adamw", "muon"):
        rates = recipe(optimizer=optimizer, learning_rate=1e-3, min_lr=1e-4, muon_learning_rate=0.02)
        [finding] = diagnose.diagnose(records, rates)
        typed = dict(word.removeprefix("--").split("=") for word in finding.remedies[0].override.split())
        lower = float(typed.pop("learning_rate"))
        assert float(typed.pop("min_lr")) == pytest.approx(lower / 10)
        assert {key: float(rate) / lower for key, rate in typed.items()} == (
            {"muon_learning_rate": pytest.approx(20)} if optimizer == "muon" else {}
        )


def test_an_update_left_out_or_an_overflow_is_no_divergence() -> None:
    records = falling()
    records[150] |= {"train_loss": math.nan, "grad_norm": math.nan}
    records[-1]["grad_norm"] = math.inf
    assert kinds(records, recipe()) == ["healthy"]


def test_a_train_loss_that_rises_on_the_same_blocks_is_a_rate_too_high() -> None:
    records = falling()
    for record in records[150:]:
        record["train_loss"] += 0.3
        if "train_eval_loss" in record:
            record["train_eval_loss"] += 0.3
            record["val_loss"] += 0.3
    finding = diagnose.diagnose(records, recipe())[0]
    assert (finding.kind, finding.since_step) == ("learning_rate_too_high", 140)
    assert finding.remedies[0].override == "--learning_rate=0.0003 --min_lr=3e-05", "half, as 3.1 says"


def extended(rate: float, later: float, rise: float, end: float = 1.5) -> list[Record]:
    """Return the record of a run whose rate changes after step 100, where its loss rises over a few evaluations."""
    records = falling(end)
    for record in records[1:]:
        record["learning_rate"] = rate if record["step"] <= 100 else later
    for record in records:
        if record["step"] > 100 and "val_loss" in record:
            for key in ("train_eval_loss", "val_loss"):
                record[key] += rise * min(1.0, (record["step"] - 100) / 60)
    return records


def test_a_loss_that_rises_with_the_rate_of_a_longer_run_is_no_rate_too_high() -> None:
    """A run of wsd that was resumed to be longer ends its decay and holds the peak again."""
    assert kinds(extended(1e-3, 1e-3, 0.4), recipe()) == ["learning_rate_too_high"]
    warming = extended(1e-3, 1e-3, 0.4)
    for record in warming[1:]:
        record["learning_rate"] = 5e-6 * record["step"]
    assert kinds(warming, recipe()) == ["learning_rate_too_high"], "a first warm-up"
    records = extended(1e-3, 1e-3, 0.4)
    for record in records[81:101]:
        record["learning_rate"] = 1e-4
    assert kinds(records, recipe()) == ["healthy"]
    for record in records[180:]:  # from where it falls again it should only fall
        for key in record.keys() & {"train_eval_loss", "val_loss"}:
            record[key] += {180: -0.2, 200: 0.2}[record["step"]]
    assert kinds(records, recipe()) == ["learning_rate_too_high"]


def test_a_loss_that_rises_with_a_new_recipe_is_no_rate_too_high() -> None:
    """With more dropout the evaluated train loss rises, whatever the rate."""
    records, around = extended(1e-3, 2e-4, 0.4), Surroundings(changes=(100,))
    assert [found.kind for found in diagnose.diagnose(records, recipe(), around)] == ["healthy"]
    records[0]["branch_step"] = 100
    assert kinds(records, recipe()) == ["healthy"]


def test_the_rate_of_the_last_steps_is_not_said_to_be_that_of_all() -> None:
    records = extended(5e-3, 1e-5, 0.0, end=2.9)
    assert "learning_rate_too_low" in kinds(extended(1e-5, 1e-5, 0.0, end=2.9), recipe(learning_rate=1e-5))
    assert "learning_rate_too_low" not in kinds(records, recipe(learning_rate=1e-5))
    changed = Surroundings(changes=(100,))
    for around, told in ((Surroundings(), True), (changed, False)):
        findings = diagnose.diagnose(records, recipe(learning_rate=0.05), around)
        assert any("at a learning rate of 0.05" in found.evidence for found in findings) is told


def test_a_run_that_training_stopped_for_its_gradients_has_diverged() -> None:
    """Its last record says so; our own record leaves the overflows of float16 out, a Trainer's does not."""
    stop: Record = {"step": 191, "train_loss": 1.5, "learning_rate": 1e-3, "grad_norm": math.nan}
    (finding,) = diagnose.diagnose([*falling(steps=190, seconds=1.0), stop], recipe(), Surroundings(written=1e9))
    assert (finding.kind, finding.since_step) == ("diverged", 191)
    assert kinds([*falling(steps=190), stop], recipe()) == ["healthy"]
    finished = falling(seconds=1.0)
    finished[-1]["grad_norm"] = math.nan
    assert kinds(finished, recipe()) == ["healthy"], "the evaluation after it is sound"


def plateau(*steps: int) -> list[Record]:
    """Return the record of a run of 200 steps, whose evaluations at these steps are no better than those before."""
    records = falling(1.5)
    for step in steps:
        records[step]["val_loss"] = 1.56
    return records


STOPS = {"max_iters": 400, "eval_interval": 20, "early_stopping_patience": 3}


def test_a_run_that_early_stopping_ended_is_not_told_to_be_longer() -> None:
    records = plateau(160, 180, 200)
    assert kinds(records, recipe(**STOPS)) == ["healthy"]
    notes = "\n".join(diagnose.notes(records, recipe(**STOPS)))
    assert (
        "Early stopping ended the run at step 200 of 400: the last 3 evaluations brought no better validation loss."
        in notes
    )
    assert "--max_iters" not in notes
    high = falling(3.5, learning_rate=1e-5)
    for step in (160, 180, 200):
        high[step]["val_loss"] = 3.6
    findings = diagnose.diagnose(high, recipe(learning_rate=1e-5, **STOPS))
    assert [finding.kind for finding in findings] == ["learning_rate_too_low", "underfitting"]
    assert not any("max_iters" in (remedy.override or "") for finding in findings for remedy in finding.remedies)


def test_early_stopping_counts_as_training_does() -> None:
    """Not the evaluations of a branch's trunk, nor those worse ones that are out of turn, as before a stop."""
    around = Surroundings(written=1e9)

    def found(records: list[Record]) -> list[str]:
        return [finding.kind for finding in diagnose.diagnose(records, recipe(**STOPS), around)]

    assert found(plateau(160, 180, 200)) == ["healthy"]
    assert found(plateau(180, 190, 200)) == ["interrupted"]
    branch = plateau(160, 180, 200)
    branch[0]["branch_step"] = 180
    assert found(branch) == ["interrupted"]


def test_early_stopping_is_not_advised_where_an_earlier_plateau_would_have_ended_the_run() -> None:
    def said(plateau: float) -> str:
        records = falling(1.0, 400)
        for record in records:
            if "val_loss" in record:
                record["train_eval_loss"] -= 0.001 * record["step"]
                if record["step"] > 160:
                    record["val_loss"] = 1.3 + record["step"] / 500
                elif 20 < record["step"] < 100:
                    record["val_loss"] = plateau
        findings = diagnose.diagnose(records, recipe(max_iters=400, eval_interval=20))
        assert findings[0].kind == "overfitting"
        return diagnose.report(findings)

    assert "--early_stopping_patience=3" in said(2.0)
    assert "would have kept the same best model" in said(2.0)
    assert "arly" not in said(3.0)


def test_no_rate_comes_down_with_a_constant_one() -> None:
    records = falling(1.0, 400)
    for record in records:
        if "val_loss" in record:
            record["train_eval_loss"] -= 0.001 * record["step"]
            if record["step"] > 100:
                record["val_loss"] = 1.3 + record["step"] / 500
    said = diagnose.report(diagnose.diagnose(records, recipe(max_iters=400, eval_interval=20, lr_schedule="constant")))
    assert "so that the run ends before the text is learnt by heart: max_iters 400 → 100" in said
    assert "lr_decay_iters" not in said
    assert "come down" not in said


def test_one_spike_is_noted_and_several_are_an_alarm() -> None:
    records = falling()
    records[100]["train_loss"] += 3
    assert kinds(records, recipe()) == ["healthy"]
    assert any("leapt once" in note for note in diagnose.notes(records, recipe()))
    for step in (120, 140, 160):
        records[step]["train_loss"] += 3
    assert kinds(records, recipe()) == ["learning_rate_too_high"]


def test_clipping_by_little_is_no_alarm() -> None:
    assert kinds(falling(grad_norm=2.0), recipe()) == ["healthy"], "as in shakespeare_char_cpu, which trains well"
    assert kinds(falling(grad_norm=3.0), recipe()) == ["clipping_always"]
    assert kinds(falling(grad_norm=3.0), recipe(grad_clip=0.0)) == ["healthy"]
    assert kinds(falling(grad_norm=3.0), None) == ["healthy"], "without a recipe grad_clip is not known"


def test_waiting_for_data_is_seen() -> None:
    speed = {"tokens_per_second": 64 * 256 / 0.1}
    assert kinds(falling(**speed, data_seconds=0.01), recipe()) == ["healthy"]
    finding = diagnose.diagnose(falling(**speed, data_seconds=0.06), recipe(streaming=True))[0]
    assert finding.kind == "input_bound"
    assert "60% of a step" in finding.evidence
    assert finding.remedies[0].override == "--no_streaming"


def test_repeats_of_the_text_tell_that_it_is_too_little() -> None:
    records = falling(1.0, 400)
    for record in records:
        record["epoch"] = record["step"] / 10
        if "val_loss" in record and record["step"] > 100:
            record["val_loss"] = 1.3 + (record["step"] - 100) / 1000
    assert kinds(records, recipe(max_iters=400)) == ["overfitting", "data_starved"]
    for record in records:
        record["epoch"] = record["step"] / 400
    assert kinds(records, recipe(max_iters=400)) == ["overfitting"]


# ------------------------------------------------------------------------------------------------------- notes


def test_notes_tell_of_compilation_and_of_time_spent_evaluating() -> None:
    records = falling()
    for record in records:
        record |= {"tokens_per_second": 64 * 256 / 0.1, "seconds": 30 + record["step"] * 0.1 + record["step"] // 20 * 4}
    records[1]["tokens_per_second"] = 64 * 256 / 30
    notes = "\n".join(diagnose.notes(records, recipe(compile=True, eval_interval=20)))
    assert "the first step took 30s, as long as 299 usual ones. That is compilation" in notes
    assert re.search(r"Evaluations.*took 67% of the time.*--eval_interval=40", notes)


def test_a_batch_warm_up_is_no_slow_start_and_hides_no_evaluations() -> None:
    """Its first steps have a few sequences, which take less time than their share of a whole step's."""
    warms = recipe(eval_interval=20, batch_warmup_iters=190)
    records = falling()
    for record in records:
        seconds = warms.tokens_by(record["step"]) / (64 * 256) * 0.1
        record |= {"tokens_per_second": 64 * 256 / 0.1, "seconds": seconds + record["step"] // 20 * 1.5}
    records[1]["tokens_per_second"] = 256 / 0.1  # one sequence
    notes = "\n".join(diagnose.notes(records, warms))
    assert "Slow start" not in notes
    assert re.search(r"Evaluations.*took 59% of the time", notes)
    records[1]["tokens_per_second"] = 256 / 30
    assert "the first step took 30s" in "\n".join(diagnose.notes(records, warms))
    records[0]["branch_step"] = 100
    assert "Slow start" not in "\n".join(diagnose.notes(records, warms)), "that step was another run's"


def test_a_leap_has_come_back_once_a_later_record_shows_it() -> None:
    records = falling()
    records[100]["train_loss"] += 3
    assert "came back" not in "\n".join(diagnose.notes(records[:101], recipe()))
    assert "and came back" in "\n".join(diagnose.notes(records[:102], recipe()))


def test_fewer_evaluations_keep_the_tasks_in_step() -> None:
    often = recipe(eval_interval=20, eval_tasks_interval=60)
    records = falling()
    for record in records:
        record |= {"tokens_per_second": 64 * 256 / 0.1, "seconds": 0.1 * record["step"] + record["step"] // 20 * 1.5}
    assert "(--eval_interval=40 --eval_tasks_interval=80)" in "\n".join(diagnose.notes(records, often))


def test_notes_tell_whether_a_longer_run_would_help() -> None:
    assert any("levelled out" in note for note in diagnose.notes(falling(), recipe()))
    assert any("--max_iters=200" in note for note in diagnose.notes(falling(1.5, 100), recipe(max_iters=100)))


def test_a_run_of_few_evaluations_that_still_learnt_is_told_to_go_on() -> None:
    records = [record for record in falling(1.5, 100) if record["step"] in (0, 1, 60, 100)]
    records[2] |= {"train_eval_loss": 1.8, "val_loss": 1.82}
    (note,) = [note for note in diagnose.notes(records, recipe(max_iters=100)) if "--max_iters=200" in note]
    loss = records[-1]["val_loss"]
    assert f"a longer run would end below {loss:.2f}: --max_iters=200" in note
    known_by_heart = [record | {"epoch": 3.0} for record in records]
    known_by_heart[-1] |= {"train_eval_loss": loss - 0.5}
    assert not any("--max_iters" in note for note in diagnose.notes(known_by_heart, recipe(max_iters=100)))


def test_a_run_whose_time_decides_is_told_a_longer_time() -> None:
    """Its max_iters has no effect."""
    timed = recipe(max_iters=100, time_budget="1m40s")
    records = falling(1.5, 100)
    records[4]["horizon"] = 100
    notes = "\n".join(diagnose.notes(records, timed))
    assert "--time_budget=200s" in notes
    assert "--max_iters" not in notes
    assert diagnose.suggestion(records, timed) == "--time_budget=200s"


def timed_run(folder: Path, last: int, horizons: dict[int, int], **first: float) -> Path:
    """Write the folder of a run with a time budget whose recipe still has the length that it began with."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("time_budget: 10m\nblock_size: 64\n")  # max_iters: 5000
    lines = [{"step": 0, "val_loss": 4.2, "train_eval_loss": 4.2, **first}]
    for step in range(last // 40, last + 1, last // 40):
        loss = 1.5 + 2.7 * math.exp(-step / (last / 10))
        lines.append({"step": step, "train_loss": loss, "train_eval_loss": loss, "val_loss": loss + 0.02})
    lines += [{"step": step, "horizon": length} for step, length in horizons.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_with_a_time_budget_is_as_long_as_its_record_says(tmp_path: Path) -> None:
    """Its recipe gets the decided length only at the end; until then its max_iters says nothing."""
    killed = timed_run(tmp_path / "killed", 8000, {8: 50_000, 4000: 60_000})
    (killed / "checkpoint-7750").mkdir()
    (killed / "checkpoint-7750" / "COMPLETE").touch()
    run = read_run(killed)
    assert run.config is not None
    assert (run.config.max_iters, run.config.warmup_iters, run.config.lr_decay_iters) == (60_000, 2000, 60_000)
    (finding,) = diagnose.diagnose(run.records, run.config, run.around)
    assert finding.kind == "interrupted"
    said = script(str(killed)).stdout
    assert "of 60,000 steps" in said
    assert f"train.py {killed} --resume" in said
    assert "more steps would end" not in said
    short = timed_run(tmp_path / "short", 1600, {8: 2000})
    with FolderLock(short):
        said = script(str(short)).stdout
    assert "At its end, step 2,000, the validation loss is expected at" in said
    assert "stopped before" not in script(str(timed_run(tmp_path / "ended", 2000, {8: 2000}))).stdout


def test_a_run_whose_clock_has_decided_nothing_has_no_length(tmp_path: Path) -> None:
    """The decisions that a branch copied are those of another run."""
    for name, first in (("new", {}), ("branch", {"branch_step": 900, "branched": 1.7e9})):
        folder = timed_run(tmp_path / name, 8000, {8: 6000} if first else {}, **first)
        run = read_run(folder)
        assert run.config is not None
        assert "interrupted" in [each.kind for each in diagnose.diagnose(run.records, run.config, run.around)]
        assert f"{name}: 8,000 steps\n" in script(str(folder)).stdout


def test_a_recipe_that_has_the_decided_length_is_read_as_it_is(tmp_path: Path) -> None:
    """It was scaled when it was written."""
    folder = timed_run(tmp_path / "ended", 60_000, {8: 50_000, 4000: 60_000})
    (folder / "recipe.yaml").write_text("time_budget: 10m\nmax_iters: 60000\nwarmup_iters: 900\nblock_size: 64\n")
    run = read_run(folder)
    assert run.config is not None
    assert (run.config.max_iters, run.config.warmup_iters) == (60_000, 900)
    assert "interrupted" not in [each.kind for each in diagnose.diagnose(run.records, run.config, run.around)]


def test_a_healthy_run_without_a_forecast_is_told_what_would_lower_its_loss() -> None:
    few = [record for record in falling(1.5, 100) if record["step"] in (0, 1, 90, 100)]
    assert any(
        "A lower loss takes a longer run (--max_iters=200" in note
        for note in diagnose.notes(few, recipe(max_iters=100))
    )


def test_what_to_try_first_can_be_typed_as_it_is() -> None:
    """More text takes a name that nobody knows yet."""
    starved = read_run(CURVES / "overfitting.30k")
    first = diagnose.suggestion(starved.records, starved.config)
    assert first is not None
    assert first.startswith("--")
    assert "PATH" not in first


def test_a_note_says_where_the_curve_leads() -> None:
    run = read_run(CURVES / "healthy.seed_0")
    notes = "\n".join(diagnose.notes(run.records, run.config))
    said = re.search(r"A run of 500 more steps would end at about ([\d.]+) ± ([\d.]+): --max_iters=1000", notes)
    assert said, notes
    assert abs(float(said[1]) - 1.985) <= float(said[2]), "healthy.longer ended there"
    underway = [record for record in run.records if record["step"] <= 400]
    notes = "\n".join(diagnose.notes(underway, run.config))
    said = re.search(r"At its end, step 500, the validation loss is expected at ([\d.]+) ± ([\d.]+\d)", notes)
    assert said, notes
    assert abs(float(said[1]) - run.series("val_loss")[1][-1]) <= float(said[2])


@pytest.mark.parametrize("name", MADE)
def test_no_advice_contradicts_another(name: str) -> None:
    run = read_run(CURVES / name)
    findings = diagnose.diagnose(run.records, run.config)
    remedies = [remedy for finding in findings for remedy in finding.remedies]
    assert not any(a.contradicts(b) for a in remedies for b in remedies)
    notes = "\n".join(diagnose.notes(run.records, run.config))
    if name.startswith(("diverged", "overfitting", "learning_rate_too_high")):
        assert "still falls" not in notes
        assert "more steps" not in notes
        assert "levelled out" not in notes


def test_gradients_always_clipped_do_not_lower_a_rate_that_is_too_low() -> None:
    records = falling(2.9, grad_norm=5.0, learning_rate=5e-5)
    findings = diagnose.diagnose(records, recipe(learning_rate=5e-5))
    assert {"learning_rate_too_low", "clipping_always"} <= {finding.kind for finding in findings}
    rates = [
        remedy.override
        for finding in findings
        for remedy in finding.remedies
        if "learning_rate=" in (remedy.override or "")
    ]
    assert all("--learning_rate=0.001" in rate for rate in rates[:1])
    assert not any(remedy.directions.get("learning_rate") == -1 for finding in findings for remedy in finding.remedies)


@given(st.lists(st.dictionaries(
    st.sampled_from(["train_loss", "val_loss", "train_eval_loss", "grad_norm", "learning_rate", "seconds",
                     "tokens_per_second", "data_seconds", "epoch"]),
    st.floats() | st.integers(-5, 5) | st.integers(-(10**300), 10**300), min_size=1), min_size=1, max_size=30),
    st.booleans())  # fmt: skip
def test_whatever_a_record_says_it_can_be_diagnosed(values: list[dict[str, float]], known: bool) -> None:
    records: list[Record] = [{"step": 7 * i, **own} for i, own in enumerate(values)]
    assert diagnose.summary(records, recipe() if known else None)


# ------------------------------------------------------------------------------------------------- odd records, script


@pytest.mark.parametrize(
    "records",
    [
        [{"step": 0, "val_loss": 4.2}],
        [{"step": 0, "val_loss": math.nan}],
        [{"step": 1, "train_loss": 4.2}],
        [{"step": 1, "train_loss": math.nan}],
        [{"step": 500, "train_loss": 3.0, "learning_rate": 5e-5}],
        [{"step": 5, "learning_rate": 1e-3}],
        [{"step": 3, "train_loss": 0.0}, {"step": 4, "train_loss": 0.0, "val_loss": 0.0}],
    ],
    ids=str,
)
@pytest.mark.parametrize("known", [None, recipe()], ids=["no recipe", "recipe"])
def test_any_record_can_be_diagnosed(records: list[Record], known: Config | None) -> None:
    assert diagnose.summary(records, known)


def script(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts/diagnose.py", *words], capture_output=True, text=True, check=False
    )


def test_the_script_prints_findings_as_data() -> None:
    answer = script(str(CURVES / "nanogpt_issue_97.log"), "--json")
    assert answer.returncode == 0
    data = json.loads(answer.stdout)
    assert set(data["findings"][0]) == {"kind", "since_step", "evidence", "remedies"}
    assert set(data["findings"][0]["remedies"][0]) == {"what", "chapter", "override", "expected"}
    assert data["findings"][0]["kind"] == "overfitting"


def test_the_script_answers_a_trainers_state(tmp_path: Path) -> None:
    history = [{"step": s, "loss": 4.2 / (1 + s / 50), "learning_rate": 1e-3} for s in range(1, 500, 10)]
    history += [{"step": s, "eval_loss": 1.2 + abs(s - 200) / 200} for s in range(50, 500, 50)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    answer = script(str(tmp_path))
    assert answer.returncode == 0
    assert "overfitting, since step 200" in answer.stdout


def test_the_script_says_what_is_no_run(tmp_path: Path) -> None:
    answer = script(str(tmp_path))
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "no run here" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_run_that_was_killed_is_told_how_to_go_on(tmp_path: Path) -> None:
    """Its record ends early, and no process holds its folder; while one does, it is in progress."""
    folder = tmp_path / "killed"
    (folder / "checkpoint-120").mkdir(parents=True)
    (folder / "checkpoint-120" / "COMPLETE").touch()
    (folder / "recipe.yaml").write_text("max_iters: 200\nblock_size: 64\nlog_interval: 1\n")
    lines = falling()[:134]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(folder / "metrics.jsonl", (0, 1.7e9))
    when = datetime.fromtimestamp(1.7e9).strftime("%Y-%m-%d %H:%M:%S")
    said = script(str(folder)).stdout
    assert "stopped before its end\n" in said
    assert f"ends at step 133 of 200. It was last written at {when}, and no process trains in the folder." in said
    assert "--resume continues from its newest checkpoint, of step 120." in said
    assert f"train.py {folder} --resume" in said
    assert "Nothing is wrong" not in said
    (finding,) = json.loads(script(str(folder), "--json").stdout)["findings"]
    assert finding["kind"] == "interrupted"
    with FolderLock(folder):
        said = script(str(folder)).stdout
        assert "Nothing is wrong so far." in said
        assert "--resume" not in said
    (folder / "recipe.yaml").write_text("max_iters: 133\nblock_size: 64\n")
    assert "stopped before" not in script(str(folder)).stdout


def test_diagnosing_needs_no_torch() -> None:
    code = "import sys, hfgpt.runs.diagnose; assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("place", [".", "metrics.jsonl", "../run"])
def test_inside_a_run_folder_the_new_one_lies_beside_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(CURVES / "overfitting.30k", folder)
    monkeypatch.chdir(folder)
    done = script(place)
    assert done.returncode == 0, done.stderr
    new = Path(re.findall(r"--out_dir=(\S+)", done.stdout)[-1])
    assert (folder / new).resolve() == tmp_path / "run-2"
