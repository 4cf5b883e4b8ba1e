"""Build the course: what its commands and programs print goes into the pages, and the pages become notebooks.

In:  docs/en/course/*.md and docs/zh/course/*.md. A ``text`` block after a ``python`` or ``bash`` block is its output.
Out: the same pages with the output as it is now, the pictures that the programs draw (docs/images/course/), and a
     notebook beside each page.

    python docs/course.py             everything: runs every program, and every command whose output is shown
    python docs/course.py --programs  the programs alone: half a minute
    python docs/course.py --notebooks only the notebooks, from the pages as they are
    python docs/course.py 6-tuning    this page in both languages
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "images" / "course"
LANGUAGES = ("en", "zh")
# What a checkout has that the commands read; runs and other results go beside it.
LINKED = ("accelerate_configs", "docs", "hfgpt", "recipes", "scripts", "tests")

# A fenced block of a language, and the output that may follow it: all, or some lines from one that begins so.
BLOCK = re.compile(
    r"^```(?P<language>python|bash|sh)\n(?P<code>.*?)^```\n"
    r"(?:\n(?:<!-- from (?P<first>.+?), (?P<count>\d+) lines -->\n)?```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


def pages(language: str) -> list[Path]:
    """The pages of the course, in their order."""
    return sorted((ROOT / "docs" / language / "course").glob("*.md"))


# ------------------------------------------------------------------------------------------------------- output


def refresh(page: Path, place: Path, kinds: tuple[str, ...] = ("python", "bash", "sh")) -> None:
    """Put the output of the page's blocks of these kinds into the page.

    They run in their order; commands only if their output is shown or if they train a run that is not there yet.
    """

    def with_output(block: re.Match[str]) -> str:
        wanted = block["output"] is not None or block["language"] == "python" or makes_run(block["code"], place)
        if block["language"] not in kinds or not wanted:
            return block[0]
        printed = printed_by(block["language"], block["code"], place, page.parts[-3])
        if block["output"] is None:
            return block[0]
        start = block.start("output") - block.start()
        return block[0][:start] + shown_of(printed, block) + "```\n"

    page.write_text(BLOCK.sub(with_output, page.read_text("utf-8")), encoding="utf-8")


def makes_run(code: str, place: Path) -> bool:
    """Whether the commands train runs that later ones read, as `--overwrite` says, and that are not there yet."""
    folders = re.findall(r"hfgpt train .*--out_dir=(\S+) --overwrite", code)
    return any(not (place / folder / "metrics.jsonl").exists() for folder in folders)


def shown_of(printed: str, block: re.Match[str]) -> str:
    """What the page shows of an output: all of it, or the lines from the one on that begins as the page says.

    Raises:
        ValueError: those lines end within a row or a paragraph.
    """
    lines = re.sub(r"[ \t]+$", "", printed, flags=re.MULTILINE).strip("\n").splitlines(keepends=True)
    if block["first"]:
        begin = next(number for number, line in enumerate(lines) if line.startswith(block["first"]))
        end = begin + int(block["count"])
        whole = end
        # A row goes on where its first column is empty, so that the next line lies further in.
        while whole < len(lines) and indent(lines[whole]) > min(map(indent, filter(str.strip, lines[begin + 1 : end]))):
            whole += 1
        if whole > end:
            raise ValueError(f"from {block['first']}: {end - begin} lines end within a row → {whole - begin} lines")
        lines = lines[begin:end]
    return "".join(lines).rstrip("\n") + "\n"


def indent(line: str) -> int:
    """How far in a line of output begins; a blank line does not."""
    return len(line) - len(line.lstrip(" "))


def printed_by(kind: str, code: str, place: Path, language: str) -> str:
    """What a block prints: a program, or commands; those of a ``sh`` block are bad input, with exit code 2."""
    if kind == "python":
        (place / "program.py").write_text(code, encoding="utf-8")
        return run([sys.executable, "program.py"], place, language)
    commands = [shlex.split(line, comments=True) for line in code.splitlines()]
    return "".join(run(words_of(words), place, language, 2 if kind == "sh" else 0) for words in commands if words)


def words_of(words: list[str]) -> list[str]:
    """A command as this interpreter types it: `hfgpt plan …` is `python -m hfgpt plan …`."""
    if words[0] == "hfgpt":
        return [sys.executable, "-m", "hfgpt", *words[1:]]
    return [sys.executable, *words[1:]] if words[0] == "python" else words


def run(words: list[str], place: Path, language: str, code: int = 0) -> str:
    """The output of a command, as a terminal of 100 columns shows it without colours."""
    environment = {"HFGPT_LANG": language, "COLUMNS": "100", "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    done = subprocess.run(
        words, cwd=place, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding="utf-8",
    )  # fmt: skip
    if done.returncode != code:
        sys.exit(f"{shlex.join(words)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


# ----------------------------------------------------------------------------------------------------- notebooks

SAID = {
    "en": (
        "Works in the checkout of hfgpt around this notebook, or in one beside it named hfgpt; installs it once.",
        "No checkout of hfgpt is here. Put its source into a folder hfgpt (git clone), and run this cell again.",
    ),
    "zh": (
        "在笔记本所在的 hfgpt 源码目录里运行；源码也可以是旁边的文件夹 hfgpt。没有安装过就安装一次。",
        "这里没有 hfgpt 的源码。请把它放在文件夹 hfgpt 里（git clone），再运行这一格。",
    ),
}

SETUP = """\
# {said}
import os, pathlib, shutil, sysconfig
here = pathlib.Path.cwd()
top = next((folder for folder in (here, *here.parents, here / "hfgpt") if (folder / "docs" / "course").is_dir()), None)
if top is None:
    raise SystemExit("{missing}")
os.chdir(top)
os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
os.environ["HFGPT_LANG"] = "{language}"
if not shutil.which("hfgpt"):
    %pip install --quiet --editable .
"""


def notebook(page: Path) -> str:
    """A page as a notebook: text, programs as they are, commands with an exclamation mark, each with its output."""
    text, language = page.read_text("utf-8"), page.parts[-3]
    text = re.sub(rf"^\[.*\]\({page.stem}\.ipynb\)\n\n", "", text, flags=re.MULTILINE)  # the link to itself
    said, missing = SAID[language]
    cells = [code_cell(SETUP.format(language=language, said=said, missing=missing), "", "setup")]
    end = 0
    for block in BLOCK.finditer(text):
        cells += markdown_cells(text[end : block.start()])
        code = block["code"]
        if block["language"] != "python":
            code = "".join(f"!{line}\n" if line.strip() else "\n" for line in code.splitlines())
        cells.append(code_cell(code, block["output"] or "", block["language"]))
        end = block.end()
    cells += markdown_cells(text[end:])
    for number, cell in enumerate(cells):
        cell["id"] = f"{page.stem}-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def markdown_cells(text: str) -> Iterator[dict[str, object]]:
    text = re.sub(r"^<!-- from .*? -->\n", "", text, flags=re.MULTILINE).strip("\n")
    if text:
        yield {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}


def code_cell(code: str, output: str, tag: str) -> dict[str, object]:
    printed = [{"name": "stdout", "output_type": "stream", "text": output.splitlines(keepends=True)}] if output else []
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {"tags": [tag]},
        "outputs": printed,
        "source": code.rstrip("\n").splitlines(keepends=True),
    }


def main(words: list[str]) -> None:
    named = [word for word in words if not word.startswith("-")]
    kinds = ("python",) if "--programs" in words else ("python", "bash", "sh")
    with tempfile.TemporaryDirectory() as folder:  # one for both languages, so that a run is trained once
        place = Path(folder)
        for name in LINKED:
            (place / name).symlink_to(ROOT / name)
        for page in [page for language in LANGUAGES for page in pages(language) if page.stem in named or not named]:
            if "--notebooks" not in words:
                print(page.relative_to(ROOT), flush=True)
                refresh(page, place, kinds)
            if page.stem != "index":
                page.with_suffix(".ipynb").write_text(notebook(page), encoding="utf-8")
        for picture in sorted(place.glob("*.png")):
            PICTURES.mkdir(parents=True, exist_ok=True)
            shutil.move(picture, PICTURES / picture.name)


if __name__ == "__main__":
    main(sys.argv[1:])
