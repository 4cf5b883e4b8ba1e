"""nanoGPT's checkpoints, vocabularies and token files, malicious or corrupted, are imported or refused."""

from __future__ import annotations

import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz.fuzzing import VALUES, Fuzz, command, fuzz, put, put_data, runs, spoilt_bytes, spoilt_json, written
from hypothesis import strategies as st

__all__ = ["fuzz", "runs"]

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]

TENSORS = st.sampled_from([
    torch.zeros(0), torch.zeros(()), torch.zeros(8, 8), torch.zeros(8, dtype=torch.int8), torch.zeros(1).expand(10**9),
    torch.full((8,), float("nan")), torch.zeros(8, 8, dtype=torch.complex64), torch.zeros(8, 8).to_sparse(),
    torch.zeros(8, 8, dtype=torch.bool), torch.zeros(8, 8, dtype=torch.bfloat16), torch.zeros(8, 8, device="meta"),
    torch.zeros(4, 4).to(torch.float8_e4m3fn),
])  # fmt: skip


def test_nanogpts_checkpoint(fuzz: Fuzz, runs: dict[str, Path], tmp_path: Path) -> None:
    exported = tmp_path / "good"
    for kind, folder in runs.items():
        command("export_nanogpt", str(folder), str(exported / kind), watched=tmp_path)
    good = {kind: torch.load(exported / kind / "ckpt.pt", weights_only=True) for kind in runs}
    raws = {kind: (exported / kind / "ckpt.pt").read_bytes() for kind in runs}
    watched = tmp_path / "watched"

    @st.composite
    def spoilt(draw: Any) -> Any:
        kind = draw(st.sampled_from(sorted(good)))
        if draw(st.integers(0, 3)) == 0:
            return draw(spoilt_bytes(raws[kind]))
        loaded = {**good[kind], "model": dict(good[kind]["model"])}
        for key in ("model_args", "config"):
            if key in loaded and draw(st.booleans()):
                loaded[key] = draw(spoilt_json(loaded[key]))
        for _time in range(draw(st.integers(0, 2))):
            name = draw(st.sampled_from(sorted(loaded["model"], key=str)))
            loaded["model"][name] = draw(TENSORS | VALUES)
        if draw(st.integers(0, 3)) == 0:
            loaded[draw(st.sampled_from([*loaded, "iter_num", "best_val_loss"]))] = draw(VALUES)
        if draw(st.integers(0, 9)) == 0 and isinstance(loaded["model"], dict):
            loaded["model"][draw(st.integers() | st.text(max_size=4))] = draw(TENSORS)
        return loaded

    def check_checkpoint(example: Any) -> None:
        shutil.rmtree(watched, ignore_errors=True)
        watched.mkdir()
        if isinstance(example, bytes):
            put(watched / "ckpt.pt", example)
        else:
            torch.save(example, watched / "ckpt.pt")
        shutil.copyfile(exported / "char" / "meta.pkl", watched / "meta.pkl")
        command("import_nanogpt", "ckpt.pt", "made", watched=watched)

    fuzz(spoilt(), check_checkpoint)


def test_a_vocabulary(fuzz: Fuzz, runs: dict[str, Path], tmp_path: Path) -> None:
    """meta.pkl: any plain data, other objects, corrupted bytes, hand-made opcodes."""
    command("export_nanogpt", str(runs["char"]), ".", watched=tmp_path)
    raw = (tmp_path / "meta.pkl").read_bytes()
    good = pickle.loads(raw)
    keys = st.recursive(
        st.integers() | st.text(max_size=2) | st.none(), lambda inner: st.tuples(inner, inner), max_leaves=40
    )
    plain = st.dictionaries(keys, VALUES, max_size=3) | VALUES
    # A pickle's opcodes, separated by spaces; \x85 and the like are read as escapes.
    codes = (
        r"( t \x85 \x86 d } ] a e u s 0 1 2 h\x00 q\x00 r\xff\xff\xff\x7f j\xff\xff\xff\x7f \x94 K\x01 N R . \x8a\xff"
    )
    codes += r" X\x01\x00\x00\x00a I99999999999\n cos\nsystem\n \x8b\xff\xff\xff\x7f B\xff\xff\xff\x7f F1\n V\\ud800\n"
    codes += r" K\x01 p0\n g0\n \x8d\xff\xff\xff\xff\xff\xff\xff\x7f"
    plain_codes = [code.encode().decode("unicode_escape").encode("latin-1") for code in codes.split(" ")]
    opcodes = st.lists(st.sampled_from(plain_codes), max_size=30).map(
        lambda codes: b"\x80\x04" + b"".join(codes) + b"."
    )

    def check_vocabulary(content: bytes) -> None:
        put(tmp_path / "meta.pkl", content)
        shutil.rmtree(tmp_path / "made", ignore_errors=True)
        command("import_nanogpt", "ckpt.pt", "made", "--meta=meta.pkl", watched=tmp_path)

    @st.composite
    def spoilt(draw: Any) -> bytes:
        changed = {**good, "itos": dict(good["itos"])}
        for _time in range(draw(st.integers(1, 3))):
            changed["itos"][
                draw(st.sampled_from(sorted(good["itos"])) | VALUES.filter(lambda v: not isinstance(v, list | dict)))
            ] = draw(VALUES)
        return pickle.dumps(changed)

    fuzz(
        opcodes | spoilt_bytes(raw) | plain.map(pickle.dumps) | spoilt() | opcodes.map(lambda code: code * 1000),
        check_vocabulary,
    )


@st.composite
def token_folder(draw: Any) -> dict[str, bytes]:
    """Draw the files of a folder of tokens: nanoGPT's, llm.c's, and files beside them."""
    tokens = draw(st.lists(st.integers(0, 300), min_size=0, max_size=200)) * draw(st.sampled_from([1, 1, 50]))
    dtype = draw(st.sampled_from(["<u2", "<u4", ">u2", "<i8", "<f4", "|u1"]))
    body = np.array(tokens).astype(dtype).tobytes()
    files: dict[str, bytes] = {}
    for split in draw(st.sampled_from([["train", "val"], ["train"], ["val"], ["train", "train_000001", "val"]])):
        form = draw(st.sampled_from(["plain", "magic"]))
        content = body
        if form == "magic":
            count = draw(st.sampled_from([len(tokens), 0, 2**31 - 1, -1]))
            content = (
                struct.pack(
                    "<iii", draw(st.sampled_from([20240520, 20240801, 1])), draw(st.sampled_from([1, 7])), count
                )
                + bytes(1012)
                + body
            )
        if draw(st.integers(0, 4)) == 0:
            content = draw(spoilt_bytes(content))
        files[f"{split}.bin"] = content
    if draw(st.booleans()):
        name = draw(st.sampled_from(["meta.pkl", "meta.json", "dataset_info.json", "tokenizer.json", "state.json"]))
        files[name] = written(draw(VALUES))
    return files


def test_a_folder_of_tokens(fuzz: Fuzz, runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["bpe"], tmp_path / "tokenizer")
    shape = ["--block_size=8", "--n_layer=1", "--n_head=1", "--n_embd=8", "--device=cpu", "--tokenizer=tokenizer"]

    def check_tokens(example: Any) -> None:
        files, words = example
        put_data(tmp_path, files)
        command(*words, "--dataset=data", *shape, watched=tmp_path)

    few = ["--max_iters=1", "--warmup_iters=0", "--eval_iters=1", "--batch_size=1", "--sample_prompt=", "--num_proc=1"]
    train = ["train", "--out_dir=made", "--gradient_accumulation_steps=1", *few]
    readers = [["plan"], train, [*train, "--bin_dtype=uint16"]]
    fuzz(st.tuples(token_folder(), st.sampled_from(readers)), check_tokens)
