"""Tasks while training: multiple choice, as in HellaSwag, and those of lm-evaluation-harness, by its own package.

In:  ``.jsonl`` files, one question per line: `context`, `choices` and the index of the right one, `answer` (HellaSwag's
     own `ctx`, `endings` and `label` are read too); names of the harness's tasks, or paths of YAML files that define
     one; and a Run at a step.
Out: their figures, by ``<metric>/<task>``: ``accuracy/<file>`` is the share of questions whose right choice has the
     lowest loss per token.

For the harness, the main process evaluates the plain model while the others wait. Random generators are left as they
were.
"""

import io
import json
import logging
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hfgpt.base.errors import UNREADABLE, InputError, first_line
from hfgpt.base.files import check_regular, expanded
from hfgpt.base.language import listed, strerror
from hfgpt.data.tokenizer import token_ids
from hfgpt.model.gpt2 import IGNORED
from hfgpt.train.collective import in_time, on_main, patiently, total
from hfgpt.train.run import Harness, Run


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

    Raises:
        InputError: a file cannot be read, a line is not a question, or two tasks have one name; says which.
    """
    tasks = dict[str, list[Question]]()
    files, names = names_of(eval_tasks)
    for path in [*files, *(expanded(name) for name in names if _is_file(name))]:
        if not path.exists():
            raise InputError("eval_tasks = {file!r}: no such file → {path} does not exist",
                             file=str(path), path=path.absolute())  # fmt: skip
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
        reason = strerror(error) if isinstance(error, OSError) else error
        raise InputError("eval_tasks = {file!r}: cannot be read: {error}", file=str(path), error=reason) from None
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
        with in_time():  # with sharded weights a forward pass is a collective
            losses.append(float(run.plain(tokens[:, :-1], targets)) / length)
    return losses.index(min(losses))


# ------------------------------------------------------------------------------------------------ lm-evaluation-harness


def load_harness(names: Sequence[str]) -> Harness:
    """Load tasks and their documents, from the Hub if they are not local.

    Raises:
        InputError: the package is missing, or a task is unknown or cannot be loaded; names the task.
    """
    try:
        with _quiet():
            from lm_eval.tasks import TaskManager

            manager = TaskManager(include_defaults=any(not _is_file(name) for name in names))
    except ImportError:
        raise InputError(
            "eval_tasks = {task!r}: is a task of lm-evaluation-harness, which is not installed → pip install "
            "lm_eval, or give a .jsonl file of questions",
            task=names[0],
        ) from None
    for name in names:
        if not _is_file(name) and name not in manager.all_tasks:
            raise InputError(
                "eval_tasks = {task!r}: neither a .jsonl or .yaml file nor a task that lm-evaluation-harness knows "
                "→ 'lm_eval ls tasks' lists them",
                task=name,
            )
    try:
        with _quiet():
            return Harness(list(names), manager.load(list(names)))
    except Exception as error:  # a task's own code and data may raise anything
        reason = first_line(error)
        raise InputError(
            "eval_tasks = {tasks!r}: lm-evaluation-harness cannot load it: {reason}", tasks=listed(names), reason=reason
        ) from None


def harness_figures(run: Run) -> dict[str, float]:
    """Return the model's current scores; empty on all processes but the main one. Collective."""
    if not run.harness.names:
        return {}
    with patiently(run.patience):
        return on_main(lambda: _replies(run)) or {}


def _replies(run: Run) -> dict[str, float]:
    with _quiet():
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        model = run.plain.gpt2
        was_training = model.training
        model.eval()
        state = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(), torch.no_grad():
                # Without an end-of-text token, texts are preceded by the tokenizer's first token.
                first = {} if run.corpus.tokenizer.eos_token_id is not None else {"prefix_token_id": 0}
                reader = HFLM(
                    pretrained=model,
                    backend="causal",
                    tokenizer=run.corpus.tokenizer,
                    batch_size=run.micro_batch,
                    max_length=model.config.n_positions,
                    **first,
                )
                answered: Any = evaluate(reader, run.harness.loaded, bootstrap_iters=0, log_samples=False)
        finally:
            random.setstate(state[0])
            np.random.set_state(state[1])
            model.train(was_training)
    return dict(_scores(answered["results"]))


def _scores(results: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Extract the figures, renamed, from {"task": {"acc,none": 0.3, "acc_stderr,none": "N/A", "alias": …}}."""
    for task, values in results.items():
        for key, value in values.items():
            metric = key.partition(",")[0]
            known = "," in key and isinstance(value, int | float) and math.isfinite(value)
            if known and not metric.endswith("_stderr"):
                yield f"{'accuracy' if metric == 'acc' else metric}/{task}", float(value)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the packages' progress bars and remarks, which would mix with the run's lines."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
