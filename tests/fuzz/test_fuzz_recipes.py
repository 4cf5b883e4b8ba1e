"""Recipes in YAML and in nanoGPT's Python, and command lines, are resolved or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config.test_config import DOCUMENTS, FRAGMENTS, KEYS, WORDS
from fuzz.fuzzing import ODD, Fuzz, command, fuzz, put
from hypothesis import strategies as st

__all__ = ["fuzz"]

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]

READERS: list[list[str]] = [["train", "--print_config"], ["plan"], ["plan", "--json"], ["sweep", "--random=2"]]

# Parts of texts, separated by "·".
PYTHON = 'n_layer·x·=·\n· ·(·)·[·]·{·}·**·*·+·-·~·not ·1·1e9·0·\'a\'·"""·#·\\·,·:·if ·else ·for ·in ·lambda ·import os'
PYTHON += "·x = x * x\n·%·f'{x}'·<<·>>·//·/·.·@·0x·_·\t·\0·\ud800·é·None·True·j·" + "9" * 50
YAML = "a·: ·- ·\n·  ·&a ·*a·<<: ·[·]·{·}·, ·? ·! ·!!int ·!!binary ·|·>·'·\"·#·%YAML 9.9\n·---\n·...\n·1:1·0o7·012"
YAML += "·2001-01-01·~·n_layer·seed·\ufeff·\x85·\u2028·\t·=·dataset: [{name: a, weight: 1}]·.inf·-.nan·1_0·0x·&a [*a]"


def texts(pieces: str) -> st.SearchStrategy[str]:
    """Draw texts of such parts, with one of them possibly repeated very often."""
    short = st.lists(st.sampled_from(pieces.split("·")), max_size=25).map("".join)
    long = st.builds(lambda piece, times: piece * times, short, st.sampled_from([30, 3000, 100_000]))
    return short | st.builds("{}{}".format, long, short)


OPTIONS = ["vram", "gpu", "processes", "time_budget", "data", "price_per_hour", "explain", "seeds", "random", "equal"]
OPTIONS += ["resume", "branch_from", "lang", "no_trials", "simulate", "print_config", "json", "recipe", "no_", ""]
MORE = st.builds("--{}={}".format, st.sampled_from(OPTIONS) | KEYS, st.sampled_from([str(odd)[:100] for odd in ODD]))
MORE |= st.builds("--{}".format, st.sampled_from(OPTIONS)) | WORDS


def cut(words: list[str]) -> list[str]:
    """Keep all output in the watched folder."""
    return [word for word in words if not word.replace("-", "_").startswith(("__out_dir", "__write", "__help"))]


def test_a_recipe(fuzz: Fuzz, tmp_path: Path) -> None:
    def check_recipe(example: Any) -> None:
        text, reader, words = example
        put(tmp_path / "r.yaml", text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
        command(reader[0], "r.yaml", *reader[1:], *cut(words), watched=tmp_path)

    recipes = DOCUMENTS | texts(YAML) | st.binary(max_size=50)
    fuzz(st.tuples(recipes, st.sampled_from(READERS[:3]), st.lists(MORE, max_size=2)), check_recipe)


def test_a_python_recipe(fuzz: Fuzz, tmp_path: Path) -> None:
    def check_python(example: Any) -> None:
        text, reader = example
        put(tmp_path / "r.py", text.encode("utf-8", "surrogatepass"))
        command(reader[0], "r.py", *reader[1:], watched=tmp_path)

    fuzz(st.tuples(texts(PYTHON) | st.text(max_size=30), st.sampled_from(READERS[:2])), check_python)


def test_words(fuzz: Fuzz, tmp_path: Path) -> None:
    """Try any arguments for every command that only reads."""
    names = ["plan", "train", "diagnose", "compare", "evaluate", "sample", "export_nanogpt", "import_nanogpt"]
    names += ["recipes", "export_gguf", "prepare", "push", "pull"]

    def check_words(example: Any) -> None:
        name, words = example
        more = {"train": ["--print_config"], "plan": ["--no_trials"]}.get(name, [])
        command(name, *cut(words), *more, watched=tmp_path)

    plain = st.sampled_from(
        [*FRAGMENTS, "in", "nothing", "a/b", "/dev/null", "/", ".", "..", "~", "~nobody/x", "", "a\0b"]
    )
    fuzz(st.tuples(st.sampled_from(names), st.lists(MORE | plain, max_size=4)), check_words)
