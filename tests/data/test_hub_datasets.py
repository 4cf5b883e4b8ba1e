"""Datasets on the Hub, through the real `datasets` client, from a Hub on the loopback."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

LINES = [f"Row {i}, of the set.\n" for i in range(400)]
HELD = [f"Held row {i}.\n" for i in range(60)]


class DatasetHandler(hub_server.Handler):
    """Answer requests for datasets too: byte ranges of files, and several paths at once."""

    def handle_any(self) -> None:
        self.path = self.path.replace("/api/datasets/", "/api/models/").replace("/datasets/", "/")
        super().handle_any()

    do_GET = do_POST = do_HEAD = handle_any

    def preupload(self, id: str, rev: str) -> None:
        raise AssertionError("nothing is written")

    def paths_info(self, id: str, rev: str) -> None:
        asked = json.loads(self.body)["paths"]
        self.reply([blob.entry(path) for path, blob in self.files(id, rev).items() if path in asked])

    def resolve(self, id: str, rev: str, file: str) -> None:
        blob = self.files(id, rev).get(file)
        stretch = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if blob is None or not stretch:
            super().resolve(id, rev, file)
            return
        first, last = int(stretch[1]), min(int(stretch[2]), len(blob.data) - 1)
        self.answer(blob.data[first : last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{len(blob.data)}"})


def parquet(texts: list[str]) -> hub_server.Blob:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "number": list(range(len(texts)))}), buffer, row_group_size=50)
    return hub_server.Blob(buffer.getvalue(), lfs=True)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve three datasets: one with a validation split, one without, and one that is a script."""
    route = ("POST", re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)/paths-info/(?P<rev>[^/]+)$"), "paths_info")
    monkeypatch.setattr(hub_server, "ROUTES", [route, *hub_server.ROUTES])
    with hub_server.running() as hub:
        hub.RequestHandlerClass = DatasetHandler
        for name, files in {
            "ada/both": {"train-0.parquet": parquet(LINES), "validation-0.parquet": parquet(HELD)},
            "ada/one": {"train-0.parquet": parquet(LINES[:200]), "train-1.parquet": parquet(LINES[200:])},
            "ada/script": {"script.py": hub_server.Blob(b"raise SystemExit('run')", lfs=False)},
        }.items():
            hub.repos[name] = hub_server.Repo(private=False)
            hub.repos[name].commit("main", "all", files, [])
        host, port = hub.server_address[:2]
        yield f"http://{host!s}:{port}"


PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.data.prepare import prepare
for line in sys.stdin:
    values = json.loads(line)
    try:
        corpus = prepare(config.build({"block_size": 16, "batch_size": 4, "eval_iters": 2, **values}, "x"))
    except InputError as error:
        print(json.dumps({"error": str(error)}))
        continue
    texts = {}
    for name, stream in (("train", corpus.train), ("val", corpus.val)):
        tokens = np.empty(len(stream), dtype=np.int64)
        stream.read(0, tokens)
        texts[name] = corpus.tokenizer.decode(tokens.tolist())
    (batch,) = corpus.batches.micro_batches(0, 0, 1, 4)
    texts["batch"] = [corpus.tokenizer.decode(row) for row in batch.tolist()]
    print(json.dumps(texts))
"""


@pytest.mark.e2e
def test_hub_datasets(endpoint: str, tmp_path: Path) -> None:
    recipes: list[dict[str, Any]] = [
        {"dataset": "ada/both"},
        {"dataset": "ada/one"},
        {"dataset": "ada/both", "streaming": True},
        {"dataset": "ada/one", "streaming": True},
        {"dataset": "ada/one", "dataset_split": "train[:50%]"},
        {"dataset": "ada/none"},
        {"dataset": "ada/script"},
        {"dataset": "ada/both", "dataset_split": "tests"},
        {"dataset": "ada/both", "dataset_split": "tests", "streaming": True},
        {"dataset": "ada/both", "dataset_config": "other"},
        {"dataset": "ada/both", "text_column": "body"},
        {"dataset": "ada/both", "text_column": "number"},
        {"dataset": "ada/both", "text_column": "body", "streaming": True},
    ]
    env = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(map(json.dumps, recipes)),
        capture_output=True,
        text=True,
        env=env,
        check=True,
        timeout=240,
    )
    both, one, both_streaming, one_streaming, half, *errors = map(json.loads, result.stdout.splitlines())
    text, held = "".join(LINES), "".join(HELD)
    assert both["train"] == text
    assert both["val"] == held
    assert one["train"] + one["val"] == text
    assert len(one["val"]) == len(text) - int(len(text) * 0.9)
    assert both_streaming["val"] == held[: 2 * 12 * 16 + 1]
    assert one_streaming["val"] + one_streaming["train"] == text[: 2 * (2 * 12 * 16 + 1)]
    assert all(row in text[len(one_streaming["val"]) :] for row in one_streaming["batch"])
    assert half["train"] + half["val"] == "".join(LINES[:200])
    expected = [
        "dataset = 'ada/none': no such file or folder here, and the Hub did not give it",
        "dataset = 'ada/script': loading scripts|dataset = 'ada/script': .*script",
        "dataset_split = 'tests'",
        "dataset_split = 'tests'",
        "dataset_config = 'other'",
        "text_column = 'body': 'ada/both' has no such column; it has 'text', 'number'",
        "text_column = 'number': holds int64 in 'ada/both', not text",
        "text_column = 'body': 'ada/both' has no such column; it has 'text', 'number'",
    ]
    for answer, message in zip(errors, expected, strict=True):
        assert re.search(message, answer["error"]), answer
        assert "→" in answer["error"]
