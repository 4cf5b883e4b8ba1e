"""What a run sends to Weights & Biases and trackio, read back from their files, without a network or an account."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Runner = Callable[..., Any]


def told_by(folder: Path, key: str) -> dict[int, float]:
    """Return a figure of metrics.jsonl by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def wandb_records(path: Path) -> Iterator[bytes]:
    """Return the records of a .wandb file: LevelDB's log format, in blocks of 32 KiB, after a head of 7 bytes."""
    data, at, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # too small for another piece's head
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece of a record
            yield record
            record = b""


@pytest.mark.e2e
def test_wandb_offline(tiny: dict[str, Any], write_recipe: Runner, run_script: Runner, tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    recipe = write_recipe(tiny | {"report_to": "wandb", "project": "plays"})
    done = run_script("train.py", recipe, env={"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")

    losses: dict[int, float] = {}
    evaluated: dict[int, float] = {}
    for data in wandb_records(written):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            assert (record.run.project, record.run.display_name) == ("plays", "run")
        if record.WhichOneof("record_type") == "history":
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if "train_loss" in row:
                losses[row["_step"]] = row["train_loss"]
            if "val_loss" in row:
                evaluated[row["_step"]] = row["val_loss"]
    assert losses == pytest.approx(told_by(tmp_path / "run", "train_loss"))
    assert evaluated == pytest.approx(told_by(tmp_path / "run", "val_loss"))


@pytest.mark.e2e
def test_trackio_local(tiny: dict[str, Any], write_recipe: Runner, run_script: Runner, tmp_path: Path) -> None:
    recipe = write_recipe(tiny | {"report_to": "trackio", "project": "plays"})
    done = run_script("train.py", recipe, env={"TRACKIO_DIR": str(tmp_path / "trackio")})
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "trackio").glob("plays*.db")
    with sqlite3.connect(written) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert {name for name, _, _ in rows} == {"run"}
    for key in ("train_loss", "val_loss"):
        told = {step: json.loads(metrics)[key] for _, step, metrics in rows if key in json.loads(metrics)}
        assert told == pytest.approx(told_by(tmp_path / "run", key))
