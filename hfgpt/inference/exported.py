"""An exported model folder: what it must hold, how it is loaded, and what makes Transformers' pipeline work with it.

In:  a folder.
Out: GPT2LMHeadModel and its tokenizer, or an InputError that says what is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hfgpt.base.command import typed
from hfgpt.base.errors import InputError, first_line
from hfgpt.base.language import _, listed
from hfgpt.data import tokenizer as tokenizers
from hfgpt.data.tokenizer import token_ids
from hfgpt.data.tokenizer_file import panics_as_messages
from hfgpt.model.folder import INDEX, WEIGHTS, check_model, load_model, read_json

if TYPE_CHECKING:
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

SPARE_BYTE = "<0xFF>"  # a token of every character-level tokenizer, and a byte that UTF-8 never has

# ------------------------------------------------------------------------------------------------------- the folder


def check_folder(folder: str | Path) -> Path:
    """The folder, if it holds an exported GPT-2 with its tokenizer, as far as can be told without loading it.

    Raises:
        InputError: it does not; says what is missing and where it comes from.
    """
    path = Path(folder).expanduser()
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
    """The model (float32, in evaluation mode, on `device`) and the tokenizer of an exported folder.

    Args:
        folder: see :func:`check_folder`.
        device: 'auto' takes the accelerator if there is one; else a name that torch knows.

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


# ------------------------------------------------------------------------------------------------------- the pipeline


def generation_config(config: GPT2Config, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """What ``generation_config.json`` must say, so that Transformers' pipeline works with its own defaults.

    ``max_length`` is the block: the pipeline would otherwise add 256 tokens to any prompt and run past the positions
    of a smaller model. An empty prompt starts as in :func:`start_id`. Ids without a token (a padded vocabulary) are
    never drawn.
    """
    from transformers import GenerationConfig

    eos = tokenizer.eos_token_id
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
    beyond = list(range(len(tokenizer), config.vocab_size))
    return GenerationConfig(
        max_length=config.n_positions,
        bos_token_id=start_id(tokenizer),
        eos_token_id=eos,
        pad_token_id=padding,
        suppress_tokens=beyond or None,
    )


def allow_batches(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let Transformers put prompts of different lengths side by side: padded on the left with an existing token.

    The padding is masked, so any token does: the end of text, or for characters a byte that no text has. Neither the
    vocabulary nor the tokens of a text change.
    """
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        elif SPARE_BYTE in tokenizer.get_vocab():
            tokenizer.pad_token = SPARE_BYTE


def left_out(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The characters of `text` that the tokenizer has no tokens for, each once; most tokenizers have all."""
    with panics_as_messages():
        known = tokenizer.decode(token_ids(tokenizer, text), clean_up_tokenization_spaces=False)
    return "".join(sorted(set(text) - set(known)))


def start_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that an empty prompt begins with: of a new document, or a line feed if it does not have one."""
    newline = token_ids(tokenizer, "\n")
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, *newline):
        if token is not None:
            return int(token)
    return 0
