"""The tokens that a recipe trains on, and the chapter's formulas, shown beside the computed figures.

In:  a Survey or a Config.
Out: :class:`Tokens`, :class:`RulesOfThumb`; the chapter's batches, depths and learning rates.
"""

from dataclasses import dataclass

from hfgpt.config import Config
from hfgpt.model.sizes import parameters
from hfgpt.plan.survey import Survey

GIB = 2**30
COMPUTE_OPTIMAL = 20  # tokens per parameter: Hoffmann et al. 2022, "Training compute-optimal large language models"


@dataclass(frozen=True)
class Tokens:
    """The tokens that a run trains on (chapter 5.2)."""

    per_iter: int  # targets of one optimizer step
    total: int  # targets of the whole run; a smaller corpus is seen several times
    epochs: float | None  # how often the corpus is seen; None if its size is unknown
    per_parameter: float  # total over parameters; about 20 is compute-optimal


def tokens(survey: Survey) -> Tokens:
    """Return the tokens of a run, relative to its corpus and its parameters."""
    config = survey.config
    total = config.tokens_by(config.max_iters)
    epochs = total / survey.train_tokens if survey.train_tokens else None
    return Tokens(config.tokens_per_iter, total, epochs, total / parameters(config, survey.vocab_size).total)


def count(survey: Survey) -> int:
    """Return the parameter count of the recipe's model."""
    return parameters(survey.config, survey.vocab_size).total


# Repeated data is nearly as good as new data for 4 passes, and hardly helps after 16 (Muennighoff et al. 2023).
MOST_EPOCHS = 20

MOST_EPOCHS_PRETRAINED = 4  # a pretrained model memorises a small text sooner


@dataclass(frozen=True)
class RulesOfThumb:
    """The chapter's own figures for a recipe, shown beside the computed ones."""

    parameters: int  # 12 · n_layer · n_embd² (5.2): without embeddings, biases and norms
    # weights, gradients and AdamW's averages of those parameters, and the activations (5.2)
    memory_bytes: int
    seconds_per_step: float  # 0.5 (5.3), for the standard recipe on an RTX 3060, from experience


def rules_of_thumb(config: Config) -> RulesOfThumb:
    """Apply the chapter's formulas to a recipe."""
    count = 12 * config.n_layer * config.n_embd**2
    activations = config.batch_size * config.block_size * config.n_embd * config.n_layer * 4
    return RulesOfThumb(count, 16 * count + activations, 0.5)


# The chapter's table (1.3): memory in GiB, batch_size, gradient_accumulation_steps. Each has 64 sequences per step.
CHAPTER_BATCHES = ((4, 8, 8), (8, 16, 4), (16, 32, 2), (24, 64, 1))


def chapter_batch(memory_bytes: int) -> tuple[int, int]:
    """Return the chapter's batch_size and gradient_accumulation_steps for a card with this memory (1.3)."""
    suitable = [row for row in CHAPTER_BATCHES if row[0] * GIB <= memory_bytes] or [CHAPTER_BATCHES[0]]
    return suitable[-1][1:]


def layers_for(corpus_bytes: int | None) -> int:
    """Return the chapter's n_layer for a text of this size (2.1); 24 if the size is unknown.

    The chapter says 6 below 10 MB, 12 from 10 to 100 MB, 24 above 1 GB; between, it says nothing: 12.
    """
    if corpus_bytes is None or corpus_bytes > 1e9:
        return 24
    return 6 if corpus_bytes < 10e6 else 12
