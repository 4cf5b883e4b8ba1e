"""Equal settings are rarely told apart, different ones are, and the advised number of seeds suffices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hfgpt.runs import statistics


def drawn(generator: np.random.Generator, seeds: int, mean: float, spread: float = 0.01) -> dict[int, float]:
    return dict(enumerate(generator.normal(mean, spread, seeds).tolist()))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_of_equal_settings_at_most_one_pair_in_twenty_has_a_winner(seeds: int, paired: bool) -> None:
    generator = np.random.default_rng(seeds)
    winners = 0
    for _ in range(400):
        a, b = drawn(generator, seeds, 1.9), drawn(generator, seeds, 1.9)
        winners += statistics.rank({"a": a, "b": b}, paired=paired).winner is not None
    assert winners / 400 <= 0.05


def test_of_six_equal_settings_too() -> None:
    generator = np.random.default_rng(0)
    rankings = (statistics.rank({str(k): drawn(generator, 4, 1.9) for k in range(6)}) for _ in range(150))
    assert sum(ranking.winner is not None for ranking in rankings) / 150 <= 0.05


def test_heavy_tails_do_not_name_winners() -> None:
    generator = np.random.default_rng(1)
    winners = 0
    for _ in range(300):
        a, b = (dict(enumerate((1.9 + 0.01 * generator.standard_t(2, 5)).tolist())) for _ in "ab")
        winners += statistics.rank({"a": a, "b": b}).winner is not None
    assert winners / 300 <= 0.05


def test_pairs_tell_apart_what_the_seeds_spread_hides() -> None:
    order = {seed: 1.9 + 0.05 * seed for seed in range(4)}  # the data order has the same effect in both
    better = {seed: loss - 0.02 - 0.0005 * (seed % 2) for seed, loss in order.items()}
    assert statistics.rank({"old": order, "new": better}, paired=True).winner == "new"
    assert statistics.rank({"old": order, "new": better}, paired=False).winner is None


def test_an_interval_is_students() -> None:
    summary = statistics.summarise([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # t(2) at 97.5%
    assert (summary.mean, summary.spread) == (2.0, 1.0)
    assert (summary.low, summary.high) == pytest.approx((2 - half, 2 + half))


def test_one_seed_has_no_spread_and_names_no_winner() -> None:
    assert math.isnan(statistics.summarise([1.0]).spread)
    ranking = statistics.rank({"a": {0: 1.0}, "b": {0: 9.0}})
    assert (ranking.winner, ranking.ties) == (None, ["b"])
    assert "at least two seeds" in statistics.in_words(ranking)[0]


def test_the_same_run_twice_has_no_winner() -> None:
    losses = {0: 1.9, 1: 1.95}
    ranking = statistics.rank({"a": losses, "b": dict(losses)})
    assert ranking.winner is None
    rounding = {seed: loss + 1e-7 + 1e-9 * seed for seed, loss in losses.items()}
    assert statistics.rank({"a": losses, "b": rounding}).winner is None


@pytest.mark.parametrize("paired", [True, False])
def test_the_seeds_that_are_asked_for_tell_in_four_of_five_cases(paired: bool) -> None:
    noise = 0.01 * (math.sqrt(2) if paired else 1)
    seeds = statistics.seeds_needed(0.012, noise, paired=paired)
    assert seeds is not None
    generator = np.random.default_rng(2)
    told = [
        statistics.rank({"a": drawn(generator, seeds, 1.9), "b": drawn(generator, seeds, 1.912)}, paired=paired).winner
        for _ in range(300)
    ]
    assert 0.74 <= told.count("a") / 300 <= 0.9


def test_a_tie_says_how_many_seeds_would_tell() -> None:
    ranking = statistics.rank({"a": {0: 1.90, 1: 1.91, 2: 1.89}, "b": {0: 1.91, 1: 1.91, 2: 1.90}})
    [sentence] = statistics.in_words(ranking)
    difference = ranking.behind["b"]
    assert difference is not None
    assert f"about {difference.seeds} seeds" in sentence


def test_a_loss_that_is_not_finite_is_the_callers_affair() -> None:
    with pytest.raises(ValueError, match="finite"):
        statistics.summarise([1.0, math.nan])
