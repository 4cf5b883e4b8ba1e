"""A file is replaced completely or stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfgpt.base import files


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.replace_file(path, "one\n")
    files.replace_file(path, "二\n")
    assert path.read_bytes() == "二\n".encode()
    assert list(tmp_path.iterdir()) == [path]


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
