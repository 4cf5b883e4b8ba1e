"""The figures of a language model on a text, as a formula.

In:  a summed negative log-likelihood, and how many tokens and characters it stands for.
Out: loss, perplexity and bits per character.
"""

from __future__ import annotations

import math

from hfgpt.base.errors import InputError
from hfgpt.base.language import _


def figures(nll_sum: float, tokens: int, characters: int) -> dict[str, float]:
    """Loss (nats per token), perplexity and bits per character.

    Args:
        nll_sum: negative log-likelihood of all targets, summed, in nats.
        tokens: number of targets.
        characters: number of characters that the targets stand for.

    Raises:
        InputError: there are no targets, or they stand for no characters.
    """
    if not tokens or not characters:
        raise InputError(_("the tokens to evaluate stand for no characters of text: there is nothing to measure"))
    loss = nll_sum / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # e^710 overflows a float64
        "bits_per_character": nll_sum / math.log(2) / characters,
    }
