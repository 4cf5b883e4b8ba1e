"""A file is replaced completely or stays as it was."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from hfgpt.base import files
from hfgpt.base.errors import InputError


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.replace_file(path, "one\n")
    files.replace_file(path, "二\n")
    assert path.read_bytes() == "二\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_surrogate_pair_becomes_an_escape(tmp_path: Path) -> None:
    value = json.loads('{"text": "\\ud800 你"}')
    files.replace_file(tmp_path / "a.json", json.dumps(value, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == value


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_breaks_off_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_and_a_file_are_synced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    files.sync(tmp_path)
    files.sync(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),  # a write to an open file
        Exception("No space left on device (os error 28)"),  # tokenizers
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("2248 requested and 1128 written"),  # NumPy
    ],
    ids=["open", "tokenizers", "safetensors", "numpy"],
)
def test_what_libraries_raise_on_a_full_disk_names_the_file(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, files.disk_errors(tmp_path / "a"):
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))


def test_what_torch_raises_on_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """It closes the archive while the write's own error is on its way."""

    class Full(io.BytesIO):
        def write(self, _content: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as caught, files.disk_errors(tmp_path / "a"):
        torch.save({"a": torch.zeros(3)}, Full())
    assert caught.value.filename == str(tmp_path / "a")


@pytest.mark.parametrize("error", [ValueError("no"), FileNotFoundError(2, "No such file", "b"), KeyboardInterrupt()])
def test_other_errors_stay_as_they_are(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, files.disk_errors(tmp_path / "a"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_is_filled_at_once_or_not_at_all(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "new" / "tokens"
    if exists:
        (folder / files.WRITING).mkdir(parents=True)  # an interrupted start has left this
        (folder / files.WRITING / "old").write_text("old")

    def fill(end: BaseException | None) -> None:
        with files.filled_at_once(folder) as temporary:
            (temporary / "a").write_text("a")
            (temporary / "b").write_text("b")
            assert not (folder / "a").exists()
            if end:
                raise end

    for end in (OSError(28, "full"), KeyboardInterrupt()):
        with pytest.raises(type(end)):
            fill(end)
        assert folder.exists() == exists
        assert not list(folder.glob("*"))
    fill(None)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]


def test_a_pipe_is_read_to_its_end_however_slow_its_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WRITER", 0.2)
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write() -> None:
        with open(path, "w", encoding="utf-8") as pipe:
            time.sleep(0.5)
            pipe.write("你")
            pipe.flush()
            time.sleep(0.1)
            pipe.write("好\r\n")

    writer = threading.Thread(target=write)
    writer.start()
    with files.open_text(path, "utf-8", newline="") as text:
        assert text.read() == "你好\r\n"
    writer.join()


def test_the_home_of_nobody_is_a_name_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert files.expanded("~/x") == Path("/home/ada/x")
    assert files.expanded("~nobody-here/x") == Path("~nobody-here/x")


def test_a_folder_that_cannot_be_made_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    files.check_writable(tmp_path / "new" / "folder", "out_dir")
    for name in ("file", "file/below", "broken", "broken/below"):
        with pytest.raises(InputError, match=rf"^out_dir = '.*{name}': cannot be written: Not a directory"):
            files.check_writable(tmp_path / name, "out_dir")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "file"]
