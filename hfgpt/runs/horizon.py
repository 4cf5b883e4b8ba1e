"""The length of a run with a time budget, as its record tells it.

In:  the recipe as it began, and the decisions that training wrote (``horizon`` in metrics.jsonl, see
     :mod:`hfgpt.train.horizon`).
Out: the recipe with the decided length, by which training and everything that reads the run computes the schedule.

A run folder's recipe holds the length that was decided only once the run has ended.
"""

from collections.abc import Sequence

from hfgpt.config import Config
from hfgpt.runs.metrics import MOST_STEPS, Record, branch_step


def decisions(records: Sequence[Record]) -> dict[int, int]:
    """Return the lengths that a run decided, by step; without those that a branch copied from another run."""
    branched = branch_step(records)
    return {
        int(record["step"]): int(record["horizon"])
        for record in records
        if 1 <= record.get("horizon", 0) <= MOST_STEPS and (branched is None or record["step"] > branched)
    }


def undecided(config: Config, records: Sequence[Record]) -> bool:
    """Whether the clock decides the length, and has not done so yet: `max_iters` is then no length of this run."""
    return config.time_budget is not None and not decisions(records)


def decided(config: Config, records: Sequence[Record]) -> Config:
    """Return the recipe of a run folder with the length that its record decided last."""
    lengths = list(decisions(records).values())
    if config.time_budget is None or not lengths or lengths[-1] == config.max_iters:  # equal once the run has ended
        return config
    return lengthened(config, lengths)


def lengthened(recipe: Config, lengths: Sequence[int]) -> Config:
    """Return the recipe with the last decided length; decay scales with it, warm-up with the first decided length."""
    length, warmup, decay = lengths[-1], recipe.warmup_iters or 0, recipe.lr_decay_iters or recipe.max_iters
    return recipe.model_copy(
        update={
            "max_iters": length,
            "warmup_iters": min(2000, warmup * lengths[0] // recipe.max_iters, max(0, length - 1)),
            "lr_decay_iters": max(1, decay * length // recipe.max_iters),
        }
    )
