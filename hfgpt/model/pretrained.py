"""Pretrained weights for `init_from`.

In:  a folder or the Hub id of a GPT-2, and the recipe's tokenizer.
Out: its GPT2LMHeadModel in float32 with the recipe's dropout, or an InputError if it does not match the recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download
from torch import nn
from transformers import GPT2LMHeadModel

from hfgpt.base.errors import InputError, first_line
from hfgpt.base.files import expanded
from hfgpt.base.language import _
from hfgpt.base.terminal import say_reading
from hfgpt.config import Config
from hfgpt.data import tokenizer as tokenizers
from hfgpt.model import kernels
from hfgpt.model.folder import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILES = [
    "config.json", "generation_config.json", "model.safetensors", "model-*.safetensors", "*.safetensors.index.json",
]  # fmt: skip


def load(config: Config) -> GPT2LMHeadModel:
    """Load the model of `init_from`, in float32 and with the recipe's dropout.

    Raises:
        InputError: it cannot be reached, is not a GPT-2, or is incomplete.
    """
    drop = {key: config.dropout for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    try:
        return load_model(_folder(config.init_from), attn_implementation=kernels.ATTENTION, **drop)
    except InputError as error:
        raise InputError("init_from = {source!r}: {reason}", source=config.init_from, reason=error) from None


def _folder(source: str) -> Path:
    """Return a local folder, or the folder of the files downloaded from the Hub."""
    folder = expanded(source)
    if folder.is_dir():
        return folder
    say_reading(source)
    try:
        return Path(snapshot_download(source, allow_patterns=FILES))
    except Exception as error:  # any library error: wrong or unreachable id
        raise InputError(
            "cannot be loaded as a GPT-2 model: {reason}\n"
            "    → give a folder with config.json and model.safetensors, or a Hub id (with network access)",
            reason=first_line(error),
        ) from None


def check_vocabulary(
    config: Config, gpt2: GPT2LMHeadModel, vocab_size: int, tokenizer: PreTrainedTokenizerFast | None
) -> None:
    """Refuse a tokenizer that the weights were not trained with, since its ids mean other tokens.

    Raises:
        InputError: the tokenizer has more tokens than the model, or is not the one that the model was trained with.
    """
    known = gpt2.config.vocab_size
    fix = _(
        "use the model's own tokenizer (leave tokenizer out), or set new_embeddings to true: the token embeddings are "
        "then reinitialized"
    )
    if vocab_size > known:
        raise InputError(
            "tokenizer = {tokenizer!r}: has {tokens} tokens, and {source} knows {known} → {fix}",
            tokenizer=config.tokenizer,
            tokens=vocab_size,
            source=config.init_from,
            known=known,
            fix=fix,
        )
    if tokenizer is None or config.tokenizer == config.init_from:
        return
    try:
        model_tokenizer = tokenizers.load(config.init_from)
    except InputError:  # without the model's tokenizer, the meaning of its ids is unknown
        return
    if tokenizers.fingerprint(model_tokenizer) != tokenizers.fingerprint(tokenizer):
        raise InputError(
            "tokenizer = {tokenizer!r}: is not the one that {source} was trained with, so its token ids mean other "
            "characters → {fix}",
            tokenizer=config.tokenizer,
            source=config.init_from,
            fix=fix,
        )


def renew_embeddings(gpt2: GPT2LMHeadModel, vocab_size: int, eos_token_id: int | None) -> None:
    """Replace the token embeddings for another vocabulary, in place; a tied head stays tied."""
    deviation, width = gpt2.config.initializer_range, gpt2.config.n_embd
    tied = gpt2.lm_head.weight is gpt2.transformer.wte.weight
    gpt2.transformer.wte = nn.Embedding(vocab_size, width)
    gpt2.lm_head = nn.Linear(width, vocab_size, bias=False)
    nn.init.normal_(gpt2.transformer.wte.weight, std=deviation)
    if tied:
        gpt2.lm_head.weight = gpt2.transformer.wte.weight
    else:
        nn.init.normal_(gpt2.lm_head.weight, std=deviation)
    gpt2.config.vocab_size = vocab_size
    gpt2.config.bos_token_id = gpt2.config.eos_token_id = eos_token_id
