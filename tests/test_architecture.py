"""docs/*/architecture.md agrees with the code on where things are."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
assert spec
assert spec.loader
architecture = importlib.util.module_from_spec(spec)
spec.loader.exec_module(architecture)


@pytest.mark.parametrize("page", architecture.PAGES, ids=lambda page: page.parent.name)
def test_diagram_and_links_are_current(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text == architecture.current(text), "run python docs/architecture.py"
    assert len(architecture.LINK.findall(text)) > 20


@pytest.mark.parametrize("page", architecture.PAGES, ids=lambda page: page.parent.name)
def test_the_folders_are_those_that_the_linter_holds(page: Path) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    layers = [layer.removeprefix("hfgpt.") for layer in reversed(contract["layers"])]
    assert re.findall(r"^\| `(\w+)` \|", page.read_text("utf-8"), re.M) == layers
    assert set(architecture.imports()) == set(layers)
