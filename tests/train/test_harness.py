"""Tasks of lm-evaluation-harness and further validation texts, measured while a run trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.state import AcceleratorState, GradientState
from survival import TWO, do_train, figures

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.runs import card, compare, metrics, report
from hfgpt.train import loop as train


@pytest.fixture
def task(tmp_path: Path, tiny_text: Path) -> Path:
    """Write a task of the harness: which of two endings comes from the text."""
    with (tmp_path / "endings.jsonl").open("w", encoding="utf-8") as file:
        for number, line in enumerate(tiny_text.read_text().splitlines()[:12]):
            words = line.split()
            right, wrong = words[3], words[3][::-1].upper()
            choices = [wrong, right] if number % 2 else [right, wrong]
            file.write(json.dumps({"start": " ".join(words[:3]), "choices": choices, "right": number % 2}) + "\n")
    described = {
        "task": "endings", "dataset_path": "json", "test_split": "train", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": str(tmp_path / "endings.jsonl")},
        "doc_to_text": "{{start}}", "doc_to_target": "right", "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    (tmp_path / "endings.yaml").write_text(yaml.safe_dump(described))
    return tmp_path / "endings.yaml"


def test_a_task_of_the_harness_is_answered_while_training(
    tiny: dict[str, Any], task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tiny | {"dropout": 0.2, "learning_rate": 1e-2, "max_iters": 24, "eval_interval": 6}
    path = do_train(values | {"eval_tasks": str(task), "eval_tasks_interval": 12})
    steps, shares = metrics.series(metrics.read(path / "metrics.jsonl"), "accuracy/endings")
    assert steps == [0, 12, 24]
    assert shares[-1] > 0.8, "the text's own letters are the likelier ones"
    assert metrics.series(metrics.read(path / "metrics.jsonl"), "acc_norm/endings")[0] == [0, 12, 24]
    out, err = capsys.readouterr()
    assert f"    accuracy/endings {shares[-1]:.4f}" in out
    assert "it/s" not in err
    assert "Token indices" not in err
    assert f"| `accuracy/endings` | {shares[-1]:.4f} |" in card.model_card(path)
    assert figures(do_train(values | {"out_dir": str(tmp_path / "plain")})) == figures(path), "the run is the same"
    assert str(tmp_path) not in card.model_card(path)


@pytest.mark.e2e
def test_two_processes_answer_as_one(
    tiny: dict[str, Any], task: Path, write_recipe: Callable[..., Path], run_script: Any, tmp_path: Path
) -> None:
    """One process answers while the other waits; both continue with the same run."""
    recipe, records = write_recipe(tiny | {"learning_rate": 1e-2, "max_iters": 12, "eval_tasks": str(task)}), []
    for name, launch in (("one", ()), ("two", TWO)):
        done = run_script("train.py", recipe, f"--out_dir={tmp_path / name}", launch=launch)
        assert done.returncode == 0, done.stderr
        records.append(metrics.read(tmp_path / name / "metrics.jsonl"))
    one, two = (metrics.series(record, "accuracy/endings") for record in records)
    assert one[0] == [0, 4, 8, 12]
    assert two == one
    losses = [metrics.series(record, "val_loss")[1] for record in records]
    assert losses[1] == pytest.approx(losses[0], rel=2e-5)


def test_tasks_that_cannot_be_loaded(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"eval_tasks = 'no_such_task': neither .*lm-evaluation-harness knows"):
        do_train(tiny | {"eval_tasks": "no_such_task"})
    with pytest.raises(InputError, match=r"eval_tasks = '.*gone.yaml': no such file"):
        do_train(tiny | {"eval_tasks": str(tmp_path / "gone.yaml")})
    assert not Path(tiny["out_dir"]).exists()


def test_the_loss_on_further_texts(
    tiny: dict[str, Any], tiny_text: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    """It is measured beside the deciding split, and shown in the record, on the card and in a comparison."""
    words = tiny_text.read_text().split()
    (tmp_path / "shuffled.txt").write_text(" ".join(sorted(words)))
    asked = f"{tmp_path}/shuffled.txt, same={tiny_text}"
    one = do_train(tiny | {"val_datasets": asked, "max_iters": 12})
    other = do_train(
        tiny | {"val_datasets": asked, "max_iters": 12, "learning_rate": 1e-2, "out_dir": str(tmp_path / "b")}
    )
    plain = do_train(tiny | {"max_iters": 12, "out_dir": str(tmp_path / "plain")})
    assert figures(one) == figures(plain), "the run is the same"
    records = metrics.read(one / "metrics.jsonl")
    for name in ("shuffled", "same"):
        steps, losses = metrics.series(records, f"val_loss/{name}")
        assert steps == [0, 4, 8, 12]
        assert losses[-1] < losses[0]
        assert f"| `val_loss/{name}` | {losses[-1]:.4f} |" in card.model_card(one)
    made = report.write(compare.of_folders([one, other]), tmp_path / "report", samples=False).read_text()
    assert "| run | `val_loss/shuffled` | `val_loss/same` |" in made


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("gone.txt", "val_datasets = 'gone.txt': no such file"),
        ("a=tiny.txt, a=tiny.txt", "each text needs its own name"),
        ("a=", "each text needs its own name"),
        ("short.txt", "val_datasets: 'short' has 2 tokens, and one block takes 17"),
    ],
)
def test_further_texts_that_cannot_be_used(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("ae")
    with pytest.raises(InputError) as caught:
        do_train(tiny | {"val_datasets": asked})
    assert message in caught.value.report()


def test_a_comparison_says_where_a_recipe_changed(tiny: dict[str, Any], tmp_path: Path) -> None:
    one = do_train(tiny | {"max_iters": 8, "lr_decay_iters": 8})
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    train.train(config.build(tiny | {"max_iters": 16, "lr_decay_iters": 16, "learning_rate": 1e-3}, "x"), resume=True)
    other = do_train(tiny | {"max_iters": 16, "lr_decay_iters": 16, "out_dir": str(tmp_path / "other")})
    made = report.write(compare.of_folders([one, other]), tmp_path / "report", samples=False).read_text()
    assert "from step 8 on with" in made
    assert "max_iters 8 → 16" in made
