"""How good a model is on text: loss, perplexity and bits per character.

In:  a model and blocks of tokens; or an exported run folder and, by default, the data that its recipe names.
Out: the sum of the targets' negative log-likelihoods and their number; from these, the three figures.

Everything is token-weighted: sums are kept, in float64, and divided once at the end, so the figures do not depend on
the batch size, on how the last batch falls, or on the number of processes.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfgpt import config as configs
from hfgpt.config import InputError

if TYPE_CHECKING:
    import evaluate
    from torch import nn

    from hfgpt.data import TokenStream

SPLITS = ("val", "train")


# ------------------------------------------------------------------------------------------------------- the metric


def figures(nll_sum: float, tokens: int, characters: int) -> dict[str, float]:
    """Loss (nats per token), perplexity and bits per character, by the local `evaluate` metric.

    Args:
        nll_sum: negative log-likelihood of all targets, summed, in nats.
        tokens: number of targets.
        characters: number of characters that the targets stand for.
    """
    metric = language_model_metric()
    metric.add_batch(nll_sum=[nll_sum], tokens=[tokens], characters=[characters])
    return metric.compute()


@functools.cache
def language_model_metric() -> evaluate.Metric:
    """The metric, of batches of (nll_sum, tokens, characters); built here, so that no Hub is asked, and in memory.

    Bits per character make models with different tokenizers comparable: nll_sum / ln 2 / characters.
    """
    library = _evaluate_library()
    import datasets

    class LanguageModelMetric(library.Metric):
        """Loss, perplexity and bits per character from sums over batches."""

        def _info(self) -> evaluate.MetricInfo:
            return library.MetricInfo(
                description="Token-weighted loss, perplexity and bits per character of a language model.",
                citation="",
                inputs_description="nll_sum: nats, summed over targets; tokens, characters: how many they are.",
                features=datasets.Features(
                    {
                        "nll_sum": datasets.Value("float64"),
                        "tokens": datasets.Value("int64"),
                        "characters": datasets.Value("int64"),
                    }
                ),
            )

        def _build_data_dir(self) -> str:
            return ""  # kept in memory: no cache folder is needed, nor made in a home that may be read-only

        def _compute(self, nll_sum: list[float], tokens: list[int], characters: list[int]) -> dict[str, float]:
            nats, n_tokens, n_characters = math.fsum(nll_sum), sum(tokens), sum(characters)
            if not n_tokens or not n_characters:
                raise ValueError("no targets were added")
            loss = nats / n_tokens
            return {
                "loss": loss,
                "perplexity": math.exp(min(loss, 700.0)),  # e^710 overflows a float64
                "bits_per_character": nats / math.log(2) / n_characters,
            }

    return LanguageModelMetric(keep_in_memory=True)


def _evaluate_library() -> Any:
    """The `evaluate` library. A script's folder comes first on the path, and ours holds an evaluate.py."""
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if not (Path(entry or ".") / "evaluate.py").is_file()]
    try:
        return importlib.import_module("evaluate")
    finally:
        sys.path[:] = path


# ------------------------------------------------------------------------------------------------------- the sums


def evaluate_blocks(
    model: nn.Module,
    stream: TokenStream,
    indices: Sequence[int],
    batch_size: int,
    device: Any,
    rank: int = 0,
    world: int = 1,
) -> tuple[float, int]:
    """This process's share of (sum of negative log-likelihoods in nats, number of targets) over blocks of a split.

    Every process takes each `world`-th block, none twice, so the sums over the processes are those of one process.
    Dropout is off meanwhile, and the model's mode is put back. Precision is the caller's (autocast).

    Args:
        model: a :class:`hfgpt.model.LanguageModel`, whose forward gives the summed NLL.
        stream: the split.
        indices: the blocks to evaluate on, the same on every process.
        batch_size: sequences at a time.
        device: where the model is.
    """
    import torch

    mine = indices[rank::world]
    nll, tokens = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(mine), batch_size):
                batch = stream.blocks(mine[start : start + batch_size])
                nll += float(model(**{key: value.to(device) for key, value in batch.items()}))
                tokens += int((batch["targets"] >= 0).sum())
    finally:
        model.train(was_training)
    return nll, tokens


def characters_of(stream: TokenStream, tokens: int) -> int:
    """The characters that `tokens` of a split stand for, at that split's average; exact for the whole split."""
    return max(1, round(tokens * stream.n_characters / stream.n_tokens))
