"""English prose follows the rules of styles/hfgpt/, which Vale reads too: in pages, comments, docstrings and messages.

Vale's package for pip downloads Vale itself when it runs, so the requirements do not include it. If it is installed,
`make check` runs it as well.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs" / "en").rglob("*.md")) + sorted((ROOT / "benchmarks").glob("*.md"))
CODE = [
    path for name in ("hfgpt", "scripts", "docs", "benchmarks", "tests") for path in sorted((ROOT / name).rglob("*.py"))
]
SETTINGS = [ROOT / name for name in ("setup.cfg", "pyproject.toml", "Makefile", "mkdocs.yml", ".vale.ini", ".ci/run")]
SETTINGS += [
    path for name in ("recipes", "accelerate_configs", ".github") for path in sorted((ROOT / name).rglob("*.y*ml"))
]
TEXTS = [ROOT / "hfgpt" / "plan" / "guide.yaml"]


class Rule(NamedTuple):
    name: str
    pattern: re.Pattern[str]
    message: str


def rules() -> Iterator[Rule]:
    """Return the rules, read as Vale reads them."""
    for path in sorted((ROOT / "styles" / "hfgpt").glob("*.yml")):
        rule = yaml.safe_load(path.read_text("utf-8"))
        flags = re.IGNORECASE if rule.get("ignorecase") else 0
        words = rule.get("raw", []) + [rf"\b{re.escape(word)}\b" for word in rule.get("swap", {})]
        yield Rule(path.stem, re.compile("|".join(words), flags), rule["message"])


RULES = list(rules())


def prose_of_page(path: Path) -> str:
    """Return a page without code, commands and output."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`", "`code`", text)


def prose_of_code(path: Path) -> str:
    """Return a module's comments and texts (docstrings, messages), with the lines of a sentence joined."""
    source = path.read_text("utf-8")
    parts = [
        token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    texts = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    ]
    return " ".join(parts) + "\n" + "\n\n".join(re.sub(r"``?[^`]*``?", "`code`", text) for text in texts)


def prose(path: Path) -> str:
    """Return the prose of a file."""
    if path in PAGES:
        return prose_of_page(path)
    if path in CODE:
        return prose_of_code(path)
    lines = path.read_text("utf-8").splitlines()
    return "\n".join(line.lstrip("# ") for line in lines if path in TEXTS or line.lstrip().startswith("#"))


@pytest.mark.parametrize("path", PAGES + CODE + SETTINGS + TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_keeps_the_rules(path: Path) -> None:
    text = prose(path)
    text = re.sub(r"\s+", " ", text)
    found = [
        f"{rule.name}: …{text[max(0, match.start() - 40) : match.end() + 30]}… {rule.message}"
        for rule in RULES
        for match in rule.pattern.finditer(text)
    ]
    assert found == []
