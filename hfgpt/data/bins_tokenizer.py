"""The tokenizer of token files that bring their own: used if the config leaves the choice, and otherwise compared.

In:  a config, and the token files of its corpora.
Out: a tokenizer, or an InputError that says which files hold ids of another tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hfgpt.base.errors import InputError
from hfgpt.base.files import expanded
from hfgpt.config import Config
from hfgpt.data import tokenizer as tokenizers
from hfgpt.data.bins import Bins

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def own_tokenizer(files: Bins) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer that lies beside token files, if there is one."""
    if files.meta is not None:
        return tokenizers.char_tokenizer(tokenizers.read_meta(files.meta))
    return tokenizers.load(str(files.tokenizer)) if files.tokenizer is not None else None


def tokenizer_of_files(config: Config, bins: Mapping[str, Bins], alone: bool) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer of token files if the config does not name another; None if it does, or without files.

    Args:
        bins: the token files by the name of their dataset.
        alone: whether the config has only one corpus.

    Raises:
        InputError: the files do not have a tokenizer, or cannot be mixed with other corpora.
    """
    for name, files in bins.items():
        if files.meta is not None and not alone:
            raise InputError(
                "dataset = {name!r}: holds character ids, which mean other characters in the rest of the mix"
                "\n    → give the text that they were made from",
                name=name,
            )
    if not bins or not _leaves_the_choice(config):
        return None
    for files in bins.values():
        if (own := own_tokenizer(files)) is not None:
            return own
    if config.tokenizer not in tokenizers.TRAINED:
        return None
    raise InputError(
        "tokenizer = {tokenizer!r}: {name!r} holds tokens already, such as those of GPT-2's tokenizer\n"
        "    → set tokenizer to 'gpt2', or to a folder that holds the one they were made with",
        tokenizer=config.tokenizer,
        name=next(iter(bins)),
    )


def _leaves_the_choice(config: Config) -> bool:
    """Whether the config has no tokenizer that the model needs."""
    if config.tokenizer in tokenizers.TRAINED:
        return True
    if not config.pretrained or config.tokenizer != config.init_from:
        return False
    folder = expanded(config.init_from)
    bare = folder.is_dir() and not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return config.new_embeddings or bare  # the ids of a model without a tokenizer mean what its user says


def check_tokenizer(name: str, files: Bins, tokenizer: PreTrainedTokenizerFast, config: Config) -> None:
    """Refuse token files that bring another tokenizer than the one used, since the same ids mean other characters.

    Raises:
        InputError: an id of both tokenizers stands for two tokens.
    """
    try:
        own = own_tokenizer(files)
    except InputError:
        if files.meta is not None:
            raise
        return  # other files with a tokenizer's names, beside tokens whose tokenizer the config names
    if own is not None and not _agree(own, tokenizer):
        raise InputError(
            "dataset = {name!r}: holds tokens of another tokenizer than {tokenizer!r}, so the same ids mean other "
            "characters\n"
            "    → give the text that they were made from; to train a new model on these tokens, leave tokenizer out",
            name=name,
            tokenizer=config.tokenizer,
        )


def _agree(one: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> bool:
    """Whether each id that both tokenizers have is the same token. Either may have more, such as one for padding."""
    known = {i: token for token, i in other.get_vocab().items()}
    return all(known.get(i, token) == token for token, i in one.get_vocab().items())
