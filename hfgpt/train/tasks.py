"""Multiple choice while training: HellaSwag and tasks of the same form.

In:  ``.jsonl`` files, one question per line: `context`, `choices` and the index of the right one, `answer` (HellaSwag's
     own `ctx`, `endings` and `label` are read too); and a Run at a step.
Out: the share of questions whose right choice has the lowest loss per token, by the file's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hfgpt.base.errors import UNREADABLE, InputError
from hfgpt.base.files import check_regular, expanded
from hfgpt.data.tokenizer import token_ids
from hfgpt.model.gpt2 import IGNORED
from hfgpt.train.collective import total
from hfgpt.train.run import Run


@dataclass(frozen=True)
class Question:
    """A tokenised question: each choice after its context, and how many of the last tokens are the choice."""

    choices: list[tuple[list[int], int]]
    answer: int


def names_of(eval_tasks: str | None) -> tuple[list[Path], list[str]]:
    """Split a recipe's `eval_tasks` at its commas into files of questions and tasks of the harness."""
    names = [name.strip() for name in (eval_tasks or "").split(",") if name.strip()]
    files = [name for name in names if name.endswith(".jsonl")]
    return [expanded(name) for name in files], [name for name in names if name not in files]


def load(eval_tasks: str | None, tokenizer: PreTrainedTokenizerBase, block_size: int) -> dict[str, list[Question]]:
    """Return the questions of each file, by its name without the suffix.

    Args:
        eval_tasks: the recipe's.
        tokenizer: the run's.
        block_size: a longer text keeps its last tokens.

    Raises:
        InputError: a file cannot be read, a line is not a question, or two tasks have one name; says which.
    """
    tasks = dict[str, list[Question]]()
    files, names = names_of(eval_tasks)
    called = [*(path.stem for path in files), *names]
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise InputError(
            "eval_tasks = {tasks!r}: two of them are called {name!r} in the record → rename a file",
            tasks=eval_tasks,
            name=twice,
        )
    for path in files:
        tasks[path.stem] = list(_questions(path, tokenizer, block_size))
        if not tasks[path.stem]:
            raise InputError("eval_tasks = {file!r}: holds no question", file=str(path))
    return tasks


def _questions(path: Path, tokenizer: PreTrainedTokenizerBase, block_size: int) -> Iterator[Question]:
    try:
        check_regular(path)
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold other characters that end a line
    except (OSError, ValueError) as error:
        raise InputError("eval_tasks = {file!r}: cannot be read: {error}", file=str(path), error=error) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            context, choices = values.get("context", values.get("ctx")), values.get("choices", values.get("endings"))
            answer = values.get("answer", values.get("label"))
            if not isinstance(choices, list) or not all(map(_is_text, [context, *choices])):
                raise ValueError
            if type(answer) not in (int, str) or not 0 <= int(answer) < len(choices) or len(choices) < 2:
                raise ValueError
            context, choices = str(context), list(map(str, choices))
            "".join([context, *choices]).encode()  # JSON can hold half a surrogate pair, which UTF-8 cannot
        except UNREADABLE:
            raise InputError(
                "{file}, line {line}: is not a question → give a JSON object with context, choices (two or more "
                "texts) and answer (the index of the right one, from 0)",
                file=path,
                line=number,
            ) from None
        yield Question([_tokens(context, choice, tokenizer, block_size) for choice in choices], int(answer))


def _is_text(value: Any) -> bool:
    """Whether a value can stand in a question: a text that is not empty, or a number."""
    return type(value) in (str, int, float) and value != ""


def _tokens(context: str, choice: str, tokenizer: PreTrainedTokenizerBase, block_size: int) -> tuple[list[int], int]:
    """Tokenise context and choice, joined by one space, and keep the last block_size + 1 tokens."""
    space = "" if context[-1:].isspace() or choice[:1].isspace() else " "
    before, after = token_ids(tokenizer, context), token_ids(tokenizer, space + choice)
    ids = [*before, *after][-(block_size + 1) :]
    return ids, min(len(after), len(ids) - 1)


def accuracies(run: Run) -> dict[str, float]:
    """Return {`accuracy/<task>`: share of right answers} for the run's tasks. Collective.

    Every process answers its share; if each has only a part of the weights, all answer every question together.
    """
    rank, world = (0, 1) if run.sharded else run.share[:2]
    figures, model = dict[str, float](), run.plain
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for name, questions in run.tasks.items():
                right = sum(_answer(run, question) == question.answer for question in questions[rank::world])
                share = right / (run.accelerator.num_processes if run.sharded else 1)
                figures[f"accuracy/{name}"] = total(run.device, share)[0] / len(questions)
    finally:
        model.train(was_training)
    return figures


def _answer(run: Run, question: Question) -> int:
    """Return the choice whose tokens have the lowest mean loss."""
    losses = []
    for ids, length in question.choices:
        tokens = torch.tensor([ids], device=run.device)
        targets = tokens[:, 1:].clone()
        targets[:, :-length] = IGNORED
        losses.append(float(run.plain(tokens[:, :-1], targets)) / length)
    return losses.index(min(losses))
