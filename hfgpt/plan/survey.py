"""The inputs that a recipe names, as far as they are available: corpus, vocabulary, a pretrained model's shape.

In:  a resolved Config.
Out: a :class:`Survey`: the config with the shape of the model to train, the size of its vocabulary and the tokens of
     its corpus, each with a note if it is an assumption.

Nothing is downloaded, tokenised or written, and neither torch nor transformers is loaded, so that planning is instant.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgpt.base.errors import UNREADABLE, InputError
from hfgpt.base.files import expanded
from hfgpt.base.language import _
from hfgpt.config import Config
from hfgpt.config.yaml_text import corpora, named
from hfgpt.data.tokenizer_file import LARGEST as LARGEST_FILE
from hfgpt.model.folder import DEFAULTS, LARGEST, read_config, read_json
from hfgpt.model.loss_law import BYTE_ENTRIES, Statistics
from hfgpt.plan.corpus import Text, assumed, find_text

ASSUMED_CHARACTERS = 100  # assumed distinct characters, if the corpus is not available
GPT2_VOCABULARY = 50257

# Shapes of the models that OpenAI and Hugging Face released (n_layer, n_head, n_embd), so that planning a fine-tuning
# needs no download. Source: their config.json on the Hub.
RELEASED = {
    "distilgpt2": (6, 12, 768),
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}


@dataclass(frozen=True)
class Survey:
    """What is known about a recipe before it runs."""

    config: Config  # the recipe, with n_layer, n_head and n_embd of the model to train
    vocab_size: int  # rows of the token embedding
    vocabulary: str  # the source of that number, in words
    corpus_bytes: int | None  # size of the text; None if it is not available
    train_tokens: int | None  # tokens of the training split; None if it is not available
    approximate: bool  # whether train_tokens is estimated from the size of the text
    text: Text | None = None  # the text itself; None if it is not available
    # tokens of each text whose loss is measured besides: of val_datasets, and of a mix's corpora; None if unknown
    further: tuple[int | None, ...] = ()

    @property
    def val_tokens(self) -> int | None:
        """Tokens of the validation split; None if the text is not available.

        A split of its own is not counted: it is taken to be as long as the training split.
        """
        if self.text is None or self.train_tokens is None or self.text.has_validation:
            return self.train_tokens
        if self.approximate:
            return round(self.train_tokens * self.config.val_fraction / (1 - self.config.val_fraction))
        return self.text.characters - self.train_tokens

    @property
    def assumed(self) -> bool:
        """Whether another text stands for its own."""
        return self.text is not None and self.text.assumed

    @property
    def statistics(self) -> Statistics | None:
        """The predictability of its text; None if unknown."""
        return self.text.statistics if self.text else None


def survey_of(config: Config, size: int | None = None) -> Survey:
    """Look up what the config names.

    Args:
        config: resolved.
        size: of a text that is not looked up, in bytes: English plays of this size stand for it.

    Raises:
        InputError: the name of the dataset or pretrained model is wrong, or it cannot be read.
    """
    text = assumed(size) if size else find_text(config, _vocabulary(config, None)[0])
    entries, source = _vocabulary(config, text)
    tokens, approximate = None, False
    if text is not None:
        kept = 1.0 if text.has_validation else 1 - config.val_fraction
        tokens = int(text.tokens(config, entries) * kept)
        approximate = config.tokenizer != "char" or text.distinct is None or text.partial
    further = tuple(int(other.tokens(config, entries)) if other else None for other in _further(config, entries))
    if (parts := len(corpora(config.dataset))) > 1:  # each one's validation split, taken to be equally long
        held_out = None if tokens is None else int(tokens * config.val_fraction / (1 - config.val_fraction) / parts)
        further += parts * (held_out,)
    if config.pretrained:
        config, own = _pretrained(config)
        if not config.new_embeddings:  # new ones have the tokenizer's vocabulary
            entries, source = own, _("that of {model}", model=config.init_from)
    return Survey(config, entries, source, text.bytes if text else None, tokens, approximate, text, further)


def _further(config: Config, entries: int) -> Iterator[Text | None]:
    """Return the texts of `val_datasets`; None for one that is not on this machine."""
    for _name, source in named(config.val_datasets):
        try:
            yield find_text(config.model_copy(update={"dataset": source, "streaming": False}), entries)
        except InputError as error:
            raise InputError(str(error).replace("dataset = ", "val_datasets = ", 1)) from None


# ---------------------------------------------------------------------------------------------------- vocabulary


def _vocabulary(config: Config, text: Text | None) -> tuple[int, str]:
    """Return the size of the vocabulary, and the source of the number."""
    if config.tokenizer == "char":
        if text is not None and text.distinct is not None and text.assumed:
            return text.distinct + BYTE_ENTRIES, _(
                "assumed: {characters} characters, and {bytes} bytes", characters=text.distinct, bytes=BYTE_ENTRIES
            )
        if text is not None and text.distinct is not None:
            if text.partial:
                return text.distinct + BYTE_ENTRIES, _(
                    "at least {characters} characters of the text, and {bytes} bytes",
                    characters=text.distinct,
                    bytes=BYTE_ENTRIES,
                )
            return text.distinct + BYTE_ENTRIES, _(
                "{characters} characters of the text, and {bytes} bytes", characters=text.distinct, bytes=BYTE_ENTRIES
            )
        return ASSUMED_CHARACTERS + BYTE_ENTRIES, _(
            "assumed: {characters} characters, and {bytes} bytes", characters=ASSUMED_CHARACTERS, bytes=BYTE_ENTRIES
        )
    if config.tokenizer == "bpe":
        assert config.vocab_size is not None, "resolve() fills in vocab_size for 'bpe'"
        return config.vocab_size, _("trained on the text, as vocab_size says")
    if _released(config.tokenizer) and not Path(config.tokenizer).is_dir():
        return GPT2_VOCABULARY, _("that of {model}", model="GPT-2")
    if (size := _tokenizer_entries(config.tokenizer)) is not None:
        return size, _("entries of {tokenizer}", tokenizer=config.tokenizer)
    return GPT2_VOCABULARY, _("assumed to be GPT-2's: {tokenizer} is not on this machine", tokenizer=config.tokenizer)


def _tokenizer_entries(name: str) -> int | None:
    """Return the highest token id plus one of a tokenizer on this machine."""
    try:
        if whole := _read_json(name, "tokenizer.json"):
            vocabulary = whole["model"]["vocab"]
            ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
            return _size(ids + [token["id"] for token in whole.get("added_tokens", [])])
        if pairs := _read_json(name, "vocab.json"):
            return _size(list(pairs.values()))
    except UNREADABLE:
        raise InputError("{path}: is not the description of a tokenizer", path=name) from None
    return None


def _size(ids: list[Any]) -> int:
    """Return the embedding rows that these token ids need.

    Raises:
        ValueError, TypeError: they are not token ids.
    """
    if not 0 <= (highest := max(ids)) < LARGEST["vocab_size"]:
        raise ValueError
    return int(highest) + 1


def _pretrained(config: Config) -> tuple[Config, int]:
    """Return the config with a pretrained model's own shape, and the rows of its token embedding."""
    name, saved = config.init_from, dict[str, Any](DEFAULTS)
    shape = None if Path(name).is_dir() else _released(name)
    if shape is not None:
        saved |= dict(zip(("n_layer", "n_head", "n_embd"), shape, strict=True))
    elif path := _at_hand(name, "config.json"):
        saved |= read_config(path)
    else:
        raise InputError(
            "init_from = {name!r}: is neither a folder nor in the Hub's cache here, so its shape is not known\n"
            "    → download it first (hf download {name}), or give a folder with config.json",
            name=name,
        )
    if config.block_size > saved["n_positions"]:
        raise InputError(
            "block_size = {block}: {source} has positions for {positions} tokens → set block_size to at most "
            "{positions}",
            block=config.block_size,
            source=name,
            positions=saved["n_positions"],
        )
    own = {key: saved[key] for key in ("n_layer", "n_head", "n_embd", "n_inner")}
    own |= {"activation_function": saved.get("activation_function", "gelu_new")}
    own |= {"tie_word_embeddings": saved.get("tie_word_embeddings", True)}
    return config.model_copy(update=own), saved["vocab_size"]


def _released(name: str) -> tuple[int, int, int] | None:
    """Return the shape of a released GPT-2 by its Hub id; None for any other name."""
    return RELEASED.get(name.removeprefix("openai-community/").removeprefix("distilbert/"))


def _read_json(name: str, file: str) -> dict[str, Any] | None:
    """Read a JSON file of a folder or a cached Hub repository; None if it is not available."""
    path = _at_hand(name, file)
    return read_json(path, LARGEST_FILE) if path else None


def _at_hand(name: str, file: str) -> Path | None:
    """Return the path of a file in a folder or a cached Hub repository; None if it is not available."""
    path = expanded(name) / file
    if path.parent.is_dir():
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, file)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) and Path(cached).is_file() else None
