"""Exported model folders: checking, loading, and settings for Transformers' pipeline.

In:  a folder.
Out: its GPT2LMHeadModel and tokenizer, or an InputError that says what is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hfgpt.base.command import typed
from hfgpt.base.errors import InputError, first_line
from hfgpt.base.files import expanded
from hfgpt.base.language import _, listed
from hfgpt.data import tokenizer as tokenizers
from hfgpt.data.tokenizer import token_ids
from hfgpt.data.tokenizer_file import panics_as_messages
from hfgpt.model.folder import INDEX, WEIGHTS, check_model, load_model, read_json

if TYPE_CHECKING:
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

SPARE_BYTE = "<0xFF>"  # a token of every character-level tokenizer, and a byte that never occurs in UTF-8


def check_folder(folder: str | Path) -> Path:
    """Return the folder, after checking, without loading them, that it holds a GPT-2 and its tokenizer.

    Raises:
        InputError: it does not; the message says what is missing and how to get it.
    """
    path = expanded(folder)
    if not path.is_dir():
        if path.exists():
            raise InputError("{folder!r}: is a file, not a run folder", folder=str(folder))
        if len(path.parts) == 2 and not path.parent.exists():
            raise InputError(
                "{folder!r}: no such folder; to get it from the Hub: {command}",
                folder=str(folder),
                command=typed("pull", path, "DIR"),
            )
        raise InputError("{folder!r}: no such folder", folder=str(folder))
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (path / name).is_file()]
    if not (path / WEIGHTS).is_file() and not (path / INDEX).is_file():
        missing.append(WEIGHTS)
    if missing:
        if (path / "recipe.yaml").is_file() or any(path.glob("checkpoint-*")):
            why = _("the run has exported no model yet: it does so at its first evaluation (eval_interval)")
        else:
            why = _("this is not a run folder")
        raise InputError("{folder!r}: holds no {files}; {why}", folder=str(folder), files=listed(missing), why=why)
    check_model(path)
    for name in ("tokenizer_config.json", "generation_config.json"):
        if (path / name).is_file():
            read_json(path / name, 2**24)
    return path


def load_folder(folder: str | Path, device: str = "auto") -> tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]:
    """Load the model (float32, in evaluation mode, on `device`) and the tokenizer of an exported folder.

    Args:
        device: 'auto' means the accelerator if there is one; otherwise the name of a torch device.

    Raises:
        InputError: the folder's files or the device cannot be used.
    """
    path = check_folder(folder)
    import torch

    if device == "auto":
        device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    tokenizer, model = tokenizers.load(str(path)), load_model(path)
    highest = tokenizers.vocabulary_size(tokenizer)
    if highest > model.config.vocab_size:
        raise InputError(
            "{folder!r}: the tokenizer has {tokens} tokens, and the model knows {known}",
            folder=str(folder),
            tokens=highest,
            known=model.config.vocab_size,
        )
    try:
        return model.to(device).eval(), tokenizer
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            "device = {device!r}: cannot be used here: {reason}", device=device, reason=first_line(error)
        ) from None


def generation_config(config: GPT2Config, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return the generation config with which Transformers' pipeline works with its own defaults.

    ``max_length`` is the block size: otherwise the pipeline adds 256 tokens to any prompt and runs past the positions
    of a smaller model. An empty prompt starts with :func:`start_id`. Ids without a token (a padded vocabulary, or one
    with holes) are never sampled.
    """
    from transformers import GenerationConfig

    eos = tokenizer.eos_token_id
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
    beyond = sorted({*range(config.vocab_size)} - {*tokenizer.get_vocab().values()})
    return GenerationConfig(
        max_length=config.n_positions,
        bos_token_id=start_id(tokenizer),
        eos_token_id=eos,
        pad_token_id=padding,
        suppress_tokens=beyond or None,
    )


def allow_batches(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let Transformers batch prompts of different lengths, by left padding with an existing token.

    The padding is masked, so any token works: the end-of-text token, or for character-level tokenizers a byte that
    never occurs in text. Neither the vocabulary nor the tokens of a text change.
    """
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        elif SPARE_BYTE in tokenizer.get_vocab():
            tokenizer.pad_token = SPARE_BYTE


def left_out(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return the characters of `text` without a token, each once; most tokenizers cover all characters."""
    with panics_as_messages():
        known = tokenizer.decode(token_ids(tokenizer, text), clean_up_tokenization_spaces=False)
    return "".join(sorted(set(text) - set(known)))


def start_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the first token for an empty prompt: that of a new document, or a line feed if there is not one."""
    newline = token_ids(tokenizer, "\n")
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, *newline):
        if token is not None:
            return int(token)
    return 0
