"""A corpus as shards with their tokenizer: written, read by llm.c's rules, pushed to the Hub, and trained on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import numpy as np
import pytest
from data_texts import LINES, all_tokens, recipe
from huggingface_hub import HfApi

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.data import publish
from hfgpt.data.prepare import prepare
from hfgpt.data.publish import push_dataset, write_dataset


def as_llmc_reads(path: Path) -> list[int]:
    """Read a file as llm.c's dataloader does."""
    header = np.fromfile(path, dtype=np.int32, count=256)
    assert (header[0], header[1]) == (20240520, 1)
    tokens = np.fromfile(path, dtype=np.uint16, offset=1024)
    assert len(tokens) == header[2]
    return tokens.tolist()


@pytest.mark.parametrize("more", [{}, {"tokenizer": "bpe", "vocab_size": 300}])
def test_shards_hold_both_splits_and_are_a_dataset(corpus_file: Path, more: dict[str, Any]) -> None:
    folder = corpus_file.parent / "tokens"
    original = write_dataset(recipe(corpus_file, **more), folder, 5000)
    train = [token for path in sorted(folder.glob("train_*.bin")) for token in as_llmc_reads(path)]
    assert train == all_tokens(original.train)
    assert len(list(folder.glob("train_*.bin"))) > 1
    corpus = prepare(recipe(folder), corpus_file.parent / "cache")
    assert all_tokens(corpus.train) == train
    assert all_tokens(corpus.val) == all_tokens(original.val)
    assert corpus.tokenizer.decode(train[:200]) == original.tokenizer.decode(train[:200])


def test_what_cannot_be_prepared_is_refused(corpus_file: Path) -> None:
    with pytest.raises(InputError, match="is not empty"):
        write_dataset(recipe(corpus_file), corpus_file.parent, 1000)
    with pytest.raises(InputError, match="leave streaming out"):
        write_dataset(recipe(corpus_file, streaming=True), corpus_file.parent / "new", 1000)
    mix = [{"name": str(corpus_file), "weight": 1}, {"name": "shakespeare", "weight": 1}]
    with pytest.raises(InputError, match="each corpus of a mix by itself"):
        write_dataset(config.build({"dataset": mix}, "x"), corpus_file.parent / "new", 1000)
    assert not (corpus_file.parent / "new").exists()


class DatasetHandler(hub_server.Handler):
    """Answer requests for datasets."""

    def handle_any(self) -> None:
        self.path = self.path.replace("/api/datasets/", "/api/models/").replace("/datasets/", "/")
        super().handle_any()

    do_GET = do_POST = do_HEAD = do_PUT = handle_any


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.reached(monkeypatch) as hub:
        hub.RequestHandlerClass = DatasetHandler
        client = HfApi(endpoint=hub.url, token=hub_server.TOKEN)
        monkeypatch.setattr(publish, "HfApi", lambda: client)
        yield hub


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
def test_a_dataset_pushed_again_has_no_shard_of_the_push_before(corpus_file: Path, hub: hub_server.Hub) -> None:
    """Otherwise a run trains on both pushes at once, whose tokenizers may differ."""
    many, few = (corpus_file.parent / name for name in ("many", "few"))
    write_dataset(recipe(corpus_file), many, 500)
    write_dataset(recipe(corpus_file, tokenizer="bpe", vocab_size=300), few, 5000)
    push_dataset(many, "ada/tokens", private=False)
    notes = {"notes.md": hub_server.Blob(b"mine", False)}
    hub.repos["ada/tokens"].commit("main", "by hand", notes, [])
    push_dataset(few, "ada/tokens", private=False)
    held = hub.repos["ada/tokens"].files()
    assert held is not None
    assert held.keys() - {".gitattributes"} == {path.name for path in few.iterdir()} | {"notes.md"}
    assert all(held[path.name].data == path.read_bytes() for path in few.glob("*.bin"))


TOKENS_OF = """
import json, sys
import numpy as np
from hfgpt import config
from hfgpt.data.prepare import prepare
corpus = prepare(config.build({"dataset": "ada/tokens", "block_size": 16}, "x"))
tokens = np.empty(len(corpus.train), dtype=np.int64)
corpus.train.read(0, tokens)
print(json.dumps(corpus.tokenizer.decode(tokens.tolist())))
"""


@pytest.mark.e2e
def test_a_pushed_dataset_is_trained_on_from_the_hub(corpus_file: Path, run_script: Any, tmp_path: Path) -> None:
    with hub_server.running() as hub:
        hub.RequestHandlerClass = DatasetHandler
        host, port = hub.server_address[:2]
        online = {
            "HF_ENDPOINT": f"http://{host!s}:{port}",
            "HF_TOKEN": hub_server.TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"),
        }
        words = [f"--dataset={corpus_file}", "--block_size=16", "--num_proc=1", "--push=ada/tokens"]
        done = run_script("prepare.py", "tokens", *words, env=online)
        assert done.returncode == 0, done.stderr
        assert "--dataset=ada/tokens" in done.stdout
        for offline in ("0", "1"):
            env = os.environ | online | {"HF_HUB_OFFLINE": offline}
            read = subprocess.run([sys.executable, "-c", TOKENS_OF], capture_output=True, text=True, env=env)
            assert read.returncode == 0, read.stderr
            text = "".join(LINES)
            assert json.loads(read.stdout) == text[: int(len(text) * 0.9)]
