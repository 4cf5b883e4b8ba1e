"""The exported model: a folder that Transformers loads without this project.

In:  a GPT2LMHeadModel, its tokenizer, and weights by its names.
Out: config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json in the run folder.

Each file is replaced atomically, so that concurrent readers see the old or the new one.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hfgpt.base.files import disk_errors, make_readable, sync
from hfgpt.inference import exported

_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LanguageModel's state by GPT2LMHeadModel's names, without a tied head."""
    named = {name.removeprefix("gpt2."): tensor for name, tensor in state.items()}
    if _HEAD in named and torch.equal(named[_HEAD], named[_EMBEDDING]):
        del named[_HEAD]
    return named


def with_tied_head(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, for a model that expects every name."""
    return {_HEAD: named[_EMBEDDING], **named}


def write(
    folder: Path, gpt2: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, weights: Mapping[str, Tensor]
) -> None:
    """Export `weights`, which may be stored outside `gpt2` (gathered from several processes).

    Raises:
        OSError: the disk is full or not writable; the folder's files are unchanged.
    """
    temporary = folder / ".exporting"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        tokenizer.model_max_length = gpt2.config.n_positions
        exported.allow_batches(tokenizer)
        gpt2.generation_config = exported.generation_config(gpt2.config, tokenizer)
        logging.disable_progress_bar()
        with disk_errors(folder):
            tokenizer.save_pretrained(temporary)
            # GPT-2's weights have one format; Transformers would search its conversions between formats, for 50 ms.
            gpt2.save_pretrained(temporary, state_dict=dict(weights), max_shard_size="1TB", save_original_format=False)
        for path in sorted(temporary.iterdir()):
            make_readable(path)
            sync(path)
            path.replace(folder / path.name)
        sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
