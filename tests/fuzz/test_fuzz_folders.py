"""Run folders, records and checkpoints with any corrupted file are used or refused by every command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fuzz.fuzzing import Copy, Fuzz, command, copy, fuzz, put, runs, spoilt_file
from hypothesis import strategies as st

from hfgpt.base.files import sha256

__all__ = ["copy", "fuzz", "runs"]

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]

MODEL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
RECORDS = ["metrics.jsonl", "samples.jsonl", "recipe.yaml"]

READERS: list[list[str]] = [
    ["sample", "in/run", "--max_new_tokens", "2", "--prompt", "ab"],
    ["evaluate", "in/run", "--device", "cpu"],
    ["export_gguf", "in/run", "model.gguf"],
    ["export_nanogpt", "in/run", "exported"],
    ["plan", "in/run"],
    ["plan", "--init_from=in/run", "--block_size=8", "--device=cpu", "--tokenizer=in/run"],
    ["train", "in/run", "--init_from=in/run", "--out_dir=new", "--max_iters=1", "--warmup_iters=0", "--overwrite"],
]

RECORD_READERS: list[list[str]] = [
    ["diagnose", "in/run"],
    ["diagnose", "in/run", "--json"],
    ["diagnose", "in/run/metrics.jsonl"],
    ["compare", "in/run", "in/run"],
    ["plan", "in/run"],
    ["train", "in/run", "--print_config"],
]


def clean(watched: Path) -> None:
    """Remove what the previous example wrote."""
    for path in watched.iterdir():
        if path.name != "in":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@st.composite
def spoilt_run(draw: Any, runs: dict[str, Path], names: list[str], readers: list[list[str]]) -> Any:
    kind = draw(st.sampled_from(sorted(runs)))
    name = draw(st.sampled_from(names))
    return kind, name, draw(spoilt_file(runs[kind] / name)), draw(st.sampled_from(readers))


def check_readers(fuzz: Fuzz, runs: dict[str, Path], copy: Copy, names: list[str], readers: list[list[str]]) -> None:
    """Each of the commands reads a run with one corrupted file."""

    def check_reader(example: Any) -> None:
        kind, name, raw, words = example
        run = copy(kind)
        watched = run.parents[1]
        clean(watched)
        put(run / name, raw)
        command(*words, watched=watched)

    check_reader.__qualname__ += f" {names[0]}"  # its place in the database
    fuzz(spoilt_run(runs, names, readers), check_reader)


def test_a_spoilt_model(fuzz: Fuzz, runs: dict[str, Path], copy: Copy) -> None:
    check_readers(fuzz, runs, copy, MODEL, READERS)


def test_a_spoilt_record(fuzz: Fuzz, runs: dict[str, Path], copy: Copy) -> None:
    check_readers(fuzz, runs, copy, RECORDS, RECORD_READERS)


def test_a_spoilt_checkpoint(fuzz: Fuzz, runs: dict[str, Path], copy: Copy, tmp_path: Path) -> None:
    """A resume from a checkpoint whose checksums are right again although its files are corrupted."""
    names = [f"checkpoint-2/{path.name}" for path in sorted((runs["char"] / "checkpoint-2").iterdir())]

    def check_checkpoint(example: Any) -> None:
        kind, name, raw, summed = example
        clean(tmp_path)
        at = copy(kind) / name
        put(at, raw)
        if summed:
            state_file = at.parent / "state.json"
            if at.name not in ("state.json", "COMPLETE"):
                state = json.loads(state_file.read_text())
                state["files"][at.name] = {"bytes": len(raw), "sha256": sha256(at)}
                state_file.write_text(json.dumps(state))
            put(at.parent / "COMPLETE", sha256(state_file).encode())
        command("train", "in/run", "--resume", "--max_iters=3", watched=tmp_path)

    @st.composite
    def spoilt(draw: Any) -> Any:
        kind = draw(st.sampled_from(sorted(runs)))
        name = draw(st.sampled_from(names))
        return kind, name, draw(spoilt_file(runs[kind] / name)), draw(st.booleans())

    fuzz(spoilt(), check_checkpoint)
