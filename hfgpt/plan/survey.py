"""The inputs that a recipe names, as far as they are available: corpus, vocabulary, a pretrained model's shape.

In:  a resolved Config.
Out: a :class:`Survey`: the config with the shape of the model to train, the size of its vocabulary and the tokens of
     its corpus, each with a note if it is an assumption.

Nothing is downloaded, tokenised or written, and neither torch nor transformers is loaded, so that planning is instant.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hfgpt.base.errors import UNREADABLE, InputError
from hfgpt.base.files import expanded
from hfgpt.base.language import _
from hfgpt.config import EMBEDDED_DATASET, Config
from hfgpt.config.yaml_text import corpora
from hfgpt.data.tokenizer_file import LARGEST as LARGEST_FILE
from hfgpt.model.folder import DEFAULTS, LARGEST, read_config, read_json
from hfgpt.model.loss_law import BYTE_ENTRIES, EMBEDDED_STATISTICS, Statistics

READ_UP_TO = 64 << 20  # largest text in bytes that is read; of a larger corpus only the size is used
CHARACTERS_PER_TOKEN = 4.0  # approximate, for a BPE vocabulary on English prose
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
class Text:
    """An available corpus."""

    # its size
    bytes: int
    characters: int
    distinct: int | None  # its distinct characters; None if it was not read
    has_validation: bool  # whether it has its own validation split
    # excerpt for counting its statistics; "" if it was not read
    sample: str = field(default="", repr=False)
    counted: Statistics | None = None  # its statistics, if they were counted before
    assumed: bool = False  # whether only its size is known, and English plays of this size stand for it

    @cached_property
    def statistics(self) -> Statistics | None:
        """Its predictability; None if it was not read, is too short or repeats one character."""
        if self.counted or len(self.sample) < LEAST_COUNTED:
            return self.counted
        from hfgpt.data import ngrams  # load numpy only if there is something to count

        counted = Statistics(*ngrams.measure(self.sample))
        return counted if counted.unigram > 0 else None


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


EMBEDDED = Text(4_814_324, 4_814_324, distinct=74, has_validation=False, counted=EMBEDDED_STATISTICS)

LEAST_COUNTED = 2000  # characters: fewer say nothing about a text
MOST_SAMPLED = 4_000_000  # characters that are kept for counting


def survey_of(config: Config, size: int | None = None) -> Survey:
    """Look up what the config names.

    Args:
        config: resolved.
        size: of a text that is not looked up, in bytes: English plays of this size stand for it.

    Raises:
        InputError: the name of the dataset or pretrained model is wrong, or it cannot be read.
    """
    return _of_text(config, _assumed(size) if size else _text(config))


def _of_text(config: Config, text: Text | None) -> Survey:
    entries, source = _vocabulary(config, text)
    if config.pretrained:
        config, own = _pretrained(config)
        if not config.new_embeddings:  # new ones have the tokenizer's vocabulary
            entries, source = own, _("that of {model}", model=config.init_from)
    tokens, approximate = None, False
    if text is not None:
        kept = 1.0 if text.has_validation else 1 - config.val_fraction
        exact = config.tokenizer == "char" and text.distinct is not None
        tokens = int(text.characters / (1 if config.tokenizer == "char" else CHARACTERS_PER_TOKEN) * kept)
        approximate = not exact
    return Survey(config, entries, source, text.bytes if text else None, tokens, approximate, text)


# ------------------------------------------------------------------------------------------------------- corpus


def _assumed(size: int) -> Text:
    """Return a text of so many bytes: the start of the embedded one, or its statistics if it is not longer."""
    if size >= EMBEDDED_STATISTICS.characters:
        return replace(EMBEDDED, bytes=size, characters=size, assumed=True)
    from hfgpt.data import sources

    with gzip.open(sources.EMBEDDED, "rt", encoding="utf-8") as file:
        start = file.read(size)
    return Text(size, size, len(set(start)), False, start, assumed=True)


def _text(config: Config) -> Text | None:
    """Return the corpus, read if it is small; None if it is not on this machine."""
    if config.dataset == EMBEDDED_DATASET:
        return EMBEDDED
    entries = corpora(config.dataset)
    if len(entries) > 1:
        return _together([_text(config.model_copy(update={"dataset": name})) for name, _weight in entries])
    from hfgpt.data.bins import tokens_here

    if (here := tokens_here(config)) is not None:
        characters = here[0] * (1 if config.tokenizer == "char" else CHARACTERS_PER_TOKEN)
        return Text(int(characters), int(characters), None, here[1])
    from hfgpt.data import reading, sources

    if (local := sources.local_files(config.dataset)) is None:
        return None
    _root, paths = local
    size = sum(path.stat().st_size * (3 if path.suffix in (".gz", ".zst") else 1) for path in paths)
    if size > READ_UP_TO:
        return Text(size, size, None, False)
    # Too small to be cached.
    sources_found = sources.find(config.model_copy(update={"streaming": False}), Path())
    distinct, characters, length, sample = set[str](), 0, 0, list[str]()
    for piece in sources_found.train:
        for part in reading.read(piece):
            for text in part.texts:
                distinct.update(text)
                if characters < MOST_SAMPLED:
                    sample.append(text[: MOST_SAMPLED - characters])
                characters += len(text)
                length += len(text) if text.isascii() else len(text.encode())
    return Text(length, characters, len(distinct), bool(sources_found.val), "".join(sample))


def _together(texts: Sequence[Text | None]) -> Text | None:
    """Merge the corpora of a mix; None if one of them is not on this machine."""
    available = [text for text in texts if text is not None]
    if len(available) < len(texts):
        return None
    size, characters = sum(text.bytes for text in available), sum(text.characters for text in available)
    return Text(size, characters, None, any(text.has_validation for text in available))


# ---------------------------------------------------------------------------------------------------- vocabulary


def _vocabulary(config: Config, text: Text | None) -> tuple[int, str]:
    """Return the size of the vocabulary, and the source of the number."""
    if config.tokenizer == "char":
        if text is not None and text.distinct is not None:
            count, assumed = text.distinct, text.assumed
        else:
            count, assumed = ASSUMED_CHARACTERS, True
        of_text = _("{characters} characters of the text, and {bytes} bytes", characters=count, bytes=BYTE_ENTRIES)
        guess = _("assumed: {characters} characters, and {bytes} bytes", characters=count, bytes=BYTE_ENTRIES)
        return count + BYTE_ENTRIES, guess if assumed else of_text
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
