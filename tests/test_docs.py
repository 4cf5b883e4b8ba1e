"""What the documents say is there: links, scripts, their flags, recipes and configurations."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from hfgpt.config import RENAMED, Config

PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Each line of a bash block that names one of the scripts, once."""
    blocks = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
    lines = [line for block in blocks for line in block.splitlines() if "scripts/" in line]
    return sorted({" ".join(shlex.split(line, comments=True)) for line in lines})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("command", commands())
def test_commands_name_what_exists(command: str) -> None:
    script = re.search(r"scripts/\w+\.py", command)
    assert script
    assert (ROOT / script[0]).is_file()
    for path in re.findall(r"(?:recipes|accelerate_configs)/[\w/]+\.yaml", command):
        assert (ROOT / path).is_file() or f"--write {path}" in command
    known = (ROOT / script[0]).read_text("utf-8")
    for flag in re.findall(r"--([\w-]+)", command[script.end() :]):
        name = flag.replace("-", "_").removeprefix("no_")
        assert name in Config.model_fields or name in RENAMED or f"--{flag}" in known, flag


def test_the_chinese_readme_mirrors_the_english_one() -> None:
    english, chinese = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md"))
    for pattern in (r"^#+ ", r"^```\w*", r"^\|"):
        assert len(re.findall(pattern, chinese, re.M)) == len(re.findall(pattern, english, re.M)), pattern
