"""Statistics of seeds: whether two settings differ by more than chance.

In:  final losses of settings, each with several seeds: a dictionary from seed to loss.
Out: mean, spread and interval of a setting; the difference of two with its interval and p-value; the seeds needed.

The tests are scipy's: Student's t for pairs of one seed, Welch's t without pairs (Welch, 1947). A winner is named at p
< 0.01, which modded-nanogpt requires of a record, divided by the number of pairs of settings (Bonferroni).
"""

import itertools
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hfgpt.base.language import _, plural, sentences

LEVEL = 0.01  # the probability of a false difference between equal settings
CONFIDENCE = 0.95  # confidence of the interval of a setting's mean
POWER = 0.8  # the power at which the needed seeds are counted
RESOLUTION = 1e-4  # nats: a smaller difference is rounding, whatever its p-value
MOST_SEEDS = 1000

Losses = Mapping[int, float]  # losses by seed


@dataclass(frozen=True)
class Summary:
    """The losses of one setting: number, mean, standard deviation, and the mean's 95% interval.

    With one seed the spread is unknown: it and the interval are NaN.
    """

    count: int
    mean: float
    spread: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.count < 2 else f"{self.mean:.4f} ± {self.high - self.mean:.4f}"


@dataclass(frozen=True)
class Difference:
    """How much higher the second setting's loss is than the first's, in nats."""

    # the difference of the means, and its interval at `1 - LEVEL / comparisons`
    mean: float
    low: float
    high: float
    p: float  # the probability of so large a difference between equal settings, times the number of comparisons
    paired: bool  # whether the losses were compared seed by seed
    # seeds per setting that would detect a difference of this size in 4 of 5 cases; None: above 1,000
    seeds: int | None

    @property
    def distinct(self) -> bool:
        """Whether the settings differ significantly."""
        return self.p < LEVEL and abs(self.mean) >= RESOLUTION


@dataclass(frozen=True)
class Ranking:
    """Settings by mean loss, lowest first."""

    settings: dict[str, Summary]  # each setting's summary, in this order
    # each later setting's difference from the first; None if either has a single seed
    behind: dict[str, Difference | None]

    @property
    def winner(self) -> str | None:
        """The first setting, if it differs significantly from all others."""
        distinct = [difference is not None and difference.distinct for difference in self.behind.values()]
        return next(iter(self.settings)) if distinct and all(distinct) else None

    @property
    def ties(self) -> list[str]:
        """The settings that do not differ significantly from the first."""
        return [label for label, difference in self.behind.items() if difference is None or not difference.distinct]


def summarise(losses: Sequence[float]) -> Summary:
    """Return mean, spread and the mean's 95% interval (Student's t).

    Raises:
        ValueError: there is no loss, or one is not finite.
    """
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise ValueError("losses must be finite, and at least one")
    mean = statistics.fmean(losses)
    if len(losses) < 2:
        return Summary(1, mean, math.nan, math.nan, math.nan)
    from scipy import stats

    spread = statistics.stdev(losses)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(losses) - 1)) * spread / math.sqrt(len(losses))
    return Summary(len(losses), mean, spread, mean - half, mean + half)


def difference(first: Losses, second: Losses, *, paired: bool = True, comparisons: int = 1) -> Difference | None:
    """Compare two settings.

    Args:
        first, second: finite losses by seed.
        paired: whether equal seeds mean equal data order in both. If so, their common seeds are compared pair by pair,
            if there are at least two of them.
        comparisons: the total number of pairs of settings compared.

    Returns:
        The difference; None if a setting has a single seed.
    """
    from scipy import stats

    common = sorted(first.keys() & second.keys())
    paired = paired and len(common) >= 2
    a = [first[seed] for seed in common] if paired else list(first.values())
    b = [second[seed] for seed in common] if paired else list(second.values())
    if min(len(a), len(b)) < 2:
        return None
    mean = statistics.fmean(b) - statistics.fmean(a)
    noise = (
        statistics.stdev([y - x for x, y in zip(a, b, strict=True)])
        if paired
        else max(statistics.stdev(a), statistics.stdev(b))
    )
    if noise < 1e-12 + 1e-9 * abs(mean):  # the seeds had no effect
        return Difference(mean, mean, mean, float(mean == 0), paired, 2 if mean else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the losses hardly differ
        test = stats.ttest_rel(b, a) if paired else stats.ttest_ind(b, a, equal_var=False)
        interval = test.confidence_interval(1 - LEVEL / comparisons)
    spread = noise if paired else math.sqrt((statistics.variance(a) + statistics.variance(b)) / 2)
    seeds = seeds_needed(mean, spread, paired=paired, level=LEVEL / comparisons)
    p = min(1.0, float(test.pvalue) * comparisons)
    return Difference(mean, float(interval.low), float(interval.high), p, paired, seeds)


def seeds_needed(difference: float, spread: float, *, paired: bool = True, level: float = LEVEL) -> int | None:
    """Return the seeds per setting with which a t-test detects this difference in 4 of 5 cases; None: over 1,000.

    Args:
        difference: of the means.
        spread: the standard deviation of the differences of pairs, or of one setting's losses without pairs.
        paired: which test. level: its level, two-sided.
    """
    from scipy import stats

    effect = abs(difference) / spread / (1 if paired else math.sqrt(2))

    def power(seeds: int) -> float:
        freedom = seeds - 1 if paired else 2 * (seeds - 1)
        limit = stats.t.ppf(1 - level / 2, freedom)
        return float(stats.nct.sf(limit, freedom, effect * math.sqrt(seeds)))

    if effect == 0 or power(MOST_SEEDS) < POWER:
        return None
    low, high = 1, MOST_SEEDS  # bisection: power grows with the number of seeds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def rank(settings: Mapping[str, Losses], *, paired: bool = True) -> Ranking:
    """Order settings by mean loss, and compare the first with each of the others.

    Args:
        settings: finite losses by seed, by the setting's label.
        paired: whether equal seeds mean equal data order in all settings.
    """
    summaries = {label: summarise(list(losses.values())) for label, losses in settings.items()}
    order = sorted(summaries, key=lambda label: summaries[label].mean)
    pairs = len(list(itertools.combinations(order, 2)))  # any setting could have come first, so count all pairs
    best = settings[order[0]]
    behind = {label: difference(best, settings[label], paired=paired, comparisons=pairs) for label in order[1:]}
    return Ranking({label: summaries[label] for label in order}, behind)


def in_words(ranking: Ranking) -> list[str]:
    """Describe a ranking: the winner, or which settings do not differ significantly and how many seeds would tell."""
    best, *others = ranking.settings
    if not others:
        alone = ranking.settings[best]
        return [
            _("Over {n} seeds the mean is {mean:.4f}, with a 95% interval of {low:.4f} to {high:.4f}; the seeds spread "
              "by {spread:.4f} (standard deviation).", n=alone.count, mean=alone.mean, low=alone.low, high=alone.high,
              spread=alone.spread)
        ]  # fmt: skip
    if ranking.winner is not None:
        nearest = ranking.behind[others[0]]
        assert nearest is not None, "a winner was compared with every other setting"
        return [
            _("{best} is better than every other setting: the next, {next}, is {difference:.4f} nats behind "
              "({low:.4f} to {high:.4f}, p = {p:.2g}).", best=best, next=others[0], difference=nearest.mean,
              low=nearest.low, high=nearest.high, p=nearest.p)
        ]  # fmt: skip
    return [_tie(best, label, ranking.behind[label]) for label in ranking.ties[:3]]


def _tie(best: str, other: str, difference: Difference | None) -> str:
    if difference is None:
        return _("{first} and {second} cannot be told apart: a spread needs at least two seeds of each.",
                 first=best, second=other)  # fmt: skip
    measured = {"first": best, "second": other, "low": difference.low, "high": difference.high}
    tie = _(
        "{first} and {second} cannot be told apart: they differ by {difference:.4f} nats ({low:.4f} to {high:.4f}).",
        difference=difference.mean,
        **measured,
    )
    if difference.seeds is None:
        return sentences(tie, _("A difference this small would take more than 1,000 seeds of each."))
    seeds = plural(
        "A difference of this size takes about {n} seed of each to tell.",
        "A difference of this size takes about {n} seeds of each to tell.",
        difference.seeds,
    )
    return sentences(tie, seeds)
