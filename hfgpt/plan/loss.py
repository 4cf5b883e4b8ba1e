"""Forecast of a recipe's loss before it runs: by the law of the loss, by its trials, or by published laws.

In:  a Survey with the statistics of its text.
Out: :class:`~hfgpt.model.loss_law.Forecast`; or a figure by which recipes that the law does not cover are compared.
"""

from dataclasses import replace

from hfgpt.config import Config
from hfgpt.model.loss_law import Forecast, body, effective_tokens, foreseen
from hfgpt.plan.survey import Survey


def forecast(survey: Survey) -> Forecast | None:
    """Forecast a recipe's final loss by the shipped laws; None if they do not cover it, or its text is unknown."""
    if survey.assumed or survey.statistics is None or not survey.train_tokens:
        return None
    return foreseen(survey.config, survey.vocab_size, survey.train_tokens, survey.statistics)


def after_trial(before: Forecast, offset: float) -> Forecast:
    """Return the forecast after a trial of the dial's recipe, which shifted it by so many nats."""
    shifted = {key: getattr(before, key) + offset for key in ("loss", "low", "high", "best")}
    return replace(before, **shifted, source="trials")


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
