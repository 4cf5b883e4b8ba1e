"""The course, in both languages: its commands and programs run, and print what the pages show.

`python docs/course.py` puts the output into the pages and writes the notebooks; a failed test asks for it.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT
from workshop import Workshop

from hfgpt.base import course as course_pages
from hfgpt.base.language import using
from hfgpt.config import Config
from hfgpt.plan import guide

spec = importlib.util.spec_from_file_location("course", ROOT / "docs" / "course.py")
assert spec
assert spec.loader
course = importlib.util.module_from_spec(spec)
spec.loader.exec_module(course)

PAGES = [page for language in course.LANGUAGES for page in course.pages(language)]
SMALL = "--n_layer=2 --n_head=2 --n_embd=128 --block_size=64 --dropout=0 --eval_iters=50"
EXPERIMENT = "three long trainings; test_sweep.py reads the grid, and a grid is run from the same page"
NOT_HERE = {
    "pip install -e .": "installs an environment",
    "hfgpt --help": "test_shell.py reads it",
    "hfgpt sweep recipes/experiments/batch_size.yaml": EXPERIMENT,
    "hfgpt sweep recipes/experiments/learning_rate.yaml": EXPERIMENT,
    "hfgpt sweep recipes/experiments/model_size.yaml": EXPERIMENT,
    f"hfgpt sweep recipes/experiments/batch_size.yaml {SMALL}": EXPERIMENT,
    f"hfgpt sweep recipes/experiments/learning_rate.yaml {SMALL} --batch_size=32": EXPERIMENT,
    "hfgpt sweep recipes/experiments/model_size.yaml --batch_size=16 --block_size=64 --dropout=0 --max_iters=600 "
    "--eval_interval=60 --eval_iters=50": EXPERIMENT,
}


def name_of(page: Path) -> str:
    return f"{page.parts[-3]}/{page.stem}"


@pytest.mark.e2e
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_has_one_type_prints_what_it_shows(page: Path, place: Workshop) -> None:
    """A Chinese page has the English one's commands, so those are typed whose output is compared with the page."""
    language = page.parts[-3]
    for block in course.BLOCK.finditer(page.read_text("utf-8")):
        if block["language"] == "python":
            reads_a_run = "out/" in block["code"]  # which is shortened here
            if not reads_a_run or language == "en":
                printed = place.program(f"import os\nos.environ['HFGPT_LANG'] = {language!r}\n{block['code']}")
            if not reads_a_run:
                check(printed, block)
            continue
        for line in block["code"].splitlines():
            words = shlex.split(line, comments=True)
            if not words or shlex.join(words) in NOT_HERE:
                continue
            compared = block["output"] is not None and (block["language"] == "sh" or repeats(words))
            if compared or language == "en":
                printed = place.type([*words, f"--lang={language}"], 2 if block["language"] == "sh" else 0)
            if compared:
                check(printed, block)


def repeats(words: list[str]) -> bool:
    """Whether a command's output is the same each time, on any machine; the page's own runs are shortened here."""
    recorded = words[1] == "diagnose" and not words[2].startswith("out/")
    return recorded or (words[1] == "plan" and {"--gpu", "--vram"} & set(words) != set())


def check(printed: str, block: re.Match[str]) -> None:
    """The page shows the output, or the lines of it that it names, if it shows any."""
    if block["output"] is not None:
        assert block["output"] == course.shown_of(printed, block), "run python docs/course.py"


def test_an_excerpt_ends_with_a_whole_row() -> None:
    """A table's cell may be wrapped: its last line is shown too."""
    printed = "Too slow\n way     cost\n one     a third\n         more\n two     none\n\nNext: train\n"

    def excerpt(lines: int) -> str:
        page = f"```bash\nhfgpt plan\n```\n\n<!-- from Too slow, {lines} lines -->\n```text\n```\n"
        return str(course.shown_of(printed, course.BLOCK.search(page)))

    assert excerpt(4).splitlines()[-1] == "         more"
    assert excerpt(5).splitlines()[-1] == " two     none"
    with pytest.raises(ValueError, match="3 lines end within a row → 4 lines"):
        excerpt(3)


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "index"], ids=name_of)
def test_the_notebooks_are_the_pages(page: Path) -> None:
    assert page.with_suffix(".ipynb").read_text("utf-8") == course.notebook(page), (
        "run python docs/course.py --notebooks"
    )


@pytest.mark.parametrize("language", course.LANGUAGES)
def test_a_section_that_output_names_is_in_the_page_that_it_names(language: str) -> None:
    sections = {section for name in Config.model_fields for section in guide.entry(name).section.split(", ") if section}
    assert len(sections) > 15
    with using(language):
        for section in sections:
            assert f"\n## {section} " in (ROOT / course_pages.pages(section)).read_text("utf-8")
        named = course_pages.pages("6.4, strategy 5; 3.1; 6.2")
        assert [path.partition("/course/")[2][:8] for path in re.split("[,、] ?", named)] == ["6-tuning", "3-optimi"]


@pytest.mark.e2e
@pytest.mark.parametrize("language", course.LANGUAGES)
def test_a_notebook_runs(language: str) -> None:
    """In a real kernel: the first cell and the programs. The commands are those run above."""
    import nbclient
    import nbformat

    page = ROOT / "docs" / language / "course" / "4-schedule.ipynb"
    notebook = nbformat.read(page, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if {"setup", "python", "sh"} & set(cell.metadata.get("tags", ()))]
    shown = [cell.outputs for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(page.parent)}}).execute()
    for cell, before in zip(notebook.cells, shown, strict=True):
        printed = [output.text for output in cell.outputs if output.output_type == "stream"]
        assert "".join(printed).replace("\r\n", "\n") == "".join(output.text for output in before)
    (ROOT / f"schedules{'-zh' if language == 'zh' else ''}.png").unlink(missing_ok=True)
