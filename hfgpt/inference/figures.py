"""Evaluate a model on blocks of tokens: loss, perplexity and bits per character.

In:  a model and blocks of tokens.
Out: the sum of the targets' negative log-likelihoods and their number; from these, the three metrics.

Everything is token-weighted: sums are accumulated in float64 and divided once at the end. So the metrics do not depend
on the batch size, a partial last batch, or the number of processes.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hfgpt.base.errors import InputError
from hfgpt.data.blocks import TokenStream
from hfgpt.model.gpt2 import IGNORED


def evaluate_blocks(
    model: nn.Module,
    stream: TokenStream,
    block_size: int,
    indices: Sequence[int] | NDArray[Any],
    batch_size: int,
    device: Any,
    rank: int = 0,
    world: int = 1,
) -> tuple[float, int]:
    """Return this process's share of (sum of negative log-likelihoods in nats, number of targets) over blocks.

    Each process takes every `world`-th block, so the sums over all processes equal those of a single process. All make
    the same number of forward passes, for sharded models, of the same shape, for compiled models: ignored rows pad the
    last pass. Dropout is off during the evaluation, and the model's mode is restored.

    Args:
        model: a :class:`hfgpt.model.gpt2.LanguageModel`, whose forward returns the summed NLL, in any wrapper.
        indices: the indices of the blocks to evaluate on, the same on every process.
        batch_size: sequences at a time.
        rank, world: the rank of this process, and the number of processes.
    """
    own_indices = np.asarray(indices)[rank::world]
    passes = -(-len(indices) // (world * batch_size))
    nll, was_training = 0.0, model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, passes * batch_size, batch_size):
                rows = own_indices[start : start + batch_size]
                padded = np.concatenate([rows, np.repeat(indices[:1], batch_size - len(rows))])
                tokens = torch.from_numpy(stream.blocks(padded, block_size)).to(device)
                inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
                targets[len(rows) :] = IGNORED
                nll += float(model(inputs, targets))
    finally:
        model.train(was_training)
    return nll, len(own_indices) * block_size


def figures(nll_sum: float, tokens: int, characters: int) -> dict[str, float]:
    """Return loss (nats per token), perplexity and bits per character, from sums over the targets, the first in nats.

    Raises:
        InputError: there are no targets, or they stand for no characters.
    """
    if not tokens or not characters:
        raise InputError("the tokens to evaluate hold no text, so there is nothing to measure")
    loss = nll_sum / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # e^710 overflows a float64
        "bits_per_character": nll_sum / math.log(2) / characters,
    }
