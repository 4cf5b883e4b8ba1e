"""Forecast of a recipe's loss before it runs, with an interval; and whether it will overfit.

In:  a Survey with the statistics of its text.
Out: :class:`Forecast`: nats per token on the validation split, at the end of the run.

The law of the lowest loss has the form of Hoffmann et al. 2022 (arXiv 2203.15556): an irreducible loss and power-law
terms of the parameters and of the tokens. Repeated tokens count less and less, as in Muennighoff et al. 2023 (arXiv
2305.16264). Terms for the number of steps, the block size and the learning rates are added. The text's own scale comes
from counting its n-grams (hfgpt/plan/ngrams.py): any model soon learns pairs and triples of characters, so the scale is
what lies between these and the irreducible loss.

A logistic regression predicts whether the loss rises again after its lowest, from the passes over the text, its size,
the model's width, dropout, the block size and the optimizer; the odds determine by how much.

All coefficients were fitted on small runs by benchmarks/loss_laws.py; they hold for characters, and for models of 0.02M
to 20M parameters. The interval's width comes from the errors on held-out texts; it is wider for a small text, whose
parts may differ much.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hfgpt.base.language import _, sentences
from hfgpt.base.units import number
from hfgpt.config import Config
from hfgpt.model.sizes import parameters
from hfgpt.plan.laws import laws
from hfgpt.plan.survey import BYTE_ENTRIES, Statistics, Survey

Law = Mapping[str, float]  # coefficients by name

WIDTH = 1.96  # standard deviations of a 95% interval
OVERFITS = 0.02  # nats above its lowest validation loss at which a run has overfitted


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


def forecast(survey: Survey) -> Forecast | None:
    """Forecast a recipe's final loss by the shipped laws; None if they do not cover it, or its text is unknown."""
    if survey.assumed or survey.statistics is None or not survey.train_tokens or not covered(survey.config):
        return None
    return by_law(laws().loss, survey.config, survey.vocab_size, survey.train_tokens, survey.statistics)


def covered(config: Config) -> bool:
    """Whether the laws cover this recipe: characters, from scratch."""
    return config.tokenizer == "char" and not config.pretrained


def by_law(law: Law, config: Config, vocab_size: int, train_tokens: int, text: Statistics) -> Forecast:
    """Forecast from a law's coefficients."""
    best = lowest(law, config, vocab_size, train_tokens, text)
    risen = rise(law, config, vocab_size, train_tokens, text)
    away = beyond(law, config, vocab_size)
    half = WIDTH * spread(law, train_tokens) * (1 + WIDENING * away)
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


WIDENING = 0.25  # widening of the interval per such factor: assumed, since nothing was measured there


LARGE = 5e5  # tokens above which a text's parts are so alike that more text does not narrow the interval


def spread(law: Law, train_tokens: int) -> float:
    """Return the standard deviation of the error of a lowest loss, in nats."""
    return float(law["spread"] * min(1.0, train_tokens / LARGE) ** -law["spread size"])


def after_trial(before: Forecast, offset: float) -> Forecast:
    """Return the forecast after a trial of the dial's recipe, which shifted it by so many nats.

    The interval is narrower then, as blind forecasts of such recipes have shown.
    """
    narrower, end = laws().loss["tried"], before.loss + offset
    low, high = end - (before.loss - before.low) * narrower, end + (before.high - before.loss) * narrower
    return replace(before, loss=end, low=low, high=high, best=before.best + offset, source="trials")


def published(config: Config, vocab_size: int, train_tokens: int | None) -> float:
    """Return nats per token of web text by published laws, for recipes that our own law does not cover.

    It compares recipes; it is not a forecast of any text. Size and tokens: Hoffmann et al. 2022, their third approach.
    Repeated tokens, and more parameters than they need: Muennighoff et al. 2023. Batch: 20% more tokens at the critical
    size of Zhang et al. 2024 (arXiv 2410.21676). Muon: Liu et al. 2025 (arXiv 2502.16982), 0.52 of AdamW's work. Block:
    the loss of the token at position T lies about 5 T^-0.6 above that of the last ones (Kaplan et al. 2020, arXiv
    2001.08361, figure 20).
    """
    seen = config.tokens_by(config.max_iters) / (0.52 if config.optimizer == "muon" else 1.0)
    tokens, weights = seen, float(body(config, vocab_size))
    if train_tokens:
        tokens = effective_tokens(seen, train_tokens, 15.4)
        weights = effective_tokens(weights, min(seen, train_tokens) / 20, 5.3)
    tokens /= 1 + 0.2 * config.tokens_per_iter / (22.91 * tokens**0.47)
    first_tokens = 5.0 * config.block_size**-0.6 / (1 - 0.6)  # the mean over a block's positions
    return float(1.69 + 406.4 / weights**0.34 + 410.7 / tokens**0.28 + first_tokens)


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
    """Return the nats by which the final loss is expected to exceed the lowest, as the text is memorised."""
    beyond = odds(law, config, vocab_size, train_tokens)
    return float(law["rise"] * text.unigram * math.log1p(math.exp(min(beyond, 50.0))) ** law["rise power"])


def body(config: Config, vocab_size: int) -> int:
    """Return the parameters of the blocks."""
    count = parameters(config, vocab_size)
    return max(count.attention + count.mlp, 1)


def powers(law: Law, config: Config, vocab_size: int, tokens: float) -> float:
    """Return the reducible loss as a share of the text's scale, after so many tokens of the text."""
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
    return float(reducible * (1 + rates_off(law, config)))


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
    )


def rates_off(law: Law, config: Config) -> float:
    """Return the share by which a rate other than the best raises the reducible loss."""
    muon = config.optimizer == "muon"
    rate = config.muon_learning_rate if muon else config.learning_rate
    off = math.log(rate / best_rate(law, config))
    share: float = law["muon rate cost" if muon else "adamw rate cost"] * off**2
    if muon:
        share += law["embedding rate cost"] * math.log(config.learning_rate / law["embedding rate"]) ** 2
    return share
