"""Tasks of lm-evaluation-harness while training, by its own package.

In:  names of its tasks, or paths of YAML files that define one; and a Run at a step.
Out: their figures, by ``<metric>/<task>``; an accuracy is ``accuracy/<task>``, as for our own questions.

The main process evaluates the plain model while the others wait. Random generators are left as they were.
"""

from __future__ import annotations

import io
import logging
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import numpy as np
import torch

from hfgpt.base.errors import InputError, first_line
from hfgpt.base.language import listed
from hfgpt.train.collective import on_main, patiently
from hfgpt.train.run import Harness, Run


def load(names: Sequence[str]) -> Harness:
    """Load tasks and their documents, from the Hub if they are not local.

    Raises:
        InputError: the package is missing, or a task is unknown or cannot be loaded; names the task.
    """
    if not names:
        return Harness([])
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


def figures(run: Run) -> dict[str, float]:
    """Return the model's current scores; empty on all processes but the main one. Collective."""
    if not run.harness.names:
        return {}
    with patiently(run.patience):
        return on_main(lambda: _answer(run)) or {}


def _answer(run: Run) -> dict[str, float]:
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
