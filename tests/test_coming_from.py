"""docs/coming-from.md: our names are ours, and theirs are as complete as they can be checked here."""

from __future__ import annotations

import dataclasses
import re

import pytest
from conftest import ROOT

from hfgpt.config import RENAMED, Config

SECTIONS = re.split(r"^## ", (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
FLAGS = {"--resume"}  # of scripts/train.py


def rows(section: str) -> list[tuple[list[str], list[str]]]:
    """(their names, ours) of each line of a section's table."""
    cells = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([^`]+)`", theirs), re.findall(r"`([^`]+)`", ours)) for theirs, ours in cells]


def theirs(title: str) -> set[str]:
    (section,) = [section for section in SECTIONS if section.startswith(title)]
    return {name for names, _ in rows(section) for name in names}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.splitlines()[0])
def test_our_names_are_parameters_or_flags(section: str) -> None:
    assert rows(section)
    ours = {name for _, names in rows(section) for name in names}
    commands = {name for name in ours if name.startswith("accelerate launch")}
    assert ours - commands <= set(Config.model_fields) | FLAGS


def test_the_trainers_names_are_the_trainers() -> None:
    from transformers import TrainingArguments

    assert theirs("The Trainer") <= {field.name for field in dataclasses.fields(TrainingArguments)}


def test_every_shared_or_understood_name_of_nanogpt_is_listed() -> None:
    assert set(RENAMED) <= theirs("nanoGPT")
