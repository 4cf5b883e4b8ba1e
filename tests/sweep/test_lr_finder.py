"""The range test: a rate from the shape of a curve, and one from a real model."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.sweep import lr_finder

RATES = [10 ** (-6 + 6 * i / 99) for i in range(100)]


def curve(middle: float, turn: float) -> list[float]:
    """Return a loss that falls most steeply at 10^middle and rises from 10^turn on."""
    falls = [4 - 2 / (1 + math.exp(-3 * (math.log10(rate) - middle))) for rate in RATES]
    return [loss + 8 * max(0.0, math.log10(rate) - turn) ** 2 for loss, rate in zip(falls, RATES, strict=True)]


def test_the_steepest_descent_is_suggested() -> None:
    rate, reason = lr_finder.suggest(RATES, curve(-3, -0.5))
    assert 0.5e-3 < rate < 2e-3
    assert "steeply" in reason


def test_a_tenth_of_the_turn_is_suggested_where_it_is_lower() -> None:
    rate, reason = lr_finder.suggest(RATES, curve(-2.0, -1.9))
    assert 0.5e-3 < rate < 3e-3
    assert "a tenth" in reason


def test_one_bad_batch_changes_nothing() -> None:
    losses = curve(-3, -0.5)
    spiked = [*losses[:55], 9.0, *losses[56:]]
    assert 0.5 < lr_finder.suggest(RATES, spiked)[0] / lr_finder.suggest(RATES, losses)[0] < 2


@pytest.mark.parametrize("losses", [[4.0] * 100, [4.0 + i for i in range(20)], []])
def test_a_loss_that_never_falls_suggests_nothing(losses: list[float]) -> None:
    with pytest.raises(InputError, match="does not fall"):
        lr_finder.suggest(RATES[: len(losses)], losses)


@pytest.mark.e2e
def test_a_real_model_gets_a_rate_and_nothing_but_a_picture_is_written(
    tiny: dict[str, Any],
    write_recipe: Callable[..., Path],
    run_script: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    recipe = write_recipe(tiny)
    done = run_script("lr_finder.py", recipe, "--steps=60", "--picture=rates.png")
    assert done.returncode == 0, done.stderr
    rate = float(done.stdout.split("suggested learning rate: ")[1].split()[0])
    assert 1e-5 < rate < 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rates.png", recipe.name]


def test_the_picture_replaces_nothing_but_a_picture(tiny: dict[str, Any], tmp_path: Path) -> None:
    text = tmp_path / "train.txt"
    text.write_text("what one has written")
    for wrong in (text, tmp_path):
        with pytest.raises(InputError, match=r"picture = .*: exists already, and is not a PNG file"):
            lr_finder.find(config.build(tiny, "test"), wrong)
    assert text.read_text() == "what one has written"
    with pytest.raises(InputError, match=r"picture = .*train\.txt/lr\.png': cannot be written: Not a directory"):
        lr_finder.find(config.build(tiny | {"dataset": "not looked at.txt"}, "test"), text / "lr.png")


def test_the_script_says_what_is_wrong(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for words, said in ((["--steps=ten"], "whole number"), (["--n_head=3"], "must divide")):
        answer = run_script("lr_finder.py", write_recipe(tiny), *words)
        assert (answer.returncode, answer.stdout) == (2, "")
        assert said in answer.stderr
