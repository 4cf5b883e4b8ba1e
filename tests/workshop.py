"""A place in which the documents' commands are run: a copy of the checkout."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINKED = (
    "Makefile",
    "accelerate_configs",
    "constraints.txt",
    "docs",
    "hfgpt",
    "pyproject.toml",
    "scripts",
    "setup.cfg",
    "tests",
)

# A model that trains in a second; a command's own values stay, except the number of steps.
FEW_STEPS = {"device": "cpu", "n_layer": "1", "n_head": "2", "n_embd": "8", "block_size": "32"} | {
    "batch_size": "2", "gradient_accumulation_steps": "1", "eval_interval": "2", "eval_iters": "1", "warmup_iters": "1",
    "sample_prompt": "", "num_proc": "1", "process_timeout": "1m",
}  # fmt: skip


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Return a page's commands in order, without comments: lines of bash blocks, and commands within text."""
    found = [line for block in blocks(text, "bash") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found += re.findall(r"`((?:make|python|accelerate launch|pip|git|hfgpt) [^`]+)`", prose)
    words = [shlex.split(line, comments=True) for line in found]
    return [shlex.join(line) for line in words if line]


def few_steps(words: list[str], steps: int = 2) -> list[str]:
    """Return a training command cut to a few steps of a tiny model, and a sweep cut to two values and two seeds."""
    if any(word.endswith("sweep.py") for word in words):
        words = [word if word.startswith("--") else ",".join(word.split(",")[:2]) for word in words]
    if "--seeds" in words:
        words = [*words[: words.index("--seeds") + 1], "2", *words[words.index("--seeds") + 2 :]]
    last = steps + ("--lr_schedule=wsd" in words)  # wsd decays within the run
    few = FEW_STEPS | {"max_iters": str(last), "lr_decay_iters": str(steps)}
    said = {word.removeprefix("--").split("=")[0] for word in words if word.startswith("--")} - {"max_iters"}
    kept = [word for word in words if not word.startswith("--max_iters=")]
    more = [f"--{key}={value}" for key, value in few.items() if key not in said]
    return [*kept, *more]


def _goes_on(words: list[str]) -> bool:
    """Whether a command extends a run."""
    longer = "--resume" in words and any(word.startswith("--max_iters=") for word in words)
    return longer or any(word.startswith("--branch_from=") for word in words)


class Workshop:
    """A folder with a checkout's files; `scripts/` and the library are links, recipes and runs are its own."""

    def __init__(self, folder: Path, interpreter: str) -> None:
        self.folder, self.interpreter = folder, interpreter
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "recipes", folder / "recipes")

    def python(self, *words: str, code: int = 0) -> str:
        """Return what `python words…` prints.

        Raises:
            AssertionError: its exit code was not `code`.
        """
        done = subprocess.run(
            [self.interpreter, *words], cwd=self.folder, env={**os.environ, "COLUMNS": "100"}, timeout=240,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def type(self, words: list[str], code: int = 0) -> str:
        """Return what a command prints; a training is cut to a few steps of a tiny model."""
        by_name = words[0] == "hfgpt"  # the installed command
        if by_name:
            words = ["python", f"scripts/{words[1]}.py", *words[2:]]
        if {"scripts/train.py", "scripts/sweep.py", "scripts/lr_finder.py"} & set(words) and not code:
            words = few_steps(self.with_checkpoints(words), 4 if _goes_on(words) else 2)
        if "scripts/train.py" in words and not {"--resume", "--overwrite"} & set(words) and not code:
            words = [*words, "--overwrite"]
        if by_name:
            words = ["python", "hfgpt/__main__.py", Path(words[1]).stem, *words[2:]]
        if words[:2] == ["accelerate", "launch"]:
            words = ["python", "-m", "accelerate.commands.launch", *words[2:]]
        return self.python(*words[1:], code=code) if words[0] == "python" else self.shell(*words)

    def with_checkpoints(self, words: list[str]) -> list[str]:
        """Replace a checkpoint in the arguments by the first one that the shortened run has."""
        return [
            re.sub(r"([^=]+)/checkpoint-\d+$", lambda found: self.first_checkpoint(found[1]), word) for word in words
        ]

    def first_checkpoint(self, run: str) -> str:
        """Return the first checkpoint that a run has after its beginning."""
        steps = [int(path.name.partition("-")[2]) for path in (self.folder / run).glob("checkpoint-*")]
        return f"{run}/checkpoint-{min(steps)}"

    def program(self, text: str) -> str:
        """Return what a Python program prints; see :meth:`python`."""
        (self.folder / "program.py").write_text(text, encoding="utf-8")
        return self.python("program.py")

    def shell(self, *words: str) -> str:
        """Return what any other command prints; this interpreter's own commands come before those of the system."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            words, cwd=self.folder, env={**os.environ, "PATH": path}, text=True, capture_output=True, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
