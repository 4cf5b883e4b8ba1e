"""How good a model is on blocks of tokens: loss, perplexity and bits per character.

In:  a model and blocks of tokens.
Out: the sum of the targets' negative log-likelihoods and their number; from these, the three figures.

Everything is token-weighted: sums are kept, in float64, and divided once at the end, so the figures do not depend on
the batch size, on how the last batch falls, or on the number of processes.
"""

from __future__ import annotations

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
    """This process's share of (sum of negative log-likelihoods in nats, number of targets) over blocks of a split.

    Each process takes every `world`-th block, so the sums over the processes are those of one process. All make the
    same number of passes, which sharded models need, in the same shape, which compiled models need: rows that do not
    count fill up the last pass. Dropout is off meanwhile, and the model's mode is put back.

    Args:
        model: a :class:`hfgpt.model.gpt2.LanguageModel`, whose forward gives the summed NLL, in any wrapper.
        stream: the split.
        block_size: targets in a block.
        indices: the blocks to evaluate on, the same on every process.
        batch_size: sequences at a time.
        device: where the model is.
        rank, world: this process, and how many there are.
    """
    mine = np.asarray(indices)[rank::world]
    passes = -(-len(indices) // (world * batch_size))
    nll, was_training = 0.0, model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, passes * batch_size, batch_size):
                rows = mine[start : start + batch_size]
                padded = np.concatenate([rows, np.repeat(indices[:1], batch_size - len(rows))])
                tokens = torch.from_numpy(stream.blocks(padded, block_size)).to(device)
                inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
                targets[len(rows) :] = IGNORED
                nll += float(model(inputs, targets))
    finally:
        model.train(was_training)
    return nll, len(mine) * block_size


def figures(nll_sum: float, tokens: int, characters: int) -> dict[str, float]:
    """Loss (nats per token), perplexity and bits per character.

    Args:
        nll_sum: negative log-likelihood of all targets, summed, in nats.
        tokens: number of targets.
        characters: number of characters that the targets stand for.

    Raises:
        InputError: the blocks hold no targets, or targets without text.
    """
    if not tokens or not characters:
        raise InputError("the tokens to evaluate hold no text, so there is nothing to measure")
    loss = nll_sum / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # e^710 overflows a float64
        "bits_per_character": nll_sum / math.log(2) / characters,
    }
