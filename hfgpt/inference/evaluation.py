"""How good a model is on text: loss, perplexity and bits per character.

In:  a model and blocks of tokens; or an exported run folder and, by default, the data that its recipe names.
Out: the sum of the targets' negative log-likelihoods and their number; from these, the three figures.

Everything is token-weighted: sums are kept, in float64, and divided once at the end, so the figures do not depend on
the batch size, on how the last batch falls, or on the number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.base.language import _
from hfgpt.config import Config
from hfgpt.inference import exported

if TYPE_CHECKING:
    from torch import nn

    from hfgpt.data.blocks import TokenStream


SPLITS = ("val", "train")


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
        folder: the run folder; its recipe.yaml says which data, and without one, the defaults do.
        dataset: other data, as `dataset` in a recipe; read with the model's own tokenizer.
        split: 'val' or 'train'.
        batch_size: sequences at a time; does not change the figures.
        device: 'auto' or a device of torch.

    Returns: `loss`, `perplexity`, `bits_per_character`, `tokens`, `characters`, `blocks`, `split`, `dataset`.

    Raises:
        InputError: the folder, the data or an argument cannot be used.
    """
    if split not in SPLITS:
        raise InputError(_("split = {split!r}: must be 'val' or 'train'", split=split))
    if batch_size < 1:
        raise InputError(_("batch_size = {size}: must be at least 1 (sequences)", size=batch_size))
    config = _recipe(exported.check_folder(folder), dataset)
    from tqdm import tqdm

    from hfgpt.data.encoding import CharacterCounter
    from hfgpt.data.prepare import prepare
    from hfgpt.inference.metric import LanguageModelMetric
    from hfgpt.model.gpt2 import LanguageModel

    gpt2, tokenizer = exported.load_folder(folder, device)
    block = gpt2.config.n_positions
    corpus = prepare(config.model_copy(update={"tokenizer": str(folder), "block_size": block}))
    stream = corpus.val if split == "val" else corpus.train
    model = LanguageModel(gpt2, tokenizer.eos_token_id if config.document_mask else None).eval()
    count = CharacterCounter(tokenizer)
    indices = np.arange(stream.n_blocks(block))
    tokens = characters = 0
    with TemporaryDirectory() as cache:
        metric = LanguageModelMetric(keep_in_memory=True, cache_dir=cache)
        for start in tqdm(range(0, len(indices), batch_size), unit="batch", disable=None, leave=False):
            part = indices[start : start + batch_size]
            nll, targets = evaluate_blocks(model, stream, block, part, len(part), gpt2.device)
            spelled = count(stream.blocks(part, block)[:, 1:])
            metric.add_batch(nll_sum=[nll], tokens=[targets], characters=[spelled])
            tokens, characters = tokens + targets, characters + spelled
        result = metric.compute()
    return {
        **result,
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
        raise InputError(_("dataset: must not be empty"))
    fields = Config.model_fields
    subset = {key: fields[key].default for key in ("dataset_config", "dataset_split")}
    return config.model_copy(update={**(subset if dataset != config.dataset else {}), "dataset": dataset})
