"""Multiple-choice tasks during training, and the losses of each corpus of a mix."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from survival import do_train, figures

from hfgpt import config
from hfgpt.base.errors import ConfigError, InputError
from hfgpt.runs import metrics
from hfgpt.train import tasks
from hfgpt.train.start import start


@pytest.fixture
def questions(tmp_path: Path, tiny_text: Path) -> Path:
    """Return questions: which line is from the text, and which has its letters in another order."""
    path = tmp_path / "lines.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, line in enumerate(tiny_text.read_text().splitlines()[:20]):
            words = line.split()
            right, wrong = " ".join(words[3:5]), " ".join(words[3:5])[::-1].upper()
            answer = number % 2
            choices = [wrong, right] if answer else [right, wrong]
            names = ("ctx", "endings", "label") if number % 3 else ("context", "choices", "answer")
            file.write(json.dumps(dict(zip(names, (" ".join(words[:3]), choices, answer), strict=True))) + "\n")
    return path


def test_questions_are_answered_while_training(
    tiny: dict[str, Any], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tiny | {"dropout": 0.2, "learning_rate": 1e-2, "max_iters": 24, "eval_interval": 6}
    path = do_train(values | {"eval_tasks": str(questions), "eval_tasks_interval": 12})
    steps, shares = metrics.series(metrics.read(path / "metrics.jsonl"), "accuracy/lines")
    assert steps == [0, 12, 24]
    assert shares[-1] == 1.0, "the text's own letters are the likelier ones"
    assert f"    accuracy/lines {shares[-1]:.4f}" in capsys.readouterr().out
    assert figures(do_train(values | {"out_dir": str(tmp_path / "plain")})) == figures(path), "the run is the same"


def test_an_answer_is_the_lowest_loss_per_token(tiny: dict[str, Any], questions: Path) -> None:
    run = start(config.build(tiny | {"eval_tasks": str(questions)}, "test"))
    right = 0
    for question in run.tasks["lines"]:
        losses = []
        for ids, length in question.choices:
            with torch.no_grad():
                logits = run.plain.eval().gpt2(torch.tensor([ids[:-1]])).logits[0]
            loss = torch.nn.functional.cross_entropy(logits[-length:], torch.tensor(ids[-length:]))
            losses.append(float(loss))
        right += losses.index(min(losses)) == question.answer
    assert tasks.accuracies(run) == {"accuracy/lines": right / 20}


@pytest.mark.parametrize(
    "line",
    [
        "", "{", "[]", "3", '{"context": "a", "choices": ["b"], "answer": 0}', "[" * 100_000,
        '{"context": "a", "choices": ["b", "c"], "answer": 2}', '{"context": "a", "choices": ["b", "c"]}',
        '{"context": "", "choices": ["b", "c"], "answer": 0}', '{"context": "a", "choices": ["b", ""], "answer": 1}',
        '{"context": "a", "choices": "bc", "answer": 1}', '{"query": "a", "choices": ["b", "c"], "answer": 1}',
        '{"context": "a", "choices": ["b", null], "answer": 0}', '{"context": "a", "choices": ["b", [2]], "answer": 0}',
        '{"context": null, "choices": ["b", "c"], "answer": 0}', '{"context": "a", "choices": [true, 1], "answer": 0}',
        '{"context": "a", "choices": [1, 2], "answer": 0.7}', '{"context": "a", "choices": [1, 2], "answer": true}',
        '{"context": "a", "choices": ["b", "\\ud800"], "answer": 0}',
        '{"context": "a", "choices": null, "answer": 1}', '{"context": "a", "choices": ["b", "c"], "answer": Infinity}',
    ],
)  # fmt: skip
def test_what_is_not_a_question(tiny: dict[str, Any], tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="is not a question" if line else "holds no question"):
        do_train(tiny | {"eval_tasks": str(path)})
    assert not Path(tiny["out_dir"]).exists()


def test_two_tasks_of_one_name(tiny: dict[str, Any], questions: Path, tmp_path: Path) -> None:
    """The second would take the first one's place in the record."""
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / questions.name
    other.write_bytes(questions.read_bytes())
    for pair in (f"{questions},{other}", f"{questions},lines"):
        with pytest.raises(InputError, match="two of them are called 'lines' in the record"):
            do_train(tiny | {"eval_tasks": pair})


def test_a_pipe_and_a_device_are_no_file_of_questions(tiny: dict[str, Any], tmp_path: Path) -> None:
    """The one would be waited for, the other read without end."""
    (tmp_path / "endless.jsonl").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("endless.jsonl", "pipe.jsonl"):
        with pytest.raises(InputError, match=r"cannot be read: .*not a file"):
            do_train(tiny | {"eval_tasks": str(tmp_path / name)})


def test_marks_and_line_separators_in_a_file_of_questions(tiny: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "marked.jsonl"
    line = json.dumps({"context": "a\u2028b", "choices": ["c\x85d", 4], "answer": "1"}, ensure_ascii=False)
    path.write_text(f"\ufeff{line}\r\n", encoding="utf-8", newline="")
    run = start(config.build(tiny | {"eval_tasks": str(path)}, "test"))
    assert [question.answer for question in run.tasks["marked"]] == [1]


def test_a_file_that_is_not_there(tiny: dict[str, Any]) -> None:
    for name in ("none.jsonl", "tasks/none.yaml"):
        absent = f"eval_tasks = '{name}': no such file → {Path.cwd()}/{name} does not exist"
        with pytest.raises(InputError, match=re.escape(absent)):
            do_train(tiny | {"eval_tasks": name})
    with pytest.raises(ConfigError, match=r"eval_tasks_interval = 6: must be a multiple of eval_interval \(4\)"):
        config.build(tiny | {"eval_tasks_interval": 6}, "test")


def test_each_corpus_of_a_mix_has_its_loss(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capitals = tmp_path / "capitals.txt"
    capitals.write_text(Path(tiny["dataset"]).read_text().upper())
    mix = [{"name": tiny["dataset"], "weight": 3}, {"name": str(capitals), "weight": 1}]
    records = metrics.read(do_train(tiny | {"dataset": mix}) / "metrics.jsonl")
    said = capsys.readouterr().out
    [blended] = re.findall(r"([\d,]+) training and", said)
    [both] = re.findall(r"until its first corpus has been read once; its corpora have ([\d,]+) training tokens", said)
    assert int(blended.replace(",", "")) < int(both.replace(",", ""))
    for name in ("tiny.txt", "capitals.txt"):
        steps, losses = metrics.series(records, f"val_loss/{name}")
        assert steps == [0, 4, 8]
        assert losses[-1] < losses[0]
