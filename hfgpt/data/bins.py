"""Token files: nanoGPT's ``train.bin`` and ``val.bin``, the shards of llm.c and modded-nanogpt, and our own.

In:  a folder, file or glob of .bin files, or a Hub dataset that holds some.
Out: :class:`Bins`: memory-mapped tokens and their tokenizer; and :func:`write_shards`.

A shard begins with 256 int32: a magic number, a version, the number of tokens. A file without this header is nanoGPT's:
it holds only tokens, of the type `bin_dtype`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfgpt.base.errors import InputError
from hfgpt.base.files import expanded, replacing
from hfgpt.base.terminal import say_reading
from hfgpt.config import Config
from hfgpt.config.nanogpt import holds_bins
from hfgpt.data.blocks import TokenStream
from hfgpt.data.pieces import kind_of, names_a_file
from hfgpt.data.splits import files_below, files_of_glob, glob_root, split_by_name

HEADER = 256  # int32 at the start of a shard

# Magic number and version → the type of the tokens. The first is GPT-2's in llm.c and modded-nanogpt, the second Llama
# 3's in llm.c, whose vocabulary needs more than 16 bits.
SHARDS = {(20240520, 1): "<u2", (20240801, 7): "<u4"}

AT_A_TIME = 1 << 20  # tokens written at a time
LOOKED_AT = 1 << 16  # numbers inspected to guess the width of a file's tokens
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class Bins:
    """Token files of a dataset. `val` is empty if no file name says "validation" or "test".

    `meta` is nanoGPT's table of characters, and `tokenizer` the folder of the tokenizer, if they exist.
    """

    train: list[Path]
    val: list[Path]
    meta: Path | None
    tokenizer: Path | None
    notice: str


def find_bins(config: Config) -> Bins | None:
    """Return the token files that `dataset` names; None if it names texts."""
    path = expanded(config.dataset)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file() and _is_bin(path):
        return Bins([path], [], None, None, "")
    if any(letter in config.dataset for letter in "*?["):
        paths = [file for file in files_of_glob(str(path)) if _is_bin(file)]
        return _bins(glob_root(str(path)), paths) if paths else None
    if path.exists() or path.is_absolute() or names_a_file(config.dataset) or config.dataset.count("/") != 1:
        return None
    downloaded = _download(config.dataset)
    return _in_folder(downloaded) if downloaded else None


def tokens_here(config: Config) -> tuple[int, bool] | None:
    """Return how many tokens the local training files hold, and whether there are validation files.

    None if `dataset` does not name token files here. Reads only the headers, and does not use the network.
    """
    path = expanded(config.dataset)
    if not path.exists() and not any(letter in config.dataset for letter in "*?["):
        return None
    if (files := find_bins(config)) is None:
        return None
    return sum(len(map_tokens(file, config.bin_dtype)) for file in files.train), bool(files.val)


def _is_bin(path: Path) -> bool:
    return path.suffix.lower() == ".bin"


def _in_folder(folder: Path) -> Bins | None:
    if holds_bins(folder):
        return _bins(folder, [folder / "train.bin", folder / "val.bin"])
    paths = files_below(folder, _is_bin)
    return None if not paths or files_below(folder, kind_of) else _bins(folder, paths)


def _bins(root: Path, paths: list[Path]) -> Bins:
    splits = split_by_name(root, paths)
    meta, own = root / "meta.pkl", any((root / name).is_file() for name in TOKENIZER_FILES)
    return Bins(
        splits.train, splits.val, meta if meta.is_file() else None, root if own else None, splits.describe(root)
    )


def _download(name: str) -> Path | None:
    """Return the folder of a Hub dataset of token files, from the cache if offline; None for other datasets."""
    from huggingface_hub import list_repo_files, snapshot_download

    wanted = ["*.bin", *TOKENIZER_FILES]
    try:
        if not any(file.endswith(".bin") for file in list_repo_files(name, repo_type="dataset")):
            return None
        say_reading(name)
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=wanted))
    except Exception:  # missing or unreachable: reading it as texts reports which
        pass
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=wanted, local_files_only=True))
    except Exception:
        return None


# ------------------------------------------------------------------------------------------------------------- reading


def map_tokens(path: Path, bin_dtype: str) -> NDArray[Any]:
    """Memory-map the tokens of a file; only the first kilobytes are read.

    Args:
        path: a shard, or a file without a header.
        bin_dtype: the token type of a file without a header; 'auto' is uint16, unless the file looks like a wider type.

    Raises:
        InputError: the file is empty or truncated, or its tokens have another type.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        header = np.frombuffer(file.read(4 * HEADER), dtype="<i4") if size >= 4 * HEADER else np.zeros(3, "<i4")
    if int(header[0]) in {magic for magic, _version in SHARDS}:
        return _map_shard(path, size, header)
    width = np.dtype("uint16" if bin_dtype == "auto" else bin_dtype).newbyteorder("<")
    if size == 0 or size % width.itemsize:
        raise InputError(
            "{path}: is not a sequence of {bits}-bit tokens ({size:,} bytes); prepare it again",
            path=path,
            bits=8 * width.itemsize,
            size=size,
        )
    tokens: NDArray[Any] = np.memmap(path, dtype=width, mode="r")
    if bin_dtype == "auto" and (wider := _wider(tokens)):
        raise InputError(
            "{path}: looks like {wider} tokens, not uint16: nearly every second number is 0\n"
            "    → set bin_dtype to '{wider}', or to 'uint16' if that is right",
            path=path,
            wider=wider,
        )
    return tokens


def _map_shard(path: Path, size: int, header: NDArray[np.int32]) -> NDArray[Any]:
    magic, version, count = (int(number) for number in header[:3])
    if (dtype := SHARDS.get((magic, version))) is None:
        raise InputError(
            "{path}: is a token shard of version {version}, which is not known here; prepare it again",
            path=path,
            version=version,
        )
    held = (size - 4 * HEADER) / np.dtype(dtype).itemsize
    if count != held or count == 0:
        raise InputError(
            "{path}: says that it holds {count:,} tokens, and holds {held:,g}\n    → it may be cut short: get it again",
            path=path,
            count=count,
            held=held,
        )
    return np.memmap(path, dtype=dtype, mode="r", offset=4 * HEADER)


def _wider(tokens: NDArray[Any]) -> str:
    """Return 'uint32' or 'uint64' if the 16-bit numbers look like their halves or quarters; otherwise "".

    The high halves of tokens are at most 3 in vocabularies of up to 262,144; the low halves are larger.
    """
    first = tokens[: min(len(tokens), LOOKED_AT) // 4 * 4].reshape(-1, 4)
    if len(first) < 8 or first[:, 0].max() <= 3:
        return ""
    if not first[:, 1:].any():
        return "uint64"
    return "uint32" if first[:, 1::2].max() <= 3 and (first[:, 1::2] == 0).mean() > 0.5 else ""


# ------------------------------------------------------------------------------------------------------------- writing


def write_shards(tokens: TokenStream, folder: Path, split: str, largest: int, wide: bool) -> list[Path]:
    """Write tokens as shards ``<split>_000000.bin`` …, which llm.c, modded-nanogpt and hfgpt read.

    Args:
        folder: must exist.
        split: 'train' or 'val'.
        largest: maximum tokens in a shard.
        wide: whether ids need more than 16 bits.
    """
    (magic, version), dtype = list(SHARDS.items())[int(wide)]
    header = np.zeros(HEADER, dtype="<i4")
    paths = []
    for number, start in enumerate(range(0, len(tokens), largest)):
        path = folder / f"{split}_{number:06d}.bin"
        header[:3] = magic, version, min(largest, len(tokens) - start)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(header.tobytes())
            for at in range(start, end := start + int(header[2]), AT_A_TIME):
                out = np.empty(min(AT_A_TIME, end - at), dtype=dtype)
                tokens.read(at, out)
                file.write(out.tobytes())
        paths.append(path)
    return paths
