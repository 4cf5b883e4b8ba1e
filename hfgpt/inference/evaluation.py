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

import numpy as np
from numpy.typing import NDArray

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.config import Config
from hfgpt.inference import exported

if TYPE_CHECKING:
    import evaluate
    from numpy.typing import NDArray
    from torch import nn

    from hfgpt.data.corpus import TokenStream


SPLITS = ("val", "train")


# ------------------------------------------------------------------------------------------------------- the metric


def figures(nll_sum: float, tokens: int, characters: int) -> dict[str, float]:
    """Loss (nats per token), perplexity and bits per character.

    Args:
        nll_sum: negative log-likelihood of all targets, summed, in nats.
        tokens: number of targets.
        characters: number of characters that the targets stand for.

    Raises:
        ValueError: there are no targets or no characters.
    """
    if not tokens or not characters:
        raise ValueError("no targets were added")
    loss = nll_sum / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # e^710 overflows a float64
        "bits_per_character": nll_sum / math.log(2) / characters,
    }


@functools.cache
def language_model_metric() -> evaluate.Metric:
    """:func:`figures` as a metric of the `evaluate` library, of batches of (nll_sum, tokens, characters).

    Built here, so that no Hub is asked, and in memory. Bits per character make models with different tokenizers
    comparable: nll_sum / ln 2 / characters. To import the library takes nearly a second, for which training does not
    wait: it uses the formula.
    """
    library = _evaluate_library()
    import datasets

    class LanguageModelMetric(library.Metric):  # type: ignore[name-defined]
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
            return figures(math.fsum(nll_sum), sum(tokens), sum(characters))

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
    block_size: int,
    indices: Sequence[int] | NDArray[Any],
    batch_size: int,
    device: Any,
    rank: int = 0,
    world: int = 1,
) -> tuple[float, int]:
    """This process's share of (sum of negative log-likelihoods in nats, number of targets) over blocks of a split.

    Every process takes each `world`-th block, none twice, so the sums over the processes are those of one process.
    Each makes the same number of passes of the same shape, filled up with rows that do not count: sharded models need
    the first, compiled ones the second. Dropout is off meanwhile, and the model's mode is put back.

    Args:
        model: a :class:`hfgpt.model.gpt2.LanguageModel`, whose forward gives the summed NLL, in any wrapper.
        stream: the split.
        block_size: targets in a block.
        indices: the blocks to evaluate on, the same on every process.
        batch_size: sequences at a time.
        device: where the model is.
        rank, world: this process, and how many there are.
    """
    import torch

    from hfgpt.model.gpt2 import IGNORED

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


# ------------------------------------------------------------------------------------------------------- a folder


def evaluate_folder(
    folder: str | Path,
    dataset: str | None = None,
    split: str = "val",
    batch_size: int = 32,
    device: str = "auto",
) -> dict[str, Any]:
    """Evaluate an exported model on all blocks of a split; the split is cut as training cuts it.

    Args:
        folder: the run folder; its recipe.yaml says which data, and where it has none, the defaults do.
        dataset: other data, as `dataset` in a recipe; read with the model's own tokenizer.
        split: 'val' or 'train'.
        batch_size: sequences at a time; does not change the figures.
        device: 'auto' or a device of torch.

    Returns: `loss`, `perplexity`, `bits_per_character`, `tokens`, `characters`, `blocks`, `split`, `dataset`.

    Raises:
        InputError: the folder, the data or an argument cannot be used.
    """
    if split not in SPLITS:
        raise InputError(f"split = {split!r}: must be 'val' or 'train'")
    if batch_size < 1:
        raise InputError(f"batch_size = {batch_size}: must be at least 1 (sequences)")
    config = _recipe(exported.check_folder(folder), dataset)
    from tqdm import tqdm

    from hfgpt.data import corpus as data
    from hfgpt.model.gpt2 import LanguageModel

    gpt2, tokenizer = exported.load_folder(folder, device)
    block = gpt2.config.n_positions
    corpus = data.prepare(config.model_copy(update={"tokenizer": str(folder), "block_size": block}))
    stream = corpus.val if split == "val" else corpus.train
    model = LanguageModel(gpt2, tokenizer.eos_token_id if config.document_mask else None).eval()
    count = data.CharacterCounter(tokenizer)
    indices = np.arange(stream.n_blocks(block))
    metric, tokens, characters = language_model_metric(), 0, 0
    for start in tqdm(range(0, len(indices), batch_size), unit="batch", disable=None, leave=False):
        part = indices[start : start + batch_size]
        nll, targets = evaluate_blocks(model, stream, block, part, len(part), gpt2.device)
        spelled = count(stream.blocks(part, block)[:, 1:])
        metric.add_batch(nll_sum=[nll], tokens=[targets], characters=[spelled])
        tokens, characters = tokens + targets, characters + spelled
    return {
        **metric.compute(),
        "tokens": tokens,
        "characters": characters,
        "blocks": len(indices),
        "split": split,
        "dataset": config.dataset,
    }


def _recipe(folder: Path, dataset: str | None) -> Config:
    """What the folder was trained by, or the defaults, on `dataset` if that is given."""
    path = folder / "recipe.yaml"
    config = configs.load(path) if path.is_file() else configs.build({}, folder.name)
    if dataset is None:
        return config
    if not dataset.strip():
        raise InputError("dataset: must not be empty")
    fields = Config.model_fields
    subset = {key: fields[key].default for key in ("dataset_config", "dataset_split")}
    return config.model_copy(update={**(subset if dataset != config.dataset else {}), "dataset": dataset})
