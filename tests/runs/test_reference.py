"""A run is compared with its recipe's curve, and never with a curve of another recipe or text."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from hfgpt import config
from hfgpt.config import Config
from hfgpt.data.sources import EMBEDDED
from hfgpt.runs import diagnose, reference, segments
from hfgpt.runs.history import surroundings
from hfgpt.runs.metrics import Record


def recipe(*overrides: str, name: str = "quick_experiment") -> Config:
    return config.load(ROOT / "recipes" / f"{name}.yaml", overrides)


def notes(loss: float, at: Config, steps: Sequence[int] = (500,)) -> str:
    records: list[Record] = [{"step": 0, "val_loss": 5.8}]
    records += [{"step": step, "val_loss": loss, "train_loss": loss} for step in steps]
    return "\n".join(diagnose.notes(records, at))


def test_a_curve_that_is_as_it_should_be() -> None:
    known = reference.of(recipe())
    assert known is not None
    assert known.seeds == 3
    mean = known.at(500)
    assert mean is not None
    assert f"At step 500: {mean.loss:.2f}, reference {mean} (quick_experiment.yaml, 3 seeds). This is as" in notes(
        mean.loss, recipe()
    )
    assert "higher than another seed explains" in notes(mean.high + 0.1, recipe())
    assert "lower than another seed explains" in notes(mean.low - 0.1, recipe())
    assert known.at(501) is None, "nothing is known beyond the curve"
    assert f"At step 500: {mean.loss:.2f}, reference" in notes(mean.loss, recipe(), (500, 750)), "the last known place"
    between = known.at(475)
    assert between is not None
    assert min(known.losses[500]) < between.loss < max(known.losses[450])


@pytest.mark.parametrize("change", [
    "--learning_rate=2e-3", "--n_embd=64", "--batch_size=32", "--dropout=0.1", "--beta2=0.99", "--optimizer=muon",
    "--max_iters=300", "--warmup_iters=5", "--eval_iters=10", "--tokenizer=bpe", "--block_size=32",
    "--weight_decay=0.2", "--val_fraction=0.2", "--dataset=user/name", "--init_from=user/name",
    "--lr_schedule=constant", "--grad_clip=0",
])  # fmt: skip
def test_unlike_things_are_not_compared(change: str) -> None:
    assert reference.of(recipe(change)) is None


@pytest.mark.parametrize("change", [
    "--seed=7", "--eval_interval=20", "--out_dir=elsewhere", "--batch_size=8 --gradient_accumulation_steps=2",
    "--log_interval=1", "--dtype=float32", "--max_iters=300 --lr_decay_iters=500 --warmup_iters=25",
    "--muon_learning_rate=0.5",
])  # fmt: skip
def test_what_changes_no_loss_makes_no_difference(change: str) -> None:
    assert reference.of(recipe(*change.split())) is not None


def test_a_run_that_changed_on_the_way_is_not_compared(tmp_path: Path) -> None:
    """Its last recipe may be the reference's, although it did not train with that from the beginning."""
    records: list[Record] = [{"step": 0, "val_loss": 5.8}, {"step": 500, "val_loss": 2.24, "train_loss": 2.2}]

    def said(*then: str, records: list[Record] = records) -> str:
        (tmp_path / "metrics.jsonl").touch()
        segments.begin(tmp_path, 0, segments.deciding(recipe(*then), "float32"))
        segments.begin(tmp_path, 250, segments.deciding(recipe(), "float32"))
        return "\n".join(diagnose.notes(records, recipe(), surroundings(tmp_path)))

    assert "changed after step 250, so the run is not compared with the reference of quick_exp" in said("--dropout=0.1")
    assert "At step 500: 2.24, reference" in said("--eval_interval=10"), "it decides no loss"
    branch: list[Record] = [{"step": 0, "branched": 1e9, "branch_step": 100}, *records[1:]]
    assert "changed after step 100, so the run is not compared" in said(records=branch), "on another text"


def test_the_text_is_known_by_its_content(tmp_path: Path) -> None:
    copy = tmp_path / "my text.gz"
    copy.write_bytes(EMBEDDED.read_bytes())
    assert reference.of(recipe(f"--dataset={copy}")) is not None
    copy.write_bytes(gzip.compress(b"another text"))
    reference._sum.cache_clear()
    assert reference.of(recipe(f"--dataset={copy}")) is None


@pytest.mark.parametrize("entry", reference._entries(), ids=lambda entry: str(entry["recipe"]))
def test_every_curve_is_that_of_its_recipe(entry: dict[str, Any]) -> None:
    known = reference.of(recipe(name=entry["recipe"]))
    assert known is not None, "the recipe was changed since: python benchmarks/reference_curves.py"
    assert known.recipe == entry["recipe"]
    assert known.machine
    assert 0 < known.step_seconds < 60
