"""The loss that a recipe is expected to reach, before it runs, with an interval; and whether it will overfit.

In:  a Survey with the statistics of its text.
Out: :class:`Forecast`: nats a token on the validation split, at the end of the run.

The law has the form of Hoffmann et al. 2022 (arXiv 2203.15556): an irreducible loss and terms that fall as powers of
the parameters and of the tokens. Repeated tokens count less and less, as in Muennighoff et al. 2023 (arXiv 2305.16264).
Beside it stand a term of the number of steps, one of the block, one of the rates, and what a model loses that learns a
small text by heart. The text's own scale, between its irreducible loss and its unigram entropy, comes from counting its
n-grams (hfgpt/plan/survey.py). The coefficients were fitted on small runs by benchmarks/loss_laws.py; they hold for
characters, and for models of 0.02M to 20M parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hfgpt.base.language import _
from hfgpt.config import Config
from hfgpt.model.sizes import parameters
from hfgpt.plan.laws import laws
from hfgpt.plan.survey import BYTE_ENTRIES, Statistics, Survey

Law = Mapping[str, float]  # coefficients by name

WIDTH = 1.96  # standard deviations of a 95% interval

OVERFITS = 0.02  # nats above its lowest validation loss at which a run has overfitted

FORESEEN = 0.005  # nats of such a rise in the forecast, from which on it is said


@dataclass(frozen=True)
class Forecast:
    """Nats a token on the validation split, with 95% intervals.

    Attributes:
        loss, low, high: at the last step.
        best: the lowest on the way, which is what the run exports.
        epochs: how often the text is seen.
        overfits: whether the loss is expected to rise again before the end.
        source: 'laws' or 'trials' (of this recipe, in seconds).
    """

    loss: float
    low: float
    high: float
    best: float
    epochs: float
    overfits: bool
    source: str = "laws"

    def sentence(self) -> str:
        """The forecast in words."""
        values = {"loss": f"{self.loss:.2f}", "low": f"{self.low:.2f}", "high": f"{self.high:.2f}"}
        said = _("Expected validation loss: {loss} ({low} to {high}).", **values)
        if self.overfits:
            said += " " + _(
                "It overfits: the text is seen {epochs} times; the lowest loss, about {best}, comes before the end.",
                epochs=f"{self.epochs:.3g}",
                best=f"{self.best:.2f}",
            )
        return said


def forecast(survey: Survey) -> Forecast | None:
    """The loss of a recipe at its end, by the shipped laws; None if they do not cover it."""
    if survey.statistics is None or survey.train_tokens is None or not covered(survey.config):
        return None
    return by_law(laws().loss, survey.config, survey.vocab_size, survey.train_tokens, survey.statistics)


def covered(config: Config) -> bool:
    """Whether the laws are about such a recipe: characters, from scratch."""
    return config.tokenizer == "char" and not config.pretrained


def by_law(law: Law, config: Config, vocab_size: int, train_tokens: int, text: Statistics) -> Forecast:
    """The forecast from a law's coefficients."""
    end = predict(law, config, vocab_size, train_tokens, text)
    steps = [config.max_iters * share // 20 for share in range(4, 20)]
    way = [
        predict(law, config.model_copy(update={"max_iters": max(1, step)}), vocab_size, train_tokens, text)
        for step in steps
    ]
    # A cosine has not brought the rate down on the way, so what is lost on the way is not yet the lowest.
    best = min([end, *way])
    epochs = config.tokens_per_iter * config.max_iters / train_tokens
    overfits = end > best + FORESEEN
    half = WIDTH * law["spread overfitting" if overfits else "spread"]
    return Forecast(end, end - half, end + half, best, epochs, overfits)


def published(config: Config, vocab_size: int, train_tokens: int | None) -> float:
    """Nats a token of web text by Hoffmann et al. 2022 (their third approach), repeated tokens by Muennighoff et al.

    For recipes that our own law does not cover; good for comparing them, not for a forecast.
    """
    seen = config.tokens_per_iter * config.max_iters
    unique = effective_tokens(seen, train_tokens, 15.4) if train_tokens else seen
    return float(1.69 + 406.4 / parameters(config, vocab_size).total ** 0.34 + 410.7 / unique**0.28)


def predict(law: Law, config: Config, vocab_size: int, train_tokens: int, text: Statistics) -> float:
    """Nats a token at the end of a run of `config.max_iters` steps."""
    seen = config.tokens_per_iter * config.max_iters
    floor = irreducible(law, train_tokens / max(1, vocab_size - BYTE_ENTRIES), text)
    scale = max(text.unigram - floor, 0.1)
    reducible = powers(law, config, vocab_size, effective_tokens(seen, train_tokens, law["repeats"]))
    # A loss exceeds the unigram's by little: the sum of powers is bent there.
    bent = reducible / (1 + (reducible / law["bend"]) ** 4) ** 0.25
    endless = powers(law, config, vocab_size, seen)  # what the run would have left on endless text
    total: float = floor + scale * (bent + overfitting(law, config, endless, train_tokens))
    return total


def powers(law: Law, config: Config, vocab_size: int, tokens: float) -> float:
    """The reducible loss as a share of the text's scale, after so many tokens of the text."""
    count = parameters(config, vocab_size)
    body, muon = max(count.attention + count.mlp, 1), config.optimizer == "muon"
    steps = config.max_iters * (law["muon steps"] if muon else 1.0)
    reducible = (
        law["a"] * (body / 1e5) ** -law["alpha"]
        + law["b"] * (tokens * (law["muon tokens"] if muon else 1.0) / 1e6) ** -law["beta"]
        + law["c"] * (steps / 1e3) ** -law["gamma"]
        + law["shape"] * math.log(config.n_embd / (64 * config.n_layer)) ** 2
        + law["dropped"] * config.dropout
    )
    # What the powers leave out: a longer block pays only after longer training, Muon's lead and a larger model too.
    longer, trained = math.log(config.block_size / 64), math.log(tokens / 5e5)
    reducible *= math.exp(
        law["block"] * longer
        + law["block trained"] * longer * trained
        + law["muon trained"] * muon * trained
        + law["size trained"] * math.log(body / 3e5) * trained
    )
    return float(reducible * (1 + rates_off(law, config)))


def irreducible(law: Law, density: float, text: Statistics) -> float:
    """What stays of the loss with endless training: a share of what counting reaches, by the text's size.

    `density` is the training text's tokens over its distinct characters: of a character that is seen ten times little
    can be learnt.
    """
    return float(law["floor"] * text.best * (density / 1e4) ** -law["floor data"])


def effective_tokens(seen: float, unique: float, repeats: float) -> float:
    """Tokens that repeated ones are worth (Muennighoff et al., equation 5); `repeats` is their R*."""
    if seen <= unique:
        return seen
    return unique * (1 + repeats * (1 - math.exp(-(seen / unique - 1) / repeats)))


def overfitting(law: Law, config: Config, endless: float, train_tokens: int) -> float:
    """What is lost by learning the text by heart, as a share of the text's scale.

    It begins where the run would have left so little of the loss on endless text that a text of this size cannot have
    taught it: `endless` is that share. Dropout puts the beginning off.
    """
    progress = -math.log(endless)
    onset = law["onset"] + law["onset size"] * math.log(train_tokens / 1e5) + law["onset dropout"] * config.dropout
    beyond = (progress - onset) * law["onset sharp"]
    excess = math.log1p(math.exp(min(beyond, 50.0))) / law["onset sharp"]
    return float(law["overfit"] * excess ** law["overfit power"])


def best_rate(law: Law, config: Config) -> float:
    """The peak learning rate at which the law has its minimum: Muon's, or AdamW's."""
    which = "muon" if config.optimizer == "muon" else "adamw"
    return math.exp(
        law[f"{which} rate"]
        - law[f"{which} rate steps"] * math.log(config.max_iters / 300)
        - law[f"{which} rate width"] * math.log(config.n_embd / 128)
    )


def rates_off(law: Law, config: Config) -> float:
    """The share by which a rate other than the best raises the reducible loss."""
    muon = config.optimizer == "muon"
    rate = config.muon_learning_rate if muon else config.learning_rate
    off = math.log(rate / best_rate(law, config))
    share: float = law["muon rate cost" if muon else "adamw rate cost"] * off**2
    if muon:
        share += law["embedding rate cost"] * math.log(config.learning_rate / law["embedding rate"]) ** 2
    return share
