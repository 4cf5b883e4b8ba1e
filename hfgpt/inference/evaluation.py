"""Evaluate an exported model on a text, as a metric of the `evaluate` library.

In:  an exported run folder and, by default, the data that its recipe names.
Out: the metrics of :mod:`hfgpt.inference.figures` over a whole split.

Importing the library takes nearly a second, so training uses only the figures module.
"""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import evaluate
import numpy as np
from tqdm import tqdm

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.config import Config
from hfgpt.config.fields import EVAL_BATCH
from hfgpt.data.encoding import CharacterCounter
from hfgpt.data.prepare import prepare
from hfgpt.inference import exported, figures
from hfgpt.model.gpt2 import LanguageModel

SPLITS = ("val", "train")
COLUMNS = {"nll_sum": "float64", "tokens": "int64", "characters": "int64"}


class LanguageModelMetric(evaluate.Metric):  # type: ignore[misc, unused-ignore]  # the library has no types
    """Token-weighted metrics of a language model; bits per character compare models with different tokenizers.

    The class is defined here, so that the library does not download it from the Hub.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Token-weighted loss, perplexity and bits per character of a language model.",
            citation="",
            inputs_description="nll_sum: nats, summed over targets; tokens, characters: how many they are.",
            features=datasets.Features({name: datasets.Value(dtype) for name, dtype in COLUMNS.items()}),
        )

    def _compute(self, nll_sum: list[float], tokens: list[int], characters: list[int]) -> dict[str, float]:
        return figures.figures(math.fsum(nll_sum), sum(tokens), sum(characters))


def evaluate_folder(
    folder: str | Path, dataset: str | None = None, split: str = "val", batch_size: int = 32, device: str = "auto"
) -> dict[str, Any]:
    """Evaluate an exported model on all blocks of a split, cut as in training.

    Args:
        folder: the run folder; its recipe.yaml names the data, otherwise the defaults apply.
        dataset: other data, as for `dataset` in a recipe; read with the model's own tokenizer.
        split: 'val' or 'train'.
        batch_size: sequences at a time; does not change the results.
        device: 'auto' or a torch device.

    Returns: `loss`, `perplexity`, `bits_per_character`, `tokens`, `characters`, `blocks`, `split`, `dataset`, and
        `sampled`, the blocks that an evaluation during training takes.

    Raises:
        InputError: the folder, the data or an argument cannot be used.
    """
    if split not in SPLITS:
        raise InputError("split = {split!r}: must be 'val' or 'train'", split=split)
    if batch_size < 1:
        raise InputError("batch_size = {size}: must be at least 1 (sequences)", size=batch_size)
    config = _recipe(exported.check_folder(folder), dataset)
    gpt2, tokenizer = exported.load_folder(folder, device)
    block = gpt2.config.n_positions
    needed = {"tokenizer": str(folder), "block_size": block, "val_datasets": None}  # further texts are not evaluated
    corpus = prepare(config.model_copy(update=needed))
    stream = corpus.val if split == "val" else corpus.train
    model = LanguageModel(gpt2, tokenizer.eos_token_id if config.document_mask else None).eval()
    count = CharacterCounter(tokenizer)
    indices = np.arange(stream.n_blocks(block))
    tokens = characters = 0
    with TemporaryDirectory() as cache:
        metric = LanguageModelMetric(keep_in_memory=True, cache_dir=cache)
        for start in tqdm(range(0, len(indices), batch_size), unit="batch", disable=None, leave=False):
            part = indices[start : start + batch_size]
            nll, targets = figures.evaluate_blocks(model, stream, block, part, len(part), gpt2.device)
            spelled = count(stream.blocks(part, block)[:, 1:])
            metric.add_batch(nll_sum=[nll], tokens=[targets], characters=[spelled])
            tokens, characters = tokens + targets, characters + spelled
        result = metric.compute()
    return {
        **result,
        "tokens": tokens,
        "characters": characters,
        "blocks": len(indices),
        "sampled": min(len(indices), config.eval_iters * EVAL_BATCH),
        "split": split,
        "dataset": config.dataset,
    }


def _recipe(folder: Path, dataset: str | None) -> Config:
    """Return the folder's recipe, or the defaults, with `dataset` if that is given."""
    path = folder / "recipe.yaml"
    config = configs.load(path) if path.is_file() else configs.build({}, folder.name)
    if dataset is None:
        return config
    if not dataset.strip():
        raise InputError("dataset: must not be empty")
    fields = Config.model_fields
    subset = {key: fields[key].default for key in ("dataset_config", "dataset_split")}
    return config.model_copy(update={**(subset if dataset != config.dataset else {}), "dataset": dataset})
