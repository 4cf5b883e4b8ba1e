"""The arguments of the command `plan`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from hfgpt.base.errors import InputError
from hfgpt.commands import plan

STANDARD = str(ROOT / "recipes" / "standard.yaml")


def test_options_and_overrides_in_any_order() -> None:
    arguments = plan.reader().read(
        ["--vram", "8GB", "recipe.yaml", "--n_layer=4", "--json", "--time-budget=1h30m", "--gpu=RTX 3060", "--compile"]
    )
    assert (arguments.vram, arguments.time_budget, arguments.gpu) == (8 * 2**30, 5400, "RTX 3060")
    assert (arguments.json, arguments.probe) == (True, False)
    assert (arguments.recipe, arguments.overrides) == ("recipe.yaml", ["--n_layer=4", "--compile=true"])


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 2**30), ("8", 8 * 2**30), ("8 GiB", 8 * 2**30), ("0.5g", 2**29), ("8192MB", 8 * 2**30), ("1T", 2**40)],
)
def test_sizes(text: str, size: int) -> None:
    assert plan.read_bytes(text) == size


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--vram=lots"], ["vram = 'lots': must be a size"]),
        (["--vram", "0"], ["vram"]),
        (["--vram"], ["vram: needs a value"]),
        (["--json=yes"], ["json = 'yes': takes no value"]),
        (["--time-budget=5"], ["must be a time with its unit"]),
        (["--price-per-hour=-3"], ["must be a number"]),
        (["--processes=0"], ["at least 1"]),
        (["--explain=n_layr"], ["did you mean 'n_layer'"]),
        (["--vrm=8GB"], ["vrm: is not a parameter", "did you mean 'vram'"]),
        (["--n_head=5"], ["must divide n_embd"]),
        (["--gpu=rtx3600"], ["the nearest are"]),
        (["--gpu=t4", "--device=cpu"], ["trains on the CPU"]),
        (["--processes=7"], ["cannot be shared equally"]),
        (["--data=none.txt"], ["no such file"]),
        (["--size=20"], ["must be a size with its unit"]),
        (["--size=2MB", f"--data={STANDARD}"], ["its own size counts"]),
        (["--size=2MB", "--dataset=shakespeare", "--write=x.yaml"], ["as in --data=novel.txt"]),
        (["--time-budget=1s"], ["give more time"]),
        (["--learning_rate=0.001，"], ["has full-width characters", "write --learning_rate=0.001"]),
        (["--max_iters=１０", "--dropout", "０．２"], ["write --max_iters=10", "write --dropout=0.2"]),
        (["--max_iters=٣"], ["must be an integer"]),
        (["max_iters=10", "-n_layer=2"], ["lacks its two hyphens", "write --max_iters=10", "write --n_layer=2"]),
        (["--vram=x", "--prob", "--n_head=5", "--n_layer"], ["vram = 'x'", "prob:", "n_head = 5", "n_layer: needs"]),
    ],
)
def test_bad_input_is_said_all_at_once(words: list[str], messages: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        plan.run([STANDARD, *words])
    assert all(message in str(caught.value) for message in messages), caught.value


def test_what_is_assumed_of_a_text_that_is_elsewhere_is_said() -> None:
    assert "assumed: 74 characters, and 256 bytes" in " ".join(plan.run([STANDARD, "--size=20MB"]).split())


def test_a_recipe_for_a_text_that_is_elsewhere(tmp_path: Path) -> None:
    """By its size alone: a small text gets a small model; no loss is forecast, since the text decides it."""
    made: dict[str, dict[str, Any]] = {}
    for size in ("30kB", "300MB"):
        path = tmp_path / f"{size}.yaml"
        told = plan.run([f"--size={size}", "--data=novel.txt", "--gpu=T4", "--time-budget=1h", f"--write={path}"])
        assert "No loss is forecast: that takes the text." in " ".join(told.split())
        made[size] = yaml.safe_load(path.read_text())
    small, large = made.values()
    assert small["dataset"] == large["dataset"] == "novel.txt"
    assert small["n_layer"] * small["n_embd"] < large["n_layer"] * large["n_embd"]
    assert "time_budget" in large
    assert "early_stopping_patience" in small


@pytest.mark.parametrize("said", ["层数", "n-layer", "layers"])
def test_a_parameter_is_explained_by_its_other_names(said: str) -> None:
    assert plan.reader().read(["--explain", said]).explain == "n_layer"


@pytest.mark.parametrize("words", [[], ["--explain=n_layer"]], ids=["plan", "explain"])
def test_a_text_that_training_refuses_is_refused(tmp_path: Path, words: list[str]) -> None:
    """With the same advice, which names no block that is too short to teach anything."""
    short = tmp_path / "short.txt"
    short.write_text("春眠不", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        plan.run([STANDARD, f"--dataset={short}", *words])
    assert "one block takes" in str(caught.value)
    assert str(caught.value).endswith("→ give more text, or change val_fraction")


def test_what_does_not_fit_is_answered_with_the_command_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    told = plan.run([STANDARD, "--vram=1GB", "--seed=3", "--batch_size=64"]).splitlines()[-1]
    words = shlex.split(told.partition(": ")[2])
    assert {"--seed=3", "--batch_size=4", "--gradient_accumulation_steps=16"} < set(words)
    assert "--batch_size=64" not in words
    at = next(index for index, word in enumerate(words) if word.endswith(".yaml"))
    assert "It needs" in plan.run([*words[at:], "--vram=1GB"])  # not: it does NOT fit


def test_a_written_recipe_is_replaced_if_asked(tmp_path: Path) -> None:
    words = [STANDARD, "--vram=8GB", "--write", str(tmp_path / "mine.yaml")]
    plan.run(words)
    with pytest.raises(InputError, match="exists already → choose another name, or add --overwrite"):
        plan.run(words)
    plan.run([*words, "--overwrite"])


def test_text_may_hold_full_width_characters() -> None:
    """A prompt of numbers in Chinese style is a prompt."""
    assert plan.reader().read(["--sample_prompt=１２３"]).overrides == ["--sample_prompt=１２３"]
