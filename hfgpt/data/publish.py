"""Write a corpus as token shards with its tokenizer, and push it to the Hub as a dataset.

In:  a config, and a folder.
Out: ``train_000000.bin`` …, ``val_000000.bin`` …, the tokenizer's files, a card. `dataset` can name the folder, or the
     Hub dataset, and llm.c and modded-nanogpt read the shards.
"""

from pathlib import Path

from huggingface_hub import HfApi

from hfgpt.base.errors import Failure, InputError, first_line
from hfgpt.base.files import WRITING, filled_at_once, write_text
from hfgpt.base.language import _, strerror
from hfgpt.config import Config
from hfgpt.config.yaml_text import corpora
from hfgpt.data.bins import TOKENIZER_FILES, write_shards
from hfgpt.data.prepare import Corpus, prepare
from hfgpt.data.tokenizer import vocabulary_size


def write_dataset(config: Config, folder: Path, largest: int) -> Corpus:
    """Tokenise the config's dataset, and write both splits and the tokenizer into a new folder.

    Args:
        config: resolved; its corpus, tokenizer and `val_fraction` are used.
        folder: new or empty.
        largest: maximum tokens in a shard.

    Raises:
        InputError: the dataset cannot be used, or the folder cannot be written.
    """
    if largest < 1:
        raise InputError("shard_tokens = {largest}: must be at least 1", largest=largest)
    if config.streaming or len(corpora(config.dataset)) > 1:
        raise InputError(
            "prepare writes the tokens of one corpus, to train on later\n"
            "    → leave streaming out, and prepare each corpus of a mix by itself"
        )
    try:
        if folder.exists() and any(path.name != WRITING for path in folder.iterdir()):
            raise InputError("{folder}: is not empty\n    → name a new folder for the shards", folder=folder)
        corpus = prepare(config)
        wide = vocabulary_size(corpus.tokenizer) > 1 << 16
        with filled_at_once(folder) as temporary:
            corpus.tokenizer.save_pretrained(temporary)
            write_text(temporary / "README.md", _card(config))
            for split, tokens in (("val", corpus.val), ("train", corpus.train)):
                write_shards(tokens, temporary, split, largest, wide)
    except OSError as error:
        raise InputError("{folder}: cannot be written: {reason}", folder=folder, reason=strerror(error)) from None
    return corpus


def _card(config: Config) -> str:
    name = config.dataset if not Path(config.dataset).exists() else Path(config.dataset).name
    description = _(
        "Token shards in the format of llm.c and modded-nanogpt: 256 int32 of header (magic number, version, count of "
        "tokens), then the tokens. The tokenizer lies beside them."
    )
    title = _("# Tokens for {name}", name=f"`{name.replace('`', '')}`")
    return f"---\ntags: [hfgpt, tokens]\n---\n{title}\n\n{description}\n"


def push_dataset(folder: Path, repo_id: str, private: bool) -> str:
    """Push a folder of shards to the Hub as a dataset; return its address.

    Raises:
        Failure: the Hub cannot be reached, or refuses; the folder stays unchanged.
    """
    api, kinds = HfApi(), ["*.bin", "*.json", "*.txt", "*.md"]
    older = ["train_[0-9]*.bin", "val_[0-9]*.bin", *TOKENIZER_FILES]  # an earlier push's would be trained on too
    try:
        address = api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, repo_type="dataset", folder_path=folder, allow_patterns=kinds, delete_patterns=older
        )
    except Exception as error:  # any client error: name, login, network
        reason = first_line(error)
        command = f"hf upload {repo_id} {folder} --repo-type dataset"
        raise Failure(
            "the push failed: {reason}\n    → the shards are in {folder}; push again with: {command}",
            reason=reason,
            folder=folder,
            command=command,
        ) from None
    return str(address)
