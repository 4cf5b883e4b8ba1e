"""The law of the loss: where a recipe will end on a text, with an interval; and whether it will overfit.

In:  a Config, the size of its vocabulary and of its training text, and the text's :class:`Statistics`.
Out: :class:`Forecast`: nats per token on the validation split, at the end of the run.

The law of the lowest loss has the form of Hoffmann et al. 2022 (arXiv 2203.15556): an irreducible loss and power-law
terms of the parameters and of the tokens. Repeated tokens count less and less, as in Muennighoff et al. 2023 (arXiv
2305.16264). Terms for the number of steps, the block size and the learning rates are added. The text's own scale comes
from counting its n-grams (hfgpt/data/ngrams.py): any model soon learns pairs and triples of characters, so the scale is
what lies between these and the irreducible loss.

A logistic regression predicts whether the loss rises again after its lowest, from the passes over the text, its size,
the model's width, dropout, the block size and the optimizer; the odds determine by how much.

All coefficients were fitted on small runs by benchmarks/loss_laws.py; they hold for characters, and for models of 0.02M
to 20M parameters. The interval's width comes from the errors on held-out texts; it is wider for a small text, whose
parts may differ much.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hfgpt.base.language import _, sentences
from hfgpt.base.units import number
from hfgpt.config import Config
from hfgpt.model.laws import laws
from hfgpt.model.schedule import learning_rate
from hfgpt.model.sizes import parameters

Law = Mapping[str, float]  # coefficients by name

WIDTH = 1.96  # standard deviations of a 95% interval
OVERFITS = 0.02  # nats above its lowest validation loss at which a run has overfitted
BYTE_ENTRIES = 256  # entries of a character vocabulary beside the characters (hfgpt/data/tokenizer.py)


@dataclass(frozen=True)
class Statistics:
    """Cross-entropies in nats per character, on the held-out end of a text."""

    orders: tuple[float, ...]  # of n-gram models of order 1, 2, …
    characters: int  # how many characters were counted

    @property
    def unigram(self) -> float:
        """The cross-entropy from character frequencies alone."""
        return self.orders[0]

    @property
    def best(self) -> float:
        """The lowest of them: the best that n-grams reach on this text."""
        return min(self.orders)


# Counted once for the embedded Shakespeare (a test recounts), since counting it takes half of a plan's time.
HELD_OUT = 0.1  # share of it on which it was measured
EMBEDDED_STATISTICS = Statistics((3.3277, 2.4837, 2.0968, 1.8212, 1.7177, 1.7036, 1.7159, 1.7207), 500_000)


@dataclass(frozen=True)
class Forecast:
    """Nats per token on the validation split, with 95% intervals."""

    # at the last step
    loss: float
    low: float
    high: float
    best: float  # the lowest of the run, whose model is exported
    epochs: float  # how often the text is seen
    overfits: bool  # whether the loss is expected to rise again before the end
    source: str = "laws"  # 'laws' or 'trials' (of this recipe, for seconds)
    beyond: bool = False  # whether the run is longer, or the model larger, than any behind the laws

    def sentence(self) -> str:
        values = {"loss": f"{self.loss:.2f}", "low": f"{self.low:.2f}", "high": f"{self.high:.2f}"}
        text = _("Expected validation loss: {loss} ({low} to {high}).", **values)
        guess = _("The laws were fitted on shorter runs or smaller models: the interval is a guess.")
        rises = _(
            "It overfits: the text is seen {epochs} times; the lowest loss, about {best}, comes before the end.",
            epochs=number(self.epochs),
            best=f"{self.best:.2f}",
        )
        return sentences(text, guess if self.beyond else "", rises if self.overfits else "")


def covered(config: Config) -> bool:
    """Whether the laws cover this recipe: characters, from scratch."""
    return config.tokenizer == "char" and not config.pretrained


# What the runs behind the law had at most or at least, with a margin; a law of powers says nothing outside.
SHORTEST_BLOCK, FEWEST_STEPS, MOST_DROPOUT, MOST_DECAY = 16, 40, 0.4, 1.0
SLOWEST, FASTEST = 1 / 50, 3.5  # learning rates, in units of the best one
HIGHEST_END, LONGEST_WARMUP = 0.35, 0.35  # the last learning rate, and the warm-up, as shares of the peak and the run


def outside(config: Config) -> str | None:
    """Return the setting by which a recipe is far from every run behind the law; None if it is like these."""
    law, muon = laws().loss, config.optimizer == "muon"
    rates = {"muon_learning_rate": config.muon_learning_rate} if muon else {}
    rates |= {"learning_rate": config.learning_rate}
    best = {"muon_learning_rate": best_rate(law, config), "learning_rate": law["embedding rate"]}
    if not muon:
        best["learning_rate"] = best_rate(law, config)
    far = next((key for key, rate in rates.items() if not SLOWEST <= rate / best[key] <= FASTEST), None)
    ends_high = learning_rate(config.max_iters, config) > HIGHEST_END * config.learning_rate
    others = {
        "block_size": config.block_size < SHORTEST_BLOCK,
        "max_iters": config.max_iters < FEWEST_STEPS,
        "dropout": config.dropout > MOST_DROPOUT,
        "weight_decay": config.weight_decay > MOST_DECAY,
        "warmup_iters": (config.warmup_iters or 0) > LONGEST_WARMUP * config.max_iters,
        "lr_schedule": ends_high and config.lr_schedule == "constant",
        "min_lr": ends_high and config.lr_schedule != "constant",
    }
    return far or next((key for key, away in others.items() if away), None)


def foreseen(config: Config, vocab_size: int, train_tokens: int, text: Statistics) -> Forecast | None:
    """Forecast by the shipped law; None if it does not cover the recipe, or was fitted on nothing like it."""
    if not covered(config) or outside(config) is not None:
        return None
    return by_law(laws().loss, config, vocab_size, train_tokens, text)


def by_law(law: Law, config: Config, vocab_size: int, train_tokens: int, text: Statistics) -> Forecast:
    """Forecast from a law's coefficients."""
    best = lowest(law, config, vocab_size, train_tokens, text)
    risen = rise(law, config, vocab_size, train_tokens, text)
    away = beyond(law, config, vocab_size)
    half = WIDTH * spread(law, train_tokens) * (1 + WIDENING * away)
    half *= max(1.0, USUAL / config.max_iters) ** 0.5
    factor = math.exp(WIDTH * law["rise spread"])  # error factor of a rise, whose size is hard to predict
    low, high = best + risen / factor - half, best + risen * factor + half
    epochs = config.tokens_by(config.max_iters) / train_tokens
    overfits = odds(law, config, vocab_size, train_tokens) > 0
    return Forecast(best + risen, low, high, best, epochs, overfits, beyond=away > 0)


def beyond(law: Law, config: Config, vocab_size: int) -> float:
    """Return how far a run is beyond the longest and the largest that the law was fitted on; 1 for a factor of e."""
    longer = math.log(config.tokens_by(config.max_iters) / law["most tokens"])
    larger = math.log(body(config, vocab_size) / law["most body"])
    return max(0.0, longer) + max(0.0, larger)


USUAL = 300  # steps from which on the interval is narrowest: at about a hundred the errors' deviation is 0.2 nats
WIDENING = 0.25  # widening of the interval per such factor: assumed, since nothing was measured there


LARGE = 5e5  # tokens above which a text's parts are so alike that more text does not narrow the interval


def spread(law: Law, train_tokens: int) -> float:
    """Return the standard deviation of the error of a lowest loss, in nats."""
    return float(law["spread"] * min(1.0, train_tokens / LARGE) ** -law["spread size"])


def predict(law: Law, config: Config, vocab_size: int, train_tokens: int, text: Statistics) -> float:
    """Return nats per token at the end of a run of `config.max_iters` steps."""
    return lowest(law, config, vocab_size, train_tokens, text) + rise(law, config, vocab_size, train_tokens, text)


def lowest(law: Law, config: Config, vocab_size: int, train_tokens: int, text: Statistics) -> float:
    """Return the lowest loss of the run, which is the final one unless it overfits."""
    seen = config.tokens_by(config.max_iters)
    floor = irreducible(law, train_tokens / max(1, vocab_size - BYTE_ENTRIES), text)
    single, pair, triple = text.orders[:3]
    early = single - law["pairs"] * (single - pair) - law["triples"] * (pair - triple)  # soon learnt, on any text
    reducible = powers(law, config, vocab_size, effective_tokens(seen, train_tokens, law["repeats"]))
    reducible *= 1 + rates_off(law, config, train_tokens)
    reducible *= max(early - floor, 0.1)
    # A loss hardly exceeds the unigram entropy, so the sum of powers is bent there.
    most = law["bend"] * max(text.unigram - floor, 0.1)
    return float(floor + reducible / (1 + (reducible / most) ** 4) ** 0.25)


def odds(law: Law, config: Config, vocab_size: int, train_tokens: int) -> float:
    """Return the log odds that the run ends OVERFITS or more above its lowest loss."""
    epochs = math.log(config.tokens_by(config.max_iters) / train_tokens)
    of_each = train_tokens / max(1, vocab_size - BYTE_ENTRIES)  # how often each character occurs
    return float(
        law["odds"]
        + law["odds epochs"] * epochs
        + law["odds dropout"] * 10 * config.dropout * epochs  # dropout acts longer, the more often the text is seen
        + law["odds width"] * math.log(config.n_embd / 100)
        + law["odds block"] * math.log(config.block_size / 64)
        + law["odds text"] * math.log(of_each / 1e3)
        + law["odds muon"] * (config.optimizer == "muon")
    )


def rise(law: Law, config: Config, vocab_size: int, train_tokens: int, text: Statistics) -> float:
    """Return the nats by which the final loss is expected to exceed the lowest, as the text is memorised.

    It is the size of the rise times its chance: otherwise a run that will not overfit was expected to rise a little.
    """
    beyond = min(50.0, max(-50.0, odds(law, config, vocab_size, train_tokens)))
    chance = 1 / (1 + math.exp(-beyond))
    return float(chance * law["rise"] * text.unigram * math.log1p(math.exp(beyond)) ** law["rise power"])


def body(config: Config, vocab_size: int) -> int:
    """Return the parameters of the blocks."""
    count = parameters(config, vocab_size)
    return max(count.attention + count.mlp, 1)


def powers(law: Law, config: Config, vocab_size: int, tokens: float) -> float:
    """Return the reducible loss at the best rates as a share of the text's scale, after so many tokens of the text."""
    weights, muon = body(config, vocab_size), config.optimizer == "muon"
    steps = config.max_iters * (law["muon steps"] if muon else 1.0)
    reducible = (
        law["a"] * (weights / 1e5) ** -law["alpha"]
        + law["b"] * (tokens * (law["muon tokens"] if muon else 1.0) / 1e6) ** -law["beta"]
        + law["c"] * (steps / 1e3) ** -law["gamma"]
        + law["shape"] * math.log(config.n_embd / (64 * config.n_layer)) ** 2
    )
    reducible *= 1 + law["dropped"] * config.dropout
    # Beyond the powers: a longer block, Muon and a larger model pay off only after longer training.
    longer, trained = math.log(config.block_size / 64), math.log(min(tokens, LONGEST) / 5e5)
    reducible *= math.exp(
        law["block"] * longer
        + law["block trained"] * longer * math.log(min(tokens, BLOCKS_PAY) / 5e5)
        + law["muon trained"] * muon * trained
        + law["size trained"] * math.log(weights / 3e5) * trained
    )
    return float(reducible)


LONGEST = 5e6  # tokens seen in the longest runs behind the law: what pays off later is not extrapolated
BLOCKS_PAY = 1e8  # ... but for the block, which gains until here (assumed)


def irreducible(law: Law, density: float, text: Statistics) -> float:
    """Return the irreducible loss: a share of the best n-gram loss, by the text's size.

    `density` is the training text's tokens per distinct character: little can be learnt about a character that occurs
    ten times.
    """
    order = (text.orders[2] - text.best) / text.unigram  # how much longer contexts help
    return float(
        law["floor"] * text.best * (density / 1e4) ** -law["floor data"] * math.exp(law["floor order"] * order)
    )


def effective_tokens(seen: float, unique: float, repeats: float) -> float:
    """Return how many new tokens repeated ones are worth (Muennighoff et al., equation 5); `repeats` is their R*."""
    if seen <= unique:
        return seen
    return unique * (1 + repeats * (1 - math.exp(-(seen / unique - 1) / repeats)))


def best_rate(law: Law, config: Config) -> float:
    """Return the peak learning rate at the law's minimum: Muon's, or AdamW's."""
    optimizer = "muon" if config.optimizer == "muon" else "adamw"
    return math.exp(
        law[f"{optimizer} rate"]
        - law[f"{optimizer} rate steps"] * math.log(config.max_iters / 300)
        - law[f"{optimizer} rate width"] * math.log(config.n_embd / 128)
        + law[f"{optimizer} rate batch"] * _batch(config)
    )


def best_embedding_rate(law: Law, config: Config, train_tokens: int) -> float:
    """Return the learning rate at the law's minimum for what Muon leaves to AdamW, the embeddings above all.

    It falls as the text is repeated: embeddings that change fast learn a small text by heart.
    """
    epochs = min(math.log(MOST_REPEATS), max(0.0, math.log(config.tokens_by(config.max_iters) / train_tokens)))
    return math.exp(
        math.log(law["embedding rate"])
        + law["embedding rate batch"] * _batch(config)
        + law["embedding rate epochs"] * epochs
    )


MOST_REPEATS = 10.0  # epochs, above which the rate falls no further
BATCHES = (256, 8192)  # tokens of a step, between which the rates were fitted


def _batch(config: Config) -> float:
    """Return the logarithm of a step's tokens in units of 1024, within the fitted range."""
    return math.log(min(BATCHES[1], max(BATCHES[0], config.tokens_per_iter)) / 1024)


def rates_off(law: Law, config: Config, train_tokens: int) -> float:
    """Return the share by which a rate other than the best raises the reducible loss."""
    muon = config.optimizer == "muon"
    rate = config.muon_learning_rate if muon else config.learning_rate
    off = math.log(rate / best_rate(law, config))
    share: float = law["muon rate cost" if muon else "adamw rate cost"] * off**2
    if muon:
        embeddings = best_embedding_rate(law, config, train_tokens)
        share += law["embedding rate cost"] * math.log(config.learning_rate / embeddings) ** 2
    return share
