"""Tasks of lm-evaluation-harness while training, by its own package.

In:  names of tasks that it knows, or paths of YAML files that define one; and a Run at a step.
Out: their figures, by ``<metric>/<task>``; an accuracy is ``accuracy/<task>``, as that of our own questions.

The main process answers, on the plain model; the others wait. Random generators are left as they were.
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
    """Load tasks with their documents, from the Hub if they are not local.

    Raises:
        InputError: the package is missing, or it does not know a task or cannot load it; names the task.
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
    except Exception as error:  # whatever a task's own code and data raise
        reason = first_line(error)
        raise InputError(
            "eval_tasks = {tasks!r}: lm-evaluation-harness cannot load it: {reason}", tasks=listed(names), reason=reason
        ) from None


def figures(run: Run) -> dict[str, float]:
    """What the model scores now; nothing but on the main process. Collective."""
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
                # Without an end-of-text token, what stands before a text is the tokenizer's first.
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
    """Of {"task": {"acc,none": 0.3, "acc_stderr,none": "N/A", "alias": …}} the figures by their names here."""
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
    """Without the packages' progress bars and remarks between the lines of a run."""
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
