"""Which files of a folder belong to which split: the rules of `datasets`; links are followed, each file counts once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from data_texts import dataset, documents

from hfgpt.data import sources
from hfgpt.data.prepare import prepare
from hfgpt.data.splits import files_below, split_by_name

# File names of public data sets → the files for training, and those for validation.
LAYOUTS = {
    "the Hub's": (
        ["data/train-00000-of-00002.txt", "data/train-00001-of-00002.txt", "data/validation-00000-of-00001.txt"],
        2,
        1,
    ),
    "prefixes": (["X-train.txt", "X-valid.txt"], 1, 1),
    "dots": (["wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"], 1, 1),
    "dev": (["train.txt", "dev.txt"], 1, 1),
    "test alone": (["train.txt", "test.txt"], 1, 1),
    "folders": (["training/a.txt", "training/b.txt", "evaluation/a.txt"], 2, 1),
    "numbers": (["train_0.txt", "train_1.txt", "val_0.txt"], 2, 1),
    "a number behind": (["my train1.txt", "my dev2.txt"], 1, 1),
    "folders within": (["en/train/1.txt", "fr/train/1.txt", "en/val/1.txt"], 2, 1),
    "others left out": (["train.txt", "valid.txt", "notes.txt"], 1, 1),
}


def write(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names_of(pieces: list[sources.Piece], folder: Path) -> list[str]:
    return [os.path.relpath(str(piece.source), folder) for piece in pieces]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "glob"])
def test_names_tell_the_splits_as_in_datasets(layout: str, form: str, tmp_path: Path) -> None:
    from datasets.data_files import DataFilesDict, get_data_patterns

    names, train, val = LAYOUTS[layout]
    write(tmp_path, names)
    texts = sources.find(dataset(tmp_path if form == "folder" else tmp_path / "**" / "*.txt"), tmp_path)
    assert (len(texts.train), len(texts.val)) == (train, val)
    patterns = get_data_patterns(str(tmp_path))
    theirs = {
        split: sorted(os.path.relpath(file, tmp_path) for file in files)
        for split, files in DataFilesDict.from_patterns(patterns, base_path=str(tmp_path)).items()
    }
    assert names_of(texts.train, tmp_path) == theirs["train"]
    assert names_of(texts.val, tmp_path) == theirs.get("validation", theirs.get("test"))


@pytest.mark.parametrize("val", ["val.jsonl", "validation-00000-of-00001.jsonl", "val/part.jsonl", "Valid.jsonl"])
def test_a_held_out_file_beside_a_test_file(tmp_path: Path, val: str) -> None:
    for name in ("train.jsonl", val, "test.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    texts = sources.find(dataset(tmp_path), tmp_path)
    assert names_of(texts.train, tmp_path) == ["train.jsonl"]
    assert names_of(texts.val, tmp_path) == [val]
    assert texts.train_fingerprint != texts.val_fingerprint


def test_validation_inside_a_folder_called_training(tmp_path: Path) -> None:
    write(tmp_path, ["training-data/train.txt", "training-data/valid.txt"])
    texts = sources.find(dataset(tmp_path), tmp_path)
    assert names_of(texts.val, tmp_path) == ["training-data/valid.txt"]


@pytest.mark.parametrize("names", [["train.txt", "values.txt"], ["a.txt", "b.txt"], ["pretrained.txt", "devil.txt"]])
def test_without_two_splits_all_is_training(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path, names)
    texts = sources.find(dataset(tmp_path), tmp_path)
    assert (len(texts.train), len(texts.val)) == (2, 0)


def test_another_split_of_the_hubs_layout_is_not_trained_on(tmp_path: Path) -> None:
    """`datasets` makes a split of each name; text that was held out under another name is not trained on."""
    for name in ("train-00000-of-00002", "train-00001-of-00002", "heldout-00000-of-00001"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.txt").write_text(f"{name}\n")
    paths = files_below(tmp_path, lambda path: path.suffix == ".txt")
    found = split_by_name(tmp_path, paths)
    assert [path.name[:5] for path in found.train] == ["train", "train"]
    assert found.val == []
    assert [path.name[:7] for path in found.unused] == ["heldout"]


def test_a_line_says_which_files_are_which_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "d", [f"train-{i}.txt" for i in range(5)] + ["dev.txt", "test.txt"])
    for path in (tmp_path / "d").iterdir():
        path.write_text(path.name * 100)
    prepare(dataset(tmp_path / "d", block_size=8, num_proc=1), tmp_path / "cache")
    line = "training on 5 files (train-0.txt, train-1.txt, train-2.txt, …); validating on 1 (dev.txt); not used"
    assert line in capsys.readouterr().err
    prepare(dataset(tmp_path / "d" / "dev.txt", block_size=8), tmp_path / "cache")
    assert not capsys.readouterr().err, "one file needs no line"


def test_a_folder_is_read_below_and_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", ".hidden/x.txt", "README.md", "a/.y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert documents(tmp_path, tmp_path) == ["a/z.txt", "b.txt"]


@pytest.mark.parametrize("form", ["folder", "glob"])
def test_linked_folders_are_followed_once(tmp_path: Path, form: str) -> None:
    write(tmp_path / "elsewhere", ["x.txt"])
    write(tmp_path / "d", ["a/z.txt", "b.txt"])
    (tmp_path / "d" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "again").symlink_to(tmp_path / "d" / "a")
    (tmp_path / "d" / "a" / "loop").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "latest.txt").symlink_to(tmp_path / "d" / "b.txt")
    (tmp_path / "d" / "broken.txt").symlink_to(tmp_path / "nothing")
    value = tmp_path / "d" if form == "folder" else f"{tmp_path / 'd'}/**/*.txt"
    assert sorted(documents(value, tmp_path)) == ["a/z.txt", "b.txt", "x.txt"]


def test_a_pattern_with_folders_in_the_middle(tmp_path: Path) -> None:
    write(tmp_path, ["a/x/1.txt", "a/x/y/2.txt", "b/x/3.txt", "b/4.txt", "a/x/5.md"])
    assert documents(f"{tmp_path}/*/x/**/*.txt", tmp_path) == ["a/x/1.txt", "a/x/y/2.txt", "b/x/3.txt"]
    assert documents(f"{tmp_path}/**/x/?.txt", tmp_path) == ["a/x/1.txt", "b/x/3.txt"]


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    """A zip file from a Chinese Windows leaves such names."""
    folder = tmp_path / "d"
    folder.mkdir()
    for i in range(2):
        with open(os.path.join(os.fsencode(folder), f"文本{i}.txt".encode("gbk")), "w") as file:
            file.write("some text, and more of it. " * 20)
    for streaming in (False, True):
        made = prepare(dataset(folder, streaming=streaming, block_size=8, eval_iters=1, num_proc=1), tmp_path / "cache")
        assert len(made.train)
