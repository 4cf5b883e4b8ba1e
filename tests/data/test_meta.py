"""Any meta.pkl is read as data or refused with one message, quickly."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from hfgpt.base.errors import InputError
from hfgpt.data.tokenizer import read_meta

CHARACTERS = ["\n", "a", "b", "é"]


def meta(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 4,
        "itos": dict(enumerate(CHARACTERS)),
        "stoi": {c: i for i, c in enumerate(CHARACTERS)},
    } | more


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta(), protocol))
    assert read_meta(tmp_path / "meta.pkl") == CHARACTERS


def nested_keys() -> bytes:
    """Return pickled nested tuples as a key: their hash takes 2^60 steps in C, where no signal stops it."""
    return (
        b"\x80\x02)q\x00" + b"".join(b"h%c" % i + b"h%c" % i + b"\x86q%c" % (i + 1) for i in range(60)) + b"}h<K\x01s."
    )


HOSTILE = {
    "nested tuples as a key": nested_keys(),
    "a place far off to remember a value in": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a function": b"cos\nsystem\n(S'true'\ntR.",
    "lists within lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a text longer than the file": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "nothing": b"",
    "no end": pickle.dumps(meta())[:-1],
    "not a dictionary": pickle.dumps([1, 2]),
    "ids that are not numbers": pickle.dumps({"itos": {"a": "b"}}),
    "whole words": pickle.dumps({"itos": {0: "ab"}}),
    "a character twice": pickle.dumps({"itos": {0: "a", 1: "a"}}),
    "bytes that are not 256": pickle.dumps(meta(hfgpt_byte_ids=[1, 2])),
    "ids of bytes that are texts": pickle.dumps(meta(hfgpt_byte_ids=["a"] * 256)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(20)
def test_hostile_files_are_one_message(name: str, tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(HOSTILE[name])
    began = time.process_time()
    with pytest.raises(InputError, match=r"meta\.pkl: ") as caught:
        read_meta(tmp_path / "meta.pkl")
    assert time.process_time() - began < 5
    assert len(str(caught.value)) < 500


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "meta.pkl")
    with pytest.raises(InputError, match=r"meta\.pkl: cannot be read: not a file"):
        read_meta(tmp_path / "meta.pkl")
