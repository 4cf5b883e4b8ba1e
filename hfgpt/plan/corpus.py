"""The text that a recipe names, as far as it is on this machine.

In:  a resolved Config, or the size of a text that is elsewhere.
Out: a :class:`Text`: its characters, their script and their statistics; of a large text, by its start.

Nothing is downloaded, tokenised or written, and neither torch nor transformers is loaded, so that planning is instant.
"""

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from hfgpt.config import EMBEDDED_DATASET, Config
from hfgpt.config.yaml_text import corpora
from hfgpt.model.loss_law import EMBEDDED_STATISTICS, Statistics
from hfgpt.plan import token_rate

READ_UP_TO = 64 << 20  # largest text in bytes that is read; of a larger one only the start is
START = 2_000_000  # characters of that start, from all files together
FILES = 4  # most files of a large corpus whose start is read
LEAST_COUNTED = 2000  # characters: fewer say nothing about a text
MOST_SAMPLED = 4_000_000  # characters that are kept for counting


@dataclass(frozen=True)
class Text:
    """An available corpus."""

    # its size
    bytes: int
    characters: int
    distinct: int | None  # its distinct characters; None if unknown
    has_validation: bool  # whether it has its own validation split
    # excerpt for counting its statistics; "" if it was not read
    sample: str = field(default="", repr=False)
    counted: Statistics | None = None  # its statistics, if they were counted before
    wide: float = 0.0  # share of Chinese, Japanese and Korean characters
    partial: bool = False  # whether not all was read: `characters` is estimated, and `distinct` a lower bound
    assumed: bool = False  # whether only its size is known, and English plays of this size stand for it

    @cached_property
    def statistics(self) -> Statistics | None:
        """Its predictability; None if it was not read, is too short or repeats one character."""
        if self.counted or len(self.sample) < LEAST_COUNTED:
            return self.counted
        from hfgpt.data import ngrams  # load numpy only if there is something to count

        counted = Statistics(*ngrams.measure(self.sample))
        return counted if counted.unigram > 0 else None

    def tokens(self, config: Config, entries: int) -> float:
        """Return its tokens, by a vocabulary of so many entries: exact for characters that were counted."""
        if config.tokenizer == "char":
            return self.characters
        return self.characters / token_rate.characters_per_token(self.wide, entries)


EMBEDDED = Text(4_814_324, 4_814_324, distinct=74, has_validation=False, counted=EMBEDDED_STATISTICS)


def assumed(size: int) -> Text:
    """Return a text of so many bytes: the start of the embedded one, or its statistics if it is not longer."""
    if size >= EMBEDDED_STATISTICS.characters:
        return replace(EMBEDDED, bytes=size, characters=size, assumed=True)
    from hfgpt.data import sources

    with gzip.open(sources.EMBEDDED, "rt", encoding="utf-8") as file:
        start = file.read(size)
    return Text(size, size, len(set(start)), False, start, assumed=True)


def find_text(config: Config, entries: int) -> Text | None:
    """Return the corpus, read if it is small; None if it is not on this machine.

    Args:
        entries: of the vocabulary: token files hold no characters, so that theirs are estimated.

    Raises:
        InputError: its name is wrong, or it cannot be read.
    """
    if config.dataset == EMBEDDED_DATASET:
        return EMBEDDED
    named = corpora(config.dataset)
    if len(named) > 1:
        return _together([find_text(config.model_copy(update={"dataset": name}), entries) for name, _weight in named])
    from hfgpt.data.bins import tokens_here

    if (here := tokens_here(config)) is not None:
        characters = (
            here[0]
            if config.tokenizer == "char"
            else math.ceil(here[0] * token_rate.characters_per_token(0.0, entries))
        )
        return Text(characters, characters, None, here[1])
    from hfgpt.data import reading, sources

    if (local := sources.local_files(config.dataset)) is None:
        return None
    if (size := _size_of(local[1])) > READ_UP_TO:
        return _start(config, *local, size)
    # As a stream: then nothing computes a digest of the content, which would be kept in a cache.
    sources_found = sources.find(config.model_copy(update={"streaming": True}), Path())
    distinct, characters, length, sample = set[str](), 0, 0, list[str]()
    for piece in sources_found.train:
        for part in reading.read(piece):
            for text in part.texts:
                distinct.update(text)
                if characters < MOST_SAMPLED:
                    sample.append(text[: MOST_SAMPLED - characters])
                characters += len(text)
                length += len(text) if text.isascii() else len(text.encode())
    has_validation, excerpt = bool(sources_found.val), "".join(sample)
    return Text(length, characters, len(distinct), has_validation, excerpt, wide=token_rate.share_wide(excerpt))


def _start(config: Config, root: Path, paths: list[Path], size: int) -> Text:
    """Return a corpus of `size` bytes, described by the start of a few of its files."""
    from hfgpt.data import pieces, reading
    from hfgpt.data.splits import split_by_name

    splits = split_by_name(root, paths)
    looked_at = splits.train[:: -(-len(splits.train) // FILES)]
    texts = list[str]()
    for path in looked_at:
        kind, column, length = pieces.kind_of(path) or "text", config.text_column, path.stat().st_size
        whole = pieces.Piece(str(path), kind, 0, length, length, column=column)
        cut = pieces.cut_file(path, column) if kind == "parquet" else [whole]  # cutting texts takes long
        texts += reading.sample((part for piece in cut for part in reading.read(piece)), START // len(looked_at))
    start = "".join(texts)
    per_character = max(1, len(start.encode())) / max(1, len(start))
    return Text(
        bytes=size,
        characters=int(_size_of(splits.train) / per_character),
        distinct=len(set(start)),
        has_validation=bool(splits.val),
        wide=token_rate.share_wide(start),
        partial=True,
    )


def _size_of(paths: list[Path]) -> int:
    """Return the bytes of text in files, of compressed ones by a typical ratio."""
    return sum(path.stat().st_size * (3 if path.suffix in (".gz", ".zst") else 1) for path in paths)


def _together(texts: Sequence[Text | None]) -> Text | None:
    """Merge the corpora of a mix; None if one of them is not on this machine."""
    available = [text for text in texts if text is not None]
    if len(available) < len(texts):
        return None
    characters = sum(text.characters for text in available)
    distinct = [text.distinct for text in available if text.distinct is not None]
    return Text(
        bytes=sum(text.bytes for text in available),
        characters=characters,
        distinct=max(distinct) if len(distinct) == len(available) else None,
        has_validation=any(text.has_validation for text in available),
        wide=sum(text.wide * text.characters for text in available) / max(1, characters),
        partial=True,
    )
