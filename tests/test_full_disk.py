"""A disk that takes no more: every command that writes ends with one message, and leaves nothing half-written.

A limit on the size of files stands in for the full disk: the same calls fail, at any byte that one chooses.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import files_of_at_most

from hfgpt import config
from hfgpt.base import shell
from hfgpt.commands.choice import carry_out
from hfgpt.train import loop

SMALL = ["--dataset=t.txt", "--device=cpu", "--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8"]
SMALL += ["--batch_size=2", "--gradient_accumulation_steps=1", "--warmup_iters=1", "--eval_iters=1", "--num_proc=1"]

# What writes, its target, and the bytes after which its files are cut off.
COMMANDS = {
    "export_nanogpt": (["run", "new"], [0, 100, 3000, 12_000]),
    "export_gguf": (["run", "new/x.gguf"], [0, 100, 8000, 14_000]),
    "import_nanogpt": (["nanogpt/ckpt.pt", "new", "--meta=nanogpt/meta.pkl"], [0, 100, 6000, 9000]),
    "prepare": (["new", *SMALL], [0, 100, 3000, 10_000]),
    "compare": (["run", "other", "--out_dir=new"], [0, 1000, 20_000]),
    "lr_finder": (["r.yaml", *SMALL, "--steps=30", "--picture=new/lr.png"], [0, 20_000]),
    "recipes": (["new"], [0, 1000]),
    "plan": (["r.yaml", *SMALL, "--no_trials", "--write=new.yaml"], [0, 1000]),
}
CASES = [(name, size) for name, (_words, sizes) in COMMANDS.items() for size in sizes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Path:
    """Two run folders, nanoGPT's checkpoint of the first, a text and a recipe."""
    place = tmp_path_factory.mktemp("made")
    shutil.copyfile(tiny_text, place / "t.txt")
    (place / "r.yaml").write_text("dataset: t.txt\n")
    values = {"dataset": str(tiny_text), "device": "cpu", "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}
    values |= {"batch_size": 2, "max_iters": 2, "warmup_iters": 1, "eval_interval": 1, "eval_iters": 1, "num_proc": 1}
    for seed, name in enumerate(("run", "other")):
        one = values | {"out_dir": str(place / name), "seed": seed, "sample_prompt": ""}
        assert loop.train(config.build(one, "test")) == 0
    with contextlib.chdir(place):
        assert typed("export_nanogpt", "run", "nanogpt")[0] == 0
    return place


def typed(name: str, *words: str) -> tuple[Any, str]:
    """Exit code and errors of a command in this process."""
    errors, code = io.StringIO(), None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            shell.run(lambda rest: carry_out(name, rest), words)
        except SystemExit as ended:
            code = ended.code
    return code, errors.getvalue()


def contents(place: Path) -> dict[str, bytes]:
    """Every file of a folder, by its name."""
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "size"), CASES)
def test_a_full_disk_is_one_message_and_nothing_half_written(made: Path, tmp_path: Path, name: str, size: int) -> None:
    words, _sizes = COMMANDS[name]
    place = Path(shutil.copytree(made, tmp_path / "place"))
    with contextlib.chdir(place):
        before = contents(place)
        with files_of_at_most(size):
            code, told = typed(name, *words)
        assert code in (1, 2), told
        assert re.search("File too large|No space left on device", told)  # NumPy does not say which
        assert len(told.splitlines()) < 4
        unfinished = {name: raw for name, raw in contents(place).items() if name not in before}
        if name != "compare":  # its pictures come one after another, each whole
            assert not unfinished
        assert typed(name, *words)[0] == 0
        assert all(path.stat().st_size >= len(raw) for path, raw in ((place / n, r) for n, r in unfinished.items()))


def test_a_learning_rate_is_said_though_its_curve_cannot_be_written(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(shutil.copytree(made, tmp_path / "place"))
    with contextlib.chdir(place), files_of_at_most(20_000), pytest.raises(SystemExit):
        shell.run(lambda rest: carry_out("lr_finder", rest), ["r.yaml", *SMALL, "--steps=30"])
    told = capsys.readouterr()
    assert "suggested learning rate: " in told.out
    assert told.err.endswith("lr_finder.png: File too large\n")
