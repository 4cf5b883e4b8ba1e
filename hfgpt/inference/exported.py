"""An exported model folder: what it must hold, and how it is loaded.

In:  a folder.
Out: GPT2LMHeadModel and its tokenizer, or an InputError that says what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hfgpt.base.errors import InputError

if TYPE_CHECKING:
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase


# ------------------------------------------------------------------------------------------------------- the folder


def check_folder(folder: str | Path) -> Path:
    """The folder, if it holds an exported GPT-2 with its tokenizer, as far as can be told without loading it.

    Raises:
        InputError: it does not; says what is missing and where it comes from.
    """
    path = Path(folder)
    if not path.is_dir():
        what = "is a file, not a run folder" if path.exists() else "no such folder"
        on_the_hub = len(path.parts) == 2 and not path.parent.exists()
        hint = f"; to get it from the Hub: python scripts/pull.py {path} DIR" if on_the_hub else ""
        raise InputError(f"{str(folder)!r}: {what}{hint}")
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (path / name).is_file()]
    if not (path / "model.safetensors").is_file() and not (path / "model.safetensors.index.json").is_file():
        missing.append("model.safetensors")
    if missing:
        if (path / "recipe.yaml").is_file() or any(path.glob("checkpoint-*")):
            why = "the run has exported no model yet: it does so at its first evaluation (eval_interval)"
        else:
            why = "this is no run folder"
        raise InputError(f"{str(folder)!r}: holds no {' and no '.join(missing)}; {why}")
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path / 'config.json'}: is not the description of a model") from None
    if kind != "gpt2":
        raise InputError(f"{str(folder)!r}: is a {kind} model; hfgpt reads GPT-2 models")
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
    from transformers import AutoTokenizer, GPT2LMHeadModel

    if device == "auto":
        device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model = GPT2LMHeadModel.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
    except Exception as error:  # whatever the libraries raise for a damaged folder
        raise InputError(f"{str(folder)!r}: cannot be loaded: {_first_line(error)}") from None
    try:
        return model.to(device).eval(), tokenizer
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device = {device!r}: cannot be used here: {_first_line(error)}") from None


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without Transformers' bar for loading weights, which is over before one could read it."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


def left_out(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The characters of `text` that the tokenizer has no tokens for, each once; most tokenizers have all."""
    known = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), clean_up_tokenization_spaces=False)
    return "".join(sorted(set(text) - set(known)))


def start_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that an empty prompt begins with: of a new document, or a line feed where there is none."""
    newline = tokenizer.encode("\n", add_special_tokens=False)
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, *newline):
        if token is not None:
            return int(token)
    return 0
