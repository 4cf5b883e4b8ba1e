"""Numbers derived from a run's record that several diagnoses need.

In:  the records of a run (:mod:`hfgpt.runs.metrics`), finished or in progress, and its recipe if there is one.
Out: its smoothed series, and figures derived from them: start, end, best step, rates, pace.

Imports neither torch nor transformers.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hfgpt.config import Config
from hfgpt.model.loss_law import BYTE_ENTRIES
from hfgpt.runs import horizon
from hfgpt.runs.metrics import NGRAM_LOSS, Record, branch_step, series, smooth

# Of the chance loss: roughly what counting pairs of letters reaches in English (2.5 nats of 4.2), where the record does
# not say what it reaches in the run's own text.
HIGH = 0.6

UNLIKELY = 1e100  # larger values are not measurements; sums and ratios of smaller ones are finite
MEMORISING = 0.4  # nats between train and validation loss from which repeats teach little
REPEATS = 4.0  # epochs up to which repeated text is about as good as new (Muennighoff and others, 2023)
SPIKE = 1.0  # nats above the smoothed curve

# Last gradients in a row that are NaN or infinite in a run that diverged: loss scaling in float16 expects single
# overflows. Our own records leave those out, so that there a single one at the end says that training stopped on it.
OVERFLOWS = 2


@dataclass(frozen=True)
class Surroundings:
    """What a run's folder says beside its record and its recipe; nothing is known of a record without a folder."""

    written: float | None = None  # when the record was last written, in seconds since 1970, if no process trains here
    saved: int | None = None  # the step of the newest checkpoint
    changes: tuple[int, ...] = ()  # the steps after which the recipe changed


class Facts:
    """A run's series and figures derived from them. Non-finite values are dropped; only `lost_at` reports them."""

    def __init__(self, records: Sequence[Record], config: Config | None, around: Surroundings | None = None) -> None:
        self.records, self.config, self.around = records, config, around or Surroundings()
        self.steps, self.losses = finite(records, "train_loss")
        self.smoothed = smooth(self.losses)
        self.eval_steps, self.val = finite(records, "val_loss")
        self.train_eval = dict(zip(*finite(records, "train_eval_loss"), strict=True))
        self.last_step = int(records[-1]["step"]) if records else 0

    @cached_property
    def lost_at(self) -> int | None:
        """The step since which a loss or the gradients are not finite; None if the run recovered."""
        last = self.records[-1] if self.records else {}
        ours = any("seconds" in record for record in self.records)
        stopped = ours and "val_loss" not in last and not math.isfinite(last.get("grad_norm", 0.0))
        in_a_row = {"train_loss": 1, "val_loss": 1, "grad_norm": 1 if stopped else OVERFLOWS}
        since = [_lost_since(self.records, key, least) for key, least in in_a_row.items()]
        return min((step for step in since if step is not None), default=None)

    @property
    def finished(self) -> bool:
        """Whether the run has reached its end; true if its length is not known."""
        if self.config is None or self.stopped_early:
            return True
        return self.last_step >= self.config.max_iters and not self.undecided

    @property
    def undecided(self) -> bool:
        """Whether the run's length is not known, since the clock has yet to decide it."""
        return self.config is not None and horizon.undecided(self.config, self.records)

    @property
    def stopped_early(self) -> bool:
        """Whether early stopping ended the run."""
        patience = self.config.early_stopping_patience if self.config else None
        waited = self.without_improvement
        return patience is not None and bool(waited) and waited[-1][1] >= patience

    @cached_property
    def without_improvement(self) -> list[tuple[int, int]]:
        """The step of each evaluation of the run's own, and how many in a row have brought no better loss by then.

        As in training, one that is not due, such as that before a stop for max_time, counts only if it is better.
        """
        lowest, waited, out = math.inf, 0, list[tuple[int, int]]()
        first = branch_step(self.records) or 0
        for step, loss in zip(self.eval_steps, self.val, strict=True):
            if step < first:
                continue
            c = self.config
            due = c is None or step % c.eval_interval == 0 or step >= c.max_iters
            waited = 0 if loss < lowest else waited + due
            lowest = min(lowest, loss)
            out.append((int(step), waited))
        return out

    def ended_by(self, patience: int) -> int | None:
        """Return the step at which early stopping with this patience would have ended the run; None if nowhere."""
        return next((step for step, waited in self.without_improvement if waited >= patience), None)

    @property
    def abandoned(self) -> bool:
        """Whether the run has not reached its end, and no process works on it."""
        return not self.finished and self.around.written is not None

    @property
    def changed(self) -> int | None:
        """The step after which the recipe or the text first changed."""
        branched = branch_step(self.records) if self.start is None else None
        return min((step for step in (*self.around.changes, branched) if step is not None), default=None)

    @cached_property
    def breaks(self) -> list[int]:
        """The steps after which a loss may rise in a sound run: of a new recipe, a branch, or a rate that rises again.

        A rate rises again after it held or fell, as in a run that is resumed to be longer; not in the first warm-up.
        """
        steps, rates = finite(self.records, "learning_rate")
        branched, peaked = branch_step(self.records), False
        breaks = [*self.around.changes, *([] if branched is None else [branched])]
        for step, before, now in zip(steps, rates, rates[1:], strict=False):
            peaked = peaked or now <= before
            if peaked and now > before:
                breaks.append(int(step))
        return sorted(breaks)

    @property
    def past_warmup(self) -> int:
        """The last step of the warm-up; a tenth of the run if the recipe is unknown."""
        return (self.config.warmup_iters or 0) if self.config else self.last_step // 10

    @cached_property
    def own(self) -> list[int]:
        """The indices of the run's evaluations, without those that a branch copied; of all if it has no own yet."""
        first = branch_step(self.records) or 0
        every = range(len(self.val))
        return [i for i in every if self.eval_steps[i] >= first] or list(every)

    @property
    def best(self) -> int:
        """The index of the evaluation with the run's lowest validation loss, whose model was exported."""
        return min(self.own, key=self.val.__getitem__)

    @property
    def lowest(self) -> float:
        """The run's lowest validation loss."""
        return self.val[self.best]

    @property
    def end(self) -> float:
        """The last validation loss; the smoothed train loss if there was no evaluation since training began."""
        trained = self.val if self.val and self.eval_steps[-1] > 0 else self.smoothed or self.val
        return trained[-1] if trained else math.nan

    @property
    def train_end(self) -> float:
        return self.train_at(self.last_step)

    def train_at(self, step: float) -> float:
        """Return the last evaluated train loss before a step; the batches' smoothed loss if it was never evaluated."""
        before = [loss for at, loss in self.train_eval.items() if at <= step]
        if before:
            return before[-1]
        batches = [loss for at, loss in zip(self.steps, self.smoothed, strict=True) if at <= step]
        return (batches or self.smoothed or [math.nan])[-1]

    def epochs_at(self, step: float) -> float | None:
        """Return how often each token has been seen at a step; None if it was not recorded."""
        steps, epochs = finite(self.records, "epoch")
        return next((epoch for at, epoch in zip(steps, epochs, strict=True) if at >= step), max(epochs, default=None))

    @property
    def start(self) -> float | None:
        """The loss before training, at step 0 or 1; None if the record begins later."""
        first = [r for r in self.records[:2] if r["step"] <= 1]
        values = [r[key] for r in first for key in ("val_loss", "train_loss") if math.isfinite(r.get(key, math.nan))]
        return values[0] if values else None

    @cached_property
    def chance(self) -> float | None:
        """The loss of guessing among the characters or tokens that occur; None if unknown.

        A new model begins there. A pretrained one begins below it; without a recipe, a small learning rate indicates a
        pretrained model. The 256 spare byte tokens of tokenizer 'char' hardly ever occur. Where the vocabulary's size
        was not recorded, the loss of a new model tells it roughly.
        """
        if self.start is None or (self.config is not None and self.config.pretrained):
            return None
        if self.config is None and self.peak_rate is not None and self.peak_rate <= 1e-4 and self.start < 5.2:
            return None
        if self.config is not None and self.config.tokenizer == "char":
            recorded = next(iter(finite(self.records, "vocab_size")[1]), 0.0) - BYTE_ENTRIES
            if recorded > 1:
                return math.log(recorded)
            symbols = math.exp(min(self.start, 20.0))
            return math.log(max(symbols - BYTE_ENTRIES, 60)) if symbols > 290 else self.start
        return self.start

    @property
    def pairs(self) -> float | None:
        """The loss that counting pairs of tokens reaches on this text; None if it was not recorded."""
        key = NGRAM_LOSS.format(2)
        return next((record[key] for record in self.records if key in record), None)

    @property
    def high(self) -> bool:
        """Whether the run learnt little more than which token follows which."""
        if self.chance is None:
            return False
        return self.end > (HIGH * self.chance if self.pairs is None else self.pairs)

    @property
    def peak_rate(self) -> float | None:
        """The highest learning rate of the run's recipe; without one, of its steps."""
        if self.config is not None:
            return self.config.learning_rate
        return max(finite(self.records, "learning_rate")[1], default=None)

    @property
    def highest_rate(self) -> float | None:
        """The highest learning rate of any step, also of earlier recipes of the run."""
        rates = [*finite(self.records, "learning_rate")[1], self.peak_rate]
        return max((rate for rate in rates if rate is not None), default=None)

    @property
    def rule_of_thumb(self) -> float:
        """The chapter's learning rate for a model of this size (3.1); a small model's if the size is unknown."""
        if self.config is None:
            return usual_learning_rate(0)
        return usual_learning_rate(12 * self.config.n_layer * self.config.n_embd**2, self.config.pretrained)

    @cached_property
    def step_seconds(self) -> float | None:
        """The median seconds of a step, without evaluations."""
        speeds = [speed for speed in finite(self.records, "tokens_per_second")[1] if speed > 0]
        if self.config is not None and speeds:
            pace = self.config.tokens_per_iter / statistics.median(speeds)
            return pace if pace < UNLIKELY else None
        steps, seconds = finite(self.records, "seconds")
        gaps = [(b - a) / (t - s) for s, t, a, b in zip(steps, steps[1:], seconds, seconds[1:], strict=False)]
        return (statistics.median(gaps) if gaps else 0.0) or None

    def leaps(self) -> list[tuple[int, float]]:
        """The steps after the warm-up whose loss is far above the curve, and that loss."""
        return [
            (int(step), loss)
            for step, loss, usual in zip(self.steps, self.losses, self.smoothed, strict=True)
            if loss > usual + SPIKE and step > max(self.past_warmup, self.last_step // 10)
        ]


def _lost_since(records: Sequence[Record], key: str, least: int) -> int | None:
    """Return the first of at least so many non-finite values at the end of a series."""
    steps, values = series(records, key)
    lost = 0
    while lost < len(values) and not math.isfinite(values[-1 - lost]):
        lost += 1
    return int(steps[-lost]) if lost >= least else None


def finite(records: Sequence[Record], key: str) -> tuple[list[float], list[float]]:
    """Return a series' steps and values without those that are not finite or too large to be measurements."""
    steps, values = series(records, key)
    kept = [i for i, value in enumerate(values) if abs(value) < UNLIKELY]
    return [steps[i] for i in kept], [values[i] for i in kept]


def usual_learning_rate(parameters: int, pretrained: bool = False) -> float:
    """Return the usual learning rate for a number of parameters; 1e-4 for a pretrained model (3.1)."""
    if pretrained:
        return 1e-4
    return 1e-3 if parameters < 50e6 else 6e-4 if parameters <= 500e6 else 3e-4


def smaller_model(config: Config) -> dict[str, Any]:
    """Return two thirds of the layers and of the width (6.1, 6.3: from 6 layers of 384 to 4 of 256).

    Multiple heads keep their width. A pretrained model's shape is fixed, so there is nothing to set.
    """
    if config.pretrained:
        return {}
    layers, heads = max(1, round(config.n_layer * 2 / 3)), max(1, round(config.n_head * 2 / 3))
    head = config.n_embd // config.n_head if heads < config.n_head else max(1, round(config.n_embd / heads * 2 / 3))
    if (layers, heads * head) == (config.n_layer, config.n_embd):
        return {}
    return {"n_layer": layers, "n_head": heads, "n_embd": heads * head}
