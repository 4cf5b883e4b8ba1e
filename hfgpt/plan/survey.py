"""What a recipe names, as far as it is at hand: the corpus, the vocabulary, a pretrained model's shape.

In:  a resolved Config.
Out: a :class:`Survey`: the config with the shape of the model that will be trained, the size of its vocabulary and the
     tokens of its corpus, each with a note where it is an assumption.

Nothing is downloaded, tokenised or written, and neither torch nor transformers is loaded: planning answers at once.
"""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgpt.base.errors import InputError
from hfgpt.config import EMBEDDED_DATASET, Config

BYTE_ENTRIES = 256  # what a character vocabulary has beside the characters (hfgpt/data/tokenizer.py)

READ_UP_TO = 64 << 20  # bytes of text that are read whole; of a larger corpus only the size is looked at

CHARACTERS_PER_TOKEN = 4.0  # of a BPE vocabulary on English prose, about

ASSUMED_CHARACTERS = 100  # distinct ones, where the corpus is not at hand

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
    """What is known of a recipe before it runs.

    Attributes:
        config: the recipe, with n_layer, n_head and n_embd of the model that is trained.
        vocab_size: rows of the token embedding.
        vocabulary: where that number comes from, in words.
        corpus_bytes: size of the text; None where it is not at hand.
        train_tokens: tokens of the training split; None where it is not at hand.
        approximate: whether train_tokens is a guess from the size of the text.
    """

    config: Config
    vocab_size: int
    vocabulary: str
    corpus_bytes: int | None
    train_tokens: int | None
    approximate: bool


@dataclass(frozen=True)
class _Text:
    """A corpus at hand: its size in bytes and characters, and its distinct characters where it was read."""

    bytes: int
    characters: int
    distinct: int | None
    has_validation: bool


# The embedded Shakespeare, counted once (a test counts again), since reading it takes half of a plan's time.
EMBEDDED = _Text(bytes=4_814_324, characters=4_814_324, distinct=74, has_validation=False)


def survey(config: Config) -> Survey:
    """Look at what the config names.

    Raises:
        InputError: the dataset, or the pretrained model's shape, is named wrongly or cannot be read.
    """
    text = _text(config)
    size, source = _vocabulary(config, text)
    if config.pretrained:
        config, size = _pretrained(config)
        source = f"{config.init_from}'s own"
    tokens, approximate = None, False
    if text is not None:
        kept = 1.0 if text.has_validation else 1 - config.val_fraction
        exact = config.tokenizer == "char" and text.distinct is not None
        tokens = int(text.characters / (1 if config.tokenizer == "char" else CHARACTERS_PER_TOKEN) * kept)
        approximate = not exact
    return Survey(config, size, source, text.bytes if text else None, tokens, approximate)


# ------------------------------------------------------------------------------------------------------- corpus


def _text(config: Config) -> _Text | None:
    """The corpus, read where it is small; None where it is not on this machine."""
    if config.dataset == EMBEDDED_DATASET:
        return EMBEDDED
    paths = _local_files(config.dataset)
    if paths is None:
        return None
    size = sum(path.stat().st_size * (3 if path.suffix in (".gz", ".zst") else 1) for path in paths)
    if size > READ_UP_TO:
        return _Text(size, size, None, False)
    from hfgpt.data import reading, sources

    found = sources.find(config.model_copy(update={"streaming": False}), Path())  # so small that nothing is cached
    distinct, characters, length = set[str](), 0, 0
    for piece in found.train:
        for part in reading.read(piece):
            for text in part.texts:
                distinct.update(text)
                characters += len(text)
                length += len(text) if text.isascii() else len(text.encode())
    return _Text(length, characters, len(distinct), bool(found.val))


def _local_files(name: str) -> list[Path] | None:
    """The files that `dataset` names on this machine; None for a Hub id (sources.find says what is wrong with it)."""
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file()]
    if matching := [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]:
        return matching
    looks_local = path.suffix in (".txt", ".jsonl", ".parquet", ".gz", ".zst") or path.is_absolute() or "*" in name
    return [] if looks_local else None


# ---------------------------------------------------------------------------------------------------- vocabulary


def _vocabulary(config: Config, text: _Text | None) -> tuple[int, str]:
    """Size of the vocabulary, and where the number comes from."""
    if config.tokenizer == "char":
        if text is not None and text.distinct is not None:
            return text.distinct + BYTE_ENTRIES, f"{text.distinct} characters of the corpus and {BYTE_ENTRIES} bytes"
        return ASSUMED_CHARACTERS + BYTE_ENTRIES, f"assumes {ASSUMED_CHARACTERS} characters, and {BYTE_ENTRIES} bytes"
    if config.tokenizer == "bpe":
        assert config.vocab_size is not None, "resolve() fills in vocab_size for 'bpe'"
        return config.vocab_size, "trained on the corpus, as vocab_size says"
    if _released(config.tokenizer) and not Path(config.tokenizer).is_dir():
        return GPT2_VOCABULARY, "GPT-2's"
    if (size := _tokenizer_entries(config.tokenizer)) is not None:
        return size, f"entries of {config.tokenizer}"
    return GPT2_VOCABULARY, f"assumes GPT-2's; {config.tokenizer} is not on this machine"


def _tokenizer_entries(name: str) -> int | None:
    """The highest token id plus one of a tokenizer on this machine."""
    if whole := _read_json(name, "tokenizer.json"):
        vocabulary = whole["model"]["vocab"]
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        return max(ids + [token["id"] for token in whole.get("added_tokens", [])]) + 1
    if pairs := _read_json(name, "vocab.json"):
        return max(pairs.values()) + 1
    return None


def _pretrained(config: Config) -> tuple[Config, int]:
    """The config with a pretrained model's own shape, and the rows of its token embedding."""
    name, vocab_size = config.init_from, GPT2_VOCABULARY
    shape = None if Path(name).is_dir() else _released(name)
    if shape is None and (found := _read_json(name, "config.json")):
        try:
            shape = (int(found["n_layer"]), int(found["n_head"]), int(found["n_embd"]))
            vocab_size = int(found["vocab_size"])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"init_from = {name!r}: its config.json is not GPT-2's (model_type {found.get('model_type')!r})"
            ) from None
    if shape is None:
        raise InputError(
            f"init_from = {name!r}: is neither a folder nor in the Hub's cache here, so its shape is not known"
            f"\n    → download it first (hf download {name}), or give a folder with config.json"
        )
    return config.model_copy(update=dict(zip(("n_layer", "n_head", "n_embd"), shape, strict=True))), vocab_size


def _released(name: str) -> tuple[int, int, int] | None:
    """The shape of a released GPT-2 by its Hub id; None for any other name."""
    return RELEASED.get(name.removeprefix("openai-community/").removeprefix("distilbert/"))


def _read_json(name: str, file: str) -> dict[str, Any] | None:
    """A JSON file of a folder, or of a Hub repository that is in the cache already; None if there is none."""
    path: Path | None = Path(name).expanduser() / file
    assert path is not None
    if not path.parent.is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(name, file)
        except HFValidationError:
            return None
        path = Path(cached) if isinstance(cached, str) else None
    if path is None or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r}: holds no JSON object")
    return content
